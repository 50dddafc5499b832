"""Derived quantities against closed forms and the package uncertainties; bands of predictions for every kind of sigma."""

from __future__ import annotations

import builtins
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import uncertainties
from scipy import stats
from scipy.optimize import curve_fit
from uncertainties import umath

import gradfit

X = np.linspace(0, 5, 25)
Y = 3 * np.exp(-X / 1.5) + 0.5 + np.random.default_rng(11).normal(0, 0.15, 25)
LINE = 2 * X + 1 + np.random.default_rng(2).normal(0, 0.3, 25)
SIGMA = np.random.default_rng(12).uniform(0.05, 0.25, 25)


def line_fit(**options):
    return gradfit.fit("y = a*x + c", data={"x": X, "y": LINE}, **options)


@pytest.fixture
def decayed():
    return gradfit.fit("y = a*exp(-b*x) + c", data={"x": X, "y": Y}, start={"a": 3, "b": 0.7, "c": 0.5})


# --- closed forms -----------------------------------------------------------------------------------------------------------


def gradient_error(fit, gradient):
    gradient = np.array(gradient)
    return math.sqrt(gradient @ fit.covariance @ gradient)


@pytest.mark.parametrize(
    ("quantity", "value", "gradient"),
    [
        ("-c/a", lambda a, c: -c / a, lambda a, c: (c / a**2, -1 / a)),
        ("exp(a)", lambda a, c: math.exp(a), lambda a, c: (math.exp(a), 0)),
        ("a + c", lambda a, c: a + c, lambda a, c: (1, 1)),
        ("3*a - 2*c + 7", lambda a, c: 3 * a - 2 * c + 7, lambda a, c: (3, -2)),
        ("a", lambda a, c: a, lambda a, c: (1, 0)),
        (lambda c, a: torch.log(a) * c, lambda a, c: math.log(a) * c, lambda a, c: (c / a, math.log(a))),
        (lambda a: 5 / a, lambda a, c: 5 / a, lambda a, c: (-5 / a**2, 0)),
    ],
)
def test_errors_are_those_of_the_closed_form(quantity, value, gradient):
    fit = line_fit()
    a, c = fit.values["a"], fit.values["c"]
    found = fit.derive(quantity)
    own, error = found
    assert own == pytest.approx(value(a, c), rel=1e-14)
    assert error == pytest.approx(gradient_error(fit, gradient(a, c)), rel=1e-12)
    half = stats.t.ppf(0.975, 23) * error
    assert (found.lower, found.upper) == pytest.approx((own - half, own + half), rel=1e-12)
    assert found.reason == ""
    assert "±" in str(found)


def test_the_crossing_of_the_axis_is_that_of_the_package_uncertainties():
    fit = line_fit()
    numbers = fit.ufloats()
    expected = -numbers["c"] / numbers["a"]
    found = fit.derive("-c/a")
    assert (found.value, found.stderr) == pytest.approx((expected.nominal_value, expected.std_dev), rel=1e-8)


def test_a_new_parametrisation_has_the_error_of_its_own_fit(decayed):
    other = gradfit.fit("y = a*exp(-x/t) + c", data={"x": X, "y": Y}, start={"a": 3, "t": 1.5, "c": 0.5})
    found = decayed.derive("1/b")
    assert found.value == pytest.approx(other.values["t"], rel=1e-8)
    assert found.stderr == pytest.approx(other.params["t"].stderr, rel=1e-6)


def test_tied_and_fixed_parameters_count_as_what_they_are():
    fit = gradfit.fit("y = a*x + c + 0*(d + k)", data={"x": X, "y": LINE}, tied={"d": "2*a"}, fixed={"k": 4.0})
    plain = line_fit()
    assert fit.derive("d - 2*a").stderr == pytest.approx(0, abs=1e-9)
    assert fit.derive("d + c").stderr == pytest.approx(gradient_error(plain, (2, 1)), rel=1e-9)
    assert fit.derive("k*a").stderr == pytest.approx(4 * plain.params["a"].stderr, rel=1e-9)
    alone = fit.derive("k**2")
    assert (alone.value, alone.stderr, alone.lower, alone.upper) == (16.0, 0.0, 16.0, 16.0)


def test_elements_of_a_vector_are_reached_by_functions():
    def line(x, c):
        return c[0] * x + c[1]

    fit = gradfit.fit(line, X, LINE, start={"c": np.zeros(2)})
    plain = line_fit()
    found = fit.derive(lambda c: -c[1] / c[0])
    assert tuple(found) == pytest.approx(tuple(plain.derive("-c/a")), rel=1e-7)
    assert fit.derive(lambda c: c.sum()).stderr == pytest.approx(gradient_error(plain, (1, 1)), rel=1e-7)


# --- what the data determine ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_a_determined_combination_of_undetermined_parameters_has_its_error(engine):
    with pytest.warns(gradfit.UndeterminedWarning):
        fit = gradfit.fit("y = (a + b)*x + c", data={"x": X, "y": LINE}, engine=engine, start={"a": 0.5, "b": 1.0})
    plain = line_fit()
    more = math.sqrt(23 / 22)  # one more parameter was counted
    for quantity, gradient in (
        ("a + b", (1, 0)),
        ("c - 2*(a + b)", (-2, 1)),
        ("sqrt(a + b)", (0.5 / math.sqrt(plain.values["a"]), 0)),
    ):
        assert fit.derive(quantity).stderr == pytest.approx(more * gradient_error(plain, gradient), rel=1e-6)
    for quantity in ("a - b", "a", "a*b + c", "a + 1.001*b"):
        found = fit.derive(quantity)
        assert math.isnan(found.stderr)
        assert math.isnan(found.lower)
        assert "a + b" in found.reason
    assert fit.derive("c").stderr == pytest.approx(more * plain.params["c"].stderr, rel=1e-6)


def test_the_same_holds_for_finite_differences():
    def model(x, a, b, c):
        return np.interp(x, x, (a + b) * x + c)

    with pytest.warns(gradfit.UndeterminedWarning):
        fit = gradfit.fit(model, X, LINE, start={"a": 1, "b": 1, "c": 0})
    assert "finite differences" in " ".join(fit.warnings)
    expected = math.sqrt(23 / 22) * line_fit().params["a"].stderr
    assert fit.derive("a + b").stderr == pytest.approx(expected, rel=1e-4)
    assert math.isnan(fit.derive("a - b").stderr)


def test_combinations_with_fixed_and_tied_parameters_are_seen_through():
    with pytest.warns(gradfit.UndeterminedWarning):
        fit = gradfit.fit("y = (a + b)*x*k + c + 0*d", data={"x": X, "y": LINE}, fixed={"k": 2.0}, tied={"d": "a + b"})
    expected = math.sqrt(23 / 22) * line_fit().params["a"].stderr
    assert fit.derive("(a + b)*k").stderr == pytest.approx(expected, rel=1e-6)
    assert fit.derive("d*k").stderr == pytest.approx(expected, rel=1e-6)
    assert math.isnan(fit.derive("d - a").stderr)


def test_counts_have_determined_combinations_too():
    counts = np.random.default_rng(0).poisson(2 * X + 3).astype(float)
    with pytest.warns(gradfit.UndeterminedWarning):
        fit = gradfit.fit("y = (a + b)*x + c", data={"x": X, "y": counts}, loss="poisson", start={"a": 1, "b": 1, "c": 3})
    plain = gradfit.fit("y = a*x + c", data={"x": X, "y": counts}, loss="poisson", start={"a": 2, "c": 3})
    assert fit.derive("a + b").stderr == pytest.approx(plain.params["a"].stderr, rel=1e-4)


def test_what_depends_on_a_parameter_on_its_bound_has_no_error():
    fit = line_fit(bounds={"a": (None, 1.5)})
    for quantity in ("a", "a + c"):
        found = fit.derive(quantity)
        assert math.isnan(found.stderr)
        assert "at its bound" in found.reason
    assert fit.derive("2*c").stderr == pytest.approx(2 * fit.params["c"].stderr)


def test_no_degrees_of_freedom_leave_no_error():
    with pytest.warns(gradfit.UndeterminedWarning):
        fit = gradfit.fit("y = a*x + b", data={"x": [0.0, 1.0], "y": [1.0, 3.0]})
    found = fit.derive("a*b")
    assert found.value == pytest.approx(2)
    assert math.isnan(found.stderr)
    assert "degree of freedom" in found.reason


def test_where_the_first_order_tells_nothing_no_error_is_given():
    fit = line_fit()
    own = fit.values["a"]
    flat = fit.derive(lambda a: (a - own) ** 2)
    assert math.isnan(flat.stderr)
    assert "first order" in flat.reason
    for quantity in (lambda a: 1 / (a - own), lambda a: torch.log(a - own), lambda a: torch.sqrt(a - own)):
        found = fit.derive(quantity)
        assert math.isnan(found.stderr)
        assert "not finite" in found.reason


def test_a_loss_without_errors_gives_none_to_what_is_derived():
    with pytest.warns(gradfit.FitWarning):
        fit = gradfit.fit("y = a*exp(-b*x) + c", data={"x": X, "y": Y}, start={"a": 1, "b": 5, "c": 9}, max_steps=1)
    found = fit.derive("a/c")
    assert math.isnan(found.stderr)
    assert "did not reach its minimum" in found.reason


def test_a_loaded_result_derives_as_the_fit_did(tmp_path, decayed):
    decayed.save(tmp_path / "fit.json")
    loaded = gradfit.load(tmp_path / "fit.json")
    for quantity in ("a*b", "1/b", lambda a, c: a / c):
        assert tuple(loaded.derive(quantity)) == pytest.approx(tuple(decayed.derive(quantity)), rel=1e-14)
    with pytest.warns(gradfit.UndeterminedWarning):
        gradfit.fit("y = (a + b)*x + c", data={"x": X, "y": LINE}).save(tmp_path / "fit.json")
    found = gradfit.load(tmp_path / "fit.json").derive("a + b")
    assert math.isnan(found.stderr)  # the rows that tell are not kept
    assert "a + b" in found.reason


# --- what cannot be read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quantity", "error", "told"),
    [
        ("a +", gradfit.ModelError, "a +"),
        ("y = a*c", gradfit.ModelError, "without '='"),
        ("a*q", gradfit.ParameterError, "'q'"),
        ("x*a", gradfit.ParameterError, "'x'"),
        ("__import__('os')", gradfit.ModelError, "__import__"),
        (3.0, gradfit.ModelError, "3.0"),
        (None, gradfit.ModelError, "None"),
        (lambda q: q, gradfit.ParameterError, "'q'"),
        (lambda a: "text", gradfit.ModelError, "torch functions"),
        (lambda a: None, gradfit.ModelError, "torch functions"),
        (lambda a: torch.stack([a, a]), gradfit.ModelError, "one real number"),
        (lambda a: a * 1j, gradfit.ModelError, "one real number"),
        (lambda a: a.detach() ** 2, gradfit.ModelError, "does not depend"),
        (lambda a: np.exp(a), gradfit.ModelError, "torch functions"),
        (lambda a: 1 / 0, gradfit.ModelError, "ZeroDivisionError"),
    ],
)  # fmt: skip
def test_what_is_no_quantity_is_refused(quantity, error, told):
    with pytest.raises(error, match=told):
        line_fit().derive(quantity)


# --- uncertainties ----------------------------------------------------------------------------------------------------------


def test_ufloats_have_values_and_covariance_of_the_fit(decayed):
    numbers = decayed.ufloats()
    assert list(numbers) == list(decayed.values)
    assert [number.nominal_value for number in numbers.values()] == pytest.approx(list(decayed.values.values()), rel=1e-14)
    np.testing.assert_allclose(uncertainties.covariance_matrix(list(numbers.values())), decayed.covariance, rtol=1e-8)
    product = numbers["a"] * umath.exp(-2 * numbers["b"])
    found = decayed.derive("a*exp(-2*b)")
    assert (product.nominal_value, product.std_dev) == pytest.approx(tuple(found), rel=1e-8)


def test_ufloats_of_all_sizes_keep_their_correlations():
    fit = gradfit.fit("y = a*x + c", data={"x": X * 1e8, "y": LINE * 1e-8})
    numbers = fit.ufloats()
    np.testing.assert_allclose(uncertainties.covariance_matrix(list(numbers.values())), fit.covariance, rtol=1e-8)


def test_ufloats_of_fixed_tied_and_undetermined_parameters():
    with pytest.warns(gradfit.UndeterminedWarning):
        fit = gradfit.fit("y = (a + b)*x + c + 0*(d + k)", data={"x": X, "y": LINE}, tied={"d": "2*c"}, fixed={"k": 4.0})
    numbers = fit.ufloats()
    assert math.isnan(numbers["a"].std_dev)
    assert numbers["k"].std_dev == 0
    assert numbers["k"].nominal_value == 4
    assert numbers["c"].std_dev == pytest.approx(fit.params["c"].stderr, rel=1e-8)
    assert (numbers["d"] - 2 * numbers["c"]).std_dev == pytest.approx(0, abs=1e-6)


def test_ufloats_of_a_loaded_result_are_the_same(tmp_path, decayed):
    decayed.save(tmp_path / "fit.json")
    numbers = gradfit.load(tmp_path / "fit.json").ufloats()
    np.testing.assert_allclose(uncertainties.covariance_matrix(list(numbers.values())), decayed.covariance, rtol=1e-8)


def test_without_the_package_it_is_said_what_to_install(decayed, monkeypatch):
    real = builtins.__import__

    def hidden(name, *arguments, **options):
        if name.partition(".")[0] == "uncertainties":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", hidden)
    with pytest.raises(gradfit.MissingDependencyError, match=r"pip install 'gradfit\[uncertainties\]'"):
        decayed.ufloats()


def test_the_package_is_imported_by_nobody_else():
    code = "import sys, gradfit, json; print(json.dumps('uncertainties' in sys.modules))"
    assert json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) is False


# --- bands ------------------------------------------------------------------------------------------------------------------


def band_oracle(design, new, inverse, noise):
    """Generalised least squares: value, and standard deviations of the curve and of one more point of that noise."""
    spread = np.linalg.inv(design.T @ inverse @ design)
    theta = spread @ design.T @ inverse @ LINE
    residual = LINE - design @ theta
    scale = residual @ inverse @ residual / (len(LINE) - 2)
    variance = np.einsum("ij,jk,ik->i", new, spread, new)
    return new @ theta, scale, variance, variance + noise**2


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("kind", ["none", "sigma", "matrix", "weights"])
def test_bands_are_those_of_generalised_least_squares(kind, absolute):
    matrix = 0.04 * (0.5 ** np.abs(np.subtract.outer(range(25), range(25))))
    inverse, options = {
        "none": (np.eye(25), {}),
        "sigma": (np.diag(SIGMA**-2), {"sigma": SIGMA, "absolute_sigma": absolute}),
        "matrix": (np.linalg.inv(matrix), {"sigma": matrix, "absolute_sigma": absolute}),
        "weights": (np.diag(SIGMA**-2 / np.mean(SIGMA**-2)), {"weights": SIGMA**-2}),
    }[kind]
    if kind in ("none", "weights") and absolute:
        pytest.skip("absolute_sigma is of a sigma")
    fit = line_fit(**options)
    x = np.array([-1.0, 2.0, 7.0])
    value, scale, curve, point = band_oracle(np.column_stack([X, np.ones(25)]), np.column_stack([x, np.ones(3)]), inverse, 0.3)
    t = stats.norm.ppf(0.975) if absolute else stats.t.ppf(0.975, 23)
    scale = 1.0 if absolute else scale
    found = fit.predict(x, interval="confidence")
    np.testing.assert_allclose(found.value, value, rtol=1e-9)
    np.testing.assert_allclose(found.upper - found.value, t * np.sqrt(scale * curve), rtol=1e-7)
    np.testing.assert_allclose(found.value - found.lower, t * np.sqrt(scale * curve), rtol=1e-7)
    if kind == "none":
        return
    found = fit.predict(x, interval="prediction", sigma=0.3)
    np.testing.assert_allclose(found.upper - found.value, t * np.sqrt(scale * point), rtol=1e-7)
    with pytest.raises(gradfit.DataError, match="pass sigma="):
        fit.predict(x, interval="prediction")


def test_bands_of_a_nonlinear_fit_are_those_of_scipys_covariance(decayed):
    def decay(x, a, b, c):
        return a * np.exp(-b * x) + c

    popt, pcov = curve_fit(decay, X, Y, p0=[3, 0.7, 0.5], ftol=1e-14, xtol=1e-14, gtol=1e-14)
    slopes = np.column_stack([np.exp(-popt[1] * X), -popt[0] * X * np.exp(-popt[1] * X), np.ones(25)])
    expected = stats.t.ppf(0.975, 22) * np.sqrt(np.einsum("ij,jk,ik->i", slopes, pcov, slopes))
    found = decayed.predict(X, interval="confidence")
    np.testing.assert_allclose(found.upper - found.value, expected, rtol=1e-4)
