r"""The whole loop of gradient descent as one compiled function: loss, gradient, the optimizer's own step, the history.

Per epoch, as torch's loop has it: validation loss, loss and gradient of the rows, one step, and a row of history; the
optimizer's step is the source that :mod:`gradfit.compiler.optimizer` traced. With mini-batches, the rows are put in the
epoch's order first, and every batch takes a step.

``gf_descend(job) -> epochs done`` stops early where the loss is lost. The job is a table of 64-bit words:

====  ====================================================================================================
word  meaning
====  ====================================================================================================
0     address of the context of the training rows (:mod:`gradfit.compiler.rows`)
1     address of the context of the validation rows
2     address of the parameters in the units of descent, (p,); the loop begins and ends there
3     address of the optimizer's state as doubles, (m,); likewise
4     1 where no step was taken before, else 0
5     epochs to run
6     address of the settings as doubles, one row per step: learning rate and what else a scheduler changes
7     address of the history as doubles, one row per epoch: loss, validation loss, parameters, gradient
8     address of s, the parameters' units, (p,) (scaled descent)
9     address of loss unit / s, (p,): from the gradient in units of descent back to the user's
10    address of three doubles: 1 / loss unit; the least ceiling of the loss; the ceiling itself, set at the first step
11    rows per batch
12    address of the rows' order, int64 (epochs, n)
13    address of room for the columns in that order, (columns, n)
14    address of the lower and upper bounds in units of descent, (2, p)
====  ====================================================================================================

``gf_loss(theta, context, out) -> mean loss`` writes its gradient to ``out``, (p,): what torch's LBFGS, and everything else that
is not one loop, runs on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from gradfit.compiler.model_code import parameters
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
    run,
    unpack,
    word,
)
from gradfit.compiler.values import Value, maximum, minimum

DOUBLE = TYPES["double"]
GROWTH = 1e10  # a loss this many times its start will not come back; see methods/stopping.py
JOB_WORDS = 15


@dataclass(frozen=True)
class StepSource:
    """Source of an optimizer's step.

    Attributes
    ----------
    first, following
        Sources of ``step(*parameters, *gradient, *settings, *state)`` giving new parameters and new state: the first step of
        all, which has no state yet, and the others.
    settings
        What changes from step to step by a schedule: "lr" first.
    state
        dtype of each number of the state, "double" or "single".
    """

    first: str
    following: str
    settings: tuple[str, ...]
    state: tuple[str, ...]


@dataclass(frozen=True)
class Shape:
    """What the loop has to do besides: it is compiled for these."""

    scaled: bool = False
    validated: bool = False
    batched: bool = False
    stepwise: bool = False
    bounded: bool = False


def loss_object(source: RowSource) -> bytes:
    """Compile ``gf_loss``; ``source`` gives a row's loss and its p derivatives, of the columns, target and sigma."""
    return compiled(repr(("loss", source.key)), lambda: _loss_module(source))


def descent_object(source: RowSource, step: StepSource, shape: Shape) -> bytes:
    """Compile ``gf_descend``."""
    return compiled(repr(("descent", source.key, step, shape)), lambda: str(_Loop(source, step, shape).module))


def _loss_module(source: RowSource) -> str:
    module = new_module("loss")
    total = define_total(module, source)
    kind = TYPES[source.dtype]
    function = ir.Function(module, ir.FunctionType(DOUBLE, [kind.as_pointer(), WORDS, DOUBLE.as_pointer()]), "gf_loss")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    theta, words, out = function.args
    n = word(builder, words, 0)
    columns = context_pointers(builder, words, len(source.inputs), kind)
    numbers = parameters(builder, theta, words, source)
    packed = builder.call(total, [ir.Constant(INDEX, 0), n, *columns, *numbers])
    loss, *gradient = unpack(builder, packed, len(source.outputs))
    count = builder.sitofp(n, DOUBLE)
    for place, slope in enumerate(gradient):
        builder.store(builder.fdiv(slope, count), builder.gep(out, [ir.Constant(INDEX, place)]))
    builder.ret(builder.fdiv(loss, count))
    return str(module)


def define_total(module: ir.Module, source: RowSource) -> ir.Function:
    """Write the function that adds up the outputs, loss and gradient, over rows from ``begin`` to ``end``, in double precision."""
    row = define_row(module, source)
    width, kind = target().width(source.dtype), TYPES[source.dtype]
    count = len(source.outputs)
    numbers = [kind] * (len(source.parameters) + len(source.fixed))
    given = [INDEX, INDEX, *[kind.as_pointer()] * len(source.inputs), *numbers]
    function = ir.Function(module, ir.FunctionType(ir.LiteralStructType([DOUBLE] * count), given), "total")
    function.linkage = "internal"
    function.attributes.add("alwaysinline")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    begin, end, *rest = function.args
    columns, values = rest[: len(source.inputs)], rest[len(source.inputs) :]
    sums = Sums(builder, count, width)

    def body(builder: ir.IRBuilder, rows: Rows) -> None:
        packed = builder.call(row, row_arguments(builder, rows, columns, values))
        sums.add(builder, [rows.count(builder, part) for part in unpack(builder, packed, count)])

    for_rows(builder, begin, end, width, body)
    packed: Any = ir.Constant(function.function_type.return_type, ir.Undefined)
    for place, total in enumerate(sums.totals(builder)):
        packed = builder.insert_value(packed, total, place)
    builder.ret(packed)
    return function


class _Loop:
    """Writes ``gf_descend``. Parameters, state and gradient live in cells, which LLVM turns into registers."""

    def __init__(self, source: RowSource, step: StepSource, shape: Shape) -> None:
        self.source, self.step, self.shape = source, step, shape
        self.p, self.kind = len(source.parameters), TYPES[source.dtype]
        self.module = new_module("descent")
        self.total = define_total(self.module, source)
        function = ir.Function(self.module, ir.FunctionType(INDEX, [WORDS]), "gf_descend")
        self.builder = ir.IRBuilder(function.append_basic_block("entry"))
        self.job = function.args[0]
        self.write()

    def write(self) -> None:
        """Write the function: prepare, loop over epochs, put back."""
        builder = self.builder
        self.read_job()
        epoch = self.cell(INDEX, ir.Constant(INDEX, 0))
        head, body, done = (builder.append_basic_block(name) for name in ("epochs", "epoch", "done"))
        builder.branch(head)
        builder.position_at_end(head)
        builder.cbranch(builder.icmp_signed("<", builder.load(epoch), self.epochs), body, done)
        builder.position_at_end(body)
        number = builder.load(epoch)
        loss = self.one_epoch(number)
        builder.store(builder.add(number, ir.Constant(INDEX, 1)), epoch)
        self.raise_ceiling(loss)
        size = abs(Value(builder, loss)).ir
        finite = builder.fcmp_ordered("<", size, ir.Constant(DOUBLE, float("inf")))
        kept = builder.and_(finite, builder.fcmp_ordered("<=", size, builder.load(self.ceiling)))
        builder.store(ir.Constant(ir.IntType(1), 0), self.first)
        builder.cbranch(kept, head, done)
        builder.position_at_end(done)
        self.put_back()
        builder.ret(builder.load(epoch))

    def cell(self, kind: ir.Type, value: Any) -> Any:
        """Make a cell that holds a value."""
        with self.builder.goto_entry_block():
            cell = self.builder.alloca(kind)
        self.builder.store(value, cell)
        return cell

    def at(self, numbers: Any, place: Any) -> Any:
        """Address of one of several numbers."""
        return self.builder.gep(numbers, [place if isinstance(place, ir.Value) else ir.Constant(INDEX, place)])

    def number(self, numbers: Any, place: int) -> Any:
        """Read one of several numbers."""
        return self.builder.load(self.at(numbers, place))

    def read_job(self) -> None:
        """Read the job, and what does not change during the loop."""
        builder, kind = self.builder, self.kind
        words = pointer(builder, self.job, 0, INDEX)
        self.n = word(builder, words, 0)
        self.columns = context_pointers(builder, words, len(self.source.inputs), kind)
        self.theta, self.state = pointer(builder, self.job, 2, kind), pointer(builder, self.job, 3, DOUBLE)
        self.epochs = word(builder, self.job, 5)
        self.settings, self.history = pointer(builder, self.job, 6, DOUBLE), pointer(builder, self.job, 7, DOUBLE)
        self.measures = pointer(builder, self.job, 10, DOUBLE)
        self.inverse_loss = self.number(self.measures, 0)
        self.ceiling = self.at(self.measures, 2)
        numbers = parameters(builder, self.theta, words, self.source)
        self.fixed = numbers[self.p :]
        self.units = [self.cell(kind, number) for number in numbers[: self.p]]
        self.states = [
            self.cell(TYPES[dtype], self.narrow(self.number(self.state, place), dtype))
            for place, dtype in enumerate(self.step.state)
        ]
        began = builder.icmp_signed("!=", word(builder, self.job, 4), ir.Constant(INDEX, 0))
        self.first = self.cell(ir.IntType(1), began)
        if self.shape.scaled:
            factor, slope = pointer(builder, self.job, 8, kind), pointer(builder, self.job, 9, kind)
            self.factor = [self.number(factor, place) for place in range(self.p)]
            self.slope = [self.number(slope, place) for place in range(self.p)]
        if self.shape.bounded:
            limits = pointer(builder, self.job, 14, kind)
            self.limits = [(self.number(limits, place), self.number(limits, self.p + place)) for place in range(self.p)]

    def narrow(self, number: Any, dtype: str) -> Any:
        """Give a double in the precision of the state."""
        return number if dtype == "double" else self.builder.fptrunc(number, TYPES[dtype])

    def widen(self, number: Any) -> Any:
        """Give a number as a double."""
        return number if number.type == DOUBLE else self.builder.fpext(number, DOUBLE)

    def user(self) -> list[Any]:
        """Parameters in the user's units."""
        units = [self.builder.load(cell) for cell in self.units]
        if not self.shape.scaled:
            return units
        return [self.builder.fmul(unit, factor) for unit, factor in zip(units, self.factor, strict=True)]

    def one_epoch(self, epoch: Any) -> Any:
        """Write one epoch; gives its loss, a double."""
        builder = self.builder
        columns = 2 + 2 * self.p
        row = self.at(self.history, builder.mul(epoch, ir.Constant(INDEX, columns)))
        builder.store(self.validation_loss(), self.at(row, 1))
        loss, gradient = self.batches(epoch) if self.shape.batched else self.whole(epoch)
        builder.store(loss, self.at(row, 0))
        for place, (number, slope) in enumerate(zip(self.user(), gradient, strict=True)):
            builder.store(self.widen(number), self.at(row, 2 + place))
            builder.store(slope, self.at(row, 2 + self.p + place))
        return loss

    def validation_loss(self) -> Any:
        """Mean loss of the validation rows, as a double; NaN where there are none."""
        if not self.shape.validated:
            return ir.Constant(DOUBLE, float("nan"))
        builder = self.builder
        words = pointer(builder, self.job, 1, INDEX)
        n = word(builder, words, 0)
        columns = context_pointers(builder, words, len(self.source.inputs), self.kind)
        packed = builder.call(self.total, [ir.Constant(INDEX, 0), n, *columns, *self.user(), *self.fixed])
        return self.in_precision(builder.fdiv(builder.extract_value(packed, 0), builder.sitofp(n, DOUBLE)))

    def in_precision(self, number: Any) -> Any:
        """Round a double to the precision of the fit, as torch's result would be."""
        if self.source.dtype == "double":
            return number
        return self.builder.fpext(self.builder.fptrunc(number, self.kind), DOUBLE)

    def whole(self, epoch: Any) -> tuple[Any, list[Any]]:
        """Write a step on all rows."""
        return self.descend(ir.Constant(INDEX, 0), self.n, self.columns, epoch)

    def batches(self, epoch: Any) -> tuple[Any, list[Any]]:
        """Write the steps on batches of shuffled rows; gives mean loss and gradient, rows counted before their own step."""
        builder, zero = self.builder, ir.Constant(INDEX, 0)
        columns = self.shuffled(epoch)
        size = word(builder, self.job, 11)
        begin = self.cell(INDEX, zero)
        each = builder.sdiv(builder.sub(builder.add(self.n, size), ir.Constant(INDEX, 1)), size)
        taken = self.cell(INDEX, builder.mul(epoch, each) if self.shape.stepwise else epoch)
        sums = [self.cell(DOUBLE, ir.Constant(DOUBLE, 0.0)) for _ in range(1 + self.p)]
        head, body, done = (builder.append_basic_block(name) for name in ("batches", "batch", "shuffled"))
        builder.branch(head)
        builder.position_at_end(head)
        builder.cbranch(builder.icmp_signed("<", builder.load(begin), self.n), body, done)
        builder.position_at_end(body)
        first = builder.load(begin)
        last = builder.add(first, size)
        last = builder.select(builder.icmp_signed("<", last, self.n), last, self.n)
        loss, gradient = self.descend(first, last, columns, builder.load(taken))
        share = builder.fdiv(builder.sitofp(builder.sub(last, first), DOUBLE), builder.sitofp(self.n, DOUBLE))
        for cell, part in zip(sums, [loss, *gradient], strict=True):
            builder.store(builder.fadd(builder.load(cell), builder.fmul(part, share)), cell)
        builder.store(last, begin)
        if self.shape.stepwise:
            builder.store(builder.add(builder.load(taken), ir.Constant(INDEX, 1)), taken)
        builder.store(ir.Constant(ir.IntType(1), 0), self.first)
        builder.branch(head)
        builder.position_at_end(done)
        total, *slopes = [builder.load(cell) for cell in sums]
        return total, slopes

    def shuffled(self, epoch: Any) -> list[Any]:
        """Write the copy of the columns in the epoch's order; gives where they are."""
        builder = self.builder
        order = self.at(pointer(builder, self.job, 12, INDEX), builder.mul(epoch, self.n))
        room = pointer(builder, self.job, 13, self.kind)
        places = [self.at(room, builder.mul(self.n, ir.Constant(INDEX, column))) for column in range(len(self.source.inputs))]

        def body(builder: ir.IRBuilder, rows: Rows) -> None:
            source = builder.load(builder.gep(order, [rows.first]))
            for column, place in zip(self.columns, places, strict=True):
                builder.store(builder.load(builder.gep(column, [source])), builder.gep(place, [rows.first]))

        for_rows(builder, ir.Constant(INDEX, 0), self.n, 1, body)
        return places

    def descend(self, begin: Any, end: Any, columns: Sequence[Any], settings_row: Any) -> tuple[Any, list[Any]]:
        """Write one step on some rows; gives loss and gradient before it as doubles, in the user's units."""
        builder = self.builder
        packed = builder.call(self.total, [begin, end, *columns, *self.user(), *self.fixed])
        loss, *slopes = unpack(builder, packed, 1 + self.p)
        count = builder.sitofp(builder.sub(end, begin), DOUBLE)
        share = builder.fdiv(ir.Constant(DOUBLE, 1.0), count)
        gradient = [builder.fmul(slope, share) for slope in slopes]
        if self.shape.scaled:
            gradient = [builder.fmul(slope, self.inverse_loss) for slope in gradient]
        narrow = [self.narrow(slope, self.source.dtype) for slope in gradient]
        if self.shape.scaled:
            narrow = [builder.fmul(slope, factor) for slope, factor in zip(narrow, self.factor, strict=True)]
        self.take_step(narrow, settings_row)
        shown = [builder.fmul(s, back) for s, back in zip(narrow, self.slope, strict=True)] if self.shape.scaled else narrow
        return self.in_precision(builder.fdiv(loss, count)), [self.widen(slope) for slope in shown]

    def take_step(self, gradient: Sequence[Any], settings_row: Any) -> None:
        """Write the optimizer's step; the first one where no step was taken yet."""
        builder = self.builder
        row = self.at(self.settings, builder.mul(settings_row, ir.Constant(INDEX, len(self.step.settings))))
        settings = [self.number(row, place) for place in range(len(self.step.settings))]
        if self.step.first == self.step.following:
            self.apply(self.step.following, gradient, settings, began=True)
        else:
            with builder.if_else(builder.load(self.first)) as (then, otherwise):
                with then:
                    self.apply(self.step.first, gradient, settings, began=False)
                with otherwise:
                    self.apply(self.step.following, gradient, settings, began=True)
        if self.shape.bounded:
            for cell, (lower, upper) in zip(self.units, self.limits, strict=True):
                inside = minimum(maximum(Value(builder, builder.load(cell)), Value(builder, lower)), Value(builder, upper))
                builder.store(inside.ir, cell)

    def apply(self, text: str, gradient: Sequence[Any], settings: Sequence[Any], *, began: bool) -> None:
        """Run the step's source on what the cells hold, and put the results there; the very first step finds no state."""
        cells = [*self.units, *self.states]
        held = [self.builder.load(cell) for cell in cells]
        given = [*held[: self.p], *gradient, *settings, *(held[self.p :] if began else ())]
        values = [Value(self.builder, number) for number in given]
        for cell, result in zip(cells, run(text, values, self.builder, "step"), strict=True):
            self.builder.store(result.ir, cell)

    def raise_ceiling(self, loss: Any) -> None:
        """Set the loss from which there is no way back; NaN there says that this is the first epoch of all."""
        builder = self.builder
        known = builder.load(self.ceiling)
        with builder.if_then(builder.fcmp_unordered("uno", known, known)):
            grown = builder.fmul(abs(Value(builder, loss)).ir, ir.Constant(DOUBLE, GROWTH))
            least = self.number(self.measures, 1)
            builder.store(builder.select(builder.fcmp_ordered(">", grown, least), grown, least), self.ceiling)

    def put_back(self) -> None:
        """Leave parameters and state where the caller finds them."""
        builder = self.builder
        for place, cell in enumerate(self.units):
            builder.store(builder.load(cell), self.at(self.theta, place))
        for place, cell in enumerate(self.states):
            builder.store(self.widen(builder.load(cell)), self.at(self.state, place))
