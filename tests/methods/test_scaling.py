"""Diagonal scaling: the formula, its units, and starts that cannot be measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradfit.compiler import calling
from gradfit.data.dataset import dataset
from gradfit.data.sources import read
from gradfit.methods import scaling
from gradfit.methods.method import Problem
from gradfit.model import loss as losses
from gradfit.model.model import function_model
from gradfit.model.parameters import parameters


def problem(model, x, y, start, *, bounds=None):
    described = function_model(model, count=1, target="y")
    data = dataset(read({"x": x, "y": y}), described.data_names, "y")
    known = parameters(described.defaults, start=start, bounds=bounds)
    kernel = calling.build(described, known, data, losses.resolve("squared", data), dtype=torch.float64)
    return Problem(kernel, known, torch.float64)


def line(x, w, b):
    return w * x + b


def test_a_change_by_one_moves_the_prediction_by_what_it_is_off(t_u, t_c):
    units = scaling.diagonal(problem(line, t_u, t_c, [1.0, 0.0]).kernel, np.array([1.0, 0.0]))
    off = np.sqrt(np.mean((t_u - t_c) ** 2))
    np.testing.assert_allclose(units.parameters, [off / np.sqrt(np.mean(t_u**2)), off], rtol=1e-14)
    assert units.loss == pytest.approx(off**2, rel=1e-14)
    scaled = np.stack([t_u, np.ones(11)], 1) * units.parameters
    assert units.steepest == pytest.approx(np.linalg.eigvalsh(2 * scaled.T @ scaled / 11 / off**2)[-1], rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(x_unit=st.floats(-8, 8).map(lambda power: 10.0**power), y_unit=st.floats(-8, 8).map(lambda power: 10.0**power))
def test_only_the_units_of_the_scaling_follow_the_units_of_the_data(x_unit, y_unit):
    x, y, start = np.array([1.0, 2.0, 4.0]), np.array([3.0, 2.0, 2.5]), np.array([0.5, 0.25])
    here = scaling.diagonal(problem(line, x, y, start).kernel, start)
    there_start = start * y_unit / np.array([x_unit, 1.0])
    there = scaling.diagonal(problem(line, x * x_unit, y * y_unit, there_start).kernel, there_start)
    np.testing.assert_allclose(there.parameters * [x_unit, 1.0] / y_unit, here.parameters, rtol=1e-12)
    assert there.loss / y_unit**2 == pytest.approx(here.loss, rel=1e-12)
    assert there.steepest == pytest.approx(here.steepest, rel=1e-12)


def test_a_start_that_fits_already_and_one_that_is_not_finite_have_units_too():
    x = np.array([1.0, 2.0, 4.0])
    exact = scaling.diagonal(problem(line, x, 2 * x + 1, [2.0, 1.0]).kernel, np.array([2.0, 1.0]))
    assert exact.loss == 1
    assert np.isfinite(exact.parameters).all()
    bad = problem(lambda x, a: torch.exp(1000 * a * x), x, x, [1.0])
    units = scaling.diagonal(bad.kernel, np.array([1.0]))
    assert np.isfinite([*units.parameters, units.loss, units.steepest]).all()
    assert scaling.steady_rate(bad, units) == 1 / units.steepest


def test_a_parameter_without_effect_at_the_start_has_a_unit_too():
    x = np.array([1.0, 2.0, 4.0])
    model = problem(lambda x, a, k: a * torch.exp(-k * x), x, x, [0.0, 1.0])
    units = scaling.diagonal(model.kernel, np.array([0.0, 1.0]))
    assert (units.parameters > 0).all()
    assert np.isfinite(units.parameters).all()


def test_the_rate_of_a_linear_model_is_one_over_its_curvature(t_u, t_c):
    raw = problem(line, t_u, t_c, [1.0, 0.0])
    units = scaling.diagonal(raw.kernel, raw.parameters.start)
    assert scaling.steady_rate(raw, units) == 1 / units.steepest


def test_the_rate_is_halved_until_the_first_steps_fall():
    x = np.linspace(0, 10, 40)
    y = 5 * np.exp(-0.7 * x) + 1
    curved = problem(lambda x, a, k, c: a * torch.exp(-k * x) + c, x, y, [3.0, 1.0, 0.0])
    units = scaling.diagonal(curved.kernel, curved.parameters.start)
    rate = scaling.steady_rate(curved, units)
    halvings = np.log2(1 / units.steepest / rate)
    assert halvings > 0
    assert halvings == round(halvings)


def test_no_scaling_is_ones():
    assert scaling.none(2).parameters.tolist() == [1, 1]
    assert scaling.none(2).loss == 1
