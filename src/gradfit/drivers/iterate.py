"""The one loop that every method runs in: step, write down, look whether to stop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from gradfit.methods.method import Evaluation, Method, Problem, Solution, Status
from gradfit.methods.stopping import DIVERGED_FACTOR, EarlyStopping
from gradfit.typing import Floats

Observer = Callable[[int, Evaluation], None]

# Up to so many parameters every epoch keeps them and their gradient. Beyond, that would fill the memory (10000 parameters for
# 5000 epochs: 800 MB), and nobody reads it: the norm of the gradient stands for both.
KEPT = 200


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
    trail = _Trail(method, problem)
    patience = _Patience(method.early_stopping)
    for step in range(1, method.max_steps + 1):
        before = trail.theta
        evaluation = run.step()
        trail.add(evaluation)
        if observe is not None:
            observe(step, evaluation)
        if trail.lost(evaluation.train_loss):
            return trail.diverged(evaluation.train_loss), True
        if patience.exhausted(evaluation, before):
            detail = f"no lower validation loss than {patience.best:.6g} of {method.unit} {patience.best_step} since; its parameters are kept"
            return trail.solution(patience.theta, Status.STOPPED_EARLY, detail), True
        if evaluation.status is not None:
            return trail.solution(run.final(), evaluation.status, evaluation.detail), True
    final = run.final()
    if patience.best_step and patience.best_step < method.max_steps:
        detail = f"lowest validation loss {patience.best:.6g} at {method.unit} {patience.best_step}; its parameters are kept"
        return trail.solution(patience.theta, Status.COMPLETED, detail), True
    loss = problem.kernel.mean_loss(final)  # the last step is in no row: it too may have gone wrong
    if trail.lost(loss):
        return trail.diverged(loss), True
    return trail.solution(final, Status.NOT_CONVERGED, ""), False


class _Trail:
    """The way so far: a row per step, and the parameters of the lowest loss on it."""

    def __init__(self, method: Method, problem: Problem) -> None:
        self.method, self.problem = method, problem
        self.rows: list[Evaluation] = []
        self.theta = self.lowest_theta = problem.parameters.start
        self.lowest = math.inf
        self.ceiling = math.inf
        self.slim = len(problem.parameters.start) > KEPT

    def add(self, row: Evaluation) -> None:
        """Take one more row in; its loss is that of the parameters before it."""
        if not self.rows:
            self.ceiling = DIVERGED_FACTOR * max(abs(row.train_loss), self.problem.kernel.signal)
        if row.train_loss < self.lowest and math.isfinite(row.train_loss):
            self.lowest, self.lowest_theta = row.train_loss, self.theta
        self.theta = row.theta
        self.rows.append(_slim(row) if self.slim else row)

    def lost(self, loss: float) -> bool:
        """Tell whether a loss has no way back: grown beyond all measure, or falling without a floor."""
        return not (math.isfinite(loss) and abs(loss) <= self.ceiling)

    def diverged(self, loss: float) -> Solution:
        """Go back to the lowest loss seen; nothing after it is worth keeping but its history."""
        first, start = self.rows[0], self.problem.parameters
        if not math.isfinite(first.train_loss):
            named = ", ".join(f"{name} = {value:g}" for name, value in zip(start.free_elements[:6], start.start, strict=False))
            detail = f"{first.train_loss:g} for {named or 'the fixed parameters'}; start where the model gives finite numbers"
            return self.solution(start.start, Status.NOT_FINITE, detail)
        broken = next((place for place, row in enumerate(self.rows, 1) if not _finite(row.gradient)), None)
        if broken is not None and math.isfinite(self.rows[broken - 1].train_loss):
            detail = (
                f"the loss of {self.method.unit} {broken} is finite and its gradient is not; start elsewhere, keep the parameters "
                f"within bounds, or lower the learning rate"
            )
        else:
            detail = f"the loss went from {first.train_loss:.6g} to {loss:.6g}; lower the learning rate, leave scale on, or use method='lm'"
        detail += f". The parameters given are those of the lowest loss, {self.lowest:.6g}"
        return self.solution(self.lowest_theta, Status.DIVERGED, detail)

    def solution(self, theta: object, status: Status, detail: str) -> Solution:
        """Put the rows into columns."""
        rows = self.rows
        settings = {name: np.array([row.settings[name] for row in rows]) for name in rows[0].settings}
        columns = {
            "train_loss": np.array([row.train_loss for row in rows]),
            "validation_loss": np.array([row.validation_loss for row in rows]),
            **settings,
            "theta": _stacked([row.theta for row in rows]),
            "gradient": _stacked([row.gradient for row in rows]),
        }
        inside = _inside(_array(theta), self.problem)
        return Solution(inside, status, sentence(status, self.method, len(rows), detail), len(rows), columns)


class _Patience:
    """Remembers the parameters with the lowest validation loss."""

    def __init__(self, rule: EarlyStopping | None) -> None:
        self.rule = rule
        self.best, self.best_step, self.step = math.inf, 0, 0
        self.theta: object = None

    def exhausted(self, evaluation: Evaluation, before: object) -> bool:
        """Take one more row in, its losses are of the parameters before it; tell whether patience has run out."""
        if self.rule is None:
            return False
        self.step += 1
        if evaluation.validation_loss < self.best - (self.rule.min_delta if self.best_step else 0.0):
            self.best, self.best_step, self.theta = evaluation.validation_loss, self.step, before
        return self.best_step > 0 and self.step - self.best_step >= self.rule.patience


def sentence(status: Status, method: Method, steps: int, detail: str) -> str:
    """Word the status."""
    at = status in (Status.DIVERGED, Status.STOPPED_EARLY)
    unit = method.unit if at or steps == 1 else method.unit + "s"
    return status.value.format(steps=steps, unit=unit, detail=detail)


def _inside(theta: Floats, problem: Problem) -> Floats:
    """Put parameters that stand at a bound exactly there: in single precision or scaled units a bound is rounded."""
    eps = 4 * torch.finfo(problem.dtype).eps
    for bound in (problem.parameters.lower, problem.parameters.upper):
        known = np.where(np.isfinite(bound), bound, np.nan)  # nothing is near NaN
        theta = np.where(np.abs(theta - known) <= eps * np.abs(known), bound, theta)
    return np.asarray(theta, dtype=np.float64)


def _slim(row: Evaluation) -> Evaluation:
    norm = np.array([float(np.linalg.norm(_array(row.gradient)))])
    return replace(row, theta=np.empty(0), gradient=norm)


def _finite(vector: object) -> bool:
    return bool(np.isfinite(_array(vector)).all())


def _array(theta: object) -> Floats:
    return theta.double().numpy() if isinstance(theta, torch.Tensor) else np.asarray(theta, dtype=np.float64)


def _stacked(vectors: list[object]) -> Floats:
    if isinstance(vectors[0], torch.Tensor):
        return torch.stack(vectors).double().numpy()  # type: ignore[arg-type]
    return np.array(vectors, dtype=np.float64).reshape(len(vectors), -1)
