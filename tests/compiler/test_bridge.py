"""Models written with numpy, math and scipy run on tensors with the right values and derivatives."""

from __future__ import annotations

import functools
import math
from concurrent.futures import ThreadPoolExecutor
from math import sin as math_sine

import numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.special as sp
import torch
from numpy import exp
from numpy.testing import assert_allclose
from scipy.special import erf

import gradfit
from gradfit.compiler import calling
from gradfit.compiler.bridge import HOSTS, SHARED, TWINS, Namespace, Untranslatable, on_tensors, twin
from gradfit.data.dataset import Dataset
from gradfit.model import loss as losses
from gradfit.model.model import function_model
from gradfit.model.parameters import parameters

X = np.linspace(0.3, 2.9, 9)
SCALE = 2.0


def kernel_of(function, *, start=None, dtype=torch.float64):
    model = function_model(function, count=1, target="y")
    data = Dataset({model.data_names[0]: X}, np.cos(X), "y", None, np.arange(len(X)))
    known = parameters(model.defaults, start=start)
    return calling.build(model, known, data, losses.resolve("squared", data), dtype=dtype)


def by_rows(function, theta):
    return np.array([float(function(float(x), *theta)) for x in X])


def extrapolated_differences(function, theta):
    """Central differences, three steps, extrapolated to order six."""
    columns = []
    for index, value in enumerate(theta):

        def slope(h, index=index):
            ahead, behind = list(theta), list(theta)
            ahead[index] += h
            behind[index] -= h
            return (by_rows(function, ahead) - by_rows(function, behind)) / (2 * h)

        h = 1e-3 * max(abs(value), 1)
        columns.append((64 * slope(h / 4) - 20 * slope(h / 2) + slope(h)) / 45)
    return np.stack(columns, axis=1)


def assert_exact(function, *, plain=None, start=None, numeric=False, rtol=1e-9):
    kernel = kernel_of(function, start=start)
    theta = kernel.parameters.start * np.array([1.07, 0.93])
    value, jacobian = kernel.jacobian(theta)
    expected = extrapolated_differences(plain or function, list(theta))
    assert kernel.numeric is numeric, kernel.reason
    assert_allclose(value, by_rows(plain or function, theta), rtol=1e-13, atol=1e-14)
    assert_allclose(jacobian, expected, rtol=rtol, atol=rtol * np.abs(expected).max())
    return kernel


def helper(x, b):
    return np.exp(-b * x)


def closing_over(constant):
    def inner(u):
        return np.exp(-u * constant)

    def model(x, a, b):
        return a * inner(b * x)

    return model


def passing_through(function):
    @functools.wraps(function)
    def call(*args, **kwargs):
        return function(*args, **kwargs)

    return call


class Decay:
    rate = 0.3

    def __call__(self, x, a, b):
        return a * np.exp(-b * x * self.rate)

    def method(self, x, a, b):
        return a * np.exp(-b * x * self.rate)

    @staticmethod
    def static(x, a, b):
        return a * np.exp(-b * x)


@passing_through
def decorated(x, a, b):
    return a * np.exp(-b * x)


@functools.lru_cache(None)
def cached(x, a, b):
    return a * np.exp(-b * x)


def recursive(x, a, b, depth="no"):
    return a * np.exp(-b * x) if depth == "last" else recursive(x, a, b, "last") + b * x


def looping(x, a, b):
    total = 0
    for k in range(1, 5):
        total = total + a * np.sin(k * b * x) / k
    return total


def with_default_function(x, a, b, f=np.exp):
    return a * f(-b * x)


def checking_type(x, a, b):
    return a * np.asarray(x) * (2.0 if isinstance(b, np.ndarray) else 1.0) + b


EXACT = {
    "numpy": lambda x, a, b: a * np.exp(-b * x),
    "imported name": lambda x, a, b: a * exp(-b * x),
    "alias": lambda x, a, b: a * jnp.sin(b * x),
    "math": lambda x, a, b: a * math.exp(-b * x) + math_sine(b * x),
    "math log with a base": lambda x, a, b: a * math.log(b * x + 1, 2),
    "math gamma, lgamma": lambda x, a, b: a * math.gamma(b + x) + math.lgamma(x + a),
    "math pow, fabs, hypot": lambda x, a, b: a * math.pow(x, b) + math.fabs(x - b) + math.hypot(a, x),
    "scipy": lambda x, a, b: a * erf(b * x) + scipy.special.expit(x - b) + sp.xlogy(b, x),
    "scipy psi": lambda x, a, b: sp.gammaln(a * x) + sp.psi(b + x),
    "helper": lambda x, a, b: a * helper(x, b),
    "closure": closing_over(1.3),
    "bound method": Decay().method,
    "callable object": Decay(),
    "static method": Decay.static,
    "decorated": decorated,
    "recursive": recursive,
    "loop": looping,
    "function as default": with_default_function,
    "isinstance of a numpy class": checking_type,
    "where, number": lambda x, a, b: np.where(x > 1.0, 0.1, a * b * x),
    "where, array": lambda x, a, b: np.where(x > 1.0, a * x, b * x**2),
    "clip": lambda x, a, b: np.clip(a * x, 0.1, 2.1) + 0.1 * b * x,
    "clip, one side": lambda x, a, b: np.clip(a * x, None, 2.1) + 0.1 * b * x,
    "clip, words": lambda x, a, b: np.clip(a * x, a_min=0.1, a_max=b + 0.1),
    "power": lambda x, a, b: a * np.power(x, b) + np.power(0.1, x) + np.power(b * 0.1, x),
    "negative base": lambda x, a, b: (-a * x) ** 3 + b * np.power(-x, 2),
    "maximum": lambda x, a, b: np.maximum(a * x - 0.1, 0.3) + np.minimum(0.1, 0.05 * b * x),
    "constants": lambda x, a, b: a / np.sqrt(2 * np.pi) * np.exp(-0.5 * (x / b) ** 2) + np.float64(0.1) * x,
    "float64()": lambda x, a, b: np.float64(a) * x + np.array(b),
    "global": lambda x, a, b: a * x + b * SCALE,
    "generator": lambda x, a, b: sum(a * np.exp(-b * k * x) for k in (1, 2)),
    "linalg of constants": lambda x, a, b: np.linalg.norm([3.0, 4.0]) * a * x + b,
    "heaviside, sign": lambda x, a, b: a * np.heaviside(x - 1.0, 0.5) + b * np.sign(x - 2),
}


@pytest.mark.parametrize("name", EXACT)
def test_a_model_of_other_functions_has_the_exact_derivative(name):
    assert_exact(EXACT[name])


def test_a_cached_function_is_called_without_its_cache():
    assert_exact(cached, plain=cached.__wrapped__)


def test_a_partial_is_translated():
    assert on_tensors(functools.partial(helper, b=1.0))(x=torch.ones(2)) == pytest.approx(math.exp(-1))


def test_gamma_is_negative_where_it_is():
    kernel = assert_exact(lambda x, a, b: a * sp.gamma(-0.31 * b + 0 * x), start={"a": 1.0, "b": 1.0})
    assert (kernel.jacobian(np.array([1.0, 1.0]))[0] < 0).all()


NUMERIC = {
    "jv": lambda x, a, b: a * sp.jv(0, b * x),
    "wofz": lambda x, a, b: a * sp.wofz(x + 1j * b).real,
    "interp": lambda x, a, b: a * np.interp(x * b, [0, 1, 2, 4], [0, 1, 4, 9]),
    "numpy.random is not gamma": lambda x, a, b: a * np.polyval([b, 1.0], x),
    "list of conditions": lambda x, a, b: a * np.select([x < 1], [b * x], 0.5),
}


@pytest.mark.parametrize("name", NUMERIC)
def test_without_a_counterpart_finite_differences_serve_and_the_reason_is_told(name):
    kernel = assert_exact(NUMERIC[name], numeric=True, rtol=1e-8)
    assert "no counterpart in torch" in kernel.reason


def test_an_import_inside_the_model_is_served_by_finite_differences():
    def model(x, a, b):
        import numpy as elsewhere

        return a * elsewhere.exp(-b * x)

    kernel = assert_exact(model, numeric=True, rtol=1e-8)
    assert "numpy" in kernel.reason


def test_branches_on_a_row_are_followed_one_row_at_a_time():
    def model(x, a, x0):
        if x > x0:
            return a * math.exp(-(x - x0))
        return a * x0

    kernel = assert_exact(model)
    assert "one row at a time" in kernel.reason


def test_branches_and_functions_without_counterpart_go_number_by_number():
    kernel = assert_exact(lambda x, a, b: a * sp.jv(0, b * x) if x > 1 else a * b, numeric=True, rtol=1e-8)
    assert "one row at a time" in kernel.reason
    assert "scipy.special.jv" in kernel.reason


@pytest.mark.parametrize("name", sorted(SHARED | TWINS.keys()))
def test_each_counterpart_computes_what_its_host_does(name):
    """On a grid with both signs; NaN in the same places."""
    grid = np.array([-2.75, -1.5, -0.5, -0.25, 0.25, 0.5, 0.75, 1.5, 3.25])
    other = np.array([0.5, 2.0, -1.5, 0.25, 0.75, 3.0, -0.5, 1.25, 2.5])
    tried = 0
    for host in HOSTS:
        function = getattr(host, name, None)
        if function is None or twin(function, host) is None or name in ("full_like", "array", "copy", "asarray", "clip"):
            continue
        for arguments in ((grid, other), (grid,)) if host is math else ((grid,), (grid, other), (grid > 0, grid, other)):
            try:
                expected = rowwise(function, arguments) if host is math else quiet(function, arguments)
            except (TypeError, ValueError):
                continue
            ours = twin(function, host)(*map(torch.from_numpy, arguments))
            assert_allclose(ours.numpy(), expected, rtol=1e-13, atol=1e-15, err_msg=f"{host.__name__}.{name}")
            tried += 1
            break
    assert tried or name in ("full_like", "array", "copy", "asarray", "clip")


@pytest.mark.parametrize(
    "function",
    [
        lambda x: np.array([x[0] * x[1], 1.0, np.exp(x[2])]),
        lambda x: np.asarray([[x[0], 2.0], [x[1] ** 2, x[2]]]),
        lambda x: np.stack([x, x**2]),
        lambda x: np.stack([x, x**2], axis=1),
        lambda x: np.concatenate([x[1:] - x[:-1], np.ones(2), x]),
        lambda x: np.concatenate([np.stack([x]), np.stack([x * x])], axis=1),
        lambda x: np.sum(x**2),
        lambda x: np.sum(np.stack([x, x**3]), axis=0),
        lambda x: np.mean([x[0], x[1] * x[2]]),
        lambda x: np.prod(x),
        lambda x: np.cumsum(x * x),
        lambda x: np.cumprod(np.stack([x, x * x]), axis=1),
    ],
)
def test_functions_of_whole_arrays_give_numpys_values_and_their_derivative(function):
    x = np.array([0.7, -1.2, 2.5])
    ours = on_tensors(function)
    point = torch.from_numpy(x)
    assert_allclose(ours(point).numpy(), function(x), rtol=1e-15)
    derivative = torch.autograd.functional.jacobian(ours, point).numpy()
    steps = 1e-30j * np.eye(3)
    expected = np.stack([np.imag(function(x + step)) / 1e-30 for step in steps], axis=-1)
    assert_allclose(derivative, expected, rtol=1e-14, atol=1e-15)


def quiet(function, arguments):
    with np.errstate(all="ignore"):
        result = function(*arguments)
    if not isinstance(result, np.ndarray):
        raise TypeError
    return result


def rowwise(function, arguments):
    def one(*row):
        try:
            return function(*row)
        except (ValueError, OverflowError):
            return math.nan

    return np.array([one(*map(float, row)) for row in zip(*arguments, strict=True)])


def test_two_closures_that_differ_in_a_number_give_different_fits():
    y = 2 * np.exp(-0.5 * X)
    first, second = (gradfit.fit(closing_over(c), X, y).values["b"] for c in (1.0, 2.0))
    assert first == pytest.approx(0.5)
    assert second == pytest.approx(0.25)


def test_a_global_changed_between_fits_is_seen(monkeypatch):
    y = 3 * np.exp(-X)

    def model(x, a):
        return a * SCALE * np.exp(-x)

    assert gradfit.fit(model, X, y).values["a"] == pytest.approx(1.5)
    monkeypatch.setitem(globals(), "SCALE", 4.0)
    assert gradfit.fit(model, X, y).values["a"] == pytest.approx(0.75)


def test_translation_changes_neither_the_function_nor_numpy():
    before = dict(helper.__globals__), helper.__code__, np.exp
    on_tensors(helper)(torch.ones(2), torch.ones(()))
    assert (dict(helper.__globals__), helper.__code__, np.exp) == before
    assert isinstance(helper(X, 1.0), np.ndarray)


def test_a_torch_function_is_left_as_it_is():
    def model(x, a):
        return a * torch.sigmoid(x)

    assert on_tensors(model) is model


def test_many_threads_translate_at_once():
    def one(constant):
        return gradfit.fit(closing_over(constant), X, 2 * np.exp(-0.5 * X)).values["b"] * constant

    with ThreadPoolExecutor(4) as pool:
        assert_allclose(list(pool.map(one, [1.0, 2.0, 4.0, 0.5])), 0.5, rtol=1e-6)


def test_only_the_hosts_own_functions_have_counterparts():
    with pytest.raises(Untranslatable, match="gamma"):
        Namespace(np).random.gamma(torch.ones(2))


def test_numbers_meet_float32_tensors_in_their_precision():
    value = on_tensors(lambda x: np.maximum(x, 0.1))(torch.zeros(2))
    assert value.dtype == torch.float32
    exact = on_tensors(lambda x: np.maximum(x, 0.1))(torch.zeros(2, dtype=torch.float64))
    assert exact[0].item() == 0.1
