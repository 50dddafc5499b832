"""A compiled model on many data sets, each at its own parameters: losses of the validation rows, residuals for the statistics."""

from __future__ import annotations

import functools

import numpy as np
import torch

from gradfit.compiler.compiled import NativeKernel, address_of
from gradfit.compiler.kernel import Kernel
from gradfit.compiler.native import Function
from gradfit.compiler.solver import Entry, Size
from gradfit.data.batch import Block
from gradfit.errors import ModelError
from gradfit.methods import sums
from gradfit.methods.solving import P, algorithm_object, is_compiled
from gradfit.typing import Floats

SUM_ALL = Entry(
    "gf_sum_all",
    "sum_all",
    ("p", "count", "width"),
    {"points": (Size("count"), P), "words": (Size("width"),), "strides": (Size("width"),), "results": (Size("count"),)},
)
ROWS_ALL = Entry(
    "gf_rows_all",
    "rows_all",
    ("n", "p", "count", "width"),
    {"points": (Size("count"), P), "words": (Size("width"),), "strides": (Size("width"),)}
    | {"systems": (Size("count"), Size("p", more=1), Size("n"))},
)


def mean_squares(kernel: NativeKernel, block: Block, theta: Floats, fixed: Floats) -> Floats:
    """Mean square of the residuals in units of sigma, (count,); NaN where there are no rows, or theta is.

    Parameters
    ----------
    theta
        (count, p).
    fixed
        Fixed numbers, (q,) or (count, q).
    """
    found = np.full(block.count, np.nan)
    known = np.isfinite(theta).all(axis=1) & (block.sizes > 0)
    for n in np.unique(block.sizes[known]):
        places = np.flatnonzero(known & (block.sizes == n))
        own = fixed if fixed.ndim == 1 else fixed[places]
        found[places] = _of_length(kernel, int(n), block.chosen(places), theta[places], own) / n
    return found


def _of_length(kernel: NativeKernel, n: int, block: Block, theta: Floats, fixed: Floats) -> Floats:
    """Sums of squares of fits that have the same number of rows."""
    count, p = theta.shape
    words, strides, kept = contexts(block, n, fixed)
    points, results = np.ascontiguousarray(theta), np.empty(count)
    places = [address_of(words), *map(address_of, (points, words, strides, results))]
    job = np.array([p, count, len(words), *places], dtype=np.int64)
    _linked(kernel, block, "gf_sum_all").call(address_of(job))
    del kept
    return results


def mean_losses(kernel: Kernel, points: Floats) -> Floats:
    """Mean loss of one data set at many points (count, p), (count,); infinite where there is none.

    Of squared residuals compiled code sums all at once; any other kernel is asked one by one.
    """
    count, p = points.shape
    found = np.empty(count)
    if is_compiled(kernel) and kernel.dtype == torch.float64:
        points, unmoved = np.ascontiguousarray(points), np.zeros(1, dtype=np.int64)
        places = [kernel.context.address, *map(address_of, (points, unmoved, unmoved, found))]
        job = np.array([p, count, len(unmoved), *places], dtype=np.int64)
        kernel.code.linked("gf_sum_all", weighted=kernel.weighted, algorithm=_object).call(address_of(job))
        found /= kernel.n
    else:
        for place, point in enumerate(points):
            with np.errstate(all="ignore"):
                try:
                    found[place] = kernel.mean_loss(point)
                except ModelError:  # it raises where it has no value
                    found[place] = np.inf
    return np.where(np.isfinite(found), found, np.inf)


def rows(kernel: NativeKernel, block: Block, theta: Floats, fixed: Floats) -> tuple[Floats, Floats]:
    """Residuals in units of sigma, (count, n), and their derivatives, (count, p, n), of fits that all have the same n rows."""
    (count, p), n = theta.shape, int(block.sizes[0])
    words, strides, kept = contexts(block, n, fixed)
    points, systems = np.ascontiguousarray(theta), np.empty((count, p + 1, n))
    places = [address_of(words), *map(address_of, (points, words, strides, systems))]
    job = np.array([n, p, count, len(words), *places], dtype=np.int64)
    _linked(kernel, block, "gf_rows_all").call(address_of(job))
    del kept
    return systems[:, p], systems[:, :p]


def contexts(block: Block, n: int, fixed: Floats) -> tuple[np.ndarray, np.ndarray, list[Floats]]:
    """Lay out fits that have n rows each for compiled code: the context of the first, what its words grow by, and the arrays they point to.

    These are the fixed numbers, the columns, the target and, where there is one, the weight; they must outlive the call.
    """
    arrays = [*block.columns, block.target, *([] if block.weight is None else [block.weight])]
    tables = [np.ascontiguousarray(array[..., :n], dtype=np.float64) for array in arrays]
    fixed = np.ascontiguousarray(fixed, dtype=np.float64)
    grows = [0, 8 * fixed.shape[-1] if fixed.ndim == 2 else 0, *(8 * n if table.ndim == 2 else 0 for table in tables)]
    words = np.array([n, address_of(fixed), *map(address_of, tables)], dtype=np.int64)
    return words, np.array(grows, dtype=np.int64), [fixed, *tables]


def _linked(kernel: NativeKernel, block: Block, name: str) -> Function:
    """The function linked with the model itself, whatever the loss."""
    return kernel.code.linked(name, weighted=block.weight is not None, algorithm=_object)


@functools.cache
def _object() -> bytes:
    return algorithm_object([sums], [SUM_ALL, ROWS_ALL])
