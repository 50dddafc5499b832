"""Standard errors against scipy, closed forms and simulation; NaN with a reason where the data do not determine the answer."""

from __future__ import annotations

import math
import warnings

import mpmath
import numpy as np
import pytest
from scipy.optimize import curve_fit

import gradfit


def decay(x, a, t, c):
    return a * np.exp(-x / t) + c


@pytest.fixture
def measured():
    generator = np.random.default_rng(11)
    x = np.linspace(0, 5, 25)
    sigma = generator.uniform(0.05, 0.2, 25)
    return x, decay(x, 3.0, 1.5, 0.5) + generator.normal(0, sigma), sigma


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_covariance_equals_scipys(measured, weighted, absolute):
    x, y, sigma = measured
    if absolute and not weighted:
        with pytest.raises(gradfit.OptionError, match="no sigma was given"):
            gradfit.fit(decay, x, y, absolute_sigma=True)
        return
    options = {"sigma": sigma, "absolute_sigma": absolute} if weighted else {}
    fit = gradfit.fit(decay, x, y, **options)
    popt, pcov = curve_fit(decay, x, y, p0=[1, 1, 1], ftol=1e-14, xtol=1e-14, gtol=1e-14, **options)
    np.testing.assert_allclose(list(fit.values.values()), popt, rtol=1e-6)
    np.testing.assert_allclose(fit.covariance, pcov, rtol=1e-4)  # scipy's Jacobian is a finite difference
    np.testing.assert_allclose(np.diag(fit.correlation), 1.0)


def test_measured_errors_give_normal_intervals_and_estimated_ones_students(measured):
    x, y, sigma = measured
    known = gradfit.fit(decay, x, y, sigma=sigma, absolute_sigma=True)
    estimated = gradfit.fit(decay, x, y, sigma=sigma)
    assert math.isinf(known.dof)
    assert estimated.dof == 22
    w = known.params["a"]
    assert w.upper - w.value == pytest.approx(1.959963984540054 * w.stderr)
    w = estimated.params["a"]
    assert w.upper - w.value == pytest.approx(2.073873067904015 * w.stderr)
    assert estimated.intervals(level=0.68)["a"][1] < w.upper


def test_parameters_that_only_matter_together_get_no_error_and_are_named():
    x = np.linspace(0, 1, 20)
    y = 3 * x + 1 + np.random.default_rng(0).normal(0, 0.1, 20)
    with pytest.warns(gradfit.UndeterminedWarning, match=r"only a \+ b is determined"):
        fit = gradfit.fit("y = (a + b)*x + c", data={"x": x, "y": y})
    assert math.isnan(fit.params["a"].stderr)
    assert fit.params["a"].reason == "only a + b is determined by the data"
    assert fit.params["c"].stderr == pytest.approx(gradfit.fit("y = a*x + c", data={"x": x, "y": y}).params["c"].stderr, rel=0.03)
    assert any("only a + b is determined" in warning for warning in fit.warnings)
    assert np.isfinite(fit.predict(x)).all()


def test_as_many_points_as_parameters_leave_no_error_and_say_why():
    with pytest.warns(gradfit.UndeterminedWarning, match="no degree of freedom"):
        fit = gradfit.fit("y = a*x + b", data={"x": [0.0, 1.0], "y": [1.0, 3.0]})
    assert fit.values == {"a": pytest.approx(2), "b": pytest.approx(1)}
    assert fit.dof == 0
    assert math.isnan(fit.params["a"].stderr)
    assert "degree of freedom" in fit.params["a"].reason


def test_prediction_bands_follow_the_textbook(t_u, t_c):
    fit = gradfit.fit("t_c = w*t_u + b", data={"t_u": t_u, "t_c": t_c})
    new = np.array([10.0, 50.0, 90.0])
    residual = t_c - fit.predict(t_u)
    s2 = residual @ residual / 9
    spread = s2 * (1 / 11 + (new - t_u.mean()) ** 2 / ((t_u - t_u.mean()) ** 2).sum())
    value, lower, upper = fit.predict(new, interval="confidence")
    np.testing.assert_allclose(upper - value, 2.262157162798205 * np.sqrt(spread), rtol=1e-8)
    np.testing.assert_allclose(value - lower, upper - value, rtol=1e-12)
    wide = fit.predict(new, interval="prediction")
    np.testing.assert_allclose(wide.upper - wide.value, 2.262157162798205 * np.sqrt(spread + s2), rtol=1e-8)


def test_a_prediction_interval_of_a_weighted_fit_asks_for_the_new_sigma(measured):
    x, y, sigma = measured
    fit = gradfit.fit(decay, x, y, sigma=sigma, absolute_sigma=True)
    with pytest.raises(gradfit.DataError, match="sigma="):
        fit.predict([1.0], interval="prediction")
    confidence, prediction = fit.predict([1.0], interval="confidence"), fit.predict([1.0], interval="prediction", sigma=0.5)
    half = [(band.upper - band.value)[0] / 1.959963984540054 for band in (confidence, prediction)]
    assert half[1] == pytest.approx(math.hypot(half[0], 0.5))


def test_poisson_errors_are_the_inverse_fisher_information():
    x = np.linspace(0, 1, 40)
    counts = np.random.default_rng(5).poisson(20 + 30 * x).astype(float)
    fit = gradfit.fit("n = a + b*x", data={"x": x, "n": counts}, loss="poisson", start={"a": 10, "b": 10})
    mean = fit.predict(x)
    design = np.column_stack([np.ones(40), x])
    np.testing.assert_allclose(fit.covariance, np.linalg.inv(design.T @ (design / mean[:, None])), rtol=1e-6)
    assert "expected information" in fit.report()


def line(x, slope, offset):
    return slope * x + offset


@pytest.mark.slow
@pytest.mark.parametrize("n", [6, 11])
def test_95_percent_intervals_hold_the_truth_95_percent_of_the_time(n):
    generator = np.random.default_rng(n)
    x = np.linspace(0, 1, n)
    trials, hits = 600, np.zeros(2)
    for _ in range(trials):
        fit = gradfit.fit(line, x, 2 * x + 1 + generator.normal(0, 0.3, n))
        hits += [fit.params[name].lower <= truth <= fit.params[name].upper for name, truth in (("slope", 2), ("offset", 1))]
    # 600 trials: one standard error is 0.9%
    assert (np.abs(hits / trials - 0.95) < 0.03).all()


def test_goodness_of_fit_follows_its_formulas(measured):
    x, y, sigma = measured
    fit = gradfit.fit(decay, x, y, sigma=sigma)
    residual = (fit.predict(x) - y) / sigma
    n, p, chi2 = 25, 3, float(residual @ residual)
    mean = np.average(y, weights=sigma**-2)
    assert fit.chi_square == pytest.approx(chi2)
    assert fit.reduced_chi_square == pytest.approx(chi2 / (n - p))
    assert fit.r_squared == pytest.approx(1 - chi2 / np.sum(((y - mean) / sigma) ** 2))
    assert fit.aic == pytest.approx(n * math.log(chi2 / n) + 2 * p)
    assert fit.aicc == pytest.approx(fit.aic + 2 * p * (p + 1) / (n - p - 1))
    assert fit.bic == pytest.approx(n * math.log(chi2 / n) + p * math.log(n))
    absolute = gradfit.fit(decay, x, y, sigma=sigma, absolute_sigma=True)
    assert absolute.aic == pytest.approx(chi2 + 2 * p)


def test_a_constant_target_has_no_r_squared():
    fit = gradfit.fit("y = a + 0*x", data={"x": [1.0, 2, 3], "y": [5.0, 5, 5]})
    assert math.isnan(fit.r_squared)
    assert fit.values["a"] == pytest.approx(5)


# --- random problems against scipy ---------------------------------------------------------------------------------------

MODELS = {
    "line": (lambda x, a, b: a * x + b, ((-3, 3), (-3, 3))),
    "decay": (lambda x, a, b, c: a * np.exp(-b * x) + c, ((1, 5), (0.5, 2), (-1, 1))),
    "peak": (lambda x, a, m, s: a * np.exp(-(((x - m) / s) ** 2)), ((1, 5), (0.7, 1.3), (0.3, 0.8))),
    "saturation": (lambda x, v, k: v * x / (k + x), ((1, 5), (0.3, 2))),
    "wave": (lambda x, a, f, p: a * np.sin(f * x + p), ((1, 3), (2, 4), (0, 1))),
}


@pytest.mark.parametrize("index", range(50))
def test_covariance_of_random_problems_equals_scipys(index):
    generator = np.random.default_rng(500 + index)
    model, spans = MODELS[list(MODELS)[index % len(MODELS)]]
    truth = [float(generator.uniform(*span)) for span in spans]
    n = int(generator.integers(len(truth) + 3, 40))
    x = np.sort(generator.uniform(0.1, 2, n))
    sigma = generator.uniform(0.005, 0.05, n) * np.abs(model(x, *truth)).max()
    y = model(x, *truth) + generator.normal(0, sigma)
    options = [{}, {"sigma": sigma}, {"sigma": sigma, "absolute_sigma": True}][index % 3]
    # The derivative by complex steps is exact; scipy's own differences are not good to six digits.
    steps = 1e-30j * np.eye(len(truth))

    def exact(x, *theta):
        return np.stack([np.imag(model(x, *(np.array(theta) + step))) / 1e-30 for step in steps], axis=1)

    popt, pcov = curve_fit(model, x, y, p0=truth, jac=exact, ftol=1e-15, xtol=1e-15, gtol=1e-15, **options)
    fit = gradfit.fit(model, x, y, start=truth, **options)
    np.testing.assert_allclose(list(fit.values.values()), popt, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(fit.covariance, pcov, rtol=1e-6, atol=1e-6 * np.abs(pcov).min())


# --- near-singular designs against arithmetic of many digits ---------------------------------------------------------------


def exact_shares(columns):
    """Square roots of the diagonal of inv(J.T J) to 150 digits, J's elements as given."""
    with mpmath.workdps(150):
        matrix = mpmath.matrix(columns).T
        inverse = (matrix.T * matrix) ** -1
        return np.array([float(mpmath.sqrt(inverse[place, place])) for place in range(len(columns))])


def powers(degree, offset, width):
    x = offset + width * np.linspace(0, 1, 20)
    names = [f"c{power}" for power in range(degree + 1)]
    formula = "y = c0" + "".join(f" + c{power}*x**{power}" for power in range(1, degree + 1))
    with mpmath.workdps(150):
        columns = [[mpmath.mpf(float(value)) ** power for value in x] for power in range(degree + 1)]
    return x, names, formula, columns


@pytest.mark.parametrize(
    ("degree", "offset", "width"), [(1, 1e9, 1.0), (1, 1e12, 1.0), (2, 1e6, 1.0), (9, 1.0, 1.0), (12, 0.0, 1.0), (12, 1.0, 1.0)]
)
@pytest.mark.parametrize("engine", ["native", "torch"])
def test_errors_of_a_nearly_singular_design_are_given_while_digits_of_them_are_right(degree, offset, width, engine):
    x, names, formula, columns = powers(degree, offset, width)
    y = np.random.default_rng(2).normal(0, 1, 20)
    fit = gradfit.fit(formula, data={"x": x, "y": y}, sigma=1.0, absolute_sigma=True, engine=engine)
    stderr = np.array([fit.params[name].stderr for name in names])
    np.testing.assert_allclose(stderr, exact_shares(columns), rtol=0.01)


@pytest.mark.parametrize(("degree", "offset", "width"), [(2, 1e8, 1.0), (9, 10.0, 1.0), (6, 2000.0, 20.0)])
def test_errors_that_rounding_makes_up_are_not_given(degree, offset, width):
    x, names, formula, columns = powers(degree, offset, width)
    y = np.random.default_rng(2).normal(0, 1, 20)
    with pytest.warns(gradfit.UndeterminedWarning):
        fit = gradfit.fit(formula, data={"x": x, "y": y}, sigma=1.0, absolute_sigma=True)
    exact = exact_shares(columns)
    given = np.array([fit.params[name].stderr for name in names])
    assert np.isnan(given).any()
    np.testing.assert_allclose(given[np.isfinite(given)], exact[np.isfinite(given)], rtol=0.1)


@pytest.mark.parametrize(("gap", "given"), [(1e-8, True), (1e-11, True), (1e-13, True), (0.0, False)])
def test_exponentials_of_nearly_equal_rates(gap, given):
    x = np.linspace(0, 3, 30)
    rates = (0.7, 0.7 + gap)
    formula = f"y = a*exp(-{rates[0]!r}*x) + b*exp(-{rates[1]!r}*x)"
    data = {"x": x, "y": np.random.default_rng(2).normal(0, 1, 30)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit = gradfit.fit(formula, data=data, sigma=1.0, absolute_sigma=True)
    assert bool(caught) is not given
    if given:
        with mpmath.workdps(150):
            columns = [[mpmath.exp(-mpmath.mpf(rate) * mpmath.mpf(float(value))) for value in x] for rate in rates]
        np.testing.assert_allclose([fit.params[name].stderr for name in "ab"], exact_shares(columns), rtol=0.02)
    else:
        assert fit.params["a"].reason == "only a + b is determined by the data"


def test_exact_data_say_that_their_errors_are_rounding():
    x = np.linspace(0, 1, 20)
    fit = gradfit.fit("y = a*x + b", data={"x": x, "y": 3 * x + 1})
    assert fit.params["a"].stderr < 1e-14
    assert any("fitted to rounding" in warning for warning in fit.warnings)
    with pytest.warns(gradfit.UndeterminedWarning):
        fit = gradfit.fit("y = (a + c)*x + b", data={"x": x, "y": 3 * x + 1})
    assert math.isnan(fit.params["a"].stderr)  # and not 0
    noisy = gradfit.fit("y = a*x + b", data={"x": x, "y": 3 * x + 1 + 1e-12 * np.cos(9 * x)})
    assert not any("fitted to rounding" in warning for warning in noisy.warnings)
