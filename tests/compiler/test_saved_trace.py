"""Stored models: what can be a graph predicts the same without its function; what cannot says why; a hostile file does nothing."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import gradfit
from gradfit.compiler.bridge import on_tensors
from gradfit.compiler.saved_graph import MAX_NODES, Graph, Node, find, from_dict
from gradfit.compiler.saved_trace import trace
from gradfit.errors import StorageError
from gradfit.model.expression import FUNCTIONS

X = np.linspace(0.5, 3, 12)
Y = 2 * np.exp(-0.5 * X) + 0.01 * np.sin(40 * X)
NEW = np.array([*np.linspace(-3, 7, 57), 0.0, 1e-300, 1e8, 0.5, 1.0, -0.0])
CONSTANT = 0.1


def example(**values):
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def traced(function, **values):
    graph = trace(function, example(**values))
    assert isinstance(graph, Graph), graph
    return from_dict(json.loads(json.dumps(graph.to_dict())))


def with_a_temporary_changed_in_place(x, a, b):
    total = a * x
    total += b
    return total


def torch_where_and_clamp(x, a, b):
    return torch.where(x > 1.0, torch.clamp(a * x, 0.1, 2.0), b) + torch.clamp(b * x, min=0.2)


ELEMENTWISE = {
    **{name: (lambda x, a, b, f=f: a * f(b * x)) for name, f in FUNCTIONS[0].items()},
    **{name: (lambda x, a, b, f=f: f(a * x, b)) for name, f in FUNCTIONS[1].items()},
    "where, clamp": torch_where_and_clamp,
    "powers": lambda x, a, b: a * x**2 + b**x + 2**x + x**b + (a * x) ** -1,
    "numpy": lambda x, a, b: a / np.sqrt(2 * np.pi) * np.exp(-0.5 * (x / b) ** 2) + np.float64(0.1),
    "numpy where": lambda x, a, b: (
        np.where(x > 1, a * x, 0.1) + np.maximum(0.1, b * x) + np.clip(x, 0, 1) + np.clip(b * x, None, a)
    ),
    "global constant": lambda x, a, b: a * x * CONSTANT + b,
    "tensor constant": lambda x, a, b: a * x + b + torch.tensor(0.3, dtype=torch.float64),
    "equality with a constant": lambda x, a, b: torch.where(x == x.new_tensor(0.5), a * x, b * x + 1),
    "logic": lambda x, a, b: torch.where((x > 1) & (x < 2) | ~(x < 2.5), a * x, b * x),
    "remainder, rounding": lambda x, a, b: a * (x % 0.7) + b * torch.floor(x) + torch.round(x * 3),
    "in place on a temporary": with_a_temporary_changed_in_place,
    "filled like x": lambda x, a, b: a * torch.ones_like(x) + b * torch.zeros_like(x) + b * x + torch.full_like(x, 0.3),
    "nothing of x": lambda x, a, b: a * torch.ones_like(x) + b * b,
    "alpha": lambda x, a, b: torch.addcmul(torch.add(a, x, alpha=2), b, x, value=0.5),
    "activations": lambda x, a, b: torch.nn.functional.gelu(a * x) + torch.nn.functional.leaky_relu(b * x, 0.1),
    "special": lambda x, a, b: a * torch.special.i0(b * x) + torch.digamma(x) + torch.polygamma(1, x) + torch.xlogy(a, x),
    "infinities": lambda x, a, b: torch.nan_to_num(a / x) + torch.where(torch.isnan(x), a, b),
    "lerp, hypot": lambda x, a, b: torch.lerp(a, b, x) + torch.hypot(a, x),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_a_graph_computes_what_the_model_does(name):
    function = on_tensors(ELEMENTWISE[name])
    graph = traced(function, x=0.61, a=0.83, b=0.47)
    values = {"x": torch.from_numpy(NEW), **example(a=0.9, b=-0.35)}
    ours, theirs = graph.evaluate(values), function(**values)
    assert ours.shape == theirs.shape == values["x"].shape
    assert_allclose(ours, theirs, rtol=1e-12, atol=0)


SAVED = {
    "exponential": lambda x, a, b: a * np.exp(-b * x),
    "where": lambda x, a, b: torch.where(x > 1.0, a * x, b),
    "in place on a temporary": with_a_temporary_changed_in_place,
    "kink": lambda x, a, b=0.5: a * torch.relu(x - b),
    "jump next to a value": lambda x, a, b: torch.where(x < 0.5000000005, a * x, b * x),
}


@pytest.mark.parametrize("name", SAVED)
def test_a_saved_fit_predicts_without_its_function(name, tmp_path):
    fit = gradfit.fit(SAVED[name], X, Y, on_failure="ignore")
    fit.save(tmp_path / "fit.json")
    loaded = gradfit.load(tmp_path / "fit.json")
    assert_allclose(loaded.predict(NEW), fit.predict(NEW), rtol=1e-12)
    ours, theirs = loaded.predict(X, interval="confidence"), fit.predict(X, interval="confidence")
    assert_allclose(ours.upper, theirs.upper, rtol=1e-9)


@pytest.mark.parametrize("x", [[1.0, 2.0, 3.0, 4.0], [0.0, 2.0, 3.0, 4.0], [1e30, 2.0, 3.0, 4.0], [-1.0, 1.0, 2.0, 3.0]])
def test_equal_values_of_data_and_parameters_are_not_confused(x, tmp_path):
    x = np.array(x)
    fit = gradfit.fit(lambda x, a, b: a * x + b, x, x)  # a = 1, b = 0
    fit.save(tmp_path / "fit.json")
    new = np.array([5.0, -7.0, 0.0])
    assert_allclose(gradfit.load(tmp_path / "fit.json").predict(new), fit.predict(new), rtol=1e-12)


def branches(x, a, b):
    if x > 1.0:
        return a * x
    return b * x


def assigns_by_mask(x, a, b):
    total = a * x
    total[x > 1] = b
    return total


NO_GRAPH = {
    "branch": (branches, "branches on values"),
    "mask": (assigns_by_mask, "branches on values"),
    "number": (lambda x, a, b: a * x + float(b), "plain numbers"),
    "sum": (lambda x, a, b: a * torch.cumsum(x, 0) + b, "cumsum"),
    "mean": (lambda x, a, b: a * (x - x.mean()) + b, "mean"),
    "matrix": (lambda x, a, b: torch.stack([x, x**2], 1) @ torch.stack([a, b]), "one row"),
    "random": (lambda x, a, b: a * x + b * torch.rand(()), "rand"),
    "random like": (lambda x, a, b: a * x + b * torch.bernoulli(x), "bernoulli"),
    "array": (lambda x, a, b: a * x + b * torch.arange(3.0)[0], "arange"),
    "length": (lambda x, a, b: a * x / len(x) + b, "one row"),
    "constant": (lambda x, a, b: torch.ones_like(x), "constant"),
    "infinity": (lambda x, a, b: torch.where(x > -math.inf, a * x, b), "inf"),
}


@pytest.mark.parametrize("name", NO_GRAPH)
def test_what_is_no_graph_says_why(name):
    function, reason = NO_GRAPH[name]
    found = trace(function, example(x=0.61, a=0.83, b=0.47))
    assert isinstance(found, str)
    assert reason in found


def test_a_model_of_too_many_operations_is_no_graph(monkeypatch):
    monkeypatch.setattr("gradfit.compiler.saved_trace.MAX_NODES", 20)

    def model(x, a):
        for _ in range(21):
            a = a * x
        return a

    assert "operations" in trace(model, example(x=0.5, a=1.0))


# --- hostile files -----------------------------------------------------------------------------------------------------


def stored(operator="mul.Tensor", arguments=({"node": "x"}, {"node": "x"}), options=None, **changes):
    node = {"name": "v0", "operator": operator, "arguments": list(arguments), "options": options or {}}
    return {"inputs": ["x"], "nodes": [node], "output": "v0"} | changes


def test_the_plain_graph_of_these_tests_is_well_formed():
    assert from_dict(stored()).evaluate(example(x=3.0)).item() == 9


X_NODE = {"node": "x"}
HOSTILE = {
    "class": stored("__class__"),
    "class of an operator": stored("mul.__class__"),
    "call": stored("mul.__call__"),
    "dunder packet": stored("__class__.__base__"),
    "module": stored("__loader__.load_module"),
    "not pointwise": stored("sum.default", [X_NODE]),
    "writes": stored("add_.Tensor"),
    "writes to out": stored("add.out", [X_NODE, X_NODE], {"out": 1}),
    "random": stored("bernoulli.p", [X_NODE, 0.5]),
    "reads a file": stored("from_file.default", ["/etc/passwd"]),
    "dots": stored("mul.Tensor.x"),
    "empty": stored(""),
    "number as operator": stored(7),
    "unicode": stored("ｍul.Tensor"),
    "too few arguments": stored("mul.Tensor", [X_NODE]),
    "too many arguments": stored("mul.Tensor", [X_NODE] * 40),
    "string argument": stored("mul.Tensor", [X_NODE, "x"]),
    "list argument": stored("mul.Tensor", [X_NODE, [1, 2]]),
    "null argument": stored("mul.Tensor", [X_NODE, None]),
    "itself": stored("mul.Tensor", [X_NODE, {"node": "v0"}]),
    "unhashable name": stored("mul.Tensor", [X_NODE, {"node": ["x"]}]),
    "no name": stored("mul.Tensor", [X_NODE, {"mode": "x"}]),
    "huge integer": stored("mul.Tensor", [X_NODE, 10**400]),
    "unknown option": stored(options={"memory_format": 1}),
    "dtype": stored("scalar_tensor.default", [1.0], {"dtype": "torch.complex128"}),
    "dtype as list": stored("scalar_tensor.default", [1.0], {"dtype": ["torch.float64"]}),
    "dtype as name": stored("scalar_tensor.default", [1.0], {"dtype": "os.system"}),
    "device": stored("scalar_tensor.default", [1.0], {"device": "cuda"}),
    "bool result": stored("gt.Tensor"),
    "no result": stored(output="w"),
    "result a list": stored(output=["v0"]),
    "no nodes": {"inputs": ["x"], "output": "x"},
    "nodes a number": stored(nodes=3),
    "nodes a string": stored(nodes="mul"),
    "node a string": stored(nodes=["mul"]),
    "arguments a number": stored(nodes=[{"name": "v0", "operator": "neg.default", "arguments": 1, "options": {}}]),
    "huge": stored(nodes=stored()["nodes"] * (MAX_NODES + 1)),
    "list": [1, 2],
    "nothing": None,
    "text": "import os",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_graph_is_refused(name):
    with pytest.raises(StorageError):
        from_dict(HOSTILE[name])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["x", "mul.Tensor", "v0"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["node", "name", "operator", "arguments", "options", "nodes", "inputs"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)
OPERATORS = st.sampled_from(
    ["mul.Tensor", "pow.Tensor_Scalar", "where.self", "clamp.default", "scalar_tensor.default", "clone.default", "eq.Scalar", "frexp.Tensor"]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(operator=OPERATORS | st.text(max_size=8), arguments=st.lists(JSON | st.just(X_NODE), max_size=4), options=JSON)
def test_any_graph_is_read_or_refused_and_nothing_else(operator, arguments, options):
    graph = stored(nodes=[{"name": "v0", "operator": operator, "arguments": arguments, "options": options}])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read = from_dict(graph)
        except StorageError:
            return
        assert read.evaluate({"x": torch.ones(2, dtype=torch.float64)}).shape == (2,)


@pytest.mark.parametrize("operator", ["mul.Tensor", "pow.Tensor_Scalar", "where.self", "clamp.default"])
def test_pointwise_operators_are_found(operator):
    assert find(operator)._schema.name.startswith("aten::")


def test_a_graph_computes_one_row_or_many_and_broadcasts_what_is_constant():
    graph = Graph(("x", "a"), (Node("v0", "mul.Tensor", ({"node": "a"}, 2.0), {}),), "v0")
    assert graph.evaluate({"x": torch.ones(3), "a": torch.tensor(2.0)}).tolist() == [4.0, 4.0, 4.0]
