"""Tables of named columns from dicts, data frames, CSV and Parquet files.

Nothing is converted here: a column stays as it came until :mod:`gradfit.data.dataset` asks for it, so that a text column
nobody uses does no harm.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import narwhals as nw

from gradfit.errors import DataError, MissingDependencyError, unknown

DELIMITERS = ",;\t"
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
    """

    names: tuple[str, ...]
    column: Callable[[str], Any]
    origin: str

    def __getitem__(self, name: str) -> Any:
        """Give the raw column ``name``; DataError when there is none."""
        if name not in self.names:
            raise DataError(unknown("column", name, self.names, f"They are the columns of {self.origin}."))
        return self.column(name)


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
    if isinstance(source, (str, os.PathLike)):
        return read_file(Path(source), encoding=encoding)
    if isinstance(source, Mapping):
        columns = {str(name): values for name, values in source.items()}
        return Table(tuple(columns), columns.__getitem__, "the data given")
    return read_frame(source)


def read_frame(source: object) -> Table:
    """Read a pandas, polars, Arrow, Modin, cuDF, DuckDB, ... frame; lazy frames are collected."""
    try:
        frame: Any = nw.from_native(cast(Any, source))
    except TypeError:
        raise DataError(
            f"data is of type {type(source).__name__}; expected a dict of columns, a data frame, or the path of a CSV or "
            "Parquet file. For plain arrays write fit(model, x, y)."
        ) from None
    if isinstance(frame, nw.LazyFrame):
        frame = frame.collect()
    names = tuple(str(name) for name in frame.columns)
    if len(set(names)) < len(names):
        raise DataError(f"the data frame has two columns of one name: {_first_repeated(names)!r}; rename one.")
    return Table(names, lambda name: frame[name].to_numpy(), "the data frame")


def read_file(path: Path, *, encoding: str) -> Table:
    """Read a file by its suffix: .csv, .tsv, .txt (delimited text with a header line) or .parquet."""
    suffix = path.suffix.lower()
    if suffix not in TEXT_SUFFIXES + PARQUET_SUFFIXES:
        known = ", ".join(TEXT_SUFFIXES + PARQUET_SUFFIXES)
        raise DataError(f"cannot tell the format of {str(path)!r} from its suffix {suffix!r}; expected one of {known}.")
    try:
        return _read_parquet(path) if suffix in PARQUET_SUFFIXES else _read_text(path, encoding)
    except FileNotFoundError:
        raise DataError(f"there is no file {str(path)!r}; check the name and the folder ({Path.cwd()}).") from None
    except IsADirectoryError:
        raise DataError(f"{str(path)!r} is a folder; expected a file.") from None
    except PermissionError:
        raise DataError(f"{str(path)!r} may not be read; check its permissions.") from None


def _read_text(path: Path, encoding: str) -> Table:
    try:
        text = path.read_text(encoding="utf-8-sig" if encoding.lower().replace("_", "-") in {"utf-8", "utf8"} else encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path.name} is not {encoding} text (byte {error.start}: 0x{error.object[error.start]:02x}); name its encoding, for "
            'instance encoding="gb18030" for Chinese, "cp1252" or "latin-1" for Western Windows, "utf-16" for Excel text.'
        ) from None
    except UnicodeError as error:
        raise DataError(f"{path.name} is not {encoding} text ({error}); name its encoding.") from None
    except LookupError:
        raise DataError(f"no encoding is called {encoding!r}; expected one like utf-8, gb18030, cp1252, utf-16.") from None
    if "\0" in text:
        raise DataError(f"{path.name} holds zero bytes: it is no text in {encoding}; is it UTF-16 or a spreadsheet file?")
    rows = _rows(text, path.name)
    header = [name.strip() for name in next(rows, ([], 0))[0]]
    _check_header(header, path.name)
    columns: list[list[str]] = [[] for _ in header]
    for cells, line in rows:
        if len(cells) != len(header):
            raise DataError(
                f"{path.name}, line {line}, has {len(cells)} cells and the header has {len(header)}; "
                "mend the line (a delimiter within a text needs quotes)."
            )
        for column, cell in zip(columns, cells, strict=True):
            column.append(cell)
    table = dict(zip(header, columns, strict=True))
    return Table(tuple(header), table.__getitem__, path.name)


def _rows(text: str, name: str) -> Iterator[tuple[list[str], int]]:
    """Yield (cells, line number) of every line that is not blank."""
    first_line = text.lstrip().partition("\n")[0]
    delimiter = max(DELIMITERS, key=first_line.count)
    reader = csv.reader(text.splitlines(keepends=True), delimiter=delimiter, strict=True, skipinitialspace=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield cells, reader.line_num
    except csv.Error as error:
        raise DataError(f"{name}, line {reader.line_num}: {error}; mend the quotes or the line.") from None


def _check_header(header: list[str], name: str) -> None:
    if not header:
        raise DataError(f"{name} is empty; expected a header line with column names and rows of numbers.")
    if all(_is_number(cell) for cell in header):
        raise DataError(f"{name} has no header: its first line is {','.join(header)!r}; put column names above it.")
    if "" in header:
        raise DataError(f"{name} has a column without a name (number {header.index('') + 1}); name it in the header.")
    if len(set(header)) < len(header):
        raise DataError(f"{name} has two columns called {_first_repeated(header)!r}; rename one.")


def _read_parquet(path: Path) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingDependencyError("Parquet files need pyarrow; run: pip install 'gradfit[io]'") from None
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path.name} is no readable Parquet file: {str(error).splitlines()[0]}") from None
    names = tuple(file.schema_arrow.names)
    return Table(names, lambda name: file.read(columns=[name]).column(name).to_numpy(), path.name)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _first_repeated(names: tuple[str, ...] | list[str]) -> str:
    seen: set[str] = set()
    return next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
