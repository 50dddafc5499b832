"""What a torch computation does to single numbers is recorded; what it cannot be recorded of is refused with the reason."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from row_harness import native, row_source, traced, with_slopes

from gradfit.compiler import trace
from gradfit.compiler.evaluate import evaluate
from gradfit.compiler.graph import Untraceable
from gradfit.compiler.trace import MAX_CONSTANTS, record

X = np.array([-2.0, -0.7, -0.0, 0.0, 0.3, 0.9, 1.0, 1.7, 3.2, 5.0, 11.0])
DOUBLE = torch.float64


def of_one_row(dtype=DOUBLE, **vectors):
    """One row of data, two parameters of the same start, a vector parameter."""
    values = {"x": [0.61], "a": 0.8, "b": 0.8, "c": [1.0, -0.5, 0.25]} | vectors
    return {name: torch.tensor(value, dtype=dtype) for name, value in values.items()}


def assert_recorded(model, *, dtype=DOUBLE, derivative=True):
    """The graph of a model, compiled, gives for every row what the model gives for that row; so do its derivatives."""
    example = of_one_row(dtype)

    def call(**values):
        if not derivative:
            return model(**values)
        leaves = [values[name].requires_grad_() for name in ("a", "b", "c")]
        with torch.enable_grad():
            result = model(**values)
            if not result.requires_grad:
                return [result]
            slopes = torch.autograd.grad(result.sum(), leaves, allow_unused=True, materialize_grads=True)
        return [result, *slopes]

    graph = traced(call, example)
    numbers = [*of_one_row(dtype, a=1.3, b=-0.7, c=[0.9, 2.0, -1.5]).items()][1:]
    columns = [X, *(np.full(len(X), number) for _, tensor in numbers for number in tensor.reshape(-1).tolist())]
    ours = native(graph, "double" if dtype == DOUBLE else "single")(*columns)
    for k, x in enumerate(X):
        given = call(x=torch.tensor([x], dtype=dtype), **{name: tensor.clone() for name, tensor in numbers})
        theirs = torch.cat([t.detach().reshape(-1).to(dtype) for t in ([given] if isinstance(given, torch.Tensor) else given)])
        assert_allclose(ours[:, k], theirs.numpy(), rtol=1e-13 if dtype == DOUBLE else 1e-5, atol=1e-15)
    return graph


# --- what is recorded --------------------------------------------------------------------------------------------------


def written_on_views(x, a, b, c):
    both = torch.stack([a * x, b * x])
    both[0] += 1
    both[1].mul_(c[0])
    upper = both[1:]
    upper -= a
    return both.sum(0)


def written_by_slices(x, a, b, c):
    values = torch.zeros(4, dtype=x.dtype)
    values[1:] = c
    values[0] = a * b
    values[::2] *= 2
    return x * values.sum() + values[3]


def written_on_a_transposed_view(x, a, b, c):
    matrix = torch.zeros(3, 2, dtype=x.dtype)
    matrix.t()[0] = c
    matrix[:, 1] = a
    matrix.view(-1)[3] = b
    return x * matrix[1].prod() + matrix.sum()


def masked(x, a, b, c):
    result = a * x
    result[x > 0.5] = 2.0
    result[result < 0] = 0.0
    return result + b


def masked_by_in_place_fill(x, a, b, c):
    result = b * x
    result.masked_fill_(x < 0, 1.5)
    return result * a


def with_where(x, a, b, c):
    return torch.where(x < 0, a * x, torch.where((x > 1) & ~(x > 4), b * x**2, c[0]))


def polynomial(x, a, b, c):
    result = torch.zeros_like(x)
    for k in range(3):
        result = result * x + c[k]
    return result + a * b


def powers(x, a, b, c):
    return (c * torch.stack([x**0, x, x**2], dim=1)).sum(1) + a * b


def product_with_a_matrix(x, a, b, c):
    return torch.stack([x**0, x, x**2], dim=1) @ c * a + b


def joined(x, a, b, c):
    return torch.cat([a * x, b * x, c]).prod() * x + torch.cat([x, c]).sum()


def moved_around(x, a, b, c):
    turned = torch.flip(c, (0,))
    return (
        a * x + (turned * torch.roll(c, 1)).sum() + b * c.repeat(2)[4] + c[torch.tensor([2, 0])].sum() + c[-1] * c[[1, 1]].prod()
    )


def several_at_once(x, a, b, c):
    first, second, third = c
    left, right = torch.split(c, [1, 2])
    return first * x + second * a + third * b + left + right.mean() + c.unbind()[1] + torch.chunk(c, 3)[2]


def written_to_constant_places(x, a, b, c):
    values = torch.zeros(4, dtype=x.dtype)
    values[[3, 1]] = c[:2]
    values[torch.tensor([True, False, False, False])] = a
    return x * values.prod() + c[torch.tensor([True, False, True])].sum() + b * values[[0, 3, 3]].sum()


def of_whole_constants(x, a, b, c):
    joined = torch.cat([x.long(), torch.tensor([5, 7])]) + torch.stack([torch.tensor(2), x.long()[0], torch.tensor(3)])
    return joined.sum() * a + torch.tensor([1, 4]).flip(0)[0] * b + c[0]


def reshaped(x, a, b, c):
    square = torch.outer(c, c)
    return a * x + square.diagonal().sum() + square.reshape(-1)[1::4].sum() + square.T[0, 2] * b + square.permute(1, 0)[1].amax()


def broadcast(x, a, b, c):
    return (x.unsqueeze(-1) * c + a).mean(-1) * b + c.expand(2, 3).sum() + torch.dot(c, c) + torch.cumsum(c, 0)[1]


def largest_and_norm(x, a, b, c):
    return a * x + c.amax() * b + c.amin() + torch.linalg.vector_norm(c) + c.norm()


def in_place_on_a_temporary(x, a, b, c):
    result = a * x
    result += b
    result.mul_(c[0]).sub_(c[1], alpha=0.5).clamp_(-3, 3)
    result.addcmul_(x, a, value=0.5)
    return result.exp_()


def overwritten(x, a, b, c):
    result = torch.empty_like(x)
    result.copy_(a * x)
    other = torch.full_like(x, 0.25)
    other.fill_(0.5)
    return result * b + other + torch.ones_like(x) * c[2] + x.new_zeros(1) + x.new_full((1,), 3.0)


def of_whole_numbers(x, a, b, c):
    bins = x.to(torch.int64)  # rounds toward zero
    return a * bins + b * (bins % 2) + torch.arange(3)[1] * c[0] + x.long() * 2


def of_conditions(x, a, b, c):
    inside = (x > 0) & (x < 2)
    return (
        a * inside + b * (~inside).to(x.dtype) + c[0] * inside.sum() + (x > 1) * (x < 3) * c[1] + (inside | (x < -1)).double() * x
    )


def of_another_precision(x, a, b, c):
    return (a * x.to(torch.float32)).to(torch.float64) + b + c[0].float()


def ignoring_its_data(x, a, b, c):
    return (a * b + c.sum()).expand(x.shape).clone()


def without_gradient(x, a, b, c):
    with torch.no_grad():
        scale = a * b
    return scale * x + c[0] + (a * x).detach()


RECORDED = [
    written_on_views, written_by_slices, written_on_a_transposed_view, masked, masked_by_in_place_fill, with_where, polynomial,
    powers, product_with_a_matrix, joined, moved_around, written_to_constant_places, of_whole_constants, several_at_once, reshaped, broadcast, largest_and_norm,
    in_place_on_a_temporary, overwritten, of_whole_numbers, of_conditions, ignoring_its_data, without_gradient,
]  # fmt: skip


@pytest.mark.parametrize("model", RECORDED, ids=lambda model: model.__name__)
def test_recorded_is(model):
    assert_recorded(model)


@pytest.mark.parametrize(
    "model", [written_on_views, masked, polynomial, powers, of_whole_numbers], ids=lambda model: model.__name__
)
def test_recorded_in_single_precision_is(model):
    assert_recorded(model, dtype=torch.float32)


def test_precisions_may_be_mixed():
    assert_recorded(of_another_precision)


def test_an_inner_derivative_is_recorded():
    def slope(x, a, b, c):
        point = x.detach().requires_grad_()
        (result,) = torch.autograd.grad((torch.sin(a * point) * b).sum(), point, create_graph=True)
        return result + c[0]

    assert_recorded(slope)


def test_a_tied_formula_is_recorded():
    assert_recorded(lambda x, a, b, c: a * x + (lambda w: w**2 + c[1])(a / 2) + b)


def test_equal_starts_are_not_confused():
    graph = record(lambda x, a, b: a * x - b, {name: torch.full((1,), 0.8, dtype=DOUBLE) for name in "xab"})
    values = {"x": torch.tensor(3.0), "a": torch.tensor(5.0), "b": torch.tensor(7.0)}
    assert evaluate(graph, values)[0] == 8


def test_an_argument_is_not_changed():
    example = of_one_row()
    before = {name: tensor.clone() for name, tensor in example.items()}
    record(lambda x, a, b, c: x.mul_(a).add_(c[0]), example)
    assert all(torch.equal(before[name], example[name]) for name in example)


def test_writing_to_an_argument_is_recorded():
    graph = record(lambda x, a, b, c: x.mul_(a).add_(x), of_one_row())
    known = {name: torch.tensor(float(k), dtype=DOUBLE) for k, name in enumerate(["x", "a", "b", "c[0]", "c[1]", "c[2]"], 2)}
    assert evaluate(graph, known)[0] == 2 * 3 * 2


def test_numbers_of_a_vector_are_named_by_their_place():
    graph = record(lambda x, a, b, c: a * x, of_one_row())
    assert [node.value for node in graph.inputs] == ["x", "a", "b", "c[0]", "c[1]", "c[2]"]


def test_several_results_are_several_outputs():
    graph = record(lambda x, a, b, c: (a * x, c), of_one_row())
    assert len(graph.outputs) == 4


# --- constants ---------------------------------------------------------------------------------------------------------

TENSOR, SCALAR, ARRAY = torch.tensor(0.3, dtype=DOUBLE), np.float64(0.3), torch.tensor([0.1, 0.2, 0.4], dtype=DOUBLE)


@pytest.mark.parametrize(
    "model",
    [
        lambda x, a, b, c: a * x + TENSOR,
        lambda x, a, b, c: TENSOR * x + a,
        lambda x, a, b, c: SCALAR * x + a,
        lambda x, a, b, c: a * x + (ARRAY * c).sum() + ARRAY[1] * b,
        lambda x, a, b, c: a * x + torch.tensor(0.3, dtype=DOUBLE) + torch.tensor([0.7]) * b,
        lambda x, a, b, c: a * x ** torch.tensor(2) + torch.linspace(0, 1, 3, dtype=DOUBLE) @ c,
        lambda x, a, b, c: a * x + torch.pi + math.e * b + np.float32(0.1) * c[0],
        lambda x, a, b, c: torch.where(x == x.new_tensor(0.3), a * x, torch.tensor(math.inf).clamp(max=2.0) * b),
    ],
)
def test_captured_numbers_are_constants_of_the_graph(model):
    assert_recorded(model)


def test_a_captured_tensor_that_changes_meanwhile_is_taken_as_it_was():
    counter = torch.tensor(1.0, dtype=DOUBLE)

    def model(x, a):
        first = x * counter
        counter.add_(1)
        return first + a * counter

    graph = record(model, {name: torch.ones(1, dtype=DOUBLE) for name in "xa"})
    assert evaluate(graph, {"x": torch.tensor(10.0), "a": torch.tensor(100.0)})[0] == 210


def test_constants_of_each_precision_keep_it():
    graph = traced(lambda x: x + torch.tensor(0.1), {"x": torch.ones(1, dtype=DOUBLE)})
    assert float(np.float32(0.1)) in [node.value for node in graph.nodes()]
    graph = traced(lambda x: x + 0.1, {"x": torch.ones(1, dtype=torch.float32)})
    assert native(graph, "single")([1.0]).dtype == np.float32


# --- what is refused ---------------------------------------------------------------------------------------------------


def with_if(x, a, b, c):
    return a * x if x > 0.5 else b * x


def with_max_of_python(x, a, b, c):
    return max(a, b) * x


def listed(x, a, b, c):
    return x * sum(c.tolist())


REFUSED = {
    "if": (with_if, "branches on values"),
    "bool": (lambda x, a, b, c: a * x if bool((x > 0).all()) else b, "branches on values|operator all"),
    "max of Python": (with_max_of_python, "branches on values"),
    "float": (lambda x, a, b, c: float(a) * x, "branches on values"),
    "item": (lambda x, a, b, c: x * a.item(), "branches on values"),
    "int": (lambda x, a, b, c: x * int(a), "branches on values"),
    "tolist": (listed, "branches on values"),
    "numpy": (lambda x, a, b, c: x * np.float64(a.detach().numpy()), "branches on values"),
    "numpy array": (lambda x, a, b, c: x * float(np.asarray(c.detach()).sum()), "branches on values"),
    "masked select": (lambda x, a, b, c: a * x[x > 0], "chooses places of a tensor by values"),
    "lookup by value": (lambda x, a, b, c: c[(x > 0).long()] * x, "chooses places of a tensor by values"),
    "selection by value": (lambda x, a, b, c: c.index_select(0, (x > 0).long()), "chooses places of a tensor by values"),
    "random numbers": (lambda x, a, b, c: a * x + torch.randn(1, dtype=DOUBLE), "draws random numbers"),
    "dropout": (lambda x, a, b, c: torch.nn.functional.dropout(a * x, 0.5), "draws random numbers"),
    "unknown operator": (lambda x, a, b, c: torch.special.i0(a * x), "the torch operator i0|special_i0"),
    "sort": (lambda x, a, b, c: torch.sort(c).values.sum() * x, "the torch operator sort"),
    "matrix inverse": (lambda x, a, b, c: torch.linalg.inv(torch.outer(c, c))[0, 0] * x, "the torch operator linalg_inv_ex"),
    "norm of order 3": (lambda x, a, b, c: x * torch.linalg.vector_norm(c, 3), "vector norm of order 3"),
    "complex numbers": (lambda x, a, b, c: torch.exp(1j * a * x).real, "complex"),
    "half precision": (lambda x, a, b, c: (a * x).half(), "float16"),
    "large array": (
        lambda x, a, b, c: a * x + torch.ones(MAX_CONSTANTS + 1, dtype=DOUBLE).mul(b).sum(),
        "array of 10001 numbers",
    ),
    "no tensor": (lambda x, a, b, c: (a * x, 1.0), "float, not a tensor"),
    "an exception": (lambda x, a, b, c: a * x + c @ torch.ones(2, dtype=DOUBLE), "cannot be traced for one row .RuntimeError"),
    "writing to chosen places": (lambda x, a, b, c: c.clone().index_put_(((x > 0).long(),), a), "chooses places"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_reason_is(name):
    model, reason = REFUSED[name]
    with pytest.raises(Untraceable, match=reason):
        record(model, of_one_row())


def test_too_long_a_computation_is_refused(monkeypatch):
    def long(x):
        for k in range(100):
            x = x + 1.0 / (k + 1)
        return x

    monkeypatch.setattr(trace, "MAX_NODES", 100)
    with pytest.raises(Untraceable, match="more than 100 operations"):
        record(long, {"x": torch.ones(1, dtype=DOUBLE)})


def test_a_refusal_leaves_torch_as_it_was():
    with pytest.raises(Untraceable):
        record(with_if, of_one_row())
    assert float(torch.ones(1) * 2) == 2


def test_the_source_of_a_recorded_model_can_be_read():
    graph = traced(with_slopes(lambda x, a, b: a * torch.exp(-b * x)), {k: torch.ones(1, dtype=DOUBLE) for k in "xab"})
    assert row_source(graph, "double").text == (
        "def row(x, a, b):\n"
        "    out_2 = exp(-(b * x))\n"
        "    out_0 = a * out_2\n"
        "    out_1 = -(out_0 * b)\n"
        "    out_3 = -(out_0 * x)\n"
        "    return out_0, out_1, out_2, out_3\n"
    )


def test_a_nan_in_the_example_does_not_matter():
    graph = record(lambda x, a: torch.where(x > 0, a * x, x), {"x": torch.full((1,), math.nan, dtype=DOUBLE), "a": torch.ones(1)})
    assert_array_equal(evaluate(graph, {"x": torch.tensor(2.0, dtype=DOUBLE), "a": torch.tensor(3.0)})[0], 6.0)
