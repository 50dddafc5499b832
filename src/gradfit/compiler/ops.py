"""The table of operators: what each elementwise ATen operator does to single numbers, as a formula on nodes.

A row's formula takes the operator's own arguments, each tensor one of its elements, and is computed in the precision of the
operator's result. Formulas follow torch's CPU kernels, rounding included where they matter step by step
(``addcmul`` is ``self + (value*a)*b`` there, so it is here). ``domain`` gives one interval per tensor argument, from which the
tests draw points; the awkward ones (0, -0, inf, NaN) are added by them.

To add an operator: a row here. Its derivative needs no row of its own where torch writes it with operators that have one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gradfit.compiler.graph import Node, Operand, Untraceable, apply, cast, constant, where

Interval = tuple[float, float]
REAL: Interval = (-20.0, 20.0)
POSITIVE: Interval = (1e-3, 50.0)
UNIT: Interval = (-1.0, 1.0)
CONDITION: Interval = (0.0, 1.0)


@dataclass(frozen=True)
class Op:
    """One row.

    Attributes
    ----------
    formula
        ``formula(*arguments, **options) -> Node``.
    domain
        One interval per tensor argument, for the tests.
    conditions
        Positions of arguments that are conditions; the others are numbers in the result's precision.
    """

    formula: Callable[..., Node]
    domain: tuple[Interval, ...]
    conditions: frozenset[int] = frozenset()


def _function(name: str) -> Callable[..., Node]:
    return lambda *operands: apply(name, *operands)


exp, expm1, log, log1p, sqrt = map(_function, ("exp", "expm1", "log", "log1p", "sqrt"))
absolute, floor, ceil, trunc, rounded, sign = map(_function, ("abs", "floor", "ceil", "trunc", "round", "sign"))
isnan, isinf, sin, cos, fmod, minimum, maximum = map(_function, ("isnan", "isinf", "sin", "cos", "fmod", "minimum", "maximum"))


def _equal(a: Operand, b: Operand) -> Node:
    return apply("eq", a, b)


def _differs(a: Operand, b: Operand) -> Node:
    return apply("ne", a, b)


def power(base: Operand, exponent: Operand) -> Node:
    """``base ** exponent``; small whole exponents by multiplication, as torch does for 2 and 3."""
    if isinstance(exponent, Node) and exponent.operation == "constant":
        exponent = exponent.value
    if isinstance(base, Node) and isinstance(exponent, (int, float)) and not isinstance(exponent, bool):
        simple = _simple_power(base, float(exponent))
        if simple is not None:
            return simple
    return apply("pow", base, exponent)


def _simple_power(base: Node, exponent: float) -> Node | None:
    if exponent == 0:
        return constant(1.0, base.dtype)
    if exponent == 0.5:
        return sqrt(base)
    if exponent == -0.5:
        return 1.0 / sqrt(base)
    if not (exponent.is_integer() and abs(exponent) <= 8):
        return None
    result: Node | None = None
    square, left = base, int(abs(exponent))
    if left == 3:
        result = base * base * base
        left = 0
    while left:
        if left % 2:
            result = square if result is None else result * square
        left //= 2
        if left:
            square = square * square
    assert result is not None
    return 1.0 / result if exponent < 0 else result


def _divide(a: Operand, b: Operand, *, rounding_mode: str | None = None) -> Node:
    quotient = apply("div", a, b)
    if rounding_mode is None:
        return quotient
    return trunc(quotient) if rounding_mode == "trunc" else _floor_divide(a, b)


def _floor_divide(a: Operand, b: Operand) -> Node:
    """Floor of a quotient; from the remainder, so that rounding of the quotient does not push it over the edge."""
    quotient, rest = apply("div", a, b), fmod(a, b)
    down = _differs(rest, 0.0) & (_negative(b) ^ (rest < 0.0))
    near = (a - rest) / b
    near = where(down, near - 1.0, near)
    below = floor(near)
    whole = where(near - below > 0.5, below + 1.0, below)
    whole = where(_equal(near, 0.0), apply("copysign", 0.0, quotient), whole)
    return where(_equal(b, 0.0), quotient, whole)


def remainder(a: Operand, b: Operand) -> Node:
    """``a - floor(a / b) * b``: has the sign of the divisor."""
    rest = fmod(a, b)
    return where(_differs(rest, 0.0) & (_negative(b) ^ (rest < 0.0)), rest + b, rest)


def _negative(x: Operand) -> Node:
    return apply("lt", x, 0.0)


def _clamp(x: Node, lower: Operand | None = None, upper: Operand | None = None) -> Node:
    result = x if lower is None else _at_least(x, lower)
    return result if upper is None else _at_most(result, upper)


def _at_least(x: Node, lower: Operand) -> Node:
    """Larger of two; between 0 and -0 torch takes the limit, unless that is a plain number."""
    return maximum(x, lower) if isinstance(lower, Node) else maximum(lower, x)


def _at_most(x: Node, upper: Operand) -> Node:
    return minimum(x, upper) if isinstance(upper, Node) else minimum(upper, x)


def _lerp(start: Node, end: Node, weight: Operand) -> Node:
    near, far = start + weight * (end - start), end + (weight - 1.0) * (end - start)
    if isinstance(weight, Node):
        return where(absolute(weight) < 0.5, near, far)
    return near if abs(weight) < 0.5 else far


def _sigmoid(x: Node) -> Node:
    return 1.0 / (1.0 + exp(-x))


def _softplus(x: Node, beta: float = 1, threshold: float = 20) -> Node:
    scaled = x * beta
    return where(scaled > threshold, x, log1p(exp(scaled)) / beta)


def _softplus_backward(grad: Node, x: Node, beta: float, threshold: float) -> Node:
    grown = exp(x * beta)
    return where(x * beta > threshold, grad, grad * grown / (grown + 1.0))


def _logaddexp(a: Node, b: Node) -> Node:
    return where(isinf(a) & _equal(a, b), a, maximum(a, b) + log1p(exp(-absolute(a - b))))


def _logaddexp2(a: Node, b: Node) -> Node:
    small = log1p(apply("exp2", -absolute(a - b))) * (1 / math.log(2))
    return where(isinf(a) & _equal(a, b), a, maximum(a, b) + small)


def _sinc(x: Node) -> Node:
    angle = x * math.pi
    return where(_equal(x, 0.0), constant(1.0, x.dtype), sin(angle) / angle)


def _xlogy(x: Operand, y: Operand) -> Node:
    product = apply("mul", x, log(y) if isinstance(y, Node) else _logarithm(y))
    return where(_differs(y, y), math.nan, where(_equal(x, 0.0), constant(0.0, product.dtype), product))


def _logarithm(number: float) -> float:
    return math.log(number) if number > 0 else -math.inf if number == 0 else math.nan


def _gelu(x: Node, *, approximate: str = "none") -> Node:
    if approximate == "tanh":
        return 0.5 * x * (1.0 + apply("tanh", math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    return x * 0.5 * (1.0 + apply("erf", x * math.sqrt(0.5)))


def _gelu_backward(grad: Node, x: Node, *, approximate: str = "none") -> Node:
    if approximate == "tanh":
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
        bent = apply("tanh", inner)
        slope = math.sqrt(2 / math.pi) * (1.0 + 3 * 0.044715 * x * x)
        return grad * (0.5 * (1.0 + bent) + 0.5 * x * (1.0 - bent * bent) * slope)
    share = 0.5 * (1.0 + apply("erf", x * math.sqrt(0.5)))
    return grad * (share + x * exp(x * x * -0.5) * (1 / math.sqrt(2 * math.pi)))


def _huber(x: Node, target: Node, reduction: int = 1, delta: float = 1.0) -> Node:
    off = absolute(x - target)
    return where(off < delta, 0.5 * off * off, delta * (off - 0.5 * delta))


def _huber_backward(grad: Node, x: Node, target: Node, reduction: int, delta: float) -> Node:
    off = x - target
    return where(off < -delta, -delta * grad, where(off > delta, delta * grad, off * grad))


def _smooth_l1(x: Node, target: Node, reduction: int = 1, beta: float = 1.0) -> Node:
    off = absolute(x - target)
    return off if beta == 0 else where(off < beta, 0.5 * off * off / beta, off - 0.5 * beta)


def _smooth_l1_backward(grad: Node, x: Node, target: Node, reduction: int, beta: float) -> Node:
    off = x - target
    return where(off < -beta, -grad, where(off > beta, grad, off * grad / beta if beta else sign(off) * grad))


def _round(x: Node, *, decimals: int = 0) -> Node:
    if decimals == 0:
        return rounded(x)
    ten = 10.0 ** abs(decimals)
    return rounded(x * ten) / ten if decimals > 0 else rounded(x / ten) * ten


def _nan_to_num(x: Node, nan: float | None = None, posinf: float | None = None, neginf: float | None = None) -> Node:
    largest = 1.7976931348623157e308 if x.dtype == "double" else 3.4028234663852886e38
    known = where(isnan(x), constant(0.0 if nan is None else nan, x.dtype), x)
    below = where(_equal(x, -math.inf), constant(-largest if neginf is None else neginf, x.dtype), known)
    return where(_equal(x, math.inf), constant(largest if posinf is None else posinf, x.dtype), below)


def _polygamma(order: Operand, x: Node) -> Node:
    if isinstance(order, Node) or order not in (0, 1):
        raise Untraceable(f"it uses polygamma of order {order}, which the compiled engine does not have")
    return apply("trigamma" if order == 1 else "digamma", x)


def _elu(x: Node, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Node:
    return where(x < 0.0, expm1(x * input_scale) * (alpha * scale), x * scale)


def _elu_backward(grad: Node, alpha: float, scale: float, input_scale: float, is_result: bool, x: Node) -> Node:
    below = input_scale * (x + alpha * scale) if is_result else input_scale * alpha * scale * exp(x * input_scale)
    return where(x <= 0.0, grad * below, grad * scale)


def _log_sigmoid_backward(grad: Node, x: Node) -> Node:
    small = exp(-absolute(x))
    share = small / (1.0 + small)
    return grad * where(x < 0.0, 1.0 - share, share)


def _mish_backward(grad: Node, x: Node) -> Node:
    bent = apply("tanh", log1p(exp(x)))
    return grad * (bent + x * _sigmoid(x) * (1.0 - bent * bent))


def _heaviside(x: Node, at_zero: Node) -> Node:
    step = where(x > 0.0, constant(1.0, x.dtype), constant(0.0, x.dtype))
    return where(_equal(x, 0.0), at_zero, step)


def _fmax(a: Node, b: Node) -> Node:
    return where(isnan(a), b, where(isnan(b), a, maximum(b, a)))


def _fmin(a: Node, b: Node) -> Node:
    return where(isnan(a), b, where(isnan(b), a, minimum(b, a)))


def _copysign(a: Node, b: Operand) -> Node:
    return apply("copysign", a, b)


def _signbit(x: Node) -> Node:
    return apply("copysign", constant(1.0, x.dtype), x) < 0.0


def _unary(name: str, domain: Interval = REAL) -> Op:
    return Op(_function(name), (domain,))


def _compare(name: str) -> Op:
    return Op(lambda a, b: apply(name, a, b), (REAL, REAL))


def _logical(formula: Callable[..., Node], count: int) -> Op:
    return Op(formula, (CONDITION,) * count, frozenset(range(count)))


OPS: Mapping[str, Op] = {
    # arithmetic
    "add": Op(lambda a, b, *, alpha=1: a + b if _is_one(alpha) else a + alpha * b, (REAL, REAL)),
    "sub": Op(lambda a, b, *, alpha=1: a - b if _is_one(alpha) else a - alpha * b, (REAL, REAL)),
    "rsub": Op(lambda a, b, alpha=1: b - a if _is_one(alpha) else b - alpha * a, (REAL, REAL)),
    "mul": Op(lambda a, b: a * b, (REAL, REAL)),
    "div": Op(_divide, (REAL, POSITIVE)),
    "floor_divide": Op(_floor_divide, (REAL, POSITIVE)),
    "neg": Op(lambda x: -x, (REAL,)),
    "reciprocal": Op(lambda x: 1.0 / x, (POSITIVE,)),
    "addcmul": Op(lambda s, a, b, *, value=1: s + (a if _is_one(value) else value * a) * b, (REAL, REAL, REAL)),
    "addcdiv": Op(lambda s, a, b, *, value=1: s + (a if _is_one(value) else value * a) / b, (REAL, REAL, POSITIVE)),
    "lerp": Op(_lerp, (REAL, REAL, (0.0, 1.0))),
    # powers
    "pow": Op(power, (POSITIVE, (-3.0, 3.0))),
    "sqrt": _unary("sqrt", POSITIVE),
    "rsqrt": Op(lambda x: 1.0 / sqrt(x), (POSITIVE,)),
    "hypot": Op(_function("hypot"), (REAL, REAL)),
    # exponentials and logarithms
    "exp": _unary("exp"),
    "exp2": _unary("exp2"),
    "expm1": _unary("expm1"),
    "log": _unary("log", POSITIVE),
    "log2": _unary("log2", POSITIVE),
    "log10": _unary("log10", POSITIVE),
    "log1p": _unary("log1p", POSITIVE),
    "logaddexp": Op(_logaddexp, (REAL, REAL)),
    "logaddexp2": Op(_logaddexp2, (REAL, REAL)),
    "xlogy": Op(_xlogy, (REAL, POSITIVE)),
    "logit": Op(lambda x, eps=None: _logit(x, eps), ((0.01, 0.99),)),
    "logit_backward": Op(lambda grad, x, eps=None: _logit_backward(grad, x, eps), (REAL, (0.01, 0.99))),
    # trigonometry
    "sin": _unary("sin"),
    "cos": _unary("cos"),
    "tan": _unary("tan"),
    "asin": _unary("asin", UNIT),
    "acos": _unary("acos", UNIT),
    "atan": _unary("atan"),
    "atan2": Op(_function("atan2"), (REAL, REAL)),
    "sinc": Op(_sinc, (REAL,)),
    "deg2rad": Op(lambda x: x * (math.pi / 180), (REAL,)),
    "rad2deg": Op(lambda x: x * (180 / math.pi), (REAL,)),
    # hyperbolic
    "sinh": _unary("sinh"),
    "cosh": _unary("cosh"),
    "tanh": _unary("tanh"),
    "asinh": _unary("asinh"),
    "acosh": _unary("acosh", (1.0, 50.0)),
    "atanh": _unary("atanh", UNIT),
    "tanh_backward": Op(lambda grad, y: grad * (1.0 - y * y), (REAL, UNIT)),
    # special functions
    "sigmoid": Op(_sigmoid, (REAL,)),
    "sigmoid_backward": Op(lambda grad, y: grad * (1.0 - y) * y, (REAL, CONDITION)),
    "softplus": Op(_softplus, (REAL,)),
    "softplus_backward": Op(_softplus_backward, (REAL, REAL)),
    "erf": _unary("erf"),
    "erfc": _unary("erfc"),
    "lgamma": _unary("lgamma", POSITIVE),
    "digamma": _unary("digamma", POSITIVE),
    "polygamma": Op(_polygamma, (POSITIVE,)),
    "log_sigmoid_forward": Op(lambda x: minimum(x, 0.0) - log1p(exp(-absolute(x))), (REAL,)),
    "log_sigmoid_backward": Op(lambda grad, x, kept: _log_sigmoid_backward(grad, x), (REAL, REAL, REAL)),
    "silu": Op(lambda x: x / (1.0 + exp(-x)), (REAL,)),
    "silu_backward": Op(lambda grad, x: grad * _sigmoid(x) * (1.0 + x * (1.0 - _sigmoid(x))), (REAL, REAL)),
    "gelu": Op(_gelu, (REAL,)),
    "gelu_backward": Op(_gelu_backward, (REAL, REAL)),
    "elu": Op(_elu, (REAL,)),
    "elu_backward": Op(_elu_backward, (REAL, REAL)),
    "celu": Op(lambda x, alpha=1.0: _elu(x, alpha, 1.0, 1.0 / alpha), (REAL,)),
    "mish": Op(lambda x: x * apply("tanh", log1p(exp(x))), (REAL,)),
    "mish_backward": Op(_mish_backward, (REAL, REAL)),
    "relu": Op(lambda x: maximum(0.0, x), (REAL,)),
    "leaky_relu": Op(lambda x, slope=0.01: where(x > 0.0, x, x * slope), (REAL,)),
    "leaky_relu_backward": Op(lambda grad, x, slope, is_result: where(x > 0.0, grad, grad * slope), (REAL, REAL)),
    "threshold": Op(lambda x, edge, value: where(x <= edge, constant(value, x.dtype), x), (REAL,)),
    "threshold_backward": Op(lambda grad, x, edge: where(x <= edge, constant(0.0, x.dtype), grad), (REAL, REAL)),
    "hardtanh": Op(lambda x, lower=-1, upper=1: _clamp(x, lower, upper), (REAL,)),
    "hardtanh_backward": Op(
        lambda grad, x, lower, upper: where((x <= lower) | (x >= upper), constant(0.0, x.dtype), grad), (REAL, REAL)
    ),
    # steps
    "abs": _unary("abs"),
    "sign": _unary("sign"),
    "sgn": _unary("sign"),
    "signbit": Op(_signbit, (REAL,)),
    "copysign": Op(_copysign, (REAL, REAL)),
    "heaviside": Op(_heaviside, (REAL, REAL)),
    "floor": _unary("floor"),
    "ceil": _unary("ceil"),
    "trunc": _unary("trunc"),
    "round": Op(_round, (REAL,)),
    "frac": Op(lambda x: x - trunc(x), (REAL,)),
    "fmod": Op(fmod, (REAL, POSITIVE)),
    "remainder": Op(remainder, (REAL, POSITIVE)),
    "minimum": Op(minimum, (REAL, REAL)),
    "maximum": Op(maximum, (REAL, REAL)),
    "fmin": Op(_fmin, (REAL, REAL)),
    "fmax": Op(_fmax, (REAL, REAL)),
    "clamp": Op(_clamp, (REAL,)),
    "clamp_min": Op(_at_least, (REAL,)),
    "clamp_max": Op(_at_most, (REAL,)),
    "nan_to_num": Op(_nan_to_num, (REAL,)),
    # comparisons, conditions, choice
    "lt": _compare("lt"),
    "le": _compare("le"),
    "gt": _compare("gt"),
    "ge": _compare("ge"),
    "eq": _compare("eq"),
    "ne": _compare("ne"),
    "isnan": Op(isnan, (REAL,)),
    "isinf": Op(isinf, (REAL,)),
    "logical_and": _logical(lambda a, b: a & b, 2),
    "logical_or": _logical(lambda a, b: a | b, 2),
    "logical_xor": _logical(lambda a, b: a ^ b, 2),
    "logical_not": _logical(lambda a: ~a, 1),
    "bitwise_and": _logical(lambda a, b: a & b, 2),
    "bitwise_or": _logical(lambda a, b: a | b, 2),
    "bitwise_xor": _logical(lambda a, b: a ^ b, 2),
    "bitwise_not": _logical(lambda a: ~a, 1),
    "where": Op(where, (CONDITION, REAL, REAL), frozenset([0])),
    "masked_fill": Op(lambda x, mask, value: where(mask, value, x), (REAL, CONDITION, REAL), frozenset([1])),
    # losses of one row
    "mse_loss": Op(lambda x, target, reduction=1: (x - target) * (x - target), (REAL, REAL)),
    "mse_loss_backward": Op(lambda grad, x, target, reduction: 2.0 * (x - target) * grad, (REAL, REAL, REAL)),
    "huber_loss": Op(_huber, (REAL, REAL)),
    "huber_loss_backward": Op(_huber_backward, (REAL, REAL, REAL)),
    "smooth_l1_loss": Op(_smooth_l1, (REAL, REAL)),
    "smooth_l1_loss_backward": Op(_smooth_l1_backward, (REAL, REAL, REAL)),
}


def _is_one(value: object) -> bool:
    return isinstance(value, (int, float)) and value == 1


def _logit(x: Node, eps: float | None) -> Node:
    inside = x if eps is None else _clamp(x, eps, 1 - eps)
    return log(inside / (1.0 - inside))


def _logit_backward(grad: Node, x: Node, eps: float | None) -> Node:
    slope = grad / (x * (1.0 - x))
    if eps is None:
        return where((x < 0.0) | (x > 1.0), constant(math.nan, x.dtype), slope)
    return where((x < eps) | (x > 1 - eps), constant(0.0, x.dtype), slope)


def compute(name: str, arguments: tuple[Any, ...], options: Mapping[str, Any], dtype: str) -> Node:
    """Apply a row to single numbers.

    Parameters
    ----------
    arguments, options
        As ATen has them, each tensor one of its elements.
    dtype
        Precision to compute in.
    """
    row = OPS[name]
    elements = tuple(
        cast(argument, "bool" if place in row.conditions else dtype) if isinstance(argument, Node) else argument
        for place, argument in enumerate(arguments)
    )
    named = {key: cast(value, dtype) if isinstance(value, Node) else value for key, value in options.items()}
    return row.formula(*elements, **named)
