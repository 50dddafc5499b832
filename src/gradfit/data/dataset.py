"""Dataset: the columns a fit uses, as real numbers, checked once.

After this door every layer may rely on: float64 arrays of one length n >= 1, all finite, sigma > 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from gradfit.data.sources import Table
from gradfit.errors import DataError, OptionError, unknown
from gradfit.typing import Floats, Missing

ROWS_NAMED = 5  # a message names this many offending rows


@dataclass(frozen=True)
class Dataset:
    """Rows of data: inputs, target and, where known, the standard deviation of the target.

    Attributes
    ----------
    columns
        Input arrays by name, each (n,) or (n, k), float64.
    target
        (n,), float64; with the name it had in its source.
    sigma
        (n,), standard deviation of each target value in its units, or None.
    row_numbers
        (n,), which row of the source each row was, from 0.
    dropped
        How many rows of the source were left out because a value was missing.
    single
        Whether every number came in single precision.
    block
        Where columns and target lie side by side in memory: the array whose rows they are, in this order; else None.
    """

    columns: Mapping[str, Floats]
    target: Floats
    target_name: str
    sigma: Floats | None
    row_numbers: np.ndarray
    dropped: int = 0
    single: bool = False
    block: Floats | None = None

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.target)

    def rows(self, index: np.ndarray) -> Dataset:
        """Select rows by position, in the order of ``index``."""
        return replace(
            self,
            columns={name: column[index] for name, column in self.columns.items()},
            target=self.target[index],
            sigma=None if self.sigma is None else self.sigma[index],
            row_numbers=self.row_numbers[index],
            block=None,
        )


def dataset(table: Table, inputs: Sequence[str], target: str, *, sigma: object = None, missing: Missing = "raise") -> Dataset:
    """Check and convert the columns that a fit uses.

    Parameters
    ----------
    table, inputs, target
        Where the columns are, and which of them are the model's data and its target.
    sigma
        None, one number, one number per row, or the name of a column.
    missing
        "raise" refuses NaN and infinity; "drop" leaves those rows out and counts them.

    Raises
    ------
    DataError
        Lengths differ, no rows, text or complex numbers, values that are not finite, sigma not positive.
    """
    if missing not in ("raise", "drop"):
        raise OptionError(unknown("value of missing", missing, ("raise", "drop")))
    given = {name: table[name] for name in (*inputs, target)}  # once: a column may be read from a file
    columns = {name: real(given[name], name) for name in inputs}
    values = flat(real(given[target], target), target)
    n = len(values)
    for name, column in columns.items():
        if len(column) != n:
            raise DataError(f"{name} has {len(column)} values and {target} has {n}; give arrays of one length.")
    errors = None if sigma is None else _sigma(table, sigma, n)
    if n == 0:
        raise DataError(f"{target} is empty: 0 rows; a fit needs at least as many rows as parameters.")
    single = all(_is_single(column) for column in given.values())
    whole = Dataset(columns, values, target, errors, np.arange(n), single=single)
    complete = _without_missing(whole, missing)
    _check_sigma(complete)
    return complete


def plain_rows(inputs: Sequence[str], target: str, arrays: Sequence[Any]) -> Dataset | None:
    """Copy plain arrays, the target last, in one piece; None where they need a closer look, for which :func:`dataset` is there.

    The short way for the usual case, finite float64 arrays of one length: a small fit takes less time than the long way.
    """
    n = plain_length(arrays)
    if not 0 < n <= PLAIN_ROWS:
        return None
    block = np.array(arrays)
    with np.errstate(over="ignore", invalid="ignore"):
        if not math.isfinite(block.sum()):  # also where the sum overflows: then each number is looked at
            return None
    *columns, values = block
    return Dataset(dict(zip(inputs, columns, strict=True)), values, target, None, np.arange(n), block=block)


FLOAT64 = np.dtype(np.float64)


def plain_length(arrays: Sequence[Any]) -> int:
    """Length of plain arrays, one-dimensional float64 of one length; 0 where they need a closer look."""
    n = len(arrays[-1]) if type(arrays[-1]) is np.ndarray else 0
    shape = (n,)
    for array in arrays:
        if type(array) is not np.ndarray or array.dtype is not FLOAT64 or array.shape != shape:
            return 0
    return n


PLAIN_ROWS = 10_000  # beyond, a second copy would cost memory


def real(values: Any, name: str) -> Floats:
    """Convert to a new float64 array, (n,) or (n, k); masked and null values become NaN.

    Raises
    ------
    DataError
        Text, complex numbers, dates, objects, more than two dimensions, or a single number.
    """
    if type(values) is np.ndarray and values.dtype == np.float64 and 1 <= values.ndim <= 2:
        return values.astype(np.float64, order="C")  # a copy, in this machine's byte order
    array = _as_array(values, name)
    if array.dtype.kind == "c":
        raise DataError(f"{name} holds complex numbers; fit real and imaginary parts (or modulus) as real columns.")
    if array.dtype.kind in "mM":
        raise DataError(f"{name} holds dates or durations; convert them to numbers first, for instance seconds since the start.")
    if array.dtype.kind in "OUST":
        array = _from_objects(array, name)
    if array.dtype.kind not in "fiub":
        raise DataError(f"{name} has values of type {array.dtype}; expected real numbers.")
    if array.ndim == 0:
        raise DataError(f"{name} is a single number; expected one value per row.")
    if array.ndim > 2:
        raise DataError(f"{name} has shape {array.shape}; expected (n,) or (n, columns), rows first.")
    with np.errstate(over="ignore"):  # beyond float64 is infinite, and refused as such
        return array.astype(np.float64, order="C")  # always a copy: the caller may change his array later


def flat(column: Floats, name: str) -> Floats:
    """Make a target or sigma one-dimensional; (n, 1) is taken as (n,)."""
    if column.ndim == 2 and column.shape[1] == 1:
        return column[:, 0].copy()
    if column.ndim != 1:
        raise DataError(f"{name} has shape {column.shape}; expected one value per row, shape (n,).")
    return column


def _as_array(values: Any, name: str) -> np.ndarray:
    """Give a numpy array of whatever type the values have; masked values become None or NaN."""
    if isinstance(values, torch.Tensor):
        return _from_tensor(values, name)
    if isinstance(values, np.ma.MaskedArray):
        return _unmasked(values)
    if isinstance(values, (str, bytes, bytearray)) or values is None:
        raise DataError(f"{name} is {_brief(values)}; expected an array of numbers.")
    if isinstance(values, Mapping) or (hasattr(values, "columns") and not hasattr(values, "dtype")):
        raise DataError(f"{name} is a table; give it as data= and name the target=, or pass one column.")
    if isinstance(values, (list, tuple)) and any(isinstance(value, torch.Tensor) for value in values):
        values = [value.tolist() if isinstance(value, torch.Tensor) else value for value in values]
    try:
        return np.asarray(values)
    except Exception as error:  # noqa: BLE001  # whatever a foreign object's __array__ raises
        raise DataError(_no_array(values, name, error)) from None


def _from_tensor(tensor: torch.Tensor, name: str) -> np.ndarray:
    try:
        plain = (tensor.to_dense() if tensor.layout != torch.strided else tensor).detach().cpu()
        if plain.dtype.is_floating_point and plain.dtype not in (torch.float32, torch.float64):
            plain = plain.to(torch.float32)  # numpy has no bfloat16 or float8
        return plain.resolve_conj().resolve_neg().numpy()
    except (RuntimeError, TypeError) as error:
        raise DataError(_no_array(tensor, name, error)) from None


def _unmasked(values: np.ma.MaskedArray[Any, Any]) -> np.ndarray:
    """Numbers with NaN where masked; other types as objects with None there, to be judged like any column."""
    if values.dtype.kind in "fiub":
        return np.ma.filled(values.astype(np.float64), np.nan)
    if values.dtype.kind in "cmM" or not np.ma.is_masked(values):
        return values.data
    plain = values.data.astype(object)
    plain[np.ma.getmaskarray(values)] = None
    return plain


def _no_array(values: Any, name: str, error: Exception) -> str:
    if isinstance(values, (list, tuple)):
        return f"{name} is ragged: its rows have different lengths; expected one number per row."
    reason = str(error).partition("\n")[0].rstrip(".")
    return f"{name} is of type {type(values).__name__}, which gives no array ({reason}); convert it to a numpy array first."


def _from_objects(array: np.ndarray, name: str) -> Floats:
    """Read numbers from text or objects; None, NA and empty cells are missing (NaN)."""
    values = array.ravel().tolist()
    numbers = _all_numbers(values)
    if numbers is None:
        numbers = np.array([_cell(value, row, len(values), name) for row, value in enumerate(values)], dtype=np.float64)
    return numbers.reshape(array.shape)


def _all_numbers(values: list[Any]) -> Floats | None:
    """Read texts that are numbers, fast; None where a closer look is needed."""
    if not all(type(value) is str for value in values) or any("_" in value for value in values):
        return None
    try:
        return np.fromiter(map(float, values), dtype=np.float64, count=len(values))
    except ValueError:
        return None


def _cell(value: Any, row: int, n: int, name: str) -> float:
    try:
        return _number(value)
    except (TypeError, ValueError):
        hint = " Is the comma a decimal sign? Write a point." if isinstance(value, str) and "," in value else ""
        raise DataError(
            f"{name}, row {row + 1} of {n}, holds {_brief(value)}; expected a number. Clean the column or choose another.{hint}"
        ) from None
    except OverflowError:
        raise DataError(f"{name}, row {row + 1} of {n}, holds a number beyond float64 (about 1.8e308); rescale it.") from None


def _number(value: Any) -> float:
    if isinstance(value, (str, bytes)):
        text = (value.decode("utf-8", "replace") if isinstance(value, bytes) else value).strip()
        if text.lower() in {"", "na", "n/a", "null", "none"}:
            return float("nan")
        if "_" in text:  # Python reads 1_000 as a number; in a data file it is a slip
            raise ValueError(text)
        return float(text)
    if value is None or type(value).__name__ in {"NAType", "NaTType"}:
        return float("nan")
    if isinstance(value, complex) or np.ndim(value):
        raise TypeError(value)
    return float(value)


def _sigma(table: Table, sigma: object, n: int) -> Floats:
    if isinstance(sigma, str):
        return flat(real(table[sigma], sigma), sigma)
    array = _as_array(sigma, "sigma")
    if array.ndim == 0:
        return np.full(n, real(array.reshape(1), "sigma")[0])
    values = real(sigma, "sigma")
    if values.ndim == 2 and values.shape == (n, n) and n > 1:
        raise DataError(
            f"sigma has shape {values.shape}; this version takes one standard deviation per point, not a covariance matrix."
        )
    values = flat(values, "sigma")
    if len(values) != n:
        raise DataError(f"sigma has {len(values)} values for {n} points; give one per point, or one number for all.")
    return values


def _check_sigma(data: Dataset) -> None:
    if data.sigma is None:
        return
    wrong = np.flatnonzero(data.sigma <= 0)
    if wrong.size:
        raise DataError(
            f"sigma is zero or negative in {wrong.size} of {data.n} rows ({_rows_named(data.row_numbers[wrong])}); "
            "a standard deviation is positive. Leave sigma out where it is unknown for all."
        )


def _without_missing(data: Dataset, missing: Missing) -> Dataset:
    if _all_finite(data):
        return data
    named = {**data.columns, data.target_name: data.target} | ({} if data.sigma is None else {"sigma": data.sigma})
    whole = np.ones(data.n, dtype=bool)
    counts = []
    for name, column in named.items():
        finite = np.isfinite(column) if column.ndim == 1 else np.isfinite(column).all(axis=1)
        if not finite.all():
            counts.append(f"{name} {int((~finite).sum())} ({_rows_named(np.flatnonzero(~finite))})")
        whole &= finite
    if whole.all():
        return data
    if missing == "raise":
        raise DataError(
            f"values that are NaN, empty or infinite: {'; '.join(counts)}, of {data.n} rows. "
            'Mend them, or pass missing="drop" to leave those rows out.'
        )
    if not whole.any():
        raise DataError(f"no row is complete: {'; '.join(counts)}, of {data.n} rows; nothing is left to fit.")
    return replace(data.rows(np.flatnonzero(whole)), dropped=int((~whole).sum()))


def _all_finite(data: Dataset) -> bool:
    """Tell in one pass each whether all numbers are finite; a sum that overflows is looked at again more closely."""
    parts = (*data.columns.values(), data.target, *(() if data.sigma is None else (data.sigma,)))
    with np.errstate(over="ignore", invalid="ignore"):
        return all(math.isfinite(part.sum()) for part in parts)


def _rows_named(rows: np.ndarray) -> str:
    """Name the first few rows as a person counts them, from 1."""
    shown = ", ".join(str(int(row) + 1) for row in rows[:ROWS_NAMED])
    return f"row{'s' if len(rows) > 1 else ''} {shown}{', ...' if len(rows) > ROWS_NAMED else ''}"


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _is_single(values: Any) -> bool:
    if type(values) is np.ndarray:
        return bool(values.dtype == np.float32)
    return str(getattr(values, "dtype", "")).removeprefix("torch.") == "float32"
