"""Gradient descent by any optimizer of torch.optim.

The optimizer, the scheduler and the averaging are torch's own objects; this file hands them the loss and writes down what
happens. One epoch passes over all rows once, in one batch or several:

    zero the gradient;  loss;  gradient by autograd;  optimizer step;  scheduler step

The gradient is zeroed here, never by the user, and copied into the history before the step spends it. With several batches
an epoch's loss and gradient are means over its rows, each row taken when its batch was: a short last batch counts for its
rows, not as a batch, so that at a vanishing rate the history shows loss and gradient of the whole data.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer, lr_scheduler, swa_utils

from gradfit.compiler.compiled import NativeKernel
from gradfit.compiler.graph import Untraceable
from gradfit.errors import OptionError, ParameterError, unknown
from gradfit.methods import scaling
from gradfit.methods.compiled_descent import CompiledDescent, Schedule
from gradfit.methods.method import Evaluation, Problem, Status
from gradfit.methods.optimizers import (
    DEFAULT_EPOCHS,
    DEFAULT_EPOCHS_LBFGS,
    PER_BATCH,
    SCALED,
    Defaults,
    bare_step,
    count,
    find_optimizer,
    find_scheduler,
    identity,
    known_options,
    needs_closure,
    positive,
    remember_tried,
    was_tried,
)
from gradfit.methods.stopping import EarlyStopping
from gradfit.typing import Floats

HAIR = 1e-7  # of a bound, in the units of the descent: nearer is on it


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
        if not (isinstance(self.decay, Real) and 0 <= self.decay <= 1):
            raise OptionError(f"decay is {self.decay!r}; expected a number from 0 to 1.")
        if self.start is not None:
            count("start", self.start)

    def first_epoch(self, epochs: int) -> int:
        """First epoch whose parameters are averaged."""
        if self.start is not None:
            return self.start
        return 3 * epochs // 4 + 1 if self.kind == "swa" else 1


class GradientDescent:
    """Gradient descent by an optimizer of torch.optim, with all its own options.

    Parameters
    ----------
    optimizer
        A name ("adam") or a class (``torch.optim.Adam``, or one of your own).
    learning_rate
        torch's ``lr``. None: chosen in scaled units, and falling for some optimizers (:data:`SCALED`), or torch's own default
        where ``scale=False``.
    epochs
        Passes over the data.
    batch_size
        Rows per step; None: all. Rows are shuffled each epoch by the fit's seed.
    scheduler, scheduler_options
        A name or class of torch.optim.lr_scheduler with its options, or a function of the optimizer. Stepped once an epoch
        (OneCycleLR and CyclicLR: once a batch); ReduceLROnPlateau sees the validation loss of the history's row, or the
        training loss if there is no validation set. Rates among its options are in the units of ``learning_rate``.
        SequentialLR and ChainedScheduler are made of schedulers, which need the optimizer: pass a function of it.
    averaging
        "swa", "ema" or :class:`Averaging`.
    early_stopping
        Epochs of patience, or :class:`EarlyStopping`; needs a validation set.
    scale
        Work in scaled units, :mod:`gradfit.methods.scaling`. None: yes, except for torch modules. Options that are
        not free of units (learning_rate, weight_decay, eps) then act in scaled units.
    **options
        Any option of the optimizer itself: momentum, betas, weight_decay, amsgrad, ... ``maximize`` climbs, as torch says: for
        a loss of your own that is to be large; a squared loss then ends as diverged or not converged.

    Raises
    ------
    OptionError
        Unknown optimizer, scheduler or option, or a value torch refuses.
    """

    unit = "epoch"
    first_block = 1_000_000

    @property
    def advice(self) -> str:
        """What to change when the epochs were not enough."""
        if self.batch_size is not None:
            return "mini-batches wander around it: let a scheduler lower the learning rate, or use averaging='swa'"
        return "raise epochs or the learning rate, leave scale on, or use method='lm'"

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
        self.optimizer = find_optimizer(optimizer)
        self.name = self.optimizer.__name__
        self.learning_rate = positive("learning_rate", learning_rate)
        default_epochs = DEFAULT_EPOCHS_LBFGS if self.name == "LBFGS" else DEFAULT_EPOCHS
        self.max_steps = count("epochs", default_epochs if epochs is None else epochs)
        self.batch_size = None if batch_size is None else count("batch_size", batch_size)
        self.scheduler = find_scheduler(scheduler)
        self.scheduler_options = dict(scheduler_options or {})
        if self.scheduler is None and self.scheduler_options:
            raise OptionError("scheduler_options were given without a scheduler; name one, such as scheduler='StepLR'.")
        self.averaging = _averaging(averaging, self.max_steps)
        self.early_stopping = _early_stopping(early_stopping)
        if self.averaging is not None and self.early_stopping is not None:
            raise OptionError("averaging and early_stopping both decide which parameters are the answer; choose one.")
        if scale not in (None, True, False):
            raise OptionError(f"scale is {scale!r}; expected True, False or None.")
        self.scale = scale
        self.options = known_options(self.optimizer, options)
        self.needs_closure = needs_closure(self.optimizer)
        self._schedules: dict[object, Schedule] = {}
        known = identity(self.optimizer, self.options)
        if known is None or not was_tried(known):
            self._try_out()
            if known is not None:
                remember_tried(known)

    def __repr__(self) -> str:
        """Show what was set."""
        extra = "".join(f", {key}={value!r}" for key, value in self.options.items())
        return f"GradientDescent({self.name}, learning_rate={self.learning_rate}, epochs={self.max_steps}{extra})"

    def check(self, problem: Problem) -> None:
        """Refuse what this optimizer cannot do on this problem."""
        if self.early_stopping is not None and problem.validation is None:
            raise OptionError("early_stopping watches the validation loss; pass validation=0.2, rows, or a data set.")
        if self.needs_closure and self.batch_size is not None:
            raise OptionError("LBFGS compares losses between steps, so it needs all rows in each; leave batch_size out.")
        if self.name == "Muon":
            _check_matrices(problem)

    def start(self, problem: Problem) -> DescentRun | CompiledDescent:
        """Begin at the start of the problem: as one compiled loop where the kernel and the optimizer are compiled."""
        if not isinstance(problem.kernel, NativeKernel) or not len(problem.parameters.start):
            return DescentRun(self, problem)
        if self.needs_closure:
            return DescentRun(self, problem, f"torch's own {self.name} on compiled loss and gradient.")
        try:
            return CompiledDescent(self, problem)
        except Untraceable as why:
            return DescentRun(self, problem, f"torch's own loop on compiled loss and gradient, because of {self.name}: {why}.")

    def schedule(self, rate: float, batches: int, *, scaled: bool) -> Schedule:
        """Give the learning rates of all epochs; found again for the same rate, unless the scheduler looks at the loss."""
        plain = identity(self.optimizer, {**self.options, **self.scheduler_options})
        if plain is None or not (self.scheduler is None or isinstance(self.scheduler, type)):
            return Schedule(self, rate, batches, scaled=scaled)
        key = (rate, batches, scaled, plain, self.scheduler, self.max_steps)
        known = self._schedules.get(key)
        if known is None or known.plateau is not None:
            self._schedules.clear()  # the last one is enough
            known = self._schedules[key] = Schedule(self, rate, batches, scaled=scaled)
        return known

    @property
    def settings(self) -> dict[str, Any]:
        """All that was set, by name."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def effective_options(self, *, scaled: bool) -> dict[str, Any]:
        """Options of the optimizer: the user's, and those that scaled units need."""
        defaults = SCALED[self.name].options if scaled and self.name in SCALED else {}
        return {**defaults, **self.options}

    def has_default_schedule(self, *, scaled: bool) -> bool:
        """Whether the learning rate falls though nobody asked for it: some default rates come with that."""
        return scaled and self.learning_rate is None and SCALED.get(self.name, Defaults()).falls_to != 1

    def _rate(self, problem: Problem, units: scaling.Scaling | None) -> float:
        """Choose the learning rate: the user's, or the default for the units."""
        if self.learning_rate is not None:
            return self.learning_rate
        if units is None:
            default = inspect.signature(self.optimizer).parameters["lr"].default
            return float(default) if isinstance(default, (int, float)) else 1e-3
        return SCALED.get(self.name, Defaults()).rate or scaling.steady_rate(problem, units)

    def _build(self, leaves: list[Tensor], rate: float, *, scaled: bool) -> Optimizer:
        """Make torch's optimizer; its own complaint becomes ours."""
        options = self.effective_options(scaled=scaled)
        if "foreach" in inspect.signature(self.optimizer).parameters and not options.keys() & {"foreach", "fused"}:
            options["foreach"] = False  # what torch decides on a CPU, again at every step
        try:
            return self.optimizer(leaves, lr=rate, **options)  # type: ignore[call-arg]
        except (ValueError, TypeError, RuntimeError) as error:
            raise OptionError(f"{self.name} refuses: {error}") from error

    def _try_out(self) -> None:
        """Take a step on a matrix of ones, so that torch refuses bad values now and not in the middle of a fit."""
        leaf = torch.ones(2, 2, requires_grad=True)
        optimizer = self._build([leaf], 1e-3, scaled=False)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = (leaf**2).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        closure()
        try:
            optimizer.step(closure if self.needs_closure else None)  # type: ignore[arg-type]
        except (ValueError, TypeError, RuntimeError, AssertionError) as error:
            raise OptionError(f"{self.name} refuses: {error}") from error

    def _schedule(self, optimizer: Optimizer, batches: int, *, scaled: bool) -> Any:
        """Make the scheduler asked for, or the one that a default rate comes with."""
        if self.scheduler is None:
            if not self.has_default_schedule(scaled=scaled):
                return None
            return lr_scheduler.ExponentialLR(optimizer, gamma=SCALED[self.name].falls_to ** (1 / self.max_steps))
        options = dict(self.scheduler_options)
        if self.scheduler is lr_scheduler.OneCycleLR and not options.keys() & {"total_steps", "epochs"}:
            options["total_steps"] = self.max_steps * batches
        name = getattr(self.scheduler, "__name__", self.scheduler)
        try:
            scheduler = self.scheduler(optimizer, **options)
        except Exception as error:
            raise OptionError(f"the scheduler {name} refuses: {type(error).__name__}: {error}") from error
        if not callable(getattr(scheduler, "step", None)):
            raise OptionError(f"the scheduler {name} gave {scheduler!r}; expected a scheduler of torch.optim.lr_scheduler.")
        return scheduler

    def step_scheduler(self, scheduler: Any, epoch: int, *watched: float) -> None:
        """Let a scheduler take its step."""
        try:
            scheduler.step(*watched)
        except Exception as error:  # OneCycleLR with fewer steps than the fit takes, a function of the user's that raises
            what = f"{type(error).__name__}: {error}"
            raise OptionError(f"the scheduler {type(scheduler).__name__} refuses at epoch {epoch}: {what}") from error


class DescentRun:
    """An optimizer at work: torch keeps its state in objects, so a run is one."""

    def __init__(self, method: GradientDescent, problem: Problem, loop_reason: str = "") -> None:
        self.method, self.problem, self.loop_reason = method, problem, loop_reason
        self.source = problem.kernel.code.loss.text if isinstance(problem.kernel, NativeKernel) else ""
        start, dtype = problem.parameters.start, problem.dtype
        self.scaled = method.scale if method.scale is not None else problem.parameters.packed
        units = scaling.diagonal(problem.kernel, start) if self.scaled else scaling.none(len(start))
        self.factor = torch.as_tensor(units.parameters, dtype=dtype)
        self.slope = torch.as_tensor(units.loss / units.parameters, dtype=dtype)
        self.inverse_loss = torch.tensor(1 / units.loss, dtype=dtype)
        self.leaves = problem.parameters.leaves(torch.as_tensor(start / units.parameters, dtype=dtype))
        for leaf in self.leaves:
            leaf.requires_grad_()
        self.packed = problem.parameters.packed
        rate = method._rate(problem, units if self.scaled else None)
        self.optimizer = method._build(self.leaves or [torch.zeros(0)], rate, scaled=self.scaled)
        self.batches = 1 if method.batch_size is None else math.ceil(problem.kernel.n / method.batch_size)
        self.scheduler = method._schedule(self.optimizer, self.batches, scaled=self.scaled)
        self.bare_step = None if method.needs_closure else bare_step(self.optimizer)
        self.weight = self.inverse_loss if self.scaled else torch.tensor(1.0, dtype=dtype)
        self.limits = self._limits()
        # on a bound, for an optimizer that searches
        self.held = [torch.zeros_like(leaf, dtype=torch.bool) for leaf in self.leaves]
        self.generator = torch.Generator().manual_seed(int(problem.seed))
        self.epoch = 0
        self.average = self._averaged()

    def step(self) -> Evaluation:
        """One epoch."""
        self.epoch += 1
        validation = self._validation_loss()
        settings = {"learning_rate": float(self.optimizer.param_groups[0]["lr"])}
        if not len(self.factor):
            loss = self.problem.kernel.mean_loss(np.empty(0))
            detail = "there is nothing to fit, every parameter is fixed"
            return Evaluation(loss, validation, np.empty(0), np.empty(0), settings, Status.CONVERGED, detail)
        loss, gradient = self._pass()
        self._after_epoch(loss if self.problem.validation is None else validation)
        return Evaluation(loss, validation, self._theta(), gradient, settings)

    def final(self) -> Floats:
        """Give the last parameters, or their average; in the user's units."""
        if self.average is None or self.average.n_averaged == 0:
            return self._theta().double().numpy()
        average = torch.cat([leaf.detach().reshape(-1) for leaf in self.average.module.parameters()])
        return (average * self.factor).double().numpy()

    def _pass(self) -> tuple[float, Tensor]:
        """Pass once over the rows; gives the mean loss and gradient over them, each row's before its step."""
        if self.method.batch_size is None:
            loss, gradient = self._descend(None)
            self._after_batch()
            return loss, gradient
        total, slope, n = 0.0, torch.zeros_like(self.factor), self.problem.kernel.n
        for rows in torch.randperm(n, generator=self.generator).split(self.method.batch_size):  # type: ignore[no-untyped-call]
            loss, gradient = self._descend(rows)
            total += loss * (len(rows) / n)
            slope += gradient * (len(rows) / n)
            self._after_batch()
        return total, slope

    def _descend(self, rows: Tensor | None) -> tuple[float, Tensor]:
        """One step of the optimizer; gives loss and gradient before it, in the user's units."""
        if self.method.needs_closure:
            before = self._search(rows) if self.limits is None else self._search_within(rows, self.limits)
        else:
            before = self._evaluate(rows).item(), self._gradient()
            if self.bare_step is None:
                self.optimizer.step()
            else:
                with torch.no_grad():
                    self.bare_step()
        if self.limits is not None:
            with torch.no_grad():
                for leaf, (lower, upper) in zip(self.leaves, self.limits, strict=True):
                    leaf.clamp_(lower, upper)
        return before

    def _search_within(self, rows: Tensor | None, limits: list[tuple[Tensor, Tensor]]) -> tuple[float, Tensor]:
        """The same within bounds: on the numbers that are not held on a bound, with a memory that ends where these change.

        A number is held where the loss falls beyond its bound. The search sees the loss along the path as the bounds bend it; what it
        learned of the curvature holds for the straight path, and is forgotten when a bound was met.
        """
        self._evaluate(rows)
        held = []
        for leaf, (lower, upper) in zip(self.leaves, limits, strict=True):
            assert leaf.grad is not None
            # A search that meets a bound ends a hair before it.
            low = (leaf <= lower + HAIR * (1 + lower.abs())) & lower.isfinite() & (leaf.grad > 0)
            high = (leaf >= upper - HAIR * (1 + upper.abs())) & upper.isfinite() & (leaf.grad < 0)
            with torch.no_grad():
                leaf.copy_(torch.where(low, lower, torch.where(high, upper, leaf)))
            held.append(low | high)
        if not all(map(torch.equal, held, self.held)):
            self.optimizer.state.clear()
        self.held = held
        before = self._search(rows)
        if any(bool(((leaf < lower) | (leaf > upper)).any()) for leaf, (lower, upper) in zip(self.leaves, limits, strict=True)):
            self.optimizer.state.clear()
        return before

    def _evaluate(self, rows: Tensor | None) -> Tensor:
        """Loss, and its gradient in the leaves."""
        for leaf in self.leaves:
            leaf.grad = None  # what Optimizer.zero_grad does, without its bookkeeping for the profiler
        loss = self.problem.kernel.loss(self._point(), rows)
        loss.backward(self.weight)  # type: ignore[no-untyped-call]
        return loss

    def _search(self, rows: Tensor | None) -> tuple[float, Tensor]:
        """One step of an optimizer that evaluates the loss itself; gives loss and gradient before it."""
        first: list[tuple[float, Tensor]] = []

        def closure() -> Tensor:
            loss = self._evaluate(rows)
            if not first:  # LBFGS evaluates several times a step; the history wants where it stood before
                first.append((loss.item(), self._gradient()))
            if self.limits is not None:
                for leaf, held in zip(self.leaves, self.held, strict=True):
                    assert leaf.grad is not None
                    leaf.grad[held] = 0.0
            return loss.detach() * self.inverse_loss if self.scaled else loss

        self.optimizer.step(closure)  # type: ignore[arg-type]
        return first[0]

    def _point(self) -> Tensor:
        """Parameters in the user's units, (p,); differentiable by the leaves."""
        leaves = self.leaves
        if self.limits is not None and self.method.needs_closure:  # a search looks beyond
            leaves = [leaf.clamp(*sides) for leaf, sides in zip(self.leaves, self.limits, strict=True)]
        joined = leaves[0] if self.packed else torch.cat([leaf.reshape(-1) for leaf in leaves])
        return joined * self.factor if self.scaled else joined

    def _theta(self) -> Tensor:
        if self.packed and not self.scaled:
            return self.leaves[0].detach().clone()
        return self._point().detach().clone()

    def _gradient(self) -> Tensor:
        if self.packed and not self.scaled and self.leaves[0].grad is not None:
            return self.leaves[0].grad.clone()
        parts = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in self.leaves]
        gradient = torch.cat([part.reshape(-1) for part in parts])
        return gradient * self.slope if self.scaled else gradient

    def _validation_loss(self) -> float:
        """Evaluate without autograd: validation never touches the gradient."""
        if self.problem.validation is None:
            return math.nan
        with torch.no_grad():
            return self.problem.validation.loss(self._theta()).item()

    def _after_batch(self) -> None:
        if isinstance(self.scheduler, PER_BATCH):
            self.method.step_scheduler(self.scheduler, self.epoch)

    def _after_epoch(self, watched: float) -> None:
        if self.average is not None and self.epoch >= self._average_from:
            self.average.update_parameters(self.holder)
        if isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
            self.method.step_scheduler(self.scheduler, self.epoch, watched)
        elif self.scheduler is not None and not isinstance(self.scheduler, PER_BATCH):
            self.method.step_scheduler(self.scheduler, self.epoch)

    def _averaged(self) -> swa_utils.AveragedModel | None:
        averaging = self.method.averaging
        if averaging is None:
            return None
        self._average_from = averaging.first_epoch(self.method.max_steps)
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


def _averaging(given: str | Averaging | None, epochs: int) -> Averaging | None:
    averaging = Averaging(given) if isinstance(given, str) else given
    if averaging is not None and not isinstance(averaging, Averaging):
        raise OptionError(f"averaging is {given!r}; expected 'swa', 'ema' or gradfit.Averaging(...).")
    if averaging is not None and averaging.start is not None and averaging.start > epochs:
        raise OptionError(f"averaging starts at epoch {averaging.start} and there are {epochs}; start earlier.")
    return averaging


def _early_stopping(given: int | EarlyStopping | None) -> EarlyStopping | None:
    return given if given is None or isinstance(given, EarlyStopping) else EarlyStopping(given)


def _check_matrices(problem: Problem) -> None:
    parameters = problem.parameters
    flat = [name for name in parameters.free_names if parameters.packed or len(parameters.shape(name)) != 2]
    if flat:
        raise ParameterError(
            f"Muon makes the update of a matrix orthogonal, so it moves only matrices, and {', '.join(flat[:6])} is none; "
            "use it on the weights of a torch module (fix the biases, or leave them out), or use Adam."
        )
