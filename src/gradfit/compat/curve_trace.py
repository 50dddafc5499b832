"""f compiled with its exact derivatives, where it can be, and remembered: the next call of the same f only brings data.

f is compiled for x of one number per point, (M,), or of some, (k, M) or (M, k). It is not where it acts on something outside
itself (it would act only once), or where it reads something that may change unseen (then each call would have to trace it anew).
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import numpy as np
import torch

from gradfit.compat.curve_capture import captured, holding
from gradfit.compiler import calling
from gradfit.compiler.bridge import on_tensors
from gradfit.compiler.compiled import NativeKernel
from gradfit.compiler.fingerprint import outside, side_effect
from gradfit.data.dataset import Dataset
from gradfit.errors import GradfitError
from gradfit.methods.levenberg_marquardt import LevenbergMarquardt
from gradfit.model.loss import Loss, squared_error
from gradfit.model.model import Model
from gradfit.model.parameters import Parameter, parameters
from gradfit.plans import MEMORY, Plan
from gradfit.typing import Floats

AGREEMENT = 1e-9  # of compiled and called values, relative to the largest
MOST_KNOWN = 1024
METHOD = LevenbergMarquardt()
SQUARED = Loss("squared", squared_error, "least_squares")
ALL = slice(None)
ANY = "any number"  # stands for a captured number where functions are compared

# Functions that could not be compiled, by their values.
_UNTRACED: OrderedDict[Hashable, None] = OrderedDict()
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Layout:
    """How x holds the numbers of each point: one column, or k of them along the first or the last axis."""

    count: int
    axis: int | None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return ("x",) if self.axis is None else tuple(f"x{place}" for place in range(self.count))

    def columns(self, x: Any) -> dict[str, Floats]:
        """Give the columns, (M,) each."""
        array = np.asarray(x, dtype=np.float64)
        if self.axis is None:
            return {"x": array}
        return dict(zip(self.names, array if self.axis == 0 else array.T, strict=True))


def layout_of(x: Any, n: int) -> Layout | None:
    """See how x holds the numbers of n points; None where it does otherwise."""
    dtype = getattr(x, "dtype", None)
    if not (isinstance(dtype, np.dtype) and dtype.kind in "fiu"):
        return None
    shape = tuple(getattr(x, "shape", ()))
    if shape == (n,):
        return Layout(1, None)
    if type(x) is np.ndarray and len(shape) == 2:
        return Layout(shape[0], 0) if shape[1] == n else Layout(shape[1], 1) if shape[0] == n else None
    return None


class Columns:
    """x of several numbers per point, for tracing: its columns may be taken one by one, as of an array."""

    def __init__(self, columns: tuple[Any, ...], axis: int) -> None:
        self.columns, self.axis = columns, axis

    def __len__(self) -> int:
        return len(self._first())

    def __iter__(self) -> Iterator[Any]:
        return iter(self._first())

    def _first(self) -> tuple[Any, ...]:
        if self.axis == 1:
            raise TypeError("rows of x are taken one by one")
        return self.columns

    def __getitem__(self, key: Any) -> Any:
        """Give a column: ``x[j]``, ``x[j, :]``, ``x[..., j, :]`` along the first axis, ``x[:, j]``, ``x[..., j]`` along the last."""
        match self.axis, key:
            case 0, int() as place:
                whole = True
            case 0, (int() as place, slice() as rest) | (EllipsisType(), int() as place, slice() as rest):
                whole = rest == ALL
            case 1, (slice() as rest, int() as place):
                whole = rest == ALL
            case 1, (EllipsisType(), int() as place):
                whole = True
            case _:
                whole = False
        if not whole:
            raise TypeError(f"x[{key}] is no column of x")
        return self.columns[place]

    @property
    def T(self) -> Columns:
        """Rows and columns exchanged."""
        return Columns(self.columns, 1 - self.axis)


class Traced:
    """What is known of one f, for p parameters and x of one layout.

    Attributes
    ----------
    numbers
        Numbers that f captures, which are data to its compiled code.
    hopeless
        f cannot be compiled, or not remembered.
    """

    def __init__(self, f: Callable[..., Any], layout: Layout, p: int) -> None:
        self.f, self.layout, self.p = f, layout, p
        self.numbers = captured(f, 1 + p)
        self._look()
        known = self.hopeless or (self.plan is not None and not self.numbers)
        self.before = None if known else outside(f)  # what f reads, before it is called

    def _look(self) -> None:
        """Find what is remembered: of f whatever its numbers, and where that cannot be, of f with them."""
        names = tuple(self.numbers)
        model = holding(self.f, dict.fromkeys(names, ANY)) if names else self.f
        self.name, self.plan = MEMORY.find(model, ("curve_fit", self.layout.count, self.layout.axis, self.p, names), "lm")
        with _LOCK:
            self.hopeless = self.plan is None and (self.name is None or self.name in _UNTRACED)
        if self.hopeless and names:
            self.numbers = {}
            self._look()

    def kernel(self, data: Dataset) -> NativeKernel | None:
        """Give f compiled on data, where it is known to be f; None where f has to be called first."""
        return None if self.plan is None or self.numbers else self.plan.kernel(data, self.plan.parameters)

    def compile(self, data: Dataset, start: Floats, value: Floats) -> NativeKernel | None:
        """Compile f, which gave ``value`` at the start, when it was called as it is; None where that cannot be done."""
        while not self.hopeless:
            kernel = self._compiled(data, start) if self.plan is None else self._with_numbers(self.plan, data)
            if kernel is not None and _alike(kernel.jacobian(start)[0], value):
                if self.plan is None:
                    MEMORY.remember(self.name, Plan(kernel.model, kernel.parameters, METHOD, kernel.base, kernel.code))
                return kernel
            if self.plan is None:
                _give_up(self.name)
            if not self.numbers:
                break
            self.numbers = {}  # one of them decides what f computes
            self._look()
            if self.plan is not None:
                return self.kernel(data)
        return None

    def _with_numbers(self, plan: Plan, data: Dataset) -> NativeKernel:
        own = {_constant(name): number for name, number in self.numbers.items()}
        return plan.kernel(data, plan.parameters.started(own))

    def _compiled(self, data: Dataset, start: Floats) -> NativeKernel | None:
        if side_effect(self.f) or outside(self.f) != self.before:
            return None
        free = {f"p{place}": Parameter(start=number) for place, number in enumerate(start.tolist())}
        fixed = {_constant(name): Parameter(start=number, fixed=True) for name, number in self.numbers.items()}
        label = getattr(self.f, "__name__", type(self.f).__name__)
        function = _by_name(on_tensors(self.f), self.layout, self.p, tuple(self.numbers))
        model = Model("function", function, self.layout.names, free | fixed, "ydata", None, label)
        known = parameters(model.defaults)
        rows = data.independent()
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")  # what f says of numbers that nobody asked it about
                kernel = calling.alone(model, known, rows, SQUARED, dtype=torch.float64, engine="native")
        except GradfitError:
            return None
        assert isinstance(kernel, NativeKernel)
        return NativeKernel(kernel.base, data, known, kernel.code)


def _constant(name: str) -> str:
    return f"captured_{name}"


def _give_up(name: Hashable | None) -> None:
    """Remember that a function cannot be compiled."""
    with _LOCK:
        _UNTRACED[name] = None
        while len(_UNTRACED) > MOST_KNOWN:
            _UNTRACED.popitem(last=False)


def _alike(compiled: Floats, called: Floats) -> bool:
    return np.allclose(compiled, called, rtol=0, atol=AGREEMENT * float(np.abs(called).max()))


def _by_name(f: Callable[..., Any], layout: Layout, p: int, numbers: tuple[str, ...]) -> Callable[..., Any]:
    """Give f with its arguments by name: columns of x, then parameters, then the numbers it captures."""
    axis, count = layout.axis, layout.count

    def call(**values: Any) -> Any:
        given = tuple(values.values())
        x = given[0] if axis is None else Columns(given[:count], axis)
        own = holding(f, dict(zip(numbers, given[count + p :], strict=True))) if numbers else f
        return own(x, *given[count : count + p])

    return call
