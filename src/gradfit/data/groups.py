r"""Groups: which fit each row of a table belongs to, by the labels in its key columns.

Fits stand in the order of their sorted keys, first column first, whatever the order of the rows; the rows of a fit keep the order
of the table. With several key columns there is a fit for each combination that occurs. A row whose key is missing in one of them
belongs to no fit.

Labels are ranked column by column, then combined: with :math:`K_j` distinct labels in column j, a row's number is
:math:`(\dots(c_1 K_2 + c_2)\dots)K_j + c_j`, ranked anew after each column so that it stays small. There is no loop over groups.
"""

from __future__ import annotations

import contextlib
import datetime
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import narwhals as nw
import numpy as np
import torch

from gradfit.errors import DataError

PLAIN_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?")
SHORT_CODES = 1 << 16  # numbers of fits below this are sorted in linear time
NUMERIC: dict[Any, Any] = {bool: (bool, np.bool_), np.int64: (int, np.integer), np.float64: (int, np.integer, float, np.floating)}
SPAN = 4  # times as many whole numbers as rows: so wide a range is still counted, not sorted


@dataclass(frozen=True)
class Labels:
    """A column of keys.

    Attributes
    ----------
    codes
        (rows,), place of each row's label; -1 where it has none.
    labels
        (distinct,), sorted.
    """

    codes: np.ndarray = field(repr=False)
    labels: np.ndarray


@dataclass(frozen=True)
class Index:
    """The distinct keys, sorted.

    Attributes
    ----------
    names
        The key columns.
    labels
        Distinct labels of each.
    pairs
        For each further column, the numbers of the combinations that occur, sorted.
    """

    names: tuple[str, ...]
    labels: tuple[np.ndarray, ...] = field(repr=False)
    pairs: tuple[np.ndarray, ...] = field(repr=False)

    @property
    def count(self) -> int:
        """How many keys."""
        return len(self.pairs[-1] if self.pairs else self.labels[0])

    @property
    def keys(self) -> dict[str, np.ndarray]:
        """Labels of each key by column, (count,) each."""
        place, found = np.arange(self.count), []
        for labels, pairs in zip(self.labels[:0:-1], self.pairs[::-1], strict=True):
            place, own = np.divmod(pairs[place], len(labels))
            found.append(labels[own])
        found.append(self.labels[0][place])
        return dict(zip(self.names, found[::-1], strict=True))

    def find(self, columns: Sequence[np.ndarray]) -> np.ndarray:
        """Places of keys that are given by their labels, one array a column; -1 for keys that are not there."""
        place, there = _searched(self.labels[0], columns[0])
        for labels, pairs, column in zip(self.labels[1:], self.pairs, columns[1:], strict=True):
            own, known = _searched(labels, column)
            place, paired = _searched(pairs, place * len(labels) + own)
            there &= known & paired
        return np.where(there, place, -1)


def labelled(values: Any, name: str, *, of_text: bool = False) -> Labels:
    """Rank the labels of a key column.

    Parameters
    ----------
    values
        A narwhals series, a column of pandas, polars or Arrow, an array, a list: text, whole numbers, numbers, dates, categories,
        truth values. None, NaN, NaT and masked values are no label.
    of_text
        The column comes from a text file: where all its labels are plain numbers, they are read as such.

    Raises
    ------
    DataError
        Labels that cannot be sorted, or are no labels: text mixed with numbers, lists, complex numbers.
    """
    array, present = _present(values, name)
    if array.ndim != 1:
        raise DataError(f"by: {name} has shape {array.shape}; expected one label per row.")
    kind = array.dtype.kind
    if kind in "OUST":
        found = _objects(array.tolist(), name, _read_text if of_text else _as_they_are)
    elif kind in "biumM":
        found = _ranked(array[missing] if (missing := _no_time(array)) is not None else array, missing)
    elif kind == "f":
        whole = ~np.isnan(array)
        found = _ranked(array) if whole.all() else _ranked(array[whole], whole)
    else:
        raise DataError(f"by: {name} has values of type {array.dtype}; expected text, numbers, dates or categories.")
    if present is None:
        return found
    codes = np.full(len(present), -1)
    codes[present] = found.codes
    return Labels(codes, found.labels)


def grouped(columns: Mapping[str, Labels]) -> tuple[Index, np.ndarray]:
    """Combine key columns: the distinct keys, and the fit of each row, (rows,), -1 where a key is missing."""
    first, *others = columns.values()
    whole = np.logical_and.reduce([part.codes >= 0 for part in columns.values()])
    every = bool(whole.all())
    if not others:
        return Index(tuple(columns), (first.labels,), ()), first.codes
    place, pairs = first.codes if every else first.codes[whole], []
    for part in others:
        ranked = _ranked(place * len(part.labels) + (part.codes if every else part.codes[whole]))
        place = ranked.codes
        pairs.append(ranked.labels)
    codes = place
    if not every:
        codes = np.full(len(whole), -1)
        codes[whole] = place
    return Index(tuple(columns), tuple(part.labels for part in columns.values()), tuple(pairs)), codes


def sequence(codes: np.ndarray, count: int) -> tuple[np.ndarray | None, np.ndarray]:
    """Order rows by fit, each fit's as they stand: places of rows (None: they stand so), and offsets of fits, (count + 1,)."""
    lost = int((codes < 0).sum())
    sizes = np.bincount(codes if not lost else codes[codes >= 0], minlength=count)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    if not lost and (codes[1:] >= codes[:-1]).all():
        return None, offsets
    return stable_order(codes, count)[lost:], offsets


def stable_order(codes: np.ndarray, count: int) -> np.ndarray:
    """Places that sort codes from -1 to count - 1, equal ones in the order they have."""
    return np.argsort((codes + 1).astype(np.uint16) if count < SHORT_CODES else codes, kind="stable")


def check_keys(count: int, rows: int, by: Sequence[str]) -> None:
    """Refuse a table without rows, or without keys."""
    if rows == 0:
        raise DataError("the table has no rows; expected some for each fit.")
    if count == 0:
        raise DataError(
            f"{' and '.join(by)} {'are' if len(by) > 1 else 'is'} empty in all {rows} rows; name the column that says which fit a row belongs to."
        )


def _present(values: Any, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """The labels of rows that have one, and which rows these are; None: all that are given."""
    if type(values) is np.ndarray:
        return values, None
    if isinstance(values, np.ma.MaskedArray):
        return values.data[~np.ma.getmaskarray(values)], ~np.ma.getmaskarray(values)
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().numpy(), None
    if isinstance(values, (list, tuple)):  # numpy would turn a mixture of texts and numbers into text
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array, None
    series = values if isinstance(values, nw.Series) else nw.from_native(values, series_only=True, pass_through=True)
    if isinstance(series, nw.Series):  # whole numbers with gaps would become floats
        present = ~np.asarray(series.is_null().to_numpy(), dtype=bool)
        return (series.to_numpy(), None) if present.all() else (series.filter(~series.is_null()).to_numpy(), present)
    if isinstance(values, (str, bytes)) or np.ndim(values) == 0:
        raise DataError(f"by: {name} is {str(values)[:40]!r}; expected one label per row.")
    return np.asarray(values), None


def _no_time(array: np.ndarray) -> np.ndarray | None:
    """Which rows have a date or a duration; None: all have what they have."""
    if array.dtype.kind not in "mM" or not (lost := np.isnat(array)).any():
        return None
    return np.asarray(~lost)


def _ranked(array: np.ndarray, whole: np.ndarray | None = None) -> Labels:
    """Rank values that can be sorted and hold no NaN; ``whole`` says which rows they are of."""
    if array.size == 0 or (array[1:] >= array[:-1]).all():
        new = np.ones(len(array), dtype=bool)
        new[1:] = array[1:] != array[:-1]
        codes, labels = np.cumsum(new) - 1, array[new]
    elif array.dtype.kind in "iub" and int(array.max()) - int(array.min()) <= SPAN * len(array):
        codes, labels = _counted(array)
    else:
        labels, codes = np.unique(array, return_inverse=True)
    codes = codes.reshape(-1)
    if whole is not None:
        wide = np.full(len(whole), -1)
        wide[whole] = codes
        codes = wide
    return Labels(codes, labels)


def _counted(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rank whole numbers of a narrow range, without sorting them."""
    wide = array if array.dtype.itemsize == 8 else array.astype(np.int64)
    place = (wide - wide.min()).astype(np.int64)
    seen = np.zeros(int(place.max()) + 1, dtype=bool)
    seen[place] = True
    labels = (np.flatnonzero(seen).astype(wide.dtype) + wide.min()).astype(array.dtype)
    return (np.cumsum(seen) - 1)[place], labels


def _objects(values: list[Any], name: str, read: Callable[[Collection[Any]], Mapping[Any, Any]]) -> Labels:
    """Rank objects by way of the distinct ones; ``read`` tells what each stands for, None for no label."""
    try:
        distinct = set(values)
        if read is _as_they_are and set(map(type, distinct)) == {str}:
            labels = sorted(distinct)
            codes = dict(zip(labels, range(len(labels)), strict=True))
        else:
            meaning = read(distinct)
            labels = sorted({label for label in meaning.values() if label is not None})
            places: dict[Any, int] = {label: place for place, label in enumerate(labels)}
            codes = {value: -1 if label is None else places[label] for value, label in meaning.items()}
    except TypeError:
        kinds = ", ".join(sorted({type(value).__name__ for value in values}))
        raise DataError(
            f"by: {name} holds values that cannot be sorted as labels ({kinds}); expected one kind, such as text. Convert the column."
        ) from None
    found = np.fromiter(map(codes.__getitem__, values), dtype=np.int64, count=len(values))
    return Labels(found, _array_of(labels))


def _as_they_are(distinct: Collection[Any]) -> dict[Any, Any]:
    return {value: None if _is_missing(value) else value for value in distinct}


def _is_missing(value: Any) -> bool:
    return value is None or value is np.ma.masked or type(value).__name__ in {"NAType", "NaTType"} or bool(value != value)


def _read_text(distinct: Collection[str]) -> dict[str, Any]:
    """Read the labels of a text file: without blanks around them, empty ones missing; as numbers where no two labels become one."""
    stripped = {text: text.strip() or None for text in distinct}
    labels = {label for label in stripped.values() if label is not None}
    if not all(map(PLAIN_NUMBER.fullmatch, labels)):  # 007, 1E5 and A3 are names
        return stripped
    kind: Any = float if any("." in label for label in labels) else int
    values = {label: kind(label) for label in labels}
    if len(set(values.values())) < len(labels):
        return stripped
    return {text: None if label is None else values[label] for text, label in stripped.items()}


def _array_of(labels: list[Any]) -> np.ndarray:
    """Make an array of sorted labels: of numbers and dates where they are such, else of objects."""
    kinds = {type(label) for label in labels}
    dtype: Any = None
    if kinds == {datetime.date}:
        dtype = "datetime64[D]"
    elif kinds == {datetime.datetime} and all(label.tzinfo is None for label in labels):
        dtype = "datetime64[us]"
    elif kinds:
        dtype = next((dtype for dtype, own in NUMERIC.items() if all(issubclass(kind, own) for kind in kinds)), None)
    if dtype is not None:
        with contextlib.suppress(OverflowError):  # beyond 64 bits
            return np.array(labels, dtype=dtype)
    array = np.empty(len(labels), dtype=object)
    array[:] = labels
    return array


def _searched(known: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of values in a sorted array, and whether they are there."""
    if len(known) == 0:
        return np.zeros(len(wanted), dtype=np.int64), np.zeros(len(wanted), dtype=bool)
    place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return place, np.asarray(known[place] == wanted, dtype=bool)
