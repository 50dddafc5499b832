"""NIST's certified problems of nonlinear regression, as a user of numpy writes their models; read from ``tests/nist``.

Nelson's target is log(y) and has two predictors; Roszman1 goes with arctan, not arctan2.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

NIST = Path(__file__).parent / "nist"


@dataclass(frozen=True)
class Certified:
    """A problem: x (n,) or (2, n), y (n,); two starts (2, p); certified values and standard deviations (p,)."""

    x: np.ndarray
    y: np.ndarray
    starts: np.ndarray
    values: np.ndarray
    deviations: np.ndarray


def certified(name: str) -> Certified:
    """Read a file of NIST's."""
    content = (NIST / f"{name}.dat").read_text()
    table = np.array(re.findall(r"^\s*b\d+\s*=\s*(\S+)\s+(\S+)\s+(\S+)\s+(\S+)", content, re.MULTILINE), dtype=float)
    first, last = map(int, re.search(r"Data\s+\(lines\s+(\d+) to (\d+)\)", content).groups())
    rows = [line.split() for line in content.splitlines()[first - 1 : last]]
    data = np.array([row for row in rows if row], dtype=float)
    x, y = (data[:, 1:].T, np.log(data[:, 0])) if name == "Nelson" else (data[:, 1], data[:, 0])
    return Certified(x, y, table[:, :2].T, table[:, 2], table[:, 3])


def bennett5(x, b1, b2, b3):
    return b1 * (b2 + x) ** (-1 / b3)


def boxbod(x, b1, b2):
    return b1 * (1 - np.exp(-b2 * x))


def chwirut(x, b1, b2, b3):
    return np.exp(-b1 * x) / (b2 + b3 * x)


def danwood(x, b1, b2):
    return b1 * x**b2


def enso(x, b1, b2, b3, b4, b5, b6, b7, b8, b9):
    yearly = b1 + b2 * np.cos(2 * np.pi * x / 12) + b3 * np.sin(2 * np.pi * x / 12)
    first = b5 * np.cos(2 * np.pi * x / b4) + b6 * np.sin(2 * np.pi * x / b4)
    return yearly + first + b8 * np.cos(2 * np.pi * x / b7) + b9 * np.sin(2 * np.pi * x / b7)


def eckerle4(x, b1, b2, b3):
    return (b1 / b2) * np.exp(-0.5 * ((x - b3) / b2) ** 2)


def gauss(x, b1, b2, b3, b4, b5, b6, b7, b8):
    return b1 * np.exp(-b2 * x) + b3 * np.exp(-((x - b4) ** 2) / b5**2) + b6 * np.exp(-((x - b7) ** 2) / b8**2)


def cubic_ratio(x, b1, b2, b3, b4, b5, b6, b7):
    return (b1 + b2 * x + b3 * x**2 + b4 * x**3) / (1 + b5 * x + b6 * x**2 + b7 * x**3)


def kirby2(x, b1, b2, b3, b4, b5):
    return (b1 + b2 * x + b3 * x**2) / (1 + b4 * x + b5 * x**2)


def lanczos(x, b1, b2, b3, b4, b5, b6):
    return b1 * np.exp(-b2 * x) + b3 * np.exp(-b4 * x) + b5 * np.exp(-b6 * x)


def mgh09(x, b1, b2, b3, b4):
    return b1 * (x**2 + x * b2) / (x**2 + x * b3 + b4)


def mgh10(x, b1, b2, b3):
    return b1 * np.exp(b2 / (x + b3))


def mgh17(x, b1, b2, b3, b4, b5):
    return b1 + b2 * np.exp(-x * b4) + b3 * np.exp(-x * b5)


def misra1a(x, b1, b2):
    return b1 * (1 - np.exp(-b2 * x))


def misra1b(x, b1, b2):
    return b1 * (1 - (1 + b2 * x / 2) ** (-2))


def misra1c(x, b1, b2):
    return b1 * (1 - (1 + 2 * b2 * x) ** (-0.5))


def misra1d(x, b1, b2):
    return b1 * b2 * x / (1 + b2 * x)


def nelson(x, b1, b2, b3):
    time, temperature = x
    return b1 - b2 * time * np.exp(-b3 * temperature)


def rat42(x, b1, b2, b3):
    return b1 / (1 + np.exp(b2 - b3 * x))


def rat43(x, b1, b2, b3, b4):
    return b1 / ((1 + np.exp(b2 - b3 * x)) ** (1 / b4))


def roszman1(x, b1, b2, b3, b4):
    return b1 - b2 * x - np.arctan(b3 / (x - b4)) / np.pi


MODELS: dict[str, Callable[..., np.ndarray]] = {
    "Bennett5": bennett5, "BoxBOD": boxbod, "Chwirut1": chwirut, "Chwirut2": chwirut, "DanWood": danwood, "ENSO": enso,
    "Eckerle4": eckerle4, "Gauss1": gauss, "Gauss2": gauss, "Gauss3": gauss, "Hahn1": cubic_ratio, "Kirby2": kirby2,
    "Lanczos1": lanczos, "Lanczos2": lanczos, "Lanczos3": lanczos, "MGH09": mgh09, "MGH10": mgh10, "MGH17": mgh17,
    "Misra1a": misra1a, "Misra1b": misra1b, "Misra1c": misra1c, "Misra1d": misra1d, "Nelson": nelson, "Rat42": rat42,
    "Rat43": rat43, "Roszman1": roszman1, "Thurber": cubic_ratio,
}  # fmt: skip
