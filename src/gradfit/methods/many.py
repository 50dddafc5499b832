r"""Levenberg-Marquardt on many small data sets at once, in compiled code that holds up no other thread.

Two algorithms share the work. The quick one (:mod:`gradfit.methods.lanes`) fits as many data sets side by side as a vector has
lanes, by normal equations; it ends a fit only where these can be vouched for: well conditioned, a thousandth of a standard error
from the minimum before the last step. All others, few as a rule, go from their start through the careful one
(:mod:`gradfit.methods.marquardt`), which a single fit uses too, and end with its verdict.

What is found for a fit does not depend on the fits beside it, to the last bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from gradfit.compiler.compiled import NativeKernel, address_of
from gradfit.compiler.solver import Entry, Size
from gradfit.data.batch import FLAWS, Block
from gradfit.methods import lanes, marquardt, refits
from gradfit.methods.evaluating import contexts
from gradfit.methods.lane_marquardt import FIRST_DAMPING
from gradfit.methods.method import Status
from gradfit.methods.solving import STATE, P, Solver, algorithm_object, linked
from gradfit.methods.stopping import ARRIVED
from gradfit.typing import Floats

SOLVE_ALL = Entry(
    "gf_solve_all",
    "solve_all",
    ("n", "p", "rows", "count", "width", "result"),
    {name: shape for name, shape in STATE.items() if name != "offset"}
    | {
        "offsets": (Size("count"), Size("n")),
        "goal": (Size(more=refits.GOALS),),
        "limits": (Size(more=2), Size("count"), P),
        "starts": (Size("count"), P),
        "words": (Size("width"),),
        "strides": (Size("width"),),
        "results": (Size("count"), Size("result")),
    },
)

# How a fit of a batch ended: the status of a single fit, or why there was none. Numbers, for they are stored.
CONVERGED, COMPLETED, STOPPED_EARLY, NOT_CONVERGED, STALLED, DIVERGED, NOT_FINITE = range(len(Status))
OF_FLAW = {flaw: len(Status) + place for place, flaw in enumerate(FLAWS)}
TOO_FEW, BAD_START, NOT_DONE, REFUSED = range(len(Status) + len(FLAWS), len(Status) + len(FLAWS) + 4)
NAMES = (
    *(status.name.lower() for status in Status), "no_data", "infinite_data", "bad_sigma", "vanishing_data", "too_few", "bad_start", "not_done",
    "refused",
)  # fmt: skip
SUCCESSFUL = np.array([*(status.success for status in Status), *[False] * (len(FLAWS) + 4)])
OF_CODE = {
    marquardt.RUNNING: NOT_CONVERGED,
    marquardt.CONVERGED: CONVERGED,
    marquardt.PLATEAU: STALLED,
    marquardt.ROUGH: STALLED,
    marquardt.UNDEFINED: STALLED,
    marquardt.NOT_FINITE: NOT_FINITE,
}


@dataclass(frozen=True)
class Starts:
    """Where the fits of a block begin, and where they may go.

    Attributes
    ----------
    theta
        (count, p).
    lower, upper
        (count, p) or (p,).
    fixed
        Fixed numbers, (count, q) or (q,).
    open
        Which fits have numbers without a start, for which one is to be found, (count,) bool; None: none.
    """

    theta: Floats
    lower: Floats
    upper: Floats
    fixed: Floats
    open: np.ndarray | None = None

    def chosen(self, places: np.ndarray) -> Starts:
        """Give some of them."""
        own: Callable[[Floats], Floats] = lambda part: part if part.ndim == 1 else part[places]  # noqa: E731
        waiting = None if self.open is None else self.open[places]
        return Starts(own(self.theta), own(self.lower), own(self.upper), own(self.fixed), waiting)


@dataclass(frozen=True)
class Ends:
    """How the fits of a block ended.

    Attributes
    ----------
    theta
        (count, p).
    packed
        :math:`(J^TJ)^{-1}`, the lower triangle row after row, (count, p (p + 1) / 2); what belongs to a parameter on a bound means nothing.
    sum
        Sums of squares, (count,).
    status
        (count,), int8.
    steps
        (count,), int32.
    doubtful
        (count, p): which errors cannot be vouched for: of parameters that the data do not determine. None: all can.
    """

    theta: Floats
    packed: Floats
    sum: Floats
    status: np.ndarray
    steps: np.ndarray
    doubtful: np.ndarray | None

    @classmethod
    def none(cls, starts: Floats) -> Ends:
        """Of fits that were not made: where they would have begun."""
        count, p = starts.shape
        return cls(
            np.array(starts), np.full((count, p * (p + 1) // 2), np.nan), np.full(count, np.nan), np.full(count, NOT_DONE, dtype=np.int8),
            np.zeros(count, dtype=np.int32), np.ones((count, p), dtype=bool),
        )  # fmt: skip

    @property
    def variances(self) -> Floats:
        """Diagonal of the inverse, (count, p)."""
        p = self.theta.shape[1]
        return self.packed.T[[j * (j + 3) // 2 for j in range(p)]].T

    @property
    def inverse(self) -> Floats:
        """The inverse, (count, p, p)."""
        count, p = self.theta.shape
        rows, columns = np.tril_indices(p)
        whole = np.empty((count, p, p))
        whole[:, rows, columns] = whole[:, columns, rows] = self.packed
        return whole

    def put(self, places: np.ndarray, others: Ends) -> None:
        """Take in how some of the fits ended."""
        for name in vars(self):
            theirs = getattr(others, name)
            getattr(self, name)[places] = False if theirs is None else theirs  # no doubts


@dataclass(frozen=True)
class Limits:
    """What a fit may take.

    Attributes
    ----------
    max_steps
        Steps at most.
    radius
        Of the first step, as a share of the parameters.
    single
        Whether to step in single precision first.
    careful
        Whether what does not end in vectors is made with care; otherwise it is left NOT_DONE where it has come to.
    """

    max_steps: int = 1000
    radius: float = 1.0
    single: bool = False
    careful: bool = True


def unfit(block: Block, starts: Starts) -> np.ndarray:
    """Say of each fit why it cannot be made, (count,) int8: a status; NOT_DONE where it can."""
    status = np.full(block.count, NOT_DONE, dtype=np.int8)
    limited = (starts.lower != -np.inf).any() or (starts.upper != np.inf).any()  # an infinite one on the wrong side counts
    if limited or not (np.isfinite(starts.theta.sum()) and np.isfinite(starts.fixed.sum())):
        with np.errstate(invalid="ignore"):
            inside = (starts.theta >= starts.lower) & (starts.theta <= starts.upper) & (starts.lower <= starts.upper)
        inside &= np.isfinite(starts.theta)
        status[~(inside.all(axis=1) & np.isfinite(np.atleast_2d(starts.fixed)).all(axis=1))] = BAD_START
    status[block.sizes < starts.theta.shape[1]] = TOO_FEW
    if block.flaws.any():
        for flaw, own in OF_FLAW.items():
            status[block.flaws == flaw] = own
    return status


def fit_block(kernel: NativeKernel, block: Block, starts: Starts, limits: Limits) -> Ends:
    """Fit a compiled model to each data set of a block; with another loss than squares some may be left NOT_DONE."""
    status = unfit(block, starts)
    fit = np.flatnonzero(status == NOT_DONE)
    if fit.size == block.count:
        return _fitted(kernel, block, starts, limits)
    ends = Ends.none(starts.theta)
    ends.status[:] = status
    if fit.size:
        ends.put(fit, _fitted(kernel, block.chosen(fit), starts.chosen(fit), limits))
    return ends


def _fitted(kernel: NativeKernel, block: Block, starts: Starts, limits: Limits) -> Ends:
    """Fit all of a block: in vectors, and with care what did not end there."""
    if not lanes.serves(kernel):
        return careful(kernel, block, starts, limits)
    long = block.sizes > lanes.MOST_ROWS
    if long.any():
        return _some_long(kernel, block, starts, limits, long)
    found = _quick(kernel, block, starts, limits)
    count, p = found.theta.shape
    ends = Ends(found.theta, found.packed, found.sum, np.zeros(count, dtype=np.int8), found.steps, None)  # CONVERGED is 0
    rest = np.flatnonzero(~found.ended)
    if kernel.loss_kind != "least_squares" or not limits.careful:  # with another loss it would ask Python for each look
        ends.status[rest] = NOT_DONE
    elif rest.size:
        ends = replace(ends, doubtful=np.zeros((count, p), dtype=bool))
        ends.put(rest, careful(kernel, block.chosen(rest), starts.chosen(rest), limits))
    return ends


def _some_long(kernel: NativeKernel, block: Block, starts: Starts, limits: Limits, long: np.ndarray) -> Ends:
    """Fit a block in which some have so many rows that their vectors are full without neighbours."""
    ends = Ends.none(starts.theta)
    short, rest = np.flatnonzero(~long), np.flatnonzero(long)
    if short.size:
        ends.put(short, _fitted(kernel, block.chosen(short).narrowed(), starts.chosen(short), limits))
    if kernel.loss_kind == "least_squares":
        ends.put(rest, careful(kernel, block.chosen(rest), starts.chosen(rest), limits))
    return ends


def _quick(kernel: NativeKernel, block: Block, starts: Starts, limits: Limits) -> lanes.Quick:
    """Fit in vectors; in single precision first where that is asked for, whose results double precision then takes up."""
    begin, given = starts.theta, (starts.lower, starts.upper, starts.fixed)
    if not limits.single:
        return lanes.fit(kernel, block, begin, *given, most=min(lanes.MOST_LOOKS, limits.max_steps + 1))
    most = min(lanes.MOST_LOOKS_SINGLE, limits.max_steps + 1)
    first = lanes.forerun(kernel, block, begin, *given, most=most)
    lost = ~np.isfinite(first.sum)
    if lost.any():
        first.theta[lost], first.damping[lost] = begin[lost], FIRST_DAMPING
    begin = first.theta
    if np.isfinite(starts.lower).any() or np.isfinite(starts.upper).any():
        begin = np.clip(begin, starts.lower, starts.upper)  # single precision may have rounded a bound
    most = min(lanes.MOST_LOOKS, limits.max_steps + 1)
    found = lanes.fit(kernel, block, begin, *given, most=most, damping=first.damping)
    found.steps += first.steps
    return found


def careful(kernel: NativeKernel, block: Block, starts: Starts, limits: Limits) -> Ends:
    """Fit one data set after the other, those of one length together."""
    ends = Ends.none(starts.theta)
    for n in np.unique(block.sizes):
        places = np.flatnonzero(block.sizes == n)
        ends.put(places, _of_length(kernel, int(n), block.chosen(places), starts.chosen(places), limits))
    return ends


def _of_length(kernel: NativeKernel, n: int, block: Block, starts: Starts, limits: Limits) -> Ends:
    count, p = starts.theta.shape
    words, strides, kept = contexts(block, n, starts.fixed)
    aim = kept[1 + len(block.columns)]
    offsets = aim if block.weight is None else np.ascontiguousarray(aim * kept[-1])
    theta = np.ascontiguousarray(starts.theta)
    bounds = np.ascontiguousarray([np.broadcast_to(side, (count, p)) for side in (starts.lower, starts.upper)])
    solver = Solver(kernel.on(block.dataset(0, kernel.base.model.data_names, "")), theta[0], bounds[0, 0], bounds[1, 0])
    results = np.empty((count, p * (p + refits.SOLVED) + refits.SOLVED_NUMBERS))
    goal = np.zeros(refits.GOALS)
    goal[refits.MOST], goal[refits.FIRST] = limits.max_steps, limits.radius
    history = np.empty((1, marquardt.HISTORY + 2 * p))
    _context, system, _offset, *state = solver.addresses
    arrays = [history, goal, bounds, theta, words, strides, results]
    addresses = [address_of(words), system, address_of(offsets), *state, *map(address_of, arrays)]
    job = np.array([n, p, len(history), count, len(words), results.shape[1], *addresses], dtype=np.int64)
    linked(kernel, "gf_solve_all", _object).call(address_of(job))
    return _read(results, p)


def _read(results: Floats, p: int) -> Ends:
    """Take the rows of results apart."""
    count, at = len(results), p * (p + refits.SOLVED)
    numbers = results[:, at:]
    code = numbers[:, refits.SOLVED_CODE].astype(np.int8)
    lost = code == marquardt.NOT_FINITE  # nothing was concluded of these
    results[lost, p : p + p * p] = np.nan
    distance, condition = numbers[:, refits.SOLVED_DISTANCE], numbers[:, refits.SOLVED_CONDITION]
    status = np.select([code == key for key in OF_CODE], list(OF_CODE.values())).astype(np.int8)
    status[(status == NOT_CONVERGED) & (distance <= ARRIVED)] = CONVERGED
    unsure = (condition > marquardt.SAFE) | (numbers[:, refits.SOLVED_CURVED] > 0) | ~SUCCESSFUL[status]
    share = results[:, p + p * p : 2 * p + p * p]
    certain = np.isinf(condition) & (numbers[:, refits.SOLVED_CURVED] == 0) & SUCCESSFUL[status]
    # Where directions are not determined, the parameters without a part in them still have errors.
    doubtful = np.where(certain[:, None], ~(share < marquardt.INVOLVED), unsure[:, None])
    rows, columns = np.tril_indices(p)
    packed = results[:, p : p + p * p].reshape(count, p, p)[:, rows, columns]
    steps = numbers[:, refits.SOLVED_STEPS].astype(np.int32)
    return Ends(results[:, :p], packed, numbers[:, refits.SOLVED_SUM], status, steps, doubtful)


@functools.cache
def _object() -> bytes:
    return algorithm_object([marquardt, refits], [SOLVE_ALL])
