r"""Covariance of the fitted parameters, and which of them the data determine at all.

With :math:`J_{ij} = \partial r_i/\partial\theta_j`, r the residual in units of sigma:

===============  ==========================================================================  =======================
loss             covariance                                                                  name
===============  ==========================================================================  =======================
squared          :math:`s^2 (J^TJ)^{-1}`, :math:`s^2 = \chi^2/(n-p)`; s = 1 for absolute sigma  least squares
poisson          :math:`(J^TJ)^{-1}`, J in units of the expected deviation                     expected information
robust, custom   :math:`\frac{n}{n-p} A^{-1} B A^{-1}`, A = Σ c JJᵀ, B = Σ r² JJᵀ               sandwich
===============  ==========================================================================  =======================

with c the loss's own curvature as a share of that in J.

References
----------
Press et al., *Numerical Recipes*, 3rd ed., section 15.4 (singular value decomposition);
Huber, *Robust Statistics*, 1981, section 6.3 (sandwich).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradfit.compiler.kernel import Linearization
from gradfit.typing import Floats

INVOLVED = 1e-6  # share of a parameter in an undetermined direction from which its value is arbitrary
EXACT_RANK = np.finfo(np.float64).eps  # times max(n, p): rounding of an exact Jacobian
NUMERIC_RANK = 1e-8  # finite differences carry about ten digits


@dataclass(frozen=True)
class Covariance:
    """Covariance of the free parameters, (p, p); NaN where ``reasons`` says why.

    Attributes
    ----------
    matrix
        (p, p), in parameter units squared.
    kind
        How it was computed, see the table above.
    reasons
        One per free parameter: why its error is not given, or "".
    scale
        s², what :math:`(J^TJ)^{-1}` was multiplied by.
    """

    matrix: Floats
    kind: str
    reasons: tuple[str, ...]
    scale: float


def covariance(
    near: Linearization,
    *,
    kind: str,
    absolute: bool,
    names: Sequence[str],
    at_bound: np.ndarray,
    exact: bool = True,
) -> Covariance:
    """Compute the covariance from the least-squares form at the solution.

    Parameters
    ----------
    kind
        "least_squares", "likelihood", or any other for the sandwich.
    absolute
        sigma is a measured error: no rescaling by the reduced chi-square.
    at_bound
        (p,), parameters on a bound: they have no error of their own, and the others are given at their value.
    exact
        Whether the Jacobian is exact, or by finite differences.
    """
    n, p = near.jacobian.shape
    reasons = ["at its bound: an error there would not be symmetric" if bound else "" for bound in at_bound]
    matrix = np.full((p, p), np.nan)
    inside = np.flatnonzero(~at_bound)
    dof = n - len(inside)
    label = {"least_squares": "least squares", "likelihood": "expected information"}.get(kind, "sandwich")
    known = absolute or kind == "likelihood"
    scale = 1.0 if known else _reduced(near.residual, dof)
    if not known and dof <= 0:
        reasons = [
            r or f"no degree of freedom is left to estimate errors from (rows: {n}, parameters: {len(inside)})" for r in reasons
        ]
        return Covariance(matrix, label, tuple(reasons), np.nan)
    inverse, undetermined = _inverse(near.jacobian[:, inside], exact)
    if kind in ("least_squares", "likelihood"):
        inner = scale * inverse
    else:
        inner = n / dof * _sandwich(near.jacobian[:, inside], near.residual, near.bend)
        if not np.isfinite(inner).all():
            reasons = [r or "the loss does not curve upwards at the solution" for r in reasons]
    inner[undetermined, :] = inner[:, undetermined] = np.nan
    matrix[np.ix_(inside, inside)] = inner
    for index in inside[undetermined]:
        others = [names[other] for other in inside[undetermined] if other != index]
        reasons[index] = f"the data do not determine it{f' apart from {_listed(others)}' if others else ''}"
    return Covariance(matrix, label, tuple(reasons), scale)


def _sandwich(jacobian: Floats, residual: Floats, bend: Floats) -> Floats:
    """Covariance of an estimate that minimises a sum of rows, without believing in their distribution."""
    norms = np.linalg.norm(jacobian, axis=0)
    scale = np.where(norms > 0, norms, 1.0)
    scaled = jacobian / scale
    bread = scaled.T @ (bend[:, None] * scaled)
    if bread.size and np.linalg.eigvalsh(bread)[0] < -NUMERIC_RANK:
        return np.full_like(bread, np.nan)
    inverse = np.linalg.pinv(bread, hermitian=True)
    return np.asarray(inverse @ (scaled.T @ (residual[:, None] ** 2 * scaled)) @ inverse / np.outer(scale, scale))


def _reduced(residual: Floats, dof: int) -> float:
    return float(residual @ residual) / dof if dof > 0 else np.nan


def _inverse(jacobian: Floats, exact: bool) -> tuple[Floats, np.ndarray]:
    """Pseudo-inverse of JᵀJ, and which parameters have a share in its null space."""
    n, p = jacobian.shape
    if p == 0:
        return np.empty((0, 0)), np.empty(0, dtype=bool)
    norms = np.linalg.norm(jacobian, axis=0)
    scale = np.where(norms > 0, norms, 1.0)
    triangle = np.linalg.qr(jacobian / scale, mode="r")
    _, singular, right = np.linalg.svd(triangle)
    singular = np.pad(singular, (0, p - len(singular)))
    null = singular <= singular[0] * max(n, p) * EXACT_RANK if exact else singular <= singular[0] * NUMERIC_RANK
    undetermined = (np.abs(right[null]) > INVOLVED).any(axis=0)
    spread = right[~null].T / singular[~null] / scale[:, None]
    return spread @ spread.T, undetermined


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def correlation(matrix: Floats) -> Floats:
    """Correlation matrix, (p, p): covariance over the product of the standard errors."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        errors = np.sqrt(np.diag(matrix))
        return np.asarray(matrix / np.outer(errors, errors))


def propagate(matrix: Floats, derivative: Floats) -> Floats:
    r"""Covariance of quantities computed from parameters, to first order: :math:`G C G^T` (the delta method).

    An undetermined parameter (NaN in C) makes NaN of what depends on it, and leaves the rest alone.
    """
    known = np.isfinite(np.diag(matrix))
    result = derivative[:, known] @ matrix[np.ix_(known, known)] @ derivative[:, known].T
    lost = (derivative[:, ~known] != 0).any(axis=1)
    result[lost, :] = result[:, lost] = np.nan
    return np.asarray(result)
