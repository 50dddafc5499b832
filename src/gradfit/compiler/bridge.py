"""Functions written with numpy or math, made to run on tensors.

A model that calls ``np.exp`` or ``math.exp`` computes the same thing as one that calls ``torch.exp``, but loses the
derivative. ``on_tensors`` gives a copy of the function in which the names ``np``, ``math``, ``scipy.special`` and what was
imported from them stand for functions that go to torch when they meet a tensor. The user's own function is not changed.
A function of theirs that has no twin in torch raises :class:`Untranslatable` on a tensor, so nothing is lost in silence.
"""

from __future__ import annotations

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

# Names that differ between the hosts and torch; every other name is looked up in torch and torch.special as it is.
TWINS: dict[str, Callable[..., Any]] = {
    "arccos": torch.acos, "arccosh": torch.acosh, "arcsin": torch.asin, "arcsinh": torch.asinh, "arctan": torch.atan,
    "arctan2": torch.atan2, "arctanh": torch.atanh, "power": torch.pow, "pow": torch.pow, "fabs": torch.abs,
    "absolute": torch.abs, "abs": torch.abs, "gammaln": torch.lgamma, "expit": torch.sigmoid, "clip": torch.clamp,
    "cbrt": lambda x: torch.sign(x) * torch.abs(x) ** (1 / 3), "degrees": torch.rad2deg, "radians": torch.deg2rad,
    "gamma": lambda x: torch.exp(torch.lgamma(x)), "reciprocal": torch.reciprocal, "log_ndtr": torch.special.log_ndtr,
    "true_divide": torch.true_divide, "mod": torch.remainder, "fmod": torch.fmod, "float64": lambda x: x, "asarray": lambda x: x,
}  # fmt: skip

# Elementwise functions of one name and one meaning in the hosts and in torch.
SHARED = frozenset(
    [
        "acos",
        "acosh",
        "add",
        "asin",
        "asinh",
        "atan",
        "atan2",
        "atanh",
        "ceil",
        "cos",
        "cosh",
        "divide",
        "equal",
        "erf",
        "erfc",
        "exp",
        "exp2",
        "expm1",
        "floor",
        "greater",
        "greater_equal",
        "heaviside",
        "hypot",
        "less",
        "less_equal",
        "log",
        "log10",
        "log1p",
        "log2",
        "logaddexp",
        "logical_and",
        "logical_not",
        "logical_or",
        "maximum",
        "minimum",
        "multiply",
        "ndtr",
        "negative",
        "not_equal",
        "remainder",
        "round",
        "sign",
        "sin",
        "sinc",
        "sinh",
        "sqrt",
        "square",
        "subtract",
        "tan",
        "tanh",
        "trunc",
        "where",
        "xlogy",
        "zeros_like",
        "ones_like",
        "full_like",
    ]
)
UNLIKE = {(np, "gamma"), (math, "remainder")}  # one name, another meaning


class Untranslatable(TypeError):
    """A numpy, math or scipy function without a twin in torch met a tensor."""


class Namespace:
    """Stands for a module such as numpy: its functions dispatch, its constants pass."""

    def __init__(self, host: types.ModuleType) -> None:
        self._host = host

    def __getattr__(self, name: str) -> Any:
        """Give the host's attribute, its functions made to dispatch."""
        value = getattr(self._host, name)
        if isinstance(value, types.ModuleType):
            return Namespace(value)
        return dispatching(value, self._host) if callable(value) else value


def twin(function: Callable[..., Any], host: types.ModuleType) -> Callable[..., Any] | None:
    """Find the torch function that computes what the host's function does, elementwise."""
    name = getattr(function, "__name__", "")
    if (host, name) in UNLIKE:
        return None
    if name in TWINS:
        return TWINS[name]
    return (getattr(torch, name, None) or getattr(torch.special, name, None)) if name in SHARED else None


def dispatching(function: Callable[..., Any], host: types.ModuleType) -> Callable[..., Any]:
    """Wrap a host's function: tensors go to its twin, anything else to the function itself."""
    other = twin(function, host)

    @functools.wraps(function, assigned=("__name__", "__doc__"), updated=())
    def call(*arguments: Any, **options: Any) -> Any:
        tensor = next((a for a in (*arguments, *options.values()) if isinstance(a, Tensor)), None)
        if tensor is None:
            return function(*arguments, **options)
        if other is None or options:
            raise Untranslatable(f"{host.__name__}.{getattr(function, '__name__', function)} has no counterpart in torch")
        if other is torch.clamp:  # its limits are numbers
            return other(*arguments)
        floats = (a.dtype for a in arguments if isinstance(a, Tensor) and a.is_floating_point())
        dtype = next(floats, torch.float64)
        return other(*(a if isinstance(a, Tensor) else torch.as_tensor(a, dtype=dtype) for a in arguments))

    return call


def on_tensors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a copy of ``function`` that runs on tensors; the function itself where nothing needs translating."""
    return _translated(function, {})


def _translated(function: Callable[..., Any], seen: dict[int, Callable[..., Any]]) -> Callable[..., Any]:
    if isinstance(function, functools.partial):
        return functools.partial(_translated(function.func, seen), *function.args, **function.keywords)
    if isinstance(function, types.MethodType):
        inner = _translated(function.__func__, seen)
        return function if inner is function.__func__ else types.MethodType(inner, function.__self__)
    if not isinstance(function, types.FunctionType):
        return function
    if id(function) in seen:
        return seen[id(function)]
    seen[id(function)] = function  # a recursive function meets itself: leave that call as it is
    names = _names(function.__code__)
    changed = {
        name: new
        for name in names & function.__globals__.keys()
        if (new := _replacement(function.__globals__[name], seen)) is not function.__globals__[name]
    }
    cells = tuple(_cell(cell, seen) for cell in function.__closure__ or ())
    if not changed and all(new is old for new, old in zip(cells, function.__closure__ or (), strict=True)):
        return function
    copy = types.FunctionType(
        function.__code__, function.__globals__ | changed, function.__name__, function.__defaults__, cells or None
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    seen[id(function)] = copy
    return copy


def _names(code: types.CodeType) -> set[str]:
    """Global names that a function and the functions inside it may use."""
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*(_names(constant) for constant in inner))


def _cell(cell: types.CellType, seen: dict[int, Callable[..., Any]]) -> types.CellType:
    try:
        value = cell.cell_contents
    except ValueError:  # not yet assigned
        return cell
    new = _replacement(value, seen)
    return cell if new is value else types.CellType(new)


def _replacement(value: Any, seen: dict[int, Callable[..., Any]]) -> Any:
    if isinstance(value, types.ModuleType):
        root = value.__name__.partition(".")[0]
        return Namespace(value) if value in HOSTS or root in ("numpy", "scipy") else value
    if isinstance(value, types.FunctionType) and (value.__module__ or "").partition(".")[0] not in FOREIGN:
        return _translated(value, seen)
    host = _host_of(value)
    return dispatching(value, host) if host is not None else value


def _host_of(value: Any) -> types.ModuleType | None:
    """Tell whether a name is a function imported from numpy, math or scipy.special."""
    if not isinstance(value, (np.ufunc, types.BuiltinFunctionType, types.FunctionType)) and type(value).__module__ != "numpy":
        return None
    name = getattr(value, "__name__", None)
    return next((host for host in HOSTS if name and getattr(host, name, None) is value), None)
