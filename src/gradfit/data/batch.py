"""Many small data sets, read a block of them at a time: one per sensor, pixel or spectrum.

A :class:`Batch` knows where the numbers lie and copies nothing it need not: arrays of any size, files mapped into memory, anything
that gives a slice. A :class:`Block` is what compiled code works on: a rectangle of rows, of which each fit uses the first
``sizes``; missing rows were closed up. What is wrong with one fit's data is a flaw of that fit and no error: the others do not
see it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from gradfit.data.dataset import SMALLEST, Dataset, real
from gradfit.data.pieces import LongColumn, longest, plain_arrays
from gradfit.errors import DataError
from gradfit.typing import Floats

# What may be wrong with the data of one fit.
FINE, NO_DATA, INFINITE, BAD_SIGMA, VANISHING = range(5)
FLAWS = {
    NO_DATA: "no row has a value: there is nothing to fit",
    INFINITE: "its data hold infinite values; mend them, or make them NaN to leave those rows out",
    BAD_SIGMA: "its sigma is zero, negative or infinite in some rows; a standard deviation is positive",
    VANISHING: f"its values are below {SMALLEST:g}, whose squares vanish in float64; give them in other units",
}
SINGLE = np.dtype(np.float32)
DOUBLE = np.dtype(np.float64)
NEAR = 16  # data sets between two that are wanted are read with them
WITHIN_SINGLE = (1e-25, 1e35)  # sums of squares that single precision holds


@dataclass(frozen=True)
class Block:
    """Some of the data sets, side by side.

    Attributes
    ----------
    columns
        Inputs, each (n,) for all fits or (count, n).
    target
        (count, n).
    weight
        1 / sigma, (n,) or (count, n); None where there is no sigma.
    sizes
        How many of the n rows each fit has, the first ones, (count,).
    flaws
        What is wrong with each, (count,): FINE or a code of FLAWS.
    squares
        Sum of (target * weight)² of each, (count,).
    numbers
        Which row of its fit each row was, from 0, (n,) for all fits or (count, n); None: each where it stands.
    dropped
        How many rows of each were left out because something was missing, (count,); None: none.
    """

    columns: tuple[Floats, ...]
    target: Floats
    weight: Floats | None
    sizes: np.ndarray
    flaws: np.ndarray
    squares: Floats
    numbers: np.ndarray | None = None
    dropped: np.ndarray | None = None

    @property
    def count(self) -> int:
        """How many fits."""
        return len(self.target)

    def narrowed(self) -> Block:
        """Give the same fits without the rows that none of them has."""
        n = int(self.sizes.max(initial=0))
        weight = None if self.weight is None else self.weight[..., :n]
        return replace(self, columns=tuple(column[..., :n] for column in self.columns), target=self.target[:, :n], weight=weight)

    def chosen(self, places: np.ndarray) -> Block:
        """Give some of the fits."""
        own: Callable[[Any], Any] = lambda array: array if array is None or array.ndim == 1 else array[places]  # noqa: E731
        return Block(
            tuple(own(column) for column in self.columns), self.target[places], own(self.weight), self.sizes[places], self.flaws[places],
            self.squares[places], own(self.numbers), None if self.dropped is None else self.dropped[places],
        )  # fmt: skip

    def picked(self, rows: np.ndarray, sizes: np.ndarray) -> Block:
        """Give some of the rows of each fit.

        Parameters
        ----------
        rows
            Which, (k,) of every fit, or (count, k) of each its own.
        sizes
            How many of these count, the first ones, (count,).
        """
        beyond = None if rows.ndim == 1 else np.arange(rows.shape[1]) >= sizes[:, None]

        def some(array: Any) -> Any:
            if array is None or beyond is None:
                return None if array is None else np.ascontiguousarray(array[..., rows])
            taken = np.take_along_axis(np.broadcast_to(array, self.target.shape), rows, axis=1)
            taken[beyond] = 0
            return taken

        target, weight = some(self.target), some(self.weight)
        numbers = rows if self.numbers is None else some(self.numbers)
        columns = tuple(some(column) for column in self.columns)
        return Block(columns, target, weight, sizes, self.flaws, _squares(target, weight), numbers, self.dropped)

    def dataset(self, place: int, names: Sequence[str], target_name: str) -> Dataset:
        """Give one fit's rows as a data set of its own."""
        n = int(self.sizes[place])

        def cut(array: Floats) -> Floats:
            return np.array(array[:n] if array.ndim == 1 else array[place, :n], dtype=np.float64)

        columns = {name: cut(column) for name, column in zip(names, self.columns, strict=True)}
        sigma = None if self.weight is None else 1 / cut(self.weight)
        single = self.target.dtype == SINGLE
        own = np.arange(n) if self.numbers is None else self.numbers if self.numbers.ndim == 1 else self.numbers[place]
        dropped = 0 if self.dropped is None else int(self.dropped[place])
        return Dataset(columns, cut(self.target), target_name, sigma, own[:n], dropped=dropped, single=single)


class Batch(Protocol):
    """Many data sets.

    Attributes
    ----------
    count
        How many.
    n
        Rows of the longest.
    names, target_name
        Names of the inputs and of the target.
    weighted
        Whether rows have a sigma.
    """

    @property
    def count(self) -> int:
        """How many data sets."""

    @property
    def n(self) -> int:
        """Rows of the longest."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the inputs."""

    @property
    def target_name(self) -> str:
        """Name of the target."""

    @property
    def weighted(self) -> bool:
        """Whether rows have a sigma."""

    def block(self, begin: int, end: int) -> Block:
        """Read some of them."""


@dataclass(frozen=True)
class DenseBatch:
    """Data sets of one length.

    Attributes
    ----------
    columns
        Inputs, each (n,) or (count, n).
    target
        (count, n): an array, or anything that has a shape and gives slices.
    sigma
        None, or anything that broadcasts to (count, n): (n,), (count, 1), (count, n).
    mask
        Which points are left out, (n,) or (count, n); None: none.
    """

    names: tuple[str, ...]
    target_name: str
    columns: tuple[Any, ...] = field(repr=False)
    target: Any = field(repr=False)
    sigma: Any = field(default=None, repr=False)
    mask: Any = field(default=None, repr=False)

    @property
    def count(self) -> int:
        """How many data sets."""
        return int(self.target.shape[0])

    @property
    def n(self) -> int:
        """Rows of each."""
        return int(self.target.shape[1])

    @property
    def weighted(self) -> bool:
        """Whether rows have a sigma."""
        return self.sigma is not None

    def block(self, begin: int, end: int) -> Block:
        """Read some of them."""
        own: Callable[[Any], Any] = lambda array: array if array.ndim == 1 else array[begin:end]  # noqa: E731
        columns = [numbers(own(column), name) for column, name in zip(self.columns, self.names, strict=True)]
        target = _masked(numbers(self.target[begin:end], self.target_name), None if self.mask is None else own(self.mask))
        sigma = None if self.sigma is None else numbers(own(self.sigma), "sigma")
        if sigma is not None and sigma.ndim == 2 and sigma.shape[1] == 1:
            sigma = np.broadcast_to(sigma, target.shape)
        return checked(columns, target, sigma, None)


@dataclass(frozen=True)
class RaggedBatch:
    """Data sets of different lengths, one after the other in long columns.

    Attributes
    ----------
    columns, target, sigma, mask
        (rows,) each; the mask tells which are left out.
    offsets
        (count + 1,): fit i has the rows from offsets[i] up to offsets[i + 1].
    order
        (rows,), where in the columns each of these rows is; None: where it stands.
    """

    names: tuple[str, ...]
    target_name: str
    columns: tuple[Any, ...] = field(repr=False)
    target: Any = field(repr=False)
    offsets: np.ndarray = field(repr=False)
    sigma: Any = field(default=None, repr=False)
    order: np.ndarray | None = field(default=None, repr=False)
    mask: Any = field(default=None, repr=False)

    @property
    def count(self) -> int:
        """How many data sets."""
        return len(self.offsets) - 1

    @property
    def n(self) -> int:
        """Rows of the longest."""
        return longest(self.offsets)

    @property
    def weighted(self) -> bool:
        """Whether rows have a sigma."""
        return self.sigma is not None

    def block(self, begin: int, end: int) -> Block:
        """Read some of them."""
        offsets = self.offsets[begin : end + 1]
        first, last = int(offsets[0]), int(offsets[-1])
        sizes = np.diff(offsets).astype(np.int64)
        inside = np.arange(int(sizes.max(initial=0))) < sizes[:, None]

        def rows(column: Any) -> Any:
            return column[first:last] if self.order is None else column[self.order[first:last]]

        def rectangle(column: Any, name: str, mask: Any = None, beyond: float = 0.0) -> Floats:
            values = _masked(numbers(rows(column), name), None if mask is None else rows(mask))
            wide = np.full(inside.shape, beyond, dtype=values.dtype)
            wide[inside] = values
            return wide

        columns = [rectangle(column, name) for column, name in zip(self.columns, self.names, strict=True)]
        sigma = None if self.sigma is None else rectangle(self.sigma, "sigma", beyond=1.0)  # its inverse is finite too
        return checked(columns, rectangle(self.target, self.target_name, self.mask), sigma, sizes)


@dataclass(frozen=True)
class ChosenBatch:
    """Some of the data sets of a batch.

    Attributes
    ----------
    whole
        All of them.
    places
        Which, in rising order, (count,).
    """

    whole: Batch
    places: np.ndarray = field(repr=False)

    @property
    def count(self) -> int:
        """How many data sets."""
        return len(self.places)

    @property
    def n(self) -> int:
        """Rows of the longest of all."""
        return self.whole.n

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return self.whole.names

    @property
    def target_name(self) -> str:
        """Name of the target."""
        return self.whole.target_name

    @property
    def weighted(self) -> bool:
        """Whether rows have a sigma."""
        return self.whole.weighted

    def block(self, begin: int, end: int) -> Block:
        """Read some of them: those that stand near each other in one piece."""
        places = self.places[begin:end]
        edges = np.flatnonzero(np.diff(places, prepend=-NEAR - 1) > NEAR)
        parts = []
        for group in np.split(places, edges[1:]):
            part = self.whole.block(int(group[0]), int(group[-1]) + 1)
            parts.append(part if part.count == len(group) else part.chosen(group - group[0]))
        return joined(parts)


def common(batch: Batch) -> tuple[bool, bool]:
    """Whether all data sets have the same inputs and weights, but for missing rows; and whether the latter differ by a factor at most."""
    whole = batch.whole if isinstance(batch, ChosenBatch) else batch
    if not isinstance(whole, DenseBatch) or any(column.ndim > 1 for column in whole.columns):
        return False, False
    shape: tuple[int, ...] = () if whole.sigma is None else np.shape(whole.sigma)
    scaled = len(shape) == 2 and shape[1] == 1
    return len(shape) < 2 or scaled, scaled


def cuts(batch: Batch, most: int, rows: int) -> list[tuple[int, int]]:
    """Cut data sets into blocks of ``most`` at most, each padded to the longest beside it, of so many rows in all, or one data set."""
    offsets = getattr(batch, "offsets", None)
    if offsets is None:
        size = max(1, min(most, rows // max(batch.n, 1)))
        return [(begin, min(begin + size, batch.count)) for begin in range(0, batch.count, size)]
    found, begin = [], 0
    while begin < batch.count:
        longest = np.maximum.accumulate(np.diff(offsets[begin : begin + most + 1]))
        padded = longest * np.arange(1, len(longest) + 1)
        end = begin + max(1, int(np.searchsorted(padded, rows, "right")))
        found.append((begin, end))
        begin = end
    return found


def joined(parts: Sequence[Block]) -> Block:
    """Put blocks of one batch together."""
    if len(parts) == 1:
        return parts[0]
    n = max(part.target.shape[1] for part in parts)

    def stacked(arrays: Sequence[Any]) -> Any:
        """Rows of fits below each other; what all have in common stays as it is."""
        if any(array.ndim == 1 for array in arrays):
            if all(array.ndim == 1 and array is arrays[0] for array in arrays):
                return arrays[0]
            arrays = [np.broadcast_to(array, part.target.shape) for array, part in zip(arrays, parts, strict=True)]
        return np.concatenate([np.pad(array, ((0, 0), (0, n - array.shape[1]))) for array in arrays])

    columns = tuple(stacked(own) for own in zip(*(part.columns for part in parts), strict=True))
    weights = [part.weight for part in parts]
    flat: Callable[[str], Any] = lambda name: np.concatenate([getattr(part, name) for part in parts])  # noqa: E731
    numbers = dropped = None
    if any(part.numbers is not None for part in parts):
        own = [np.arange(part.target.shape[1]) if part.numbers is None else part.numbers for part in parts]
        numbers = stacked([np.broadcast_to(array, part.target.shape) for array, part in zip(own, parts, strict=True)])
        dropped = np.concatenate(
            [np.zeros(part.count, dtype=np.int64) if part.dropped is None else part.dropped for part in parts]
        )
    return Block(
        columns, stacked([part.target for part in parts]), None if weights[0] is None else stacked(weights), flat("sizes"), flat("flaws"),
        flat("squares"), numbers, dropped,
    )  # fmt: skip


def _masked(values: Floats, mask: Any) -> Floats:
    """Values with NaN where the mask says that they are left out."""
    return values if mask is None else np.where(np.asarray(mask), values.dtype.type(np.nan), values)


def numbers(values: Any, name: str) -> Floats:
    """Read numbers in single or double precision, in this machine's byte order; not copied where they are so already."""
    if isinstance(values, np.ma.MaskedArray):
        values = np.ma.filled(values.astype(values.dtype if values.dtype in (SINGLE, DOUBLE) else np.float64), np.nan)
    array = np.asarray(values)
    if array.dtype in (SINGLE, DOUBLE):
        return np.ascontiguousarray(array)
    if array.dtype.kind in "iub" or (array.dtype.kind == "f" and array.dtype.itemsize <= 8):
        return np.ascontiguousarray(array, dtype=np.float64 if array.dtype.itemsize > 2 else np.float32)
    return real(array, name)


def _squares(target: Floats, weight: Floats | None) -> Floats:
    """Sum of (target * weight)² of each fit, (count,); in double precision where single would over- or underflow."""
    with np.errstate(all="ignore"):
        white = target if weight is None else target * weight
        squares = np.einsum("ij,ij->i", white, white).astype(np.float64)
        if white.dtype == SINGLE:
            # Fit by fit, so that the sum of one does not depend on which stand beside it.
            beyond = ~((squares >= WITHIN_SINGLE[0]) & (squares <= WITHIN_SINGLE[1]))
            if beyond.any():
                wide = white[beyond].astype(np.float64)
                squares[beyond] = np.einsum("ij,ij->i", wide, wide)
    return np.asarray(squares)


def checked(columns: Sequence[Floats], target: Floats, sigma: Floats | None, sizes: np.ndarray | None) -> Block:
    """Make a block: close up missing rows, and find what is wrong with a fit's data.

    Parameters
    ----------
    sizes
        How many rows each fit has before missing ones are left out, (count,); None: all. Beyond them numbers are finite and do
        not count.
    """
    count, n = target.shape
    with np.errstate(all="ignore"):
        weight = None if sigma is None else np.ascontiguousarray(1 / sigma)
    squares = _squares(target, weight)
    sizes = np.full(count, n, dtype=np.int64) if sizes is None else sizes
    block = Block(tuple(columns), target, weight, sizes, np.zeros(count, dtype=np.int8), squares)
    plain = np.isfinite(squares).all() and all(_finite(column) for column in columns)
    if not plain or (sigma is not None and not (_finite(sigma) and sigma.min(initial=1.0) > 0)):
        block = _mended(block, sigma)
    small = (block.squares < block.sizes * SMALLEST**2) & (block.squares >= 0) & (block.flaws == FINE)
    if small.any():
        block.flaws[small & (_largest(block) > 0)] = VANISHING
    block.flaws[(block.sizes == 0) & (block.flaws == FINE)] = NO_DATA
    return block


def _finite(array: Floats) -> bool:
    with np.errstate(all="ignore"):
        return bool(np.isfinite(array.sum()) or np.isfinite(array).all())


def _largest(block: Block) -> Floats:
    inside = np.arange(block.target.shape[1]) < block.sizes[:, None]
    return np.asarray(np.where(inside, np.abs(block.target), 0).max(axis=1, initial=0))


def _mended(block: Block, sigma: Floats | None) -> Block:
    """Leave rows out in which something is missing, and flag fits that hold what is no number for a fit."""
    count, n = block.target.shape
    inside = np.arange(n) < block.sizes[:, None]
    parts = [*block.columns, block.target]
    missing, infinite = np.zeros((count, n), dtype=bool), np.zeros((count, n), dtype=bool)
    for part in parts:
        missing |= np.isnan(part)
        infinite |= np.isinf(part)
    wrong = np.zeros((count, n), dtype=bool)
    if sigma is not None:
        missing |= np.isnan(sigma)
        wrong |= (sigma <= 0) | np.isinf(sigma)
    kept = inside & ~missing
    flaws = block.flaws
    flaws[(wrong & kept).any(axis=1)] = BAD_SIGMA
    flaws[(infinite & kept).any(axis=1)] = INFINITE
    if not (inside & missing).any():
        return replace(block, flaws=flaws)
    sizes = kept.sum(axis=1).astype(np.int64)
    order = np.argsort(~kept, axis=1, kind="stable")
    beyond = np.arange(n) >= sizes[:, None]

    def closed_up(array: Floats) -> Floats:
        moved = np.take_along_axis(np.broadcast_to(array, (count, n)), order, axis=1)
        moved[beyond] = 0
        return moved

    columns = tuple(closed_up(column) for column in block.columns)
    target = closed_up(block.target)
    weight = None if block.weight is None else closed_up(block.weight)
    dropped = inside.sum(axis=1) - sizes
    return Block(columns, target, weight, sizes, flaws, _squares(target, weight), order, dropped)


def ragged(
    columns: Sequence[Sequence[Any]], target: Sequence[Any], sigma: Any, names: Sequence[str], target_name: str
) -> RaggedBatch:
    """Join lists of arrays, one per fit.

    Raises
    ------
    DataError
        Lists of different lengths, or arrays of one fit that are.
    """
    lengths = np.array([len(part) for part in target], dtype=np.int64)
    for name, parts in zip(names, columns, strict=True):
        if len(parts) != len(target):
            raise DataError(f"{name} has {len(parts)} arrays and {target_name} has {len(target)}; give one for each fit.")
        other = np.array([len(part) for part in parts], dtype=np.int64)
        wrong = np.flatnonzero(other != lengths)
        if wrong.size:
            i = int(wrong[0])
            raise DataError(
                f"fit {i}: {name} has {other[i]} values and {target_name} has {lengths[i]}; give arrays of one length."
            )
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    joined = [_joined(parts, name, offsets) for parts, name in zip((*columns, target), (*names, target_name), strict=True)]
    return RaggedBatch(tuple(names), target_name, tuple(joined[:-1]), joined[-1], offsets, sigma)


def _joined(parts: Sequence[Any], name: str, offsets: np.ndarray) -> Any:
    dtype = plain_arrays(parts)
    if dtype is not None:
        return LongColumn(parts, offsets, dtype)
    arrays = [numbers(part, name) for part in parts]
    for place, array in enumerate(arrays):
        if array.ndim != 1:
            raise DataError(f"fit {place}: {name} has shape {array.shape}; expected one number per row.")
    return np.concatenate(arrays) if arrays else np.empty(0)
