r"""Diagonal scaling: gradient descent on raw data, without rescaling inputs by hand.

Descent works on :math:`u_j = \theta_j / s_j` and on the loss in units of its value at the start. With J the derivative of the
residual by the parameters and r the residual at the start (both in units of sigma where given),

.. math:: s_j = \mathrm{rms}(r) / \mathrm{rms}(J_j)

so that a change of u by 1 moves the prediction by as much as it is off at the start. Learning rates are then pure numbers:
multiply x, y or a parameter by 1e8 and nothing changes but the units of the answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from gradfit.compiler.kernel import Kernel
from gradfit.model.parameters import Parameters
from gradfit.typing import Floats


HALVINGS = 60  # a rate 1e18 times smaller is no rate
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


def steady_rate(kernel: Kernel, parameters: Parameters, units: Scaling) -> float:
    r"""Largest learning rate that plain descent can be expected to keep, in scaled units.

    1 / curvature holds where the model is linear. Where it is curved the first step may land on a slope so steep that the next
    one throws the parameters out of reach, so the rate is halved until the loss falls and it is no more than 1 / curvature
    there too.
    """
    here = torch.as_tensor(parameters.start, dtype=kernel.dtype).requires_grad_()
    loss = kernel.loss(here)
    if not (len(here) and loss.requires_grad and bool(torch.isfinite(loss))):
        return 1 / units.steepest
    loss.backward()  # type: ignore[no-untyped-call]
    gradient = torch.zeros_like(here) if here.grad is None else here.grad
    step = gradient.double().numpy() * units.parameters**2 / units.loss
    rate = 1 / units.steepest
    for _ in range(HALVINGS):
        there = np.clip(parameters.start - rate * step, parameters.lower, parameters.upper)
        with np.errstate(all="ignore"):
            curvature = _steepest(kernel.residual(there)[1], units.parameters, units.loss, otherwise=np.inf)
            if kernel.mean_loss(there) <= loss.item() and rate * curvature <= 1 + ROUNDING:
                return rate
        rate /= 2
    return 1 / units.steepest


def _steepest(derivative: Floats, units: Floats, loss: float, otherwise: float = 1.0) -> float:
    """Largest curvature of the scaled loss: eigenvalue of its Gauss-Newton matrix."""
    scaled = derivative * units
    matrix = 2 * scaled.T @ scaled / (len(scaled) * loss)
    return _positive(float(np.linalg.eigvalsh(matrix)[-1]), otherwise) if len(units) and np.isfinite(matrix).all() else otherwise


def _positive(value: float, otherwise: float) -> float:
    return value if np.isfinite(value) and value > 0 else otherwise
