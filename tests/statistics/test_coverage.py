"""Intervals of 95% hold the truth 95% of the time: the cases of bench/coverage.py, with few simulations and a fixed seed.

Under a true share q, the share of R simulations strays from q by 4.5 standard errors once in 150 000 times; the bounds below are that wide.
They still tell 1.96 standard errors on few points (0.85 to 0.88), and a covariance that believes its own rows (0.4 to 0.8).
"""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest

import gradfit

BENCH = Path(__file__).parents[2] / "bench" / "coverage.py"
WIDTH = 4.5  # standard errors


def _bench():
    """Load the bench by another name: "coverage" is also that of a package."""
    if "bench_coverage" not in sys.modules:
        spec = importlib.util.spec_from_file_location("bench_coverage", BENCH)
        module = sys.modules["bench_coverage"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["bench_coverage"]


def allowed(simulations: int, low: float = 0.945, high: float = 0.955) -> tuple[float, float]:
    """Bounds for the share of so many simulations, where the true share lies between low and high."""
    width = [WIDTH * math.sqrt(share * (1 - share) / simulations) for share in (low, high)]
    return low - width[0], high + width[1]


CASES = {
    "line n=6": 300,
    "exponential n=6": 300,
    "exponential n=11": 300,
    "peak n=11": 300,
    "Michaelis-Menten n=7": 300,
    "offset on its bound": 300,
    "absolute sigma": 300,
    "weights": 300,
    "relative matrix": 200,
    "tied -b/w": 300,
    "errors in x, line n=11, absolute sigma": 300,
    "errors in x, exponential n=20, relative sigma": 300,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_t_intervals_hold_the_truth_95_percent_of_the_time(name):
    simulations = CASES[name]
    found = _bench().measure(name, simulations=simulations, seed=1)
    low, high = allowed(simulations, 0.935, 0.965)
    assert low <= found.share <= high
    assert found.missing < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["huber", "soft_l1", "cauchy", "arctan"])
@pytest.mark.parametrize("shape", ["line n=8", "exponential n=11"])
def test_intervals_of_robust_fits_with_outliers_on_few_points_are_honest(loss, shape):
    found = _bench().measure(f"{loss} {shape}", simulations=200, seed=1)
    low, _ = allowed(200, 0.91)  # the sandwich without corrections: 0.70 to 0.92 here
    assert found.share >= low
    assert found.missing < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["confidence", "prediction"])
@pytest.mark.parametrize("name", ["line n=6", "exponential n=11", "relative sigma"])
def test_bands_hold_the_curve_and_new_measurements_95_percent_of_the_time(name, kind):
    found = _bench().measure(name, kind, simulations=300, seed=2)
    low, high = allowed(300, 0.935, 0.965)
    assert low - 0.01 <= found.share <= high  # the worst of some twenty points
    assert found.missing < 0.02


@pytest.mark.slow
def test_few_counts_are_covered_by_the_expected_information():
    found = _bench().measure("Poisson peak 40 counts", simulations=300, seed=1)
    assert found.share >= allowed(300, 0.935)[0]


def test_a_ratio_has_the_error_of_the_delta_method_near_fiellers():
    x = np.linspace(-1, 1, 11)
    y = 2 * x + 1 + np.random.default_rng(5).normal(0, 0.15, 11)
    fit = gradfit.fit(_bench().line_with_zero, x, y, tied={"zero": "-b/w"})
    w, b, zero = (fit.params[name] for name in ("w", "b", "zero"))
    assert zero.value == pytest.approx(-b.value / w.value, rel=1e-12)
    relative = math.hypot(b.stderr / b.value, w.stderr / w.value)  # the covariance of w and b is 0 for this x
    assert zero.stderr == pytest.approx(abs(zero.value) * relative, rel=1e-8)
    # Fieller, Some problems in interval estimation, 1954: where (b + w z)^2 = t^2 (s_b^2 + z^2 s_w^2)
    t = (w.upper - w.value) / w.stderr
    roots = np.roots([w.value**2 - (t * w.stderr) ** 2, 2 * w.value * b.value, b.value**2 - (t * b.stderr) ** 2])
    assert [zero.lower, zero.upper] == pytest.approx(sorted(roots), abs=0.05 * (zero.upper - zero.lower))


@pytest.mark.parametrize("case", ["line n=6", "absolute sigma"])
def test_the_same_seed_gives_the_same_share(case):
    assert _bench().measure(case, simulations=10, seed=3) == _bench().measure(case, simulations=10, seed=3)
