"""One fit: run the method, judge how near the minimum it ended, and cross-validate on request."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from gradfit.compiler.compiled import AnyKernel
from gradfit.compiler.kernel import Linearization
from gradfit.data.dataset import Dataset
from gradfit.drivers.iterate import Observer, iterate, sentence
from gradfit.methods.gauss_newton import held
from gradfit.methods.method import Method, Problem, Solution, Status
from gradfit.methods.stopping import ARRIVED, remaining_distance
from gradfit.model.parameters import Parameters
from gradfit.typing import Floats

MAX_LINEARIZED = 200  # free parameters; beyond, a Jacobian costs more than it tells


@dataclass(frozen=True)
class Outcome:
    """A solution, and the fit near it.

    Attributes
    ----------
    solution
        What the loop found.
    near
        The least-squares form at the solution in float64; None where the loss or the model has none.
    distance
        Distance to the minimum in standard errors; NaN where it cannot be had.
    loss, validation_loss
        Mean losses at the solution.
    """

    solution: Solution
    near: Linearization | None
    distance: float
    loss: float
    validation_loss: float | None


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
    with _own_randomness(kernel, seed):
        method.check(problem)
        solution, settled = iterate(method, problem, observe)
        near = None if solution.status is Status.NOT_FINITE else _near(kernel, solution.theta)
        distance = math.nan if near is None else _distance(near, solution.theta, parameters, spread)
        if not settled:
            solution = _judged(solution, method, distance, strict=kernel.model.kind != "module")
    loss = kernel.in_double().mean_loss(solution.theta)
    validation_loss = None if held_out is None else held_out.in_double().mean_loss(solution.theta)
    return Outcome(solution, near, distance, loss, validation_loss)


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


def _near(kernel: AnyKernel, theta: Floats) -> Linearization | None:
    """Linearize at the solution; None where that is too large, impossible or not finite."""
    if len(theta) > MAX_LINEARIZED:
        return None
    near = kernel.in_double().linearize(theta)
    finite = near is not None and np.isfinite(near.jacobian).all() and np.isfinite(near.residual).all()
    return near if finite else None


def _distance(near: Linearization, theta: Floats, parameters: Parameters, spread: float | None) -> float:
    """Distance to the minimum in standard errors, along directions the bounds leave open; NaN without degrees of freedom."""
    if near.jacobian.shape[0] <= near.jacobian.shape[1]:
        return math.nan
    moving = ~held(near, theta, parameters.lower, parameters.upper)
    return remaining_distance(replace(near, jacobian=near.jacobian[:, moving]), spread=spread)


def _judged(solution: Solution, method: Method, distance: float, *, strict: bool) -> Solution:
    """Say how far the minimum is, after a method that only counts its steps.

    ``strict``: away from the minimum is a failure. Networks are trained for as long as it helps, not to a minimum.
    """
    if math.isnan(distance):
        status, detail = Status.COMPLETED, "whether that is the minimum, the learning curves must say"
    else:
        away = Status.NOT_CONVERGED if strict else Status.COMPLETED
        status = Status.CONVERGED if distance <= ARRIVED else away
        far = "a parameter no longer moves any prediction" if math.isinf(distance) else ""
        detail = far or f"the minimum is {distance:.2g} standard errors away"
    if status is Status.NOT_CONVERGED:
        detail += f"; {method.advice}"
    return replace(solution, status=status, message=sentence(status, method, solution.steps, detail))


@contextmanager
def _own_randomness(kernel: AnyKernel, seed: int) -> Iterator[None]:
    """Dropout draws from torch's global generator: seed it for the fit and put it back afterwards."""
    if kernel.model.kind != "module":
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
