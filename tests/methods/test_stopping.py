"""When to stop, and how far the minimum still is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradfit import EarlyStopping
from gradfit.compiler.kernel import Linearization
from gradfit.errors import OptionError
from gradfit.methods.solving import conclude


class Near:
    """A kernel that is linear: the problem near one point."""

    loss_kind = "least_squares"

    def __init__(self, near):
        self.near, self.n = near, len(near.residual)

    def linearize(self, theta):
        return self.near


def line(x, y, theta, unit=(1.0, 1.0)):
    """A straight line near theta, its parameters counted in units of ``unit``."""
    jacobian = np.stack([x, np.ones_like(x)], 1)
    prediction = jacobian @ theta
    return Linearization(prediction - y, jacobian * unit, prediction, np.ones_like(x), np.ones_like(x))


def remaining_distance(near, unit=1.0):
    p = near.jacobian.shape[1]
    return conclude(Near(near), np.ones(p) / unit, np.full(p, -np.inf), np.full(p, np.inf)).distance


@pytest.fixture
def data(t_u, t_c):
    best, rest = np.linalg.lstsq(np.stack([t_u, np.ones(11)], 1), t_c, rcond=None)[:2]
    return t_u, t_c, best, math.sqrt(rest[0] / 9)


def test_distance_is_counted_in_standard_errors(data):
    x, y, best, noise = data
    jacobian = np.stack([x, np.ones(11)], 1)
    covariance = noise**2 * np.linalg.inv(jacobian.T @ jacobian)
    off = np.array([0.01, -0.5])
    expected = math.sqrt(off @ np.linalg.solve(covariance, off))
    assert remaining_distance(line(x, y, best + off)) == pytest.approx(expected, rel=1e-6)
    assert remaining_distance(line(x, y, best)) < 1e-10


@pytest.mark.parametrize("unit", [1e-8, 1e8])
def test_distance_does_not_depend_on_units(data, unit):
    x, y, best, _ = data
    off = best + np.array([0.01, -0.5])
    assert remaining_distance(line(x, y, off, (unit, 1.0)), np.array([unit, 1.0])) == pytest.approx(
        remaining_distance(line(x, y, off)), rel=1e-9
    )


def test_exact_data_count_as_reached_below_single_precision():
    x = np.arange(1.0, 9.0)
    y = 2 * x + 1
    assert remaining_distance(line(x, y, np.array([2.0, 1.0 + 1e-10]))) < 0.01
    assert remaining_distance(line(x, y, np.array([2.0, 1.1]))) > 1


def test_a_combination_the_data_do_not_determine_keeps_no_fit_from_arriving(data):
    x, y, best, _ = data
    near = line(x, y, best)
    doubled = Linearization(near.residual, near.jacobian[:, [0, 1, 1]], near.prediction, near.weight, near.bend)
    assert remaining_distance(doubled) < 1e-8


def test_a_parameter_without_effect_is_infinitely_far(data):
    x, y, best, _ = data
    assert remaining_distance(line(x, y, best, (0.0, 1.0))) == math.inf


@pytest.mark.parametrize("patience", [0, -1, 2.5, True, "3", None])
def test_patience_is_a_whole_number_of_epochs(patience):
    with pytest.raises(OptionError, match="patience"):
        EarlyStopping(patience)


@pytest.mark.parametrize("min_delta", [-1.0, math.nan, math.inf, "1"])
def test_min_delta_is_a_difference_of_losses(min_delta):
    with pytest.raises(OptionError, match="min_delta"):
        EarlyStopping(3, min_delta)


def test_whole_numbers_of_numpy_serve():
    assert EarlyStopping(np.int64(3), np.float32(0.5)).patience == 3
