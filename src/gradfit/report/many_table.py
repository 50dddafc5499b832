"""The results of many fits as a table, a row for each: for pandas, polars, Arrow and Parquet.

Columns are: what each fit is called, then every parameter with its standard error, then how the fit ended. The names of the caller's own
columns and parameters stay as they are; where one of ours meets such a name, ours gets an underscore: in a model with a parameter ``n`` the rows of
each fit are ``n_``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradfit.data.table_file import Categories, arrow_table
from gradfit.errors import MissingDependencyError, OptionError, unknown
from gradfit.methods.many import NAMES
from gradfit.model.parameters import elements
from gradfit.statistics.many_record import ManyRecord
from gradfit.typing import Floats

ENDS = ("loss", "validation_loss", "n", "dof", "steps", "status")  # arrays of the record, a number for each fit
PLACE = "fit"  # what fits without a name of their own are numbered by


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes
    ----------
    label
        Its name in the table.
    kind
        "key", "value", "stderr", or the name of an array of the record.
    name
        Of the key or the number it belongs to, otherwise the kind again.
    """

    label: str
    kind: str
    name: str


def columns(record: ManyRecord) -> tuple[Column, ...]:
    """Say which columns the table has, in order."""
    numbers = numbers_of(record)
    made = [Column(label, "value", label) for label in numbers]
    taken = set(numbers)

    def add(kind: str, name: str, wish: str) -> Column:
        label = free_name(wish, taken)
        taken.add(label)
        return Column(label, kind, name)

    keys = [add("key", name, name) for name in record.keys] or [add("place", PLACE, PLACE)]
    stderrs = [add("stderr", name, f"{name}_stderr") for name in numbers]
    ends = [kind for kind in ENDS if getattr(record, kind) is not None]
    pairs = [column for pair in zip(made, stderrs, strict=True) for column in pair]
    return (*keys, *pairs, *(add(kind, kind, kind) for kind in ends))


def numbers_of(record: ManyRecord) -> list[str]:
    """Names of all numbers, fixed ones too: ``w``, ``c[0]``."""
    return [element for name, shape in record.shapes.items() for element in elements(name, shape)]


def free_name(wish: str, taken: Collection[str]) -> str:
    """Give a name that is not taken yet."""
    while wish in taken:
        wish += "_"
    return wish


def array(record: ManyRecord, column: Column) -> np.ndarray | Categories:
    """Give what stands in a column."""
    match column.kind:
        case "place":
            return np.arange(record.count)
        case "key":
            return record.keys[column.name]
        case "value" | "stderr":
            value, stderr = number(record, column.name)
            return value if column.kind == "value" else stderr
        case "status":
            return statuses(record)
        case _:
            return np.asarray(getattr(record, column.kind))


def number(record: ManyRecord, element: str) -> tuple[Floats, Floats]:
    """Values and standard errors of one number, (count,) each; a fixed one has the error 0."""
    if element in record.names:
        place = record.names.index(element)
        return record.values[:, place], record.stderr[:, place]
    name, own = next((name, own) for name, shape in record.shapes.items() if element in (own := elements(name, shape)))
    values = np.broadcast_to(np.asarray(record.fixed[name], dtype=np.float64), (record.count, *record.shapes[name]))
    return values.reshape(record.count, len(own))[:, own.index(element)].copy(), np.zeros(record.count)


def statuses(record: ManyRecord) -> Categories:
    """How the fits ended, by the statuses that occur."""
    occurring = np.flatnonzero(np.bincount(record.status, minlength=len(NAMES)))
    places = np.zeros(len(NAMES), dtype=np.int8)
    places[occurring] = np.arange(len(occurring), dtype=np.int8)
    return Categories(places[record.status], tuple(NAMES[code] for code in occurring))


def table(record: ManyRecord) -> dict[str, np.ndarray | Categories]:
    """Give all columns by label."""
    return {column.label: array(record, column) for column in columns(record)}


def drawable(record: ManyRecord, label: str) -> Floats:
    """Give the numbers of a column by its label.

    Raises
    ------
    OptionError
        There is no such column, or it holds no numbers.
    """
    known = {column.label: column for column in columns(record) if column.kind not in ("key", "place", "status")}
    if label not in known:
        raise OptionError(unknown("parameter", label, known))
    return np.asarray(array(record, known[label]), dtype=np.float64)


def to_pandas(record: ManyRecord) -> Any:
    """Give a pandas DataFrame."""
    try:
        import pandas
    except ImportError:
        raise MissingDependencyError("to_pandas needs pandas; run: pip install pandas") from None
    made = {name: _pandas_column(pandas, column) for name, column in _named(record)}
    index = None if record.keys else pandas.RangeIndex(record.count, name=PLACE)
    return pandas.DataFrame(made, index=index, copy=True)


def _pandas_column(pandas: Any, column: np.ndarray | Categories) -> Any:
    return pandas.Categorical.from_codes(column.codes, column.names) if isinstance(column, Categories) else column


def _named(record: ManyRecord) -> Iterator[tuple[str, np.ndarray | Categories]]:
    """All columns but the place, which pandas has as its index."""
    return ((column.label, array(record, column)) for column in columns(record) if column.kind != "place")


def to_polars(record: ManyRecord) -> Any:
    """Give a polars DataFrame."""
    try:
        import polars
    except ImportError:
        raise MissingDependencyError("to_polars needs polars; run: pip install polars") from None
    made: Mapping[str, Any] = {
        name: polars.Series(column.names, dtype=polars.Enum(column.names)).gather(column.codes)
        if isinstance(column, Categories)
        else column
        for name, column in table(record).items()
    }
    return polars.DataFrame(made)


def to_arrow(record: ManyRecord) -> Any:
    """Give a pyarrow Table."""
    return arrow_table(table(record))
