"""The same fit to many resampled data sets: compiled, on all cores, where the model is; one after the other where it is not.

Each fit begins at the parameters of the original. How the data are drawn is the caller's affair; they are drawn in the main thread,
in order, so the results do not depend on the number of threads.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gradfit.compiler.compiled import NativeKernel
from gradfit.compiler.correlated import AnyKernel
from gradfit.data.dataset import Dataset
from gradfit.drivers.monitor import counted
from gradfit.methods import marquardt
from gradfit.methods.refitting import MAX_STEPS, Refits, refit
from gradfit.methods.solving import INVOLVED, Solver
from gradfit.model.parameters import Parameters
from gradfit.typing import Floats

CHUNK = 500_000  # rows drawn at a time: 4 MB a column, and some ten milliseconds of work between two looks at interrupt and bar
SINGULAR = 1e-6  # of a scaled J
ROWS_A_THREAD = 500_000  # fewer are done before another thread has begun
ENOUGH = 1e-6  # of the variance: a thousandth of a standard error is left, and the last step is still taken


@dataclass(frozen=True)
class Drawn:
    """Resampled data sets.

    Attributes
    ----------
    index
        (count, n), which rows each consists of; None: each its own, in order.
    target
        (count, n), new values of the target; None: those of the rows.
    """

    index: np.ndarray | None = None
    target: Floats | None = None


def refit_resampled(
    kernel: AnyKernel,
    data: Dataset,
    theta: Floats,
    parameters: Parameters,
    draw: Callable[[int], Drawn],
    count: int,
    *,
    known: bool,
    threads: int | None,
    progress: bool | None,
) -> Refits:
    """Fit to ``count`` data sets.

    Parameters
    ----------
    kernel, data
        The model, and the rows that are resampled.
    theta
        Where each fit begins, (p,).
    draw
        Gives so many more data sets.
    known
        Whether the variance of a residual in units of sigma is known, as 1.
    threads
        At most; None: as many as there are cores. More than one helps compiled models only.
    """
    at_once = max(1, min(CHUNK // data.n, count))
    parts: list[Refits] = []
    native = isinstance(kernel, NativeKernel) and kernel.loss_kind == "least_squares"
    workers = min(threads or cores(), 1 + count * data.n // ROWS_A_THREAD) if native else 1
    with ThreadPoolExecutor(workers) as pool, counted(count, "refitting", progress) as advance:
        for begun in range(0, count, at_once):
            size = min(at_once, count - begun)
            drawn = draw(size)
            if isinstance(kernel, NativeKernel) and native:
                parts += _compiled(kernel, data, theta, parameters, drawn, size, known, pool, workers)
            else:
                parts.append(_one_by_one(kernel, data, theta, parameters, drawn, size, known, advance))
            advance(size if native else 0)
    return Refits(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("theta", "stderr", "sum", "code")))


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _compiled(
    kernel: NativeKernel,
    data: Dataset,
    theta: Floats,
    parameters: Parameters,
    drawn: Drawn,
    size: int,
    known: bool,
    pool: ThreadPoolExecutor,
    workers: int,
) -> list[Refits]:
    """Let each thread fit a part."""
    inverse = _inverse(kernel, theta) if drawn.index is None else None

    def part(chosen: slice) -> Refits:
        index = None if drawn.index is None else drawn.index[chosen]
        rows: Callable[[Floats], Floats] = (lambda column: column) if index is None else (lambda column: column[index])
        target = rows(data.target) if drawn.target is None else drawn.target[chosen]
        weight = None if data.sigma is None else rows(1 / data.sigma)
        tables = [*map(rows, data.columns.values()), target, *([] if weight is None else [weight])]
        offsets = np.broadcast_to(target if weight is None else target * weight, (chosen.stop - chosen.start, data.n))
        variance = 1.0 if known else 0.0

        def fitted(starts: Floats, among: np.ndarray | slice) -> Refits:
            chosen = [table[among] if table.ndim == 2 else table for table in tables]
            limits = parameters.lower, parameters.upper
            return refit(kernel, starts, *limits, chosen, offsets[among], variance=variance, enough=ENOUGH)

        if inverse is None:
            return fitted(theta, slice(None))
        # All begin at one point, where J is known: one product is the first step of each. Not by BLAS, whose sums depend on how many
        # rows there are, and so on the number of threads.
        value, pseudo = inverse
        residual = value + kernel.offset - offsets
        found = fitted(np.clip(theta - np.einsum("ij,kj->ik", residual, pseudo), parameters.lower, parameters.upper), slice(None))
        lost = np.flatnonzero(~(found.converged & (found.sum <= np.einsum("ij,ij->i", residual, residual))))
        return found.put(lost, fitted(theta, lost)) if lost.size else found

    edges = np.linspace(0, size, min(workers, size) + 1).astype(int).tolist()
    parts = [slice(begin, end) for begin, end in itertools.pairwise(edges)]
    return [part(parts[0])] if len(parts) == 1 else list(pool.map(part, parts))


def _inverse(kernel: NativeKernel, theta: Floats) -> tuple[Floats, Floats] | None:
    """Residual (n,) and pseudo-inverse of its derivative (p, n); None where J is nearly singular."""
    value, jacobian = kernel.residual(theta)
    norms = np.linalg.norm(jacobian, axis=0)
    if not (norms > 0).all():
        return None
    q, r = np.linalg.qr(jacobian / norms)
    if not np.abs(np.diag(r)).min() > SINGULAR:
        return None
    return value, np.linalg.solve(r, q.T) / norms[:, None]


def _one_by_one(
    kernel: AnyKernel,
    data: Dataset,
    theta: Floats,
    parameters: Parameters,
    drawn: Drawn,
    size: int,
    known: bool,
    advance: Callable[[int], Any],
) -> Refits:
    p = len(theta)
    found, errors, sums, codes = np.full((size, p), np.nan), np.full((size, p), np.nan), np.full(size, np.nan), []
    for place in range(size):
        rows = data if drawn.index is None else data.rows(drawn.index[place])
        rows = rows if drawn.target is None else replace(rows, target=drawn.target[place], block=None)
        solver = Solver(kernel.on(rows), theta, parameters.lower, parameters.upper, exact=not kernel.numeric)
        code, _ = solver.run(MAX_STEPS)
        codes.append(code)
        found[place] = solver.theta
        if code != marquardt.NOT_FINITE:
            conclusion = solver.conclusion()
            sums[place] = conclusion.sum
            if kernel.loss_kind in ("least_squares", "likelihood"):
                variance = 1.0 if known else conclusion.sum / max(data.n - p, 1)
                errors[place] = np.sqrt(np.diag(conclusion.inverse) * variance)
            errors[place, conclusion.undetermined >= INVOLVED] = np.inf
        advance(1)
    return Refits(found, errors, sums, np.array(codes, dtype=np.int64))
