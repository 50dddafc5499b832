"""What of a call to ``fit`` does not depend on its data, remembered: the next call with the same model only brings data.

A plan is found again by the values of everything it was made of (:mod:`gradfit.compiler.fingerprint`): the model with what it
reads from outside, the options, bounds, ties, the method. Start values are left out where they are plain numbers. Nothing is
remembered of a call that holds something whose value cannot be vouched for, nor of a model that is not compiled.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gradfit.compiler.compiled import ModelCode, NativeKernel
from gradfit.compiler.eager import EagerKernel
from gradfit.compiler.fingerprint import Watch, fingerprint
from gradfit.compiler.graph import Untraceable
from gradfit.compiler.orthogonal import compiled_on, orthogonal_code
from gradfit.data.dataset import Dataset, plain_length
from gradfit.drivers.short import EXACT, Ended, Kind, Way, deviations_of, way
from gradfit.methods.compiled_descent import loop_of
from gradfit.methods.gradient_descent import GradientDescent
from gradfit.methods.method import Method, Problem
from gradfit.methods.optimizers import is_plain_value
from gradfit.model.model import Model
from gradfit.model.parameters import Parameters
from gradfit.statistics.record import GIVEN, Beginning

MOST = 128
MOST_WAYS = 32  # numbers of rows a plan keeps a block laid out for


@dataclass(frozen=True)
class Plan:
    """A fit without its data.

    Attributes
    ----------
    beginning
        Where the fit of the first data set began. Where that was searched for, it is for each one.
    """

    model: Model
    parameters: Parameters
    method: Method
    base: EagerKernel
    code: ModelCode
    beginning: Beginning = GIVEN

    def kernel(self, data: Dataset, parameters: Parameters) -> NativeKernel:
        """Give the compiled model on data."""
        if data.sigma_x is not None:
            return compiled_on(self.base, self.code, data, parameters)
        return NativeKernel(self.base, data, parameters, self.code)

    @property
    def begins(self) -> bool:
        """Whether it is known where a fit begins: a start was given, or any will do."""
        return self.beginning.kind in ("given", "assumed")

    @functools.cached_property
    def _ways(self) -> dict[tuple[int, str], Way | None]:
        return {}

    @functools.cached_property
    def _plain(self) -> bool:
        """Whether theta is all there is to know of the parameters, and double precision all that is asked for."""
        known = self.parameters
        return known.free_elements == known.names and not known.bounded and self.base.dtype == torch.float64

    def short(self, arrays: tuple[Any, ...], start: Any, sigma: Any, sigma_x: Any, *, absolute: bool) -> Ended | None:
        """Go the short way; None where the long one must be gone."""
        n = plain_length(arrays)
        deviations = EXACT if sigma is None and sigma_x is None else deviations_of(sigma, sigma_x, n, absolute=absolute)
        if deviations is None:
            return None
        key = n, deviations.kind
        if key not in self._ways:
            self._ways[key] = self._way(n, deviations.kind)
        way = self._ways[key]
        return None if way is None else way.go(arrays, self.started(start).start, deviations)

    def _way(self, n: int, kind: Kind) -> Way | None:
        if len(self._ways) > MOST_WAYS:
            self._ways.clear()
        if not self._plain or n <= len(self.parameters.names):
            return None
        if kind != "exact":
            code = self.code if kind == "weighted" else orthogonal_code(self.base, self.code, self.model.data_names)
            return way(code, self.method, n, len(self.parameters.names), None, None, kind)
        loop = schedule = None
        if isinstance(self.method, GradientDescent) and self.method.scale is False and not self.method.needs_closure:
            unread = Dataset({}, np.zeros(n), "", None, np.arange(n))
            problem = Problem(self.kernel(unread, self.parameters), self.parameters, self.base.dtype)
            schedule = self.method.schedule(self.method._rate(problem, None), 1, scaled=False)
            try:
                loop = loop_of(self.method, problem, False, schedule)
            except Untraceable:
                return None
        return way(self.code, self.method, n, len(self.parameters.names), loop, schedule)

    @functools.cached_property
    def _begun(self) -> dict[Hashable, Parameters]:
        return {}

    def started(self, start: Any) -> Parameters:
        """Give the parameters with plain start values; those given last are found again."""
        if start is None:
            return self.parameters
        values = tuple(start.values() if isinstance(start, Mapping) else start)
        begun = self._begun.get(values)
        if begun is None:
            begun = self.parameters.started(start)
            self._begun.clear()  # the last one is enough
            self._begun[values] = begun
        return begun


class _Memory:
    """Plans by the values of what they were made of; and, faster, by the very objects of the call that was made last."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.plans: OrderedDict[Hashable, Plan] = OrderedDict()
        self.calls: OrderedDict[Hashable, tuple[Any, Watch, Plan]] = OrderedDict()

    def find(self, model: Any, parts: tuple[Any, ...], method: Any) -> tuple[Hashable | None, Plan | None]:
        """Find the plan of a call; and the name under which it may be remembered."""
        call: Hashable | None = (id(model), parts, method)
        try:
            known = self.calls.get(call)
        except TypeError:  # a part that is a dict, a list, an array
            call, known = None, None
        if known is not None and known[0] is model and known[1].same():
            return None, known[2]
        # A function among the parts reads what nobody watches here, and an object may be changed: only plain values are kept.
        call = call if is_plain_value((parts, method)) else None
        name = _name(model, parts, method)
        if name is None:
            return None, None
        with self.lock:
            plan = self.plans.get(name)
            if plan is not None:
                self.plans.move_to_end(name)
                if call is not None and (watch := Watch(model)).whole:
                    self.calls[call] = (model, watch, plan)
                    _shorten(self.calls)
        return name, plan

    def remember(self, name: Hashable | None, plan: Plan) -> None:
        """Keep a plan, and forget the one that was not used for longest."""
        if name is None:
            return
        with self.lock:
            self.plans[name] = plan
            _shorten(self.plans)


def _shorten(kept: OrderedDict[Hashable, Any]) -> None:
    while len(kept) > MOST:
        kept.popitem(last=False)


def _name(model: Any, parts: tuple[Any, ...], method: Any) -> Hashable | None:
    """Name a call by the values of its parts; None where that cannot be done."""
    if isinstance(method, GradientDescent):  # an object that may be changed: by what it says now
        found = fingerprint((model, parts, method.settings))
        return None if found is None else (found, id(method))  # the plan keeps the object itself
    return fingerprint((model, parts, method))


MEMORY = _Memory()


def is_plain(start: Any) -> bool:
    """Whether start values are plain numbers by name or in order, so that a plan can do without them."""
    values = start.values() if type(start) is dict else start if type(start) in (list, tuple) else None
    if values is None:
        return isinstance(start, np.ndarray) and start.ndim == 1 and start.dtype == np.float64
    return all(type(value) in (int, float, np.float64) for value in values)


def inexact_names(sigma_x: Any) -> tuple[Any, ...] | bool:
    """What of errors in x belongs to a plan: whether there are any, and of which inputs where they are named."""
    return tuple(sigma_x) if isinstance(sigma_x, Mapping) else sigma_x is not None


def names_of(start: Any) -> tuple[str, ...] | int | None:
    """What of plain start values belongs to a plan: which parameters they name, or how many there are."""
    if start is None:
        return None
    return tuple(start) if isinstance(start, Mapping) else len(start)
