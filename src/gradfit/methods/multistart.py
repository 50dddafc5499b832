r"""Many starts for one data set: candidates judged by their loss, the best of them followed by short fits, side by side in compiled code.

:meth:`Ground.search` is for a fit that was given no start. Rounds of candidates, each twice as large as the one before, fill the space of
the parameters; the best are followed; it ends when the lowest minimum was found several times over, from starts of its own each
time, or when the budget is spent. :meth:`Ground.follow` fits from each of some starts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from gradfit.compiler.compiled import NativeKernel
from gradfit.compiler.correlated import AnyKernel
from gradfit.compiler.units import Role
from gradfit.data.batch import FINE, Block
from gradfit.data.dataset import Dataset
from gradfit.errors import ModelError
from gradfit.methods import evaluating, marquardt
from gradfit.methods.drawing import cube, projected, some_rows, spread
from gradfit.methods.many import CONVERGED, NOT_FINITE, Limits, Starts, careful, fit_block
from gradfit.methods.solving import Solver
from gradfit.methods.stopping import ARRIVED
from gradfit.typing import Floats

FIRST_ROUND, ROUNDS = 128, 6  # candidates of the first round; rounds, each of twice as many
FOLLOWED = 1 / 8  # of the candidates, the best
ENOUGH, SHARE = 3, 1 / 12  # starts that led to the lowest minimum, and their share of all
SHORT, RACED, SLOWLY_RACED = 100, 24, 12  # steps of a fit that only looks where a start leads, of all of them at first
PROMISING = 4.0  # times the lowest sum: where a fit that is still on its way may lead lower
CARED_FOR, CARED_SHARE = 8, 1 / 8  # of those that have not arrived then, the lowest go on
SLOW, SLOW_ROUNDS = 8, 3  # how many fewer candidates there are where no compiled code judges them, and rounds
SAME_LOSS, SAME_PLACE = 1e-6, 1e-3  # relative: two ends are one minimum
RUNAWAY = 1e9  # of the usual size of a number: that fit ran off to infinity
MOST_LISTED = 100  # distinct minima
MOST_JUDGED = 512  # rows by which candidates are judged
MOST_WORK = 200_000_000  # rows times squared parameters times candidates, of a round but the first: some seconds
NUMBERS = 1 << 22  # of a block of systems: 32 MB
NOTHING_LEFT = 1e-20  # of the signal: a sum of squares that is rounding


@dataclass(frozen=True)
class Followed:
    """Where starts led.

    Attributes
    ----------
    theta
        (count, p).
    sum
        n times the mean loss, (count,); infinite where a fit could not be made.
    converged
        Whether it ended at a minimum, (count,).
    rounding
        Sums that differ by less are equal.
    """

    theta: Floats
    sum: Floats
    converged: np.ndarray
    rounding: float

    def __add__(self, other: Followed) -> Followed:
        """Both, one after the other."""
        total, converged = np.concatenate([self.sum, other.sum]), np.concatenate([self.converged, other.converged])
        return Followed(np.vstack([self.theta, other.theta]), total, converged, self.rounding)

    @property
    def best(self) -> int | None:
        """The lowest; among equals one that has converged, with as few negative numbers as may be: a width is positive.

        None where no fit could be made.
        """
        if not np.isfinite(self.sum).any():
            return None
        near = np.flatnonzero(self.sum <= self.sum.min() * (1 + SAME_LOSS) + self.rounding)
        negative = (self.theta[near] < 0).sum(axis=1)
        return int(near[np.lexsort((self.sum[near], negative, ~self.converged[near]))[0]])

    @property
    def arrived(self) -> bool:
        """Whether the lowest is a minimum."""
        return self.best is not None and bool(self.converged[self.best])

    def replaced(self, places: np.ndarray, others: Followed) -> Followed:
        """Give the same with some that were followed further."""
        theta, total, converged = self.theta.copy(), self.sum.copy(), self.converged.copy()
        theta[places], total[places], converged[places] = others.theta, others.sum, others.converged
        return Followed(theta, total, converged, self.rounding)

    def distinct(self) -> list[tuple[Floats, float, int]]:
        """Minima that differ, the lowest first: where, the sum there, and how many starts ended at it.

        Two of one sum are two minima where a parameter differs: exchanged terms, or another sign of a width.
        """
        arrived = np.flatnonzero(self.converged)
        if not arrived.size:
            return []
        left = arrived[np.argsort(self.sum[arrived], kind="stable")]
        size = np.median(np.abs(self.theta[left]), axis=0)
        left = left[(np.abs(self.theta[left]) <= np.where(size > 0, RUNAWAY * size, math.inf)).all(axis=1)]
        minima: list[tuple[Floats, float, int]] = []
        while left.size and len(minima) < MOST_LISTED:
            theta, total = self.theta[left[0]], float(self.sum[left[0]])
            apart = np.abs(self.theta[left] - theta) > SAME_PLACE * np.maximum(np.abs(theta), SAME_PLACE * size)
            same = (self.sum[left] <= total * (1 + SAME_LOSS) + self.rounding) & ~apart.any(axis=1)
            minima.append((theta, total, int(same.sum())))
            left = left[~same]
        return minima


def thinned(data: Dataset, most: int, seed: int) -> Dataset:
    """Give at most so many of the rows."""
    if data.n <= most or data.covariance is not None:
        return data
    return data.rows(some_rows(data.n, most, seed))


@dataclass(frozen=True)
class Ground:
    """A model on its data, with what is needed to begin anywhere on it.

    Attributes
    ----------
    data
        The kernel's rows.
    known
        The role of each number; None where the model is no graph.
    held
        Which numbers keep the start they have while candidates are drawn, (p,).
    """

    kernel: AnyKernel
    data: Dataset
    known: Mapping[str, Role] | None
    held: np.ndarray

    @cached_property
    def side_by_side(self) -> bool:
        """Whether compiled code looks at many starts in one call."""
        return type(self.kernel) is NativeKernel and self.kernel.loss_kind == "least_squares"

    @cached_property
    def rounding(self) -> float:
        """A sum of squares that is nothing but rounding."""
        if self.kernel.loss_kind != "least_squares":
            return 0.0
        return NOTHING_LEFT * float(np.sum(self.data.white(self.data.target) ** 2))

    @property
    def first_round(self) -> int:
        """How many candidates to begin with."""
        return FIRST_ROUND if self.side_by_side else FIRST_ROUND // SLOW

    @cached_property
    def linear(self) -> np.ndarray:
        """Which numbers follow from the others in closed form, (p,)."""
        names = self.kernel.parameters.free_elements
        linear = np.array([self.known is not None and self.known[name].linear for name in names], dtype=bool)
        return np.asarray(linear & ~self.held)

    # --- candidates ---------------------------------------------------------------------------------------------------

    def thinned(self, most: int) -> Ground:
        """Put the model on at most so many of the rows."""
        rows = thinned(self.data, most, 0)
        return self if rows is self.data else replace(self, data=rows, kernel=self.kernel.on(rows))

    def candidates(self, points: Floats) -> tuple[Floats, Floats]:
        """Give starts for points of the unit cube, (count, p), and n times their mean losses, (count,)."""
        parameters = self.kernel.parameters
        lower, upper = parameters.lower, parameters.upper
        theta = spread(points, self.known, parameters.free_elements, self.data, lower, upper)
        theta[:, self.held] = parameters.start[self.held]
        if not self.linear.any():
            return theta, self.losses(theta)
        theta, total = self._with_linear(theta)
        moved = np.asarray(((theta < lower) | (theta > upper)).any(axis=1))
        theta = np.clip(theta, lower, upper)
        if self.kernel.loss_kind != "least_squares":
            moved[:] = True
        if moved.any():
            total[moved] = self.losses(theta[moved])
        return theta, total

    def _with_linear(self, theta: Floats) -> tuple[Floats, Floats]:
        """Put the linear numbers where the squares are least; gives theta and the sums of squares."""
        total = np.empty(len(theta))
        theta[:, self.linear] = 0.0
        size = max(1, NUMBERS // (self.data.n * (theta.shape[1] + 1)))
        for begin in range(0, len(theta), size):
            part = slice(begin, begin + size)
            residual, slopes = self._rows(theta[part])
            theta[part, self.linear], total[part] = projected(residual, slopes[:, self.linear])
        return theta, total

    def _rows(self, theta: Floats) -> tuple[Floats, Floats]:
        """Residuals (count, n) and their derivatives (count, p, n) at many points; NaN where the model has none."""
        if self.side_by_side:
            block, starts = self._repeated(theta)
            return evaluating.rows(self.kernel, block, starts.theta, starts.fixed)  # type: ignore[arg-type]
        (count, p), n = theta.shape, self.data.n
        residual, slopes = np.full((count, n), np.nan), np.full((count, p, n), np.nan)
        for place, point in enumerate(theta):
            with np.errstate(all="ignore"), suppress(ModelError):  # undefined there: no start
                prediction, derivative = self.kernel.jacobian(point)
                if np.isfinite(prediction).all() and np.isfinite(derivative).all():
                    residual[place] = self.data.white(prediction - self.data.target)
                    slopes[place] = self.data.white(derivative).T
        return residual, slopes

    def losses(self, theta: Floats) -> Floats:
        """Mean loss times n at many points, (count,); infinite where it is not finite."""
        return evaluating.mean_losses(self.kernel, theta) * self.data.n

    # --- short fits ---------------------------------------------------------------------------------------------------

    def follow(self, theta: Floats, *, most: int = SHORT, radius: float = 1.0) -> Followed:
        """Fit from each of some starts, (count, p): all in few steps, the lowest of those that have not arrived then in up to ``most``."""
        if len(theta) == 0:
            return Followed(theta, np.empty(0), np.empty(0, dtype=bool), self.rounding)
        raced = RACED if self.side_by_side else SLOWLY_RACED
        first = self._fits(theta, Limits(min(raced, most), radius, careful=False))
        going = np.flatnonzero(~first.converged & self._promising(first))
        going = going[np.argsort(first.sum[going], kind="stable")][
            : max(CARED_FOR, 2 * theta.shape[1], int(CARED_SHARE * len(theta)))
        ]
        if not going.size or most <= raced:
            return first
        lost = ~np.isfinite(first.sum[going])
        begin = np.where(lost[:, None], theta[going], first.theta[going])
        return first.replaced(going, self._fits(begin, Limits(most, radius)))

    def _promising(self, found: Followed) -> np.ndarray:
        """Which fits may still lead lower, (count,): all, until a minimum was found several times; then those that are not far above it."""
        if not self.enough(found):
            return np.ones(len(found.sum), dtype=bool)
        return found.sum <= PROMISING * found.sum[found.best]

    def _fits(self, theta: Floats, limits: Limits) -> Followed:
        """Fit from each of some starts: in compiled code, or one after the other, asking Python for each look at the model."""
        if self.side_by_side:
            fit = careful if limits.careful else fit_block
            ends = fit(self.kernel, *self._repeated(theta), limits)  # type: ignore[arg-type]
            lost = (ends.status == NOT_FINITE) | ~np.isfinite(ends.sum)
            return Followed(ends.theta, np.where(lost, math.inf, ends.sum), ends.status == CONVERGED, self.rounding)
        found = [self._followed(point, limits.max_steps, limits.radius) for point in theta]
        end, total, converged = zip(*found, strict=True)
        return Followed(np.array(end), np.array(total), np.array(converged), self.rounding)

    def _followed(self, point: Floats, most: int, radius: float) -> tuple[Floats, float, bool]:
        """Fit from one start."""
        kernel, parameters = self.kernel, self.kernel.parameters
        with np.errstate(all="ignore"):
            solver = Solver(kernel, point, parameters.lower, parameters.upper, radius=radius, exact=not kernel.numeric)
            code, _history = solver.run(most)
            total = float(self.losses(solver.theta[None])[0])
            arrived = code == marquardt.CONVERGED or (code == marquardt.RUNNING and solver.conclusion().distance <= ARRIVED)
        lost = code == marquardt.NOT_FINITE or not math.isfinite(total)
        return solver.theta, math.inf if lost else total, arrived and not lost

    def _repeated(self, theta: Floats) -> tuple[Block, Starts]:
        """The data once for each start."""
        data, count, parameters = self.data, len(theta), self.kernel.parameters
        weight = None if data.sigma is None else 1 / data.sigma
        square = float(np.sum(data.white(data.target) ** 2))
        block = Block(
            tuple(data.columns.values()), np.broadcast_to(data.target, (count, data.n)), weight, np.full(count, data.n),
            np.full(count, FINE), np.full(count, square),
        )  # fmt: skip
        specs = [parameters.specs[name] for name in parameters.names]
        fixed = [np.ravel(spec.start) for spec in specs if spec.fixed and spec.tied is None]
        return block, Starts(
            np.ascontiguousarray(theta), parameters.lower, parameters.upper, np.concatenate([np.empty(0), *fixed])
        )

    # --- search -------------------------------------------------------------------------------------------------------

    def search(self, first: Floats, seed: int) -> Followed:
        """Look for the lowest minimum from given starts, (count, p), and others that fill the space."""
        found = self.follow(first)
        if self.enough(found):
            return found
        begin, count = 0, self.first_round
        work = self.data.n * first.shape[1] ** 2
        for nth in range(ROUNDS if self.side_by_side else SLOW_ROUNDS):
            if nth and work * count > MOST_WORK:
                break
            theta, total = self.candidates(cube(first.shape[1], begin, begin + count, seed))
            order = np.argsort(total, kind="stable")[: max(4, int(count * FOLLOWED))]
            found += self.follow(theta[order[np.isfinite(total[order])]])
            if self.enough(found):
                break
            begin, count = begin + count, 2 * count
        return found

    def enough(self, found: Followed) -> bool:
        """Whether the lowest minimum was reached from several starts, or nothing is left to explain."""
        best = found.best
        if best is None:
            return False
        if found.sum[best] <= self.rounding:
            return True
        near = found.converged & (found.sum <= found.sum[best] * (1 + SAME_LOSS))
        return bool(found.converged[best] and near.sum() >= max(ENOUGH, SHARE * len(found.sum)))
