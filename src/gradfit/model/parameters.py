"""Parameters: start values, bounds, fixed and tied ones; and the way from the free vector to named values.

A method moves one vector theta of p free numbers. ``Parameters.values(theta)`` gives every named parameter: free ones cut
from theta, fixed ones as they are, tied ones computed from the rest. It is a torch computation, so derivatives pass through.
"""

from __future__ import annotations

import inspect
import math
import numbers
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradfit.errors import FormulaError, ParameterError, unknown
from gradfit.model.expression import Formula, normal, parse
from gradfit.typing import Floats

ASSUMED_START = 1.0
STEP, AGREEMENT = 6e-6, 1e-3  # of a finite difference, in relative units; between it and autograd


@dataclass(frozen=True)
class Parameter:
    """What is known of a parameter before the fit; also usable as the default in a model's signature.

    Parameters
    ----------
    start
        Starting value: a number, or an array for a vector parameter. None: 1, or a value inside the bounds.
    lower, upper
        Bounds, in the parameter's units; None or infinite for none.
    fixed
        Keep the starting value.
    tied
        A formula of other parameters, ``"2*w"``, or a function of them.
    """

    start: Any = None
    lower: float | None = None
    upper: float | None = None
    fixed: bool = False
    tied: str | Callable[..., Any] | None = None


@dataclass(frozen=True)
class Parameters:
    """All parameters of a model, in the order of its signature.

    Attributes
    ----------
    names
        Parameter names.
    specs
        One :class:`Parameter` per name; ``start`` is a float64 array of the parameter's shape.
    assumed
        Names whose start nobody gave.
    order
        Names of the tied ones, each after those it depends on.
    packed
        Whether a method may hold all free numbers in one tensor. torch modules keep one tensor each, because some
        optimizers look at shapes.
    pinned
        Names that were fixed at a value of their own, whatever their start.
    """

    names: tuple[str, ...]
    specs: Mapping[str, Parameter]
    assumed: frozenset[str]
    ties: Mapping[str, Callable[[Mapping[str, Tensor]], Tensor]] = field(repr=False)
    packed: bool = True
    pinned: frozenset[str] = frozenset()

    @cached_property
    def free_names(self) -> tuple[str, ...]:
        """Names of parameters the fit moves."""
        return tuple(name for name in self.names if not self.specs[name].fixed and self.specs[name].tied is None)

    @cached_property
    def free_elements(self) -> tuple[str, ...]:
        """One name per free number: ``w``, or ``c[0]``, ``c[1]`` of a vector."""
        return tuple(element for name in self.free_names for element in elements(name, self.shape(name)))

    @property
    def all_elements(self) -> tuple[str, ...]:
        """One name per number, fixed and tied ones included."""
        return tuple(element for name in self.names for element in elements(name, self.shape(name)))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a parameter; () for a scalar."""
        return tuple(self.specs[name].start.shape)

    @cached_property
    def start(self) -> Floats:
        """Free vector at the start, (p,)."""
        return self._free(lambda spec: spec.start)

    @cached_property
    def lower(self) -> Floats:
        """Lower bounds of the free vector, (p,); -inf for none."""
        return self._free(lambda spec: np.full(spec.start.shape, -math.inf if spec.lower is None else spec.lower))

    @cached_property
    def upper(self) -> Floats:
        """Upper bounds of the free vector, (p,); inf for none."""
        return self._free(lambda spec: np.full(spec.start.shape, math.inf if spec.upper is None else spec.upper))

    @cached_property
    def bounded(self) -> bool:
        """Whether any free number has a bound."""
        return bool(np.isfinite(self.lower).any() or np.isfinite(self.upper).any())

    def _free(self, part: Callable[[Parameter], Any]) -> Floats:
        parts = [np.ravel(part(self.specs[name])) for name in self.free_names]
        return np.concatenate(parts).astype(np.float64) if parts else np.empty(0)

    def started(self, start: Mapping[str, Any] | Sequence[float] | None) -> Parameters:
        """Give the same parameters with plain numbers as starts; those not named keep theirs.

        Raises
        ------
        ParameterError
            A start that is not finite, or outside its bounds; a tie that cannot be computed there.
        """
        if start is None:
            return self
        named = start if isinstance(start, Mapping) else dict(zip(self.names, start, strict=True))
        specs = dict(self.specs)
        for name, value in named.items():
            if name not in self.pinned:
                specs[name] = _checked(name, replace(specs[name], start=_array(value, name)))
        begun = replace(self, specs=specs)
        _check_ties(begun)
        # What does not depend on the start need not be found out again.
        vars(begun).update({name: getattr(self, name) for name in ("free_names", "free_elements", "lower", "upper", "bounded")})
        return begun

    @property
    def owners(self) -> tuple[str, ...]:
        """The parameter that each free number belongs to, (p,)."""
        return tuple(name for name in self.free_names for _ in elements(name, self.shape(name)))

    def at(self, theta: Floats) -> Parameters:
        """Give the same parameters with the free numbers beginning at theta, (p,)."""
        owners = np.array(self.owners)
        return self.started({name: theta[owners == name].reshape(self.shape(name)) for name in self.free_names})

    def namer(self, dtype: torch.dtype) -> Callable[[Tensor], dict[str, Tensor]]:
        """Give ``values(theta) -> {name: tensor}`` for theta of the given dtype; the loop calls it once a step."""
        free = self.free_names
        if free == self.names and all(self.shape(name) == () for name in free):
            return lambda theta: dict(zip(free, theta.unbind(0), strict=True))
        shapes = [self.shape(name) for name in free]
        sizes = [math.prod(shape) for shape in shapes]
        fixed = {
            name: torch.as_tensor(spec.start, dtype=dtype)
            for name, spec in self.specs.items()
            if spec.fixed and spec.tied is None
        }

        def values(theta: Tensor) -> dict[str, Tensor]:
            parts = torch.split(theta, sizes) if sizes else ()
            known = fixed | {name: part.reshape(shape) for name, part, shape in zip(free, parts, shapes, strict=True)}
            for name, tie in self.ties.items():
                known[name] = torch.as_tensor(tie(known), dtype=dtype)
            return {name: known[name] for name in self.names}

        return values

    def all_values(self, theta: Tensor) -> Tensor:
        """Every number of every parameter as one vector, in the order of ``all_elements``; differentiable."""
        return torch.cat([value.reshape(-1) for value in self.namer(theta.dtype)(theta).values()])

    def all_slopes(self, theta: Floats) -> Floats:
        """Derivative of every number of every parameter by the free ones, (numbers, p)."""
        point = torch.as_tensor(theta, dtype=torch.float64)
        slopes: Tensor = torch.autograd.functional.jacobian(self.all_values, point)  # type: ignore[no-untyped-call]
        return slopes.numpy()

    def all_values_of(self, points: Floats) -> Floats:
        """Every number at each of some free vectors (m, p): (m, numbers)."""
        return np.array([self.all_values(torch.from_numpy(point)).numpy() for point in np.ascontiguousarray(points)])

    def leaves(self, theta: Tensor) -> list[Tensor]:
        """Cut a free vector into the tensors an optimizer holds: one, or one per parameter with its shape."""
        if self.packed:
            return [theta.clone()]
        shapes = [self.shape(name) for name in self.free_names]
        parts = torch.split(theta, [math.prod(shape) for shape in shapes])
        return [part.reshape(shape).clone() for part, shape in zip(parts, shapes, strict=True)]


def elements(name: str, shape: tuple[int, ...]) -> list[str]:
    """Name each number of a parameter: ``c`` or ``c[0, 1]``."""
    return [name] if shape == () else [f"{name}[{', '.join(map(str, index))}]" for index in np.ndindex(shape)]


def parameters(
    defaults: Mapping[str, Parameter],
    *,
    start: Mapping[str, Any] | Sequence[float] | None = None,
    bounds: Mapping[str, tuple[float | None, float | None]] | None = None,
    fixed: Mapping[str, Any] | Sequence[str] | None = None,
    tied: Mapping[str, str | Callable[..., Any]] | None = None,
    packed: bool = True,
) -> Parameters:
    """Join what the signature and the call say of each parameter; the call wins.

    Raises
    ------
    ParameterError
        A name the model does not have, a value that is no finite number, reversed bounds, a start outside them, a parameter
        both fixed and tied, ties that go in a circle, a tie that gives no finite real number at the start or loses its
        derivative.
    """
    specs = {
        name: replace(spec, start=None if spec.start is None else _array(spec.start, name)) for name, spec in defaults.items()
    }
    for name, value in _named(start, specs, "start").items():
        specs[name] = replace(specs[name], start=_array(value, name))
    ties, limits = _named(tied, specs, "tied"), _named(bounds, specs, "bounds")
    for name, pair in limits.items():
        lower, upper = _pair(pair, name)
        specs[name] = replace(specs[name], lower=lower, upper=upper)
    kept = _named(_fixed(fixed), specs, "fixed")
    for name, value in kept.items():
        specs[name] = replace(specs[name], fixed=True, start=specs[name].start if value is None else _array(value, name))
    for name, tie in ties.items():
        specs[name] = replace(specs[name], tied=tie)
        if name not in limits:  # bounds of the signature are for a free parameter, such as the width of a ready shape
            specs[name] = replace(specs[name], lower=None, upper=None)
    assumed = frozenset(name for name, spec in specs.items() if spec.start is None and spec.tied is None)
    for name in assumed:
        if specs[name].fixed:
            raise ParameterError(f"{name} is fixed and has no value; write fixed={{{name!r}: value}}.")
    complete = {name: _checked(name, spec) for name, spec in specs.items()}
    pinned = frozenset(name for name, value in kept.items() if value is not None)
    known = Parameters(tuple(complete), complete, assumed, _ties(complete), packed, pinned)
    _check_ties(known)
    return known


def _checked(name: str, spec: Parameter) -> Parameter:
    low, high = _pair((spec.lower, spec.upper), name)
    lower, upper = -math.inf if low is None else low, math.inf if high is None else high
    if math.isnan(lower) or math.isnan(upper) or lower >= upper:
        raise ParameterError(
            f"bounds of {name} are ({spec.lower}, {spec.upper}); expected lower < upper. Swap them, or keep a value by fixed=."
        )
    if spec.tied is not None and spec.fixed:
        raise ParameterError(f"{name} is both fixed and tied; expected one of them, so leave the other out.")
    if spec.tied is not None and (lower > -math.inf or upper < math.inf):
        raise ParameterError(f"{name} is tied and has bounds; bound the parameters it is computed from.")
    start = np.array(_inside(lower, upper)) if spec.start is None else spec.start
    if spec.tied is None and ((start < lower) | (start > upper)).any():
        what = "fixed value" if spec.fixed else "start"
        raise ParameterError(
            f"{what} of {name} is {_shown(start)}, outside its bounds ({lower:g}, {upper:g}); choose one inside, or other bounds."
        )
    return replace(spec, start=start, lower=None if lower == -math.inf else lower, upper=None if upper == math.inf else upper)


def _inside(lower: float, upper: float) -> float:
    """Choose a start where none was given: 1, or if the bounds exclude it, one within them."""
    if lower < ASSUMED_START < upper:
        return ASSUMED_START
    if math.isfinite(lower) and math.isfinite(upper):
        return 0.5 * lower + 0.5 * upper
    inside = lower + max(1.0, abs(lower)) if math.isfinite(lower) else upper - max(1.0, abs(upper))
    return inside if math.isfinite(inside) else max(lower, -sys.float_info.max) if inside > 0 else min(upper, sys.float_info.max)


def _named(given: Any, specs: Mapping[str, Parameter], what: str) -> dict[str, Any]:
    """Check that every name is a parameter; a sequence of starts is matched by order."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        if isinstance(given, (set, frozenset)):
            raise ParameterError(f"{what} is a set, {_brief(given)}, which has no order; give a dict by parameter name.")
        try:
            listed = list(given)
        except TypeError:
            listed = [given]
        if what == "start" and len(listed) != len(specs) and not isinstance(given, str):
            raise ParameterError(
                f"start has {len(listed)} values for {len(specs)} parameters: {', '.join(specs)}; give one for each, or a dict by name."
            )
        if what != "start" or isinstance(given, str):
            example = f"{what}={{{next(iter(specs))!r}: ...}}" if specs else f"{what}={{}}"
            raise ParameterError(f"{what} is {given!r}; expected a dict by parameter name, {example}, of {', '.join(specs)}.")
        return dict(zip(specs, listed, strict=True))
    by_name = {normal(str(name)): value for name, value in given.items()}
    for name in by_name:
        if name not in specs:
            raise ParameterError(unknown("parameter", name, specs, f"It was named in {what}."))
    return by_name


def _fixed(fixed: Mapping[str, Any] | Sequence[str] | None) -> Mapping[str, Any] | None:
    """A list of names means: fixed where they start."""
    if fixed is None or isinstance(fixed, Mapping):
        return fixed
    if isinstance(fixed, str):
        return {fixed: None}
    if not isinstance(fixed, (list, tuple, set, frozenset)):
        raise ParameterError(f"fixed is {fixed!r}; expected values by name, such as {{'b': 0.0}}, or a list of names.")
    return dict.fromkeys(fixed)


def _array(value: Any, name: str) -> Floats:
    plain = value.detach().cpu().double().numpy() if isinstance(value, Tensor) and not value.is_complex() else value
    try:
        if plain is None or isinstance(plain, Tensor) or np.ma.is_masked(plain) or np.asarray(plain).dtype.kind in "bUScmM":
            raise TypeError
        array = np.array(plain, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ParameterError(f"{name} is {_brief(value)}; expected a number, or an array of numbers.") from None
    if not np.isfinite(array).all() or array.size == 0:
        raise ParameterError(f"{name} is {_shown(array)}; expected finite numbers. Choose a start where the model has a value.")
    return array


def _pair(pair: Any, name: str) -> tuple[float | None, float | None]:
    try:
        if isinstance(pair, (str, set, frozenset, Mapping)):
            raise TypeError
        lower, upper = (None if side is None else float(_array_side(side)) for side in pair)
        return lower, upper
    except (TypeError, ValueError, OverflowError):
        raise ParameterError(
            f"bounds of {name} are {_brief(pair)}; expected (lower, upper), each a number or None for no bound; write {{{name!r}: (0, None)}}."
        ) from None


def _array_side(side: Any) -> Any:
    if side is np.ma.masked or isinstance(side, (str, bytes)) or np.asarray(side).dtype.kind in "bmM":
        raise TypeError
    return side


def _brief(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return "a number beyond float64"
    return text if len(text) <= 80 else text[:77] + "..."


def _shown(value: Floats) -> str:
    return f"{float(value):g}" if value.ndim == 0 else str(value.tolist())


def _ties(specs: Mapping[str, Parameter]) -> dict[str, Callable[[Mapping[str, Tensor]], Tensor]]:
    """Order the tied parameters so that each comes after those it is computed from."""
    waiting = {name: _tie(name, spec.tied, specs) for name, spec in specs.items() if spec.tied is not None}
    ordered: dict[str, Callable[[Mapping[str, Tensor]], Tensor]] = {}
    while waiting:
        ready = [name for name, (_, needs) in waiting.items() if not needs & set(waiting)]
        if not ready:
            raise ParameterError(f"tied parameters go in a circle: {', '.join(waiting)}; at least one of them must be free.")
        for name in ready:
            ordered[name] = waiting.pop(name)[0]
    return ordered


def _tie(
    name: str, tied: str | Callable[..., Any] | None, specs: Mapping[str, Parameter]
) -> tuple[Callable[[Mapping[str, Tensor]], Tensor], set[str]]:
    if callable(tied):
        needs = _needs(name, tied)
        function = tied

        def evaluate(known: Mapping[str, Tensor]) -> Tensor:
            return _real(function(**{need: known[need] for need in needs}), name)

    elif isinstance(tied, str):
        formula = _tie_formula(name, tied)
        needs = formula.names

        def evaluate(known: Mapping[str, Tensor]) -> Tensor:
            return torch.as_tensor(formula.evaluate(known))

    else:
        raise ParameterError(f"{name} is tied to {tied!r}; expected a formula of other parameters, such as '2*w', or a function.")
    for need in needs:
        if need not in specs:
            raise ParameterError(unknown("parameter", need, specs, f"{name} is tied to it."))
    return evaluate, set(needs)


def _needs(name: str, tied: Callable[..., Any]) -> tuple[str, ...]:
    try:
        arguments = inspect.signature(tied).parameters.values()
        if any(
            argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD, argument.POSITIONAL_ONLY) for argument in arguments
        ):
            raise TypeError
        return tuple(argument.name for argument in arguments)
    except (TypeError, ValueError):
        raise ParameterError(
            f"{name} is tied to {tied!r}, whose arguments cannot be read; write a formula of other parameters, such as '2*w'."
        ) from None


def _tie_formula(name: str, text: str) -> Formula:
    try:
        formula = parse(text)
    except FormulaError as error:
        raise ParameterError(f"{name} is tied to {text!r}: {error}") from None
    if formula.target is not None:
        raise ParameterError(f"{name} is tied to {text!r}; write only the right side, without '='.")
    return formula


# --- what the start values say together --------------------------------------------------------------------------------


def _check_ties(known: Parameters) -> None:
    """Refuse ties that cannot be computed at the start."""
    values = {name: torch.from_numpy(spec.start) for name, spec in known.specs.items() if spec.tied is None}
    for name, tie in known.ties.items():
        values[name] = _tied_value(name, known.specs[name].tied, tie, values)


def _tied_value(name: str, tied: Any, tie: Callable[[Mapping[str, Tensor]], Tensor], values: dict[str, Tensor]) -> Tensor:
    """Compute a tied parameter at the start, and for a function of the caller's its derivative."""
    try:
        value = tie(values).detach().double()
        lost = [] if isinstance(tied, str) else _lost_in_tie(tied, tie, values)
    except ParameterError:
        raise
    except Exception as error:  # whatever the caller's function raises
        raise ParameterError(
            f"{name} is tied to {_told(tied)}, which raised {type(error).__name__} at the start: {error}. "
            "Use plain arithmetic or torch functions, or a formula such as 'sqrt(b)'."
        ) from error
    if not torch.isfinite(value).all():
        others = ", ".join(f"{other} = {_shown(values[other].numpy())}" for other in values if other in _arguments(tied))
        raise ParameterError(
            f"{name} is tied to {_told(tied)}, which is {_shown(value.numpy())} at the start ({others}); expected a finite number. "
            "Start where it has a value."
        )
    if lost:
        raise ParameterError(
            f"{name} is tied to {_told(tied)}, which turns {', '.join(lost)} into a plain number and loses its derivative; "
            "expected plain arithmetic or torch functions. Write torch.exp, not math.exp, or a formula such as 'exp(b)'."
        )
    return value


def _lost_in_tie(tied: Any, tie: Callable[[Mapping[str, Tensor]], Tensor], values: Mapping[str, Tensor]) -> list[str]:
    """Arguments by which autograd and a finite difference of a tie differ, near the start and a little off it."""
    return [name for name in _arguments(tied) if all(not _tie_agrees(tie, values, name, shift) for shift in (0.0, 0.037))]


def _tie_agrees(tie: Callable[[Mapping[str, Tensor]], Tensor], values: Mapping[str, Tensor], name: str, shift: float) -> bool:
    here = {other: value * (1 + shift) + shift for other, value in values.items()}
    point = here[name].clone().requires_grad_()
    value = tie(here | {name: point}).double().sum()
    slope = 0.0
    if value.requires_grad:
        (gradient,) = torch.autograd.grad(value, point, allow_unused=True)
        slope = 0.0 if gradient is None else float(gradient.sum())
    step = STEP * max(1.0, float(here[name].abs().max()))
    ahead, behind = (float(tie(here | {name: here[name] + sign * step}).detach().double().sum()) for sign in (1, -1))
    difference, rounding = (ahead - behind) / (2 * step), 1e-14 * max(abs(ahead), abs(behind)) / step
    agrees = abs(slope - difference) <= AGREEMENT * max(abs(slope), abs(difference)) + rounding
    return agrees or not (math.isfinite(slope) and math.isfinite(difference))


def _arguments(tied: Any) -> tuple[str, ...]:
    return parse(tied).names if isinstance(tied, str) else tuple(inspect.signature(tied).parameters)


def _told(tied: Any) -> str:
    return repr(tied) if isinstance(tied, str) else f"the function {getattr(tied, '__name__', type(tied).__name__)}"


def _real(value: Any, name: str) -> Tensor:
    """Take what a tie of the caller's gave."""
    if isinstance(value, bool) or not isinstance(value, (Tensor, numbers.Real, np.ndarray)):
        raise ParameterError(
            f"{name} is tied to a function that gave {_brief(value)}; expected a real number, so let it return one."
        )
    tensor = torch.as_tensor(value)
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise ParameterError(
            f"{name} is tied to a function that gave {tensor.dtype}; expected a real number, so take the real part or a size."
        )
    return tensor
