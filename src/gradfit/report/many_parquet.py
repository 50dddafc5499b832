"""A ManyRecord as a Parquet file, and back to the same bits: the table of :mod:`gradfit.report.many_table`, and the covariance as a list."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradfit.data.table_file import Categories, open_table, write_table_atomically
from gradfit.report.many_heading import damage, heading, put, read_heading
from gradfit.report.many_table import Column, array, columns, free_name
from gradfit.statistics.many_record import ManyRecord

PART = 1 << 20  # fits in a row group
COVARIANCE = "covariance"


def write(record: ManyRecord, path: str | os.PathLike[str]) -> None:
    """Write a record, whole or not at all."""
    write_table_atomically(path, _parts(record), heading(record))


def _parts(record: ManyRecord) -> Iterator[dict[str, Any]]:
    made = stored_columns(record)
    for begin in range(0, max(record.count, 1), PART):
        part = record.part(slice(begin, begin + PART))
        yield {column.label: _array(part, column) for column in made}


def stored_columns(record: ManyRecord) -> list[Column]:
    """Say which columns the file has: those of the table, but for the place of the fit, and the covariance."""
    table = columns(record)
    made = [column for column in table if column.kind != "place"]
    if record.covariance is not None and record.names:
        made.append(Column(free_name(COVARIANCE, {column.label for column in table}), COVARIANCE, COVARIANCE))
    return made


def _array(record: ManyRecord, column: Column) -> Any:
    found = array(record, column)
    return found.reshape(record.count, len(record.names) ** 2) if column.kind == COVARIANCE else found  # type: ignore[union-attr]


def read(path: str | os.PathLike[str]) -> ManyRecord:
    """Read a record.

    Raises
    ------
    StorageError
        No such file; no fits, damaged, or of a newer schema.
    """
    stored, name = open_table(path), Path(path).name
    said = read_heading(stored.metadata, stored.rows, name)
    with damage(name):
        record = said.room()
        made = stored_columns(record)
        begin = 0
        for part in stored.parts([column.label for column in made]):
            found = part[made[-1].label]
            end = begin + len(found.codes if isinstance(found, Categories) else found)
            for column in made:
                put(record, slice(begin, end), column.kind, column.name, part[column.label])
            begin = end
        said.check(record)
    return record
