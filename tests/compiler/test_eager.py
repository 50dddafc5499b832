"""The torch engine: how a model is called, and that its derivatives are whole."""

from __future__ import annotations

import math
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import gradfit
from gradfit.compiler import calling
from gradfit.data.dataset import Dataset
from gradfit.errors import ModelError
from gradfit.model import loss as losses
from gradfit.model.model import function_model
from gradfit.model.parameters import parameters

X = np.linspace(0.5, 3, 12)
Y = 2 * np.exp(-0.5 * X) + 0.01 * np.sin(40 * X)
CAPTURED = np.linspace(1, 2, 12)


def kernel_of(function, *, x=X, y=None, start=None, bounds=None, dtype=torch.float64):
    model = function_model(function, count=1, target="y")
    target = np.cos(x) if y is None else y
    data = Dataset({model.data_names[0]: x.copy()}, target, "y", None, np.arange(len(x)))
    known = parameters(model.defaults, start=start, bounds=bounds)
    return calling.build(model, known, data, losses.resolve("squared", data), dtype=dtype)


class WithoutForwardMode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return torch.exp(u)

    @staticmethod
    def backward(ctx, outward):
        (u,) = ctx.saved_tensors
        return outward * torch.exp(u)


# Model, value and the columns of its Jacobian in closed form at a = 1.2, b = 0.7.
A, B = 1.2, 0.7
CLOSED_FORMS = {
    "exponential": (lambda x, a, b: a * torch.exp(-b * x), [np.exp(-B * X), -A * X * np.exp(-B * X)]),
    "power": (lambda x, a, b: a * x**b, [X**B, A * X**B * np.log(X)]),
    "sine": (lambda x, a, b: a * torch.sin(b * x), [np.sin(B * X), A * X * np.cos(B * X)]),
    "lorentzian": (lambda x, a, b: a / (x**2 + b**2), [1 / (X**2 + B**2), -2 * A * B / (X**2 + B**2) ** 2]),
    "logistic": (
        lambda x, a, b: torch.sigmoid(a * (x - b)),
        [(X - B) * np.exp(-A * (X - B)) / (1 + np.exp(-A * (X - B))) ** 2, -A * np.exp(-A * (X - B)) / (1 + np.exp(-A * (X - B))) ** 2],
    ),
    "no forward derivative": (
        lambda x, a, b: a * WithoutForwardMode.apply(-b * x),
        [np.exp(-B * X), -A * X * np.exp(-B * X)],
    ),
    "cumulative sum": (lambda x, a, b: torch.cumsum(a * x, 0) + b, [np.cumsum(X), np.ones(12)]),
    "fourier": (lambda x, a, b: torch.fft.irfft(torch.fft.rfft(a * x), n=12) + b**2, [X, np.full(12, 2 * B)]),
    "convolution": (
        lambda x, a, b: torch.nn.functional.conv1d((a * x)[None, None], torch.stack([b, b * b, b])[None, None], padding=1)[0, 0],
        [np.convolve(X, [B, B * B, B], "same"), A * np.convolve(X, [1, 2 * B, 1], "same")],
    ),
    "linear system": (
        lambda x, a, b: torch.linalg.solve(a * torch.eye(12, dtype=x.dtype), x) + b * x,
        [-X / A**2, X],
    ),
    "in pieces": (lambda x, a, b: torch.where(x < 1.5, a * x, b), [np.where(X < 1.5, X, 0), np.where(X < 1.5, 0, 1)]),
}  # fmt: skip


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_the_jacobian_is_the_closed_form(name):
    function, columns = CLOSED_FORMS[name]
    kernel = kernel_of(function)
    assert not kernel.numeric
    assert_allclose(kernel.jacobian(np.array([A, B]))[1], np.stack(columns, 1), rtol=1e-12, atol=1e-14)


def test_the_jacobian_is_whole_in_many_threads_at_once():
    kernel = kernel_of(lambda x, a, b: a * torch.exp(-b * x))
    expected = kernel.jacobian(np.array([A, B]))[1]

    def all_equal(_):
        return all((kernel.jacobian(np.array([A, B]))[1] == expected).all() for _ in range(100))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(all_equal, range(4)))


# --- no gradient is lost in silence ------------------------------------------------------------------------------------

LOSSES = {
    "float": lambda x, a, b: a * torch.exp(-float(b) * x),
    "item": lambda x, a, b: a * torch.exp(-b.item() * x),
    "detach": lambda x, a, b: a * torch.exp(-b.detach() * x),
    "data": lambda x, a, b: a * torch.exp(-b.data * x),
    "in part": lambda x, a, b: a * torch.exp(-b * x) + b.item() ** 2 * x,
    "a thousandth": lambda x, a, b: 1e4 * a * torch.exp(-b * x) + a.item() * x,
}


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("start", [{"a": 1.0, "b": 1.0}, {"a": 0.0, "b": 0.0}])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_parameter_made_a_plain_number_is_refused_by_name(name, start, dtype):
    lost = "a" if name == "a thousandth" else "b"
    if name == "a thousandth":
        start = {"a": 1.0, "b": 20.0}
    with pytest.raises(ModelError, match=rf"turns {lost} into a plain number"):
        kernel_of(LOSSES[name], start=start, dtype=dtype)


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
def test_a_numpy_model_that_takes_plain_numbers_gets_finite_differences():
    fit = gradfit.fit(lambda x, a, b: a * np.exp(-float(b) * x), X, Y)
    assert "plain number" in fit.engine_reason
    assert fit.values["b"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("name", ["kink at the start", "fast phase", "tiny scale", "jump", "zero slope", "rounding"])
def test_a_whole_gradient_is_not_suspected(name):
    rough = {
        "kink at the start": (lambda x, a, b: a * torch.relu(b - 1) + a * x + b * x, {}),
        "fast phase": (lambda x, a, b: a * torch.sin(b * x * 1e6), {}),
        "tiny scale": (lambda x, a, b: a * torch.exp(-x * 1e-9 / b), {"b": 1e-9}),
        "jump": (lambda x, a, b: torch.where(x < b, a, a * b * x), {"b": 1.5}),
        "zero slope": (lambda x, a, b: a * torch.exp(b * x), {"a": 0.0}),
        "rounding": (lambda x, a, b: a * torch.floor(7 * b * x) + b, {}),
    }
    function, start = rough[name]
    x = np.linspace(0.5, 3, 5000) if name == "jump" else X
    kernel = kernel_of(function, x=x, start=start)
    assert "on tensors" in kernel.reason


# --- what comes back ---------------------------------------------------------------------------------------------------


def changes_its_input(x, a, b):
    x -= 1
    return a * x + b


def forgets_to_return(x, a, b):
    a * x + b


def raises(x, a, b):
    raise ValueError("my own trouble")


WRONG = {
    "(n, 1)": (lambda x, a, b: (a * x + b)[:, None], r"shape \(12, 1\) for 12 rows"),
    "()": (lambda x, a, b: a + b, r"shape \(\) for 12 rows"),
    "(n, n)": (lambda x, a, b: a * x[:, None] * x[None] + b, r"shape \(12, 12\)"),
    "tuple": (lambda x, a, b: (a * x + b,), r"shape \(1, 12\)"),
    "None": (forgets_to_return, "gave None"),
    "complex": (lambda x, a, b: a * x + 1j * b, "complex128"),
    "bool": (lambda x, a, b: a * x > b, "bool"),
    "int": (lambda x, a, b: (a * x + b).to(torch.int64), "int64"),
    "in place": (changes_its_input, "changes its input 'x' in place"),
    "raises": (raises, "ValueError: my own trouble"),
    "no parameter": (lambda x, a, b: a * x, "does not depend on b"),
    "far parameter": (lambda x, a, b: a * x + torch.relu(b - 100.0), "does not depend on b near the start"),
    "random": (lambda x, a, b: a * x + b + torch.rand(len(x)), "other values when called again"),
    "random numpy": (lambda x, a, b: a * x + b + np.random.rand(len(x)), "other values when called again"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_model_that_cannot_serve_is_refused_with_the_reason(name):
    function, message = WRONG[name]
    with pytest.raises(ModelError, match=message):
        kernel_of(function)


def test_data_changed_in_place_are_put_back():
    x = X.copy()
    with pytest.raises(ModelError, match="in place"):
        gradfit.fit(changes_its_input, x, Y)
    assert (x == X).all()


@pytest.mark.parametrize(
    "function",
    [
        lambda x, a, b: [float(a) * float(u) + float(b) for u in x],
        lambda x, a, b: np.array([a * u + b for u in x]),
        lambda x, a, b: a * x * CAPTURED / CAPTURED + b,
        lambda x, a, b: a * x + b * np.ones(len(x)),
    ],
)
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
def test_lists_and_arrays_serve_with_finite_differences(function):
    kernel = kernel_of(function)
    assert_allclose(kernel.jacobian(np.array([1.3, 0.7]))[1], np.stack([X, np.ones(12)], 1), rtol=1e-9)


def test_a_model_that_raises_on_the_way_stops_there_and_is_quoted():
    def model(x, a, b):
        if b < 0.8:
            raise ValueError("too small")
        return a * torch.exp(-b * x)

    fit = gradfit.fit(model, X, Y, on_failure="ignore")
    assert fit.status == "stalled"
    assert re.search(r"raised ValueError at a = .*, b = .*too small", fit.message)
    with pytest.raises(ModelError, match=r"raised ValueError at a = .*, b = .*too small"):
        gradfit.fit(model, X, Y, method="sgd", learning_rate=0.1)


def test_a_start_without_a_finite_value_is_a_result_that_says_so():
    fit = gradfit.fit(lambda x, a, b: a * torch.log(-b * x), X, Y, start=[1.0, 1.0], on_failure="ignore")
    assert fit.status == "not_finite"


def test_a_numpy_model_is_not_asked_beyond_its_bounds():
    def model(x, a, b):
        assert b >= 0
        return a * np.interp(x, [0, 4], [0.0, 1.0]) + np.sqrt(b + 1)

    kernel = kernel_of(model, start={"a": 1.0, "b": 0.0}, bounds={"b": (0, None)})
    derivative = kernel.jacobian(np.array([1.0, 0.0]))[1]
    assert_allclose(derivative[:, 1], 0.5, rtol=1e-5)


def test_a_vector_parameter_as_long_as_the_data_is_no_column():
    def model(x, c, x0):
        if x > x0:
            return c[0] + c[11] * x
        return c[1] * x

    kernel = kernel_of(lambda x, c: x * c[0] + c[1:].sum(), start={"c": np.ones(12)})
    assert_allclose(kernel.jacobian(np.ones(12))[1][:, 0], X)
    by_row = calling._row_by_row(model, ("x",))
    value = by_row(x=torch.from_numpy(X), c=torch.arange(12.0, dtype=torch.float64), x0=torch.tensor(1.0))
    assert_allclose(value, np.where(X > 1, 11 * X, X))


# --- precision ---------------------------------------------------------------------------------------------------------


def with_float32_weights():
    layer = torch.nn.Linear(1, 1)
    return lambda x, a, b: a * layer(x[:, None]).squeeze(1) + b


def test_float32_weights_in_a_function_are_named_as_the_trouble():
    with pytest.raises(ModelError, match="dtype='float32'"):
        gradfit.fit(with_float32_weights(), X, Y)


def test_float32_weights_in_a_function_work_in_float32():
    fit = gradfit.fit(with_float32_weights(), X, Y, dtype="float32", on_failure="ignore")
    line = np.polyval(np.polyfit(X, Y, 1), X)
    assert_allclose(fit.predict(X), line, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kernel_computes_in_the_precision_asked_for(dtype):
    kernel = kernel_of(lambda x, a, b: a * np.exp(-b * x), dtype=dtype)
    assert kernel.predict(torch.ones(2, dtype=dtype)).dtype == dtype
    assert_allclose(kernel.jacobian(np.array([A, B]))[0], A * np.exp(-B * X), rtol=10 * torch.finfo(dtype).eps)


def test_one_row_is_enough_for_one_parameter():
    with pytest.warns(gradfit.UndeterminedWarning, match="no degree of freedom"):
        fit = gradfit.fit(lambda x, a: a * math.exp(-x), [1.0], [2.0])
    assert fit.values["a"] == pytest.approx(2 * math.e)


# --- rows --------------------------------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(12)))
def test_the_order_of_rows_does_not_matter(order):
    def model(x, a, b):
        return a * np.exp(-b * x)

    first, second = gradfit.fit(model, X, Y), gradfit.fit(model, X[order], Y[order])
    assert_allclose(list(second.values.values()), list(first.values.values()), rtol=1e-10)
    assert_allclose(second.covariance, first.covariance, rtol=1e-8)
    assert (first.predict(X)[order] == first.predict(X[order])).all()
