r"""The repeated fits of :mod:`gradfit.methods.refits` compiled, at work on any kernel.

Like :mod:`gradfit.methods.solving` for one fit: on a compiled model with squared loss compiled code calls compiled code, on any other
kernel it calls Python.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from gradfit.compiler.compiled import NativeKernel, Tables, address_of
from gradfit.compiler.kernel import Kernel
from gradfit.compiler.solver import Entry, Size
from gradfit.methods import marquardt, refits
from gradfit.methods.solving import STATE, P, Solver, algorithm_object, linked
from gradfit.typing import Floats

HISTORY_ROWS = 8  # of scratch: what Levenberg-Marquardt may say before it is asked to go on
MAX_STEPS = 200
ENOUGH = 1e-10  # of the variance: on a ray tau is then known to better than it is looked for

GOAL: dict[str, tuple[Size, ...]] = {"goal": (Size(more=refits.GOALS),)}
CROSS = Entry(
    "gf_cross",
    "cross_all",
    ("n", "p", "rows", "count"),
    STATE
    | GOAL
    | {"limits": (Size(more=2), P), "base": (P,), "rays": (Size("count"), Size("p", refits.RAY, refits.RAY_NUMBERS))},
)
REFIT = Entry(
    "gf_refit",
    "refit_all",
    ("n", "p", "rows", "count", "width"),
    {name: shape for name, shape in STATE.items() if name != "offset"}
    | GOAL
    | {
        "offsets": (Size("count"), Size("n")),
        "limits": (Size(more=2), P),
        "starts": (Size("count"), P),
        "words": (Size("width"),),
    }
    | {"strides": (Size("width"),), "results": (Size("count"), Size("p", 2, 2))},
)


@dataclass(frozen=True)
class Ray:
    """A way out from a fitted point.

    Attributes
    ----------
    direction
        (p,): how the parameters move per unit of the way, the held ones exactly, the free ones as a first guess.
    held
        (p,) bool.
    """

    direction: Floats
    held: np.ndarray


@dataclass(frozen=True)
class Crossing:
    """Where a ray was left.

    Attributes
    ----------
    code
        CROSSED, AT_BOUND, OPEN, LOWER_MINIMUM or LOST of :mod:`gradfit.methods.refits`.
    theta
        Parameters there, (p,).
    rho
        How far that is, in units of the direction.
    """

    code: int
    theta: Floats
    rho: float


def crossings(
    kernel: Kernel,
    theta: Floats,
    lower: Floats,
    upper: Floats,
    rays: list[Ray],
    *,
    tau: float,
    variance: float,
    least: float,
    exact: bool = True,
) -> list[Crossing]:
    """Follow rays from a minimum to where the sum of squares has risen by ``tau ** 2 * variance``.

    Parameters
    ----------
    theta, lower, upper
        The minimum and the bounds, (p,).
    least
        Sum of squares at the minimum.
    exact
        Whether derivatives are exact.
    """
    p = len(theta)
    solver = Solver(kernel, theta, lower, upper, exact=exact)
    table = np.zeros((len(rays), refits.RAY * p + refits.RAY_NUMBERS))
    for row, ray in zip(table, rays, strict=True):
        row[:p], row[p : 2 * p] = ray.direction, ray.held
    arrays = [
        np.empty((HISTORY_ROWS, marquardt.HISTORY + 2 * p)), np.array([variance, least, tau, ENOUGH, MAX_STEPS, 1.0]),
        np.array([lower, upper]), np.array(theta, dtype=np.float64), table,
    ]  # fmt: skip
    job = np.array([kernel.n, p, HISTORY_ROWS, len(rays), *solver.addresses, *map(address_of, arrays)], dtype=np.int64)
    linked(kernel, "gf_cross", _object).call(address_of(job))
    if solver.callbacks is not None:
        solver.callbacks.check()
    found, last = table[:, 2 * p : 3 * p], table[:, 3 * p :]
    return [
        Crossing(int(numbers[refits.CODE]), point.copy(), float(numbers[refits.RHO]))
        for point, numbers in zip(found, last, strict=True)
    ]


@dataclass(frozen=True)
class Refits:
    """Fits to many data sets.

    Attributes
    ----------
    theta, stderr
        (count, p); the error is infinite where the data do not determine a parameter, NaN where it has none (on a bound, or of a
        loss that is no likelihood).
    sum
        Sums of squares, (count,).
    code
        (count,), how each ended: a code of :mod:`gradfit.methods.marquardt`; RUNNING where the steps were not enough.
    """

    theta: Floats
    stderr: Floats
    sum: Floats
    code: np.ndarray

    def put(self, places: np.ndarray, others: Refits) -> Refits:
        """Give the same with other results at some places."""
        for name in ("theta", "stderr", "sum", "code"):
            getattr(self, name)[places] = getattr(others, name)
        return self

    @property
    def converged(self) -> np.ndarray:
        """Which reached a minimum, (count,)."""
        return np.asarray(self.code == marquardt.CONVERGED)


def refit(
    kernel: NativeKernel,
    starts: Floats,
    lower: Floats,
    upper: Floats,
    tables: Tables,
    *,
    variance: float,
    enough: float,
) -> Refits:
    """Fit a compiled model with squared loss to many data sets.

    Parameters
    ----------
    starts
        Where the fits begin, (count, p), or (p,) for all.
    tables
        The data sets, see :meth:`~gradfit.compiler.compiled.NativeKernel.tables`.
    variance
        Of a residual, where it is known; 0 where each fit estimates its own.
    enough
        Each fit ends where the gain of the next step is below this share of the variance.
    """
    p, (count, n) = starts.shape[-1], tables.offsets.shape
    starts = np.ascontiguousarray(np.broadcast_to(starts, (count, p)), dtype=np.float64)
    solver = Solver(kernel, starts[0], lower, upper)
    columns = [np.ascontiguousarray(table, dtype=np.float64) for table in tables.columns]
    words = np.array([n, kernel.context.words[1], *map(address_of, columns)], dtype=np.int64)
    strides = np.array([0, 0, *(8 * n if table.ndim == 2 else 0 for table in columns)], dtype=np.int64)
    results = np.empty((count, 2 * p + 2))
    arrays = [
        np.empty((HISTORY_ROWS, marquardt.HISTORY + 2 * p)), np.array([variance, 0.0, 0.0, enough, MAX_STEPS, 1.0]),
        np.array([lower, upper]), starts, words, strides, results,
    ]  # fmt: skip
    _context, system, _offset, *state = solver.addresses
    offsets = np.ascontiguousarray(tables.offsets)
    places = [address_of(words), system, address_of(offsets), *state, *map(address_of, arrays)]
    job = np.array([n, p, HISTORY_ROWS, count, len(words), *places], dtype=np.int64)
    linked(kernel, "gf_refit", _object).call(address_of(job))
    return Refits(results[:, :p], results[:, p : 2 * p], results[:, 2 * p], results[:, 2 * p + 1].astype(np.int64))


@functools.cache
def _object() -> bytes:
    return algorithm_object([marquardt, refits], [CROSS, REFIT])
