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

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gradfit.compiler.kernel import Linearization
from gradfit.methods.solving import INVOLVED, NUMERIC_RANK, Conclusion
from gradfit.typing import Floats


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
    conclusion: Conclusion,
    near: Callable[[], Linearization],
    *,
    n: int,
    kind: str,
    absolute: bool,
    names: Sequence[str],
    at_bound: np.ndarray | None,
) -> Covariance:
    """Compute the covariance from what the fit ended with.

    Parameters
    ----------
    near
        Gives the least-squares form row by row; asked for by the sandwich alone.
    n
        Rows.
    kind
        "least_squares", "likelihood", or any other for the sandwich.
    absolute
        sigma is a measured error: no rescaling by the reduced chi-square.
    at_bound
        (p,), or None where there are no bounds; parameters on a bound: they have no error of their own, and the others are given at their value.
    """
    if (
        kind == "least_squares"
        and at_bound is None
        and n > len(names)
        and max(conclusion.undetermined.tolist(), default=0.0) <= INVOLVED
    ):
        scale = 1.0 if absolute else conclusion.sum / (n - len(names))
        return Covariance(scale * conclusion.inverse, "least squares", ("",) * len(names), scale)
    at_bound = np.zeros(len(names), dtype=bool) if at_bound is None else at_bound
    inside = ~at_bound
    dof = n - int(inside.sum())
    label = {"least_squares": "least squares", "likelihood": "expected information"}.get(kind, "sandwich")
    known = absolute or kind == "likelihood"
    reasons = ["at its bound: an error there would not be symmetric" if bound else "" for bound in at_bound]
    if not known and dof <= 0:
        count = int(inside.sum())
        reasons = [r or f"no degree of freedom is left to estimate errors from (rows: {n}, parameters: {count})" for r in reasons]
        return Covariance(np.full((len(inside), len(inside)), np.nan), label, tuple(reasons), np.nan)
    scale = 1.0 if known else conclusion.sum / dof if kind == "least_squares" else near_scale(near(), dof)
    if kind in ("least_squares", "likelihood"):
        matrix = scale * conclusion.inverse
    else:
        matrix = np.full((len(inside), len(inside)), np.nan)
        form = near()
        inner = n / dof * _sandwich(form.jacobian[:, inside], form.residual, form.bend)
        matrix[np.ix_(inside, inside)] = inner
        if not np.isfinite(inner).all():
            reasons = [r or "the loss does not curve upwards at the solution" for r in reasons]
    undetermined = np.flatnonzero(inside & (conclusion.undetermined > INVOLVED)).tolist()
    matrix[undetermined, :] = matrix[:, undetermined] = np.nan
    for index in undetermined:
        others = [names[other] for other in undetermined if other != index]
        reasons[index] = f"the data do not determine it{f' apart from {_listed(others)}' if others else ''}"
    return Covariance(matrix, label, tuple(reasons), scale)


def near_scale(near: Linearization, dof: int) -> float:
    """Reduced sum of squares of the form near the solution."""
    return float(near.residual @ near.residual) / dof


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
