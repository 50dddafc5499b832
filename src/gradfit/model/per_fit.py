"""Start values, bounds and fixed values that differ from fit to fit of a batch, next to those that all share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradfit.errors import ParameterError, unknown
from gradfit.model.parameters import Parameter, Parameters
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
    """

    start: Any
    bounds: dict[str, Any]
    fixed: Any
    own_start: dict[str, Floats] = field(repr=False)
    own_bounds: dict[str, tuple[Any, Any]] = field(repr=False)
    own_fixed: dict[str, Floats] = field(repr=False)

    def of(self, fit: int) -> dict[str, Any]:
        """What :func:`parameters` is told of one fit."""
        start = dict(self.start or {}) if isinstance(self.start, Mapping) or self.start is None else self.start
        if self.own_start:
            start = {**start, **{name: _one(values, fit) for name, values in self.own_start.items()}}
        bounds = self.bounds | {name: tuple(_side(side, fit) for side in pair) for name, pair in self.own_bounds.items()}
        fixed = self.fixed
        if self.own_fixed:
            shared = dict.fromkeys(fixed) if isinstance(fixed, (list, tuple, set, frozenset)) else dict(fixed or {})
            fixed = {**shared, **{name: _one(values, fit) for name, values in self.own_fixed.items()}}
        return {"start": start or None, "bounds": bounds or None, "fixed": fixed}

    def tables(self, known: Parameters, count: int) -> Tables:
        """Lay out start, bounds and fixed numbers by element, once it is known which parameters are free."""
        starts, lowers, uppers = [], [], []
        for name in known.free_names:
            size = int(np.prod(known.shape(name), dtype=int))
            spec = known.specs[name]
            low, high = self.own_bounds.get(name, (spec.lower, spec.upper))
            starts += _columns(self.own_start.get(name, spec.start), size, count)
            lowers += [_bound(low, -np.inf)] * size
            uppers += [_bound(high, np.inf)] * size
        kept = [name for name in known.names if known.specs[name].fixed and known.specs[name].tied is None]
        fixed: list[Any] = []
        for name in kept:
            own = self.own_fixed.get(name, self.own_start.get(name, known.specs[name].start))
            fixed += _columns(own, int(np.prod(known.shape(name), dtype=int)), count)
        return Tables(starts, lowers, uppers, fixed)


@dataclass(frozen=True)
class Tables:
    """Start, bounds and fixed numbers by element, each a number or (count,)."""

    starts: list[Any]
    lowers: list[Any]
    uppers: list[Any]
    fixed: list[Any]

    def theta(self, begin: int, end: int) -> Floats:
        """Starts of some fits, (end - begin, p)."""
        table = np.empty((end - begin, len(self.starts)))
        for place, part in enumerate(self.starts):
            table[:, place] = part if np.ndim(part) == 0 else part[begin:end]
        return table

    def part(self, name: str, begin: int, end: int) -> Floats:
        """Bounds or fixed numbers of some fits, (end - begin, p), or (p,) where all have the same."""
        parts = getattr(self, name)
        if all(np.ndim(part) == 0 for part in parts):
            return np.array(parts, dtype=np.float64)
        columns = [np.broadcast_to(part if np.ndim(part) == 0 else part[begin:end], (end - begin,)) for part in parts]
        return np.ascontiguousarray(np.stack(columns, axis=1), dtype=np.float64)


def per_fit(defaults: Mapping[str, Parameter], count: int, *, start: Any, bounds: Any, fixed: Any) -> PerFit:
    """Tell what holds for all fits from what each fit has of its own: arrays whose first axis is that of the fits.

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
    own_bounds, shared_bounds = {}, {}
    for name, pair in dict(bounds or {}).items():
        if isinstance(pair, (tuple, list)) and len(pair) == 2 and any(np.ndim(side) == 1 and len(side) == count for side in pair):
            _known(name, defaults, "bounds")
            own_bounds[name] = tuple(side if np.ndim(side) == 0 else np.asarray(side, dtype=np.float64) for side in pair)
        else:
            shared_bounds[name] = pair
    return PerFit(shared_start, shared_bounds, shared_fixed, own_start, own_bounds, own_fixed)


def _parted(given: Any, defaults: Mapping[str, Parameter], count: int, what: str) -> tuple[dict[str, Floats], Any]:
    if not isinstance(given, Mapping):
        return {}, given
    own, shared = {}, {}
    for name, value in given.items():
        if _is_own(value, defaults.get(name), count):
            _known(name, defaults, what)
            try:
                own[name] = np.asarray(value, dtype=np.float64)
            except (TypeError, ValueError):
                raise ParameterError(f"{what} of {name} is {str(value)[:60]}; expected numbers, one per fit.") from None
        else:
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


def _columns(values: Any, size: int, count: int) -> list[Any]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim >= 1 and len(array) == count and array.size == count * size:
        return list(np.ascontiguousarray(array.reshape(count, size).T))
    return [float(value) for value in array.reshape(-1)]
