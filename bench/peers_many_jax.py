"""Many fits in JAX, compiled beforehand: optimistix under vmap, and Levenberg-Marquardt by hand under vmap; with covariances."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from many_problems import Many
from peers import INSTALL, Peer, Unavailable

jax.config.update("jax_enable_x64", True)
ENOUGH = 1e-6
MOST = 60


def optimistix_vmap(data: Many) -> Peer:
    """Make optimistix's Levenberg-Marquardt under vmap; its tolerance leaves 1e-4 of a parameter."""
    try:
        import optimistix
    except ModuleNotFoundError as error:
        raise Unavailable(f"{error.name} is not installed: {INSTALL}") from error
    x, slopes = jnp.asarray(data.x), data.work.slopes
    solver = optimistix.LevenbergMarquardt(rtol=1e-4, atol=1e-4)

    def residual(theta: Any, y: Any) -> Any:
        return slopes(jnp, x, *theta)[0] - y

    def one(start: Any, y: Any) -> tuple[Any, Any]:
        theta = optimistix.least_squares(residual, solver, start, args=y, throw=False, max_steps=MOST).value
        jacobian = jax.jacfwd(residual)(theta, y)
        variance = jnp.sum(residual(theta, y) ** 2) / (len(x) - len(start))
        return theta, jnp.linalg.inv(jacobian.T @ jacobian) * variance

    return _compiled(one, data)


def by_hand(data: Many) -> Peer:
    """Make Levenberg-Marquardt by normal equations: derivatives written out, small matrices unrolled, vmap over a while loop."""
    x, slopes, p = jnp.asarray(data.x), data.work.slopes, data.start.shape[1]

    def look(theta: Any, y: Any) -> tuple[Any, Any, Any]:
        value, columns = slopes(jnp, x, *theta)
        residual = value - y
        normal = [[jnp.sum(columns[j] * columns[k]) for k in range(j + 1)] for j in range(p)]
        return jnp.sum(residual**2), [jnp.sum(column * residual) for column in columns], normal

    def one(start: Any, y: Any) -> tuple[Any, Any]:
        def goes_on(state: Any) -> Any:
            return ~state["ended"] & (state["looks"] < MOST)

        def step(state: Any) -> Any:
            total, gradient, normal = look(state["trial"], y)
            taken = total <= state["sum"] * (1 + 1e-6)
            keep = lambda new, old: jnp.where(taken, new, old)  # noqa: E731
            here = {name: jax.tree.map(keep, new, state[name]) for name, new in (("gradient", gradient), ("normal", normal))}
            theta, total = keep(state["trial"], state["theta"]), keep(total, state["sum"])
            damping = state["damping"] * keep(0.1, 10.0)
            damped = [
                [row[k] * (1 + damping) if j == k else row[k] for k in range(j + 1)] for j, row in enumerate(here["normal"])
            ]
            delta, left = _solve(damped, here["gradient"])
            return {
                "theta": theta, "trial": theta + delta, "sum": total, "damping": damping, "looks": state["looks"] + 1,
                "ended": taken & (left <= ENOUGH * total / (len(x) - p)), **here,
            }  # fmt: skip

        total, gradient, normal = look(start, y)
        begin = {
            "theta": start, "trial": start, "sum": jnp.full_like(total, jnp.inf), "damping": jnp.full_like(total, 0.1),
            "looks": 0, "ended": jnp.array(False), "gradient": gradient, "normal": normal,
        }  # fmt: skip
        end = jax.lax.while_loop(goes_on, step, begin)
        return end["trial"], _inverse_diagonal(end["normal"]) * end["sum"] / (len(x) - p)

    return _compiled(one, data)


def _compiled(one: Any, data: Many) -> Peer:
    wide = data.y.dtype == np.float64  # in single precision optimistix mixes precisions where double ones are allowed
    solve = jax.jit(jax.vmap(one))
    with jax.enable_x64(wide):
        start, y = jnp.asarray(data.start, dtype=data.y.dtype), jnp.asarray(data.y)

    def run() -> np.ndarray:
        with jax.enable_x64(wide):
            theta, _ = jax.block_until_ready(solve(start, y))
            return np.asarray(theta).T

    return run


def _cholesky(normal: Any) -> Any:
    lower: list[list[Any]] = [[] for _ in normal]
    for j, row in enumerate(normal):
        for k in range(j + 1):
            total = row[k] - sum(lower[j][i] * lower[k][i] for i in range(k))
            lower[j].append(jnp.sqrt(total) if j == k else total / lower[k][k])
    return lower


def _solve(normal: Any, gradient: Any) -> tuple[Any, Any]:
    """Give the step and the gain that is left."""
    lower, p = _cholesky(normal), len(gradient)
    forward: list[Any] = []
    for j in range(p):
        forward.append((-gradient[j] - sum(lower[j][k] * forward[k] for k in range(j))) / lower[j][j])
    delta: list[Any] = [None] * p
    for j in reversed(range(p)):
        delta[j] = (forward[j] - sum(lower[k][j] * delta[k] for k in range(j + 1, p))) / lower[j][j]
    return jnp.stack(delta), sum(part * part for part in forward)


def _inverse_diagonal(normal: Any) -> Any:
    lower, p = _cholesky(normal), len(normal)
    found = []
    for j in range(p):
        column = {j: 1 / lower[j][j]}
        for i in range(j + 1, p):
            column[i] = -sum(lower[i][k] * column[k] for k in range(j, i)) / lower[i][i]
        found.append(sum(part * part for part in column.values()))
    return jnp.stack(found)
