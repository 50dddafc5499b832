r"""Many small fits side by side, one in each lane of a vector: the loop that is compiled around an algorithm and a model.

Where the rows of one fit are too few to fill vectors, the fits do it: W of them are worked on at once, each lane with numbers of its
own. A lane whose fit has ended takes up the next one, so no fit waits for another; and as no operation mixes lanes, what is found for
a fit does not depend on its neighbours, to the last bit.

One round of the loop, with :math:`r_i = (f_i - y_i) w_i` and :math:`J_{ij} = w_i\,\partial f_i/\partial\theta_j` at the trial points of all lanes:

.. math:: S = \sum r_i^2, \qquad g = J^T r, \qquad A = J^T J

or for another loss of rows, l, with its slope and the curvature h of a sum of squares near it,

.. math:: S = \sum l_i, \qquad g = \sum \tfrac12 l_i' J_i, \qquad A = \sum \tfrac12 h_i J_i J_i^T;

then ``step`` of the algorithm (:mod:`gradfit.methods.lane_marquardt`, written on :class:`~gradfit.compiler.values.Value`) decides for each lane
where to look next, or that the fit has ended.

A compiled function is told its work by a table of 64-bit words, the *job*, see `JOB`; results are (number, fit). The scratch memory holds the cells of the
algorithm, [cell][lane], then the rows of the fits at work, [row][lane]: the target, each column, the weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from llvmlite import ir

from gradfit.compiler.native import compiled, target
from gradfit.compiler.rows import INDEX, TYPES, WORDS, RowSource, loop, new_module, pointer, run, spread, unpack, word
from gradfit.compiler.values import Value, muladd

# Words of the job; behind them, for each column its address and how many numbers it goes on from fit to fit (0: shared by all).
JOB = (
    "count", "rows", "target", "sizes", "weight", "weight_stride", "start", "start_row", "start_step", "lower", "lower_stride", "upper", "upper_stride", "fixed",
    "fixed_stride", "results", "scratch", "places", "most", "damping", "damping_step",
)  # fmt: skip
PLACE = {name: place for place, name in enumerate(JOB)}
DOUBLE = TYPES["double"]
BYTES = {"double": 8, "single": 4}


class Algorithm(Protocol):
    """What decides, lane by lane; everything it computes with are Values."""

    def cells(self, p: int, *, bounded: bool) -> Mapping[str, str]:
        """Names of the numbers it keeps for a fit, each with what it begins as.

        That is "start j", "lower j", "upper j", "damping 0", "rows", or a number.
        """

    def step(self, cells: Mapping[str, Value], look: Look, most: Value, *, bounded: bool) -> tuple[dict[str, Value], Value]:
        """Decide: gives the cells that change, and which lanes have ended. The next trial is in the cells "trial j"."""

    def results(self, cells: Mapping[str, Value], p: int, *, bounded: bool, brief: bool) -> list[Value]:
        """What is kept of a fit that has ended."""


@dataclass(frozen=True)
class Look:
    """Sums over the rows at the trial points.

    Attributes
    ----------
    sum
        S.
    square
        Sum of (target * weight)².
    gradient
        g, p Values.
    normal
        The lower triangle of A, row after row.
    """

    sum: Value
    square: Value
    gradient: list[Value]
    normal: list[Value]


@dataclass(frozen=True)
class Layout:
    """How the code and its memory are laid out.

    Attributes
    ----------
    working, data
        Precision of the computation, and of target, columns and weights: "double" or "single".
    weighted
        Whether rows have a weight.
    bounded
        Whether parameters have bounds.
    brief
        Whether only the point is wanted that a fit has come to, and no errors.
    measure
        One row of the loss (:func:`gradfit.compiler.row_trace.measure_row`); None: squares.
    """

    source: RowSource
    working: str
    data: str
    weighted: bool
    bounded: bool
    brief: bool
    measure: RowSource | None = None

    @property
    def width(self) -> int:
        """Lanes."""
        return target().width(self.working)

    @property
    def p(self) -> int:
        """Free numbers."""
        return len(self.source.parameters)

    @property
    def columns(self) -> int:
        """Columns of rows: target, inputs, weight."""
        return 1 + len(self.source.inputs) + self.weighted

    def scratch_bytes(self, cells: int, rows: int) -> int:
        """Memory the function works in."""
        return BYTES[self.working] * self.width * (cells + self.columns * max(rows, 1))


def lanes_object(layout: Layout, algorithm: Algorithm, edition: str) -> bytes:
    """Compile ``gf_lanes(int64 *job)``; ``edition`` names the algorithm's text."""
    measure = None if layout.measure is None else layout.measure.key
    key = repr(
        ("lanes", layout.source.key, measure, layout.working, layout.data, layout.weighted, layout.bounded, layout.brief, edition)
    )
    return compiled(key, lambda: str(_Writer(layout, algorithm).module()))


class _Dividing(ir.IRBuilder):  # type: ignore[misc]  # llvmlite has no types
    """Lets LLVM multiply by a reciprocal that is the same for all rows: a division costs as much as ten products."""

    def fdiv(self, lhs: Any, rhs: Any, name: str = "", flags: Sequence[str] = ()) -> Any:
        return super().fdiv(lhs, rhs, name, flags=("arcp", *flags))

    def fneg(self, arg: Any, name: str = "", flags: Sequence[str] = ()) -> Any:
        return super().fneg(arg, name, flags=("arcp", *flags))  # or the sign, moved into a quotient, takes the permission away


class _Writer:
    """One module on its way."""

    def __init__(self, layout: Layout, algorithm: Algorithm) -> None:
        self.layout, self.algorithm = layout, algorithm
        self.cells = list(algorithm.cells(layout.p, bounded=layout.bounded)) + [
            f"fixed {k}" for k in range(len(layout.source.fixed))
        ]
        self.number, self.wide = TYPES[layout.working], ir.VectorType(TYPES[layout.working], layout.width)
        self.given = TYPES[layout.data]
        self.step_bytes = BYTES[layout.working]

    def module(self) -> ir.Module:
        module = new_module("lanes")
        self.row = self._row(module, self.layout.source, "row")
        self.measure = None if self.layout.measure is None else self._row(module, self.layout.measure, "measure")
        self.refill = self._refill(module)
        function = ir.Function(module, ir.FunctionType(INDEX, [WORDS]), "gf_lanes")
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        self._main(builder, function.args[0])
        return module

    # -- memory

    def cell(self, builder: ir.IRBuilder, scratch: Any, name: str, lane: Any = None) -> Any:
        """Where a cell is: of all lanes, or of one."""
        place = self.cells.index(name) * self.layout.width
        start = builder.gep(scratch, [ir.Constant(INDEX, place)])
        if lane is None:
            return builder.bitcast(start, self.wide.as_pointer())
        return builder.gep(start, [lane])

    def rows_of(self, builder: ir.IRBuilder, scratch: Any, column: int, rows: Any) -> Any:
        """Where the rows of a column begin."""
        width = ir.Constant(INDEX, self.layout.width)
        before = builder.mul(builder.mul(ir.Constant(INDEX, column), rows), width)
        return builder.gep(scratch, [builder.add(before, ir.Constant(INDEX, len(self.cells) * self.layout.width))])

    def load(self, builder: ir.IRBuilder, place: Any) -> Any:
        return builder.load(place, align=self.step_bytes * self.layout.width)

    def at_row(self, builder: ir.IRBuilder, start: Any, row: Any) -> Any:
        """Address of all lanes' numbers in a row."""
        place = builder.gep(start, [builder.mul(row, ir.Constant(INDEX, self.layout.width))])
        return builder.bitcast(place, self.wide.as_pointer())

    def convert(self, builder: ir.IRBuilder, number: Any, kind: ir.Type) -> Any:
        if number.type == kind:
            return number
        return builder.fpext(number, kind) if kind == DOUBLE else builder.fptrunc(number, kind)

    # -- the model's row

    def _row(self, module: ir.Module, source: RowSource, name: str) -> ir.Function:
        """A row's function with a vector for every argument."""
        result = ir.LiteralStructType([self.wide] * len(source.outputs))
        count = len(source.inputs) + len(source.parameters) + len(source.fixed)
        function = ir.Function(module, ir.FunctionType(result, [self.wide] * count), name)
        function.linkage = "internal"
        function.attributes.add("alwaysinline")
        builder = _Dividing(function.append_basic_block("entry"))
        values = [Value(builder, argument) for argument in function.args]
        packed: Any = ir.Constant(result, ir.Undefined)
        for place, output in enumerate(run(source.text, values, builder, single=self.layout.working == "single")):
            packed = builder.insert_value(packed, spread(builder, output.ir, self.wide), place)
        builder.ret(packed)
        return function

    # -- a lane takes up the next fit

    def _refill(self, module: ir.Module) -> ir.Function:
        """``refill(job, next, lane)``: copy the next fit's numbers into a lane, or mark it idle."""
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [WORDS, WORDS, INDEX]), "refill")
        function.linkage = "internal"
        function.attributes.add("noinline")
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        job, following, lane = function.args
        say: Callable[[str], Any] = lambda name: word(builder, job, PLACE[name])  # noqa: E731
        scratch = builder.inttoptr(say("scratch"), self.number.as_pointer())
        places = builder.inttoptr(say("places"), WORDS)
        width, one = ir.Constant(INDEX, self.layout.width), ir.Constant(INDEX, 1)
        fit = builder.load(following)
        size_at = builder.gep(places, [builder.add(lane, width)])
        with builder.if_else(builder.icmp_signed("<", fit, say("count"))) as (more, none):
            with more:
                builder.store(builder.add(fit, one), following)
                builder.store(fit, builder.gep(places, [lane]))
                size = builder.load(builder.gep(builder.inttoptr(say("sizes"), WORDS), [fit]))
                builder.store(size, size_at)
                self._copy_rows(builder, job, scratch, lane, fit, size)
                self._begin(builder, job, scratch, lane, fit, size)
            with none:
                builder.store(ir.Constant(INDEX, -1), builder.gep(places, [lane]))
                builder.store(ir.Constant(INDEX, 0), size_at)
        builder.ret_void()
        return function

    def _given_columns(self, builder: ir.IRBuilder, job: Any) -> list[tuple[Any, Any]]:
        """Address and stride of target, columns, weight."""
        at = len(JOB)
        rows = word(builder, job, PLACE["rows"])
        given = [(pointer(builder, job, PLACE["target"], self.given), rows)]
        given += [
            (pointer(builder, job, at + 2 * k, self.given), word(builder, job, at + 2 * k + 1))
            for k in range(len(self.layout.source.inputs))
        ]
        if self.layout.weighted:
            given.append((pointer(builder, job, PLACE["weight"], self.given), word(builder, job, PLACE["weight_stride"])))
        return given

    def _copy_rows(self, builder: ir.IRBuilder, job: Any, scratch: Any, lane: Any, fit: Any, size: Any) -> None:
        rows, width = word(builder, job, PLACE["rows"]), ir.Constant(INDEX, self.layout.width)
        for column, (source, stride) in enumerate(self._given_columns(builder, job)):
            with builder.if_then(builder.icmp_signed("!=", stride, ir.Constant(INDEX, 0))):
                begin = builder.gep(source, [builder.mul(fit, stride)])
                aim = builder.gep(self.rows_of(builder, scratch, column, rows), [lane])

                def copy(builder: ir.IRBuilder, row: Any, begin: Any = begin, aim: Any = aim) -> None:
                    number = self.convert(builder, builder.load(builder.gep(begin, [row])), self.number)
                    builder.store(number, builder.gep(aim, [builder.mul(row, width)]))

                loop(builder, ir.Constant(INDEX, 0), size, copy)

    def _begin(self, builder: ir.IRBuilder, job: Any, scratch: Any, lane: Any, fit: Any, size: Any) -> None:
        """Write what the cells of a fit begin as."""
        fixed = len(self.layout.source.fixed)

        def element(name: str, stride: Any, k: int) -> Any:
            numbers = pointer(builder, job, PLACE[name], DOUBLE)
            return builder.load(builder.gep(numbers, [builder.add(builder.mul(fit, stride), ir.Constant(INDEX, k))]))

        begins = dict(self.algorithm.cells(self.layout.p, bounded=self.layout.bounded)) | {
            f"fixed {k}": f"fixed {k}" for k in range(fixed)
        }
        for name, begin in begins.items():
            kind, _, k = begin.partition(" ")
            if kind == "start":
                row, step = (word(builder, job, PLACE[f"start_{name}"]) for name in ("row", "step"))
                place = builder.add(builder.mul(row, ir.Constant(INDEX, int(k))), builder.mul(fit, step))
                number = builder.load(builder.gep(pointer(builder, job, PLACE["start"], DOUBLE), [place]))
            elif kind == "damping":
                number = element(kind, word(builder, job, PLACE["damping_step"]), 0)
            elif kind in ("lower", "upper", "fixed"):
                number = element(kind, word(builder, job, PLACE[f"{kind}_stride"]), int(k))
            elif kind == "rows":
                number = builder.sitofp(size, DOUBLE)
            else:
                number = ir.Constant(DOUBLE, float(kind))
            builder.store(self.convert(builder, number, self.number), self.cell(builder, scratch, name, lane))

    # -- the loop

    def _main(self, builder: ir.IRBuilder, job: Any) -> None:
        layout, width = self.layout, self.layout.width
        scratch = builder.inttoptr(word(builder, job, PLACE["scratch"]), self.number.as_pointer())
        places = builder.inttoptr(word(builder, job, PLACE["places"]), WORDS)
        rows = word(builder, job, PLACE["rows"])
        following = builder.alloca(INDEX)
        builder.store(ir.Constant(INDEX, 0), following)
        self._share_rows(builder, job, scratch, rows)
        for lane in range(width):
            builder.call(self.refill, [job, following, ir.Constant(INDEX, lane)])
        wide_index = ir.VectorType(INDEX, width)
        fits_at = builder.bitcast(places, wide_index.as_pointer())
        sizes_at = builder.bitcast(builder.gep(places, [ir.Constant(INDEX, width)]), wide_index.as_pointer())
        head, body, done = (builder.append_basic_block(name) for name in ("round", "work", "done"))
        builder.branch(head)
        builder.position_at_end(head)
        fits, sizes = builder.load(fits_at, align=8), builder.load(sizes_at, align=8)
        active = builder.icmp_signed(">=", fits, ir.Constant(wide_index, [0] * width))
        builder.cbranch(self._any(builder, active), body, done)
        builder.position_at_end(body)
        look = self._look(builder, scratch, rows, sizes)
        cells = {name: Value(builder, self.load(builder, self.cell(builder, scratch, name))) for name in self.cells}
        most = Value(builder, spread(builder, builder.sitofp(word(builder, job, PLACE["most"]), self.number), self.wide))
        changed, ended = self.algorithm.step(cells, look, most, bounded=layout.bounded)
        for name, value in changed.items():
            builder.store(value.ir, self.cell(builder, scratch, name), align=self.step_bytes * width)
        over = builder.and_(ended.ir, active)
        with builder.if_then(self._any(builder, over)):
            now = {name: Value(builder, self.load(builder, self.cell(builder, scratch, name))) for name in self.cells}
            results = self.algorithm.results(now, layout.p, bounded=layout.bounded, brief=layout.brief)
            for lane in range(width):
                with builder.if_then(builder.extract_element(over, ir.Constant(ir.IntType(32), lane))):
                    self._keep(builder, job, places, lane, results)
                    builder.call(self.refill, [job, following, ir.Constant(INDEX, lane)])
        builder.branch(head)
        builder.position_at_end(done)
        builder.ret(ir.Constant(INDEX, 0))

    def _any(self, builder: ir.IRBuilder, mask: Any) -> Any:
        bits = ir.IntType(self.layout.width)
        return builder.icmp_unsigned("!=", builder.bitcast(mask, bits), ir.Constant(bits, 0))

    def _share_rows(self, builder: ir.IRBuilder, job: Any, scratch: Any, rows: Any) -> None:
        """Write columns that all fits share into every lane, once."""
        for column, (source, stride) in enumerate(self._given_columns(builder, job)):
            with builder.if_then(builder.icmp_signed("==", stride, ir.Constant(INDEX, 0))):
                aim = self.rows_of(builder, scratch, column, rows)

                def share(builder: ir.IRBuilder, row: Any, source: Any = source, aim: Any = aim) -> None:
                    number = self.convert(builder, builder.load(builder.gep(source, [row])), self.number)
                    builder.store(
                        spread(builder, number, self.wide),
                        self.at_row(builder, aim, row),
                        align=self.step_bytes * self.layout.width,
                    )

                loop(builder, ir.Constant(INDEX, 0), rows, share)

    def _keep(self, builder: ir.IRBuilder, job: Any, places: Any, lane: int, results: Sequence[Value]) -> None:
        """Write the results of a lane where they belong."""
        fit = builder.load(builder.gep(places, [ir.Constant(INDEX, lane)]))
        aim = pointer(builder, job, PLACE["results"], DOUBLE)
        count = word(builder, job, PLACE["count"])
        for place, value in enumerate(results):
            number = builder.extract_element(value.ir, ir.Constant(ir.IntType(32), lane))
            own = builder.add(builder.mul(count, ir.Constant(INDEX, place)), fit)
            builder.store(self.convert(builder, number, DOUBLE), builder.gep(aim, [own]))

    def _look(self, builder: ir.IRBuilder, scratch: Any, rows: Any, sizes: Any) -> Look:
        """Sum over the rows of all lanes: those that every lane has, then those that some have."""
        p = self.layout.p
        least, most = self._extremes(builder, sizes)
        numbers = [self.load(builder, self.cell(builder, scratch, f"trial {j}")) for j in range(p)]
        numbers += [self.load(builder, self.cell(builder, scratch, f"fixed {k}")) for k in range(len(self.layout.source.fixed))]
        columns = [self.rows_of(builder, scratch, column, rows) for column in range(self.layout.columns)]
        count = 2 + p + p * (p + 1) // 2
        with builder.goto_entry_block():
            sums = [builder.alloca(self.wide) for _ in range(count)]
        for cell in sums:
            builder.store(ir.Constant(self.wide, None), cell)

        def add(builder: ir.IRBuilder, row: Any, inside: Any | None) -> None:
            given = [self.load(builder, self.at_row(builder, column, row)) for column in columns]
            inputs = given[1 : 1 + len(self.layout.source.inputs)]
            value, *slopes = unpack(builder, builder.call(self.row, [*inputs, *numbers]), 1 + p)
            products = self._products(builder, value, slopes, given, inside)
            for cell, (left, right) in zip(sums, products, strict=True):
                builder.store(muladd(left, right, Value(builder, builder.load(cell))).ir, cell)

        loop(builder, ir.Constant(INDEX, 0), least, lambda builder, row: add(builder, row, None))

        def some(builder: ir.IRBuilder, row: Any) -> None:
            add(builder, row, builder.icmp_signed("<", spread(builder, row, sizes.type), sizes))

        loop(builder, least, most, some)
        totals = [Value(builder, builder.load(cell)) for cell in sums]
        return Look(totals[0], totals[1], totals[2 : 2 + p], totals[2 + p :])

    def _products(
        self, builder: ir.IRBuilder, value: Any, slopes: Sequence[Any], given: Sequence[Any], inside: Any | None
    ) -> list[tuple[Value, Value]]:
        """What one row adds to S, g and A, as products of two; nothing outside."""
        weight = given[-1] if self.layout.weighted else None
        white: Callable[[Any], Any] = lambda part: part if weight is None else builder.fmul(part, weight)  # noqa: E731
        kept: Callable[[Any], Value] = lambda part: Value(  # noqa: E731
            builder, part if inside is None else builder.select(inside, part, ir.Constant(self.wide, None))
        )
        derivatives = [kept(white(slope)) for slope in slopes]
        aim = kept(white(given[0]))
        if self.measure is None:
            residual = kept(white(builder.fsub(value, given[0])))
            whole, half, curved = (residual, residual), residual, derivatives
        else:
            loss, slope, curvature = map(kept, unpack(builder, builder.call(self.measure, [white(value), white(given[0])]), 3))
            whole, half = (loss, loss.like(1.0)), slope
            curved = [curvature * derivative for derivative in derivatives]
        pairs = [(curved[j], derivatives[k]) for j in range(self.layout.p) for k in range(j + 1)]
        return [whole, (aim, aim), *((derivative, half) for derivative in derivatives), *pairs]

    def _extremes(self, builder: ir.IRBuilder, sizes: Any) -> tuple[Any, Any]:
        """Rows of the lane with fewest and of that with most; an idle lane has none."""
        least = most = None
        for lane in range(self.layout.width):
            size = builder.extract_element(sizes, ir.Constant(ir.IntType(32), lane))
            least = size if least is None else builder.select(builder.icmp_signed("<", size, least), size, least)
            most = size if most is None else builder.select(builder.icmp_signed(">", size, most), size, most)
        return least, most
