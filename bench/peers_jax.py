"""JAX: the whole descent in one compiled scan with optax; Levenberg-Marquardt by optimistix; loss and gradient.

The first call compiles and is not timed. Histories are kept, as gradfit keeps them, and results are waited for.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from peers import INSTALL, Peer, Unavailable
from problems import Data

jax.config.update("jax_enable_x64", True)


def scan(data: Data, optimizer: str, rate: float, epochs: int) -> Peer:
    """Make the descent: ``lax.scan`` over the epochs, with loss, parameters and gradient of each."""
    transformation = getattr(optax, optimizer)(rate)
    x, y, start = arrays(data)

    def loss(params: Any, x: Any, y: Any) -> Any:
        return jnp.mean((params[0] * x + params[1] - y) ** 2)

    def whole(params: Any, x: Any, y: Any) -> Any:
        def step(carry: Any, _: Any) -> Any:
            params, state = carry
            value, gradient = jax.value_and_grad(loss)(params, x, y)
            updates, state = transformation.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            # one row an epoch: given as a tuple of three, XLA copies the whole history each epoch under Adam, 15 times slower
            return (params, state), jnp.concatenate([value[None], params, gradient])

        (params, _), history = jax.lax.scan(step, (params, transformation.init(params)), length=epochs)
        return params, history

    descend = jax.jit(whole)

    def run() -> np.ndarray:
        params, _ = jax.block_until_ready(descend(start, x, y))
        return np.asarray(params)

    return run


def levenberg_marquardt(data: Data) -> Peer:
    """Make optimistix's fit of a Gaussian and a constant, with the covariance, all inside one jit."""
    try:
        import optimistix
    except ModuleNotFoundError as error:
        raise Unavailable(f"{error.name} is not installed: {INSTALL}") from error
    x, y, start = arrays(data)
    solver = optimistix.LevenbergMarquardt(rtol=1e-8, atol=1e-8)

    def residual(theta: Any, columns: Any) -> Any:
        x, y = columns
        height, center, width, offset = theta
        return height * jnp.exp(-(((x - center) / width) ** 2) / 2) + offset - y

    def whole(theta: Any, columns: Any) -> Any:
        theta = optimistix.least_squares(residual, solver, theta, args=columns, throw=False).value
        jacobian = jax.jacfwd(residual)(theta, columns)
        variance = jnp.sum(residual(theta, columns) ** 2) / (len(columns[0]) - len(theta))
        return theta, jnp.linalg.inv(jacobian.T @ jacobian) * variance

    solve = jax.jit(whole)

    def run() -> np.ndarray:
        theta, _ = jax.block_until_ready(solve(start, (x, y)))
        return np.asarray(theta)

    return run


def loss_and_gradient(data: Data) -> Peer:
    """Make the mean squared residual of an exponential decay and its gradient; gives the gradient."""
    x, y, start = arrays(data)

    def loss(theta: Any, x: Any, y: Any) -> Any:
        a, b, c = theta
        return jnp.mean((a * jnp.exp(-b * x) + c - y) ** 2)

    both = jax.jit(jax.value_and_grad(loss))

    def run() -> np.ndarray:
        _, gradient = jax.block_until_ready(both(start, x, y))
        return np.asarray(gradient)

    return run


def arrays(data: Data) -> tuple[Any, Any, Any]:
    """Give x, y and the start in the data's precision."""
    return jnp.asarray(data.x), jnp.asarray(data.y), jnp.asarray(list(data.start.values()), dtype=data.x.dtype)
