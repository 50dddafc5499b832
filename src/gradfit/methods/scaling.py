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

from gradfit.compiler.kernel import Kernel
from gradfit.typing import Floats


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
    """Measure the scaling at the start; see the formula above."""
    residual, derivative = kernel.residual(theta)
    off = _positive(float(np.sqrt(np.mean(residual**2))), 1.0)
    columns = np.sqrt(np.mean(derivative**2, axis=0))
    still = off / np.maximum(np.abs(theta), 1.0)  # a parameter without effect at the start: its own size is its unit
    units = off / np.array([_positive(float(column), float(other)) for column, other in zip(columns, still, strict=True)])
    loss = _positive(abs(kernel.mean_loss(theta)), 1.0)
    scaled = derivative * units
    matrix = 2 * scaled.T @ scaled / (kernel.n * loss)
    steepest = float(np.linalg.eigvalsh(matrix)[-1]) if np.isfinite(matrix).all() and len(theta) else 1.0
    return Scaling(units, loss, _positive(steepest, 1.0))


def _positive(value: float, otherwise: float) -> float:
    return value if np.isfinite(value) and value > 0 else otherwise
