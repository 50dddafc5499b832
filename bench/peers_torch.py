"""Gradient descent in torch: the loop of the notebook, torch.optim, and a compiled step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from peers import Peer, Unavailable
from problems import Data, celsius


def notebook(data: Data, rate: float, epochs: int) -> Peer:
    """Make the loop as written by hand: predict, loss, backward, step, zero the gradient."""
    t_u, t_c, start = tensors(data)

    def run() -> np.ndarray:
        params = start.clone().requires_grad_()
        for _ in range(epochs):
            t_p = celsius(t_u, *params)
            loss = ((t_p - t_c) ** 2).mean()
            loss.backward()
            with torch.no_grad():
                params -= rate * params.grad  # type: ignore[operator]  # backward has set it
                params.grad.zero_()  # type: ignore[union-attr]
        return params.detach().numpy()

    return run


def optimizer(data: Data, name: str, rate: float, epochs: int) -> Peer:
    """Make the loop with an optimizer of torch.optim, its options as torch has them."""
    t_u, t_c, start = tensors(data)
    kind = getattr(torch.optim, name)

    def run() -> np.ndarray:
        params = start.clone().requires_grad_()
        steps = kind([params], lr=rate)

        def closure() -> torch.Tensor:
            steps.zero_grad()
            loss: torch.Tensor = ((celsius(t_u, *params) - t_c) ** 2).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        for _ in range(epochs):
            if name == "LBFGS":
                steps.step(closure)
            else:
                closure()
                steps.step()
        return params.detach().numpy()

    return run


def compiled(data: Data, rate: float, epochs: int) -> Peer:
    """Make a loop around one step of gradient descent that torch.compile has compiled."""
    t_u, t_c, start = tensors(data)

    def loss(params: torch.Tensor) -> torch.Tensor:
        mean: torch.Tensor = ((celsius(t_u, params[0], params[1]) - t_c) ** 2).mean()
        return mean

    def descend(params: torch.Tensor) -> torch.Tensor:
        gradient: torch.Tensor = torch.func.grad(loss)(params)
        return params - rate * gradient

    try:
        step = torch.compile(descend)
        step(start)
    except Exception as error:  # whatever a compiler meets on a strange machine
        raise Unavailable(f"torch.compile cannot compile here: {type(error).__name__}: {first_line(error)}") from error

    def run() -> np.ndarray:
        params = start
        for _ in range(epochs):
            params = step(params)
        return params.numpy()

    return run


def loss_and_gradient(model: Callable[..., torch.Tensor], data: Data) -> Peer:
    """Make the mean squared residual and its gradient by autograd; gives the gradient."""
    x, y, start = tensors(data)

    def run() -> np.ndarray:
        theta = start.clone().requires_grad_()
        loss = ((model(x, *theta) - y) ** 2).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        assert theta.grad is not None
        return theta.grad.numpy()

    return run


def tensors(data: Data) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give x, y and the start in the data's precision."""
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    return x, y, torch.tensor(list(data.start.values()), dtype=x.dtype)


def first_line(error: Exception) -> str:
    """First line of a message."""
    return (str(error).strip().splitlines() or ["no reason given"])[0]
