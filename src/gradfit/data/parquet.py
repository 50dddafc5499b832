"""Many data sets from one Parquet file, of which no more than a window of fits is ever held.

The file is read twice. First its key columns alone: that gives the distinct keys, how many rows each has, and which keys occur in
which part of the file. Then, as fits are made, the columns they need: for a *window* of fits, neighbours in the order of keys, those
parts of the file in which one of its keys occurs. Where the file is sorted by key, each part is read once or twice. Where each
key's rows lie scattered, every window takes a pass over the file, so windows are made large. Either way the rows of a fit come in the
order of the file, and a block holds the same bits as one from the same table in memory.

Memory: the keys and sizes of all fits, and some windows.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gradfit.data.batch import DOUBLE, SINGLE, Block, RaggedBatch
from gradfit.data.groups import Index, Labels, check_keys, grouped, labelled, stable_order
from gradfit.errors import DataError, MissingDependencyError
from gradfit.typing import Floats

if TYPE_CHECKING:
    import pyarrow

SLICE = 1 << 16  # rows taken from the file at a time
PART = 1 << 17  # rows of a part of the file, at least: small row groups are taken together
WINDOW = 1 << 23  # bytes of numbers in a window
WIDE_WINDOW = 1 << 27  # where each window is a pass over the file
SCATTERED = 4  # times that the file would be read, from which windows are wide
KEPT = 2  # windows that are held: threads work in neighbouring blocks
BUFFER = 1 << 20  # bytes of a column read from disk at a time
PENDING = 1 << 20  # keys that are collected before they are merged


@dataclass(frozen=True)
class Parts:
    """The file in pieces of whole row groups, and which fits have rows in each.

    Attributes
    ----------
    edges
        (parts + 1,), row groups where parts begin and end.
    rows
        (parts,).
    low, high
        (parts,), the first and the last fit with rows in it; high < low: none.
    in_order
        Whether the rows of the file stand in the order of the fits, each in one.
    """

    edges: np.ndarray
    rows: np.ndarray
    low: np.ndarray
    high: np.ndarray
    in_order: bool

    def groups(self, part: int) -> range:
        """Row groups of a part."""
        return range(int(self.edges[part]), int(self.edges[part + 1]))


class Source:
    """A Parquet file that is read in pieces, in several threads; refused where it changes meanwhile."""

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow.parquet
        except ImportError:
            raise MissingDependencyError("Parquet files need pyarrow; run: pip install 'gradfit[io]'") from None
        self.path, self._arrow, self._parquet = path, pyarrow, pyarrow.parquet
        self.state = self._state()
        with self._open(None) as file:
            self._metadata = file.metadata
            self.schema: pyarrow.Schema = file.schema_arrow
        self.rows = np.array([self._metadata.row_group(place).num_rows for place in range(self._metadata.num_row_groups)])

    def _state(self) -> tuple[int, int]:
        try:
            found = os.stat(self.path)
        except OSError as error:
            raise self._unreadable(error) from None
        return found.st_size, found.st_mtime_ns

    def _open(self, metadata: Any, coded: Sequence[str] = ()) -> Any:
        how = {"metadata": metadata, "buffer_size": BUFFER, "pre_buffer": False, "read_dictionary": list(coded) or None}
        try:
            return self._parquet.ParquetFile(self.path, **how)
        except (self._arrow.ArrowException, OSError) as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> DataError:
        reason = " ".join(str(error).split()[:20]).rstrip(" .")
        return DataError(f"{self.path.name} cannot be read: {reason}; write the file again.")

    def slices(self, groups: range, names: Sequence[str], keys: Sequence[str]) -> Iterator[pyarrow.RecordBatch]:
        """Read columns of some row groups, a number of rows at a time; text in key columns stays coded as it is in the file."""
        if self._state() != self.state:
            raise DataError(f"{self.path.name} was changed while its fits were made; expected a file that stays. Fit again.")
        coded = [name for name in keys if self._is_text(name)]
        with self._open(self._metadata, coded) as file:
            batches = file.iter_batches(SLICE, row_groups=list(groups), columns=list(names), use_threads=False)
            while True:
                try:
                    found = next(batches, None)
                except (self._arrow.ArrowException, OSError) as error:
                    raise self._unreadable(error) from None
                if found is None:
                    return
                yield found

    def labels(self, column: pyarrow.Array, name: str) -> Labels:
        """Rank the labels of a piece of a key column."""
        coded = isinstance(column, self._arrow.DictionaryArray)
        if not coded and column.null_count == 0 and self._arrow.types.is_primitive(column.type):
            return labelled(column.to_numpy(zero_copy_only=False), name)
        if str(column.type) == "string_view":  # of which Arrow cannot take some yet
            column = column.cast(self._arrow.large_string())
        column = column if coded else column.dictionary_encode()
        codes = column.indices.cast(self._arrow.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
        seen = np.zeros(len(column.dictionary) + 1, dtype=bool)  # one more, for -1
        seen[codes] = True
        used = np.flatnonzero(seen[:-1])
        own = labelled(column.dictionary.take(used).to_numpy(zero_copy_only=False), name)
        places = np.full(len(seen), -1)
        places[used] = own.codes
        return Labels(places[codes], own.labels)

    def _is_text(self, name: str) -> bool:
        kinds, kind = self._arrow.types, self.schema.field(name).type
        return bool(kinds.is_string(kind) or kinds.is_large_string(kind))

    def check_label(self, name: str) -> None:
        """Refuse a key column whose values are no labels."""
        kind = self.schema.field(name).type
        if self._arrow.types.is_nested(kind) or isinstance(kind, self._arrow.BaseExtensionType):  # such as pandas' periods
            raise DataError(f"by: {name} has values of type {kind}; expected text, numbers, dates or categories.")

    def dtype(self, name: str) -> np.dtype[Any]:
        """Precision a column of numbers has, and refuse one that holds none."""
        kinds, kind = self._arrow.types, self.schema.field(name).type
        kind = kind.value_type if kinds.is_dictionary(kind) else kind
        if kinds.is_float32(kind) or kinds.is_float16(kind):
            return SINGLE
        others = (kinds.is_floating, kinds.is_integer, kinds.is_boolean, kinds.is_decimal, kinds.is_null)
        if any(fits(kind) for fits in others):
            return DOUBLE
        raise DataError(
            f"{name} has values of type {kind} in {self.path.name}; expected numbers. Convert the column, or read the file "
            "yourself and pass the frame."
        )

    def numbers(self, column: pyarrow.Array, dtype: np.dtype[Any], name: str) -> Floats:
        """Read numbers, NaN where there is none."""
        plain = column.dictionary_decode() if isinstance(column, self._arrow.DictionaryArray) else column
        try:
            return np.asarray(plain.cast(self._arrow.from_numpy_dtype(dtype)).to_numpy(zero_copy_only=False))
        except self._arrow.ArrowInvalid:
            raise DataError(
                f"{name} holds whole numbers that float64 rounds; expected numbers up to 2**53. Subtract an offset first."
            ) from None


class Keys:
    """Distinct keys and their numbers of rows, collected piece by piece: memory grows with the keys, not with the rows."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.pieces: list[tuple[list[np.ndarray], np.ndarray]] = []
        self.pending, self.merged = 0, 0

    def add(self, index: Index, sizes: np.ndarray) -> None:
        """Take in keys, and how many rows each has."""
        self.pieces.append((list(index.keys.values()), sizes))
        self.pending += index.count
        if self.pending > max(PENDING, self.merged):  # each key is merged a few times only
            index, sizes = self.merge()
            self.pieces, self.pending, self.merged = [(list(index.keys.values()), sizes)], 0, index.count

    def merge(self) -> tuple[Index, np.ndarray]:
        """All keys so far, and how many rows each has."""
        columns = {
            name: labelled(np.concatenate([labels[place] for labels, _ in self.pieces]), name)
            for place, name in enumerate(self.names)
        }
        index, codes = grouped(columns)
        sizes = np.concatenate([sizes for _, sizes in self.pieces])
        return index, np.bincount(codes, weights=sizes, minlength=index.count).astype(np.int64)


def cut(
    path: Path, by: Sequence[str], inputs: Sequence[str], target: str, sigma: str | Floats | None
) -> tuple[ParquetBatch, Mapping[str, np.ndarray], int]:
    """Read the keys of a file: its data sets, their keys by column, and how many rows have no key.

    Parameters
    ----------
    sigma
        The name of a column, one number, (), or one for each fit, (fits,).

    Raises
    ------
    DataError
        The file cannot be read, has no such column, no rows, or what is no number where one is needed.
    """
    source = Source(path)
    for name in by:
        source.check_label(name)
    columns = dict.fromkeys((*inputs, target, *([sigma] if isinstance(sigma, str) else [])))
    dtypes = {name: source.dtype(name) for name in columns}
    index, sizes, parts = _keys(source, by)
    if not (sigma is None or isinstance(sigma, str) or sigma.shape in ((), (index.count,))):
        raise DataError(
            f"sigma has {len(sigma)} values for {index.count} fits in {path.name}; expected the name of a column, one number, or one per fit."
        )
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    batch = ParquetBatch(tuple(inputs), target, source, index, offsets, parts, sigma, dtypes)
    return batch, index.keys, int(source.rows.sum()) - int(offsets[-1])


def _keys(source: Source, by: Sequence[str]) -> tuple[Index, np.ndarray, Parts]:
    """The first pass: distinct keys, how many rows each has, and the parts of the file in which they occur."""
    edges = _edges(source.rows)
    keys = Keys(by)
    ends: list[tuple[int, list[np.ndarray]]] = []  # part, and the first and last key of a slice of it
    rises = True
    for part, (begin, end) in enumerate(pairwise(edges.tolist())):
        for piece in source.slices(range(begin, end), by, by):
            index, codes = grouped({name: source.labels(piece.column(name), name) for name in by})
            rises = rises and bool((codes >= 0).all() and (codes[1:] >= codes[:-1]).all())
            if index.count:
                keys.add(index, np.bincount(codes[codes >= 0], minlength=index.count))
                ends.append((part, [labels[[0, -1]] for labels in index.keys.values()]))
    check_keys(len(ends), int(source.rows.sum()), by)
    index, sizes = keys.merge()
    places = index.find([np.concatenate([labels[place] for _, labels in ends]) for place in range(len(by))]).reshape(-1, 2)
    owner = np.array([part for part, _ in ends])
    low, high = np.full(len(edges) - 1, index.count), np.full(len(edges) - 1, -1)
    np.minimum.at(low, owner, places[:, 0])
    np.maximum.at(high, owner, places[:, 1])
    rises = rises and bool((places[1:, 0] >= places[:-1, 1]).all())
    rows = np.add.reduceat(source.rows, edges[:-1])
    return index, sizes, Parts(edges, rows, low, high, rises)


def _edges(rows: np.ndarray) -> np.ndarray:
    """Cut row groups into parts of at least PART rows."""
    edges, total = [0], 0
    for place, size in enumerate(rows.tolist()):
        total += size
        if total >= PART:
            edges.append(place + 1)
            total = 0
    return np.array(edges if edges[-1] == len(rows) else [*edges, len(rows)], dtype=np.int64)


@dataclass(frozen=True)
class ParquetBatch:
    """Data sets in a Parquet file.

    Attributes
    ----------
    index
        Their keys.
    offsets
        (count + 1,): numbers of rows, added up.
    sigma
        The name of its column, one number, one for each fit, or None.
    dtypes
        Precision of each column that is read.
    """

    names: tuple[str, ...]
    target_name: str
    source: Source = field(repr=False)
    index: Index
    offsets: np.ndarray = field(repr=False)
    parts: Parts = field(repr=False)
    sigma: str | Floats | None = field(repr=False)
    dtypes: Mapping[str, np.dtype[Any]]

    @property
    def count(self) -> int:
        """How many data sets."""
        return len(self.offsets) - 1

    @cached_property
    def n(self) -> int:
        """Rows of the longest."""
        return int(np.diff(self.offsets).max(initial=0))

    @property
    def weighted(self) -> bool:
        """Whether rows have a sigma."""
        return self.sigma is not None

    @cached_property
    def edges(self) -> np.ndarray:
        """Fits at which windows begin and end, (windows + 1,)."""
        narrow = self._edges(WINDOW)
        begins = narrow[:-1]
        held = self.parts.high >= self.parts.low
        times = np.searchsorted(begins, self.parts.high, "right") - np.searchsorted(begins, self.parts.low, "right") + 1
        read = (times * held * self.parts.rows).sum()
        return narrow if read <= SCATTERED * self.parts.rows.sum() else self._edges(WIDE_WINDOW)

    def _edges(self, size: int) -> np.ndarray:
        rows = max(1, size // (8 * len(self.dtypes)))
        marks = np.arange(0, int(self.offsets[-1]), rows)
        edges = np.searchsorted(self.offsets, marks, "right") - 1
        return np.unique([0, *edges, self.count])

    @cached_property
    def windows(self) -> Windows:
        """Those windows that are held."""
        return Windows(self)

    def block(self, begin: int, end: int) -> Block:
        """Read some of them."""
        first = int(np.searchsorted(self.edges, begin, "right")) - 1
        last = int(np.searchsorted(self.edges, max(end, begin + 1) - 1, "right")) - 1
        pieces: dict[str, list[Floats]] = {name: [] for name in self.dtypes}
        for window in range(first, last + 1):
            base = int(self.offsets[self.edges[window]])
            at = slice(max(int(self.offsets[begin]) - base, 0), int(self.offsets[end]) - base)
            for name, column in self.windows.read(window).items():
                pieces[name].append(column[at])
        columns = {name: parts[0] if len(parts) == 1 else np.concatenate(parts) for name, parts in pieces.items()}
        offsets = self.offsets[begin : end + 1] - self.offsets[begin]
        inner = tuple(columns[name] for name in self.names)
        sigma = self._sigma(begin, end, columns)
        return RaggedBatch(self.names, self.target_name, inner, columns[self.target_name], offsets, sigma).block(0, end - begin)

    def _sigma(self, begin: int, end: int, columns: Mapping[str, Floats]) -> Floats | None:
        if self.sigma is None or isinstance(self.sigma, str):
            return None if self.sigma is None else columns[self.sigma]
        own = self.sigma if self.sigma.ndim == 0 else self.sigma[begin:end]
        return np.repeat(np.broadcast_to(own, (end - begin,)), np.diff(self.offsets[begin : end + 1]))

    def read_window(self, window: int) -> dict[str, Floats]:
        """Read the rows of the fits of a window, fit after fit: columns by name."""
        first, last = int(self.edges[window]), int(self.edges[window + 1])
        begin, end = int(self.offsets[first]), int(self.offsets[last])
        columns = {name: np.empty(end - begin, dtype=dtype) for name, dtype in self.dtypes.items()}
        done = 0
        for piece, to, of in self._in_order(begin, end) if self.parts.in_order else self._scattered(first, last):
            for name, column in columns.items():
                column[to] = found = self.source.numbers(piece.column(name), column.dtype, name)[of]
            done += len(found)
        if done != end - begin:
            raise DataError(f"{self.source.path.name} gave other rows when read again; expected a file that stays. Fit again.")
        return columns

    def _in_order(self, begin: int, end: int) -> Iterator[tuple[pyarrow.RecordBatch, slice, slice]]:
        """Slices with the rows from begin up to end: where these go, and which they are. Keys need not be read again."""
        edges = np.concatenate([[0], np.cumsum(self.parts.rows)])
        for part in range(int(np.searchsorted(edges, begin, "right")) - 1, int(np.searchsorted(edges, end, "left"))):
            row = int(edges[part])
            for piece in self.source.slices(self.parts.groups(part), list(self.dtypes), ()):
                low, high = max(begin, row), min(end, row + piece.num_rows)
                if low < high:
                    yield piece, slice(low - begin, high - begin), slice(low - row, high - row)
                row += piece.num_rows
                if row >= end:
                    return

    def _scattered(self, first: int, last: int) -> Iterator[tuple[pyarrow.RecordBatch, Any, Any]]:
        """Slices with rows of some fits: where these go, and which they are."""
        free = self.offsets[first:last] - self.offsets[first]  # where the next row of each fit goes
        wanted = [*dict.fromkeys((*self.index.names, *self.dtypes))]
        for part in np.flatnonzero((self.parts.low < last) & (self.parts.high >= first)):
            for piece in self.source.slices(self.parts.groups(int(part)), wanted, self.index.names):
                fits, taken = self._taken(piece, first, last)
                if len(fits):
                    yield piece, _as_slice(_places(fits, free)), _as_slice(taken)

    def _taken(self, piece: pyarrow.RecordBatch, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of a slice that belong to fits of a window, sorted by fit: the fits, from 0, and the rows' places."""
        index, codes = grouped({name: self.source.labels(piece.column(name), name) for name in self.index.names})
        known = self.index.find(list(index.keys.values()))
        inside = (known >= first) & (known < last)
        if not inside.any():
            return codes[:0], codes[:0]
        every = bool(inside.all()) and bool((codes >= 0).all())
        taken = np.arange(len(codes)) if every else np.flatnonzero((codes >= 0) & inside[codes])
        own = codes if every else codes[taken]
        if not (own[1:] >= own[:-1]).all():
            order = stable_order(own, index.count)
            taken, own = taken[order], own[order]
        return known[own] - first, taken


def _places(fits: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Where rows sorted by fit go; ``free``, the next place of each fit, moves on."""
    new = np.flatnonzero(np.diff(fits, prepend=-1))
    own = fits[new]
    sizes = np.diff(new, append=len(fits))
    places: np.ndarray = np.arange(len(fits)) + np.repeat(free[own] - new, sizes)
    free[own] += sizes
    return places


def _as_slice(places: np.ndarray) -> np.ndarray | slice:
    """Give a slice where the places are neighbours in order."""
    first, last = int(places[0]), int(places[-1])
    neighbours = last - first + 1 == len(places) and bool((np.diff(places) == 1).all())
    return slice(first, last + 1) if neighbours else places


class Windows:
    """The windows last used; each is read once, however many threads ask for it."""

    def __init__(self, batch: ParquetBatch) -> None:
        self.batch, self.lock = batch, threading.Lock()
        self.held: OrderedDict[int, Future[dict[str, Floats]]] = OrderedDict()

    def read(self, window: int) -> dict[str, Floats]:
        """Give the columns of a window."""
        with self.lock:
            found = self.held.get(window)
            mine = found is None
            if found is None:
                found = self.held[window] = Future()
                while len(self.held) > KEPT:
                    self.held.popitem(last=False)
            self.held.move_to_end(window)
        if mine:
            try:
                found.set_result(self.batch.read_window(window))
            except BaseException as error:
                with self.lock:
                    self.held.pop(window, None)
                found.set_exception(error)
                raise
        return found.result()
