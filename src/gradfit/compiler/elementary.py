"""Elementary functions, written once on :class:`~gradfit.compiler.values.Value` for every precision and number of lanes.

Each function is the textbook pair of a range reduction and a polynomial, without branches, so that all lanes of a vector do the
same work. What decides the accuracy is said where it happens: which differences are exact, and which rounding errors are carried
along. Every docstring states the bound on the error in ulp (units in the last place of the correct result), double precision
first; the tests hold every function to its entry in :data:`BOUNDS`, against mpmath.

Polynomials interpolate their function at the Chebyshev nodes of an interval, computed with 60 digits and rounded to the precision
they are used in. For each, a comment gives the function and the interval; the tests compute them again. What is left of the
approximation error is below 0.15 ulp.

Functions that are seldom the bulk of a model (``lgamma``, ``fmod``), and the sine of an angle of more than a million radians,
are called from the C library, lane by lane. :func:`register_symbols` makes the symbols in :data:`LIBM` known to LLVM.

References
----------
Reductions of exp, log, sin, asin: FreeBSD msun (fdlibm). Pow in double-double: Dekker (1971), *Numer. Math.* 18, 224.
Scaled complementary error function: Shepherd & Laframboise (1981), *Math. Comp.* 36, 249.
Digamma and trigamma: Abramowitz & Stegun, 6.3 and 6.4.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from llvmlite import binding

from gradfit.compiler.values import (
    Bits,
    Operand,
    Value,
    abs,
    align,
    bits,
    call_lanes,
    ceil,
    copysign,
    float32,
    float64,
    floor,
    fma,
    isfinite,
    isinf,
    isnan,
    maximum,
    minimum,
    muladd,
    rarely,
    round,
    sign,
    sqrt,
    trunc,
    where,
)

INFINITY = math.inf

LIBM: Mapping[str, str] = MappingProxyType({name: name for name in ("sin", "cos", "tan", "lgamma", "fmod")})
"""Functions that call the C library, some only for huge arguments, and the symbol they call."""

# What LLVM calls for an instruction that an old machine lacks.
_INSTRUCTIONS = ("fma", "fmaf", "floor", "floorf", "ceil", "ceilf", "trunc", "truncf", "rint", "rintf")


def register_symbols() -> None:
    """Make the C library's functions known to LLVM, by address; the name of the library does not matter then."""
    name = "ucrtbase" if sys.platform == "win32" else ctypes.util.find_library("m")
    library = ctypes.CDLL(name)  # None, where there is no separate one: the process itself
    for symbol in (*LIBM.values(), *_INSTRUCTIONS):
        binding.add_symbol(symbol, ctypes.cast(getattr(library, symbol), ctypes.c_void_p).value)


def polynomial(x: Value, coefficients: Sequence[float], *, careful: int = 0) -> Value:
    """Evaluate ``c0 + c1 x + c2 x**2 + ...`` by Estrin's scheme: neighbours are combined until one term is left.

    Horner's rule rounds less and needs fewer products, but each waits for the one before. It is used for the first terms, as
    many as ``careful`` says, where the polynomial is most of the result and not a small correction to it.
    """
    if careful:
        return muladd(x, polynomial(x, coefficients[1:], careful=careful - 1), coefficients[0])
    terms = [x.like(coefficient) for coefficient in coefficients]
    power = x
    while len(terms) > 1:
        pairs = [muladd(high, power, low) for low, high in zip(terms[::2], terms[1::2], strict=False)]
        terms = pairs if len(terms) % 2 == 0 else [*pairs, terms[-1]]
        if len(terms) > 1:
            power = power * power
    return terms[0]


def _through_double(function: Callable[..., Value]) -> Callable[..., Value]:
    """Compute single precision in double and round the result: within 0.51 ulp."""

    @functools.wraps(function)
    def either(*operands: Operand) -> Value:
        arguments = align(*operands)
        if arguments[0].is_double:
            return function(*arguments)
        return float32(function(*map(float64, arguments)))

    return either


def _clamp(x: Value, lower: float, upper: float) -> Value:
    """Keep between two bounds; NaN stays NaN."""
    raised = where(x < lower, lower, x)
    return where(raised > upper, upper, raised)


# ---- Exponentials ----------------------------------------------------------------------------------------------------


class _Exponential(NamedTuple):
    """Constants of ``exp`` in one precision."""

    ln2_high: float  # with zeros at the end: its product with a whole number of binary digits is exact
    ln2_low: float
    lowest: float  # exp is 0 here
    highest: float  # half of exp is infinite here, a quarter not yet
    polynomial: tuple[float, ...]


# (exp(r) - 1 - r) / r**2 for |r| < 1.0005 ln(2)/2
_EXP64 = _Exponential(
    ln2_high=0.6931471805598903,
    ln2_low=5.497923018708371e-14,
    lowest=-750.0,
    highest=710.5,
    polynomial=(
        0.5000000000000001,
        0.16666666666666669,
        0.04166666666662399,
        0.008333333333330051,
        0.0013888888917281794,
        0.00019841269863105968,
        2.480152119021773e-05,
        2.7557268378684192e-06,
        2.7620138719733994e-07,
        2.5100424157005067e-08,
    ),
)
_EXP32 = _Exponential(
    ln2_high=0.693145751953125,
    ln2_low=1.428606765330187e-06,
    lowest=-105.0,
    highest=89.45,
    polynomial=(0.5, 0.16666576266288757, 0.041666556149721146, 0.008363203145563602, 0.0013926213141530752),
)


def _exponential(x: Value) -> _Exponential:
    return _EXP64 if x.is_double else _EXP32


def _nearest_integer(x: Value, scale: float = 1.0, *, offset: int = 0) -> tuple[Value, Bits]:
    """Nearest integer n to ``x * scale``, as a number, and ``n + offset`` in the low bits of an integer.

    Next to 1.5 * 2**52 the spacing of doubles is 1: adding it rounds to an integer and leaves it in the last bits.
    """
    shift = 1.5 * 2.0**x.format.fraction + offset
    shifted = x + shift if scale == 1.0 else muladd(x, scale, shift)
    return shifted - shift, bits(shifted)


def _power_of_two(biased: Bits, like: Value) -> Value:
    """Make 2**n of ``n + bias`` in the low bits of an integer."""
    return (biased << like.format.fraction).as_float()


def _exp_near_zero(r: Value) -> Value:
    """``e**r`` for abs(r) < ln(2)/2."""
    return muladd(r, muladd(r, polynomial(r, _exponential(r).polynomial), 1.0), 1.0)


def _scaled_by_power(p: Value, biased: Bits) -> Value:
    """``p * 2**n`` from ``n + 2 * bias``, in two steps, so that it overflows and underflows as it should."""
    half = biased >> 1
    return p * _power_of_two(half, p) * _power_of_two(biased - half, p)


def exp(x: Value) -> Value:
    """``e**x``: with n the nearest integer to x / ln 2, ``2**n * exp(x - n ln 2)``. Within 1 ulp, 1 ulp."""
    constants = _exponential(x)
    x = _clamp(x, constants.lowest, constants.highest)
    n, biased = _nearest_integer(x, 1 / math.log(2), offset=2 * x.format.bias)
    r = muladd(n, -constants.ln2_low, muladd(n, -constants.ln2_high, x))
    return _scaled_by_power(_exp_near_zero(r), biased)


def exp2(x: Value) -> Value:
    """``2**x``: with n the nearest integer, ``2**n * exp((x - n) ln 2)``. Within 1.2 ulp, 1.2 ulp."""
    x = _clamp(x, -2.0 * x.format.bias, x.format.bias + 2.0)
    n, biased = _nearest_integer(x, offset=2 * x.format.bias)
    r = (x - n) * math.log(2)
    return _scaled_by_power(_exp_near_zero(r), biased)


def expm1(x: Value) -> Value:
    """``e**x - 1``, accurate near zero. Within 1.5 ulp, 1.5 ulp.

    With x = n ln 2 + r, ``2**n exp(r) - 1 = (2**n - 1 + 2**n r) + 2**n (exp(r) - 1 - r)``: the first is almost exact, the
    second small. Half of it is computed, so that 2**n is finite.
    """
    constants = _exponential(x)
    clamped = _clamp(x, -40.0, constants.highest - 0.5)
    n, biased = _nearest_integer(clamped, 1 / math.log(2), offset=x.format.bias - 1)
    high = muladd(n, -constants.ln2_high, clamped)
    r = muladd(n, -constants.ln2_low, high)
    lost = muladd(n, -constants.ln2_low, high - r)
    rest = muladd(r * r, polynomial(r, constants.polynomial), lost)
    power = _power_of_two(biased, x)
    half = muladd(power, rest, muladd(power, r, power - 0.5))
    tiny = 2.0 ** -(x.format.fraction + 2)
    return where(abs(x) < tiny, x, half * 2.0)


# ---- Hyperbolic functions --------------------------------------------------------------------------------------------

# (sinh(s) - s) / s**3 as a function of s**2 < 1, and (tanh(s) - s) / s**3 as a function of s**2 < 0.31
_SINH64 = (
    0.16666666666666666,
    0.008333333333333299,
    0.00019841269841324198,
    2.7557319191381816e-06,
    2.5052117695907823e-08,
    1.6057679623801638e-10,
    7.746178593018827e-13,
)
_SINH32 = (
    0.1666666716337204,
    0.008333339355885983,
    0.00019838102161884308,
    2.806280235745362e-06,
)
_TANH64 = (
    -0.3333333333333333,
    0.13333333333332556,
    -0.05396825396724726,
    0.02186948848524601,
    -0.00886323420601293,
    0.0035921078811045905,
    -0.001455642111220305,
    0.0005888400422537283,
    -0.00023435314845645768,
    8.465718640250347e-05,
    -2.0289800612514075e-05,
)
_TANH32 = (
    -0.3333333134651184,
    0.13333092629909515,
    -0.05390536040067673,
    0.02128472365438938,
    -0.006564395502209663,
)


def _quarter_of_exp(x: Value) -> Value:
    """``e**x / 4`` for 0 <= x <= ``highest``, where ``e**x`` may overflow."""
    constants = _exponential(x)
    n, biased = _nearest_integer(x, 1 / math.log(2), offset=x.format.bias - 2)
    r = muladd(n, -constants.ln2_low, muladd(n, -constants.ln2_high, x))
    return _exp_near_zero(r) * _power_of_two(biased, x)


def sinh(x: Value) -> Value:
    """``(e**x - e**-x) / 2``; a polynomial up to 1. Within 1.8 ulp, 1.8 ulp."""
    size = abs(x)
    quarter = _quarter_of_exp(minimum(size, _exponential(x).highest))
    z = size * size
    small = muladd(size * z, polynomial(z, _SINH64 if x.is_double else _SINH32), size)
    return copysign(where(size < 1.0, small, quarter * 2.0 - 0.125 / quarter), x)


def cosh(x: Value) -> Value:
    """``(e**x + e**-x) / 2``. Within 1.5 ulp, 1.5 ulp."""
    quarter = _quarter_of_exp(minimum(abs(x), _exponential(x).highest))
    return quarter * 2.0 + 0.125 / quarter


def tanh(x: Value) -> Value:
    """``1 - 2 / (e**(2 abs(x)) + 1)``; a polynomial up to 0.55. Within 1.8 ulp, 1.8 ulp."""
    size = abs(x)
    quarter = _quarter_of_exp(minimum(size + size, 80.0))
    z = size * size
    small = muladd(size * z, polynomial(z, _TANH64 if x.is_double else _TANH32), size)
    return copysign(where(size < 0.55, small, 1.0 - 0.5 / (quarter + 0.25)), x)


# ---- Logarithms ------------------------------------------------------------------------------------------------------

# (log((1 + s)/(1 - s)) - 2 s) / s**3 as a function of s**2 < 1.0005 (3 - sqrt(8))**2
_LOG64 = (
    0.666666666666667,
    0.399999999998992,
    0.2857142862611452,
    0.22222211112104948,
    0.1818289077802613,
    0.15331666676597175,
    0.146171283998073,
)
_LOG32 = (0.6666668653488159, 0.39988768100738525, 0.2958046793937683)


def _normalised(x: Value) -> tuple[Value, Value, Bits]:
    """Exponent e, and m - 1, with ``x = 2**e m`` and m between sqrt(1/2) and sqrt(2); and e + bias as an integer.

    For x a positive normal number.
    """
    layout = x.format
    root = layout.bits(math.sqrt(0.5))
    shifted = bits(x) + ((layout.bias << layout.fraction) - root)
    biased = shifted >> layout.fraction
    # An integer below 2**52 put in the fraction of 2**52 is that integer above it.
    exponent = (biased | layout.bits(2.0**layout.fraction)).as_float() - (2.0**layout.fraction + layout.bias)
    m = ((shifted & ((1 << layout.fraction) - 1)) + root).as_float()
    return exponent, m - 1.0, biased


def _without_subnormals(x: Value) -> tuple[Value, Value]:
    """Scale subnormal numbers up; also gives the power of two that was taken out."""
    up = x.format.fraction + 2
    subnormal = x < x.format.smallest_normal
    return where(subnormal, x * 2.0**up, x), where(subnormal, x.like(-up), 0.0)


def _at_the_ends(x: Value, logarithm: Value) -> Value:
    """Logarithm of zero, of negative numbers, of infinity."""
    defined = where(x > 0.0, logarithm, where(x == 0.0, x.like(-INFINITY), math.nan))
    return where(x == INFINITY, x, defined)


def _log1p_terms(f: Value) -> tuple[Value, Value, Value]:
    """``f**2 / 2`` and the rest of ``log(1 + f) = f - (f**2 / 2 - rest)``, and s = f / (f + 2); for 1 + f near 1."""
    s = f / (f + 2.0)
    z = s * s
    half_square = f * f * 0.5
    rest = s * muladd(z, polynomial(z, _LOG64 if f.is_double else _LOG32), half_square)
    return half_square, rest, s


def log(x: Value) -> Value:
    """Natural logarithm: ``e ln 2 + log(m)`` for ``x = 2**e m``. Within 1 ulp, 1 ulp."""
    constants = _exponential(x)
    normal, taken_out = _without_subnormals(x)
    exponent, f, _ = _normalised(normal)
    exponent = exponent + taken_out
    half_square, rest, _ = _log1p_terms(f)
    small = half_square - muladd(exponent, constants.ln2_low, rest)
    return _at_the_ends(x, muladd(exponent, constants.ln2_high, f - small))


def log1p(x: Value) -> Value:
    """``log(1 + x)``, accurate near zero: log of the rounded sum, and a correction for what rounding lost. Within 1 ulp, 1 ulp."""
    constants = _exponential(x)
    layout = x.format
    total = x + 1.0
    lost = where(x > 1.0, 1.0 - (total - x), x - (total - 1.0))
    exponent, f, biased = _normalised(total)
    half_square, rest, s = _log1p_terms(f)
    # The loss over 1 + f = (1 + s)/(1 - s), to three digits: it is itself a rounding error.
    doubled = lost * _power_of_two(2 * layout.bias + 1 - biased, x)
    correction = doubled * muladd(s, -0.5, 0.5) * muladd(s, s - 1.0, 1.0)
    small = half_square - (rest + muladd(exponent, constants.ln2_low, correction))
    result = copysign(muladd(exponent, constants.ln2_high, f - small), x)
    return where(x > -1.0, where(x == INFINITY, x, result), where(x == -1.0, x.like(-INFINITY), math.nan))


class _Base(NamedTuple):
    """Constants of the logarithm to another base, each in two parts."""

    inverse: tuple[float, float]  # 1 / ln(base)
    two: tuple[float, float]  # log(2), the first part with zeros at the end


_BASE2 = {
    True: _Base((1.4426950408889634, 2.0355273740931033e-17), (1.0, 0.0)),
    False: _Base((1.4426950216293335, 1.925963033500011e-08), (1.0, 0.0)),
}
_BASE10 = {
    True: _Base((0.4342944819032518, 1.098319650216765e-17), (0.30102999566395283, 2.8363394551044964e-14)),
    False: _Base((0.4342944920063019, -1.0103049952192578e-08), (0.301025390625, 4.605038981195214e-06)),
}


def _logarithm(x: Value, base: _Base) -> Value:
    """``e log(2) + log(m)``; the leading terms of both are added first, rounding once."""
    normal, taken_out = _without_subnormals(x)
    exponent, f, _ = _normalised(normal)
    exponent = exponent + taken_out
    half_square, rest, _ = _log1p_terms(f)
    high = f - half_square
    low = ((f - high) - half_square) + rest
    small = muladd(low, base.inverse[0], muladd(high, base.inverse[1], exponent * base.two[1]))
    return _at_the_ends(x, muladd(high, base.inverse[0], exponent * base.two[0]) + small)


def log2(x: Value) -> Value:
    """Logarithm to base 2, exact for powers of two. Within 1.5 ulp, 1.5 ulp."""
    return _logarithm(x, _BASE2[x.is_double])


def log10(x: Value) -> Value:
    """Logarithm to base 10. Within 1.6 ulp, 1.6 ulp."""
    return _logarithm(x, _BASE10[x.is_double])


# ---- Powers ----------------------------------------------------------------------------------------------------------


class _Sum(NamedTuple):
    """A number held to twice the precision: the sum of two, the second below the rounding error of the first."""

    high: Value
    low: Value


def _fast_sum(a: Value | float, b: Value) -> _Sum:
    """``a + b`` and its rounding error, for abs(a) >= abs(b)."""
    high = a + b
    return _Sum(high, b - (high - a))


def _product(a: _Sum, b: _Sum) -> _Sum:
    high = a.high * b.high
    low = muladd(a.high, b.low, muladd(a.low, b.high, fma(a.high, b.high, -high)))
    return _Sum(high, low)


def _constant(like: Value, high: float, low: float) -> _Sum:
    return _Sum(like.like(high), like.like(low))


# (atanh(s) / s - 1 - s**2 / 3) * 2 / (s**4 ln 2) as a function of s**2 < 1.0005 (3 - sqrt(8))**2
_LOG2_TAIL = (
    0.5770780163555853,
    0.4121985831111439,
    0.3205988979671347,
    0.2623081914726811,
    0.2219527881013087,
    0.19238059233730473,
    0.16888458682789678,
    0.16913708015343112,
)
_TWO_OVER_LN2 = (2.8853900817779268, 4.0710547481862066e-17)
_TWO_THIRDS_OVER_LN2 = (0.9617966939259756, 5.0577616648125907e-17)


def _precise_log2(x: Value) -> _Sum:
    """Logarithm to base 2 of a positive finite double, to about 65 bits.

    With s = f / (f + 2), ``log2(1 + f) = s (c1 + s**2 (c3 + s**2 tail))``; s, c1, c3 and what depends on them in double-double.
    """
    normal, taken_out = _without_subnormals(x)
    exponent, f, _ = _normalised(normal)
    exponent = exponent + taken_out
    below = _fast_sum(2.0, f)
    inverse = 1.0 / below.high
    s_high = f * inverse
    s = _Sum(s_high, fma(-s_high, below.low, fma(-s_high, below.high, f)) * inverse)
    z = _product(s, s)
    tail = z.high * polynomial(z.high, _LOG2_TAIL)
    third = _constant(f, *_TWO_THIRDS_OVER_LN2)
    inner = _fast_sum(third.high, tail)
    inner = _product(z, _Sum(inner.high, inner.low + third.low))
    first = _constant(f, *_TWO_OVER_LN2)
    outer = _fast_sum(first.high, inner.high)
    mantissa = _product(s, _Sum(outer.high, outer.low + (inner.low + first.low)))
    # The exponent is zero, or larger than the logarithm of the mantissa.
    total = exponent + mantissa.high
    lost = mantissa.high - (total - exponent)
    return _fast_sum(total, lost + mantissa.low)


def _positive_power(x: Value, y: Value, *, coarse: bool) -> Value:
    """``x**y`` for x >= 0 in double precision, NaN aside; coarse, where the result will be rounded to single precision."""
    logarithm = _Sum(log2(x), x.like(0.0)) if coarse else _precise_log2(x)
    high_of_log = logarithm.high
    if not coarse:
        high_of_log = where(x == 0.0, x.like(-INFINITY), where(x == INFINITY, x, high_of_log))
    product = y * high_of_log
    high = _clamp(product, -1100.0, 1100.0)
    n, biased = _nearest_integer(high, offset=2 * x.format.bias)
    r = high - n
    if not coarse:
        low = muladd(y, logarithm.low, fma(y, high_of_log, -product))
        r = r + where(abs(product) < 2048.0, low, 0.0)  # beyond, the result is 0 or infinite, and the low part may be NaN
    power = _scaled_by_power(_exp_near_zero(r * math.log(2)), biased)
    return where((x == 1.0) | (y == 0.0), 1.0, power)


def pow(x: Operand, y: Operand) -> Value:
    """``x**y``: ``2**(y log2(x))``, the logarithm in double-double; all special cases of C99. Within 1.2 ulp, 1 ulp."""
    x, y = align(x, y)
    coarse = not x.is_double
    base, exponent = float64(x), float64(y)
    size = _positive_power(abs(base), exponent, coarse=coarse)
    whole = trunc(exponent) == exponent
    half = exponent * 0.5
    odd = whole & (trunc(half) != half)
    signed = where(odd, copysign(size, base), size)
    real = where((base < 0.0) & isfinite(base) & ~whole, math.nan, signed)
    undefined = (isnan(base) & (exponent != 0.0)) | (isnan(exponent) & (base != 1.0))
    power = where(undefined, math.nan, real)
    return float32(power) if coarse else power


@_through_double
def hypot(x: Value, y: Value) -> Value:
    """``sqrt(x**2 + y**2)``, scaled so that the squares neither overflow nor vanish. Within 1.5 ulp, 1 ulp."""
    x, y = abs(x), abs(y)
    largest = where(x > y, x, y)
    scale = where(largest > 2.0**500, 2.0**-600, where(largest < 2.0**-400, x.like(2.0**600), 1.0))
    back = where(largest > 2.0**500, 2.0**600, where(largest < 2.0**-400, x.like(2.0**-600), 1.0))
    a, b = x * scale, y * scale
    length = sqrt(muladd(a, a, b * b)) * back
    return where(isinf(x) | isinf(y), INFINITY, length)


def fmod(x: Operand, y: Operand) -> Value:
    """Remainder of x / y with the sign of x, exact; from the C library."""
    return call_lanes("fmod", x, y)


# ---- Circular functions ----------------------------------------------------------------------------------------------

# (s - sin(s)) / s**3 and (cos(s) - 1 + s**2/2) / s**4 as functions of s**2 < 1.001 (pi/4)**2
_SIN = (
    0.16666666666666666,
    -0.008333333333330936,
    0.00019841269836740532,
    -2.7557316093198404e-06,
    2.5051129896450185e-08,
    -1.5917988979397435e-10,
)
_COS = (
    0.041666666666666664,
    -0.0013888888888887389,
    2.48015872987544e-05,
    -2.755731726587808e-07,
    2.087614504941318e-09,
    -1.138254464534925e-11,
)

# The same, shorter
_COARSE_SIN = (0.16666666663844049, -0.008333331870341349, 0.00019840084376422702, -2.724962008007533e-06)
_COARSE_COS = (0.041666666664311826, -0.0013888887668370663, 2.480059840835012e-05, -2.730070403808665e-07)

# pi/2 in three parts of 33, 33 and 53 bits: their products with integers below 2**20 are exact, but for the last
_HALF_PI = (1.5707963267341256, 6.077100506303966e-11, 2.0222662487959506e-21)
_LARGEST_ANGLE = 2.0**20


class _Wave(NamedTuple):
    """Sine and cosine of r, where ``x = n pi/2 + r`` with abs(r) below pi/4."""

    turns: Bits  # n, in the low bits
    sine: Value
    cosine: Value

    def after(self, quarter_turns: int) -> Value:
        """Sine of x plus some quarter turns."""
        turns = self.turns + quarter_turns
        value = where(turns.is_set(0), self.cosine, self.sine)
        return (bits(value) ^ ((turns & 2) << (value.format.size - 2))).as_float()

    def tangent(self) -> Value:
        """Tangent of x."""
        odd = self.turns.is_set(0)
        return where(odd, -self.cosine, self.sine) / where(odd, self.sine, self.cosine)


def _wave(x: Value) -> _Wave:
    """Reduce a moderate double to ``r - excess``, an angle held to twice the precision."""
    n, turns = _nearest_integer(x, 2 / math.pi)
    first = muladd(n, -_HALF_PI[0], x)
    second = muladd(n, -_HALF_PI[1], first)
    lost = (first - second) - n * _HALF_PI[1]
    third = n * _HALF_PI[2] - lost
    r = second - third
    excess = (r - second) + third
    z = r * r
    sine = r - muladd(z * r, polynomial(z, _SIN), excess)
    half = z * 0.5
    most = 1.0 - half
    cosine = most + (((1.0 - most) - half) + muladd(r, excess, z * (z * polynomial(z, _COS))))
    return _Wave(turns, sine, cosine)


def _coarse_wave(x: Value) -> _Wave:
    """Reduce a moderate double that was a single: half as many digits will do."""
    n, turns = _nearest_integer(x, 2 / math.pi)
    r = muladd(n, -_HALF_PI[1], muladd(n, -_HALF_PI[0], x))
    z = r * r
    sine = r * muladd(-z, polynomial(z, _COARSE_SIN), 1.0)
    cosine = muladd(z, muladd(z, polynomial(z, _COARSE_COS), -0.5), 1.0)
    return _Wave(turns, sine, cosine)


def _circular(x: Value, of_wave: Callable[[_Wave], Value], symbol: str) -> Value:
    """Compute in double precision; from the C library where the reduction is not exact any more."""
    angle = float64(x)
    moderate = of_wave(_wave(angle) if x.is_double else _coarse_wave(angle))
    result = rarely(abs(angle) > _LARGEST_ANGLE, moderate, lambda: call_lanes(symbol, angle))
    return result if x.is_double else float32(result)


def sin(x: Value) -> Value:
    """Sine. Within 1 ulp, 1 ulp; above a million radians from the C library."""
    return _circular(x, lambda wave: wave.after(0), "sin")


def cos(x: Value) -> Value:
    """Cosine. Within 1 ulp, 1 ulp; above a million radians from the C library."""
    return _circular(x, lambda wave: wave.after(1), "cos")


def tan(x: Value) -> Value:
    """Tangent: sine over cosine. Within 2.5 ulp, 1 ulp; above a million radians from the C library."""
    return _circular(x, _Wave.tangent, "tan")


# (t - atan(t)) / t**3 as a function of t**2 < 0.66**2
_ATAN64 = (
    0.3333333333333333,
    -0.19999999999998458,
    0.14285714285448603,
    -0.1111111109298794,
    0.09090908440859424,
    -0.07692293584058214,
    0.0666646564159431,
    -0.0588037381846034,
    0.05249245606674334,
    -0.04690618976510973,
    0.04078361874157361,
    -0.032440431711566076,
    0.02124341168627798,
    -0.009710654827910926,
    0.002233190322634193,
)
_ATAN32 = (
    0.3333333134651184,
    -0.19999852776527405,
    0.1428021788597107,
    -0.11032336205244064,
    0.085364431142807,
    -0.05569375306367874,
    0.020601481199264526,
)


def _angle_of_slope(rise: Value, run: Value) -> Value:
    """``atan(rise / run)`` for rise and run not negative, whose sum does not overflow.

    Steep slopes are seen from the vertical, ``pi/2 + atan(-run / rise)``, and middling ones from the diagonal,
    ``pi/4 + atan((rise - run) / (rise + run))``.
    """
    steep = rise > run * 2.414213562373095
    flat = rise <= run * 0.66
    t = where(steep, -run, where(flat, rise, rise - run)) / where(steep, rise, where(flat, run, rise + run))
    high, low = math.pi / 4, 3.061616997868383e-17
    if not rise.is_double:
        high, low = 0.785398006439209, 1.5695652e-07
    z = t * t
    bend = t * z * polynomial(z, _ATAN64 if rise.is_double else _ATAN32)
    base = where(steep, rise.like(2 * high), where(flat, 0.0, rise.like(high)))
    base_low = where(steep, rise.like(2 * low), where(flat, 0.0, rise.like(low)))
    return base + (t - (bend - base_low))


def atan(x: Value) -> Value:
    """Arc tangent. Within 1 ulp, 1.5 ulp."""
    return copysign(_angle_of_slope(abs(x), x.like(1.0)), x)


def atan2(y: Operand, x: Operand) -> Value:
    """Angle of the point (x, y), from -pi to pi, with the signs of zeros as in C. Within 2 ulp, 2 ulp."""
    y, x = align(y, x)
    rise, run = abs(y), abs(x)
    both_infinite = isinf(rise) & isinf(run)
    larger = where(rise > run, rise, run)
    very_small = larger < 2.0 ** (x.format.fraction - x.format.bias)
    scale = where(larger > 2.0 ** (x.format.bias - 3), 0.125, where(very_small, x.like(2.0**x.format.fraction), 1.0))
    rise = where(both_infinite, 1.0, rise * scale)
    run = where(both_infinite, 1.0, run * scale)
    run = where((rise == 0.0) & (run == 0.0), 1.0, run)
    first_quadrant = _angle_of_slope(rise, run)
    pi_low = 1.2246467991473532e-16 if x.is_double else -8.742277657347586e-08
    behind = bits(x).is_set(x.format.size - 1)
    return copysign(where(behind, math.pi - (first_quadrant - pi_low), first_quadrant), y)


# (asin(s) - s) / s**3 as a function of s**2 < 0.2501
_ASIN64 = (
    0.16666666666666669,
    0.07499999999998425,
    0.04464285714637338,
    0.030381944137085216,
    0.022372173002005596,
    0.017352391265909227,
    0.013971235301124539,
    0.011478952690257387,
    0.010324318288744113,
    0.00545087818772055,
    0.017419357964884856,
    -0.014881409392818066,
    0.02877844261259304,
)
_ASIN32 = (
    0.1666666567325592,
    0.07500094920396805,
    0.044599320739507675,
    0.031101727858185768,
    0.017143717035651207,
    0.03370072692632675,
)


def _half_angle(x: Value) -> tuple[Value, Value, Value]:
    """Whether abs(x) < 1/2, and the parts of ``asin(s) = s + bend``: s = abs(x) there, elsewhere sqrt((1 - abs(x)) / 2)."""
    size = abs(x)
    small = size < 0.5
    z = where(small, x * x, muladd(size, -0.5, 0.5))
    s = where(small, size, sqrt(z))
    return small, s, s * z * polynomial(z, _ASIN64 if x.is_double else _ASIN32)


def asin(x: Value) -> Value:
    """Arc sine; towards the ends ``pi/2 - 2 asin(sqrt((1 - abs(x)) / 2))``. Within 2 ulp, 2 ulp."""
    small, s, bend = _half_angle(x)
    half_pi, low = (math.pi / 2, 6.123233995736766e-17) if x.is_double else (1.570796251296997, 7.549789415861596e-08)
    return copysign(where(small, s + bend, half_pi - (2.0 * s + (2.0 * bend - low))), x)


def acos(x: Value) -> Value:
    """Arc cosine, by the formulas of the arc sine. Within 2 ulp, 2 ulp."""
    small, s, bend = _half_angle(x)
    half_pi, low = (math.pi / 2, 6.123233995736766e-17) if x.is_double else (1.570796251296997, 7.549789415861596e-08)
    inner = half_pi - (copysign(s, x) - (low - copysign(bend, x)))
    twice = 2.0 * s + 2.0 * bend
    outer = where(x < 0.0, 2 * half_pi - (twice - 2 * low), twice)
    return where(small, inner, outer)


# ---- Inverse hyperbolic functions ------------------------------------------------------------------------------------


def _log1p_or_twice(x: Value, otherwise: Value) -> Value:
    """``log(2 x)`` where x is so large that its square might overflow, ``log1p(otherwise)`` elsewhere."""
    large = x > 2.0 ** (x.format.bias // 2 - 3)
    return log1p(where(large, x, otherwise)) + where(large, x.like(math.log(2)), 0.0)


def asinh(x: Value) -> Value:
    """Inverse hyperbolic sine: ``log1p(a + a**2 / (1 + sqrt(1 + a**2)))`` with a = abs(x). Within 2 ulp, 2 ulp."""
    size = abs(x)
    square = size * size
    return copysign(_log1p_or_twice(size, size + square / (sqrt(square + 1.0) + 1.0)), x)


def acosh(x: Value) -> Value:
    """Inverse hyperbolic cosine: ``log1p(t + sqrt(t (x + 1)))`` with t = x - 1. Within 2.5 ulp, 2.5 ulp."""
    t = x - 1.0
    return where(x < 1.0, math.nan, _log1p_or_twice(x, t + sqrt(t * (x + 1.0))))


def atanh(x: Value) -> Value:
    """Inverse hyperbolic tangent: ``log1p(2 a / (1 - a)) / 2`` with a = abs(x). Within 2 ulp, 2 ulp."""
    size = abs(x)
    return copysign(log1p((size + size) / (1.0 - size)) * 0.5, x)


# ---- Error function --------------------------------------------------------------------------------------------------

# erf(x) / x as a function of x**2 < 1
_ERF = (
    1.1283791670955126,
    -0.37612638903183543,
    0.11283791670945006,
    -0.02686617064323777,
    0.0052239776071164225,
    -0.0008548325975389692,
    0.00012055294904839707,
    -1.492473690741966e-05,
    1.6447424703317362e-06,
    -1.6208483801871705e-07,
    1.3720064546777686e-08,
    -7.795898827002142e-10,
)

# erfc(x) exp(x**2) (1 + 2 x) as a function of t = (x - 4) / (x + 4), for 0 < x < 28
_ERFC = (
    1.2329951186255526,
    -0.1396211168405629,
    0.01537965210262074,
    0.06809705425473732,
    -0.10103906603635213,
    0.09373283499679412,
    -0.06633036581152939,
    0.03716751556249286,
    -0.016197734059115006,
    0.005031969755895426,
    -0.00075777334141333,
    -0.00019925550755614952,
    0.000150622243948303,
    -2.4403169244974074e-05,
    -1.1224789135154701e-05,
    5.7178872846321855e-06,
    3.0135049944875397e-07,
    -8.351619688696847e-07,
    6.270727157198311e-08,
    1.1534943745754157e-07,
    -7.71541861441783e-09,
    -1.3670989863347383e-08,
    -1.8206098680308682e-09,
)


def _positive_erfc(x: Value) -> Value:
    """Complementary error function for 0 <= x <= 28: ``exp(-x**2) g(t) / (1 + 2 x)``, x**2 with its rounding error."""
    t = (x - 4.0) / (x + 4.0)
    scaled = polynomial(t, _ERFC, careful=3) / muladd(x, 2.0, 1.0)
    square = x * x
    lost = fma(x, x, -square)
    n, biased = _nearest_integer(square, -1 / math.log(2), offset=2 * x.format.bias)
    r = muladd(n, -_EXP64.ln2_low, muladd(n, -_EXP64.ln2_high, -square) - lost)
    return _scaled_by_power(_exp_near_zero(r) * scaled, biased)


def _small_erf(x: Value) -> Value:
    """Error function of a number below 1 in size."""
    z = x * x
    return muladd(x, _ERF[0], x * (z * polynomial(z, _ERF[1:], careful=1)))


@_through_double
def erfc(x: Value) -> Value:
    """Complementary error function, ``1 - erf(x)``. Within 3.5 ulp, 1 ulp."""
    size = abs(x)
    positive = _positive_erfc(minimum(size, 28.0))
    return where(size < 0.47, 1.0 - _small_erf(x), where(x < 0.0, 2.0 - positive, positive))


@_through_double
def erf(x: Value) -> Value:
    """Error function: a polynomial up to 1, ``1 - erfc(x)`` beyond. Within 2 ulp, 1 ulp."""
    size = abs(x)
    return copysign(where(size < 1.0, _small_erf(size), 1.0 - _positive_erfc(minimum(size, 28.0))), x)


# ---- Gamma function --------------------------------------------------------------------------------------------------


def lgamma(x: Value) -> Value:
    """Logarithm of the absolute value of the gamma function, from the C library.

    Within 5 ulp of max(1, abs(lgamma)) with the GNU library, 1 ulp.
    """
    return call_lanes("lgamma", x)


# (log(x) - 1/(2 x) - digamma(x)) x**2 and (trigamma(x) - 1/x - 1/(2 x**2)) x**3 as functions of 1/x**2 < 1/36
_DIGAMMA = (
    0.08333333333333333,
    -0.008333333333329406,
    0.0039682539644546435,
    -0.004166665241793544,
    0.007575487397643579,
    -0.0210636118621335,
    0.08143630505895555,
    -0.3678576332203617,
    1.239167986437427,
)
_TRIGAMMA = (
    0.16666666666666666,
    -0.033333333333261904,
    0.023809523740380884,
    -0.033333307366846185,
    0.07575264096686857,
    -0.2525785652536767,
    1.1316812833788938,
    -5.686494459221039,
    20.39907980934681,
)
_ASYMPTOTIC = 6  # from here on the series in 1/x is used


class _Climb(NamedTuple):
    """A number x > 0 raised by whole steps to at least 6."""

    top: Value
    first: Value  # 1/x, or 1/x**2, of the first step, which is the largest by far near a pole
    others: Value  # the sum over the others


def _climb(x: Value, *, squares: bool) -> _Climb:
    """Climb from x; the sum over the steps is kept as one fraction, so that there is one division."""
    step = x < float(_ASYMPTOTIC)
    inverse = where(step, 1.0 / x, 0.0)
    x = where(step, x + 1.0, x)
    above, below = x.like(0.0), x.like(1.0)
    for _ in range(_ASYMPTOTIC - 1):
        step = x < float(_ASYMPTOTIC)
        factor = where(step, x * x if squares else x, 1.0)
        above = muladd(above, factor, where(step, below, 0.0))
        below = below * factor
        x = where(step, x + 1.0, x)
    return _Climb(x, inverse * inverse if squares else inverse, above / below)


@_through_double
def digamma(x: Value) -> Value:
    """Derivative of lgamma: recurrence up to 6, then the asymptotic series; reflected below zero.

    Within 8 ulp of max(1, abs(digamma)), 1 ulp: digamma has zeros, near which only the absolute error is small.
    At 0 it is infinite, with the sign of -x; at negative integers it is NaN, as in torch.
    """
    negative = x <= 0.0
    climb = _climb(where(negative, 1.0 - x, x), squares=False)
    inverse = 1.0 / climb.top
    z = inverse * inverse
    positive = (log(climb.top) - muladd(inverse, 0.5, z * polynomial(z, _DIGAMMA)) - climb.others) - climb.first

    def reflected() -> Value:
        turn = (x - round(x)) * math.pi
        wave = _wave(turn)
        below = where(turn == 0.0, math.nan, positive - math.pi * wave.after(1) / wave.after(0))
        return where(x == 0.0, copysign(INFINITY, -x), below)

    return where(x == INFINITY, x, rarely(negative, positive, reflected))


@_through_double
def trigamma(x: Value) -> Value:
    """Second derivative of lgamma: recurrence up to 6, then the asymptotic series; reflected below zero. Within 8 ulp, 1 ulp.

    It is infinite at zero and at negative integers.
    """
    negative = x <= 0.0
    climb = _climb(where(negative, 1.0 - x, x), squares=True)
    inverse = 1.0 / climb.top
    z = inverse * inverse
    positive = climb.first + (climb.others + (inverse + (0.5 * z + z * inverse * polynomial(z, _TRIGAMMA))))

    def reflected() -> Value:
        ratio = math.pi / _wave((x - round(x)) * math.pi).after(0)
        return ratio * ratio - positive

    return rarely(negative, positive, reflected)


# ---- The table -------------------------------------------------------------------------------------------------------

FUNCTIONS: Mapping[str, Callable[..., Value]] = MappingProxyType(
    {
        function.__name__: function
        for function in (
            *(abs, sign, copysign, minimum, maximum, where, isnan, isinf, isfinite, float32, float64),
            *(floor, ceil, round, trunc, sqrt, pow, hypot, fmod),
            *(exp, exp2, expm1, log, log2, log10, log1p),
            *(sin, cos, tan, asin, acos, atan, atan2),
            *(sinh, cosh, tanh, asinh, acosh, atanh),
            *(erf, erfc, lgamma, digamma, trigamma),
        )
    }
)
"""Functions by the names that traced source calls them by."""

BOUNDS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "exp": (1.0, 1.0),
        "exp2": (1.2, 1.2),
        "expm1": (1.5, 1.5),
        "log": (1.0, 1.0),
        "log1p": (1.0, 1.0),
        "log2": (1.5, 1.5),
        "log10": (1.6, 1.6),
        "pow": (1.2, 1.0),
        "hypot": (1.5, 1.0),
        "sin": (1.0, 1.0),
        "cos": (1.0, 1.0),
        "tan": (2.5, 1.0),
        "asin": (2.0, 2.0),
        "acos": (2.0, 2.0),
        "atan": (1.0, 1.5),
        "atan2": (2.0, 2.0),
        "sinh": (1.8, 1.8),
        "cosh": (1.5, 1.5),
        "tanh": (1.8, 1.8),
        "asinh": (2.0, 2.0),
        "acosh": (2.5, 2.5),
        "atanh": (2.0, 2.0),
        "erf": (2.0, 1.0),
        "erfc": (3.5, 1.0),
        "lgamma": (5.0, 1.0),
        "digamma": (8.0, 1.0),
        "trigamma": (8.0, 1.0),
    }
)
"""Bounds on the error in ulp, (double, single)."""
