r"""Diagonal scaling: gradient descent on raw data, without rescaling inputs by hand.

Descent works on :math:`u_j = \theta_j / s_j` and on the loss in units of its value at the start. With J the derivative of the
residual by the parameters and r the residual at the start (both in units of sigma where given),

.. math:: s_j = \mathrm{rms}(r) / \mathrm{rms}(J_j)

so that a change of u by 1 moves the prediction by as much as it is off at the start. Learning rates are then pure numbers:
multiply x, y or a parameter by 1e8 and nothing changes but the units of the answer.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch

from gradfit.compiler.kernel import Kernel
from gradfit.methods.method import Problem
from gradfit.typing import Floats

HALVINGS = 40  # a rate 1e12 times smaller would not arrive
TRIED = 20  # steps
ROUNDING = 1e-6  # of the curvature, which is the same everywhere in a linear model


@dataclass(frozen=True)
class Scaling:
    """Units of descent.

    Attributes
    ----------
    parameters
        s, (p,), in parameter units.
    loss
        The loss is divided by this.
    steepest
        Largest curvature (eigenvalue of the Gauss-Newton matrix) of the scaled loss at the start; a rate of its inverse
        is safe for plain gradient descent.
    """

    parameters: Floats
    loss: float
    steepest: float


@functools.cache
def none(size: int) -> Scaling:
    """No scaling: the user's own units."""
    return Scaling(np.ones(size), 1.0, 1.0)


def diagonal(kernel: Kernel, theta: Floats) -> Scaling:
    """Measure the scaling at the start; see the formula above. Where the model is not finite it is 1."""
    with np.errstate(all="ignore"):
        residual, derivative = kernel.residual(theta)
        off = _positive(float(np.sqrt(np.mean(residual**2))), 1.0)
        columns = np.sqrt(np.mean(derivative**2, axis=0))
        still = off / np.maximum(np.abs(theta), 1.0)  # a parameter without effect at the start: its own size is its unit
        units = off / np.array([_positive(float(column), float(other)) for column, other in zip(columns, still, strict=True)])
        loss = _positive(abs(kernel.mean_loss(theta)), 1.0)
        return Scaling(units, loss, _steepest(derivative, units, loss))


def steady_rate(problem: Problem, units: Scaling) -> float:
    r"""Largest learning rate that plain descent can be expected to keep, in scaled units.

    1 / curvature holds where the model is linear. Where it is curved a step may land on a slope so steep that the next one
    throws the parameters out of reach. So the first few steps are tried, and the rate is halved until the loss falls at each
    of them and the rate is no more than 1 / curvature anywhere on the way.
    """
    rate = 1 / units.steepest
    with np.errstate(all="ignore"):
        if not (len(units.parameters) and np.isfinite(problem.kernel.mean_loss(problem.parameters.start))):
            return rate
        tried = (rate / 2**halvings for halvings in range(HALVINGS))
        return next((slower for slower in tried if _keeps_falling(problem, units, slower)), rate)


def _keeps_falling(problem: Problem, units: Scaling, rate: float) -> bool:
    parameters, theta, last = problem.parameters, problem.parameters.start, np.inf
    for _ in range(TRIED):
        here = torch.as_tensor(theta, dtype=problem.dtype).requires_grad_()
        loss = problem.kernel.loss(here)
        curvature = _steepest(problem.kernel.residual(theta)[1], units.parameters, units.loss, otherwise=np.inf)
        if not (loss.item() <= last * (1 + ROUNDING) and rate * curvature <= 1 + ROUNDING):
            return False
        last = loss.item()
        (gradient,) = torch.autograd.grad(loss, here)
        step = rate * gradient.double().numpy() * units.parameters**2 / units.loss
        theta = np.clip(theta - step, parameters.lower, parameters.upper)
    return True


def _steepest(derivative: Floats, units: Floats, loss: float, otherwise: float = 1.0) -> float:
    """Largest curvature of the scaled loss: eigenvalue of its Gauss-Newton matrix."""
    scaled = derivative * units
    matrix = 2 * scaled.T @ scaled / (len(scaled) * loss)
    return _positive(float(np.linalg.eigvalsh(matrix)[-1]), otherwise) if len(units) and np.isfinite(matrix).all() else otherwise


def _positive(value: float, otherwise: float) -> float:
    return value if np.isfinite(value) and value > 0 else otherwise
