"""A fit looked at while it runs: scipy's ``verbose`` and ``callback``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from gradfit.compat.curve_options import Options
from gradfit.errors import FitError
from gradfit.methods import marquardt
from gradfit.methods.solving import Solver
from gradfit.typing import Floats

HEADER = f"{'Iteration':^15}{'Total nfev':^15}{'Cost':^15}{'Step norm':^15}{'Optimality':^15}"


class Watch:
    """Prints and calls back after each step. The cost is half the sum of squares, as scipy's."""

    def __init__(self, options: Options) -> None:
        self.verbose, self.callback = options.verbose, options.callback
        self.steps, self.first = 0, float("nan")
        self.before: Floats | None = None

    def __call__(self, solver: Solver, theta: Floats, rows: Floats, evaluations: int) -> None:
        """Look at a step: the parameters after it, and its row of the history."""
        if self.steps == 0:
            self.first = float(rows[0, 0]) * solver.n / 2
            if self.verbose == 2:
                print(HEADER)
        self.steps += 1
        cost, optimality = self._now(solver)
        if self.verbose == 2:
            length = float("nan") if self.before is None else float(np.linalg.norm(theta - self.before))
            print(f"{self.steps:^15}{evaluations:^15}{cost:^15.4e}{length:^15.2e}{optimality:^15.2e}")
        self.before = theta
        if self.callback is not None:
            self._call_back(self.callback, theta, cost, evaluations)

    def end(self, solver: Solver, evaluations: int, message: str) -> None:
        """Say how it ended."""
        if self.verbose:
            cost, optimality = self._now(solver)
            print(message)
            print(
                f"Function evaluations {evaluations}, initial cost {self.first:.4e}, final cost {cost:.4e}, "
                f"first-order optimality {optimality:.2e}."
            )

    def _now(self, solver: Solver) -> tuple[float, float]:
        gradient = solver.vectors[marquardt.GRADIENT]
        return float(solver.numbers[marquardt.SUM]) / 2, float(np.abs(gradient).max(initial=0.0))

    def _call_back(self, callback: Callable[..., Any], theta: Floats, cost: float, evaluations: int) -> None:
        try:
            if _wants_result(callback):
                from scipy.optimize import OptimizeResult  # takes a second to import, and few fits come here

                result = OptimizeResult()
                result.update(x=theta.copy(), cost=cost, nit=self.steps, nfev=evaluations)
                callback(intermediate_result=result)
            else:
                callback(theta.copy())
        except StopIteration:
            raise FitError("Optimal parameters not found: `callback` function requested termination by StopIteration.") from None


def watch_of(options: Options) -> Watch | None:
    """Give a watch, where one is asked for."""
    return Watch(options) if options.verbose or options.callback is not None else None


def _wants_result(callback: Callable[..., Any]) -> bool:
    try:
        return tuple(inspect.signature(callback).parameters) == ("intermediate_result",)
    except (TypeError, ValueError):
        return False
