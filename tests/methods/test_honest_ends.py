"""No fit claims success away from a minimum: valleys, plateaus, saddles, kinks, jumps, exact zeros, few steps; judged by scipy."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import gradfit

pytestmark = pytest.mark.filterwarnings("ignore::gradfit.UndeterminedWarning")
X = np.linspace(0, 5, 40)
NOISE = np.random.default_rng(3).normal(0, 1, 40)


def two_decays(x, a, b, c, d):
    return a * torch.exp(-b * x) + c * torch.exp(-d * x)


MODELS = {
    "decay": (lambda x, a, b: a * torch.exp(-b * x), 3 * np.exp(-0.7 * X) + 0.05 * NOISE),
    "decay of nothing": (lambda x, a, b: a * torch.exp(-b * x), 0 * X),
    "decay that is a constant": (lambda x, a, b: a * torch.exp(-b * x), 0 * X + 2),
    "decay that is a line": (lambda x, a, b, c: a * torch.exp(-b * x) + c, 2 - 0.3 * X + 0.05 * NOISE),
    "saturated": (lambda x, a, b, c: a * torch.tanh(b * (x - c)), 2 * np.tanh(3 * (X - 2)) + 0.05 * NOISE),
    "sharp": (lambda x, a, b, c: a * torch.tanh(b * (x - c)), 2 * np.sign(X - 2.01)),
    "jump": (lambda x, a, b, c: torch.where(x < c, a, b), np.where(X < 2.2, 1.0, 3.0) + 0.1 * NOISE),
    "stairs": (lambda x, a, b: a * torch.floor(b * x) / 4 + x * a, 2 * X + 0.1 * NOISE),
    "rounded": (lambda x, a, b: torch.round(1000 * (a * x + b)) / 1000 + 0 * a, 2 * X + 1 + 0.1 * NOISE),
    "size": (lambda x, a, b: torch.abs(a) * x + b, -X + 0.1 * NOISE),
    "square": (lambda x, a, b: a**2 * x + b, -X + 0.1 * NOISE),
    "product": (lambda x, a, b, c: a * b * x + c, -2 * X + 1 + 0.1 * NOISE),
    "two decays": (two_decays, 3 * np.exp(-0.5 * X) + 2 * np.exp(-3 * X) + 0.02 * NOISE),
    "peak": (lambda x, h, m, s: h * torch.exp(-(((x - m) / s) ** 2) / 2), 5 * np.exp(-(((X - 3) / 0.3) ** 2) / 2) + 0.05 * NOISE),
    "saturation that is a line": (lambda x, v, k: v * x / (k + x), 0.5 * X + 0.02 * NOISE),
    "power": (lambda x, a, p: a * x**p, 1.5 * X**0.5 + 0.05 * NOISE),
    "single inside": (lambda x, a, b: (a * torch.exp(-b * x)).float().double(), 3 * np.exp(-0.7 * X) + 0.05 * NOISE),
}  # fmt: skip
STARTS = [
    [1, 1, 1, 1],
    [0, 0, 0, 0],
    [-1, -1, -1, -1],
    [30, -20, 5, 2],
    [1e-3, 1e3, 1, 1e-3],
    [2, 50, 2, 50],
    [1e6, 1e6, 1e6, 1e6],
]
WAYS = {
    "lm": {},
    "lm, one step": {"max_steps": 1},
    "lm, three steps": {"max_steps": 3},
    "adam": {"method": "adam", "epochs": 300, "learning_rate": 0.05},
    "sgd": {"method": "sgd", "epochs": 300},
}


def total(model, theta):
    def at(point):
        numbers = [torch.tensor(float(value), dtype=torch.float64) for value in point]
        return float(((model[0](torch.from_numpy(X), *numbers).double().numpy() - model[1]) ** 2).sum())

    return at(theta)


def lowest_nearby(model, theta):
    """Lowest sum of squares that simplexes from the point, and from points a thousandth beside it, find."""
    random = np.random.default_rng(0)
    size = np.where(theta != 0, np.abs(theta), 1e-3)
    found = []
    for share in (0.0, 1e-3, 1e-3):
        begin = theta + share * size * random.standard_normal(len(theta))
        simplex = np.vstack([begin, begin + 1e-2 * np.diag(size)])
        options = {"initial_simplex": simplex, "maxfev": 300, "xatol": 1e-12, "fatol": 0}
        found.append(
            minimize(
                lambda point: np.nan_to_num(total(model, point), nan=np.inf), begin, method="Nelder-Mead", options=options
            ).fun
        )
    return min(found)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_success_is_claimed_at_a_minimum_only(name, way):
    model = MODELS[name]
    names = list(inspect.signature(model[0]).parameters)[1:]
    for values in STARTS:
        start = dict(zip(names, map(float, values), strict=False))
        try:
            fit = gradfit.fit(model[0], X, model[1], start=start, on_failure="ignore", **WAYS[way])
        except gradfit.ModelError as error:
            assert "near the start" in str(error)  # noqa: PT017 - a start where a parameter moves nothing is refused
            continue
        if not fit.success:
            continue
        theta = np.array([fit.values[own] for own in names])
        here, rounding = total(model, theta), 1e-10 * float(model[1] @ model[1]) + 1e-30
        # A thousandth of the variance of one residual is a thirtieth of a standard error.
        assert here - lowest_nearby(model, theta) <= 1e-3 * here / (40 - len(names)) + rounding, (values, fit.message, theta)


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_a_system_that_was_not_solved_within_its_steps_is_not_said_to_be(engine):
    """As many functions as parameters leave no degree of freedom to measure the distance by."""

    def functions(i, x, y):
        return torch.where(i == 0, 10 * (y - x**2), 1 - x)

    options = {"start": {"x": -1.2, "y": 1.0}, "engine": engine, "on_failure": "ignore"}
    assert not gradfit.fit(functions, np.arange(2.0), np.zeros(2), max_steps=3, **options).success
    fit = gradfit.fit(functions, np.arange(2.0), np.zeros(2), **options)
    assert fit.success
    np.testing.assert_allclose(list(fit.values.values()), 1, rtol=1e-12)


def test_an_element_that_the_model_does_not_contain_spoils_nothing():
    def line(x, c):
        return c[0] * x + c[2]

    y = 2 * X + 1 + 0.1 * NOISE
    fit = gradfit.fit(line, X, y, start={"c": [0.5, 7.0, 0.0]})
    assert fit.success
    slope, intercept = np.polyfit(X, y, 1)
    np.testing.assert_allclose(fit.values["c"], [slope, 7, intercept], rtol=1e-9)
    assert [bool(np.isnan(own.stderr)) for own in fit.params.values()] == [False, True, False]


def test_errors_are_not_given_where_the_linear_form_does_not_hold():
    """Jennrich and Sampson: at the minimum both rates are one, and the derivative is singular."""
    i = np.arange(1.0, 11)
    fit = gradfit.fit(lambda i, a, b: torch.exp(i * a) + torch.exp(i * b), i, 2 + 2 * i, start={"a": 0.3, "b": 0.4})
    assert fit.success
    np.testing.assert_allclose(list(fit.values.values()), 0.2578252, rtol=1e-6)
    assert all(np.isnan(own.stderr) for own in fit.params.values())
