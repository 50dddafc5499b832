"""Levenberg-Marquardt on certified problems (NIST StRD nonlinear regression), with bounds, and where it must not claim success."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear

import gradfit
from nist_problems import certified

FORMULAS = {
    "Misra1a": "b1*(1-exp(-b2*x))",
    "MGH09": "b1*(x**2+x*b2)/(x**2+x*b3+b4)",
    "Eckerle4": "(b1/b2)*exp(-0.5*((x-b3)/b2)**2)",
    "BoxBOD": "b1*(1-exp(-b2*x))",
    "Rat43": "b1/((1+exp(b2-b3*x))**(1/b4))",
    "ENSO": "b1+b2*cos(2*pi*x/12)+b3*sin(2*pi*x/12)+b5*cos(2*pi*x/b4)+b6*sin(2*pi*x/b4)+b8*cos(2*pi*x/b7)+b9*sin(2*pi*x/b7)",
}


@pytest.mark.parametrize("start", [0, 1], ids=["far", "near"])
@pytest.mark.parametrize("name", FORMULAS)
def test_certified_values_are_found_to_eight_digits(name, start):
    known = certified(name)
    names = [f"b{place}" for place in range(1, len(known.values) + 1)]
    starts = dict(zip(names, known.starts[start].tolist(), strict=True))
    fit = gradfit.fit(f"y = {FORMULAS[name]}", data={"x": known.x, "y": known.y}, start=starts, on_failure="ignore")
    assert fit.success, fit.message
    for parameter, value, deviation in zip(names, known.values, known.deviations, strict=True):
        assert fit.params[parameter].value == pytest.approx(value, rel=1e-8)
        assert fit.params[parameter].stderr == pytest.approx(deviation, rel=1e-7)


def peak(x, a, mu, s, c):
    return a * torch.exp(-0.5 * ((x - mu) / s) ** 2) + c


@pytest.fixture
def spectrum():
    x = np.linspace(-5, 5, 60)
    noise = np.random.default_rng(7).normal(0, 0.1, 60)
    return x, 7 * np.exp(-0.5 * ((x - 0.3) / 1.1) ** 2) + 0.5 + noise


@settings(max_examples=20, deadline=None)
@given(x_power=st.integers(-8, 8), y_power=st.integers(-8, 8))
def test_the_answer_does_not_depend_on_units(x_power, y_power):
    x = np.linspace(-5, 5, 60)
    y = 7 * np.exp(-0.5 * ((x - 0.3) / 1.1) ** 2) + 0.5 + np.random.default_rng(7).normal(0, 0.1, 60)
    kx, ky = 10.0**x_power, 10.0**y_power
    units = {"a": ky, "mu": kx, "s": kx, "c": ky}
    start = {"a": 5.0, "mu": 0.1, "s": 2.0, "c": 0.1}
    here = gradfit.fit(peak, x, y, start=start)
    there = gradfit.fit(peak, x * kx, y * ky, start={name: value * units[name] for name, value in start.items()})
    assert there.success
    for name, unit in units.items():
        assert there.params[name].value == pytest.approx(here.params[name].value * unit, rel=1e-9)
        assert there.params[name].stderr == pytest.approx(here.params[name].stderr * unit, rel=1e-7)


def test_a_bound_that_excludes_the_minimum_is_reached_and_reported(spectrum):
    x, y = spectrum
    fit = gradfit.fit(peak, x, y, start={"a": 5, "mu": 0, "s": 0.9, "c": 0}, bounds={"s": (0.1, 1.0)})
    assert fit.success
    assert fit.values["s"] == 1.0
    assert fit.params["s"].at_bound
    assert math.isnan(fit.params["s"].stderr)
    held = gradfit.fit(peak, x, y, start={"a": 5, "mu": 0, "c": 0}, fixed={"s": 1.0})
    for name in "a", "mu", "c":
        assert fit.values[name] == pytest.approx(held.values[name], rel=1e-7)
        assert fit.params[name].stderr == pytest.approx(held.params[name].stderr, rel=1e-6)


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({"w": (0, 0.4)}, {"w": 0.4}),
        ({"b": (-15, None)}, {"b": -15.0}),
        ({"w": (1, 2), "b": (-10, 0)}, {"w": 1.0, "b": -10.0}),
        ({"w": (None, -1)}, {"w": -1.0}),
    ],
)
@pytest.mark.parametrize("method", ["lm", "sgd", "adam"])
def test_a_line_within_bounds_is_the_best_line_within_them(bounds, expected, method, t_u, t_c):
    fit = gradfit.fit("t_c = w*t_u + b", data={"t_u": t_u, "t_c": t_c}, bounds=bounds, method=method)
    assert fit.success
    low, high = zip(*(bounds.get(name, (None, None)) for name in "wb"), strict=True)
    best = lsq_linear(
        np.column_stack([t_u, np.ones(11)]),
        t_c,
        ([-np.inf if v is None else v for v in low], [np.inf if v is None else v for v in high]),
        tol=1e-14,
    )
    assert {name: fit.values[name] for name in expected} == expected
    np.testing.assert_allclose(list(fit.values.values()), best.x, rtol=1e-6)
    assert fit.dof == 11 - 2 + len(expected)
    assert all(fit.params[name].at_bound for name in expected)


def test_a_bound_that_does_not_bind_changes_nothing(spectrum):
    x, y = spectrum
    start = {"a": 5, "mu": 0, "s": 2, "c": 0}
    free, bounded = (
        gradfit.fit(peak, x, y, start=start),
        gradfit.fit(peak, x, y, start=start, bounds={"s": (0, 10), "a": (0, None)}),
    )
    np.testing.assert_allclose(list(bounded.values.values()), list(free.values.values()), rtol=1e-10)
    assert not bounded.params["s"].at_bound


def test_tied_and_fixed_parameters_give_the_same_fit_as_the_model_written_out(spectrum):
    x, y = spectrum
    tied = gradfit.fit(peak, x, y, start={"a": 5, "mu": 0, "s": 2}, tied={"c": "a/14"})
    written = gradfit.fit(lambda x, a, mu, s: peak(x, a, mu, s, a / 14), x, y, start={"a": 5, "mu": 0, "s": 2})
    assert tied.values["c"] == pytest.approx(written.values["a"] / 14, rel=1e-9)
    assert tied.params["c"].stderr == pytest.approx(written.params["a"].stderr / 14, rel=1e-7)
    assert tied.dof == 57
    fixed = gradfit.fit(peak, x, y, start={"a": 5, "mu": 0, "s": 2}, fixed={"c": 0.5})
    assert fixed.params["c"].fixed
    assert fixed.params["c"].stderr == 0
    assert fixed.names == ("a", "mu", "s")


def test_exact_data_are_fitted_exactly():
    x = np.linspace(0, 4, 20)
    fit = gradfit.fit("y = a*exp(-k*x)", data={"x": x, "y": 3 * np.exp(-0.7 * x)})
    assert fit.success
    assert fit.values == {"a": pytest.approx(3, rel=1e-12), "k": pytest.approx(0.7, rel=1e-12)}


def test_a_start_at_the_minimum_stays_there(t_u, t_c):
    first = gradfit.fit("t_c = w*t_u + b", data={"t_u": t_u, "t_c": t_c})
    again = gradfit.fit("t_c = w*t_u + b", data={"t_u": t_u, "t_c": t_c}, start=first.values)
    assert again.success
    assert again.values == {name: pytest.approx(value, rel=1e-12) for name, value in first.values.items()}


def test_too_few_steps_are_no_success(spectrum):
    x, y = spectrum
    with pytest.warns(gradfit.FitWarning, match="Not converged after 2 steps"):
        fit = gradfit.fit(peak, x, y, start={"a": 1, "mu": 2, "s": 3, "c": 0}, max_steps=2)
    assert not fit.success
    assert fit.diagnosis.verdict == "not converged"
    with pytest.raises(gradfit.FitError, match="Not converged"):
        gradfit.fit(peak, x, y, start={"a": 1, "mu": 2, "s": 3, "c": 0}, max_steps=2, on_failure="raise")


def test_a_start_that_gives_nan_is_reported_with_its_values(t_u, t_c):
    fit = gradfit.fit("t_c = log(w)*t_u + b", data={"t_u": t_u, "t_c": t_c}, start={"w": -1, "b": 0}, on_failure="ignore")
    assert fit.status == "not_finite"
    assert "w = -1" in fit.message


def test_a_region_of_nan_is_stepped_around():
    x = np.linspace(1, 5, 30)
    fit = gradfit.fit("y = a*log(b*x)", data={"x": x, "y": 2 * np.log(3 * x)}, start={"a": 10, "b": 0.2})
    assert fit.success
    assert fit.values == {"a": pytest.approx(2, rel=1e-9), "b": pytest.approx(3, rel=1e-9)}


@pytest.mark.parametrize(("option", "value"), [("max_steps", 0), ("max_steps", 1.5), ("radius", 0), ("radius", math.nan)])
def test_a_value_that_makes_no_sense_is_refused(option, value, t_u, t_c):
    with pytest.raises(gradfit.OptionError, match=option):
        gradfit.fit("t_c = w*t_u + b", data={"t_u": t_u, "t_c": t_c}, **{option: value})


@pytest.mark.parametrize("bounds", [{"w": (None, 0.5)}, {"b": (-10, None)}, {"w": (0.4, 0.5), "b": (-1, 3)}, {"w": (0, 1)}])
def test_the_closed_form_within_bounds_is_the_minimum_there(t_u, t_c, bounds):
    data = {"t_u": t_u, "t_c": t_c}
    closed, stepped = (
        gradfit.fit("t_c = w*t_u + b", data=data, start={"w": 0.5, "b": 0}, bounds=bounds, method=method)
        for method in ("linear", "lm")
    )
    assert closed.success
    np.testing.assert_allclose(list(closed.values.values()), list(stepped.values.values()), rtol=1e-9)
    assert [p.at_bound for p in closed.params.values()] == [p.at_bound for p in stepped.params.values()]
    np.testing.assert_allclose(closed.covariance, stepped.covariance, rtol=1e-7)


def test_the_closed_form_refuses_what_is_not_linear(t_u, t_c):
    data = {"t_u": t_u, "t_c": t_c}
    with pytest.raises(gradfit.ModelError, match="not linear"):
        gradfit.fit("t_c = exp(w*t_u) + b", data=data, start={"w": 0.01, "b": 1}, method="linear")
    with pytest.raises(gradfit.OptionError, match="squared"):
        gradfit.fit("t_c = w*t_u + b", data=data, loss="huber", method="linear")
