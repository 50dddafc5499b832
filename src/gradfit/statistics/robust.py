r"""Covariance of estimates that minimise something else than squares.

A robust loss of the residual :math:`r_i = (f_i - y_i)/\sigma_i`, all rows with the same noise: with X the derivative of r by the parameters,
:math:`\psi = \tfrac12\, dl/dr` and p parameters,

.. math:: C = K^2\, \frac{\sum\psi_i^2/(n-p)}{m^2}\, (X^TX)^{-1}, \qquad m = \frac1n\sum_i c_i, \qquad
          K = 1 + \frac pn\, \frac{\tfrac1n\sum(c_i - m)^2}{m^2}

Huber's estimate has :math:`c_i = \psi'(r_i)`, the curvature at each residual. On few rows that says little: under "huber" it is 0 or 1, and the
fit goes through the very rows for which it is 1. Here it is the mean of :math:`\psi'` over one standard error of the row's own prediction,

.. math:: c_i = \frac{\psi(r_i + e_i) - \psi(r_i - e_i)}{2 e_i}, \qquad e_i = \frac{\sqrt{\sum\psi^2/(n-p)}}{m} \sqrt{x_i^T (X^TX)^{-1} x_i}

which is the same where rows are many. e and m follow from each other; the smallest pair is found by iteration from :math:`\psi'` itself.

Any other loss with rows (your own, or weighted ones): the sandwich with each row's slope as it would be if the row had been left out
(leverage :math:`h_i`, to first order), and no belief in equal noise,

.. math:: C = A^{-1} \Big(\sum_i \frac{\rho_i^2}{(1-h_i)^2} J_i J_i^T\Big) A^{-1}, \quad A = \sum_i b_i J_i J_i^T, \quad h_i = b_i J_i^T A^{-1} J_i

with :math:`\rho`, J and b the rows of :class:`~gradfit.compiler.kernel.Linearization`.

References
----------
Huber, *Robust Statistics*, 1981, sections 6.3 (sandwich) and 7.6 (K and the first of three covariances);
MacKinnon and White, *Some heteroskedasticity-consistent covariance matrix estimators with improved finite sample properties*,
Journal of Econometrics 29, 1985 (leverage).
"""

from __future__ import annotations

import math

import numpy as np
import torch

from gradfit.methods.solving import NUMERIC_RANK
from gradfit.model.loss import Loss, derivatives
from gradfit.statistics.rank import Directions
from gradfit.typing import Floats

NO_MINIMUM = "the loss does not curve upwards at the solution"
NARROW = (
    "two thirds of the rows lie where the loss curves downwards, so it has other minima nearby and errors would come out too small; "
    "raise f_scale to the scatter of the residuals"
)
FLAT = "within one standard error of the curve the loss does not curve upwards; raise f_scale to the scatter of the residuals"
ALONE = "one row alone determines it, so its residual says nothing about its error"
MAX_ITERATIONS = 200
SETTLED = 1e-6  # relative change of the standard errors
RESOLVED = 1e-6  # least e in units of the residuals: below, the difference of slopes is rounding
ALL_OF_A_ROW = 0.99  # leverage beyond which a row is fitted by a parameter of its own


def m_estimate(split: Directions, residual: Floats, loss: Loss, *, dof: int) -> tuple[Floats, str]:
    """Covariance under a robust loss, all rows having the same noise.

    Parameters
    ----------
    split
        Of X, the derivative of the residuals, (n, p).
    residual
        (prediction - target) / sigma, (n,).
    loss
        A function of the residual alone.
    dof
        n - p, at least 1.

    Returns
    -------
    (p, p) and "", or NaN and why.
    """
    n, p = len(residual), len(residual) - dof
    unknown = np.full_like(split.inverse, np.nan)
    point = torch.from_numpy(residual)
    slope, curvature = (np.asarray(part.numpy() / 2) for part in derivatives(loss, point, torch.zeros_like(point), None))
    if 3 * int((curvature < 0).sum()) >= 2 * n:
        return unknown, NARROW
    spread = math.sqrt(float(slope @ slope) / dof)
    share: Floats = curvature
    mean = float(curvature.mean())
    if spread > 0:
        reach = np.linalg.norm(split.left, axis=1)
        least = RESOLVED * (np.abs(residual) + spread)
        found = _averaged(loss, residual, reach, least, spread)
        if found is None:
            return unknown, FLAT
        share, mean = found
    if not mean > 0:
        return unknown, NO_MINIMUM
    correction = 1 + p / n * float(share.var()) / mean**2
    return (correction * spread / mean) ** 2 * split.inverse, ""


def _averaged(loss: Loss, residual: Floats, reach: Floats, least: Floats, spread: float) -> tuple[Floats, float] | None:
    """Curvature of each row over one standard error of its prediction, (n,), and their mean; None where it comes to nothing."""
    error = least
    mean = math.inf
    for _ in range(MAX_ITERATIONS):
        ahead, behind = np.split(slope_of(loss, np.concatenate([residual + error, residual - error])), 2)
        share = (ahead - behind) / (2 * error)
        last, mean = mean, float(share.mean())
        if not mean > 0:
            return None
        if abs(mean - last) <= SETTLED * mean:
            return share, mean
        error = np.maximum(spread / mean * reach, least)
    return None


def slope_of(loss: Loss, residual: Floats) -> Floats:
    """Half of the derivative of the loss by the residual, (n,)."""
    point = torch.from_numpy(residual).requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(loss.pointwise(point, torch.zeros_like(point), None).sum(), point)
    return slope.numpy() / 2


def sandwich(split: Directions, residual: Floats, bend: Floats) -> tuple[Floats, tuple[str, ...]]:
    """Covariance of an estimate that minimises a sum of rows, without believing in their distribution.

    Parameters
    ----------
    split
        Of J, the loss as a sum of squares, (n, p).
    residual, bend
        Of the same form, (n,) each.

    Returns
    -------
    (p, p), NaN where there is a reason, and the reasons, one per parameter.
    """
    p = len(split.scale)
    bread = split.left.T @ (bend[:, None] * split.left)
    if len(bread) and np.linalg.eigvalsh(bread)[0] <= NUMERIC_RANK:
        return np.full((p, p), np.nan), (NO_MINIMUM,) * p
    answer = split.left @ np.linalg.inv(bread)  # of U'delta to each row's slope, (n, r)
    leverage = bend * np.einsum("ij,ij->i", answer, split.left)
    alone = leverage > ALL_OF_A_ROW
    left_out = residual / np.where(alone, 1.0, 1 - leverage)
    effect = (split.right / split.values / split.scale[:, None]) @ answer.T  # of each row's slope on each parameter, (p, n)
    matrix = (effect * left_out**2) @ effect.T
    touched = (np.abs(effect[:, alone]) > NUMERIC_RANK * np.linalg.norm(effect, axis=1)[:, None]).any(axis=1)
    matrix[touched, :] = matrix[:, touched] = np.nan
    return matrix, tuple(ALONE if lost else "" for lost in touched)
