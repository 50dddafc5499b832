"""Graph: a computation of one row as plain values, so that a fitted model survives without its function.

A graph is a list of elementwise ATen operators. It is stored as JSON and read back as data: only operators that torch itself
tags as pointwise may appear, each is looked up by name, and nothing else is ever called.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradfit.errors import StorageError

MAX_NODES = 5000
COPIES = {"lift_fresh_copy.default", "detach.default", "clone.default", "alias.default", "scalar_tensor.default"}
DTYPES = {str(dtype): dtype for dtype in (torch.float64, torch.float32, torch.bool, torch.int64)}


@dataclass(frozen=True)
class Node:
    """``name = operator(*arguments, **options)``; an argument is a number, None, or ``{"node": name}``."""

    name: str
    operator: str
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Graph:
    """Inputs by name, nodes in the order they are computed, and the name of the result."""

    inputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    output: str

    def evaluate(self, values: Mapping[str, Tensor]) -> Tensor:
        """Compute the result; the inputs broadcast, so one row or a million are the same call."""
        known: dict[str, Any] = {name: values[name] for name in self.inputs}
        for node in self.nodes:
            operator = find(node.operator)
            wanted = operator._schema.arguments
            arguments = (_value(a, known, slot) for a, slot in zip(node.arguments, wanted, strict=False))
            known[node.name] = operator(*arguments, **_options(node.options))
        result = torch.as_tensor(known[self.output])
        # A result that does not depend on the data still has one value per row.
        return result.expand(np.broadcast_shapes(result.shape, *(values[name].shape for name in self.inputs)))

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON."""
        return {"inputs": list(self.inputs), "nodes": [asdict(node) for node in self.nodes], "output": self.output}


def from_dict(stored: Any) -> Graph:
    """Read a graph from plain values and check it.

    Raises
    ------
    StorageError
        Anything but a well-formed graph of known pointwise operators.
    """
    try:
        if len(stored["nodes"]) > MAX_NODES:
            raise ValueError(f"{len(stored['nodes'])} operations; at most {MAX_NODES}")
        nodes = tuple(
            Node(str(n["name"]), str(n["operator"]), tuple(n["arguments"]), dict(n["options"])) for n in stored["nodes"]
        )
        graph = Graph(tuple(map(str, stored["inputs"])), nodes, str(stored["output"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StorageError(f"the stored model is no graph ({type(error).__name__}: {error}); the file is damaged.") from None
    check(graph)
    _try(graph)
    return graph


def check(graph: Graph) -> None:
    """Refuse a graph that uses a name before it is computed, or an operator that is not pointwise."""
    known = set(graph.inputs)
    for node in graph.nodes:
        if len(node.arguments) > len(find(node.operator)._schema.arguments):
            raise StorageError(f"the stored model gives {node.operator} {len(node.arguments)} arguments; the file is damaged.")
        for argument in node.arguments:
            if isinstance(argument, Mapping):
                if not isinstance(argument.get("node"), str) or argument["node"] not in known:
                    raise StorageError(f"the stored model uses {argument!r} before it is computed; the file is damaged.")
            elif not isinstance(argument, (int, float, bool, type(None))):
                raise StorageError(f"the stored model holds {argument!r} where a number was expected; the file is damaged.")
        _options(node.options)
        known.add(node.name)
    if graph.output not in known:
        raise StorageError(f"the stored model has no result {graph.output!r}; the file is damaged.")


def _try(graph: Graph) -> None:
    """Compute one row: operators given the wrong number or kind of arguments show here, not at the first prediction."""
    try:
        row = graph.evaluate({name: torch.ones(1, dtype=torch.float64) for name in graph.inputs})
    except (RuntimeError, TypeError, ValueError, OverflowError, AttributeError, IndexError) as error:
        detail = str(error).partition("\n")[0]
        raise StorageError(f"the stored model cannot be computed ({detail}); the file is damaged.") from None
    if row.shape != (1,) or not row.is_floating_point():
        raise StorageError(f"the stored model gives {row.dtype} of shape {tuple(row.shape)} for one row; the file is damaged.")


def find(name: str) -> Any:
    """Look up a pointwise ATen operator such as ``mul.Tensor``."""
    packet, _, overload = name.partition(".")
    plain = re.fullmatch(r"(?!__)[a-z0-9_]+\.(?!__)\w+", name, re.ASCII)
    operator = getattr(getattr(torch.ops.aten, packet, None), overload, None) if plain else None
    if not isinstance(operator, torch._ops.OpOverload) or not (torch.Tag.pointwise in operator.tags or name in COPIES):
        raise StorageError(f"the stored model uses {name!r}, which is no pointwise operator of this torch; fit again here.")
    if operator._schema.is_mutable:
        raise StorageError(f"the stored model uses {name!r}, which changes its input; the file is damaged.")
    if torch.Tag.nondeterministic_seeded in operator.tags:
        raise StorageError(f"the stored model uses {name!r}, which draws random numbers; the file is damaged.")
    return operator


def _value(argument: Any, known: Mapping[str, Any], slot: Any) -> Any:
    if isinstance(argument, Mapping):
        return known[argument["node"]]
    if argument is None or str(slot.type) not in ("Tensor", "Optional[Tensor]"):
        return argument
    return torch.tensor(argument, dtype=torch.float64 if isinstance(argument, float) else None)


def _options(options: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in options.items():
        if key == "dtype" and not (isinstance(value, str) and value in DTYPES):
            raise StorageError(f"the stored model asks for dtype {value!r}; known: {', '.join(DTYPES)}.")
        if key != "dtype" and not isinstance(value, (int, float, bool)):
            raise StorageError(f"the stored model has the option {key}={value!r}; the file is damaged.")
    return {key: DTYPES[value] if key == "dtype" else value for key, value in options.items()}
