r"""Sums of squares of many data sets, each at many points, with the linear parameters where they are least; compiled like :mod:`gradfit.methods.marquardt`.

With :math:`r` the residual where the linear parameters c are 0, and J its derivatives by them, :math:`\min_c\lVert r + Jc\rVert^2` is what is left of
r once the columns of J, orthonormal by the modified Gram-Schmidt process, are taken from it.

References
----------
Björck, *Numerical Methods for Least Squares Problems*, 1996, section 2.4.
"""

from __future__ import annotations

import math
from typing import Any

from gradfit.methods.marquardt import Counters, Linearize, Matrices, Matrix, SumOfSquares, dot, subtract

INFINITE = math.inf
DEPENDENT = 1e-20  # of the square of a column: what is left is rounding


def project_all(
    linearize: Linearize,
    sum_of_squares: SumOfSquares,
    context: Any,
    points: Matrices,
    words: Counters,
    strides: Counters,
    limits: Matrices,
    linear: Counters,
    system: Matrix,
    small: Matrix,
    results: Matrix,
) -> int:
    """Project at all points of one data set after the other.

    Parameters
    ----------
    points
        (count, each, p), the linear parameters 0; these are filled in.
    words, strides
        The context of the first data set, and what each of its words grows by from one data set to the next.
    limits
        (count, 2, p), lower and upper bounds.
    linear
        (k,), which parameters are linear.
    system, small
        (p + 1, n) and (k, k + 1), scratch.
    results
        (count, each), the sums of squares there; NaN where the model has no value.
    """
    for i in range(points.shape[0]):
        for m in range(points.shape[1]):
            results[i, m] = project(linearize, sum_of_squares, context, points[i], m, limits[i], linear, system, small)
        for w in range(words.shape[0]):
            words[w] += strides[w]
    return 0


def project(
    linearize: Linearize,
    sum_of_squares: SumOfSquares,
    context: Any,
    points: Matrix,
    m: int,
    limits: Matrix,
    linear: Counters,
    system: Matrix,
    small: Matrix,
) -> float:
    """Fill in the linear parameters of one point; give the sum of squares there, within the bounds."""
    last, n, k = system.shape[0] - 1, system.shape[1], linear.shape[0]
    total = linearize(points[m], context, system)
    for a in range(k):
        row = linear[a]
        size = dot(system, row, row, 0, n)
        for b in range(a):
            small[b, a] = dot(system, linear[b], row, 0, n)
            subtract(system, row, linear[b], small[b, a], 0, n)
        left = dot(system, row, row, 0, n)
        scale = 0.0
        if left > DEPENDENT * size:
            scale = 1.0 / math.sqrt(left)
        for j in range(n):
            system[row, j] *= scale
        small[a, a] = scale
        small[a, k] = 0.0 - dot(system, last, row, 0, n)
        subtract(system, last, row, 0.0 - small[a, k], 0, n)
    moved = 0
    for a in range(k):
        b = k - 1 - a
        value = small[b, k]
        for c in range(b + 1, k):
            value -= small[b, c] * points[m, linear[c]]
        points[m, linear[b]] = small[b, b] * value
    for j in range(points.shape[1]):
        inside = min(max(points[m, j], limits[0, j]), limits[1, j])
        if inside != points[m, j]:
            points[m, j] = inside
            moved = 1
    if k > 0:
        total = dot(system, last, last, 0, n)
    if moved > 0 and total < INFINITE:
        return sum_of_squares(points[m], context)
    return total
