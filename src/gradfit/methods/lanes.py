"""The quick algorithm (:mod:`gradfit.methods.lane_marquardt`) at work on a block of fits."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import numpy as np

from gradfit.compiler.compiled import NativeKernel, address_of
from gradfit.compiler.graph import Untraceable
from gradfit.compiler.lanes import JOB, Layout, lanes_object
from gradfit.compiler.native import COMPILING, Function, load
from gradfit.compiler.row_trace import measure_row
from gradfit.compiler.rows import RowSource
from gradfit.data.batch import SINGLE, Block
from gradfit.methods.lane_marquardt import ENDED, ENDED_SLOWLY, FIRST_DAMPING, MODERATE, SOUND, LaneMarquardt
from gradfit.model.loss import Loss
from gradfit.typing import Floats

MOST_PARAMETERS = 12  # more are not unrolled; the careful algorithm serves them
MOST_ROWS = 1 << 14  # of a fit: more fill vectors by themselves, and would take memory once for each lane
MOST_LOOKS = 300  # of a fit in double precision: one that needs many costs less here than in the careful solver
MOST_LOOKS_SINGLE = 16
ALIGNED = 64
ALGORITHM = LaneMarquardt()


def serves(kernel: NativeKernel) -> bool:
    """Whether a model is small enough to be unrolled, and its loss a sum of rows."""
    if not 0 < len(kernel.code.prediction.parameters) <= MOST_PARAMETERS:
        return False
    try:
        measure_of(kernel)
    except Untraceable:
        return False
    return True


def measure_of(kernel: NativeKernel) -> RowSource | None:
    """One row of the kernel's loss; None for squares."""
    return None if kernel.loss_kind == "least_squares" else _measure(kernel.loss_function)


@functools.lru_cache(maxsize=64)
def _measure(loss: Loss) -> RowSource:
    return measure_row(loss)


class Quick:
    """Results of the quick algorithm.

    Attributes
    ----------
    theta, packed, sum, steps
        (count, p), the lower triangle of the inverse of A (count, p (p + 1) / 2), (count,), (count,).
    ended
        Which fits ended here, (count,) bool; the others are to be made with care.
    """

    def __init__(self, results: Floats, p: int) -> None:
        self.theta, self.packed = results[:p].T, results[p:-4].T
        self.sum, condition, steps, how = results[-4:]
        self.steps = steps.astype(np.int32)
        # J was last looked at a step before the end; where it is ill conditioned its inverse may have changed by then.
        near = (condition <= MODERATE * MODERATE) | (how == ENDED_SLOWLY)
        self.ended = (how >= ENDED) & (condition <= SOUND * SOUND) & near


class Forerun:
    """Where the quick algorithm has come to in single precision.

    Attributes
    ----------
    theta, sum, steps
        (count, p), (count,), (count,).
    damping
        With which to go on, (count,): 0 where the end is so near that one more step may be the last.
    """

    def __init__(self, results: Floats, p: int) -> None:
        self.theta = results[:p].T
        self.sum, steps, how = results[p:]
        self.steps = steps.astype(np.int32)
        self.damping = np.where(how == ENDED, 0.0, FIRST_DAMPING)


def fit(
    kernel: NativeKernel,
    block: Block,
    start: Floats,
    lower: Floats,
    upper: Floats,
    fixed: Floats,
    *,
    most: int,
    damping: Floats | None = None,
) -> Quick:
    """Fit each data set of a block from its start.

    Parameters
    ----------
    start
        (count, p), float64.
    lower, upper, fixed
        One row for all, or one each.
    most
        Looks at the model for one fit.
    damping
        Of the first step, (count,); None: as usual.
    """
    return Quick(_results(kernel, block, start, lower, upper, fixed, most, damping, single=False), start.shape[1])


def forerun(
    kernel: NativeKernel, block: Block, start: Floats, lower: Floats, upper: Floats, fixed: Floats, *, most: int
) -> Forerun:
    """Go most of the way in single precision, whose vectors have twice the lanes; arguments as of `fit`."""
    return Forerun(_results(kernel, block, start, lower, upper, fixed, most, None, single=True), start.shape[1])


def _results(
    kernel: NativeKernel,
    block: Block,
    start: Floats,
    lower: Floats,
    upper: Floats,
    fixed: Floats,
    most: int,
    damping: Floats | None,
    *,
    single: bool,
) -> Floats:
    """Run the compiled algorithm; gives its results, (numbers, count)."""
    count, p = start.shape
    weighted = block.weight is not None
    # Bounds of each fit's own: not a matter of which fits happen to be in this block.
    bounded = lower.ndim == 2 or upper.ndim == 2 or bool(np.isfinite(lower).any() or np.isfinite(upper).any())
    arrays = [block.target, *block.columns, *([block.weight] if block.weight is not None else [])]
    data = "single" if all(array.dtype == SINGLE for array in arrays) else "double"
    kind = np.float32 if data == "single" else np.float64
    layout = Layout(
        kernel.code.prediction,
        "single" if single else "double",
        data,
        weighted,
        bounded,
        brief=single,
        measure=measure_of(kernel),
    )
    target, *columns = [np.ascontiguousarray(array, dtype=kind) for array in arrays]
    weight = columns.pop() if weighted else target
    results = np.empty((ALGORITHM.result_size(p, brief=single), count))
    n = target.shape[1]
    cells = len(ALGORITHM.cells(p, bounded=bounded)) + len(kernel.code.prediction.fixed)
    memory = np.zeros(layout.scratch_bytes(cells, n) + ALIGNED, dtype=np.uint8)
    scratch = address_of(memory) + (-address_of(memory)) % ALIGNED
    places = np.zeros(2 * layout.width, dtype=np.int64)
    lower, upper, fixed = (np.ascontiguousarray(part, dtype=np.float64) for part in (lower, upper, fixed))
    step, row = (stride // 8 for stride in start.strides)
    sizes = np.ascontiguousarray(block.sizes, dtype=np.int64)
    damping = np.array([FIRST_DAMPING]) if damping is None else damping
    goes_on: Callable[[np.ndarray], int] = lambda array: array.shape[-1] if array.ndim == 2 else 0  # noqa: E731
    words = {
        "count": count, "rows": n, "target": address_of(target), "sizes": address_of(sizes), "weight": address_of(weight),
        "weight_stride": goes_on(weight), "start": address_of(start), "start_row": row, "start_step": step, "lower": address_of(lower), "lower_stride": goes_on(lower),
        "upper": address_of(upper), "upper_stride": goes_on(upper), "fixed": address_of(fixed), "fixed_stride": goes_on(fixed),
        "results": address_of(results), "scratch": scratch, "places": address_of(places), "most": most,
        "damping": address_of(damping), "damping_step": int(damping.size > 1),
    }  # fmt: skip
    listed = [words[name] for name in JOB]
    for column in columns:
        listed += [address_of(column), goes_on(column)]
    job = np.array(listed, dtype=np.int64)
    linked(layout).call(address_of(job))
    return results


@functools.lru_cache(maxsize=256)
def linked(layout: Layout) -> Function:
    """Compile and link the algorithm with a model, once."""
    with COMPILING:
        return Function(load([lanes_object(layout, ALGORITHM, ALGORITHM.edition)], ["gf_lanes"]), "gf_lanes", ctypes.c_int64, 1)
