"""The loss of a compiled model on many data sets, at given parameters: of the validation rows of many fits."""

from __future__ import annotations

import functools

import numpy as np

from gradfit.compiler.compiled import NativeKernel, address_of
from gradfit.compiler.solver import Entry, Size
from gradfit.data.batch import Block
from gradfit.methods import sums
from gradfit.methods.solving import P, algorithm_object, linked
from gradfit.typing import Floats

SUM_ALL = Entry(
    "gf_sum_all",
    "sum_all",
    ("p", "count", "width"),
    {"points": (Size("count"), P), "words": (Size("width"),), "strides": (Size("width"),), "results": (Size("count"),)},
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
    arrays = [*block.columns, block.target, *([] if block.weight is None else [block.weight])]
    tables = [np.ascontiguousarray(array[..., :n], dtype=np.float64) for array in arrays]
    fixed = np.ascontiguousarray(fixed, dtype=np.float64)
    grows = [0, 8 * fixed.shape[-1] if fixed.ndim == 2 else 0, *(8 * n if table.ndim == 2 else 0 for table in tables)]
    words = np.array([n, address_of(fixed), *map(address_of, tables)], dtype=np.int64)
    strides, points, results = np.array(grows, dtype=np.int64), np.ascontiguousarray(theta), np.empty(count)
    places = [address_of(words), *map(address_of, (points, words, strides, results))]
    job = np.array([p, count, len(words), *places], dtype=np.int64)
    some = kernel.on(block.dataset(0, kernel.base.model.data_names, ""))
    linked(some, "gf_sum_all", _object).call(address_of(job))
    return results


@functools.cache
def _object() -> bytes:
    return algorithm_object([sums], [SUM_ALL])
