"""Residuals of many data sets, each at parameters of its own, or their sums of squares; compiled like :mod:`gradfit.methods.marquardt`."""

from __future__ import annotations

from typing import Any

from gradfit.methods.marquardt import Counters, Linearize, Matrices, Matrix, SumOfSquares, Vector


def sum_all(
    sum_of_squares: SumOfSquares, context: Any, points: Matrix, words: Counters, strides: Counters, results: Vector
) -> int:
    """Sum the squares of one data set after the other.

    Parameters
    ----------
    points
        (count, p), parameters of each.
    words, strides
        The context of the first data set, and what each of its words grows by from one data set to the next.
    results
        (count,).
    """
    for i in range(results.shape[0]):
        results[i] = sum_of_squares(points[i], context)
        for k in range(words.shape[0]):
            words[k] += strides[k]
    return 0


def rows_all(linearize: Linearize, context: Any, points: Matrix, words: Counters, strides: Counters, systems: Matrices) -> int:
    """Residuals and their derivatives of one data set after the other; ``systems`` is (count, p + 1, rows), the residual last."""
    for i in range(systems.shape[0]):
        linearize(points[i], context, systems[i])
        for k in range(words.shape[0]):
            words[k] += strides[k]
    return 0
