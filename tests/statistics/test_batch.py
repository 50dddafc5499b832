"""Errors of many fits are those of single ones."""

from __future__ import annotations

import numpy as np
import pytest

import gradfit

X = np.linspace(0, 10, 25)
START = {"a": 80.0, "t": 3.0, "c": 8.0}


def decay(x, a, t, c):
    return a * np.exp(-x / t) + c


def sets(count: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    low, high = np.array([[50, 1.5, 5], [150, 4, 15]])
    truth = generator.uniform(low, high, (count, 3))
    return decay(X, *(column[:, None] for column in truth.T)) + 2 * generator.standard_normal((count, len(X)))


def with_outliers(target: np.ndarray) -> np.ndarray:
    generator = np.random.default_rng(1)
    return np.where(generator.uniform(size=target.shape) < 0.06, target + 30, target)


CASES = {
    "squared": {},
    "sigma": {"sigma": np.linspace(1, 3, 25)},
    "measured sigma": {"sigma": 2.0, "absolute_sigma": True},
    "bounds": {"bounds": {"t": (2.0, 3.0)}},
    "huber": {"loss": "huber", "f_scale": 3.0},
    "soft_l1": {"loss": "soft_l1", "f_scale": 3.0},
    "cauchy": {"loss": "cauchy", "f_scale": 4.0},
    "huber with sigma": {"loss": "huber", "f_scale": 1.5, "sigma": np.linspace(1, 3, 25)},
    "poisson": {"loss": "poisson"},
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_errors_are_those_of_single_fits(name):
    options = CASES[name]
    target = sets(5, 0)
    if options.get("loss") == "poisson":
        target = np.random.default_rng(2).poisson(np.maximum(target, 0)).astype(float)
    elif "loss" in options:
        target = with_outliers(target)
    fits = gradfit.fit_many(decay, X, target, start=START, covariance=True, **options)
    assert fits.success.all()
    for place, row in enumerate(target):
        single = gradfit.fit(decay, X, row, start=START, **options)
        for name, parameter in single.params.items():
            np.testing.assert_allclose(fits.stderr[name][place], parameter.stderr, rtol=1e-3, equal_nan=True)
            if np.isfinite(parameter.stderr):
                assert abs(fits.values[name][place] - parameter.value) < 2e-3 * parameter.stderr
            else:
                assert fits.values[name][place] == parameter.value  # on its bound
        error = np.sqrt(np.diag(single.covariance))
        away = np.abs(fits.covariance[place] - single.covariance) / np.outer(error, error)
        np.testing.assert_array_less(away[np.isfinite(away)], 2e-3)
        np.testing.assert_array_equal(np.isnan(fits.covariance[place]), np.isnan(single.covariance))
        np.testing.assert_allclose(fits.loss[place], single.loss, rtol=1e-5)


def test_what_the_data_do_not_determine_has_no_error():
    fits = gradfit.fit_many(lambda x, a, b, c: (a + b) * x + c, X, sets(3, 3), start={"a": 1.0, "b": 2.0, "c": 0.0})
    assert np.isnan(fits.stderr["a"]).all()
    assert np.isnan(fits.stderr["b"]).all()
    single = gradfit.fit(lambda x, m, c: m * x + c, X, sets(3, 3)[1])
    np.testing.assert_allclose(fits.values["c"][1], single.values["c"], rtol=1e-9)
    # Three parameters were counted, of which the data determine two.
    np.testing.assert_allclose(fits.stderr["c"][1], single.params["c"].stderr * np.sqrt(23 / 22), rtol=1e-9)


def test_as_many_rows_as_parameters_leave_no_error():
    fits = gradfit.fit_many(decay, X[:3], sets(3, 4)[:, [0, 8, 20]][:, :3], start=START)
    assert np.isnan(fits.stderr["a"]).all()
