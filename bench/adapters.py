"""How each work is asked of gradfit: the public calls, as a user writes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

import gradfit
from gradfit.compiler import calling
from gradfit.data.dataset import dataset
from gradfit.data.sources import Table
from gradfit.model.loss import resolve
from gradfit.model.model import function_model
from gradfit.model.parameters import parameters
from many_problems import Many
from problems import Data


def descend(model: Callable[..., Any], data: Data, method: str, rate: float, epochs: int, **options: Any) -> gradfit.FitResult:
    """Fit by gradient descent in the user's own units; covariance and history are read, so that nothing is left undone."""
    fit = gradfit.fit(
        model, data.x, data.y, start=data.start, method=method, learning_rate=rate, epochs=epochs,
        scale=False, progress=False, on_failure="ignore", **options,
    )  # fmt: skip
    rows = len(fit.history["train_loss"])
    if rows != epochs:
        raise RuntimeError(f"gradfit stopped after {rows} of {epochs} epochs: {fit.message}")
    _ = fit.covariance
    return fit


def least_squares(model: Callable[..., Any], data: Data) -> gradfit.FitResult:
    """Fit by the default method, and read the covariance."""
    fit = gradfit.fit(model, data.x, data.y, start=data.start)
    _ = fit.covariance
    return fit


def orthogonal(model: Callable[..., Any], data: Data, sigma: float) -> gradfit.FitResult:
    """Fit with the same error in x and y, and read the covariance."""
    fit = gradfit.fit(model, data.x, data.y, sigma=sigma, sigma_x=sigma, start=data.start)
    _ = fit.covariance
    return fit


def profile(fit: gradfit.FitResult, level: float) -> np.ndarray:
    """Profile intervals of a fit at hand, (2 p,)."""
    return np.ravel(list(fit.intervals(level, kind="profile").values()))


def resample(fit: gradfit.FitResult, resamples: int, threads: int | None = None) -> gradfit.Bootstrap:
    """Refit to resampled residuals, from the fitted point."""
    return fit.bootstrap(resamples, threads=threads, progress=False)


def fit_many(data: Many, threads: int | None = None) -> gradfit.FitResults:
    """Fit many data sets; values, errors, losses and statuses are there when it returns."""
    dtype = data.y.dtype.name
    return gradfit.fit_many(data.work.model, data.x, data.y, start=data.starts, threads=threads, dtype=dtype, progress=False)


def kernel(model: Callable[..., Any], data: Data) -> Any:
    """Prepare loss and gradient of the model on the data; not timed."""
    described = function_model(model, count=1, target="y")
    known = parameters(described.defaults, start=data.start)
    rows = dataset(Table(("x", "y"), {"x": data.x, "y": data.y}.__getitem__, "the benchmark"), ("x",), "y")
    columns = {described.data_names[0]: rows.columns["x"]}
    return calling.build(
        described, known, replace(rows, columns=columns), resolve("squared", rows), dtype=torch.float64, engine="native"
    )


def loss_and_gradient(kernel: Any, theta: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean squared residual at ``theta`` and its gradient, (p,), on one thread; this is what is timed."""
    return kernel.loss_and_gradient(theta)  # type: ignore[no-any-return]


def answer(fit: gradfit.FitResult) -> np.ndarray:
    """Fitted values in the order of the model, (p,)."""
    return np.array(list(fit.values.values()), dtype=float)
