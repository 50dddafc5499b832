"""The one loop that every method runs in: step, write down, look whether to stop."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from gradfit.methods.method import Evaluation, Method, Problem, Solution, Status
from gradfit.methods.stopping import DIVERGED_FACTOR, EarlyStopping
from gradfit.typing import Floats

Observer = Callable[[int, Evaluation], None]


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
    rows: list[Evaluation] = []
    patience = _Patience(method.early_stopping, problem.parameters.start)
    ceiling = math.inf
    for step in range(1, method.max_steps + 1):
        evaluation = run.step()
        rows.append(evaluation)
        if observe is not None:
            observe(step, evaluation)
        if step == 1:
            ceiling = DIVERGED_FACTOR * max(abs(evaluation.train_loss), problem.kernel.signal)
        if not evaluation.train_loss <= ceiling:
            return _diverged(method, problem, rows)
        if patience.exhausted(evaluation):
            detail = f"no lower validation loss than {patience.best:.6g} of {method.unit} {patience.best_step} since; its parameters are kept"
            return _solution(patience.theta, Status.STOPPED_EARLY, detail, method, rows), True
        if evaluation.status is not None:
            return _solution(run.final(), evaluation.status, evaluation.detail, method, rows), True
    if patience.watching:
        detail = f"lowest validation loss {patience.best:.6g} at {method.unit} {patience.best_step}; its parameters are kept"
        return _solution(patience.theta, Status.COMPLETED, detail, method, rows), True
    return _solution(run.final(), Status.NOT_CONVERGED, "", method, rows), False


class _Patience:
    """Remembers the parameters with the lowest validation loss."""

    def __init__(self, rule: EarlyStopping | None, start: Floats) -> None:
        self.rule = rule
        self.best, self.best_step, self.step = math.inf, 0, 0
        self.theta, self.before = start, start

    @property
    def watching(self) -> bool:
        return self.rule is not None and self.best_step > 0

    def exhausted(self, evaluation: Evaluation) -> bool:
        """Take one more row in; tell whether patience has run out."""
        if self.rule is None:
            return False
        self.step += 1
        if evaluation.validation_loss < self.best - (self.rule.min_delta if self.best_step else 0.0):
            self.best, self.best_step, self.theta = (
                evaluation.validation_loss,
                self.step,
                self.before,
            )  # the loss is of before the step
        self.before = _array(evaluation.theta)
        return self.step - self.best_step >= self.rule.patience


def _diverged(method: Method, problem: Problem, rows: list[Evaluation]) -> tuple[Solution, bool]:
    """Go back to the lowest loss seen; nothing after it is worth keeping but its history."""
    if len(rows) == 1:
        named = ", ".join(f"{n} = {v:g}" for n, v in zip(problem.parameters.free_elements, problem.parameters.start, strict=True))
        detail = f"{rows[0].train_loss:g} for {named or 'the fixed parameters'}; start where the model gives finite numbers"
        return _solution(problem.parameters.start, Status.NOT_FINITE, detail, method, rows), True
    losses = np.array([row.train_loss for row in rows])
    best = int(np.nanargmin(losses))
    theta = problem.parameters.start if best == 0 else _array(rows[best - 1].theta)
    detail = (
        f"the loss went from {losses[0]:.6g} to {losses[-1]:.6g}; lower the learning rate, leave scale on, or use "
        f"method='lm'. The parameters given are those of the lowest loss, {losses[best]:.6g}"
    )
    return _solution(theta, Status.DIVERGED, detail, method, rows), True


def _solution(theta: Floats, status: Status, detail: str, method: Method, rows: list[Evaluation]) -> Solution:
    settings = {name: np.array([row.settings[name] for row in rows]) for name in rows[0].settings}
    columns = {
        "train_loss": np.array([row.train_loss for row in rows]),
        "validation_loss": np.array([row.validation_loss for row in rows]),
        **settings,
        "theta": _stacked([row.theta for row in rows]),
        "gradient": _stacked([row.gradient for row in rows]),
    }
    return Solution(np.asarray(theta, dtype=np.float64), status, sentence(status, method, len(rows), detail), len(rows), columns)


def sentence(status: Status, method: Method, steps: int, detail: str) -> str:
    """Word the status."""
    at = status in (Status.DIVERGED, Status.STOPPED_EARLY)
    unit = method.unit if at or steps == 1 else method.unit + "s"
    return status.value.format(steps=steps, unit=unit, detail=detail)


def _array(theta: object) -> Floats:
    return theta.double().numpy() if isinstance(theta, torch.Tensor) else np.asarray(theta, dtype=np.float64)


def _stacked(vectors: list[object]) -> Floats:
    if isinstance(vectors[0], torch.Tensor):
        return torch.stack(vectors).double().numpy()  # type: ignore[arg-type]
    return np.array(vectors, dtype=np.float64).reshape(len(vectors), -1)
