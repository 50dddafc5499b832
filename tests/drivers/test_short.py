"""The short way gives what the long one gives, bit for bit, and leaves everything else to it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import gradfit
from gradfit.statistics.summary import Short

START = {"a": 1.0, "k": 1.0, "c": 0.0}
METHODS = {
    "lm": {},
    "sgd": {"method": "sgd", "learning_rate": 0.3, "epochs": 3000, "scale": False},
    "adam": {"method": "adam", "learning_rate": 0.1, "epochs": 2000, "scale": False},
    "step": {
        "method": "adam", "learning_rate": 0.1, "epochs": 1500, "scale": False, "scheduler": "StepLR",
        "scheduler_options": {"step_size": 500, "gamma": 0.5},
    },
}  # fmt: skip


def decay(x, a, k, c):
    return a * torch.exp(-k * x) + c


def data(n=30, seed=0):
    x = np.linspace(0.1, 4, n)
    return x, 2 * np.exp(-0.8 * x) + 0.3 + np.random.default_rng(seed).normal(0, 0.02, n)


def is_short(fit):
    return isinstance(fit._given, Short)


def fitted(n=30, seed=0, **options):
    return gradfit.fit(decay, *data(n, seed), start=START, **options)


@pytest.mark.parametrize("method", METHODS)
def test_both_ways_give_the_same_bits(method, capsys):
    fitted(**METHODS[method])
    short = fitted(seed=1, **METHODS[method])
    long = fitted(seed=1, every=10**6, **METHODS[method])  # a line to print sends it the long way
    assert is_short(short)
    assert not is_short(long)
    assert np.array_equal(short.covariance, long.covariance)
    assert (short.values, short.names, short.status, short.success) == (long.values, long.names, long.status, long.success)
    assert short.history.columns == long.history.columns
    for name in long.history:
        assert np.array_equal(short.history[name], long.history[name], equal_nan=True)
    assert short.message == long.message
    assert short.report() == long.report()


def test_a_result_is_not_changed_by_later_fits_nor_by_the_callers_arrays():
    x, y = data()
    gradfit.fit(decay, x, y, start=START)
    kept = gradfit.fit(decay, x, y, start=START)
    expected = kept.values
    y += 5
    gradfit.fit(decay, x, y, start=START)
    assert kept.values == expected
    assert kept.record.estimates[2].value == expected["c"]


def test_another_start_another_size_and_another_order_are_seen():
    for _ in range(2):
        small, large = fitted(12), fitted(40)
    assert is_short(large)
    assert (small.n, large.n) == (12, 40)
    named = gradfit.fit(decay, *data(), start={"c": 0.0, "a": 1.0, "k": 1.0})
    listed = gradfit.fit(decay, *data(), start=[1.0, 1.0, 0.0])
    assert named.values == listed.values
    assert fitted().record.estimates[0].start == 1.0
    other = gradfit.fit(decay, *data(), start=START | {"a": 3.0})
    assert other.record.estimates[0].start == 3.0


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda x, y: (x, np.where(x > 3, np.nan, y)), gradfit.DataError),
        (lambda x, y: (x[:-1], y), gradfit.DataError),
        (lambda x, y: (x[:2], y[:2]), gradfit.DataError),
        (lambda x, y: (x.astype(complex), y), gradfit.DataError),
    ],
)
def test_bad_data_are_refused_as_on_the_long_way(change, error):
    fitted()
    fitted()
    with pytest.raises(error):
        gradfit.fit(decay, *change(*data()), start=START)


def test_a_fit_that_does_not_converge_says_so():
    options = {"method": "sgd", "learning_rate": 1e-4, "epochs": 50, "scale": False}
    for _ in range(2):
        with pytest.warns(gradfit.FitWarning, match="Not converged after 50 epochs"):
            assert not fitted(**options).success
    fitted()
    with pytest.warns(gradfit.FitWarning):
        assert gradfit.fit(decay, *data(), start=START | {"k": -1e4}).status == "not_finite"


def test_steps_are_counted_on_the_short_way_too():
    for _ in range(2):
        assert fitted(max_steps=2, on_failure="ignore").status == "not_converged"
        assert fitted(max_steps=50).success


def test_a_parameter_without_effect_is_refused_also_when_the_model_is_known():
    def model(x, a, b):
        return a * x + b * torch.relu(x - 2)

    x = np.linspace(0, 4, 20)
    gradfit.fit(model, x, x + np.sin(x))
    gradfit.fit(model, x, x + np.sin(x))
    with pytest.raises(gradfit.ModelError, match="does not depend on b"):
        gradfit.fit(model, x / 4, x + np.sin(x))
