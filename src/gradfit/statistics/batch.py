r"""Errors of many fits at once, by the formulas of :mod:`gradfit.statistics.covariance` for squared loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradfit.methods.many import Ends
from gradfit.statistics.summary import BOUND_TOLERANCE
from gradfit.typing import Floats


@dataclass(frozen=True)
class Errors:
    """Errors of the fits of a block.

    Attributes
    ----------
    covariance
        (count, p, p), NaN where it cannot be vouched for: on a bound, not determined, no degree of freedom, no minimum reached.
    stderr
        (count, p).
    loss
        Mean loss, (count,).
    """

    covariance: Floats
    stderr: Floats
    loss: Floats


def errors(ends: Ends, sizes: np.ndarray, lower: Floats, upper: Floats, *, absolute: bool) -> Errors:
    """Compute the errors of fits by squared loss.

    Parameters
    ----------
    sizes
        Rows of each, (count,).
    lower, upper
        Bounds, (count, p) or (p,).
    absolute
        sigma is a measured error: no rescaling by the reduced chi-square.
    """
    bound = at_bound(ends.theta, lower, upper)
    with np.errstate(all="ignore"):
        dof = sizes - (~bound).sum(axis=1)
        scale = np.ones(len(sizes)) if absolute else np.where(dof > 0, ends.sum / np.maximum(dof, 1), np.nan)
        covariance = ends.inverse * scale[:, None, None]
        lost = bound | ends.doubtful
        covariance[lost] = np.nan
        covariance.transpose(0, 2, 1)[lost] = np.nan
        stderr = np.sqrt(np.einsum("ijj->ij", covariance))
        loss = ends.sum / sizes
    return Errors(covariance, stderr, loss)


def at_bound(theta: Floats, lower: Floats, upper: Floats) -> np.ndarray:
    """Tell which parameters stand on a bound, (count, p)."""
    found = np.zeros(theta.shape, dtype=bool)
    for side in (lower, upper):
        finite = np.isfinite(side)
        if finite.any():
            limit = np.where(finite, side, 0.0)
            found |= finite & (np.abs(theta - limit) <= BOUND_TOLERANCE * np.maximum(np.abs(limit), 1e-300))
    return found
