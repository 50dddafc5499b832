"""Many fits in Python loops, each with its covariance: scipy's curve_fit and lmfit; Gpufit's CPU library."""

from __future__ import annotations

import numpy as np
from scipy.optimize import curve_fit

from many_problems import Many
from peers import INSTALL, Peer, Unavailable


def scipy_loop(data: Many) -> Peer:
    """Make a loop over scipy's curve_fit, as it is without further arguments."""
    model = data.work.plain

    def run() -> np.ndarray:
        return np.array([curve_fit(model, data.x, y, p0=start)[0] for y, start in zip(data.y, data.start, strict=True)]).T

    return run


def lmfit_loop(data: Many) -> Peer:
    """Make a loop over lmfit's Model.fit, with one model and one set of parameters."""
    try:
        import lmfit
    except ModuleNotFoundError as error:
        raise Unavailable(f"{error.name} is not installed: {INSTALL}") from error
    names = data.work.names
    model = lmfit.Model(data.work.plain)

    def run() -> np.ndarray:
        found = []
        for y, start in zip(data.y, data.start, strict=True):
            fit = model.fit(y, x=data.x, **dict(zip(names, start, strict=True)))
            _ = fit.covar
            found.append([fit.best_values[name] for name in names])
        return np.array(found).T

    return run


def cpufit(data: Many) -> Peer:
    """Make Cpufit's fits, in single precision; it has the Gaussian among its models, and gives no errors."""
    try:
        from pycpufit import cpufit as library
    except (ModuleNotFoundError, OSError) as error:
        raise Unavailable("pycpufit is not installed, and no registry has it: it is built from Gpufit's source") from error
    x, y, start = (np.ascontiguousarray(part, dtype=np.float32) for part in (data.x, data.y, data.start))
    gaussian, squares = library.ModelID.GAUSS_1D, library.EstimatorID.LSE

    def run() -> np.ndarray:
        theta, *_ = library.fit(y, None, gaussian, start, 1e-4, 60, None, squares, x)
        return np.asarray(theta).T

    return run
