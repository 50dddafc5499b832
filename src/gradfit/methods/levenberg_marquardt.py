r"""Levenberg-Marquardt: damped Gauss-Newton steps with the exact Jacobian, in a radius of trust.

The algorithm is :mod:`gradfit.methods.marquardt`, compiled; :mod:`gradfit.methods.solving` runs it on a kernel of either engine.
This file says what may be set, and words how a fit ended.

References
----------
Moré, *The Levenberg-Marquardt algorithm: implementation and theory*, 1978.
"""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, replace

import numpy as np

from gradfit.compiler.calling import absent
from gradfit.errors import OptionError
from gradfit.methods import marquardt
from gradfit.methods.method import Block, Problem, Status
from gradfit.methods.solving import Conclusion, Solver
from gradfit.methods.stopping import EarlyStopping
from gradfit.typing import Floats


@dataclass(frozen=True)
class LevenbergMarquardt:
    """Levenberg-Marquardt; needs no learning rate and no scaling by hand.

    Parameters
    ----------
    max_steps
        Steps at most.
    radius
        How far the first step may go, as a multiple of the start's own size in scaled units (MINPACK's ``factor``): 100 follows
        the first step wherever it leads, 0.1 hardly leaves the start.
    """

    max_steps: int = 1000
    radius: float = 1.0
    early_stopping: EarlyStopping | None = None

    name = "Levenberg-Marquardt"
    unit = "step"
    advice = "raise max_steps, or start closer"
    first_block = 64  # most fits take fewer

    def __post_init__(self) -> None:
        """Check the numbers."""
        if isinstance(self.max_steps, bool) or not isinstance(self.max_steps, int) or self.max_steps < 1:
            raise OptionError(f"max_steps is {self.max_steps!r}; expected a whole number, 1 or more.")
        if isinstance(self.radius, bool) or not isinstance(self.radius, numbers.Real) or not 0 < self.radius < math.inf:
            raise OptionError(f"radius is {self.radius!r}; expected a positive number such as 1.")

    def check(self, problem: Problem) -> None:
        """Refuse a loss that is no sum over rows, or has no curvature to work with."""
        if problem.kernel.loss_kind == "least_squares":
            return
        start = problem.parameters.start
        if math.isfinite(problem.kernel.mean_loss(start)) and problem.kernel.linearize(start) is None:
            raise OptionError(
                "Levenberg-Marquardt needs a loss per row that curves upwards (squared, huber, soft_l1, cauchy, poisson, or a function "
                "giving (n,) values); for this one use method='lbfgs' or 'adam'."
            )

    def start(self, problem: Problem) -> MarquardtRun:
        """Begin at the start of the problem."""
        return MarquardtRun(self, problem)


class MarquardtRun:
    """Levenberg-Marquardt at work."""

    loop_reason = source = ""

    def __init__(self, method: LevenbergMarquardt, problem: Problem) -> None:
        self.problem, parameters = problem, problem.parameters
        self.start = parameters.start
        exact = not getattr(problem.kernel, "numeric", False)
        self.solver = Solver(problem.kernel, self.start, parameters.lower, parameters.upper, radius=method.radius, exact=exact)
        self.absent = np.zeros(len(self.start), dtype=bool)
        self.ended = False

    @property
    def conclusion(self) -> Conclusion | None:
        """The sum of squares near the end, where the run has ended."""
        if not self.ended:
            return None
        conclusion = self.solver.conclusion()
        return replace(conclusion, condition=math.inf) if self.absent.any() else conclusion

    def final(self) -> Floats:
        """Give the best parameters found."""
        return self.solver.theta

    def advance(self, limit: int) -> Block:
        """Take at most ``limit`` accepted steps."""
        if not len(self.start):
            return self._nothing_to_fit()
        p = len(self.start)
        before = None if self.problem.validation is None else self.solver.theta
        code, rows = self.solver.run(limit)
        if code == marquardt.PLATEAU and self._without_absent():
            code, more = self.solver.run(limit)
            rows = np.vstack([rows[:-1], more])[:limit]
        theta = rows[:, marquardt.HISTORY : marquardt.HISTORY + p]
        validation = np.full(len(rows), math.nan) if before is None else self._validation(np.vstack([before, theta[:-1]]))
        status, detail = self._worded(code, rows)
        self.ended = status is not None and status is not Status.NOT_FINITE
        return Block(rows[:, 0], validation, {"damping": rows[:, 1]}, theta, rows[:, marquardt.HISTORY + p :], status, detail)

    def _without_absent(self) -> bool:
        """Leave out what the model does not contain, where that is why the fit ended; tell whether it may go on."""
        still = self.solver.vectors[marquardt.STILL] > 0
        if self.absent.any():
            return False
        kernel, parameters, theta = self.problem.kernel, self.problem.parameters, self.solver.theta
        self.absent = still & absent(kernel, parameters)
        lower, upper = (np.where(self.absent, theta, bound) for bound in (parameters.lower, parameters.upper))
        if self.absent.any():
            self.solver = Solver(kernel, theta, lower, upper, exact=not getattr(kernel, "numeric", False))
        return bool(self.absent.any())

    def _nothing_to_fit(self) -> Block:
        nothing = np.empty((1, 0))
        loss = np.array([self.problem.kernel.mean_loss(self.start)])
        detail = "there is nothing to fit, every parameter is fixed"
        return Block(loss, self._validation(nothing), {"damping": np.zeros(1)}, nothing, nothing, Status.CONVERGED, detail)

    def _validation(self, points: Floats) -> Floats:
        if self.problem.validation is None:
            return np.full(len(points), math.nan)
        return np.array([self.problem.validation.mean_loss(point) for point in points])

    def _worded(self, code: int, rows: Floats) -> tuple[Status | None, str]:
        """Say how it goes on, or ended."""
        if code == marquardt.RUNNING:
            return None, ""
        if code == marquardt.CONVERGED:
            return Status.CONVERGED, "the loss is at its minimum to rounding"
        names = self.problem.parameters.free_elements
        if code == marquardt.NOT_FINITE:
            values = ", ".join(f"{name} = {value:g}" for name, value in zip(names[:6], self.start, strict=False))
            loss = float(rows[0, 0])
            what = f"{loss:g}" if not math.isfinite(loss) else "its derivative is not"
            return Status.NOT_FINITE, f"{what} for {values}; start where the model gives finite numbers"
        if code == marquardt.PLATEAU:
            flags = self.solver.vectors[marquardt.STILL]
            still = ", ".join(name for name, flag in zip(names, flags, strict=True) if flag)
            return Status.STALLED, f"the fit ran onto a plateau where {still} changes nothing; start elsewhere, or set bounds"
        if code == marquardt.UNDEFINED:
            why = self.solver.refusal.rstrip(".") or "it gives NaN or infinity"
            return Status.STALLED, f"beyond here the model cannot be evaluated: {why}"
        distance = self.solver.numbers[marquardt.DISTANCE]
        step = f"a step of {distance:.2g} standard errors" if math.isfinite(distance) else "a step"
        return Status.STALLED, f"{step} should lower it and does not; the model may be rough or its derivative wrong"
