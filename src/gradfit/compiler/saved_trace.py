"""A torch computation -> Graph: what a model does to one row, recorded by torch's own tracer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from gradfit.compiler.saved_graph import COPIES, DTYPES, MAX_NODES, Graph, Node, check, find
from gradfit.errors import StorageError

# Constants made to look like a tensor; one row at a time they are plain numbers.
FILLED = {"zeros_like.default": 0.0, "ones_like.default": 1.0}


def trace(call: Callable[..., Any], example: Mapping[str, Tensor]) -> Graph | str:
    """Record ``call(**values)`` for scalar values.

    Parameters
    ----------
    call
        A model that treats each row by itself.
    example
        One 0-dimensional float64 tensor per argument, all different (equal tensors would be taken for one).

    Returns
    -------
    The graph; or a sentence that says why the model is none (it branches on data, mixes rows, uses matrices).
    """
    names = tuple(example)

    def positional(*values: Tensor) -> Any:
        return call(**dict(zip(names, values, strict=True)))

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer's remarks are ours to act on, not the user's
            # functionalize: a temporary changed in place (t += b) is as good as a new one
            recorded = make_fx(torch.func.functionalize(positional))(*example.values())
    except Exception as error:  # noqa: BLE001 - whatever a model does under the tracer, the answer is "no graph"
        first = str(error).partition("\n")[0]
        if "get value out of a tracing tensor" in first:
            return "it branches on values, or turns them into plain numbers"
        return f"it cannot be traced for one row ({type(error).__name__}: {first})"
    recorded.graph.eliminate_dead_code()
    try:
        graph = _graph(names, recorded)
        check(graph)
    except (StorageError, _NotPlain) as refusal:
        return str(refusal)
    return graph


class _NotPlain(Exception):
    """The recorded computation holds more than elementwise operators on numbers."""


def _graph(inputs: tuple[str, ...], recorded: fx.GraphModule) -> Graph:
    placeholders = [node for node in recorded.graph.nodes if node.op == "placeholder"]
    known: dict[fx.Node, Any] = {node: {"node": name} for node, name in zip(placeholders, inputs, strict=True)}
    nodes: list[Node] = []
    result: Any = None
    for node in recorded.graph.nodes:
        if node.op == "get_attr":
            known[node] = _constant(getattr(recorded, str(node.target)))
        elif node.op == "call_function":
            name = str(node.target).removeprefix("aten.")
            if name in COPIES and not isinstance(_known(node.args[0], known), Mapping):
                known[node] = _known(node.args[0], known)  # a copy of a constant is the constant
                continue
            if name in FILLED or name == "full_like.default":
                known[node] = FILLED[name] if name in FILLED else _known(node.args[1], known)
                continue
            _check_operator(name)
            arguments = tuple(_known(argument, known) for argument in node.args)
            own = f"v{len(nodes)}"
            nodes.append(
                Node(
                    own,
                    name,
                    arguments,
                    {key: _option(key, value) for key, value in node.kwargs.items() if value is not None},
                )
            )
            known[node] = {"node": own}
        elif node.op == "output":
            result = _known(node.args[0], known)
    if len(nodes) > MAX_NODES:
        raise _NotPlain(f"it has more than {MAX_NODES} operations")
    if not isinstance(result, Mapping):
        raise _NotPlain("its result is a constant")
    return Graph(inputs, tuple(nodes), result["node"])


def _check_operator(name: str) -> None:
    try:
        find(name)
    except StorageError:
        raise _NotPlain(f"it uses the torch operator {name}, which is not elementwise and without side effects") from None


def _known(argument: Any, known: Mapping[fx.Node, Any]) -> Any:
    if isinstance(argument, fx.Node):
        return known[argument]
    if argument is None or (isinstance(argument, (bool, int, float)) and math.isfinite(argument)):
        return argument
    raise _NotPlain(f"it uses {argument!r}, which is no number")


def _constant(value: Any) -> float:
    if isinstance(value, Tensor) and value.dim() == 0 and math.isfinite(float(value)):
        return float(value)
    raise _NotPlain("it holds a constant array")


def _option(key: str, value: Any) -> Any:
    if isinstance(value, torch.dtype) and str(value) in DTYPES:
        return str(value)
    if isinstance(value, (bool, int, float)):
        return value
    raise _NotPlain(f"it uses the option {key}={value!r}")
