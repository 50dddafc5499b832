"""Many small fits: a Gaussian peak on an offset (30 points, 4 parameters) and a decay to a constant (20 points, 3 parameters).

Every fit has parameters of its own, noise of 5% of its height, and a rough start of its own, as one has from the data's maximum and
width: each parameter within a fifth of the truth, the centre within a fifth of a width, the offset within a fifth of the height.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

import peers_numpy
from problems import peak


def fading(x: Any, a: Any, t: Any, c: Any) -> Any:
    """Exponential decay to a constant, by its time, for torch."""
    return a * torch.exp(-x / t) + c


def numpy_fading(x: np.ndarray, a: float, t: float, c: float) -> np.ndarray:
    """Exponential decay to a constant, by its time."""
    return a * np.exp(-x / t) + c


def peak_slopes(module: Any, x: Any, height: Any, center: Any, width: Any, offset: Any) -> tuple[Any, list[Any]]:
    """Value and derivatives of the peak; ``module`` is numpy or jax.numpy."""
    z = (x - center) / width
    bell = module.exp(-0.5 * z**2)
    by_center = height * bell * z / width
    return height * bell + offset, [bell, by_center, by_center * z, module.ones_like(z)]


def fading_slopes(module: Any, x: Any, a: Any, t: Any, c: Any) -> tuple[Any, list[Any]]:
    """Value and derivatives of the decay; ``module`` is numpy or jax.numpy."""
    share = module.exp(-x / t)
    return a * share + c, [share, a * share * x / t**2, module.ones_like(share)]


@dataclass(frozen=True)
class Work:
    """One model to fit many times.

    Attributes
    ----------
    model, plain
        For torch, as gradfit is given it; for numpy.
    slopes
        ``slopes(module, x, *theta)``: value and derivatives.
    x
        Where it is measured.
    low, high
        Ranges of the true parameters, in the order of ``names``.
    common
        A start for all.
    off_by
        Starts are off by a share of the parameter itself, or of the one named here.
    in_c
        Its name in ``many.c``.
    """

    title: str
    names: tuple[str, ...]
    model: Callable[..., Any]
    plain: Callable[..., np.ndarray]
    slopes: Callable[..., tuple[Any, list[Any]]]
    x: np.ndarray
    low: tuple[float, ...]
    high: tuple[float, ...]
    common: tuple[float, ...]
    off_by: Mapping[str, str]
    in_c: str

    def jacobian(self, x: np.ndarray, *theta: Any) -> np.ndarray:
        """Derivatives, (n, p)."""
        return np.column_stack(self.slopes(np, x, *theta)[1])


GAUSSIAN = Work(
    "Gaussian", ("height", "center", "width", "offset"), peak, peers_numpy.peak, peak_slopes, np.linspace(-5.0, 5.0, 30), (0.5, -1.5, 0.7, -0.5),
    (2.0, 1.5, 1.6, 0.5), (1.0, 0.0, 1.0, 0.0), {"center": "width", "offset": "height"}, "PEAK",
)  # fmt: skip
DECAY = Work(
    "decay", ("a", "t", "c"), fading, numpy_fading, fading_slopes, np.linspace(0.0, 5.0, 20), (0.5, 0.5, -0.5), (2.0, 2.0, 0.5), (1.0, 1.0, 0.0),
    {"c": "a"}, "DECAY",
)  # fmt: skip


@dataclass(frozen=True)
class Many:
    """Data of many fits.

    Attributes
    ----------
    x, y, start
        (n,), (fits, n), (fits, p); the start in double precision.
    """

    work: Work
    x: np.ndarray
    y: np.ndarray
    start: np.ndarray

    def __len__(self) -> int:
        return len(self.y)

    @property
    def starts(self) -> dict[str, np.ndarray]:
        """The start as fit_many takes it."""
        return {name: np.ascontiguousarray(self.start[:, place]) for place, name in enumerate(self.work.names)}

    def part(self, count: int) -> Many:
        """The first fits only."""
        return replace(self, y=self.y[:count], start=self.start[:count])

    def from_one_start(self) -> Many:
        """The same data, all fits from one start."""
        return replace(self, start=np.tile(self.work.common, (len(self), 1)))

    def of(self, dtype: str) -> Many:
        """The same data in a precision."""
        return replace(self, x=self.x.astype(dtype), y=self.y.astype(dtype))


def many(work: Work, count: int, *, noise: float = 0.05, off: float = 0.2, seed: int = 0) -> Many:
    """Draw the data of many fits, in float64.

    Parameters
    ----------
    noise
        Of the height of each.
    off
        By how much a start is off.
    """
    random = np.random.default_rng(seed)
    truth = random.uniform(work.low, work.high, (count, len(work.names)))
    columns = dict(zip(work.names, truth.T, strict=True))
    y = work.plain(work.x, *(column[:, None] for column in truth.T))
    y += noise * truth[:, :1] * random.normal(size=y.shape)
    scale = np.column_stack([columns[work.off_by.get(name, name)] for name in work.names])
    return Many(work, work.x, y, truth + scale * random.uniform(-off, off, truth.shape))


# Harder ones, for accuracy: what is asked of a batch when its data are not as they should be.
SETS: dict[str, Callable[[Work, int], Many]] = {
    "own starts": many,
    "one start": lambda work, count: many(work, count).from_one_start(),
    "far starts": partial(many, off=0.6),
    "lost starts": partial(many, off=1.5),
    "low signal": partial(many, noise=0.25),
    "far and low": partial(many, noise=0.25, off=0.6),
    "clean": partial(many, noise=1e-4),
}
