"""Bounds, fixed and tied parameters mean the same in every method, on both engines."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear

import gradfit

RNG = np.random.default_rng(5)
X = np.linspace(0, 3, 25)
Y = 2.0 * X + 1.0 - 0.5 * X**2 + RNG.normal(0, 0.1, 25)
DESIGN = np.stack([np.ones(25), X, X**2], axis=1)
START = {"a": 0.5, "b": 0.5, "c": 0.1}
METHODS = {
    "lm": {"method": "lm"},
    "linear": {"method": "linear"},
    "lbfgs": {"method": "lbfgs"},
    "adam": {"method": "adam", "epochs": 1500},
    "sgd": {"method": "sgd", "epochs": 3000},
    "rprop": {"method": "rprop", "epochs": 1500},
}
# torch's own loop takes seconds: one optimizer stands for all
ways = pytest.mark.parametrize(
    ("method", "engine"),
    [*((name, "native") for name in METHODS), *((name, "torch") for name in ("lm", "linear", "lbfgs", "adam"))],
)


def parabola(x, a, b, c):
    return a + b * x + c * x**2


def fitted(method: str, engine: str, **options) -> gradfit.FitResult:
    return gradfit.fit(parabola, X, Y, start=START, engine=engine, **METHODS[method], **options)


def agree(fit: gradfit.FitResult, expected, covariance) -> None:
    """At the minimum to a hundredth of a standard error, with its errors."""
    assert fit.success
    expected = np.array(expected)
    errors = np.sqrt(np.diag(covariance))
    ours = np.array([estimate.value for estimate in fit.params.values()])
    known = np.isfinite(errors) & (errors > 0)
    np.testing.assert_allclose(ours[known], expected[known], atol=0.02 * errors[known].max(), rtol=1e-9)
    np.testing.assert_allclose(ours[~known], expected[~known], atol=1e-4)
    for own, theirs in zip([estimate.stderr for estimate in fit.params.values()], errors, strict=True):
        assert own == pytest.approx(theirs, rel=1e-3, nan_ok=True)


def least_squares(design: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    solution, *_ = np.linalg.lstsq(design, target, rcond=None)
    residual = target - design @ solution
    return solution, residual @ residual / (len(target) - design.shape[1]) * np.linalg.inv(design.T @ design)


@ways
def test_a_bound_that_excludes_the_optimum_is_where_the_fit_ends(method, engine):
    fit = fitted(method, engine, bounds={"c": (-0.2, None), "a": (-50, 50)})
    expected = lsq_linear(DESIGN, Y, ([-50, -np.inf, -0.2], [50, np.inf, np.inf]), tol=1e-14).x
    inner, covariance = least_squares(DESIGN[:, :2], Y + 0.2 * X**2)
    np.testing.assert_allclose(expected[:2], inner, rtol=1e-6)
    whole = np.full((3, 3), np.nan)
    whole[:2, :2] = covariance
    agree(fit, expected, whole)
    assert fit.params["c"].at_bound
    assert not fit.params["a"].at_bound
    assert "bound" in fit.params["c"].reason
    assert fit.dof == 23


@ways
def test_a_bound_that_does_not_matter_changes_nothing(method, engine):
    expected, covariance = least_squares(DESIGN, Y)
    agree(fitted(method, engine, bounds={"a": (0, 10), "b": (None, 10), "c": (-3, 3)}), expected, covariance)


@ways
def test_a_fixed_parameter_stays_and_has_no_error(method, engine):
    inner, covariance = least_squares(DESIGN[:, 1:], Y - 0.9)
    whole = np.zeros((3, 3))
    whole[1:, 1:] = covariance
    fit = fitted(method, engine, fixed={"a": 0.9})
    agree(fit, [0.9, *inner], whole)
    assert fit.names == ("b", "c")


TIES = {"formula": "-b/4", "function": lambda b: -b / 4, "torch function": lambda b: torch.mul(b, -0.25)}


@pytest.mark.parametrize("tie", TIES)
@ways
def test_a_tied_parameter_follows_and_its_error_too(method, engine, tie):
    inner, covariance = least_squares(np.stack([np.ones(25), X - X**2 / 4], axis=1), Y)
    carry = np.array([[1, 0], [0, 1], [0, -0.25]])
    agree(fitted(method, engine, tied={"c": TIES[tie]}), carry @ inner, carry @ covariance @ carry.T)


@pytest.mark.parametrize("engine", ["native", "torch"])
@pytest.mark.parametrize("method", ["lm", "lbfgs"])
def test_a_tie_that_is_not_linear_has_its_error_by_the_delta_method(method, engine):
    fit = fitted(method, engine, tied={"c": "-b**2/8 + 0*a"})
    free = fit.covariance[:2, :2]
    gradient = np.array([0.0, -fit.values["b"] / 4])
    assert fit.params["c"].stderr == pytest.approx(np.sqrt(gradient @ free @ gradient), rel=1e-9)
    assert fit.values["c"] == pytest.approx(-(fit.values["b"] ** 2) / 8, rel=1e-12)


@ways
def test_bounds_fixed_and_tied_go_together(method, engine):
    fit = fitted(method, engine, bounds={"b": (None, 1.5)}, fixed={"a": 1.0}, tied={"c": "-b/3"})
    assert fit.success
    design = X - X**2 / 3
    best = (design @ (Y - 1)) / (design @ design)
    assert best > 1.5
    assert fit.values == pytest.approx({"a": 1.0, "b": 1.5, "c": -0.5}, rel=1e-9)
    assert fit.params["b"].at_bound
    assert np.isnan(fit.params["c"].stderr)
    assert fit.params["c"].reason
