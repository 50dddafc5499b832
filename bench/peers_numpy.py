"""numpy and what stands on it: scipy's curve_fit with and without a Jacobian, lmfit, loss and gradient by hand."""

from __future__ import annotations

import numpy as np
from scipy.optimize import curve_fit

from peers import INSTALL, Peer, Unavailable
from problems import Data


def peak(x: np.ndarray, height: float, center: float, width: float, offset: float) -> np.ndarray:
    """Gaussian and a constant."""
    return height * np.exp(-(((x - center) / width) ** 2) / 2) + offset


def peak_jacobian(x: np.ndarray, height: float, center: float, width: float, offset: float) -> np.ndarray:
    """Derivatives of :func:`peak` by its parameters, (n, 4)."""
    z = (x - center) / width
    bell = np.exp(-(z**2) / 2)
    by_center = height * bell * z / width
    return np.column_stack([bell, by_center, by_center * z, np.ones_like(x)])


def scipy_curve_fit(data: Data, *, exact: bool) -> Peer:
    """Make scipy's curve_fit, by finite differences or with the exact Jacobian."""
    start = list(data.start.values())
    jacobian = peak_jacobian if exact else None

    def run() -> np.ndarray:
        popt, _ = curve_fit(peak, data.x, data.y, p0=start, jac=jacobian)
        return np.asarray(popt)

    return run


def lmfit_model(data: Data) -> Peer:
    """Make lmfit's Model.fit, with the model and its parameters made beforehand."""
    try:
        import lmfit
    except ModuleNotFoundError as error:
        raise Unavailable(f"{error.name} is not installed: {INSTALL}") from error
    model = lmfit.Model(peak)
    start = model.make_params(**data.start)

    def run() -> np.ndarray:
        fit = model.fit(data.y, start, x=data.x)
        _ = fit.covar
        return np.array(list(fit.best_values.values()))

    return run


def loss_and_gradient(data: Data) -> Peer:
    """Make the mean squared residual of an exponential decay and its gradient, by hand; gives the gradient."""
    x, y, n = data.x, data.y, len(data.x)
    a, b, c = data.start.values()

    def run() -> np.ndarray:
        e = np.exp(-b * x)
        residual = a * e + c - y
        _ = residual @ residual / n
        slope = residual * e
        return np.array([slope.sum(), -a * (slope @ x), residual.sum()]) * (2 / n)

    return run
