"""Operators on Values emit IEEE arithmetic, lane by lane, as numpy and torch do it."""

from __future__ import annotations

import operator

import numpy as np
import pytest
import torch
from llvmlite import ir
from native_harness import WIDTHS, compiled
from numpy.testing import assert_array_equal

from gradfit.compiler import values
from gradfit.compiler.values import (
    DOUBLE,
    SINGLE,
    Value,
    align,
    bits,
    call_lanes,
    copysign,
    float32,
    float64,
    fma,
    isnan,
    maximum,
    minimum,
    muladd,
    rarely,
    reduce_add,
    splat,
    sqrt,
    where,
)

PRECISIONS = pytest.mark.parametrize("double", [True, False], ids=["double", "single"])
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, -2.5, 1e30, -1e30, 1e-40, 5e-324, np.inf, -np.inf, np.nan, 7.25]
RANDOM = np.random.default_rng(1).normal(size=32)
ONE = np.concatenate([np.repeat(SPECIAL, len(SPECIAL)), RANDOM])
OTHER = np.concatenate([np.tile(SPECIAL, len(SPECIAL)), RANDOM[::-1]])


def run(function, *arrays, width=4, double=True):
    return compiled(function, inputs=len(arrays), width=width, double=double)(*arrays)


def in_precision(double, *arrays):
    return [np.asarray(array).astype(np.float64 if double else np.float32) for array in arrays]


def same(got, expected):
    """Equal bit for bit, but for the sign of NaN."""
    assert_array_equal(got, expected)
    assert_array_equal(np.signbit(got[~np.isnan(got)]), np.signbit(expected[~np.isnan(got)]))


def in_vector(width=4, element=DOUBLE):
    """Give a Value in a function that nobody runs."""
    kind = element if width == 1 else ir.VectorType(element, width)
    function = ir.Function(ir.Module(), ir.FunctionType(ir.VoidType(), [kind]), "f")
    return Value(ir.IRBuilder(function.append_basic_block()), function.args[0])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@PRECISIONS
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("operation", [operator.add, operator.sub, operator.mul, operator.truediv], ids=lambda o: o.__name__)
def test_arithmetic_is_that_of_numpy(operation, width, double):
    a, b = in_precision(double, ONE, OTHER)
    same(run(operation, a, b, width=width, double=double), operation(a, b))


@PRECISIONS
@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("name", ["lt", "le", "gt", "ge", "eq", "ne"])
def test_comparisons_know_nan(name, width, double):
    relation = getattr(operator, name)
    a, b = in_precision(double, ONE, OTHER)
    same(run(relation, a, b, width=width, double=double), relation(a, b).astype(a.dtype))


def test_a_product_and_a_sum_are_rounded_twice():
    a = np.full(8, 1 + 2.0**-30)
    same(run(lambda x, y: x * x + y, a, -a), a * a - a)
    assert run(lambda x, y: fma(x, x, y), a, -(a * a))[0] == 2.0**-60


def test_the_contracted_sum_is_near():
    np.testing.assert_allclose(run(lambda x: muladd(x, 3.0, 1.0), RANDOM), RANDOM * 3 + 1, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize(
    "function", [lambda x: 2 - x, lambda x: x - 2, lambda x: 3.5 / x, lambda x: True + x, lambda x: 2 * x, lambda x: -x]
)
@PRECISIONS
def test_numbers_stand_on_either_side(function, double):
    (x,) = in_precision(double, RANDOM)
    same(run(function, x, double=double), function(x).astype(x.dtype))


@PRECISIONS
def test_numbers_take_the_precision_of_the_value(double):
    (x,) = in_precision(double, RANDOM)
    same(run(lambda v: v * 0.1, x, double=double), x * x.dtype.type(0.1))
    same(run(lambda v: v * 1e300, np.ones(4), double=double), np.ones(4, x.dtype) * (1e300 if double else np.inf))


@PRECISIONS
@pytest.mark.parametrize("name", ["floor", "ceil", "trunc", "round", "sign", "abs", "isnan", "isinf", "isfinite"])
@pytest.mark.parametrize("width", [1, 4])
def test_functions_of_one_number_follow_torch(name, width, double):
    (x,) = in_precision(double, ONE)
    expected = getattr(torch, name)(torch.from_numpy(x)).numpy().astype(x.dtype)
    got = run(getattr(values, name), x, width=width, double=double)
    assert_array_equal(got, expected)


@PRECISIONS
@pytest.mark.parametrize("name", ["minimum", "maximum", "copysign"])
def test_functions_of_two_numbers_follow_torch(name, double):
    a, b = in_precision(double, ONE, OTHER)
    expected = getattr(torch, name)(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    assert_array_equal(run(getattr(values, name), a, b, double=double), expected)


@PRECISIONS
def test_the_square_root_is_correctly_rounded(double):
    (x,) = in_precision(double, np.abs(ONE))
    same(run(sqrt, x, double=double), np.sqrt(x))


def test_numbers_of_numpy_are_numbers():
    same(run(lambda x: np.float64(0.1) * x, RANDOM), RANDOM * 0.1)


def test_numbers_may_be_one_of_the_two():
    same(run(lambda x: minimum(x, 0.0), RANDOM), np.minimum(RANDOM, 0.0))
    same(run(lambda x: maximum(0.0, x), RANDOM), np.maximum(RANDOM, 0.0))
    same(run(lambda x: copysign(2, x), RANDOM), np.copysign(2.0, RANDOM))


@pytest.mark.parametrize("width", WIDTHS)
def test_booleans_combine(width):
    a, b = ONE > 0, OTHER > 0
    pairs = [
        (lambda x, y: (x > 0) & (y > 0), a & b),
        (lambda x, y: (x > 0) | (y > 0), a | b),
        (lambda x, y: (x > 0) ^ (y > 0), a ^ b),
        (lambda x, y: ~(x > 0) & True, ~a),
        (lambda x, y: where(x > 0, y > 0, x > 0), a & b),
    ]
    for function, expected in pairs:
        same(run(function, ONE, OTHER, width=width), expected.astype(float))


def test_where_takes_numbers_and_values():
    same(run(lambda x: where(x > 0, x, 0.0), RANDOM), np.where(RANDOM > 0, RANDOM, 0.0))
    same(run(lambda x: where(isnan(x), 0, x), ONE), np.where(np.isnan(ONE), 0.0, ONE))


@pytest.mark.parametrize("width", WIDTHS)
def test_lanes_are_added_in_pairs(width):
    def in_pairs(block):
        while len(block) > 1:
            block = block[: len(block) // 2] + block[len(block) // 2 :]
        return block[0]

    x = RANDOM * 10.0 ** np.arange(32)
    expected = np.repeat([in_pairs(block) for block in x.reshape(-1, width)], width)
    same(run(reduce_add, x, width=width), expected)


def test_a_plain_number_fills_the_lanes_it_meets():
    same(run(lambda x: x + reduce_add(x), np.arange(8.0), width=8), np.arange(8.0) + 28.0)
    constant = splat(in_vector(1).like(0.5), 8)
    assert constant.width == 8
    assert splat(constant, 8) is constant
    with pytest.raises(TypeError, match="a vector of 8 lanes cannot fill 4"):
        splat(constant, 4)


def test_precision_is_converted_only_when_asked():
    x, y = in_vector(4, DOUBLE), in_vector(4, SINGLE)
    with pytest.raises(TypeError, match="convert one by float32"):
        x + y
    assert (x + float64(Value(x.builder, y.ir))).is_double
    assert not float32(x).is_double
    assert float64(x) is x
    same(run(lambda v: float64(float32(v)), RANDOM), RANDOM.astype(np.float32).astype(float))
    same(run(lambda v: float64(v > 0), RANDOM), (RANDOM > 0).astype(float))


def test_mistakes_are_named():
    x = in_vector()
    with pytest.raises(TypeError, match="use where"):
        bool(x > 0)
    with pytest.raises(TypeError, match="arithmetic on booleans"):
        (x > 0) + (x < 0)
    with pytest.raises(TypeError, match="arithmetic on booleans"):
        -(x > 0)
    with pytest.raises(TypeError, match="expected booleans"):
        x & x
    with pytest.raises(TypeError, match="condition of where"):
        where(x, 1.0, x)
    with pytest.raises(TypeError, match="expected a Value or a number"):
        x + "1"
    with pytest.raises(TypeError, match="none of the operands"):
        align(1.0, 2.0)
    with pytest.raises(TypeError, match="operands of types"):
        x + in_vector(8)
    with pytest.raises(TypeError, match="unhashable"):
        {x}


@pytest.mark.parametrize("width", [1, 4])
@PRECISIONS
def test_bits_go_there_and_back(width, double):
    (x,) = in_precision(double, ONE[~np.isnan(ONE)])
    sign = 1 << (63 if double else 31)
    same(run(lambda v: ((bits(v) ^ sign) - 5 + 5).as_float(), x, width=width, double=double), -x)
    same(run(lambda v: bits(v).is_set(63 if double else 31), x, width=width, double=double), np.signbit(x).astype(x.dtype))


@pytest.mark.parametrize("width", WIDTHS)
def test_the_rare_case_changes_only_its_lanes(width):
    x = np.arange(64.0)
    x[5] = x[40] = -4.0
    same(run(lambda v: rarely(v < 0, v + 1.0, lambda: sqrt(-v)), x, width=width), np.where(x < 0, 2.0, x + 1.0))


@PRECISIONS
@pytest.mark.parametrize("width", WIDTHS)
def test_library_functions_are_called_for_each_lane(width, double):
    a, b = in_precision(double, RANDOM * 10, RANDOM[::-1])
    same(run(lambda x, y: call_lanes("fmod", x, y), a, b, width=width, double=double), np.fmod(a, b))
