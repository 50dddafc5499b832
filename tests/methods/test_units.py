"""Answers do not depend on units: data and parameters in other units give the same steps, and values and errors as algebra says."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import gradfit

X = np.linspace(0.5, 6.0, 40)
NOISE = np.random.default_rng(11).normal(0.0, 1.0, len(X))


# Each model takes its parameters in units that the columns give: p1 * u1 is the number the formula is about.


def line(x, u1, u2, p1, p2):
    return p1 * u1 * x + p2 * u2


def decay(x, u1, u2, u3, p1, p2, p3):
    return p1 * u1 * torch.exp(-p2 * u2 * x) + p3 * u3


def peak(x, u1, u2, u3, p1, p2, p3):
    return p1 * u1 * torch.exp(-(((x - p2 * u2) / (p3 * u3)) ** 2) / 2)


def saturation(x, u1, u2, p1, p2):
    return p1 * u1 * x / (p2 * u2 + x)


def power(x, u1, u2, p1, p2):
    return p1 * u1 * x ** (p2 * u2)


@dataclass(frozen=True)
class Case:
    """A model, the truth behind its data, a start, and the powers of the units of x and y that its parameters have."""

    model: Any = field(repr=False)
    truth: tuple[float, ...]
    start: tuple[float, ...]
    of_x: tuple[float, ...]
    of_y: tuple[float, ...]
    noise: float = 0.05
    bounds: tuple[tuple[float, float], ...] | None = None
    any_x: bool = True

    def fitted(self, kx=1.0, ky=1.0, kp=None, **options):
        """Fit with x in units of 1/kx, y in 1/ky, and each parameter as large as kp says; and give its units."""
        kp = np.ones(len(self.truth)) if kp is None else np.asarray(kp)[: len(self.truth)]
        own = np.array([kx**a * ky**b for a, b in zip(self.of_x, self.of_y, strict=True)])
        truth = [torch.tensor(value, dtype=torch.float64) for value in self.truth]
        clean = self.model(torch.from_numpy(X), *[torch.ones(len(X))] * len(truth), *truth).numpy()
        columns = [X * kx, *(np.full(len(X), 1 / k) for k in kp), (clean + self.noise * NOISE) * ky]
        names = [f"p{place + 1}" for place in range(len(truth))]
        start = dict(zip(names, (np.array(self.start) * own * kp).tolist(), strict=True))
        bounds = None
        if self.bounds is not None:
            edges = zip(self.bounds, (own * kp).tolist(), strict=True)
            bounds = {name: (low * unit, high * unit) for name, ((low, high), unit) in zip(names, edges, strict=True)}
        return gradfit.fit(self.model, *columns, start=start, bounds=bounds, on_failure="ignore", **options), own * kp


CASES = {
    "line": Case(line, (2.0, 1.0), (1.0, 1.0), (-1, 0), (1, 1)),
    "line from 0": Case(line, (2.0, 1.0), (0.0, 0.0), (-1, 0), (1, 1)),
    "line from far": Case(line, (2.0, 1.0), (-3e4, 2e5), (-1, 0), (1, 1)),
    "decay": Case(decay, (3.0, 0.7, 0.5), (1.0, 1.0, 1.0), (0, -1, 0), (1, 0, 1)),
    "decay, offset from 0": Case(decay, (3.0, 0.7, 0.5), (1.0, 0.2, 0.0), (0, -1, 0), (1, 0, 1)),
    "decay, rate from 0": Case(decay, (3.0, 0.7, 0.5), (2.0, 0.0, 0.3), (0, -1, 0), (1, 0, 1)),
    "decay on a bound": Case(decay, (3.0, 0.7, 0.5), (1.0, 1.0, 1.0), (0, -1, 0), (1, 0, 1), bounds=((0.0, 2.5), (0.1, 9.0), (0.0, 9.0))),
    "peak": Case(peak, (5.0, 3.0, 0.8), (3.0, 2.5, 1.5), (0, 1, 1), (1, 0, 0)),
    "peak from 0": Case(peak, (5.0, 3.0, 0.8), (3.0, 0.0, 3.0), (0, 1, 1), (1, 0, 0)),
    "saturation": Case(saturation, (4.0, 1.5), (1.0, 1.0), (0, 1), (1, 0)),
    "saturation from far": Case(saturation, (4.0, 1.5), (300.0, 0.0), (0, 1), (1, 0)),
    "power": Case(power, (1.5, 0.8), (1.0, 1.0), (0, 0), (1, 0), any_x=False),
    "power from 0": Case(power, (1.5, 0.8), (2.0, 0.0), (0, 0), (1, 0), any_x=False),
}  # fmt: skip
SCALE = st.floats(-8, 8).map(lambda power: 10.0**power)
ENGINES = ("native", "torch")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CASES)
@given(kx=SCALE, ky=SCALE, kp=st.tuples(SCALE, SCALE, SCALE))
@example(kx=1e8, ky=1e-8, kp=(1e8, 1e-8, 1e8))
@example(kx=1e-8, ky=1e8, kp=(1e-8, 1e8, 1e-8))
@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_other_units_give_the_same_steps_and_the_values_and_errors_of_algebra(name, engine, kx, ky, kp):
    case = CASES[name]
    plain, _ = case.fitted(engine=engine)
    other, units = case.fitted(kx if case.any_x else 1.0, ky, kp, engine=engine)
    assert plain.engine == other.engine == engine
    assert plain.success
    assert other.status == plain.status
    assert len(other.history["train_loss"]) == len(plain.history["train_loss"])
    assert_allclose([p.value for p in other.params.values()], [p.value for p in plain.params.values()] * units, rtol=1e-9)
    assert_allclose([p.stderr for p in other.params.values()], [p.stderr for p in plain.params.values()] * units, rtol=1e-9)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("name", ["line", "decay", "peak", "saturation"])
def test_descent_in_scaled_units_goes_the_same_way(name, optimizer):
    options = {"method": optimizer, "epochs": 300, "engine": "native"}
    plain, _ = CASES[name].fitted(**options)
    other, units = CASES[name].fitted(1e8, 1e-6, (1e-8, 1e5, 1e3), **options)
    assert other.status == plain.status
    assert_allclose([p.value for p in other.params.values()], [p.value for p in plain.params.values()] * units, rtol=1e-6)


def exact_line(x, y):
    """Slope, intercept and their standard errors in rational arithmetic."""
    x, y = [Fraction(float(value)) for value in x], [Fraction(float(value)) for value in y]
    n, sx, sy = len(x), sum(x), sum(y)
    sxx, sxy = sum(u * u for u in x), sum(u * v for u, v in zip(x, y, strict=True))
    spread = n * sxx - sx * sx
    slope = (n * sxy - sx * sy) / spread
    intercept = (sy - slope * sx) / n
    variance = sum((slope * u + intercept - v) ** 2 for u, v in zip(x, y, strict=True)) / (n - 2)
    return (slope, intercept), (float(variance * n / spread) ** 0.5, float(variance * sxx / spread) ** 0.5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("offset", "off"), [(1e6, 1e-9), (1e9, 1e-5), (1e12, 1e-2)])
def test_a_line_far_from_the_origin_is_the_exact_one(offset, off, engine):
    """In standard errors, of which rounding at 1e9 could cost thousands."""
    x = X + offset
    y = 2 * X + 1 + 0.1 * NOISE
    fit = gradfit.fit(lambda x, a, b: a * x + b, x, y, engine=engine)
    assert fit.success
    values, errors = exact_line(x, y)
    for parameter, value, error in zip(fit.params.values(), values, errors, strict=True):
        assert abs(float(Fraction(parameter.value) - value)) <= off * error
        assert parameter.stderr == pytest.approx(error, rel=off)


@pytest.mark.parametrize("offset", [1e6, 1e9])
def test_a_peak_far_from_the_origin_is_that_at_the_origin(offset):
    def gaussian(x, height, center, width, floor):
        return height * torch.exp(-(((x - center) / width) ** 2) / 2) + floor

    far = X + offset
    y = gaussian(torch.from_numpy(X), 5, 3, torch.tensor(0.8), 1).numpy() + 0.1 * NOISE
    there = gradfit.fit(gaussian, far, y, start=[4.0, 2.5 + offset, 1.5, 0.0])
    here = gradfit.fit(gaussian, far - offset, y, start=[4.0, 2.5, 1.5, 0.0])
    assert there.success
    for name, own in here.params.items():
        moved = offset if name == "center" else 0.0
        assert abs(there.values[name] - moved - own.value) < 1e-4 * own.stderr
        assert there.params[name].stderr == pytest.approx(own.stderr, rel=1e-6)
