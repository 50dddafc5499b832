"""Validation rows of many data sets: set apart in each as :func:`gradfit.data.split.split` does in one.

A fraction takes the same rows of all fits that have as many rows. Rows are counted within their fit, missing ones included: which
they are does not depend on what is missing. A fit that is left without rows to train on, or to validate on, has none at all
afterwards: too few, a status of that fit.
"""

from __future__ import annotations

import functools
import numbers
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from gradfit.data.batch import Batch, Block, RaggedBatch
from gradfit.data.split import split
from gradfit.errors import DataError

KINDS = "a fraction like 0.2, row numbers that hold for every fit, or a mask, True for validation"


@dataclass(frozen=True)
class HeldOut:
    """Which rows are set apart.

    Attributes
    ----------
    fraction, seed
        The share of each fit's rows, drawn with this seed; or None.
    flags
        (n,) bool for all fits, (count, n) or, where ``offsets`` tell where fits begin, (rows,).
    """

    fraction: float | None = None
    seed: int = 0
    flags: np.ndarray | None = field(default=None, repr=False)
    offsets: np.ndarray | None = field(default=None, repr=False)

    def part(self, block: Block, begin: int) -> tuple[Block, Block]:
        """Part the rows of a block, whose first fit is ``begin``, into those to train and those to validate on."""
        n = block.target.shape[1]
        if block.numbers is None and (block.sizes == n).all() and (self.flags is None or self.flags.shape == (n,)):
            rows = self._drawn(n) if self.flags is None else (np.flatnonzero(~self.flags), np.flatnonzero(self.flags))
            train, apart = rows if min(map(len, rows)) else (np.empty(0, dtype=np.int64),) * 2
            return tuple(block.picked(some, np.full(block.count, len(some))) for some in (train, apart))  # type: ignore[return-value]
        if self.flags is None:
            parts = [self._drawn(int(size)) for size in block.sizes]
        else:
            held = self._held(block, begin)
            parts = [
                (np.flatnonzero(~own[:size]), np.flatnonzero(own[:size])) for own, size in zip(held, block.sizes, strict=True)
            ]
        lost = [not len(train) or not len(apart) for train, apart in parts]
        return tuple(  # type: ignore[return-value]
            _taken(block, [own[side][: 0 if gone else None] for own, gone in zip(parts, lost, strict=True)]) for side in (0, 1)
        )

    def chosen(self, places: np.ndarray) -> HeldOut:
        """Give those of some fits, in a batch of these alone."""
        if self.flags is None or (self.flags.ndim == 1 and self.offsets is None):
            return self
        if self.offsets is None:
            return replace(self, flags=self.flags[places])
        edges = [slice(self.offsets[place], self.offsets[place + 1]) for place in places]
        lengths = np.diff(self.offsets)[places]
        return replace(self, flags=np.concatenate([self.flags[own] for own in edges]), offsets=np.append(0, np.cumsum(lengths)))

    def _drawn(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        assert self.fraction is not None
        return _drawn(n, self.fraction, self.seed)

    def _held(self, block: Block, begin: int) -> np.ndarray:
        """Which of the rows of a block are set apart, (count, n) bool."""
        assert self.flags is not None
        count, n = block.target.shape
        if self.offsets is not None:
            inside = np.diff(self.offsets[begin : begin + count + 1])
            own = np.zeros((count, int(inside.max(initial=0))), dtype=bool)
            own[np.arange(own.shape[1]) < inside[:, None]] = self.flags[self.offsets[begin] : self.offsets[begin + count]]
        else:
            own = self.flags if self.flags.ndim == 1 else self.flags[begin : begin + count]
        where = np.arange(n) if block.numbers is None else block.numbers
        known = np.pad(own, [(0, 0)] * (own.ndim - 1) + [(0, max(n - own.shape[-1], 0))])
        return np.take_along_axis(np.broadcast_to(known, (count, known.shape[-1])), np.broadcast_to(where, (count, n)), axis=1)


@functools.lru_cache(maxsize=4096)
def _drawn(n: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows to validate on, of n; none of either where the fraction is less than a row."""
    if int(fraction * n) == 0:
        return (np.empty(0, dtype=np.int64),) * 2
    return split(n, fraction, seed=seed, row_numbers=np.arange(n))


def _taken(block: Block, rows: list[np.ndarray]) -> Block:
    sizes = np.array([len(own) for own in rows], dtype=np.int64)
    index = np.zeros((block.count, int(sizes.max(initial=0))), dtype=np.int64)
    index[np.arange(index.shape[1]) < sizes[:, None]] = np.concatenate(rows)
    return block.picked(index, sizes)


def held_out(validation: Any, batch: Batch, seed: int) -> HeldOut:
    """Read what a caller says of validation rows.

    Parameters
    ----------
    validation
        A fraction; row numbers from 0, the same in every fit; a mask (points,) for all fits or (fits, points), in long columns (rows,).

    Raises
    ------
    DataError
        A fraction outside (0, 1) or less than a row of the longest fit; numbers that no fit has, or twice; a mask of another shape;
        nothing, or everything, set apart.
    """
    if isinstance(validation, numbers.Real) and not isinstance(validation, (bool, np.bool_)):
        split(batch.n, validation, seed=seed, row_numbers=np.arange(batch.n))  # raises where there is nothing to draw
        return HeldOut(float(validation), seed)
    try:
        chosen = np.asarray(validation.detach().cpu() if isinstance(validation, torch.Tensor) else validation)
    except (TypeError, ValueError):
        chosen = np.empty(0)
    if chosen.size == 0 or chosen.dtype.kind not in "iub":
        raise DataError(f"validation is {str(validation)[:60]}; expected {KINDS}.")
    if chosen.dtype.kind != "b":
        split(batch.n, chosen, seed=seed, row_numbers=np.arange(batch.n), source_rows=batch.n)
        flags = np.zeros(batch.n, dtype=bool)
        flags[chosen] = True
        return HeldOut(flags=flags)
    if chosen.shape == (batch.n,):
        split(batch.n, chosen, seed=seed, row_numbers=np.arange(batch.n), source_rows=batch.n)
        return HeldOut(flags=chosen)
    offsets = batch.offsets if isinstance(batch, RaggedBatch) else None
    shape = (len(batch.target),) if isinstance(batch, RaggedBatch) else (batch.count, batch.n)
    if chosen.shape != shape:
        raise DataError(
            f"the validation mask has shape {chosen.shape}; expected ({batch.n},) for all fits, or {shape}, like the target."
        )
    if chosen.all() or not chosen.any():
        raise DataError("the validation mask sets everything apart, or nothing; expected some rows of each fit.")
    order = getattr(batch, "order", None)
    return HeldOut(flags=chosen if order is None else chosen[order], offsets=offsets)
