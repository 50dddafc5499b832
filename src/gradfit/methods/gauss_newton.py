r"""The damped Gauss-Newton step: which way to go. How far to trust it is :mod:`gradfit.methods.levenberg_marquardt`'s business.

.. math:: \min_\delta \lVert J\delta + r \rVert^2 + \lambda \lVert D \delta \rVert^2
          \quad \text{with} \quad l \le \theta + \delta \le u

by a singular value decomposition of the column-scaled Jacobian (never of :math:`J^T J`, whose condition is squared). Where the
step crosses a bound, that parameter is set on it and the rest is solved again: cutting the step alone would leave the others
where they belong to the step that was not taken, and may raise the loss however small the cut.
"""

from __future__ import annotations

import numpy as np

from gradfit.compiler.kernel import Linearization
from gradfit.typing import Floats


def held(near: Linearization, theta: Floats, lower: Floats, upper: Floats) -> np.ndarray:
    """Tell which parameters stand at a bound beyond which the loss would fall, (p,)."""
    return np.asarray(((theta <= lower) & (near.gradient > 0)) | ((theta >= upper) & (near.gradient < 0)))


class GaussNewton:
    """Damped steps at one point, for any damping, from one decomposition.

    Parameters
    ----------
    near
        The problem near ``theta``.
    norms
        D, (p,): largest column norms seen so far.
    lower, upper
        Bounds, (p,). A parameter that stands at one and whose loss falls beyond it is held.
    """

    def __init__(self, near: Linearization, norms: Floats, theta: Floats, lower: Floats, upper: Floats) -> None:
        self.near, self.theta, self.lower, self.upper = near, theta, lower, upper
        self.scale = np.where(norms > 0, norms, 1.0)
        self.free = ~held(near, theta, lower, upper)
        self.inside = _Decomposition(near.jacobian, near.residual, self.scale, self.free)

    @property
    def explained(self) -> float:
        """Norm of the residual's part that a change of the free parameters could remove."""
        return float(np.linalg.norm(self.inside.projected))

    def step(self, damping: float) -> tuple[Floats, bool]:
        """Full step, (p,), within the bounds; and whether a bound cut it."""
        settled, delta, parts = ~self.free, np.zeros(len(self.theta)), self.inside
        while True:
            delta = np.where(settled, delta, parts.step(damping))
            reached = np.clip(self.theta + delta, self.lower, self.upper)
            crossed = ~settled & (reached != self.theta + delta)
            if not crossed.any():
                return delta, bool((settled & self.free).any())
            settled = settled | crossed
            delta = np.where(settled, reached - self.theta, 0.0)
            parts = _Decomposition(self.near.jacobian, self.near.residual + self.near.jacobian @ delta, self.scale, ~settled)


class _Decomposition:
    """The columns that may move, decomposed."""

    def __init__(self, jacobian: Floats, residual: Floats, scale: Floats, moving: np.ndarray) -> None:
        self.moving, self.scale = moving, scale[moving]
        # First to a p x p triangle: the decomposition then costs nothing in n.
        orthogonal, triangle = np.linalg.qr(jacobian[:, moving] / self.scale)
        left, self.singular, self.right = np.linalg.svd(triangle, full_matrices=False)
        self.projected = left.T @ (orthogonal.T @ residual)

    def step(self, damping: float) -> Floats:
        """Give the step of the moving parameters, (p,), zero elsewhere."""
        singular = self.singular
        negligible = singular <= singular.max(initial=0.0) * len(singular) * np.finfo(float).eps
        shrunk = np.where(negligible & (damping == 0), 0.0, singular / np.maximum(singular**2 + damping, np.finfo(float).tiny))
        delta = np.zeros(len(self.moving))
        delta[self.moving] = -(self.right.T @ (shrunk * self.projected)) / self.scale
        return delta
