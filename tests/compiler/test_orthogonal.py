"""Distances from the nearest point of a model, and their derivative, beside minimisers and differences from outside."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, minimize_scalar

import gradfit

GENERATOR = np.random.default_rng(4)
N = 23  # no multiple of any width
X = np.linspace(0.2, 6, N) + GENERATOR.normal(0, 0.2, N)
Z = GENERATOR.uniform(-2, 2, N)
SIGMA, SIGMA_X, SIGMA_Z = (GENERATOR.uniform(0.05, 0.4, N) for _ in range(3))
ENGINES = ("native", "torch")


def decay(x, a, b, c):
    return a * np.exp(-b * x) + c


def surface(x, z, a, b, c):
    return a * np.exp(-b * x) + c * z**2


def ellipse(x, z, a, b, c):
    return (x / a) ** 2 + (z / b) ** 2 + c * x * z - 1


THETA = np.array([2.5, 0.7, 0.4])
TARGET = {decay: decay(X, 2.7, 0.6, 0.5), surface: surface(X, Z, 2.7, 0.6, 0.5)}


def kernel_of(model, engine, sigma=SIGMA):
    inputs = (X,) if model is decay else (X, Z)
    sigma_x = {"x": SIGMA_X} if model is decay else {"z": SIGMA_Z, "x": SIGMA_X}
    y = TARGET[model] + 0.3 * np.sin(7 * X)
    fit = gradfit.fit(model, *inputs, y, sigma=sigma, sigma_x=sigma_x, start=list(THETA), engine=engine, on_failure="ignore")
    assert fit.engine == engine
    return fit._known.kernel, y


@pytest.mark.parametrize("engine", ENGINES)
def test_the_distance_is_the_least_one_that_a_minimiser_finds(engine):
    kernel, y = kernel_of(decay, engine)
    distance, _ = kernel.residual(THETA)
    moved = kernel.nearest(THETA).errors["x"]
    for row in range(N):

        def square(d, row=row):
            return ((decay(X[row] + d, *THETA) - y[row]) / SIGMA[row]) ** 2 + (d / SIGMA_X[row]) ** 2

        found = minimize_scalar(square, bracket=(-0.1, 0.1), options={"xtol": 1e-12})
        assert distance[row] ** 2 == pytest.approx(found.fun, rel=1e-10)
        assert moved[row] == pytest.approx(found.x, abs=1e-6 * SIGMA_X[row])
        assert distance[row] * (decay(X[row] + moved[row], *THETA) - y[row]) >= 0


@pytest.mark.parametrize("engine", ENGINES)
def test_with_two_inexact_inputs_too(engine):
    kernel, y = kernel_of(surface, engine)
    distance, _ = kernel.residual(THETA)
    for row in range(0, N, 3):

        def square(u, row=row):
            x, z = X[row] + SIGMA_X[row] * u[0], Z[row] + SIGMA_Z[row] * u[1]
            return ((surface(x, z, *THETA) - y[row]) / SIGMA[row]) ** 2 + u @ u

        assert distance[row] ** 2 == pytest.approx(minimize(square, [0.0, 0.0], tol=1e-12).fun, rel=1e-8)


@pytest.mark.parametrize("model", [decay, surface])
@pytest.mark.parametrize("engine", ENGINES)
def test_the_derivative_is_that_of_the_distance(model, engine):
    kernel, _ = kernel_of(model, engine)
    _, jacobian = kernel.residual(THETA)
    for place in range(3):
        step = 1e-6 * np.eye(3)[place]
        ahead, behind = (kernel.residual(THETA + sign * step)[0] for sign in (1, -1))
        np.testing.assert_allclose(jacobian[:, place], (ahead - behind) / 2e-6, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("model", [decay, surface])
def test_both_engines_compute_the_same_numbers(model):
    native, eager = (kernel_of(model, engine)[0] for engine in ENGINES)
    one, other = native.linearize(THETA), eager.linearize(THETA)
    for part in ("residual", "jacobian", "prediction", "weight"):
        np.testing.assert_allclose(getattr(one, part), getattr(other, part), rtol=1e-11, atol=1e-13)
    assert native.mean_loss(THETA) == pytest.approx(float(one.residual @ one.residual) / N, rel=1e-14)
    assert eager.mean_loss(THETA) == pytest.approx(native.mean_loss(THETA), rel=1e-12)


def test_the_normal_equations_are_those_of_all_unknowns_without_the_errors_in_x():
    """J^T J is the Schur complement of the normal equations of (theta, d), whose Jacobian is written out here."""
    kernel, _ = kernel_of(decay, "native")
    _, jacobian = kernel.residual(THETA)
    a, b, _ = THETA
    x = X + kernel.nearest(THETA).errors["x"]
    by_theta = np.stack([np.exp(-b * x), -a * x * np.exp(-b * x), np.ones(N)], axis=1) / SIGMA[:, None]
    by_d = np.diag(-a * b * np.exp(-b * x) / SIGMA)
    whole = np.block([[by_theta, by_d], [np.zeros((N, 3)), np.diag(1 / SIGMA_X)]])
    inverse = np.linalg.inv(whole.T @ whole)[:3, :3]
    np.testing.assert_allclose(np.linalg.inv(jacobian.T @ jacobian), inverse, rtol=1e-8)


@pytest.mark.parametrize("engine", ENGINES)
def test_points_whose_target_is_exact_are_moved_onto_the_model(engine):
    x, z = 2 * np.cos(X) + 0.1 * Z, np.sin(X) + 0.05 * Z
    fit = gradfit.fit(
        ellipse,
        x,
        z,
        np.zeros(N),
        sigma=0,
        sigma_x={"x": 0.1, "z": 0.2},
        start=[2.0, 1.0, 0.0],
        engine=engine,
        on_failure="ignore",
    )
    kernel, theta = fit._known.outcome.kernel, np.array([2.1, 1.1, 0.05])
    found = kernel.nearest(theta)
    np.testing.assert_allclose(ellipse(x + found.errors["x"], z + found.errors["z"], *theta), 0, atol=1e-12)
    distance, jacobian = kernel.residual(theta)
    np.testing.assert_allclose(distance**2, (found.errors["x"] / 0.1) ** 2 + (found.errors["z"] / 0.2) ** 2, rtol=1e-9)
    step = np.array([1e-6, 0, 0])
    slope = (kernel.residual(theta + step)[0] - kernel.residual(theta - step)[0]) / 2e-6
    np.testing.assert_allclose(jacobian[:, 0], slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_nearly_exact_target_is_the_limit_of_an_exact_one(engine):
    near, exact = (kernel_of(surface, engine, sigma=sigma)[0].residual(THETA)[0] for sigma in (1e-9, 0.0))
    np.testing.assert_allclose(near, exact, rtol=1e-6)


def test_the_mean_square_can_be_differentiated_by_torch():
    kernel, _ = kernel_of(decay, "native")
    point = torch.tensor(THETA, requires_grad=True)
    loss = kernel.loss(point)
    loss.backward()
    distance, jacobian = kernel.residual(THETA)
    np.testing.assert_allclose(point.grad.numpy(), 2 * jacobian.T @ distance / N, rtol=1e-12)
    direction = np.array([1.0, -0.5, 0.2])
    step = 1e-5 * direction
    slopes = [2 * j.T @ r / N for r, j in (kernel.residual(THETA + step), kernel.residual(THETA - step))]
    np.testing.assert_allclose(kernel.hessian_product(THETA, direction), (slopes[0] - slopes[1]) / 2e-5, rtol=1e-5)
