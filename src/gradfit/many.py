"""fit_many: the same model fitted to many data sets. It puts the rooms together and computes nothing."""

from __future__ import annotations

import dataclasses
import warnings as python_warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from gradfit import api
from gradfit.compiler import calling
from gradfit.compiler.compiled import NativeKernel
from gradfit.compiler.correlated import AnyKernel
from gradfit.data.batch import FINE, Batch, Block
from gradfit.data.gather import gather
from gradfit.drivers.batched import run, worker_count
from gradfit.drivers.monitor import check_progress
from gradfit.drivers.single import fit_one
from gradfit.errors import DataError, FitWarning, GradfitError, ModelError, OptionError
from gradfit.methods.levenberg_marquardt import LevenbergMarquardt
from gradfit.methods.many import NOT_DONE, Ends, Limits, Starts, fit_block, unfit
from gradfit.methods.method import Method, Status
from gradfit.model import loss as losses
from gradfit.model.model import Model, check_has_parameters, function_model
from gradfit.model.parameters import Parameters, parameters
from gradfit.model.per_fit import PerFit, Tables, per_fit
from gradfit.result import FitResult
from gradfit.results import FitResults, Source
from gradfit.statistics.batch import errors
from gradfit.statistics.many_record import ManyRecord
from gradfit.statistics.summary import Fitted, Setting
from gradfit.typing import Floats, OnFailure

BLOCK_NUMBERS = 1 << 18  # target values in a block: 2 MB, and some milliseconds of work
MOST_FITS = 1 << 14
STATUSES = list(Status)
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


@dataclass(frozen=True)
class Job:
    """Everything many fits have in common, and where to read what each has of its own."""

    model: Model
    batch: Batch
    kernel: AnyKernel | None
    parameters: Parameters
    per_fit: PerFit
    tables: Tables
    method: Method
    measure: losses.Loss
    dtype: torch.dtype
    absolute: bool
    seed: int
    keys: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def compiled(self) -> bool:
        """Whether whole blocks are fitted in compiled code."""
        return (
            isinstance(self.kernel, NativeKernel)
            and self.kernel.loss_kind == "least_squares"
            and isinstance(self.method, LevenbergMarquardt)
            and len(self.parameters.free_elements) > 0
        )

    def starts(self, begin: int, end: int) -> Starts:
        """Where some of the fits begin."""
        parts = [self.tables.part(name, begin, end) for name in ("lowers", "uppers", "fixed")]
        return Starts(self.tables.theta(begin, end), *parts)

    def blocks(self) -> list[tuple[int, int]]:
        """Cut the fits into blocks."""
        size = max(1, min(MOST_FITS, BLOCK_NUMBERS // max(self.batch.n, 1)))
        return [(begin, min(begin + size, self.batch.count)) for begin in range(0, self.batch.count, size)]

    def names(self) -> tuple[str, ...]:
        """Names of all numbers that are not fixed."""
        known = self.parameters
        kept = [name for name in known.names if not known.specs[name].fixed or known.specs[name].tied is not None]
        return tuple(element for element in known.all_elements if element.split("[")[0] in kept)

    def run(self, *, covariance: bool, threads: int, progress: bool | None) -> tuple[ManyRecord, bool]:
        """Make all fits; tell whether none was left by an interrupt."""
        known = self.parameters
        fixed = {name: known.specs[name].start for name in known.names if known.specs[name].fixed}
        fixed |= {name: values for name, values in self.per_fit.own_fixed.items()}
        record = ManyRecord.empty(
            self.batch.count, self.names(), covariance=covariance, validation=False,
            shapes={name: known.shape(name) for name in known.names}, fixed=fixed, keys=self.keys, model=self.model.label,
            data_names=self.model.data_names, target=self.batch.target_name, method=self.method.name, loss_name=self.measure.name,
            engine=getattr(self.kernel, "engine", "none"), engine_reason=getattr(self.kernel, "reason", "no fit could be made"),
        )  # fmt: skip

        def consume(begin: int, end: int, found: ManyRecord) -> None:
            record.put(slice(begin, end), found)

        whole = run(
            self.blocks(), lambda begin, end: self.fit(begin, end, covariance=covariance), consume, total=self.batch.count,
            threads=threads, progress=progress,
        )  # fmt: skip
        return record, whole

    def fit(self, begin: int, end: int, *, covariance: bool) -> ManyRecord:
        """Make the fits of a block."""
        block, starts = self.batch.block(begin, end), self.starts(begin, end)
        if self.compiled:
            assert isinstance(self.kernel, NativeKernel) and isinstance(self.method, LevenbergMarquardt)
            limits = Limits(self.method.max_steps, self.method.radius, self.dtype == torch.float32)
            return self._drawn(fit_block(self.kernel, block, starts, limits), block, starts, covariance=covariance)
        return self._each(begin, block, starts, covariance=covariance)

    def _empty(self, count: int, *, covariance: bool) -> ManyRecord:
        return ManyRecord.empty(count, self.names(), covariance=covariance, validation=False, shapes={}, fixed={})

    def _drawn(self, ends: Ends, block: Block, starts: Starts, *, covariance: bool) -> ManyRecord:
        """Draw what fits of squared loss allow."""
        found = self._empty(block.count, covariance=covariance)
        drawn = errors(ends, block.sizes, starts.lower, starts.upper, absolute=self.absolute)
        found.values[:], found.stderr[:], found.loss[:] = ends.theta, drawn.stderr, drawn.loss
        found.n[:], found.steps[:], found.status[:] = block.sizes, ends.steps, ends.status
        if found.covariance is not None:
            found.covariance[:] = drawn.covariance
        found.values[np.isnan(drawn.loss)] = np.nan
        return found

    def _each(self, begin: int, block: Block, starts: Starts, *, covariance: bool) -> ManyRecord:
        """Make one fit after the other as a single one is made."""
        found = self._empty(block.count, covariance=covariance)
        found.n[:], found.status[:] = block.sizes, unfit(block, starts)
        for place in np.flatnonzero(found.status == NOT_DONE):
            fitted = self.fitted(begin + int(place), block, int(place))
            solution = fitted.outcome.solution
            found.status[place] = STATUSES.index(solution.status)
            found.steps[place], found.values[place] = solution.steps, solution.theta
            found.loss[place] = fitted.outcome.loss
            matrix = fitted.covariance.matrix
            with np.errstate(invalid="ignore"):
                found.stderr[place] = np.sqrt(np.diag(matrix))
            if found.covariance is not None:
                found.covariance[place] = matrix
        return found

    def fitted(self, fit: int, block: Block, place: int, theta: Floats | None = None) -> Fitted:
        """Make one fit."""
        assert self.kernel is not None
        known = self.known(fit)
        data = block.dataset(place, self.model.data_names, self.batch.target_name)
        kernel = replace(self.kernel.on(data), parameters=known)
        spread = 1.0 if self.absolute or kernel.loss_kind == "likelihood" else None
        outcome = fit_one(self.method, kernel, known, validation=None, seed=self.seed, spread=spread, observe=None)
        return Fitted(outcome, kernel, Setting(self.model, known, data, None, self.method, self.absolute, 0), np.empty(0))

    def known(self, fit: int) -> Parameters:
        """Parameters of one fit."""
        own = self.per_fit
        if not (own.own_start or own.own_bounds or own.own_fixed):
            return self.parameters
        ties = {name: spec.tied for name, spec in self.parameters.specs.items() if spec.tied is not None}
        return parameters(self.model.defaults, **own.of(fit), tied=ties or None, packed=True)

    def source(self) -> Source:
        """How the fits may be made again."""

        def single(fit: int) -> FitResult:
            return FitResult(self.fitted(fit, self.batch.block(fit, fit + 1), 0))

        def whole_covariance() -> Floats:
            record, _ = self.run(covariance=True, threads=1, progress=False)
            assert record.covariance is not None
            return record.covariance

        def again(places: np.ndarray, **how: Any) -> ManyRecord:
            raise NotImplementedError

        return Source(single, whole_covariance, again)


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
    described = function_model(model, count=len(inputs), target=aim)
    if aim in (*described.data_names, *described.defaults):
        described = dataclasses.replace(described, target=(aim := "target"))
    return described, gather(arrays, described.data_names, aim, sigma=sigma, offsets=offsets)
