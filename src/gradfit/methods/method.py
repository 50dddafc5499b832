"""What every method is: it starts from a problem and takes steps; what it is told, what it reports, how it ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

import torch

from gradfit.compiler.kernel import Kernel
from gradfit.methods.stopping import EarlyStopping
from gradfit.model.parameters import Parameters
from gradfit.typing import Floats


class Status(Enum):
    """How a fit ended, each with its sentence."""

    CONVERGED = "Converged: {detail}."
    COMPLETED = "Completed {steps} {unit}; {detail}."
    STOPPED_EARLY = "Stopped early at {unit} {steps}: {detail}."
    NOT_CONVERGED = "Not converged after {steps} {unit}: {detail}."
    STALLED = "No further step lowers the loss, and the minimum is not certain: {detail}."
    DIVERGED = "Diverged at {unit} {steps}: {detail}."
    NOT_FINITE = "The loss is not finite at the start: {detail}."

    @property
    def success(self) -> bool:
        """Whether the answer may be used as a fit."""
        return self in (Status.CONVERGED, Status.COMPLETED, Status.STOPPED_EARLY)


@dataclass(frozen=True)
class Problem:
    """What a method is given: the loss to lower, where to start, where it may go.

    Attributes
    ----------
    kernel, validation
        The training rows, and the validation rows if any; a method never differentiates the latter.
    parameters
        Start (p,), bounds and shapes of the free vector.
    seed
        For the order of mini-batches and whatever a model draws.
    """

    kernel: Kernel
    parameters: Parameters
    dtype: torch.dtype
    validation: Kernel | None = None
    seed: int = 0


@dataclass(frozen=True)
class Evaluation:
    """One step: loss and gradient before it, parameters after it.

    Attributes
    ----------
    train_loss, validation_loss
        Mean losses before the step; NaN where there is no validation set.
    theta
        Free parameters after the step, (p,).
    gradient
        Gradient of the mean training loss before the step, in the user's units, (p,).
    settings
        What the method set for this step: learning_rate or damping.
    status, detail
        Set on the last step by a method that knows it has arrived, or cannot go on.
    """

    train_loss: float
    validation_loss: float
    theta: Any
    gradient: Any
    settings: Mapping[str, float]
    status: Status | None = None
    detail: str = ""


@dataclass(frozen=True)
class Block:
    """Several steps of a compiled run, one row each; see :class:`Evaluation` for the meaning of a row.

    Attributes
    ----------
    train_loss, validation_loss
        (k,).
    settings
        By name, (k,) each.
    theta, gradient
        (k, p), in float64.
    status, detail
        How the run ended with the last of these rows; None where it goes on.
    """

    train_loss: Floats
    validation_loss: Floats
    settings: Mapping[str, Floats]
    theta: Floats
    gradient: Floats
    status: Status | None = None
    detail: str = ""


class Run(Protocol):
    """A method at work on one problem.

    ``loop_reason`` says how its loop is run where that is worth a sentence; ``source`` is compiled code of its own, or "".
    """

    @property
    def loop_reason(self) -> str:
        """How the loop is run."""

    @property
    def source(self) -> str:
        """Source of what is compiled of the method itself."""

    def step(self) -> Evaluation:
        """Take one step."""

    def final(self) -> Floats:
        """Give the parameters the run stands for now, (p,): the last ones, or their average."""


class CompiledRun(Protocol):
    """A method at work in compiled code: it takes many steps at once."""

    @property
    def loop_reason(self) -> str:
        """How the loop is run."""

    @property
    def source(self) -> str:
        """Source of what is compiled of the method itself."""

    def advance(self, limit: int) -> Block:
        """Take at most ``limit`` steps, and at least one."""

    def final(self) -> Floats:
        """Give the parameters the run stands for now."""


class Method(Protocol):
    """A way to fit. ``unit`` is what it calls a step."""

    @property
    def name(self) -> str:
        """What the report calls it."""

    @property
    def unit(self) -> str:
        """What the report calls its steps: "epoch" or "step"."""

    @property
    def max_steps(self) -> int:
        """Where the loop ends at the latest."""

    @property
    def first_block(self) -> int:
        """How many steps to ask a compiled run for at first."""

    @property
    def advice(self) -> str:
        """What to change when the steps were not enough."""

    @property
    def early_stopping(self) -> EarlyStopping | None:
        """When to stop by the validation loss."""

    def check(self, problem: Problem) -> None:
        """Raise before anything is computed if this method cannot serve this problem."""

    def start(self, problem: Problem) -> Run | CompiledRun:
        """Begin."""


@dataclass(frozen=True)
class Solution:
    """What a loop found.

    Attributes
    ----------
    theta
        Free parameters, (p,), float64.
    status, message
        How it ended.
    steps
        Steps taken.
    columns
        The history: train_loss, validation_loss, settings, and arrays ``theta`` and ``gradient`` (steps, p).
    loop_reason, source
        How the loop was run, and its compiled code; "" where there is nothing to say.
    conclusion
        A :class:`~gradfit.methods.solving.Conclusion`, where the method draws it on its own.
    """

    theta: Floats
    status: Status
    message: str
    steps: int
    columns: Mapping[str, Floats] = field(repr=False)
    loop_reason: str = ""
    source: str = field(default="", repr=False)
    conclusion: Any = field(default=None, repr=False)
