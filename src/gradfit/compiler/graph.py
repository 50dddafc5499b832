"""Graph: a computation on single numbers, with shared parts, as the tracer records it and the compiler lowers it.

A node is an operation on nodes; a graph names its inputs and its outputs. Nodes carry operators, so that a formula such as
``(a - b) / c`` written on nodes builds the graph of itself: the table of operators (:mod:`gradfit.compiler.ops`) is written
that way.

======================  =========================================================================================
kind of operation       operations
======================  =========================================================================================
leaves                  input, constant
arithmetic              add sub mul div neg
comparison              lt le gt ge eq ne
on conditions           and or xor not
choice                  where (condition, value, otherwise)
change of precision     double, single
functions               those of :data:`gradfit.compiler.elementary.FUNCTIONS`, by name
======================  =========================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

DTYPES = ("double", "single", "bool")
COMPARISONS = frozenset(["lt", "le", "gt", "ge", "eq", "ne"])
CONDITIONS = frozenset(["and", "or", "xor", "not", "isnan", "isinf", "isfinite", *COMPARISONS])
ARITHMETIC = frozenset(["add", "sub", "mul", "div", "neg"])
CASTS = frozenset(["double", "single"])


class Untraceable(Exception):
    """The computation is no graph of single numbers; the text says why."""


@dataclass(frozen=True, eq=False, slots=True)
class Node:
    """``operation(*arguments)``, compared by identity.

    Attributes
    ----------
    operation
        See the table above.
    arguments
        Nodes it is computed from.
    dtype
        "double", "single" or "bool": what it gives.
    value
        The number of a constant, the name of an input.
    """

    operation: str
    arguments: tuple[Node, ...]
    dtype: str
    value: Any = None

    def __add__(self, other: Operand) -> Node:
        return apply("add", self, other)

    def __radd__(self, other: Operand) -> Node:
        return apply("add", other, self)

    def __sub__(self, other: Operand) -> Node:
        return apply("sub", self, other)

    def __rsub__(self, other: Operand) -> Node:
        return apply("sub", other, self)

    def __mul__(self, other: Operand) -> Node:
        return apply("mul", self, other)

    def __rmul__(self, other: Operand) -> Node:
        return apply("mul", other, self)

    def __truediv__(self, other: Operand) -> Node:
        return apply("div", self, other)

    def __rtruediv__(self, other: Operand) -> Node:
        return apply("div", other, self)

    def __neg__(self) -> Node:
        return apply("neg", self)

    def __lt__(self, other: Operand) -> Node:
        return apply("lt", self, other)

    def __le__(self, other: Operand) -> Node:
        return apply("le", self, other)

    def __gt__(self, other: Operand) -> Node:
        return apply("gt", self, other)

    def __ge__(self, other: Operand) -> Node:
        return apply("ge", self, other)

    def equals(self, other: Operand) -> Node:
        """Whether two numbers are equal; ``==`` compares nodes."""
        return apply("eq", self, other)

    def differs(self, other: Operand) -> Node:
        """Whether two numbers differ; NaN differs from everything."""
        return apply("ne", self, other)

    def __and__(self, other: Operand) -> Node:
        return apply("and", self, other)

    def __or__(self, other: Operand) -> Node:
        return apply("or", self, other)

    def __xor__(self, other: Operand) -> Node:
        return apply("xor", self, other)

    def __invert__(self) -> Node:
        return apply("not", self)

    def __bool__(self) -> bool:
        """Refuse to choose: a graph has no branches, only ``where``."""
        raise Untraceable("it branches on values")


Operand: TypeAlias = Node | float | bool


@dataclass(frozen=True)
class Graph:
    """Inputs by name, and the nodes of the results."""

    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]

    def nodes(self) -> list[Node]:
        """All nodes that the outputs need, each after those it is computed from; without recursion."""
        return ordered(self.outputs)


def ordered(outputs: Iterable[Node]) -> list[Node]:
    """Sort what the outputs need so that each node comes after its arguments."""
    known: set[Node] = set()
    result: list[Node] = []
    stack: list[tuple[Node, Iterator[Node]]] = []
    for output in outputs:
        if output in known:
            continue
        known.add(output)
        stack.append((output, iter(output.arguments)))
        while stack:
            node, waiting = stack[-1]
            following = next((argument for argument in waiting if argument not in known), None)
            if following is None:
                result.append(node)
                stack.pop()
            else:
                known.add(following)
                stack.append((following, iter(following.arguments)))
    return result


def variable(name: str, dtype: str = "double") -> Node:
    """Make an input."""
    return Node("input", (), dtype, name)


def constant(value: float | bool, dtype: str = "double") -> Node:
    """Make a constant."""
    return Node("constant", (), dtype, bool(value) if dtype == "bool" else float(value))


def apply(operation: str, *operands: Operand) -> Node:
    """Make a node; numbers take the dtype of the nodes they meet."""
    arguments = _alike(operation, operands)
    if operation in CONDITIONS:
        dtype = "bool"
    elif operation in CASTS:
        dtype = operation
    else:
        dtype = arguments[-1].dtype
    return Node(operation, arguments, dtype)


def where(condition: Operand, value: Operand, otherwise: Operand) -> Node:
    """Choose by a condition."""
    test = condition if isinstance(condition, Node) else constant(condition, "bool")
    value, otherwise = _alike("where", (value, otherwise))
    return Node("where", (test, value, otherwise), value.dtype)


def cast(node: Node, dtype: str) -> Node:
    """Give the number in another precision; a condition becomes 1 or 0, a number a condition by being other than 0."""
    if node.dtype == dtype:
        return node
    if dtype == "bool":
        return node.differs(0.0)
    if node.dtype == "bool":
        return where(node, constant(1.0, dtype), constant(0.0, dtype))
    if node.operation == "constant":
        return constant(_rounded(node.value, dtype), dtype)
    return Node(dtype, (node,), dtype)


def _rounded(value: float, dtype: str) -> float:
    return value if dtype == "double" else to_single(value)


def to_single(value: float) -> float:
    """Round to the nearest number of single precision."""
    import struct

    try:
        return float(struct.unpack("f", struct.pack("f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


def _alike(operation: str, operands: tuple[Operand, ...]) -> tuple[Node, ...]:
    dtypes = {operand.dtype for operand in operands if isinstance(operand, Node)}
    if len(dtypes) > 1:
        raise TypeError(f"{operation} of {', '.join(sorted(dtypes))}; convert them to one precision first")
    dtype = dtypes.pop() if dtypes else "double"
    return tuple(operand if isinstance(operand, Node) else constant(operand, dtype) for operand in operands)


def check(graph: Graph) -> None:
    """Refuse a graph that is not one: an unknown input, arguments of different kinds.

    Raises
    ------
    AssertionError
        A pass of the compiler is wrong.
    """
    inputs = set(graph.inputs)
    for node in graph.nodes():
        kinds = [argument.dtype for argument in node.arguments]
        if node.operation == "input":
            assert node in inputs, f"{node.value} is no input of the graph"
        elif node.operation == "where":
            assert kinds == ["bool", node.dtype, node.dtype], f"where of {kinds}"
        elif node.operation in ("and", "or", "xor", "not"):
            assert set(kinds) == {"bool"}, f"{node.operation} of {kinds}"
        elif node.arguments:
            assert set(kinds) in ({"double"}, {"single"}), f"{node.operation} of {kinds}"
