r"""The covariance of :func:`gradfit.statistics.robust.m_estimate` for many fits at once: the same formula, on arrays of fits and rows."""

from __future__ import annotations

import numpy as np
import torch

from gradfit.methods.lane_marquardt import SOUND
from gradfit.model.loss import Loss, derivatives
from gradfit.statistics.robust import MAX_ITERATIONS, RESOLVED, SETTLED, slope_of
from gradfit.typing import Floats


def m_estimates(loss: Loss, residual: Floats, jacobian: Floats) -> tuple[Floats, np.ndarray]:
    """Covariance under a robust loss, all rows of a fit having the same noise.

    Parameters
    ----------
    residual, jacobian
        (prediction - target) / sigma, (count, n), and its derivative, (count, p, n).

    Returns
    -------
    (count, p, p), NaN where the single fit would say why; and which fits are conditioned too badly for this, (count,) bool.
    """
    count, p, n = jacobian.shape
    inverse, reach, badly = _inverses(jacobian)
    slope, curvature = (part.reshape(count, n) / 2 for part in _derivatives(loss, residual))
    dof = n - p
    spread = np.sqrt(np.einsum("ij,ij->i", slope, slope) / max(dof, 1))
    lost = 3 * (curvature < 0).sum(axis=1) >= 2 * n
    share, mean, flat = _averaged(loss, residual, reach, RESOLVED * (np.abs(residual) + spread[:, None]), spread, curvature)
    with np.errstate(all="ignore"):
        correction = 1 + p / n * share.var(axis=1) / mean**2
        scale = (correction * spread / mean) ** 2
    scale[lost | flat | ~(mean > 0) | (dof <= 0)] = np.nan
    return scale[:, None, None] * inverse, badly


def _inverses(jacobian: Floats) -> tuple[Floats, Floats, np.ndarray]:
    """:math:`(X^TX)^{-1}`, the standard error of each row's prediction for noise 1, and where this cannot be trusted."""
    p = jacobian.shape[1]
    norms = np.sqrt(np.einsum("ijk,ijk->ij", jacobian, jacobian))
    badly = ~(np.isfinite(norms) & (norms > 0)).all(axis=1)
    norms[badly] = 1.0
    scaled = jacobian / norms[:, :, None]
    normal = np.where(badly[:, None, None], np.eye(p), scaled @ scaled.transpose(0, 2, 1))
    values, vectors = np.linalg.eigh(normal)
    badly |= ~(values[:, 0] > 0) | ((1 / np.maximum(values, 1e-300)).sum(axis=1) > SOUND * SOUND)
    inner = vectors @ (vectors / np.where(badly[:, None], 1.0, values)[:, None, :]).transpose(0, 2, 1)
    # Products fit by fit: what is found for one must not depend, in its last bits, on how many there are.
    reach = np.sqrt(np.maximum(np.einsum("ijk,ijk->ik", scaled, inner @ scaled), 0.0))
    return inner / (norms[:, :, None] * norms[:, None, :]), reach, badly


def _derivatives(loss: Loss, residual: Floats) -> tuple[Floats, Floats]:
    point = torch.from_numpy(np.ascontiguousarray(residual).reshape(-1))
    slope, curvature = derivatives(loss, point, torch.zeros_like(point), None)
    return slope.numpy(), curvature.numpy()


def _averaged(
    loss: Loss, residual: Floats, reach: Floats, least: Floats, spread: Floats, curvature: Floats
) -> tuple[Floats, Floats, np.ndarray]:
    """Curvature of each row over one standard error of its prediction, its mean, and where it comes to nothing; fit by fit, as the single one."""
    share, mean = curvature.copy(), curvature.mean(axis=1)
    flat = np.zeros(len(residual), dtype=bool)
    active = np.flatnonzero(spread > 0)
    error, last = least.copy(), np.full(len(residual), np.inf)
    for _ in range(MAX_ITERATIONS):
        if not active.size:
            return share, mean, flat
        r, e = residual[active], error[active]
        shape = r.shape
        ahead, behind = (slope_of(loss, np.ascontiguousarray(point).reshape(-1)).reshape(shape) for point in (r + e, r - e))
        share[active] = (ahead - behind) / (2 * e)
        mean[active] = share[active].mean(axis=1)
        nothing = ~(mean[active] > 0)
        flat[active[nothing]] = True
        settled = np.abs(mean[active] - last[active]) <= SETTLED * mean[active]
        last[active] = mean[active]
        active = active[~(nothing | settled)]
        error[active] = np.maximum((spread[active] / mean[active])[:, None] * reach[active], least[active])
    flat[active] = True
    return share, mean, flat
