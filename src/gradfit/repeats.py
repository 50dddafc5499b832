"""What results of many fits ask for once more: one of the fits by itself, the failures, covariances, intervals."""

from __future__ import annotations

import warnings as python_warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from gradfit import api
from gradfit.compiler.compiled import NativeKernel
from gradfit.data.batch import ChosenBatch
from gradfit.drivers.batched import run, worker_count
from gradfit.errors import FitWarning, GradfitError, OptionError
from gradfit.jobs import STATUSES, Job
from gradfit.methods.levenberg_marquardt import LevenbergMarquardt
from gradfit.methods.many import Limits, fit_block
from gradfit.result import FitResult
from gradfit.results import Source, improved
from gradfit.statistics.many_intervals import bootstrap_limits, plain_profiles, profile_limits
from gradfit.statistics.many_record import ManyRecord
from gradfit.statistics.summary import Fitted
from gradfit.typing import Floats

AGREES = 0.01  # standard errors between where a batch and a single fit of the same data may end
ALIKE = 1e-6  # relative, where there is no error
SPREAD = 4.0  # a drawn start is the given one times this, to the power of a normal number
TRIED = 3  # fits with which another method is tried
A_BLOCK = 16  # fits whose intervals are found between two looks at interrupt and bar


@dataclass(frozen=True)
class Repeats:
    """A job and what it can do again."""

    job: Job

    def single(self, fit: int, values: Floats) -> FitResult:
        """Make one fit by itself, from its start; where that leads elsewhere, from where it ended in the batch."""
        job = self.job
        block, held, starts = job.read(fit, fit + 1)
        starts = job.begun(block, starts)
        theta = self._free(values)
        there = replace(starts, theta=theta[None])
        inside = ((theta >= starts.lower) & (theta <= starts.upper)).all() and np.isfinite(theta).all()
        try:
            fitted = job.fitted(block, held, starts, 0)
        except (GradfitError, ArithmeticError, RuntimeError, ValueError):
            if not inside:
                raise
            return FitResult(job.fitted(block, held, there, 0))
        return FitResult(fitted if not inside or _agrees(fitted, theta) else job.fitted(block, held, there, 0))

    def covariance(self) -> Floats:
        """Covariance of all fits, (count, m, m)."""
        record, _ = self.job.run(covariance=True, threads=worker_count(None), progress=None)
        assert record.covariance is not None
        return record.covariance

    def again(
        self, places: np.ndarray, *, method: Any, multistart: int | None, seed: int, covariance: bool, options: Mapping[str, Any]
    ) -> tuple[ManyRecord, Source]:
        """Make some fits once more; gives their records in this order, and what can make them again."""
        _check_multistart(multistart, seed)
        job = replace(
            self._by(method, options, places), batch=ChosenBatch(self.job.batch, places), tables=self.job.tables.chosen(places),
            held_out=None if self.job.held_out is None else self.job.held_out.chosen(places), neighbour=False,
            keys={name: labels[places] for name, labels in self.job.keys.items()},
        )  # fmt: skip
        again = Retried(job, multistart or 1, seed, places)
        return again.run(covariance=covariance), again

    def _by(self, method: Any, options: Mapping[str, Any], places: np.ndarray) -> Job:
        """Give the job with another method or other options, tried on some of the fits."""
        job = self.job
        if method is None and not options:
            return job
        named, kept = job.given
        named, told = (named, {**kept, **options}) if method is None else (method, dict(options))
        chosen = api.method_of(named, told)
        kernel = job.kernel
        if kernel is not None and isinstance(chosen, LevenbergMarquardt) and kernel.dtype != torch.float64:
            kernel = kernel.in_double()
        other = replace(job, kernel=kernel, method=chosen, given=(named, told))
        if kernel is None:
            return other
        healthy = np.setdiff1d(np.arange(job.batch.count), places)
        failures: list[GradfitError] = []
        for fit in (healthy if healthy.size else places)[:TRIED].tolist():
            try:
                other.check(fit)
                return other
            except GradfitError as error:
                failures.append(error)
        if failures:
            raise failures[0]
        return other

    def intervals(self, record: ManyRecord, level: float, kind: str, options: Mapping[str, Any]) -> tuple[Floats, Floats]:
        """Lower and upper limits of all fits, (count, m) each, from where these ended."""
        asked = dict(options)
        threads, progress = worker_count(asked.pop("threads", None)), asked.pop("progress", None)
        lower, upper = (np.full((record.count, len(record.names)), np.nan) for _ in range(2))
        if self.job.kernel is None:
            return lower, upper
        unfair: list[int] = []

        def find(begin: int, end: int) -> Floats:
            some = record.part(slice(begin, end))
            if kind == "profile":
                return self._profiles(some, begin, end, level)
            return self._bootstraps(some, begin, end, level, unfair, **asked)

        def consume(begin: int, end: int, found: Floats) -> None:
            lower[begin:end], upper[begin:end] = found

        size = A_BLOCK * (8 if kind == "profile" else 1)
        blocks = [(begin, min(begin + size, record.count)) for begin in range(0, record.count, size)]
        if not run(blocks, find, consume, total=record.count, threads=threads, progress=progress):
            python_warnings.warn("interrupted: the intervals of the fits that were left are NaN.", FitWarning, stacklevel=3)
        if unfair:
            python_warnings.warn(
                f"of {len(unfair)} of {record.count} fits more than 5 % of the resampled fits did not converge, or not determine a "
                "parameter; the rest is no fair sample.",
                FitWarning,
                stacklevel=3,
            )
        return lower, upper

    def _profiles(self, record: ManyRecord, begin: int, end: int, level: float) -> Floats:
        job = self.job
        block, _, starts = job.read(begin, end)
        found = np.full((2, record.count, len(record.names)), np.nan)
        theta = self._free(record.values)
        rest = record.success
        starts = replace(starts, theta=theta)
        if job.compiled and not job.parameters.ties and rest.any():
            assert isinstance(job.kernel, NativeKernel)
            places = np.flatnonzero(rest)
            some, begun = block.chosen(places), starts.chosen(places)
            ends = fit_block(job.kernel, some, begun, Limits())
            lower, upper, plain = plain_profiles(
                job.kernel, job.parameters, some, begun, ends, level=level, absolute=job.absolute
            )
            found[0, places], found[1, places] = lower, upper
            rest = rest.copy()
            rest[places[plain]] = False
        for place in np.flatnonzero(rest).tolist():
            found[:, place] = profile_limits(job.ended(block, starts, place, STATUSES[record.status[place]]), record.names, level)
        return found

    def _bootstraps(
        self, record: ManyRecord, begin: int, end: int, level: float, unfair: list[int], *, seed: int = 0, **options: Any
    ) -> Floats:
        job = self.job
        block, _, starts = job.read(begin, end)
        starts = replace(starts, theta=self._free(record.values))
        found = np.full((2, record.count, len(record.names)), np.nan)
        for place in np.flatnonzero(record.success).tolist():
            fitted = job.ended(block, starts, place, STATUSES[record.status[place]])
            found[:, place], few = bootstrap_limits(fitted, record.names, level, place=begin + place, seed=seed, **options)
            if few:
                unfair.append(begin + place)
        return found

    def _free(self, values: Floats) -> Floats:
        """Give the free ones of the numbers of one fit, (m,), or of many, (count, m)."""
        names = self.job.names()
        return np.ascontiguousarray(values[..., [names.index(name) for name in self.job.parameters.free_elements]])


def _agrees(fitted: Fitted, theta: Floats) -> bool:
    """Whether a single fit ended where it did in a batch."""
    own = fitted.outcome.solution.theta
    matrix = fitted.covariance.matrix
    with np.errstate(invalid="ignore"):
        error = np.sqrt(np.diag(matrix)) if matrix.shape[0] == len(theta) else np.full(len(theta), np.nan)
    near = np.where(np.isfinite(error), AGREES * error, ALIKE * np.abs(theta))
    return bool((np.abs(own - theta) <= np.maximum(near, ALIKE * np.abs(theta))).all())


def _check_multistart(multistart: Any, seed: Any) -> None:
    if multistart is not None and (
        isinstance(multistart, bool) or not isinstance(multistart, (int, np.integer)) or multistart < 1
    ):
        raise OptionError(f"multistart is {multistart!r}; expected how many starts to try, a whole number, 1 or more.")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise OptionError(f"seed is {seed!r}; expected a whole number, 0 or more.")


@dataclass(frozen=True)
class Retried(Repeats):
    """Some fits of a batch, each from several starts.

    Attributes
    ----------
    starts
        How many: the one given, and others around it.
    seed
        Of these.
    places
        Where the fits stand in the batch they come from, (count,): what is drawn for a fit does not depend on which others failed.
    """

    starts: int
    seed: int
    places: np.ndarray

    def run(self, *, covariance: bool) -> ManyRecord:
        """Make the fits; keep of each the lowest loss among the successful ones."""
        job = self.job
        best, _ = job.run(covariance=covariance, threads=worker_count(None), progress=None)
        if self.starts == 1:
            return best
        drawn = self._drawn()
        for number in range(self.starts - 1):
            tables = replace(job.tables, starts=list(np.ascontiguousarray(drawn[:, number].T)), earlier=[], waiting=())
            other, _ = replace(job, tables=tables).run(covariance=covariance, threads=worker_count(None), progress=None)
            better = improved(best, other)
            best.put(better, other.part(better))
        return best

    def covariance(self) -> Floats:
        """Covariance of the fits, (count, m, m)."""
        record = self.run(covariance=True)
        assert record.covariance is not None
        return record.covariance

    def _drawn(self) -> Floats:
        """Starts around the given ones, (count, starts - 1, p)."""
        tables, count = self.job.tables, len(self.places)
        begun = []
        for cut in self.job.blocks(self.job.block_size):
            block, _, starts = self.job.read(*cut)
            begun.append(self.job.begun(block, starts).theta)
        given = np.concatenate(begun)[:, None, :]
        lower, upper = (np.broadcast_to(tables.part(side, 0, count), given[:, 0].shape)[:, None] for side in ("lowers", "uppers"))
        shape = (self.starts - 1, given.shape[2])
        normal, even = np.empty((count, *shape)), np.empty((count, *shape))
        for place, fit in enumerate(self.places.tolist()):
            generator = np.random.default_rng([self.seed, fit])
            normal[place], even[place] = generator.standard_normal(shape), generator.random(shape)
        around = np.where(given == 0, normal, given * SPREAD**normal)
        with np.errstate(invalid="ignore"):
            between = lower + even * (upper - lower)
        return np.clip(np.where(np.isfinite(lower) & np.isfinite(upper), between, around), lower, upper)
