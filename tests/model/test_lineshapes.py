"""Ready models against their formulas written out with numpy and scipy, and as models like any other."""

from __future__ import annotations

import inspect
import math
import pickle

import numpy as np
import pytest
import scipy.constants
import scipy.integrate
import scipy.special
import scipy.stats
import torch
from numpy.testing import assert_allclose

import gradfit
from gradfit import lineshapes
from gradfit.compiler.fingerprint import fingerprint
from gradfit.errors import ModelError

X = np.linspace(0.3, 9.7, 61)
WAVELENGTH = np.linspace(3e-7, 4e-6, 61)


def planck_law(x, amplitude, temperature):
    h, c, k = scipy.constants.h, scipy.constants.c, scipy.constants.k
    return amplitude * 2 * h * c**2 / x**5 / (np.exp(h * c / (x * k * temperature)) - 1)


# model, its formula written out, parameters, x
FORMULAS = {
    "constant": (lineshapes.constant, lambda x, c: np.full_like(x, c), (1.5,), X),
    "line": (lineshapes.line, lambda x, slope, intercept: slope * x + intercept, (-2.0, 0.7), X),
    "polynomial": (lineshapes.polynomial(3), lambda x, *c: np.polynomial.polynomial.polyval(x, c), (1.0, -2.0, 0.3, 0.05), X),
    "exponential": (lineshapes.exponential, lambda x, a, t: a * np.exp(-x / t), (3.0, -4.0), X),
    "biexponential": (
        lineshapes.biexponential, lambda x, a, t, b, u: a * np.exp(-x / t) + b * np.exp(-x / u), (3.0, 0.5, -1.0, 4.0), X,
    ),
    "stretched_exponential": (
        lineshapes.stretched_exponential, lambda x, a, t, b: a * np.exp(-((x / t) ** b)), (3.0, 2.0, 0.6), np.append(0.0, X),
    ),
    "power_law": (lineshapes.power_law, lambda x, a, k: a * x**k, (2.0, -1.3), X),
    "arrhenius": (
        lineshapes.arrhenius, lambda x, a, e: a * np.exp(-e / (8.31446261815324 * x)), (1e10, 5e4), np.linspace(250, 400, 31),
    ),
    "gaussian": (lineshapes.gaussian, lambda x, a, m, s: a * scipy.stats.norm.pdf(x, m, s), (-3.0, 4.0, 0.8), X),
    "lorentzian": (lineshapes.lorentzian, lambda x, a, m, s: a * scipy.stats.cauchy.pdf(x, m, s), (3.0, 4.0, 0.8), X),
    "voigt": (lineshapes.voigt, lambda x, a, m, s, g: a * scipy.special.voigt_profile(x - m, s, g), (3.0, 4.0, 0.8, 0.3), X),
    "pseudo_voigt": (
        lineshapes.pseudo_voigt,
        lambda x, a, m, s, f: (
            a * (1 - f) * scipy.stats.norm.pdf(x, m, s / math.sqrt(2 * math.log(2))) + a * f * scipy.stats.cauchy.pdf(x, m, s)
        ),
        (3.0, 4.0, 0.8, 0.3), X,
    ),
    "skewed_gaussian": (lineshapes.skewed_gaussian, lambda x, a, m, s, g: a * scipy.stats.skewnorm.pdf(x, g, m, s), (3.0, 4.0, 0.8, -2.0), X),
    "logistic": (lineshapes.logistic, lambda x, a, m, s: a * (1 - 1 / (1 + np.exp((x - m) / s))), (3.0, 4.0, -0.8), X),
    "step": (lineshapes.step, lambda x, a, m, s: a * (1 + scipy.special.erf((x - m) / s)) / 2, (3.0, 4.0, -0.8), X),
    "hill": (lineshapes.hill, lambda x, v, k, n: v * x**n / (k**n + x**n), (3.0, 4.0, 2.5), np.append(0.0, X)),
    "michaelis_menten": (lineshapes.michaelis_menten, lambda x, v, k: v * x / (k + x), (3.0, 4.0), X),
    "sine": (lineshapes.sine, lambda x, a, f, p: a * np.sin(2 * np.pi * f * x + p), (3.0, 0.4, 0.5), X),
    "damped_sine": (
        lineshapes.damped_sine, lambda x, a, f, p, t: a * np.exp(-x / t) * np.sin(2 * np.pi * f * x + p), (3.0, 0.4, 0.5, 5.0), X,
    ),
    "planck": (lineshapes.planck, planck_law, (0.9, 4000.0), WAVELENGTH),
}  # fmt: skip
NAMES = list(FORMULAS)
PEAKS = ["gaussian", "lorentzian", "voigt", "pseudo_voigt", "skewed_gaussian"]
PAIR = lineshapes.gaussian.prefixed("a_") + lineshapes.lorentzian.prefixed("b_") + lineshapes.line


def offset_decay(x, height, rate):
    return height * np.exp(-rate * x)


def test_every_ready_model_is_tested():
    models = [name for name in lineshapes.__all__ if name not in ("Lineshape", "shape")]
    assert sorted(models) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_shape_is_its_published_formula(name):
    model, formula, parameters, x = FORMULAS[name]
    assert_allclose(model(x, *parameters), formula(x, *parameters), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_a_shape_is_a_model_that_is_compiled_and_finds_its_parameters(name):
    model, _, parameters, x = FORMULAS[name]
    y = model(x, *parameters)
    fit = gradfit.fit(model, x, y, start=model.guess(x, y), engine="native", on_failure="raise")
    assert fit.engine == "native"
    assert_allclose(list(fit.values.values()), parameters, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_compiled_derivatives_are_those_of_torch(name):
    model, _, parameters, x = FORMULAS[name]
    y = model(x, *parameters) * (1 + 0.01 * np.sin(np.arange(len(x))))
    start = dict(zip(model.parameters, parameters, strict=True))
    native, plain = (gradfit.fit(model, x, y, start=start, engine=engine) for engine in ("native", "torch"))
    assert_allclose(list(native.values.values()), list(plain.values.values()), rtol=1e-6)
    assert_allclose(native.covariance, plain.covariance, rtol=1e-4, atol=1e-30)


@pytest.mark.parametrize("sigma", [0.0, 1e-3, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("gamma", [0.0, 1e-6, 1e-2, 0.5, 20.0])
def test_voigt_is_exact_between_gaussian_and_lorentzian(sigma, gamma):
    if sigma == gamma == 0:
        pytest.skip("a peak without width")
    x = np.concatenate([np.linspace(-5, 5, 401), [-1e4, 300.0, 1e8]])
    exact = scipy.special.voigt_profile(x, sigma, gamma)
    assert_allclose(lineshapes.voigt(x, 1.0, 0.0, sigma, gamma), exact, rtol=0, atol=1e-11 * exact[200])


@pytest.mark.parametrize("name", PEAKS)
def test_amplitude_is_the_area_of_a_peak(name):
    model, _, parameters, _ = FORMULAS[name]
    area, _ = scipy.integrate.quad(lambda x: model(x, *parameters), -np.inf, np.inf, limit=400)
    assert_allclose(area, parameters[0], rtol=1e-6)


def test_planck_radiates_as_stefan_and_boltzmann_say():
    power, _ = scipy.integrate.quad(lambda u: lineshapes.planck(math.exp(u), 1.0, 500.0) * math.exp(u), -15, 0, limit=400)
    assert_allclose(math.pi * power, scipy.constants.Stefan_Boltzmann * 500.0**4, rtol=1e-6)


@pytest.mark.parametrize(
    ("model", "x", "parameters", "expected"),
    [
        (lineshapes.logistic, [-1e6, 1e6], (2.0, 0.0, 1.0), [0.0, 2.0]),
        (lineshapes.step, [-1e6, 1e6], (2.0, 0.0, 1.0), [0.0, 2.0]),
        (lineshapes.hill, [0.0, 1e-200, 1e200], (2.0, 1.0, 50.0), [0.0, 0.0, 2.0]),
        (lineshapes.hill, [0.0, 1e-200, 1e200], (2.0, 1.0, -50.0), [2.0, 2.0, 0.0]),
        (lineshapes.planck, [1e-10], (1.0, 300.0), [0.0]),
        (lineshapes.stretched_exponential, [0.0, 1e300], (2.0, 1.0, 0.5), [2.0, 0.0]),
    ],
)
def test_formulas_do_not_overflow_where_their_limit_is_finite(model, x, parameters, expected):
    values = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in parameters]
    result = model(torch.tensor(x, dtype=torch.float64), *values)
    assert_allclose(result.detach().numpy(), expected, atol=1e-100)
    slopes = torch.autograd.grad(result.sum(), values)
    assert all(bool(torch.isfinite(slope)) for slope in slopes)


def test_x_outside_the_domain_gives_nan():
    assert math.isnan(lineshapes.hill(-1.0, 1.0, 1.0, 2.0))
    assert math.isnan(lineshapes.stretched_exponential(-1.0, 1.0, 1.0, 2.0))


def test_a_shape_looks_like_a_function():
    assert lineshapes.gaussian.__name__ == "gaussian"
    assert list(inspect.signature(lineshapes.gaussian).parameters) == ["x", "amplitude", "center", "sigma"]
    assert "amplitude is the area" in lineshapes.gaussian.__doc__
    assert lineshapes.gaussian(0.0, amplitude=1.0, center=0.0, sigma=1.0) == pytest.approx(1 / math.sqrt(2 * math.pi))
    assert isinstance(lineshapes.gaussian(torch.zeros(2), 1.0, 0.0, 1.0), torch.Tensor)
    assert gradfit.lineshapes.gaussian is lineshapes.gaussian


def test_sums_and_products_are_computed_as_written():
    sum_of_two = lineshapes.gaussian.prefixed("a_") + lineshapes.line
    product = (lineshapes.constant + lineshapes.gaussian) * lineshapes.sine.prefixed("s_")
    bell = lineshapes.gaussian(X, 2.0, 5.0, 1.0)
    assert_allclose(sum_of_two(X, 2.0, 5.0, 1.0, 0.5, 3.0), bell + 0.5 * X + 3.0)
    assert_allclose(product(X, 1.5, 2.0, 5.0, 1.0, 1.0, 0.3, 0.1), (1.5 + bell) * np.sin(2 * np.pi * 0.3 * X + 0.1))
    assert str(product) == "(constant + gaussian) * s_sine"
    assert sum_of_two.prefixed("z_").parameters == ("z_a_amplitude", "z_a_center", "z_a_sigma", "z_slope", "z_intercept")


def test_a_sum_is_fitted_compiled_saved_and_read_again(tmp_path):
    truth = {
        "a_amplitude": 2.0,
        "a_center": 3.0,
        "a_sigma": 0.5,
        "b_amplitude": -1.0,
        "b_center": 7.0,
        "b_sigma": 0.3,
        "slope": 0.1,
        "intercept": 1.0,
    }
    y = PAIR(X, **truth)
    fit = gradfit.fit(PAIR, X, y, start=PAIR.guess(X, y))
    assert fit.engine == "native"
    assert_allclose(list(fit.values.values()), list(truth.values()), rtol=1e-6)
    fit.save(tmp_path / "fit.json")
    assert_allclose(gradfit.load(tmp_path / "fit.json").predict(X), fit.predict(X), rtol=1e-14)


def test_shapes_serve_many_fits_and_curve_fit():
    centers = np.array([3.0, 5.0, 7.0])
    rows = np.stack([lineshapes.gaussian(X, 2.0, center, 0.6) for center in centers])
    fits = gradfit.fit_many(lineshapes.gaussian, X, rows, start={"amplitude": 1.0, "center": centers + 0.2, "sigma": 1.0})
    assert_allclose(fits.values["center"], centers, rtol=1e-8)
    popt, _ = gradfit.curve_fit(lineshapes.gaussian, X, rows[0], p0=[1.0, 3.2, 1.0])
    assert_allclose(popt, [2.0, 3.0, 0.6], rtol=1e-8)


def test_a_column_of_any_name_can_be_the_variable():
    table = {"energy": X, "counts": lineshapes.gaussian(X, 2.0, 4.0, 0.7)}
    model = lineshapes.gaussian.of("energy")
    fit = gradfit.fit(model, data=table, target="counts", start=model.guess(X, table["counts"]))
    assert fit.values["center"] == pytest.approx(4.0)
    with pytest.raises(ModelError, match="energy, x; expected one variable"):
        model + lineshapes.line


def test_shapes_are_known_again_by_value_so_that_repeated_fits_bring_only_data():
    first, second = (lineshapes.gaussian.prefixed("a_") + lineshapes.polynomial(2) for _ in range(2))
    assert first == second
    assert fingerprint(first) is not None
    assert fingerprint(first) == fingerprint(second)
    assert fingerprint(first) != fingerprint(lineshapes.gaussian.prefixed("b_") + lineshapes.polynomial(2))
    assert fingerprint(lineshapes.gaussian) != fingerprint(lineshapes.lorentzian)
    assert pickle.loads(pickle.dumps(first)) == first


def test_a_plain_function_is_a_part_like_the_others():
    model = lineshapes.shape(offset_decay) + lineshapes.constant
    y = model(X, 3.0, 0.7, 1.0)
    guess = model.guess(X, y)
    fit = gradfit.fit(model, X, y, start=guess, engine="native")
    assert_allclose(list(fit.values.values()), [3.0, 0.7, 1.0], rtol=1e-8)


def test_a_plain_function_with_a_side_effect_is_found_out_within_a_sum():
    calls = []

    def counting(x, a):
        nonlocal calls
        calls = [*calls, 1]
        return a * x

    model = lineshapes.shape(counting) + lineshapes.constant
    fit = gradfit.fit(model, X, 2 * X + 1)
    assert fit.engine == "torch"
    assert "assigns calls" in fit.engine_reason


def test_bounds_that_the_formula_needs_are_in_the_signature():
    bounds = {name: (spec.lower, spec.upper) for name, spec in lineshapes.pseudo_voigt.specs.items()}
    assert bounds == {"amplitude": (None, None), "center": (None, None), "sigma": (0.0, None), "fraction": (0.0, 1.0)}
    assert all(spec.start is None for name in NAMES for spec in FORMULAS[name][0].specs.values())


def test_a_tie_goes_before_the_bounds_of_a_shape():
    y = lineshapes.voigt(X, 5.0, 4.0, 0.5, 0.5)
    fit = gradfit.fit(lineshapes.voigt, X, y, tied={"gamma": "sigma"})
    assert fit.values == pytest.approx({"amplitude": 5.0, "center": 4.0, "sigma": 0.5, "gamma": 0.5}, rel=1e-6)
    with pytest.raises(gradfit.ParameterError, match="is tied and has bounds"):
        gradfit.fit(lineshapes.voigt, X, y, tied={"gamma": "sigma"}, bounds={"gamma": (0, 1)})


def test_the_builtin_sum_adds_shapes():
    peaks = [lineshapes.gaussian.prefixed(f"p{k}_") for k in range(3)]
    assert sum(peaks) == peaks[0] + peaks[1] + peaks[2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lineshapes.gaussian + lineshapes.gaussian, r"amplitude, center, sigma more than once.*prefixed\('b_'\)"),
        (lambda: lineshapes.gaussian + 3.0, r"lineshapes\.constant"),
        (lambda: np.sin * lineshapes.gaussian, r"lineshapes\.shape\(function\)"),
        (lambda: lineshapes.gaussian.prefixed("1"), "beginning of a name"),
        (lambda: lineshapes.gaussian.of("sigma"), "no parameter"),
        (lambda: lineshapes.gaussian.of("lambda"), "word of Python's own"),
        (lambda: lineshapes.gaussian(X, 1.0, 2.0), "a value for each of x, amplitude, center, sigma"),
        (lambda: lineshapes.gaussian(X, 1.0, 2.0, width=3.0), "a value for each of x, amplitude, center, sigma"),
        (lambda: lineshapes.polynomial(-1), "whole number from 0 to 12"),
        (lambda: lineshapes.polynomial(2.0), "whole number from 0 to 12"),
        (lambda: lineshapes.shape(3), "is no function"),
        (lambda: lineshapes.shape(lambda x: x), "x and named parameters"),
        (lambda: lineshapes.shape(lambda x, *c: x), "x and named parameters"),
    ],
)
def test_what_is_no_shape_is_refused_in_words(make, message):
    with pytest.raises(ModelError, match=message):
        make()
