r"""Whether one model is a special case of another: found by fitting, not asked.

A is nested in B when B can give whatever A predicts. So B is fitted to A's predictions f (no noise in them), and where

.. math:: \sum (g_i - f_i)^2 \le 10^{-16} \sum (f_i - \bar f)^2

is reached it can. The mean is taken off, or a large offset would hide what the models differ in. Two agreements are none: at one place only, for
instance because a parameter of A stands on a bound where half the model vanishes, which is told by trying the same with A's parameters
moved; and in a limit, as a line is the flank of a peak that is infinitely high and far, which is told by parameters that run away, or
contribute far more than the curve varies.

That is a search, and it may miss: it begins at B's own solution, at its start, with A's values where names agree, with one parameter of B after
the other set to zero (a second peak that is not there), and at seeded random places.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from gradfit.compiler.compiled import NativeKernel
from gradfit.compiler.eager import EagerKernel
from gradfit.drivers.single import MAX_LINEARIZED
from gradfit.errors import ModelError
from gradfit.methods import marquardt
from gradfit.methods.solving import Solver
from gradfit.model.loss import Loss, squared_error
from gradfit.statistics.comparison import Relation
from gradfit.statistics.summary import Fitted
from gradfit.typing import Floats

ALIKE = 1e-16  # of the prediction's variation, squared
ROUNDED = 1e-28  # of the prediction itself, squared: rounding, where it hardly varies
LARGEST, ROUNDING = (
    1e3,
    1e-8,
)  # what one parameter may contribute, in variations; and the least of these, of the prediction itself
FAR = 100.0  # times the known values of a parameter: beyond, the model was taken to a limit
STEPS, ROUNDS = 20, 15  # after so many steps the sum must have fallen to
PAYS = 0.25  # of what it was, or the search ends: towards a minimum of 0 it falls fast
KNOWN = 3  # starts that say how large parameters are
FEW = 10  # starts of a model that is not compiled
DRAWN = 6  # random starts
MOVED = 2  # other places at which the smaller model is tried
BY = 0.03  # of the prediction's variation: how far a parameter is moved for that
MAX_ROWS = 2000
MAX_ZEROED = 20  # parameters set to zero in turn
SQUARED = Loss("squared", squared_error, "least_squares")


def nested(smaller: Fitted, larger: Fitted) -> Relation:
    """Tell whether the larger fit's model can give the smaller one's predictions, with its bounds, fixed and tied parameters."""
    for fitted in (smaller, larger):
        if fitted.setting.model.kind == "module" or len(fitted.outcome.solution.theta) > MAX_LINEARIZED:
            return Relation(None, "a network, or a model of so many parameters, is not looked at; say nested= yourself")
        if not fitted.outcome.solution.status.success:
            return Relation(None, "a fit that failed is not looked at")
        if loose := [name for name, own in zip(fitted.setting.parameters.free_elements, fitted.undetermined, strict=True) if own]:
            return Relation(None, f"the data do not determine {', '.join(loose)}, so a model has fewer parameters than it counts")
    rows = np.arange(0, smaller.setting.data.n, -(-smaller.setting.data.n // MAX_ROWS))
    kernel = _squares(smaller, rows, None)
    for place, theta in enumerate(_places(smaller, kernel)):
        found = _reproduced(kernel, theta, rows, smaller, larger)
        if found is None:
            return Relation(None, "a model could not be evaluated on the way")
        if not found:
            where = "gives other curves" if place == 0 else "gives the same curve only where the smaller one ended, not beside it"
            return Relation(False, f"not nested: the larger model {where}")
    return Relation(True, "")


def _reproduced(own: EagerKernel | NativeKernel, theta: Floats, rows: np.ndarray, smaller: Fitted, larger: Fitted) -> bool | None:
    """Whether the larger model can be fitted to the smaller one's prediction at theta; None where that cannot be had."""
    try:
        prediction, _ = own.jacobian(theta)
    except (ModelError, RuntimeError):
        return None
    if not np.isfinite(prediction).all():
        return None
    kernel = _squares(larger, rows, prediction)
    variation, size = float(np.linalg.norm(prediction - prediction.mean())), float(np.linalg.norm(prediction))
    enough = ALIKE * variation**2 + ROUNDED * size**2
    most = LARGEST * max(variation, ROUNDING * size, _parts(own, theta))
    starts = list(_starts(smaller, theta, larger))
    reach = FAR * np.max(np.abs(starts[:KNOWN]), axis=0)
    for start in starts if isinstance(kernel, NativeKernel) else starts[:FEW]:
        there = _fitted(kernel, start, larger, enough)
        if there is not None and not ((np.abs(there) > reach) & (reach > 0)).any() and _parts(kernel, there) <= most:
            return True
    return False


def _squares(fitted: Fitted, rows: np.ndarray, target: Floats | None) -> EagerKernel | NativeKernel:
    """Give a fit's model on some of its rows, with squared residuals of equal weight, whatever loss and errors it had."""
    data = fitted.setting.data.rows(rows).independent()
    kernel = fitted.outcome.kernel.on(data if target is None else replace(data, target=target))
    if isinstance(kernel, NativeKernel):
        return replace(kernel, base=replace(kernel.base, loss_function=SQUARED))
    assert isinstance(kernel, EagerKernel), "rows without a covariance matrix need no other kernel"
    return replace(kernel, loss_function=SQUARED)


def _fitted(kernel: EagerKernel | NativeKernel, start: Floats, fitted: Fitted, enough: float) -> Floats | None:
    """Fit from a start, as long as it pays; give where the sum of squares is small enough, or None."""
    parameters = fitted.setting.parameters
    solver = Solver(kernel, start, parameters.lower, parameters.upper, exact=not kernel.numeric)
    before = math.inf
    for _ in range(ROUNDS):
        try:
            code, _rows = solver.run(STEPS)
            left = kernel.mean_loss(solver.theta) * kernel.n
        except (ModelError, RuntimeError):
            return None
        if left <= enough:
            return solver.theta
        if code != marquardt.RUNNING or not left <= PAYS * before:
            return None
        before = left
    return None


def _parts(kernel: EagerKernel | NativeKernel, theta: Floats) -> float:
    """How much the parameter that contributes most makes the prediction vary: far more than it does where parts cancel."""
    _, jacobian = kernel.jacobian(theta)
    return float(np.max(np.abs(theta) * np.linalg.norm(jacobian - jacobian.mean(axis=0), axis=0), initial=0.0))


def _starts(smaller: Fitted, theta: Floats, larger: Fitted) -> Iterator[Floats]:
    """Where the larger model begins, the most promising first."""
    parameters = larger.setting.parameters
    solution, names = larger.outcome.solution.theta, parameters.free_elements
    known = dict(zip(smaller.setting.parameters.free_elements, theta.tolist(), strict=True))
    shared = np.array([known.get(name, own) for name, own in zip(names, solution.tolist(), strict=True)])
    others = np.array([name not in known for name in names])
    generator = np.random.default_rng(0)
    yield from (np.clip(start, parameters.lower, parameters.upper) for start in (
        solution, shared, parameters.start, np.where(others, 0.0, shared),
        *(_zeroed(start, place) for place in range(min(len(names), MAX_ZEROED)) for start in (shared, solution)),
        *(np.where(solution == 0, normal, solution * 2.0**normal) for normal in generator.standard_normal((DRAWN, len(names)))),
    ))  # fmt: skip


def _zeroed(theta: Floats, place: int) -> Floats:
    there = theta.copy()
    there[place] = 0.0
    return there


def _places(fitted: Fitted, kernel: EagerKernel | NativeKernel) -> Iterator[Floats]:
    """Where a model is tried: at its solution, and beside it, within its bounds."""
    theta, parameters = fitted.outcome.solution.theta, fitted.setting.parameters
    yield theta
    prediction, jacobian = kernel.jacobian(theta)
    slopes = np.linalg.norm(jacobian, axis=0)
    variation, size = np.linalg.norm(prediction - prediction.mean()), np.linalg.norm(prediction)
    far = BY * (variation if variation > ROUNDING * size else size)
    with np.errstate(divide="ignore", invalid="ignore"):
        step = np.where(slopes > 0, far / slopes, BY * (np.abs(theta) + 1))
    generator = np.random.default_rng(0)
    for _ in range(MOVED):
        change = step * generator.choice([-1.0, 1.0], len(theta)) * generator.uniform(0.5, 1.0, len(theta))
        there = theta + change
        inside = (there >= parameters.lower) & (there <= parameters.upper)
        yield np.clip(np.where(inside, there, theta - change), parameters.lower, parameters.upper)
