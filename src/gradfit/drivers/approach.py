r"""A fit with errors in x that does not reach its minimum at once, led there from larger errors of y.

Where the target is nearly exact beside x, points that the model can hardly reach, on a crest or beyond an asymptote, make the
distances bend sharply with the parameters, and a point may have two nearest ones. With an error of y as large as the residuals the
fit is close to an ordinary one, which has none of this. From there the error is brought down to its own size,

.. math:: \sigma_k^2 = \sigma^2 + (10^{-k} \tau)^2, \qquad k = 0, 1, 2, \dots

with :math:`\tau` the root mean square of the residuals in y. Each fit begins where the one before ended, and each search for a nearest
point at the one that was found there: a point does not change from one side of a crest to the other.

References
----------
Nocedal, Wright, *Numerical Optimization*, 2nd ed., section 11.3 (continuation).
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from gradfit.compiler.orthogonal import OrthogonalKernel, sigma_of
from gradfit.methods.solving import Solver
from gradfit.model.parameters import Parameters

STAGES = 12
STEPS = 200  # of Levenberg-Marquardt, each stage
SHARE = 0.1  # of sigma: what is added to it then changes little


def approached(kernel: OrthogonalKernel, parameters: Parameters) -> tuple[OrthogonalKernel, Parameters] | None:
    """Come near the minimum; give the kernel whose search begins at the nearest points there, and the parameters that begin there.

    None where the model is not finite at the start.
    """
    theta, sigma = parameters.start, sigma_of(kernel.data)
    size = float(np.sqrt(np.mean((kernel.jacobian(theta)[0] - kernel.data.target) ** 2)))
    if not 0 < size < math.inf:
        return None
    errors = {name: np.zeros(kernel.n) for name in kernel.inexact}
    for stage in range(STAGES):
        added = size * 10.0**-stage
        softened = kernel.on(replace(kernel.data, sigma=np.hypot(sigma, added)))
        assert isinstance(softened, OrthogonalKernel)
        softened = softened.rooted(errors)
        solver = Solver(softened, theta, parameters.lower, parameters.upper, exact=not kernel.numeric)
        solver.run(STEPS)
        theta = solver.theta
        errors = dict(softened.nearest(theta).errors)
        if added <= SHARE * float(sigma.min()):
            break
    return kernel.rooted(errors), parameters.at(theta)
