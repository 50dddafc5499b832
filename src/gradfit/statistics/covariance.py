r"""Covariance of the fitted parameters, and which of them the data determine at all.

With :math:`J_{ij} = \partial r_i/\partial\theta_j`, r the residual in units of sigma:

===============  ==========================================================================  =======================
loss             covariance                                                                  name
===============  ==========================================================================  =======================
squared          :math:`s^2 (J^TJ)^{-1}`, :math:`s^2 = \chi^2/(n-p)`; s = 1 for absolute sigma  least squares
poisson          :math:`(J^TJ)^{-1}`, J in units of the expected deviation                     expected information
robust           :math:`K^2 (s/m)^2 (J^TJ)^{-1}`, see :mod:`gradfit.statistics.robust`           M-estimator covariance
custom, weighted :math:`A^{-1} B A^{-1}`, see there                                          sandwich
===============  ==========================================================================  =======================

Where the design is well conditioned this comes from the solver's triangle. Otherwise J is looked at again, by its singular values
(:mod:`gradfit.statistics.rank`): a parameter that has a part in a direction that is not determined has no error, and is told with
what is determined (:mod:`gradfit.statistics.identifiability`); the others have theirs.

Exact data leave residuals of rounding, and errors as small. They are given: each is what the formula says of these residuals, and
the parameters are as exact as that. But they are no measure of noise, which is said (``exact``).

References
----------
Press et al., *Numerical Recipes*, 3rd ed., section 15.4 (singular value decomposition).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from gradfit.compiler.correlated import AnyKernel
from gradfit.compiler.kernel import Linearization
from gradfit.data.dataset import Dataset
from gradfit.methods.marquardt import SAFE
from gradfit.methods.solving import Conclusion
from gradfit.statistics.identifiability import Undetermined, undetermined, why_idle
from gradfit.statistics.rank import DOUBLE, Directions, directions, jacobian_error
from gradfit.statistics.robust import m_estimate, sandwich
from gradfit.typing import Floats

# Conditions up to which a Jacobian is not looked at again. A model on the torch engine may compute in single precision inside, and its
# finite differences may be worse.
SAFE_ON_TORCH, SAFE_BY_DIFFERENCES = 1e5, 1e4
M_ESTIMATE, SANDWICH = "M-estimator covariance", "sandwich"
TOO_NEAR = "rounding decides the error, so nearly alike are the columns of the Jacobian"
EXACT_DATA = "the data are fitted to rounding, and such residuals say nothing about noise"
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
    data: Dataset,
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
    data
        The rows.
    absolute
        sigma is a measured error: no rescaling by the reduced chi-square of squares. Robust losses take the noise from the rows.
    at_bound
        (p,), or None where there are no bounds; parameters on a bound: they have no error of their own, and the others are given at their value.
    """
    kind, n, p = kernel.loss_kind, data.n, len(names)
    plain = is_plain(conclusion, kernel)
    exact = not absolute and math.sqrt(conclusion.sum) <= EXACT * conclusion.signal
    if kind == "least_squares" and at_bound is None and n > p and plain:
        scale = 1.0 if absolute else conclusion.sum / (n - p)
        return Covariance(scale * conclusion.inverse, "least squares", ("",) * p, scale, exact=exact)
    inside = np.ones(p, dtype=bool) if at_bound is None else ~at_bound
    dof = n - int(inside.sum())
    label = _label(kind, data)
    known = kind == "likelihood" or (absolute and kind == "least_squares")
    reasons = ["" if free else "at its bound: an error there would not be symmetric" for free in inside]
    inner = conclusion.inverse[np.ix_(inside, inside)]
    grave: dict[str, str] = {}
    if not plain or label in (M_ESTIMATE, SANDWICH):
        form = near()
        error = DOUBLE if plain else jacobian_error(kernel, theta, form)
        form = _of_residuals(form, data) if label == M_ESTIMATE else form
        split = directions(form.jacobian[:, inside], error)
        places = np.flatnonzero(inside)
        if split.undetermined.any():
            for group in _told(split, kernel, theta, form, inside, names):
                grave[group.reason] = group.detail
                for member in group.members:
                    reasons[member] = group.reason
            for place in places[split.undetermined]:  # a part too small for words
                if not reasons[place]:
                    reasons[place] = TOO_NEAR
                    grave[TOO_NEAR] = ""
        inner, doubts = split.inverse, ("",) * len(places)
        if label == M_ESTIMATE and dof > 0:
            inner, doubt = m_estimate(split, form.residual, kernel.loss_function, dof=dof)
            doubts = (doubt,) * len(places)
        elif label == SANDWICH and dof > 0:
            inner, doubts = sandwich(split, form.residual, form.bend)
        for place, doubt in zip(places, doubts, strict=True):
            reasons[place] = reasons[place] or doubt
    if not known and dof <= 0:
        why = no_freedom(n, p)
        if "" in reasons:
            grave[why] = ""
        return Covariance(np.full((p, p), np.nan), label, tuple(reason or why for reason in reasons), np.nan, grave)
    scale = 1.0 if known else conclusion.sum / dof if kind == "least_squares" else near_scale(near(), dof)
    matrix = np.full((p, p), np.nan)
    matrix[np.ix_(inside, inside)] = inner if label in (M_ESTIMATE, SANDWICH) else scale * inner
    lost = [bool(reason) for reason in reasons]
    matrix[lost, :] = matrix[:, lost] = np.nan
    return Covariance(matrix, label, tuple(reasons), scale, grave, exact and kind == "least_squares")


def no_freedom(n: int, p: int) -> str:
    """Say why so few rows give no error."""
    return f"no degree of freedom is left to estimate errors from (rows: {n}, parameters: {p})"


def _label(kind: str, data: Dataset) -> str:
    """Which covariance a loss has. Rows with weights of their own have no common noise to estimate."""
    if kind == "robust":
        return SANDWICH if data.weighted else M_ESTIMATE
    return {"least_squares": "least squares", "likelihood": "expected information"}.get(kind, SANDWICH)


def _of_residuals(form: Linearization, data: Dataset) -> Linearization:
    """The residuals in units of sigma and their derivative, whatever the loss made of them."""
    unit = np.ones(data.n) if data.sigma is None else 1 / data.sigma
    residual = (form.prediction - data.target) * unit
    return replace(form, residual=residual, jacobian=(unit / form.weight)[:, None] * form.jacobian, weight=unit)


def near_scale(near: Linearization, dof: int) -> float:
    """Reduced sum of squares of the form near the solution."""
    return float(near.residual @ near.residual) / dof


def _told(
    split: Directions, kernel: AnyKernel, theta: Floats, form: Linearization, inside: np.ndarray, names: Sequence[str]
) -> tuple[Undetermined, ...]:
    """Word what is not determined, where parameters on a bound stay there."""
    null = np.zeros((len(theta), split.null.shape[1]))
    null[inside] = split.null
    return undetermined(*_counting(kernel, form), theta, names, null, error=split.error)


def without_effect(kernel: AnyKernel, theta: Floats, form: Linearization, names: Sequence[str]) -> tuple[str, ...]:
    """Say of each parameter that moves no prediction here why that is; "" of the others, (p,)."""
    predict, jacobian = _counting(kernel, form)
    idle = (jacobian == 0).all(axis=0)
    return tuple(why_idle(predict, jacobian, theta, names, place)[0] if still else "" for place, still in enumerate(idle))


def _counting(kernel: AnyKernel, form: Linearization) -> tuple[Callable[[Floats], Floats], Floats]:
    """Predictions and their derivative, of the rows that have a weight."""
    rows = form.weight != 0
    return lambda point: np.asarray(kernel.jacobian(point)[0][rows]), form.jacobian[rows]


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


def propagate_each(matrices: Floats, derivatives: Floats) -> Floats:
    """The same for many fits: of covariances (count, p, p) and derivatives (count, m, p) the covariances (count, m, m)."""
    known = np.isfinite(np.einsum("ijj->ij", matrices))
    inner = np.where(known[:, :, None] & known[:, None, :], matrices, 0.0)
    sure = np.where(known[:, None, :], derivatives, 0.0)
    with np.errstate(all="ignore"):
        result = sure @ inner @ sure.transpose(0, 2, 1)
    lost = ((derivatives != 0) & ~known[:, None, :]).any(axis=2)
    result[lost] = np.nan
    result.transpose(0, 2, 1)[lost] = np.nan
    return np.asarray(result)
