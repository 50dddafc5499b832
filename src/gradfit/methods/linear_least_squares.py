r"""Linear least squares: the closed form, for models linear in their parameters.

For :math:`f = f_0 + J\theta` with constant J, the minimum is :math:`\theta = -J^+ (f_0 - y)`, all in units of sigma, by a
singular value decomposition.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradfit.errors import ModelError, OptionError, ParameterError
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
        """Refuse bounds, other losses, and models that are not linear.

        Raises
        ------
        ModelError, ParameterError, OptionError
            See above; each says what to use instead.
        """
        parameters = problem.parameters
        if np.isfinite(parameters.lower).any() or np.isfinite(parameters.upper).any():
            raise ParameterError("the closed form knows no bounds; use method='lm'.")
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

    def step(self) -> Evaluation:
        """Solve, then once more for what rounding left."""
        kernel = self.problem.kernel
        before = kernel.mean_loss(self.theta)
        validation = np.nan if self.problem.validation is None else self.problem.validation.mean_loss(self.theta)
        residual, jacobian = kernel.residual(self.theta)
        gradient = 2 * jacobian.T @ residual / len(residual)
        norms = np.linalg.norm(jacobian, axis=0)
        inverse = np.linalg.pinv(jacobian / np.where(norms > 0, norms, 1.0), rcond=max(jacobian.shape) * np.finfo(float).eps)
        for _ in range(2):
            residual, _unused = kernel.residual(self.theta)
            self.theta = self.theta - (inverse @ residual) / np.where(norms > 0, norms, 1.0)
        status = Status.CONVERGED if np.isfinite(self.theta).all() else None
        return Evaluation(before, float(validation), self.theta.copy(), gradient, {}, status, "closed form")
