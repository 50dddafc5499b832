"""Many fits from one table: its rows, cut by the labels in key columns, become the data sets of a :class:`~gradfit.data.batch.Batch`.

Tables in memory stay where they are: only the order of their rows is noted. Of a lazy frame no column is computed that no fit needs.
A Parquet file is read a piece at a time (:mod:`gradfit.data.parquet`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import narwhals as nw
import numpy as np

from gradfit.data import parquet
from gradfit.data.batch import DOUBLE, SINGLE, Batch, RaggedBatch, numbers
from gradfit.data.dataset import flat, real
from gradfit.data.groups import check_keys, grouped, labelled, sequence
from gradfit.data.sources import PARQUET_SUFFIXES, Table, check_order, read, read_frame
from gradfit.errors import DataError
from gradfit.typing import Floats


@dataclass(frozen=True)
class Cut:
    """A table cut into data sets.

    Attributes
    ----------
    batch
        The data sets, in the order of their keys.
    keys
        Labels of each data set by key column, (count,) each.
    without
        How many rows belong to none, because their key is missing.
    """

    batch: Batch
    keys: Mapping[str, np.ndarray] = field(repr=False)
    without: int


@dataclass(frozen=True)
class Opened:
    """A table of which only the names of the columns need be known yet.

    Attributes
    ----------
    table
        For its names.
    cut
        ``cut(by, inputs, target, sigma)``: read what is needed of it.
    """

    table: Table
    cut: Callable[[Sequence[str], Sequence[str], str, Any], Cut]


def opened(source: Any, *, encoding: str = "utf-8") -> Opened:
    """Open a dict of columns, a frame that narwhals knows, lazy or not, or the path of a CSV or Parquet file.

    Raises
    ------
    DataError
        There is no such file, or what came is no table.
    """
    if isinstance(source, (str, os.PathLike)) and Path(source).suffix.lower() in PARQUET_SUFFIXES:
        table = read(source)  # of which nothing is read but the names

        def cut_file(by: Sequence[str], inputs: Sequence[str], target: str, sigma: Any) -> Cut:
            errors = sigma if sigma is None or isinstance(sigma, str) else given_sigma(sigma)
            return Cut(*parquet.cut(Path(source), by, inputs, target, errors))

        return Opened(table, cut_file)
    if not isinstance(source, (str, os.PathLike, Mapping, Table)):
        frame = nw.from_native(cast(Any, source), pass_through=True)
        if isinstance(frame, nw.LazyFrame):
            return _opened_lazy(frame)
    table = read(source, encoding=encoding)
    return Opened(table, lambda *wanted: cut_table(table, *wanted))


def _opened_lazy(frame: nw.LazyFrame[Any]) -> Opened:
    names = tuple(map(str, read_frame(frame.head(0)).names))

    def cut_lazy(by: Sequence[str], inputs: Sequence[str], target: str, sigma: Any) -> Cut:
        needed = dict.fromkeys((*by, *inputs, target, *([sigma] if isinstance(sigma, str) else [])))
        for name in needed:
            table.check(name)
        return cut_table(read_frame(frame.select(*needed)), by, inputs, target, sigma)

    def column(name: str) -> Any:
        return read_frame(frame.select(name))[name]

    table = Table(names, column, "the lazy frame")
    return Opened(table, cut_lazy)


def key_columns(by: Any, table: Table, taken: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the key columns.

    Parameters
    ----------
    taken
        Columns that are something else already, and what.

    Raises
    ------
    DataError
        No name or list of names, an unknown column, one named twice, one that is taken.
    """
    names = (by,) if isinstance(by, str) else tuple(by) if isinstance(by, (list, tuple)) else ()
    if not names or not all(isinstance(name, str) for name in names):
        raise DataError(
            f"by is {repr(by)[:60]}; expected the name of the column that says which fit a row belongs to, or a list of names."
        )
    for name in names:
        table.check(name, "group column")
        if names.count(name) > 1:
            raise DataError(f"by names {name!r} twice; name it once.")
        if name in taken:
            raise DataError(
                f"by names {name!r}, which is also {taken[name]}; within one fit it has one value. Group by another column, or give the model a copy of this one under another name."
            )
    return names


def cut_table(table: Table, by: Sequence[str], inputs: Sequence[str], target: str, sigma: Any) -> Cut:
    """Cut a table in memory into data sets.

    Raises
    ------
    DataError
        Columns of different lengths, no rows, no row with a key, labels that cannot be sorted, what is no number.
    """
    given = {name: table[name] for name in dict.fromkeys((*inputs, target))}
    keys = {name: labelled(table.labels(name), name, of_text=table.of_text) for name in by}
    columns = {name: _column(values, name) for name, values in given.items()}
    check_order(given | ({} if table.series is not None else {name: table[name] for name in by}))
    rows = len(columns[target])
    sizes = {name: len(values) for name, values in columns.items()} | {name: len(own.codes) for name, own in keys.items()}
    for name, size in sizes.items():
        if size != rows:
            raise DataError(f"{name} has {size} values and {target} has {rows}; give columns of one length.")
    index, codes = grouped(keys)
    check_keys(index.count, rows, by)
    order, offsets = sequence(codes, index.count)
    errors = _sigma(table, sigma, codes, index.count)
    inner = tuple(columns[name] for name in inputs)
    batch = RaggedBatch(tuple(inputs), target, inner, columns[target], offsets, errors, order)
    return Cut(batch, index.keys, rows - int(offsets[-1]))


def _column(values: Any, name: str) -> Floats:
    """Read numbers; not copied where they are plain ones, single precision kept."""
    if type(values) is np.ndarray and values.dtype.newbyteorder("=") in (SINGLE, DOUBLE):
        return flat(numbers(values, name), name) if values.ndim == 2 else numbers(values, name)
    single = str(getattr(values, "dtype", "")).removeprefix("torch.") == "float32"
    column = flat(real(values, name), name)
    return column.astype(np.float32) if single else column


def _sigma(table: Table, sigma: Any, codes: np.ndarray, count: int) -> Any:
    """One sigma for each row of the table."""
    if sigma is None:
        return None
    rows = len(codes)
    if isinstance(sigma, str):
        return _column(table[sigma], sigma)
    values = given_sigma(sigma)
    if values.ndim == 0:
        return np.broadcast_to(values, (rows,))
    if len(values) == rows:
        return values
    if len(values) == count:
        return values[codes]
    raise DataError(
        f"sigma has {len(values)} values for {rows} rows and {count} fits; give the name of a column, one number, one per row or one per fit."
    )


def given_sigma(sigma: Any) -> Floats:
    """Read a sigma that is no column: one number, (), or several, (k,)."""
    if isinstance(sigma, bool):
        raise DataError(f"sigma is {sigma}; expected the name of a column, or numbers.")
    if np.ndim(sigma) == 0 and not hasattr(sigma, "__len__"):
        return np.asarray(real(np.array([sigma], dtype=object), "sigma")[0])
    return _column(sigma, "sigma")
