"""xarray's ``func(x, *params)`` or ``func((x, t), *params)`` as a model of named arguments."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gradfit.compat.curve_trace import Columns
from gradfit.model.model import Model
from gradfit.model.parameters import Parameter

PLAIN = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial, np.ufunc)


@dataclass(frozen=True)
class Calling:
    """How the arguments of a function are put together from named values.

    Attributes
    ----------
    data, parameters
        Names of the coordinates and of the parameters, in the order of the function.
    """

    data: tuple[str, ...]
    parameters: tuple[str, ...]

    def x(self, values: dict[str, Any]) -> Any:
        """Give the coordinates: one as it is, several as the rows of one array."""
        columns = tuple(values[name] for name in self.data)
        if len(columns) == 1:
            return columns[0]
        if any(isinstance(column, torch.Tensor) for column in columns):
            return Columns(columns, 0)
        return np.array(columns)

    def numbers(self, values: dict[str, Any]) -> list[Any]:
        """Give the parameters."""
        return [values[name] for name in self.parameters]

    def spread(self, found: Any, values: dict[str, Any]) -> Any:
        """Give to each point what the function gave as one number for all."""
        like = values[self.data[0]]
        if np.ndim(like) != 1 or np.ndim(found) != 0:
            return found
        return found + torch.zeros_like(like) if isinstance(like, torch.Tensor) else np.full(len(like), found)


def curve_model(func: Callable[..., Any], names: Sequence[str], count: int) -> Model:
    """Give a function of ``count`` coordinates and of parameters by position as a model of named arguments.

    The model holds the function and plain values alone, so that it is traced, recognised and remembered as the function would be.
    """
    calling = Calling(_data_names(names, count), tuple(names))
    called: Callable[..., Any] = func if isinstance(func, PLAIN) else type(func).__call__.__get__(func)

    def curve(**values: Any) -> Any:
        return calling.spread(called(calling.x(values), *calling.numbers(values)), values)

    return Model("function", curve, calling.data, {name: Parameter() for name in names}, None, None, label_of(func))


def label_of(func: Callable[..., Any]) -> str:
    """Name a function in a message."""
    name = getattr(func, "__name__", type(func).__name__)
    return "func" if name == "<lambda>" else str(name)


def _data_names(names: Sequence[str], count: int) -> tuple[str, ...]:
    """Name the coordinates as no parameter is named."""
    stem = "x"
    while any(name.startswith(stem) and name.removeprefix(stem).strip("0123456789") == "" for name in names):
        stem += "_"
    return (stem,) if count == 1 else tuple(f"{stem}{place}" for place in range(count))
