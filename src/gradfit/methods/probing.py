r"""What a model that is no graph shows of its parameters when it is called: units, places on an axis, and in which it is linear.

Nothing is known of the inside of such a model, for it calls a library. But its values tell the same as a graph would
(:mod:`gradfit.compiler.units`). If x and the parameters with its unit are measured in another one, predictions stay, so

.. math:: x \frac{\partial f}{\partial x} + \sum_j k_j \theta_j \frac{\partial f}{\partial \theta_j} = 0, \qquad
          \sum_j m_j \theta_j \frac{\partial f}{\partial \theta_j} = f

with :math:`k_j` the power of x in the unit of :math:`\theta_j`, and :math:`m_j` that of the target. If places are moved with x, predictions
stay as well: :math:`\partial f/\partial x + \sum_j s_j\, \partial f/\partial \theta_j = 0`, with :math:`s_j` 1 for a place. These are linear
equations for k, m and s, one for each row and each of some points of the parameters; an answer counts where they hold, and where it
is a multiple of a half. Linear are those in which second differences vanish.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import numpy as np
import torch

from gradfit.compiler.eager import EagerKernel
from gradfit.compiler.units import UNIT_OF_TARGET, Role
from gradfit.data.dataset import Dataset
from gradfit.errors import ModelError
from gradfit.methods.drawing import cube, spread
from gradfit.typing import Floats

ROWS, POINTS, TRIED = 64, 4, 64  # that are looked at; points where the model shows something, of so many
LINES = 2  # of the points, from which it is seen whether the model is linear: a call may take long
VARIES = 1e-3  # of the largest value: a smaller range of predictions shows nothing
STEP = 1e-6  # of the span of x
HOLDS, CLEAN = 1e-3, 0.02  # relative residual of equations that hold; distance from a multiple of a half
STRAIGHT = 1e-9  # relative second difference of what is linear


def probed(kernel: EagerKernel, data: Dataset) -> dict[str, Role] | None:
    """Find the role of each free number by calls; None where no point of the parameters shows enough."""
    return _Probe(kernel, data).roles()


class _Probe:
    """A model on some rows of its data, and points of its parameters where it is finite and varies."""

    def __init__(self, kernel: EagerKernel, data: Dataset) -> None:
        some = np.linspace(0, data.n - 1, min(data.n, ROWS)).astype(int)
        self.data = data.rows(np.unique(some)) if data.covariance is None else data
        self.kernel = kernel.on(self.data)
        self.names = kernel.parameters.free_elements
        self.points, self.values, self.slopes = self._looked_at()

    def roles(self) -> dict[str, Role] | None:
        """Role of each free number, by name."""
        if not len(self.points):
            return None
        linear, columns = self._linear(), tuple(self.data.columns)
        by_size = self.slopes * self.points[:, None]
        powers = {name: self._solved(by_size, -self._moved(name, scaled=True)) for name in columns}
        powers[UNIT_OF_TARGET] = self._solved(by_size, self.values)
        shifts = {name: self._solved(self.slopes, -self._moved(name, scaled=False)) for name in columns}
        found = {}
        for place, name in enumerate(self.names):
            own = {column: float(power[place]) for column, power in powers.items() if power is not None}
            on = [column for column, shift in shifts.items() if shift is not None and shift[place] == 1]
            found[name] = Role(own if len(own) == len(powers) else None, on[0] if on else "", place in linear)
        return found

    def _looked_at(self) -> tuple[Floats, Floats, Floats]:
        """Points (K, p), predictions (K, n) and their derivatives (K, n, p)."""
        parameters = self.kernel.parameters
        points: list[Floats] = []
        values: list[Floats] = []
        slopes: list[Floats] = []
        drawn = spread(cube(len(self.names), 0, TRIED, 0), None, self.names, self.data, parameters.lower, parameters.upper)
        for point in drawn:
            if len(points) == POINTS:
                break
            value = self._prediction(self.kernel, point)
            if value is None or np.ptp(value) <= VARIES * np.abs(value).max():
                continue
            with np.errstate(all="ignore"), suppress(ModelError):
                _, slope = self.kernel.jacobian(point)
                if np.isfinite(slope).all():
                    points.append(point)
                    values.append(value)
                    slopes.append(slope)
        n, p = self.data.n, len(self.names)
        return np.array(points).reshape(-1, p), np.array(values).reshape(-1, n), np.array(slopes).reshape(-1, n, p)

    def _prediction(self, kernel: EagerKernel, point: Floats) -> Floats | None:
        """Predictions, (n,); None where they are not finite."""
        with np.errstate(all="ignore"), suppress(ModelError):
            value = kernel.predicted(torch.as_tensor(point, dtype=kernel.dtype), kernel.columns).detach().numpy().astype(float)
            return value if np.isfinite(value).all() else None
        return None

    def _moved(self, name: str, *, scaled: bool) -> Floats:
        """Derivative of the predictions along a column, (K, n), times the column where it is scaled; NaN where there is none."""
        column = self.data.columns[name]
        step = STEP * (float(np.ptp(column)) or 1.0)
        if scaled:
            step /= float(np.abs(column).max()) or 1.0
        shift = step * (column if scaled else 1.0)
        sides = [
            self.kernel.on(replace(self.data, columns={**self.data.columns, name: column + sign * shift}, block=None))
            for sign in (1, -1)
        ]
        found = np.full_like(self.values, np.nan)
        for place, point in enumerate(self.points):
            ahead, behind = (self._prediction(side, point) for side in sides)
            if ahead is not None and behind is not None:
                found[place] = (ahead - behind) / (2 * step)
        return found

    def _solved(self, matrix: Floats, aim: Floats) -> Floats | None:
        """Solve the equations for multiples of a half, (p,); None where there are none that hold."""
        size = np.abs(matrix).max(axis=(1, 2)) + np.abs(aim).max(axis=1)  # NaN where a point has no equations
        usable = np.isfinite(size)
        if not usable.any():
            return None
        rows = (matrix[usable] / size[usable, None, None]).reshape(-1, matrix.shape[2])
        right = (aim[usable] / size[usable, None]).ravel()
        solution = np.linalg.lstsq(rows, right, rcond=None)[0]
        rounded = np.round(2 * solution) / 2 + 0.0  # no -0
        holds = np.linalg.norm(rows @ rounded - right) <= HOLDS * np.linalg.norm(right)
        return rounded if holds and np.abs(solution - rounded).max() <= CLEAN else None

    # --- linear parameters ----------------------------------------------------------------------------------------------

    def _linear(self) -> set[int]:
        """Choose numbers in which predictions are linear together: as many as come in turn."""
        chosen: set[int] = set()
        for place in range(len(self.names)):
            if all(self._is_straight(point, place, other) for other in (place, *chosen) for point in self.points[:LINES]):
                chosen.add(place)
        return chosen

    def _is_straight(self, point: Floats, one: int, other: int) -> bool:
        """Whether the second difference along two numbers vanishes, from where both are 0."""
        begin = point.copy()
        begin[[one, other]] = 0.0
        values = []
        for first, second in ((0, 0), (1, 0), (0, 1), (1, 1)):
            there = begin.copy()
            there[one] += first * point[one]
            there[other] += second * point[other]
            value = self._prediction(self.kernel, there)
            if value is None:
                return False
            values.append(value)
        none, ahead, beside, both = values
        return bool(np.abs(both - ahead - beside + none).max() <= STRAIGHT * np.abs(values).max())
