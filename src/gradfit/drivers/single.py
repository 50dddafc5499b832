"""One fit: run the method, judge how near the minimum it ended, and cross-validate on request."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from gradfit.compiler.correlated import AnyKernel
from gradfit.compiler.kernel import Linearization
from gradfit.compiler.orthogonal import OrthogonalKernel
from gradfit.data.dataset import Dataset
from gradfit.drivers.approach import approached
from gradfit.drivers.iterate import Observer, iterate, sentence
from gradfit.methods.levenberg_marquardt import LevenbergMarquardt
from gradfit.methods.method import Method, Problem, Solution, Status
from gradfit.methods.solving import Conclusion, Solver, conclude
from gradfit.methods.stopping import ARRIVED
from gradfit.model.parameters import Parameters
from gradfit.typing import Floats

MAX_LINEARIZED = 200  # free parameters; beyond, a Jacobian costs more than it tells
STEPS_ASIDE = 20  # of Levenberg-Marquardt, from where a descent ended
UNSEEDED = nullcontext()


@dataclass(frozen=True)
class Outcome:
    """A solution, and the fit near it. What costs and not every caller asks for is computed when it is asked for.

    Attributes
    ----------
    solution
        What the loop found.
    kernel, held_out
        The training rows and the validation rows, in double precision where the model allows.
    conclusion
        The sum of squares near the solution; None where the loss or the model has none.
    distance
        Distance to the minimum in standard errors; NaN where it cannot be had.
    """

    solution: Solution
    kernel: AnyKernel = field(repr=False)
    held_out: AnyKernel | None = field(repr=False)
    conclusion: Conclusion | None
    distance: float

    @cached_property
    def near(self) -> Linearization | None:
        """The least-squares form at the solution, row by row; None where there is none."""
        if self.conclusion is None:
            return None
        return self.kernel.linearize(self.solution.theta)

    @property
    def without_effect(self) -> bool:
        """Whether a parameter moves no prediction at the end: it may have no effect at all."""
        return self.conclusion is not None and math.isinf(self.conclusion.distance)

    @cached_property
    def loss(self) -> float:
        """Mean loss at the solution."""
        return self.kernel.mean_loss(self.solution.theta)

    @cached_property
    def validation_loss(self) -> float | None:
        """Mean loss of the validation rows at the solution."""
        return None if self.held_out is None else self.held_out.mean_loss(self.solution.theta)


def fit_one(
    method: Method,
    kernel: AnyKernel,
    parameters: Parameters,
    *,
    validation: Dataset | None,
    seed: int,
    spread: float | None,
    observe: Observer | None,
) -> Outcome:
    """Fit once.

    Parameters
    ----------
    spread
        Standard deviation of a residual row where it is known (1 for measured errors and likelihoods), else None.
    """
    held_out = None if validation is None else kernel.on(validation)
    problem = Problem(kernel, parameters, kernel.dtype, held_out, seed)
    wide = kernel.in_double()
    with _own_randomness(seed) if kernel.model.kind == "module" else UNSEEDED:
        method.check(problem)
        solution, settled = iterate(method, problem, observe)
        if isinstance(wide, OrthogonalKernel) and solution.status in (Status.STALLED, Status.NOT_FINITE):
            wide, solution = _led_on(method, problem, wide, solution)
        conclusion = _concluded(solution, wide, parameters)
        distance = _distance(conclusion, kernel.n, solution.theta, parameters, spread)
        if not settled:
            strict = kernel.model.kind != "module"
            solution = _judged(solution, method, distance, strict=strict)
            if strict and solution.status is Status.CONVERGED and _on_saddle(conclusion, wide, solution.theta, parameters):
                solution = _said_of_saddle(solution, method)
    return Outcome(solution, wide, None if held_out is None else held_out.in_double(), conclusion, distance)


def _led_on(method: Method, problem: Problem, kernel: OrthogonalKernel, stalled: Solution) -> tuple[OrthogonalKernel, Solution]:
    """Fit errors in x again by way of larger errors of y; the first solution is kept where that does not help."""
    found = approached(kernel, problem.parameters)
    if found is None:
        return kernel, stalled
    near, begun = found
    solution, _ = iterate(method, replace(problem, kernel=near, parameters=begun), None)
    if not solution.status.success:
        return kernel, stalled
    return near, replace(solution, loop_reason="the minimum was approached by way of larger errors of y")


def ended_at(kernel: AnyKernel, parameters: Parameters, theta: Floats, status: Status, *, spread: float | None) -> Outcome:
    """Give the outcome of a fit of which only its end is kept: where, (p,), and how; there it is looked at as after a fit."""
    wide = kernel.in_double()
    conclusion = _concluded(Solution(theta, status, "", 0, {}), wide, parameters)
    distance = _distance(conclusion, kernel.n, theta, parameters, spread)
    return Outcome(Solution(theta, status, "", 0, {}, conclusion=conclusion), wide, None, conclusion, distance)


def cross_validate(
    method: Method,
    kernel: AnyKernel,
    parameters: Parameters,
    data: Dataset,
    folds: Sequence[tuple[Any, Any]],
    *,
    seed: int,
) -> Floats:
    """Fit without each fold in turn; give the mean loss on it, (folds,). NaN where that fit failed."""
    losses = []
    for train, held_out in folds:
        outcome = fit_one(
            method,
            kernel.on(data.rows(train)),
            parameters,
            validation=data.rows(held_out),
            seed=seed,
            spread=None,
            observe=None,
        )
        losses.append(outcome.validation_loss if outcome.solution.status not in (Status.DIVERGED, Status.NOT_FINITE) else np.nan)
    return np.array(losses, dtype=np.float64)


def _concluded(solution: Solution, kernel: AnyKernel, parameters: Parameters) -> Conclusion | None:
    """Conclude at the solution; None where that is too large, impossible or not finite."""
    if isinstance(solution.conclusion, Conclusion):
        return solution.conclusion
    if solution.status is Status.NOT_FINITE or not 0 < len(solution.theta) <= MAX_LINEARIZED:
        return None
    return conclude(kernel, solution.theta, parameters.lower, parameters.upper, exact=not kernel.numeric)


def _distance(conclusion: Conclusion | None, n: int, theta: Floats, parameters: Parameters, spread: float | None) -> float:
    """Distance to the minimum in standard errors, along directions the bounds leave open; NaN without degrees of freedom."""
    if conclusion is None or n <= len(theta):
        return math.nan
    if spread is None or conclusion.distance in (0.0, math.inf):
        return conclusion.distance
    # Concluded with the spread of the residuals; here it is known.
    guard = conclusion.guard
    own = math.sqrt(conclusion.rest / max(n - len(theta), 1))
    return conclusion.distance * math.hypot(own, guard) / math.hypot(spread, guard)


def _judged(solution: Solution, method: Method, distance: float, *, strict: bool) -> Solution:
    """Say how far the minimum is, after a method that only counts its steps.

    ``strict``: away from the minimum is a failure. Networks are trained for as long as it helps, not to a minimum.
    """
    if math.isnan(distance) and isinstance(method, LevenbergMarquardt) and strict:
        status, detail = Status.NOT_CONVERGED, "it was still going down"
    elif math.isnan(distance):
        status, detail = Status.COMPLETED, "whether that is the minimum, the learning curves must say"
    else:
        away = Status.NOT_CONVERGED if strict else Status.COMPLETED
        status = Status.CONVERGED if distance <= ARRIVED else away
        far = "a parameter no longer moves any prediction" if math.isinf(distance) else ""
        detail = far or f"the minimum is {distance:.2g} standard errors away"
    if status is Status.NOT_CONVERGED:
        detail += f"; {method.advice}"
    return replace(solution, status=status, message=sentence(status, method, solution.steps, detail))


def _on_saddle(conclusion: Conclusion | None, kernel: AnyKernel, theta: Floats, parameters: Parameters) -> bool:
    """Tell whether the loss falls beside a point without slope, by more than noise could.

    A descent from terms that start alike ends where they are best as one. Looked at only where a direction moves nothing.
    """
    if conclusion is None or math.isfinite(conclusion.condition):
        return False
    solver = Solver(kernel, theta, parameters.lower, parameters.upper, exact=not kernel.numeric)
    solver.run(STEPS_ASIDE)
    fallen = conclusion.sum - solver.conclusion().sum
    return fallen > conclusion.sum / max(kernel.n - len(theta), 1)


def _said_of_saddle(solution: Solution, method: Method) -> Solution:
    detail = "there is no slope here, but the loss is lower beside it; start terms that are alike apart, or use method='lm'"
    message = sentence(Status.NOT_CONVERGED, method, solution.steps, detail)
    return replace(solution, status=Status.NOT_CONVERGED, message=message)


@contextmanager
def _own_randomness(seed: int) -> Iterator[None]:
    """Dropout draws from torch's global generator: seed it for the fit and put it back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
