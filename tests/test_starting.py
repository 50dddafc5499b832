"""Where a fit begins when nobody says: guesses, search, many starts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gradfit
from nist_problems import MODELS, certified

GENERATOR = np.random.default_rng(0)
X = np.linspace(400, 500, 80)
PEAK = {"a": 3.0, "c": 468.0, "w": 7.0, "o": 1.0}


def peak(x, a, c, w, o):
    return a * torch.exp(-(((x - c) / w) ** 2)) + o


Y = peak(torch.from_numpy(X), **PEAK).numpy() + 0.1 * GENERATOR.standard_normal(80)


def nist(name):
    problem = certified(name)
    if name != "Nelson":
        return MODELS[name], (problem.x, problem.y), problem
    return (lambda x1, x2, b1, b2, b3: b1 - b2 * x1 * np.exp(-b3 * x2)), (*problem.x, problem.y), problem


def found(name, **settings):
    """Whether a fit without a start finds the certified minimum."""
    model, arrays, problem = nist(name)
    fit = gradfit.fit(model, *arrays, on_failure="ignore", **settings)
    least = np.sum((model(*arrays[:-1], *problem.values) - problem.y) ** 2)
    return fit.success and fit.loss * fit.n <= least * (1 + 1e-6) + 1e-20


# --- nobody says ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["BoxBOD", "Eckerle4", "MGH09", "MGH17", "Rat43", "Thurber", "Lanczos3"])
def test_a_certified_minimum_is_found_without_a_start(name):
    assert found(name)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nearly_all_certified_minima_are_found_without_a_start(seed):
    assert sum(found(name, seed=seed) for name in MODELS) >= 25


def test_the_report_says_where_the_fit_began_and_how_that_was_found():
    fit = gradfit.fit(peak, X, Y)
    assert fit.beginning.kind == "search"
    for text in (fit.report(), str(fit), fit.to_html()):
        assert "No start was given for a, c, w, o" in text
    assert "start found" in fit.report()
    assert fit.values["w"] == pytest.approx(7, abs=1)  # of the two signs the positive one
    assert fit.minima[0].loss == pytest.approx(fit.loss, rel=1e-6)


def test_the_same_seed_gives_the_same_bits_and_a_second_call_too():
    first, second = gradfit.fit(peak, X, Y), gradfit.fit(peak, X, Y)
    assert first.values == second.values
    assert first.beginning == second.beginning


@settings(deadline=None, max_examples=8)
@given(st.integers(-9, 9), st.integers(-9, 9))
def test_the_search_does_not_depend_on_units(of_x, of_y):
    x, y = 10.0**of_x, 10.0**of_y
    fit = gradfit.fit(peak, x * X, y * Y)
    expected = gradfit.fit(peak, X, Y, start=PEAK).values
    scaled = {"a": y, "c": x, "w": x, "o": y}
    assert fit.values == pytest.approx({name: scaled[name] * value for name, value in expected.items()}, rel=1e-6)


def test_what_was_given_a_start_or_a_value_keeps_it_in_the_search():
    fit = gradfit.fit(peak, X, Y, start={"o": 1.0}, fixed={"w": 7.0})
    assert fit.beginning.text.startswith("No start was given for a, c:")
    assert fit.values["w"] == 7.0
    assert fit.values["c"] == pytest.approx(468, abs=1)


def test_bounds_hold_in_the_search():
    fit = gradfit.fit(peak, X, Y, bounds={"w": (0, 50), "c": (410, 490), "a": (0, None)})
    assert fit.values["c"] == pytest.approx(468, abs=1)
    assert all(0 <= minimum.values["w"] <= 50 and 410 <= minimum.values["c"] <= 490 for minimum in fit.minima)


def test_ties_and_vectors_take_part_in_the_search():
    def two(x, a, c, w):
        return a[0] * torch.exp(-(((x - c) / w) ** 2)) + a[1]

    fit = gradfit.fit(two, X, Y, start={"a": [1.0, 0.0]})
    assert fit.values["c"] == pytest.approx(468, abs=1)
    tied = gradfit.fit(peak, X, Y, tied={"o": "a/3"})
    assert tied.values["c"] == pytest.approx(468, abs=1)


def test_a_linear_model_begins_at_1_for_any_start_will_do():
    fit = gradfit.fit(lambda x, a, b: a * x + b, X, Y)
    assert (fit.beginning.kind, fit.params["a"].start) == ("assumed", 1.0)
    assert fit.minima == ()


def test_a_fit_with_a_start_is_not_searched_for():
    fit = gradfit.fit(peak, X, Y, start=PEAK)
    assert fit.beginning == gradfit.fit(peak, X, Y, start=PEAK, seed=5).beginning
    assert fit.beginning.kind == "given"
    assert "start" not in str(fit)


@pytest.mark.parametrize(
    "settings", [{"loss": "soft_l1"}, {"sigma": 0.1, "sigma_x": 0.5}, {"engine": "torch"}, {"method": "adam", "epochs": 50}]
)
def test_other_losses_engines_and_methods_have_their_starts_found_too(settings):
    fit = gradfit.fit(peak, X, Y, on_failure="ignore", **settings)
    assert fit.beginning.kind == "search"
    assert fit.params["c"].start == pytest.approx(468, abs=8)


def test_correlated_errors_have_their_starts_found_too():
    fit = gradfit.fit(peak, X, Y, sigma=0.01 * (0.5 * np.eye(80) + 0.5))
    assert fit.values["c"] == pytest.approx(468, abs=1)


def test_a_lineshape_begins_where_its_shape_suggests():
    shape = gradfit.lineshapes.gaussian + gradfit.lineshapes.constant
    fit = gradfit.fit(shape, X, Y)
    assert fit.beginning.kind == "shape"
    assert fit.values["center"] == pytest.approx(468, abs=1)
    held = gradfit.fit(shape, X, Y, fixed={"c": 1.0})
    assert held.values["center"] == pytest.approx(468, abs=1)


def test_where_no_start_can_be_found_the_fit_says_so():
    fit = gradfit.fit(lambda x, a, b: a * torch.log(-b * b * x), X, Y, on_failure="ignore")
    assert (fit.status, fit.beginning.kind) == ("not_finite", "none")
    assert any("none was found" in warning for warning in fit.warnings)


def test_too_many_parameters_to_search_begin_at_1_and_that_is_told():
    terms = " + ".join(f"{k}*sin(c{k}*x)" for k in range(1, 52))
    data = {"x": np.linspace(0, 1, 80), "y": np.linspace(0, 1, 80) ** 2}
    fit = gradfit.fit(f"y = {terms}", data=data, engine="torch", max_steps=1, on_failure="ignore")
    assert fit.beginning.kind == "assumed"
    assert "a space of 51 parameters cannot be searched" in fit.report()


# --- many starts ------------------------------------------------------------------------------------------------------


def test_many_starts_give_the_lowest_minimum_and_list_the_others():
    x = np.linspace(0, 10, 100)
    y = np.sin(4.2 * x + 0.5)
    start = {"w": 2.0, "p": 0.0}
    model = lambda x, w, p: torch.sin(w * x + p)  # noqa: E731
    stuck = gradfit.fit(model, x, y, start=start, on_failure="ignore")
    fit = gradfit.fit(model, x, y, start=start, multistart=64)
    assert stuck.loss > 0.1
    assert fit.loss < 1e-20
    assert fit.beginning.kind == "multistart"
    losses = [minimum.loss for minimum in fit.minima]
    assert losses == sorted(losses)
    assert len(losses) > 3
    assert sum(minimum.starts for minimum in fit.minima) <= 64
    assert f"64 starts (seed 0): {sum(m.starts for m in fit.minima)} ended" in fit.report()


def test_one_start_is_the_fit_itself():
    assert gradfit.fit(peak, X, Y, start=PEAK, multistart=1).values == pytest.approx(
        gradfit.fit(peak, X, Y, start=PEAK).values, rel=1e-9
    )


def test_every_minimum_that_is_listed_is_one():
    fit = gradfit.fit(peak, X, Y, start=PEAK, multistart=40)
    for minimum in fit.minima:
        again = gradfit.fit(peak, X, Y, start=minimum.values, on_failure="ignore")
        assert again.loss == pytest.approx(minimum.loss, rel=1e-5)


def test_where_every_start_fails_the_fit_says_so():
    fit = gradfit.fit(lambda x, a, b: a * torch.log(-b * b * x), X, Y, start=[1.0, 1.0], multistart=8, on_failure="ignore")
    assert fit.status == "not_finite"
    assert any("None of 8 starts" in warning for warning in fit.warnings)


@pytest.mark.parametrize("seed", range(3))
def test_starts_where_the_model_has_no_value_do_not_stand_in_the_way_of_the_others(seed):
    late = lambda x, a, b, c: np.sqrt(a - 50) * np.exp(-x / b) + c  # noqa: E731
    x = np.linspace(0.1, 10, 60)
    y = late(x, 60.0, 2.0, 1.0) + 0.01 * np.random.default_rng(0).standard_normal(60)
    fit = gradfit.fit(late, x, y, start=[70.0, 1.0, 1.0], multistart=64, seed=seed)
    assert fit.loss < 1.5e-4
    assert 1 <= fit.minima[0].starts < 16


def test_many_rows_are_judged_by_some_and_the_minimum_is_that_of_all():
    x = np.linspace(400, 500, 40_000)
    y = peak(torch.from_numpy(x), **PEAK).numpy() + 0.1 * np.random.default_rng(1).standard_normal(len(x))
    one = gradfit.fit(peak, x, y, start=PEAK)
    for fit in (gradfit.fit(peak, x, y), gradfit.fit(peak, x, y, start=PEAK, multistart=16)):
        assert fit.values == pytest.approx(one.values, rel=1e-6)
    assert fit.minima[0].loss == pytest.approx(one.loss, rel=1e-9)


@pytest.mark.parametrize("count", [0, -1, 2.5, True, "many", 10**9])
def test_a_number_of_starts_that_is_none_is_refused(count):
    with pytest.raises(gradfit.OptionError, match="expected how many starts"):
        gradfit.fit(peak, X, Y, multistart=count)


def test_many_starts_of_a_descent_are_refused():
    with pytest.raises(gradfit.OptionError, match="method='lm'"):
        gradfit.fit(peak, X, Y, start=PEAK, multistart=4, method="adam")


def test_minima_are_kept_in_a_file(tmp_path):
    fit = gradfit.fit(peak, X, Y, multistart=16)
    fit.save(tmp_path / "fit.json")
    assert gradfit.load(tmp_path / "fit.json").beginning == fit.beginning


@pytest.mark.slow
def test_the_torch_engine_follows_many_starts_too():
    fit = gradfit.fit(peak, X, Y, start={"a": 1, "c": 420, "w": 2, "o": 0}, multistart=24, engine="torch")
    assert fit.values["c"] == pytest.approx(468, abs=1)


@pytest.mark.parametrize("turns", [0.7, 5.3, 17.8, 44.1])
def test_a_wave_of_any_frequency_that_the_points_tell_is_found(turns):
    x = np.linspace(0, 1, 100)
    y = 2 * np.sin(2 * np.pi * turns * x + 0.8) + 0.2 * np.random.default_rng(3).standard_normal(100)
    fit = gradfit.fit(lambda x, a, w, p: a * torch.sin(w * x + p), x, y)
    assert abs(fit.values["w"]) == pytest.approx(2 * np.pi * turns, rel=0.05)


def test_minima_with_a_number_at_its_bound_of_zero_are_listed():
    fit = gradfit.fit(peak, X, Y - 1.5, bounds={"o": (0, None)}, start=PEAK, multistart=16)
    assert fit.params["o"].at_bound
    assert fit.minima[0].loss == pytest.approx(fit.loss, rel=1e-6)


def test_a_parameter_without_effect_is_refused_with_a_start_and_without():
    for chosen in ({}, {"start": [1.0, 1.0, 1.0]}, {"multistart": 4}):
        with pytest.raises(gradfit.ModelError, match="does not depend on c"):
            gradfit.fit(lambda x, a, b, c: a * torch.exp(-b * (x - 400) / 50) + 0 * c, X, Y, **chosen)
