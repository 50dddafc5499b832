"""The compiled functions of a model on data with errors in x, from the row's prediction and its derivatives.

A row's residual g is its distance from the nearest point of the model, in units of the deviations; see :mod:`gradfit.compiler.nearest`.

=====================  ==============================================================================================
``gf_linearize``       (theta, context, g, J) -> sum of g²; J is (p, n), one parameter after the other
``gf_residual``        (theta, context, g) -> sum of g²
``gf_sum_of_squares``  (theta, context) -> sum of g²
``gf_predict``         (theta, context, f, df) : predictions and derivatives at the x that were measured
``gf_nearest``         (theta, context, d, f, w) : errors in x, (q, n), predictions there, 1 / sqrt(σ² + a.a)
=====================  ==============================================================================================

The context is that of :mod:`gradfit.compiler.rows`, with sigma, the deviation of each inexact input, where the search begins, in these
deviations, for each, and one more array after the target. ``gf_linearize`` fills the last with what added to g gives the prediction in
its units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from gradfit.compiler import model_code, nearest, values
from gradfit.compiler.native import compiled, target
from gradfit.compiler.nearest import Look
from gradfit.compiler.rows import (
    INDEX,
    WORDS,
    Rows,
    RowSource,
    Sums,
    context_pointers,
    define_row,
    for_rows,
    new_module,
    pointer,
    unpack,
    vector,
    word,
)
from gradfit.compiler.values import Value, where

COUNTS = {"gf_linearize": 4, "gf_residual": 3, "gf_sum_of_squares": 2, "gf_predict": 4, "gf_nearest": 5}
AT_ONCE = 2  # vectors: the search is a chain of operations, and two chains take the time of one
DOUBLE, ADDRESS, BOOLEAN = model_code.DOUBLE, model_code.ADDRESS, ir.IntType(1)


@dataclass(frozen=True)
class OrthogonalRow:
    """What a row consists of.

    Attributes
    ----------
    source
        Of the prediction and its derivatives, see :func:`gradfit.compiler.row_trace.curved_row`.
    inexact
        Places of the inexact inputs among the inputs.
    """

    source: RowSource
    inexact: tuple[int, ...]

    @property
    def q(self) -> int:
        """How many inputs are inexact."""
        return len(self.inexact)


def model_object(row: OrthogonalRow) -> bytes:
    """Compile the five functions."""
    return compiled(repr(("orthogonal", row.source.key, row.inexact)), lambda: _module(row))


def _module(row: OrthogonalRow) -> str:
    module = new_module("orthogonal")
    model = _Model(row, define_row(module, row.source, times=AT_ONCE))
    search = _define_nearest(module, model)
    for name in COUNTS:
        _define(module, model, search, name)
    return str(module)


@dataclass(frozen=True)
class _Model:
    """The row's function in a module."""

    row: OrthogonalRow
    function: ir.Function

    def look(
        self,
        builder: ir.IRBuilder,
        columns: Sequence[Any],
        numbers: Sequence[Any],
        deviations: Sequence[Value],
        moved: Sequence[Value],
    ) -> tuple[Look, list[Value]]:
        """Call it at x + d, d = deviation * u; gives the look, and the derivatives by the parameters."""
        inputs = list(columns)
        for place, deviation, u in zip(self.row.inexact, deviations, moved, strict=True):
            inputs[place] = (Value(builder, inputs[place]) + deviation * u).ir
        q, outputs = self.row.q, self.row.source.outputs
        packed = builder.call(self.function, [*inputs, *numbers])
        parts = iter([Value(builder, part) for part in unpack(builder, packed, len(outputs))])
        prediction = next(parts)
        slope = [next(parts) * deviation for deviation in deviations]
        curvature = [[next(parts) * deviations[i] * deviations[j] for j in range(i + 1)] for i in range(q)]
        return Look(prediction, slope, curvature), list(parts)


# --- the nearest point ------------------------------------------------------------------------------------------------


class _Cells:
    """The cells of :mod:`gradfit.compiler.nearest`, in memory that LLVM turns into registers."""

    def __init__(self, builder: ir.IRBuilder, begun: dict[str, Value]) -> None:
        self.builder, self.places = builder, {}
        for name, value in begun.items():
            self.places[name] = builder.alloca(value.type)
            builder.store(value.ir, self.places[name])

    def __getitem__(self, name: str) -> Value:
        return Value(self.builder, self.builder.load(self.places[name]))

    def update(self, rows: Value, **changes: Value | float) -> None:
        """Change cells in some lanes."""
        for name, value in changes.items():
            self.builder.store(where(rows, value, self[name]).ir, self.places[name])


def _define_nearest(module: ir.Module, model: _Model) -> ir.Function:
    """Write the search: (columns, numbers, target, sigma, deviations, origin) -> (u, whether it was found)."""
    source, q, width = model.row.source, model.row.q, AT_ONCE * target().width("double")
    wide, k = vector("double", width), len(source.inputs)
    numbers = len(source.parameters) + len(source.fixed)
    kinds = [wide] * k + [DOUBLE] * numbers + [wide] * (2 + 2 * q)
    flags = BOOLEAN if width == 1 else ir.VectorType(BOOLEAN, width)
    result = ir.LiteralStructType([wide] * q + [flags])
    function = ir.Function(module, ir.FunctionType(result, kinds), "nearest")
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    columns, plain = function.args[:k], function.args[k : k + numbers]
    aim, sigma, *others = (Value(builder, argument) for argument in function.args[k + numbers :])
    deviations, origin = others[:q], others[q:]
    look, _ = model.look(builder, columns, plain, deviations, origin)
    cells = _Cells(builder, nearest.begin(values, look, origin, aim, sigma))

    def again() -> None:
        moved = nearest.trial(cells, q)
        look, _ = model.look(builder, columns, plain, deviations, moved)
        nearest.advance(values, cells, look, moved, aim, sigma)

    _while_any(builder, cells, again)
    packed: Any = ir.Constant(result, ir.Undefined)
    for place, name in enumerate([*(f"u{j}" for j in range(q)), "found"]):
        packed = builder.insert_value(packed, cells[name].ir, place)
    builder.ret(packed)
    return function


def _while_any(builder: ir.IRBuilder, cells: _Cells, again: Callable[[], None]) -> None:
    """Write a loop that goes on until every lane has ended, `nearest.MOST` times at most."""
    entry = builder.block
    head, inside, after = (builder.append_basic_block(name) for name in ("head", "look", "after"))
    builder.branch(head)
    builder.position_at_end(head)
    count = builder.phi(INDEX)
    count.add_incoming(ir.Constant(INDEX, 1), entry)
    going = (~cells["ended"]).ir
    lanes = 1 if going.type == BOOLEAN else going.type.count
    some = builder.icmp_unsigned("!=", builder.bitcast(going, ir.IntType(lanes)), ir.Constant(ir.IntType(lanes), 0))
    more = builder.and_(some, builder.icmp_signed("<", count, ir.Constant(INDEX, nearest.MOST)))
    builder.cbranch(more, inside, after)
    builder.position_at_end(inside)
    again()
    count.add_incoming(builder.add(count, ir.Constant(INDEX, 1)), builder.block)
    builder.branch(head)
    builder.position_at_end(after)


# --- the functions ----------------------------------------------------------------------------------------------------


def _define(module: ir.Module, model: _Model, search: ir.Function, name: str) -> None:
    """Write one of the functions: a loop over rows that keeps what is asked for."""
    function = ir.Function(module, ir.FunctionType(DOUBLE, [ADDRESS, WORDS] + [ADDRESS] * (COUNTS[name] - 2)), name)
    for argument in function.args:
        argument.add_attribute("noalias")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    source, q, words, width = model.row.source, model.row.q, function.args[1], AT_ONCE * target().width("double")
    n, k = word(builder, words, 0), len(source.inputs)
    numbers = model_code.parameters(builder, function.args[0], words, source)
    inputs = context_pointers(builder, words, k, DOUBLE)
    targets, sigmas, *others, offsets = (pointer(builder, words, 2 + k + place, DOUBLE) for place in range(3 + 2 * q))
    sums = Sums(builder, 1, width)

    def body(builder: ir.IRBuilder, rows: Rows) -> None:
        def keep(value: Value, array: int, place: int = 0) -> None:
            start = builder.gep(function.args[1 + array], [builder.mul(n, ir.Constant(INDEX, place))])
            rows.store(builder, value.ir, start)

        columns = [rows.load(builder, address) for address in inputs]
        aim, sigma, *deviations = (Value(builder, rows.load(builder, address)) for address in (targets, sigmas, *others[:q]))
        if name == "gf_predict":
            look, derivatives = model.look(builder, columns, numbers, deviations, [aim.like(0.0)] * q)
            keep(look.prediction, 1)
            for place, slope in enumerate(derivatives):
                keep(slope, 2, place)
            return
        given = [value.ir for value in (aim, sigma, *deviations)] + [rows.load(builder, address) for address in others[q:]]
        packed = builder.call(search, [*columns, *numbers, *given])
        *moved, found = (Value(builder, part) for part in unpack(builder, packed, q + 1))
        look, derivatives = model.look(builder, columns, numbers, deviations, moved)
        distance, weight = nearest.distance(values, look, moved, found, aim, sigma)
        if name == "gf_nearest":
            for place, (u, deviation) in enumerate(zip(moved, deviations, strict=True)):
                keep(u * deviation, 1, place)
            keep(look.prediction, 2)
            keep(weight, 3)
            return
        sums.add(builder, [rows.count(builder, (distance * distance).ir)])
        if name != "gf_sum_of_squares":
            keep(distance, 1)
        if name == "gf_linearize":
            rows.store(builder, (look.prediction * weight - distance).ir, offsets)
            for place, slope in enumerate(derivatives):
                keep(slope * weight, 2, place)

    for_rows(builder, ir.Constant(INDEX, 0), n, width, body)
    builder.ret(sums.totals(builder)[0])
