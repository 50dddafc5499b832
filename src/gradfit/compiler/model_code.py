r"""The compiled functions of a model on its data, from the row's prediction and its derivative.

With :math:`r_i = (f_i - y_i) w_i`, w = 1/sigma or 1, and :math:`J_{ij} = w_i\, \partial f_i/\partial\theta_j`:

=====================  ==============================================================================================
``gf_linearize``       (theta, context, r, J) -> sum of r²; J is (p, n), one parameter after the other
``gf_residual``        (theta, context, r) -> sum of r²
``gf_sum_of_squares``  (theta, context) -> sum of r²
``gf_predict``         (theta, context, f, df) : predictions and derivatives, whatever target and sigma
=====================  ==============================================================================================

theta, r, J, f, df are addresses of doubles, the context is described in :mod:`gradfit.compiler.rows`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from gradfit.compiler.native import compiled, target
from gradfit.compiler.rows import (
    INDEX,
    TYPES,
    WORDS,
    Rows,
    RowSource,
    Sums,
    context_pointers,
    define_row,
    for_rows,
    new_module,
    pointer,
    row_arguments,
    unpack,
    word,
)

NAMES = ("gf_linearize", "gf_residual", "gf_sum_of_squares", "gf_predict")
DOUBLE = TYPES["double"]
ADDRESS = DOUBLE.as_pointer()


def model_object(source: RowSource, *, weighted: bool) -> bytes:
    """Compile the four functions; ``weighted`` where rows have a sigma.

    ``source`` gives the prediction and its p derivatives, of the columns alone.
    """
    return compiled(repr(("model", source.key, weighted)), lambda: _module(source, weighted))


def _module(source: RowSource, weighted: bool) -> str:
    module = new_module("model")
    row = define_row(module, source)
    for name in NAMES:
        _define(module, row, source, name, weighted)
    return str(module)


def _define(module: ir.Module, row: ir.Function, source: RowSource, name: str, weighted: bool) -> None:
    """Write one of the functions: a loop over rows that keeps what is asked for."""
    p = len(source.parameters)
    kept = {"gf_linearize": (True, p), "gf_residual": (True, 0), "gf_sum_of_squares": (False, 0), "gf_predict": (True, p)}
    stores, slopes = kept[name]
    kinds = [ADDRESS, WORDS] + [ADDRESS] * (stores + (slopes > 0 or name in ("gf_linearize", "gf_predict")))
    function = ir.Function(module, ir.FunctionType(DOUBLE, kinds), name)
    for argument in function.args:
        argument.add_attribute("noalias")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    width = target().width("double")
    words = function.args[1]
    n = word(builder, words, 0)
    numbers = parameters(builder, function.args[0], words, source)
    columns = context_pointers(builder, words, len(source.inputs), DOUBLE)
    aims = [pointer(builder, words, 2 + len(source.inputs) + place, DOUBLE) for place in range(1 + weighted)]
    sums = Sums(builder, 1, width)

    def body(builder: ir.IRBuilder, rows: Rows) -> None:
        packed = builder.call(row, row_arguments(builder, rows, columns, numbers))
        value, *derivatives = unpack(builder, packed, 1 + p)
        weight = rows.load(builder, aims[1]) if weighted and name != "gf_predict" else None
        if name != "gf_predict":
            value = builder.fsub(value, rows.load(builder, aims[0]))
            value = value if weight is None else builder.fmul(value, weight)
            sums.add(builder, [rows.count(builder, builder.fmul(value, value))])
        if stores:
            rows.store(builder, value, function.args[2])
        for place in range(slopes):
            slope = derivatives[place] if weight is None else builder.fmul(derivatives[place], weight)
            start = builder.gep(function.args[3], [builder.mul(n, ir.Constant(INDEX, place))])
            rows.store(builder, slope, start)

    for_rows(builder, ir.Constant(INDEX, 0), n, width, body)
    builder.ret(sums.totals(builder)[0])


def parameters(builder: ir.IRBuilder, theta: Any, words: Any, source: RowSource) -> list[Any]:
    """Load the free parameters from theta and the fixed ones from where the context says."""
    fixed = pointer(builder, words, 1, TYPES[source.dtype]) if source.fixed else None
    free = [_number(builder, theta, place) for place in range(len(source.parameters))]
    return free + [_number(builder, fixed, place) for place in range(len(source.fixed))]


def _number(builder: ir.IRBuilder, numbers: Any, place: int) -> Any:
    return builder.load(builder.gep(numbers, [ir.Constant(INDEX, place)]))
