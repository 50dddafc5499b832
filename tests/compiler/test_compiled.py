"""A compiled kernel gives what the torch engine gives: values, derivatives, Hessian times a vector; or says why it does not."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import gradfit
from gradfit.compiler import calling
from gradfit.data.dataset import Dataset
from gradfit.errors import ModelError
from gradfit.model import loss as losses
from gradfit.model.model import function_model
from gradfit.model.parameters import parameters


def peak(x, a=2.0, mu=0.2, sigma=1.1, b=0.3):
    return a * torch.exp(-0.5 * ((x - mu) / sigma) ** 2) + b


def waves(x, c=np.array([1.0, 0.5, -0.3]), k=1.3):
    return c[0] * x + c[1] * torch.sin(k * x) + c[2] ** 2 * torch.where(x > 0, x, -x)


def numpy_peak(x, a=2.0, mu=0.2, sigma=1.1):
    return a * np.exp(-0.5 * ((x - mu) / sigma) ** 2)


CASES = {
    "peak": (peak, {}),
    "numpy": (numpy_peak, {}),
    "vector": (waves, {}),
    "fixed and tied": (peak, {"fixed": {"b": 0.2}, "tied": {"mu": "sigma / 3"}}),
    "sigma": (peak, {"sigma": True}),
    "huber": (peak, {"loss": "huber"}),
    "cauchy in single precision": (peak, {"loss": "cauchy", "dtype": torch.float32}),
    "torch's own loss": (peak, {"loss": torch.nn.functional.mse_loss}),
}


def kernels(function, *, sigma=False, loss="squared", dtype=torch.float64, n=37, **options):
    x = np.linspace(-4, 5, n)
    y = 3 * np.exp(-0.5 * ((x - 0.4) / 1.2) ** 2) + 0.5
    model = function_model(function, count=1, target="y")
    known = parameters(model.defaults, **options)
    data = Dataset({"x": x}, y, "y", 0.1 + 0.01 * x**2 if sigma else None, np.arange(n))
    measure = losses.resolve(loss, data)
    return [calling.build(model, known, data, measure, dtype=dtype, engine=engine) for engine in ("native", "torch")]


@pytest.mark.parametrize("case", CASES)
def test_every_quantity_is_that_of_the_torch_engine(case):
    function, options = CASES[case]
    native, eager = kernels(function, **options)
    rtol = 1e-5 if options.get("dtype") == torch.float32 else 1e-12
    assert (native.engine, eager.engine) == ("native", "torch")
    theta = native.parameters.start * 1.07
    vector = np.random.default_rng(0).normal(size=len(theta))
    for name in ("jacobian", "residual"):
        for ours, theirs in zip(getattr(native, name)(theta), getattr(eager, name)(theta), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=rtol * np.abs(theirs).max())
    np.testing.assert_allclose(native.mean_loss(theta), eager.mean_loss(theta), rtol=rtol)
    product = eager.hessian_product(theta, vector)
    np.testing.assert_allclose(native.hessian_product(theta, vector), product, rtol=rtol, atol=10 * rtol * np.abs(product).max())
    points = [torch.tensor(theta, dtype=native.dtype, requires_grad=True) for _ in range(2)]
    for kernel, point in zip((native, eager), points, strict=True):
        kernel.loss(point).backward()
    np.testing.assert_allclose(points[0].grad, points[1].grad, rtol=10 * rtol, atol=rtol)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 9, 16, 17])
def test_rows_that_fill_no_vector_count_once_each(n):
    native, eager = kernels(lambda x, a=1.5: a * x, n=n)
    np.testing.assert_allclose(native.mean_loss(np.array([2.0])), eager.mean_loss(np.array([2.0])), rtol=1e-13)
    np.testing.assert_allclose(native.jacobian(np.array([2.0]))[0], eager.jacobian(np.array([2.0]))[0], rtol=1e-15)


def linear(n_rows):
    x = np.linspace(0.5, 3, n_rows)
    return x, 2 * x + 1


REFUSED = {
    "a branch": (lambda x, a, b: a * x + b if float(a) > 0 else b - x, "plain number|finite differences"),
    "a matrix": (lambda x, a, b: torch.linalg.solve(torch.eye(len(x), dtype=x.dtype) * (2 + a), x) + b, "how many rows"),
    "mixed rows": (lambda x, a, b: a * (x - x.mean()) + b, "all rows at once"),
    "an unknown operator": (lambda x, a, b: a * torch.special.i0(x) + b, "operator i0|special_i0"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::gradfit.FitWarning")
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_compiled_runs_on_torch_and_says_why(case):
    function, words = REFUSED[case]
    fit = gradfit.fit(function, *linear(12))
    assert fit.engine == "torch"
    assert re.search(words, fit.engine_reason), fit.engine_reason
    with pytest.raises(ModelError, match="engine='native' was asked for"):
        gradfit.fit(function, *linear(12), engine="native")


def test_a_torch_module_is_not_compiled():
    x, y = linear(20)
    fit = gradfit.fit(torch.nn.Linear(1, 1).double(), x, y, method="adam", epochs=5, on_failure="ignore")
    assert fit.engine == "torch"
    assert "module" in fit.engine_reason


def test_the_source_is_python_that_a_person_can_read():
    x, y = linear(20)
    fit = gradfit.fit(lambda x, w, b: w * x + b, x, y, method="adam", epochs=50, on_failure="ignore")
    compile(fit.source, "source", "exec")
    assert "def row(x, target, w, b):" in fit.source
    assert "def step(" in fit.source
    assert gradfit.fit(lambda x, w, b: w * x + b, x, y).source.startswith("def row(x, w, b):")
    assert gradfit.fit(lambda x, w, b: w * x + b, x, y, engine="torch").source == ""


def test_a_closure_over_another_number_is_another_model():
    def model(number):
        return lambda x, w: w * x * number

    x, y = linear(20)
    values = [gradfit.fit(model(number), x, y).values["w"] for number in (1.0, 2.0, 1.0, 4.0) for _ in range(3)]
    np.testing.assert_allclose(np.array(values[::3]) * [1, 2, 1, 4], values[0], rtol=1e-12)


def test_a_model_with_a_side_effect_is_run_and_not_compiled():
    seen = []

    def watched(x, w, b):
        seen.append(1)
        return w * x + b

    fit = gradfit.fit(watched, *linear(20))
    assert fit.engine == "torch"
    assert "changes something outside itself" in fit.engine_reason
    assert len(seen) > 3
