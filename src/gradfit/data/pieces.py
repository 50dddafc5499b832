"""Columns of many fits that are not there as one array: lists of arrays, one for each fit, and one number for each fit.

Each gives slices, as an array does, and makes no more of them than is asked for: to join millions of arrays would take their memory once
more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradfit.typing import Floats

PIECE = 1 << 20  # fits that are looked at together: what numpy makes of them is larger than they are


@dataclass(frozen=True)
class LongColumn:
    """The rows of all fits one after the other, (rows,).

    Attributes
    ----------
    parts
        The rows of each fit, (n,) each.
    offsets
        (count + 1,), where the rows of each begin.
    dtype
        What all of them can be converted to.
    """

    parts: Sequence[np.ndarray] = field(repr=False)
    offsets: np.ndarray = field(repr=False)
    dtype: np.dtype[Any]

    def __len__(self) -> int:
        return int(self.offsets[-1])

    @property
    def shape(self) -> tuple[int]:
        """As that of an array."""
        return (len(self),)

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Give the rows of whole fits, from the first row of one to the last row of another."""
        first, last = fits_of(self.offsets, rows)
        return np.concatenate([np.empty(0, dtype=self.dtype), *self.parts[first:last]], dtype=self.dtype)


@dataclass(frozen=True)
class Table:
    """Arrays of one length, (count, n).

    Attributes
    ----------
    parts
        The rows of each fit, (n,) each.
    dtype
        What all of them can be converted to.
    """

    parts: Sequence[np.ndarray] = field(repr=False)
    dtype: np.dtype[Any]
    ndim = 2

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def shape(self) -> tuple[int, int]:
        """As that of an array."""
        return len(self.parts), len(self.parts[0])

    def __getitem__(self, fits: Any) -> np.ndarray:
        """Give the rows of one fit, (n,), or of several, (fits, n)."""
        chosen = self.parts[fits]
        return np.asarray(chosen, dtype=self.dtype).reshape(-1, self.shape[1]) if isinstance(fits, slice) else np.asarray(chosen)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Join them after all."""
        return np.asarray(self.parts, dtype=dtype or self.dtype)


@dataclass(frozen=True)
class Spread:
    """A number for each fit as a long column, (rows,): the same in all rows of a fit."""

    values: Floats = field(repr=False)
    offsets: np.ndarray = field(repr=False)

    def __getitem__(self, rows: slice) -> Floats:
        """Give the rows of whole fits."""
        first, last = fits_of(self.offsets, rows)
        return np.repeat(self.values[first:last], np.diff(self.offsets[first : last + 1]))


def fits_of(offsets: np.ndarray, rows: slice) -> tuple[int, int]:
    """Find the fits whose rows these are."""
    return int(np.searchsorted(offsets, rows.start, "right")) - 1, int(np.searchsorted(offsets, rows.stop, "left"))


def plain_arrays(parts: Sequence[Any]) -> np.dtype[Any] | None:
    """Give the precision of arrays of numbers, (n,) each; None where they are anything else."""
    kinds = set()
    for part in parts:
        if not isinstance(part, np.ndarray) or isinstance(part, np.ma.MaskedArray) or part.ndim != 1:
            return None
        kinds.add(part.dtype)
    if not kinds or any(kind.kind not in "fiub" or kind.itemsize > 8 for kind in kinds):
        return None
    return np.result_type(*kinds)


def longest(offsets: np.ndarray) -> int:
    """How many rows the longest fit has."""
    return max((int(np.diff(offsets[begin : begin + PIECE + 1]).max()) for begin in range(0, len(offsets) - 1, PIECE)), default=0)


def rise(offsets: np.ndarray) -> bool:
    """Whether no fit ends before it begins."""
    return all((np.diff(offsets[begin : begin + PIECE + 1]) >= 0).all() for begin in range(0, len(offsets) - 1, PIECE))
