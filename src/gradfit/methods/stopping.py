"""When to stop: early stopping by the validation loss, divergence, and how far the minimum still is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np

from gradfit.compiler.kernel import Linearization
from gradfit.errors import OptionError

DIVERGED_FACTOR = 1e10  # a loss this many times its start will not come back
ARRIVED = 0.01  # standard errors: a distance nobody can see in the result


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when the validation loss has not improved for a while, and go back to the best parameters.

    Parameters
    ----------
    patience
        Epochs without improvement before stopping.
    min_delta
        What counts as improvement: a loss lower than the best by more than this, in units of the loss.
    """

    patience: int = 100
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        """Check both numbers."""
        if isinstance(self.patience, bool) or not isinstance(self.patience, Integral) or self.patience < 1:
            raise OptionError(f"patience is {self.patience!r}; expected a whole number of epochs, 1 or more.")
        if not (isinstance(self.min_delta, Real) and 0 <= self.min_delta < math.inf):
            raise OptionError(f"min_delta is {self.min_delta!r}; expected 0 or more, in units of the loss.")


def remaining_distance(near: Linearization, *, spread: float | None = None) -> float:
    r"""Distance from here to the minimum, in standard errors.

    The Gauss-Newton step :math:`\delta` from here, measured by the covariance:
    :math:`\sqrt{\delta^T C^{-1} \delta} = \lVert Q Q^T r \rVert / s`, with :math:`J = QR` and
    :math:`s^2 = \lVert r - QQ^T r \rVert^2 / (n - p)`. Free of units; 0.01 means that no parameter is more than a hundredth
    of its standard error off. Infinite where a parameter moves no prediction: it went, or was thrown, to where it has no effect
    (a rate so high that the exponential is 0 everywhere), and nothing there says how far it is from where it should be.

    Parameters
    ----------
    spread
        s where it is known (1 for measured errors and for likelihoods); estimated where None.
    """
    n, p = near.jacobian.shape
    norms = np.linalg.norm(near.jacobian, axis=0)
    if not norms.all():
        return math.inf
    scaled = near.jacobian / norms
    left, singular, _ = np.linalg.svd(scaled, full_matrices=False)
    within = left[:, singular > max(n, p) * np.finfo(float).eps * singular.max(initial=0.0)].T @ near.residual
    explained = float(within @ within)
    if spread is None:
        rest = max(float(near.residual @ near.residual) - explained, 0.0)
        spread = math.sqrt(rest / max(n - p, 1))
    # Exact data have no spread: then a step below single precision of the prediction counts as arrived.
    rounding = np.finfo(np.float32).eps * float(np.linalg.norm(near.prediction * near.weight)) / ARRIVED
    return math.sqrt(explained) / math.hypot(spread, rounding) if explained > 0 else 0.0
