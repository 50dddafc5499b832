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
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

TRUSTED = frozenset(["torch", "numpy", "scipy", "math", "builtins", "cmath", "operator", "functools", "typing"])
READING = frozenset(
    [
        "environ", "fromfile", "genfromtxt", "getenv", "globals", "load", "loadtxt", "locals", "memmap", "open", "read_bytes", "read_csv",
        "read_text", "vars",
    ]
)  # fmt: skip
LARGEST = 1024  # numbers in a captured array
# Builtins that act on the world.
ACTING = frozenset(["print", "open", "input", "exec", "eval", "setattr", "delattr", "__import__"])
# Kinds of functions that libraries written in C have, and classes.
FUNCTIONS = (
    type,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    type(np.sum),
    torch._ops.OpOverload,
    torch._ops.OpOverloadPacket,
)
WRAPPERS = (functools.partial, types.MethodType, functools._lru_cache_wrapper)
_MISSING = object()


class _Unknown(Exception):
    """Something whose value cannot be vouched for."""


def fingerprint(function: Any, *, largest: float = LARGEST) -> Hashable | None:
    """Give a key of what a function computes with; None where there is none, as for one that holds an array of more than ``largest`` numbers."""
    try:
        return _Marker(exact=True, largest=largest).mark(function)
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
        self.whole = self.whole and not function.__dict__ and not _imports(function.__code__)
        for name in _names(function.__code__):
            value = function.__globals__.get(name, _MISSING)
            self.globals.append((function.__globals__, name, value))
            self._see(value)
        for cell in function.__closure__ or ():
            self.cells.append((cell, _content(cell)))
            self._see(_content(cell))

    def _see(self, value: Any) -> None:
        if type(value) is types.FunctionType and not _of_library(value):
            self._look(value)
        elif not _constant(value):
            self.whole = False

    def same(self) -> bool:
        """Whether nothing was put in another's place."""
        return (
            self.whole
            and all(f.__code__ is code and f.__defaults__ is d and f.__kwdefaults__ is k for f, code, d, k in self.functions)
            and all(names.get(name, _MISSING) is value for names, name, value in self.globals)
            and all(_content(cell) is value for cell, value in self.cells)
        )


def _constant(value: Any) -> bool:
    """Whether an object cannot change."""
    if value is None or value is _MISSING or type(value) in (bool, int, float, complex, str, bytes):
        return True
    if type(value) is types.ModuleType:
        return _trusted(value.__name__)
    return _permanent(value)


def _trusted(name: object) -> bool:
    """Whether a module, by its name, is a library that stays as it is."""
    return isinstance(name, str) and name.partition(".")[0] in TRUSTED


def _of_library(function: types.FunctionType, inside: tuple[Any, ...] = ()) -> bool:
    """Whether a function is a library's own: written there, named so, and no wrapper around a user's function."""
    if not (_trusted(function.__module__) and _trusted(function.__globals__.get("__name__"))):
        return False
    held = [content for content in map(_content, function.__closure__ or ()) if isinstance(content, types.FunctionType)]
    inside = (*inside, function)
    return all(any(each is known for known in inside) or _of_library(each, inside) for each in held)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet assigned
        return _MISSING


def _permanent(value: Any) -> bool:
    """Whether an object is a library's function or class; an object made of such a class may hold anything."""
    if isinstance(value, types.FunctionType):
        return _of_library(value)
    if isinstance(value, types.BuiltinFunctionType):  # also a method of some object, such as [1, 2].index
        return value.__self__ is None or isinstance(value.__self__, (types.ModuleType, type))
    home = getattr(value, "__module__", None) or type(value).__module__
    return isinstance(value, (np.ufunc, torch.dtype)) or (isinstance(value, FUNCTIONS) and _trusted(home))


class _Marker:
    def __init__(self, *, exact: bool, largest: float = LARGEST) -> None:
        self.exact, self.largest = exact, largest
        self.modules: set[tuple[int, tuple[str, ...]]] = set()
        self.seen: dict[int, tuple[int, Any]] = {}  # with the object itself: another may not take its place in memory

    def mark(self, value: Any) -> Hashable:
        """Give a key of one value."""
        kind = type(value)
        if kind is float:
            return ("float", struct.pack("d", value))
        if value is _MISSING:  # a variable not yet assigned
            return ("missing",)
        if value is None or kind in (bool, int, str, bytes):
            return (kind.__name__, value)
        if kind is complex:
            return ("complex", struct.pack("dd", value.real, value.imag))
        if kind is types.FunctionType:
            return self.function(value)
        if kind is types.ModuleType:
            return self.module(value, ())
        if id(value) in self.seen:
            return ("again", self.seen[id(value)][0])
        self.seen[id(value)] = len(self.seen), value
        return self.container(value)

    def container(self, value: Any) -> Hashable:
        """Give a key of something made of other things."""
        match value:
            case tuple() | list():
                return (type(value), *map(self.mark, value))
            case set() | frozenset():
                return (type(value), frozenset(map(self.mark, value)))
            case Mapping() if type(value) in (dict, types.MappingProxyType):
                return ("dict", *((self.mark(key), self.mark(item)) for key, item in value.items()))
            case np.ndarray() | np.generic() if _plain(value, self.largest):
                return ("array", value.dtype.str, value.shape, value.tobytes())
            case Tensor() if type(value) is Tensor and value.numel() <= self.largest and not value.is_sparse:
                return ("tensor", str(value.dtype), tuple(value.shape), str(value.detach().tolist()))
            case functools.partial():
                return ("partial", self.mark(value.func), self.mark(value.args), self.mark(value.keywords))
            case types.MethodType():
                return ("method", self.mark(value.__func__), self.mark(value.__self__))
            case functools._lru_cache_wrapper():
                return self.mark(value.__wrapped__)
        return self.thing(value)

    def thing(self, value: Any) -> Hashable:
        """Give a key of something that is what it is: a function of a library, a class, a plain record."""
        if _permanent(value):
            return ("library", value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type) and value.__dataclass_params__.frozen:  # type: ignore[attr-defined]
            return ("record", type(value), *(self.mark(getattr(value, field.name)) for field in dataclasses.fields(value)))
        return self.unknown(value)

    def unknown(self, value: Any) -> Hashable:
        """Refuse, or where only changes are looked for, take the object for itself."""
        if self.exact:
            raise _Unknown(type(value).__name__)
        return ("object", id(value))

    def module(self, module: types.ModuleType, names: tuple[str, ...]) -> Hashable:
        """Give a key of a module: a library by its name, any other by the values that are read from it."""
        if _trusted(module.__name__):
            return ("module", module.__name__)
        if (id(module), names) in self.modules:
            return ("again", module.__name__)
        self.modules.add((id(module), names))
        read = {name: vars(module)[name] for name in names if name in vars(module)}
        return ("module", module.__name__, *((name, self.value(value, names)) for name, value in read.items()))

    def value(self, value: Any, names: tuple[str, ...]) -> Hashable:
        """Give a key of what a function with these names reads: of a module, what it reads from that."""
        return self.module(value, names) if isinstance(value, types.ModuleType) else self.mark(value)

    def function(self, function: types.FunctionType) -> Hashable:
        """Give a key of a Python function: its code, and the values of the names in it."""
        if _of_library(function):
            return ("library", function)
        if id(function) in self.seen:
            return ("again", self.seen[id(function)][0])  # a function that calls itself
        self.seen[id(function)] = len(self.seen), function
        code, names = function.__code__, _names(function.__code__)
        if self.exact and READING.intersection(names):
            raise _Unknown("a function that reads what its names do not show")
        if _imports(code):
            self.unknown(function)
        read = {name: function.__globals__[name] for name in names if name in function.__globals__}
        return (
            "function",
            code,
            *((name, self.value(value, names)) for name, value in read.items()),
            *(("cell", self.value(_content(cell), names)) for cell in function.__closure__ or ()),
            *(self.mark(part) for part in (function.__defaults__, function.__kwdefaults__, function.__dict__ or None)),
        )


@functools.lru_cache(maxsize=1024)
def _names(code: types.CodeType) -> tuple[str, ...]:
    """Names that a function and the functions inside it look up outside of themselves."""
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return tuple(sorted(set(code.co_names).union(*(_names(constant) for constant in inner))))


@functools.lru_cache(maxsize=1024)
def _imports(code: types.CodeType) -> bool:
    """Whether a function, when it is called, imports modules that are no libraries."""
    own = (instruction.argval for instruction in dis.get_instructions(code) if instruction.opname == "IMPORT_NAME")
    return not all(map(_trusted, own)) or any(_imports(part) for part in code.co_consts if isinstance(part, types.CodeType))


def _plain(value: np.ndarray | np.generic, largest: float) -> bool:
    """Whether an array is nothing but numbers, and not too many."""
    plain = type(value) is np.ndarray or isinstance(value, np.generic)
    return plain and value.dtype.kind in "biufc" and value.size <= largest


def side_effect(function: Any) -> str:
    """Say what a function changes outside itself, as far as its code shows; "" where it seems to change nothing."""
    return next((found for found in map(_acts, _functions(function, {}).values()) if found), "")


def _functions(function: Any, found: dict[int, types.FunctionType]) -> dict[int, types.FunctionType]:
    """Collect a user's function and those of the user's that it calls."""
    while isinstance(function, WRAPPERS):
        function = (
            getattr(function, "func", None) or getattr(function, "__func__", None) or getattr(function, "__wrapped__", None)
        )
    if not isinstance(function, types.FunctionType):
        for part in _held(function):
            if isinstance(part, (types.FunctionType, *WRAPPERS)):
                _functions(part, found)
        call = next((vars(base)["__call__"] for base in type(function).__mro__ if "__call__" in vars(base)), None)
        function = call if isinstance(call, types.FunctionType) else None
    if function is None or id(function) in found or _of_library(function):
        return found
    found[id(function)] = function
    names = (function.__globals__.get(name) for name in _names(function.__code__))
    for value in [*names, *map(_content, function.__closure__ or ())]:
        if isinstance(value, (types.FunctionType, *WRAPPERS)):
            _functions(value, found)
    return found


def _held(value: Any) -> Iterator[Any]:
    """Give what a frozen record holds, that of records within it too."""
    if isinstance(value, tuple):
        for part in value:
            yield from _held(part)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type) and value.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        yield from _held(tuple(getattr(value, field.name) for field in dataclasses.fields(value)))
    else:
        yield value


def _acts(function: types.FunctionType) -> str:
    return next(_code_acts(function.__code__, function.__globals__), "")


def _code_acts(code: types.CodeType, names: Mapping[str, Any]) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            yield f"it assigns the global {instruction.argval}"
        if instruction.opname in ("STORE_ATTR", "DELETE_ATTR"):
            yield f"it assigns the attribute {instruction.argval}"
        if instruction.opname in ("STORE_DEREF", "DELETE_DEREF") and instruction.argval in code.co_freevars:
            yield f"it assigns {instruction.argval} of the function around it"
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME") and _is_acting(instruction.argval, names):
            yield f"it calls {instruction.argval}"
    # What an inner function only assigns of the model's own variables is nobody else's concern.
    own = {f"it assigns {name} of the function around it" for name in code.co_cellvars}
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            yield from (found for found in _code_acts(part, names) if found not in own)


def _is_acting(name: object, names: Mapping[str, Any]) -> bool:
    return name in ACTING and name not in names and hasattr(builtins, str(name))
