"""What calls of a model tell of its parameters, beside what its graph tells."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import voigt_profile

import gradfit
from gradfit.compiler.units import roles
from gradfit.methods.probing import probed

X = np.linspace(400.0, 500.0, 60)
T = np.linspace(280.0, 370.0, 60)

FORMULAS = {
    "decay": "y = a*exp(-b*x) + c",
    "peak": "y = a*exp(-((x - c)/w)**2) + d",
    "two peaks": "y = a*exp(-((x - c)/w)**2) + b*exp(-((x - d)/v)**2)",
    "saturation": "y = v*x/(k + x)",
    "wave": "y = a*sin(w*x + p)",
    "two inputs": "y = k*x*exp(-q*t) + c",
    "parabola": "y = a*x**2 + b*x + c",
}


@pytest.mark.parametrize("text", FORMULAS.values(), ids=FORMULAS.keys())
def test_calls_tell_the_same_as_the_graph(text):
    fit = gradfit.fit(text, data={"x": X, "t": T, "y": np.sin(X) + 0.01 * T}, multistart=1, on_failure="ignore")
    kernel, data = fit._known.kernel, fit._known.setting.data
    by_graph, by_calls = roles(kernel.eager), probed(kernel.eager, data)
    for name, role in by_graph.items():
        assert by_calls[name].linear == role.linear
        assert by_calls[name].powers == pytest.approx(role.powers, abs=1e-12)
        if text != FORMULAS["saturation"]:  # k is added to x there, and is no place: v*x does not move with it
            assert by_calls[name].column == role.column


def test_what_has_no_fixed_unit_is_left_open():
    fit = gradfit.fit("y = a*x**b", data={"x": X, "y": 2e-3 * X**1.4}, start=[1e-3, 1.0])
    found = probed(fit._known.kernel.eager, fit._known.setting.data)
    assert found["a"].powers is None
    assert found["a"].linear
    assert not found["b"].linear


def voigt(x, amplitude, center, sigma, gamma, floor):
    return amplitude * voigt_profile(np.asarray(x) - center, sigma, gamma) + floor


@pytest.mark.parametrize("seed", range(8))
def test_a_peak_of_a_library_is_found_without_a_start(seed):
    generator = np.random.default_rng(seed)
    truth = generator.uniform([10, 20, 0.5, 0.5, 0], [100, 80, 4, 4, 2])
    x = np.linspace(0, 100, 200)
    exact = voigt(x, *truth)
    noise = 0.03 * exact.max()
    fit = gradfit.fit(voigt, x, exact + noise * generator.standard_normal(200))
    assert fit.engine == "torch"
    assert fit.beginning.kind == "search"
    assert fit.loss < 1.4 * noise**2
