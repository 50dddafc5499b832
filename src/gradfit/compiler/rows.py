"""A function of one row -> machine code over all rows, in vectors.

The row's function (:mod:`gradfit.compiler.lower`) is run on values that stand for W neighbouring rows, and the loop around it is
written here: W rows at a time, the last ones together with rows that do not count. Sums are kept per lane and added in a fixed
order at the end, so the same rows give the same bits.

What a compiled function is told of the data is a table of 64-bit words, the *context*::

    0                n, rows
    1                address of the fixed parameters
    2 ... 2+k        addresses of the k input columns, the target, the weights (1/sigma; 0 where there are none)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from gradfit.compiler.elementary import FUNCTIONS
from gradfit.compiler.native import target
from gradfit.compiler.values import Value, float32, reduce_add

INDEX = ir.IntType(64)
WORDS = INDEX.as_pointer()
TYPES = {"double": ir.DoubleType(), "single": ir.FloatType()}


@dataclass(frozen=True)
class RowSource:
    """Source of a row's function, and what its arguments are, in this order.

    Attributes
    ----------
    text
        Source of ``row(*inputs, *parameters, *fixed)``.
    dtype
        "double" or "single".
    inputs
        Names of what differs from row to row: columns, then the target and sigma where the function takes them.
    parameters, fixed
        Names of the free and the fixed numbers.
    outputs
        Names of what it gives.
    """

    text: str
    dtype: str
    inputs: tuple[str, ...]
    parameters: tuple[str, ...]
    fixed: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def key(self) -> str:
        """Everything that code made from it depends on."""
        return repr((self.text, self.dtype, self.inputs, self.parameters, self.fixed, self.outputs))


def run(
    text: str, arguments: Sequence[Value], builder: ir.IRBuilder, name: str = "row", *, single: bool = False
) -> tuple[Value, ...]:
    """Run the emitted source on values: each operation writes an instruction.

    Parameters
    ----------
    single
        Whether a text written for double precision is computed in single.
    """
    constants = {dtype: functools.partial(Value.constant, builder, kind) for dtype, kind in TYPES.items()}
    own = {"double": constants["single"], "float64": float32} if single else {}
    namespace: dict[str, Any] = {
        **FUNCTIONS,
        **constants,
        **own,
        "inf": float("inf"),
        "nan": float("nan"),
        "__builtins__": {},
    }
    exec(text, namespace)  # noqa: S102 - our own text, written by lower.py from a checked graph, never the user's
    return tuple(namespace[name](*arguments))


def vector(dtype: str, width: int) -> ir.Type:
    """Type of W numbers."""
    return TYPES[dtype] if width == 1 else ir.VectorType(TYPES[dtype], width)


def define_row(module: ir.Module, source: RowSource, name: str = "row", *, times: int = 1) -> ir.Function:
    """Write the row's function for W rows, or some times W: inputs in vectors, parameters as numbers."""
    width = times * target().width(source.dtype)
    wide, single = vector(source.dtype, width), TYPES[source.dtype]
    numbers = [single] * (len(source.parameters) + len(source.fixed))
    result = ir.LiteralStructType([wide] * len(source.outputs))
    function = ir.Function(module, ir.FunctionType(result, [wide] * len(source.inputs) + numbers), name)
    function.linkage = "internal"
    function.attributes.add("alwaysinline")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    values = [Value(builder, argument) for argument in function.args]
    outputs = run(source.text, values, builder)
    packed: Any = ir.Constant(result, ir.Undefined)
    for place, output in enumerate(outputs):
        packed = builder.insert_value(packed, spread(builder, output.ir, wide), place)
    builder.ret(packed)
    return function


def spread(builder: ir.IRBuilder, number: Any, wide: ir.Type) -> Any:
    """Repeat a number in every lane; a vector stays as it is."""
    if number.type == wide:
        return number
    held = builder.insert_element(ir.Constant(wide, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), wide.count), [0] * wide.count)
    return builder.shuffle_vector(held, ir.Constant(wide, ir.Undefined), mask)


def word(builder: ir.IRBuilder, words: Any, place: int) -> Any:
    """Read one word of a table."""
    return builder.load(builder.gep(words, [ir.Constant(INDEX, place)]))


def pointer(builder: ir.IRBuilder, words: Any, place: int, kind: ir.Type) -> Any:
    """Read one word of a table as the address of numbers."""
    return builder.inttoptr(word(builder, words, place), kind.as_pointer())


@dataclass(frozen=True)
class Rows:
    """W neighbouring rows: where they begin, and which of them count (None: all).

    Attributes
    ----------
    first
        Index of the first.
    end
        How many rows there are in all.
    counted
        <W x i1>, or None where all do.
    """

    width: int
    first: Any
    end: Any
    counted: Any | None

    def load(self, builder: ir.IRBuilder, numbers: Any) -> Any:
        """Read a column's W numbers; beyond the end the last one again."""
        single = numbers.type.pointee
        if self.counted is None:
            return load_vector(builder, builder.gep(numbers, [self.first]), self.width)
        wide = ir.VectorType(single, self.width) if self.width > 1 else single
        result: Any = ir.Constant(wide, ir.Undefined)
        last = builder.sub(self.end, ir.Constant(INDEX, 1))
        for lane in range(self.width):
            place = builder.add(self.first, ir.Constant(INDEX, lane))
            inside = builder.select(builder.icmp_signed("<", place, last), place, last)
            number = builder.load(builder.gep(numbers, [inside]))
            result = number if self.width == 1 else builder.insert_element(result, number, ir.Constant(ir.IntType(32), lane))
        return result

    def store(self, builder: ir.IRBuilder, value: Any, numbers: Any) -> None:
        """Write W numbers; those that do not count are left out."""
        if self.counted is None:
            store_vector(builder, value, builder.gep(numbers, [self.first]), self.width)
            return
        for lane in range(self.width):
            place = builder.add(self.first, ir.Constant(INDEX, lane))
            with builder.if_then(builder.icmp_signed("<", place, self.end)):
                number = value if self.width == 1 else builder.extract_element(value, ir.Constant(ir.IntType(32), lane))
                builder.store(number, builder.gep(numbers, [place]))

    def count(self, builder: ir.IRBuilder, value: Any) -> Any:
        """Put 0 where a row does not count: for sums."""
        if self.counted is None:
            return value
        return builder.select(self.counted, value, ir.Constant(value.type, None))


def load_vector(builder: ir.IRBuilder, place: Any, width: int) -> Any:
    """Read W numbers from an address that need not be aligned."""
    if width == 1:
        return builder.load(place)
    kind = place.type.pointee
    wide = ir.VectorType(kind, width)
    return builder.load(builder.bitcast(place, wide.as_pointer()), align=size_of(kind))


def store_vector(builder: ir.IRBuilder, value: Any, place: Any, width: int) -> None:
    """Write W numbers to an address that need not be aligned."""
    if width == 1:
        builder.store(value, place)
        return
    builder.store(value, builder.bitcast(place, value.type.as_pointer()), align=size_of(place.type.pointee))


def size_of(kind: ir.Type) -> int:
    """Bytes of a number."""
    return 8 if isinstance(kind, ir.DoubleType) else 4


class Sums:
    """Sums over rows, one per lane, in double precision; added in a fixed order at the end."""

    def __init__(self, builder: ir.IRBuilder, count: int, width: int) -> None:
        self.width = width
        kind = vector("double", width)
        with builder.goto_entry_block():
            self.cells = [builder.alloca(kind) for _ in range(count)]
        for cell in self.cells:
            builder.store(ir.Constant(kind, None), cell)

    def add(self, builder: ir.IRBuilder, values: Sequence[Any]) -> None:
        """Add one vector to each sum."""
        kind = vector("double", self.width)
        for cell, value in zip(self.cells, values, strict=True):
            wide = value if value.type == kind else builder.fpext(value, kind)
            builder.store(builder.fadd(builder.load(cell), wide), cell)

    def totals(self, builder: ir.IRBuilder) -> list[Any]:
        """Give the sums, as doubles."""
        return [reduce_add(Value(builder, builder.load(cell))).ir for cell in self.cells]


def loop(builder: ir.IRBuilder, begin: Any, end: Any, body: Callable[[ir.IRBuilder, Any], None], *, step: int = 1) -> None:
    """Write ``for row in range(begin, end, step)``."""
    entry = builder.block
    head, inside, after = (builder.append_basic_block(name) for name in ("head", "inside", "after"))
    builder.branch(head)
    builder.position_at_end(head)
    row = builder.phi(INDEX)
    row.add_incoming(begin, entry)
    builder.cbranch(builder.icmp_signed("<", row, end), inside, after)
    builder.position_at_end(inside)
    body(builder, row)
    row.add_incoming(builder.add(row, ir.Constant(INDEX, step)), builder.block)
    builder.branch(head)
    builder.position_at_end(after)


def for_rows(builder: ir.IRBuilder, begin: Any, end: Any, width: int, body: Callable[[ir.IRBuilder, Rows], None]) -> None:
    """Write the loop over rows from ``begin`` to ``end``: whole vectors, then one that is not whole."""
    step = ir.Constant(INDEX, width)
    whole = builder.add(begin, builder.mul(builder.sdiv(builder.sub(end, begin), step), step))
    loop(builder, begin, whole, lambda builder, first: body(builder, Rows(width, first, end, None)), step=width)
    if width == 1:
        return
    with builder.if_then(builder.icmp_signed("<", whole, end)):
        lanes = ir.Constant(ir.VectorType(INDEX, width), list(range(width)))
        left = spread(builder, builder.sub(end, whole), ir.VectorType(INDEX, width))
        body(builder, Rows(width, whole, end, builder.icmp_signed("<", lanes, left)))


def row_arguments(builder: ir.IRBuilder, rows: Rows, pointers: Sequence[Any], numbers: Sequence[Any]) -> list[Any]:
    """Give the arguments of a row's function: its columns, loaded, and its numbers."""
    return [*(rows.load(builder, column) for column in pointers), *numbers]


def unpack(builder: ir.IRBuilder, packed: Any, count: int) -> list[Any]:
    """Take a function's results apart."""
    return [builder.extract_value(packed, place) for place in range(count)]


def context_pointers(builder: ir.IRBuilder, words: Any, count: int, kind: ir.Type) -> list[Any]:
    """Addresses of the first ``count`` columns of a context."""
    return [pointer(builder, words, 2 + place, kind) for place in range(count)]


def new_module(name: str) -> ir.Module:
    """Begin a module for this processor."""
    module = ir.Module(name=name)
    module.triple = str(target().machine.triple)
    return module
