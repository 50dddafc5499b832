"""fit_many: the same model fitted to many data sets. It puts the rooms together and computes nothing."""

from __future__ import annotations

import dataclasses
import warnings as python_warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from gradfit import api
from gradfit.compiler import calling
from gradfit.data.batch import FINE, Batch
from gradfit.data.gather import gather
from gradfit.drivers.batched import worker_count
from gradfit.drivers.monitor import check_progress
from gradfit.errors import DataError, FitWarning, GradfitError, ModelError
from gradfit.jobs import Job
from gradfit.methods.levenberg_marquardt import LevenbergMarquardt
from gradfit.methods.many import NOT_DONE
from gradfit.model import loss as losses
from gradfit.model.model import Model, check_has_parameters, function_model
from gradfit.model.parameters import parameters
from gradfit.model.per_fit import per_fit
from gradfit.results import FitResults
from gradfit.typing import OnFailure

SAMPLES = 3  # fits with which a model is tried before it is said not to work


def fit_many(
    model: str | Callable[..., Any],
    *arrays: Any,
    data: Any = None,
    target: str | None = None,
    start: Any = None,
    bounds: Mapping[str, tuple[Any, Any]] | None = None,
    fixed: Mapping[str, Any] | Sequence[str] | None = None,
    tied: Mapping[str, str | Callable[..., Any]] | None = None,
    sigma: Any = None,
    absolute_sigma: bool = False,
    offsets: Any = None,
    loss: str | Callable[..., Any] = "squared",
    f_scale: float | None = None,
    method: Any = None,
    seed: int = 0,
    dtype: str | torch.dtype | None = None,
    engine: str = "auto",
    covariance: bool = False,
    threads: int | None = None,
    progress: bool | None = None,
    on_failure: OnFailure = "ignore",
    **options: Any,
) -> FitResults:
    """Fit a model to many data sets, each by itself: one per sensor, pixel, spectrum."""
    job = _job(
        model, arrays, data, target, start, bounds, fixed, tied, sigma, absolute_sigma, offsets, loss, f_scale, method, seed, dtype,
        engine, options,
    )  # fmt: skip
    check_progress(progress)
    record, whole = job.run(covariance=covariance, threads=worker_count(threads), progress=progress)
    if not whole:
        done = int((record.status != NOT_DONE).sum())
        python_warnings.warn(
            f"interrupted: {done} of {record.count} fits are done, the others have the status not_done.", FitWarning, stacklevel=2
        )
    return FitResults(record, job.source())


def _job(
    model: Any, arrays: tuple[Any, ...], data: Any, target: str | None, start: Any, bounds: Any, fixed: Any, tied: Any, sigma: Any,
    absolute_sigma: bool, offsets: Any, loss: Any, f_scale: Any, method: Any, seed: int, dtype: Any, engine: str, options: dict[str, Any],
) -> Job:  # fmt: skip
    api.check_choices(engine, "ignore", seed, None, None, None)
    described, batch = _described(model, arrays, data, target, sigma, offsets)
    check_has_parameters(described)
    own = per_fit(described.defaults, batch.count, start=start, bounds=bounds, fixed=fixed)
    measure: losses.Loss | None = None
    failures: list[GradfitError] = []
    for fit, block, place in _samples(batch):
        sample = block.dataset(place, described.data_names, batch.target_name)
        known = parameters(described.defaults, **own.of(fit), tied=tied)
        measure = losses.resolve(loss, sample, f_scale=f_scale)
        chosen = api.method_of(api.default_method(described, measure, sample) if method is None else method, options)
        precision = api.precision_of(dtype, sample, chosen, described)
        wide = torch.float64 if isinstance(chosen, LevenbergMarquardt) else precision
        try:
            kernel = calling.build(described, known, sample, measure, dtype=wide, engine=engine)
        except ModelError as error:
            failures.append(error)
            continue
        return Job(
            described, batch, kernel, known, own, own.tables(known, batch.count), chosen, measure, precision, absolute_sigma, seed
        )
    if failures:
        raise failures[0]
    raise DataError("none of the fits has data that can be fitted: every value is NaN or infinite, or every sigma is bad.")


def _samples(batch: Batch) -> Any:
    """Some fits whose data are in order, to try the model with."""
    found = 0
    for begin in range(0, batch.count, 1024):
        block = batch.block(begin, min(begin + 1024, batch.count))
        longest = np.flatnonzero((block.flaws == FINE) & (block.sizes >= min(batch.n, block.sizes.max(initial=0))))
        for place in longest[:SAMPLES]:
            yield begin + int(place), block, int(place)
            found += 1
        if found >= SAMPLES:
            return


def _described(
    model: Any, arrays: tuple[Any, ...], data: Any, target: str | None, sigma: Any, offsets: Any
) -> tuple[Model, Batch]:
    if len(arrays) < 2:
        raise DataError(
            "no data to fit: write fit_many(model, x, Y) with Y (fits, points), or fit_many(model, data=table, target='y', by='sensor')."
        )
    *inputs, last = arrays
    aim = target or "y"
    described = model if isinstance(model, Model) else function_model(model, count=len(inputs), target=aim)
    described = dataclasses.replace(described, target=aim)
    if aim in (*described.data_names, *described.defaults):
        described = dataclasses.replace(described, target=(aim := "target"))
    return described, gather(arrays, described.data_names, aim, sigma=sigma, offsets=offsets)
