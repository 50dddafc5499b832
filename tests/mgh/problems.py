r"""The test problems of Moré, Garbow and Hillstrom: sums of squares :math:`F(x) = \sum_i f_i(x)^2`, their starts and minima.

The formulas, data, starts and minima are those of the paper; every model is written as its reader would write it for gradfit, with
numpy, and computes in any precision that numpy has.

Problems that come with data (times and measured values) are models of ``columns``; their residual is prediction - target, which has
the paper's square. The others are systems of functions: ``model(i, x)`` gives all of them, ``columns`` only count them, and the target
is 0.

The list has 41 problems: the 35 of the paper in its order, and where the paper names minima for several sizes each of these sizes:
Watson's with 6, 9 and 12, the two penalties with 4 and 10, Chebyquad with 8, 9 and 10 parameters. Where it leaves the size open
it is 10 (12 where that must be a multiple of four), with as many functions as parameters or the least number that the paper allows
(20 for the linear functions). From the starts x0, 10 x0 and 100 x0, of which the three of Watson's, with x0 = 0, have
only one, that makes 117 runs.

References
----------
Moré, Garbow, Hillstrom, *Testing Unconstrained Optimization Software*, ACM Transactions on Mathematical Software 7, 17-41, 1981.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

NEAR = 1e-6  # of the minimum, or absolute where the minimum is 0: a sum of squares within this has arrived
FACTORS = (1.0, 10.0, 100.0)
DATA = frozenset([5, 6, 8, 9, 10, 11, 12, 15, 16, 17, 18, 19])  # numbers of the problems that are models of data


@dataclass(frozen=True)
class Problem:
    """A sum of squares, where to start, and its minima.

    Attributes
    ----------
    number
        In the paper.
    model
        ``model(*columns, x) -> (n,)``; ``prediction - target`` are the residuals, up to their sign.
    minimum
        The global one.
    local
        Minima that are not global, those in limits included.
    """

    number: int
    name: str
    model: Callable[..., Any] = field(repr=False)
    columns: tuple[np.ndarray, ...] = field(repr=False)
    target: np.ndarray = field(repr=False)
    start: np.ndarray = field(repr=False)
    minimum: float
    local: tuple[float, ...] = ()

    @property
    def label(self) -> str:
        """Name and size."""
        return f"{self.number} {self.name} ({len(self.start)}, {len(self.target)})"

    @property
    def is_of_data(self) -> bool:
        """Whether each row is a function of its own columns; a system's rows are given all at once."""
        return self.number in DATA

    def residual(self, x: np.ndarray) -> np.ndarray:
        """Residuals in the precision of x."""
        with np.errstate(all="ignore"):
            columns = [column.astype(x.dtype) for column in self.columns]
            return np.asarray(self.model(*columns, x)) - self.target.astype(x.dtype)

    def is_solved(self, total: float) -> bool:
        """Tell whether a sum of squares is that of the global minimum, or below the published one (Chebyquad with 10)."""
        return total - self.minimum <= NEAR * max(self.minimum, NEAR)

    def is_local(self, total: float) -> bool:
        """Tell whether a sum of squares is that of a known minimum which is not global."""
        return any(abs(total - known) <= 1e-3 * known for known in self.local)


def runs() -> list[tuple[Problem, float, np.ndarray]]:
    """Give the 117 runs: a problem, the factor of its start, the start."""
    return [(problem, factor, factor * problem.start) for problem in PROBLEMS for factor in FACTORS
            if factor == 1 or problem.start.any()]  # fmt: skip


def slope(problem: Problem, x: np.ndarray) -> tuple[float, float]:
    """Give the sum of squares, and the largest cosine between the residuals and their derivative by a parameter: 0 at a minimum.

    In extended precision, by central differences: nothing of gradfit's is in it.
    """
    point = np.asarray(x, dtype=np.longdouble)
    residual = problem.residual(point)
    total = float(residual @ residual)
    largest = 0.0
    for place in range(len(point)):
        step = np.longdouble(4e-7) * max(abs(point[place]), np.longdouble(1e-8))
        ahead, behind = point.copy(), point.copy()
        ahead[place] += step
        behind[place] -= step
        column = (problem.residual(ahead) - problem.residual(behind)) / (ahead[place] - behind[place])
        size = float(np.sqrt((column @ column) * (residual @ residual)))
        largest = max(largest, abs(float(column @ residual)) / size if size > 0 else 0.0)
    return total, largest


def system(
    number: int, name: str, model: Callable[[Any, Any], Any], start: Any, count: int, minimum: float, *local: float
) -> Problem:
    """Put a system of ``count`` functions into the form of a problem."""
    return Problem(number, name, model, (np.arange(float(count)),), np.zeros(count), np.array(start, dtype=float), minimum, local)


# --- functions of two to four variables -----------------------------------------------------------------------------------


def rosenbrock(i, x):
    return np.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])


def freudenstein_roth(i, x):
    return np.stack([-13 + x[0] + ((5 - x[1]) * x[1] - 2) * x[1], -29 + x[0] + ((x[1] + 1) * x[1] - 14) * x[1]])


def powell_badly_scaled(i, x):
    return np.stack([1e4 * x[0] * x[1] - 1, np.exp(-x[0]) + np.exp(-x[1]) - 1.0001])


def brown_badly_scaled(i, x):
    return np.stack([x[0] - 1e6, x[1] - 2e-6, x[0] * x[1] - 2])


def beale(k, x):
    return x[0] * (1 - x[1] ** k)


def jennrich_sampson(i, x):
    return np.exp(i * x[0]) + np.exp(i * x[1])


def helical_valley(i, x):
    half = np.where(x[0] < 0, 0.5, 0.0)
    angle = np.arctan(x[1] / x[0]) / (2 * math.pi) + half
    return np.stack([10 * (x[2] - 10 * angle), 10 * (np.sqrt(x[0] ** 2 + x[1] ** 2) - 1), x[2]])


def bard(u, v, w, x):
    return x[0] + u / (v * x[1] + w * x[2])


def gaussian(t, x):
    return x[0] * np.exp(-x[1] * (t - x[2]) ** 2 / 2)


def meyer(t, x):
    return x[0] * np.exp(x[1] / (t + x[2]))


def gulf(y, x):
    return np.exp(-(np.abs(y - x[1]) ** x[2]) / x[0])


def box(t, x):
    return np.exp(-t * x[0]) - np.exp(-t * x[1]) - x[2] * (np.exp(-t) - np.exp(-10 * t))


def powell_singular(i, x):
    return np.stack([x[0] + 10 * x[1], math.sqrt(5) * (x[2] - x[3]), (x[1] - 2 * x[2]) ** 2, math.sqrt(10) * (x[0] - x[3]) ** 2])


def wood(i, x):
    return np.stack(
        [
            10 * (x[1] - x[0] ** 2), 1 - x[0], math.sqrt(90) * (x[3] - x[2] ** 2), 1 - x[2],
            math.sqrt(10) * (x[1] + x[3] - 2), (x[1] - x[3]) / math.sqrt(10),
        ]
    )  # fmt: skip


def kowalik_osborne(u, x):
    return x[0] * (u**2 + u * x[1]) / (u**2 + u * x[2] + x[3])


def brown_dennis(t, x):
    return (x[0] + t * x[1] - np.exp(t)) ** 2 + (x[2] + x[3] * np.sin(t) - np.cos(t)) ** 2


# --- five to twelve -------------------------------------------------------------------------------------------------------


def osborne_1(t, x):
    return x[0] + x[1] * np.exp(-t * x[3]) + x[2] * np.exp(-t * x[4])


def biggs_exp6(t, x):
    return x[2] * np.exp(-t * x[0]) - x[3] * np.exp(-t * x[1]) + x[5] * np.exp(-t * x[4])


def osborne_2(t, x):
    peaks = sum(x[k] * np.exp(-((t - x[k + 7]) ** 2) * x[k + 4]) for k in range(1, 4))
    return x[0] * np.exp(-t * x[4]) + peaks


def watson(i, x):
    n = len(x)
    t = (i[:29] + 1) / 29
    slope = sum(j * x[j] * t ** (j - 1) for j in range(1, n))
    value = sum(x[j] * t**j for j in range(n))
    return np.concatenate([slope - value**2 - 1, x[:1], x[1:2] - x[:1] ** 2 - 1])


# --- any number -----------------------------------------------------------------------------------------------------------


def extended_rosenbrock(i, x):
    return np.concatenate([10 * (x[1::2] - x[::2] ** 2), 1 - x[::2]])


def extended_powell(i, x):
    a, b, c, d = x[::4], x[1::4], x[2::4], x[3::4]
    return np.concatenate([a + 10 * b, math.sqrt(5) * (c - d), (b - 2 * c) ** 2, math.sqrt(10) * (a - d) ** 2])


def penalty_1(i, x):
    return np.concatenate([math.sqrt(1e-5) * (x - 1), np.sum(x**2).reshape(1) - 0.25])


def penalty_2(i, x):
    n, small = len(x), math.sqrt(1e-5)
    k = i[1:n] + 1
    steps = small * (np.exp(x[1:] / 10) + np.exp(x[:-1] / 10) - np.exp(k / 10) - np.exp((k - 1) / 10))
    ends = small * (np.exp(x[1:] / 10) - math.exp(-0.1))
    return np.concatenate([x[:1] - 0.2, steps, ends, np.sum((n - i[:n]) * x**2).reshape(1) - 1])


def variably_dimensioned(i, x):
    total = np.sum((i[: len(x)] + 1) * (x - 1)).reshape(1)
    return np.concatenate([x - 1, total, total**2])


def trigonometric(i, x):
    return len(x) - np.sum(np.cos(x)) + (i + 1) * (1 - np.cos(x)) - np.sin(x)


def brown_almost_linear(i, x):
    return np.concatenate([x[:-1] + np.sum(x) - (len(x) + 1), np.prod(x).reshape(1) - 1])


def discrete_boundary_value(i, x):
    h = 1 / (len(x) + 1)
    none = 0 * x[:1]
    left, right = np.concatenate([none, x[:-1]]), np.concatenate([x[1:], none])
    return 2 * x - left - right + h**2 * (x + h * (i + 1) + 1) ** 3 / 2


def discrete_integral_equation(i, x):
    h = 1 / (len(x) + 1)
    t = h * (i + 1)
    cubes = (x + t + 1) ** 3
    below, above = np.cumsum(t * cubes, 0), np.cumsum((1 - t) * cubes, 0)
    return x + h / 2 * ((1 - t) * below + t * (above[-1] - above))


def broyden_tridiagonal(i, x):
    none = 0 * x[:1]
    left, right = np.concatenate([none, x[:-1]]), np.concatenate([x[1:], none])
    return (3 - 2 * x) * x - left - 2 * right + 1


def broyden_banded(i, x):
    n, own = len(x), x * (1 + x)
    others = np.stack([sum(own[j] for j in range(max(0, k - 5), min(n, k + 2)) if j != k) for k in range(n)])
    return x * (2 + 5 * x**2) + 1 - others


def linear_full_rank(i, x):
    m, n = len(i), len(x)
    rest = -2 / m * np.sum(x) - 1
    return np.concatenate([x + rest, rest + 0 * i[n:]])


def linear_rank_1(i, x):
    return (i + 1) * np.sum((i[: len(x)] + 1) * x) - 1


def linear_rank_1_with_zeros(i, x):
    inner = np.where((i > 0) & (i < len(i) - 1), i, 0 * i)
    weights = i[1 : len(x) - 1] + 1
    return inner * np.sum(weights * x[1:-1]) - 1


def chebyquad(i, x):
    n = len(x)
    z = 2 * x - 1
    before, now, rows = 1 + 0 * z, z, []
    for degree in range(1, n + 1):
        integral = 0.0 if degree % 2 else -1 / (degree**2 - 1)
        rows.append(np.sum(now) / n - integral)
        before, now = now, 2 * z * now - before
    return np.stack(rows)


# --- data -----------------------------------------------------------------------------------------------------------------

BARD = np.array([0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.10, 4.39])
GAUSSIAN = np.array([0.0009, 0.0044, 0.0175, 0.0540, 0.1295, 0.2420, 0.3521, 0.3989, 0.3521, 0.2420, 0.1295, 0.0540, 0.0175, 0.0044, 0.0009])  # fmt: skip
MEYER = np.array([34780, 28610, 23650, 19630, 16370, 13720, 11540, 9744, 8261, 7030, 6005, 5147, 4427, 3820, 3307, 2872.0])
KOWALIK_U = np.array([4, 2, 1, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625])
KOWALIK = np.array([0.1957, 0.1947, 0.1735, 0.1600, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246])
OSBORNE_1 = np.array(
    [
        0.844, 0.908, 0.932, 0.936, 0.925, 0.908, 0.881, 0.850, 0.818, 0.784, 0.751, 0.718, 0.685, 0.658, 0.628, 0.603, 0.580,
        0.558, 0.538, 0.522, 0.506, 0.490, 0.478, 0.467, 0.457, 0.448, 0.438, 0.431, 0.424, 0.420, 0.414, 0.411, 0.406,
    ]
)  # fmt: skip
OSBORNE_2 = np.array(
    [
        1.366, 1.191, 1.112, 1.013, 0.991, 0.885, 0.831, 0.847, 0.786, 0.725, 0.746, 0.679, 0.608, 0.655, 0.616, 0.606, 0.602,
        0.626, 0.651, 0.724, 0.649, 0.649, 0.694, 0.644, 0.624, 0.661, 0.612, 0.558, 0.533, 0.495, 0.500, 0.423, 0.395, 0.375,
        0.372, 0.391, 0.396, 0.405, 0.428, 0.429, 0.523, 0.562, 0.607, 0.653, 0.672, 0.708, 0.633, 0.668, 0.645, 0.632, 0.591,
        0.559, 0.597, 0.625, 0.739, 0.710, 0.729, 0.720, 0.636, 0.581, 0.428, 0.292, 0.162, 0.098, 0.054,
    ]
)  # fmt: skip


def _data() -> dict[str, Any]:
    """Columns, targets and starts that are computed."""
    fifteen = np.arange(1.0, 16)
    hundredths = np.arange(1.0, 100) / 100
    tenths = np.arange(1.0, 14) / 10
    twelfths = np.arange(1.0, 11) / 11
    return {
        "bard": (fifteen, 16 - fifteen, np.minimum(fifteen, 16 - fifteen)),
        "gaussian": (8 - fifteen) / 2,
        "meyer": 45 + 5 * np.arange(1.0, 17),
        "gulf": 25 + (-50 * np.log(hundredths)) ** (2 / 3),
        "hundredths": hundredths,
        "box": np.arange(1.0, 11) / 10,
        "biggs": tenths,
        "biggs_target": np.exp(-tenths) - 5 * np.exp(-10 * tenths) + 3 * np.exp(-4 * tenths),
        "brown_dennis": np.arange(1.0, 21) / 5,
        "grid": twelfths * (twelfths - 1),
    }


def _problems() -> tuple[Problem, ...]:
    of = _data()
    ten = np.arange(1.0, 11)

    def measured(number, name, model, columns, target, start, minimum, *local):
        return Problem(number, name, model, columns, np.asarray(target, float), np.array(start, float), minimum, local)

    def spread(count):
        return np.arange(1.0, count + 1) / (count + 1)

    return (
        system(1, "Rosenbrock", rosenbrock, [-1.2, 1], 2, 0.0),
        system(2, "Freudenstein and Roth", freudenstein_roth, [0.5, -2], 2, 0.0, 48.98425368),
        system(3, "Powell, badly scaled", powell_badly_scaled, [0, 1], 2, 0.0),
        system(4, "Brown, badly scaled", brown_badly_scaled, [1, 1], 3, 0.0),
        measured(5, "Beale", beale, (np.arange(1.0, 4),), [1.5, 2.25, 2.625], [1, 1], 0.0),
        measured(6, "Jennrich and Sampson", jennrich_sampson, (ten,), 2 + 2 * ten, [0.3, 0.4], 124.362182355614),
        system(7, "helical valley", helical_valley, [-1, 0, 0], 3, 0.0),
        measured(8, "Bard", bard, of["bard"], BARD, [1, 1, 1], 8.21487730657898e-3, 17.4286),
        measured(9, "Gaussian", gaussian, (of["gaussian"],), GAUSSIAN, [0.4, 1, 0], 1.12793276961912e-8),
        measured(10, "Meyer", meyer, (of["meyer"],), MEYER, [0.02, 4000, 250], 87.9458551709),
        measured(11, "Gulf", gulf, (of["gulf"],), of["hundredths"], [5, 2.5, 0.15], 0.0),
        measured(12, "Box", box, (of["box"],), np.zeros(10), [0, 10, 20], 0.0),
        system(13, "Powell, singular", powell_singular, [3, -1, 0, 1], 4, 0.0),
        system(14, "Wood", wood, [-3, -1, -3, -1], 6, 0.0),
        measured(15, "Kowalik and Osborne", kowalik_osborne, (KOWALIK_U,), KOWALIK, [0.25, 0.39, 0.415, 0.39], 3.07505603849e-4, 1.02734e-3),
        measured(16, "Brown and Dennis", brown_dennis, (of["brown_dennis"],), np.zeros(20), [25, 5, -5, -1], 85822.2016263563),
        measured(17, "Osborne 1", osborne_1, (10 * np.arange(33.0),), OSBORNE_1, [0.5, 1.5, -1, 0.01, 0.02], 5.46489469748e-5),
        measured(18, "Biggs EXP6", biggs_exp6, (of["biggs"],), of["biggs_target"], [1, 2, 1, 1, 1, 1], 0.0, 5.65565e-3),
        measured(19, "Osborne 2", osborne_2, (np.arange(65.0) / 10,), OSBORNE_2,
                 [1.3, 0.65, 0.65, 0.7, 0.6, 3, 5, 7, 2, 4.5, 5.5], 4.01377362935e-2),
        system(20, "Watson", watson, np.zeros(6), 31, 2.28767005355e-3),
        system(20, "Watson", watson, np.zeros(9), 31, 1.39976013809e-6),
        system(20, "Watson", watson, np.zeros(12), 31, 4.72238110528e-10),
        system(21, "extended Rosenbrock", extended_rosenbrock, [-1.2, 1] * 5, 10, 0.0),
        system(22, "extended Powell, singular", extended_powell, [3, -1, 0, 1] * 3, 12, 0.0),
        system(23, "penalty I", penalty_1, ten[:4], 5, 2.24997750090e-5),
        system(23, "penalty I", penalty_1, ten, 11, 7.08765146709e-5),
        system(24, "penalty II", penalty_2, [0.5] * 4, 8, 9.37629300736e-6),
        system(24, "penalty II", penalty_2, [0.5] * 10, 20, 2.93660537457e-4),
        system(25, "variably dimensioned", variably_dimensioned, 1 - ten / 10, 12, 0.0),
        system(26, "trigonometric", trigonometric, [0.1] * 10, 10, 0.0, 2.79506e-5),
        system(27, "Brown, almost linear", brown_almost_linear, [0.5] * 10, 10, 0.0, 1.0),
        system(28, "discrete boundary value", discrete_boundary_value, of["grid"], 10, 0.0),
        system(29, "discrete integral equation", discrete_integral_equation, of["grid"], 10, 0.0),
        system(30, "Broyden, tridiagonal", broyden_tridiagonal, [-1] * 10, 10, 0.0),
        system(31, "Broyden, banded", broyden_banded, [-1] * 10, 10, 0.0),
        system(32, "linear, full rank", linear_full_rank, [1] * 10, 20, 10.0),
        system(33, "linear, rank 1", linear_rank_1, [1] * 10, 20, 20 * 19 / (2 * 41)),
        system(34, "linear, rank 1 with zeros", linear_rank_1_with_zeros, [1] * 10, 20, (400 + 60 - 6) / (2 * 37)),
        system(35, "Chebyquad", chebyquad, spread(8), 8, 3.51687372568e-3),
        system(35, "Chebyquad", chebyquad, spread(9), 9, 0.0),
        system(35, "Chebyquad", chebyquad, spread(10), 10, 6.50395480088e-3),
    )  # fmt: skip


PROBLEMS = _problems()
