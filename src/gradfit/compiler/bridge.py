"""Functions written with numpy or math, made to run on tensors.

A model that calls ``np.exp`` or ``math.exp`` computes the same thing as one that calls ``torch.exp``, but loses the
derivative. ``on_tensors`` gives a copy of the function in which the names ``np``, ``math``, ``scipy.special`` and what was
imported from them stand for functions that go to torch when they meet a tensor. The user's own function is not changed, nor
anything global. A function of theirs that has no twin in torch raises :class:`Untranslatable` on a tensor, so nothing is lost
in silence. Names that are bound elsewhere (``import`` inside the model, a table of functions) are not seen; such a model runs
as it is, with finite differences.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.special
import torch
from torch import Tensor

HOSTS = (np, math, scipy.special)
FOREIGN = ("torch", "numpy", "scipy", "math", "builtins")


def _gamma(x: Tensor) -> Tensor:
    """Gamma function; negative on every other interval between the poles at 0, -1, -2, ..."""
    odd = (x < 0) & (torch.remainder(torch.floor(x), 2) == 1)
    return torch.where(odd, -1.0, 1.0) * torch.exp(torch.lgamma(x))


def _clip(x: Any, a_min: Any = None, a_max: Any = None, *, min: Any = None, max: Any = None) -> Tensor:
    lower, upper = (min if a_min is None else a_min), (max if a_max is None else a_max)
    dtype = next(a.dtype for a in (x, lower, upper) if isinstance(a, Tensor))
    x, lower, upper = (None if a is None else torch.as_tensor(a, dtype=dtype) for a in (x, lower, upper))
    return torch.clamp(x, lower, upper)


def _gathered(values: Any) -> Tensor:
    """Make a tensor of a list that holds tensors, as ``np.array`` makes an array of one that holds numbers."""
    if isinstance(values, Tensor):
        return torch.clone(values)
    return _stack([value if isinstance(value, Tensor) else _gathered(value) for value in _alike(values)])


def _alike(values: Any) -> list[Any]:
    """Bring the parts of a list, or of lists in it, to one dtype."""
    dtype = _float_in(values)
    return [value if isinstance(value, (list, tuple)) and _holds_tensor(value) else _tensor(value, dtype) for value in values]


def _stack(arrays: Any, axis: int = 0) -> Tensor:
    return torch.stack(_alike(arrays), dim=axis)


def _concatenate(arrays: Any, axis: int = 0) -> Tensor:
    return torch.cat(_alike(arrays), dim=axis)


def _over(reduce: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Give a torch function that takes numpy's word for the axis; over all elements where none is given."""

    def call(values: Any, axis: int | None = None) -> Tensor:
        array = _gathered(values)
        return reduce(array.reshape(-1), dim=0) if axis is None else reduce(array, dim=axis)

    return call


# Names that differ between the hosts and torch.
TWINS: dict[str, Callable[..., Any]] = {
    "arccos": torch.acos, "arccosh": torch.acosh, "arcsin": torch.asin, "arcsinh": torch.asinh, "arctan": torch.atan,
    "arctan2": torch.atan2, "arctanh": torch.atanh, "power": torch.pow, "fabs": torch.abs, "absolute": torch.abs,
    "gammaln": torch.lgamma, "expit": torch.sigmoid, "clip": _clip, "degrees": torch.rad2deg, "radians": torch.deg2rad,
    "cbrt": lambda x: torch.sign(x) * torch.abs(x) ** (1 / 3), "gamma": _gamma, "psi": torch.digamma, "mod": torch.remainder,
    "equal": torch.eq, "copy": torch.clone, "float64": lambda x: x,
}  # fmt: skip

# Functions of whole arrays; like clip they take their options along.
ARRAYS: dict[str, Callable[..., Any]] = {
    "array": _gathered, "asarray": _gathered, "stack": _stack, "concatenate": _concatenate, "sum": _over(torch.sum),
    "mean": _over(torch.mean), "prod": _over(torch.prod), "cumsum": _over(torch.cumsum), "cumprod": _over(torch.cumprod),
}  # fmt: skip
WHOLE = frozenset([_clip, *ARRAYS.values()])

# Elementwise functions of one name and one meaning in the hosts and in torch, or in torch.special.
SHARED = frozenset(
    [
        "abs", "acos", "acosh", "add", "asin", "asinh", "atan", "atan2", "atanh", "ceil", "copysign", "cos", "cosh",
        "deg2rad", "digamma", "divide", "erf", "erfc", "erfcx", "erfinv", "exp", "exp2", "expm1", "float_power",
        "floor", "fmax", "fmin", "fmod", "full_like", "greater", "greater_equal", "heaviside", "hypot", "i0", "i0e",
        "i1", "i1e", "isfinite", "isinf", "isnan", "less", "less_equal", "lgamma", "log", "log10", "log1p", "log2",
        "log_ndtr", "logaddexp", "logical_and", "logical_not", "logical_or", "logical_xor", "logit", "maximum",
        "minimum", "multiply", "ndtr", "ndtri", "negative", "not_equal", "ones_like", "positive", "pow", "rad2deg",
        "reciprocal", "remainder", "round", "sign", "signbit", "sin", "sinc", "sinh", "sqrt", "square", "subtract",
        "tan", "tanh", "true_divide", "trunc", "where", "xlog1py", "xlogy", "zeros_like",
    ]
)  # fmt: skip
UNLIKE: dict[tuple[types.ModuleType, str], Callable[..., Any] | None] = {  # one name, another meaning
    (math, "remainder"): None,
    (math, "log"): lambda x, *base: torch.log(x) / torch.log(*base) if base else torch.log(x),
}


class Untranslatable(TypeError):
    """A numpy, math or scipy function without a twin in torch met a tensor."""


class Namespace:
    """Stands for a module such as numpy: its functions dispatch, its constants pass."""

    def __init__(self, host: types.ModuleType) -> None:
        self._host = host

    def __getattr__(self, name: str) -> Any:
        """Give the host's attribute, its functions made to dispatch; classes stay classes, for isinstance."""
        value = getattr(self._host, name)
        if isinstance(value, types.ModuleType):
            return Namespace(value)
        if not callable(value) or (isinstance(value, type) and value is not np.float64):
            return value
        return dispatching(value, self._host)


def twin(function: Callable[..., Any], host: types.ModuleType) -> Callable[..., Any] | None:
    """Find the torch function that computes what the host's function does, elementwise."""
    name = getattr(function, "__name__", "")
    if host not in HOSTS:  # numpy.random.gamma is no gamma function
        return None
    if (host, name) in UNLIKE:
        return UNLIKE[host, name]
    if host is np and name in ARRAYS:
        return ARRAYS[name]
    if name in TWINS:
        return TWINS[name]
    return (getattr(torch, name, None) or getattr(torch.special, name, None)) if name in SHARED else None


def dispatching(function: Callable[..., Any], host: types.ModuleType) -> Callable[..., Any]:
    """Wrap a host's function: tensors go to its twin, anything else to the function itself."""
    other = twin(function, host)

    @functools.wraps(function, assigned=("__name__", "__doc__"), updated=())
    def call(*arguments: Any, **options: Any) -> Any:
        if not any(_holds_tensor(a) for a in (*arguments, *options.values())):
            return function(*arguments, **options)
        name = f"{host.__name__}.{getattr(function, '__name__', function)}"
        if other is None or (options and other not in WHOLE):
            raise Untranslatable(f"{name} has no counterpart in torch" + " with these options" * (other is not None))
        floats = (a.dtype for a in arguments if isinstance(a, Tensor) and a.is_floating_point())
        dtype = next(floats, torch.float64)
        try:
            return other(*arguments, **options) if other in WHOLE else other(*(_tensor(a, dtype) for a in arguments))
        except TypeError as error:
            raise Untranslatable(f"{name} has no counterpart in torch for these arguments") from error

    return call


def _holds_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, (list, tuple)) and any(map(_holds_tensor, value)))


def _float_in(values: Any) -> torch.dtype:
    """Find the precision of the first floating-point tensor in a list."""
    parts = [value for value in values if _holds_tensor(value)]
    found = (part.dtype if isinstance(part, Tensor) else _float_in(part) for part in parts)
    return next((dtype for dtype in found if dtype.is_floating_point), torch.float64)


def _tensor(value: Any, dtype: torch.dtype) -> Tensor:
    """Give numbers the dtype of the tensors they meet, in full precision; conditions stay conditions."""
    if isinstance(value, Tensor):
        return value
    return torch.as_tensor(value, dtype=torch.bool if np.asarray(value).dtype == np.bool_ else dtype)


def on_tensors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a copy of ``function`` that runs on tensors; the function itself where nothing needs translating."""
    return _translated(function, {})


def _translated(function: Callable[..., Any], seen: dict[int, Callable[..., Any]]) -> Callable[..., Any]:
    if isinstance(function, functools.partial):
        inner = _translated(function.func, seen)
        return function if inner is function.func else functools.partial(inner, *function.args, **function.keywords)
    if isinstance(function, functools._lru_cache_wrapper):  # a cache takes no arrays and would keep the graphs of tensors
        return _translated(function.__wrapped__, seen)
    if isinstance(function, types.MethodType):
        inner = _translated(function.__func__, seen)
        return function if inner is function.__func__ else types.MethodType(inner, function.__self__)
    if not isinstance(function, types.FunctionType):
        function = _record(function, seen)
        method = type(function).__call__
        return _translated(types.MethodType(method, function), seen) if isinstance(method, types.FunctionType) else function
    if id(function) not in seen:
        seen[id(function)] = _copy(function, seen)
    return seen[id(function)]


def _record(value: Any, seen: dict[int, Callable[..., Any]]) -> Any:
    """Give a frozen record with the functions that it holds translated; the record itself where there are none."""
    if isinstance(value, tuple) and type(value) is tuple:
        parts = tuple(_record(part, seen) for part in value)
        return parts if any(new is not old for new, old in zip(parts, value, strict=True)) else value
    if not (dataclasses.is_dataclass(value) and not isinstance(value, type) and value.__dataclass_params__.frozen):  # type: ignore[attr-defined]
        return _replacement(value, seen)
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
    changed = {name: new for name, old in fields.items() if (new := _record(old, seen)) is not old}
    return dataclasses.replace(value, **changed) if changed else value


def _copy(function: types.FunctionType, seen: dict[int, Callable[..., Any]]) -> Callable[..., Any]:
    """Copy a function with its names translated; the function itself where there are none."""
    names = dict(function.__globals__)
    cells = tuple(types.CellType() for _ in function.__closure__ or ())
    copy = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, cells or None)
    seen[id(function)] = copy  # a recursive function meets its own copy
    changed = False

    def new(old: Any) -> Any:
        nonlocal changed
        value = _replacement(old, seen)
        changed = changed or not (value is old or value is copy)
        return value

    for name in _names(function.__code__) & names.keys():
        names[name] = new(names[name])
    for cell, old in zip(cells, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # not yet assigned
            cell.cell_contents = new(old.cell_contents)
    copy.__defaults__ = tuple(map(new, function.__defaults__ or ())) or None
    copy.__kwdefaults__ = {name: new(value) for name, value in (function.__kwdefaults__ or {}).items()}
    return copy if changed else function


def _names(code: types.CodeType) -> set[str]:
    """Global names that a function and the functions inside it may use."""
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*(_names(constant) for constant in inner))


def _replacement(value: Any, seen: dict[int, Callable[..., Any]]) -> Any:
    if isinstance(value, types.ModuleType):
        root = value.__name__.partition(".")[0]
        return Namespace(value) if value in HOSTS or root in ("numpy", "scipy") else value
    kinds = (types.FunctionType, types.MethodType, functools.partial, functools._lru_cache_wrapper)
    if isinstance(value, kinds) and (getattr(value, "__module__", None) or "").partition(".")[0] not in FOREIGN:
        return _translated(value, seen)
    host = _host_of(value)
    return dispatching(value, host) if host is not None else value


def _host_of(value: Any) -> types.ModuleType | None:
    """Tell whether a name is a function imported from numpy, math or scipy.special."""
    if not isinstance(value, (np.ufunc, types.BuiltinFunctionType, types.FunctionType)) and type(value).__module__ != "numpy":
        return np if value is np.float64 else None
    name = getattr(value, "__name__", None)
    return next((host for host in HOSTS if name and getattr(host, name, None) is value), None)
