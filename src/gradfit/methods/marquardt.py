r"""Levenberg-Marquardt from start to end in loops over numbers, so that it runs as Python and compiles to machine code alike.

Near a point the sum of squares is that of a linear problem, and each step solves

.. math:: \min_\delta \lVert J\delta + r \rVert^2 \quad\text{with}\quad \lVert D\delta \rVert \le \Delta, \; l \le \theta + \delta \le u

with D the largest column norms of J seen so far (Moré). The multiplier :math:`\lambda` of the first condition is the damping. How far
the linear form can be trusted, the radius :math:`\Delta`, follows the ratio of the actual to the predicted gain. Beside it were
tried, on NIST's 54 runs and 216 more from random starts, the damping of Nielsen and that of Transtrum and Sethna: both leave MGH10
after 1000 steps without an answer, and solve fewer of the random starts.

The arithmetic, once per point: :math:`[J\; r]` by Householder reflections to a triangle :math:`[R\; z]`, block by block. Where the
whole step fits, it is :math:`-R^{-1}z`. Otherwise, and near a singular R, the rows of :math:`[R D^{-1}\; z]` are made orthogonal by
Jacobi rotations, which leaves :math:`\sigma_i v_i^T` and :math:`u_i^T r` in row i: from these a step costs :math:`p^2` at any damping.
:math:`J^T J`, whose condition is squared, is never formed.

A parameter that stands at a bound beyond which the loss falls is held. One that a step would carry across a bound is set on it and
the others are solved for again. A step onto a plateau, where a parameter has no effect left, is not taken: nothing there
tells the way back. At the end undamped steps remove what the damping left, down to rounding.

A minimum is told by the distance from it in standard errors, in the linear form. Where the derivative is singular that form may see a
gain which the curvature of the residuals forbids, and not see one beside a saddle: there the sum of squares itself is looked at.

Nothing here allocates, raises or calls a library: :mod:`gradfit.compiler.solver` compiles it as it stands. The model comes as two
functions, ``linearize(theta, context, system)``, which fills J (its p columns as the first p rows of ``system``) and r (the last
row) and returns :math:`r^T r`, and ``sum_of_squares(theta, context)``, which only returns it. ``context`` is handed through.

References
----------
Moré, *The Levenberg-Marquardt algorithm: implementation and theory*, 1978 (scaling by D, radius, multiplier);
Golub, Van Loan, *Matrix Computations*, 4th ed., sections 5.2 (Householder) and 8.6.3 (one-sided Jacobi);
Nielsen, *Damping parameter in Marquardt's method*, IMM-REP-1999-05; Transtrum, Sethna, arXiv:1201.5885 (the other rules;
parameters that evaporate);
Kanzow, Yamashita, Fukushima, J. Comput. Appl. Math. 172, 2004 (bounds).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Vector: TypeAlias = NDArray[np.float64]
Matrix: TypeAlias = NDArray[np.float64]
Matrices: TypeAlias = NDArray[np.float64]
Counters: TypeAlias = NDArray[np.int64]
Linearize: TypeAlias = Callable[[Vector, Any, Matrix], float]
SumOfSquares: TypeAlias = Callable[[Vector, Any], float]

# What `advance` returns.
RUNNING = 0  # the history is full; call again
CONVERGED = 1
PLATEAU = 2  # the parameters flagged in vectors[STILL] change nothing, or would not after any step that lowers the loss
ROUGH = 3  # a step of numbers[DISTANCE] standard errors should lower the loss and does not
UNDEFINED = 4  # the same, and the steps tried last led where the model is not finite
NOT_FINITE = 5  # residuals or derivatives at the start are not finite

# vectors, (VECTORS, p). The caller fills the first three; THETA moves.
THETA, LOWER, UPPER = 0, 1, 2
GRADIENT = 3  # J.T @ r; that of the mean loss is 2 / n times this
NORMS = 4  # D, largest column norms of J so far
COLUMNS = 5  # column norms of J here
FREE = 6  # 1 where not held at a bound
STILL = 7  # 1 where the parameter has, or would have, no effect left
UNDETERMINED = 8  # share of the parameter in directions that the data do not determine, 0 to 1; NaN on a bound
DELTA, TRIAL, TRIAL_GRADIENT, TRIAL_COLUMNS, MOVING = 9, 10, 11, 12, 13
SIZES = 14  # the largest that each parameter has been
VECTORS = 15

# numbers, (NUMBERS,). The caller fills the first two.
RADIUS = 0  # before the start: of the first step, as a share of max(|D theta|, |z|). After it: Delta
RANK_TOLERANCE = 1  # a singular value below this share of the largest counts as 0
SUM = 2  # r.T @ r at theta
REST = 3  # the part of it that no change of the parameters reaches
SIGNAL = 4  # norm of prediction / sigma
DAMPING = 5  # lambda of the last step
DISTANCE = 6  # from the minimum, in standard errors
TRIAL_SUM, TRIAL_REST, TRIAL_SIGNAL = 7, 8, 9
CONDITION = 10  # at the end: norm of the inverse of J, columns scaled to 1; infinite where singular values count as 0
START_SUM = 11  # r.T @ r where the fit began
TERMS = 12  # norm of J's columns times the parameters: what the residuals are made of; their rounding is a share of it
TRIAL_TERMS = 13
GUARD = 14  # what stands for the deviation of a residual where the data are exact
NUMBERS = 15

# counters, (COUNTERS,), int64, 0 at the start.
STARTED, STEPS = 0, 1
LINEARIZATIONS, EVALUATIONS = 2, 3  # calls of the model: with its derivative, and for the sum alone
REFUSAL = 4  # why the last trial was not taken: ROUGH or UNDEFINED
HESITANT = 5  # 1 after a refusal, until a step is taken at once
CURVED = 6  # 1 where the linear form could not tell a minimum, and it was found one by other means; DISTANCE is by these
COUNTERS = 7

# matrices, (MATRICES, p + 1, p + 2).
TRIANGLE = 0  # row j < p: column j of R; row p: z = Q.T @ r
INVERSE = 1  # (p, p): pseudo-inverse of J.T @ J, NaN for parameters on a bound
AHEAD, WITHIN, REMAINING, SMALL = 2, 3, 4, 5
MATRICES = 6

# history, (rows, HISTORY + 2 p): mean loss before the step, its damping, parameters after it, gradient of the mean loss before it.
HISTORY = 2

IN_VECTORS = ("dot", "squares_of_sums", "subtract")  # whose sums may be taken in any order

CHUNK = 512  # rows worked on at a time: p + 1 columns of these stay in the cache
EPSILON = 2.220446049250313e-16
MAX_TRIALS = 60  # of one step; each shortens the next by half at least
MAX_SWEEPS = 30
SAFE = 1e8  # condition of a triangle up to which it is inverted as it is
POLISH = 50  # undamped steps at the end, at most: where residuals are large each removes only a third of the error
POLISHED = 1e-10  # of the residual: what is left then is in no digit of the result
PLATEAU_EFFECT = 1e-9  # a parameter that moves no prediction by more than this share of it, when changed by its own size
FAIR = 1e-4  # of the predicted gain must be real
WORTHLESS = 1e-13  # a predicted relative gain below this is rounding
SMALL_STEP = 1e-14  # relative to the parameters
ARRIVED = 0.01  # standard errors: a distance nobody can see in the result
SINGLE_PRECISION = 1.1920928955078125e-07  # of exact data: a step below this share of the prediction counts as arrived
ON_BOUND = 1e-10  # relative
INVOLVED = 1e-6  # share of a parameter in an undetermined direction from which its value is arbitrary
ROUNDED = 100 * EPSILON  # of the terms: residuals below that are rounding
APART = 0.01  # a parameter with a smaller share in directions that move nothing is not followed along them
ASIDE = 0.1  # of the parameters: how far beside a point without slope a lower one is looked for
SETTLED = 1e-10  # of the variance of a residual: what the sum of squares may still fall by, where its own curvature was measured
SMALL_RISE = (
    1e-7  # of the sum of squares: where it is looked at to measure its curvature; rounding is far below, and what is no parabola
)


def dot(rows: Matrix, i: int, j: int, start: int, stop: int) -> float:
    """Inner product of two rows, from one element up to another."""
    total = 0.0
    for k in range(start, stop):
        total += rows[i, k] * rows[j, k]
    return total


def squares_of_sums(rows: Matrix, i: int, other: Vector, start: int, stop: int) -> float:
    """Squared norm of the sum of a row and a vector, from one element up to another."""
    total = 0.0
    for k in range(start, stop):
        value = rows[i, k] + other[k]
        total += value * value
    return total


def subtract(rows: Matrix, i: int, j: int, factor: float, start: int, stop: int) -> None:
    """Take a multiple of row j from row i, from one element up to another."""
    for k in range(start, stop):
        rows[i, k] -= factor * rows[j, k]


def fold(system: Matrix, triangle: Matrix, start: int, stop: int) -> None:
    """Householder reflections: more rows of [J r], from one up to another, into the triangle [R z] of those before them."""
    p = system.shape[0] - 1
    for j in range(p):
        tail = dot(system, j, j, start, stop)
        if tail > 0:
            head = triangle[j, j]
            norm = -math.copysign(math.sqrt(head * head + tail), head)
            first = head - norm
            scale = -1 / (norm * first)
            triangle[j, j] = norm
            for i in range(j + 1, p + 1):
                factor = scale * (first * triangle[i, j] + dot(system, i, j, start, stop))
                triangle[i, j] -= factor * first
                subtract(system, i, j, factor, start, stop)


def triangularize(columns: Matrix, count: int) -> None:
    """Householder reflections: columns of a larger triangle, stored as rows, become one again; the row after them is reflected along."""
    length = columns.shape[0] - 1
    for j in range(count):
        head = columns[j, j]
        tail = dot(columns, j, j, j + 1, length)
        if tail > 0:
            norm = -math.copysign(math.sqrt(head * head + tail), head)
            columns[j, j] = head - norm
            scale = 1 / (norm * (norm - head))
            for i in range(j + 1, count + 1):
                subtract(columns, i, j, scale * dot(columns, i, j, j, length), j, length)
            columns[j, j] = norm


def orthogonalize(rows: Matrix, count: int) -> None:
    """Rotate pairs of rows until their first ``count`` elements are orthogonal; the next follows, the one after is the squared norm."""
    for _ in range(MAX_SWEEPS):
        largest = 0.0
        for i in range(count):
            rows[i, count + 1] = dot(rows, i, i, 0, count)
        for i in range(count - 1):
            for j in range(i + 1, count):
                a, b, c = rows[i, count + 1], rows[j, count + 1], dot(rows, i, j, 0, count)
                if c * c > (EPSILON * count) ** 2 * a * b:
                    largest = max(largest, c * c / (a * b)) if a * b > 0 else 1.0
                    half = (b - a) / (2 * c)
                    tangent = math.copysign(1.0, half) / (abs(half) + math.sqrt(1 + half * half))
                    scale = 1 / math.sqrt(1 + tangent * tangent)
                    for k in range(count + 1):
                        x, y = rows[i, k], rows[j, k]
                        rows[i, k] = scale * (x - tangent * y)
                        rows[j, k] = scale * (y + tangent * x)
                    rows[i, count + 1] = a - tangent * c
                    rows[j, count + 1] = b + tangent * c
        if largest < EPSILON:  # convergence is quadratic: the next sweep would find nothing
            break
    for i in range(count):
        rows[i, count + 1] = dot(rows, i, i, 0, count)


def invert(small: Matrix, rows: Matrix, count: int) -> bool:
    """Inverse of a triangle, with z behind it; tell whether the triangle is so far from singular that this may be used."""
    size, inverse_size = 0.0, 0.0
    for j in range(count):
        if small[j, j] == 0:
            return False
        rows[j, count], rows[j, count + 1] = small[count, j], 1.0
        for i in range(count):
            rows[i, j] = 0.0
        rows[j, j] = 1 / small[j, j]
        for back in range(j):
            i = j - 1 - back
            total = 0.0
            for k in range(i, j):
                total += rows[i, k] * small[j, k]
            rows[i, j] = -total * rows[j, j]
            inverse_size += rows[i, j] * rows[i, j]
            size += small[j, i] * small[j, i]
        inverse_size += rows[j, j] * rows[j, j]
        size += small[j, j] * small[j, j]
    return size * inverse_size < SAFE * SAFE


def reduce(triangle: Matrix, vectors: Matrix, scale: int, flags: int, small: Matrix) -> int:
    """The flagged columns of [R z] over a scale, as a triangle, with z moved on by DELTA; give the number of columns."""
    p = vectors.shape[1]
    for i in range(p):
        small[p, i] = triangle[p, i]
        for j in range(i, p):
            small[p, i] += triangle[j, i] * vectors[DELTA, j]
    count = 0
    for j in range(p):
        if vectors[flags, j] > 0:
            over = vectors[scale, j] if vectors[scale, j] > 0 else 1.0
            for i in range(p):
                small[count, i] = triangle[j, i] / over
            count += 1
    for i in range(p):
        small[count, i] = small[p, i]
    triangularize(small, count)
    return count


def decompose(small: Matrix, rows: Matrix, count: int) -> None:
    """Orthogonal rows of a triangle with z behind it."""
    for i in range(count):
        for j in range(count + 1):
            rows[i, j] = small[j, i] if i <= j else 0.0
    orthogonalize(rows, count)


def factorize(small: Matrix, rows: Matrix, count: int) -> bool:
    """Rows for undamped steps: the inverse of the triangle where it is safe, which is told; orthogonal rows otherwise."""
    safe = invert(small, rows, count)
    if not safe:
        decompose(small, rows, count)
    return safe


def negligible(rows: Matrix, count: int, tolerance: float) -> float:
    """Give the squared singular value up to which a direction counts as undetermined."""
    largest = 0.0
    for i in range(count):
        largest = max(largest, rows[i, count + 1])
    return largest * tolerance * tolerance


def explained(rows: Matrix, count: int, limit: float) -> float:
    """Squared norm of the residual's part that a change along the determined directions removes."""
    total = 0.0
    for i in range(count):
        if rows[i, count + 1] > limit:
            total += rows[i, count] * rows[i, count]
    return total


def step_within(rows: Matrix, count: int, safe: bool, vectors: Matrix, flags: int, scale: int, damping: float) -> None:
    """DELTA of the flagged parameters at a damping; without damping along the determined directions only."""
    limit = negligible(rows, count, EPSILON * count) if damping == 0 else -1.0
    k = 0
    for j in range(vectors.shape[1]):
        if vectors[flags, j] > 0:
            total = 0.0
            for i in range(count):
                if safe:
                    total -= rows[k, i] * rows[i, count]
                elif rows[i, count + 1] > limit:
                    total -= rows[i, k] * rows[i, count] / (rows[i, count + 1] + damping)
            vectors[DELTA, j] = total / vectors[scale, j] if vectors[scale, j] > 0 else total
            k += 1


def damping_for(rows: Matrix, count: int, radius: float) -> float:
    r"""The damping at which the step has the length of the radius, within a tenth; 0 where the whole step is within it.

    Newton's method on :math:`1/\Delta - 1/\lVert y(\lambda) \rVert`, :math:`y_i = \sigma_i z_i / (\sigma_i^2 + \lambda)`, from below,
    where it only rises: no :math:`|y_i|` alone may exceed :math:`\Delta`.
    """
    limit = negligible(rows, count, EPSILON * count)
    damping, length = 0.0, 0.0
    for i in range(count):
        square, z = rows[i, count + 1], rows[i, count]
        if square > limit:
            length += z * z / square
        damping = max(damping, math.sqrt(square) * abs(z) / radius - square)
    if math.sqrt(length) <= 1.1 * radius:
        return 0.0
    for _ in range(20):
        length, slope = 0.0, 0.0
        for i in range(count):
            over = rows[i, count + 1] + damping
            square = rows[i, count + 1] * rows[i, count] * rows[i, count] / (over * over) if over > 0 else 0.0
            length += square
            slope += square / over if over > 0 else 0.0
        norm = math.sqrt(length)
        if norm <= 1.1 * radius:
            return damping
        damping += length / slope * (norm - radius) / radius
    return damping


def propose(matrices: Matrices, vectors: Matrix, count: int, safe: bool, damping: float) -> bool:
    """DELTA, the full step within the bounds at a damping, and TRIAL, where it leads; tell whether a bound cut it."""
    cut = False
    for j in range(vectors.shape[1]):
        vectors[MOVING, j], vectors[DELTA, j] = vectors[FREE, j], 0.0
    step_within(matrices[WITHIN], count, safe, vectors, MOVING, NORMS, damping)
    while True:
        crossed = False
        for j in range(vectors.shape[1]):
            wanted = vectors[THETA, j] + vectors[DELTA, j]
            vectors[TRIAL, j] = min(max(wanted, vectors[LOWER, j]), vectors[UPPER, j])
            if vectors[MOVING, j] > 0 and vectors[TRIAL, j] != wanted:
                vectors[MOVING, j] = 0.0
                crossed = cut = True
        if not crossed:
            return cut
        for j in range(vectors.shape[1]):
            vectors[DELTA, j] = 0.0 if vectors[MOVING, j] > 0 else vectors[TRIAL, j] - vectors[THETA, j]
        moving = reduce(matrices[TRIANGLE], vectors, NORMS, MOVING, matrices[SMALL])
        decompose(matrices[SMALL], matrices[REMAINING], moving)
        step_within(matrices[REMAINING], moving, False, vectors, MOVING, NORMS, damping)


def descent_along(matrices: Matrices, vectors: Matrix) -> tuple[float, float]:
    """For DELTA: by how much the sum of squares falls in the linear form, and half its initial rate of fall."""
    p = vectors.shape[1]
    rate, square = 0.0, 0.0
    for i in range(p):
        change = 0.0
        for j in range(i, p):
            change += matrices[TRIANGLE, j, i] * vectors[DELTA, j]
        rate -= matrices[TRIANGLE, p, i] * change
        square += change * change
    return 2 * rate - square, rate


def length_of(vectors: Matrix, scale: int, row: int) -> float:
    """Norm of a vector in the units of another, D or the column norms."""
    total = 0.0
    for j in range(vectors.shape[1]):
        total += (vectors[scale, j] * vectors[row, j]) ** 2
    return math.sqrt(total)


def rounding(numbers: Vector) -> float:
    """How far off a sum of squares may be computed: a residual is a difference of two numbers as large as the prediction."""
    error: float = WORTHLESS * numbers[SUM] + 16 * EPSILON * numbers[SIGNAL] * math.sqrt(numbers[SUM])
    return error


def visible(numbers: Vector) -> float:
    """A change of the sum of squares that is none of rounding, even where large terms of the prediction cancel."""
    change: float = 100 * (rounding(numbers) + EPSILON * numbers[TERMS] * math.sqrt(numbers[SUM]))
    return change


def look(
    linearize: Linearize,
    context: Any,
    system: Matrix,
    offset: Vector,
    matrices: Matrices,
    vectors: Matrix,
    numbers: Vector,
    counters: Counters,
) -> bool:
    """Linearize at TRIAL, down to the triangle AHEAD; tell whether all is finite there."""
    p, n = vectors.shape[1], offset.shape[0]
    counters[LINEARIZATIONS] += 1
    numbers[TRIAL_SUM] = total = linearize(vectors[TRIAL], context, system)
    for j in range(p + 1):
        for i in range(p):
            matrices[AHEAD, j, i] = 0.0
    for j in range(p):
        vectors[TRIAL_COLUMNS, j], vectors[TRIAL_GRADIENT, j] = 0.0, 0.0
    signal, rest = 0.0, 0.0
    start = 0
    while start < n:
        stop = min(start + CHUNK, n)
        signal += squares_of_sums(system, p, offset, start, stop)
        for j in range(p):
            vectors[TRIAL_COLUMNS, j] += dot(system, j, j, start, stop)
            vectors[TRIAL_GRADIENT, j] += dot(system, j, p, start, stop)
        fold(system, matrices[AHEAD], start, stop)
        rest += dot(system, p, p, start, stop)
        start = stop
    terms = 0.0
    for j in range(p):
        terms += vectors[TRIAL_COLUMNS, j] * vectors[TRIAL, j] * vectors[TRIAL, j]
        vectors[TRIAL_COLUMNS, j] = math.sqrt(vectors[TRIAL_COLUMNS, j])
        total += vectors[TRIAL_COLUMNS, j] + vectors[TRIAL_GRADIENT, j]
    numbers[TRIAL_SIGNAL], numbers[TRIAL_REST], numbers[TRIAL_TERMS] = math.sqrt(signal), rest, math.sqrt(terms)
    return math.isfinite(total)


def move(matrices: Matrices, vectors: Matrix, numbers: Vector) -> None:
    """Go to TRIAL, where `look` has just been."""
    p = vectors.shape[1]
    for j in range(p + 1):
        for i in range(p):
            matrices[TRIANGLE, j, i] = matrices[AHEAD, j, i]
    for j in range(p):
        vectors[THETA, j], vectors[GRADIENT, j] = vectors[TRIAL, j], vectors[TRIAL_GRADIENT, j]
        vectors[COLUMNS, j] = vectors[TRIAL_COLUMNS, j]
        vectors[NORMS, j] = max(vectors[NORMS, j], vectors[COLUMNS, j])
        vectors[SIZES, j] = max(vectors[SIZES, j], abs(vectors[THETA, j]))
    numbers[SUM], numbers[REST] = numbers[TRIAL_SUM], numbers[TRIAL_REST]
    numbers[SIGNAL], numbers[TERMS] = numbers[TRIAL_SIGNAL], numbers[TRIAL_TERMS]


def release(vectors: Matrix, theta: int, gradient: int) -> None:
    """FREE: all but the parameters that stand at a bound beyond which the loss falls, or cannot move at all. Clears DELTA."""
    for j in range(vectors.shape[1]):
        low = vectors[theta, j] <= vectors[LOWER, j] and vectors[gradient, j] > 0
        high = vectors[theta, j] >= vectors[UPPER, j] and vectors[gradient, j] < 0
        vectors[FREE, j] = 0.0 if low or high or vectors[LOWER, j] == vectors[UPPER, j] else 1.0
        vectors[DELTA, j] = 0.0


def is_still(vectors: Matrix, j: int, theta: int, columns: int, signal: float) -> bool:
    """Tell whether a parameter has no effect left, and once had."""
    size, least = abs(vectors[theta, j]), PLATEAU_EFFECT * signal
    still: bool = vectors[columns, j] * size <= least < max(vectors[NORMS, j], vectors[columns, j]) * size
    return still and vectors[columns, j] <= PLATEAU_EFFECT * vectors[NORMS, j]


def runs_onto_plateau(vectors: Matrix, numbers: Vector) -> bool:
    """Tell whether a parameter that has an effect here has none at TRIAL, and flag it."""
    found = False
    for j in range(vectors.shape[1]):
        still = is_still(vectors, j, TRIAL, TRIAL_COLUMNS, numbers[TRIAL_SIGNAL])
        if still and not is_still(vectors, j, THETA, COLUMNS, numbers[SIGNAL]):
            vectors[STILL, j] = 1.0
            found = True
    return found


def distance(matrices: Matrices, vectors: Matrix, numbers: Vector, n: int) -> float:
    r"""Distance from the minimum in standard errors, along the FREE parameters.

    :math:`\lVert QQ^T r \rVert / s` with :math:`s^2 = \lVert r - QQ^T r \rVert^2 / (n - p)`, Q a basis of the directions that the data
    determine. Infinite where a parameter moves no prediction. Exact data have no s: a step below single precision of the
    prediction counts as arrived.
    """
    for j in range(vectors.shape[1]):
        vectors[DELTA, j] = 0.0
        if vectors[FREE, j] > 0 and vectors[COLUMNS, j] == 0:
            return math.inf
    count = reduce(matrices[TRIANGLE], vectors, COLUMNS, FREE, matrices[SMALL])
    safe = factorize(matrices[SMALL], matrices[REMAINING], count)
    limit = 0.0 if safe else negligible(matrices[REMAINING], count, EPSILON * max(n, count))
    within = explained(matrices[REMAINING], count, limit)
    p = vectors.shape[1]
    rest = numbers[REST] + max(dot(matrices[TRIANGLE], p, p, 0, p) - within, 0.0)
    numbers[GUARD] = guard = max(SINGLE_PRECISION * numbers[SIGNAL], ROUNDED * numbers[TERMS]) / ARRIVED
    return math.sqrt(within / (rest / max(n - count, 1) + guard * guard)) if within > 0 else 0.0


def is_at_rest(offset: Vector, matrices: Matrices, vectors: Matrix, numbers: Vector) -> bool:
    """Tell whether functions that are to be 0 are 0, and the whole step too, beside what they were and the parameters have been.

    Where functions vanish together with their derivative no step arrives, each goes a part of the way. Data other than 0 have a
    size of their own, which says it better.
    """
    data = 0.0
    for i in range(offset.shape[0]):
        data = max(data, abs(offset[i]))
    if data > 0 or numbers[SUM] > EPSILON * EPSILON * numbers[START_SUM]:
        return False
    count = reduce(matrices[TRIANGLE], vectors, COLUMNS, FREE, matrices[SMALL])
    safe = factorize(matrices[SMALL], matrices[REMAINING], count)
    step_within(matrices[REMAINING], count, safe, vectors, FREE, COLUMNS, 0.0)
    rests = True
    for j in range(vectors.shape[1]):
        rests = rests and abs(vectors[DELTA, j]) <= SMALL_STEP * vectors[SIZES, j]
        vectors[DELTA, j] = 0.0
    if rests:
        numbers[DISTANCE] = 0.0
    return rests


def sum_along(sum_of_squares: SumOfSquares, context: Any, vectors: Matrix, counters: Counters, factor: float) -> float:
    """The sum of squares at a multiple of DELTA from THETA; NaN beyond a bound."""
    for j in range(vectors.shape[1]):
        vectors[TRIAL, j] = vectors[THETA, j] + factor * vectors[DELTA, j]
        if vectors[TRIAL, j] < vectors[LOWER, j] or vectors[TRIAL, j] > vectors[UPPER, j]:
            return math.nan
    counters[EVALUATIONS] += 1
    total: float = sum_of_squares(vectors[TRIAL], context)
    return total


def gain_along(
    sum_of_squares: SumOfSquares, context: Any, vectors: Matrix, numbers: Vector, counters: Counters, slope: float
) -> float:
    """By how much the sum of squares can fall along DELTA, by its slope and its measured curvature; infinite where that is not known.

    Three points make a parabola, and two more must lie on it. The slope is the larger of the derivative's and the parabola's: a
    derivative that is wrong is found out.
    """
    factor, bend, tilt, near = 1.0, math.inf, 0.0, math.inf
    for _ in range(MAX_TRIALS):
        ahead = sum_along(sum_of_squares, context, vectors, counters, factor) - numbers[SUM]
        behind = sum_along(sum_of_squares, context, vectors, counters, -factor) - numbers[SUM]
        wider, bend, tilt = bend, ahead + behind, ahead - behind
        if math.isfinite(wider) and near <= SMALL_RISE * numbers[SUM]:
            if not (bend > visible(numbers) and abs(wider - 16 * bend) <= bend):
                return math.inf
            steepest = max(abs(tilt) / 2, abs(slope * factor))
            gain: float = steepest * steepest / (2 * bend)
            return gain
        near = max(abs(ahead), abs(behind))
        factor /= 4
    return math.inf


def is_settled(
    sum_of_squares: SumOfSquares, context: Any, matrices: Matrices, vectors: Matrix, numbers: Vector, counters: Counters, n: int
) -> bool:
    """Tell whether this is a minimum after all: the sum of squares curves upwards where the linear form lets it fall.

    Along a direction that moves the residuals hardly at all, to first order, and has a slope by that little, the linear form sees
    a gain far away; what decides there is how the residuals bend. Their curvature is measured along each such direction.
    """
    rows = matrices[REMAINING]
    p = vectors.shape[1]
    for j in range(p):
        vectors[DELTA, j] = 0.0
    count = reduce(matrices[TRIANGLE], vectors, COLUMNS, FREE, matrices[SMALL])
    decompose(matrices[SMALL], rows, count)
    allowed = SETTLED * numbers[SUM] / max(n - count, 1)
    gain = 0.0
    for i in range(count):
        z, square = rows[i, count], rows[i, count + 1]
        if z * z <= allowed / (10 * count):
            gain += z * z
        elif square > 0 and gain <= allowed:
            length = abs(z) / square  # of the rows: a step along them by this is the whole step
            k = 0
            for j in range(p):
                vectors[DELTA, j] = 0.0
                if vectors[FREE, j] > 0:
                    vectors[DELTA, j] = length * rows[i, k] / (vectors[COLUMNS, j] if vectors[COLUMNS, j] > 0 else 1.0)
                    k += 1
            gain += gain_along(sum_of_squares, context, vectors, numbers, counters, 2 * z * z)
    for j in range(p):
        vectors[DELTA, j] = 0.0
    settled: bool = gain <= allowed
    if settled:
        numbers[DISTANCE] = math.sqrt(gain * max(n - count, 1) / numbers[SUM]) if gain > 0 else 0.0
    return settled


def judge(
    sum_of_squares: SumOfSquares,
    context: Any,
    offset: Vector,
    matrices: Matrices,
    vectors: Matrix,
    numbers: Vector,
    counters: Counters,
) -> int:
    """No step is worth taking: say whether this is a minimum."""
    n = offset.shape[0]
    here, ahead = False, False
    for j in range(vectors.shape[1]):
        ahead = ahead or vectors[STILL, j] > 0
        without_effect = vectors[COLUMNS, j] == 0 or is_still(vectors, j, THETA, COLUMNS, numbers[SIGNAL])
        if vectors[FREE, j] > 0 and without_effect:
            vectors[STILL, j] = 1.0
            here = True
    numbers[DISTANCE] = distance(matrices, vectors, numbers, n)
    if here:
        return PLATEAU
    if numbers[DISTANCE] <= ARRIVED:
        return CONVERGED
    if is_at_rest(offset, matrices, vectors, numbers) or is_settled(
        sum_of_squares, context, matrices, vectors, numbers, counters, n
    ):
        counters[CURVED] = 1
        return CONVERGED
    return PLATEAU if ahead else counters[REFUSAL]


def set_aside(rows: Matrix, vectors: Matrix, count: int, limit: float, axis: int) -> float:
    """DELTA: the part of a FREE parameter in directions that move nothing, as long as the parameters are; give its share."""
    share, size, k = 0.0, 0.0, 0
    for j in range(vectors.shape[1]):
        vectors[DELTA, j] = 0.0
        if vectors[FREE, j] > 0:
            part = 1.0 if k == axis else 0.0
            for i in range(count):
                if rows[i, count + 1] > limit:
                    part -= rows[i, axis] * rows[i, k] / rows[i, count + 1]
            share += part * part
            size += (part * vectors[COLUMNS, j] * vectors[THETA, j]) ** 2
            vectors[DELTA, j] = part / vectors[COLUMNS, j]
            k += 1
    for j in range(vectors.shape[1]):
        vectors[DELTA, j] *= math.sqrt(size) / share if share > 0 else 0.0
    return share


def leaves_saddle(
    linearize: Linearize,
    sum_of_squares: SumOfSquares,
    context: Any,
    system: Matrix,
    offset: Vector,
    matrices: Matrices,
    vectors: Matrix,
    numbers: Vector,
    counters: Counters,
) -> bool:
    """Go on from where there is no slope, if the sum of squares falls along a direction that moves nothing to first order; tell.

    Two terms of a sum that start alike stay alike, and end where they are best as one: no slope parts them.
    """
    n = offset.shape[0]
    count = reduce(matrices[TRIANGLE], vectors, COLUMNS, FREE, matrices[SMALL])
    if factorize(matrices[SMALL], matrices[REMAINING], count):
        return False
    limit = negligible(matrices[REMAINING], count, EPSILON * max(n, count))
    lower = numbers[SUM] - visible(numbers)
    for axis in range(count):
        if set_aside(matrices[REMAINING], vectors, count, limit, axis) > APART:
            factor = ASIDE
            for _ in range(4):
                if sum_along(sum_of_squares, context, vectors, counters, factor) < lower:
                    length = abs(factor) * length_of(vectors, NORMS, DELTA)
                    if look(linearize, context, system, offset, matrices, vectors, numbers, counters):
                        move(matrices, vectors, numbers)
                        numbers[RADIUS], counters[CURVED] = length, 0
                        return True
                factor *= -1.0 if factor > 0 else -0.1
    return False


def attempt(
    linearize: Linearize,
    sum_of_squares: SumOfSquares,
    context: Any,
    system: Matrix,
    offset: Vector,
    matrices: Matrices,
    vectors: Matrix,
    numbers: Vector,
    counters: Counters,
    predicted: float,
) -> bool:
    """Look at TRIAL; tell whether the sum of squares falls by a fair part of what was predicted. It is left in TRIAL_SUM.

    The sum alone is cheaper than the derivative with it, and wasted where the step is taken: it is asked for after a refusal.
    """
    counters[REFUSAL] = UNDEFINED
    if counters[HESITANT] > 0:
        counters[EVALUATIONS] += 1
        numbers[TRIAL_SUM] = sum_of_squares(vectors[TRIAL], context)
        if not math.isfinite(numbers[TRIAL_SUM]):
            return False
        if not numbers[SUM] - numbers[TRIAL_SUM] > FAIR * predicted:
            counters[REFUSAL] = ROUGH
            return False
    if not look(linearize, context, system, offset, matrices, vectors, numbers, counters):
        numbers[TRIAL_SUM] = math.inf
        return False
    counters[REFUSAL] = ROUGH
    return numbers[SUM] - numbers[TRIAL_SUM] > FAIR * predicted and not runs_onto_plateau(vectors, numbers)


def step(
    linearize: Linearize,
    sum_of_squares: SumOfSquares,
    context: Any,
    system: Matrix,
    offset: Vector,
    matrices: Matrices,
    vectors: Matrix,
    numbers: Vector,
    counters: Counters,
) -> int:
    """One accepted step, or the end."""
    n = offset.shape[0]
    counters[REFUSAL] = ROUGH
    release(vectors, THETA, GRADIENT)
    for j in range(vectors.shape[1]):
        vectors[STILL, j] = 0.0
    count = reduce(matrices[TRIANGLE], vectors, NORMS, FREE, matrices[SMALL])
    safe = factorize(matrices[SMALL], matrices[WITHIN], count)
    undamped = False
    for trial in range(MAX_TRIALS):
        numbers[DAMPING] = 0.0
        cut = safe and propose(matrices, vectors, count, True, 0.0)
        if safe and length_of(vectors, NORMS, DELTA) > 1.1 * numbers[RADIUS]:
            safe = False
            release(vectors, THETA, GRADIENT)
            count = reduce(matrices[TRIANGLE], vectors, NORMS, FREE, matrices[SMALL])
            decompose(matrices[SMALL], matrices[WITHIN], count)
        if not safe:
            numbers[DAMPING] = 0.0 if undamped else damping_for(matrices[WITHIN], count, numbers[RADIUS])
            cut = propose(matrices, vectors, count, False, numbers[DAMPING])
        predicted, rate = descent_along(matrices, vectors)
        length = length_of(vectors, NORMS, DELTA)
        worthless = predicted <= rounding(numbers)
        if length_of(vectors, COLUMNS, DELTA) <= SMALL_STEP * numbers[TERMS] or (worthless and (undamped or not cut)):
            # Try the full step before giving up: along a nearly undetermined direction any damping hides the gain.
            if undamped or numbers[DAMPING] == 0 or distance(matrices, vectors, numbers, n) <= ARRIVED:
                break
            undamped = True
            continue
        if not worthless and attempt(
            linearize, sum_of_squares, context, system, offset, matrices, vectors, numbers, counters, predicted
        ):
            ratio = (numbers[SUM] - numbers[TRIAL_SUM]) / predicted
            move(matrices, vectors, numbers)
            counters[HESITANT] = min(trial, 1)
            if ratio >= 0.75 or numbers[DAMPING] == 0:
                numbers[RADIUS] = 2 * length
            elif ratio <= 0.25:
                numbers[RADIUS] /= 2
            return RUNNING
        if undamped:
            break
        counters[HESITANT] = 1
        shrunk = 0.1
        if not worthless and numbers[TRIAL_SUM] < 100 * numbers[SUM]:
            # the minimum of the parabola with the sum and its slope here and the sum at the trial
            curvature = 2 * rate + numbers[TRIAL_SUM] - numbers[SUM]
            shrunk = min(max(rate / curvature, 0.1), 0.5) if curvature > 0 else 0.5
        numbers[RADIUS] = shrunk * min(numbers[RADIUS], length)
    code = judge(sum_of_squares, context, offset, matrices, vectors, numbers, counters)
    if code == CONVERGED and leaves_saddle(
        linearize, sum_of_squares, context, system, offset, matrices, vectors, numbers, counters
    ):
        return RUNNING
    return code


def polish(
    linearize: Linearize,
    context: Any,
    system: Matrix,
    offset: Vector,
    matrices: Matrices,
    vectors: Matrix,
    numbers: Vector,
    counters: Counters,
) -> int:
    """Take undamped steps while they shorten the way that is left; tell whether the minimum is here, or on a plateau ahead."""
    release(vectors, THETA, GRADIENT)
    count = reduce(matrices[TRIANGLE], vectors, NORMS, FREE, matrices[SMALL])
    safe = factorize(matrices[SMALL], matrices[WITHIN], count)
    left = explained(matrices[WITHIN], count, -1.0)
    for _ in range(POLISH):
        if left <= POLISHED * POLISHED * numbers[SUM]:
            return CONVERGED
        propose(matrices, vectors, count, safe, 0.0)
        moved = False
        for j in range(vectors.shape[1]):
            moved = moved or vectors[TRIAL, j] != vectors[THETA, j]
        if not (moved and look(linearize, context, system, offset, matrices, vectors, numbers, counters)):
            return CONVERGED
        release(vectors, TRIAL, TRIAL_GRADIENT)
        count = reduce(matrices[AHEAD], vectors, NORMS, FREE, matrices[SMALL])
        safe = factorize(matrices[SMALL], matrices[WITHIN], count)
        before, left = left, explained(matrices[WITHIN], count, -1.0)
        if not (left < before and numbers[TRIAL_SUM] <= numbers[SUM] + 10 * rounding(numbers)):
            return CONVERGED
        if runs_onto_plateau(vectors, numbers):
            return PLATEAU
        move(matrices, vectors, numbers)
    return CONVERGED


def advance(
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
) -> int:
    """Take steps until the history is full or the fit has ended; say which.

    Parameters
    ----------
    linearize, sum_of_squares, context
        The model on its data, see the top of this file.
    system
        (p + 1, n), scratch.
    offset
        (n,), target / sigma: what added to a residual gives the prediction in its units.
    matrices, vectors, numbers, counters
        The state, laid out as the constants of this file say; the same arrays at the next call go on where this one stopped.
    history
        (rows, 2 + 2 p), one row per step: mean loss before it, damping, parameters after it, gradient of the mean loss before it.
    """
    p, n = vectors.shape[1], offset.shape[0]
    for row in range(history.shape[0]):
        code = RUNNING
        if counters[STARTED] == 0:
            for j in range(p):
                vectors[TRIAL, j] = vectors[THETA, j]
                vectors[NORMS, j], vectors[SIZES, j] = 0.0, 0.0
            if look(linearize, context, system, offset, matrices, vectors, numbers, counters):
                move(matrices, vectors, numbers)
                counters[STARTED] = 1
                numbers[START_SUM] = numbers[SUM]
                # z, too: parameters that start at 0 have no size
                reach = math.sqrt(dot(matrices[TRIANGLE], p, p, 0, p))
                numbers[RADIUS] *= max(length_of(vectors, NORMS, THETA), reach)
            else:
                code = NOT_FINITE
                numbers[SUM], numbers[DAMPING] = numbers[TRIAL_SUM], math.nan
                for j in range(p):
                    vectors[GRADIENT, j] = math.nan
        history[row, 0] = numbers[SUM] / n
        for j in range(p):
            history[row, HISTORY + p + j] = 2 * vectors[GRADIENT, j] / n
        if code == RUNNING:
            code = step(linearize, sum_of_squares, context, system, offset, matrices, vectors, numbers, counters)
            if code == CONVERGED:
                code = polish(linearize, context, system, offset, matrices, vectors, numbers, counters)
            counters[STEPS] += 1
        history[row, 1] = numbers[DAMPING]
        for j in range(p):
            history[row, HISTORY + j] = vectors[THETA, j]
        if code != RUNNING:
            return code
    return RUNNING


def on_bound(vectors: Matrix, j: int, bound: int) -> bool:
    """Tell whether a parameter is on a bound."""
    on: bool = abs(vectors[THETA, j] - vectors[bound, j]) <= ON_BOUND * abs(vectors[bound, j]) < math.inf
    return on


def conclude(
    linearize: Linearize,
    context: Any,
    system: Matrix,
    offset: Vector,
    matrices: Matrices,
    vectors: Matrix,
    numbers: Vector,
    counters: Counters,
) -> int:
    r"""What the statistics need at THETA: distance from the minimum, :math:`(J^T J)^{-1}`, and which parameters are undetermined.

    Fills numbers[SUM, REST, SIGNAL, DISTANCE, CONDITION], vectors[GRADIENT, UNDETERMINED], matrices[TRIANGLE, INVERSE]; gives CONVERGED, or
    NOT_FINITE where there is nothing to fill. Columns are scaled to 1 before the singular values are compared with
    RANK_TOLERANCE. A share of a parameter in the undetermined directions is what its row of V lacks to a norm of 1.
    """
    p, n = vectors.shape[1], offset.shape[0]
    if counters[STARTED] == 0:
        for j in range(p):
            vectors[TRIAL, j] = vectors[THETA, j]
        if not look(linearize, context, system, offset, matrices, vectors, numbers, counters):
            return NOT_FINITE
        move(matrices, vectors, numbers)
    release(vectors, THETA, GRADIENT)
    if counters[CURVED] == 0:
        numbers[DISTANCE] = distance(matrices, vectors, numbers, n)
    for j in range(p):
        on = on_bound(vectors, j, LOWER) or on_bound(vectors, j, UPPER)
        vectors[MOVING, j] = 0.0 if on else 1.0
    rows, inverse = matrices[REMAINING], matrices[INVERSE]
    count = reduce(matrices[TRIANGLE], vectors, COLUMNS, MOVING, matrices[SMALL])
    safe = factorize(matrices[SMALL], rows, count)
    limit = negligible(rows, count, numbers[RANK_TOLERANCE])
    spread = 0.0
    for k in range(count):
        if not safe and not rows[k, count + 1] > limit:
            spread = math.inf
    a = 0
    for i in range(p):
        b = 0
        lacking = 0.0 if safe else 1.0
        for j in range(p):
            inverse[i, j] = math.nan
            if vectors[MOVING, i] > 0 and vectors[MOVING, j] > 0:
                total = 0.0
                for k in range(count):
                    square = rows[k, count + 1]
                    if safe:
                        total += rows[a, k] * rows[b, k]
                    elif square > limit:
                        share = rows[k, a] * rows[k, b] / square
                        total += share / square
                        if i == j:
                            lacking -= share
                if i == j:
                    spread += total
                size = (vectors[COLUMNS, i] if vectors[COLUMNS, i] > 0 else 1.0) * (
                    vectors[COLUMNS, j] if vectors[COLUMNS, j] > 0 else 1.0
                )
                inverse[i, j] = total / size
                b += 1
        vectors[UNDETERMINED, i] = math.nan
        if vectors[MOVING, i] > 0:
            vectors[UNDETERMINED, i] = math.sqrt(max(lacking, 0.0))
            a += 1
    numbers[CONDITION] = math.sqrt(spread)
    return CONVERGED


def solve(
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
) -> int:
    """`advance`, and `conclude` where the fit has ended; only `conclude` for a history without rows."""
    if history.shape[0] == 0:
        return conclude(linearize, context, system, offset, matrices, vectors, numbers, counters)
    code = advance(linearize, sum_of_squares, context, system, offset, matrices, vectors, numbers, counters, history)
    if code != RUNNING and code != NOT_FINITE:
        conclude(linearize, context, system, offset, matrices, vectors, numbers, counters)
    return code
