r"""Profile likelihood: intervals of single parameters, contours of pairs, from the sum of squares itself instead of its parabola.

With S the sum of squares (for counts the deviance) minimised over all other parameters, and :math:`S_0` its minimum,

.. math:: \{\theta_j : S(\theta_j) - S_0 \le s^2 t_\nu^2\}, \qquad \{(\theta_i, \theta_j) : S(\theta_i, \theta_j) - S_0 \le 2 s^2 F_{2,\nu}\}

are the interval of one parameter and the region of two, jointly, at a level. Where s is known, t is the normal quantile and
:math:`2F` that of :math:`\chi^2_2`. For a model linear in its parameters both are what the covariance says; otherwise they need not be
symmetric, they do not depend on how the model is written (b or log b), and they may be open: then the data set no limit.

References
----------
Bates and Watts, *Nonlinear Regression Analysis and Its Applications*, 1988, chapter 6;
Seber and Wild, *Nonlinear Regression*, 1989, section 5.2 (the region of two).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.special

from gradfit.errors import OptionError, unknown
from gradfit.methods import refits
from gradfit.methods.refitting import Crossing, Ray, crossings
from gradfit.model.parameters import Parameters, elements
from gradfit.statistics.covariance import EXACT_DATA
from gradfit.statistics.intervals import check_level, quantile
from gradfit.statistics.summary import Fitted, why_no_errors
from gradfit.typing import Floats

TIE_POINTS = 129  # at which a tied parameter is looked at, over the interval of the one it follows
MIN_POINTS = 8
ASIDE = 1e-3  # of its size, and of 1
UNDETERMINED = "the data do not determine it"
BOTH_WAYS = np.array([[-1.0], [1.0]])

REASONS = {
    refits.OPEN: "the data set it no limit on this side",
    refits.LOWER_MINIMUM: "the loss falls below the fitted minimum on the way: fit again from there",
    refits.LOST: "the fits with it held failed, or jumped, before the limit was reached",
}


@dataclass(frozen=True)
class Profile:
    """Profile intervals of all parameters at one level.

    Attributes
    ----------
    intervals
        (lower, upper) by element; a limit is infinite where the data set none, the bound where that comes first, NaN where it
        could not be found.
    reasons
        Why a limit is NaN or infinite, by element.
    level
        Of confidence.
    """

    intervals: Mapping[str, tuple[float, float]]
    reasons: Mapping[str, str]
    level: float


def profile(fitted: Fitted, level: float) -> Profile:
    """Find the profile interval of every parameter.

    Raises
    ------
    OptionError
        A level outside (0, 1), or a loss that is no likelihood.
    """
    check_level(level)
    _check_likelihood(fitted)
    parameters = fitted.setting.parameters
    free = parameters.free_elements
    why = why_no_errors(fitted.outcome, fitted.kernel)
    found = dict.fromkeys(free, (math.nan, math.nan))
    reasons = dict.fromkeys(free, why) if why else {}
    if not why and free:
        tau = quantile(level, fitted.dof)
        spread = fitted.covariance
        if math.isnan(tau) or spread.exact or not spread.scale > 0:
            reasons = dict(zip(free, (reason or EXACT_DATA for reason in spread.reasons), strict=True))
        else:
            found, reasons = _profiled(fitted, tau)
    intervals, own = _all(fitted, found)
    return Profile(intervals, own | reasons, level)


def _check_likelihood(fitted: Fitted) -> None:
    if fitted.kernel.loss_kind not in ("least_squares", "likelihood"):
        raise OptionError(
            f"a profile needs a likelihood, and the loss {fitted.kernel.loss_function.name} is none; use kind='t' or kind='bootstrap'."
        )


def _profiled(fitted: Fitted, tau: float) -> tuple[dict[str, tuple[float, float]], dict[str, str]]:
    """Follow both directions of each free parameter."""
    free = fitted.setting.parameters.free_elements
    found: dict[str, tuple[float, float]] = {}
    reasons: dict[str, str] = {}
    wanted = np.flatnonzero(~fitted.undetermined).tolist()
    rays = [ray for place in wanted for ray in _rays(fitted, [place], BOTH_WAYS)]
    crossed = iter(_crossings(fitted, rays, tau))
    for place, name in enumerate(free):
        if place not in wanted:
            found[name] = (-math.inf, math.inf)
            reasons[name] = fitted.covariance.reasons[place] or UNDETERMINED
            continue
        both = (next(crossed), next(crossed))
        found[name] = (_limit(both[0], place, -math.inf), _limit(both[1], place, math.inf))
        reason = next((REASONS[crossing.code] for crossing in both if crossing.code in REASONS), "")
        reasons |= {name: reason} if reason else {}
    return found, reasons


def _limit(crossing: Crossing, place: int, beyond: float) -> float:
    if crossing.code in (refits.CROSSED, refits.AT_BOUND):
        return float(crossing.theta[place])
    return beyond if crossing.code == refits.OPEN else math.nan


def _rays(fitted: Fitted, places: Sequence[int], directions: Floats) -> list[Ray]:
    r"""Give ways out in the space of some held parameters, in units in which a linear model crosses at tau.

    With C the covariance of the held ones, :math:`C = LL^T`, they move by :math:`Lu` for a unit vector u, and the others, as in the
    linear model, by :math:`C_{other,held} C^{-1} L u`.

    Parameters
    ----------
    places
        Which free parameters are held.
    directions
        One u per ray, (rays, held).
    """
    covariance = np.nan_to_num(fitted.covariance.matrix, nan=0.0)
    columns = covariance[:, places]
    inner = columns[places].copy()
    missing = np.diag(inner) <= 0  # on a bound: it has no error; its effect on the residuals alone gives a size
    if missing.any():
        near = fitted.outcome.near
        assert near is not None
        sizes = np.linalg.norm(near.jacobian[:, places], axis=0)
        inner += np.diag(np.where(missing, fitted.covariance.scale / np.where(sizes > 0, sizes, 1.0) ** 2, 0.0))
    moved = directions @ np.linalg.cholesky(inner).T
    whole = moved @ np.linalg.solve(inner, columns.T)
    whole[:, places] = moved
    held = np.zeros(len(covariance), dtype=bool)
    held[list(places)] = True
    return [Ray(direction, held) for direction in whole]


def _crossings(fitted: Fitted, rays: list[Ray], tau: float) -> list[Crossing]:
    outcome, parameters = fitted.outcome, fitted.setting.parameters
    assert outcome.conclusion is not None
    return crossings(
        outcome.kernel, outcome.solution.theta, parameters.lower, parameters.upper, rays,
        tau=tau, variance=fitted.covariance.scale, least=outcome.conclusion.sum, exact=not outcome.kernel.numeric,
    )  # fmt: skip


def _all(fitted: Fitted, found: Mapping[str, tuple[float, float]]) -> tuple[dict[str, tuple[float, float]], dict[str, str]]:
    """Intervals of all elements, in their order: fixed ones are points, tied ones follow where they follow one."""
    parameters = fitted.setting.parameters
    intervals: dict[str, tuple[float, float]] = {}
    reasons: dict[str, str] = {}
    for name in parameters.names:
        spec = parameters.specs[name]
        for place, element in enumerate(elements(name, parameters.shape(name))):
            if element in found:
                intervals[element] = found[element]
            elif spec.tied is None:
                intervals[element] = (float(np.ravel(spec.start)[place]),) * 2
            else:
                intervals[element], reason = _tied(fitted.outcome.solution.theta, parameters, element, found)
                reasons |= {element: reason} if reason else {}
    return intervals, reasons


def _tied(
    theta: Floats, parameters: Parameters, element: str, found: Mapping[str, tuple[float, float]]
) -> tuple[tuple[float, float], str]:
    """Carry an interval over to a parameter tied to one other; one that follows several has no profile of its own here."""
    place = parameters.all_elements.index(element)
    leaders = _leaders(theta, parameters, place)
    if not len(leaders):
        return (float(parameters.all_values_of(theta[None])[0, place]),) * 2, ""
    if len(leaders) > 1:
        return (math.nan, math.nan), "it follows several parameters: use kind='t' or kind='bootstrap'"
    leader = int(leaders[0])
    lower, upper = found[parameters.free_elements[leader]]
    if not (math.isfinite(lower) and math.isfinite(upper)):
        return (math.nan, math.nan), f"it follows {parameters.free_elements[leader]}, which has no finite interval"
    points = np.tile(theta, (TIE_POINTS, 1))
    points[:, leader] = np.linspace(lower, upper, TIE_POINTS)
    values = parameters.all_values_of(points)[:, place]
    return (float(values.min()), float(values.max())), ""


def _leaders(theta: Floats, parameters: Parameters, place: int) -> np.ndarray:
    """Which free parameters a tied one follows, by its derivative here and beside: here alone it may be 0, as that of a**2 at 0."""
    slopes = np.zeros(len(theta))
    for shift in (0.0, ASIDE):
        found = parameters.all_slopes(theta + shift * (np.abs(theta) + 1))[place]
        slopes += np.abs(np.nan_to_num(found, nan=1.0))
    return np.flatnonzero(slopes)


def contour(fitted: Fitted, first: str, second: str, *, level: float, points: int) -> Floats:
    """Edge of the joint region of two free parameters, (points, 2), counter-clockwise from the first's largest value in the linear model.

    A point is NaN where the region is open, or its edge could not be found; on a bound it stands on the bound.

    Raises
    ------
    OptionError
        A level outside (0, 1), a loss that is no likelihood, names that are not two different free parameters, too few points.
    """
    places, radius, directions = _region(fitted, first, second, level, points)
    nothing = np.full((points, 2), np.nan)
    known = not why_no_errors(fitted.outcome, fitted.kernel) and not fitted.covariance.exact and fitted.covariance.scale > 0
    if math.isnan(radius) or not known or fitted.undetermined[places].any():
        return nothing
    found = _crossings(fitted, _rays(fitted, places, directions), radius)
    return np.array([c.theta[places] if c.code in (refits.CROSSED, refits.AT_BOUND) else nothing[0] for c in found])


def ellipse(fitted: Fitted, first: str, second: str, *, level: float, points: int) -> Floats:
    """The same edge as the covariance has it, (points, 2); NaN where a parameter has no error."""
    places, radius, directions = _region(fitted, first, second, level, points)
    block = fitted.covariance.matrix[np.ix_(places, places)]
    if not np.isfinite(block).all():
        return np.full((points, 2), np.nan)
    return np.asarray(fitted.outcome.solution.theta[places] + radius * directions @ np.linalg.cholesky(block).T)


def _region(fitted: Fitted, first: str, second: str, level: float, points: int) -> tuple[list[int], float, Floats]:
    """Which parameters, how far the edge is in units of tau, and the directions to its points, (points, 2)."""
    check_level(level)
    _check_likelihood(fitted)
    free = fitted.setting.parameters.free_elements
    for name in (first, second):
        if name not in free:
            raise OptionError(unknown("free parameter", name, free, "A contour is drawn of two parameters that the fit moves."))
    if first == second:
        raise OptionError(f"a contour of {first} and {second} is none; name two different parameters.")
    if isinstance(points, bool) or not isinstance(points, int) or points < MIN_POINTS:
        raise OptionError(f"points is {points!r}; expected a whole number, {MIN_POINTS} or more.")
    dof = fitted.dof
    square = (
        scipy.special.chdtri(2, 1 - level) if math.isinf(dof) else 2 * scipy.special.fdtri(2, dof, level) if dof > 0 else math.nan
    )
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return [free.index(first), free.index(second)], math.sqrt(square), np.stack([np.cos(angles), np.sin(angles)], axis=1)
