"""The heading of a file of many fits: what its columns are, and what was fitted how.

It is JSON text with a schema number, kept with its checksum beside plain columns that other programs read. Reading takes any schema up to ours.
It holds a checksum of every array too: what is read is what was saved, whatever lay in between.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from gradfit.data.table_file import Categories
from gradfit.errors import StorageError
from gradfit.methods.many import NAMES
from gradfit.model.parameters import elements
from gradfit.report.storage import number, plain
from gradfit.statistics.many_record import ARRAYS, ManyRecord
from gradfit.typing import Floats

FORMAT = "gradfit fits"
SCHEMA = 1
HEADING, CHECKSUM = "gradfit", "gradfit_crc32"
TEXTS = tuple(field.name for field in fields(ManyRecord) if field.type == "str")
FOREIGN = "holds no fits; expected a file that fits.save() wrote"


@dataclass(frozen=True)
class Heading:
    """What a file says of its columns.

    Attributes
    ----------
    count, names, shapes, data_names
        Of the record.
    fixed
        Values of fixed parameters that all fits share; None where each fit has its own.
    keys, arrays
        Types by name, as numpy has them.
    texts
        What was fitted, and how.
    sums
        Checksums of the arrays.
    """

    count: int
    names: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]
    data_names: tuple[str, ...]
    fixed: dict[str, float | Floats | None]
    keys: dict[str, np.dtype[Any]]
    arrays: dict[str, np.dtype[Any]]
    texts: dict[str, str]
    sums: dict[str, str]

    def check(self, record: ManyRecord) -> None:
        """Refuse a record that is not the one that was saved."""
        found = sums(record)
        wrong = [name for name in found if self.sums.get(name) != found[name]]
        if wrong:
            raise ValueError(f"{', '.join(wrong)}: not what was saved")

    def room(self) -> ManyRecord:
        """Give a record of the right shape, to be filled."""
        m = len(self.names)
        sizes = {"values": (m,), "stderr": (m,), "covariance": (m, m)}
        fixed = {
            name: np.zeros((self.count, *self.shapes[name])) if value is None else value for name, value in self.fixed.items()
        }
        given: dict[str, Any] = {
            name: np.zeros((self.count, *sizes.get(name, ()))[::-1], dtype=kind).T  # a parameter lies in one piece
            for name, kind in self.arrays.items()
        }
        given |= {"keys": {name: np.empty(self.count, dtype=kind) for name, kind in self.keys.items()}, **self.texts}
        return ManyRecord(self.names, self.shapes, fixed, data_names=self.data_names, **given)


def heading(record: ManyRecord) -> dict[str, str]:
    """Give the heading of a record and its checksum, as a file keeps them."""
    fixed = {name: None if record.of_its_own(name) else np.asarray(value, np.float64) for name, value in record.fixed.items()}
    arrays = {name: found for name in ARRAYS if (found := getattr(record, name)) is not None}
    said = {
        "count": record.count,
        "names": record.names,
        "shapes": record.shapes,
        "data_names": record.data_names,
        "fixed": fixed,
        "keys": {name: np.asarray(labels).dtype.str for name, labels in record.keys.items()},
        "arrays": {name: found.dtype.str for name, found in arrays.items()},
        "texts": {name: getattr(record, name) for name in TEXTS},
        "sums": sums(record),
    }
    text = json.dumps({"format": FORMAT, "schema": SCHEMA, **plain(said)}, allow_nan=False)
    return {HEADING: text, CHECKSUM: checksum(text)}


def checksum(text: str) -> str:
    """Sum a text up, so that damage shows."""
    return f"{zlib.crc32(text.encode()):08x}"


def sums(record: ManyRecord) -> dict[str, str]:
    """Sum the arrays of a record up, by name."""
    arrays = {name: found for name in ARRAYS if (found := getattr(record, name)) is not None}
    arrays |= {f"key {name}": np.asarray(labels) for name, labels in record.keys.items()}
    arrays |= {f"fixed {name}": np.asarray(value) for name, value in record.fixed.items() if record.of_its_own(name)}
    return {name: _sum(array) for name, array in arrays.items()}


def _sum(array: np.ndarray) -> str:
    if array.dtype == object:
        return checksum("\0".join(map(str, array.tolist())))
    found = 0
    for index in np.ndindex(array.shape[1:]):  # however it lies in memory
        found = zlib.crc32(np.ascontiguousarray(array[(slice(None), *index)]).view(np.uint8).data, found)
    return f"{found:08x}"


def read_heading(texts: Mapping[str, Any], count: int, name: str) -> Heading:
    """Read the heading of a file that has ``count`` rows.

    Raises
    ------
    StorageError
        There is none; it is damaged, of a newer schema, or belongs to other columns.
    """
    text = texts.get(HEADING)
    if not isinstance(text, str):
        raise StorageError(f"{name!r} {FOREIGN}.")
    with damage(name):
        if texts.get(CHECKSUM) != checksum(text):
            raise ValueError("its checksum is wrong")
        stored = json.loads(text)
        schema = stored["schema"]
        if stored["format"] != FORMAT:
            raise StorageError(f"{name!r} {FOREIGN}.")
        if type(schema) is not int or not 1 <= schema <= SCHEMA:
            raise StorageError(f"{name!r} has schema {schema!r} and this gradfit reads up to {SCHEMA}; upgrade gradfit.")
        if stored["count"] != count:
            raise ValueError(f"{count} rows of {stored['count']}")
        return _heading(stored)


@contextmanager
def damage(name: str) -> Iterator[None]:
    """What does not fit together while a file is read, as a StorageError."""
    try:
        yield
    except StorageError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError, OverflowError, MemoryError) as error:
        raise StorageError(f"{name!r} is damaged or incomplete ({type(error).__name__}: {error}); save the fits again.") from None


def _heading(stored: dict[str, Any]) -> Heading:
    shapes = {str(name): tuple(int(size) for size in shape) for name, shape in stored["shapes"].items()}
    found = Heading(
        count=int(stored["count"]),
        names=tuple(map(str, stored["names"])),
        shapes=shapes,
        data_names=tuple(map(str, stored["data_names"])),
        fixed={name: None if value is None else _value(value, shapes[name]) for name, value in stored["fixed"].items()},
        keys={str(name): np.dtype(kind) for name, kind in stored["keys"].items()},
        arrays={name: np.dtype(kind) for name, kind in stored["arrays"].items() if name in ARRAYS},
        texts={name: str(text) for name, text in stored["texts"].items() if name in TEXTS},
        sums={str(name): str(found) for name, found in stored["sums"].items()},
    )
    free = [element for name, shape in shapes.items() if name not in found.fixed for element in elements(name, shape)]
    if not set(found.fixed) <= set(shapes) or sorted(free) != sorted(found.names):
        raise ValueError("names and shapes disagree")
    return found


def _value(stored: Any, shape: tuple[int, ...]) -> float | Floats:
    flat = [number(value) for value in np.array(stored, dtype=object).reshape(-1).tolist()]
    return np.array(flat).reshape(shape) if shape else flat[0]


def put(record: ManyRecord, rows: slice, kind: str, name: str, column: np.ndarray | Categories) -> None:
    """Put a column, or a part of one, where it belongs in a record."""
    if kind == "status":
        record.status[rows] = _codes(column)
    elif kind == "key":
        record.keys[name][rows] = np.asarray(column)
    elif kind in ("value", "stderr"):
        if name in record.names:
            getattr(record, "values" if kind == "value" else kind)[rows, record.names.index(name)] = column
        elif kind == "value":
            _put_fixed(record, rows, name, np.asarray(column))
    elif kind == "covariance":
        m = len(record.names)
        np.asarray(record.covariance)[rows] = np.asarray(column).reshape(-1, m, m)
    else:
        getattr(record, kind)[rows] = column


def _put_fixed(record: ManyRecord, rows: slice, element: str, column: np.ndarray) -> None:
    """Put the numbers of a fixed parameter of which each fit has its own; those that all share stand in the heading."""
    for name, shape in record.shapes.items():
        if name in record.fixed and record.of_its_own(name) and element in elements(name, shape):
            numbers = elements(name, shape)
            own = np.asarray(record.fixed[name]).reshape(record.count, len(numbers))  # a view
            own[rows, numbers.index(element)] = column


def _codes(column: np.ndarray | Categories) -> np.ndarray:
    """Turn the words of how fits ended into their codes."""
    if isinstance(column, Categories):
        return np.asarray(_codes(np.asarray(column.names, dtype=str))[column.codes])
    codes = np.full(len(column), -1, dtype=np.int8)
    for code, name in enumerate(NAMES):
        codes[column == name] = code
    if (codes < 0).any():
        name = str(column[codes < 0][0])
        raise StorageError(f"a fit ended {name!r}, which this gradfit does not know; upgrade gradfit, or save again.")
    return codes
