"""A lineshape as a separable model: ``offset + coefficients @ columns``, where only the columns depend on the nonlinear parameters.

A formula that is registered with a :class:`Scan` is known to be linear in some parameters. Of a user's function that is found by trial.
A sum has the columns of all its parts; a product every column of one factor times every column of the others.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from gradfit.model.window import Window
from gradfit.typing import Floats

PLAIN_DRAWS = 2048  # candidates for a function of the user's


@dataclass(frozen=True)
class Move:
    """How a nonlinear parameter is moved from one candidate to the next.

    Attributes
    ----------
    step
        Size of a step of the scan.
    unit
        ``unit(values, window)``: what the step is measured in; None for steps of the logarithm.
    inverse
        Steps are of 1/value, so that a decay may pass through infinity and become growth.
    """

    step: float
    unit: Callable[[Mapping[str, Any], Window], Any] | None = None
    inverse: bool = False

    def moved(self, value: Any, steps: Floats, values: Mapping[str, Any], window: Window) -> Floats:
        """Give the value some steps on; values, and with them units, may be broadcast against the steps."""
        if self.unit is None:
            return np.asarray(value * np.exp(self.step * steps))
        by = self.step * self.unit(values, window) * steps
        if not self.inverse:
            return np.asarray(value + by)
        with np.errstate(all="ignore"):
            return np.asarray(1 / (1 / value + by))


@dataclass(frozen=True)
class Scan:
    """What a guess must know of a formula.

    Attributes
    ----------
    linear
        Parameters in which it is linear; None: all.
    candidates
        Values of the others, made from the data, (G,) each.
    moves
        How the others are refined.
    phase
        The shape is ``amplitude * sin(... + phase)``: both are found by projection.
    domain
        Where the formula is defined: ``x >= domain`` or, if ``open``, ``x > domain``.
    screen
        A cheaper function of the same parameters, near enough for the scan.
    branches
        Gives, for a candidate, values of nearly the same curve: the scan does not tell them apart, so a descent begins at each.
    sampled
        Many points are thinned, not averaged: an average of a wave is none.
    """

    linear: tuple[str, ...] | None = ()
    candidates: Callable[[Window], Mapping[str, Floats]] = lambda window: {}
    moves: Mapping[str, Move] = field(default_factory=dict)
    phase: bool = False
    domain: float = -math.inf
    open: bool = False
    screen: Callable[..., Any] | None = None
    branches: Callable[[Mapping[str, float]], Sequence[Mapping[str, float]]] = lambda values: [values]
    sampled: bool = False


_SCANS: dict[Any, Scan] = {}


def register(formula: Callable[..., Any], scan: Scan) -> None:
    """Say how a formula is scanned."""
    _SCANS[formula] = scan


def is_ready(formula: Callable[..., Any]) -> bool:
    """Whether it is one of the ready formulas, and no function of the user's."""
    return formula in _SCANS


# --- the model as a tree ------------------------------------------------------------------------------------------------


class Node:
    """A part of the model, for given nonlinear parameters: ``offset + coefficients @ columns``."""

    leaves: tuple[Leaf, ...]
    width: int  # number of columns

    def basis(self, x: Floats, values: Mapping[str, Any], screen: bool = False) -> tuple[Floats | None, Floats]:
        """Give the offset, (G, n) or None for 0, and the columns, (G, m, n)."""
        raise NotImplementedError

    def unpack(self, coefficients: Floats) -> dict[str, float]:
        """Give the linear parameters from the coefficients of the columns, (m,)."""
        raise NotImplementedError


class Leaf(Node):
    """A single shape, some of whose parameters are known."""

    def __init__(self, single: Any, fixed: Mapping[str, float], limits: Mapping[str, tuple[float, float]]) -> None:
        self.shape, self.prefix = single, single.prefix
        self.names = tuple(name for name, _ in single.own)
        self.fixed = {name: fixed[self.prefix + name] for name in self.names if self.prefix + name in fixed}
        self.limits = {name: limits[self.prefix + name] for name in self.names}
        self.scan = _SCANS.get(single.formula) or _plain_scan(single, self.fixed)
        linear = self.names if self.scan.linear is None else self.scan.linear
        self.phased = self.scan.phase and "phase" not in self.fixed
        self.linear = tuple(name for name in linear if name not in self.fixed and not (self.phased and name == "amplitude"))
        moving = set(self.names) - set(linear) - ({"phase"} if self.scan.phase else set())
        self.nonlinear = tuple(name for name in self.names if name in moving and name not in self.fixed)
        self.ready = is_ready(single.formula)
        self.affine = not self.phased and (not self.ready or any(name in self.fixed for name in linear))  # has an offset
        self.leaves = (self,)
        self.width = len(self.linear) + 2 * self.phased
        self.key = (single.formula, tuple(sorted(self.fixed.items())), tuple(sorted(self.limits.items())))

    def candidates(self, window: Window) -> dict[str, Floats]:
        """Give the candidates of the nonlinear parameters, within bounds, by the names of the signature."""
        found = {name: np.clip(values, *self.limits[name]) for name, values in self.scan.candidates(window).items()}
        if self.nonlinear and len(self.nonlinear) < len(found):  # some are known, so candidates coincide
            kept = np.unique(np.stack([found[name] for name in self.nonlinear]), axis=1)
            found = dict(zip(self.nonlinear, kept, strict=True))
        return {self.prefix + name: values for name, values in found.items()}

    def moved(self, values: Mapping[str, Floats], steps: Floats, window: Window) -> dict[str, Floats]:
        """Give K values some steps of the scan on, (K, S, q) for q nonlinear parameters, within bounds: (K, S) each."""
        own = {name: values[self.prefix + name][:, None] for name in self.nonlinear} | self.fixed
        moves = self.scan.moves
        grid = {name: moves[name].moved(own[name], steps[..., k], own, window) for k, name in enumerate(self.nonlinear)}
        return {self.prefix + name: np.clip(column, *self.limits[name]) for name, column in grid.items()}

    def branched(self, values: Mapping[str, float]) -> list[dict[str, float]]:
        """Give values, and others of nearly the same curve, within bounds."""
        own = {name: values[self.prefix + name] for name in self.nonlinear} | self.fixed
        found = self.scan.branches(own)
        return [{self.prefix + name: float(np.clip(each[name], *self.limits[name])) for name in self.nonlinear} for each in found]

    def basis(self, x: Floats, values: Mapping[str, Any], screen: bool = False) -> tuple[Floats | None, Floats]:
        """Give the offset and the columns: the shape with one linear parameter 1, the others 0."""
        formula = self.scan.screen if screen and self.scan.screen is not None else None
        moving = {name: np.atleast_1d(values[self.prefix + name])[:, None] for name in self.nonlinear}
        rest = dict.fromkeys(self.linear, 0.0) | self.fixed
        if self.phased:
            units: list[dict[str, float]] = [{"amplitude": 1.0, "phase": 0.0}, {"amplitude": 1.0, "phase": math.pi / 2}]
        else:
            units = [{name: 1.0} for name in self.linear]
        none = self._computed(formula, x, rest | moving) if self.affine else None
        columns = [self._computed(formula, x, rest | moving | unit) for unit in units]
        if none is not None:
            columns = [column - none for column in columns]
        count = max((len(column) for column in moving.values()), default=1)
        stacked = np.stack(columns, axis=1) if columns else np.empty((count, 0, len(x)))
        return none, stacked

    def _computed(self, formula: Callable[..., Any] | None, x: Floats, values: Mapping[str, Any]) -> Floats:
        """Evaluate for candidates (G, 1) at x (n,): (G, n)."""
        count = max((len(value) for value in values.values() if np.ndim(value)), default=1)
        given = [values[name] for name in self.names]
        with np.errstate(all="ignore"):
            if formula is not None:
                return np.broadcast_to(formula(x, *given), (count, len(x)))
            if self.ready:
                tensors = (torch.as_tensor(value, dtype=torch.float64) for value in (x[None, :], *given))
                return np.broadcast_to(self.shape.formula(*tensors).numpy(), (count, len(x)))
            return _row_by_row(self.shape.formula, x, given, count)

    def unpack(self, coefficients: Floats) -> dict[str, float]:
        """Name the coefficients; amplitude and phase from those of sine and cosine."""
        if self.phased:
            sine, cosine = (float(value) for value in coefficients)
            found = {"amplitude": math.hypot(sine, cosine), "phase": math.atan2(cosine, sine)}
        else:
            found = dict(zip(self.linear, map(float, coefficients), strict=True))
        return {self.prefix + name: value for name, value in found.items()}


class SumNode(Node):
    """A sum: the columns of its parts side by side."""

    def __init__(self, parts: Sequence[Node]) -> None:
        self.parts = tuple(parts)
        self.leaves = tuple(leaf for part in parts for leaf in part.leaves)
        self.width = sum(part.width for part in parts)

    def basis(self, x: Floats, values: Mapping[str, Any], screen: bool = False) -> tuple[Floats | None, Floats]:
        """Add the offsets, and put the columns together."""
        found = [part.basis(x, values, screen) for part in self.parts]
        offsets = [offset for offset, _ in found if offset is not None]
        count = max(len(columns) for _, columns in found)
        columns = [np.broadcast_to(columns, (count, *columns.shape[1:])) for _, columns in found]
        return (sum(offsets[1:], offsets[0]) if offsets else None), np.concatenate(columns, axis=1)

    def unpack(self, coefficients: Floats) -> dict[str, float]:
        """Let each part name its own."""
        found: dict[str, float] = {}
        for part in self.parts:
            own, coefficients = coefficients[: part.width], coefficients[part.width :]
            found |= part.unpack(own)
        return found


class ProductNode(Node):
    """A product: every column of one factor times every column of the others.

    A factor with an offset has it as a column whose coefficient is 1.
    """

    def __init__(self, parts: Sequence[Node]) -> None:
        self.parts = tuple(parts)
        self.leaves = tuple(leaf for part in parts for leaf in part.leaves)
        self.offsets: list[bool] = [has_offset(part) for part in parts]
        self.whole = all(self.offsets)  # the product of the offsets is an offset
        self.sizes = [part.width + offset for part, offset in zip(self.parts, self.offsets, strict=True)]
        self.width = math.prod(self.sizes) - self.whole

    def basis(self, x: Floats, values: Mapping[str, Any], screen: bool = False) -> tuple[Floats | None, Floats]:
        """Multiply."""
        total: Floats | None = None
        for part, has_offset in zip(self.parts, self.offsets, strict=True):
            offset, columns = part.basis(x, values, screen)
            if has_offset:
                constant = np.zeros((len(columns), len(x))) if offset is None else offset
                columns = np.concatenate([constant[:, None], columns], axis=1)
            product = columns if total is None else total[:, :, None] * columns[:, None]
            total = product.reshape(len(product), -1, len(x))
        assert total is not None
        return (total[:, 0], total[:, 1:]) if self.whole else (None, total)

    def unpack(self, coefficients: Floats) -> dict[str, float]:
        """Find the factors whose product is nearest to the coefficients (alternating least squares)."""
        tensor = np.concatenate([[1.0], coefficients] if self.whole else [coefficients]).reshape(self.sizes)
        factors = [np.ones(size) for size in self.sizes]
        for place in [*range(len(factors))] * 30:
            rest = tensor
            for other in reversed(range(len(factors))):
                if other != place:
                    size = float(factors[other] @ factors[other]) or 1.0
                    rest = np.tensordot(rest, factors[other] / size, axes=(other, 0))
            free = not self.offsets[place]
            scale = 1.0 if free else float(rest[0])
            factors[place] = rest / scale if scale else rest
        found: dict[str, float] = {}
        for part, has_offset, factor in zip(self.parts, self.offsets, factors, strict=True):
            found |= part.unpack(factor[has_offset:])
        return found


def has_offset(node: Node) -> bool:
    """Whether something of a part is known, so that it is not all scaled by its linear parameters."""
    if isinstance(node, Leaf):
        return node.affine
    if isinstance(node, ProductNode):
        return node.whole
    return any(map(has_offset, node.parts)) if isinstance(node, SumNode) else False


def tree(lineshape: Any, fixed: Mapping[str, float], limits: Mapping[str, tuple[float, float]]) -> Node:
    """Read a lineshape as a tree."""
    if not hasattr(lineshape, "parts"):
        return Leaf(lineshape, fixed, limits)
    parts = [tree(part, fixed, limits) for part in lineshape.parts]
    return SumNode(parts) if lineshape.sign == "+" else ProductNode(parts)


# --- functions of the user's --------------------------------------------------------------------------------------------


def _row_by_row(function: Callable[..., Any], x: Floats, given: Sequence[Any], count: int) -> Floats:
    """Evaluate a plain function for each candidate; NaN where it fails."""
    rows = np.full((count, len(x)), math.nan)
    columns = [np.broadcast_to(np.ravel(value), (count,)) for value in given]
    with np.errstate(all="ignore"):
        for place, own in enumerate(np.stack(columns, axis=1)):
            with contextlib.suppress(ArithmeticError, ValueError):  # outside of where it is defined
                rows[place] = on_arrays(function, x, own)
    return rows


def on_arrays(function: Callable[..., Any], x: Floats, parameters: Sequence[Any]) -> Any:
    """Call a function on arrays, whether it was written for arrays, tensors or single numbers."""
    with contextlib.suppress(TypeError, ValueError):
        return function(x, *parameters)
    try:
        return function(*(torch.as_tensor(value, dtype=torch.float64) for value in (x, *parameters)))
    except (TypeError, ValueError, RuntimeError):
        return np.reshape([float(function(value, *map(float, parameters))) for value in np.ravel(x).tolist()], np.shape(x))


def _plain_scan(single: Any, fixed: Mapping[str, float]) -> Scan:
    """Make a scan of a plain function: what it is affine in, found by trial; the rest drawn over many magnitudes."""
    names = tuple(name for name, _ in single.own)
    free = [name for name in names if name not in fixed]
    linear: list[str] = []
    for name in free:
        if _is_affine(single, names, fixed, [*linear, name]):
            linear.append(name)
    moving = [name for name in free if name not in linear]

    def candidates(window: Window) -> Mapping[str, Floats]:
        generator = np.random.default_rng(0)
        span = window.span
        drawn = {}
        for name in moving:
            size = 10 ** generator.uniform(-2, 2, PLAIN_DRAWS)
            kinds = np.stack([size, size * span, size / span, generator.choice(window.x, PLAIN_DRAWS)])
            sign = np.where(generator.uniform(size=PLAIN_DRAWS) < 0.3, -1.0, 1.0)
            kind = generator.integers(4, size=PLAIN_DRAWS)
            drawn[name] = kinds[kind, np.arange(PLAIN_DRAWS)] * np.where(kind == 3, 1.0, sign)
        return drawn

    return Scan(tuple(linear), candidates, {name: Move(0.5) for name in moving}, sampled=True)


def _is_affine(single: Any, names: Sequence[str], fixed: Mapping[str, float], tried: Sequence[str]) -> bool:
    """Whether a function is affine in some parameters together: halfway between two points it is halfway between its values."""
    generator = np.random.default_rng(1)
    x = generator.uniform(0.5, 2.0, 16)
    rest = {name: fixed.get(name, generator.uniform(0.5, 2.0)) for name in names}
    first, second = ({name: generator.uniform(-2.0, 2.0) for name in tried} for _ in range(2))
    third = {name: 0.25 * first[name] + 0.75 * second[name] for name in tried}
    points = [[(rest | chosen)[name] for name in names] for chosen in (first, second, third)]
    one, two, between = (_row_by_row(single.formula, x, point, 1)[0] for point in points)
    size = np.abs(one) + np.abs(two)
    return bool(np.all(np.abs(0.25 * one + 0.75 * two - between) <= 1e-9 * size))
