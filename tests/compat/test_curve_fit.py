"""gradfit.curve_fit beside scipy's: certified values, scipy's covariance, its errors and warnings, and the mistakes it lets pass."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
from numpy.testing import assert_allclose, assert_array_equal
from scipy.integrate import odeint
from scipy.linalg import inv
from scipy.optimize import OptimizeWarning

import gradfit
import nist_problems
from gradfit import curve_fit
from gradfit.compat import scipy as drop_in
from gradfit.compat.curve_residuals import Called, Compiled
from gradfit.errors import DataError, FitError, FitWarning, GradfitError, GradfitWarning

TIGHT = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15}
X = np.linspace(0, 4, 50)


def decay(x, a, b, c):
    return a * np.exp(-b * x) + c


def noisy(seed=0, n=50):
    x = np.linspace(0, 4, n)
    return x, decay(x, 2.5, 1.3, 0.5) + np.random.default_rng(seed).normal(0, 0.2, n)


def jacobian_of(f):
    """Give the exact derivative of an analytic function, by complex steps."""

    def jac(x, *parameters):
        columns = []
        for place in range(len(parameters)):
            point = np.array(parameters, dtype=complex)
            point[place] += 1e-30j
            columns.append(np.imag(f(x, *point)) / 1e-30)
        return np.stack(np.broadcast_arrays(*columns), axis=1)

    return jac


def scipys(f, x, y, p0, **options):
    """What scipy gives where it goes on to the minimum, with exact derivatives."""
    return scipy.optimize.curve_fit(f, x, y, p0, jac=jacobian_of(f), **TIGHT, **options)


def assert_same_covariance(ours, theirs, rtol):
    size = np.sqrt(np.outer(np.diag(theirs), np.diag(theirs)))
    assert_allclose(ours / size, theirs / size, rtol=0, atol=rtol)


@pytest.fixture
def curves(monkeypatch):
    """The curves that were fitted, in order: to see whether f was compiled or called."""
    seen = []
    own = drop_in.solve

    def solve(fit, watch):
        seen.append(type(fit.curve))
        return own(fit, watch)

    monkeypatch.setattr(drop_in, "solve", solve)
    return seen


# --- the values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 1], ids=["far", "near"])
@pytest.mark.parametrize("name", nist_problems.MODELS)
def test_certified_values_are_found_with_default_settings(name, start, curves):
    problem = nist_problems.certified(name)
    popt, pcov = curve_fit(nist_problems.MODELS[name], problem.x, problem.y, problem.starts[start])
    assert curves == [Compiled]
    assert_allclose(popt, problem.values, rtol=1e-8)
    if name != "Lanczos1":  # whose residuals are below rounding
        assert_allclose(np.sqrt(np.diag(pcov)), problem.deviations, rtol=1e-6)


@pytest.mark.parametrize("name", nist_problems.MODELS)
def test_certified_values_are_found_by_finite_differences_too(name, curves):
    problem = nist_problems.certified(name)
    held = [nist_problems.MODELS[name], object()]  # an object may change unseen, so what reads it is called as it is
    popt, pcov = curve_fit(lambda x, *p: held[0](x, *p), problem.x, problem.y, problem.starts[1])
    assert curves == [Called]
    assert_allclose(popt, problem.values, rtol=1e-6)
    if name != "Lanczos1":
        assert_allclose(np.sqrt(np.diag(pcov)), problem.deviations, rtol=1e-6)


FAMILIES = {
    "decay": (decay, [2.5, 1.3, 0.5]),
    "peak": (lambda x, a, m, s, c: a * np.exp(-0.5 * ((x - m) / s) ** 2) + c, [4.0, 2.0, 0.5, 1.0]),
    "saturation": (lambda x, v, k: v * x / (k + x), [3.0, 0.7]),
    "sine": (lambda x, a, w, p: a * np.sin(w * x + p), [2.0, 2.2, 0.4]),
    "cubic": (lambda x, a, b, c, d: a + b * x + c * x**2 + d * x**3, [1.0, -2.0, 0.5, 0.1]),
}


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_covariance_are_scipys_on_fifty_problems(family, seed):
    f, truth = FAMILIES[family]
    generator = np.random.default_rng([seed, len(family)])
    truth = np.array(truth) * generator.uniform(0.8, 1.25, len(truth))
    n = int(generator.integers(12, 120))
    x = np.sort(generator.uniform(0, 4, n))
    sigma = generator.uniform(0.02, 0.2, n)
    y = f(x, *truth) + sigma * generator.standard_normal(n)
    start = truth * generator.uniform(0.9, 1.1, len(truth))
    options = [{}, {"sigma": sigma}, {"sigma": sigma, "absolute_sigma": True}, {"sigma": np.diag(sigma**2) + 1e-3}][seed % 4]
    theirs, ours = scipys(f, x, y, start, **options), curve_fit(f, x, y, start, **options)
    deviations = np.sqrt(np.diag(theirs[1]))
    assert_allclose(ours[0] / deviations, theirs[0] / deviations, rtol=0, atol=1e-6)
    assert_same_covariance(ours[1], theirs[1], 1e-6)


@pytest.mark.parametrize("loss", ["soft_l1", "huber", "cauchy", "arctan"])
def test_robust_losses_and_their_covariance_are_scipys(loss):
    x, y = noisy()
    y[7] += 3
    options = {"method": "trf", "loss": loss, "f_scale": 0.3}
    theirs, ours = scipys(decay, x, y, [2, 1, 0], **options), curve_fit(decay, x, y, [2, 1, 0], **options)
    assert_allclose(ours[0], theirs[0], rtol=1e-5)
    assert_same_covariance(ours[1], theirs[1], 1e-4)


def test_a_loss_of_ones_own_is_the_loss_of_that_name():
    x, y = noisy()
    own = curve_fit(
        decay, x, y, method="trf", f_scale=0.3, loss=lambda z: np.stack([np.log1p(z), 1 / (1 + z), -1 / (1 + z) ** 2])
    )
    named = curve_fit(decay, x, y, method="trf", f_scale=0.3, loss="cauchy")
    assert_allclose(own[0], named[0], rtol=1e-12)
    assert_allclose(own[1], named[1], rtol=1e-10)
    with pytest.raises(ValueError, match="wrong shape"):
        curve_fit(decay, x, y, method="trf", loss=lambda z: z)


def test_bounds_are_kept_and_the_covariance_is_scipys_which_takes_no_notice_of_them():
    x, y = noisy()
    box = ([0, 0, 0], [3, 1, np.inf])
    ours = curve_fit(decay, x, y, bounds=box)
    assert ours[0][1] == 1.0
    theirs = scipys(decay, x, y, [1, 0.5, 1], bounds=box)
    assert_allclose(ours[0], theirs[0], rtol=1e-6)
    assert_same_covariance(ours[1], theirs[1], 1e-5)
    assert_array_equal(curve_fit(decay, x, y, bounds=scipy.optimize.Bounds(*box))[0], ours[0])


def test_without_p0_a_fit_begins_where_scipys_does():
    begun = []

    def f(x, a, b, c, d):
        begun.append([a, b, c, d])
        return a + b * x + c * x**2 + d * x**3

    curve_fit(f, X, X**2, bounds=([0, 2, -np.inf, -np.inf], [4, np.inf, 9, np.inf]))
    assert begun[0] == [2, 3, 8, 1]


def test_a_covariance_matrix_whitens_as_the_formula_says():
    x, y = noisy(n=20)
    matrix = 0.04 * np.exp(-np.abs(x[:, None] - x) / 0.5)
    popt, pcov = curve_fit(decay, x, y, sigma=matrix, absolute_sigma=True)
    jacobian, weight = jacobian_of(decay)(x, *popt), inv(matrix)
    assert_allclose(jacobian.T @ weight @ (decay(x, *popt) - y), 0, atol=1e-6)
    assert_allclose(pcov, inv(jacobian.T @ weight @ jacobian), rtol=1e-8)


def test_an_infinite_sigma_is_a_point_without_weight():
    x, y = noisy()
    wrong, sigma = y.copy(), np.full(50, 0.2)
    wrong[3], sigma[3] = 1e3, np.inf
    weightless = curve_fit(decay, x, wrong, sigma=sigma, absolute_sigma=True)
    without = curve_fit(decay, np.delete(x, 3), np.delete(y, 3), sigma=0.2, absolute_sigma=True)
    assert_allclose(weightless[0], without[0], rtol=1e-9)
    assert_allclose(weightless[1], without[1], rtol=1e-9)


def test_scipys_example_of_parameters_of_very_different_size():
    y = decay(X, 500000, 0.01, 15)
    with pytest.raises(RuntimeError, match="Optimal parameters not found"):
        curve_fit(decay, X, y, method="trf")
    for units in {"method": "trf", "x_scale": [1000, 1, 1]}, {"diag": [0.001, 1, 1]}:
        popt, _ = curve_fit(decay, X, y, **units)
        assert_allclose(popt, [500000, 0.01, 15], rtol=1e-7)


def test_scipys_own_reference_that_is_not_met_is_short_of_the_minimum():
    generator = np.random.default_rng(408113519974467917)
    y = decay(X, 2.5, 1.3, 0.5) + 0.2 * generator.normal(size=50)
    reference = 0.0158972536486215  # of scipy's test_gh4555b
    ours, theirs = curve_fit(decay, X, y)[1], scipys(decay, X, y, [1, 1, 1])[1]
    assert_allclose(ours, theirs, rtol=1e-8)
    assert_allclose(scipy.optimize.curve_fit(decay, X, y)[1][0, 0], reference, rtol=2e-7)
    assert abs(theirs[0, 0] / reference - 1) > 2e-7


# --- f in all its forms ------------------------------------------------------------------------------------------------


class Line:
    def __call__(self, x, a, b):
        return a * x + b

    def method(self, x, a, b):
        return a * x + b


@pytest.mark.parametrize(
    ("f", "p0"),
    [
        (lambda x, a, b: a * x + b, None),
        (lambda x, *p: p[0] * x + p[1], [1, 1]),
        (lambda x, a, b, power=1: a * x**power + b, [1, 1]),
        (Line(), None),
        (Line().method, None),
        (lambda x, a, b: [a * number + b for number in x], None),
        (lambda x, a, b: tuple(a * x + b), None),
        (lambda x, a, b: pd.Series(a * x + b), None),
        (lambda x, a, b: (a * x + b)[:, None], None),
        (np.vectorize(lambda x, a, b: a * x + b), [1, 1]),
    ],
)
def test_f_may_be_anything_that_gives_a_value_per_point(f, p0):
    y = 2 * X + 1 + np.random.default_rng(1).normal(0, 0.1, 50)
    popt, pcov = curve_fit(f, X, y, p0)
    expected, covariance = np.polyfit(X, y, 1, cov=True)
    assert_allclose(popt, expected, rtol=1e-8)
    assert_allclose(pcov, covariance, rtol=1e-6)


@pytest.mark.parametrize(
    ("f", "x", "compiled"),
    [
        (lambda x, a, b: a * x[0] + b * x[1], np.stack([X, X**2]), True),
        (lambda x, a, b: a * x[0, :] + b * x[..., 1, :], np.stack([X, X**2]), True),
        (lambda x, a, b: sum(k * column for k, column in zip((a, b), x, strict=True)), (X, X**2), True),
        (lambda x, a, b: a * x[:, 0] + b * x[..., 1], np.stack([X, X**2], axis=1), True),
        (lambda x, a, b: a * x.T[0] + b * x.T[1], np.stack([X, X**2], axis=1), True),
        (lambda x, a, b: np.dot([a, b], x), np.stack([X, X**2]), False),
        (lambda x, a, b: a * x["x"] + b * x["x"] ** 2, pd.DataFrame({"x": X}), False),
        (lambda x, a, b: a * x.values + b * x.values**2, pd.Series(X), False),
        (lambda x, a, b: a * x + b * x**2, pd.Series(X), True),
        (lambda x, a, b: a * x + b * x**2, X.astype(np.float32).astype(float), True),
        (lambda x, a, b: a * X + b * X**2, None, False),
        (lambda x, a, b: (a * x[0] + b * x[0] ** 2).ravel(), np.stack([X.reshape(5, 10)] * 2), False),
    ],
)
def test_x_may_be_anything_that_f_takes(f, x, compiled, curves):
    y = 2 * X - 0.5 * X**2 + np.random.default_rng(1).normal(0, 0.1, 50)
    popt, _ = curve_fit(f, x, y)
    assert_allclose(popt, np.linalg.lstsq(np.stack([X, X**2], axis=1), y, rcond=None)[0], rtol=1e-6)
    assert curves == [Compiled if compiled else Called]


def test_single_precision_and_whole_numbers_are_fitted_in_double_precision():
    x, y = np.arange(6), np.array([1, 1, 5, 7, 8, 12])
    for kind in np.int64, np.float32:
        popt, _ = curve_fit(lambda x, a, b: a * x + b, x.astype(kind), y.astype(kind))
        assert popt.dtype == np.float64
        assert_allclose(popt, np.polyfit(x, y, 1), rtol=1e-12)


def test_a_number_as_y_is_that_number_at_every_point():
    target = 2 * X + 1 + np.sin(9 * X)
    popt, _ = curve_fit(lambda x, a, b: a * x + b - target, X, 0)
    assert_allclose(popt, np.polyfit(X, target, 1), rtol=1e-8)


def test_the_same_f_is_compiled_once_and_serves_other_data(curves, monkeypatch):
    built = []
    own = drop_in.Traced.compile
    monkeypatch.setattr(drop_in.Traced, "compile", lambda self, *rest: built.append(self) or own(self, *rest))
    for seed in range(3):
        x, y = noisy(seed, n=30 + seed)
        popt, _ = curve_fit(lambda x, a, b, c: a * np.exp(-b * x) + c + 0.0 * 7, x, y)
        assert_allclose(popt, scipys(decay, x, y, [1, 1, 1])[0], rtol=1e-6)
    assert len(built) == 1
    assert curves == [Compiled] * 3


K = 0.0


def by_closure(k):
    return lambda x, a, b: a * np.exp(-b * x) + k


def by_default(k):
    return lambda x, a, b, k=k: a * np.exp(-b * x) + k


def by_partial(k):
    return functools.partial(lambda x, a, b, k: a * np.exp(-b * x) + k, k=k)


def by_global(k):
    global K
    K = k
    return lambda x, a, b: a * np.exp(-b * x) + K


@pytest.mark.parametrize("capturing", [by_closure, by_default, by_partial, by_global])
def test_a_function_that_captures_another_number_each_time_is_compiled_once(capturing, curves, monkeypatch):
    built = []
    own = drop_in.Traced._compiled
    monkeypatch.setattr(drop_in.Traced, "_compiled", lambda self, *rest: built.append(self) or own(self, *rest))
    x, y = noisy()
    for k in 0.1, 0.2, -0.3:
        f = capturing(k)
        theirs, ours = scipys(f, x, y, [1, 1]), curve_fit(f, x, y, [1, 1])
        assert_allclose(ours[0], theirs[0], rtol=1e-6)
        assert_same_covariance(ours[1], theirs[1], 1e-6)
    assert len(built) == 1
    assert curves == [Compiled] * 3


@pytest.mark.parametrize(
    "capturing",
    [
        lambda k: lambda x, a, b: a * np.exp(-b * x) + (k if k > 0 else 1.0),
        lambda k: lambda x, a, b: a * np.exp(-b * x) + float(k),
        lambda k: lambda x, a, b: a * np.exp(-b * x) + round(k),
        lambda k: lambda x, a, b: a * np.exp(-b * x) + np.array([k, 1.0])[0],
        lambda k: lambda x, a, b: a * np.exp(-b * x) + {0.1: 1.0}.get(k, 0.0),
        lambda k: lambda x, a, b, limit=np.inf: a * np.exp(-b * x) + np.minimum(k, limit),
    ],
)
def test_a_captured_number_that_decides_what_is_computed_is_no_argument(capturing, curves):
    x, y = noisy()
    for k in 0.1, 0.7, -0.8:
        f = capturing(k)
        assert_allclose(curve_fit(f, x, y, [1, 1])[0], scipys(f, x, y, [1, 1])[0], rtol=1e-6)


def test_an_f_that_cannot_be_compiled_is_tried_once(curves, monkeypatch):
    built = []
    own = drop_in.Traced._compiled
    monkeypatch.setattr(drop_in.Traced, "_compiled", lambda self, *rest: built.append(self) or own(self, *rest))
    for seed in range(3):
        x, y = noisy(seed)
        curve_fit(lambda x, a, b: a * np.interp(x, [0, 4], [0, 4]) + b, x, y)
    assert len(built) == 1
    assert curves == [Called] * 3


def test_side_effects_of_f_happen_with_numbers_as_in_scipy():
    log = []

    def f(x, a, b):
        log.append((a, b))
        return a * x + b

    popt, _ = curve_fit(f, X, 2 * X + 1)
    assert_allclose(popt, [2, 1], rtol=1e-9)
    assert len(log) > 3
    assert all(type(number) is np.float64 for call in log for number in call)


def test_a_peak_far_from_zero_is_differenced_in_steps_of_its_width():
    x = 574.1 + np.linspace(0, 0.2, 60)
    y = 1700 * np.exp(-0.5 * ((x - 574.18) / 0.01) ** 2) + 850 + np.random.default_rng(0).normal(0, 20, 60)

    def f(x, a, m, s, c):
        return a * np.exp(-0.5 * ((x - m) / s) ** 2) + c

    holder = [f, object()]
    called = curve_fit(lambda x, *p: holder[0](x, *p), x, y, [1000, 574.175, 0.02, 800])
    exact = curve_fit(f, x, y, [1000, 574.175, 0.02, 800])
    assert_allclose(called[0], exact[0], rtol=1e-8)
    assert_allclose(called[1], exact[1], rtol=1e-5, atol=1e-8 * np.abs(exact[1]).max())


def test_a_broken_line_is_fitted_at_its_kink():
    x = np.arange(1, 16.0)
    y = np.array([5, 7, 9, 11, 13, 15, 28.92, 42.81, 56.7, 70.59, 84.47, 98.36, 112.25, 126.14, 140.03])

    def broken(x, x0, y0, k1, k2):
        return np.piecewise(x, [x < x0], [lambda x: k1 * x + y0 - k1 * x0, lambda x: k2 * x + y0 - k2 * x0])

    ours, theirs = curve_fit(broken, x, y), scipy.optimize.curve_fit(broken, x, y)
    assert_allclose(ours[0], theirs[0], rtol=1e-6)
    assert_allclose(ours[1], theirs[1], rtol=1e-4, atol=1e-10)


def test_a_differential_equation_is_fitted_through_its_solver():
    y = 3 * np.exp(-0.7 * X) + 0.01 * np.sin(31 * X)

    def f(t, rate, begin):
        return odeint(lambda y, t: -rate * y, begin, t)[:, 0]

    popt, pcov = curve_fit(f, X, y)
    exact = curve_fit(lambda x, rate, begin: begin * np.exp(-rate * x), X, y)
    assert_allclose(popt, exact[0], rtol=1e-5)
    assert_allclose(pcov, exact[1], rtol=1e-3)


def test_a_minimum_that_only_the_values_show_is_found_and_said_to_be_one():
    x, y = noisy()
    with pytest.warns(FitWarning, match="not by its derivative"):
        popt, _ = curve_fit(lambda x, a, b, c: np.round(decay(x, a, b, c), 6), x, y)
    exact, covariance = curve_fit(decay, x, y)
    assert (np.abs(popt - exact) < 0.05 * np.sqrt(np.diag(covariance))).all()


# --- derivatives -------------------------------------------------------------------------------------------------------


def test_a_jac_is_used_where_it_is_given():
    x, y = noisy()
    calls = []

    def jac(x, *p):
        calls.append(p)
        return jacobian_of(decay)(x, *p)

    for method in "lm", "trf", "dogbox":
        popt, pcov = curve_fit(decay, x, y, jac=jac, method=method, sigma=np.full(50, 3.0))
        assert_allclose(popt, curve_fit(decay, x, y)[0], rtol=1e-9)
        assert_allclose(pcov, curve_fit(decay, x, y)[1], rtol=1e-8)
    assert len(calls) > 9
    rows = curve_fit(decay, x, y, jac=lambda *p: jac(*p).T, col_deriv=True)
    assert_allclose(rows[1], pcov, rtol=1e-10)


def test_a_wrong_jac_is_an_error():
    x, y = noisy()
    with pytest.raises(RuntimeError, match=r"Optimal parameters not found.*check jac"):
        curve_fit(decay, x, y, jac=lambda *p: -jacobian_of(decay)(*p))
    with pytest.raises(TypeError, match="wrong shape"):
        curve_fit(decay, x, y, jac=lambda *p: jacobian_of(decay)(*p).T)
    with pytest.raises(ValueError, match="`jac` must be"):
        curve_fit(decay, x, y, jac="4-point")


@pytest.mark.parametrize("scheme", ["2-point", "3-point", "cs"])
def test_schemes_of_differences_reach_the_minimum(scheme):
    x, y = noisy()
    held = [decay, object()]
    for f in decay, lambda x, *p: held[0](x, *p):
        popt, pcov = curve_fit(f, x, y, [1, 1, 1], jac=scheme, method="trf")
        assert_allclose(popt, curve_fit(decay, x, y)[0], rtol=1e-8)
        assert_allclose(pcov, curve_fit(decay, x, y)[1], rtol=1e-6)


# --- what comes back ---------------------------------------------------------------------------------------------------


def test_full_output_holds_a_factorisation_whose_covariance_is_pcov():
    x, y = noisy()
    sigma = np.linspace(0.1, 0.3, 50)
    popt, pcov, info, message, ier = curve_fit(decay, x, y, sigma=sigma, absolute_sigma=True, full_output=True)
    assert ier in (1, 2, 3, 4)
    assert "minimum" in message
    assert info["nfev"] > 3
    residual = (decay(x, *popt) - y) / sigma
    assert_allclose(info["fvec"], residual, rtol=1e-12)
    assert info["fjac"].shape == (3, 50)
    inverse = np.empty((3, 3))
    inverse[info["ipvt"]] = inv(np.triu(info["fjac"].T[:3]))
    assert_allclose(inverse @ inverse.T, pcov, rtol=1e-9)
    jacobian = jacobian_of(decay)(x, *popt) / sigma[:, None]
    upper = np.triu(info["fjac"].T[:3])
    assert_allclose(upper.T @ info["qtf"], (jacobian.T @ residual)[info["ipvt"]], atol=1e-7)
    assert (np.diff(np.abs(np.diag(upper))) <= 0).all()


def test_full_output_of_the_other_methods_is_scipys():
    x, y = noisy()
    for method in "trf", "dogbox":
        info, message, ier = curve_fit(decay, x, y, method=method, full_output=True)[2:]
        assert set(info) == {"nfev", "fvec"}
        assert isinstance(message, str)
        assert ier in (1, 2, 3, 4)


@pytest.mark.parametrize("method", ["lm", "trf", "dogbox"])
@pytest.mark.parametrize(
    ("f", "why"),
    [
        (lambda x, a, b, c: (a + b) * x + c, "do not determine a, b"),
        (lambda x, a, b, c: a * x + c, "depends on b"),
        (lambda x, a, b, c: a * b * np.exp(-x) + c, "do not determine a, b"),
    ],
)
def test_a_covariance_that_the_data_do_not_give_is_infinite_and_said_to_be(f, why, method):
    x, y = noisy()
    with pytest.warns(OptimizeWarning, match=f"Covariance of the parameters could not be estimated: .*{why}") as caught:
        popt, pcov = curve_fit(f, x, y, [1.0, 2.0, 3.0], method=method)
    assert issubclass(caught[0].category, GradfitWarning)
    assert caught[0].filename == __file__
    assert (pcov == np.inf).all()
    residual = f(x, *popt) - y
    assert_allclose(jacobian_of(f)(x, *popt).T @ residual, 0, atol=1e-8)


def test_as_many_points_as_parameters_leave_no_noise_to_estimate():
    x, y = np.array([0.0, 1.0, 3.0]), np.array([3.0, 2.0, 1.2])
    with pytest.warns(OptimizeWarning, match="could not be estimated"):
        popt, pcov = curve_fit(decay, x, y)
    assert (pcov == np.inf).all()
    assert_allclose(decay(x, *popt), y, rtol=1e-12)
    _, measured = curve_fit(decay, x, y, sigma=0.1, absolute_sigma=True)
    jacobian = jacobian_of(decay)(x, *popt) / 0.1
    assert_allclose(measured, inv(jacobian.T @ jacobian), rtol=1e-7)


def test_fewer_points_than_parameters_are_refused_by_lm_and_solved_by_the_others():
    x, y = np.array([0.0, 1.0]), np.array([3.0, 2.0])
    with pytest.raises(TypeError, match="The number of func parameters=3 must not exceed the number of data points=2"):
        curve_fit(decay, x, y)
    with pytest.raises(TypeError, match="Improper input: func input vector length N=2"):
        curve_fit(lambda x, a, b: a + b, x[:1], 2.0)
    with pytest.warns(OptimizeWarning, match="could not be estimated"):
        popt, _ = curve_fit(decay, x, y, method="trf")
    assert_allclose(decay(x, *popt), y, rtol=1e-9)


def test_exact_data_are_fitted_exactly():
    popt, pcov = curve_fit(decay, X, decay(X, 2.0, 3.0, 1.0))
    assert_allclose(popt, [2, 3, 1], rtol=1e-12)
    assert (np.diag(pcov) < 1e-20).all()


# --- mistakes ----------------------------------------------------------------------------------------------------------

_, Y = noisy()
WITH_NAN = np.where(np.arange(50) == 3, np.nan, Y)
MISTAKES = {
    "y of two dimensions": ((decay, X, np.stack([Y, Y])), {}, ValueError, "ravel"),
    "y as a column": ((decay, X, Y[:, None]), {}, ValueError, "one value per point"),
    "no points": ((decay, [], []), {}, ValueError, "must not be empty"),
    "complex y": ((decay, X, Y + 1j), {}, ValueError, "real numbers"),
    "text": ((decay, X, ["a"] * 50), {}, ValueError, "real numbers"),
    "NaN": ((decay, X, WITH_NAN), {}, ValueError, "infs or NaNs"),
    "NaN in x": ((decay, WITH_NAN, Y), {}, ValueError, "infs or NaNs"),
    "NaN in a Series": ((decay, pd.Series(WITH_NAN), Y), {}, ValueError, "infs or NaNs"),
    "NaN not checked": ((decay, X, WITH_NAN), {"check_finite": False}, ValueError, "not finite in the initial point"),
    "NaN by policy": ((decay, X, WITH_NAN), {"nan_policy": "raise"}, ValueError, "The input contains nan"),
    "policy propagate": ((decay, X, Y), {"nan_policy": "propagate"}, ValueError, "not supported"),
    "policy unknown": ((decay, X, Y), {"nan_policy": "hi"}, ValueError, "nan_policy must be one of"),
    "only NaN": ((decay, X, np.full(50, np.nan)), {"nan_policy": "omit"}, ValueError, "no point is left"),
    "masked": ((decay, X, np.ma.array(Y, mask=np.arange(50) == 3)), {}, ValueError, "masked values count as NaN"),
    "sigma zero": ((decay, X, Y), {"sigma": np.where(np.arange(50) == 3, 0.0, 1.0)}, ValueError, "zero, negative or NaN for 1"),
    "sigma negative": ((decay, X, Y), {"sigma": -1.0}, ValueError, "zero, negative or NaN"),
    "sigma NaN": ((decay, X, Y), {"sigma": WITH_NAN}, ValueError, "zero, negative or NaN"),
    "sigma too short": ((decay, X, Y), {"sigma": np.ones(7)}, ValueError, "`sigma` has incorrect shape"),
    "sigma no covariance": ((decay, X, Y), {"sigma": -np.eye(50)}, ValueError, "positive definite"),
    "sigma not symmetric": ((decay, X, Y), {"sigma": np.eye(50) + np.eye(50, k=1) / 9}, ValueError, "symmetric"),
    "p0 too long": ((decay, X, Y, [1, 1, 1, 1]), {}, TypeError, "does not take 4 parameters"),
    "p0 too short": ((decay, X, Y, [1, 1]), {}, TypeError, "does not take 2 parameters"),
    "p0 complex": ((decay, X, Y, [1j, 1, 1]), {}, ValueError, "must be real"),
    "p0 not finite": ((decay, X, Y, [np.nan, 1, 1]), {}, ValueError, "one finite starting value"),
    "no parameters": ((lambda x: x, X, Y), {}, ValueError, "Unable to determine number of fit parameters"),
    "parameters not named": ((lambda x, *p: x, X, Y), {}, ValueError, "Unable to determine number of fit parameters"),
    "no value at the start": ((lambda x, a, b: np.where(x + a < 0, np.nan, b), X, Y, [-1, 1]), {}, ValueError, "initial point.*a = -1, b = 1"),
    "bounds reversed": ((decay, X, Y), {"bounds": (1, 0)}, ValueError, "Each lower bound must be strictly less"),
    "bounds of another length": ((decay, X, Y), {"bounds": ([0, 0], 1)}, ValueError, "Inconsistent shapes"),
    "three bounds": ((decay, X, Y), {"bounds": (0, 1, 2)}, ValueError, "must contain 2 elements"),
    "outside": ((decay, X, Y, [5, 5, 5]), {"bounds": (0, 1)}, ValueError, "Initial guess is outside of provided bounds"),
    "lm with bounds": ((decay, X, Y), {"bounds": (0, 1), "method": "lm"}, ValueError, "only works for unconstrained"),
    "method unknown": ((decay, X, Y), {"method": "unknown"}, ValueError, "`method` must be"),
    "option unknown": ((decay, X, Y), {"ftoll": 1e-9}, TypeError, "Did you mean 'ftol'"),
    "args": ((decay, X, Y), {"args": (1,)}, ValueError, "'args' is not a supported"),
    "loss of lm": ((decay, X, Y), {"loss": "cauchy"}, TypeError, "option of method 'lm'"),
    "loss unknown": ((decay, X, Y), {"loss": "tukey", "method": "trf"}, ValueError, "`loss` must be"),
    "f_scale": ((decay, X, Y), {"loss": "cauchy", "f_scale": 0, "method": "trf"}, ValueError, "f_scale"),
    "tolerance": ((decay, X, Y), {"ftol": -1}, ValueError, "0 or more"),
    "x_scale": ((decay, X, Y), {"x_scale": [1, 2], "method": "trf"}, ValueError, "Inconsistent shapes between `x_scale`"),
    "diag": ((decay, X, Y), {"diag": [1, 0, 1]}, ValueError, "expected positive numbers"),
    "tr_solver": ((decay, X, Y), {"tr_solver": "qr", "method": "trf"}, ValueError, "`tr_solver` must be"),
    "verbose": ((decay, X, Y), {"verbose": 3, "method": "trf"}, ValueError, "`verbose` must be"),
    "max_nfev": ((decay, X, Y), {"max_nfev": 0, "method": "trf"}, ValueError, "max_nfev"),
    "nothing returned": ((lambda x, a: None, X, Y), {}, TypeError, "gave None"),
    "complex values": ((lambda x, a: a * x + 0j, X, Y), {}, TypeError, "expected real numbers"),
    "a wrong number of values": ((lambda x, a: a * x[1:], X, Y), {}, ValueError, "gave shape .49,. for 50 points"),
    "a table of values": ((lambda x, a: a * np.outer(x, x), X, Y), {}, ValueError, "one value per point"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_raise_what_scipy_would_and_are_gradfits(mistake):
    arguments, options, kind, words = MISTAKES[mistake]
    with pytest.raises(kind, match=words) as caught:
        curve_fit(*arguments, **options)
    assert isinstance(caught.value, GradfitError)


def test_points_with_nan_or_a_mask_are_left_out_on_request_with_their_sigma():
    sigma = np.linspace(0.1, 0.3, 50)
    keep = np.arange(50) != 3
    expected = curve_fit(decay, X[keep], Y[keep], sigma=sigma[keep])
    masked = np.ma.array(np.where(keep, Y, 1e3), mask=~keep)
    for x, y in [(X, WITH_NAN), (np.where(keep, X, np.nan), Y), (X, masked), (pd.Series(X), WITH_NAN)]:
        found = curve_fit(decay, x, y, sigma=sigma, nan_policy="omit")
        assert_array_equal(found[0], expected[0])
        assert_array_equal(found[1], expected[1])
    with pytest.raises(DataError, match="no points can be left out"):
        curve_fit(lambda x, a: a * x["x"], {"x": X}, WITH_NAN, nan_policy="omit")


def test_an_exception_of_f_comes_through():
    class Own(Exception):
        pass

    def f(x, a):
        if a != 1:
            raise Own("at another point")
        return a * x

    with pytest.raises(Own):
        curve_fit(f, X, Y)


@pytest.mark.filterwarnings("ignore:the sum of squares is lowest here")
def test_an_f_that_changes_x_is_refused_and_x_put_back():
    x = X.copy()

    def f(x, a, b):
        x *= a
        return x + b

    with pytest.raises(ValueError, match="in place"):
        curve_fit(f, x, Y, [2.0, 1.0])
    held = [f, object()]
    with pytest.raises(ValueError, match="in place"):  # which the first call, times 1, does not show
        curve_fit(lambda x, *p: held[0](x, *p), x, Y, [1.0, 1.0])
    assert_allclose(curve_fit(f, x, Y, [1.0, 1.0])[0], np.polyfit(X, Y, 1), rtol=1e-8)  # compiled, it changes nothing
    assert_array_equal(x, X)


def test_a_fit_that_runs_away_is_no_success():
    x = np.linspace(0, 10, 60)
    y = 5 * np.exp(-((x - 4) ** 2) / 2) + 0.5 + np.random.default_rng(0).normal(0, 0.1, 60)

    def peak(x, a, b, s, c):
        return a * np.exp(-((x - b) ** 2) / (2 * s**2)) + c

    with pytest.raises(RuntimeError, match="Optimal parameters not found"):
        scipy.optimize.curve_fit(peak, x, y, [5, -3, 0.5, 3])
    with pytest.raises(FitError, match="Optimal parameters not found: no minimum within 1000 steps; give p0 closer to it"):
        curve_fit(peak, x, y, [5, -3, 0.5, 3])


def test_a_far_start_whose_long_first_steps_run_away_is_tried_again_in_other_steps():
    x = np.linspace(0, 10, 60)
    generator = np.random.default_rng(3)

    def lorentz(x, a, b, s):
        return a / (1 + ((x - b) / s) ** 2)

    y = lorentz(x, 5, 4, 1) + 0.1 * generator.normal(size=60)
    reached = [curve_fit(lorentz, x, y, np.array([5, 4, 1]) * np.exp(generator.normal(0, 0.8, 3)))[0] for _ in range(20)]
    assert_allclose(np.abs(reached), np.broadcast_to([5, 4, 1], (20, 3)), rtol=0.1)


# --- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("f", [decay, lambda x, *p: HELD[0](x, *p)], ids=["compiled", "called"])
def test_the_number_of_evaluations_is_kept(f):
    x, y = noisy()
    needed = curve_fit(f, x, y, [1, 1, 1], full_output=True)[2]["nfev"]
    for name, method in ("maxfev", "lm"), ("max_nfev", "trf"), ("maxfev", "trf"):
        options = {"method": method, "p0": [1, 1, 1]}
        assert curve_fit(f, x, y, **options, **{name: needed}, full_output=True)[2]["nfev"] == needed
        with pytest.raises(
            RuntimeError, match="Optimal parameters not found: Number of calls to function has reached maxfev = 3"
        ):
            curve_fit(f, x, y, **options, **{name: 3})
    assert_allclose(curve_fit(f, x, y, [1, 1, 1], maxfev=0)[0], curve_fit(decay, x, y)[0], rtol=1e-8)


HELD = [decay, object()]


def test_the_step_of_differences_is_the_one_asked_for():
    tried = []

    def f(x, a, b):
        tried.append((float(a), float(b)))
        return np.asarray(a * x + b * HELD[2])

    HELD[2:] = [1.0]
    y = 2 * X + 1 + np.sin(9 * X)
    curve_fit(f, X, y, [10.0, 10.0], method="trf", diff_step=[1e-3, 1e-2])
    assert [tried[1][0], tried[2][0], tried[3][1], tried[4][1]] == pytest.approx([10.01, 9.99, 10.1, 9.9], rel=1e-12)
    tried.clear()
    curve_fit(f, X, y, [10.0, 10.0], epsfcn=1e-6)
    assert tried[1][0] == pytest.approx(10.1, rel=1e-12)


def test_options_without_effect_change_nothing():
    x, y = noisy()
    plain = curve_fit(decay, x, y)
    for options in (
        {"ftol": 1e-2, "xtol": 1e-2, "gtol": 1e-2},
        {"ftol": 0, "diag": [1, 10, 100]},
        {"method": "trf", "x_scale": [1, 1, 9], "tr_solver": "lsmr", "tr_options": {"regularize": False}, "workers": 2},
        {"method": "dogbox", "x_scale": "jac", "xtol": None},
    ):
        found = curve_fit(decay, x, y, **options)
        assert_array_equal(found[0], plain[0])
        assert_array_equal(found[1], plain[1])


def test_factor_bounds_the_first_step():
    x, y = noisy()
    lengths = []
    for factor in 0.1, 100:
        path = []

        def jac(x, *p, path=path):
            path.append(p)
            return jacobian_of(decay)(x, *p)

        curve_fit(decay, x, y, [20.0, 1.0, 1.0], factor=factor, jac=jac)
        lengths.append(np.linalg.norm(np.subtract(path[1], path[0])))
    assert lengths[0] < 0.5 * lengths[1]


def test_verbose_prints_and_a_callback_may_stop(capsys):
    x, y = noisy()
    curve_fit(decay, x, y, method="trf", verbose=1)
    assert capsys.readouterr().out.count("\n") == 2
    curve_fit(decay, x, y, method="trf", verbose=2)
    assert "Iteration" in capsys.readouterr().out
    seen = []
    popt, _ = curve_fit(decay, x, y, method="trf", callback=seen.append)
    assert_array_equal(seen[-1], popt)
    costs = []
    curve_fit(decay, x, y, method="trf", callback=lambda intermediate_result: costs.append(intermediate_result.cost))
    assert costs[-1] == pytest.approx(np.sum((decay(x, *popt) - y) ** 2) / 2)

    def stop(x):
        raise StopIteration

    with pytest.raises(RuntimeError, match="Optimal parameters not found: `callback`"):
        curve_fit(decay, x, y, method="trf", callback=stop)


# --- the house ---------------------------------------------------------------------------------------------------------


def test_it_has_scipys_signature():
    from inspect import signature

    ours, theirs = signature(gradfit.curve_fit).parameters, signature(scipy.optimize.curve_fit).parameters
    assert list(ours) == list(theirs)
    assert [each.kind for each in ours.values()] == [each.kind for each in theirs.values()]
    assert [each.default for each in ours.values()] == [each.default for each in theirs.values()]


def test_a_plain_fit_does_not_import_scipy_optimize():
    code = (
        "import sys, numpy as np, gradfit\n"
        "x = np.arange(9.0)\n"
        "gradfit.curve_fit(lambda x, a, b: a * x + b, x, 2 * x + np.sin(x))\n"
        "assert 'scipy.optimize' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_scipys_own_tests_pass():
    run = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "scipy_suite.py")],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert run.returncode == 0, run.stdout
    passed, total = map(int, re.search(r"(\d+) of (\d+) passed", run.stdout).groups())
    assert total > 40
    assert passed == total - run.stdout.count("fails as expected")
