"""The same fit to many resampled data sets: compiled, on all cores, where the model is; one after the other where it is not.

Each fit begins at the parameters of the original. How the data are drawn is the caller's affair; they are drawn in the main thread,
in order, so the results do not depend on the number of threads.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gradfit.compiler.compiled import NativeKernel
from gradfit.compiler.correlated import AnyKernel
from gradfit.data.dataset import Dataset
from gradfit.drivers.monitor import counted
from gradfit.methods import marquardt
from gradfit.methods.refitting import MAX_STEPS, Refits, refit
from gradfit.methods.solving import Solver, is_compiled
from gradfit.model.parameters import Parameters
from gradfit.typing import Floats

CHUNK = 500_000  # rows drawn at a time: 4 MB a column, and some ten milliseconds of work between two looks at interrupt and bar
SINGULAR = 1e-6  # of a scaled J
ROWS_A_THREAD = 500_000  # fewer are done before another thread has begun
ENOUGH = 1e-6  # of the variance: a thousandth of a standard error is left, and the last step is still taken


@dataclass(frozen=True)
class Drawn:
    """Resampled data sets: other rows, or other targets, and inputs where these have errors, on the same rows.

    Attributes
    ----------
    index
        (count, n), which rows each consists of; None: each its own, in order.
    target
        (count, n), new values of the target; None: those of the rows.
    columns
        New values of some inputs by name, (count, n) each.
    """

    index: np.ndarray | None = None
    target: Floats | None = None
    columns: Mapping[str, Floats] = field(default_factory=dict)

    def part(self, chosen: slice) -> Drawn:
        """Give some of them."""
        columns = {name: drawn[chosen] for name, drawn in self.columns.items()}
        index, target = (None if drawn is None else drawn[chosen] for drawn in (self.index, self.target))
        return Drawn(index, target, columns)


@dataclass(frozen=True)
class Resampling:
    """A fit that is made again.

    Attributes
    ----------
    kernel, data
        The model, and the rows that are resampled.
    theta
        Where each fit begins, (p,).
    parameters
        With their bounds.
    known
        Whether the variance of a residual in units of sigma is known, as 1.
    """

    kernel: AnyKernel
    data: Dataset
    theta: Floats
    parameters: Parameters
    known: bool

    def refit(
        self, draw: Callable[[int], Drawn], count: int, *, threads: int | None = None, progress: bool | None = None
    ) -> Refits:
        """Fit to ``count`` data sets.

        Parameters
        ----------
        draw
            Gives so many more data sets.
        threads
            At most; None: as many as there are cores. More than one helps compiled models only.
        """
        n = self.data.n
        at_once = max(1, min(CHUNK // n, count))
        workers = min(threads or cores(), 1 + count * n // ROWS_A_THREAD) if is_compiled(self.kernel) else 1
        parts: list[Refits] = []
        with ThreadPoolExecutor(workers) as pool, counted(count, "refitting", progress) as advance:
            for begun in range(0, count, at_once):
                size = min(at_once, count - begun)
                drawn = draw(size)
                if is_compiled(self.kernel):
                    edges = np.linspace(0, size, min(workers, size) + 1).astype(int).tolist()
                    cut = [drawn.part(slice(begin, end)) for begin, end in itertools.pairwise(edges)]
                    fit = functools.partial(self._compiled, self.kernel)
                    parts += map(fit, cut) if len(cut) == 1 else pool.map(fit, cut)
                    advance(size)
                else:
                    parts.append(self._one_by_one(drawn, size, advance))
        return Refits(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("theta", "stderr", "sum", "code")))

    def _compiled(self, kernel: NativeKernel, drawn: Drawn) -> Refits:
        """Fit by compiled code, which does not hold up other threads."""
        data, limits = self.data, (self.parameters.lower, self.parameters.upper)
        target = drawn.target
        if target is None:
            target = data.target if drawn.index is None else data.target[drawn.index]
        tables = kernel.tables(target, drawn.index, drawn.columns)
        variance = 1.0 if self.known else 0.0
        inverse = self._inverse if drawn.index is None and tables.linear else None
        if inverse is None:
            return refit(kernel, self.theta, *limits, tables, variance=variance, enough=ENOUGH)
        # All begin at one point, where J is known: one product is the first step of each. Not by BLAS, whose sums depend on how many
        # rows there are, and so on the number of threads.
        value, pseudo = inverse
        residual = value + kernel.offset - tables.offsets
        starts = np.clip(self.theta - np.einsum("ij,kj->ik", residual, pseudo), *limits)
        found = refit(kernel, starts, *limits, tables, variance=variance, enough=ENOUGH)
        lost = np.flatnonzero(~(found.converged & (found.sum <= np.einsum("ij,ij->i", residual, residual))))
        if not lost.size:
            return found
        return found.put(lost, refit(kernel, self.theta, *limits, tables.some(lost), variance=variance, enough=ENOUGH))

    @functools.cached_property
    def _inverse(self) -> tuple[Floats, Floats] | None:
        """Residual (n,) and pseudo-inverse of its derivative (p, n); None where J is nearly singular."""
        value, jacobian = self.kernel.residual(self.theta)
        norms = np.linalg.norm(jacobian, axis=0)
        if not (norms > 0).all():
            return None
        q, r = np.linalg.qr(jacobian / norms)
        if not np.abs(np.diag(r)).min() > SINGULAR:
            return None
        return value, np.linalg.solve(r, q.T) / norms[:, None]

    def _one_by_one(self, drawn: Drawn, size: int, advance: Callable[[int], Any]) -> Refits:
        kernel, data, p = self.kernel, self.data, len(self.theta)
        found, errors, sums, codes = np.full((size, p), np.nan), np.full((size, p), np.nan), np.full(size, np.nan), []
        for place in range(size):
            rows = data if drawn.index is None else data.rows(drawn.index[place])
            columns = dict(rows.columns) | {name: column[place] for name, column in drawn.columns.items()}
            rows = rows if drawn.target is None else replace(rows, columns=columns, target=drawn.target[place], block=None)
            solver = Solver(kernel.on(rows), self.theta, self.parameters.lower, self.parameters.upper, exact=not kernel.numeric)
            code, _ = solver.run(MAX_STEPS)
            codes.append(code)
            found[place] = solver.theta
            if code != marquardt.NOT_FINITE:
                conclusion = solver.conclusion()
                sums[place] = conclusion.sum
                if kernel.loss_kind in ("least_squares", "likelihood"):
                    variance = 1.0 if self.known else conclusion.sum / max(data.n - p, 1)
                    errors[place] = np.sqrt(np.diag(conclusion.inverse) * variance)
                errors[place, conclusion.undetermined >= marquardt.INVOLVED] = np.inf
            advance(1)
        return Refits(found, errors, sums, np.array(codes, dtype=np.int64))


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
