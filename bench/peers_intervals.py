"""Intervals elsewhere: MINOS of iminuit, conf_interval of lmfit, curve_fit again for each resample."""

from __future__ import annotations

import numpy as np
from scipy.optimize import curve_fit

from gradfit import FitResult
from peers import INSTALL, Peer, Unavailable
from peers_numpy import peak
from problems import Data, saturation


def minos(data: Data, fit: FitResult, level: float) -> Peer:
    """Make MINOS of a fit at hand, its errors such that it looks for the same rise; gives lower and upper limit of each parameter."""
    try:
        import iminuit
        from iminuit.cost import LeastSquares
    except ModuleNotFoundError as error:
        raise Unavailable(f"{error.name} is not installed: {INSTALL}") from error
    lower, upper = fit.intervals(level)["half"]
    deviations = (upper - lower) / 2 / fit.params["half"].stderr  # Student's quantile: what MINOS calls a level in sigma
    cost = LeastSquares(data.x, data.y, np.sqrt(fit.reduced_chi_square), saturation)
    fitted = iminuit.Minuit(cost, **data.start)
    fitted.errordef = deviations**2
    fitted.migrad()

    def run() -> np.ndarray:
        fitted.minos()
        return np.array(
            [fitted.values[p] + side for p in fitted.parameters for side in (fitted.merrors[p].lower, fitted.merrors[p].upper)]
        )

    return run


def conf_interval(data: Data, level: float) -> Peer:
    """Make lmfit's profile of a fit at hand; gives lower and upper limit of each parameter."""
    try:
        import lmfit
    except ModuleNotFoundError as error:
        raise Unavailable(f"{error.name} is not installed: {INSTALL}") from error
    model = lmfit.Model(saturation)
    fitted = model.fit(data.y, model.make_params(**data.start), x=data.x)

    def run() -> np.ndarray:
        found = lmfit.conf_interval(fitted, fitted, sigmas=[level])
        return np.array([limits[place][1] for limits in found.values() for place in (0, 2)])

    return run


def curve_fit_refits(data: Data, fit: FitResult, resamples: int) -> Peer:
    """Make fits to resampled residuals by scipy, with the residuals and the draws of gradfit's bootstrap; gives the mean estimate."""
    popt = np.array(list(fit.values.values()))
    prediction = peak(data.x, *popt)
    jacobian = np.column_stack([(peak(data.x, *(popt + step)) - prediction) / 1e-7 for step in 1e-7 * np.eye(len(popt))])
    q, _ = np.linalg.qr(jacobian)
    residuals = (data.y - prediction) / np.sqrt(1 - (q**2).sum(axis=1))
    residuals -= residuals.mean()

    def run() -> np.ndarray:
        index = np.random.default_rng(0).integers(0, len(data.x), (resamples, len(data.x)))
        samples = [curve_fit(peak, data.x, prediction + residuals[rows], p0=popt)[0] for rows in index]
        return np.mean(samples, axis=0)

    return run
