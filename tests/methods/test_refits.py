"""Repeated fits: as Python and compiled, against curve_fit and gradfit.fit, independent of their order, and from many threads."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy.optimize import curve_fit

import gradfit
from gradfit.compiler.compiled import Tables
from gradfit.methods import marquardt, refits
from gradfit.methods.refitting import Ray, crossings, refit

X = np.linspace(0, 5, 30)
Y = 3 * np.exp(-0.7 * X) + 0.5 + np.random.default_rng(11).normal(0, 0.15, 30)
START = {"a": 3.0, "b": 0.7, "c": 0.5}
DECAY = "y = a*exp(-b*x) + c"


def decay_numpy(x, a, b, c):
    return a * np.exp(-b * x) + c


@pytest.fixture
def fitted():
    return gradfit.fit(DECAY, data={"x": X, "y": Y}, start=START)._known


def state(kernel, p):
    """The algorithm's arrays, as Solver lays them out."""
    numbers = np.zeros(marquardt.NUMBERS)
    numbers[marquardt.RADIUS], numbers[marquardt.RANK_TOLERANCE] = 1.0, kernel.n * np.finfo(float).eps
    return (
        np.zeros((p + 1, kernel.n)),
        kernel.offset.copy(),
        np.zeros((marquardt.MATRICES, p + 1, p + 2)),
        np.zeros((marquardt.VECTORS, p)),
        numbers,
        np.zeros(marquardt.COUNTERS, dtype=np.int64),
        np.zeros((8, marquardt.HISTORY + 2 * p)),
    )


def in_python(kernel, theta, lower, upper, ray, *, tau, variance, least):
    """Follow one ray with the algorithm as Python runs it."""
    p = len(theta)

    def linearize(point, context, system):
        residual, jacobian = kernel.residual(np.array(point))
        system[:p], system[p] = jacobian.T, residual
        return float(residual @ residual)

    def sum_of_squares(point, context):
        return kernel.mean_loss(np.array(point)) * kernel.n

    row = np.zeros(refits.RAY * p + refits.RAY_NUMBERS)
    row[:p], row[p : 2 * p] = ray.direction, ray.held
    goal = np.array([variance, least, tau, 1e-10, 200])
    limits, base = np.array([lower, upper]), np.array(theta)
    code = refits.cross(linearize, sum_of_squares, None, *state(kernel, p), goal, limits, row, base)
    return code, row[3 * p]


OPEN_ONES = (np.full(3, -np.inf), np.full(3, np.inf))


@pytest.mark.parametrize("limits", [OPEN_ONES, (np.array([2.9, 0.5, 0.3]), np.array([3.2, 0.9, 0.6]))], ids=["open", "bounded"])
@pytest.mark.parametrize("tau", [0.5, 2.0, 6.0])
def test_rays_are_the_same_compiled_and_as_python(fitted, limits, tau):
    kernel, theta = fitted.outcome.kernel, fitted.outcome.solution.theta
    theta = np.clip(theta, *limits)
    known = {"tau": tau, "variance": 0.02, "least": float(kernel.mean_loss(theta) * kernel.n)}
    known["least"] = min(known["least"], fitted.outcome.conclusion.sum)
    rays = [
        Ray(sign * size * np.eye(3)[place], np.arange(3) == place)
        for place, size in enumerate((0.1, 0.06, 0.09))
        for sign in (-1, 1)
    ]
    for ray, found in zip(rays, crossings(kernel, theta, *limits, rays, **known), strict=True):
        code, rho = in_python(kernel, theta, *limits, ray, **known)
        assert found.code == code
        assert found.rho == pytest.approx(rho, rel=1e-6)


def test_a_crossing_lies_at_the_value_with_the_others_at_their_minimum(fitted):
    kernel, theta = fitted.outcome.kernel, fitted.outcome.solution.theta
    least = fitted.outcome.conclusion.sum
    ray = Ray(np.array([0.0, 0.06, 0.0]), np.array([False, True, False]))
    (found,) = crossings(kernel, theta, *OPEN_ONES, [ray], tau=2.0, variance=0.02, least=least)
    assert found.code == refits.CROSSED
    assert found.theta[1] == pytest.approx(theta[1] + found.rho * 0.06, rel=1e-14)
    design = np.column_stack([np.exp(-found.theta[1] * X), np.ones(30)])
    best, (total,), *_ = np.linalg.lstsq(design, Y, rcond=None)
    assert (total - least) / 0.02 == pytest.approx(4.0, rel=1e-6)
    np.testing.assert_allclose(found.theta[[0, 2]], best, rtol=1e-5)


def test_a_model_that_is_not_finite_far_out_is_open_there_and_one_that_fails_nearby_is_lost():
    far = gradfit.fit("y = 1 + 1e-9*exp(l)*x", data={"x": X, "y": 1 + 0.1 * np.cos(7 * X)}, start={"l": 0.0}, on_failure="ignore")
    kernel = far._known.outcome.kernel
    ray = Ray(np.array([-1.0]), np.array([True]))
    one = (np.full(1, -np.inf), np.full(1, np.inf))
    least = float(kernel.mean_loss(np.array([-5.0])) * kernel.n)
    (found,) = crossings(kernel, np.array([-5.0]), *one, [ray], tau=2.0, variance=0.02, least=least)
    assert found.code == refits.OPEN
    near = gradfit.fit("y = a + sqrt(1 - a*a)*x*0", data={"x": X, "y": 0.9 + 0.5 * np.cos(3 * X)}, start={"a": 0.9})
    kernel, theta = near._known.outcome.kernel, near._known.outcome.solution.theta
    ray = Ray(np.array([0.1]), np.array([True]))
    (found,) = crossings(kernel, theta, *one, [ray], tau=5.0, variance=0.1, least=near.chi_square)
    assert found.code == refits.LOST


# --- fits to other data -------------------------------------------------------------------------------------------------


def resampled(count, seed=0):
    return np.random.default_rng(seed).integers(0, 30, (count, 30))


def refitted(fitted, index, *, lower=OPEN_ONES[0], upper=OPEN_ONES[1], target=Y, variance=0.0):
    tables = Tables([X[index], target[index]], target[index], linear=True)
    return refit(fitted.outcome.kernel, fitted.outcome.solution.theta, lower, upper, tables, variance=variance, enough=1e-6)


def test_refits_are_those_of_curve_fit(fitted):
    index = resampled(40)
    found = refitted(fitted, index)
    assert found.converged.all()
    for rows, theta, stderr, total in zip(index, found.theta, found.stderr, found.sum, strict=True):
        popt, pcov = curve_fit(decay_numpy, X[rows], Y[rows], p0=list(START.values()), ftol=1e-14, xtol=1e-14, gtol=1e-14)
        errors = np.sqrt(np.diag(pcov))
        assert (np.abs(theta - popt) / errors).max() < 1e-4
        np.testing.assert_allclose(stderr, errors, rtol=2e-3)
        assert total == pytest.approx(((decay_numpy(X[rows], *popt) - Y[rows]) ** 2).sum(), rel=1e-6)


def test_refits_are_those_of_fit_within_bounds():
    bounds = {"b": (0.65, None), "a": (None, 3.05)}
    fitted = gradfit.fit(DECAY, data={"x": X, "y": Y}, start=START, bounds=bounds)._known
    index = resampled(20)
    lower, upper = np.array([-np.inf, 0.65, -np.inf]), np.array([3.05, np.inf, np.inf])
    found = refitted(fitted, index, lower=lower, upper=upper)
    for rows, theta, stderr in zip(index, found.theta, found.stderr, strict=True):
        own = gradfit.fit(DECAY, data={"x": X[rows], "y": Y[rows]}, start=START, bounds=bounds)
        inside = ~np.array([own.params[name].at_bound for name in "abc"])
        errors = np.array([own.params[name].stderr for name in "abc"])
        np.testing.assert_allclose(theta[~inside], np.array(list(own.values.values()))[~inside], rtol=1e-14)
        assert (np.abs(theta - list(own.values.values()))[inside] / errors[inside]).max() < 1e-3
        assert np.isnan(stderr[~inside]).all()
    assert np.isnan(found.stderr).any()


def test_refits_do_not_depend_on_those_before_them(fitted):
    """Some are hard: from a start far away Levenberg-Marquardt has to go on, refuses steps and hesitates."""
    index = resampled(30)
    hard = Y * np.where(np.arange(30) % 7 == 0, 30.0, 1.0)
    together = refitted(fitted, index, target=hard)
    for place in range(30):
        alone = refitted(fitted, index[place : place + 1], target=hard)
        for name in ("theta", "stderr", "sum", "code"):
            np.testing.assert_array_equal(getattr(alone, name)[0], getattr(together, name)[place])
    assert not together.converged.all() or np.ptp(together.theta[:, 1]) > 1  # hard they were


def test_data_that_do_not_determine_a_parameter_give_it_an_infinite_error(fitted):
    line = gradfit.fit("y = a*x + c", data={"x": X, "y": Y})._known
    index = np.array([[3] * 30, list(range(30))])
    limits = [side[:2] for side in OPEN_ONES]
    tables = Tables([X[index], Y[index]], Y[index], linear=True)
    found = refit(line.outcome.kernel, line.outcome.solution.theta, *limits, tables, variance=0.0, enough=1e-6)
    assert np.isinf(found.stderr[0]).all()
    np.testing.assert_allclose(found.stderr[1], np.sqrt(np.diag(line.covariance.matrix)), rtol=1e-9)


def test_a_known_variance_gives_errors_in_its_units(fitted):
    index = resampled(3)
    own, known = (refitted(fitted, index, variance=variance) for variance in (0.0, 0.04))
    np.testing.assert_array_equal(own.theta.shape, known.theta.shape)
    np.testing.assert_allclose(known.stderr, own.stderr * 0.2 / np.sqrt(own.sum / 27)[:, None], rtol=1e-6)


def test_refits_of_what_is_not_finite_say_so(fitted):
    target = np.tile(Y, (2, 1))
    target[0, 4] = math.nan
    tables = Tables([X, target], target, linear=True)
    found = refit(fitted.outcome.kernel, fitted.outcome.solution.theta, *OPEN_ONES, tables, variance=0.0, enough=1e-6)
    assert found.code.tolist() == [marquardt.NOT_FINITE, marquardt.CONVERGED]
    assert np.isnan(found.stderr[0]).all()


# --- threads ----------------------------------------------------------------------------------------------------------------

MANY_THREADS = """
import sys, threading, numpy as np, torch, gradfit
sys.setswitchinterval(1e-5)
generator = np.random.default_rng(0)
x = np.linspace(0, 5, 40)
y = 3 * np.exp(-x) + 1 + generator.normal(0, 0.1, 40)
counts = generator.poisson(20 * np.exp(-x) + 2).astype(float)
sigma = np.full(40, 0.1)
start = {"a": 3.0, "b": 1.0, "c": 1.0}

def decay(x, a, b, c):
    return a * torch.exp(-b * x) + c

gate, wrong, found = threading.Barrier(8), [], [None] * 8

def work(place):
    try:
        gate.wait()
        fit = gradfit.fit(decay, x, y, start=start, sigma=sigma if place % 2 else None)
        counted = gradfit.fit(decay, x, counts, start=start, loss="poisson")
        plain = gradfit.fit(decay, x, y, start=start, engine="torch")
        found[place] = (
            fit.profile().intervals, fit.contour("a", "b", points=8).tobytes(), fit.bootstrap(100, threads=3).samples.tobytes(),
            tuple(fit.derive("a*b")), counted.profile().intervals, counted.bootstrap(5).samples.tobytes(), plain.profile().intervals,
        )
    except BaseException as error:
        wrong.append(repr(error))

threads = [threading.Thread(target=work, args=(place,)) for place in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not wrong, wrong
assert all(one == found[place % 2] for place, one in enumerate(found))
print("alike")
"""


@pytest.mark.slow
@pytest.mark.parametrize("run", range(3))
def test_many_threads_may_fit_profile_and_resample_the_same_model_at_once(run):
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", MANY_THREADS], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout.strip() == "alike", done.stderr[-3000:]
