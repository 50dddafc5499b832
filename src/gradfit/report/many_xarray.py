"""The results of many fits as an xarray Dataset, in memory and as a NetCDF file. A door to xarray.

Dimensions are ``fit`` and ``param``, and ``cov_i``, ``cov_j`` of the covariance, as xarray's own curvefit calls them. A file holds
the same Dataset, so that any program reads it; the heading of :mod:`gradfit.report.many_heading` is two attributes of it. Numbers are
stored in chunks with checksums, and text as characters.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gradfit.data.files import existing, written_whole
from gradfit.errors import MissingDependencyError, StorageError
from gradfit.report.many_heading import damage, heading, put, read_heading
from gradfit.report.many_table import ENDS, PLACE, free_name, number, numbers_of, statuses
from gradfit.statistics.many_record import ManyRecord

CHUNK = 1 << 16  # fits
VARIABLES = ("value", "stderr", "covariance", *ENDS, "param", "cov_i", "cov_j")  # names a key cannot have
UNITS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}  # of times in xarray
SUMMED = {"fletcher32": True}  # measured numbers are noise, and do not get smaller
ZIPPED = {"zlib": True, "complevel": 1, **SUMMED}


def _xarray() -> Any:
    try:
        import xarray
    except ImportError:
        raise MissingDependencyError("xarray is not installed; run: pip install 'gradfit[xarray]'") from None
    return xarray


def to_xarray(record: ManyRecord) -> Any:
    """Give a Dataset: value and stderr (fit, param), covariance (fit, cov_i, cov_j), and how each fit ended; a single key is an index."""
    xarray = _xarray()
    numbers = numbers_of(record)
    if tuple(numbers) == record.names:
        values, stderr = record.values, record.stderr
    else:
        pairs = [number(record, element) for element in numbers]
        values, stderr = (np.stack(parts, axis=1) for parts in zip(*pairs, strict=True))
    found: dict[str, Any] = {"value": ((PLACE, "param"), values), "stderr": ((PLACE, "param"), stderr)}
    coordinates: dict[str, Any] = {key_name(name): (PLACE, labels) for name, labels in record.keys.items()}
    coordinates = coordinates or {PLACE: np.arange(record.count)}
    coordinates["param"] = np.array(numbers, dtype=str)
    if record.covariance is not None:
        found["covariance"] = ((PLACE, "cov_i", "cov_j"), record.covariance)
        coordinates |= {axis: np.array(record.names, dtype=str) for axis in ("cov_i", "cov_j")}
    found |= {name: (PLACE, array) for name in ENDS[:-1] if (array := getattr(record, name)) is not None}
    found["status"] = (PLACE, statuses(record).text.astype(str))
    said = {
        "model": record.model,
        "target": record.target,
        "method": record.method,
        "loss": record.loss_name,
        "engine": record.engine,
    }
    dataset = xarray.Dataset(found, coordinates, said)
    own = [key_name(name) for name in record.keys]
    return dataset.set_xindex(own[0]) if len(own) == 1 and own[0] != PLACE else dataset  # dataset.sel(sensor="a")


def key_name(name: str) -> str:
    """What a key is called in the Dataset, where some names are taken."""
    return free_name(name, VARIABLES)


def write(record: ManyRecord, path: str | os.PathLike[str]) -> None:
    """Write a record, whole or not at all.

    Raises
    ------
    StorageError
        A place that cannot be written; keys of a kind that NetCDF does not know.
    """
    dataset = to_xarray(record).assign_attrs(heading(record))
    encoding = {str(name): _encoding(str(name), variable) for name, variable in dataset.variables.items()}
    _, h5netcdf = _hdf5()
    store = _xarray().backends.H5NetCDFStore
    with written_whole(path) as place, open(place, "r+b", buffering=0) as raw:
        file = Steadfast(raw)
        try:
            with h5netcdf.File(file, "w") as opened:
                dataset.dump_to_store(store(opened), encoding=encoding)
        except Exception as error:  # noqa: BLE001  # of xarray, h5netcdf, h5py: each has its own
            if file.error is None:
                reason = " ".join(str(error).split())[:200]
                raise StorageError(f"the fits cannot be written as NetCDF: {reason}; save them as .parquet.") from None
        if file.error is not None:
            raise file.error


class Steadfast(io.RawIOBase):
    """A file that takes everything, and remembers the first error.

    HDF5 cannot close a file that it could not write, and tears the process down with it. So it is never told that the disk is full.
    """

    def __init__(self, raw: io.FileIO) -> None:
        self.raw, self.place = raw, 0
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        """Write, as long as the disk does."""
        view = memoryview(content).cast("B")
        try:
            while self.error is None and len(view):
                self.raw.seek(self.place)
                written = self.raw.write(view)
                view, self.place = view[written:], self.place + written
        except OSError as error:
            self.error = error
        self.place += len(view)
        return memoryview(content).nbytes

    def readinto(self, buffer: Any) -> int:
        """Read; zeros where nothing could be written."""
        view = memoryview(buffer).cast("B")
        self.raw.seek(self.place)
        found = self.raw.readinto(view) or 0
        view[found:] = bytes(len(view) - found)
        self.place += len(view)
        return len(view)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go elsewhere."""
        ends = {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.raw.seek(0, io.SEEK_END)}
        self.place = ends[whence] + offset
        return self.place

    def tell(self) -> int:
        """Say where we are."""
        return self.place

    def truncate(self, size: int | None = None) -> int:
        """Make the file longer or shorter."""
        wanted = self.place if size is None else size
        try:
            self.raw.truncate(wanted)
        except OSError as error:
            self.error = self.error or error
        return wanted


def _hdf5() -> tuple[Any, Any]:
    try:
        import h5netcdf
        import h5py
    except ImportError:
        raise MissingDependencyError("NetCDF files need h5netcdf and h5py; run: pip install 'gradfit[xarray]'") from None
    return h5py, h5netcdf


def _encoding(name: str, variable: Any) -> dict[str, Any]:
    """How a variable is stored: to the bit, in chunks with checksums."""
    if variable.dtype.kind in "OUS":
        if name != "status" and not all(isinstance(text, str) and "\0" not in text for text in variable.values.tolist()):
            raise StorageError(
                f"the key {name!r} holds what is no text, number or time, which NetCDF does not know; save as .parquet."
            )
        return {"dtype": "S1", **(ZIPPED if variable.size else {})}
    said: dict[str, Any] = {"_FillValue": None}
    if variable.dtype.kind in "mM":
        unit = UNITS[np.datetime_data(variable.dtype)[0]]
        said |= {"dtype": "int64", "units": unit}
        if variable.dtype.kind == "M":
            said |= {"units": f"{unit} since 1970-01-01", "calendar": "proleptic_gregorian"}
    if variable.size:
        chunks = [min(CHUNK, size) if axis == PLACE else size for axis, size in zip(variable.dims, variable.shape, strict=True)]
        said |= {"chunksizes": tuple(chunks), **(SUMMED if variable.dtype.kind == "f" else ZIPPED)}
    return said


def read(path: str | os.PathLike[str]) -> ManyRecord:
    """Read a record.

    Raises
    ------
    StorageError
        No such file; no fits, damaged, or of a newer schema.
    """
    name = Path(path).name
    with _opened(path) as dataset:
        count = dataset.sizes.get(PLACE, 0)
        said = read_heading(dataset.attrs, count, name)
        with damage(name):
            record, rows = said.room(), slice(0, count)
            for kind in ("value", "stderr"):
                table = dataset[kind].values
                for place, element in enumerate(numbers_of(record)):
                    put(record, rows, kind, element, table[:, place])
            for kind in (*ENDS, "covariance"):
                if kind in said.arrays:
                    put(record, rows, kind, kind, dataset[kind].values)
            for key, dtype in said.keys.items():
                put(record, rows, "key", key, _key(dataset[key_name(key)], dtype))
            said.check(record)
    return record


def _key(stored: Any, dtype: np.dtype[Any]) -> np.ndarray:
    """Give a key as it was: times were stored as whole numbers, truth as bytes."""
    values = np.asarray(stored.values)
    if dtype.kind in "mM":
        unit = next(short for short, word in UNITS.items() if stored.attrs["units"].split()[0] == word)
        values = values.astype(np.int64).view(f"{dtype.kind}8[{unit}]")
    return values.astype(dtype)


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Open a file as a Dataset whose numbers are as they were stored."""
    xarray, (h5py, h5netcdf) = _xarray(), _hdf5()
    place = existing(path)
    how = {"mask_and_scale": False, "decode_times": False, "decode_timedelta": False, "cache": False}
    store = xarray.backends.H5NetCDFStore
    try:
        with h5py.File(place, "r") as raw, h5netcdf.File(raw, "r") as file, xarray.open_dataset(store(file), **how) as dataset:
            yield dataset
    except StorageError:
        raise
    except Exception as error:  # noqa: BLE001  # of xarray, h5netcdf, h5py: each has its own
        reason = " ".join(str(error).split())[:200]
        raise StorageError(f"{place.name!r} is no readable NetCDF file: {reason}; save the fits again.") from None
