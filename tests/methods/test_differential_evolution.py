"""The global search: minima that a fit from one start misses, scipy's own result beside it, bounds asked for, the loop as for any method."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from scipy.optimize import differential_evolution

import gradfit
from gradfit.data.split import split

X = np.linspace(0, 10, 200)
NOISE = np.random.default_rng(0).normal(0, 0.3, 200)


def sine(x, a=1.0, w=1.0, phi=0.0):
    return a * torch.sin(w * x + phi)


def two_peaks(x, a=1.0, m=5.0, s=1.0, b=1.0, n=5.0, t=1.0):
    return a * torch.exp(-(((x - m) / s) ** 2)) + b * torch.exp(-(((x - n) / t) ** 2))


def rastrigin(k, a=0.0, b=0.0, c=0.0, d=0.0):
    """Rows whose squares sum to Rastrigin's function of four numbers: u**2, and 10 (1 - cos 2 pi u)."""
    place = [a, b, c, d]
    rows = [*place, *(math.sqrt(20) * torch.sin(math.pi * u) for u in place)]
    return sum(torch.where(k == number, row, 0.0) for number, row in enumerate(rows))


HIGH_FREQUENCY = 2 * np.sin(23.7 * X + 0.8) + NOISE
PEAKS = 3 * np.exp(-(((X - 2) / 0.4) ** 2)) + 1.5 * np.exp(-(((X - 8) / 0.7) ** 2)) + 0.3 * NOISE
FAR = {"a": 3.7, "b": -4.2, "c": 2.6, "d": 4.4}
LANDSCAPES = {
    "sine": (sine, X, HIGH_FREQUENCY, {"a": (0.1, 10), "w": (0.1, 40), "phi": (0, 2 * np.pi)}, None),
    "two peaks": (
        two_peaks, X, PEAKS, {name: {"m": (0, 5), "n": (5, 10)}.get(name, (0.1, 5)) for name in "amsbnt"}, {"m": 4.5, "n": 5.5, "s": 0.2, "t": 0.2},
    ),
    "rastrigin": (rastrigin, np.arange(8.0), np.full(8, 1e-3), dict.fromkeys("abcd", (-5.12, 5.12)), FAR),
}  # fmt: skip


@pytest.mark.parametrize("name", LANDSCAPES)
def test_the_lowest_minimum_is_found_where_a_fit_from_one_start_misses_it(name):
    model, x, y, bounds, start = LANDSCAPES[name]
    data = {"k" if name == "rastrigin" else "x": x, "y": y}
    options = {"data": data, "target": "y", "bounds": bounds, "start": start, "on_failure": "ignore"}
    local = gradfit.fit(model, **options)
    found = gradfit.fit(model, **options, method="differential_evolution", seed=1)

    def loss(points):
        with torch.no_grad():
            rows = torch.from_numpy(x)
            return np.array([float(np.mean((model(rows, *torch.from_numpy(point)).numpy() - y) ** 2)) for point in points.T])

    theirs = differential_evolution(
        loss, list(bounds.values()), seed=1, vectorized=True, updating="deferred", tol=1e-8, maxiter=2000
    )
    assert found.success
    assert local.loss > 1.2 * found.loss
    assert found.loss == pytest.approx(theirs.fun, rel=1e-6)
    np.testing.assert_allclose(list(found.values.values()), theirs.x, rtol=1e-3, atol=1e-6)


def test_the_end_is_that_of_levenberg_marquardt_with_its_errors():
    bounds = LANDSCAPES["sine"][3]
    found = gradfit.fit(sine, X, HIGH_FREQUENCY, method="global", bounds=bounds)
    local = gradfit.fit(sine, X, HIGH_FREQUENCY, bounds=bounds, start=found.values)
    assert found.status == "converged"
    np.testing.assert_allclose(list(found.values.values()), list(local.values.values()), rtol=1e-9)
    np.testing.assert_allclose(found.covariance, local.covariance, rtol=1e-6)
    assert "generations of 45 candidates by scipy, then Levenberg-Marquardt" in found.engine_reason


def test_the_seed_decides_to_the_bit_whatever_is_shown():
    bounds = LANDSCAPES["sine"][3]

    def run(**options):
        return gradfit.fit(sine, X, HIGH_FREQUENCY, method="differential_evolution", bounds=bounds, **options)

    first, again, other = run(seed=3), run(seed=3, every=7, out=io.StringIO(), progress=False), run(seed=4)
    for column in first.history.columns:
        np.testing.assert_array_equal(first.history[column], again.history[column])
    assert not np.array_equal(first.history["w"][:5], other.history["w"][:5])
    np.testing.assert_allclose(first.values["w"], other.values["w"], rtol=1e-9)


def test_the_history_tells_the_best_of_each_generation():
    out = io.StringIO()
    found = gradfit.fit(
        sine, X, HIGH_FREQUENCY, method="differential_evolution", bounds=LANDSCAPES["sine"][3], every=10, out=out, validation=0.2
    )
    history = found.history
    assert (np.diff(history["train_loss"]) <= 0).all()
    train = split(200, 0.2, seed=0, row_numbers=np.arange(200))[0]
    for step in (1, 20, len(history)):
        row = history.row(step)
        residual = row["a"] * np.sin(row["w"] * X + row["phi"]) - HIGH_FREQUENCY
        after = history.row(step + 1)["train_loss"] if step < len(history) else found.loss
        assert after == pytest.approx(np.mean(residual[train] ** 2))
    assert np.isfinite(history["validation_loss"]).all()
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("step 1 ")
    assert lines[1].startswith("step 10 ")


@pytest.mark.parametrize(
    ("loss", "engine"),
    [("cauchy", "native"), ("poisson", "native"), ("poisson", "torch"), (lambda f, y: ((f - y) ** 2).mean(), "torch")],
)
def test_any_loss_can_be_searched(loss, engine):
    counts = np.random.default_rng(2).poisson(20 + 8 * np.sin(7.3 * X + 1))

    def wave(x, c=15.0, a=5.0, w=3.0, phi=0.0):
        return c + a * torch.sin(w * x + phi)

    bounds = {"c": (12, 40), "a": (1, 11), "w": (1, 12), "phi": (-3, 3)}
    found = gradfit.fit(wave, X, counts, loss=loss, method="differential_evolution", bounds=bounds, engine=engine)
    near = gradfit.fit(wave, X, counts, loss=loss, bounds=bounds, engine=engine, start=[20, 8, 7.3, 1])
    assert found.success
    np.testing.assert_allclose(list(found.values.values()), list(near.values.values()), rtol=1e-4)
    if callable(loss):
        assert found.status == "completed"
        assert "then LBFGS" in found.engine_reason


def test_numpy_models_fixed_tied_and_vector_parameters_are_searched():
    def model(x, c, w=3.0, a=1.0, twice=2.0):
        return c[0] + c[1] * np.interp(x, x, np.sin(w * x)) + 0 * a + 0 * twice

    y = 1 + 2 * np.sin(7.3 * X) + 0.1 * NOISE
    found = gradfit.fit(
        model, X, y, start={"c": [0.0, 1.0]}, bounds={"c": (-5, 5), "w": (1, 12)}, fixed={"a": 1.0}, tied={"twice": "2*a"},
        method="differential_evolution", population=40, max_generations=60, on_failure="ignore",
    )  # fmt: skip
    assert found.values["w"] == pytest.approx(7.3, abs=0.01)
    np.testing.assert_allclose(np.abs(found.values["c"]), [1, 2], atol=0.05)


def test_every_free_parameter_needs_two_finite_bounds():
    with pytest.raises(gradfit.ParameterError, match=r"a, phi have none, or only one.*'a': \(lower, upper\)"):
        gradfit.fit(sine, X, HIGH_FREQUENCY, method="differential_evolution", bounds={"w": (1, 40), "phi": (0, None)})
    found = gradfit.fit(
        sine, X, HIGH_FREQUENCY, method="differential_evolution", bounds={"w": (1, 40)}, fixed={"a": 2.0, "phi": 0.8}, seed=2
    )
    assert found.values["w"] == pytest.approx(23.7, abs=0.01)


def test_a_search_that_is_cut_short_says_so():
    found = gradfit.fit(
        sine,
        X,
        HIGH_FREQUENCY,
        method="differential_evolution",
        bounds=LANDSCAPES["sine"][3],
        max_generations=3,
        on_failure="ignore",
    )
    assert "after 3 generations with its candidates still apart" in found.message
    assert np.isfinite(found.history["spread"][:3]).all()


def test_a_model_without_values_between_the_bounds_has_a_status():
    found = gradfit.fit("y = log(-a - x)", data={"x": X, "y": X}, method="global", bounds={"a": (1, 5)}, on_failure="ignore")
    assert found.status == "not_finite"
    assert "none of 20 places between the bounds" in found.message
    half = gradfit.fit(
        "y = log(a) + 0*x", data={"x": X, "y": np.full(200, 1.0)}, method="global", bounds={"a": (-5, 5)}, start={"a": 4}
    )
    assert half.values["a"] == pytest.approx(np.e)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"population": 4}, "population is 4"),
        ({"max_generations": 0}, "max_generations is 0"),
        ({"rtol": 1.5}, "rtol is 1.5"),
        ({"strategy": "best3bin"}, "unknown strategy 'best3bin'"),
        ({"popsize": 15}, "unknown option of method 'differential_evolution', 'popsize'"),
    ],
)
def test_options_are_checked(options, said):
    with pytest.raises(gradfit.OptionError, match=said):
        gradfit.fit(sine, X, HIGH_FREQUENCY, method="differential_evolution", bounds=LANDSCAPES["sine"][3], **options)


def test_data_without_noise_end_the_search_too():
    found = gradfit.fit(sine, X, 2 * np.sin(23.7 * X + 0.8), method="global", bounds=LANDSCAPES["sine"][3])
    assert found.values == pytest.approx({"a": 2, "w": 23.7, "phi": 0.8}, rel=1e-12)
    assert len(found.history) < 400


def test_folds_and_comparisons_search_too():
    bounds = LANDSCAPES["sine"][3]
    options = {"method": gradfit.DifferentialEvolution(population=30), "bounds": bounds}
    found = gradfit.fit(sine, X, HIGH_FREQUENCY, folds=3, **options)
    assert (found.cross_validation < 0.2).all()
    constant = gradfit.fit(lambda x, c=0.0: c + 0 * x, X, HIGH_FREQUENCY)
    assert gradfit.compare({"constant": constant, "sine": found}, folds=3).best == "sine"


def test_an_interrupt_ends_the_search_as_any_fit():
    calls = 0

    def model(x, w=3.0):
        nonlocal calls
        calls += 1
        if calls > 200:
            raise KeyboardInterrupt
        return np.sin(np.interp(w, [0, 40], [0, 40]) * x)

    with pytest.raises(KeyboardInterrupt):
        gradfit.fit(model, X, HIGH_FREQUENCY, method="differential_evolution", bounds={"w": (1, 40)})
