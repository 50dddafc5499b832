r"""Where a fit may begin: points that fill the space of the parameters, in units of the data.

The free numbers of a model have units (:mod:`gradfit.compiler.units`). A number of the unit :math:`\prod_c u_c^{a_c}` is drawn as
:math:`\pm\prod_c s_c^{a_c}` with a scale :math:`s_c` of column c, from the distance of neighbouring points to several times their range,
evenly in its logarithm; a place on an axis also evenly over the range of the column; a number without unit from 1/30 to 30; one whose
unit the model leaves open from any scale at hand. The numbers in which the prediction is linear are not drawn: they follow from the
others in closed form (:func:`projected`). Points are those of a Sobol sequence, scrambled by a seed.

References
----------
Golub and Pereyra, *The differentiation of pseudo-inverses and nonlinear least squares problems whose variables separate*, SIAM
J. Numer. Anal. 10, 413, 1973. Sobol sequences: Joe and Kuo, SIAM J. Sci. Comput. 30, 2635, 2008, as in scipy.stats.qmc.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradfit.compiler.units import UNIT_OF_TARGET, Role
from gradfit.data.dataset import Dataset
from gradfit.typing import Floats

WIDEST = 3.0  # spans of a column: its largest scale
OUTSIDE = 0.1  # of the span, by which a place may lie outside the data
PLAIN = 30.0  # a number without unit is between 1/30 and 30
ANY = 1e3  # and one whose unit is open within this of a scale at hand
AROUND = 4.0  # decades below a given start
APART = 0.3  # standard deviation of the logarithm, near a start
RIDGE = 1e-12  # of a normal matrix with unit diagonal
TURN = 2 * math.pi


@dataclass(frozen=True)
class Axis:
    """A column or the target as a scale: the range of its values, and the distance of neighbours; numbers, or (count, 1) of many data sets."""

    lowest: Any
    highest: Any
    spacing: Any

    @classmethod
    def of(cls, values: Floats) -> Axis:
        """Look at the values of a column."""
        flat = values.reshape(len(values), -1)[:, 0]
        lowest, highest = float(flat.min()), float(flat.max())
        span = highest - lowest
        return cls(lowest, highest, span / max(len(np.unique(flat)) - 1, 1))

    @classmethod
    def of_each(cls, values: Floats, sizes: np.ndarray) -> Axis:
        """Look at the values of a column of many data sets, (count, n), of which each has the first ``sizes``."""
        known = np.where(np.arange(values.shape[1]) < sizes[:, None], values, values[:, :1])
        rising = np.sort(known, axis=1)
        lowest, highest = rising[:, :1], rising[:, -1:]
        steps = (np.diff(rising, axis=1) > 0).sum(axis=1, keepdims=True)
        return cls(lowest, highest, (highest - lowest) / np.maximum(steps, 1))

    @property
    def span(self) -> Any:
        """Highest minus lowest; the size of a constant column; 1 for zeros."""
        span, size = self.highest - self.lowest, np.abs(self.highest)
        return np.where(span != 0, span, np.where(size != 0, size, 1.0))

    @property
    def step(self) -> Any:
        """Distance of neighbours, or what stands for it where there are none."""
        return np.where(self.spacing != 0, self.spacing, self.span)

    def scale(self, share: Floats) -> Floats:
        """Scales between the distance of neighbours and several spans, by a number from 0 to 1."""
        least = np.minimum(self.step, self.span)
        return np.asarray(least * (WIDEST * self.span / least) ** share)

    def size(self, share: Floats) -> Floats:
        """Sizes of a target from a hundredth to ten times its largest value."""
        largest = np.maximum(np.abs(self.lowest), np.abs(self.highest))
        return np.asarray(np.maximum(largest, np.finfo(float).tiny) * 10 ** (3 * share - 2))


def axes(data: Dataset) -> dict[str, Axis]:
    """Scales of the columns, and of the target under ``UNIT_OF_TARGET``."""
    return {name: Axis.of(column) for name, column in data.columns.items()} | {UNIT_OF_TARGET: Axis.of(data.target)}


@functools.lru_cache(maxsize=256)
def cube(dimensions: int, begin: int, end: int, seed: int) -> Floats:
    """Points ``begin`` to ``end`` of a scrambled Sobol sequence in the unit cube, (end - begin, dimensions)."""
    from scipy.stats import qmc  # takes half a second to import, which a fit with a start need not wait for

    sequence = qmc.Sobol(dimensions, rng=np.random.default_rng(seed))
    if begin:
        sequence.fast_forward(begin)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # scipy's, of numbers of points that are no power of two
        return sequence.random(end - begin)


def some_rows(n: int, most: int, seed: int) -> np.ndarray:
    """Choose so many of n rows, in order; drawn without order in mind, for evenly spaced ones could miss what is periodic."""
    return np.sort(np.random.default_rng(seed).choice(n, most, replace=False))


def some_half(count: int, which: int) -> np.ndarray:
    """Choose about half of so many points, (count,) bool, in an order of its own: every second point of a Sobol sequence lies in one half."""
    return np.random.default_rng(which).random(count) < 0.5


def spread(
    points: Floats, known: Mapping[str, Role] | None, names: Sequence[str], data: Dataset, lower: Floats, upper: Floats
) -> Floats:
    """Give starts for points of the unit cube.

    Parameters
    ----------
    points
        (count, p), in [0, 1).
    known
        The role of each number; None where nothing is known of any.
    lower, upper
        Bounds, (p,); starts lie within.

    Returns
    -------
    (count, p)
    """
    scales = axes(data)
    waving = some_half(len(points), 0)
    columns = [
        within(share, lower[place], upper[place], drawn(share, None if known is None else known[name], scales, waving))
        for place, (name, share) in enumerate(zip(names, points.T, strict=True))
    ]
    return np.array(columns).reshape(len(names), len(points)).T


def drawn(share: Floats, role: Role | None, scales: Mapping[str, Axis], waving: np.ndarray) -> Floats:
    """Draw a number by its role, (count,), or (data sets, count); of the share in [0, 1) the first half is one sign, or places, the second the other.

    Parameters
    ----------
    waving
        At which points what stands in a sine or cosine is an angle, or one of evenly spaced frequencies up to the highest that the points
        tell from a lower one: minima in a frequency are narrow, and as many at high ones as at low ones.
    """
    if role is not None and role.column:
        axis = scales[role.column]
        margin = OUTSIDE * axis.span
        places = axis.lowest - margin + 2 * share * (axis.span + 2 * margin)
        return np.where(share < 0.5, places, _signed(2 * share - 1, axis.scale))
    if role is None or role.powers is None:
        return _of_any_scale(share, scales)
    powers = {name: power for name, power in role.powers.items() if power}
    rate = frequency_of(role)
    if not powers:
        sizes = _signed(share, lambda inner: PLAIN ** (2 * inner - 1))
        return np.where(waving, share * TURN, sizes) if role.periodic else sizes
    sizes = _signed(share, lambda inner: _size(inner, powers, scales))
    return np.where(waving, share * TURN / 2 / scales[rate].step, sizes) if rate else sizes


def frequency_of(role: Role) -> str:
    """Name the column along which a number may be a frequency; "" where it is none."""
    powers = {name: power for name, power in (role.powers or {}).items() if power}
    return next(iter(powers)) if role.periodic and list(powers.values()) == [-1.0] else ""


def _signed(share: Floats, size: Callable[[Floats], Floats]) -> Floats:
    """Half of the numbers positive, half negative."""
    positive = share < 0.5
    sizes = size(np.where(positive, 2 * share, 2 * share - 1) % 1.0)
    return np.asarray(np.where(positive, sizes, -sizes))


def _size(share: Floats, powers: Mapping[str, float], scales: Mapping[str, Axis]) -> Floats:
    """Size of a number with a unit: a product of powers of scales."""
    size = np.ones_like(share)
    for name, power in powers.items():
        axis = scales[name]
        size = size * (axis.size(share) if name == UNIT_OF_TARGET else axis.scale(share)) ** power
    return size


def _of_any_scale(share: Floats, scales: Mapping[str, Axis]) -> Floats:
    """A number of which nothing is known: near 1, or near a scale of the data or its inverse."""
    sizes = [np.ones(1)]
    for axis in scales.values():
        sizes += [np.atleast_1d(axis.span), 1 / np.atleast_1d(axis.span)]
    which = np.minimum((share * len(sizes)).astype(int), len(sizes) - 1)
    inner = share * len(sizes) - which
    chosen = np.zeros(1)
    for place, size in enumerate(sizes):
        chosen = np.where(which == place, size, chosen)
    return _signed(inner, lambda own: ANY ** (2 * own - 1)) * chosen


def within(share: Floats, lower: Any, upper: Any, drawn: Floats) -> Floats:
    """Bring numbers between their bounds: those outside are drawn anew, evenly, or mirrored at the one bound there is."""
    low, high = np.isfinite(lower), np.isfinite(upper)
    if not (low.any() or high.any()):
        return drawn
    with np.errstate(invalid="ignore"):  # of sides that are infinite
        between = np.where((drawn < lower) | (drawn > upper), lower + share * (upper - lower), drawn)
        mirrored = np.where(low & (drawn < lower), 2 * lower - drawn, drawn)
        mirrored = np.where(high & (mirrored > upper), 2 * upper - mirrored, mirrored)
    return np.clip(np.where(low & high, between, mirrored), lower, upper)


def around(start: Floats, count: int, lower: Floats, upper: Floats, seed: int) -> Floats:
    """Draw starts around a given one, (count, p).

    In turn: all numbers smaller by one factor, up to ten thousand, for a start may be right but for its scale; the same with each
    number a little off; each number off by about a factor of ten; and sizes from 1/100 to 100, for it may be altogether wrong. Half
    of the last two have signs of their own.
    """
    factor, size = _neighbourhood(count, len(start), seed)
    return np.clip(start * factor + size, lower, upper)


@functools.lru_cache(maxsize=64)
def _neighbourhood(count: int, p: int, seed: int) -> tuple[Floats, Floats]:
    """Factors of a start, and what is added, (count, p) each."""
    generator, shape = np.random.default_rng(seed), (count, p)
    shrink = np.broadcast_to(10 ** (-AROUND * generator.random((count, 1))), shape)
    signs = np.where((generator.random(shape) < 0.5) & (generator.random((count, 1)) < 0.5), -1.0, 1.0)
    near = np.exp(generator.normal(scale=APART, size=shape))
    own = 10 ** generator.normal(size=shape) * signs
    sizes = 10 ** generator.uniform(-2, 2, shape) * signs
    kind = np.arange(count)[:, None] % 4
    return np.choose(kind, (shrink, shrink * near, own, np.zeros(shape))), np.where(kind == 3, sizes, 0.0)


def projected(residual: Floats, slopes: Floats) -> tuple[Floats, Floats]:
    r"""Solve for linear parameters: :math:`\min_c \lVert r + J c\rVert^2` for many systems.

    Parameters
    ----------
    residual
        (count, n), with the linear parameters at 0.
    slopes
        (count, k, n), their derivatives.

    Returns
    -------
    c, sum of squares
        (count, k), (count,); infinite where a system is not finite.
    """
    k = slopes.shape[1]
    lost = np.asarray(~(np.isfinite(residual).all(axis=1) & np.isfinite(slopes).all(axis=(1, 2))))
    residual, slopes = np.where(lost[:, None], 0.0, residual), np.where(lost[:, None, None], 0.0, slopes)
    with np.errstate(all="ignore"):
        size = np.sqrt(np.einsum("ikn,ikn->ik", slopes, slopes))
        size = np.where(np.isfinite(size) & (size > 0), size, 1.0)
        units = slopes / size[:, :, None]
        normal = units @ units.transpose(0, 2, 1) + RIDGE * k * np.eye(k)
        aim = -(units @ residual[:, :, None])[:, :, 0]
        lost |= ~(np.isfinite(normal).all(axis=(1, 2)) & np.isfinite(aim).all(axis=1))
        normal[lost], aim[lost] = np.eye(k), 0.0
        solved = np.linalg.solve(normal, aim[:, :, None])[:, :, 0]
        rest = residual + (solved[:, None, :] @ units)[:, 0]
        total = np.einsum("in,in->i", rest, rest)
    total[lost | ~np.isfinite(total)] = math.inf
    return solved / size, total
