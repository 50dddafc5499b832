"""Gradient descent by any optimizer of torch.optim.

The optimizer, the scheduler and the averaging are torch's own objects; this file hands them the loss and writes down what
happens. One epoch passes over all rows once, in one batch or several:

    zero the gradient;  loss;  gradient by autograd;  optimizer step;  scheduler step

The gradient is zeroed here, never by the user, and copied into the history before the step spends it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer, lr_scheduler, swa_utils

from gradfit.errors import OptionError, ParameterError, unknown
from gradfit.methods import scaling
from gradfit.methods.method import Evaluation, Problem
from gradfit.methods.stopping import EarlyStopping
from gradfit.typing import Floats

OPTIMIZERS: Mapping[str, type[Optimizer]] = {
    name.lower(): value
    for name, value in vars(torch.optim).items()
    if isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer
}
SCHEDULERS: Mapping[str, Callable[..., Any]] = {
    name.lower(): value
    for name, value in {**vars(lr_scheduler), "SWALR": swa_utils.SWALR}.items()
    if isinstance(value, type)
    and issubclass(value, lr_scheduler.LRScheduler)
    and not name.startswith("_")
    and name != "LRScheduler"
}
PER_BATCH = (lr_scheduler.OneCycleLR, lr_scheduler.CyclicLR)  # torch documents these as stepped after every batch

# Learning rates in scaled units (see scaling.py), where torch's defaults, made for networks, would crawl. Chosen so that each
# optimizer, with no option given, brings the raw thermometer to its minimum; SGD and ASGD take 1/curvature instead.
SCALED_RATES: Mapping[str, float] = {
    "Adadelta": 10.0, "Adafactor": 0.3, "Adagrad": 0.5, "Adam": 0.02, "Adamax": 0.02, "AdamW": 0.02, "NAdam": 0.02, "RAdam": 0.02,
    "RMSprop": 0.002, "Rprop": 0.01, "LBFGS": 1.0,
}  # fmt: skip
# In scaled units two more defaults differ from torch's: without a line search LBFGS leaves curved problems, and a decay that
# nobody asked for would pull the answer towards zero. With scale=False every default is torch's own.
SCALED_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "LBFGS": {"line_search_fn": "strong_wolfe"},
    "AdamW": {"weight_decay": 0.0},
}
DEFAULT_EPOCHS = 5000
DEFAULT_EPOCHS_LBFGS = 100  # each is up to max_iter steps of its own


@dataclass(frozen=True)
class Averaging:
    """Average the parameters along the way, as :mod:`torch.optim.swa_utils` does.

    Parameters
    ----------
    kind
        "swa": equal weights; "ema": exponential, weight ``decay`` on the past.
    decay
        For "ema".
    start
        First epoch that is averaged; None: the last quarter for "swa", the first epoch for "ema".
    """

    kind: str = "swa"
    decay: float = 0.999
    start: int | None = None

    def __post_init__(self) -> None:
        """Check the kind and the decay."""
        if self.kind not in ("swa", "ema"):
            raise OptionError(unknown("averaging", self.kind, ("swa", "ema")))
        if not 0 <= self.decay <= 1:
            raise OptionError(f"decay is {self.decay!r}; expected a number from 0 to 1.")


class GradientDescent:
    """Gradient descent by an optimizer of torch.optim, with all its own options.

    Parameters
    ----------
    optimizer
        A name ("adam") or a class (``torch.optim.Adam``, or one of your own).
    learning_rate
        torch's ``lr``. None: chosen in scaled units, or torch's own default where ``scale=False``.
    epochs
        Passes over the data.
    batch_size
        Rows per step; None: all. Rows are shuffled each epoch by the fit's seed.
    scheduler, scheduler_options
        A name or class of torch.optim.lr_scheduler with its options, or a function of the optimizer. Stepped once an epoch
        (OneCycleLR and CyclicLR: once a batch); ReduceLROnPlateau sees the validation loss, or the training loss if there
        is no validation set.
    averaging
        "swa", "ema" or :class:`Averaging`.
    early_stopping
        Epochs of patience, or :class:`EarlyStopping`; needs a validation set.
    scale
        Work in scaled units, :mod:`gradfit.methods.scaling`. None: yes, except for torch modules. Options that are
        not free of units (weight_decay, eps) then act in scaled units.
    **options
        Any option of the optimizer itself: momentum, betas, weight_decay, amsgrad, ...

    Raises
    ------
    OptionError
        Unknown optimizer, scheduler or option, or a value torch refuses.
    """

    unit = "epoch"

    def __init__(
        self,
        optimizer: str | type[Optimizer] = "sgd",
        *,
        learning_rate: float | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        scheduler: str | Callable[..., Any] | None = None,
        scheduler_options: Mapping[str, Any] | None = None,
        averaging: str | Averaging | None = None,
        early_stopping: int | EarlyStopping | None = None,
        scale: bool | None = None,
        **options: Any,
    ) -> None:
        self.optimizer = _optimizer(optimizer)
        self.name = self.optimizer.__name__
        self.learning_rate = _positive("learning_rate", learning_rate)
        default_epochs = DEFAULT_EPOCHS_LBFGS if self.name == "LBFGS" else DEFAULT_EPOCHS
        self.max_steps = _count("epochs", default_epochs if epochs is None else epochs)
        self.batch_size = None if batch_size is None else _count("batch_size", batch_size)
        self.scheduler = _scheduler(scheduler)
        self.scheduler_options = dict(scheduler_options or {})
        if self.scheduler is None and self.scheduler_options:
            raise OptionError("scheduler_options were given without a scheduler; name one, such as scheduler='StepLR'.")
        self.averaging = Averaging(averaging) if isinstance(averaging, str) else averaging
        self.early_stopping = EarlyStopping(early_stopping) if isinstance(early_stopping, int) else early_stopping
        if self.averaging is not None and self.early_stopping is not None:
            raise OptionError("averaging and early_stopping both decide which parameters are the answer; choose one.")
        self.scale = scale
        self.options = _known_options(self.optimizer, options)
        self._build([torch.zeros(2, 2)], 1e-3, scaled=False)  # torch refuses bad values now, not later

    def __repr__(self) -> str:
        """Show what was set."""
        extra = "".join(f", {key}={value!r}" for key, value in self.options.items())
        return f"GradientDescent({self.name}, learning_rate={self.learning_rate}, epochs={self.max_steps}{extra})"

    def check(self, problem: Problem) -> None:
        """Refuse what this optimizer cannot do on this problem."""
        if self.early_stopping is not None and problem.validation is None:
            raise OptionError("early_stopping watches the validation loss; pass validation=0.2, rows, or a data set.")
        bounded = np.isfinite(problem.parameters.lower).any() or np.isfinite(problem.parameters.upper).any()
        if self.name == "LBFGS" and bounded:
            raise ParameterError("LBFGS cannot keep bounds: its memory of curvature ends at them. Use method='lm' or 'adam'.")
        if self.name == "LBFGS" and self.batch_size is not None:
            raise OptionError("LBFGS compares losses between steps, so it needs all rows in each; leave batch_size out.")

    def start(self, problem: Problem) -> DescentRun:
        """Begin at the start of the problem."""
        return DescentRun(self, problem)

    def rate(self, units: scaling.Scaling, *, scaled: bool) -> float:
        """Choose the learning rate: the user's, or the default for the units."""
        if self.learning_rate is not None:
            return self.learning_rate
        if not scaled:
            default = inspect.signature(self.optimizer).parameters["lr"].default
            return float(default) if isinstance(default, (int, float)) else 1e-3
        return SCALED_RATES.get(self.name, 1 / units.steepest)

    def _build(self, leaves: list[Tensor], rate: float, *, scaled: bool) -> Optimizer:
        """Make torch's optimizer; its own complaint becomes ours."""
        defaults = SCALED_OPTIONS.get(self.name, {}) if scaled else {}
        try:
            return self.optimizer(leaves, lr=rate, **{**defaults, **self.options})  # type: ignore[call-arg]
        except (ValueError, TypeError, RuntimeError) as error:
            raise OptionError(f"{self.name} refuses: {error}") from error

    def _schedule(self, optimizer: Optimizer, batches: int) -> Any:
        if self.scheduler is None:
            return None
        options = dict(self.scheduler_options)
        if self.scheduler is lr_scheduler.OneCycleLR and not options.keys() & {"total_steps", "epochs"}:
            options["total_steps"] = self.max_steps * batches
        try:
            return self.scheduler(optimizer, **options)
        except (ValueError, TypeError, KeyError) as error:
            raise OptionError(f"the scheduler {getattr(self.scheduler, '__name__', self.scheduler)} refuses: {error}") from error


class DescentRun:
    """An optimizer at work: torch keeps its state in objects, so a run is one."""

    def __init__(self, method: GradientDescent, problem: Problem) -> None:
        self.method, self.problem = method, problem
        start = problem.parameters.start
        self.scaled = method.scale if method.scale is not None else problem.parameters.packed
        self.units = scaling.diagonal(problem.kernel, start) if self.scaled else scaling.none(len(start))
        self.factor = torch.as_tensor(self.units.parameters, dtype=problem.dtype)
        self.inverse_loss = torch.tensor(1 / self.units.loss, dtype=problem.dtype)
        self.leaves = problem.parameters.leaves(torch.as_tensor(start / self.units.parameters, dtype=problem.dtype))
        for leaf in self.leaves:
            leaf.requires_grad_()
        self.optimizer = method._build(self.leaves, method.rate(self.units, scaled=self.scaled), scaled=self.scaled)
        n = problem.kernel.n
        self.batches = 1 if method.batch_size is None else math.ceil(n / method.batch_size)
        self.scheduler = method._schedule(self.optimizer, self.batches)
        self.limits = self._limits()
        self.generator = torch.Generator().manual_seed(problem.seed)
        self.epoch = 0
        self.average = self._averaged()

    def step(self) -> Evaluation:
        """One epoch."""
        self.epoch += 1
        validation = self._validation_loss()
        rate = float(self.optimizer.param_groups[0]["lr"])
        losses, gradients = [], []
        for rows in self._batches():
            loss, gradient = self._descend(rows)
            losses.append(loss)
            gradients.append(gradient)
            if isinstance(self.scheduler, PER_BATCH):
                self.scheduler.step()
        train, gradient = (
            (losses[0], gradients[0]) if self.batches == 1 else (float(np.mean(losses)), torch.stack(gradients).mean(0))
        )
        self._after_epoch(train if math.isnan(validation) else validation)
        return Evaluation(train, validation, self._theta(), gradient, {"learning_rate": rate})

    def final(self) -> Floats:
        """Give the last parameters, or their average; in the user's units."""
        if self.average is None or self.average.n_averaged == 0:
            return self._theta().double().numpy()
        average = torch.cat([leaf.detach().reshape(-1) for leaf in self.average.module.parameters()])
        return (average * self.factor).double().numpy()

    def _descend(self, rows: Tensor | None) -> tuple[float, Tensor]:
        """One step of the optimizer; gives loss and gradient before it, in the user's units."""
        first: list[tuple[float, Tensor]] = []

        def closure() -> Tensor:
            self.optimizer.zero_grad()
            loss = self.problem.kernel.loss(self._point(), rows)
            loss.backward(self.inverse_loss)  # type: ignore[no-untyped-call]
            if not first:  # LBFGS evaluates several times a step; the history wants where it stood before
                first.append((loss.item(), self._gradient()))
            return loss.detach() * self.inverse_loss if self.scaled else loss

        closure() if self.method.name != "LBFGS" else None
        self.optimizer.step(closure if self.method.name == "LBFGS" else None)  # type: ignore[arg-type]
        if self.limits is not None:
            with torch.no_grad():
                for leaf, (lower, upper) in zip(self.leaves, self.limits, strict=True):
                    leaf.clamp_(lower, upper)
        return first[0]

    def _point(self) -> Tensor:
        """Parameters in the user's units, (p,); differentiable by the leaves."""
        packed = len(self.leaves) == 1 and self.leaves[0].dim() == 1
        joined = self.leaves[0] if packed else torch.cat([leaf.reshape(-1) for leaf in self.leaves])
        return joined * self.factor if self.scaled else joined

    def _theta(self) -> Tensor:
        with torch.no_grad():
            point = self._point()
            return point if self.scaled else point.detach().clone()

    def _gradient(self) -> Tensor:
        parts = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in self.leaves]
        gradient = torch.cat([part.reshape(-1) for part in parts]) if len(parts) > 1 else parts[0].reshape(-1).clone()
        return gradient * (self.units.loss / self.factor) if self.scaled else gradient

    def _batches(self) -> list[Tensor] | list[None]:
        if self.method.batch_size is None:
            return [None]
        return list(torch.randperm(self.problem.kernel.n, generator=self.generator).split(self.method.batch_size))  # type: ignore[no-untyped-call]

    def _validation_loss(self) -> float:
        """Evaluate without autograd: validation never touches the gradient."""
        if self.problem.validation is None:
            return math.nan
        with torch.no_grad():
            return self.problem.validation.loss(self._theta()).item()

    def _after_epoch(self, watched: float) -> None:
        if self.average is not None and self.epoch >= self._average_from:
            self.average.update_parameters(self.holder)
        if isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(watched)
        elif self.scheduler is not None and not isinstance(self.scheduler, PER_BATCH):
            self.scheduler.step()

    def _averaged(self) -> swa_utils.AveragedModel | None:
        averaging = self.method.averaging
        if averaging is None:
            return None
        quarter = max(1, 3 * self.method.max_steps // 4)
        self._average_from = averaging.start if averaging.start is not None else (quarter if averaging.kind == "swa" else 1)
        self.holder = torch.nn.Module()
        for index, leaf in enumerate(self.leaves):
            held = torch.nn.Parameter(leaf.detach(), requires_grad=False)  # shares memory with the leaf it watches
            self.holder.register_parameter(f"leaf{index}", held)
        rule = _average_rule(averaging)
        return swa_utils.AveragedModel(self.holder, multi_avg_fn=rule)

    def _limits(self) -> list[tuple[Tensor, Tensor]] | None:
        lower, upper = self.problem.parameters.lower, self.problem.parameters.upper
        if not (np.isfinite(lower).any() or np.isfinite(upper).any()):
            return None
        sides = [self.problem.parameters.leaves(torch.as_tensor(side) / self.factor) for side in (lower, upper)]
        return [(low.to(self.problem.dtype), high.to(self.problem.dtype)) for low, high in zip(*sides, strict=True)]


def _average_rule(averaging: Averaging) -> Any:
    if averaging.kind == "ema":
        return swa_utils.get_ema_multi_avg_fn(averaging.decay)  # type: ignore[no-untyped-call]
    return swa_utils.get_swa_multi_avg_fn()  # type: ignore[no-untyped-call]


def _optimizer(given: str | type[Optimizer]) -> type[Optimizer]:
    if isinstance(given, str):
        if given.lower() not in OPTIMIZERS:
            raise OptionError(unknown("optimizer", given, (cls.__name__ for cls in OPTIMIZERS.values())))
        given = OPTIMIZERS[given.lower()]
    if not (isinstance(given, type) and issubclass(given, Optimizer)):
        raise OptionError(f"optimizer is {given!r}; expected a name or a class of torch.optim, not an instance.")
    if given.__name__ == "SparseAdam":
        raise OptionError("SparseAdam takes sparse gradients only, and a fit's gradients are dense; use Adam.")
    return given


def _scheduler(given: str | Callable[..., Any] | None) -> Callable[..., Any] | None:
    if isinstance(given, str):
        if given.lower() not in SCHEDULERS:
            raise OptionError(unknown("scheduler", given, (getattr(s, "__name__", "") for s in SCHEDULERS.values())))
        return SCHEDULERS[given.lower()]
    if given is not None and not callable(given):
        raise OptionError(f"scheduler is {given!r}; expected a name, a class, or a function of the optimizer.")
    return given


def _known_options(optimizer: type[Optimizer], options: Mapping[str, Any]) -> dict[str, Any]:
    known = [name for name in inspect.signature(optimizer).parameters if name not in ("self", "params", "lr")]
    if "lr" in options:
        raise OptionError("lr is called learning_rate here; write learning_rate=...")
    for name in options:
        if name not in known:
            own = (
                "learning_rate",
                "epochs",
                "batch_size",
                "scheduler",
                "scheduler_options",
                "averaging",
                "early_stopping",
                "scale",
            )
            raise OptionError(unknown(f"option of {optimizer.__name__}", name, [*known, *own]))
    return dict(options)


def _positive(name: str, value: float | None) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (value > 0 and math.isfinite(value)):
        raise OptionError(f"{name} is {value!r}; expected a positive number.")
    return float(value)


def _count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise OptionError(f"{name} is {value!r}; expected a whole number, 1 or more.")
    return int(value)
