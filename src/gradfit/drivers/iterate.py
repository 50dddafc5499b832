"""The one loop that every method runs in: steps, written down, until it is time to stop.

A method of the torch engine takes one step at a time, a compiled one many; what is written down and how the end is judged is the
same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol, cast

import numpy as np
import torch

from gradfit.methods.method import Block, CompiledRun, Evaluation, Method, Problem, Run, Solution, Status
from gradfit.methods.stopping import DIVERGED_FACTOR, EarlyStopping
from gradfit.typing import Floats

Columns = Mapping[str, Floats]


class Observer(Protocol):
    """Sees a fit go on."""

    def __call__(self, step: int, evaluation: Evaluation) -> None:
        """See one step."""

    def block(self, first: int, block: Block) -> None:
        """See many steps, the first of them by number."""


# Up to so many parameters every epoch keeps them and their gradient. Beyond, that would fill the memory (10000 parameters for
# 5000 epochs: 800 MB), and nobody reads it: the norm of the gradient stands for both.
KEPT = 200
FIRST_BLOCK = 1e7  # row-epochs: about 0.05 s of compiled descent
SECONDS = 0.2  # a block should take about so long, so that a caller can look and stop
LARGEST_BLOCK = 1_000_000


def iterate(method: Method, problem: Problem, observe: Observer | None = None) -> tuple[Solution, bool]:
    """Run a method until it has arrived, gives up, must be stopped, or has taken all its steps.

    Parameters
    ----------
    observe
        Called with (step, evaluation) after each step: training lines, progress.

    Returns
    -------
    The solution, and whether its status is settled: False where all steps were taken and somebody must judge how near the
    minimum is.
    """
    run = method.start(problem)
    if hasattr(run, "advance"):
        return _in_blocks(cast(CompiledRun, run), method, problem, observe)
    return _step_by_step(run, method, problem, observe)


def _step_by_step(run: Run, method: Method, problem: Problem, observe: Observer | None) -> tuple[Solution, bool]:
    trail = _Trail(method, problem, run)
    patience = _Patience(method.early_stopping)
    for step in range(1, method.max_steps + 1):
        before = trail.theta
        evaluation = run.step()
        trail.add(evaluation)
        if observe is not None:
            observe(step, evaluation)
        if trail.lost(evaluation.train_loss):
            return trail.diverged(evaluation.train_loss), True
        if patience.exhausted(evaluation.validation_loss, before):
            return trail.solution(patience.theta, Status.STOPPED_EARLY, patience.wording(method.unit)), True
        if evaluation.status is not None:
            return trail.solution(run.final(), evaluation.status, evaluation.detail), True
    return _all_steps_taken(run, trail, patience, method, problem)


def _in_blocks(run: CompiledRun, method: Method, problem: Problem, observe: Observer | None) -> tuple[Solution, bool]:
    trail = _BlockTrail(method, problem, run)
    patience = _Patience(method.early_stopping)
    size = max(1, min(LARGEST_BLOCK, int(FIRST_BLOCK / problem.kernel.n), method.first_block))
    while trail.steps < method.max_steps:
        begun = time.monotonic()
        first, before = trail.steps, trail.theta
        block = run.advance(min(size, method.max_steps - first))
        kept = patience.block(block, before)
        trail.add(block if kept is None else _cut(block, kept))
        if observe is not None:
            observe.block(first + 1, trail.blocks[-1])
        if kept is not None:
            return trail.solution(patience.theta, Status.STOPPED_EARLY, patience.wording(method.unit)), True
        if block.status is not None:
            return trail.solution(run.final(), block.status, block.detail), True
        last = float(block.train_loss[-1])
        if trail.lost(last):
            return trail.diverged(last), True
        size = _next_size(size, time.monotonic() - begun)
    return _all_steps_taken(run, trail, patience, method, problem)


def _all_steps_taken(
    run: Run | CompiledRun, trail: _Trail | _BlockTrail, patience: _Patience, method: Method, problem: Problem
) -> tuple[Solution, bool]:
    final = run.final()
    if patience.best_step and patience.best_step < method.max_steps:
        detail = f"lowest validation loss {patience.best:.6g} at {method.unit} {patience.best_step}; its parameters are kept"
        return trail.solution(patience.theta, Status.COMPLETED, detail), True
    loss = problem.kernel.mean_loss(final)  # the last step is in no row: it too may have gone wrong
    if trail.lost(loss):
        return trail.diverged(loss), True
    return trail.solution(final, Status.NOT_CONVERGED, ""), False


def _next_size(size: int, seconds: float) -> int:
    """How many steps the next block should take, from how long this one took."""
    factor = min(4.0, SECONDS / max(seconds, 1e-6))
    return max(1, min(LARGEST_BLOCK, int(size * factor)))


def _cut(block: Block, rows: int) -> Block:
    """Give the first rows of a block."""
    settings = {name: values[:rows] for name, values in block.settings.items()}
    return Block(block.train_loss[:rows], block.validation_loss[:rows], settings, block.theta[:rows], block.gradient[:rows])


class _Ending:
    """How a run ends: where it went, and what is said of it."""

    theta: Any
    lowest_theta: Any

    def __init__(self, method: Method, problem: Problem, run: Run | CompiledRun) -> None:
        self.method, self.problem, self.run = method, problem, run
        self.theta = self.lowest_theta = problem.parameters.start
        self.lowest = math.inf
        self.ceiling = math.inf

    def columns(self) -> Columns:
        """Rows as columns."""
        raise NotImplementedError

    def find_lowest(self) -> None:
        """Look for the lowest loss, where that was not done on the way."""

    def lost(self, loss: float) -> bool:
        """Tell whether a loss has no way back: grown beyond all measure, or falling without a floor."""
        return not (math.isfinite(loss) and abs(loss) <= self.ceiling)

    def see_first(self, loss: float) -> None:
        """Set the loss that counts as lost, from the first one and from the size of the data."""
        self.ceiling = DIVERGED_FACTOR * max(abs(loss), self.problem.kernel.signal)

    def diverged(self, loss: float) -> Solution:
        """Go back to the lowest loss seen; nothing after it is worth keeping but its history."""
        self.find_lowest()
        columns, start = self.columns(), self.problem.parameters
        losses = columns["train_loss"]
        if not math.isfinite(losses[0]):
            named = ", ".join(f"{name} = {value:g}" for name, value in zip(start.free_elements[:6], start.start, strict=False))
            detail = f"{losses[0]:g} for {named or 'the fixed parameters'}; start where the model gives finite numbers"
            return self.solution(start.start, Status.NOT_FINITE, detail)
        broken = np.flatnonzero(~np.isfinite(columns["gradient"]).all(axis=1))
        if broken.size and math.isfinite(losses[broken[0]]):
            detail = (
                f"the loss of {self.method.unit} {broken[0] + 1} is finite and its gradient is not; start elsewhere, keep the parameters "
                f"within bounds, or lower the learning rate"
            )
        else:
            detail = (
                f"the loss went from {losses[0]:.6g} to {loss:.6g}; lower the learning rate, leave scale on, or use method='lm'"
            )
        detail += f". The parameters given are those of the lowest loss, {self.lowest:.6g}"
        return self.solution(self.lowest_theta, Status.DIVERGED, detail)

    def solution(self, theta: object, status: Status, detail: str) -> Solution:
        """Put the rows into columns."""
        columns = self.columns()
        steps = len(columns["train_loss"])
        message = sentence(status, self.method, steps, detail)
        inside = _inside(_array(theta), self.problem)
        concluded = getattr(self.run, "conclusion", None) if status is not Status.DIVERGED else None
        return Solution(inside, status, message, steps, columns, self.run.loop_reason, self.run.source, concluded)


class _Trail(_Ending):
    """The way so far, a row per step, and the parameters of the lowest loss on it."""

    def __init__(self, method: Method, problem: Problem, run: Run) -> None:
        super().__init__(method, problem, run)
        self.rows: list[Evaluation] = []
        self.slim = len(problem.parameters.start) > KEPT

    def add(self, row: Evaluation) -> None:
        """Take one more row in; its loss is that of the parameters before it."""
        if not self.rows:
            self.see_first(row.train_loss)
        if row.train_loss < self.lowest and math.isfinite(row.train_loss):
            self.lowest, self.lowest_theta = row.train_loss, self.theta
        self.theta = row.theta
        self.rows.append(_slim(row) if self.slim else row)

    def columns(self) -> Columns:
        """Rows as columns."""
        rows = self.rows
        return {
            "train_loss": np.array([row.train_loss for row in rows]),
            "validation_loss": np.array([row.validation_loss for row in rows]),
            **{name: np.array([row.settings[name] for row in rows]) for name in rows[0].settings},
            "theta": _stacked([row.theta for row in rows]),
            "gradient": _stacked([row.gradient for row in rows]),
        }


class _BlockTrail(_Ending):
    """The way so far, in blocks of rows."""

    def __init__(self, method: Method, problem: Problem, run: CompiledRun) -> None:
        super().__init__(method, problem, run)
        self.blocks: list[Block] = []
        self.steps = 0

    def add(self, block: Block) -> None:
        """Take a block in."""
        self.theta = block.theta[-1]
        self.steps += len(block.train_loss)
        self.blocks.append(block)

    def lost(self, loss: float) -> bool:
        """Tell whether a loss has no way back."""
        if math.isinf(self.ceiling):
            self.see_first(float(self.blocks[0].train_loss[0]))
        return super().lost(loss)

    def find_lowest(self) -> None:
        """Look for the lowest loss; its parameters are those of the row before."""
        columns = self.columns()
        finite = np.where(np.isfinite(columns["train_loss"]), columns["train_loss"], math.inf)
        least = int(finite.argmin())
        if math.isfinite(finite[least]):
            self.lowest = float(finite[least])
            self.lowest_theta = columns["theta"][least - 1] if least else self.problem.parameters.start

    def columns(self) -> Columns:
        """Rows as columns."""
        blocks = self.blocks
        settings = {name: _joined([block.settings[name] for block in blocks]) for name in blocks[0].settings}
        losses = {name: _joined([getattr(block, name) for block in blocks]) for name in ("train_loss", "validation_loss")}
        vectors = {name: _joined([getattr(block, name) for block in blocks]) for name in ("theta", "gradient")}
        return losses | settings | vectors


class _Patience:
    """Remembers the parameters with the lowest validation loss."""

    def __init__(self, rule: EarlyStopping | None) -> None:
        self.rule = rule
        self.best, self.best_step, self.step = math.inf, 0, 0
        self.theta: Any = None

    def exhausted(self, validation_loss: float, before: Any) -> bool:
        """Take one more loss in, that of the parameters ``before`` the step; tell whether patience has run out."""
        if self.rule is None:
            return False
        self.step += 1
        if validation_loss < self.best - (self.rule.min_delta if self.best_step else 0.0):
            self.best, self.best_step, self.theta = validation_loss, self.step, before
        return self.best_step > 0 and self.step - self.best_step >= self.rule.patience

    def block(self, block: Block, before: Any) -> int | None:
        """Take a block in; gives how many of its rows there are until patience has run out, or None."""
        if self.rule is None:
            return None
        for place, loss in enumerate(block.validation_loss.tolist()):
            if self.exhausted(loss, block.theta[place - 1] if place else before):
                return place + 1
        return None

    def wording(self, unit: str) -> str:
        """Say what was found."""
        return f"no lower validation loss than {self.best:.6g} of {unit} {self.best_step} since; its parameters are kept"


def sentence(status: Status, method: Method, steps: int, detail: str) -> str:
    """Word the status."""
    at = status in (Status.DIVERGED, Status.STOPPED_EARLY)
    unit = method.unit if at or steps == 1 else method.unit + "s"
    return status.value.format(steps=steps, unit=unit, detail=detail)


def _inside(theta: Floats, problem: Problem) -> Floats:
    """Put parameters that stand at a bound exactly there: in single precision or scaled units a bound is rounded."""
    if not problem.parameters.bounded:
        return theta
    eps = 4 * torch.finfo(problem.dtype).eps
    for bound in (problem.parameters.lower, problem.parameters.upper):
        known = np.where(np.isfinite(bound), bound, np.nan)  # nothing is near NaN
        theta = np.where(np.abs(theta - known) <= eps * np.abs(known), bound, theta)
    return np.asarray(theta, dtype=np.float64)


def _slim(row: Evaluation) -> Evaluation:
    norm = np.array([float(np.linalg.norm(_array(row.gradient)))])
    return replace(row, theta=np.empty(0), gradient=norm)


def _joined(parts: list[Floats]) -> Floats:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _array(theta: object) -> Floats:
    return theta.double().numpy() if isinstance(theta, torch.Tensor) else np.asarray(theta, dtype=np.float64)


def _stacked(vectors: list[object]) -> Floats:
    if isinstance(vectors[0], torch.Tensor):
        return torch.stack(vectors).double().numpy()  # type: ignore[arg-type]
    return np.array(vectors, dtype=np.float64).reshape(len(vectors), -1)
