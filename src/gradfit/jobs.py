"""Job: what many fits have in common, made block after block. It puts the rooms together and computes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from gradfit.compiler import calling
from gradfit.compiler.compiled import NativeKernel
from gradfit.compiler.correlated import AnyKernel
from gradfit.data.batch import Batch, Block, cuts
from gradfit.data.held_out import HeldOut
from gradfit.drivers.batched import run
from gradfit.drivers.single import ended_at, fit_one
from gradfit.errors import DataError, GradfitError
from gradfit.many_starting import ManyStarter
from gradfit.methods.evaluating import mean_squares
from gradfit.methods.lanes import serves
from gradfit.methods.levenberg_marquardt import LevenbergMarquardt
from gradfit.methods.many import BAD_START, NOT_DONE, REFUSED, Limits, Starts, fit_block, unfit
from gradfit.methods.method import Method, Problem, Status
from gradfit.model import loss as losses
from gradfit.model.model import Model
from gradfit.model.parameters import Parameters
from gradfit.model.per_fit import Tables, placed
from gradfit.model.ties import not_fixed, with_tied
from gradfit.statistics.batch import at_bound, errors, errors_of_loss
from gradfit.statistics.covariance import propagate_each
from gradfit.statistics.many_record import ManyRecord
from gradfit.statistics.record import GIVEN
from gradfit.statistics.summary import Fitted, Setting
from gradfit.typing import Floats, Missing

BLOCK_NUMBERS = 1 << 18  # target values in a block: 2 MB, and some milliseconds of work
MOST_FITS = 1 << 14
ONE_BY_ONE = 64  # fits in a block where each is made by itself, which takes milliseconds
SOME = 4096  # where most are made in compiled code and their errors take a millisecond
STATUSES = list(Status)
SHARES, LEAST = 4, 256  # blocks for each thread, and fits of a compiled block, at least
FAR, NEAR = 64, 8  # strides of the fits that begin first, and of those that the others begin from


@dataclass(frozen=True)
class Job:
    """Everything many fits have in common, and where to read what each has of its own.

    Attributes
    ----------
    kernel
        The model, tried on one of the fits; None where no fit has data to try it on.
    tables
        Starts, bounds and fixed numbers.
    given
        The method as the caller named it, and its options.
    held_out
        Which rows are set apart for validation, or None.
    neighbour
        Whether fits begin where one before them ended.
    keys
        What each fit is called, by name: (count,) each.
    """

    model: Model
    batch: Batch
    kernel: AnyKernel | None
    parameters: Parameters
    tables: Tables
    method: Method
    given: tuple[Any, Mapping[str, Any]]
    measure: losses.Loss
    dtype: torch.dtype
    absolute: bool
    seed: int
    held_out: HeldOut | None = None
    missing: Missing = "drop"
    neighbour: bool = False
    keys: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def compiled(self) -> bool:
        """Whether whole blocks are fitted in compiled code."""
        return (
            isinstance(self.kernel, NativeKernel)
            and self.kernel.loss_kind == "least_squares"
            and isinstance(self.method, LevenbergMarquardt)
            and self.method.early_stopping is None
            and len(self.parameters.free_elements) > 0
        )

    @property
    def in_lanes(self) -> bool:
        """Whether most fits of a block can be made in compiled code, though the loss is another than squares."""
        return (
            isinstance(self.kernel, NativeKernel)
            and self.kernel.loss_kind in ("robust", "likelihood")
            and isinstance(self.method, LevenbergMarquardt)
            and self.method.early_stopping is None
            and serves(self.kernel)
        )

    @property
    def limits(self) -> Limits:
        """What a fit in compiled code may take."""
        assert isinstance(self.method, LevenbergMarquardt)
        return Limits(self.method.max_steps, self.method.radius, self.dtype == torch.float32)

    @cached_property
    def starter(self) -> ManyStarter:
        """Finds where fits begin that were given no start."""
        radius = self.method.radius if isinstance(self.method, LevenbergMarquardt) else 1.0
        return ManyStarter(
            self.kernel, self.parameters, self.tables, self.batch, self.method, self.seed, radius, self.compiled or self.in_lanes,
            self.held_out is not None,
        )  # fmt: skip

    @property
    def spread(self) -> float | None:
        """Standard deviation of a residual in units of sigma, where it is known."""
        return 1.0 if self.absolute or self.measure.kind == "likelihood" else None

    @property
    def block_size(self) -> int:
        """How many fits are in a block, at most."""
        most = MOST_FITS if self.compiled else SOME if self.in_lanes else ONE_BY_ONE
        return max(FAR, min(most, BLOCK_NUMBERS // max(self.batch.n, 1)) // FAR * FAR) if self.neighbour else most

    def shared_out(self, threads: int) -> int:
        """How many fits are in a block, so that each thread has several even where there are few in all."""
        share = -(-self.batch.count // (SHARES * threads))
        size = min(self.block_size, max(LEAST if self.compiled or self.in_lanes else 1, share))
        return max(FAR, size // FAR * FAR) if self.neighbour else size

    def blocks(self, size: int) -> list[tuple[int, int]]:
        """Cut the fits into blocks: where fits begin from others of their block, all are of one size."""
        return cuts(self.batch, size, BLOCK_NUMBERS if not self.neighbour else size * max(self.batch.n, 1))

    def names(self) -> tuple[str, ...]:
        """Names of all numbers that are not fixed."""
        return not_fixed(self.parameters)

    def room(self, *, covariance: bool) -> ManyRecord:
        """Make room for the results of all fits, none of which is made yet."""
        known = self.parameters
        return ManyRecord.empty(
            self.batch.count, self.names(), covariance=covariance, validation=self.held_out is not None,
            shapes={name: known.shape(name) for name in known.names}, fixed=self.tables.fixed_values(known), keys=self.keys,
            model=self.model.label, data_names=self.model.data_names, target=self.batch.target_name, method=self.method.name,
            loss_name=self.measure.name, engine=getattr(self.kernel, "engine", "none"),
            engine_reason=getattr(self.kernel, "reason", "no fit could be made"), beginning=self.starter.beginning.text,
        )  # fmt: skip

    def run(self, *, covariance: bool, threads: int, progress: bool | None) -> tuple[ManyRecord, bool]:
        """Make all fits; tell whether none was left by an interrupt."""
        record = self.room(covariance=covariance)

        def consume(begin: int, end: int, found: ManyRecord) -> None:
            record.put(slice(begin, end), found)

        whole = run(
            self.blocks(self.shared_out(threads)), lambda begin, end: self.fit(*self.read(begin, end), covariance=covariance), consume,
            total=self.batch.count, threads=threads, progress=progress,
        )  # fmt: skip
        return record, whole

    # --- a block ------------------------------------------------------------------------------------------------------

    def read(self, begin: int, end: int) -> tuple[Block, Block | None, Starts]:
        """Read some of the fits: rows to train on, rows to validate on, and where they begin.

        Raises
        ------
        DataError
            Something is missing, and ``missing="raise"``.
        """
        block = self.batch.block(begin, end)
        if self.missing == "raise" and block.dropped is not None and block.dropped.any():
            place = int(np.flatnonzero(block.dropped)[0])
            raise DataError(
                f"fit {begin + place} has values that are NaN in {int(block.dropped[place])} of its rows; mend them, or pass "
                'missing="drop" to leave such rows out.'
            )
        lower, upper, fixed = (self.tables.part(name, begin, end) for name in ("lowers", "uppers", "fixed"))
        theta, waits = self.tables.theta(begin, end)
        starts = Starts(theta, lower, upper, fixed, waits)
        if self.held_out is None:
            return block, None, starts
        return *self.held_out.part(block, begin), starts

    def begun(self, block: Block, starts: Starts) -> Starts:
        """Give the starts of a block with those found that nobody gave."""
        return self.starter.begun(block, starts, lambda place: self._put(block, None, starts, place))

    def fit(self, block: Block, held: Block | None, starts: Starts, *, covariance: bool) -> ManyRecord:
        """Make the fits of a block."""
        make = self._in_waves if self.neighbour else self._made
        found = make(block, held, starts, covariance=covariance or bool(self.parameters.ties))
        return self._with_tied(found, starts.fixed, covariance=covariance) if self.parameters.ties else found

    def _in_waves(self, block: Block, held: Block | None, starts: Starts, *, covariance: bool) -> ManyRecord:
        """Make every 64th fit, from its own start; then every 8th, from where these ended; then the others, from where those did.

        So what a fit begins with depends on no more than two fits before it, neither on how fits are cut into blocks nor on threads.
        """
        found = self._empty(block.count, covariance=covariance)
        order = np.arange(block.count)
        for stride, leading in (FAR, 0), (NEAR, FAR), (1, NEAR):
            places = order[(order % stride == 0) & ((order % leading != 0) if leading else True)]
            begun = starts.chosen(places)
            leaders = places // leading * leading if leading else places[:0]
            led = np.zeros(len(places), dtype=bool)
            if leading:
                ends = found.values[leaders]
                led = found.success[leaders] & ((ends >= begun.lower) & (ends <= begun.upper)).all(axis=1)
                waits = None if begun.open is None else begun.open & ~led
                begun = replace(begun, theta=np.where(led[:, None], ends, begun.theta), open=waits)
            found.put(places, self._chosen(block, held, begun, places, covariance=covariance))
            lost = places[led & ~found.success[places]]
            if lost.size:
                found.put(lost, self._chosen(block, held, starts.chosen(lost), lost, covariance=covariance))
        return found

    def _chosen(self, block: Block, held: Block | None, starts: Starts, places: np.ndarray, *, covariance: bool) -> ManyRecord:
        """Make some of the fits of a block, from starts of their own."""
        apart = None if held is None else held.chosen(places)
        return self._made(block.chosen(places), apart, starts, covariance=covariance)

    def _made(self, block: Block, held: Block | None, starts: Starts, *, covariance: bool) -> ManyRecord:
        """Make the fits; gives free numbers only."""
        found = self._empty(block.count, covariance=covariance)
        found.n[:] = block.sizes
        starts = self.begun(block, starts)
        if self.compiled:
            self._compiled(found, block, held, starts)
        else:
            found.status[:] = unfit(block, starts)
            if self.in_lanes:
                self._in_lanes(found, block, held, starts)
            self._each(found, block, held, starts)
        lost = np.isnan(found.loss)
        found.values[lost] = np.nan
        assert found.dof is not None
        known = self.measure.kind == "likelihood" or (self.absolute and self.measure.kind == "least_squares")
        found.dof[:] = np.inf if known else block.sizes - len(self.parameters.free_elements)
        if not known and (np.isfinite(starts.lower).any() or np.isfinite(starts.upper).any()):
            found.dof[:] += at_bound(found.values, starts.lower, starts.upper).sum(axis=1)
        found.dof[lost] = np.nan
        return found

    def _empty(self, count: int, *, covariance: bool) -> ManyRecord:
        free, validation = self.parameters.free_elements, self.held_out is not None
        return ManyRecord.empty(count, free, covariance=covariance, validation=validation, shapes={}, fixed={})

    def _compiled(self, found: ManyRecord, block: Block, held: Block | None, starts: Starts) -> None:
        """Make all fits by compiled code."""
        assert isinstance(self.kernel, NativeKernel)
        ends = fit_block(self.kernel, block, starts, self.limits)
        wanted = found.covariance is not None
        drawn = errors(ends, block.sizes, starts.lower, starts.upper, absolute=self.absolute, covariance=wanted)
        found.values[:], found.stderr[:], found.loss[:] = ends.theta, drawn.stderr, drawn.loss
        found.steps[:], found.status[:] = ends.steps, ends.status
        if found.covariance is not None:
            found.covariance[:] = drawn.covariance
        self._look_closer(found, block, replace(starts, theta=ends.theta))
        if held is not None and found.validation_loss is not None:
            found.validation_loss[:] = mean_squares(self.kernel, held, ends.theta, starts.fixed)
            found.validation_loss[np.isnan(drawn.loss)] = np.nan

    def _look_closer(self, found: ManyRecord, block: Block, ends: Starts) -> None:
        """Find errors as of a single fit where a fit that succeeded has none: its Jacobian is nearly singular, as that of powers of x is."""
        without = found.success & np.isnan(found.stderr).all(axis=1) & (block.sizes > ends.theta.shape[1])
        for place in np.flatnonzero(without).tolist():
            if at_bound(
                ends.theta[[place]], *(side if side.ndim == 1 else side[place] for side in (ends.lower, ends.upper))
            ).any():
                continue
            with np.errstate(all="ignore"):
                matrix = self.ended(block, ends, place, STATUSES[found.status[place]]).covariance.matrix
                found.stderr[place] = np.sqrt(np.diag(matrix))
            if found.covariance is not None:
                found.covariance[place] = matrix

    def _in_lanes(self, found: ManyRecord, block: Block, held: Block | None, starts: Starts) -> None:
        """Make by compiled code the fits of another loss than squares that end well there; leaves the others not done."""
        assert isinstance(self.kernel, NativeKernel)
        ends = fit_block(self.kernel, block, starts, self.limits)
        drawn, apart = errors_of_loss(ends, self.kernel, block, starts, covariance=found.covariance is not None)
        if self.kernel.loss_kind == "likelihood":
            apart |= ~(block.squares > 0) | (block.target < 0).any(axis=1)  # not of counts, or of none
        done = np.flatnonzero(~apart)
        found.values[done], found.stderr[done], found.loss[done] = ends.theta[done], drawn.stderr[done], drawn.loss[done]
        found.steps[done], found.status[done] = ends.steps[done], ends.status[done]
        if found.covariance is not None and drawn.covariance is not None:
            found.covariance[done] = drawn.covariance[done]
        if held is not None and found.validation_loss is not None:
            for place in done.tolist():
                kernel, _setting = self._put(held, None, starts, place)
                found.validation_loss[place] = kernel.mean_loss(ends.theta[place])

    def _each(self, found: ManyRecord, block: Block, held: Block | None, starts: Starts) -> None:
        """Make one fit after the other, of those not done, as a single one is made; what is raised in one ends that one."""
        if self.kernel is None:
            found.status[found.status == NOT_DONE] = BAD_START
        for place in np.flatnonzero(found.status == NOT_DONE).tolist():
            try:
                with np.errstate(all="ignore"):  # a status tells of numbers that overflow
                    fitted = self.fitted(block, held, starts, place)
                    solution, matrix = fitted.outcome.solution, fitted.covariance.matrix
                found.loss[place] = fitted.outcome.loss
                found.values[place], found.steps[place] = solution.theta, solution.steps
                if found.validation_loss is not None:
                    found.validation_loss[place] = fitted.outcome.validation_loss
            except (GradfitError, ArithmeticError, RuntimeError, ValueError):
                found.status[place], found.loss[place] = REFUSED, np.nan
                continue
            found.status[place] = STATUSES.index(solution.status)
            if matrix.shape[0] == solution.theta.size:  # a large one is not held
                with np.errstate(invalid="ignore"):
                    found.stderr[place] = np.sqrt(np.diag(matrix))
                if found.covariance is not None:
                    found.covariance[place] = matrix

    def _with_tied(self, found: ManyRecord, fixed: Floats, *, covariance: bool) -> ManyRecord:
        """Add the tied numbers, with errors by the delta method."""
        assert found.covariance is not None
        values, slopes = with_tied(self.parameters, found.values, fixed)
        matrices = propagate_each(found.covariance, slopes)
        with np.errstate(invalid="ignore"):
            stderr = np.sqrt(np.einsum("ijj->ij", matrices))
        return replace(found, names=self.names(), values=values, stderr=stderr, covariance=matrices if covariance else None)

    # --- one fit ------------------------------------------------------------------------------------------------------

    def fitted(self, block: Block, held: Block | None, starts: Starts, place: int) -> Fitted:
        """Make one fit of a block by itself."""
        kernel, setting = self._put(block, held, starts, place)
        losses.check_target(self.measure, setting.data)
        outcome = fit_one(
            self.method,
            kernel,
            setting.parameters,
            validation=setting.validation,
            seed=self.seed,
            spread=self.spread,
            observe=None,
        )
        _ = outcome.loss  # what a model that cannot be evaluated raises is raised here
        return Fitted(outcome, kernel, setting, np.empty(0))

    def ended(self, block: Block, starts: Starts, place: int, status: Status) -> Fitted:
        """Look at one fit of a block that ended at ``starts``."""
        kernel, setting = self._put(block, None, starts, place)
        theta = setting.parameters.start
        return Fitted(ended_at(kernel, setting.parameters, theta, status, spread=self.spread), kernel, setting, np.empty(0))

    def check(self, fit: int) -> None:
        """Try on one fit whether the method can serve, and whether every parameter has an effect where a start was found.

        Raises
        ------
        GradfitError
            What is said against it.
        """
        block, held, starts = self.read(fit, fit + 1)
        kernel, setting = self._put(block, held, self.begun(block, starts), 0)
        if self.tables.waiting:
            calling.depending(kernel)
        validation = None if setting.validation is None else kernel.on(setting.validation)
        self.method.check(Problem(kernel, setting.parameters, kernel.dtype, validation, self.seed))

    def _put(self, block: Block, held: Block | None, starts: Starts, place: int) -> tuple[AnyKernel, Setting]:
        """Put the kernel on the data of one fit."""
        assert self.kernel is not None
        known = placed(self.parameters, starts.theta[place], *[
            part if part.ndim == 1 else part[place] for part in (starts.lower, starts.upper, starts.fixed)
        ])  # fmt: skip
        data, validation = (
            None if part is None else part.dataset(place, self.model.data_names, self.batch.target_name) for part in (block, held)
        )
        assert data is not None
        kernel: Any = replace(self.kernel.on(data), parameters=known)  # type: ignore[arg-type]
        beginning = GIVEN if starts.open is None or not starts.open[place] else self.starter.beginning
        return kernel, Setting(self.model, known, data, validation, self.method, self.absolute, data.dropped, beginning)
