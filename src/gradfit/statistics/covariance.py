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

Where the design is well conditioned this comes from the solver's triangle. Otherwise J is looked at again, by its singular values
(:mod:`gradfit.statistics.rank`): a parameter that has a part in a direction that is not determined has no error, and is told with
what is determined (:mod:`gradfit.statistics.identifiability`); the others have theirs.

Exact data leave residuals of rounding, and errors as small. They are given: each is what the formula says of these residuals, and
the parameters are as exact as that. But they are no measure of noise, which is said (``exact``).

References
----------
Press et al., *Numerical Recipes*, 3rd ed., section 15.4 (singular value decomposition);
Huber, *Robust Statistics*, 1981, section 6.3 (sandwich).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from gradfit.compiler.correlated import AnyKernel
from gradfit.compiler.kernel import Linearization
from gradfit.methods.marquardt import SAFE
from gradfit.methods.solving import NUMERIC_RANK, Conclusion
from gradfit.statistics.identifiability import Undetermined, undetermined
from gradfit.statistics.rank import DOUBLE, Directions, directions, jacobian_error
from gradfit.typing import Floats

# Conditions up to which a Jacobian is not looked at again. A model on the torch engine may compute in single precision inside, and its
# finite differences may be worse.
SAFE_ON_TORCH, SAFE_BY_DIFFERENCES = 1e5, 1e4
EXACT = 16 * DOUBLE  # of the prediction: residuals below that are rounding


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
    grave
        Those of the reasons that say that the data do not suffice, each with what it means in other words, or "".
    exact
        Whether s² comes from residuals that are rounding.
    """

    matrix: Floats
    kind: str
    reasons: tuple[str, ...]
    scale: float
    grave: Mapping[str, str] = field(default_factory=dict)
    exact: bool = False


def is_plain(conclusion: Conclusion, kernel: AnyKernel) -> bool:
    """Whether the design is so well conditioned that the solver's inverse can be vouched for."""
    limit = (
        SAFE_BY_DIFFERENCES
        if kernel.numeric
        else SAFE
        if kernel.engine == "native" and kernel.dtype == torch.float64
        else SAFE_ON_TORCH
    )
    return conclusion.condition <= limit


def covariance(
    conclusion: Conclusion,
    kernel: AnyKernel,
    theta: Floats,
    near: Callable[[], Linearization],
    *,
    n: int,
    absolute: bool,
    names: Sequence[str],
    at_bound: np.ndarray | None,
) -> Covariance:
    """Compute the covariance from what the fit ended with.

    Parameters
    ----------
    kernel, theta
        The model on its data, and where the fit ended, (p,).
    near
        Gives the least-squares form row by row; asked for where the conclusion is not enough.
    n
        Rows.
    absolute
        sigma is a measured error: no rescaling by the reduced chi-square.
    at_bound
        (p,), or None where there are no bounds; parameters on a bound: they have no error of their own, and the others are given at their value.
    """
    kind, p = kernel.loss_kind, len(names)
    plain = is_plain(conclusion, kernel)
    exact = not absolute and math.sqrt(conclusion.sum) <= EXACT * conclusion.signal
    if kind == "least_squares" and at_bound is None and n > p and plain:
        scale = 1.0 if absolute else conclusion.sum / (n - p)
        return Covariance(scale * conclusion.inverse, "least squares", ("",) * p, scale, exact=exact)
    inside = np.ones(p, dtype=bool) if at_bound is None else ~at_bound
    dof = n - int(inside.sum())
    label = {"least_squares": "least squares", "likelihood": "expected information"}.get(kind, "sandwich")
    known = absolute or kind == "likelihood"
    reasons = ["" if free else "at its bound: an error there would not be symmetric" for free in inside]
    inner = conclusion.inverse[np.ix_(inside, inside)]
    grave: dict[str, str] = {}
    if not (plain and label != "sandwich"):
        form = near()
        error = DOUBLE if plain else jacobian_error(kernel, theta, form)
        split = directions(form.jacobian[:, inside], error)
        inner = split.inverse if label != "sandwich" else _sandwich(split, form.residual, form.bend)
        places = np.flatnonzero(inside)
        if label == "sandwich" and not np.isfinite(inner).all():
            reasons = [reason or "the loss does not curve upwards at the solution" for reason in reasons]
        elif split.undetermined.any():
            for group in _told(split, kernel, theta, form, inside, names):
                grave[group.reason] = group.detail
                for member in group.members:
                    reasons[places[member]] = group.reason
    if not known and dof <= 0:
        why = f"no degree of freedom is left to estimate errors from (rows: {n}, parameters: {p})"
        if "" in reasons:
            grave[why] = ""
        return Covariance(np.full((p, p), np.nan), label, tuple(reason or why for reason in reasons), np.nan, grave)
    scale = 1.0 if known else conclusion.sum / dof if kind == "least_squares" else near_scale(near(), dof)
    matrix = np.full((p, p), np.nan)
    matrix[np.ix_(inside, inside)] = (n / dof if label == "sandwich" else scale) * inner
    lost = [bool(reason) for reason in reasons]
    matrix[lost, :] = matrix[:, lost] = np.nan
    return Covariance(matrix, label, tuple(reasons), scale, grave, exact and kind == "least_squares")


def near_scale(near: Linearization, dof: int) -> float:
    """Reduced sum of squares of the form near the solution."""
    return float(near.residual @ near.residual) / dof


def _told(
    split: Directions, kernel: AnyKernel, theta: Floats, form: Linearization, inside: np.ndarray, names: Sequence[str]
) -> tuple[Undetermined, ...]:
    """Word what is not determined, where parameters on a bound stay there."""
    counting = form.weight != 0

    def predict(point: Floats) -> Floats:
        there = theta.copy()
        there[inside] = point
        return np.asarray(kernel.jacobian(there)[0][counting])

    free = [name for name, moves in zip(names, inside, strict=True) if moves]
    return undetermined(predict, theta[inside], free, form.jacobian[counting][:, inside], split.null, error=split.error)


def _sandwich(split: Directions, residual: Floats, bend: Floats) -> Floats:
    """Covariance of an estimate that minimises a sum of rows, without believing in their distribution; NaN where that is no minimum."""
    bread = split.left.T @ (bend[:, None] * split.left)
    if len(bread) and np.linalg.eigvalsh(bread)[0] <= NUMERIC_RANK:
        return np.full((len(split.scale),) * 2, np.nan)
    inverse = np.linalg.inv(bread)
    inner = inverse @ (split.left.T @ (residual[:, None] ** 2 * split.left)) @ inverse
    out = split.right / split.values
    return np.asarray(out @ inner @ out.T / np.outer(split.scale, split.scale))


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
