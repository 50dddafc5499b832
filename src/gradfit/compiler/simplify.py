"""Graph -> a smaller graph with the same values: constants folded, equal parts shared, neutral elements removed.

Every rule is exact in floating point: it changes no bit of a result, but for the sign of a NaN. So ``x + 0.0`` stays (it turns
-0 into 0), and sums are never reordered.

==========================  ==============================
x*1, 1*x, x/1, x - 0        x
x*(-1), -(-x)               -x, x
(-x)*y, (-x)/y              -(x*y), -(x/y)
x + (-y), x - (-y)          x - y, x + y
where(true, a, b)           a; ``where(c, a, a)`` is a too
c and true, c or false      c; and so on for conditions
single(double(x))           x, if it was single
==========================  ==============================
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping

from gradfit.compiler.evaluate import evaluate
from gradfit.compiler.graph import Graph, Node, constant

COMMUTE = frozenset(["add", "mul", "and", "or", "xor", "eq", "ne"])


def simplify(graph: Graph, *, guarded: bool = False) -> Graph:
    """Simplify a graph; its inputs stay, used or not.

    ``guarded``: a factor of ``where(c, slope, 0)`` goes inside the choice. Backwards, autograd multiplies the 0 of a branch that was not
    taken by what the branch would have given, and where that is infinite makes NaN of it; forwards it does not. A Jacobian is
    wanted as forwards.
    """
    home = _Home(guarded)
    new: dict[Node, Node] = {node: node for node in graph.inputs}
    for node in graph.nodes():
        if node not in new:
            new[node] = home.make(node, tuple(new[argument] for argument in node.arguments))
    return Graph(graph.inputs, tuple(new[output] for output in graph.outputs))


class _Home:
    """Keeps one node for each operation on the same arguments."""

    def __init__(self, guarded: bool = False) -> None:
        self.known: dict[object, Node] = {}
        self.guarded = guarded

    def make(self, node: Node, arguments: tuple[Node, ...]) -> Node:
        """Give the simplest node that computes ``node`` from simplified arguments."""
        if node.operation == "constant":
            return self.constant(node.value, node.dtype)
        if all(argument.operation == "constant" for argument in arguments):
            return self.constant(fold(node, arguments), node.dtype)
        rule = RULES.get(node.operation)
        found = rule(self, node, *arguments) if rule is not None else None
        return self.node(node.operation, arguments, node.dtype) if found is None else found

    def node(self, operation: str, arguments: tuple[Node, ...], dtype: str) -> Node:
        """Give the one node of an operation on arguments."""
        order = tuple(map(id, arguments))
        key = (operation, tuple(sorted(order)) if operation in COMMUTE else order, dtype)
        return self.known.setdefault(key, Node(operation, arguments, dtype))

    def negative(self, inner: Node) -> Node:
        """Give ``-inner``."""
        if inner.operation == "neg":
            return inner.arguments[0]
        if inner.operation == "constant":
            return self.constant(-inner.value, inner.dtype)
        return self.node("neg", (inner,), inner.dtype)

    def product(self, a: Node, b: Node) -> Node:
        """Give ``a * b``."""
        return self.make(Node("mul", (a, b), a.dtype), (a, b))

    def quotient(self, a: Node, b: Node) -> Node:
        """Give ``a / b``."""
        return self.make(Node("div", (a, b), a.dtype), (a, b))

    def constant(self, value: float | bool, dtype: str) -> Node:
        """Give the one node of a constant; 0 and -0 are two."""
        bits = "nan" if value != value else (value, math.copysign(1.0, value))
        return self.known.setdefault(("constant", dtype, bits), constant(value, dtype))


def fold(node: Node, arguments: tuple[Node, ...]) -> float | bool:
    """Compute an operation on constants, in its own precision."""
    return evaluate(Graph((), (Node(node.operation, arguments, node.dtype),)), {})[0].item()


def _is(node: Node, value: float | bool) -> bool:
    return node.operation == "constant" and node.value == value and math.copysign(1, node.value) == math.copysign(1, value)


def _product(home: _Home, node: Node, a: Node, b: Node) -> Node | None:
    for one, other in ((a, b), (b, a)):
        if _is(one, 1.0):
            return other
        if _is(one, -1.0):
            return home.negative(other)
        if home.guarded and (inside := _inside(home, one, functools.partial(home.product, other))) is not None:
            return inside
    return _sign_outside(home, node, a, b)


def _quotient(home: _Home, node: Node, a: Node, b: Node) -> Node | None:
    if _is(b, 1.0):
        return a
    if _is(b, -1.0):
        return home.negative(a)
    if home.guarded and (inside := _inside(home, a, lambda part: home.quotient(part, b))) is not None:
        return inside
    return _sign_outside(home, node, a, b)


def _inside(home: _Home, chosen: Node, scaled: Callable[[Node], Node]) -> Node | None:
    """``where(c, slope, 0)`` with a factor: the factor on the branch that is taken."""
    if chosen.operation != "where":
        return None
    condition, value, otherwise = chosen.arguments
    if otherwise.operation == "constant" and otherwise.value == 0:
        return home.node("where", (condition, scaled(value), otherwise), chosen.dtype)
    if value.operation == "constant" and value.value == 0:
        return home.node("where", (condition, value, scaled(otherwise)), chosen.dtype)
    return None


def _sign_outside(home: _Home, node: Node, a: Node, b: Node) -> Node | None:
    """``(-x)*y`` and ``x/(-y)``: the sign of the result, so that the rest may be shared."""
    if "neg" not in (a.operation, b.operation):
        return None
    left, right = (part.arguments[0] if part.operation == "neg" else part for part in (a, b))
    inner = home.make(Node(node.operation, (left, right), node.dtype), (left, right))
    return home.negative(inner) if (a.operation == "neg") != (b.operation == "neg") else inner


def _added(home: _Home, node: Node, a: Node, b: Node) -> Node | None:
    if _is(b, -0.0):
        return a
    if _is(a, -0.0):
        return b
    if b.operation == "neg":
        return home.node("sub", (a, b.arguments[0]), node.dtype)
    if a.operation == "neg":
        return home.node("sub", (b, a.arguments[0]), node.dtype)
    return None


def _subtracted(home: _Home, node: Node, a: Node, b: Node) -> Node | None:
    if _is(b, 0.0):
        return a
    if b.operation == "neg":
        return home.node("add", (a, b.arguments[0]), node.dtype)
    return None


def _negated(home: _Home, node: Node, a: Node) -> Node | None:
    inside = _inside(home, a, home.negative) if home.guarded else None
    return home.negative(a) if inside is None else inside


def _chosen(home: _Home, node: Node, condition: Node, value: Node, otherwise: Node) -> Node | None:
    if value is otherwise:
        return value
    if condition.operation == "constant":
        return value if condition.value else otherwise
    if otherwise.operation == "where":  # where(c, a, where(not c, b, never))
        test, second, _ = otherwise.arguments
        if _opposite(test, condition):
            return second if second is value else home.node("where", (condition, value, second), node.dtype)
    return None


def _opposite(a: Node, b: Node) -> bool:
    return (a.operation == "not" and a.arguments[0] is b) or (b.operation == "not" and b.arguments[0] is a)


def _both(home: _Home, node: Node, a: Node, b: Node) -> Node | None:
    for one, other in ((a, b), (b, a)):
        if one.operation == "constant":
            return other if one.value else one
    return a if a is b else None


def _either(home: _Home, node: Node, a: Node, b: Node) -> Node | None:
    for one, other in ((a, b), (b, a)):
        if one.operation == "constant":
            return one if one.value else other
    return a if a is b else None


def _one_of(home: _Home, node: Node, a: Node, b: Node) -> Node | None:
    for one, other in ((a, b), (b, a)):
        if one.operation == "constant":
            return home.make(Node("not", (other,), "bool"), (other,)) if one.value else other
    return None


def _not(home: _Home, node: Node, a: Node) -> Node | None:
    return a.arguments[0] if a.operation == "not" else None


def _same_precision(home: _Home, node: Node, a: Node) -> Node | None:
    if a.dtype == node.dtype:
        return a
    widened = node.operation == "single" and a.operation == "double"
    return a.arguments[0] if widened else None


RULES: Mapping[str, Callable[..., Node | None]] = {
    "mul": _product,
    "div": _quotient,
    "add": _added,
    "sub": _subtracted,
    "neg": _negated,
    "where": _chosen,
    "and": _both,
    "or": _either,
    "xor": _one_of,
    "not": _not,
    "double": _same_precision,
    "single": _same_precision,
}
