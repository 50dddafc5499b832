"""What a ``curvefit`` call says, read as xarray reads it, and the mistakes it lets pass, refused. Nothing is computed here.

::

    coords, reduce_dims  ->  which dimensions are fitted along, which remain
    func, p0, bounds     ->  a start and bounds of each parameter, numbers or one per series
    kwargs               ->  options of scipy's curve_fit, as gradfit has them
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import xarray as xr

from gradfit import api
from gradfit.compat.curve_errors import ChoiceError
from gradfit.compat.curve_options import METHODS, read_options
from gradfit.compat.xarray_model import label_of
from gradfit.compat.xarray_task import FIXED, LOWER, START, UPPER
from gradfit.drivers.batched import worker_count
from gradfit.errors import DataError, ModelError, OptionError, ParameterError, unknown
from gradfit.model import loss as losses

Array: TypeAlias = "xr.DataArray"
Grid: TypeAlias = "xr.DataArray | xr.Dataset"
OUTPUTS = ("param", "cov_i", "cov_j")
# Options of scipy's that all fits of a block can have at once; with others they are made one by one.
TOGETHER = ("maxfev", "max_nfev", "ftol", "xtol", "gtol", "factor", "tr_solver", "tr_options", "jac_sparsity", "workers")


class NameUnknownError(DataError, KeyError):
    """A coordinate that the object does not have; xarray raises KeyError for it."""

    __str__ = Exception.__str__  # KeyError's would show the message in quotes


# --- dimensions --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axes:
    """Along what is fitted.

    Attributes
    ----------
    coordinates
        Numbers that the function takes, each with the dimensions that are fitted along, and maybe others.
    core, kept
        Dimensions that are fitted along, in the order of the object; those that remain.
    """

    coordinates: tuple[Array, ...] = field(repr=False)
    core: tuple[Hashable, ...]
    kept: tuple[Hashable, ...]


def read_axes(obj: Grid, coords: Any, reduce_dims: Any) -> Axes:
    """Find the coordinates and the dimensions to fit along.

    Raises
    ------
    NameUnknownError
        A coordinate that is not there.
    DataError
        An unknown dimension; no dimension to fit along; a dimension named like one of the result.
    """
    listed = [coords] if isinstance(coords, (str, xr.DataArray)) or not isinstance(coords, Iterable) else list(coords)
    if not listed:
        raise DataError("coords is empty; expected the coordinate that func takes, such as coords='time', or a list of them.")
    found = [coord if isinstance(coord, xr.DataArray) else _coordinate(obj, coord) for coord in listed]
    core = {dim for coord in found for dim in obj.dims if _is_dimension(coord, dim, obj)} | set(_reduced(obj, reduce_dims))
    if not core:
        raise DataError(
            "No arguments to `coords` were identified as a dimension on the calling object, and no dims were supplied to `reduce_dims`. "
            f"This would result in fitting on scalar data. Give reduce_dims=, some of {', '.join(map(str, obj.dims))}."
        )
    kept = tuple(dim for dim in obj.dims if dim not in core)
    for dim in kept:
        if dim in OUTPUTS:
            raise DataError(
                f"the dimension {dim!r} has the name of one of the result; rename it before the fit, such as .rename({dim}='{dim}_')."
            )
    numeric = [in_numbers(coord, "a coordinate") for coord in found]
    spread = [coord.broadcast_like(obj, exclude=kept) for coord in xr.broadcast(*numeric)]
    return Axes(tuple(spread), tuple(dim for dim in obj.dims if dim in core), kept)


def _coordinate(obj: Grid, name: Any) -> Array:
    try:
        found = obj[name]
    except (KeyError, TypeError):
        found = None
    if not isinstance(found, xr.DataArray) or not isinstance(name, Hashable):
        known = dict.fromkeys([*map(str, obj.coords), *map(str, obj.dims), *map(str, getattr(obj, "data_vars", ()))])
        raise NameUnknownError(unknown("coordinate", name, known, "Give a name, or a DataArray.")) from None
    return found


def _is_dimension(coord: Array, dim: Hashable, obj: Grid) -> bool:
    """Whether a coordinate is that of a dimension. Values on dask are not computed for it: there the name decides."""
    if coord.dims != (dim,) or coord.sizes[dim] != obj.sizes[dim]:
        return False
    return coord.name == dim if coord.chunks is not None else bool(coord.equals(obj[dim]))


def _reduced(obj: Grid, reduce_dims: Any) -> list[Hashable]:
    if reduce_dims is ...:
        return list(obj.dims)
    if not reduce_dims:
        return []
    listed = [reduce_dims] if isinstance(reduce_dims, str) or not isinstance(reduce_dims, Iterable) else list(reduce_dims)
    for dim in listed:
        if dim not in obj.dims:
            raise DataError(unknown("dimension", dim, map(str, obj.dims), "It was named in reduce_dims."))
    return listed


def in_numbers(array: Array, what: str) -> Array:
    """Give dates and durations as floating-point numbers of their own unit, as scipy would see them; refuse text and complex numbers."""
    name = f"{what}, {array.name}," if array.name is not None else what
    if array.dtype.kind in "mM":
        return array.astype(np.float64).where(array.notnull())
    if array.dtype.kind == "O":
        try:
            return array.astype(np.float64)
        except (TypeError, ValueError):
            raise DataError(
                f"{name} holds objects such as {str(array.values.flat[0])[:40]!r}; expected numbers. Convert it, dates for instance to days since the first."
            ) from None
    if array.dtype.kind not in "fiub":
        raise DataError(f"{name} has values of type {array.dtype}; expected real numbers. Convert it, or leave the variable out.")
    return array


# --- parameters --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Given:
    """Numbers that the parameters have before the fit.

    Attributes
    ----------
    labels
        The parameters as the result names them.
    names
        The same as text.
    shared
        By what they are (start, lower, upper, fixed), then by name: a number for all series.
    own
        By what they are and name: one number per series.
    """

    labels: tuple[Hashable, ...]
    names: tuple[str, ...]
    shared: dict[str, dict[str, float]]
    own: dict[tuple[str, str], Array]

    @property
    def bounded(self) -> bool:
        """Whether any parameter has a bound."""
        sides = (LOWER, -math.inf), (UPPER, math.inf)
        return any(what in (LOWER, UPPER) for what, _ in self.own) or any(
            number != none for what, none in sides for number in self.shared[what].values()
        )

    @property
    def free(self) -> int:
        """How many parameters are fitted."""
        fixed = set(self.shared[FIXED]) | {name for what, name in self.own if what == FIXED}
        return len(self.names) - len(fixed)


def read_parameters(
    func: Callable[..., Any], param_names: Sequence[Hashable] | None, p0: Any, bounds: Any, fixed: Any, kept: Sequence[Hashable]
) -> Given:
    """Find the parameters of a function, and by xarray's rules where each begins and may go.

    A start is that of the call, that of the signature, or 1; where the bounds exclude the latter two, a value inside.

    Raises
    ------
    ModelError
        No function, or one whose parameters cannot be known.
    ParameterError
        Unknown names, numbers that are none, arrays with dimensions that are fitted along.
    """
    labels, defaults = _parameters(func, param_names)
    starts, limits, held = _named(p0, labels, "p0"), _named(bounds, labels, "bounds"), _named(_fixed(fixed), labels, "fixed")
    shared: dict[str, dict[str, float]] = {what: {} for what in (START, LOWER, UPPER, FIXED)}
    own: dict[tuple[str, str], Array] = {}

    def put(what: str, label: Hashable, value: Any) -> None:
        if isinstance(value, xr.DataArray):
            own[what, str(label)] = value
        else:
            shared[what][str(label)] = value

    for label in labels:
        lower, upper = _bounds(limits.get(label), label, kept)
        start = _start(starts, defaults, label, lower, upper, kept)
        if label in held:
            put(FIXED, label, start if held[label] is None else _number(held[label], f"Fixed value of '{label}'", kept))
            continue
        for what, value in ((START, start), (LOWER, lower), (UPPER, upper)):
            put(what, label, value)
    if len(held) == len(labels):
        raise ParameterError(f"every parameter is fixed: {', '.join(map(str, labels))}; leave at least one to be fitted.")
    return Given(labels, tuple(map(str, labels)), shared, own)


def _parameters(
    func: Callable[..., Any], param_names: Sequence[Hashable] | None
) -> tuple[tuple[Hashable, ...], dict[Hashable, Any]]:
    """Give the names of the parameters, and what the signature says of their starts."""
    if not callable(func) or isinstance(func, type):
        raise ModelError(f"func is {func!r}; expected a function func(x, *parameters).")
    try:
        arguments = dict(inspect.signature(func).parameters)
    except (TypeError, ValueError):
        arguments = {}
        if not param_names:
            raise ModelError(
                f"Unable to inspect `func` signature, and `param_names` was not provided: name the parameters of {label_of(func)}, "
                "param_names=['a', ...]."
            ) from None
    bound = [
        name
        for name, argument in arguments.items()
        if argument.kind is argument.KEYWORD_ONLY and argument.default is not argument.empty
    ]
    for name in bound:  # as functools.partial leaves them: options of func, which is called by position
        del arguments[name]
    variable = any(argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD) for argument in arguments.values())
    if not param_names and variable:
        raise ModelError("`param_names` must be provided because `func` takes variable length arguments.")
    names = [param_names] if isinstance(param_names, str) else list(param_names or list(arguments)[1:])
    if not names or len({str(name) for name in names}) < len(names):
        raise ModelError(f"{label_of(func)} has the parameters {names}; expected one or more names after x, each once.")
    given: dict[Hashable, Any] = {
        name: argument.default for name, argument in arguments.items() if argument.default is not argument.empty
    }
    return tuple(names), given


def _named(given: Any, labels: Sequence[Hashable], what: str) -> dict[Hashable, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ParameterError(f"{what} is {str(given)[:60]}; expected a dict by parameter name, {what}={{{labels[0]!r}: ...}}.")
    for name in given:
        if name not in labels:
            raise ParameterError(unknown("parameter", name, map(str, labels), f"It was named in {what}."))
    return dict(given)


def _fixed(fixed: Any) -> Any:
    """A list of names means: fixed where they start."""
    if isinstance(fixed, str):
        return {fixed: None}
    return dict.fromkeys(fixed) if isinstance(fixed, (list, tuple, set, frozenset)) else fixed


def _bounds(pair: Any, label: Hashable, kept: Sequence[Hashable]) -> tuple[Any, Any]:
    if pair is None:
        return -math.inf, math.inf
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ParameterError(
            f"bounds of '{label}' are {str(pair)[:60]}; expected (lower, upper), each a number, a DataArray or None."
        )
    lower = -math.inf if pair[0] is None else _number(pair[0], f"Lower bound for '{label}'", kept)
    upper = math.inf if pair[1] is None else _number(pair[1], f"Upper bound for '{label}'", kept)
    if isinstance(lower, float) and isinstance(upper, float) and not lower < upper:
        raise ParameterError(
            f"bounds of '{label}' are ({lower:g}, {upper:g}); expected lower < upper. Swap them, or keep a value by fixed=."
        )
    return lower, upper


def _start(
    starts: Mapping[Hashable, Any], defaults: Mapping[Hashable, Any], label: Hashable, lower: Any, upper: Any, kept: Any
) -> Any:
    if label in starts:
        start = _number(starts[label], f"Initial guess for '{label}'", kept)
        if all(isinstance(number, float) for number in (start, lower, upper)) and not lower <= start <= upper:
            raise ParameterError(
                f"Initial guess for '{label}' is {start:g}, outside its bounds ({lower:g}, {upper:g}); choose one inside."
            )
        return start
    assumed = _number(defaults.get(label, 1.0), f"the default of '{label}' in the signature", kept)
    return _where((lower <= assumed) & (assumed <= upper), assumed, _inside(lower, upper))


def _inside(lower: Any, upper: Any) -> Any:
    """Give scipy's start between bounds: their mean, 1 from the only one, 0 without any."""
    low, high = abs(lower) < math.inf, abs(upper) < math.inf
    return _where(low, _where(high, 0.5 * (lower + upper), lower + 1), _where(high, upper - 1, 0.0))


def _where(condition: Any, yes: Any, no: Any) -> Any:
    if any(isinstance(part, xr.DataArray) for part in (condition, yes, no)):
        return xr.where(condition, yes, no)  # type: ignore[no-untyped-call]
    return yes if condition else no


def _number(value: Any, what: str, kept: Sequence[Hashable]) -> Any:
    """Give a float, or a DataArray of one number per series."""
    if isinstance(value, xr.DataArray) and value.ndim:
        unexpected = tuple(dim for dim in value.dims if dim not in kept)
        if unexpected:
            raise ParameterError(
                f"{what} has unexpected dimensions {unexpected}. It should only have dimensions that are in data dimensions {list(kept)}."
            )
        if value.dtype.kind not in "fiub":
            raise ParameterError(f"{what} has values of type {value.dtype}; expected real numbers.")
        return value
    if isinstance(value, xr.DataArray) and value.chunks is not None:
        return value
    try:
        array = np.asarray(value)
        if array.ndim != 0 or array.dtype.kind not in "fiub":
            raise TypeError
        number = float(array)
    except (TypeError, ValueError):
        raise ParameterError(
            f"{what} is {str(value)[:60]}; expected a number, or a DataArray with dimensions of the data that are not fitted along."
        ) from None
    if math.isnan(number):
        raise ParameterError(f"{what} is NaN; expected a number.")
    return number


# --- options -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scipy:
    """What ``kwargs`` asks for: options of scipy's curve_fit.

    Attributes
    ----------
    sigma, absolute_sigma
        As in scipy; None where they are not given.
    method
        Options of Levenberg-Marquardt that come to the same.
    most
        Evaluations allowed.
    alone
        All options, where some can only be followed one series at a time; else None.
    """

    sigma: Any = None
    absolute_sigma: bool | None = None
    method: Mapping[str, Any] = field(default_factory=dict)
    most: int | None = None
    alone: Mapping[str, Any] | None = None


def read_scipy(kwargs: Mapping[str, Any] | None, given: Given) -> Scipy:
    """Read options of scipy's curve_fit.

    Raises
    ------
    OptionError, ChoiceError
        Unknown options, values that they cannot have, what the call itself says.
    """
    rest = dict(kwargs or {})
    for name in ("f", "xdata", "ydata", "p0", "bounds", "full_output"):
        if name in rest:
            raise OptionError(
                f"kwargs holds {name!r}, which curvefit says itself; leave it out{', and use p0= and bounds=' if name in ('p0', 'bounds') else ''}."
            )
    sigma, absolute = rest.pop("sigma", None), rest.pop("absolute_sigma", None)
    rest.pop("check_finite", None)  # what is not finite is a matter of its own series
    if rest.pop("nan_policy", None) not in (None, "raise", "omit"):
        raise ChoiceError(f"nan_policy is {kwargs['nan_policy']!r}; leave it out: skipna=True skips NaN." if kwargs else "")
    options, method, jac = dict(rest), rest.pop("method", None), rest.pop("jac", None)
    if method is not None and method not in METHODS:
        raise ChoiceError(f"`method` must be 'trf', 'dogbox' or 'lm', not {method!r}.")
    if method == "lm" and given.bounded:
        raise ChoiceError("Method 'lm' only works for unconstrained problems. Use 'trf' or 'dogbox' instead.")
    chosen = method or ("trf" if given.bounded else "lm")
    read = read_options(chosen, jac, rest, len(given.names))
    if jac not in (None, "2-point", "3-point") or any(name not in TOGETHER for name in rest):
        return Scipy(sigma, absolute, alone=options)
    found = {"max_steps": read.evaluations, "radius": read.radius}
    return Scipy(sigma, absolute, {name: value for name, value in found.items() if value is not None}, read.evaluations)


def check_settings(settings: Mapping[str, Any], options: Mapping[str, Any], scipy: Scipy, given: Given, errors: str) -> None:
    """Refuse, before anything is fitted, options that are none or contradict each other.

    Raises
    ------
    OptionError, ChoiceError
        An unknown option or value; what kwargs says too, or makes impossible.
    """
    if errors not in ("raise", "ignore"):
        raise ChoiceError(f'errors must be either "raise" or "ignore", not {errors!r}.')
    api.check_choices(settings["engine"], "ignore", settings["seed"], None, None, settings["progress"])
    worker_count(settings["threads"])
    if isinstance(settings["loss"], str) and settings["loss"] not in losses.NAMES:
        raise OptionError(unknown("loss", settings["loss"], losses.NAMES, "A function of (prediction, target) also serves."))
    method = settings["method"]
    said = [name for name in scipy.method if name in options]
    if scipy.method and (said or method not in (None, "lm")):
        other = said[0] if said else f"method={method!r}"
        raise OptionError(f"kwargs holds options of scipy's method, and {other} was given too; leave one of them out.")
    if scipy.alone is not None:
        named = [
            name for name in ("loss", "f_scale", "method", "dtype", "engine") if settings[name] not in (None, "squared", "auto")
        ]
        named += [*options, *(["fixed"] if given.free < len(given.names) else [])]
        if named:
            raise OptionError(
                f"kwargs holds {', '.join(scipy.alone)}, so that each series is fitted as by scipy's curve_fit, which knows no {named[0]}; leave one of them out."
            )
    elif method is not None or options:
        api.method_of("lm" if method is None else method, dict(options))


def check_absolute(sigma: Any, absolute_sigma: object, scipy: Scipy) -> None:
    """Refuse measured errors that are none.

    Raises
    ------
    OptionError
        absolute_sigma is no bool, was given twice, or without sigma.
    """
    if not isinstance(absolute_sigma, (bool, np.bool_)):
        raise OptionError(f"absolute_sigma is {absolute_sigma!r}; expected True or False.")
    if absolute_sigma and scipy.absolute_sigma is not None:
        raise OptionError("absolute_sigma was given twice, by absolute_sigma= and in kwargs; leave one out.")
    if absolute_sigma and sigma is None and scipy.sigma is None:
        raise OptionError("absolute_sigma says that sigma are measured errors, and no sigma was given; pass sigma=.")


# --- errors of the data ------------------------------------------------------------------------------------------------


def read_sigma(sigma: Any, scipy: Scipy, name: Hashable, values: Array, axes: Axes) -> float | Array | None:
    """Give the standard deviations of a variable: none, a number, or an array of one per series or per point.

    Raises
    ------
    DataError, OptionError
        sigma given twice, of other dimensions or labels than the data, not positive, no numbers.
    """
    if sigma is not None and scipy.sigma is not None:
        raise OptionError("sigma was given twice, by sigma= and in kwargs; leave one out.")
    if isinstance(sigma, Mapping):
        if name not in sigma:
            raise DataError(
                unknown(
                    "variable",
                    name,
                    map(str, sigma),
                    "sigma, a mapping, has no entry for it: give one, or leave the variable out.",
                )
            )
        sigma = sigma[name]
    if scipy.sigma is not None:
        sigma = _of_points(scipy.sigma, values, axes)
    if sigma is None:
        return 1.0 if scipy.absolute_sigma else None  # scipy takes absolute_sigma without sigma for errors of 1
    if isinstance(sigma, xr.DataArray) and sigma.ndim:
        return _sigma_array(sigma, values, axes)
    if np.ndim(sigma) != 0:
        raise DataError(
            f"sigma is of type {type(sigma).__name__} and shape {np.shape(sigma)}; expected a number or a DataArray, whose dimensions say what it is for."
        )
    try:
        number = float(sigma)
    except (TypeError, ValueError):
        raise DataError(f"sigma is {str(sigma)[:60]}; expected a number, or a DataArray.") from None
    if not 0 < number < math.inf:
        raise DataError(f"sigma is {number:g}; a standard deviation is positive. Leave sigma out where it is not known.")
    return number


def _sigma_array(sigma: Array, values: Array, axes: Axes) -> Array:
    sigma = in_numbers(sigma, "sigma")
    unexpected = [dim for dim in sigma.dims if dim not in values.dims]
    if unexpected:
        raise DataError(f"sigma has dimensions {unexpected} that the data do not have; expected some of {list(values.dims)}.")
    check_labels(values, sigma, "sigma")
    return sigma.broadcast_like(values, exclude=axes.kept) if any(dim in axes.core for dim in sigma.dims) else sigma


def _of_points(sigma: Any, values: Array, axes: Axes) -> Any:
    """Give scipy's sigma, one number per point, its dimensions."""
    array = np.asarray(sigma)
    sizes = [values.sizes[dim] for dim in axes.core]
    if array.ndim == 0:
        return sigma
    if array.shape != (math.prod(sizes),):
        raise DataError(
            f"sigma in kwargs has shape {array.shape}; expected a number, or ({math.prod(sizes)},), one per point. Pass sigma= for one per series or value; "
            "covariance matrices are for gradfit.curve_fit."
        )
    return xr.DataArray(array.reshape(sizes), dims=axes.core)


def check_labels(values: Array, other: Array, what: str) -> None:
    """Refuse an array whose labels or sizes are not those of the data.

    Raises
    ------
    DataError
        They differ.
    """
    try:
        xr.align(values, other, join="exact", copy=False)
    except ValueError as error:
        raise DataError(
            f"{what} does not fit the data: {error}; bring both to the same labels, such as by .reindex_like(data)."
        ) from error
