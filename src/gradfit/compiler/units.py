r"""What a model's own graph says of its parameters: the unit of each, which of them are places on an axis, and in which it is linear.

A sum has terms of one unit, an exponent and the argument of a sine have none, a product has the product. So in
``a * exp(-b * x)`` the unit of b is that of 1/x, and in ``(x - c) / w`` that of c and w is x's: each unit is a product of powers of the
units of the columns and of the target, and the powers solve linear equations, one for every node that asks for equal units. A start
drawn in such units is right for data in any others.

An equation that contradicts those before it is left out: in ``x + 273.15`` the number has a unit that nobody wrote down.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gradfit.compiler.eager import EagerKernel
from gradfit.compiler.graph import COMPARISONS, Graph, Node, ordered
from gradfit.compiler.row_trace import prediction_graph
from gradfit.typing import Floats

UNIT_OF_TARGET = " target"  # no argument has a blank in its name
ALIKE = frozenset(["add", "sub", "fmod", "remainder", "minimum", "maximum", "hypot", *COMPARISONS])
KEEPS = frozenset(["neg", "abs", "floor", "ceil", "trunc", "round", "double", "single"])
STRAIGHT = frozenset(["neg", "double", "single"])  # linear in their argument
WAVES = frozenset(["sin", "cos", "tan"])
SMALLEST_PIVOT = 1e-9


@dataclass(frozen=True)
class Role:
    """What is known of a free number.

    Attributes
    ----------
    powers
        Its unit: the power of each column's unit, and of the target's under ``UNIT_OF_TARGET``; None where the model leaves it open.
    column
        The column along which it is a place, as c in ``x - c``; else "".
    linear
        Whether the prediction is linear in it, together with all others of which that is said.
    periodic
        Whether it may stand in the argument of a sine or cosine.
    """

    powers: Mapping[str, float] | None
    column: str
    linear: bool
    periodic: bool = True


def roles(kernel: EagerKernel) -> dict[str, Role]:
    """Read the role of each free number from the graph of the prediction.

    Raises
    ------
    Untraceable
        The model is no graph of single numbers.
    """
    graph, free = prediction_graph(kernel), kernel.parameters.free_elements
    columns = tuple(kernel.columns)
    powers = _powers(graph, free, columns)
    places = _places(graph, free, columns)
    linear, periodic = _linear(graph, free), _periodic(graph)
    return {name: Role(powers[name], places.get(name, ""), name in linear, name in periodic) for name in free}


# --- units ------------------------------------------------------------------------------------------------------------


class _Equations:
    """Linear equations on the logarithms of units, solved as they come."""

    def __init__(self, symbols: Sequence[str], known: Sequence[str]) -> None:
        self.place = {symbol: place for place, symbol in enumerate((*symbols, *known))}
        self.unknown = len(symbols)
        self.rows: dict[int, Floats] = {}  # by pivot, an unknown that stands in no other row

    def unit(self, symbol: str) -> Floats:
        """Give the unit of a symbol, as powers of all symbols."""
        row = np.zeros(len(self.place))
        row[self.place[symbol]] = 1
        return row

    def require(self, row: Floats) -> None:
        """Take in that a product of powers has no unit; one that contradicts what is known is left out."""
        rest = self.reduced(row)
        unknown = np.abs(rest[: self.unknown])
        if unknown.max(initial=0) < SMALLEST_PIVOT:
            return
        pivot = int(unknown.argmax())
        rest = rest / rest[pivot]
        self.rows = {own: other - other[pivot] * rest for own, other in self.rows.items()}
        self.rows[pivot] = rest

    def reduced(self, row: Floats) -> Floats:
        """Write a row without the unknowns that are known by now."""
        rest = row.copy()
        for pivot, own in self.rows.items():
            rest -= rest[pivot] * own
        return rest


def _powers(graph: Graph, free: Sequence[str], columns: Sequence[str]) -> dict[str, Mapping[str, float] | None]:
    """Solve for the unit of each free number."""
    others = [str(node.value) for node in graph.inputs if str(node.value) not in {*free, *columns}]
    opaque = [f" {place}" for place, node in enumerate(graph.nodes()) if _is_opaque(node)]
    known = (*columns, UNIT_OF_TARGET)
    equations = _Equations((*free, *others, *opaque), known)
    units: dict[Node, Floats] = {}
    for place, node in enumerate(graph.nodes()):
        units[node] = _unit(node, units, equations, f" {place}")
    for output in graph.outputs:
        equations.require(units[output] - equations.unit(UNIT_OF_TARGET))
    found: dict[str, Mapping[str, float] | None] = {}
    for name in free:
        rest = equations.reduced(equations.unit(name))
        open_ = np.abs(rest[: equations.unknown]).max(initial=0) > SMALLEST_PIVOT
        found[name] = None if open_ else {own: float(rest[equations.place[own]]) for own in known}
    return found


def _is_opaque(node: Node) -> bool:
    """Whether a node's unit depends on a value: a power that is no constant."""
    return node.operation == "pow" and node.arguments[1].operation != "constant"


def _unit(node: Node, units: Mapping[Node, Floats], equations: _Equations, own: str) -> Floats:
    """Unit of a node; what it asks of the units of its arguments is taken in."""
    operation, arguments = node.operation, [units[argument] for argument in node.arguments]
    none = np.zeros(len(equations.place))
    if operation == "input":
        return equations.unit(str(node.value))
    if operation in ("mul", "div"):
        return arguments[0] + arguments[1] if operation == "mul" else arguments[0] - arguments[1]
    if operation in KEEPS:
        return arguments[0]
    if operation == "sqrt":
        return 0.5 * arguments[0]
    if operation == "pow":
        equations.require(arguments[1])
        return equations.unit(own) if _is_opaque(node) else arguments[0] * node.arguments[1].value
    if operation in ALIKE or operation == "where":
        first, second = arguments[-2:]
        terms = node.arguments[-2:]
        if not any(_is_zero(term) for term in terms):
            equations.require(first - second)
        return none if operation in COMPARISONS else second if _is_zero(terms[0]) else first
    for argument in arguments:
        equations.require(argument)
    return none


def _is_zero(node: Node) -> bool:
    """Whether a node is a constant that has every unit."""
    return node.operation == "constant" and (node.value == 0 or not np.isfinite(node.value))


# --- places on an axis ------------------------------------------------------------------------------------------------


def _places(graph: Graph, free: Sequence[str], columns: Sequence[str]) -> dict[str, str]:
    """Find the numbers that are added to a column, or taken from it."""
    sums = (node.arguments for node in graph.nodes() if node.operation in ("add", "sub"))
    pairs = [[str(_without_sign(argument).value) for argument in terms] for terms in sums]
    return {name: other for pair in pairs for name, other in (pair, pair[::-1]) if name in free and other in columns}


def _without_sign(node: Node) -> Node:
    return node.arguments[0] if node.operation == "neg" else node


# --- waves --------------------------------------------------------------------------------------------------------------


def _periodic(graph: Graph) -> set[str]:
    """Find the inputs that stand in the argument of a sine or cosine."""
    inside = ordered(argument for node in graph.nodes() if node.operation in WAVES for argument in node.arguments)
    return {str(node.value) for node in inside if node.operation == "input"}


# --- linear parameters ------------------------------------------------------------------------------------------------


def _linear(graph: Graph, free: Sequence[str]) -> set[str]:
    """Choose numbers in which the prediction is linear together: as many as come in turn."""
    chosen: set[str] = set()
    for name in free:
        if _degree(graph, chosen | {name}) <= 1:
            chosen.add(name)
    return chosen


def _degree(graph: Graph, names: Iterable[str]) -> int:
    """Degree of the prediction as a polynomial in some of its inputs; 2 stands for all that is not linear."""
    degrees: dict[Node, int] = {}
    among = set(names)
    for node in graph.nodes():
        own = [degrees[argument] for argument in node.arguments]
        highest = max(own, default=0)
        if node.operation == "input":
            degree = int(str(node.value) in among)
        elif node.operation == "mul":
            degree = sum(own)
        else:
            straight = node.operation in ("add", "sub", *STRAIGHT)
            straight |= (node.operation == "div" and own[1] == 0) or (node.operation == "where" and own[0] == 0)
            degree = highest if straight or not highest else 2
        degrees[node] = min(degree, 2)
    return max((degrees[output] for output in graph.outputs), default=0)
