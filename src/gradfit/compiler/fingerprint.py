"""What a function computes with, as a key: its code, and the values of everything it reads from outside itself.

Two functions with one fingerprint are one model: compiled code of the one serves the other. Closures that differ only in a
captured number differ here, and so does one function before and after a global it reads was changed. Where something cannot
be vouched for (an object whose attributes may change unseen, a large array), there is no fingerprint, and the function is traced
anew at every fit.

A function that changes something outside itself is no model that may be run once and compiled; :func:`side_effect` says so.
"""

from __future__ import annotations

import builtins
import dataclasses
import dis
import functools
import struct
import types
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

TRUSTED = frozenset(["torch", "numpy", "scipy", "math", "builtins", "cmath", "operator", "functools", "typing"])
LARGEST = 1024  # numbers in a captured array
ACTING = frozenset(["print", "open", "input", "exec", "eval", "setattr", "delattr", "__import__"])  # builtins that act on the world


_MISSING = object()


class _Unknown(Exception):
    """Something whose value cannot be vouched for."""


def fingerprint(function: Any) -> Hashable | None:
    """Give a key of what a function computes with; None where there is none."""
    try:
        return _Marker(exact=True).mark(function)
    except _Unknown:
        return None


def outside(function: Any) -> Hashable:
    """Give a key of what a function reads from outside itself, objects by identity: it changes where the function changes that."""
    return _Marker(exact=False).mark(function)


class Watch:
    """Tells quickly that a function still computes with what it did: the same objects, none of which can change.

    Made from the function itself; :attr:`whole` says whether that was possible.
    """

    def __init__(self, function: Any) -> None:
        self.whole = type(function) is types.FunctionType
        self.globals: list[tuple[dict[str, Any], str, Any]] = []
        self.cells: list[tuple[types.CellType, Any]] = []
        self.functions: list[tuple[types.FunctionType, Any, Any, Any]] = []
        if self.whole:
            self._look(function)

    def _look(self, function: types.FunctionType) -> None:
        if any(function is known for known, *_ in self.functions):
            return
        defaults, keywords = function.__defaults__, function.__kwdefaults__
        self.functions.append((function, function.__code__, defaults, keywords))
        self.whole = self.whole and keywords is None and all(map(_constant, defaults or ()))
        for name in _names(function.__code__):
            value = function.__globals__.get(name, _MISSING)
            self.globals.append((function.__globals__, name, value))
            self._see(value)
        for cell in function.__closure__ or ():
            try:
                self.cells.append((cell, cell.cell_contents))
                self._see(cell.cell_contents)
            except ValueError:
                self.whole = False

    def _see(self, value: Any) -> None:
        if type(value) is types.FunctionType and (value.__module__ or "").partition(".")[0] not in TRUSTED:
            self._look(value)
        elif not _constant(value):
            self.whole = False

    def same(self) -> bool:
        """Whether nothing was put in another's place."""
        return (
            self.whole
            and all(f.__code__ is code and f.__defaults__ is d and f.__kwdefaults__ is k for f, code, d, k in self.functions)
            and all(names.get(name, _MISSING) is value for names, name, value in self.globals)
            and all(cell.cell_contents is value for cell, value in self.cells)
        )


def _constant(value: Any) -> bool:
    """Whether an object cannot change."""
    if value is None or value is _MISSING or type(value) in (bool, int, float, complex, str, bytes):
        return True
    if type(value) is types.ModuleType:
        return value.__name__.partition(".")[0] in TRUSTED
    if type(value) is types.FunctionType:
        return (value.__module__ or "").partition(".")[0] in TRUSTED
    return isinstance(value, (np.ufunc, types.BuiltinFunctionType))


class _Marker:
    def __init__(self, *, exact: bool) -> None:
        self.exact = exact
        self.seen: dict[int, int] = {}

    def mark(self, value: Any) -> Hashable:
        """Give a key of one value."""
        kind = type(value)
        if kind is float:
            return ("float", struct.pack("d", value))
        if value is None or kind in (bool, int, str, bytes, complex):
            return (kind.__name__, value)
        if kind is types.FunctionType:
            return self.function(value)
        if kind is types.ModuleType:
            return self.module(value, ())
        if id(value) in self.seen:
            return ("again", self.seen[id(value)])
        self.seen[id(value)] = len(self.seen)
        return self.container(value)

    def container(self, value: Any) -> Hashable:
        """Give a key of something made of other things."""
        match value:
            case tuple() | list():
                return (type(value).__name__, *map(self.mark, value))
            case set() | frozenset():
                return (type(value).__name__, frozenset(map(self.mark, value)))
            case Mapping() if type(value) in (dict, types.MappingProxyType):
                return ("dict", *((self.mark(key), self.mark(item)) for key, item in value.items()))
            case np.ndarray() | np.generic() if value.dtype.kind in "biufc" and value.size <= LARGEST:
                return ("array", value.dtype.str, value.shape, value.tobytes())
            case Tensor() if type(value) is Tensor and value.numel() <= LARGEST and not value.is_sparse:
                return ("tensor", str(value.dtype), tuple(value.shape), str(value.detach().tolist()))
            case functools.partial():
                return ("partial", self.mark(value.func), self.mark(value.args), self.mark(dict(value.keywords)))
            case types.MethodType():
                return ("method", self.mark(value.__func__), self.mark(value.__self__))
            case functools._lru_cache_wrapper():
                return self.mark(value.__wrapped__)
        return self.thing(value)

    def thing(self, value: Any) -> Hashable:
        """Give a key of something that is what it is: a function of a library, a class, a plain record."""
        home = getattr(value, "__module__", None) or type(value).__module__
        library = isinstance(home, str) and home.partition(".")[0] in TRUSTED
        if isinstance(value, (np.ufunc, types.BuiltinFunctionType)) or (library and (callable(value) or isinstance(value, torch.dtype))):
            return ("library", id(value))
        if dataclasses.is_dataclass(value) and not isinstance(value, type) and value.__dataclass_params__.frozen:  # type: ignore[attr-defined]
            return ("record", type(value).__qualname__, *(self.mark(getattr(value, field.name)) for field in dataclasses.fields(value)))
        return self.unknown(value)

    def unknown(self, value: Any) -> Hashable:
        """Refuse, or where only changes are looked for, take the object for itself."""
        if self.exact:
            raise _Unknown(type(value).__name__)
        return ("object", id(value))

    def module(self, module: types.ModuleType, names: tuple[str, ...]) -> Hashable:
        """Give a key of a module: a library by its name, any other by the values that are read from it."""
        if module.__name__.partition(".")[0] in TRUSTED:
            return ("module", module.__name__)
        return ("module", module.__name__, *((name, self.mark(vars(module)[name])) for name in names if name in vars(module)))

    def function(self, function: types.FunctionType) -> Hashable:
        """Give a key of a Python function: its code, and the values of the names in it."""
        if (function.__module__ or "").partition(".")[0] in TRUSTED:
            return ("library", id(function))
        if id(function) in self.seen:
            return ("again", self.seen[id(function)])  # a function that calls itself
        self.seen[id(function)] = len(self.seen)
        code, names = function.__code__, _names(function.__code__)
        parts: list[Hashable] = [code]
        for name in names:
            value = function.__globals__.get(name, _MISSING)
            if isinstance(value, types.ModuleType):
                parts.append((name, self.module(value, names)))
            elif value is not _MISSING:
                parts.append((name, self.mark(value)))
        for cell in function.__closure__ or ():
            parts.append(self.cell(cell))
        if function.__defaults__ or function.__kwdefaults__:
            parts.append((self.mark(function.__defaults__), self.mark(function.__kwdefaults__)))
        return ("function", *parts)

    def cell(self, cell: types.CellType) -> Hashable:
        """Give a key of a captured variable."""
        try:
            return self.mark(cell.cell_contents)
        except ValueError:  # not yet assigned
            return ("empty",)



@functools.lru_cache(maxsize=1024)
def _names(code: types.CodeType) -> tuple[str, ...]:
    """Names that a function and the functions inside it look up outside of themselves."""
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return tuple(sorted(set(code.co_names).union(*(_names(constant) for constant in inner))))


def side_effect(function: Any) -> str:
    """Say what a function changes outside itself, as far as its code shows; "" where it seems to change nothing."""
    return next((found for found in map(_acts, _functions(function, {}).values()) if found), "")


def _functions(function: Any, found: dict[int, types.FunctionType]) -> dict[int, types.FunctionType]:
    """Collect a user's function and those of the user's that it calls."""
    while isinstance(function, (functools.partial, types.MethodType, functools._lru_cache_wrapper)):
        function = getattr(function, "func", None) or getattr(function, "__func__", None) or function.__wrapped__
    if not isinstance(function, types.FunctionType):
        call = getattr(type(function), "__call__", None)
        function = call if isinstance(call, types.FunctionType) else None
    if function is None or id(function) in found or (function.__module__ or "").partition(".")[0] in TRUSTED:
        return found
    found[id(function)] = function
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(cell.cell_contents)
        except ValueError:
            continue
    for value in [*(function.__globals__.get(name) for name in _names(function.__code__)), *cells]:
        if isinstance(value, (types.FunctionType, functools.partial, functools._lru_cache_wrapper)):
            _functions(value, found)
    return found


def _acts(function: types.FunctionType) -> str:
    return _code_acts(function.__code__, function.__globals__)


def _code_acts(code: types.CodeType, names: Mapping[str, Any]) -> str:
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            return f"it assigns the global {instruction.argval}"
        if instruction.opname in ("STORE_ATTR", "DELETE_ATTR"):
            return f"it assigns the attribute {instruction.argval}"
        if instruction.opname == "STORE_DEREF" and instruction.argval in code.co_freevars:
            return f"it assigns {instruction.argval} of the function around it"
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME") and _is_acting(instruction.argval, names):
            return f"it calls {instruction.argval}"
    inner: list[types.CodeType] = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    own = set(code.co_cellvars)
    return next((found for found in (_code_acts(part, names) for part in inner) if found and not _within(found, own)), "")


def _within(found: str, own: set[str]) -> bool:
    """Whether an inner function only assigns a variable of the model itself."""
    return any(found == f"it assigns {name} of the function around it" for name in own)


def _is_acting(name: object, names: Mapping[str, Any]) -> bool:
    return name in ACTING and name not in names and hasattr(builtins, str(name))


