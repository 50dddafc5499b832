"""Job: what many fits have in common, block after block. It puts the rooms together and computes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from gradfit.compiler.compiled import NativeKernel
from gradfit.compiler.correlated import AnyKernel
from gradfit.data.batch import Batch, Block
from gradfit.drivers.batched import run
from gradfit.drivers.single import fit_one
from gradfit.methods.levenberg_marquardt import LevenbergMarquardt
from gradfit.methods.many import NOT_DONE, Ends, Limits, Starts, fit_block, unfit
from gradfit.methods.method import Method, Status
from gradfit.model import loss as losses
from gradfit.model.model import Model
from gradfit.model.parameters import Parameters, parameters
from gradfit.model.per_fit import PerFit, Tables
from gradfit.result import FitResult
from gradfit.results import Source
from gradfit.statistics.batch import errors
from gradfit.statistics.many_record import ManyRecord
from gradfit.statistics.summary import Fitted, Setting
from gradfit.typing import Floats

BLOCK_NUMBERS = 1 << 18  # target values in a block: 2 MB, and some milliseconds of work
MOST_FITS = 1 << 14
STATUSES = list(Status)


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
        drawn = errors(ends, block.sizes, starts.lower, starts.upper, absolute=self.absolute, covariance=covariance)
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
