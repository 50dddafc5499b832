r"""Which directions the data determine: singular values of the Jacobian against its own errors.

The columns of J are scaled to norm 1 first, so that units do not matter: :math:`JD^{-1} = U \Sigma V^T`. If the computed J differs from the
true one by E, no column by more than :math:`\epsilon` of its norm, then :math:`\lVert E \rVert \le \sqrt p\,\epsilon`, and to first order a standard error
:math:`s_j = \lVert e_j^T J^+ \rVert` changes by

.. math:: \frac{|\Delta s_j|}{s_j} \le \lVert E \rVert\, \lVert J^+ \rVert \le \frac{\sqrt p\,\epsilon}{\sigma_k}

with :math:`\sigma_k` the smallest singular value that reaches into :math:`s_j`. A direction is kept while that is below a tenth,
:math:`\sigma_k \ge 10 \sqrt p\,\epsilon`: an error of which one digit is right is still given, one that rounding makes up is not.
Against arithmetic of 150 digits (raw polynomials up to degree 12, exponentials of nearly equal rates, inputs with an offset of 1e12) the
errors at conditions of 1e3 to 3e14 were off by 0.01 to 0.3 of double precision times the condition, for 20 rows as for 10000.

:math:`\epsilon` is double precision for a compiled derivative, and what is seen of the model's own rounding where that is more: second
differences of J over a few units in the last place, and over steps as small as single precision, which tell models that compute in it.

References
----------
Stewart, *On the perturbation of pseudo-inverses, projections and linear least squares problems*, SIAM Review 19, 1977;
Björck, *Numerical Methods for Least Squares Problems*, 1996, section 1.4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from gradfit.compiler.correlated import AnyKernel
from gradfit.compiler.kernel import Linearization
from gradfit.errors import ModelError
from gradfit.typing import Floats

DOUBLE = float(np.finfo(np.float64).eps)
SINGLE = float(np.finfo(np.float32).eps)
DIFFERENCES = DOUBLE ** (2 / 3)  # truncation of a central difference, as a share of the derivative
TOLERATED = 0.1  # of a standard error may be rounding
GRAIN = 3e-8  # a relative step that single precision sees every other time, and double precision without a bend
COARSE = 1e-10  # second differences over that step are above this only by rounding
TRIALS = 3
LEAST_SHARE, MOST_SHARE = 1e-9, 1e-2  # of a parameter in an undetermined direction, from which it counts as part of it


@dataclass(frozen=True)
class Directions:
    """Directions in the space of the parameters.

    Attributes
    ----------
    inverse
        :math:`(J^TJ)^+` along the determined directions, (p, p).
    undetermined
        Whether a parameter has a part in directions that are not determined, (p,).
    null
        Those directions in units of the scaled parameters, (p, k), orthonormal; entries that are rounding are 0.
    scale
        Norms of the columns of J, (p,); 1 for a column of zeros.
    error
        Relative error of J that was reckoned with.
    condition
        Largest over smallest singular value.
    left, values, right
        U, (n, r), the kept singular values, (r,), and V, (p, r).
    """

    inverse: Floats
    undetermined: np.ndarray
    null: Floats
    scale: Floats
    error: float
    condition: float
    left: Floats = field(repr=False)
    values: Floats = field(repr=False)
    right: Floats = field(repr=False)


def directions(jacobian: Floats, error: float) -> Directions:
    """Split the space of the parameters by singular values, where J, (n, p), is known to a relative error."""
    p = jacobian.shape[1]
    norms = np.linalg.norm(jacobian, axis=0)
    scale = np.where(norms > 0, norms, 1.0)
    # Q first: of a tall matrix, and of fewer rows than columns, all p directions are wanted.
    q, r = np.linalg.qr(jacobian / scale)
    left, values, right = np.linalg.svd(np.vstack([r, np.zeros((max(p - len(r), 0), p))]))
    limit = math.sqrt(p) / TOLERATED * error
    kept = values >= limit
    basis = right[kept].T
    inverse = (basis / values[kept] ** 2) @ basis.T / np.outer(scale, scale)
    null = right[~kept].T
    gap = float(values[kept].min(initial=1.0))
    share = min(max(10 * math.sqrt(p) * error / gap, LEAST_SHARE), MOST_SHARE)
    undetermined = (np.abs(null) > share).any(axis=1)
    null = np.where(undetermined[:, None], null, 0.0)
    smallest = float(values.min(initial=1.0))
    condition = float(values.max(initial=1.0)) / smallest if smallest > 0 else math.inf
    inner = left[: q.shape[1]][:, kept]
    return Directions(inverse, undetermined, null, scale, error, condition, q @ inner, values[kept], basis)


def jacobian_error(kernel: AnyKernel, theta: Floats, near: Linearization) -> float:
    """Relative error of the Jacobian's columns: what is known of the arithmetic, and what is seen of the model's rounding."""
    error = SINGLE if kernel.dtype == torch.float32 else DOUBLE
    if kernel.numeric:
        error = max(error, DIFFERENCES)
    norms = np.linalg.norm(near.jacobian, axis=0)
    seen = _bend(kernel, theta, near, norms, 4 * error)
    coarse = _bend(kernel, theta, near, norms, GRAIN)
    return max(error, seen, coarse if coarse > COARSE else 0.0)


def _bend(kernel: AnyKernel, theta: Floats, near: Linearization, norms: Floats, step: float) -> float:
    """Second differences of J over a relative step of all parameters: rounding, since nothing smooth bends over so little."""
    generator = np.random.default_rng(0)
    largest = 0.0
    for _ in range(TRIALS):
        change = theta * step * generator.choice([-1.0, 1.0], len(theta))
        jacobians = [_jacobian(kernel, theta + sign * change) for sign in (1.0, -1.0)]
        if jacobians[0] is None or jacobians[1] is None:
            continue
        off = np.linalg.norm(jacobians[0] - 2 * near.jacobian + jacobians[1], axis=0)[norms > 0] / norms[norms > 0]
        if np.isfinite(off).all():
            largest = max(largest, float(off.max(initial=0.0)) / math.sqrt(6))
    return largest


def _jacobian(kernel: AnyKernel, theta: Floats) -> Floats | None:
    try:
        near = kernel.linearize(theta)
    except ModelError:
        return None
    return None if near is None else near.jacobian
