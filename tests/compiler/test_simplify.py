"""A simplified graph is smaller and computes the same, bit for bit."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_graphs import AWKWARD, POINTS, STEPS, build, same_bits, values

from gradfit.compiler.evaluate import evaluate
from gradfit.compiler.graph import Graph, Node, apply, cast, check, constant, variable, where
from gradfit.compiler.simplify import simplify

x, y, s = variable("x"), variable("y"), variable("s", "single")
p, q = variable("p", "bool"), variable("q", "bool")
INPUTS = (x, y, s, p, q)


def simple(node: Node) -> Node:
    graph = simplify(Graph(INPUTS, (node,)))
    check(graph)
    return graph.outputs[0]


def written(node: Node) -> str:
    """Write a graph as nested calls."""
    if node.operation in ("input", "constant"):
        return str(node.value)
    return f"{node.operation}({', '.join(map(written, node.arguments))})"


@settings(max_examples=400, deadline=None, derandomize=True)
@given(STEPS, st.lists(POINTS, min_size=1, max_size=3))
def test_a_simplified_graph_gives_the_same_bits(steps, points):
    graph = build(steps)
    simpler = simplify(graph)
    check(simpler)
    assert len(simpler.nodes()) <= len(graph.nodes()) + len(graph.inputs)
    for point in points:
        for ours, theirs in zip(evaluate(simpler, values(*point)), evaluate(graph, values(*point)), strict=True):
            assert same_bits(ours, theirs)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(STEPS)
def test_a_simplified_graph_is_not_simplified_further(steps):
    once = simplify(build(steps))
    twice = simplify(once)
    assert len(twice.nodes()) <= len(once.nodes())
    assert [node.operation for node in simplify(twice).nodes()] == [node.operation for node in twice.nodes()]


EXACT = {
    "x * 1": (x * 1.0, "x"),
    "1 * x": (1.0 * x, "x"),
    "x / 1": (x / 1.0, "x"),
    "x - 0": (x - 0.0, "x"),
    "x + -0": (x + -0.0, "x"),
    "-0 + x": (-0.0 + x, "x"),
    "x * -1": (x * -1.0, "neg(x)"),
    "x / -1": (x / -1.0, "neg(x)"),
    "-(-x)": (-(-x), "x"),  # noqa: B002
    "(-x) * y": ((-x) * y, "neg(mul(x, y))"),
    "(-x) * (-y)": ((-x) * (-y), "mul(x, y)"),
    "x / (-y)": (x / (-y), "neg(div(x, y))"),
    "(-x) / (-y)": ((-x) / (-y), "div(x, y)"),
    "x + (-y)": (x + (-y), "sub(x, y)"),
    "(-x) + y": ((-x) + y, "sub(y, x)"),
    "x - (-y)": (x - (-y), "add(x, y)"),
    "(-x) * (-1)": ((-x) * -1.0, "x"),
    "where true": (where(True, x, y), "x"),
    "where false": (where(False, x, y), "y"),
    "where both alike": (where(p, x + y, x + y), "add(x, y)"),
    "where, where not": (where(p, x, where(~p, y, constant(math.nan))), "where(p, x, y)"),
    "p and true": (p & True, "p"),
    "p and false": (p & False, "False"),
    "p or false": (p | False, "p"),
    "p or true": (p | True, "True"),
    "p xor false": (p ^ False, "p"),
    "p xor true": (p ^ True, "not(p)"),
    "p and p": (p & p, "p"),
    "not not p": (~~p, "p"),
    "single of double": (cast(cast(s, "double"), "single"), "s"),
    "constants": ((constant(2.0) + 3.0) * x, "mul(5.0, x)"),
    "constants of single precision": (constant(0.1, "single") * constant(3.0, "single") * s, "mul(0.30000001192092896, s)"),
    "a condition of constants": (where(constant(2.0) < 3.0, x, y), "x"),
}


@pytest.mark.parametrize("name", EXACT)
def test_simplified_is(name):
    node, expected = EXACT[name]
    assert written(simple(node)) == expected


KEPT = {
    "x + 0": x + 0.0,  # turns -0 into 0
    "0 - x": 0.0 - x,
    "x * 0": x * 0.0,
    "x - x": x - x,
    "x / x": x / x,
    "(x + y) - y": (x + y) - y,
    "x * 2 / 2": x * 2.0 / 2.0,
    "x * y + x": x * y + x,
    "-(x - y)": -(x - y),
    "double of single": cast(cast(x, "single"), "double"),
    "maximum": apply("maximum", x, 0.0),
    "x == x": x.equals(x),
    "sqrt of square": apply("sqrt", x * x),
}


@pytest.mark.parametrize("name", KEPT)
def test_kept_because_a_bit_could_change_is(name):
    assert written(simple(KEPT[name])) == written(KEPT[name])


def test_equal_parts_are_shared():
    first, second = apply("exp", x * y), apply("exp", y * x)
    graph = simplify(Graph(INPUTS, (first + second, first)))
    total, alone = graph.outputs
    assert total.arguments[0] is total.arguments[1] is alone
    assert len(graph.nodes()) == 5


def test_different_parts_are_not_shared():
    graph = simplify(Graph(INPUTS, (x - y, y - x, x / y, y / x, apply("maximum", x, y), apply("maximum", y, x))))
    assert len(set(graph.outputs)) == 6


def test_constants_are_shared_by_their_bits():
    zeros = [apply("copysign", x, constant(value)) for value in (0.0, -0.0, 0.0, math.nan, math.nan)]
    outputs = simplify(Graph(INPUTS, tuple(zeros))).outputs
    assert len(set(outputs)) == 3
    assert outputs[0] is outputs[2]
    assert math.copysign(1, outputs[1].arguments[1].value) == -1
    one, true, single = simplify(Graph(INPUTS, (constant(1.0), constant(True, "bool"), constant(1.0, "single")))).outputs
    assert (one.dtype, true.dtype, single.dtype) == ("double", "bool", "single")


@pytest.mark.parametrize("operation", ["add", "sub", "mul", "div", "pow", "fmod", "maximum", "copysign"])
def test_folding_computes_what_torch_computes(operation):
    for a in AWKWARD:
        for b in AWKWARD:
            node = apply(operation, constant(a), constant(b))
            folded = simple(node)
            assert folded.operation == "constant"
            (expected,) = evaluate(Graph((), (node,)), {})
            assert same_bits(torch.tensor(folded.value, dtype=torch.float64), expected)


def test_inputs_stay_though_nobody_uses_them():
    assert simplify(Graph(INPUTS, (x,))).inputs == INPUTS


def test_a_long_graph_needs_no_deep_stack():
    node = x
    for k in range(5000):
        node = apply("sin", node) + float(k + 1)
    assert len(simplify(Graph(INPUTS, (node,))).nodes()) == 15_001
