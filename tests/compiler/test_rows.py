"""A row's function over all rows: sums, stores and weights, and random models against torch."""

from __future__ import annotations

import ctypes
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from row_harness import row_source, run_rows, traced
from torch import Tensor

from gradfit.compiler import model_code
from gradfit.compiler.descent_code import loss_object
from gradfit.compiler.eager import EagerKernel, tensors
from gradfit.compiler.graph import Untraceable
from gradfit.compiler.native import Function, load
from gradfit.compiler.row_trace import loss_row, prediction_row
from gradfit.compiler.rows import RowSource
from gradfit.data.dataset import Dataset
from gradfit.model import loss as losses
from gradfit.model.model import function_model
from gradfit.model.parameters import parameters

DOUBLES = {"double": np.float64, "single": np.float32}


def kernel_of(function, columns, target, *, start=None, sigma=None, loss="squared", dtype=torch.float64, **options):
    model = function_model(function, count=len(columns), target="y")
    data = Dataset(columns, target, "y", sigma, np.arange(len(target)))
    known = parameters(model.defaults, start=start, **options)
    return EagerKernel(model, known, losses.resolve(loss, data), model.function, **tensors(data, dtype))


def context(columns, fixed, dtype):
    """Addresses of columns, as compiled code wants them; and what must stay alive."""
    held = [np.ascontiguousarray(column, DOUBLES[dtype]) for column in (fixed, *columns)]
    return np.array([len(held[1]), *(column.ctypes.data for column in held)], np.int64), held


def mean_loss(source: RowSource, theta: np.ndarray, columns: list[np.ndarray], fixed: Any = ()) -> tuple[float, np.ndarray]:
    function = Function(load([loss_object(source)], ["gf_loss"]), "gf_loss", ctypes.c_double, 3)
    words, held = context(columns, fixed, source.dtype)
    point, gradient = np.ascontiguousarray(theta, DOUBLES[source.dtype]), np.empty(len(theta))
    loss = function.call(point.ctypes.data, words.ctypes.data, gradient.ctypes.data)
    assert len(held) == len(columns) + 1
    return loss, gradient


def linearized(
    source: RowSource, theta: np.ndarray, columns: list[np.ndarray], fixed: Any = (), *, weighted: bool = False
) -> dict:
    library = load([model_code.model_object(source, weighted=weighted)], model_code.NAMES)
    counts = dict(zip(model_code.NAMES, (4, 3, 2, 4), strict=True))
    call = {name: Function(library, name, ctypes.c_double, counts[name]).call for name in model_code.NAMES}
    words, held = context(columns, fixed, "double")
    n, p = len(held[1]), len(theta)
    guard = 16  # nothing may be written behind the end
    value, slope = np.full(n + guard, -7.0), np.full(n * p + guard, -7.0)
    given = (theta.ctypes.data, words.ctypes.data)
    found: dict[str, Any] = {"sum": call["gf_linearize"](*given, value.ctypes.data, slope.ctypes.data)}
    found |= {"residual": value[:n].copy(), "jacobian": slope[: n * p].reshape(p, n).T.copy()}
    assert (value[n:] == -7).all()
    assert (slope[n * p :] == -7).all()
    assert call["gf_sum_of_squares"](*given) == found["sum"]
    assert call["gf_residual"](*given, value.ctypes.data) == found["sum"]
    assert_array_equal(value[:n], found["residual"])
    call["gf_predict"](*given, value.ctypes.data, slope.ctypes.data)
    return found | {"prediction": value[:n], "derivative": slope[: n * p].reshape(p, n).T}


def decay(x, a, b):
    return a * torch.exp(-b * x)


# --- sums and stores ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 9, 16, 17, 31, 64, 65])
def test_any_number_of_rows_is_computed_once_each(n):
    x = np.linspace(0.1, 3, n)
    y = np.cos(x)
    theta = np.array([1.3, 0.7])
    found = linearized(prediction_row(kernel_of(decay, {"x": x}, y)), theta, [x, y])
    expected = 1.3 * np.exp(-0.7 * x)
    jacobian = np.stack([np.exp(-0.7 * x), -x * expected], axis=1)
    assert_allclose(found["prediction"], expected, rtol=1e-15)
    assert_allclose(found["residual"], expected - y, rtol=1e-12, atol=1e-15)
    assert_allclose(found["derivative"], jacobian, rtol=1e-14)
    assert_array_equal(found["jacobian"], found["derivative"])
    assert_allclose(found["sum"], ((expected - y) ** 2).sum(), rtol=1e-13)


def test_weights_multiply_residuals_and_derivatives_but_not_predictions():
    x = np.linspace(0.1, 3, 13)
    y, sigma = np.cos(x), np.linspace(0.5, 2, 13)
    source, theta = prediction_row(kernel_of(decay, {"x": x}, y, sigma=sigma)), np.array([1.3, 0.7])
    plain, found = linearized(source, theta, [x, y]), linearized(source, theta, [x, y, 1 / sigma], weighted=True)
    assert_array_equal(found["prediction"], plain["prediction"])
    assert_array_equal(found["derivative"], plain["derivative"])
    assert_allclose(found["residual"], plain["residual"] / sigma, rtol=1e-15)
    assert_allclose(found["jacobian"], plain["jacobian"] / sigma[:, None], rtol=1e-15)


def test_the_same_rows_give_the_same_bits():
    x = np.random.default_rng(1).normal(size=1001)
    source = loss_row(kernel_of(decay, {"x": x}, np.sin(x)))
    first = mean_loss(source, np.array([1.3, 0.7]), [x, np.sin(x)])
    for _ in range(3):
        again = mean_loss(source, np.array([1.3, 0.7]), [x.copy(), np.sin(x)])
        assert again[0] == first[0]
        assert_array_equal(again[1], first[1])


def test_sums_of_single_precision_are_kept_in_double():
    n = 200_000
    x, y = np.ones(n), np.full(n, 0.1)
    kernel = kernel_of(lambda x, a: a * x, {"x": x}, y, dtype=torch.float32)
    loss, gradient = mean_loss(loss_row(kernel), np.array([0.4]), [x, y])
    row = np.float32(np.float32(0.4) - np.float32(0.1))
    assert_allclose(loss, np.float32(row * row), rtol=1e-12)
    assert_allclose(gradient, [np.float32(2 * row)], rtol=1e-12)


def test_the_last_row_is_not_counted_again():
    x = np.array([0.0] * 8 + [1.0])
    loss, gradient = mean_loss(loss_row(kernel_of(lambda x, a: a * x, {"x": x}, np.zeros(9))), np.array([3.0]), [x, np.zeros(9)])
    assert loss == 1.0
    assert_array_equal(gradient, [2 * 3.0 / 9])


def test_fixed_parameters_are_read_where_the_context_says():
    x, y = np.linspace(0.1, 3, 11), np.zeros(11)
    source = prediction_row(kernel_of(decay, {"x": x}, y, start={"a": 1.3}, fixed={"b": 0.2}))
    assert source.parameters == ("a",)
    assert source.fixed == ("b",)
    for b in (0.2, 1.7):
        assert_allclose(linearized(source, np.array([1.3]), [x, y], [b])["prediction"], 1.3 * np.exp(-b * x), rtol=1e-14)


def test_what_does_not_depend_on_the_row_is_spread_over_all():
    x, y = np.linspace(0.1, 3, 11), np.zeros(11)
    found = linearized(prediction_row(kernel_of(lambda x, a, b: a + 0 * x + b * b, {"x": x}, y)), np.array([2.0, 3.0]), [x, y])
    assert_array_equal(found["prediction"], np.full(11, 11.0))
    assert_array_equal(found["derivative"], np.tile([1.0, 6.0], (11, 1)))


def test_a_constant_result_fills_its_column():
    graph = traced(lambda x: [x, torch.full_like(x, 2.5), torch.zeros_like(x)], {"x": torch.ones(1, dtype=torch.float64)})
    x = np.arange(11.0)
    assert_array_equal(run_rows(row_source(graph, "double"))(x), [x, np.full(11, 2.5), np.zeros(11)])


def test_rows_see_no_builtins():
    source = RowSource("def row(x):\n    return print(x),\n", "double", ("x",), (), (), ("out",))
    with pytest.raises(NameError):
        run_rows(source)


def test_the_key_depends_on_everything():
    source = RowSource("def row(x, a):\n    return a * x,\n", "double", ("x",), ("a",), (), ("out",))
    changes = {"text": "", "dtype": "single", "inputs": ("u",), "parameters": ("b",), "fixed": ("b",), "outputs": ("f",)}
    assert len({source.key, *(dataclasses.replace(source, **{name: value}).key for name, value in changes.items())}) == 7


# --- losses, ties, parameters of several numbers -----------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["squared", "huber", "soft_l1", "cauchy", "poisson", torch.nn.functional.l1_loss])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
def test_losses_and_their_gradients_are_those_of_torch(loss, dtype):
    x = np.linspace(0.1, 3, 29)
    y = np.round(5 * np.exp(-0.4 * x) + np.cos(9 * x) + 1)
    kernel = kernel_of(decay, {"x": x}, y, loss=loss, dtype=dtype)
    theta = torch.tensor([4.1, 0.35], dtype=dtype, requires_grad=True)
    expected = kernel.loss(theta)
    expected.backward()
    value, gradient = mean_loss(loss_row(kernel), theta.detach().numpy(), [x, y])
    rtol = 1e-13 if dtype == torch.float64 else 2e-6
    assert_allclose(value, expected.item(), rtol=rtol)
    assert_allclose(gradient, theta.grad.numpy(), rtol=rtol, atol=rtol)


def test_sigma_and_ties_enter_the_loss():
    x = np.linspace(0.1, 3, 29)
    y, sigma = np.cos(x), np.linspace(0.2, 2, 29)
    kernel = kernel_of(decay, {"x": x}, y, sigma=sigma, tied={"b": "a**2 / 3"})
    theta = torch.tensor([1.2], dtype=torch.float64, requires_grad=True)
    expected = kernel.loss(theta)
    expected.backward()
    value, gradient = mean_loss(loss_row(kernel), theta.detach().numpy(), [x, y, sigma])
    assert_allclose(value, expected.item(), rtol=1e-14)
    assert_allclose(gradient, theta.grad.numpy(), rtol=1e-13)


WRONG = {
    "whole numbers": (lambda x, a: (a * x).long(), "it gives torch.int64 of shape .1,. for one row"),
    "conditions": (lambda x, a: a * x > 0, "it gives torch.bool"),
    "a single number": (lambda x, a: (a * x).sum(), "of shape .. for one row"),
    "two numbers": (lambda x, a: torch.cat([a * x, x]), "of shape .2,. for one row"),
    "a column": (lambda x, a: (a * x)[:, None], "of shape .1, 1. for one row"),
    "no tensor": (lambda x, a: 1.0, "it gives no tensor for one row"),
    "a branch": (lambda x, a: a * x if a > 0 else x, "branches on values"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_model_is_refused_that_gives(name):
    model, reason = WRONG[name]
    with pytest.raises(Untraceable, match=reason):
        prediction_row(kernel_of(model, {"x": np.ones(3)}, np.ones(3)))


def test_inputs_of_several_columns_are_refused():
    with pytest.raises(Untraceable, match="its input x has several columns"):
        prediction_row(kernel_of(lambda x, a: a * x[:, 0], {"x": np.ones((3, 2))}, np.ones(3)))


def test_a_model_without_free_parameters_has_only_a_value():
    source = prediction_row(kernel_of(decay, {"x": np.ones(3)}, np.ones(3), fixed={"a": 1.0, "b": 2.0}))
    assert source.outputs == ("prediction",)
    assert source.fixed == ("a", "b")


# --- random models -----------------------------------------------------------------------------------------------------

UNARY: dict[str, Callable[..., Tensor]] = {
    "sin": torch.sin,
    "cos": torch.cos,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "atan": torch.atan,
    "erf": torch.erf,
    "exp": lambda u: torch.exp(torch.clamp(u, -4, 2)),
    "log": lambda u: torch.log(1 + u * u),
    "sqrt": lambda u: torch.sqrt(0.1 + u.abs()),
    "softplus": torch.nn.functional.softplus,
    "square": torch.square,
    "cube": lambda u: u**3,
    "inverse": lambda u: 1 / (u * u + 0.3),
    "neg": torch.neg,
    "asinh": torch.asinh,
    "minus one": lambda u: 1 - u,
}
BINARY: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "over": lambda u, v: u / (v * v + 0.5),
    "power": lambda u, v: (u * u + 0.2) ** torch.tanh(v),
    "maximum": torch.maximum,
    "hypot": lambda u, v: torch.hypot(u, v + 0.1),
    "atan2": lambda u, v: torch.atan2(u, v * v + 0.1),
    "where": lambda u, v: torch.where(u > v, u * v, v - u),
    "logaddexp": torch.logaddexp,
    "lerp": lambda u, v: torch.lerp(u, v, 0.3),
}
LEAVES = ("x", "u", "v", "a", "b", "d", "c[0]", "c[1]", "c[2]", "sum c", 0.7, 2)
EXPRESSIONS = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(sorted(UNARY)), inner),
        st.tuples(st.sampled_from(sorted(BINARY)), inner, inner),
    ),
    max_leaves=12,
)


def compute(tree: Any, known: dict[str, Tensor], sizes: list[float] | None = None) -> Tensor:
    """Compute an expression, and note how large its parts are."""
    match tree:
        case (name, *parts):
            values = [compute(part, known, sizes) for part in parts]
            result = (UNARY if len(parts) == 1 else BINARY)[name](*values)
        case "sum c":
            result = (known["c"] * known["c"]).sum(0)
        case str() if tree[1:2] == "[":
            result = known["c"][int(tree[2])]
        case str():
            result = known[tree]
        case _:
            return torch.tensor(float(tree), dtype=torch.float64)
    if sizes is not None:
        sizes.append(float(result.detach().abs().max()))
    return result


def depth(tree: Any) -> int:
    return 1 + max(map(depth, tree[1:])) if isinstance(tree, tuple) else 0


@settings(max_examples=70, deadline=None, derandomize=True)
@given(EXPRESSIONS, EXPRESSIONS, st.sampled_from([1, 7, 8, 37]))
def test_random_models_have_the_loss_and_gradient_that_torch_gives(first, second, n):
    assume(depth(first) <= 5)
    assume(depth(second) <= 5)
    random = np.random.default_rng(n)
    columns = {name: random.uniform(-2, 2, n) for name in ("x", "u", "v")}
    y = random.normal(size=n)

    def model(x, u, v, a, b, d, c):
        known = {"x": x, "u": u, "v": v, "a": a, "b": b, "d": d, "c": c}
        return compute(first, known) * a + compute(second, known) * x

    start = {"a": 1.1, "b": 0.6, "d": -0.8, "c": np.array([0.4, 1.3, -0.9])}
    # One value of each parameter per row: the gradient of each row shows how large the terms of the sum are.
    each = {
        name: torch.tensor(value, dtype=torch.float64)[..., None].expand(*np.shape(value), n) for name, value in start.items()
    }
    leaves = [value.clone().requires_grad_() for value in each.values()]
    data = {name: torch.from_numpy(column) for name, column in columns.items()}
    known = data | dict(zip(start, leaves, strict=True))
    sizes: list[float] = []
    total = compute(first, known, sizes) * known["a"] + compute(second, known, sizes) * known["x"]
    assume(max(sizes, default=0) < 1e3)
    rows = (total - torch.from_numpy(y)) ** 2
    slopes = torch.cat([g.reshape(-1, n) for g in torch.autograd.grad(rows.sum(), leaves, materialize_grads=True)]).numpy()

    kernel = kernel_of(model, columns, y, start=start)
    value, gradient = mean_loss(loss_row(kernel), kernel.parameters.start, [*columns.values(), y])
    assert math.isclose(value, rows.mean().item(), rel_tol=1e-10)
    size = np.abs(slopes).max(initial=1e-3)
    assert_allclose(gradient, slopes.mean(axis=1), rtol=1e-10, atol=1e-10 * size)
