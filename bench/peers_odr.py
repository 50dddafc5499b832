"""odrpack, which is scipy.odr's Fortran: orthogonal distance regression by finite differences or with exact derivatives."""

from __future__ import annotations

from typing import Any

import numpy as np

from peers import INSTALL, Peer, Unavailable
from problems import Data


def decay(x: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Exponential decay to a constant."""
    return beta[0] * np.exp(-beta[1] * x) + beta[2]


def by_parameters(x: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Derivatives of :func:`decay` by its parameters, (3, n)."""
    bell = np.exp(-beta[1] * x)
    return np.stack([bell, -beta[0] * x * bell, np.ones_like(x)])


def by_x(x: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Derivative of :func:`decay` by x, (n,)."""
    return -beta[0] * beta[1] * np.exp(-beta[1] * x)


def fit(data: Data, sigma: float, *, exact: bool) -> Peer:
    """Make odrpack's odr_fit, with the same error in x and y."""
    try:
        from odrpack import odr_fit
    except ModuleNotFoundError as error:
        raise Unavailable(f"{error.name} is not installed: {INSTALL}") from error
    start = np.array(list(data.start.values()))
    options: dict[str, Any] = {"jac_beta": by_parameters, "jac_x": by_x} if exact else {}

    def run() -> np.ndarray:
        found = odr_fit(decay, data.x, data.y, start, weight_x=sigma**-2, weight_y=sigma**-2, **options)
        return np.concatenate([found.beta, found.sd_beta])

    return run
