"""Graph -> readable Python: a function of single numbers, which :mod:`gradfit.compiler.native` then runs on machine values.

Parts that are used once are written where they are used, as a person would; parts that are used again get a name. The text is
all there is: what is compiled is this function, called with values that write machine code (or, in the tests, with numbers).
"""

from __future__ import annotations

import keyword
import math
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

from gradfit.compiler.graph import ARITHMETIC, Graph, Node

SYMBOLS: Mapping[str, tuple[str, int]] = {
    "or": ("|", 1), "xor": ("^", 2), "and": ("&", 3), "lt": ("<", 4), "le": ("<=", 4), "gt": (">", 4), "ge": (">=", 4),
    "eq": ("==", 4), "ne": ("!=", 4), "add": ("+", 5), "sub": ("-", 5), "mul": ("*", 6), "div": ("/", 6),
}  # fmt: skip
# Python lets &, | and ^ bind tighter than comparisons: these are always put in parentheses.
LOOSE = frozenset(["or", "xor", "and", "lt", "le", "gt", "ge", "eq", "ne"])
NEGATION, ATOM = 7, 9
LONGEST = 60  # characters of a part written in place
RESERVED = frozenset(["double", "single", "inf", "nan", "true", "false", "where", "float32", "float64", "row"])


def lower(graph: Graph, outputs: Sequence[str], *, name: str = "row", title: str = "") -> str:
    """Write a graph as a Python function.

    Parameters
    ----------
    graph
        Simplified: what is computed of constants alone is a constant.
    outputs
        A name for each result; parts of the computation that are results carry it.
    title
        What the function computes, its docstring.

    Returns
    -------
    Source text that uses ``+ - * /``, comparisons, ``& | ^ ~``, and the names of :mod:`gradfit.compiler.elementary`.
    """
    return _Writer(graph, outputs).text(name, title)


class _Writer:
    def __init__(self, graph: Graph, outputs: Sequence[str]) -> None:
        self.graph, self.outputs = graph, outputs
        self.taken: set[str] = {*RESERVED, *(node.operation for node in graph.nodes())}
        self.names: dict[Node, str] = {}
        for node in graph.inputs:
            self.names[node] = self.free(identifier(str(node.value)))
        self.written: dict[Node, tuple[str, int]] = {node: (name, ATOM) for node, name in self.names.items()}

    def free(self, wanted: str) -> str:
        """Give a name that is not taken: the one wanted, with _ behind it where needed."""
        while wanted in self.taken:
            wanted += "_"
        self.taken.add(wanted)
        return wanted

    def text(self, name: str, title: str) -> str:
        nodes = self.graph.nodes()
        uses = Counter(argument for node in nodes for argument in node.arguments)
        wanted: dict[Node, str] = {}
        for node, output in zip(self.graph.outputs, self.outputs, strict=True):
            uses[node] += 1
            wanted.setdefault(node, output)
        lines: list[str] = []
        for node in nodes:
            if node in self.written:
                continue
            text, binding = self.expression(node)
            if node.operation == "constant" or (uses[node] == 1 and node not in wanted and len(text) <= LONGEST):
                self.written[node] = (text, binding)
                continue
            own = self.free(identifier(wanted[node])) if node in wanted else self.free(f"t{len(lines) + 1}")
            lines.append(f"    {own} = {text}")
            self.written[node] = (own, ATOM)
        results = ", ".join(self.result(node) for node in self.graph.outputs)
        heading = [f"def {name}({', '.join(self.names.values())}):"] + ([f'    """{title}"""'] if title else [])
        return "\n".join([*heading, *lines, f"    return {results}{',' * (len(self.graph.outputs) == 1)}"]) + "\n"

    def result(self, node: Node) -> str:
        """Write a result; a plain number is made a value, so that it has a precision."""
        text = self.written[node][0]
        return f"{node.dtype}({text})" if node.operation == "constant" else text

    def expression(self, node: Node) -> tuple[str, int]:
        """Write one operation on parts already written, and say how strongly it binds."""
        operation = node.operation
        if operation == "constant":
            return number(node.value)
        if operation == "neg":
            return "-" + self.part(node.arguments[0], NEGATION), NEGATION
        if operation == "not":
            return "~" + self.part(node.arguments[0], ATOM), NEGATION
        if operation in SYMBOLS:
            symbol, binding = SYMBOLS[operation]
            left, right = node.arguments
            if operation in LOOSE:
                return f"{self.part(left, ATOM)} {symbol} {self.part(right, ATOM)}", binding
            # a - (b - c), and a * (b / c): parentheses on the right keep the order of rounding
            return f"{self.part(left, binding)} {symbol} {self.part(right, binding + 1)}", binding
        names = {"double": "float64", "single": "float32"}
        constants = operation not in ARITHMETIC and all(a.operation == "constant" for a in _valued(node))
        parts = [self.result(a) if constants and a.dtype != "bool" else self.written[a][0] for a in node.arguments]
        return f"{names.get(operation, operation)}({', '.join(parts)})", ATOM

    def part(self, node: Node, least: int) -> str:
        text, binding = self.written[node]
        return text if binding >= least else f"({text})"


def _valued(node: Node) -> tuple[Node, ...]:
    return node.arguments[1:] if node.operation == "where" else node.arguments


def number(value: float | bool) -> tuple[str, int]:
    """Write a number so that it is read back the same, and say how strongly it binds."""
    if isinstance(value, bool):
        return ("true" if value else "false"), ATOM
    if math.isnan(value):
        return "nan", ATOM
    text = repr(float(value))
    return text, NEGATION if text.startswith("-") else ATOM


def identifier(name: str) -> str:
    """Make a Python name of any name: ``c[0]`` becomes c_0, ``t (°C)`` becomes t_C."""
    # Python takes names that Unicode calls compatible, such as x² and x2, for the same.
    letters = (letter if f"v{letter}".isidentifier() else " " for letter in unicodedata.normalize("NFKC", name))
    word = "_".join("".join(letters).split()).strip("_") or "v"
    if not word.isidentifier():
        word = f"v{word}"
    return f"{word}_" if keyword.iskeyword(word) else word
