"""Guesses: invariant under the order of rows and units, honest on bad data, and good enough for a fit to reach the optimum."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import gradfit
from gradfit import lineshapes
from gradfit.errors import DataError, ParameterError

X = np.linspace(0.2, 10.0, 80)
NOISE = np.random.default_rng(0).normal(size=80)
READY = [
    lineshapes.constant, lineshapes.line, lineshapes.polynomial(2), lineshapes.exponential, lineshapes.biexponential,
    lineshapes.stretched_exponential, lineshapes.power_law, lineshapes.arrhenius, lineshapes.gaussian, lineshapes.lorentzian,
    lineshapes.voigt, lineshapes.pseudo_voigt, lineshapes.skewed_gaussian, lineshapes.logistic, lineshapes.step, lineshapes.hill,
    lineshapes.michaelis_menten, lineshapes.sine, lineshapes.damped_sine, lineshapes.planck,
]  # fmt: skip
TWO = lineshapes.gaussian.prefixed("a_") + lineshapes.gaussian.prefixed("b_") + lineshapes.line
SUMS = [*READY, TWO, lineshapes.sine.prefixed("s_") * lineshapes.exponential + lineshapes.constant]

# model, parameters, and the power of the unit of x in each; all linear ones are in units of y besides
SCALED = [
    (lineshapes.gaussian, (3.0, 4.0, 0.8), (1, 1, 1), ("amplitude",)),
    (lineshapes.voigt, (3.0, 4.0, 0.5, 0.4), (1, 1, 1, 1), ("amplitude",)),
    (lineshapes.exponential, (3.0, 2.0), (0, 1), ("amplitude",)),
    (lineshapes.power_law, (3.0, -1.5), (None, 0), ("amplitude",)),
    (lineshapes.hill, (3.0, 4.0, 2.0), (0, 1, 0), ("vmax",)),
    (lineshapes.logistic, (3.0, 4.0, -0.7), (0, 1, 1), ("amplitude",)),
    (lineshapes.damped_sine, (3.0, 0.8, 0.5, 4.0), (0, -1, 0, 1), ("amplitude",)),
    (lineshapes.line, (3.0, 1.0), (-1, 0), ("slope", "intercept")),
]


def noisy(model, parameters, x=X):
    y = model(x, *parameters)
    return y + 0.02 * np.ptp(y) * NOISE[: len(x)]


def misfit(model, x, y, values):
    return float(np.mean((model(x, **values) - y) ** 2))


@pytest.mark.parametrize("model", SUMS, ids=str)
def test_a_guess_does_not_depend_on_the_order_of_rows(model):
    y = np.sin(X) + 0.3 * NOISE + 1.0
    known = {"amplitude": 1.0} if "*" in str(model) else None
    shuffled = np.random.default_rng(1).permutation(len(X))
    guess = model.guess(X, y, known=known)
    assert model.guess(X[shuffled], y[shuffled], known=known) == guess
    assert model.guess(X[::-1], y[::-1], known=known) == guess


@settings(max_examples=25, deadline=None)
@given(case=st.sampled_from(SCALED), along=st.floats(1e-8, 1e8), up=st.floats(1e-8, 1e8), sign=st.sampled_from([-1, 1]))
def test_a_guess_scales_with_the_units(case, along, up, sign):
    model, parameters, powers, linear = case
    y = noisy(model, parameters)
    plain, scaled = model.guess(X, y), model.guess(along * X, sign * up * y)
    for name, power in zip(model.parameters, powers, strict=True):
        if model is lineshapes.power_law and name == "amplitude":
            power = -plain["exponent"]
        if name == "phase":  # the amplitude stays positive, the phase turns
            turn = scaled[name] - plain[name] - (0 if sign > 0 else math.pi)
            assert_allclose(math.sin(turn / 2), 0.0, atol=1e-6)
        elif name in linear:
            factor = up if model is lineshapes.damped_sine else sign * up
            assert_allclose(scaled[name] / (factor * along**power), plain[name], rtol=1e-6)
        else:
            assert_allclose(scaled[name] / along**power, plain[name], rtol=1e-6)


@pytest.mark.parametrize("model", READY, ids=str)
def test_constant_data_give_a_finite_start(model):
    x = 1e-6 * X if model is lineshapes.planck else X
    for level in (0.0, 3.0, -1e-30):
        guess = model.guess(x, np.full(80, level))
        assert all(map(math.isfinite, guess.values()))
        assert np.isfinite(model(x, **guess)).all()


@pytest.mark.parametrize("model", READY, ids=str)
def test_too_few_points_are_refused_and_just_enough_give_a_start(model):
    wanted = len(model.parameters)
    x = X[:wanted] * (1e-6 if model is lineshapes.planck else 1.0)
    y = 1.0 + 0.1 * NOISE[:wanted]
    assert all(map(math.isfinite, model.guess(x, y).values()))
    with pytest.raises(DataError, match=r"cannot tell|no row"):
        model.guess(x[1:], y[1:])


def test_two_points_give_the_line_through_them():
    assert lineshapes.line.guess([1.0, 3.0], [2.0, 8.0]) == pytest.approx({"slope": 3.0, "intercept": -1.0})


def test_repeated_x_count_once():
    with pytest.raises(DataError, match="6 points at 1 different x cannot tell 2 parameters of line"):
        lineshapes.line.guess(np.ones(6), np.arange(6.0))
    assert lineshapes.constant.guess(np.ones(6), np.arange(6.0)) == pytest.approx({"c": 2.5})
    repeated = np.repeat(X[::4], 4)
    y = lineshapes.hill(repeated, 3.0, 4.0, 2.0)
    assert_allclose(list(lineshapes.hill.guess(repeated, y).values()), [3.0, 4.0, 2.0], rtol=0.05)


@pytest.mark.parametrize(
    ("x", "y", "sigma", "message"),
    [
        ([], [], None, "no row has a finite x and y"),
        (X, np.full(80, np.nan), None, "no row has a finite x and y"),
        (X, X[:-1], None, "x has 80 values and y 79"),
        (X, X, -1.0, "standard deviations above 0"),
        (X, X, X[:3], "3 values for 80 rows"),
        (X, ["a"] * 80, None, "y cannot be read as numbers"),
        (X, X + 1j, None, "y cannot be read as numbers"),
        (np.ones((80, 2)), X, None, "one column"),
    ],
)
def test_bad_data_are_refused_in_words(x, y, sigma, message):
    with pytest.raises(DataError, match=message):
        lineshapes.gaussian.guess(x, y, sigma)


@pytest.mark.parametrize(
    ("model", "least"),
    [
        (lineshapes.power_law, -1.0), (lineshapes.arrhenius, 0.0), (lineshapes.planck, 0.0), (lineshapes.stretched_exponential, -1.0),
        (lineshapes.hill, -1.0), (lineshapes.michaelis_menten, -1.0),
    ],
    ids=str,
)  # fmt: skip
def test_x_outside_the_domain_is_refused(model, least):
    with pytest.raises(DataError, match=f"{model} is defined for x >=? 0, and the least x is {least:g}"):
        model.guess(np.append(X, least), np.append(X, 1.0))


def test_rows_with_nan_say_nothing():
    y = noisy(lineshapes.gaussian, (3.0, 4.0, 0.8))
    with_gaps = np.append(y, [np.nan, np.inf, 1.0]), np.append(X, [1.0, 2.0, np.nan])
    assert lineshapes.gaussian.guess(with_gaps[1], with_gaps[0]) == lineshapes.gaussian.guess(X, y)


@pytest.mark.parametrize("center", [-1.0, 11.5])
def test_a_peak_outside_the_window_is_guessed_from_its_flank(center):
    y = lineshapes.gaussian(X, 20.0, center, 2.0)
    guess = lineshapes.gaussian.guess(X, y)
    assert_allclose(guess["center"], center, atol=1.0)
    fit = gradfit.fit(lineshapes.gaussian, X, y, start=guess)
    assert_allclose(list(fit.values.values()), [20.0, center, 2.0], rtol=1e-6)


def test_known_values_are_kept_and_the_others_guessed_given_them():
    truth = {"amplitude": 3.0, "center": 4.0, "sigma": 0.8}
    y = lineshapes.gaussian(X, **truth)
    for name, value in truth.items():
        guess = lineshapes.gaussian.guess(X, y, known={name: value})
        assert guess[name] == value
        assert_allclose(list(guess.values()), list(truth.values()), rtol=0.02)
    assert lineshapes.gaussian.guess(X, y, known=truth) == truth
    phase = lineshapes.sine.guess(X, lineshapes.sine(X, 2.0, 0.7, 1.0), known={"amplitude": 2.0})["phase"]
    assert phase == pytest.approx(1.0, abs=0.1)
    amplitude = lineshapes.sine.guess(X, lineshapes.sine(X, 2.0, 0.7, 1.0), known={"phase": 1.0})["amplitude"]
    assert amplitude == pytest.approx(2.0, rel=0.05)
    offset = (lineshapes.gaussian + lineshapes.constant).guess(X, y + 5.0, known={"c": 5.0})
    assert_allclose([offset["amplitude"], offset["center"]], [3.0, 4.0], rtol=0.02)


def test_bounds_confine_the_guess():
    y = lineshapes.gaussian(X, 3.0, 3.0, 0.5) + lineshapes.gaussian(X, 2.0, 7.0, 0.5)
    assert lineshapes.gaussian.guess(X, y)["center"] == pytest.approx(3.0, abs=0.2)
    assert lineshapes.gaussian.guess(X, y, bounds={"center": (6.0, None), "sigma": (0.0, 0.8)})["center"] == pytest.approx(
        7.0, abs=0.2
    )


def test_unknown_names_and_values_are_refused():
    with pytest.raises(ParameterError, match=r"unknown parameter 'centre'.*Did you mean 'center'"):
        lineshapes.gaussian.guess(X, X, known={"centre": 1.0})
    with pytest.raises(ParameterError, match="unknown parameter 'width'"):
        lineshapes.gaussian.guess(X, X, bounds={"width": (0, 1)})
    with pytest.raises(ParameterError, match="expected finite numbers"):
        lineshapes.gaussian.guess(X, X, known={"center": math.nan})


def test_sigma_says_which_points_count():
    y = lineshapes.line(X, 2.0, 1.0)
    y[40:] = -50.0
    guess = lineshapes.line.guess(X, y, sigma=np.where(np.arange(80) < 40, 1.0, 1e6))
    assert guess == pytest.approx({"slope": 2.0, "intercept": 1.0}, rel=1e-3)


def test_starts_are_distinct_and_the_best_comes_first():
    y = lineshapes.gaussian(X, 2.0, 3.0, 0.5) + lineshapes.gaussian(X, 1.5, 7.0, 0.4) + 0.02 * NOISE
    starts = lineshapes.gaussian.starts(X, y, count=6)
    costs = [misfit(lineshapes.gaussian, X, y, start) for start in starts]
    assert 1 < len(starts) <= 6
    assert_allclose(costs, sorted(costs), rtol=1e-9)
    assert len({tuple(start.values()) for start in starts}) == len(starts)
    assert starts[0]["center"] == pytest.approx(3.0, abs=0.1)
    assert any(start["center"] == pytest.approx(7.0, abs=0.1) for start in starts)


def test_starts_that_are_not_refined_lead_to_the_minimum_from_either_side_of_a_skewed_peak():
    model = lineshapes.skewed_gaussian
    y = model(X, 3.0, 4.0, 1.2, -3.0) + 0.01 * NOISE
    starts = model.starts(X, y, count=4, refined=False)
    assert {math.copysign(1.0, start["gamma"]) for start in starts} == {-1.0, 1.0}
    refined = model.starts(X, y, count=4)
    assert misfit(model, X, y, refined[0]) < 0.1 * misfit(model, X, y, starts[0])
    assert_allclose(gradfit.fit(model, X, y).loss, gradfit.fit(model, X, y, start=refined[0]).loss, rtol=1e-9)


def test_two_skewed_peaks_keep_the_skew_that_was_found_for_the_first():
    model = lineshapes.skewed_gaussian.prefixed("a_") + lineshapes.skewed_gaussian.prefixed("b_")
    truth = dict(zip(model.parameters, (3.0, 2.0, 0.8, 4.0, 2.0, 8.0, 0.7, -3.0), strict=True))
    y = model(X, **truth) + 0.005 * NOISE
    assert misfit(model, X, y, model.guess(X, y)) < 1.1 * misfit(model, X, y, truth)


def test_a_wave_in_many_points_is_not_averaged_away():
    x = np.sort(np.random.default_rng(3).uniform(0, 100, 20_000))
    y = lineshapes.sine(x, 2.0, 37.3, 0.4) + np.random.default_rng(4).normal(0, 0.5, len(x)) + 3.0
    model = lineshapes.sine + lineshapes.constant
    assert_allclose(model.guess(x, y)["frequency"], 37.3, atol=0.002)
    fit = gradfit.fit(model, x, y, start=model.guess(x, y))
    assert_allclose(list(fit.values.values()), [2.0, 37.3, 0.4, 3.0], atol=0.05)


def test_a_product_of_a_wave_and_a_decay_is_found():
    model = lineshapes.sine.prefixed("s_") * lineshapes.exponential + lineshapes.constant
    truth = (2.0, 1.3, 0.4, 1.0, 3.0, 5.0)
    y = model(X, *truth) + 0.02 * NOISE
    guess = model.guess(X, y, known={"amplitude": 1.0})
    fit = gradfit.fit(model, X, y, start=guess, fixed=["amplitude"])
    assert_allclose(list(fit.values.values()), truth, atol=0.15)


def test_a_formula_that_is_nowhere_finite_is_an_error():
    with pytest.raises(DataError, match="Shift or scale x"):
        lineshapes.shape(lambda x, a, b: a * np.sqrt(-1 - x * x + 0 * b)).guess(X, X)


def _bench():
    """Load the bench, whose draws are judged here too."""
    if "bench_guesses" not in sys.modules:
        spec = importlib.util.spec_from_file_location("bench_guesses", Path(__file__).parents[2] / "bench" / "guesses.py")
        sys.modules["bench_guesses"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["bench_guesses"]


@pytest.mark.slow
@pytest.mark.parametrize("place", range(len(READY)))
def test_a_fit_from_the_guess_reaches_the_optimum_on_random_draws(place):
    bench = _bench()
    trials = [bench.trial(bench.without_peer(bench.CASES[place]), 7_000_000 + draw) for draw in range(40)]
    judged = [trial for trial in trials if trial.ends]
    assert len(judged) >= 30
    for start in ("guess", "fit"):
        assert sum(not trial.reached(start) for trial in judged) <= 1, start


@pytest.mark.parametrize(
    "said", [{"known": {"center": "a"}}, {"known": ["center"]}, {"bounds": {"center": 3}}, {"bounds": {"center": ("a", 3)}}]
)
def test_what_is_said_of_parameters_must_be_numbers_by_name(said):
    with pytest.raises(gradfit.ParameterError):
        gradfit.lineshapes.gaussian.guess(np.arange(9.0), np.arange(9.0), **said)


@pytest.mark.parametrize("count", [0, "a", 1.5])
def test_a_number_of_guesses_is_whole(count):
    with pytest.raises(gradfit.OptionError, match="how many guesses"):
        gradfit.lineshapes.gaussian.starts(np.arange(9.0), np.arange(9.0), count=count)
