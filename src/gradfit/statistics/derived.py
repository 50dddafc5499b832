r"""Quantities computed from fitted parameters, with their errors.

To first order, for :math:`g(\theta)` with gradient G and C the covariance of the parameters,

.. math:: \sigma_g^2 = G C G^T

(the delta method). G is exact, by torch's autograd. A quantity may be determined where its parameters are not, as a + b in
``(a + b)*x``: it is where G has no part in the directions that are not determined, and then the pseudo-inverse stands for C.

References
----------
JCGM 100:2008 (GUM), section 5.2 (correlated input quantities).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradfit.errors import MissingDependencyError, ModelError, ParameterError, unknown
from gradfit.model.expression import parse
from gradfit.statistics.covariance import propagate
from gradfit.statistics.intervals import t_interval
from gradfit.statistics.rank import Directions, directions, jacobian_error
from gradfit.statistics.record import LEVEL, FitRecord
from gradfit.statistics.rounding import rounded
from gradfit.statistics.summary import Fitted
from gradfit.typing import Floats

DETERMINED = 1e-6  # relative: a gradient with a smaller part in the undetermined directions has none

FLAT = "its derivative is 0 here, so that the first order tells nothing"


@dataclass(frozen=True)
class Derived:
    """A derived quantity; unpacks as (value, stderr).

    Attributes
    ----------
    value, stderr
        The quantity and its standard error; NaN where that cannot be vouched for, 0 where it depends on fixed parameters alone.
    lower, upper
        95% interval by Student's t.
    reason
        Why the error is NaN, or "".
    """

    value: float
    stderr: float
    lower: float
    upper: float
    reason: str = ""

    def __iter__(self) -> Iterator[float]:
        """Unpack."""
        return iter((self.value, self.stderr))

    def __str__(self) -> str:
        """Value and error, rounded."""
        return rounded(self.value, self.stderr)


@dataclass(frozen=True)
class Design:
    """What a fit at hand knows of directions.

    Attributes
    ----------
    split
        Directions in the space of the free parameters that are on no bound.
    inside
        Which of the free ones these are, (p,) bool.
    scale
        s².
    through
        Derivative of all numbers of all parameters by the free ones, (numbers, p).
    """

    split: Directions
    inside: np.ndarray
    scale: float
    through: Floats


def design(fitted: Fitted) -> Design | None:
    """Ask a fit for its directions; None where its covariance is none of least squares or counts."""
    near, spread, parameters = fitted.outcome.near, fitted.covariance, fitted.setting.parameters
    if near is None or spread.kind not in ("least squares", "expected information"):
        return None
    theta = fitted.outcome.solution.theta
    inside = ~fitted.at_bound
    error = jacobian_error(fitted.outcome.kernel, theta, near)
    return Design(directions(near.jacobian[:, inside], error), inside, spread.scale, parameters.all_slopes(theta))


def derive(
    quantity: str | Callable[..., Any], record: FitRecord, values: Mapping[str, Any], asked: Callable[[], Design | None]
) -> Derived:
    """Compute a quantity of the fitted parameters, with its error.

    Parameters
    ----------
    quantity
        A formula of parameters, ``"-b/w"``, or a function of them by name, in torch or plain arithmetic, that gives one number.
    asked
        Asked for the fit's directions where the covariance does not know the error.

    Raises
    ------
    ModelError
        A formula that cannot be read, or a function that fails, or gives no single number.
    ParameterError
        A name that is no parameter.
    """
    function, needs = _read(quantity)
    for name in needs:
        if name not in values:
            raise ParameterError(unknown("parameter", name, values, "A derived quantity is computed from parameters."))
    leaves = {name: torch.tensor(values[name], dtype=torch.float64, requires_grad=True) for name in values}
    result = _evaluated(quantity, function, {name: leaves[name] for name in needs})
    gradient = _gradient(result, leaves)
    value = float(result.detach())
    fixed = {estimate.name.partition("[")[0] for estimate in record.estimates if estimate.fixed}
    variance, reason = _variance(value, gradient, not fixed.issuperset(needs), record, asked)
    stderr = math.sqrt(variance) if variance >= 0 else math.nan
    lower, upper = t_interval(value, stderr, level=LEVEL, dof=record.dof)
    return Derived(value, stderr, lower, upper, reason)


def _variance(
    value: float, gradient: Floats, moves: bool, record: FitRecord, asked: Callable[[], Design | None]
) -> tuple[float, str]:
    """Variance of the quantity, which depends on a parameter that ``moves`` or does not; NaN with a reason where it cannot be vouched for."""
    kept = [place for place, estimate in enumerate(record.estimates) if not estimate.fixed]
    row = gradient[kept]
    if not (math.isfinite(value) and np.isfinite(gradient).all()):
        return math.nan, "the quantity, or its derivative, is not finite here"
    if not row.any():
        return (math.nan, FLAT) if moves else (0.0, "")
    size = np.full((len(kept), len(kept)), np.nan) if record.covariance.size == 0 else record.covariance
    variance = float(propagate(size, row[None, :])[0, 0])
    if math.isnan(variance):
        found = asked()
        variance = math.nan if found is None else _along(found, gradient)
    return variance, "" if variance >= 0 else _reason(record, row)


def _read(quantity: str | Callable[..., Any]) -> tuple[Callable[[Mapping[str, Tensor]], Any], tuple[str, ...]]:
    if isinstance(quantity, str):
        formula = parse(quantity)
        if formula.target is not None:
            raise ModelError(f"{quantity!r} names a target; write only what is computed, without '='.")
        return formula.evaluate, tuple(formula.names)
    if not callable(quantity):
        raise ModelError(
            f"the quantity is {quantity!r}; expected a formula of parameters, such as '-b/w', or a function of them."
        )
    try:
        arguments = inspect.signature(quantity).parameters
    except (TypeError, ValueError):
        raise ModelError(
            f"the arguments of {quantity!r} cannot be read; write a formula of parameters, such as '-b/w'."
        ) from None
    return lambda known: quantity(**known), tuple(arguments)


def _evaluated(quantity: object, function: Callable[[Mapping[str, Tensor]], Any], known: Mapping[str, Tensor]) -> Tensor:
    label = repr(quantity) if isinstance(quantity, str) else getattr(quantity, "__name__", "the function")
    try:
        result = function(known)
        result = result if isinstance(result, Tensor) else torch.as_tensor(result, dtype=torch.float64)
    except Exception as error:
        raise ModelError(f"{label} raised {type(error).__name__}: {error}; use plain arithmetic or torch functions.") from error
    if result.numel() != 1 or result.is_complex():
        raise ModelError(f"{label} gave {result.dtype} of shape {tuple(result.shape)}; expected one real number.")
    if known and not result.requires_grad and not isinstance(quantity, str):
        raise ModelError(f"{label} does not depend on {', '.join(known)} by torch functions or plain arithmetic.")
    return result.reshape(())


def _gradient(result: Tensor, leaves: Mapping[str, Tensor]) -> Floats:
    """Derivative by every number of every parameter, in their order."""
    if not result.requires_grad:
        return np.zeros(sum(leaf.numel() for leaf in leaves.values()))
    slopes = torch.autograd.grad(result, list(leaves.values()), allow_unused=True)
    return np.concatenate(
        [
            np.zeros(leaf.numel()) if slope is None else slope.reshape(-1).numpy()
            for slope, leaf in zip(slopes, leaves.values(), strict=True)
        ]
    )


def _along(known: Design, gradient: Floats) -> float:
    """Variance of a combination that the data may determine although they do not determine its parameters; NaN where not."""
    wanted, split = gradient @ known.through, known.split
    if wanted[~known.inside].any():
        return math.nan
    wanted = wanted[known.inside]
    scaled = wanted / split.scale
    blurred = 10 * math.sqrt(len(wanted)) * split.error / float(split.values.min(initial=1.0))  # the null space is no more exact
    missed = float(np.linalg.norm(split.null.T @ scaled))
    if missed > max(DETERMINED, blurred) * float(np.linalg.norm(scaled)):
        return math.nan
    return known.scale * float(wanted @ split.inverse @ wanted)


def _reason(record: FitRecord, row: Floats) -> str:
    """The reasons of the parameters it depends on."""
    named = {estimate.name: estimate for estimate in record.estimates}
    reasons = [named[name].reason for name, slope in zip(record.names, row, strict=True) if slope != 0 and named[name].reason]
    return "; ".join(dict.fromkeys(reasons))


def ufloats(record: FitRecord) -> dict[str, Any]:
    """Give the parameters as numbers with errors and their correlations, for the package uncertainties.

    A fixed parameter has the error 0, one whose error is not given NaN.

    Raises
    ------
    MissingDependencyError
        The package is not installed.
    """
    try:
        import uncertainties
        from uncertainties.core import Variable
    except ImportError as error:
        raise MissingDependencyError(
            "numbers with errors need the package uncertainties: pip install 'gradfit[uncertainties]'."
        ) from error
    values = {estimate.name: estimate.value for estimate in record.estimates}
    names, covariance = record.names, record.covariance
    known = [place for place in range(len(names)) if covariance.size and math.isfinite(covariance[place, place])]
    joint = uncertainties.correlated_values(
        [values[names[place]] for place in known], covariance[np.ix_(known, known)].tolist(), tags=[names[place] for place in known]
    ) if known else ()  # fmt: skip
    found = dict(zip((names[place] for place in known), joint, strict=True))
    fixed = {estimate.name for estimate in record.estimates if estimate.fixed}
    return {
        name: found[name] if name in found else Variable(value, 0.0 if name in fixed else math.nan, name)
        for name, value in values.items()
    }
