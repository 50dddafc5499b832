r"""Linear least squares: the closed form, for models linear in their parameters.

For :math:`f = f_0 + J\theta` with constant J, the minimum is :math:`\theta = -J^+ (f_0 - y)`, all in units of sigma, by a
singular value decomposition. Within bounds the active set is found by Stark and Parker's algorithm (scipy's lsq_linear, "bvls").

References
----------
Stark and Parker, *Bounded-variable least-squares*, Computational Statistics 10, 1995.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradfit.errors import ModelError, OptionError
from gradfit.methods.method import Evaluation, Problem, Status
from gradfit.methods.stopping import EarlyStopping
from gradfit.typing import Floats

LINEAR = 1e-8  # relative change of the Jacobian over a large step, for a model that is linear to rounding


@dataclass(frozen=True)
class LinearLeastSquares:
    """One step to the minimum of a model that is linear in its parameters; refuses any other."""

    name = "linear least squares"
    unit = "step"
    advice = "use method='lm'"
    max_steps = first_block = 1
    early_stopping: EarlyStopping | None = None

    def check(self, problem: Problem) -> None:
        """Refuse other losses, and models that are not linear.

        Raises
        ------
        ModelError, OptionError
            See above; each says what to use instead.
        """
        parameters = problem.parameters
        if problem.kernel.loss_kind != "least_squares":
            raise OptionError("the closed form minimises squared residuals; for another loss use method='lm'.")
        here = parameters.start
        there = here + np.maximum(np.abs(here), 1.0) * np.random.default_rng(0).uniform(0.5, 2.0, len(here))
        (value, slope), (far_value, far_slope) = problem.kernel.residual(here), problem.kernel.residual(there)
        size = np.abs(slope).max(axis=0, initial=0.0)
        straight = value + slope @ (there - here)
        bent = np.abs(far_slope - slope).max(axis=0, initial=0.0) > LINEAR * size
        off = np.abs(far_value - straight).max() > LINEAR * max(np.abs(straight).max(), np.abs(value).max())
        if bent.any() or off:
            raise ModelError("the model is not linear in its parameters, so there is no closed form; use method='lm'.")

    def start(self, problem: Problem) -> LinearRun:
        """Begin; there is one step to take."""
        return LinearRun(problem)


class LinearRun:
    """The single step."""

    loop_reason = source = ""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.theta = problem.parameters.start.copy()

    def final(self) -> Floats:
        """Give the minimum."""
        return self.theta.copy()

    def _bounded(self, residual: Floats, scaled: Floats, scale: Floats) -> Floats:
        from scipy.optimize import lsq_linear  # takes a second to import, and few fits come here

        parameters = self.problem.parameters
        bounds = (parameters.lower - self.theta) * scale, (parameters.upper - self.theta) * scale
        change = lsq_linear(scaled, -residual, bounds, method="bvls", tol=np.finfo(float).eps).x
        there = self.theta + change / scale
        # On a bound means exactly on it.
        there = np.where(change <= bounds[0], parameters.lower, there)
        return np.asarray(np.where(change >= bounds[1], parameters.upper, there))

    def step(self) -> Evaluation:
        """Solve, then once more for what rounding left."""
        kernel = self.problem.kernel
        before = kernel.mean_loss(self.theta)
        validation = np.nan if self.problem.validation is None else self.problem.validation.mean_loss(self.theta)
        residual, jacobian = kernel.residual(self.theta)
        gradient = 2 * jacobian.T @ residual / len(residual)
        norms = np.linalg.norm(jacobian, axis=0)
        scale = np.where(norms > 0, norms, 1.0)
        self.theta = self._bounded(residual, jacobian / scale, scale) if self.problem.parameters.bounded else self.theta
        # A parameter on a bound stays there: what is solved for again are the others.
        lower, upper = self.problem.parameters.lower, self.problem.parameters.upper
        free = (self.theta > lower) & (self.theta < upper) if self.problem.parameters.bounded else np.ones(len(scale), dtype=bool)
        inverse = np.linalg.pinv((jacobian / scale)[:, free], rcond=max(jacobian.shape) * np.finfo(float).eps)
        for _ in range(2):
            residual, _unused = kernel.residual(self.theta)
            self.theta[free] -= (inverse @ residual) / scale[free]
        self.theta = np.clip(self.theta, lower, upper)
        status = Status.CONVERGED if np.isfinite(self.theta).all() else None
        return Evaluation(before, float(validation), self.theta.copy(), gradient, {}, status, "closed form")
