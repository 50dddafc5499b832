"""Tables of named columns from dicts, data frames, CSV and Parquet files.

Nothing is converted here: a column stays as it came until :mod:`gradfit.data.dataset` asks for it, so that a text column
nobody uses does no harm.
"""

from __future__ import annotations

import csv
import io
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import narwhals as nw
import numpy as np

from gradfit.errors import DataError, MissingDependencyError, unknown

DELIMITERS = ",;\t"
BLOCK = 10_000  # lines turned into columns at a time: fast, and the rows are not all held
SAMPLE = 20_000  # characters, and lines, from which the delimiter is told
SAMPLE_LINES = 20
TEXT_SUFFIXES = (".csv", ".tsv", ".txt")
PARQUET_SUFFIXES = (".parquet", ".pq")


@dataclass(frozen=True)
class Table:
    """Named columns of one length, read on demand.

    Attributes
    ----------
    names
        Column names, in the order of the source.
    column
        ``column(name)`` gives the raw values.
    origin
        What the messages call this table: "thermometer.csv", "the data frame".
    of_text
        Whether every cell is text, to be read as a number where one is wanted.
    series
        ``series(name)`` gives a column as its own library holds it, where that is more than its numbers; None: as ``column``.
    """

    names: tuple[str, ...]
    column: Callable[[str], Any]
    origin: str
    of_text: bool = False
    series: Callable[[str], Any] | None = None

    def __getitem__(self, name: str) -> Any:
        """Give the raw column ``name``; DataError when there is none."""
        self.check(name)
        return self.column(name)

    def labels(self, name: str) -> Any:
        """Give the column ``name`` for the labels in it; DataError when there is none."""
        self.check(name)
        return (self.series or self.column)(name)

    def check(self, name: str, kind: str = "column") -> None:
        """Refuse a name that no column has."""
        if name not in self.names:
            raise DataError(unknown(kind, name, self.names, f"They are the columns of {self.origin}."))


def read(source: object, *, encoding: str = "utf-8") -> Table:
    """Read a table from a mapping, a data frame (whatever narwhals knows), or the path of a CSV or Parquet file.

    Raises
    ------
    DataError
        The file is missing, undecodable, ragged or has no header; the object is no table.
    MissingDependencyError
        A Parquet file without the ``io`` extra.
    """
    if isinstance(source, Table):
        return source
    if not isinstance(encoding, str):
        raise DataError(f"encoding is {encoding!r}; expected a name like utf-8, gb18030, cp1252, utf-16.")
    if isinstance(source, (str, os.PathLike)):
        return read_file(Path(source), encoding=encoding)
    if isinstance(source, Mapping):
        columns = {str(name): values for name, values in source.items()}
        if len(columns) < len(source):
            raise DataError(f"the data given has two columns called {_first_repeated([*map(str, source)])!r}; rename one.")
        return Table(tuple(columns), columns.__getitem__, "the data given")
    return read_frame(source)


def check_order(columns: Mapping[str, Any]) -> None:
    """Refuse columns whose own labels pair other rows than their places do.

    Rows are paired by place. Two pandas Series (or labelled arrays of xarray) that hold one label in different places would be
    paired otherwise by pandas; labels that never meet, as after a selection, do no harm.

    Raises
    ------
    DataError
        A label sits in different rows of two columns.
    """
    labelled = [(name, labels) for name, column in columns.items() if (labels := _labels(column)) is not None]
    for (one, first), (other, second) in itertools.combinations(labelled, 2):
        if first is second or first.equals(second):
            continue
        common = first.intersection(second)
        if not len(common):
            continue
        unique = first.is_unique and second.is_unique
        moved = common[first.get_indexer(common) != second.get_indexer(common)] if unique else common
        if len(moved):
            raise DataError(
                f"{one} and {other} have the label {moved[0]!r} in different rows, and rows are paired by place; expected one order. "
                f"Align them ({other}.reindex({one}.index)), or pass arrays: {one}.to_numpy()."
            )


def _labels(column: Any) -> Any:
    """The labels of a column's rows, a pandas index; None where it has none."""
    index: Any = getattr(column, "index", None)
    if not hasattr(index, "get_indexer"):
        dimensions: Any = getattr(column, "dims", None)
        index = column.indexes.get(dimensions[0]) if isinstance(dimensions, tuple) and len(dimensions) == 1 else None
    return index if hasattr(index, "get_indexer") and len(index) == len(column) else None


def read_frame(source: object) -> Table:
    """Read a pandas, polars, Arrow, Modin, cuDF, DuckDB, ... frame; lazy frames are collected."""
    try:
        frame: Any = nw.from_native(cast(Any, source))
        if isinstance(frame, nw.LazyFrame):
            frame = frame.collect()
    except TypeError:
        raise DataError(
            f"data is of type {type(source).__name__}; expected a dict of columns, a data frame, or the path of a CSV or "
            "Parquet file. For plain arrays write fit(model, x, y)."
        ) from None
    except Exception as error:  # noqa: BLE001  # every library of frames has errors of its own
        reason = " ".join(_first_lines(error, 2).split())
        raise DataError(
            f"the data frame cannot be read ({type(error).__name__}: {reason}); mend the frame or the query."
        ) from None
    places = {str(name): place for place, name in enumerate(frame.columns)}
    if len(places) < len(frame.columns):
        raise DataError(f"the data frame has two columns called {_first_repeated([*map(str, frame.columns)])!r}; rename one.")
    return Table(
        tuple(places),
        lambda name: frame[:, places[name]].to_numpy(),
        "the data frame",
        series=lambda name: frame[:, places[name]],
    )


def read_file(path: Path, *, encoding: str) -> Table:
    """Read a file by its suffix: .csv, .tsv, .txt (delimited text with a header line) or .parquet."""
    suffix = path.suffix.lower()
    try:
        if path.is_dir():
            raise IsADirectoryError
        if suffix not in TEXT_SUFFIXES + PARQUET_SUFFIXES:
            known = ", ".join(TEXT_SUFFIXES + PARQUET_SUFFIXES)
            raise DataError(f"cannot tell the format of {str(path)!r} from its suffix {suffix!r}; expected one of {known}.")
        return _read_parquet(path) if suffix in PARQUET_SUFFIXES else _read_text(path, encoding)
    except FileNotFoundError:
        raise DataError(f"there is no file {str(path)!r}; check the name and the folder ({Path.cwd()}).") from None
    except IsADirectoryError:
        raise DataError(f"{str(path)!r} is a folder; expected a file.") from None
    except PermissionError:
        raise DataError(f"{str(path)!r} may not be read; check its permissions.") from None
    except OSError as error:
        raise DataError(f"{path.name[:60]!r} cannot be read: {error.strerror or error}; check the name and the disk.") from None


def _read_text(path: Path, encoding: str) -> Table:
    text = _decoded(path, encoding)
    if "\0" in text:
        raise DataError(f"{path.name} holds zero bytes: it is no text in {encoding}; is it UTF-16 or a spreadsheet file?")
    rows = _rows(text, path.name)
    header = [name.strip() for name in next(rows, ([], 0))[0]]
    _check_header(header, path.name)
    columns: list[list[str]] = [[] for _ in header]
    while block := [_fitting(cells, line, header, path.name) for cells, line in itertools.islice(rows, BLOCK)]:
        for column, part in zip(columns, zip(*block, strict=True), strict=True):
            column.extend(part)
    table = {name: column for name, column in zip(header, columns, strict=True) if name}
    return Table(tuple(table), lambda name: np.array(table[name], dtype=object), path.name, of_text=True)


def _fitting(cells: list[str], line: int, header: list[str], name: str) -> list[str]:
    if len(cells) != len(header):
        raise DataError(
            f"{name}, line {line}, has {len(cells)} cells and the header has {len(header)} ({_shown(header)}); "
            "mend the line (a delimiter within a text needs quotes)."
        )
    return cells


def _decoded(path: Path, encoding: str) -> str:
    """Read a text file; a byte order mark of UTF-8 is no part of the text."""
    try:
        return path.read_text(encoding="utf-8-sig" if encoding.lower().replace("_", "-") in {"utf-8", "utf8"} else encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path.name} is not {encoding} text (byte {error.start}: 0x{error.object[error.start]:02x}); name its encoding, for "
            'instance encoding="gb18030" for Chinese, "cp1252" or "latin-1" for Western Windows, "utf-16" for Excel text.'
        ) from None
    except UnicodeError as error:
        raise DataError(f"{path.name} is not {encoding} text ({error}); name its encoding.") from None
    except LookupError:
        raise DataError(f"no encoding is called {encoding!r}; expected one like utf-8, gb18030, cp1252, utf-16.") from None
    except ValueError as error:  # a zero byte in the name of the file or of the encoding
        raise DataError(f"{str(path)!r} in encoding {encoding!r} cannot be read: {error}; check both names.") from None


def _rows(text: str, name: str) -> Iterator[tuple[list[str], int]]:
    """Yield (cells, line number) of every line that is not blank; a line of delimiters is a row of empty cells."""
    reader = _reader(text, _delimiter(text))
    try:
        for cells in reader:
            if len(cells) > 1 or (cells and cells[0].strip()):
                yield cells, reader.line_num
    except csv.Error as error:
        raise DataError(f"{name}, line {reader.line_num}: {error}; mend the quotes or the line.") from None


def _reader(text: str, delimiter: str) -> Any:
    return csv.reader(io.StringIO(text), delimiter=delimiter, strict=True, skipinitialspace=True)


def _delimiter(text: str) -> str:
    """Choose the delimiter that cuts the first lines into equally many cells, most of them; else the header's most frequent."""
    start = text.lstrip("\n\r ")[:SAMPLE]
    lines = start.splitlines(keepends=True)[: SAMPLE_LINES + 1]
    sample = "".join(lines[:-1] if len(lines) > 1 and len(start) == SAMPLE else lines[:SAMPLE_LINES])

    def cells(delimiter: str) -> int:
        try:
            counts = {len(row) for row in _reader(sample, delimiter) if any(row)}
        except csv.Error:
            return 0
        return counts.pop() if len(counts) == 1 else 0

    best = max(DELIMITERS, key=cells)
    return best if cells(best) > 1 else max(DELIMITERS, key=sample.partition("\n")[0].count)


def _shown(header: list[str]) -> str:
    text = ", ".join(header)
    return text if len(text) <= 60 else text[:57] + "..."


def _check_header(header: list[str], name: str) -> None:
    if not any(header):
        raise DataError(f"{name} is empty; expected a header line with column names and rows of numbers.")
    if all(_is_number(cell) for cell in header):
        raise DataError(f"{name} has no header: its first line is {','.join(header)!r}; put column names above it.")
    named = [cell for cell in header if cell]  # one without a name, such as pandas' index, cannot be asked for and does no harm
    if len(set(named)) < len(named):
        raise DataError(f"{name} has two columns called {_first_repeated(named)!r}; rename one.")


def _read_parquet(path: Path) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingDependencyError("Parquet files need pyarrow; run: pip install 'gradfit[io]'") from None
    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = tuple(file.schema_arrow.names)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path.name} is no readable Parquet file: {_first_lines(error)}; write it again.") from None
    if len(set(names)) < len(names):
        raise DataError(f"{path.name} has two columns called {_first_repeated(names)!r}; rename one.")

    def column(name: str) -> Any:
        try:
            return file.read(columns=[name]).column(name).to_numpy()
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(
                f"{path.name}: column {name!r} cannot be read: {_first_lines(error)}; write the file again."
            ) from None

    return Table(names, column, path.name)


def _first_lines(error: Exception, count: int = 1) -> str:
    return " ".join(str(error).strip().splitlines()[:count]).rstrip(" .:;")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _first_repeated(names: Sequence[str]) -> str:
    seen: set[str] = set()
    return next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
