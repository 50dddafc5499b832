"""Tables of arrays as Parquet files, part by part, bit for bit.

A part becomes a row group, so neither writing nor reading holds more than one beside the arrays themselves. Numbers are stored plain: a
dictionary of distinct numbers would take one NaN for another. Pages carry checksums, so that damage shows.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gradfit.data.files import existing, written_whole
from gradfit.errors import MissingDependencyError, StorageError

TIMES = ("s", "ms", "us", "ns")  # units of times that Arrow knows


@dataclass(frozen=True)
class Categories:
    """Text of which there are few different ones: a column of the statuses.

    Attributes
    ----------
    codes
        Places in ``names``, (count,) of whole numbers.
    """

    codes: np.ndarray
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def text(self) -> np.ndarray:
        """The texts themselves, (count,)."""
        return np.asarray(np.asarray(self.names, dtype=str)[self.codes])


Column = np.ndarray | Categories


@dataclass(frozen=True)
class Stored:
    """A Parquet file, open for reading.

    Attributes
    ----------
    names, rows
        Its columns, and how many rows.
    metadata
        What was stored with it, text by name.
    """

    path: Path
    names: tuple[str, ...]
    rows: int
    metadata: Mapping[str, str]
    file: Any = field(repr=False)

    def parts(self, names: Iterable[str] | None = None) -> Iterator[dict[str, Column]]:
        """Read row group after row group: (rows,) each, (rows, k) of lists of one length.

        Raises
        ------
        StorageError
            Damaged, without such a column, values missing, or of a type that is no array.
        """
        wanted = list(self.names if names is None else names)
        for place in range(self.file.num_row_groups):
            with _reading(self.path):
                table = self.file.read_row_group(place, columns=wanted)
                part = {name: _column(table.column(name), name) for name in wanted}
            yield part


def open_table(path: str | os.PathLike[str]) -> Stored:
    """Open a Parquet file; its parts are read when asked for.

    Raises
    ------
    StorageError
        No such file, or none that is Parquet.
    MissingDependencyError
        Without the ``io`` extra.
    """
    arrow, place = pyarrow(), existing(path)
    with _reading(place):
        file = arrow.parquet.ParquetFile(place, page_checksum_verification=True)
        schema = file.schema_arrow
        metadata = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
        return Stored(place, tuple(schema.names), file.metadata.num_rows, metadata, file)


def read_table(path: str | os.PathLike[str], names: Iterable[str] | None = None) -> dict[str, Column]:
    """Read columns of a Parquet file whole."""
    parts = list(open_table(path).parts(names))
    return {name: _joined([part[name] for part in parts]) for name in (parts[0] if parts else ())}


def write_table_atomically(
    path: str | os.PathLike[str], parts: Iterable[Mapping[str, Any]], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a Parquet file whole or not at all.

    Parameters
    ----------
    parts
        Columns by name, one mapping for each row group, at least one: arrays (rows,), (rows, k) for lists of one length, or
        :class:`Categories`.
    metadata
        Text by name, kept in the file.

    Raises
    ------
    StorageError
        It cannot be written there, or a column is of a type that Parquet does not know.
    """
    arrow = pyarrow()
    with written_whole(path) as place:
        writer = None
        try:
            for part in parts:
                table = arrow_table(part, metadata)
                if writer is None:
                    text = [name for name in part if not _is_numeric(part[name])]
                    how = {"compression": "zstd", "use_dictionary": text, "write_page_checksum": True}
                    writer = arrow.parquet.ParquetWriter(place, table.schema, **how)
                writer.write_table(table, row_group_size=max(table.num_rows, 1))
        finally:
            if writer is not None:
                writer.close()


def arrow_table(columns: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> Any:
    """Give columns as a pyarrow Table."""
    arrow = pyarrow()
    arrays = {}
    for name, column in columns.items():
        try:
            arrays[name] = _arrow_array(arrow, column)
        except (arrow.ArrowException, TypeError, ValueError) as error:
            raise StorageError(
                f"column {name!r} cannot be stored as Parquet: {_first_line(error)}; expected numbers, text or times, so convert it."
            ) from None
    return arrow.table(arrays).replace_schema_metadata(dict(metadata) if metadata else None)


def pyarrow() -> Any:
    """Import pyarrow; MissingDependencyError where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingDependencyError("Parquet and Arrow need pyarrow; run: pip install 'gradfit[io]'") from None
    return pyarrow


def _is_numeric(column: Any) -> bool:
    return isinstance(column, np.ndarray) and column.dtype.kind in "fiubmM"


def _arrow_array(arrow: Any, column: Any) -> Any:
    if isinstance(column, Categories):
        return arrow.DictionaryArray.from_arrays(arrow.array(column.codes), arrow.array(column.names, arrow.string()))
    values = np.asarray(column)
    if values.dtype.kind in "mM" and np.datetime_data(values.dtype)[0] not in TIMES:
        values = values.astype(f"{values.dtype.kind}8[s]")  # of days and hours
    if values.ndim == 2:
        return arrow.FixedSizeListArray.from_arrays(arrow.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])
    return arrow.array(values)


def _column(chunked: Any, name: str) -> Column:
    """Give what was read as numpy's."""
    kinds, kind = pyarrow().types, chunked.type
    if chunked.null_count and not (kinds.is_temporal(kind) or kinds.is_string(kind) or kinds.is_large_string(kind)):
        raise StorageError(f"column {name!r} has {chunked.null_count} missing values; expected none, so write the file again.")
    if kinds.is_dictionary(kind):
        whole = chunked.unify_dictionaries()
        names = tuple(map(str, whole.chunk(0).dictionary.to_pylist())) if whole.num_chunks else ()
        codes = [chunk.indices.to_numpy(zero_copy_only=False) for chunk in whole.chunks]
        return Categories(np.concatenate(codes) if codes else np.empty(0, dtype=np.int8), names)
    if kinds.is_fixed_size_list(kind):
        lists = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunked.chunks]
        flat = np.concatenate(lists) if lists else np.empty(0)
        return flat.reshape(len(chunked), kind.list_size)
    return np.asarray(chunked.to_numpy())


def _joined(parts: list[Column]) -> Column:
    coded = [part for part in parts if isinstance(part, Categories)]
    if not coded:
        return np.concatenate(parts)  # type: ignore[arg-type]
    names = tuple(dict.fromkeys(name for part in coded for name in part.names))
    places = [np.array([names.index(name) for name in part.names], dtype=np.int64)[part.codes] for part in coded]
    return Categories(np.concatenate(places), names)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong while a file is read, as a StorageError."""
    try:
        yield
    except StorageError:
        raise
    except (
        pyarrow().ArrowException,
        OSError,
        ValueError,
        TypeError,
        KeyError,
        MemoryError,
    ) as error:  # damage shows as any of these
        raise StorageError(f"{path.name!r} is no readable Parquet file: {_first_line(error)}; write it again.") from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(" .:;")
