"""Errors under robust losses and losses of one's own: against closed forms and published formulas computed elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import gradfit
from gradfit.statistics.robust import ALONE, FLAT, NARROW

GENERATOR = np.random.default_rng(3)
X = np.linspace(0, 1, 12)
Y = 2 * X + 1 + GENERATOR.normal(0, 0.3, 12)
Y[4] += 3  # an outlier
QUIET = 2 * X + 1 + np.random.default_rng(3).normal(0, 0.1, 12) + np.where(np.arange(12) == 4, 3.0, 0.0)
# statsmodels 0.15.0, RLM with HuberT(t=1.0), the scale held at 1, tol=1e-12, cov="H1": variances and covariance of slope and offset.
SLOPE, OFFSET = 1.93168155, 1.11863351
H1 = [[0.14306673430895425, -0.07153336715447713], [-0.07153336715447713, 0.049856589228877986]]


def line(x, w, b):
    return w * x + b


def test_where_no_row_is_near_the_bend_the_covariance_is_hubers_first():
    fit = gradfit.fit(line, X, QUIET, loss="huber", f_scale=1.0)
    assert list(fit.values.values()) == pytest.approx([SLOPE, OFFSET], abs=1e-7)
    np.testing.assert_allclose(fit.covariance, H1, rtol=1e-6)
    assert fit.record.covariance_kind == "M-estimator covariance"
    assert "errors from the M-estimator covariance" in fit.report()


@pytest.mark.parametrize("loss", ["huber", "soft_l1", "cauchy", "arctan"])
def test_a_loss_that_never_bends_has_the_errors_of_least_squares(loss):
    robust, plain = gradfit.fit(line, X, Y, loss=loss, f_scale=1e4), gradfit.fit(line, X, Y)
    np.testing.assert_allclose(robust.covariance, plain.covariance, rtol=1e-5)


@pytest.mark.parametrize("loss", ["huber", "soft_l1", "cauchy", "arctan"])
def test_errors_follow_the_units(loss):
    ours = gradfit.fit(line, X, Y, loss=loss, f_scale=0.5)
    theirs = gradfit.fit(line, 1e6 * X, 1e-5 * Y, loss=loss, f_scale=0.5e-5, start={"w": 1e-11, "b": 1e-5})
    weighted = gradfit.fit(line, X, Y, loss=loss, f_scale=5.0, sigma=0.1)
    factor = np.array([1e-11, 1e-5])
    np.testing.assert_allclose(theirs.covariance, ours.covariance * np.outer(factor, factor), rtol=1e-5)
    np.testing.assert_allclose(weighted.covariance, ours.covariance, rtol=1e-5)


def test_the_noise_of_a_robust_fit_is_always_estimated():
    fit = gradfit.fit(line, X, Y, loss="huber", f_scale=5.0, sigma=0.1, absolute_sigma=True)
    assert fit.dof == 10
    np.testing.assert_allclose(fit.covariance, gradfit.fit(line, X, Y, loss="huber", f_scale=0.5).covariance, rtol=1e-5)


def test_a_small_scale_does_not_make_errors_several_times_too_small_or_large():
    generator = np.random.default_rng(0)
    ratios = []
    for _ in range(20):
        y = 2 * X + 1 + generator.normal(0, 0.3, 12)
        robust = gradfit.fit(line, X, y, loss="huber", f_scale=0.03)
        ratios.append(robust.params["w"].stderr / gradfit.fit(line, X, y).params["w"].stderr)
    # The slope of least absolute deviations has sqrt(pi/2) = 1.25 times the error of least squares.
    assert 0.7 < np.nanmedian(ratios) < 1.9
    assert np.nanmin(ratios) > 0.4
    assert np.nanmax(ratios) < 6


@pytest.mark.parametrize("loss", ["cauchy", "arctan"])
def test_a_falling_loss_of_too_small_a_scale_has_no_errors_and_says_what_to_raise(loss):
    fit = gradfit.fit(line, X, Y, loss=loss, f_scale=0.01, start={"w": 2.0, "b": 1.0})
    assert math.isnan(fit.params["w"].stderr)
    assert fit.params["w"].reason in (NARROW, FLAT)
    assert any("raise f_scale" in warning for warning in fit.warnings)


def test_data_without_noise_have_errors_of_rounding():
    fit = gradfit.fit(line, X, 2 * X + 1, loss="soft_l1", f_scale=0.1)
    assert 0 <= fit.params["w"].stderr < 1e-12


def test_an_own_loss_of_squares_has_the_sandwich_with_leverage():
    fit = gradfit.fit(line, X, Y, loss=lambda p, t: torch.nn.functional.mse_loss(p, t, reduction="none"))
    design = np.column_stack([X, np.ones(12)])
    inverse = np.linalg.inv(design.T @ design)
    leverage = np.einsum("ij,jk,ik->i", design, inverse, design)
    left_out = (Y - fit.predict(X)) / (1 - leverage)
    np.testing.assert_allclose(fit.covariance, inverse @ (design.T @ (left_out[:, None] ** 2 * design)) @ inverse, rtol=1e-8)
    assert fit.record.covariance_kind == "sandwich"


def test_a_parameter_of_one_row_has_no_sandwich_error_and_says_why():
    def with_a_row_of_its_own(x, w, b, last):
        return w * x + b + last * torch.where(x == 1, 1.0, 0.0)

    fit = gradfit.fit(with_a_row_of_its_own, X, Y, loss=lambda p, t: (p - t) ** 2)
    assert fit.params["last"].reason == ALONE
    assert math.isnan(fit.params["last"].stderr)
    assert fit.params["w"].stderr > 0


def test_weighted_robust_rows_have_the_sandwich():
    weights = np.linspace(1, 3, 12)
    fit = gradfit.fit(line, X, Y, loss="huber", f_scale=0.5, weights=weights)
    assert fit.record.covariance_kind == "sandwich"
    ones = gradfit.fit(line, X, Y, loss="huber", f_scale=1e4, weights=weights)
    own = gradfit.fit(line, X, Y, loss=lambda p, t: torch.from_numpy(weights) * (p - t) ** 2)
    np.testing.assert_allclose(ones.covariance, own.covariance, rtol=1e-6)


def test_as_many_rows_as_parameters_have_no_robust_errors():
    with pytest.warns(gradfit.UndeterminedWarning, match="no degree of freedom"):
        fit = gradfit.fit(line, [0.0, 1.0], [1.0, 3.0], loss="huber")
    assert math.isnan(fit.params["w"].stderr)
