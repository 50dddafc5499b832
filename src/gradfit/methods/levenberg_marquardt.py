r"""Levenberg-Marquardt: damped Gauss-Newton with the exact Jacobian.

Each step is the one of :mod:`gradfit.methods.gauss_newton`, scaled by the largest column norms of J seen so far, so that
neither x, y nor the parameters need scaling. This file decides how far to trust it: the damping follows the ratio of the actual
to the predicted gain. At the end undamped steps remove what the damping left, down to rounding.

References
----------
Moré, *The Levenberg-Marquardt algorithm: implementation and theory*, 1978 (scaling by D);
Nielsen, *Damping parameter in Marquardt's method*, IMM-REP-1999-05 (update of the damping);
Kanzow, Yamashita, Fukushima, J. Comput. Appl. Math. 172, 2004 (bounds).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from gradfit.compiler.kernel import Linearization
from gradfit.errors import ModelError, OptionError
from gradfit.methods.gauss_newton import GaussNewton
from gradfit.methods.method import Evaluation, Problem, Status
from gradfit.methods.stopping import ARRIVED, EarlyStopping, remaining_distance
from gradfit.typing import Floats

MAX_DAMPING = 1e20
POLISH = 50  # undamped steps at the end, at most: where residuals are large each removes only a third of the error
POLISHED = 1e-10  # of the residual: what is left then is in no digit of the result
PLATEAU = 1e-9  # a parameter that moves no prediction by more than this share of it, when changed by its own size
FAIR = 1e-4  # of the predicted gain must be real
WORTHLESS = 1e-13  # a predicted relative gain below this is rounding
SMALL_STEP = 1e-14  # relative to the parameters, in units of D


@dataclass(frozen=True)
class LevenbergMarquardt:
    """Levenberg-Marquardt; needs no learning rate and no scaling by hand.

    Parameters
    ----------
    max_steps
        Steps at most.
    damping
        Initial damping, relative to the scaled normal matrix (whose diagonal is 1): 1e-3 trusts the start, 1 does not.
    """

    max_steps: int = 1000
    damping: float = 1e-3
    early_stopping: EarlyStopping | None = None

    name = "Levenberg-Marquardt"
    unit = "step"
    advice = "raise max_steps, or start closer"

    def __post_init__(self) -> None:
        """Check the numbers."""
        if isinstance(self.max_steps, bool) or not isinstance(self.max_steps, int) or self.max_steps < 1:
            raise OptionError(f"max_steps is {self.max_steps!r}; expected a whole number, 1 or more.")
        if not (0 < self.damping < math.inf):
            raise OptionError(f"damping is {self.damping!r}; expected a positive number such as 1e-3.")

    def check(self, problem: Problem) -> None:
        """Refuse a loss that is no sum over rows, or has no curvature to work with."""
        start = problem.parameters.start
        finite = math.isfinite(problem.kernel.mean_loss(start))
        if finite and problem.kernel.linearize(start) is None:
            raise OptionError(
                "Levenberg-Marquardt needs a loss per row that curves upwards (squared, huber, soft_l1, cauchy, poisson, or a function "
                "giving (n,) values); for this one use method='lbfgs' or 'adam'."
            )

    def start(self, problem: Problem) -> MarquardtRun:
        """Begin at the start of the problem."""
        return MarquardtRun(self, problem)


class MarquardtRun:
    """Levenberg-Marquardt at work: where it stands, what it knows there, how much it damps."""

    loop_reason = source = ""

    def __init__(self, method: LevenbergMarquardt, problem: Problem) -> None:
        self.problem = problem
        self.lower, self.upper = problem.parameters.lower, problem.parameters.upper
        self.theta = problem.parameters.start.copy()
        self.loss = problem.kernel.mean_loss(self.theta)
        self.damping, self.growth = method.damping, 2.0
        self.norms = np.zeros(len(self.theta))
        self.refusal = ""  # what the model last said where it could not be evaluated
        self.near = self._linearize() if math.isfinite(self.loss) else None

    def final(self) -> Floats:
        """Give the best parameters found."""
        return self.theta.copy()

    def step(self) -> Evaluation:
        """One accepted step, or the end."""
        before, validation = self.loss, self._validation_loss()
        if self.near is None or not np.isfinite(self.near.jacobian).all():
            return Evaluation(before, validation, self.theta, np.full(len(self.theta), np.nan), {"damping": self.damping})
        gradient, used = self.near.gradient, self.damping
        with np.errstate(over="ignore", invalid="ignore"):  # a trial far out may overflow: it is looked at and not taken
            status, detail = self._advance()
            if status is Status.CONVERGED:
                self._polish()
        return Evaluation(before, validation, self.theta.copy(), gradient, {"damping": used}, status, detail)

    def _advance(self) -> tuple[Status | None, str]:
        """Raise the damping until a step lowers the loss; tell when none is worth taking."""
        near = self.near
        assert near is not None
        if len(self.theta) == 0:
            return Status.CONVERGED, "there is nothing to fit, every parameter is fixed"
        directions = self._directions(near)
        while True:
            moved, cut = directions.step(self.damping)
            predicted = near.predicted_gain(moved)
            tiny = np.linalg.norm(self.norms * moved) <= SMALL_STEP * np.linalg.norm(self.norms * self.theta)
            worthless = predicted <= WORTHLESS * abs(self.loss)
            if tiny or (worthless and not cut):
                return (None, "") if self._undamped(directions) else self._arrived(directions.free)
            if not worthless and self._try(np.clip(self.theta + moved, self.lower, self.upper), predicted):
                return None, ""
            self.damping, self.growth = self.damping * self.growth, self.growth * 2
            if not self.damping < MAX_DAMPING:
                return self._arrived(directions.free)

    def _undamped(self, directions: GaussNewton) -> bool:
        """Try the full step before giving up: along a nearly undetermined direction any damping hides the gain."""
        near = directions.near
        if remaining_distance(replace(near, jacobian=near.jacobian[:, directions.free])) <= ARRIVED:
            return False
        moved, _ = directions.step(0.0)
        predicted = near.predicted_gain(moved)
        trial = np.clip(self.theta + moved, self.lower, self.upper)
        return predicted > WORTHLESS * abs(self.loss) and self._try(trial, predicted)

    def _try(self, trial: Floats, predicted: float) -> bool:
        """Move there if the loss falls by a fair part of what was predicted."""
        loss = self._loss_at(trial)
        gain = (self.loss - loss) / predicted if math.isfinite(loss) else -1.0
        return gain > FAIR and self._accept(trial, loss, gain)

    def _directions(self, near: Linearization) -> GaussNewton:
        return GaussNewton(near, self.norms, self.theta, self.lower, self.upper)

    def _arrived(self, free: np.ndarray) -> tuple[Status, str]:
        """No step is worth taking: say whether this is a minimum."""
        near = self.near
        assert near is not None
        prediction = float(np.linalg.norm(near.prediction * near.weight))
        effect = np.linalg.norm(near.jacobian, axis=0) * np.abs(self.theta)
        still = free & (effect <= PLATEAU * prediction) & (self.norms * np.abs(self.theta) > PLATEAU * prediction)
        if still.any():
            names = ", ".join(name for name, one in zip(self.problem.parameters.free_elements, still, strict=True) if one)
            return Status.STALLED, f"the fit ran onto a plateau where {names} changes nothing; start elsewhere, or set bounds"
        distance = remaining_distance(replace(near, jacobian=near.jacobian[:, free]))
        if distance > ARRIVED and self.refusal:
            return Status.STALLED, f"beyond here the model cannot be evaluated: {self.refusal.rstrip('.')}"
        if distance > ARRIVED:
            detail = f"a step of {distance:.2g} standard errors should lower it and does not; the model may be rough or its derivative wrong"
            return Status.STALLED, detail
        return Status.CONVERGED, "the loss is at its minimum to rounding"

    def _accept(self, trial: Floats, loss: float, gain: float) -> bool:
        """Move, unless the derivative is not finite there."""
        here, known = self.theta, self.near
        self.theta = trial
        self.near = self._linearize()
        if self.near is None or not (np.isfinite(self.near.jacobian).all() and np.isfinite(self.near.residual).all()):
            self.theta, self.near = here, known
            return False
        self.loss = loss
        self.damping = max(self.damping * max(1 / 3, 1 - (2 * gain - 1) ** 3), 1e-15)
        self.growth = 2.0
        return True

    def _polish(self) -> None:
        """Take undamped steps while they shorten the way that is left."""
        for _ in range(POLISH):
            near = self.near
            if near is None or len(self.theta) == 0:
                return
            directions = self._directions(near)
            if directions.explained <= POLISHED * np.linalg.norm(near.residual):
                return
            trial = np.clip(self.theta + directions.step(0.0)[0], self.lower, self.upper)
            loss = self._loss_at(trial)
            if not loss <= self.loss + self._rounding(near) or np.array_equal(trial, self.theta):
                return
            here = self.theta
            self.theta = trial
            further = self._linearize()
            left = math.inf if further is None else self._directions(further).explained
            if not left < directions.explained:
                self.theta = here
                return
            self.loss, self.near = loss, further

    def _rounding(self, near: Linearization) -> float:
        """How far off a loss may be computed: a residual is a difference of two numbers as large as the prediction."""
        prediction, residual = np.linalg.norm(near.prediction * near.weight), np.linalg.norm(near.residual)
        return 8 * np.finfo(np.float64).eps * float(prediction * residual) / len(near.residual) + 1e-12 * abs(self.loss)

    def _loss_at(self, trial: Floats) -> float:
        """Mean loss at a trial point; a model that raises there is as good as infinite."""
        try:
            return self.problem.kernel.mean_loss(trial)
        except ModelError as error:
            self.refusal = str(error)
            return math.inf

    def _linearize(self) -> Linearization | None:
        near = self.problem.kernel.linearize(self.theta)
        if near is not None and np.isfinite(near.jacobian).all():
            with np.errstate(over="ignore"):
                self.norms = np.maximum(self.norms, np.linalg.norm(near.jacobian, axis=0))
        return near

    def _validation_loss(self) -> float:
        if self.problem.validation is None:
            return math.nan
        with torch.no_grad():
            return self.problem.validation.mean_loss(self.theta)
