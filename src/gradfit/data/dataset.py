r"""Dataset: the columns a fit uses, as real numbers, checked once.

After this door every layer may rely on: float64 arrays of one length n >= 1, all finite, sigma > 0 (0 only in rows that have an
error in x), a covariance of the target that is positive definite. Weights of rows are kept as the sigma they amount to, :math:`\sigma_i = (w_i/\bar w)^{-1/2}`.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.linalg import solve_triangular

from gradfit.data.sources import Table, check_order
from gradfit.errors import DataError, OptionError, unknown
from gradfit.typing import Floats, Missing

SMALLEST = 1e-140  # of the largest target: residuals a millionth of it still have squares
EXACT_WHOLE = 2**53  # float64 holds every whole number up to here
ROWS_NAMED = 5  # a message names this many offending rows
ASYMMETRY = 1e-8  # of a covariance matrix, relative: more is no rounding


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
    covariance
        (n, n), of the target values where they are correlated, else None; sigma is then the root of its diagonal.
    weighted
        Whether sigma stands for weights of the rows, of mean 1.
    weightless
        How many rows were left out because their weight is 0.
    sigma_x
        Standard deviations of inputs that are not exact, by name, each (n,), 0 in rows where that input is; None where all are exact.
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
    covariance: Floats | None = None
    weighted: bool = False
    weightless: int = 0
    sigma_x: Mapping[str, Floats] | None = None

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
            covariance=None if self.covariance is None else self.covariance[np.ix_(index, index)],
            sigma_x=None if self.sigma_x is None else {name: errors[index] for name, errors in self.sigma_x.items()},
        )

    @cached_property
    def cholesky(self) -> Floats:
        """L of the covariance :math:`LL^T`, (n, n): :math:`L^{-1}` of a residual has independent elements of variance 1."""
        assert self.covariance is not None
        return np.linalg.cholesky(self.covariance)

    def white(self, values: Floats) -> Floats:
        """Values of the target's kind in units of sigma, (n,) or (n, k); with a covariance matrix :math:`L^{-1}` times them."""
        if self.covariance is not None:
            return np.asarray(solve_triangular(self.cholesky, values, lower=True, check_finite=False))
        return values if self.sigma is None else (values.T / self.sigma).T

    def independent(self) -> Dataset:
        """Give the same rows without what is known of their errors."""
        return replace(self, sigma=None, covariance=None, sigma_x=None)


def dataset(
    table: Table,
    inputs: Sequence[str],
    target: str,
    *,
    sigma: object = None,
    weights: object = None,
    sigma_x: object = None,
    missing: Missing = "raise",
) -> Dataset:
    """Check and convert the columns that a fit uses.

    Parameters
    ----------
    table, inputs, target
        Where the columns are, and which of them are the model's data and its target.
    sigma
        None, one number, one number per row, the name of a column, or the covariance matrix of the rows, (n, n).
    weights
        None, one number per row, or the name of a column: how much each row's loss counts, 0 or more. Not together with sigma.
    sigma_x
        None, or the standard deviation of the one input: a number, one per row, or the name of a column, 0 where it is exact. Of
        several inputs a dict by input. All 0 is as None.
    missing
        "raise" refuses NaN and infinity; "drop" leaves those rows out and counts them.

    Raises
    ------
    DataError
        Lengths differ, no rows, text or complex numbers, values that are not finite, sigma not positive, a covariance that is not
        symmetric and positive definite, weights below 0, sigma and weights together, sigma_x below 0 or of unknown inputs, a row in
        which nothing has an error.
    OptionError
        sigma_x together with weights, or with a covariance matrix.
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
    own = sigma_x if isinstance(sigma_x, Mapping) else {"": sigma_x}
    extras = {"sigma": sigma, "weights": weights} | {f"sigma_x {name}".strip(): value for name, value in own.items()}
    check_order(given | {name: extra for name, extra in extras.items() if extra is not None})
    if sigma is not None and weights is not None:
        raise DataError("both sigma and weights were given; weights are sigma ** -2 up to a factor, so pass one of them.")
    matrix = None if sigma is None else _matrix(sigma, n)
    errors = None if sigma is None else _sigma(table, sigma, n) if matrix is None else np.sqrt(np.abs(np.diag(matrix)))
    errors = errors if weights is None else _per_row(table, weights, n, "weights")
    inexact = None if sigma_x is None else _errors_of_inputs(table, sigma_x, columns, n)
    if inexact is not None and (weights is not None or matrix is not None):
        other = "weights" if weights is not None else "a covariance matrix as sigma"
        raise OptionError(
            f"sigma_x was given together with {other}; expected one standard deviation per point beside it: pass sigma=, (n,)."
        )
    if n == 0:
        raise DataError(f"{target} is empty: 0 rows; a fit needs at least as many rows as parameters.")
    single = all(_is_single(column) for column in given.values())
    weighted = weights is not None
    whole = Dataset(
        columns, values, target, errors, np.arange(n), single=single, covariance=matrix, weighted=weighted, sigma_x=inexact
    )
    complete = _without_missing(whole, missing)
    if complete.sigma_x is not None:
        complete = _with_errors_in_x(complete)
    if complete.weighted:
        weighed = _weighed(complete)
        _check_scale(weighed)
        return weighed
    if matrix is None:
        _check_sigma(complete)
    else:
        _check_covariance(complete)
    _check_scale(complete)
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
        if not values @ values >= n * SMALLEST**2:
            return None
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
    if array.dtype.kind in "iu" and array.size and (array.max() > EXACT_WHOLE or array.min() < -EXACT_WHOLE):
        _check_whole(array, name)
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
    try:
        if isinstance(values, (list, tuple)) and any(isinstance(value, (torch.Tensor, np.ma.MaskedArray)) for value in values):
            values = [value.tolist() if isinstance(value, torch.Tensor) else value for value in values]
            values = [None if value is np.ma.masked else value for value in values]
            if any(isinstance(value, np.ma.MaskedArray) for value in values):  # of which numpy would forget the masks
                return _unmasked(np.ma.array(values))
        array = np.asarray(values)
    except Exception as error:  # noqa: BLE001  # whatever a foreign object's __array__ raises
        raise DataError(_no_array(values, name, error)) from None
    if array.ndim == 0 and array.dtype == object:
        raise DataError(
            f"{name} is of type {type(values).__name__}; expected a number for each row, so make a list of it: list(...)."
        )
    return array


def _check_whole(array: np.ndarray, name: str) -> None:
    """Refuse whole numbers that float64 would round: their differences may be all that a fit is about."""
    for row, value in enumerate(array.ravel().tolist()):
        if _is_rounded(value):
            raise DataError(_rounded(value, name, f"row {row * len(array) // array.size + 1} of {len(array)}"))


def _is_rounded(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and abs(int(value)) > EXACT_WHOLE and int(float(value)) != int(value)


def _rounded(value: Any, name: str, where: str) -> str:
    return (
        f"{name}, {where}, holds the whole number {value}, which float64 rounds; expected numbers up to 2**53. "
        f"Subtract an offset first, or round it yourself: {name}.astype(float)."
    )


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
        if _is_rounded(value):
            raise DataError(_rounded(value, name, f"row {row + 1} of {n}"))
        return _number(value)
    except DataError:
        raise
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
    if value is None or value is np.ma.masked or type(value).__name__ in {"NAType", "NaTType"}:
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
    return _per_row(table, sigma, n, "sigma")


def _per_row(table: Table, given: object, n: int, name: str) -> Floats:
    """Read one number per row, from an array or a column."""
    if isinstance(given, str):
        return flat(real(table[given], given), given)
    values = flat(real(given, name), name)
    if len(values) != n:
        raise DataError(
            f"{name} has {len(values)} values for {n} points; give one per point{', or one number for all' * (name == 'sigma')}."
        )
    return values


def _errors_of_inputs(table: Table, sigma_x: object, inputs: Mapping[str, Floats], n: int) -> dict[str, Floats] | None:
    """Read the standard deviations of the inputs, by name, (n,) each."""
    if not isinstance(sigma_x, Mapping):
        if len(inputs) != 1:
            raise DataError(
                f"sigma_x is one value for {len(inputs)} inputs, {', '.join(inputs)}; say which it belongs to: "
                f"sigma_x={{{next(iter(inputs))!r}: ...}}, inputs that are not named are exact."
            )
        sigma_x = {next(iter(inputs)): sigma_x}
    found = {}
    for name, given in sigma_x.items():
        if name not in inputs:
            raise DataError(unknown("input in sigma_x", name, inputs, "They are the data arguments of the model."))
        if inputs[name].ndim != 1:
            raise DataError(
                f"sigma_x of {name}, which has {inputs[name].shape[1]} columns; expected an input of one number per row, "
                "so write the model with an argument for each column."
            )
        label = f"sigma_x of {name}"
        if given is None or isinstance(given, bool):
            raise DataError(f"{label} is {given}; expected a number, one per point, or a column's name. Leave out what is exact.")
        if isinstance(given, str) or _as_array(given, label).ndim:
            found[name] = _per_row(table, given, n, label)
        else:
            found[name] = np.full(n, real(_as_array(given, label).reshape(1), label)[0])
    return found or None


def _with_errors_in_x(data: Dataset) -> Dataset:
    """Refuse negative errors, leave out inputs that are exact in every row, and refuse rows without any error."""
    assert data.sigma_x is not None
    for name, errors in data.sigma_x.items():
        wrong = np.flatnonzero(errors < 0)
        if wrong.size:
            raise DataError(
                f"sigma_x of {name} is negative in {wrong.size} of {data.n} rows ({_rows_named(data.row_numbers[wrong])}); "
                "a standard deviation is positive, or 0 where the input is exact."
            )
    inexact = {name: errors for name, errors in data.sigma_x.items() if errors.any()}
    return replace(data, sigma_x=inexact or None, block=None)


def _matrix(sigma: object, n: int) -> Floats | None:
    """Read a covariance matrix, (n, n); None where sigma is none. A single row's is its variance in either reading: (1, 1)."""
    if isinstance(sigma, str) or _as_array(sigma, "sigma").ndim != 2:
        return None
    matrix = real(sigma, "sigma")
    if matrix.shape == (n, n) and n > 1:
        return matrix
    if matrix.shape in ((n, 1), (1, n)):  # a column or a row of standard deviations
        return None
    raise DataError(
        f"sigma has shape {matrix.shape} for {n} points; expected ({n},) standard deviations, or ({n}, {n}) covariances."
    )


def _check_covariance(data: Dataset) -> None:
    """Refuse what is no covariance matrix; of rounding in its symmetry nothing is said."""
    assert data.covariance is not None
    matrix = data.covariance
    if not np.isfinite(matrix).all():  # also with missing="drop": a gap beside the diagonal belongs to no one row
        raise DataError(f"sigma, a covariance matrix, holds {int((~np.isfinite(matrix)).sum())} values that are NaN or infinite.")
    size = np.sqrt(np.outer(np.abs(np.diag(matrix)), np.abs(np.diag(matrix))))
    off = np.abs(matrix - matrix.T) > ASYMMETRY * np.maximum(size, np.abs(matrix))
    if off.any():
        row, column = np.argwhere(off)[0]
        raise DataError(
            f"sigma is no covariance matrix: [{row}, {column}] is {matrix[row, column]:g} and [{column}, {row}] "
            f"{matrix[column, row]:g}; expected a symmetric one."
        )
    try:
        smallest = float(np.diag(data.cholesky).min())
    except np.linalg.LinAlgError:
        smallest = 0.0
    if not smallest > 0:
        raise DataError(
            "sigma is no covariance matrix: it is not positive definite, so some combination of the points would have no error; "
            "check its entries (variances on the diagonal), or give one standard deviation per point."
        )


def _weighed(data: Dataset) -> Dataset:
    """Turn weights into the sigma they amount to; rows of weight 0 are left out, and counted."""
    weights = data.sigma
    assert weights is not None
    wrong = np.flatnonzero(weights < 0)
    if wrong.size:
        raise DataError(
            f"weights are negative in {wrong.size} of {data.n} rows ({_rows_named(data.row_numbers[wrong])}); expected 0 or more."
        )
    counted = np.flatnonzero(weights)
    if not counted.size:
        raise DataError(f"all {data.n} weights are 0, so nothing is left to fit; give some rows a positive weight.")
    chosen = weights[counted] / weights.max()
    kept = data if counted.size == data.n else data.rows(counted)
    return replace(kept, sigma=np.sqrt(chosen.mean() / chosen), weightless=data.n - counted.size, block=None)


def _check_sigma(data: Dataset) -> None:
    if data.sigma is None:
        return
    if data.sigma_x is not None:
        exact = (data.sigma == 0) & ~np.any([errors > 0 for errors in data.sigma_x.values()], axis=0)
        wrong = np.flatnonzero((data.sigma < 0) | exact)
        if wrong.size:
            raise DataError(
                f"sigma is negative, or 0 where sigma_x is 0 too, in {wrong.size} of {data.n} rows "
                f"({_rows_named(data.row_numbers[wrong])}); expected an error of the target or of an input in every row."
            )
        return
    wrong = np.flatnonzero(data.sigma <= 0)
    if wrong.size:
        raise DataError(
            f"sigma is zero or negative in {wrong.size} of {data.n} rows ({_rows_named(data.row_numbers[wrong])}); "
            "a standard deviation is positive. Leave sigma out where it is unknown for all."
        )


def _check_scale(data: Dataset) -> None:
    """Refuse targets whose squares vanish: residuals of 0 look like a perfect fit. (Squares that overflow show as an infinite loss.)"""
    sizes = np.abs(data.target)
    if data.sigma is not None:
        with np.errstate(over="ignore", under="ignore"):
            sizes = np.divide(sizes, data.sigma, out=np.zeros(data.n), where=data.sigma > 0)
    row = int(np.argmax(sizes))
    if sizes[row] == 0 or sizes[row] >= SMALLEST:
        return
    what = data.target_name if data.sigma is None or data.weighted else f"{data.target_name} / sigma"
    raise DataError(
        f"values of {what} are of size {sizes[row]:.3g} (row {int(data.row_numbers[row]) + 1}); expected {SMALLEST:g} or more, "
        "for smaller squares vanish in float64. Give the column in other units."
    )


def _without_missing(data: Dataset, missing: Missing) -> Dataset:
    if _all_finite(data):
        return data
    named = {**data.columns, data.target_name: data.target}
    named |= {} if data.sigma is None else {"weights" if data.weighted else "sigma": data.sigma}
    named |= {f"sigma_x of {name}": errors for name, errors in (data.sigma_x or {}).items()}
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
    parts = (*data.columns.values(), data.target, *(() if data.sigma is None else (data.sigma,)), *(data.sigma_x or {}).values())
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
