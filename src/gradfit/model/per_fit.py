"""Start values, bounds and fixed values that differ from fit to fit of a batch, next to those that all share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gradfit.errors import ParameterError, unknown
from gradfit.model.parameters import ASSUMED_START, Parameter, Parameters
from gradfit.typing import Floats


@dataclass(frozen=True)
class PerFit:
    """What a call says of parameters: what holds for all fits, and what each has of its own.

    Attributes
    ----------
    start, bounds, fixed
        As :func:`gradfit.model.parameters.parameters` takes them, for all fits.
    own_start, own_fixed
        By name, (count,) or (count, size).
    own_bounds
        By name, lower and upper, each a number or (count,).
    defaults
        What the signature says.
    earlier
        Where another run ended, by name, (count,) or (count, ...), NaN where it has nothing to say: starts where they are within the
        bounds; otherwise a fit begins at the defaults.
    """

    start: Any
    bounds: dict[str, Any]
    fixed: Any
    own_start: dict[str, Floats] = field(repr=False)
    own_bounds: dict[str, tuple[Any, Any]] = field(repr=False)
    own_fixed: dict[str, Floats] = field(repr=False)
    defaults: Mapping[str, Parameter] = field(default_factory=dict, repr=False)
    earlier: Mapping[str, Floats] = field(default_factory=dict, repr=False)

    def of(self, fit: int) -> dict[str, Any]:
        """What :func:`parameters` is told of one fit."""
        start = dict(self.start or {}) if isinstance(self.start, Mapping) or self.start is None else self.start
        own = self.own_start | {name: values for name, values in self.earlier.items() if np.isfinite(values[fit]).all()}
        if own:
            start = {**start, **{name: _one(values, fit) for name, values in own.items()}}
        bounds = self.bounds | {name: tuple(_side(side, fit) for side in pair) for name, pair in self.own_bounds.items()}
        fixed = self.fixed
        if self.own_fixed:
            shared = dict.fromkeys(fixed) if isinstance(fixed, (list, tuple, set, frozenset)) else dict(fixed or {})
            fixed = {**shared, **{name: _one(values, fit) for name, values in self.own_fixed.items()}}
        return {"start": start or None, "bounds": bounds or None, "fixed": fixed}

    def sound(self, begin: int, end: int) -> np.ndarray:
        """Which of some fits have numbers for values of their own, and starts within their bounds, (end - begin,) bool."""
        count = end - begin
        found = np.ones(count, dtype=bool)
        for values in (*self.own_start.values(), *self.own_fixed.values()):
            found &= np.isfinite(values[begin:end].reshape(count, -1)).all(axis=1)
        shared = self.start if isinstance(self.start, Mapping) else {}
        for name in {*self.own_bounds, *self.own_start}:
            spec = self.defaults[name]
            pair = self.own_bounds.get(name) or self.bounds.get(name) or (spec.lower, spec.upper)
            low, high = (
                np.reshape(_bound(side if np.ndim(side) == 0 else side[begin:end], none), (-1, 1))
                for side, none in zip(pair, (-np.inf, np.inf), strict=True)
            )
            given = self.own_start[name][begin:end] if name in self.own_start else shared.get(name, spec.start)
            found &= (low < high)[:, 0]
            if given is not None:
                starts = np.reshape(given, (count if name in self.own_start else 1, -1))
                found &= ((starts >= low) & (starts <= high)).all(axis=1)
        return found

    def tables(self, known: Parameters, count: int) -> Tables:
        """Lay out start, bounds and fixed numbers by element, once it is known which parameters are free."""
        starts, earlier, lowers, uppers = [], [], [], []
        for name in known.free_names:
            size = math.prod(known.shape(name))
            spec = known.specs[name]
            low, high = self.own_bounds.get(name, (spec.lower, spec.upper))
            lowers += [_bound(low, -np.inf)] * size
            uppers += [_bound(high, np.inf)] * size
            starts += _columns(self._start(name, known, lowers[-1], uppers[-1]), size, count)
            earlier += _columns(self.earlier[name], size, count) if self.earlier else []
        kept = [name for name in known.names if known.specs[name].fixed and known.specs[name].tied is None]
        fixed: list[Any] = []
        for name in kept:
            own = self.own_fixed.get(name, self.own_start.get(name, self._earlier_fixed(name, known)))
            fixed += _columns(own, math.prod(known.shape(name)), count)
        return Tables(starts, lowers, uppers, fixed, earlier, self._waiting(known))

    def _waiting(self, known: Parameters) -> tuple[str, ...]:
        """Free parameters that nobody gave a start, but perhaps another run."""
        if not self.earlier:
            return tuple(name for name in known.free_names if name in known.assumed)
        return tuple(name for name in known.free_names if self.defaults.get(name, Parameter()).start is None)

    def _start(self, name: str, known: Parameters, low: Any, high: Any) -> Any:
        """Where fits begin, unless they begin where another run ended."""
        given, spec = self.defaults.get(name, Parameter()).start, known.specs[name]
        if name in self.own_start:
            return self.own_start[name]
        if self.earlier and given is not None:
            return given
        if name in known.assumed or self.earlier:
            inside = _inside(low, high)
            return (
                inside
                if spec.start.ndim == 0
                else np.broadcast_to(np.asarray(inside)[..., None], (*np.shape(inside), spec.start.size))
            )
        return spec.start

    def _earlier_fixed(self, name: str, known: Parameters) -> Any:
        """Value of a fixed parameter that all have, or where another run ended."""
        own = known.specs[name].start
        if name not in self.earlier or name in known.pinned:
            return own
        values, given = self.earlier[name], self.defaults.get(name, Parameter()).start
        return np.where(np.isfinite(values), values, own if given is None else given)


@dataclass(frozen=True)
class Tables:
    """Start, bounds and fixed numbers by element, each a number or (count,); and the ends of another run, or nothing.

    Attributes
    ----------
    waiting
        Parameters that begin at a number that nobody gave, unless another run gives one.
    """

    starts: list[Any]
    lowers: list[Any]
    uppers: list[Any]
    fixed: list[Any]
    earlier: list[Any] = field(default_factory=list)
    waiting: tuple[str, ...] = ()

    def theta(self, begin: int, end: int) -> tuple[Floats, np.ndarray | None]:
        """Starts of some fits, (end - begin, p), and which of these have numbers that nobody gave; None: none."""
        table = self._stacked(self.starts, begin, end)
        known = np.zeros(end - begin, dtype=bool)
        if self.earlier:
            ends = self._stacked(self.earlier, begin, end)
            with np.errstate(invalid="ignore"):
                inside = (ends >= self.part("lowers", begin, end)) & (ends <= self.part("uppers", begin, end))
            known |= inside.all(axis=1)
            table[known] = ends[known]
        return table, ~known if self.waiting else None

    def _stacked(self, parts: list[Any], begin: int, end: int) -> Floats:
        table = np.empty((end - begin, len(parts)))
        for place, part in enumerate(parts):
            table[:, place] = part if np.ndim(part) == 0 else part[begin:end]
        return table

    def chosen(self, places: np.ndarray) -> Tables:
        """Give those of some fits."""
        some: Any = lambda parts: [part if np.ndim(part) == 0 else part[places] for part in parts]  # noqa: E731
        starts, lowers, uppers, fixed, earlier = map(some, (self.starts, self.lowers, self.uppers, self.fixed, self.earlier))
        return Tables(starts, lowers, uppers, fixed, earlier, self.waiting)

    def fixed_values(self, known: Parameters) -> dict[str, Any]:
        """Values of the fixed parameters by name: of its shape, or one each, (count, ...)."""
        found, rest = {}, iter(self.fixed)
        for name in known.names:
            if known.specs[name].fixed and known.specs[name].tied is None:
                shape = known.shape(name)
                parts = [next(rest) for _ in range(math.prod(shape))]
                if all(np.ndim(part) == 0 for part in parts):
                    found[name] = np.array(parts, dtype=np.float64).reshape(shape) if shape else float(parts[0])
                else:
                    count = max(len(part) for part in parts if np.ndim(part))
                    columns = [np.broadcast_to(part, (count,)) for part in parts]
                    found[name] = np.stack(columns, axis=1).reshape(count, *shape).astype(np.float64)
        return found

    def part(self, name: str, begin: int, end: int) -> Floats:
        """Bounds or fixed numbers of some fits, (end - begin, p), or (p,) where all have the same."""
        parts = getattr(self, name)
        if all(np.ndim(part) == 0 for part in parts):
            return np.array(parts, dtype=np.float64)
        columns = [np.broadcast_to(part if np.ndim(part) == 0 else part[begin:end], (end - begin,)) for part in parts]
        return np.ascontiguousarray(np.stack(columns, axis=1), dtype=np.float64)


def placed(known: Parameters, theta: Floats, lower: Floats, upper: Floats, fixed: Floats) -> Parameters:
    """Parameters of one fit: start (p,), bounds (p,) and fixed numbers (q,) of its own."""
    specs = dict(known.specs)
    at = kept = 0
    for name in known.names:
        spec, shape = specs[name], known.shape(name)
        size = math.prod(shape)
        if spec.tied is not None:
            continue
        if spec.fixed:
            specs[name] = replace(spec, start=np.array(fixed[kept : kept + size]).reshape(shape))
            kept += size
        else:
            low, high = float(lower[at]), float(upper[at])
            start = np.array(theta[at : at + size], dtype=np.float64).reshape(shape)
            bounds = (None if low == -np.inf else low, None if high == np.inf else high)
            specs[name] = replace(spec, start=start, lower=bounds[0], upper=bounds[1])
            at += size
    own = replace(known, specs=specs)
    vars(own).update(free_names=known.free_names, free_elements=known.free_elements)  # found out once is enough
    return own


def per_fit(
    defaults: Mapping[str, Parameter],
    count: int,
    *,
    start: Any,
    bounds: Any,
    fixed: Any,
    earlier: Mapping[str, Floats] | None = None,
) -> PerFit:
    """Tell what holds for all fits from what each fit has of its own: arrays whose first axis is that of the fits.

    Parameters
    ----------
    earlier
        Where another run ended, by parameter; NaN where a fit is to begin at the defaults.

    Raises
    ------
    ParameterError
        A table of starts that has no column for a parameter, an unknown name.
    """
    names = [name for name, spec in defaults.items() if spec.tied is None]
    if start is not None and not isinstance(start, Mapping) and np.ndim(start) == 2:
        table = np.asarray(start, dtype=np.float64)
        if table.shape != (count, len(names)):
            raise ParameterError(
                f"start has shape {table.shape}; expected ({count}, {len(names)}), a column for each of {', '.join(names)}."
            )
        start = dict(zip(names, table.T, strict=True))
    own_start, shared_start = _parted(start, defaults, count, "start")
    own_fixed, shared_fixed = _parted(fixed, defaults, count, "fixed")
    own_bounds: dict[str, tuple[Any, Any]] = {}
    shared_bounds: dict[str, Any] = {}
    for name, pair in dict(bounds or {}).items():
        if isinstance(pair, (tuple, list)) and len(pair) == 2 and any(np.ndim(side) == 1 and len(side) == count for side in pair):
            _known(name, defaults, "bounds")
            lower, upper = (side if np.ndim(side) == 0 else np.asarray(side, dtype=np.float64) for side in pair)
            own_bounds[name] = lower, upper
        else:
            shared_bounds[name] = pair
    earlier = dict(earlier or {})
    for name, values in earlier.items():
        if values.ndim > 1 and defaults[name].start is None:  # nobody else says that it is a vector
            shared_start = {**(shared_start or {}), name: np.full(values.shape[1:], ASSUMED_START)}
    return PerFit(shared_start, shared_bounds, shared_fixed, own_start, own_bounds, own_fixed, defaults, earlier)


def _parted(given: Any, defaults: Mapping[str, Parameter], count: int, what: str) -> tuple[dict[str, Floats], Any]:
    if not isinstance(given, Mapping):
        return {}, given
    own: dict[str, Floats] = {}
    shared: dict[str, Any] = {}
    for name, value in given.items():
        if _is_own(value, defaults.get(name), count):
            _known(name, defaults, what)
            try:
                own[name] = np.asarray(value, dtype=np.float64)
            except (TypeError, ValueError):
                raise ParameterError(f"{what} of {name} is {str(value)[:60]}; expected numbers, one per fit.") from None
        else:
            default = defaults[name].start if name in defaults else None
            if np.ndim(value) == 1 and default is not None and np.ndim(default) == 0:
                raise ParameterError(
                    f"{what} of {name} has {len(value)} values for {count} fits; expected a number, or one for each fit."
                )
            shared[name] = value
    return own, shared


def _known(name: str, defaults: Mapping[str, Parameter], what: str) -> None:
    if name not in defaults:
        raise ParameterError(unknown("parameter", name, defaults, f"It was named in {what}."))


def _is_own(value: Any, spec: Parameter | None, count: int) -> bool:
    """Whether an array has one entry per fit: its first axis is theirs, and it is not the value of a vector parameter."""
    if value is None or np.ndim(value) == 0 or len(value) != count:
        return False
    shape = np.shape(spec.start) if spec is not None and spec.start is not None else ()
    return np.shape(value) != shape or shape == ()


def _one(values: Floats, fit: int) -> Any:
    return float(values[fit]) if values.ndim == 1 else values[fit]


def _side(side: Any, fit: int) -> Any:
    return side if np.ndim(side) == 0 else float(side[fit])


def _bound(side: Any, none: float) -> Any:
    if side is None:
        return none
    if np.ndim(side) == 0:
        return float(side)
    return np.where(np.isnan(side), none, side)


def _inside(low: Any, high: Any) -> Any:
    """Start of fits whose start nobody gave: 1, or where the bounds of one exclude it, a number inside; see :func:`parameters`."""
    low, high = np.broadcast_arrays(np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64))
    with np.errstate(all="ignore"):
        above, below = low + np.maximum(1.0, np.abs(low)), high - np.maximum(1.0, np.abs(high))
        sides = np.where(np.isfinite(low), np.where(np.isfinite(high), 0.5 * low + 0.5 * high, above), below)
    found = np.where((low < ASSUMED_START) & (high > ASSUMED_START), ASSUMED_START, sides)
    return float(found) if found.ndim == 0 else found


def _columns(values: Any, size: int, count: int) -> list[Any]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim >= 1 and len(array) == count and array.size == count * size:
        return list(array.reshape(count, size).T)
    return [float(value) for value in array.reshape(-1)]
