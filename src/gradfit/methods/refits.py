r"""Fits beside a fit, by the thousand: the minimum with some parameters held, along a ray; and fits to other data from the same start.

Written in the same few words of Python as :mod:`gradfit.methods.marquardt`, whose functions it calls, and compiled with it.

*Settling.* Near a minimum an undamped step leaves a small share of the way; the error of what is left is known before it is taken.
So a fit that begins near its end takes such steps until the gain :math:`\lVert Q^Tr\rVert^2` of the next is below a share of the variance
of a residual, takes that one unseen, and is done. Where a step does not do what it promised, Levenberg-Marquardt goes on.

*Rays.* On the ray :math:`\theta(\rho) = \theta_0 + \rho d` some parameters are held and the others are free; with S the sum of squares
minimised over these,

.. math:: \tau(\rho) = \sqrt{(S(\rho) - S_0)/s^2}

is looked for where it crosses a value: by Newton's method, as the slope comes for nothing,
:math:`dS/d\rho = 2 \sum_{held} g_j d_j` with :math:`g = J^Tr` (the others have none). A linear model crosses at the first trial.

References
----------
Bates and Watts, *Nonlinear Regression Analysis and Its Applications*, 1988, section 6.1 (the profile, its slope, and tau).
"""

from __future__ import annotations

import math
from typing import Any

from gradfit.methods.marquardt import (
    CONDITION,
    CONVERGED,
    CURVED,
    DISTANCE,
    FAIR,
    FREE,
    GRADIENT,
    HESITANT,
    INVERSE,
    INVOLVED,
    LOWER,
    MOVING,
    NORMS,
    NOT_FINITE,
    RADIUS,
    REST,
    RUNNING,
    SIZES,
    SMALL,
    START_SUM,
    STARTED,
    STEPS,
    STILL,
    SUM,
    THETA,
    TRIAL,
    TRIAL_SUM,
    TRIANGLE,
    UNDETERMINED,
    UPPER,
    WITHIN,
    Counters,
    Linearize,
    Matrices,
    Matrix,
    SumOfSquares,
    Vector,
    advance,
    conclude,
    descent_along,
    dot,
    factorize,
    length_of,
    look,
    move,
    propose,
    reduce,
    release,
    rounding,
    solve,
)

# How a ray ended, besides the codes of marquardt for a fit on it that failed.
CROSSED = 10
AT_BOUND = 11  # a bound of the user's comes first
OPEN = (
    12  # no crossing within FAR times the distance at which a linear model has one, or before the model fails beyond BEYOND times
)
LOWER_MINIMUM = 13  # the sum of squares falls below S_0: this was not the minimum
LOST = 14  # the fits on the ray fail, or tau jumps, before the crossing

# goal, (GOALS,)
VARIANCE = 0  # s^2; 0: of each fit itself
LEAST = 1  # S_0
CROSSING = 2  # the value of tau that is looked for
ENOUGH = 3  # a gain below this share of the variance is not worth another look
MOST = 4  # steps of Levenberg-Marquardt for one fit
FIRST = 5  # radius of the first step, as a share of the parameters
GOALS = 6

# results of solve_all, (count, p (p + SOLVED) + SOLVED_NUMBERS): theta, inverse (p, p), undetermined, still; then these numbers
SOLVED = 3
SOLVED_SUM, SOLVED_DISTANCE, SOLVED_CONDITION, SOLVED_CURVED, SOLVED_CODE, SOLVED_STEPS = range(6)
SOLVED_NUMBERS = 6

# rays, (count, RAY p + RAY_NUMBERS): direction, 1 where held, then what is found: parameters at the crossing, rho, the code.
RAY = 3
DIRECTION, HELD, FOUND = 0, 1, 2
RHO, CODE = 0, 1
RAY_NUMBERS = 2

QUICK = 12  # undamped steps before Levenberg-Marquardt is asked
TRIALS = 60  # points on a ray
CLOSE = 1e-7  # of the value of tau that is looked for
FAR = 1e8
BEYOND = 10.0
BEFORE_ZERO = 1e-3  # of a held parameter is left where a pole is looked for
STRETCH = 4.0  # a trial at most this many times as far as the one before


def settle(
    linearize: Linearize,
    sum_of_squares: SumOfSquares,
    context: Any,
    system: Matrix,
    offset: Vector,
    matrices: Matrices,
    vectors: Matrix,
    numbers: Vector,
    counters: Counters,
    history: Matrix,
    goal: Vector,
) -> int:
    """Go from THETA to the minimum near it; SUM is then the sum of squares there. The state is that of the last look."""
    p, n = vectors.shape[1], offset.shape[0]
    # Nothing of the fit before may be left: the results do not depend on which came before.
    counters[STARTED], counters[STEPS], counters[HESITANT], counters[CURVED] = 0, 0, 0, 0
    for j in range(p):
        vectors[TRIAL, j] = vectors[THETA, j]
        vectors[NORMS, j], vectors[SIZES, j] = 0.0, 0.0
    if not look(linearize, context, system, offset, matrices, vectors, numbers, counters):
        numbers[SUM] = numbers[TRIAL_SUM]
        return NOT_FINITE
    move(matrices, vectors, numbers)
    counters[STARTED], numbers[START_SUM] = 1, numbers[SUM]
    for _ in range(QUICK):
        release(vectors, THETA, GRADIENT)
        count = reduce(matrices[TRIANGLE], vectors, NORMS, FREE, matrices[SMALL])
        if not factorize(matrices[SMALL], matrices[WITHIN], count):
            break
        propose(matrices, vectors, count, True, 0.0)
        predicted, rate = descent_along(matrices, vectors)
        variance = goal[VARIANCE] if goal[VARIANCE] > 0 else numbers[REST] / max(n - p, 1)
        if rate >= 0 and predicted <= max(goal[ENOUGH] * variance, rounding(numbers)):
            for j in range(p):
                vectors[THETA, j] = vectors[TRIAL, j]
            numbers[SUM] -= max(predicted, 0.0)
            return CONVERGED
        if not look(linearize, context, system, offset, matrices, vectors, numbers, counters):
            break
        if not numbers[SUM] - numbers[TRIAL_SUM] > FAIR * predicted:
            break
        move(matrices, vectors, numbers)
    numbers[RADIUS] = max(length_of(vectors, NORMS, THETA), math.sqrt(dot(matrices[TRIANGLE], p, p, 0, p)))
    code = RUNNING
    while code == RUNNING and counters[STEPS] < goal[MOST]:
        code = advance(linearize, sum_of_squares, context, system, offset, matrices, vectors, numbers, counters, history)
    return code


def reach(limits: Matrix, ray: Vector, base: Vector) -> float:
    """How far along a ray the bounds of its held parameters let one go."""
    p = base.shape[0]
    furthest = math.inf
    for j in range(p):
        along = ray[DIRECTION * p + j]
        if ray[HELD * p + j] > 0 and along != 0:
            bound = limits[1, j] if along > 0 else limits[0, j]
            furthest = min(furthest, (bound - base[j]) / along)
    return max(furthest, 0.0)


def stand(limits: Matrix, ray: Vector, base: Vector, vectors: Matrix, rho: float, before: float) -> None:
    """THETA at a point of the ray: the held ones exactly, the free ones moved on from the point before, within their bounds."""
    p = base.shape[0]
    for j in range(p):
        along = ray[DIRECTION * p + j]
        if ray[HELD * p + j] > 0:
            value = min(max(base[j] + rho * along, limits[0, j]), limits[1, j])
            vectors[THETA, j], vectors[LOWER, j], vectors[UPPER, j] = value, value, value
        else:
            value = vectors[THETA, j] + (rho - before) * along
            vectors[THETA, j] = min(max(value, limits[0, j]), limits[1, j])
            vectors[LOWER, j], vectors[UPPER, j] = limits[0, j], limits[1, j]


def before_zero(ray: Vector, base: Vector, inside: float, rho: float) -> float:
    """A trial; one that would carry a held parameter past 0 stops just before, once: a pole may stand there, and a fit beyond it."""
    p = base.shape[0]
    for j in range(p):
        along = ray[DIRECTION * p + j]
        if ray[HELD * p + j] > 0 and along != 0:
            zero = -(1 - BEFORE_ZERO) * base[j] / along
            if inside < zero < rho:
                rho = zero
    return rho


def slope_along(ray: Vector, vectors: Matrix) -> float:
    """Half the slope of the sum of squares along a ray."""
    p = vectors.shape[1]
    total = 0.0
    for j in range(p):
        if ray[HELD * p + j] > 0:
            total += vectors[GRADIENT, j] * ray[DIRECTION * p + j]
    return total


def cross(
    linearize: Linearize,
    sum_of_squares: SumOfSquares,
    context: Any,
    system: Matrix,
    offset: Vector,
    matrices: Matrices,
    vectors: Matrix,
    numbers: Vector,
    counters: Counters,
    history: Matrix,
    goal: Vector,
    limits: Matrix,
    ray: Vector,
    base: Vector,
) -> int:
    """Find the crossing on one ray; the last point is left in THETA and in the ray's RHO."""
    p = base.shape[0]
    furthest = reach(limits, ray, base)
    target = goal[CROSSING]
    inside, outside, stride = 0.0, math.inf, math.inf
    for j in range(p):
        ray[FOUND * p + j] = base[j]
    rho = before_zero(ray, base, 0.0, min(target, furthest))
    for _ in range(TRIALS):
        for j in range(p):  # from the last point inside: one outside may belong to another minimum
            vectors[THETA, j] = ray[FOUND * p + j]
        stand(limits, ray, base, vectors, rho, inside)
        code = settle(linearize, sum_of_squares, context, system, offset, matrices, vectors, numbers, counters, history, goal)
        ray[RAY * p + RHO] = rho
        if code != CONVERGED:  # in smaller steps
            stride = 0.5 * (rho - inside)
            if inside >= BEYOND * target:
                return OPEN
            if stride <= CLOSE * target:
                return LOST
            rho = inside + stride
            continue
        excess = numbers[SUM] - goal[LEAST]
        if excess < -1e-3 * goal[VARIANCE] - rounding(numbers):
            return LOWER_MINIMUM
        tau = math.sqrt(max(excess, 0.0) / goal[VARIANCE])
        if abs(tau - target) <= CLOSE * target:
            return CROSSED
        if tau < target:
            if rho >= furthest:
                return AT_BOUND
            if rho >= FAR * target:
                return OPEN
            inside, stride = rho, 2.0 * stride
            for j in range(p):
                ray[FOUND * p + j] = vectors[THETA, j]
        else:
            outside = rho
        if outside - inside <= 1e-14 * rho:
            return LOST  # tau jumps over the value
        slope = slope_along(ray, vectors)
        following = rho + (target - tau) * tau * goal[VARIANCE] / slope if slope > 0 and tau > 0 else STRETCH * rho
        following = min(min(following, STRETCH * max(rho, target)), furthest)
        if not inside < following < outside and following < furthest:
            following = 0.5 * (inside + outside) if outside < math.inf else STRETCH * max(rho, target)
        rho = before_zero(ray, base, inside, min(min(following, furthest), inside + stride))
    return LOST


def cross_all(
    linearize: Linearize,
    sum_of_squares: SumOfSquares,
    context: Any,
    system: Matrix,
    offset: Vector,
    matrices: Matrices,
    vectors: Matrix,
    numbers: Vector,
    counters: Counters,
    history: Matrix,
    goal: Vector,
    limits: Matrix,
    base: Vector,
    rays: Matrix,
) -> int:
    """Find the crossing on each ray from the base; written into the ray. Gives how many were found."""
    p = base.shape[0]
    found = 0
    for i in range(rays.shape[0]):
        code = cross(
            linearize,
            sum_of_squares,
            context,
            system,
            offset,
            matrices,
            vectors,
            numbers,
            counters,
            history,
            goal,
            limits,
            rays[i],
            base,
        )
        for j in range(p):
            rays[i, FOUND * p + j] = vectors[THETA, j]
        rays[i, RAY * p + CODE] = code
        if code == CROSSED:
            found += 1
    return found


def errors_at_hand(matrices: Matrices, vectors: Matrix, counters: Counters, result: Vector, variance: float) -> bool:
    """Standard errors from the inverse that the last quick step was made with; tell whether there is one, of all parameters."""
    p = vectors.shape[1]
    if counters[STEPS] > 0:  # Levenberg-Marquardt went on from there
        return False
    for j in range(p):
        if vectors[MOVING, j] == 0:
            return False
    for j in range(p):
        square = 0.0
        for k in range(j, p):
            square += matrices[WITHIN, j, k] * matrices[WITHIN, j, k]
        result[p + j] = math.sqrt(square * variance) / (vectors[NORMS, j] if vectors[NORMS, j] > 0 else 1.0)
    return True


def refit_all(
    linearize: Linearize,
    sum_of_squares: SumOfSquares,
    context: Any,
    system: Matrix,
    offsets: Matrix,
    matrices: Matrices,
    vectors: Matrix,
    numbers: Vector,
    counters: Counters,
    history: Matrix,
    goal: Vector,
    limits: Matrix,
    starts: Matrix,
    words: Counters,
    strides: Counters,
    results: Matrix,
) -> int:
    """Fit to one data set after the other; gives how many converged.

    Parameters
    ----------
    offsets
        (count, n), target / sigma of each data set.
    words, strides
        The context of the first data set, and what each of its words grows by from one data set to the next.
    starts
        (count, p), where each fit begins.
    results
        (count, 2 p + 2): parameters, standard errors (infinite where these data do not determine a parameter, NaN where it is on a
        bound), sum of squares, code.
    """
    p, n = starts.shape[1], offsets.shape[1]
    converged = 0
    for i in range(results.shape[0]):
        for j in range(p):
            vectors[THETA, j], vectors[LOWER, j], vectors[UPPER, j] = starts[i, j], limits[0, j], limits[1, j]
        code = settle(linearize, sum_of_squares, context, system, offsets[i], matrices, vectors, numbers, counters, history, goal)
        if code == CONVERGED:
            converged += 1
        for j in range(p):
            results[i, j] = vectors[THETA, j]
        results[i, 2 * p], results[i, 2 * p + 1] = numbers[SUM], code
        variance = max(numbers[SUM], 0.0) / max(n - p, 1) if goal[VARIANCE] == 0 else goal[VARIANCE]
        at_hand = code == CONVERGED and errors_at_hand(matrices, vectors, counters, results[i], variance)
        if not at_hand:
            if code != NOT_FINITE:
                conclude(linearize, context, system, offsets[i], matrices, vectors, numbers, counters)
            for j in range(p):
                results[i, p + j] = math.nan
                if code == CONVERGED and vectors[UNDETERMINED, j] < INVOLVED:
                    results[i, p + j] = math.sqrt(matrices[INVERSE, j, j] * variance)
                elif code == CONVERGED and vectors[UNDETERMINED, j] >= INVOLVED:
                    results[i, p + j] = math.inf
        for k in range(words.shape[0]):
            words[k] += strides[k]
    return converged


def solve_all(
    linearize: Linearize,
    sum_of_squares: SumOfSquares,
    context: Any,
    system: Matrix,
    offsets: Matrix,
    matrices: Matrices,
    vectors: Matrix,
    numbers: Vector,
    counters: Counters,
    history: Matrix,
    goal: Vector,
    limits: Matrices,
    starts: Matrix,
    words: Counters,
    strides: Counters,
    results: Matrix,
) -> int:
    """Levenberg-Marquardt from start to end on one data set after the other, with what it concludes; gives how many converged.

    Parameters
    ----------
    goal
        MOST and FIRST count.
    limits
        (2, count, p), bounds of each fit.
    offsets, starts, words, strides
        As of `refit_all`.
    results
        (count, p (p + SOLVED) + SOLVED_NUMBERS).
    """
    p = starts.shape[1]
    converged = 0
    for i in range(results.shape[0]):
        for k in range(counters.shape[0]):
            counters[k] = 0
        for j in range(p):
            vectors[THETA, j], vectors[LOWER, j], vectors[UPPER, j] = starts[i, j], limits[0, i, j], limits[1, i, j]
            vectors[STILL, j] = 0.0
        numbers[RADIUS] = goal[FIRST]
        code = RUNNING
        while code == RUNNING and counters[STEPS] < goal[MOST]:
            code = solve(linearize, sum_of_squares, context, system, offsets[i], matrices, vectors, numbers, counters, history)
        if code == RUNNING:
            conclude(linearize, context, system, offsets[i], matrices, vectors, numbers, counters)
        if code == CONVERGED:
            converged += 1
        for j in range(p):
            results[i, j] = vectors[THETA, j]
            for k in range(p):
                results[i, p + j * p + k] = matrices[INVERSE, j, k]
            results[i, p + p * p + j], results[i, 2 * p + p * p + j] = vectors[UNDETERMINED, j], vectors[STILL, j]
        at = p * (p + SOLVED)
        results[i, at + SOLVED_SUM], results[i, at + SOLVED_DISTANCE] = numbers[SUM], numbers[DISTANCE]
        results[i, at + SOLVED_CONDITION], results[i, at + SOLVED_CURVED] = numbers[CONDITION], counters[CURVED]
        results[i, at + SOLVED_CODE], results[i, at + SOLVED_STEPS] = code, counters[STEPS]
        for k in range(words.shape[0]):
            words[k] += strides[k]
    return converged
