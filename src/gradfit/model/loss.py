r"""Losses: how far a prediction is from its target.

A loss gives one number per row, :math:`l_i`; a fit minimises their mean. With :math:`r_i = (f_i - y_i)/\sigma_i`
(:math:`\sigma_i = 1` where none is given) and :math:`z_i = (r_i/C)^2`, where C is ``f_scale``:

==========  =====================================================================================
squared     :math:`r^2`
huber       :math:`C^2 z` where :math:`z \le 1`, else :math:`C^2 (2\sqrt z - 1)`
soft_l1     :math:`2 C^2 (\sqrt{1 + z} - 1)`
cauchy      :math:`C^2 \ln(1 + z)`
arctan      :math:`C^2 \arctan z`
poisson     the deviance :math:`2 (f - y + y \ln(y/f))` of counts y with mean f > 0
==========  =====================================================================================

The robust ones are those of :func:`scipy.optimize.least_squares` (its cost is half the sum). Any function of
(prediction, target), such as those of :mod:`torch.nn.functional`, is a loss too. Weights of rows multiply the row's loss,
whatever it is; they come as :math:`\sigma_i = w_i^{-1/2}`, which for squared residuals is the same.

References
----------
Triggs et al., *Bundle adjustment: a modern synthesis*, 2000, section 4.3 (robust losses in Gauss-Newton);
McCullagh and Nelder, *Generalized Linear Models*, 2nd ed., section 2.3 (deviance).
"""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradfit.data.dataset import Dataset
from gradfit.errors import DataError, FitWarning, ModelError, OptionError, unknown

# A row that neither curves nor slopes keeps this share of the steepest row's curvature, so that no weight is zero.
CURVATURE_FLOOR = 1e-6


@dataclass(frozen=True)
class Loss:
    """A loss by name.

    Attributes
    ----------
    name
        As the report prints it.
    pointwise
        ``pointwise(prediction, target, sigma) -> (n,)``; or a single number where ``whole`` is set.
    kind
        "least_squares", "robust", "likelihood" or "custom": which statistics may be drawn from it.
    whole
        The function gives one number for all rows, so rows have no loss of their own.
    """

    name: str
    pointwise: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    kind: str
    whole: bool = False

    def mean(self, prediction: Tensor, target: Tensor, sigma: Tensor | None) -> Tensor:
        """Mean loss over the rows, a scalar."""
        value = self.pointwise(prediction, target, sigma)
        return value if self.whole else value.mean()


def squared_error(prediction: Tensor, target: Tensor, sigma: Tensor | None) -> Tensor:
    """((prediction - target) / sigma) ** 2, one per row."""
    return _residual(prediction, target, sigma) ** 2


def poisson_deviance(prediction: Tensor, target: Tensor, sigma: Tensor | None) -> Tensor:
    """Deviance of counts, one per row; NaN where the prediction is not positive."""
    del sigma
    positive = torch.where(prediction > 0, prediction, torch.nan)
    return 2 * (positive - target + torch.xlogy(target, target) - torch.xlogy(target, positive))


def _residual(prediction: Tensor, target: Tensor, sigma: Tensor | None) -> Tensor:
    difference = prediction - target
    return difference if sigma is None else difference / sigma


def _huber(z: Tensor) -> Tensor:
    inside = z <= 1
    return torch.where(inside, z, 2 * torch.sqrt(torch.where(inside, 1.0, z)) - 1)  # no sqrt at 0: its slope is infinite


ROBUST: dict[str, Callable[[Tensor], Tensor]] = {
    "huber": _huber,
    "soft_l1": lambda z: 2 * (torch.sqrt(1 + z) - 1),
    "cauchy": torch.log1p,
    "arctan": torch.arctan,
}
NAMES = ("squared", "poisson", *ROBUST)


def resolve(loss: str | Callable[..., Any], data: Dataset, *, f_scale: float | None = None) -> Loss:
    """Find a loss by name, or wrap a function of (prediction, target).

    Raises
    ------
    OptionError
        Unknown name; ``f_scale`` with a loss that has no scale, or not positive.
    DataError
        Poisson with counts below zero, or sigma with a loss that has no use for it.
    """
    if isinstance(loss, str) and loss not in NAMES:
        raise OptionError(unknown("loss", loss, NAMES, "A function of (prediction, target) also serves."))
    if f_scale is not None and not (isinstance(loss, str) and loss in ROBUST):
        raise OptionError(f"f_scale belongs to {', '.join(ROBUST)}; the loss here is {_name(loss)}.")
    if f_scale is not None and (
        isinstance(f_scale, bool) or not isinstance(f_scale, numbers.Real) or not 1e-140 < f_scale < 1e140
    ):
        raise OptionError(
            f"f_scale is {f_scale!r}; expected a positive number, 1e-140 to 1e140, in units of the residual: the size of its noise."
        )
    if loss == "squared":
        return Loss("squared", squared_error, "least_squares")
    if data.covariance is not None:
        raise DataError(
            f"sigma is a covariance matrix, and the loss {_name(loss)} looks at one row at a time; use loss='squared'."
        )
    if data.weighted:
        return _weighted(_unweighted(loss, data, f_scale))
    if data.sigma is not None and (loss == "poisson" or not isinstance(loss, str)):
        raise DataError(f"sigma was given, and the loss {_name(loss)} has no use for it; leave one of them out.")
    return _unweighted(loss, data, f_scale)


def _unweighted(loss: str | Callable[..., Any], data: Dataset, f_scale: float | None) -> Loss:
    if loss == "poisson":
        found = Loss("poisson", poisson_deviance, "likelihood")
        check_target(found, data)
        _look_for_fractions(data)
        return found
    if isinstance(loss, str):
        return _robust(loss, 1.0 if f_scale is None else float(f_scale))
    if not callable(loss):
        raise OptionError(f"loss is {loss!r}; expected one of {', '.join(NAMES)}, or a function of (prediction, target).")
    if isinstance(loss, type) and issubclass(loss, torch.nn.Module):
        raise OptionError(f"loss is the class {loss.__name__}; pass an object of it: {loss.__name__}().")
    return _custom(loss, torch.as_tensor(data.target, dtype=torch.float64))


def check_target(loss: Loss, data: Dataset) -> None:
    """Refuse targets that a loss cannot be had of.

    Raises
    ------
    DataError
        Counts below zero, or without a maximum of their likelihood.
    """
    if loss.name != "poisson":
        return
    if (data.target < 0).any():
        raise DataError(f"{data.target_name} has {int((data.target < 0).sum())} negative values; Poisson counts are 0 or more.")
    if not data.target.any():
        raise DataError(
            f"{data.target_name} is 0 in all {data.n} rows; the likelihood of no count at all rises until the mean is 0, so there is "
            "no estimate. Give rows with counts."
        )


def _look_for_fractions(data: Dataset) -> None:
    """Warn of numbers that are no counts."""
    broken = np.flatnonzero(data.target % 1)
    if broken.size:
        warnings.warn(
            f"{data.target_name} has {broken.size} fractional values (row {int(data.row_numbers[broken[0]]) + 1}: "
            f"{data.target[broken[0]]:g}), and Poisson errors are those of whole counts; "
            "fit counts, and let the model multiply its rate by the exposure.",
            FitWarning,
            stacklevel=4,
        )


def _weighted(loss: Loss) -> Loss:
    """Multiply each row's loss by its weight, ``sigma ** -2``. What is left of a likelihood is no likelihood."""
    if loss.whole:
        raise DataError(
            f"weights were given, and the loss {loss.name} gives one number for all rows; give one per row, or leave weights out."
        )
    own = loss.pointwise

    def pointwise(prediction: Tensor, target: Tensor, sigma: Tensor | None) -> Tensor:
        assert sigma is not None
        return own(prediction, target, None) / sigma**2

    return Loss(loss.name, pointwise, "robust" if loss.kind == "likelihood" else loss.kind)


def _robust(name: str, scale: float) -> Loss:
    rho = ROBUST[name]

    def pointwise(prediction: Tensor, target: Tensor, sigma: Tensor | None) -> Tensor:
        return scale**2 * rho((_residual(prediction, target, sigma) / scale) ** 2)

    return Loss(name if scale == 1 else f"{name} (f_scale {scale:g})", pointwise, "robust")


def _custom(function: Callable[..., Any], target: Tensor) -> Loss:
    """Try the function on the data, a perfect prediction: one number each, or one for all?"""
    name = _name(function)
    given = target.clone()
    with torch.enable_grad():
        value = _call(function, name, target.clone().requires_grad_(), given)
    if not torch.equal(given, target):
        raise ModelError(f"the loss {name} changes its target in place; compute a new tensor instead.")
    if value.shape not in (torch.Size([]), target.shape):
        raise ModelError(
            f"the loss {name} gave shape {tuple(value.shape)} for {len(target)} rows; expected one number, or one per row."
        )
    if not value.is_floating_point():
        raise ModelError(f"the loss {name} gave {value.dtype}; expected real floating-point numbers.")
    if not value.requires_grad:
        raise ModelError(f"the loss {name} does not depend on the prediction by torch functions, so it has no gradient.")

    def pointwise(prediction: Tensor, target: Tensor, sigma: Tensor | None) -> Tensor:
        return _call(function, name, prediction, target)

    return Loss(name, pointwise, "custom", whole=value.dim() == 0)


def _call(function: Callable[..., Any], name: str, prediction: Tensor, target: Tensor) -> Tensor:
    try:
        value = function(prediction, target)
    except Exception as error:
        raise ModelError(f"the loss {name} raised {type(error).__name__}: {error}") from error
    if not isinstance(value, Tensor):
        raise ModelError(f"the loss {name} gave {type(value).__name__}; expected a torch tensor, made by torch functions.")
    return value


def _name(loss: object) -> str:
    return str(getattr(loss, "__name__", None) or type(loss).__name__) if not isinstance(loss, str) else loss


@dataclass(frozen=True)
class Rows:
    """A loss near a prediction as a sum of squares, one row each; see :func:`gauss_newton_rows`. All (n,).

    Attributes
    ----------
    residual, weight
        :math:`\\rho` and s.
    bend
        The loss's own curvature as a share of the one in s: 1 where they agree, less (or below 0) for outliers.
    """

    residual: Tensor
    weight: Tensor
    bend: Tensor


def gauss_newton_rows(loss: Loss, prediction: Tensor, target: Tensor, sigma: Tensor | None) -> Rows | None:
    r"""Write the loss near a prediction as a sum of squares.

    :math:`\sum_i l_i(f + \delta f) \approx \sum_i (\rho_i + s_i\, \delta f_i)^2 + const` with
    :math:`s_i = \sqrt{h_i/2}` and :math:`\rho_i = l_i'/(2 s_i)`. The curvature h is :math:`l_i''`, and for a row that curves
    less or downwards (an outlier under a robust loss) :math:`l_i'/(f_i - y_i)`, the weight of iteratively reweighted least
    squares: it is positive, and its parabola lies above the loss, so a step on it does not raise the loss.

    Returns
    -------
    None where the loss has no rows, or nowhere curves upwards.
    """
    if loss.kind == "least_squares":
        weight = torch.ones_like(prediction) if sigma is None else 1 / sigma
        return Rows((prediction - target) * weight, weight, torch.ones_like(prediction))
    if loss.whole:
        return None
    slope, own = derivatives(loss, prediction, target, sigma)
    used = used_curvature(loss, prediction, target, slope, own, sigma)
    own = used if loss.name == "poisson" else own
    steepest = used.max()
    if not steepest > 0 or (loss.kind == "custom" and not own.max() > 0):
        return None
    used = torch.clamp(used, min=CURVATURE_FLOOR * steepest)
    weight = torch.sqrt(used / 2)
    return Rows(slope / (2 * weight), weight, own / used)


def used_curvature(loss: Loss, prediction: Tensor, target: Tensor, slope: Tensor, own: Tensor, sigma: Tensor | None) -> Tensor:
    """Curvature of the sum of squares that stands for a loss, see :func:`gauss_newton_rows`, from its two derivatives."""
    if loss.name == "poisson":  # the expected curvature, as in a generalised linear model: positive also for zero counts
        return 2 / prediction if sigma is None else 2 / (prediction * sigma**2)
    apart = prediction != target
    return torch.maximum(own, torch.where(apart, slope / torch.where(apart, prediction - target, 1.0), 0.0))


def derivatives(loss: Loss, prediction: Tensor, target: Tensor, sigma: Tensor | None) -> tuple[Tensor, Tensor]:
    """First and second derivative of each row's loss by its prediction."""
    point = prediction.detach().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(loss.pointwise(point, target, sigma).sum(), point, create_graph=True)
        own = torch.autograd.grad(slope.sum(), point)[0] if slope.requires_grad else torch.zeros_like(slope)
    return slope.detach(), own.detach()


def is_curved(loss: Loss, data: Dataset) -> bool:
    """Whether the loss is a sum of rows that curve upwards, as Gauss-Newton methods need; tried at the mean of the target."""
    target = torch.as_tensor(data.target)
    sigma = None if data.sigma is None else torch.as_tensor(data.sigma)
    return gauss_newton_rows(loss, torch.full_like(target, float(target.mean())), target, sigma) is not None
