"""Gradient descent as one compiled loop: the same optimizer, schedule, batches and history as the torch engine's.

torch's objects are asked for everything that is theirs: the optimizer's step is traced from its own code
(:mod:`gradfit.compiler.optimizer`), the learning rates of all epochs are taken from the scheduler before the loop starts
(ReduceLROnPlateau, which looks at the loss, is asked again after every few epochs), the order of the rows comes from the same
generator. A run works in blocks of epochs, so that a caller can look, show and stop in between.
"""

from __future__ import annotations

import ctypes
import functools
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.optim import Optimizer, lr_scheduler

from gradfit.compiler import native
from gradfit.compiler.compiled import NUMPY, ModelCode, NativeKernel, address_of
from gradfit.compiler.descent_code import JOB_WORDS, Shape, StepSource, descent_object
from gradfit.compiler.graph import Untraceable
from gradfit.compiler.optimizer import trace_update
from gradfit.compiler.rows import RowSource
from gradfit.methods import scaling
from gradfit.methods.method import Block, Problem
from gradfit.methods.optimizers import PER_BATCH, identity
from gradfit.methods.stopping import DIVERGED_FACTOR
from gradfit.typing import Floats

if TYPE_CHECKING:
    from gradfit.methods.gradient_descent import Averaging, GradientDescent

MAX_ORDER = 5_000_000  # row numbers drawn ahead for mini-batches
MOST_AHEAD = 1_000_000  # steps whose learning rates are known ahead


@dataclass(frozen=True)
class Loop:
    """The compiled loop of a method for a model: all of a run that does not depend on data."""

    code: ModelCode
    shape: Shape
    step: StepSource
    function: native.Function


def loop_of(method: GradientDescent, problem: Problem, scaled: bool, schedule: Schedule) -> Loop:
    """Compile the loop, or find what was compiled for the same schedule, model and shape."""
    kernel, parameters = problem.kernel, problem.parameters
    assert isinstance(kernel, NativeKernel)
    # The loop keeps the code, so that no other code takes its identity.
    key = (id(kernel.code), kernel.dtype, scaled, problem.validation is None, parameters.bounded)
    known = schedule.loops.get(key)
    if known is None:
        shape = Shape(
            scaled=scaled,
            validated=problem.validation is not None,
            batched=method.batch_size is not None,
            stepwise=schedule.stepwise,
            bounded=parameters.bounded,
        )
        step = _traced_step(method, schedule.typical, len(parameters.start), kernel.dtype, scaled)
        known = schedule.loops[key] = Loop(kernel.code, shape, step, loop_function(kernel.code.loss, step, shape))
    return known


class CompiledDescent:
    """A compiled loop at work.

    Raises
    ------
    Untraceable
        The optimizer's step cannot be compiled.
    """

    def __init__(self, method: GradientDescent, problem: Problem) -> None:
        assert isinstance(problem.kernel, NativeKernel)
        self.method, self.problem, self.kernel = method, problem, problem.kernel
        start = problem.parameters.start
        self.p, self.kind = len(start), NUMPY[self.kernel.code.loss.dtype]
        scaled = method.scale if method.scale is not None else problem.parameters.packed
        units = scaling.diagonal(problem.kernel, start) if scaled else scaling.none(self.p)
        self.units = units.parameters.astype(self.kind)
        self.theta = (start / units.parameters).astype(self.kind)
        rate = method._rate(problem, units if scaled else None)
        self.batches = 1 if method.batch_size is None else math.ceil(self.kernel.n / method.batch_size)
        self.schedule = method.schedule(rate, self.batches, scaled=scaled)
        self.loop = loop_of(method, problem, scaled, self.schedule)
        self.epoch = 0
        self.state = np.zeros(max(1, len(self.loop.step.state)))
        self.measures = np.array([1 / units.loss, DIVERGED_FACTOR * problem.kernel.signal, math.nan])
        self.job = np.zeros(JOB_WORDS, dtype=np.int64)
        self._fill_job(units)
        self.average = None if method.averaging is None else _Average(method.averaging, method.max_steps)

    def _fill_job(self, units: scaling.Scaling) -> None:
        """Write down where things are; see :mod:`gradfit.compiler.descent_code`."""
        job, shape = self.job, self.loop.shape
        job[0], job[2], job[3], job[10] = (
            self.kernel.loss_context.address, address_of(self.theta), address_of(self.state), address_of(self.measures),
        )  # fmt: skip
        if shape.validated:
            assert isinstance(self.problem.validation, NativeKernel)
            job[1] = self.problem.validation.loss_context.address
        if shape.scaled:
            self.slope = (units.loss / units.parameters).astype(self.kind)
            job[8], job[9] = address_of(self.units), address_of(self.slope)
        if shape.batched:
            self.room = np.empty(len(self.kernel.code.loss.inputs) * self.kernel.n, dtype=self.kind)
            self.generator = torch.Generator().manual_seed(int(self.problem.seed))
            job[11], job[13] = self.method.batch_size or 0, address_of(self.room)
        if shape.bounded:
            sides = [self.problem.parameters.lower, self.problem.parameters.upper]
            self.limits = np.concatenate([side / units.parameters for side in sides]).astype(self.kind)
            job[14] = address_of(self.limits)

    @property
    def source(self) -> str:
        """What is compiled: the loss of one row, and the optimizer's step."""
        first = "" if self.loop.step.first == self.loop.step.following else f"# The very first step:\n{self.loop.step.first}\n"
        return f"{self.kernel.code.loss.text}\n{first}{self.loop.step.following}"

    @property
    def loop_reason(self) -> str:
        """How the loop was run."""
        return f"the whole loop is compiled, with torch's own {self.method.name} step traced."

    def advance(self, limit: int) -> Block:
        """Run at most ``limit`` epochs, fewer where the scheduler must look or the loss is lost."""
        epochs = self.schedule.ready(self.epoch, min(limit, self._drawable(limit)))
        settings = self.schedule.rows(self.epoch, epochs)
        order = self._order(epochs)
        history = np.empty((epochs, 2 + 2 * self.p))
        done = self._run(epochs, settings, order, history)
        history = history[:done]
        block = Block(
            train_loss=history[:, 0],
            validation_loss=history[:, 1],
            settings={"learning_rate": self.schedule.shown(self.epoch, done)},
            theta=history[:, 2 : 2 + self.p],
            gradient=history[:, 2 + self.p :],
        )
        if self.average is not None:
            self.average.see(self.epoch, block.theta)
        self.epoch += done
        self.schedule.watch(block.train_loss if self.problem.validation is None else block.validation_loss)
        return block

    def final(self) -> Floats:
        """Give the last parameters, or their average; in the user's units."""
        if self.average is not None and self.average.count:
            return self.average.value
        return np.asarray(self.theta * self.units, dtype=np.float64)

    def _run(self, epochs: int, settings: Floats, order: np.ndarray | None, history: Floats) -> int:
        """Call the compiled loop; gives the epochs done."""
        job = self.job
        job[4], job[5], job[6], job[7] = self.epoch == 0, epochs, address_of(settings), address_of(history)
        if order is not None:
            job[12] = address_of(order)
        return int(self.loop.function.call(address_of(job)))

    def _drawable(self, limit: int) -> int:
        """How many epochs' row orders fit into the room for them."""
        return limit if self.method.batch_size is None else max(1, MAX_ORDER // self.kernel.n)

    def _order(self, epochs: int) -> np.ndarray | None:
        if self.method.batch_size is None:
            return None
        return np.stack([torch.randperm(self.kernel.n, generator=self.generator).numpy() for _ in range(epochs)])


@functools.lru_cache(maxsize=256)
def loop_function(source: RowSource, step: StepSource, shape: Shape) -> native.Function:
    """Compile the loop, or find it."""
    library = native.load([descent_object(source, step, shape)], ["gf_descend"])
    return native.Function(library, "gf_descend", ctypes.c_int64, 1)


STEPS: dict[object, StepSource] = {}


def _traced_step(
    method: GradientDescent, settings: Mapping[str, float], size: int, dtype: torch.dtype, scaled: bool
) -> StepSource:
    """Trace the optimizer's step, or find it among those traced before."""
    # A fused step is torch's step in one operator, the same but for the order of rounding.
    options = {name: value for name, value in method.effective_options(scaled=scaled).items() if name != "fused"}
    name = identity(method.optimizer, options)
    key = (name, tuple(settings), size, dtype)
    if name is not None and key in STEPS:
        return STEPS[key]
    step = trace_update(
        lambda leaves: method.optimizer(leaves, lr=settings["lr"], **options),  # type: ignore[call-arg]
        settings,
        size=size,
        dtype=dtype,
        identity=name,
    )
    if name is not None:
        STEPS[key] = step
    return step


class Schedule:
    """What torch's scheduler sets, per step: known ahead, or where it looks at the loss a few epochs ahead."""

    def __init__(self, method: GradientDescent, rate: float, batches: int, *, scaled: bool) -> None:
        self.rate, self.epochs = rate, method.max_steps
        self.plateau: Any = None
        self.stepwise = False
        self.per_epoch = 1
        self.typical: dict[str, float] = {"lr": rate}
        self.loops: dict[object, Loop] = {}
        self.steady = True
        self.table = np.full((min(self.epochs, MOST_AHEAD), 1), rate)
        if method.scheduler is None and not method.has_default_schedule(scaled=scaled):
            return
        optimizer = method._build([torch.zeros(1, requires_grad=True)], rate, scaled=scaled)
        scheduler = method._schedule(optimizer, batches, scaled=scaled)
        self.optimizer = optimizer
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            self.plateau = scheduler
            return
        self.stepwise = isinstance(scheduler, PER_BATCH) and batches > 1
        self.per_epoch = batches if self.stepwise else 1
        if self.epochs * self.per_epoch > MOST_AHEAD:
            raise Untraceable(f"the learning rates of more than {MOST_AHEAD} steps are not asked for ahead")
        self.steady = False
        rows = list(_settings(optimizer, scheduler, self.epochs * self.per_epoch, method))
        moving = [name for name in rows[0] if name == "lr" or len({row[name] for row in rows}) > 1]
        self.typical = {name: _typical([row[name] for row in rows]) for name in moving}
        self.table = np.array([[row[name] for name in moving] for row in rows], dtype=np.float64)

    def ready(self, epoch: int, limit: int) -> int:
        """How many epochs may run before the scheduler must look."""
        if self.plateau is None:
            return min(limit, len(self.table)) if self.steady else limit
        return min(limit, max(1, int(self.plateau.patience) - int(self.plateau.num_bad_epochs) + 1))

    def rows(self, epoch: int, epochs: int) -> Floats:
        """Settings of the steps of some epochs, one row per step (or per epoch where all its steps share them)."""
        if self.plateau is not None:
            return np.full((epochs, 1), self._now())
        if self.steady:
            return self.table[:epochs]
        return self.table[epoch * self.per_epoch : (epoch + epochs) * self.per_epoch]

    def shown(self, epoch: int, epochs: int) -> Floats:
        """Learning rate of each epoch, as the history shows it: that of its first step."""
        if self.plateau is not None:
            return np.full(epochs, self._now())
        if self.steady:
            return self.table[:epochs, 0]
        return self.table[epoch * self.per_epoch : (epoch + epochs) * self.per_epoch : self.per_epoch, 0]

    def _now(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def watch(self, losses: Floats) -> None:
        """Show the scheduler the losses of the epochs that ran."""
        if self.plateau is not None:
            for loss in losses:
                self.plateau.step(float(loss))


def _typical(values: list[float]) -> float:
    """A value to trace with: one that is not 0."""
    return next((value for value in values if value), 1e-3)


def _settings(optimizer: Optimizer, scheduler: Any, count: int, method: GradientDescent) -> Iterator[dict[str, float]]:
    """Let a scheduler take its steps, and write down what it sets before each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on steps of the scheduler without steps of the optimizer: that is the point
        for step in range(count):
            yield _numbers(optimizer.param_groups[0])
            if step < count - 1:
                method.step_scheduler(scheduler, step + 1)


def _numbers(group: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of a parameter group by name; those of a tuple by place."""
    found = {"lr": float(group["lr"])}
    for name, value in group.items():
        if name in ("params", "lr", "initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum", "swa_lr"):
            continue
        if isinstance(value, float):
            found[name] = value
        elif isinstance(value, tuple) and all(isinstance(part, float) for part in value):
            found |= {f"{name}[{place}]": part for place, part in enumerate(value)}
    return found


class _Average:
    """The average of the parameters along the way, from the history.

    As torch has it, ``a_k = a_{k-1} + w_k (theta_k - a_{k-1})`` with ``w_k = 1/k``, rounded to single precision there,
    or 1 - decay: a weighted sum of all ``theta_k``.
    """

    def __init__(self, averaging: Averaging, epochs: int) -> None:
        self.averaging, self.first = averaging, averaging.first_epoch(epochs)
        self.count = 0
        self.value: Floats = np.empty(0)

    def see(self, epoch: int, theta: Floats) -> None:
        """Take in the parameters after each epoch of a block that begins after ``epoch``."""
        seen = theta[max(0, self.first - 1 - epoch) :]
        if not len(seen):
            return
        if self.count == 0:
            self.value = np.zeros(theta.shape[1])
        places = np.arange(self.count + 1, self.count + len(seen) + 1)
        constant = np.full(len(seen), 1 - self.averaging.decay)
        weights = (1 / places).astype(np.float32).astype(np.float64) if self.averaging.kind == "swa" else constant
        weights[places == 1] = 1.0
        left = np.append(np.cumprod((1 - weights)[::-1])[::-1], 1.0)  # what later steps leave of each
        self.value = left[0] * self.value + (weights * left[1:]) @ seen
        self.count += len(seen)
