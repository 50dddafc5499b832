"""The source of a graph gives the graph's values, can be read, and reads its numbers back exactly."""

from __future__ import annotations

import ast
import keyword
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from random_graphs import POINTS, STEPS, build, same_bits, values
from row_harness import arguments, row_source, run_on_torch, run_rows

from gradfit.compiler.elementary import FUNCTIONS
from gradfit.compiler.evaluate import evaluate
from gradfit.compiler.graph import Graph, Node, apply, cast, constant, variable, where
from gradfit.compiler.lower import LONGEST, identifier, lower, number
from gradfit.compiler.simplify import simplify

x, y, z = variable("x"), variable("y"), variable("z")
INPUTS = (x, y, z)


def lowered(*outputs: Node, inputs=INPUTS) -> str:
    return lower(Graph(inputs, outputs), [f"out_{k}" for k in range(len(outputs))])


def result(node: Node) -> str:
    """Text of the one result."""
    return lowered(node).partition("out_0 = ")[2].partition("\n")[0]


def run(text: str, *numbers):
    return run_on_torch(text)(*numbers)


# --- values ------------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None, derandomize=True)
@given(STEPS, st.lists(POINTS, min_size=1, max_size=2))
def test_the_source_gives_the_values_of_the_graph(steps, points):
    graph = simplify(build(steps))
    text = lower(graph, ["out_0", "out_1", "out_2"])
    for point in points:
        known = values(*point)
        for ours, theirs in zip(run(text, *known.values()), evaluate(graph, known), strict=True):
            assert same_bits(torch.as_tensor(ours), theirs), text


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_source_runs_on_plain_numbers():
    text = lowered(where((x < y) & ~(z > 1.0), apply("exp", -x) * y, apply("sqrt", z) / 3.0), x - (y - z))
    known = {"exp": math.exp, "sqrt": math.sqrt, "where": lambda test, a, b: a if test else b}
    exec(text, known)  # noqa: S102 - our own text
    row = known["row"]
    assert row(np.float64(0.5), np.float64(2), np.float64(0)) == (math.exp(-0.5) * 2, -1.5)
    assert row(np.float64(3.0), np.float64(2), np.float64(4)) == (2 / 3, 5.0)


TREES = {
    "a - (b - c)": (x - (y - z), "x - (y - z)"),
    "(a - b) - c": ((x - y) - z, "x - y - z"),
    "a + (b + c)": (x + (y + z), "x + (y + z)"),
    "(a + b) + c": ((x + y) + z, "x + y + z"),
    "a - (b + c)": (x - (y + z), "x - (y + z)"),
    "a * (b * c)": (x * (y * z), "x * (y * z)"),
    "a * (b / c)": (x * (y / z), "x * (y / z)"),
    "(a * b) / c": ((x * y) / z, "x * y / z"),
    "a / (b * c)": (x / (y * z), "x / (y * z)"),
    "a / (b / c)": (x / (y / z), "x / (y / z)"),
    "a / b / c": ((x / y) / z, "x / y / z"),
    "a * (b + c)": (x * (y + z), "x * (y + z)"),
    "a * b + c": (x * y + z, "x * y + z"),
    "-(a * b)": (-(x * y), "-(x * y)"),
    "(-a) * b": ((-x) * y, "-x * y"),
    "a * -b": (x * (-y), "x * -y"),
    "-(a + b)": (-(x + y), "-(x + y)"),
    "-a + b": ((-x) + y, "-x + y"),
    "a - -b": (x - (-y), "x - -y"),
    "-(-a)": (-(-x), "--x"),  # noqa: B002
    "a * -2": (x * -2.0, "x * -2.0"),
    "-2 - a": (-2.0 - x, "-2.0 - x"),
    "-(a function)": (-apply("exp", x), "-exp(x)"),
    "a < b and b < c": ((x < y) & (y < z), "(x < y) & (y < z)"),
    "not (a < b)": (~(x < y), "~(x < y)"),
    "a < b + c": (x < (y + z), "x < (y + z)"),
    "(a < b) or not (b < c and a < c)": ((x < y) | ~((y < z) & (x < z)), "(x < y) | (~((y < z) & (x < z)))"),
}


@pytest.mark.parametrize("name", TREES)
def test_parentheses_keep_the_order_of(name):
    node, expected = TREES[name]
    assert result(node) == expected
    for point in ([0.1, 0.2, 0.3], [1e308, -1e308, 1e-308], [0.7, 1e17, -1e17]):
        known = dict(zip("xyz", torch.tensor(point, dtype=torch.float64), strict=True))
        (theirs,) = evaluate(Graph(INPUTS, (node,)), known)
        assert same_bits(run(lowered(node), *known.values())[0], theirs)


# --- names -------------------------------------------------------------------------------------------------------------

NAMES = {
    "c[0]": "c_0",
    "c[0, 1]": "c_0_1",
    "t (°C)": "t_C",
    "θ": "θ",
    "温度": "温度",
    "x y": "x_y",
    "1st": "v1st",
    "lambda": "lambda_",
    "None": "None_",
    "": "v",
    " target": "target",
    "a'b": "a_b",
    "été": "été",
    "__class__": "class_",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_python_name_is_made_of(name):
    assert identifier(name) == NAMES[name]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.text(max_size=8), min_size=1, max_size=6, unique=True))
def test_arguments_of_any_names_are_names_of_their_own(names):
    inputs = tuple(variable(name) for name in names)
    graph = Graph(inputs, tuple(apply("exp", node) * node for node in inputs))
    own = arguments(graph)
    assert len(set(own)) == len(own)
    assert all(name.isidentifier() and not keyword.iskeyword(name) for name in own)
    numbers = torch.arange(1.0, 1.0 + len(names), dtype=torch.float64)
    text = lower(graph, [f"d_{name}" for name in names])
    ast.parse(text)
    for ours, own in zip(run(text, *numbers), numbers, strict=True):
        assert ours == torch.exp(own) * own


@pytest.mark.parametrize(
    "name", [*FUNCTIONS, "double", "single", "inf", "nan", "true", "false", "row", "t1", "out_0", "bool", "exec"]
)
def test_an_argument_may_have_the_name_of(name):
    own = variable(name)
    shared = apply("sin", own * 2.0)
    node = where(own > 0.5, apply("exp", own) + shared, cast(cast(own, "single"), "double") * shared)
    text = lowered(node * math.inf, shared + math.nan, node, constant(2.0), inputs=(own,))
    value = torch.tensor(0.75, dtype=torch.float64)
    ours = run(text, value)
    theirs = evaluate(Graph((own,), (node * math.inf, shared + math.nan, node, constant(2.0))), {name: value})
    assert all(same_bits(a, b) for a, b in zip(ours, theirs, strict=True)), text


def test_results_may_share_a_name_with_arguments():
    text = lower(Graph((x,), (x * 2.0, x + 1.0)), ["x", "x"])
    assert run(text, 3.0) == (6.0, 4.0)


def test_one_result_under_two_names_is_computed_once():
    node = x * y
    text = lower(Graph(INPUTS, (node, node, node + z)), ["first", "second", "third"])
    assert text == "def row(x, y, z):\n    first = x * y\n    third = first + z\n    return first, first, third\n"


def test_a_title_is_the_docstring():
    text = lower(Graph((x,), (x,)), ["out"], name="step", title="What it computes.")
    assert text == 'def step(x):\n    """What it computes."""\n    return x,\n'


def test_long_parts_get_a_line_of_their_own():
    node = x
    for k in range(12):
        node = node * y + float(k)
    lines = lowered(apply("exp", node)).splitlines()
    assert len(lines) > 3
    assert max(map(len, lines)) < 2 * LONGEST


def test_a_shared_part_is_written_once():
    shared = apply("exp", x)
    assert lowered(shared * shared + y).count("exp(") == 1


def test_a_deep_graph_is_written_without_recursion():
    node = x
    for _ in range(5000):
        node = apply("sin", node)
    ast.parse(lowered(node))


# --- numbers -----------------------------------------------------------------------------------------------------------

DOUBLES = st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(DOUBLES)
def test_a_number_is_read_back_exactly(value):
    text, _ = number(value)
    back = eval(text, {"inf": math.inf, "nan": math.nan})  # noqa: S307 - our own text
    assert same_bits(torch.tensor(back, dtype=torch.float64), torch.tensor(value, dtype=torch.float64))


@pytest.mark.parametrize(
    "value", [math.inf, -math.inf, math.nan, 0.0, -0.0, 5e-324, -2.2250738585072e-308, 0.1, 1e22, 1.7976931348623157e308]
)
def test_compiled_code_has_the_constant(value):
    graph = Graph((x,), (constant(value), x * 0.0 + value, apply("copysign", x, value), where(x > 0.0, constant(value), 1.0)))
    ours = run_rows(row_source(graph, "double"))([1.0])[:, 0]
    theirs = [part.item() for part in evaluate(graph, {"x": torch.tensor(1.0, dtype=torch.float64)})]
    assert_array_equal(ours, theirs)
    assert_array_equal(np.signbit(ours[[0, 2]]), np.signbit(theirs)[[0, 2]])


@pytest.mark.parametrize(
    "node",
    [
        constant(2.0),
        constant(1.5, "single"),
        where(x > 0.0, constant(1.0), constant(2.0)),
        where(x > 0.0, constant(-1.0), constant(-0.0)) * y,
        apply("exp", constant(2.0)) * x,
        apply("maximum", constant(2.0), constant(3.0)) + x,
        cast(constant(0.1), "single"),
        cast(x > y, "double"),
        cast(cast(x, "single") * constant(0.1, "single"), "double"),
        where(constant(True, "bool"), x, y),
        where((x > y) & True, x, y),
        constant(2.0) < constant(3.0),
        constant(2.0) + constant(3.0),
        constant(2.0) / constant(0.0),
        -constant(2.0),
        where(constant(2.0) < constant(3.0), x, y),
        where(apply("isnan", constant(2.0)), x, y),
        cast(cast(constant(0.1), "single"), "double") * x,
        cast(constant(True, "bool"), "double") + x,
    ],
)
def test_constants_have_a_precision_where_they_need_one(node):
    graph = simplify(Graph(INPUTS, (cast(node, "double"),)))
    known = {name: torch.tensor(value, dtype=torch.float64) for name, value in zip("xyz", (0.7, 0.3, 0.2), strict=True)}
    (theirs,) = evaluate(graph, known)
    assert same_bits(run(lower(graph, ["out"]), *known.values())[0], theirs)
    ours = run_rows(row_source(graph, "double"))(*([value.item()] for value in known.values()))[0, 0]
    assert ours == pytest.approx(theirs.item(), rel=1e-15)
