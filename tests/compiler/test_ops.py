"""Every operator of the table computes what torch computes, and so do its derivatives: recorded, compiled and run on arrays."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from row_harness import NUMPY, TORCH, native, traced, with_slopes
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - as everybody calls it

from gradfit.compiler import trace
from gradfit.compiler.evaluate import evaluate
from gradfit.compiler.ops import OPS, POSITIVE, REAL, Interval

FRACTION: Interval = (0.01, 0.99)
RTOL = {"double": 1e-13, "single": 1e-5}
INF, NAN = math.inf, math.nan


class Case(NamedTuple):
    """An expression as a user writes it.

    Attributes
    ----------
    domain
        One interval per argument; none: those of the row of the same name. The awkward points are added.
    order
        Highest derivative that is compared.
    absolute
        Tolerance beside the relative one, in units of the machine's epsilon, where torch's own formula cancels.
    """

    function: Callable[..., Tensor]
    domain: tuple[Interval, ...] = ()
    order: int = 2
    absolute: float = 0.0


def both(function: Callable[..., Tensor], **options: Any) -> Case:
    return Case(function, (REAL, REAL), **options)


def of_x(function: Callable[..., Tensor], **options: Any) -> Case:
    return Case(function, (REAL,), **options)


UNARY = {
    "neg": Case(torch.neg),
    "reciprocal": Case(torch.reciprocal),
    "square": of_x(torch.square),
    "sqrt": Case(torch.sqrt),
    "rsqrt": Case(torch.rsqrt),
    "exp": Case(torch.exp),
    "exp2": Case(torch.exp2),
    "expm1": Case(torch.expm1, absolute=4),
    "log": Case(torch.log),
    "log2": Case(torch.log2),
    "log10": Case(torch.log10),
    "log1p": Case(torch.log1p),
    "logit": Case(torch.logit),
    "sin": Case(torch.sin),
    "cos": Case(torch.cos),
    "tan": Case(torch.tan),
    "asin": Case(torch.asin),
    "acos": Case(torch.acos),
    "atan": Case(torch.atan),
    "sinc": Case(torch.sinc),
    "deg2rad": Case(torch.deg2rad),
    "rad2deg": Case(torch.rad2deg),
    "sinh": Case(torch.sinh),
    "cosh": Case(torch.cosh),
    "tanh": Case(torch.tanh, absolute=8),
    "asinh": Case(torch.asinh),
    "acosh": Case(torch.acosh),
    "atanh": Case(torch.atanh),
    "sigmoid": Case(torch.sigmoid),
    "log_sigmoid": of_x(F.logsigmoid),
    "softplus": Case(F.softplus),
    "softsign": of_x(F.softsign),
    "erf": Case(torch.erf),
    "erfc": Case(torch.erfc),
    "lgamma": Case(torch.lgamma, order=1),  # torch's trigamma has nine digits, and is finite at its poles: see below
    "digamma": Case(torch.digamma, order=0),
    "polygamma 0": of_x(lambda x: torch.polygamma(0, x), order=0, absolute=16),
    "silu": Case(F.silu),
    "gelu": Case(F.gelu, absolute=4),
    "elu": Case(F.elu),
    "selu": of_x(F.selu),
    "celu": Case(F.celu),
    "relu": Case(F.relu),
    "relu6": of_x(F.relu6),
    "leaky_relu": Case(F.leaky_relu),
    "hardtanh": Case(F.hardtanh),
    "mish": Case(F.mish, absolute=16),
    "abs": Case(torch.abs),
    "sign": Case(torch.sign),
    "sgn": Case(torch.sgn),
    "signbit": Case(lambda x: torch.where(torch.signbit(x), x, 2 * x)),
    "floor": Case(torch.floor),
    "ceil": Case(torch.ceil),
    "trunc": Case(torch.trunc),
    "round": Case(torch.round),
    "frac": Case(torch.frac),
    "nan_to_num": Case(torch.nan_to_num),
    "isnan": Case(lambda x: torch.where(torch.isnan(x), 1.5, x)),
    "isinf": Case(lambda x: torch.where(torch.isinf(x), 1.5, x)),
    "isfinite": of_x(lambda x: torch.where(torch.isfinite(x), x * x, 1.5)),
}

BINARY = {
    "add": both(torch.add),
    "sub": both(torch.sub),
    "mul": both(torch.mul),
    "div": both(torch.div),
    "pow": Case(torch.pow, (POSITIVE, (-3.0, 3.0))),
    "float_power": Case(lambda x, y: torch.float_power(x, y).to(x.dtype), (POSITIVE, (-3.0, 3.0))),
    "hypot": both(torch.hypot),
    "logaddexp": both(torch.logaddexp),
    "logaddexp2": both(torch.logaddexp2, absolute=1),
    "xlogy": Case(torch.xlogy, (REAL, POSITIVE)),
    "atan2": both(torch.atan2),
    "copysign": both(torch.copysign),
    "heaviside": both(lambda x, y: torch.heaviside(x.detach(), y.detach()) * x * y),
    "fmod": Case(torch.fmod, (REAL, POSITIVE)),
    "remainder": both(torch.remainder),
    "floor_divide": both(lambda x, y: torch.floor_divide(x.detach(), y.detach()) * x),
    "minimum": both(torch.minimum),
    "maximum": both(torch.maximum),
    "fmin": both(torch.fmin),
    "fmax": both(torch.fmax),
    "clamp of two": both(lambda x, y: torch.clamp(x, -y.abs(), y.abs())),
    "clamp_min": both(torch.clamp_min),
    "clamp_max": both(torch.clamp_max),
    **{
        name: both(lambda x, y, name=name: torch.where(getattr(torch, name)(x, y), x * y, x + y))
        for name in ("lt", "le", "gt", "ge", "eq", "ne")
    },
    **{
        name: both(lambda x, y, name=name: torch.where(getattr(torch, name)(x > 1, y > 1), x * y, x + y))
        for name in ("logical_and", "logical_or", "logical_xor", "bitwise_and", "bitwise_or", "bitwise_xor")
    },
    "logical_not": both(lambda x, y: torch.where(torch.logical_not(x > 1), x, y)),
    "bitwise_not": both(lambda x, y: torch.where(~(x > 1), x, y)),
    "logical of numbers": both(lambda x, y: torch.where(torch.logical_and(x, y), x * y, x)),
    "masked_fill": both(lambda x, y: x.masked_fill(y > 1, 2.5) * y),
    "mse_loss": both(lambda x, y: F.mse_loss(x, y, reduction="none")),
    "huber_loss": both(lambda x, y: F.huber_loss(x, y, reduction="none")),
    "smooth_l1_loss": both(lambda x, y: F.smooth_l1_loss(x, y, reduction="none")),
    "l1_loss": both(lambda x, y: F.l1_loss(x, y, reduction="none")),
}

TERNARY = {
    "addcmul": Case(torch.addcmul, (REAL,) * 3),
    "addcdiv": Case(torch.addcdiv, (REAL, REAL, POSITIVE)),
    "lerp": Case(torch.lerp, (REAL, REAL, FRACTION)),
    "where": Case(lambda x, y, z: torch.where(z > 0, x, y), (REAL,) * 3),
}

OPTIONS = {
    "add alpha": both(lambda x, y: torch.add(x, y, alpha=0.3)),
    "sub alpha": both(lambda x, y: torch.sub(x, y, alpha=0.3)),
    "rsub": of_x(lambda x: torch.rsub(x, 1.7, alpha=2.0)),
    "rsub of two": both(lambda x, y: torch.rsub(x, y)),
    "number - x": of_x(lambda x: 3 - x),
    "number / x": of_x(lambda x: 3 / x),
    "x / number": of_x(lambda x: x / 3),
    "x // number": of_x(lambda x: (x.detach() // 0.7) * x),
    "x % number": of_x(lambda x: x % 0.7),
    "x % negative": of_x(lambda x: x % -0.7),
    "number % x": of_x(lambda x: (2.3 % x.detach()) * x),
    "fmod number": of_x(lambda x: torch.fmod(x, 0.7)),
    "div floor": both(lambda x, y: torch.div(x, y, rounding_mode="floor") * x),
    "div trunc": both(lambda x, y: torch.div(x, y, rounding_mode="trunc") * x),
    "clamp both": of_x(lambda x: torch.clamp(x, -1.5, 2.5)),
    "clamp below": of_x(lambda x: torch.clamp(x, min=-1.5)),
    "clamp above": of_x(lambda x: torch.clamp(x, max=2.5)),
    "clamp crossed": of_x(lambda x: torch.clamp(x, 2.5, -1.5)),
    "clip below by a tensor": both(lambda x, y: torch.clip(x, min=y)),
    "round to two decimals": of_x(lambda x: torch.round(x, decimals=2)),
    "round to tens": of_x(lambda x: torch.round(x, decimals=-1)),
    "softplus beta, threshold": of_x(lambda x: F.softplus(x, beta=2.5, threshold=8)),
    "softplus negative beta": of_x(lambda x: F.softplus(x, beta=-1.5)),
    "gelu tanh": of_x(lambda x: F.gelu(x, approximate="tanh"), absolute=4),
    "elu alpha": of_x(lambda x: F.elu(x, alpha=0.4)),
    "celu alpha": of_x(lambda x: F.celu(x, alpha=0.4)),
    "leaky_relu slope": of_x(lambda x: F.leaky_relu(x, 0.2)),
    "hardtanh limits": of_x(lambda x: F.hardtanh(x, -0.3, 0.7)),
    "hardsigmoid by hand": of_x(lambda x: F.relu6(x + 3) / 6),
    "threshold": of_x(lambda x: F.threshold(x, 0.5, 0.0)),
    "logit eps": Case(lambda x: torch.logit(x, eps=0.1), ((0.0, 1.0),)),
    "nan_to_num of numbers": of_x(lambda x: torch.nan_to_num(x, nan=1.5, posinf=2.5, neginf=-3.5)),
    "huber delta": both(lambda x, y: F.huber_loss(x, y, reduction="none", delta=0.6)),
    "smooth_l1 beta": both(lambda x, y: F.smooth_l1_loss(x, y, reduction="none", beta=0.6)),
    "smooth_l1 beta 0": both(lambda x, y: F.smooth_l1_loss(x, y, reduction="none", beta=0.0)),
    "addcmul value": Case(lambda x, y, z: torch.addcmul(x, y, z, value=0.3), (REAL,) * 3),
    "addcdiv value": Case(lambda x, y, z: torch.addcdiv(x, y, z, value=0.3), (REAL, REAL, POSITIVE)),
    "lerp near": both(lambda x, y: torch.lerp(x, y, 0.2)),
    "lerp far": both(lambda x, y: torch.lerp(x, y, 0.8)),
    "copysign number": of_x(lambda x: torch.copysign(x, -2.0)),
    "xlogy number": of_x(lambda x: torch.special.xlogy(x, 2.0)),
    "number xlogy": Case(lambda x: torch.special.xlogy(2.0, x), (POSITIVE,)),
    "where numbers": of_x(lambda x: torch.where(x > 0.5, 1.0, 2.0).to(x.dtype) * x),
    "masked_fill inf": both(lambda x, y: x.masked_fill(y > 1, math.inf)),
    "equality with a number": of_x(lambda x: torch.where(x == 0.1, x * x, x)),
    "comparison with a single number": of_x(lambda x: torch.where(x.to(torch.float32) <= 0.1, x * x, x)),
    **{
        f"x ** {exponent}": of_x(lambda x, exponent=exponent: x**exponent)
        for exponent in (*range(-4, 11), -0.5, 0.5, 1.5, -1.5, 0.3333333333333333, 2.0, -1.0, 13, -9)
    },
    **{f"{base} ** x": of_x(lambda x, base=base: base**x) for base in (2, 0.3, 10.0, 1, 0, -2.0)},
    "x ** array of integers": of_x(lambda x: x ** torch.tensor([3])),
    "float_power number": of_x(lambda x: torch.float_power(x, 2).to(x.dtype)),
}
CASES = {**UNARY, **BINARY, **TERNARY, **OPTIONS}


# --- points ------------------------------------------------------------------------------------------------------------

AWKWARD = {
    1: [0.0, 1e-300, 1e-30, 1e-8, 0.1, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 20.0, 88.0, 700.0, 1e7, 1e30, 1e300, INF],
    2: [0.0, 1e-30, 0.5, 1.0, 2.5, 88.0, 1e30, INF],
    3: [0.0, 0.5, 1.0, INF],
}


def points(domain: tuple[Interval, ...], dtype: str) -> list[np.ndarray]:
    """Some points inside, and all combinations of the awkward ones."""
    random = np.random.default_rng(0)
    awkward = AWKWARD[len(domain)]
    edges = np.array([*itertools.product([*awkward, *(-x for x in awkward), NAN], repeat=len(domain))]).T
    inside = np.array([random.uniform(low, high, 60) for low, high in domain])
    with np.errstate(over="ignore"):  # 1e300 in float32 is inf
        return list(np.concatenate([inside, edges], axis=1).astype(NUMPY[dtype]))


def domain_of(name: str) -> tuple[Interval, ...]:
    return CASES[name].domain or OPS[name].domain


def example(name: str, dtype: str) -> dict[str, Tensor]:
    values = zip("xyz", (0.613, 0.77, 0.44), strict=True)
    return {word: torch.tensor([value], dtype=TORCH[dtype]) for (word, value), _ in zip(values, domain_of(name), strict=False)}


def torch_says(function: Callable[..., list[Tensor]], columns: list[np.ndarray]) -> list[np.ndarray]:
    results = function(**{word: torch.from_numpy(column) for word, column in zip("xyz", columns, strict=False)})
    return [result.detach().numpy(force=True) for result in results]


def assert_alike(
    ours: np.ndarray, theirs: np.ndarray, dtype: str, absolute: float, columns: list[np.ndarray], known: Any
) -> None:
    """Same numbers; NaN, infinities and the signs of zeros in the same places."""
    limits = np.finfo(NUMPY[dtype])
    with np.errstate(invalid="ignore", over="ignore"):
        close = np.abs(ours - theirs) <= RTOL[dtype] * np.abs(theirs) + absolute * limits.eps + limits.smallest_normal
    zeros = (ours == 0) & (theirs == 0) & (np.signbit(ours) != np.signbit(theirs))
    same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs)) | (close & np.isfinite(theirs))
    wrong = np.nonzero(known & ~(same & (~zeros | (absolute > 0))))[0][:5]
    assert not len(wrong), [(tuple(float(c[k]) for c in columns), float(ours[k]), float(theirs[k])) for k in wrong]


def known_to_torch(name: str, dtype: str, columns: list[np.ndarray]) -> Any:
    """Where torch is right: its float32 remainder is NaN where the quotient exceeds float32."""
    if dtype == "double" or name not in ("fmod", "remainder"):
        return True
    with np.errstate(all="ignore"):
        return ~(np.abs(columns[0].astype(float) / columns[1]) > 3e38) | ~np.isfinite(columns[0])


# --- tests -------------------------------------------------------------------------------------------------------------


COMPILED = [
    *((name, "double") for name in CASES),
    *(pytest.param(name, "single", marks=[pytest.mark.slow] if name in OPTIONS else []) for name in CASES),
]


@pytest.mark.parametrize(("name", "dtype"), COMPILED)
def test_compiled_values_and_derivatives_are_those_of_torch(name, dtype):
    case, columns = CASES[name], points(domain_of(name), dtype)
    function = with_slopes(case.function, case.order)
    ours = native(traced(function, example(name, dtype)), dtype)(*columns)
    for our, their in zip(ours, torch_says(function, columns), strict=True):
        assert_alike(our, their, dtype, case.absolute, columns, known_to_torch(name, dtype, columns))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.order])
def test_derivatives_that_need_no_second_one_are_the_same(name):
    """Without create_graph torch uses other operators, such as ``gelu_backward``."""
    case, columns = CASES[name], points(domain_of(name), "double")
    function = with_slopes(case.function)
    graph = traced(function, example(name, "double"))
    values = {word: torch.from_numpy(column) for word, column in zip("xyz", columns, strict=False)}
    shape = columns[0].shape
    ours = [part.expand(shape).numpy() for part in evaluate(graph, values)]
    for our, their in zip(ours, torch_says(function, columns), strict=True):
        assert_alike(our, their, "double", case.absolute, columns, True)


def test_the_derivative_of_digamma_is_trigamma():
    special = pytest.importorskip("scipy.special")
    x = np.concatenate([np.linspace(1e-3, 50, 400), [1e-30, 1e8, 1e300, INF]])
    value, slope = native(traced(with_slopes(torch.digamma), example("digamma", "double")), "double")(x)
    np.testing.assert_allclose(slope, special.polygamma(1, x), rtol=1e-13)
    np.testing.assert_allclose(value, special.digamma(x), rtol=1e-12)


def test_polygamma_of_higher_order_is_refused():
    with pytest.raises(trace.Untraceable, match="polygamma of order 2"):
        traced(lambda x: torch.polygamma(2, x), example("digamma", "double"))


def test_every_row_is_reached(monkeypatch):
    """A row that no expression leads to is not tested, or not needed."""
    seen = set()

    def spy(name: str, *rest: Any) -> Any:
        seen.add(name)
        return compute(name, *rest)

    compute = trace.compute
    monkeypatch.setattr(trace, "compute", spy)
    for name, case in CASES.items():
        for order in range(case.order + 1):
            trace.record(with_slopes(case.function, order), example(name, "double"))
    assert set(OPS) - seen == set()


@pytest.mark.parametrize("name", OPS)
def test_a_row_has_an_interval_for_each_tensor(name):
    for low, high in OPS[name].domain:
        assert -math.inf < low < high < math.inf
    assert all(place < len(OPS[name].domain) for place in OPS[name].conditions)
