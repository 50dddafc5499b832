"""Many fits in torch: Levenberg-Marquardt on whole batches, derivatives by torch.func, fits that have ended taken out; with errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from many_problems import Many
from peers import Peer

ENOUGH = 1e-6
MOST = 60


def batched(data: Many) -> Peer:
    """Make the fits of a batch step by step."""
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    start = torch.from_numpy(data.start).to(y.dtype)
    n, p = len(x), start.shape[1]

    def residual(theta: Any, y: Any) -> tuple[Any, Any]:
        found = data.work.model(x, *theta) - y
        return found, found

    slopes = torch.func.vmap(torch.func.jacfwd(residual, has_aux=True))

    def look(theta: Any, y: Any) -> tuple[Any, Any, Any]:
        jacobian, residuals = slopes(theta, y)
        turned = jacobian.transpose(1, 2)
        return residuals.square().sum(1), (turned @ residuals[:, :, None])[:, :, 0], turned @ jacobian

    def run() -> np.ndarray:
        theta, errors = start.clone(), torch.full_like(start, torch.nan)
        places, here = torch.arange(len(y)), y
        trial, now = start, start
        damping = torch.full_like(start[:, 0], 1e-2)
        total, gradient, normal = look(trial, here)
        for looks in range(MOST):
            if looks:
                new_total, new_gradient, new_normal = look(trial, here)
                taken = new_total <= total * (1 + 1e-6)
                total = torch.where(taken, new_total, total)
                gradient = torch.where(taken[:, None], new_gradient, gradient)
                normal = torch.where(taken[:, None, None], new_normal, normal)
                now = torch.where(taken[:, None], trial, now)
                damping = damping * torch.where(taken, 0.1, 10.0)
            else:
                taken = torch.ones_like(places, dtype=torch.bool)
            diagonal = torch.diagonal(normal, dim1=1, dim2=2)
            lower, _ = torch.linalg.cholesky_ex(normal + torch.diag_embed(damping[:, None] * diagonal))
            delta = -torch.cholesky_solve(gradient[:, :, None], lower)[:, :, 0]
            trial = now + delta
            left = -(gradient * delta).sum(1)
            ended = taken & (left <= ENOUGH * total / (n - p))
            theta[places[ended]] = trial[ended]
            inverse = torch.cholesky_inverse(torch.linalg.cholesky_ex(normal[ended])[0])
            variance = (total[ended] / (n - p))[:, None]
            errors[places[ended]] = torch.sqrt(torch.diagonal(inverse, dim1=1, dim2=2) * variance)
            rest = ~ended
            if not rest.any():
                break
            places, here, trial, now = places[rest], here[rest], trial[rest], now[rest]
            total, gradient, normal, damping = total[rest], gradient[rest], normal[rest], damping[rest]
        return theta.numpy().T

    return run
