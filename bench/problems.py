"""The works that are timed: models, data, starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

THERMOMETER = Path(__file__).parent.parent / "examples" / "thermometer.csv"


def celsius(t_u: Any, w: Any, b: Any) -> Any:
    """Straight line; works on torch tensors and arrays alike."""
    return w * t_u + b


def peak(x: Any, height: Any, center: Any, width: Any, offset: Any) -> Any:
    """Gaussian and a constant, for torch."""
    return height * torch.exp(-(((x - center) / width) ** 2) / 2) + offset


def decay(x: Any, a: Any, b: Any, c: Any) -> Any:
    """Exponential decay to a constant, for torch."""
    return a * torch.exp(-b * x) + c


def saturation(x: Any, top: Any, half: Any) -> Any:
    """Michaelis-Menten kinetics; works on torch tensors and arrays alike."""
    return top * x / (half + x)


def wave(x: Any, amplitude: Any, frequency: Any, phase: Any, slope: Any) -> Any:
    """Sine on a slope, for torch: the model that is new, and then seen before."""
    return amplitude * torch.sin(frequency * x + phase) + slope * x


@dataclass(frozen=True)
class Data:
    """Columns, a start in the order of the model's parameters, and their names."""

    x: np.ndarray
    y: np.ndarray
    start: dict[str, float]


def thermometer(dtype: str = "float64") -> Data:
    """Give the eleven readings, the unknown units times 0.1, as the hand-written loop needs them."""
    t_u, t_c = np.loadtxt(THERMOMETER, delimiter=",", skiprows=1, dtype=dtype).T
    return Data(np.ascontiguousarray(t_u) * np.dtype(dtype).type(0.1), np.ascontiguousarray(t_c), {"w": 1.0, "b": 0.0})


def decay_in_both(n: int = 100) -> Data:
    """Give an exponential decay to a constant, noise 0.05 in x and y."""
    random = np.random.default_rng(0)
    x = np.linspace(0.0, 10.0, n)
    y = 3.0 * np.exp(-0.5 * x) + 1.0 + random.normal(0.0, 0.05, n)
    return Data(x + random.normal(0.0, 0.05, n), y, {"a": 2.0, "b": 0.4, "c": 0.5})


def noisy_peak(n: int = 100) -> Data:
    """Give a Gaussian peak of height 5 on an offset, noise 0.1, and a start that is read off a plot."""
    random = np.random.default_rng(0)
    x = np.linspace(-5.0, 5.0, n)
    y = 5.0 * np.exp(-(((x - 0.7) / 1.1) ** 2) / 2) + 1.0 + random.normal(0.0, 0.1, n)
    return Data(x, y, {"height": 4.0, "center": 0.0, "width": 1.5, "offset": 0.5})


def kinetics() -> Data:
    """Give eleven points of a saturating curve, noise 0.05, and a start."""
    x = np.linspace(0.2, 5.0, 11)
    y = saturation(x, 2.0, 1.1) + np.random.default_rng(4).normal(0.0, 0.05, len(x))
    return Data(x, y, {"top": 1.5, "half": 1.0})


def noisy_wave(n: int = 100) -> Data:
    """Give a sine on a slope, noise 0.05."""
    random = np.random.default_rng(1)
    x = np.linspace(0.0, 6.0, n)
    y = 1.5 * np.sin(1.9 * x + 0.4) + 0.3 * x + random.normal(0.0, 0.05, n)
    return Data(x, y, {"amplitude": 1.0, "frequency": 2.0, "phase": 0.0, "slope": 0.0})


def long_decay(n: int) -> Data:
    """Give n rows of an exponential decay, noise 0.1; the start is where loss and gradient are taken."""
    random = np.random.default_rng(2)
    x = random.uniform(0.0, 4.0, n)
    y = 2.5 * np.exp(-1.3 * x) + 0.5 + random.normal(0.0, 0.1, n)
    return Data(x, y, {"a": 2.0, "b": 1.0, "c": 0.3})
