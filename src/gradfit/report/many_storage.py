"""Many fits as a file, by its suffix: Parquet or NetCDF."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from gradfit.errors import StorageError
from gradfit.report import many_parquet, many_xarray
from gradfit.statistics.many_record import ManyRecord


class Format(Protocol):
    """How a file is written and read."""

    def write(self, record: ManyRecord, path: str | os.PathLike[str]) -> None:
        """Write a record, whole or not at all."""

    def read(self, path: str | os.PathLike[str]) -> ManyRecord:
        """Read a record."""


FORMATS: Mapping[str, Format] = {".parquet": many_parquet, ".pq": many_parquet, ".nc": many_xarray, ".nc4": many_xarray}


def is_many(path: object) -> bool:
    """Whether a file holds many fits, by its suffix."""
    return isinstance(path, (str, os.PathLike)) and Path(path).suffix.lower() in FORMATS


def save(record: ManyRecord, path: str | os.PathLike[str]) -> None:
    """Write a record, whole or not at all.

    Raises
    ------
    StorageError
        A suffix of neither format; a place that cannot be written; keys that the format does not know.
    """
    if not is_many(path):
        raise StorageError(f"many fits cannot be written as {path!r}; expected a name that ends in one of {', '.join(FORMATS)}.")
    FORMATS[Path(path).suffix.lower()].write(record, path)


def load(path: str | os.PathLike[str]) -> ManyRecord:
    """Read a record.

    Raises
    ------
    StorageError
        No such file; no fits, damaged, or of a newer schema.
    """
    return FORMATS[Path(path).suffix.lower()].read(path)
