"""The plain numbers that a function reads from outside, as arguments: ``lambda x, a: a * np.exp(-k * x)`` is compiled once for all k.

They are those of its closure, of the module's variables it names, of its defaults, and of the keywords of a
:func:`functools.partial`.
"""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

ALWAYS = ("__builtins__", "__name__")  # what Python itself reads of a function's module


def captured(f: Callable[..., Any], arguments: int) -> dict[str, float]:
    """Give the numbers a function reads, by name; its first ``arguments`` arguments are given by the caller."""
    held: dict[str, Any] = {}
    if type(f) is functools.partial:
        held = f.keywords
    elif type(f) is types.FunctionType and f.__kwdefaults__ is None and not f.__dict__:
        held = _read(f, arguments)
    return {name: float(value) for name, value in held.items() if type(value) in (float, np.float64) and math.isfinite(value)}


def _read(f: types.FunctionType, arguments: int) -> dict[str, Any]:
    code, known = f.__code__, f.__globals__
    held = {name: known[name] for name in _names(code) if name in known}
    cells = zip(code.co_freevars, f.__closure__ or (), strict=True)
    held |= {name: cell.cell_contents for name, cell in cells if cell != types.CellType()}
    defaults = f.__defaults__ or ()
    first = code.co_argcount - len(defaults)
    return held | {code.co_varnames[first + place]: value for place, value in enumerate(defaults) if first + place >= arguments}


@functools.lru_cache(maxsize=1024)
def _names(code: types.CodeType) -> frozenset[str]:
    """Names that a function and the functions inside it may look up in its module."""
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return frozenset(code.co_names).union(*map(_names, inner))


def holding(f: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    """Give the function with other values in the place of those it reads."""
    if isinstance(f, functools.partial):
        return functools.partial(f.func, *f.args, **{**f.keywords, **values})
    assert isinstance(f, types.FunctionType)
    code, defaults = f.__code__, f.__defaults__ or ()
    cells = zip(code.co_freevars, f.__closure__ or (), strict=True)
    closure = tuple(types.CellType(values[name]) if name in values else cell for name, cell in cells)
    last = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
    given = tuple(values.get(name, default) for name, default in zip(last, defaults, strict=True))
    # Only what it names: a copy of everything would keep the module's arrays alive.
    named = {name: f.__globals__[name] for name in (*_names(code), *ALWAYS) if name in f.__globals__}
    known = named | {name: value for name, value in values.items() if name in named}
    return types.FunctionType(code, known, f.__name__, given or None, closure or None)
