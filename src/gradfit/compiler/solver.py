"""An algorithm written in plain Python functions -> text in LLVM's language.

Understood is what loops over numbers need: whole and real numbers, arrays of them, ``for ... in range``, ``while``, ``if``, calls of
the module's other functions, and of ``abs``, ``min``, ``max`` and a few of :mod:`math`. Types come from the annotations of the
parameters: ``float``, ``int``, ``bool``, ``Any`` (an address that is handed through) and the arrays of `ARRAYS`. Operations keep
Python's order of rounding, except in the functions a module names in ``IN_VECTORS``, whose sums may be taken in any order.

There is no runtime behind the text: nothing is allocated or raised, and an index is not checked.
"""

from __future__ import annotations

import ast
import inspect
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

ARRAYS = {"Vector": (1, "double"), "Matrix": (2, "double"), "Matrices": (3, "double"), "Counters": (1, "i64")}
SCALARS = {"float": "double", "int": "i64", "bool": "i1", "Any": "ptr", "None": "void"}
MODEL = {"Linearize": "gf_linearize", "SumOfSquares": "gf_sum_of_squares"}
ARITHMETIC = {ast.Add: ("add nsw", "fadd"), ast.Sub: ("sub nsw", "fsub"), ast.Mult: ("mul nsw", "fmul")}
COMPARISONS = {ast.Lt: ("slt", "olt"), ast.LtE: ("sle", "ole"), ast.Gt: ("sgt", "ogt"), ast.GtE: ("sge", "oge"),
               ast.Eq: ("eq", "oeq"), ast.NotEq: ("ne", "une")}  # fmt: skip
INTRINSICS = {"sqrt": ("llvm.sqrt.f64", 1), "fabs": ("llvm.fabs.f64", 1), "copysign": ("llvm.copysign.f64", 2)}
INFINITY = "0x7FF0000000000000"


@dataclass(frozen=True)
class Size:
    """How long an axis of an array is: ``factor`` times a number of the job, and ``more``; without a number ``more`` alone."""

    number: str = ""
    factor: int = 1
    more: int = 0


@dataclass(frozen=True)
class Entry:
    """A function of an algorithm that is called from outside, as ``int64 symbol(int64 *job)``.

    Attributes
    ----------
    symbol
        Its name outside.
    function
        Its name in the algorithm.
    numbers
        The first words of the job, whole numbers by name. The words after them are the addresses of what the function takes, in its
        order, the model's functions left out.
    shapes
        Shape of each array.
    """

    symbol: str
    function: str
    numbers: tuple[str, ...]
    shapes: Mapping[str, tuple[Size, ...]]


def solver_ir(modules: Sequence[ModuleType], entries: Sequence[Entry]) -> str:
    """Translate all functions of some modules, which call each other by name; give the text of their entries.

    The text calls in turn

    - ``double gf_linearize(double *theta, void *context, double *residual, double *jacobian)``, residual (n,), jacobian (p, n),
    - ``double gf_sum_of_squares(double *theta, void *context)``.
    """
    trees: dict[str, ast.FunctionDef] = {}
    homes: dict[str, ModuleType] = {}
    for module in modules:
        own = {name for name, f in vars(module).items() if isinstance(f, FunctionType) and f.__module__ == module.__name__}
        for tree in ast.parse(inspect.getsource(module)).body:
            if isinstance(tree, ast.FunctionDef) and tree.name in own:
                trees[tree.name], homes[tree.name] = tree, module
    parts = [_Translation(homes[name], trees, tree).text() for name, tree in trees.items()]
    declared = [f"declare double @{name}({', '.join(['double'] * count)})" for name, count in INTRINSICS.values()]
    declared += [f"declare double @gf_linearize({', '.join(['ptr'] * 4)})", "declare double @gf_sum_of_squares(ptr, ptr)"]
    vectorize = '!0 = distinct !{!0, !1}\n!1 = !{!"llvm.loop.vectorize.enable", i1 true}\n'
    return "\n".join([*declared, *parts, *(_entry(entry, trees[entry.function]) for entry in entries), vectorize])


def _entry(entry: Entry, tree: ast.FunctionDef) -> str:
    """Read the job and call the function."""
    lines, passed = [], []

    def read(name: str, place: int, kind: str) -> None:
        lines.append(f"  %{name}.at = getelementptr i64, ptr %job, i64 {place}")
        lines.append(f"  %{name} = load {kind}, ptr %{name}.at")

    for place, name in enumerate(entry.numbers):
        read(name, place, "i64")
    taken = [argument for argument in tree.args.args if ast.unparse(argument.annotation or ast.Constant(None)) not in MODEL]
    for place, argument in enumerate(taken, start=len(entry.numbers)):
        read(f"{argument.arg}.word", place, "ptr")
        passed.append(f"ptr %{argument.arg}.word")
        for axis, size in enumerate(entry.shapes.get(argument.arg, ())):
            name = f"%{argument.arg}.{axis}"
            lines.append(f"  {name}.times = mul i64 {f'%{size.number}' if size.number else 0}, {size.factor}")
            lines.append(f"  {name} = add i64 {name}.times, {size.more}")
            passed.append(f"i64 {name}")
    call = f"  %code = call i64 @{entry.function}({', '.join(passed)})"
    return "\n".join([f"define i64 @{entry.symbol}(ptr %job) {{", *lines, call, "  ret i64 %code", "}", ""])


@dataclass(frozen=True)
class _Number:
    """A number, truth value or address in a register, or a constant."""

    text: str
    kind: str  # LLVM's name of its type


@dataclass(frozen=True)
class _Array:
    """Where an array begins, its element type and its shape, row after row in memory."""

    start: str
    kind: str
    shape: tuple[str, ...]


_Value = _Number | _Array


class _Translation:
    """One function on its way."""

    def __init__(self, algorithm: ModuleType, trees: dict[str, ast.FunctionDef], tree: ast.FunctionDef) -> None:
        self.algorithm, self.trees, self.tree = algorithm, trees, tree
        self.lines: list[str] = []
        self.slots: dict[str, _Number] = {}  # where the variables live; LLVM moves them into registers
        self.arrays: dict[str, _Array] = {}
        self.model: dict[str, str] = {}
        self.count, self.label = 0, "begin"
        self.loops: list[tuple[str, str]] = []  # labels of the next round and of the end
        self.fast = " reassoc nsz contract" if tree.name in getattr(algorithm, "IN_VECTORS", ()) else ""

    def text(self) -> str:
        """Give the whole definition."""
        parameters, entries = [], []
        for argument in self.tree.args.args:
            name, annotation = argument.arg, ast.unparse(argument.annotation) if argument.annotation else ""
            if annotation in ARRAYS:
                rank, kind = ARRAYS[annotation]
                self.arrays[name] = _Array(f"%{name}", kind, tuple(f"%{name}.{axis}" for axis in range(rank)))
                parameters += [f"ptr %{name}", *(f"i64 {size}" for size in self.arrays[name].shape)]
            elif annotation in MODEL:
                self.model[name] = MODEL[annotation]
            else:
                kind = SCALARS[annotation]
                parameters.append(f"{kind} %{name}")
                entries.append((name, _Number(f"%{name}", kind)))
        for name, value in entries:
            self.store(name, value)
        self.block(self.tree.body)
        if self.result == "void":
            self.emit("ret void")
        else:
            self.emit("unreachable")
        slots = [f"  {slot.text} = alloca {slot.kind}" for slot in self.slots.values()]
        # Not inlined: the calls cost nothing beside the loops, and compiling takes a third of the time.
        heading = f"define internal {self.result} @{self.tree.name}({', '.join(parameters)}) noinline {{\nentry:"
        return "\n".join([heading, *slots, "  br label %begin", "begin:", *self.lines, "}", ""])

    @property
    def result(self) -> str:
        """LLVM's type of what the function gives."""
        return _returned(self.tree)

    # -- writing

    def emit(self, text: str) -> None:
        self.lines.append("  " + text)

    def value(self, text: str, kind: str) -> _Number:
        """Write an instruction that gives something."""
        self.count += 1
        self.emit(f"%r{self.count} = {text}")
        return _Number(f"%r{self.count}", kind)

    def labels(self, *names: str) -> list[str]:
        self.count += 1
        return [f"{name}{self.count}" for name in names]

    def begin(self, label: str) -> None:
        self.lines.append(f"{label}:")
        self.label = label

    def jump(self, label: str) -> None:
        self.emit(f"br label %{label}")

    def fork(self, condition: ast.expr, true: str, false: str) -> None:
        self.emit(f"br i1 {self.number(condition).text}, label %{true}, label %{false}")

    def real(self, value: _Number) -> _Number:
        """Make a real number of a whole one."""
        if value.kind == "double":
            return value
        return (
            _real(float(value.text))
            if value.text.lstrip("-").isdigit()
            else self.value(f"sitofp i64 {value.text} to double", "double")
        )

    def alike(self, left: _Number, right: _Number) -> tuple[_Number, _Number]:
        """Both whole, or both real."""
        return (left, right) if left.kind == right.kind else (self.real(left), self.real(right))

    # -- statements

    def block(self, statements: Sequence[ast.stmt]) -> None:
        for statement in statements:
            self.understood("do", statement)(statement)

    def understood(self, way: str, part: ast.stmt | ast.expr) -> Any:
        """Find what writes a piece of Python."""
        found = getattr(self, f"{way}_{type(part).__name__}", None)
        if found is None:
            raise NotImplementedError(
                f"{self.tree.name}, line {part.lineno}: {ast.unparse(part)!r} is not in the subset that is translated"
            )
        return found

    def do_Expr(self, statement: ast.Expr) -> None:
        if isinstance(statement.value, ast.Call):
            self.call(statement.value)

    def do_Assign(self, statement: ast.Assign) -> None:
        values = self.values(statement.value)
        for target in statement.targets:
            places = target.elts if isinstance(target, ast.Tuple) else [target]
            for place, value in zip(places, values, strict=True):
                self.assign(place, value)

    def do_AnnAssign(self, statement: ast.AnnAssign) -> None:
        if statement.value is not None:
            self.assign(statement.target, self.expression(statement.value))

    def do_AugAssign(self, statement: ast.AugAssign) -> None:
        read = ast.BinOp(left=statement.target, op=statement.op, right=statement.value)
        self.assign(statement.target, self.expression(read))

    def assign(self, target: ast.expr, value: _Value) -> None:
        if isinstance(target, ast.Subscript):
            place = self.element(target)
            assert isinstance(value, _Number)
            self.emit(f"store {place.kind} {(self.real(value) if place.kind == 'double' else value).text}, ptr {place.text}")
            return
        assert isinstance(target, ast.Name)
        if isinstance(value, _Array):
            self.arrays[target.id] = value
        else:
            self.store(target.id, value)

    def store(self, name: str, value: _Number) -> None:
        slot = self.slots.setdefault(name, _Number(f"%{name}.slot", value.kind))
        value = self.real(value) if slot.kind == "double" else value
        self.emit(f"store {slot.kind} {value.text}, ptr {slot.text}")

    def do_If(self, statement: ast.If) -> None:
        yes, no, after = self.labels("then", "else", "after")
        self.fork(statement.test, yes, no)
        for label, statements in (yes, statement.body), (no, statement.orelse):
            self.begin(label)
            self.block(statements)
            self.jump(after)
        self.begin(after)

    def do_For(self, statement: ast.For) -> None:
        """``for name in range(...)``."""
        assert isinstance(statement.target, ast.Name)
        assert isinstance(statement.iter, ast.Call)
        limits = [self.number(limit) for limit in statement.iter.args]
        start, stop = limits if len(limits) == 2 else [_Number("0", "i64"), *limits]
        again, body, following, after = self.labels("for", "body", "next", "done")
        counter = self.slots.setdefault(f"{again}.counter", _Number(f"%{again}.counter", "i64"))
        self.emit(f"store i64 {start.text}, ptr {counter.text}")
        self.jump(again)
        self.begin(again)
        now = self.value(f"load i64, ptr {counter.text}", "i64")
        more = self.value(f"icmp slt i64 {now.text}, {stop.text}", "i1")
        self.emit(f"br i1 {more.text}, label %{body}, label %{after}")
        self.begin(body)
        self.store(statement.target.id, now)
        self.loops.append((following, after))
        self.block(statement.body)
        self.loops.pop()
        self.jump(following)
        self.begin(following)
        increased = self.value(f"add nsw i64 {now.text}, 1", "i64")
        self.emit(f"store i64 {increased.text}, ptr {counter.text}")
        self.emit(f"br label %{again}{', !llvm.loop !0' if self.fast else ''}")
        self.begin(after)

    def do_While(self, statement: ast.While) -> None:
        again, body, after = self.labels("while", "body", "done")
        self.jump(again)
        self.begin(again)
        self.fork(statement.test, body, after)
        self.begin(body)
        self.loops.append((again, after))
        self.block(statement.body)
        self.loops.pop()
        self.jump(again)
        self.begin(after)

    def leave(self, text: str) -> None:
        """Leave the block; what is written after it is never reached."""
        self.emit(text)
        self.begin(*self.labels("unreached"))

    def do_Break(self, _: ast.Break) -> None:
        self.leave(f"br label %{self.loops[-1][1]}")

    def do_Continue(self, _: ast.Continue) -> None:
        self.leave(f"br label %{self.loops[-1][0]}")

    def do_Return(self, statement: ast.Return) -> None:
        if statement.value is None:
            self.leave("ret void")
            return
        kinds = self.result.strip("{ }").split(", ")
        values = [self.number(part) for part in _elements(statement.value)]
        values = [self.real(value) if kind == "double" else value for kind, value in zip(kinds, values, strict=True)]
        whole = values[0]
        if len(values) > 1:
            whole = _Number("undef", self.result)
            for place, value in enumerate(values):
                whole = self.value(f"insertvalue {whole.kind} {whole.text}, {value.kind} {value.text}, {place}", self.result)
        self.leave(f"ret {whole.kind} {whole.text}")

    # -- expressions

    def values(self, expression: ast.expr) -> list[_Value]:
        """What an assignment gets: the elements of a tuple, all read before the first is stored, or of a tuple a function gives."""
        if isinstance(expression, ast.Tuple):
            return [self.expression(part) for part in expression.elts]
        value = self.expression(expression)
        if isinstance(value, _Number) and value.kind.startswith("{"):
            kinds = value.kind.strip("{ }").split(", ")
            return [self.value(f"extractvalue {value.kind} {value.text}, {place}", kind) for place, kind in enumerate(kinds)]
        return [value]

    def number(self, expression: ast.expr) -> _Number:
        value = self.expression(expression)
        assert isinstance(value, _Number), ast.unparse(expression)
        return value

    def expression(self, expression: ast.expr) -> _Value:
        result: _Value = self.understood("read", expression)(expression)
        return result

    def read_Constant(self, expression: ast.Constant) -> _Number:
        return _constant(expression.value)

    def read_Name(self, expression: ast.Name) -> _Value:
        name = expression.id
        if name in self.arrays:
            return self.arrays[name]
        if name in self.slots:
            slot = self.slots[name]
            return self.value(f"load {slot.kind}, ptr {slot.text}", slot.kind)
        return _constant(getattr(self.algorithm, name))

    def read_Attribute(self, expression: ast.Attribute) -> _Number:
        return _constant(getattr(math, expression.attr))

    def read_Subscript(self, expression: ast.Subscript) -> _Value:
        if isinstance(expression.value, ast.Attribute):  # array.shape[axis]
            array = self.expression(expression.value.value)
            assert isinstance(array, _Array)
            assert isinstance(expression.slice, ast.Constant)
            return _Number(array.shape[int(str(expression.slice.value))], "i64")
        place = self.element(expression)
        return place if isinstance(place, _Array) else self.value(f"load {place.kind}, ptr {place.text}", place.kind)

    def element(self, expression: ast.Subscript) -> Any:
        """The address of an element, or of the part of an array that fewer indices than axes give."""
        array = self.expression(expression.value)
        assert isinstance(array, _Array)
        indices = [self.number(index) for index in _elements(expression.slice)]
        place = "0"
        for axis, size in enumerate(array.shape):
            place = self.value(f"mul nsw i64 {place}, {size}", "i64").text if place != "0" else place
            if axis < len(indices):
                place = self.value(f"add nsw i64 {place}, {indices[axis].text}", "i64").text
        start = self.value(f"getelementptr inbounds {array.kind}, ptr {array.start}, i64 {place}", array.kind)
        rest = array.shape[len(indices) :]
        return _Array(start.text, array.kind, rest) if rest else start

    def read_UnaryOp(self, expression: ast.UnaryOp) -> _Number:
        value = self.number(expression.operand)
        if isinstance(expression.op, ast.Not):
            return self.value(f"xor i1 {value.text}, true", "i1")
        if value.kind == "double":
            return self.value(f"fneg{self.fast} double {value.text}", "double")
        return self.value(f"sub nsw i64 0, {value.text}", "i64")

    def read_BinOp(self, expression: ast.BinOp) -> _Number:
        left = self.number(expression.left)
        if isinstance(expression.op, ast.Pow):  # a square
            return self.value(f"fmul{self.fast} double {left.text}, {left.text}", "double")
        right = self.number(expression.right)
        if isinstance(expression.op, ast.Div):
            return self.value(f"fdiv{self.fast} double {self.real(left).text}, {self.real(right).text}", "double")
        left, right = self.alike(left, right)
        whole, real = ARITHMETIC[type(expression.op)]
        operation = f"{real}{self.fast}" if left.kind == "double" else whole
        return self.value(f"{operation} {left.kind} {left.text}, {right.text}", left.kind)

    def read_Compare(self, expression: ast.Compare) -> _Number:
        result = None
        left = self.number(expression.left)
        for operation, other in zip(expression.ops, expression.comparators, strict=True):
            right = self.number(other)
            holds = self.compare(COMPARISONS[type(operation)], left, right)
            result = holds if result is None else self.value(f"and i1 {result.text}, {holds.text}", "i1")
            left = right
        assert result is not None
        return result

    def compare(self, names: tuple[str, str], left: _Number, right: _Number) -> _Number:
        left, right = self.alike(left, right)
        name = f"fcmp {names[1]}" if left.kind == "double" else f"icmp {names[0]}"
        return self.value(f"{name} {left.kind} {left.text}, {right.text}", "i1")

    def read_BoolOp(self, expression: ast.BoolOp) -> _Number:
        """``and``, ``or``: what follows is looked at only where it decides."""
        decided = "false" if isinstance(expression.op, ast.And) else "true"
        (after,) = self.labels("decided")
        arrivals = []
        for part in expression.values[:-1]:
            value = self.number(part)
            (more,) = self.labels("more")
            arrivals.append(f"[ {decided}, %{self.label} ]")
            yes, no = (more, after) if decided == "false" else (after, more)
            self.emit(f"br i1 {value.text}, label %{yes}, label %{no}")
            self.begin(more)
        value = self.number(expression.values[-1])
        arrivals.append(f"[ {value.text}, %{self.label} ]")
        self.jump(after)
        self.begin(after)
        return self.value(f"phi i1 {', '.join(arrivals)}", "i1")

    def read_IfExp(self, expression: ast.IfExp) -> _Number:
        yes, no, after = self.labels("yes", "no", "either")
        real = "double" in (self.kind(expression.body), self.kind(expression.orelse))
        self.fork(expression.test, yes, no)
        arrivals, kind = [], ""
        for label, part in (yes, expression.body), (no, expression.orelse):
            self.begin(label)
            value = self.real(self.number(part)) if real else self.number(part)
            arrivals.append(f"[ {value.text}, %{self.label} ]")
            kind = value.kind
            self.jump(after)
        self.begin(after)
        return self.value(f"phi {kind} {', '.join(arrivals)}", kind)

    def kind(self, expression: ast.expr) -> str:
        """Find the type of an expression without writing it."""
        kept = len(self.lines), self.count, self.label
        kind = self.number(expression).kind
        del self.lines[kept[0] :]
        _, self.count, self.label = kept
        return kind

    def read_Call(self, expression: ast.Call) -> _Number:
        return self.call(expression)

    def call(self, expression: ast.Call) -> _Number:
        if isinstance(expression.func, ast.Attribute):
            return self.mathematics(expression.func.attr, [self.real(self.number(part)) for part in expression.args])
        assert isinstance(expression.func, ast.Name)
        name = expression.func.id
        if name in ("min", "max"):
            left, right = self.alike(*[self.number(part) for part in expression.args])
            first = self.compare(("slt", "olt") if name == "min" else ("sgt", "ogt"), right, left)
            return self.value(f"select i1 {first.text}, {left.kind} {right.text}, {left.kind} {left.text}", left.kind)
        if name == "abs":
            return self.mathematics("fabs", [self.real(self.number(expression.args[0]))])
        if name in self.model:
            return self.ask_model(self.model[name], [self.expression(part) for part in expression.args])
        tree = self.trees[name]
        values = []
        for part, parameter in zip(expression.args, tree.args.args, strict=True):
            annotation = ast.unparse(parameter.annotation) if parameter.annotation else ""
            if annotation in MODEL:
                continue
            value = self.expression(part)
            if isinstance(value, _Array):
                values += [f"ptr {value.start}", *(f"i64 {size}" for size in value.shape)]
            else:
                value = self.real(value) if annotation == "float" else value
                values.append(f"{value.kind} {value.text}")
        kind = _returned(tree)
        if kind == "void":
            self.emit(f"call void @{name}({', '.join(values)})")
            return _Number("", "void")
        return self.value(f"call {kind} @{name}({', '.join(values)})", kind)

    def ask_model(self, symbol: str, arguments: Sequence[_Value]) -> _Number:
        """Call the model: it gets the residual, the last row of the system, and the Jacobian, the rows before it."""
        addresses = [argument.start if isinstance(argument, _Array) else argument.text for argument in arguments]
        if symbol == "gf_linearize":
            system = arguments[2]
            assert isinstance(system, _Array)
            last = self.value(f"sub nsw i64 {system.shape[0]}, 1", "i64")
            place = self.value(f"mul nsw i64 {last.text}, {system.shape[1]}", "i64")
            residual = self.value(f"getelementptr inbounds double, ptr {system.start}, i64 {place.text}", "ptr")
            addresses.insert(2, residual.text)
        return self.value(f"call double @{symbol}({', '.join(f'ptr {address}' for address in addresses)})", "double")

    def mathematics(self, name: str, values: Sequence[_Number]) -> _Number:
        if name == "isfinite":
            size = self.mathematics("fabs", values)
            return self.value(f"fcmp olt double {size.text}, {INFINITY}", "i1")
        listed = ", ".join(f"double {value.text}" for value in values)
        return self.value(f"call double @{INTRINSICS[name][0]}({listed})", "double")


def _elements(expression: ast.expr) -> Sequence[ast.expr]:
    return expression.elts if isinstance(expression, ast.Tuple) else [expression]


def _returned(tree: ast.FunctionDef) -> str:
    """LLVM's type of what a function gives."""
    annotation = ast.unparse(tree.returns) if tree.returns else "None"
    if annotation.startswith("tuple["):
        return "{ " + ", ".join(SCALARS[part] for part in annotation[6:-1].split(", ")) + " }"
    return SCALARS[annotation]


def _real(value: float) -> _Number:
    return _Number(f"0x{struct.unpack('>Q', struct.pack('>d', value))[0]:016X}", "double")


def _constant(value: Any) -> _Number:
    if isinstance(value, bool):
        return _Number(str(value).lower(), "i1")
    return _Number(str(value), "i64") if isinstance(value, int) else _real(value)
