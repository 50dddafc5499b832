"""A graph computed by torch, operation by operation: what constants are folded with, and what compiled code is compared to."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gradfit.compiler.graph import Graph, Node

DTYPES = {"double": torch.float64, "single": torch.float32, "bool": torch.bool}
TORCH: Mapping[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv, "neg": operator.neg,
    "and": torch.logical_and, "or": torch.logical_or, "xor": torch.logical_xor, "not": torch.logical_not,
    "double": lambda x: x.to(torch.float64), "single": lambda x: x.to(torch.float32),
    "trigamma": lambda x: torch.polygamma(1, x),
}  # fmt: skip


def operation(name: str) -> Callable[..., Tensor]:
    """Find the torch function of an operation: mostly the one of the same name."""
    return TORCH.get(name) or getattr(torch, name)


def evaluate(graph: Graph, values: Mapping[str, Tensor]) -> list[Tensor]:
    """Compute the outputs; inputs by name, of any shapes that broadcast."""
    known: dict[Node, Tensor] = {}
    for node in graph.nodes():
        if node.operation == "input":
            known[node] = values[node.value]
        elif node.operation == "constant":
            known[node] = torch.tensor(node.value, dtype=DTYPES[node.dtype])
        else:
            known[node] = operation(node.operation)(*(known[argument] for argument in node.arguments))
    return [known[output] for output in graph.outputs]
