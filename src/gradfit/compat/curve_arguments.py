"""The data, starting values and bounds of a ``curve_fit`` call, as scipy reads them; and the mistakes it lets pass, refused."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np

from gradfit.compat.curve_errors import ChoiceError
from gradfit.data.dataset import Dataset, dataset
from gradfit.data.sources import Table
from gradfit.errors import DataError, ParameterError
from gradfit.typing import Floats

NO_BOUNDS = (-np.inf, np.inf)


# --- data --------------------------------------------------------------------------------------------------------------


def read_data(
    xdata: Any, ydata: Any, sigma: Any, check_finite: bool | None, nan_policy: str | None
) -> tuple[Any, Floats, Floats | None]:
    """Give x as f gets it, y (M,) and sigma as an array, without the points that ``nan_policy="omit"`` leaves out.

    Lists, tuples and arrays become float64 arrays; any other x is handed to f as it is. Masked values count as NaN.

    Raises
    ------
    DataError
        No numbers, y not one-dimensional or empty, NaN or infinity where they are not allowed.
    """
    finite = nan_policy is None if check_finite is None else bool(check_finite)
    y = _floats(ydata, "ydata")
    x = _floats(xdata, "xdata") if isinstance(xdata, (list, tuple, np.ndarray)) else xdata
    if y.size == 0:
        raise DataError("`ydata` must not be empty! Give at least as many points as f has parameters.")
    if y.ndim > 1:
        raise DataError(f"`ydata` has shape {y.shape}; expected one value per point, shape (M,). Pass ydata.ravel().")
    errors = None if sigma is None else _floats(sigma, "sigma")
    if finite:
        _check_finite(y, "ydata")
        if _is_numbers(x):
            _check_finite(np.asarray(x), "xdata")
    elif nan_policy is not None:
        x, y, errors = _without_nan(x, y, errors, nan_policy)
    return x, y.reshape(-1), errors


def described(y: Floats, sigma: Floats | None, columns: dict[str, Floats]) -> Dataset:
    """Give the rows of a fit with what is known of their errors.

    Raises
    ------
    DataError
        sigma of another length, not positive, or no covariance matrix.
    """
    n = len(y)
    if sigma is not None and sigma.ndim == 2 and sigma.size > 1:
        if sigma.shape != (n, n):
            raise DataError(_wrong_shape(sigma, n))
        _check_finite(sigma, "sigma")
        covariance = dataset(Table(("ydata",), {"ydata": y}.__getitem__, "the arrays given"), (), "ydata", sigma=sigma)
        return Dataset(columns, y, "ydata", covariance.sigma, np.arange(n), covariance=covariance.covariance)
    if sigma is not None:
        if sigma.size == 1:
            sigma = np.full(n, float(sigma.reshape(-1)[0]))
        if sigma.shape != (n,):
            raise DataError(_wrong_shape(sigma, n))
        if not (sigma > 0).all():  # infinity is a weight of 0, as in scipy
            raise DataError(
                f"`sigma` is zero, negative or NaN for {int((~(sigma > 0)).sum())} of {n} points; a standard deviation is positive. "
                "Leave sigma out where it is unknown for all."
            )
    return Dataset(columns, y, "ydata", sigma, np.arange(n))


def _wrong_shape(sigma: Floats, n: int) -> str:
    return (
        f"`sigma` has incorrect shape {sigma.shape} for {n} points; "
        f"expected one number, ({n},) standard deviations, or ({n}, {n}) covariances."
    )


def _floats(values: Any, name: str) -> Floats:
    if type(values) is np.ndarray and values.dtype == np.float64:
        return values
    try:
        if np.iscomplexobj(values):
            raise TypeError("complex numbers have no order; fit real and imaginary parts as real data")
        if isinstance(values, np.ma.MaskedArray):
            return np.ma.filled(values.astype(np.float64), np.nan)
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"`{name}` cannot be read as an array of real numbers: {error}.") from error


def _is_numbers(x: Any) -> bool:
    """Whether x is something of which NaN can be asked."""
    dtype = getattr(x, "dtype", None)
    return isinstance(dtype, np.dtype) and dtype.kind == "f"


def _check_finite(values: Any, name: str) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        if math.isfinite(values.sum()):  # one pass; a sum that overflows is looked at again
            return
    wrong = int((~np.isfinite(values)).sum())
    if wrong:
        raise DataError(
            f"`{name}` must not contain infs or NaNs, and has {wrong} (masked values count as NaN); "
            f"mend them{'' if name == 'sigma' else ', or leave points with NaN out by nan_policy=' + repr('omit')}."
        )


def _without_nan(x: Any, y: Floats, sigma: Floats | None, policy: str) -> tuple[Any, Floats, Floats | None]:
    if policy == "propagate":
        raise ChoiceError("`nan_policy='propagate'` is not supported by this function. Use 'raise', 'omit' or None.")
    if policy not in ("raise", "omit"):
        raise ChoiceError(f"nan_policy must be one of {{None, 'raise', 'omit'}}, not {policy!r}.")
    missing = np.isnan(y)
    if _is_numbers(x):
        lost = np.isnan(np.asarray(x))
        missing = missing | lost.any(axis=tuple(range(lost.ndim - 1)))
    if not missing.any():
        return x, y, sigma
    if policy == "raise":
        raise DataError("The input contains nan values: mend them, or pass nan_policy='omit'.")
    if missing.all():
        raise DataError(f"no point is left of {len(missing)}: each holds a NaN; nothing can be fitted.")
    keep = ~missing
    if not _is_numbers(x):
        raise DataError(
            f"xdata is of type {type(x).__name__}, of which no points can be left out; pass an array, or data without NaN."
        )
    x = x[..., keep] if isinstance(x, np.ndarray) else x[keep]
    if sigma is not None and sigma.size > 1 and sigma.shape[0] == len(keep):
        sigma = sigma[keep] if sigma.ndim == 1 else sigma[np.ix_(keep, keep)]
    return x, y[keep], sigma


# --- start and bounds --------------------------------------------------------------------------------------------------


def read_start(f: Callable[..., Any], p0: Any, bounds: Any) -> tuple[Floats, Floats, Floats]:
    """Give start, lower and upper bounds, (p,) each.

    Raises
    ------
    ParameterError
        No number of parameters to be known, a start that is not finite or out of bounds, bounds that are none.
    """
    if p0 is None:
        p = _count_parameters(f)
    else:
        start = _start(p0)
        p = len(start)
    if bounds is NO_BOUNDS:
        return np.ones(p) if p0 is None else start, np.full(p, -np.inf), np.full(p, np.inf)
    lower, upper = _bounds(bounds, p)
    if p0 is None:
        start = _feasible(lower, upper)
    if ((start < lower) | (start > upper)).any():
        raise ParameterError(
            f"Initial guess is outside of provided bounds: p0 is {start.tolist()}, the bounds are {lower.tolist()} and {upper.tolist()}."
        )
    return start, lower, upper


def _count_parameters(f: Callable[..., Any]) -> int:
    if type(f) is FunctionType and not f.__dict__:  # a tenth of the time
        count = f.__code__.co_argcount - 1
    else:
        try:
            arguments = list(inspect.signature(f).parameters.values())
        except (TypeError, ValueError):
            arguments = []
        count = sum(argument.kind in (argument.POSITIONAL_ONLY, argument.POSITIONAL_OR_KEYWORD) for argument in arguments) - 1
    if count < 1:
        raise ParameterError(
            "Unable to determine number of fit parameters: f names none after its first argument; name them, f(x, a, b), or pass p0."
        )
    return count


def _start(p0: Any) -> Floats:
    try:
        if np.iscomplexobj(p0):
            raise TypeError("`p0` must be real")
        start = np.array(p0, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise ParameterError(f"p0 is {p0!r}; expected one starting value per parameter ({error}).") from error
    if start.size == 0 or not np.isfinite(start).all():
        raise ParameterError(f"p0 is {start.tolist()}; expected one finite starting value per parameter.")
    return start


def _bounds(bounds: Any, p: int) -> tuple[Floats, Floats]:
    sides = (bounds.lb, bounds.ub) if hasattr(bounds, "lb") and hasattr(bounds, "ub") else bounds
    try:
        lower, upper = (np.asarray(side, dtype=np.float64) for side in sides)
    except (TypeError, ValueError) as error:
        raise ParameterError(f"`bounds` must contain 2 elements, lower and upper bounds: {error}.") from error
    if lower.shape not in ((), (1,), (p,)) or upper.shape not in ((), (1,), (p,)):
        raise ParameterError(
            f"Inconsistent shapes between bounds and `p0`: {lower.shape} and {upper.shape} for {p} parameters; give one number, or one for each."
        )
    lower, upper = np.array(np.broadcast_to(lower, p)), np.array(np.broadcast_to(upper, p))
    if not (lower < upper).all():
        raise ParameterError(
            f"Each lower bound must be strictly less than each upper bound; they are {lower.tolist()} and {upper.tolist()}. "
            "To keep a parameter at a value leave it out of f's arguments."
        )
    return lower, upper


def _feasible(lower: Floats, upper: Floats) -> Floats:
    """Start where scipy does without p0: at 1; within two bounds in the middle, at one bound 1 away from it."""
    low, high = np.isfinite(lower), np.isfinite(upper)
    with np.errstate(invalid="ignore"):
        return np.select([low & high, low, high], [0.5 * lower + 0.5 * upper, lower + 1, upper - 1], 1.0)
