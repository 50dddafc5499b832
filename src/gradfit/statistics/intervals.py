r"""Intervals from the covariance: Student's t for parameters, bands for predictions.

A parameter: :math:`\theta \pm t_{\nu}\, s_\theta`. The curve: :math:`f(x) \pm t_\nu \sqrt{g^T C g}`,
:math:`g = \partial f/\partial\theta`, C the covariance (the confidence band: where the true curve lies). A new point:
:math:`f(x) \pm t_\nu \sqrt{g^T C g + s^2\sigma^2}` (the prediction band: where one more measurement would fall).
The quantile is Student's with :math:`\nu = n - p` where s² is estimated, normal where sigma is known.

References
----------
Seber and Wild, *Nonlinear Regression*, 1989, section 5.1.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.special

from gradfit.errors import OptionError
from gradfit.typing import Floats, IntervalKind


@dataclass(frozen=True)
class Band:
    """A prediction with its interval; unpacks as (value, lower, upper), each (n,)."""

    value: Floats
    lower: Floats
    upper: Floats
    kind: IntervalKind
    level: float

    def __iter__(self) -> Iterator[Floats]:
        """Unpack."""
        return iter((self.value, self.lower, self.upper))


def check_level(level: float) -> None:
    """Refuse a level of confidence that is none.

    Raises
    ------
    OptionError
        It is no number between 0 and 1.
    """
    if isinstance(level, bool) or not isinstance(level, numbers.Real) or not 0 < level < 1:
        raise OptionError(f"level is {level!r}; expected a number between 0 and 1, such as 0.95.")


def quantile(level: float, dof: float) -> float:
    """Two-sided quantile: Student's t with ``dof`` degrees of freedom, the normal one for infinity; NaN for dof <= 0."""
    check_level(level)
    if math.isinf(dof):
        return float(scipy.special.ndtri(0.5 + level / 2))
    return float(scipy.special.stdtrit(dof, 0.5 + level / 2)) if dof > 0 else math.nan


def t_interval(value: float, stderr: float, *, level: float, dof: float) -> tuple[float, float]:
    """(lower, upper) of one parameter; a parameter without error (fixed) is its own interval."""
    half = 0.0 if stderr == 0 else quantile(level, dof) * stderr
    return value - half, value + half


def band(
    value: Floats,
    derivative: Floats,
    covariance: Floats,
    *,
    kind: IntervalKind,
    level: float,
    dof: float,
    noise: Floats | float,
) -> Band:
    """Interval of each prediction.

    Parameters
    ----------
    value, derivative
        Prediction (n,) and its derivative by the free parameters (n, p).
    noise
        Standard deviation of one measurement, in units of the target; used by "prediction".
    """
    if kind not in ("confidence", "prediction"):
        raise OptionError(f"interval is {kind!r}; expected 'confidence' (of the curve) or 'prediction' (of a new point).")
    known = np.isfinite(np.diag(covariance))
    variance = np.einsum("ij,jk,ik->i", derivative[:, known], covariance[np.ix_(known, known)], derivative[:, known])
    variance = np.where((derivative[:, ~known] != 0).any(axis=1), np.nan, variance)
    if kind == "prediction":
        variance = variance + np.square(noise)
    half = quantile(level, dof) * np.sqrt(variance)
    return Band(value, value - half, value + half, kind, level)
