"""Numbers that write LLVM instructions: the arguments with which a traced model is executed to compile it.

A :class:`Value` stands for a floating-point number, or for a vector of W of them, that will be known when the compiled code
runs. Python's operators on it append LLVM instructions to a builder, so a function of plain Python arithmetic,

    def row(x, y, a, b):
        r = a * exp(-b * x) - y
        return r * r

executed on Values emits its own machine code, for W rows at once. No fast-math flag is set: ``a + b`` is the IEEE sum, rounded
once, and ``a * b + c`` is rounded twice, as torch does it on a CPU. Elementary functions, which promise an error bound and not
a sequence of roundings, may use :func:`muladd`. Single and double precision never mix unasked: use :func:`float32`, :func:`float64`.

:class:`Bits` is the same number seen as an integer: the sign, exponent and fraction that range reductions work on.
"""

from __future__ import annotations

import builtins
import functools
import struct
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeAlias

from llvmlite import ir

Number: TypeAlias = float | int
Operand: TypeAlias = "Value | float | int"

DOUBLE = ir.DoubleType()
SINGLE = ir.FloatType()
BOOLEAN = ir.IntType(1)


class Format(NamedTuple):
    """An IEEE 754 binary format: ``(-1)**sign * 2**(exponent - bias) * 1.fraction``."""

    suffix: str  # of LLVM intrinsics
    size: int  # bits in all
    fraction: int  # bits of the fraction
    bias: int
    code: str  # in struct: of the number, and of the integer with the same bits

    @property
    def smallest_normal(self) -> float:
        """Below it the spacing of numbers no longer shrinks."""
        return 2.0 ** (1 - self.bias)

    def bits(self, number: Number) -> int:
        """Pattern of bits of a number in this format."""
        return int.from_bytes(struct.pack("<" + self.code, number), "little")


BINARY64 = Format("f64", 64, 52, 1023, "d")
BINARY32 = Format("f32", 32, 23, 127, "f")


class Value:
    """A number, or a vector of numbers, in the code being built.

    Parameters
    ----------
    builder
        Where operators append their instructions.
    ir_value
        An LLVM value of type double, float or i1, or a vector of these.
    """

    __slots__ = ("builder", "ir")
    __array_ufunc__: ClassVar[None] = None  # numpy numbers on the left leave the operation to this class
    __hash__: ClassVar[None]  # type: ignore[assignment]

    def __init__(self, builder: ir.IRBuilder, ir_value: ir.Value) -> None:
        self.builder = builder
        self.ir = ir_value

    @classmethod
    def constant(cls, builder: ir.IRBuilder, like_type: ir.Type, number: Number) -> Value:
        """Make a constant of the given type: the number in every lane."""
        element = _element(like_type)
        if element == BOOLEAN:
            literal = ir.Constant(element, builtins.bool(number))
        else:
            literal = ir.Constant(element, _rounded(number, double=element == DOUBLE))
        width = _width(like_type)
        return cls(builder, literal if width == 1 else ir.Constant(like_type, [literal] * width))

    @property
    def type(self) -> Any:
        """Type in LLVM."""
        return self.ir.type

    @property
    def width(self) -> int:
        """How many lanes; 1 for a plain number."""
        return _width(self.ir.type)

    @property
    def is_double(self) -> bool:
        """Whether the lanes are double precision."""
        return builtins.bool(_element(self.ir.type) == DOUBLE)

    @property
    def is_bool(self) -> bool:
        """Whether the lanes are true or false."""
        return builtins.bool(_element(self.ir.type) == BOOLEAN)

    @property
    def format(self) -> Format:
        """Format of the floating-point lanes."""
        return BINARY64 if self.is_double else BINARY32

    def like(self, number: Number) -> Value:
        """Make a constant of this value's type."""
        return Value.constant(self.builder, self.ir.type, number)

    def __add__(self, other: Operand) -> Value:
        return _arithmetic("fadd", self, other)

    def __radd__(self, other: Operand) -> Value:
        return _arithmetic("fadd", other, self)

    def __sub__(self, other: Operand) -> Value:
        return _arithmetic("fsub", self, other)

    def __rsub__(self, other: Operand) -> Value:
        return _arithmetic("fsub", other, self)

    def __mul__(self, other: Operand) -> Value:
        return _arithmetic("fmul", self, other)

    def __rmul__(self, other: Operand) -> Value:
        return _arithmetic("fmul", other, self)

    def __truediv__(self, other: Operand) -> Value:
        return _arithmetic("fdiv", self, other)

    def __rtruediv__(self, other: Operand) -> Value:
        return _arithmetic("fdiv", other, self)

    def __neg__(self) -> Value:
        _floating(self)
        return Value(self.builder, self.builder.fneg(self.ir))

    def __pos__(self) -> Value:
        return self

    def __abs__(self) -> Value:
        return abs(self)

    def __lt__(self, other: Operand) -> Value:
        return _comparison("<", self, other)

    def __le__(self, other: Operand) -> Value:
        return _comparison("<=", self, other)

    def __gt__(self, other: Operand) -> Value:
        return _comparison(">", self, other)

    def __ge__(self, other: Operand) -> Value:
        return _comparison(">=", self, other)

    def __eq__(self, other: Operand) -> Value:  # type: ignore[override]
        return _comparison("==", self, other)

    def __ne__(self, other: Operand) -> Value:  # type: ignore[override]
        return _comparison("!=", self, other)

    def __and__(self, other: Operand) -> Value:
        return _logical("and_", self, other)

    __rand__ = __and__

    def __or__(self, other: Operand) -> Value:
        return _logical("or_", self, other)

    __ror__ = __or__

    def __xor__(self, other: Operand) -> Value:
        return _logical("xor", self, other)

    __rxor__ = __xor__

    def __invert__(self) -> Value:
        return _logical("xor", self, True)

    def __bool__(self) -> bool:
        raise TypeError(
            "a Value is known only when the compiled code runs; use where(condition, a, b) and & | ~, not if, and, or, not."
        )

    def __repr__(self) -> str:
        return f"Value({self.ir.type})"


class Bits:
    """The bits of floating-point lanes as integers; arithmetic wraps around, shifts fill with zeros."""

    __slots__ = ("builder", "ir")

    def __init__(self, builder: ir.IRBuilder, ir_value: ir.Value) -> None:
        self.builder = builder
        self.ir = ir_value

    def __add__(self, other: Bits | int) -> Bits:
        return self._with("add", other)

    def __sub__(self, other: Bits | int) -> Bits:
        return self._with("sub", other)

    def __rsub__(self, other: int) -> Bits:
        return self._constant(other) - self

    def __and__(self, other: Bits | int) -> Bits:
        return self._with("and_", other)

    def __or__(self, other: Bits | int) -> Bits:
        return self._with("or_", other)

    def __xor__(self, other: Bits | int) -> Bits:
        return self._with("xor", other)

    def __lshift__(self, places: int) -> Bits:
        return self._with("shl", places)

    def __rshift__(self, places: int) -> Bits:
        return self._with("lshr", places)

    def is_set(self, place: int) -> Value:
        """Whether the bit at a place, counted from the lowest, is 1."""
        return Value(self.builder, self.builder.icmp_unsigned("!=", (self & (1 << place)).ir, self._constant(0).ir))

    def as_float(self) -> Value:
        """The floating-point lanes with these bits."""
        size = _element(self.ir.type).width
        element = DOUBLE if size == BINARY64.size else SINGLE
        return Value(self.builder, self.builder.bitcast(self.ir, _of_width(element, _width(self.ir.type))))

    def _with(self, operation: str, other: Bits | int) -> Bits:
        right = self._constant(other) if isinstance(other, int) else other
        return Bits(self.builder, getattr(self.builder, operation)(self.ir, right.ir))

    def _constant(self, number: int) -> Bits:
        element = _element(self.ir.type)
        literal = ir.Constant(element, number % (1 << element.width))
        width = _width(self.ir.type)
        return Bits(self.builder, literal if width == 1 else ir.Constant(self.ir.type, [literal] * width))


def bits(value: Value) -> Bits:
    """See floating-point lanes as integers of the same size."""
    _floating(value)
    integer = ir.IntType(value.format.size)
    return Bits(value.builder, value.builder.bitcast(value.ir, _of_width(integer, value.width)))


# ---- Bringing operands together --------------------------------------------------------------------------------------


def align(*operands: Operand) -> tuple[Value, ...]:
    """Bring operands to one type: numbers become constants, plain numbers fill the lanes of vectors.

    Raises
    ------
    TypeError
        No operand is a Value, or they differ in precision or in the number of lanes.
    """
    values = [operand for operand in operands if isinstance(operand, Value)]
    if not values:
        raise TypeError(f"none of the operands {operands} is a Value; at least one must be, to give the type of the result.")
    widest = max(values, key=lambda value: value.width)
    aligned = []
    for operand in operands:
        if isinstance(operand, Value):
            value = splat(operand, widest.width) if operand.width == 1 else operand
            if value.type != widest.type:
                raise TypeError(
                    f"operands of types {operand.type} and {widest.type}; convert one by float32(), float64() or where()."
                )
        elif isinstance(operand, float | int):
            value = widest.like(operand)
        else:
            raise TypeError(f"an operand of type {type(operand).__name__}; expected a Value or a number.")
        aligned.append(value)
    return tuple(aligned)


def splat(value: Value, width: int) -> Value:
    """Fill all lanes of a vector with one number."""
    if width == value.width:
        return value
    if value.width != 1:
        raise TypeError(f"a vector of {value.width} lanes cannot fill {width} lanes; only a plain number can.")
    if isinstance(value.ir, ir.Constant):
        return Value(value.builder, ir.Constant(ir.VectorType(value.type, width), [value.ir] * width))
    vector = ir.VectorType(value.type, width)
    lane = ir.IntType(32)
    first = value.builder.insert_element(ir.Constant(vector, ir.Undefined), value.ir, lane(0))
    return Value(
        value.builder, value.builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(lane, width), [lane(0)] * width))
    )


def float64(value: Value) -> Value:
    """Convert to double precision; true is 1 and false 0."""
    return _converted(value, DOUBLE)


def float32(value: Value) -> Value:
    """Convert to single precision, rounding to nearest; true is 1 and false 0."""
    return _converted(value, SINGLE)


# ---- Choices ---------------------------------------------------------------------------------------------------------


def where(condition: Value, a: Operand, b: Operand) -> Value:
    """Take ``a`` in the lanes where the condition is true and ``b`` in the others."""
    if not condition.is_bool:
        raise TypeError(f"the condition of where() is {condition.type}; expected a comparison or another boolean.")
    a, b = align(a, b)
    width = max(condition.width, a.width)
    condition, a, b = splat(condition, width), splat(a, width), splat(b, width)
    return Value(a.builder, a.builder.select(condition.ir, a.ir, b.ir))


def rarely(condition: Value, usual: Value, exceptional: Callable[[], Value]) -> Value:
    """Replace the usual value, in the lanes where a condition holds, by one that is costly and seldom needed.

    The exceptional value is computed behind a branch, taken when the condition holds in any lane.
    """
    builder = usual.builder
    any_lane = condition.ir if condition.width == 1 else _intrinsic("vector.reduce.or", condition, returns=BOOLEAN).ir
    before = builder.block
    with builder.if_then(any_lane, likely=False):
        replaced = where(condition, exceptional(), usual)
        behind = builder.block
    merged = builder.phi(usual.type)
    merged.add_incoming(usual.ir, before)
    merged.add_incoming(replaced.ir, behind)
    return Value(builder, merged)


def minimum(a: Operand, b: Operand) -> Value:
    """Smaller of two; NaN if either is, as in torch."""
    a, b = align(a, b)
    return where(isnan(a) | (a < b), a, b)


def maximum(a: Operand, b: Operand) -> Value:
    """Larger of two; NaN if either is, as in torch."""
    a, b = align(a, b)
    return where(isnan(a) | (a > b), a, b)


# ---- Sign, size and class --------------------------------------------------------------------------------------------


def abs(value: Value) -> Value:
    """Absolute value: the sign bit cleared."""
    return _intrinsic("fabs", value)


def copysign(magnitude: Operand, sign: Operand) -> Value:
    """First number with the sign bit of the second."""
    return _intrinsic("copysign", *align(magnitude, sign))


def sign(value: Value) -> Value:
    """-1, 0 or 1; 0 for NaN, as in torch."""
    return where(value > 0, 1.0, where(value < 0, value.like(-1.0), 0.0))


def isnan(value: Value) -> Value:
    """Whether it is not a number."""
    return value != value


def isinf(value: Value) -> Value:
    """Whether it is an infinity."""
    return abs(value) == float("inf")


def isfinite(value: Value) -> Value:
    """Whether it is neither an infinity nor NaN."""
    return abs(value) < float("inf")


# ---- Rounding and roots: correctly rounded single instructions -------------------------------------------------------


def floor(value: Value) -> Value:
    """Largest integer not above."""
    return _intrinsic("floor", value)


def ceil(value: Value) -> Value:
    """Smallest integer not below."""
    return _intrinsic("ceil", value)


def trunc(value: Value) -> Value:
    """Integer part."""
    return _intrinsic("trunc", value)


def round(value: Value) -> Value:
    """Nearest integer, halves to even."""
    return _intrinsic("rint", value)


def sqrt(value: Value) -> Value:
    """Square root, correctly rounded; NaN below zero."""
    return _intrinsic("sqrt", value)


# ---- Sums ------------------------------------------------------------------------------------------------------------


def muladd(a: Operand, b: Operand, c: Operand) -> Value:
    """``a * b + c``, rounded once where the machine has an instruction for it and twice elsewhere."""
    return _intrinsic("fmuladd", *align(a, b, c))


def fma(a: Operand, b: Operand, c: Operand) -> Value:
    """``a * b + c``, rounded once; slow on a machine without the instruction. For the exact error of a product."""
    return _intrinsic("fma", *align(a, b, c))


def reduce_add(value: Value) -> Value:
    """Sum of the lanes: the upper half is added to the lower until one lane is left, so the order never varies."""
    builder, lane = value.builder, ir.IntType(32)
    total = value
    while total.width > 1:
        half = total.width // 2
        halves = [
            Value(
                builder,
                builder.shuffle_vector(
                    total.ir, total.ir, ir.Constant(ir.VectorType(lane, half), [lane(i + k) for i in range(half)])
                ),
            )
            for k in (0, half)
        ]
        lower, upper = (Value(builder, builder.extract_element(part.ir, lane(0))) if half == 1 else part for part in halves)
        total = lower + upper
    return total


# ---- Library functions, lane by lane ---------------------------------------------------------------------------------


def call_lanes(symbol: str, *operands: Operand) -> Value:
    """Call a C function of doubles, such as ``lgamma``, once for each lane. Single precision is converted there and back.

    The lanes are taken apart in a function of their own, so that a call costs the surrounding code one instruction.
    """
    arguments = align(*operands)
    first = arguments[0]
    _floating(first)
    module = first.builder.module
    name = f"gradfit.{symbol}.{_suffix(first.type)}"
    function = module.globals.get(name) or _lane_function(module, name, symbol, first.type, len(arguments))
    return Value(first.builder, first.builder.call(function, [argument.ir for argument in arguments]))


def _lane_function(module: ir.Module, name: str, symbol: str, kind: ir.Type, arity: int) -> ir.Function:
    library = module.globals.get(symbol) or ir.Function(module, ir.FunctionType(DOUBLE, [DOUBLE] * arity), symbol)
    function = ir.Function(module, ir.FunctionType(kind, [kind] * arity), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block())
    arguments = [Value(builder, argument) for argument in function.args]
    width, lane = _width(kind), ir.IntType(32)
    result = ir.Constant(kind, ir.Undefined)
    for k in range(width):
        lanes = [
            argument if width == 1 else Value(builder, builder.extract_element(argument.ir, lane(k))) for argument in arguments
        ]
        called = Value(builder, builder.call(library, [float64(each).ir for each in lanes]))
        called = _converted(called, _element(kind))
        result = called.ir if width == 1 else builder.insert_element(result, called.ir, lane(k))
    builder.ret(result)
    return function


# ---- Instructions ----------------------------------------------------------------------------------------------------


def _arithmetic(operation: str, a: Operand, b: Operand) -> Value:
    left, right = align(a, b)
    _floating(left)
    return Value(left.builder, getattr(left.builder, operation)(left.ir, right.ir))


def _comparison(relation: str, a: Operand, b: Operand) -> Value:
    left, right = align(a, b)
    _floating(left)
    # Unordered for !=, so that NaN differs from everything, itself too.
    compare = left.builder.fcmp_unordered if relation == "!=" else left.builder.fcmp_ordered
    return Value(left.builder, compare(relation, left.ir, right.ir))


def _logical(operation: str, a: Operand, b: Operand) -> Value:
    left, right = align(a, b)
    if not left.is_bool:
        raise TypeError(f"& | ^ ~ on {left.type}; expected booleans, such as the results of comparisons.")
    return Value(left.builder, getattr(left.builder, operation)(left.ir, right.ir))


def _intrinsic(name: str, *arguments: Value, returns: ir.Type | None = None) -> Value:
    first = arguments[0]
    if returns is None:
        _floating(first)
    module = first.builder.module
    mangled = f"llvm.{name}.{_suffix(first.type)}"
    function = module.globals.get(mangled)
    if function is None:
        signature = ir.FunctionType(returns or first.type, [argument.type for argument in arguments])
        function = ir.Function(module, signature, mangled)
    return Value(first.builder, first.builder.call(function, [argument.ir for argument in arguments]))


def _converted(value: Value, element: ir.Type) -> Value:
    if _element(value.type) == element:
        return value
    operation = "uitofp" if value.is_bool else "fpext" if element == DOUBLE else "fptrunc"
    return Value(value.builder, getattr(value.builder, operation)(value.ir, _of_width(element, value.width)))


def _floating(value: Value) -> None:
    if value.is_bool:
        raise TypeError("arithmetic on booleans; convert by float64(), float32() or where(condition, 1.0, 0.0).")


def _rounded(number: Number, *, double: bool) -> float:
    if double:
        return float(number)
    try:
        return float(struct.unpack("f", struct.pack("f", number))[0])
    except OverflowError:
        return float("inf") if number > 0 else float("-inf")


@functools.cache
def _suffix_of(element: str, width: int) -> str:
    name = {"double": "f64", "float": "f32", "i1": "i1"}[element]
    return name if width == 1 else f"v{width}{name}"


def _suffix(kind: ir.Type) -> str:
    return _suffix_of(str(_element(kind)), _width(kind))


def _element(kind: ir.Type) -> Any:
    return kind.element if isinstance(kind, ir.VectorType) else kind


def _width(kind: ir.Type) -> int:
    return int(kind.count) if isinstance(kind, ir.VectorType) else 1


def _of_width(element: ir.Type, width: int) -> Any:
    return element if width == 1 else ir.VectorType(element, width)
