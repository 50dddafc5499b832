r"""Goodness of fit for least squares.

.. math::

    \chi^2 = \sum r_i^2, \quad \chi^2_\nu = \chi^2/(n-p), \quad R^2 = 1 - \chi^2 / \sum ((y_i - \bar y)/\sigma_i)^2

with :math:`r_i = (f_i - y_i)/\sigma_i` and the mean weighted by :math:`1/\sigma_i^2`; for a covariance matrix :math:`LL^T` all of
it in :math:`L^{-1}` of residuals and target. Information criteria, k = p:

.. math::

    AIC = n \ln(\chi^2/n) + 2k, \quad AICc = AIC + \frac{2k(k+1)}{n-k-1}, \quad BIC = n \ln(\chi^2/n) + k \ln n

as lmfit has them; with measured errors (``absolute_sigma``) the first term is :math:`\chi^2` itself.

References
----------
Burnham and Anderson, *Model Selection and Multimodel Inference*, 2nd ed., section 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gradfit.typing import Floats


@dataclass(frozen=True)
class Goodness:
    """The numbers above; NaN where they have no meaning (another loss, no degrees of freedom, constant y)."""

    chi_square: float = math.nan
    reduced_chi_square: float = math.nan
    r_squared: float = math.nan
    aic: float = math.nan
    aicc: float = math.nan
    bic: float = math.nan


def goodness(residual: Floats, target: Floats, unit: Floats, *, parameters: int, absolute: bool) -> Goodness:
    """Compute the numbers above.

    Parameters
    ----------
    residual, target, unit
        Residuals, target and the constant 1, all in units of sigma, (n,).
    """
    n, k = len(residual), parameters
    chi_square = float(residual @ residual)
    size = float(np.abs(unit).max())
    relative = unit / size  # a sigma of 1e200 has a square beyond all numbers
    mean = (relative @ (target / size)) / (relative @ relative)
    total = float(np.sum((target - mean * unit) ** 2))
    # A constant target leaves only rounding here, and a ratio to rounding says nothing.
    varied = total > n * (np.finfo(float).eps * float(np.abs(target).max())) ** 2
    likelihood = chi_square if absolute else (n * (math.log(chi_square) - math.log(n)) if chi_square > 0 else -math.inf)
    aic = likelihood + 2 * k
    return Goodness(
        chi_square=chi_square,
        reduced_chi_square=chi_square / (n - k) if n > k else math.nan,
        r_squared=1 - chi_square / total if varied else math.nan,
        aic=aic,
        aicc=aic + 2 * k * (k + 1) / (n - k - 1) if n > k + 1 else math.nan,
        bic=likelihood + k * math.log(n),
    )
