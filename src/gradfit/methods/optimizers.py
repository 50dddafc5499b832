"""torch's optimizers and schedulers by name, their options checked, and the defaults gradfit gives them in scaled units."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer, lr_scheduler, swa_utils
from torch.optim import optimizer as torch_optimizer

from gradfit.compiler import cache
from gradfit.errors import OptionError, unknown

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


@dataclass(frozen=True)
class Defaults:
    """Settings in scaled units (see scaling.py) where the user gives none.

    torch's own are made for networks: they would crawl or never settle. These were chosen by measurement, so that within the
    default epochs each optimizer comes within 0.01 standard errors of the minimum of the problems in
    tests/methods/test_gradient_descent.py, raw and in any units. With ``scale=False`` every default is torch's own.

    Attributes
    ----------
    rate
        Learning rate; None: 1/curvature.
    falls_to
        The rate falls exponentially, over all epochs, to this part of itself. Below 1 for optimizers that divide the gradient
        by its own recent size: their steps do not shrink on the way to the minimum, so the rate has to.
    options
        Options of the optimizer whose defaults are not free of units, or in the way.
    """

    rate: float | None = None
    falls_to: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)


SCALED: Mapping[str, Defaults] = {
    "Adadelta": Defaults(10.0, falls_to=1e-8),
    "Adafactor": Defaults(0.3, falls_to=1e-8),
    "Adagrad": Defaults(0.2),
    "Adam": Defaults(0.02),
    "Adamax": Defaults(0.02),
    "AdamW": Defaults(0.02, options={"weight_decay": 0.0}),  # a decay nobody asked for would pull the answer towards zero
    "ASGD": Defaults(options={"lambd": 0.0}),  # the same decay by another name
    # Without a line search LBFGS leaves curved problems; with torch's tolerances it stops before the sixth digit.
    "LBFGS": Defaults(1.0, options={"line_search_fn": "strong_wolfe", "tolerance_grad": 0.0, "tolerance_change": 0.0}),
    "NAdam": Defaults(0.01),
    "RAdam": Defaults(0.02),
    "RMSprop": Defaults(0.015, falls_to=1e-8),
    "Rprop": Defaults(0.01, options={"step_sizes": (1e-16, 50.0)}),
}
DEFAULT_EPOCHS = 5000
DEFAULT_EPOCHS_LBFGS = 100  # each is up to max_iter steps of its own


def find_optimizer(given: str | type[Optimizer]) -> type[Optimizer]:
    """Find an optimizer by name or check the class given."""
    if isinstance(given, str):
        if given.lower() not in OPTIMIZERS:
            raise OptionError(unknown("optimizer", given, (cls.__name__ for cls in OPTIMIZERS.values())))
        given = OPTIMIZERS[given.lower()]
    if not (isinstance(given, type) and issubclass(given, Optimizer)):
        raise OptionError(f"optimizer is {given!r}; expected a name or a class of torch.optim, not an instance.")
    if given.__name__ == "SparseAdam":
        raise OptionError("SparseAdam takes sparse gradients only, and a fit's gradients are dense; use Adam.")
    return given


def find_scheduler(given: str | Callable[..., Any] | None) -> Callable[..., Any] | None:
    """Find a scheduler by name or check the class or function given."""
    if isinstance(given, str):
        if given.lower() not in SCHEDULERS:
            raise OptionError(unknown("scheduler", given, (getattr(s, "__name__", "") for s in SCHEDULERS.values())))
        return SCHEDULERS[given.lower()]
    if given is not None and not callable(given):
        raise OptionError(f"scheduler is {given!r}; expected a name, a class, or a function of the optimizer.")
    return given


def known_options(optimizer: type[Optimizer], options: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse options that the optimizer does not have."""
    known = [name for name in inspect.signature(optimizer).parameters if name not in ("self", "params", "lr")]
    if options.get("differentiable"):
        raise OptionError(
            "differentiable=True is for gradients through the steps themselves, and a fit takes none; leave it out."
        )
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


def identity(optimizer: type[Optimizer], options: Mapping[str, Any]) -> str | None:
    """Name an optimizer of torch's own with plain options, so that what was found of it can be kept; else None."""
    if not optimizer.__module__.startswith("torch.optim") or not all(map(is_plain_value, options.values())):
        return None
    return f"{optimizer.__qualname__}({', '.join(f'{name}={options[name]!r}' for name in sorted(options))})"


def is_plain_value(value: Any) -> bool:
    """Whether a value is a number, a text, None, or made of these: it cannot change."""
    return isinstance(value, (bool, int, float, str, type(None))) or (
        isinstance(value, tuple) and all(map(is_plain_value, value))
    )


_TRIED: set[str] = set()


def was_tried(known: str) -> bool:
    """Whether this version of torch took these options before, in this process or another."""
    if known not in _TRIED and cache.read(_tried_file(known)) is not None:
        _TRIED.add(known)
    return known in _TRIED


def remember_tried(known: str) -> None:
    """Remember that torch took these options: making an optimizer for the first time takes torch seconds."""
    _TRIED.add(known)
    cache.write(_tried_file(known), b"")


def _tried_file(known: str) -> str:
    return f"{cache.key('tried', torch.__version__, known)}.tried"


def needs_closure(optimizer: type[Optimizer]) -> bool:
    """LBFGS evaluates the loss itself, several times a step: its ``step`` does not work without a closure."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is closure.empty


def bare_step(optimizer: Optimizer) -> Callable[[], Any] | None:
    """Give torch's step itself, to be called without gradients: without its bookkeeping for profiler, hooks and compiler.

    That takes as long as the rest of an epoch on few rows. None where somebody is at it: a hook, or a scheduler that counts.
    """
    hooks = (
        optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks,
        torch_optimizer._global_optimizer_pre_hooks, torch_optimizer._global_optimizer_post_hooks,
    )  # fmt: skip
    own = type(optimizer).__module__.startswith("torch.optim") and "step" not in vars(optimizer)
    return functools.partial(inspect.unwrap(type(optimizer).step), optimizer) if own and not any(hooks) else None


def positive(name: str, value: float | None) -> float | None:
    """Check an optional positive number."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real) or not (value > 0 and math.isfinite(value)):
        raise OptionError(f"{name} is {value!r}; expected a positive number.")
    return float(value)


def count(name: str, value: int) -> int:
    """Check a whole number, 1 or more."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise OptionError(f"{name} is {value!r}; expected a whole number, 1 or more.")
    return int(value)
