r"""Solve a curve fit to its end, and draw scipy's numbers from it.

What Levenberg-Marquardt does not call a minimum is looked at again, because scipy's users have such functions:

- a parameter without effect where the fit stands is held there, and the others are solved for; it leaves no covariance;
- at a kink or a jump of f, or in its noise, the derivative tells nothing. Then the values themselves are looked at, along the
  principal axes of :math:`J^TJ`, from 1 down to 1e-4 standard errors: a lower sum of squares is where the fit goes on, and where
  there is none lower by more than the square of :data:`ARRIVED` standard errors, this is a minimum;
- other ends are tried again with first steps as long as scipy's, and at last from where scipy's trust region arrives, whose steps
  are measured in x_scale: what that finds is a minimum only if it is one here too.

The covariance is scipy's: :math:`s^2 (J^TJ)^{-1}` with all parameters, also those on a bound, and :math:`s^2 = \sum r^2/(M-p)` or 1;
for a loss :math:`\rho` with its own curvature, and the loss for :math:`\sum r^2`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias, cast

import numpy as np
from scipy.linalg import qr

from gradfit.compat.curve_options import Options
from gradfit.compat.curve_residuals import Compiled, Curve, Exhausted, Residuals
from gradfit.compat.curve_watch import Watch
from gradfit.compiler.compiled import NativeKernel
from gradfit.compiler.kernel import Kernel
from gradfit.data.dataset import Dataset
from gradfit.errors import FitError, ModelError
from gradfit.methods import marquardt
from gradfit.methods.levenberg_marquardt import LevenbergMarquardt
from gradfit.methods.solving import EXACT_RANK, NUMERIC_RANK, Solver
from gradfit.typing import Floats

FAILED = "Optimal parameters not found: "
MAX_STEPS = LevenbergMarquardt().max_steps
RADIUS = LevenbergMarquardt().radius
SCIPY_RADIUS = 100.0
BLOCK = 64  # steps between two looks at the number of evaluations
RESTARTS = 20
PROBES = (1.0, 0.1, 0.01, 1e-3, 1e-4)  # standard errors
ARRIVED, SINGLE = marquardt.ARRIVED, marquardt.SINGLE_PRECISION
Fitting: TypeAlias = "NativeKernel | Residuals"


@dataclass(frozen=True)
class Fit:
    """A curve, its data, and where to begin.

    Attributes
    ----------
    kernel
        The curve on its data, as the solver takes it.
    curve
        The curve alone.
    f
        The function itself, for messages.
    """

    kernel: Fitting
    curve: Curve
    data: Dataset
    options: Options
    start: Floats
    lower: Floats
    upper: Floats
    f: Callable[..., Any]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters, for messages."""
        p = len(self.start)
        try:
            arguments = list(inspect.signature(self.f).parameters.values())[1 : p + 1]
        except (TypeError, ValueError):
            arguments = []
        plain = all(argument.kind in (argument.POSITIONAL_ONLY, argument.POSITIONAL_OR_KEYWORD) for argument in arguments)
        if plain and len(arguments) == p:
            return tuple(argument.name for argument in arguments)
        return tuple(f"p[{place}]" for place in range(p))


@dataclass(frozen=True)
class Solved:
    """Where a fit ended.

    Attributes
    ----------
    theta
        All parameters, (p,).
    held
        Names of those that have no effect.
    rough
        Whether the minimum shows in the values of f and not in its derivative.
    """

    fit: Fit
    solver: Solver
    theta: Floats
    held: tuple[str, ...]
    rough: bool
    evaluations: int

    @property
    def sum(self) -> float:
        """Sum of squares, or of the loss."""
        return float(self.solver.numbers[marquardt.SUM])


def solve(fit: Fit, watch: Watch | None) -> Solved:
    """Fit to the end.

    Raises
    ------
    ModelError
        The residuals at the start are not finite.
    FitError
        No minimum was found.
    """
    spent = 0
    radii = (RADIUS, SCIPY_RADIUS) if fit.options.radius is None else (fit.options.radius,)
    reason = ""
    for radius in radii:
        attempt = _Attempt(fit, radius, watch, spent)
        try:
            if attempt.run():
                return attempt.solved()
        except Exhausted:
            raise FitError(exhausted(fit.options.evaluations)) from None
        reason, spent = reason or attempt.reason(), attempt.evaluations
    try:
        found = _in_units_of_scipy(fit, spent)
        if found is not None:
            there, spent = found
            attempt = _Attempt(replace(fit, start=there), RADIUS, watch, spent)
            if attempt.run(strict=True):
                return attempt.solved()
    except Exhausted:
        raise FitError(exhausted(fit.options.evaluations)) from None
    raise FitError(FAILED + reason)


def _in_units_of_scipy(fit: Fit, spent: int) -> tuple[Floats, int] | None:
    """Let scipy's trust region look for a minimum, its steps measured in units of x_scale or diag; with the evaluations by then.

    Our steps are measured by the effect of each parameter; a user who knows better says so.
    """
    from scipy.optimize import least_squares  # takes a second to import, and few fits come here

    most = fit.options.evaluations
    if most is not None and spent >= most:
        raise Exhausted
    white, loss = fit.data.white, cast(Any, fit.options.rho or "linear")

    def residual(theta: Floats) -> Floats:
        return white(fit.curve.value(theta) - fit.data.target)

    def jacobian(theta: Floats) -> Floats:
        return white(fit.curve.slope(theta))

    try:
        found = least_squares(
            residual, fit.start, jacobian, (fit.lower, fit.upper), x_scale=fit.options.x_scale, loss=loss,
            f_scale=fit.options.f_scale, max_nfev=None if most is None else most - spent,
        )  # fmt: skip
    except (ValueError, np.linalg.LinAlgError):  # values that are not finite
        return None
    return (found.x, spent + int(found.nfev)) if found.success else None


class _Attempt:
    """A fit from one start with one first radius."""

    def __init__(self, fit: Fit, radius: float, watch: Watch | None, spent: int) -> None:
        self.fit, self.watch, self.before = fit, watch, spent
        self.kernel, self.free = fit.kernel, np.ones(len(fit.start), dtype=bool)
        self.theta = fit.start
        self.rough = False
        self._begin(radius)

    def _begin(self, radius: float) -> None:
        fit, free = self.fit, self.free
        exact = fit.curve.exact
        self.solver = Solver(
            cast(Kernel, self.kernel), self.theta[free], fit.lower[free], fit.upper[free], radius=radius, exact=exact
        )

    @property
    def evaluations(self) -> int:
        """Evaluations of f so far."""
        if not isinstance(self.fit.curve, Compiled):
            return self.fit.curve.calls
        return self.before + int(self.solver.counters[marquardt.LINEARIZATIONS] + self.solver.counters[marquardt.EVALUATIONS])

    def run(self, *, strict: bool = False) -> bool:
        """Go to the end; tell whether it is a minimum: by its derivative alone, where ``strict``."""
        self.code = code = self._solve()
        if strict:
            return code == marquardt.CONVERGED
        if code == marquardt.PLATEAU and self._hold():
            code = self._solve()
        for _ in range(RESTARTS):
            if code not in (marquardt.ROUGH, marquardt.UNDEFINED):
                break
            lower = self._lower_nearby()
            if lower is None:
                self.rough = True
                return True
            self._go_to(lower, RADIUS)
            code = self._solve()
        self.code = code
        return code == marquardt.CONVERGED

    def _solve(self) -> int:
        """Run the solver until it has ended, or may not go on."""
        most, limit = self.fit.options.evaluations, MAX_STEPS
        while True:
            left = BLOCK if most is None else most - self.evaluations
            if left <= 0:
                raise Exhausted
            code, rows = self.solver.run(1 if self.watch else min(BLOCK, left))
            self.theta = self._whole(self.solver.theta)
            if code == marquardt.NOT_FINITE:
                raise ModelError(not_finite(self.fit))
            if self.watch is not None:
                self.watch(self.solver, self.theta, rows, self.evaluations)
            if most is not None and self.evaluations > most and code == marquardt.RUNNING:
                raise Exhausted
            limit -= len(rows)
            if code != marquardt.RUNNING or limit <= 0:
                return code

    def _whole(self, theta: Floats) -> Floats:
        point = self.theta.copy()
        point[self.free] = theta
        return point

    def _go_to(self, theta: Floats, radius: float) -> None:
        self.before = self.evaluations
        self.theta = self._whole(theta)
        self._begin(radius)

    def _hold(self) -> bool:
        """Hold the parameters that have no effect here; tell whether there are any, and others."""
        vectors, signal = self.solver.vectors, self.solver.numbers[marquardt.SIGNAL]
        effect = vectors[marquardt.COLUMNS] * np.abs(vectors[marquardt.THETA])
        silent = (vectors[marquardt.COLUMNS] == 0) | (
            (vectors[marquardt.STILL] > 0) & (effect <= marquardt.PLATEAU_EFFECT * signal)
        )
        if not silent.any():
            return False
        self.free = self.free.copy()
        self.free[np.flatnonzero(self.free)[silent]] = False
        fit = self.fit
        self.kernel = Residuals(fit.curve, fit.data, fit.options, self.theta, self.free)
        self._go_to(self.theta[self.free], RADIUS)
        return True

    def _lower_nearby(self) -> Floats | None:
        """Look at the values of the sum near here; give a point where it is worth going on, None where this is a minimum."""
        solver, n = self.solver, self.fit.data.n
        p = solver.p
        total, signal = float(solver.numbers[marquardt.SUM]), float(solver.numbers[marquardt.SIGNAL])
        spread = math.sqrt(total / max(n - p, 1) + (SINGLE * signal / ARRIVED) ** 2)
        best, worth = None, total - (ARRIVED * spread) ** 2
        here = solver.theta
        for point in self._around(here, spread):
            value = self._sum(point)
            if value < worth:
                best, worth = point, value
        return best

    def _around(self, here: Floats, spread: float) -> Iterator[Floats]:
        """Give points along the principal axes and along each parameter."""
        solver = self.solver
        triangle = solver.matrices[marquardt.TRIANGLE, : solver.p, : solver.p].T
        norms = np.where((norms := np.linalg.norm(triangle, axis=0)) > 0, norms, 1.0)
        _, values, axes = np.linalg.svd(triangle / norms)
        floor = max(float(values[0]), 1e-300) * NUMERIC_RANK
        directions = [axis / norms * spread / max(float(value), floor) for value, axis in zip(values, axes, strict=True)]
        directions += list(np.diag(spread / norms))
        lower, upper = self.fit.lower[self.free], self.fit.upper[self.free]
        for size in PROBES:
            for direction in directions:
                for sign in (1.0, -1.0):
                    yield np.clip(here + sign * size * direction, lower, upper)

    def _sum(self, theta: Floats) -> float:
        return self.kernel.mean_loss(theta) * self.kernel.n

    def solved(self) -> Solved:
        """Give what was found."""
        held = () if self.free.all() else tuple(name for name, free in zip(self.fit.names, self.free, strict=True) if not free)
        return Solved(self.fit, self.solver, self.theta, held, self.rough, self.evaluations)

    def reason(self) -> str:
        """Say why this is no minimum."""
        solver = self.solver
        if self.code == marquardt.RUNNING:
            return f"no minimum within {MAX_STEPS} steps; give p0 closer to it."
        if self.code == marquardt.PLATEAU:
            names = [name for name, free in zip(self.fit.names, self.free, strict=True) if free]
            still = [name for name, flag in zip(names, solver.vectors[marquardt.STILL], strict=True) if flag > 0]
            return f"the fit ran onto a plateau where {', '.join(still)} changes nothing; give another p0, or bounds."
        if self.code == marquardt.UNDEFINED:
            return "beyond here f gives NaN or infinity; give another p0, or bounds."
        distance = solver.numbers[marquardt.DISTANCE]
        return f"a step of {distance:.2g} standard errors should lower the sum of squares and does not; check jac, or smooth f."


def exhausted(most: int | None) -> str:
    """Say that f was evaluated as often as allowed."""
    return (
        f"{FAILED}Number of calls to function has reached maxfev = {most}. "
        "(The maximum number of function evaluations is exceeded.) Raise it, leave it out, or give p0 closer to the minimum."
    )


def not_finite(fit: Fit) -> str:
    """Say that there is nothing to begin with."""
    where = ", ".join(f"{name} = {number:g}" for name, number in zip(fit.names, fit.start, strict=True))
    return (
        f"Residuals are not finite in the initial point. f, or its derivative, gives NaN or infinity at {where}; "
        "give a p0 where it has values, and data without NaN."
    )


# --- what scipy makes of it --------------------------------------------------------------------------------------------


def covariance(solved: Solved, *, absolute: bool) -> tuple[Floats, str]:
    """Give pcov, (p, p), and why there is none, or ""; it is infinite then, as scipy has it."""
    fit, solver = solved.fit, solved.solver
    n, p = fit.data.n, len(solved.theta)
    if solved.held:
        return np.full((p, p), np.inf), f"no value of f at the solution depends on {', '.join(solved.held)}"
    inverse = _inverse(fit, solver)
    if inverse is None:
        return np.full((p, p), np.inf), f"the data do not determine {_undetermined(fit, solver)}"
    if absolute:
        return inverse, ""
    if n <= p:
        return np.full((p, p), np.inf), f"{n} points leave nothing to estimate the noise of {p} parameters from"
    return inverse * (solved.sum / (n - p)), ""


def _inverse(fit: Fit, solver: Solver) -> Floats | None:
    """Inverse of J^T J, (p, p); None where J has no full rank."""
    if fit.options.rho is None:
        undetermined = solver.vectors[marquardt.UNDETERMINED]
        if undetermined.max() <= marquardt.INVOLVED:  # no NaN: none is on a bound
            return solver.matrices[marquardt.INVERSE, : solver.p, : solver.p].copy()
        triangle = solver.matrices[marquardt.TRIANGLE, : solver.p, : solver.p].T
    else:
        assert isinstance(fit.kernel, Residuals)
        triangle = np.asarray(fit.kernel.curved(solver.theta), dtype=np.float64)
    norms = np.linalg.norm(triangle, axis=0)
    if not (norms > 0).all():
        return None
    _, values, axes = np.linalg.svd(triangle / norms, full_matrices=False)
    tolerance = max(fit.data.n, solver.p) * EXACT_RANK if fit.curve.exact else NUMERIC_RANK
    if len(values) < solver.p or values[-1] <= tolerance * values[0]:
        return None
    return np.asarray((axes.T / values**2) @ axes / np.outer(norms, norms))


def _undetermined(fit: Fit, solver: Solver) -> str:
    shares = solver.vectors[marquardt.UNDETERMINED]
    return (
        ", ".join(name for name, share in zip(fit.names, shares, strict=True) if share > marquardt.INVOLVED) or "all parameters"
    )


def information(solved: Solved, *, minpack: bool) -> dict[str, Any]:
    """Give infodict; for method "lm" with a QR factorisation with column pivoting of J at the solution, as MINPACK leaves it.

    ``fjac`` (p, M) holds R transposed in its first p columns, and 0 after them; ``ipvt`` (p,) counts from 0.
    """
    fit, solver, n = solved.fit, solved.solver, solved.fit.data.n
    residual = fit.data.white(fit.curve.at_end(solved.theta) - fit.data.target)
    info: dict[str, Any] = {"nfev": solved.evaluations, "fvec": residual}
    if minpack:
        p = len(solved.theta)
        triangle, rest = np.zeros((p, p)), np.zeros(p)
        triangle[: solver.p, np.flatnonzero(_free(solved))] = solver.matrices[marquardt.TRIANGLE, : solver.p, : solver.p].T
        rest[: solver.p] = solver.matrices[marquardt.TRIANGLE, solver.p, : solver.p]
        orthogonal, upper, order = qr(triangle, pivoting=True)
        fjac = np.zeros((p, n))
        fjac[:, :p] = upper.T
        info |= {"fjac": fjac, "ipvt": order, "qtf": orthogonal.T @ rest}
    return info


def _free(solved: Solved) -> np.ndarray:
    return np.array([name not in solved.held for name in solved.fit.names])
