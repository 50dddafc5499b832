"""Random graphs of all operations, and awkward numbers to compute them with."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import strategies as st

from gradfit.compiler.graph import COMPARISONS, Graph, Node, apply, cast, check, constant, variable, where

INPUTS = {"x": "double", "y": "double", "s": "single", "p": "bool"}
AWKWARD = (0.0, -0.0, 1.0, -1.0, 0.5, 2.0, -3.7, 1e-310, 1e300, -1e-5, math.inf, -math.inf, math.nan)
ARITHMETIC = ("add", "sub", "mul", "div", "neg")
FUNCTIONS = ("exp", "log", "sqrt", "abs", "floor", "round", "sign", "tanh", "maximum", "minimum", "copysign", "fmod", "pow")
OF_ONE = frozenset(["neg", "not", "exp", "log", "sqrt", "abs", "floor", "round", "sign", "tanh", "isnan", "isinf"])
OPERATIONS = (
    *ARITHMETIC * 3,
    *FUNCTIONS,
    *sorted(COMPARISONS),
    "isnan",
    "isinf",
    "and",
    "or",
    "xor",
    "not",
    "where",
    "where",
    "cast",
    "constant",
)
STEPS = st.lists(st.tuples(st.sampled_from(OPERATIONS), *[st.integers(0, 40)] * 3), min_size=1, max_size=25)
NUMBERS = st.one_of(st.sampled_from(AWKWARD), st.floats(-5, 5))


def build(steps: list[Any]) -> Graph:
    """Follow instructions: an operation and three numbers that choose what it is applied to."""
    inputs = tuple(variable(name, dtype) for name, dtype in INPUTS.items())
    nodes: list[Node] = list(inputs)

    def choose(number: int, dtype: str) -> Node:
        fitting = [node for node in nodes if node.dtype == dtype]
        return fitting[-1 - number % len(fitting)]

    for operation, first, second, third in steps:
        dtype = "single" if third % 4 == 3 else "double"
        if operation == "constant":
            nodes.append(constant(AWKWARD[first % len(AWKWARD)], dtype) if second % 5 else constant(first % 2 == 1, "bool"))
        elif operation == "cast":
            nodes.append(cast(nodes[-1 - first % len(nodes)], ("double", "single", "bool")[second % 3]))
        elif operation == "where":
            nodes.append(where(choose(third, "bool"), choose(first, dtype), choose(second, dtype)))
        else:
            kind = "bool" if operation in ("and", "or", "xor", "not") else dtype
            arguments = [choose(first, kind)] if operation in OF_ONE else [choose(first, kind), choose(second, kind)]
            nodes.append(apply(operation, *arguments))
    graph = Graph(inputs, tuple(nodes[-3:]))
    check(graph)
    return graph


def values(x: float, y: float, s: float, p: bool) -> dict[str, torch.Tensor]:
    """Give the inputs of a random graph."""
    dtypes = {"double": torch.float64, "single": torch.float32, "bool": torch.bool}
    return {
        name: torch.tensor(number, dtype=dtypes[dtype])
        for (name, dtype), number in zip(INPUTS.items(), (x, y, s, p), strict=True)
    }


POINTS = st.tuples(NUMBERS, NUMBERS, NUMBERS, st.booleans())


def same_bits(ours: Any, theirs: Any) -> bool:
    """Whether two tensors of one number hold the same; one NaN is like another."""
    if ours.dtype != theirs.dtype:
        return False
    a, b = ours.item(), theirs.item()
    return (a != a and b != b) or (a == b and math.copysign(1, a) == math.copysign(1, b))
