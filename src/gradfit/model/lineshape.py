"""Lineshape: a function of x and named parameters that also knows where to start, and sums and products of such.

A lineshape is called like the function it is, on tensors or arrays. ``a + b`` and ``a * b`` are lineshapes again;
``prefixed`` renames parameters, so that one shape can stand twice in a sum. The ready ones are in :mod:`gradfit.model.lineshapes`.
"""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from gradfit.errors import ModelError
from gradfit.model import guessing
from gradfit.model.parameters import Parameter
from gradfit.model.separable import is_ready, on_arrays

POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD


class Lineshape:
    """What a single shape, a sum and a product have in common.

    Attributes
    ----------
    variable
        Name of the data argument, ``"x"`` unless :meth:`of` says otherwise.
    specs
        Parameters by name, in the order of the signature; their starts are None unless a plain function gave some.
    """

    variable: str

    @property
    def specs(self) -> Mapping[str, Parameter]:
        """Parameters by name, with their bounds."""
        raise NotImplementedError

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters."""
        return tuple(self.specs)

    def evaluate(self, x: Any, values: Mapping[str, Any]) -> Any:
        """Compute the shape, on tensors or on arrays; x and parameters may be broadcast against each other."""
        raise NotImplementedError

    def prefixed(self, prefix: str) -> Lineshape:
        """Give the same shape with ``prefix`` before every parameter's name."""
        raise NotImplementedError

    def of(self, variable: str) -> Lineshape:
        """Give the same shape as a function of a column of another name: ``gaussian.of("energy")``."""
        raise NotImplementedError

    def guess(
        self, x: Any, y: Any, sigma: Any = None, known: Mapping[str, float] | None = None, bounds: guessing.Bounds | None = None
    ) -> dict[str, float]:
        """Guess parameters from data, good enough to start a fit; see :mod:`gradfit.model.guessing`.

        Parameters
        ----------
        x, y
            (n,) each, in any order, repeated x allowed. Rows with NaN or infinite values are left out.
        sigma
            Standard deviation of y: a number or (n,).
        known
            Parameters whose values are known; they come back unchanged, and the others are guessed given them.
        bounds
            ``{"center": (0, None)}``: where guesses must lie, besides where the formula needs them.

        Raises
        ------
        DataError
            No data; fewer different x than parameters to be guessed; x where the formula is not defined.
        ParameterError
            ``known`` or ``bounds`` name a parameter the shape does not have.
        """
        return guessing.starts(self, x, y, sigma, known=known, bounds=bounds, count=guessing.FEW)[0]

    def starts(
        self,
        x: Any,
        y: Any,
        sigma: Any = None,
        known: Mapping[str, float] | None = None,
        count: int = 8,
        bounds: guessing.Bounds | None = None,
        *,
        refined: bool = True,
    ) -> list[dict[str, float]]:
        """Give up to ``count`` distinct guesses, the best first; arguments and errors as in :meth:`guess`.

        With ``refined=False`` they are what a scan finds, which is quicker and does where a fit is made from each; there may then be more
        than ``count``, as one curve may be described in several ways.
        """
        return guessing.starts(self, x, y, sigma, known=known, bounds=bounds, count=count, refined=refined)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Compute the shape at x: a tensor where any argument is one, else an array."""
        values = self._bound(arguments, named)
        dtype = next((value.dtype for value in values.values() if isinstance(value, Tensor)), None)
        given = {name: _numbers(value, dtype) for name, value in values.items()}
        result = self.evaluate(given.pop(self.variable), given)
        return result if isinstance(result, Tensor) or result.ndim else float(result)

    def _bound(self, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
        names = (self.variable, *self.specs)
        values = dict(zip(names, arguments, strict=False)) | dict(named)
        if len(arguments) + len(named) != len(names) or set(values) != set(names):
            given = ", ".join([*(f"argument {place + 1}" for place in range(len(arguments))), *named]) or "nothing"
            raise ModelError(f"{self} was called with {given}; expected a value for each of {', '.join(names)}.")
        return values

    def __add__(self, other: Any) -> Lineshape:
        """Give the sum with another shape."""
        return Sum((*_parts(self, Sum), *_parts(_checked(other, "+"), Sum)))

    def __mul__(self, other: Any) -> Lineshape:
        """Give the product with another shape."""
        return Product((*_parts(self, Product), *_parts(_checked(other, "*"), Product)))

    def __radd__(self, other: Any) -> Lineshape:
        """Begin a sum, for Python's ``sum`` adds to 0; refuse anything else that is no lineshape."""
        return self if type(other) is int and other == 0 else _checked(other, "+") + self

    def __rmul__(self, other: Any) -> Lineshape:
        """Refuse what is no lineshape."""
        return _checked(other, "*") * self

    def __str__(self) -> str:
        return str(vars(self)["__name__"])

    def __repr__(self) -> str:
        return f"<lineshape {self}({', '.join((self.variable, *self.specs))})>"

    def _describe(self, name: str, text: str | None) -> None:
        """Set what makes an object look like a function: its name, text and signature.

        Raises
        ------
        ModelError
            A name that Python keeps for itself, such as a variable "lambda".
        """
        reserved = [own for own in (self.variable, *self.specs) if keyword.iskeyword(own)]
        if reserved:
            raise ModelError(
                f"{reserved[0]!r} is a word of Python's own; expected a name for an argument of {name}, such as '{reserved[0]}_'."
            )
        arguments = [inspect.Parameter(self.variable, POSITIONAL)]
        arguments += [inspect.Parameter(known, POSITIONAL, default=spec) for known, spec in self.specs.items()]
        for key, value in (("__name__", name), ("__doc__", text), ("__signature__", inspect.Signature(arguments))):
            object.__setattr__(self, key, value)


@dataclass(frozen=True, repr=False)
class Single(Lineshape):
    """One shape.

    Attributes
    ----------
    formula
        ``formula(x, *parameters)`` on tensors.
    own
        Parameters by the formula's names, with their bounds.
    prefix
        Stands before these names in the signature.
    """

    label: str
    formula: Callable[..., Any]
    own: tuple[tuple[str, Parameter], ...]
    prefix: str = ""
    variable: str = "x"

    def __post_init__(self) -> None:
        self._describe(self.prefix + self.label, self.formula.__doc__)

    @property
    def specs(self) -> Mapping[str, Parameter]:
        """Parameters by name, with their bounds."""
        return {self.prefix + name: spec for name, spec in self.own}

    def evaluate(self, x: Any, values: Mapping[str, Any]) -> Any:
        """Compute the formula; a ready one always on tensors, a plain function on arrays where it was given arrays."""
        given = [values[self.prefix + name] for name, _ in self.own]
        if isinstance(x, Tensor):
            return self.formula(x, *given)
        if is_ready(self.formula):
            return self.formula(*map(torch.from_numpy, (x, *given))).numpy()
        return np.asarray(on_arrays(self.formula, x, given))

    def prefixed(self, prefix: str) -> Single:
        """Give the same shape with ``prefix`` before every parameter's name."""
        if not (isinstance(prefix, str) and f"{prefix}a".isidentifier()):
            raise ModelError(f"prefix is {prefix!r}; expected the beginning of a name, such as 'p1_'.")
        return replace(self, prefix=prefix + self.prefix)

    def of(self, variable: str) -> Single:
        """Give the same shape as a function of a column of another name."""
        if not (isinstance(variable, str) and variable.isidentifier()) or variable in self.specs:
            raise ModelError(f"variable is {variable!r}; expected a name that is no parameter, such as 'energy'.")
        return replace(self, variable=variable)


@dataclass(frozen=True, repr=False)
class Composite(Lineshape):
    """Several shapes of one variable, no two of which share a parameter."""

    sign: ClassVar[str]
    parts: tuple[Lineshape, ...]

    def __post_init__(self) -> None:
        names = [name for part in self.parts for name in part.specs]
        clashing = sorted({name for name in names if names.count(name) > 1})
        if clashing:
            raise ModelError(
                f"{self._joined()} has {', '.join(clashing)} more than once; expected different names, so rename those of a part with "
                f"{self.parts[-1]}.prefixed('b_'). To let both be one parameter, tie them: tied={{'b_{clashing[0]}': '{clashing[0]}'}}."
            )
        variables = dict.fromkeys(part.variable for part in self.parts)
        both = [name for name in variables if name in names]
        if len(variables) > 1 or both:
            raise ModelError(
                f"{self._joined()} is a function of {', '.join(variables)}; expected one variable, which is no parameter; use .of()."
            )
        texts = (f"{part}\n{inspect.cleandoc(str(part.__doc__))}" for part in self.parts)
        self._describe(self._joined(), "\n\n".join((self._joined(), *texts)))

    def _joined(self) -> str:
        raise NotImplementedError

    @property
    def variable(self) -> str:  # type: ignore[override]
        """Name of the data argument."""
        return self.parts[0].variable

    @property
    def specs(self) -> Mapping[str, Parameter]:
        """Parameters of all parts."""
        return {name: spec for part in self.parts for name, spec in part.specs.items()}

    def prefixed(self, prefix: str) -> Lineshape:
        """Give the same shape with ``prefix`` before every parameter's name."""
        return replace(self, parts=tuple(part.prefixed(prefix) for part in self.parts))

    def of(self, variable: str) -> Lineshape:
        """Give the same shape as a function of a column of another name."""
        return replace(self, parts=tuple(part.of(variable) for part in self.parts))


@dataclass(frozen=True, repr=False)
class Sum(Composite):
    """The sum of shapes."""

    sign = "+"

    def evaluate(self, x: Any, values: Mapping[str, Any]) -> Any:
        """Compute the sum."""
        total = self.parts[0].evaluate(x, values)
        for part in self.parts[1:]:
            total = total + part.evaluate(x, values)
        return total

    def _joined(self) -> str:
        return " + ".join(map(str, self.parts))


@dataclass(frozen=True, repr=False)
class Product(Composite):
    """The product of shapes."""

    sign = "*"

    def evaluate(self, x: Any, values: Mapping[str, Any]) -> Any:
        """Compute the product."""
        total = self.parts[0].evaluate(x, values)
        for part in self.parts[1:]:
            total = total * part.evaluate(x, values)
        return total

    def _joined(self) -> str:
        return " * ".join(f"({part})" if isinstance(part, Sum) else str(part) for part in self.parts)


def shape(function: Callable[..., Any]) -> Lineshape:
    """Make a lineshape of a plain function of x and parameters, for sums and products with the ready ones.

    A default in the signature is a starting value, or a :class:`gradfit.Parameter`, as in any model; parameters with a start keep
    it in guesses. The others are sought over many magnitudes, those in which the function is linear in closed form.

    Raises
    ------
    ModelError
        The function does not take x and named parameters.
    """
    if isinstance(function, Lineshape):
        return function
    if not callable(function) or isinstance(function, type):
        raise ModelError(f"{function!r} is no function; expected one of x and named parameters, such as def model(x, a, b): ...")
    arguments = list(inspect.signature(function).parameters.values())
    if len(arguments) < 2 or any(argument.kind is not POSITIONAL for argument in arguments):
        raise ModelError(f"{_named(function)} must take x and named parameters, such as def model(x, a, b): ...")
    variable, *rest = arguments
    own = tuple((argument.name, _spec(argument)) for argument in rest)
    return Single(_named(function), function, own, variable=variable.name)


def _spec(argument: inspect.Parameter) -> Parameter:
    if isinstance(argument.default, Parameter):
        return argument.default
    return Parameter() if argument.default is argument.empty else Parameter(start=argument.default)


def _named(function: Any) -> str:
    name = str(getattr(function, "__name__", type(function).__name__))
    return "function" if name == "<lambda>" else name


def _parts(part: Lineshape, kind: type[Composite]) -> Sequence[Lineshape]:
    """Open a sum within a sum, a product within a product."""
    return part.parts if isinstance(part, kind) else (part,)


def _checked(other: Any, sign: str) -> Lineshape:
    if isinstance(other, Lineshape):
        return other
    what = (
        "wrap it: lineshapes.shape(function)"
        if callable(other)
        else "for a number that is fitted or fixed use lineshapes.constant"
    )
    raise ModelError(f"lineshape {sign} {str(other)[:60]}: expected a lineshape on either side; {what}.")


def _numbers(value: Any, dtype: torch.dtype | None) -> Any:
    """Give numbers as a tensor of the precision of the tensors beside them; as an array where there are none."""
    if isinstance(value, Tensor):
        return value
    array = np.asarray(value, dtype=np.float64)
    return array if dtype is None else torch.as_tensor(array, dtype=dtype)
