r"""Errors of many fits at once, by the formulas of :mod:`gradfit.statistics.covariance` for squared loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradfit.compiler.compiled import NativeKernel
from gradfit.data.batch import Block
from gradfit.methods.evaluating import rows
from gradfit.methods.many import CONVERGED, Ends, Starts
from gradfit.statistics.batch_robust import m_estimates
from gradfit.statistics.summary import at
from gradfit.typing import Floats


@dataclass(frozen=True)
class Errors:
    """Errors of the fits of a block.

    Attributes
    ----------
    stderr
        (count, p), NaN where it cannot be vouched for: on a bound, not determined, no degree of freedom, no minimum reached.
    loss
        Mean loss, (count,).
    covariance
        (count, p, p), or None where it was not asked for.
    """

    stderr: Floats
    loss: Floats
    covariance: Floats | None


def errors(ends: Ends, sizes: np.ndarray, lower: Floats, upper: Floats, *, absolute: bool, covariance: bool) -> Errors:
    """Compute the errors of fits by squared loss.

    Parameters
    ----------
    sizes
        Rows of each, (count,).
    lower, upper
        Bounds, (count, p) or (p,).
    absolute
        sigma is a measured error: no rescaling by the reduced chi-square.
    covariance
        Whether the whole matrix is asked for.
    """
    p = ends.theta.shape[1]
    bound = at_bound(ends.theta, lower, upper) if np.isfinite(lower).any() or np.isfinite(upper).any() else None
    with np.errstate(all="ignore"):
        dof = sizes - p if bound is None else sizes - (~bound).sum(axis=1)
        scale = np.ones(len(sizes)) if absolute else np.where(dof > 0, ends.sum / np.maximum(dof, 1), np.nan)
        stderr = np.sqrt(ends.variances * scale[:, None])
        loss = ends.sum / sizes
    lost = bound if ends.doubtful is None else ends.doubtful if bound is None else bound | ends.doubtful
    whole = ends.inverse * scale[:, None, None] if covariance else None
    if lost is not None:
        stderr[lost] = np.nan
        if whole is not None:
            whole[lost] = np.nan
            whole.transpose(0, 2, 1)[lost] = np.nan
    return Errors(stderr, loss, whole)


def errors_of_loss(
    ends: Ends, kernel: NativeKernel, block: Block, starts: Starts, *, covariance: bool
) -> tuple[Errors, np.ndarray]:
    """Compute the errors of fits by another loss; gives also which must be looked at one by one, (count,) bool."""
    bound = at_bound(ends.theta, starts.lower, starts.upper).any(axis=1)
    apart = (ends.status != CONVERGED) | bound | (block.sizes <= ends.theta.shape[1])
    if kernel.loss_kind == "likelihood":
        matrices = ends.inverse
    else:
        matrices = np.full((block.count, *ends.inverse.shape[1:]), np.nan)
        for n in np.unique(block.sizes[~apart]):
            places = np.flatnonzero(~apart & (block.sizes == n))
            own = starts.chosen(places)
            found, badly = m_estimates(kernel.loss_function, *rows(kernel, block.chosen(places), ends.theta[places], own.fixed))
            matrices[places], apart[places[badly]] = found, True
    with np.errstate(all="ignore"):
        stderr, loss = np.sqrt(np.einsum("ijj->ij", matrices)), ends.sum / block.sizes
    return Errors(stderr, loss, matrices if covariance else None), apart


def at_bound(theta: Floats, lower: Floats, upper: Floats) -> np.ndarray:
    """Tell which parameters stand on a bound, (count, p)."""
    return np.asarray(at(theta, lower) | at(theta, upper))
