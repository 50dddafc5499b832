"""Elementary functions keep their error bounds, in every lane alike, and do at the edges what C and torch do."""

from __future__ import annotations

import itertools
import zlib

import mpmath as mp
import numpy as np
import pytest
import torch
from native_harness import WIDTHS, compiled
from numpy.testing import assert_array_equal

from gradfit.compiler import elementary
from gradfit.compiler.elementary import BOUNDS, FUNCTIONS, LIBM
from gradfit.compiler.values import where

PRECISIONS = pytest.mark.parametrize("double", [True, False], ids=["double", "single"])
OF_TWO = ("pow", "hypot", "fmod", "atan2", "minimum", "maximum", "copysign")
MATHEMATICS = {
    **{
        name: getattr(mp, name)
        for name in ("exp", "expm1", "log", "log10", "log1p", "hypot", "sin", "cos", "tan", "asin", "acos", "atan")
    },
    **{
        name: getattr(mp, name) for name in ("atan2", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "erfc", "digamma")
    },
    "exp2": lambda x: mp.mpf(2) ** x,
    "log2": lambda x: mp.log(x, 2),
    "pow": mp.power,
    "lgamma": mp.loggamma,
    "trigamma": lambda x: mp.polygamma(1, x),
}
N = 100


def run(name, *arrays, width=4, double=True, oldest=False):
    return compiled(FUNCTIONS[name], inputs=len(arrays), width=width, double=double, oldest=oldest)(*arrays)


def type_of(double):
    return np.float64 if double else np.float32


# ---- Points ----------------------------------------------------------------------------------------------------------


def arguments(name, double):
    """Points all over the domain of a function: on a linear and on a logarithmic scale, and near its awkward places."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    decades = 307 if double else 37
    top = 710.4 if double else 89.4  # where sinh and cosh overflow
    uniform = random.uniform

    def sizes(smallest, largest):
        return 10.0 ** uniform(smallest, largest, N)

    def signed(x):
        return x * random.choice([-1.0, 1.0], N)

    near_zero, line, unit, positive = signed(sizes(-20, 0)), uniform(-3, 3, N), uniform(-1, 1, N), sizes(-decades, decades)
    ends = signed(1 - sizes(-15, -0.5))
    angles = (line, uniform(-1e6, 1e6, N), near_zero, np.arange(1, N + 1) * np.pi / 2, signed(sizes(6, decades)))
    slopes = (signed(sizes(-20, 20)), signed(sizes(-20, 20))), (line, line[::-1]), (signed(positive), positive[::-1])
    points = {
        "exp": (uniform(-746, 710, N) if double else uniform(-104, 89, N), line, near_zero),
        "exp2": (uniform(-1075, 1024, N) if double else uniform(-150, 128, N), line, near_zero),
        "expm1": (uniform(-50, top - 0.7, N), line, near_zero, unit),
        **dict.fromkeys(("log", "log2", "log10"), (positive, sizes(-1, 1), 1 + near_zero, sizes(-decades - 6, -decades))),
        "log1p": (positive, unit, near_zero, 2 * line[line > 0], ends),
        **dict.fromkeys(("sin", "cos", "tan"), angles),
        **dict.fromkeys(("asin", "acos", "atanh"), (unit, near_zero, ends)),
        "atan": (line, near_zero, signed(positive)),
        **dict.fromkeys(("sinh", "cosh", "tanh"), (line, uniform(-top, top, N), near_zero, unit)),
        "asinh": (line, near_zero, signed(positive)),
        "acosh": (1 + sizes(-15, 0), 1 + positive, 1 + np.abs(line)),
        "erf": (2 * line, near_zero, unit),
        "erfc": (uniform(-6, 27.2 if double else 10, N), near_zero, unit),
        "lgamma": (uniform(0, 30, N), sizes(-20, 20)),
        "digamma": (sizes(-20, 20), uniform(0, 10, N), uniform(-10, 0, N)),
        "trigamma": (sizes(-18, 20), uniform(0, 10, N), uniform(-10, 0, N)),
    }
    if name == "pow":
        bases = np.concatenate([sizes(-3, 3), uniform(0.5, 2, N), positive])
        exponents = uniform(-1, 1, 3 * N) * (1074 if double else 149) / np.log2(bases)
        exponents[::3] = np.round(uniform(-5, 5, N))
        return [bases.astype(type_of(double)), exponents.astype(type_of(double))]
    if name in OF_TWO:
        return [np.concatenate([pair[k] for pair in slopes]).astype(type_of(double)) for k in (0, 1)]
    return [np.concatenate(points[name]).astype(type_of(double))]


def error_in_ulp(got, exact, double):
    """Distance from the exact result in units in the last place of it."""
    digits, smallest = (53, -1074) if double else (24, -149)
    largest = mp.mpf(2) ** (1024 if double else 128)
    if np.isinf(got) and abs(exact) >= largest * (1 - mp.mpf(2) ** (-digits - 1)):
        return 0.0
    spacing = mp.mpf(2) ** max(mp.frexp(exact)[1] - digits, smallest)
    return float(abs(mp.mpf(float(got)) - exact) / spacing) if np.isfinite(got) else np.inf


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@PRECISIONS
@pytest.mark.parametrize("name", BOUNDS)
def test_errors_keep_their_bound(name, double):
    assert_within_bound(name, double=double)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", ["exp", "log", "sin", "tanh", "pow", "atan", "erfc", "acosh"])
def test_errors_keep_their_bound_without_fused_instructions(name):
    assert_within_bound(name, double=True, oldest=True)


def assert_within_bound(name, *, double, oldest=False):
    points = arguments(name, double)
    got = run(name, *points, double=double, oldest=oldest)
    absolute = name in ("digamma", "lgamma")  # near their zeros
    worst, where_worst = 0.0, None
    with mp.workdps(40):
        for result, *point in zip(got, *points, strict=True):
            exact = mp.re(MATHEMATICS[name](*(mp.mpf(float(x)) for x in point)))
            error = error_in_ulp(result, exact, double)
            if absolute and abs(exact) < 1:
                error *= float(abs(exact))
            if not error <= worst:
                worst, where_worst = error, point
    assert worst <= BOUNDS[name][0 if double else 1], f"{worst} ulp at {where_worst}"


# ---- Lanes -----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@PRECISIONS
@pytest.mark.parametrize("name", BOUNDS)
def test_every_width_gives_the_same_bits(name, double):
    points = arguments(name, double)
    reference = run(name, *points, double=double)
    for width in WIDTHS:
        assert_array_equal(run(name, *points, width=width, double=double).tobytes(), reference.tobytes())


# ---- Edges -----------------------------------------------------------------------------------------------------------

EDGES = [
    0.0,
    1e-300,
    1e-30,
    0.25,
    0.5,
    1.0,
    1.5,
    2.0,
    3.0,
    88.0,
    105.0,
    746.0,
    1025.0,
    2.0**20,
    1e7,
    1e15,
    2.0**53,
    1e22,
    1e30,
    1e300,
]
EDGES = [*EDGES, np.inf, np.nan]
EDGES = np.array(EDGES + [-x for x in EDGES])
BETTER_THAN_TORCH = ("fmod", "trigamma")  # torch: NaN for a subnormal divisor; nine digits, and finite at poles


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@PRECISIONS
@pytest.mark.parametrize("name", [name for name in BOUNDS if name not in BETTER_THAN_TORCH])
def test_edges_are_those_of_torch(name, double):
    arity = 2 if name in OF_TWO else 1
    points = np.array(list(itertools.product(EDGES, repeat=arity)), type_of(double)).T.copy()
    got = run(name, *points, double=double)
    expected = getattr(torch, name)(*map(torch.from_numpy, points)).numpy()
    torch_error = 20 if name == "digamma" else 1
    np.testing.assert_allclose(
        got, expected, rtol=torch_error * (1e-14 if double else 1e-6), atol=np.finfo(type_of(double)).smallest_subnormal
    )
    known = ~np.isnan(expected)
    assert_array_equal(np.signbit(got[known]), np.signbit(expected[known]))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@PRECISIONS
def test_the_remainder_is_that_of_c(double):
    x, y = np.array(list(itertools.product(EDGES, EDGES)), type_of(double)).T.copy()
    assert_array_equal(run("fmod", x, y, double=double), np.fmod(x, y))


def test_trigamma_is_infinite_at_its_poles():
    assert_array_equal(run("trigamma", [0.0, -0.0, -1.0, -17.0, np.inf, -np.inf, np.nan]), [np.inf] * 4 + [0.0, np.nan, np.nan])


@PRECISIONS
def test_subnormal_numbers_are_numbers(double):
    smallest = np.finfo(type_of(double)).smallest_subnormal
    x = np.array([smallest, -smallest, 5 * smallest, 1000 * smallest], type_of(double))
    for name in ("expm1", "log1p", "sin", "tan", "asin", "atan", "sinh", "tanh", "asinh", "atanh"):
        assert_array_equal(run(name, x, double=double), x, err_msg=name)
    assert_array_equal(run("exp", np.log(np.abs(x).astype(float)), double=double)[:2], [smallest, smallest])
    np.testing.assert_allclose(run("atan2", x, x[::-1].copy(), double=double), np.arctan2(x, x[::-1]), rtol=1e-6)


def test_numbers_may_be_an_operand():
    x = np.linspace(0.5, 3, 9)
    np.testing.assert_allclose(compiled(lambda v: FUNCTIONS["pow"](v, 2), inputs=1, width=4, double=True)(x), x**2, rtol=1e-15)
    np.testing.assert_allclose(compiled(lambda v: FUNCTIONS["pow"](2.0, v), inputs=1, width=4, double=True)(x), 2**x, rtol=1e-15)
    np.testing.assert_allclose(
        compiled(lambda v: FUNCTIONS["atan2"](1, v), inputs=1, width=2, double=True)(x), np.arctan2(1, x), rtol=1e-15
    )
    np.testing.assert_allclose(
        compiled(lambda v: FUNCTIONS["hypot"](v, 2.0), inputs=1, width=8, double=False)(x), np.hypot(x, 2.0), rtol=1e-7
    )


# ---- The module ------------------------------------------------------------------------------------------------------


def test_the_table_has_the_names_of_traced_source():
    names = """abs sqrt exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh erf erfc
        lgamma digamma trigamma floor ceil round trunc sign minimum maximum where isnan isinf isfinite pow atan2 fmod hypot copysign
        float32 float64"""
    assert set(FUNCTIONS) == set(names.split())
    assert FUNCTIONS["where"] is where


def test_the_symbols_of_the_library_are_all_named():
    for name in LIBM:
        assert name in FUNCTIONS
    assert set(BOUNDS) <= set(FUNCTIONS)


def chebyshev_interpolation(function, lower, upper, degree):
    """Coefficients of the polynomial through a function at the Chebyshev nodes of an interval."""
    n = degree + 1
    middle, half = (lower + upper) / mp.mpf(2), (upper - lower) / mp.mpf(2)
    nodes = [middle + half * mp.cos(mp.pi * (2 * k + 1) / (2 * n)) for k in range(n)]
    powers = mp.matrix([[node**j for j in range(n)] for node in nodes])
    return [float(c) for c in mp.lu_solve(powers, mp.matrix([function(node) for node in nodes]))]


def of_square(function):
    """As a function of the square of its argument."""
    return lambda z: function(mp.sqrt(z))


def of_inverse_square(function):
    return lambda z: function(1 / mp.sqrt(z))


def scaled_erfc(t):
    x = 4 * (1 + t) / (1 - t)
    return mp.erfc(x) * mp.exp(x * x) * (1 + 2 * x)


def log_tail(s):
    return (2 * mp.atanh(s) - 2 * s) / s**3


def approximations():
    """Each table of coefficients, the function, its interval, and the precision it is used in."""
    half_ln2 = mp.log(2) / 2 * mp.mpf("1.0005")
    ratio = (3 - 2 * mp.sqrt(2)) ** 2 * mp.mpf("1.0005")
    eighth = (mp.pi / 4) ** 2 * mp.mpf("1.001")
    slope = mp.mpf("0.66") ** 2
    atan = of_square(lambda t: (t - mp.atan(t)) / t**3)
    asin = of_square(lambda s: (mp.asin(s) - s) / s**3)

    def exp(r):
        return (mp.expm1(r) - r) / r**2 if abs(r) > 1e-25 else mp.mpf(1) / 2

    return [
        (elementary._EXP64.polynomial, exp, -half_ln2, half_ln2, True),
        (elementary._EXP32.polynomial, exp, -half_ln2, half_ln2, False),
        (elementary._LOG64, of_square(log_tail), 0, ratio, True),
        (elementary._LOG32, of_square(log_tail), 0, ratio, False),
        (elementary._LOG2_TAIL, of_square(lambda s: (log_tail(s) - mp.mpf(2) / 3) / (s**2 * mp.log(2))), 0, ratio, True),
        (elementary._SINH64, of_square(lambda s: (mp.sinh(s) - s) / s**3), 0, mp.mpf(1), True),
        (elementary._SINH32, of_square(lambda s: (mp.sinh(s) - s) / s**3), 0, mp.mpf(1), False),
        (elementary._TANH64, of_square(lambda s: (mp.tanh(s) - s) / s**3), 0, mp.mpf("0.31"), True),
        (elementary._TANH32, of_square(lambda s: (mp.tanh(s) - s) / s**3), 0, mp.mpf("0.31"), False),
        (elementary._SIN, of_square(lambda s: (s - mp.sin(s)) / s**3), 0, eighth, True),
        (elementary._COS, of_square(lambda s: (mp.cos(s) - 1 + s**2 / 2) / s**4), 0, eighth, True),
        (elementary._COARSE_SIN, of_square(lambda s: (s - mp.sin(s)) / s**3), 0, eighth, True),
        (elementary._COARSE_COS, of_square(lambda s: (mp.cos(s) - 1 + s**2 / 2) / s**4), 0, eighth, True),
        (elementary._ATAN64, atan, 0, slope, True),
        (elementary._ATAN32, atan, 0, slope, False),
        (elementary._ASIN64, asin, 0, mp.mpf("0.2501"), True),
        (elementary._ASIN32, asin, 0, mp.mpf("0.2501"), False),
        (elementary._ERF, of_square(lambda x: mp.erf(x) / x), 0, mp.mpf(1), True),
        (elementary._ERFC, scaled_erfc, -1, mp.mpf(3) / 4, True),
        (
            elementary._DIGAMMA,
            of_inverse_square(lambda x: (mp.log(x) - 1 / (2 * x) - mp.digamma(x)) * x**2),
            0,
            mp.mpf(1) / 36,
            True,
        ),
        (
            elementary._TRIGAMMA,
            of_inverse_square(lambda x: (mp.polygamma(1, x) - 1 / x - 1 / (2 * x**2)) * x**3),
            0,
            mp.mpf(1) / 36,
            True,
        ),
    ]


def test_coefficients_interpolate_at_chebyshev_nodes():
    with mp.workdps(60):
        for coefficients, function, lower, upper, double in approximations():
            computed = chebyshev_interpolation(function, lower, upper, len(coefficients) - 1)
            assert_array_equal(np.array(computed, type_of(double)), np.array(coefficients, type_of(double)))
