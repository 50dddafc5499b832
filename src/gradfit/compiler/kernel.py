"""Kernel: the quantities a method asks for, whichever path made them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from gradfit.typing import Floats


@dataclass(frozen=True)
class Linearization:
    r"""The fit near one parameter vector, as a linear least-squares problem.

    :math:`\sum_i l_i(\theta + \delta) \approx \lVert r + J\delta \rVert^2 + const`, in float64.

    Attributes
    ----------
    residual
        r, (n,): for least squares (prediction - target) / sigma.
    jacobian
        J, (n, p): its exact derivative by the free parameters.
    prediction, weight
        f, and what its derivative was multiplied by to give J: 1/sigma for least squares. Both (n,).
    bend
        The loss's own curvature as a share of the one in J, (n,): 1 for least squares.
    """

    residual: Floats
    jacobian: Floats
    prediction: Floats
    weight: Floats
    bend: Floats

    @property
    def gradient(self) -> Floats:
        """Gradient of the mean loss, (p,): ``2 J.T @ r / n``."""
        return np.asarray(2 * self.jacobian.T @ self.residual / len(self.residual))


class Kernel(Protocol):
    """What methods and statistics know of a model on its data.

    ``theta`` is the free parameter vector (p,), a tensor of the kernel's dtype where a torch computation goes on from the
    result, otherwise a float64 array.
    """

    @property
    def n(self) -> int:
        """Rows."""

    @property
    def loss_kind(self) -> str:
        """Which statistics the loss allows: least_squares, robust, likelihood, custom."""

    @property
    def signal(self) -> float:
        """Mean square of target / sigma: what a loss is measured against."""

    def loss(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        """Mean loss over all rows, or over some; differentiable."""

    def mean_loss(self, theta: Floats) -> float:
        """Mean loss as a number; without autograd."""

    def hessian_product(self, theta: Floats, vector: Floats) -> Floats:
        """Hessian of the mean loss times a vector, (p,)."""

    def jacobian(self, theta: Floats) -> tuple[Floats, Floats]:
        """Prediction (n,) and its derivative (n, p)."""

    def residual(self, theta: Floats) -> tuple[Floats, Floats]:
        """(prediction - target) / sigma, (n,), and its derivative (n, p), whatever the loss."""

    def linearize(self, theta: Floats) -> Linearization | None:
        """Least-squares form of the loss; None for a loss that has none."""
