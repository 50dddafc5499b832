"""Record a torch computation, and compile it to a function over arrays: what the tests of the tracing compiler compare to torch."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from torch import Tensor

from gradfit.compiler.elementary import FUNCTIONS
from gradfit.compiler.evaluate import operation
from gradfit.compiler.graph import Graph, check
from gradfit.compiler.lower import _Writer, lower
from gradfit.compiler.native import Function, compiled, load, target
from gradfit.compiler.rows import (
    INDEX,
    TYPES,
    WORDS,
    Rows,
    RowSource,
    context_pointers,
    define_row,
    for_rows,
    new_module,
    row_arguments,
    unpack,
    word,
)
from gradfit.compiler.simplify import simplify
from gradfit.compiler.trace import record

NUMPY = {"double": np.float64, "single": np.float32}
TORCH = {"double": torch.float64, "single": torch.float32}
KINDS = {dtype: name for name, dtype in TORCH.items()}


def arguments(graph):
    """Names of the emitted function's arguments."""
    return tuple(_Writer(graph, ()).names.values())


def traced(call: Callable[..., Tensor | Sequence[Tensor]], example: Mapping[str, Tensor]) -> Graph:
    """Record and simplify; the graph is checked after both."""
    graph = record(call, example)
    check(graph)
    graph = simplify(graph)
    check(graph)
    return graph


def row_source(graph: Graph, dtype: str) -> RowSource:
    """Write a graph whose inputs all differ from row to row."""
    outputs = tuple(f"out_{k}" for k in range(len(graph.outputs)))
    return RowSource(lower(graph, outputs), dtype, arguments(graph), (), (), outputs)


def native(graph: Graph, dtype: str) -> Callable[..., np.ndarray]:
    """Compile a graph to ``f(*arrays) -> (outputs, n)``; arrays have the values of its inputs, row by row."""
    source = row_source(graph, dtype)
    return run_rows(source)


def run_rows(source: RowSource) -> Callable[..., np.ndarray]:
    """Compile a row's function to one over arrays of its inputs."""
    function = Function(load([compiled("test " + source.key, lambda: _module(source))], ["rows"]), "rows", None, 2)
    kind = NUMPY[source.dtype]

    def call(*columns: np.ndarray) -> np.ndarray:
        held = [np.ascontiguousarray(column, kind) for column in columns]
        out = np.empty((len(source.outputs), len(held[0])), kind)
        words = np.array([len(held[0]), 0, *(column.ctypes.data for column in held)], np.int64)
        function.call(words.ctypes.data, out.ctypes.data)
        return out

    return call


def _module(source: RowSource) -> str:
    module, kind = new_module("test"), TYPES[source.dtype]
    row = define_row(module, source)
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [WORDS, kind.as_pointer()]), "rows")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    words, out = function.args
    n = word(builder, words, 0)
    columns = context_pointers(builder, words, len(source.inputs), kind)

    def body(builder: ir.IRBuilder, rows: Rows) -> None:
        packed = builder.call(row, row_arguments(builder, rows, columns, []))
        for place, value in enumerate(unpack(builder, packed, len(source.outputs))):
            rows.store(builder, value, builder.gep(out, [builder.mul(n, ir.Constant(INDEX, place))]))

    for_rows(builder, ir.Constant(INDEX, 0), n, target().width(source.dtype), body)
    builder.ret_void()
    return str(module)


def run_on_torch(text: str, name: str = "row") -> Callable[..., tuple[Tensor, ...]]:
    """Give the function of a source, for torch's numbers."""
    known: dict[str, Any] = {own: _lifted(operation(own)) for own in FUNCTIONS if own not in ("float32", "float64")}
    known |= {kind: functools.partial(torch.tensor, dtype=dtype) for kind, dtype in TORCH.items()}
    known |= {"float64": operation("double"), "float32": operation("single")}
    known |= {"inf": math.inf, "nan": math.nan, "bool": torch.tensor, "true": True, "false": False}
    exec(text, known)  # noqa: S102 - our own text
    return known[name]


def _lifted(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let a function of tensors take plain numbers beside them, as compiled code does."""

    def call(*operands: Any) -> Tensor:
        dtype = next(value.dtype for value in operands if isinstance(value, Tensor) and value.dtype != torch.bool)
        return function(*(value if isinstance(value, Tensor) else torch.tensor(value, dtype=dtype) for value in operands))

    return call


def with_slopes(function: Callable[..., Tensor], order: int = 1) -> Callable[..., list[Tensor]]:
    """Give ``f(**arguments) -> [value, first derivatives, second derivatives by the same argument]``, by torch's autograd."""

    def call(**values: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            leaves = [value.detach().requires_grad_() for value in values.values()]
            value = function(*leaves)
            results, level = [value], [value] * len(leaves)
            for depth in range(order):
                level = [_slope(each, leaf, depth + 1 < order) for each, leaf in zip(level, leaves, strict=True)]
                results += level
        return results

    return call


def _slope(value: Tensor, leaf: Tensor, again: bool) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    (slope,) = torch.autograd.grad(value.sum(), leaf, create_graph=again, retain_graph=True, allow_unused=True)
    return torch.zeros_like(leaf) if slope is None else slope
