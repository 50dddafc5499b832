"""What of a call to ``fit`` does not depend on its data, remembered: the next call with the same model only brings data.

A plan is found again by the values of everything it was made of (:mod:`gradfit.compiler.fingerprint`): the model with what it
reads from outside, the options, bounds, ties, the method. Start values are left out where they are plain numbers. Nothing is
remembered of a call that holds something whose value cannot be vouched for, nor of a model that is not compiled.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradfit.compiler.compiled import ModelCode, NativeKernel
from gradfit.compiler.eager import EagerKernel
from gradfit.compiler.fingerprint import fingerprint
from gradfit.data.dataset import Dataset
from gradfit.methods.gradient_descent import GradientDescent
from gradfit.methods.method import Method
from gradfit.model.model import Model
from gradfit.model.parameters import Parameters

MOST = 256


@dataclass(frozen=True)
class Plan:
    """A fit without its data."""

    model: Model
    parameters: Parameters
    method: Method
    base: EagerKernel
    code: ModelCode

    def kernel(self, data: Dataset, parameters: Parameters) -> NativeKernel:
        """Give the compiled model on data."""
        return NativeKernel(self.base, data, parameters, self.code)


_PLANS: OrderedDict[Hashable, Plan] = OrderedDict()
_LOCK = threading.Lock()


def key(*parts: Any, method: Any) -> Hashable | None:
    """Name a call by the values of its parts; None where that cannot be done."""
    if isinstance(method, GradientDescent):
        return None if (found := fingerprint(parts)) is None else (found, id(method))  # the plan keeps the object itself
    return fingerprint((*parts, method))


def find(name: Hashable | None) -> Plan | None:
    """Find a plan."""
    if name is None:
        return None
    with _LOCK:
        plan = _PLANS.get(name)
        if plan is not None:
            _PLANS.move_to_end(name)
        return plan


def remember(name: Hashable | None, plan: Plan) -> None:
    """Keep a plan, and forget the one that was not used for longest."""
    if name is None:
        return
    with _LOCK:
        _PLANS[name] = plan
        while len(_PLANS) > MOST:
            _PLANS.popitem(last=False)


def is_plain(start: Any) -> bool:
    """Whether start values are plain numbers by name or in order, so that a plan can do without them."""
    values = start.values() if type(start) is dict else start if type(start) in (list, tuple) else None
    if values is None:
        return isinstance(start, np.ndarray) and start.ndim == 1 and start.dtype == np.float64
    return all(type(value) in (int, float, np.float64) for value in values)


def names_of(start: Any) -> tuple[str, ...] | int | None:
    """What of plain start values belongs to a plan: which parameters they name, or how many there are."""
    if start is None:
        return None
    return tuple(start) if isinstance(start, Mapping) else len(start)
