r"""Differential evolution: a search of the whole space between the bounds, for losses with many minima; then a fit from the best place.

A population of candidates fills the space. In each generation every candidate :math:`x_i` is challenged by one that is put together
from others, :math:`x_{best} + F (x_j - x_k)` with some of its own numbers kept, and gives way to it where that has the lower loss. Slopes are not used,
so a rough loss does not trap it; nor is it ever certain to have found the lowest minimum. The search is scipy's; the losses of a whole
generation are computed at once in compiled code, where the model is compiled. Levenberg-Marquardt goes on from the best candidate (LBFGS
for a loss that is no sum over rows), so that values, errors and status are those of any other fit.

References
----------
Storn and Price, *Differential evolution*, J. Global Optimization 11, 341, 1997; :func:`scipy.optimize.differential_evolution`.
"""

from __future__ import annotations

import inspect
import math
import numbers
from collections import deque
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch

from gradfit.compiler.kernel import Kernel
from gradfit.errors import OptionError, ParameterError, unknown
from gradfit.methods.evaluating import mean_losses
from gradfit.methods.gradient_descent import GradientDescent
from gradfit.methods.levenberg_marquardt import LevenbergMarquardt
from gradfit.methods.method import Block, CompiledRun, Evaluation, Problem, Run, Status
from gradfit.methods.stopping import EarlyStopping
from gradfit.typing import Floats

EXACT = 1e-20  # of the target's mean square: losses that near are one, where the data have no noise
PER_PARAMETER, FEWEST = 15, 20  # candidates, where nobody says how many
LEAST = 5  # that scipy can breed
AT_ONCE = 10  # generations of one call of scipy: always as many, or the random numbers would depend on the clock
POLISHING = 1000  # steps at most
STRATEGIES = (
    "best1bin", "best1exp", "rand1bin", "rand1exp", "rand2bin", "rand2exp", "randtobest1bin", "randtobest1exp", "currenttobest1bin",
    "currenttobest1exp", "best2exp", "best2bin",
)  # fmt: skip
NAMED = 6  # parameters in a message


@dataclass(frozen=True)
class DifferentialEvolution:
    """A global search between bounds, then a fit; every free parameter needs two finite bounds.

    Parameters
    ----------
    max_generations
        At most; then the fit begins at the best candidate there is.
    population
        Candidates; default 15 per parameter, at least 20. More of them miss less, and take longer.
    rtol
        The search ends when the losses of all candidates differ by less than this share of their mean (standard deviation). scipy's
        0.01 can be met on a plateau.
    strategy
        How challengers are bred, by scipy's name: "best1bin" (scipy's default) goes straight for the best, and takes half the
        generations; on Rastrigin's function of four numbers it missed the lowest minimum in 7 of 30 runs, this one in none.
    """

    max_generations: int = 1000
    population: int | None = None
    rtol: float = 1e-4
    strategy: str = "currenttobest1bin"
    early_stopping: EarlyStopping | None = None

    name = "differential evolution"
    unit = "step"
    advice = "raise max_generations or population, or narrow the bounds"
    first_block = AT_ONCE

    def __post_init__(self) -> None:
        """Check the numbers."""
        for what, value, least in (("max_generations", self.max_generations, 1), ("population", self.population, LEAST)):
            if value is None and what == "population":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise OptionError(f"{what} is {value!r}; expected a whole number, {least} or more.")
        if isinstance(self.rtol, bool) or not isinstance(self.rtol, numbers.Real) or not 0 <= self.rtol < 1:
            raise OptionError(f"rtol is {self.rtol!r}; expected a number from 0 to 1, such as 1e-4.")
        if self.strategy not in STRATEGIES:
            raise OptionError(unknown("strategy", self.strategy, STRATEGIES))

    @property
    def max_steps(self) -> int:
        """Generations, and the steps of the fit after them."""
        return self.max_generations + POLISHING

    def check(self, problem: Problem) -> None:
        """Refuse parameters without bounds: between which the search would look everywhere.

        Raises
        ------
        ParameterError
            It names them.
        """
        parameters = problem.parameters
        open_ended = [
            name for name, lower, upper in zip(parameters.free_elements, parameters.lower, parameters.upper, strict=True)
            if not math.isfinite(upper - lower)
        ]  # fmt: skip
        if open_ended:
            more = f" and {len(open_ended) - NAMED} more" if len(open_ended) > NAMED else ""
            example = ", ".join(f"{name!r}: (lower, upper)" for name in open_ended[:NAMED])
            raise ParameterError(
                f"{self.name} searches between bounds, and {', '.join(open_ended[:NAMED])}{more} "
                f"{'has' if len(open_ended) == 1 else 'have'} none, or only one; expected two finite numbers for each free parameter: "
                f"pass bounds={{{example}}}."
            )

    def start(self, problem: Problem) -> Search:
        """Begin."""
        return Search(self, problem)


class Search:
    """Differential evolution at work, and after it the fit from its best candidate."""

    source = ""

    def __init__(self, method: DifferentialEvolution, problem: Problem) -> None:
        self.method, self.problem = method, problem
        self.population: _Population | None = None
        if len(problem.parameters.start):
            self.population = _Population(method, problem)
        self.polish: CompiledRun | None = None
        self.generations = 0

    @property
    def loop_reason(self) -> str:
        """How far the search went, and what followed."""
        if self.population is None:
            return ""
        count = len(self.population.candidates)
        return f"{self.generations} generations of {count} candidates by scipy, then {self._polisher}."

    @property
    def _polisher(self) -> str:
        return "LBFGS" if isinstance(self.polish, _Single) else "Levenberg-Marquardt"

    @property
    def conclusion(self) -> Any:
        """What the fit after the search concluded."""
        return getattr(self.polish, "conclusion", None)

    def final(self) -> Floats:
        """Give the best parameters found."""
        if self.polish is not None:
            return self.polish.final()
        return self.problem.parameters.start if self.population is None else self.population.best

    def advance(self, limit: int) -> Block:
        """Take at most so many generations, or steps of the fit."""
        population = self.population
        if population is not None and self.polish is None:
            if not math.isfinite(population.least):
                return self._nowhere(population)
            if self.generations < self.method.max_generations and (population.waiting or not population.settled):
                block = self._bred(population, min(limit, self.method.max_generations - self.generations))
                self.generations += len(block.train_loss)
                return block
        if self.polish is None:
            self.polish = _polishing(self.problem, self.final())
        block = self.polish.advance(limit)
        count = len(block.train_loss)
        damping = block.settings.get("damping", np.full(count, math.nan))
        return replace(
            block, settings={"spread": np.full(count, math.nan), "damping": damping}, detail=block.detail + self._left(block)
        )

    def _left(self, block: Block) -> str:
        """What the search leaves open."""
        if block.status is None or self.population is None or self.population.settled:
            return ""
        return f"; the search ended after {self.generations} generations with its candidates still apart: there may be a lower minimum"

    def _bred(self, population: _Population, limit: int) -> Block:
        """Rows of the next generations: the best loss before and the best candidate after each."""
        rows = population.next(limit)
        before = np.array([row.before for row in rows])
        theta = np.array([row.after for row in rows])
        gradient = np.array([_gradient(self.problem.kernel, row.best) for row in rows])
        held_out = self.problem.validation
        validation = [math.nan if held_out is None else held_out.mean_loss(row.best) for row in rows]
        settings = {"spread": np.array([row.spread for row in rows]), "damping": np.full(len(rows), math.nan)}
        return Block(before, np.array(validation), settings, theta, gradient)

    def _nowhere(self, population: _Population) -> Block:
        """The end where no candidate has a loss."""
        nothing, p = np.full(1, math.nan), len(population.best)
        detail = f"none of {len(population.candidates)} places between the bounds gives a finite number; choose others"
        settings = {"spread": nothing, "damping": nothing}
        return Block(
            np.full(1, math.inf), nothing, settings, population.best[None], np.full((1, p), math.nan), Status.NOT_FINITE, detail
        )


@dataclass(frozen=True)
class _Generation:
    """The best candidate before and after it, the loss of the first, and how far the losses lay apart after it, as a share of their mean."""

    best: Floats
    before: float
    after: Floats
    spread: float


class _Population:
    """The candidates, and scipy's breeding, `AT_ONCE` generations at a time."""

    def __init__(self, method: DifferentialEvolution, problem: Problem) -> None:
        self.method, self.kernel, parameters = method, problem.kernel, problem.parameters
        self.bounds = np.stack([parameters.lower, parameters.upper], axis=1)
        self.generator = np.random.default_rng(problem.seed)
        self.atol = EXACT * problem.kernel.signal
        p = len(parameters.start)
        count = max(FEWEST, PER_PARAMETER * p) if method.population is None else method.population
        # A Latin hypercube: each candidate alone in its slice of every parameter's range.
        slices = self.generator.permuted(np.tile(np.arange(count)[:, None], p), axis=0)
        drawn = (slices + self.generator.random((count, p))) / count
        self.candidates = self.bounds[:, 0] + drawn * (self.bounds[:, 1] - self.bounds[:, 0])
        self.candidates[0] = parameters.start  # who gives a start knows something
        losses = self._losses(self.candidates.T)
        self.best, self.least = self.candidates[int(losses.argmin())].copy(), float(losses.min())
        self.bred = 0
        self.settled = False
        self.waiting: deque[_Generation] = deque()

    def next(self, limit: int) -> list[_Generation]:
        """Give at most so many generations, and at least one."""
        if not self.waiting:
            self._breed()
        return [self.waiting.popleft() for _ in range(min(limit, len(self.waiting)))]

    def _breed(self) -> None:
        import scipy.optimize  # takes a second, and few fits come here

        evolve: Any = scipy.optimize.differential_evolution
        randomness = "rng" if "rng" in inspect.signature(evolve).parameters else "seed"  # before scipy 1.15

        def note(intermediate_result: Any) -> None:
            after = np.array(intermediate_result.x, dtype=np.float64)
            losses = intermediate_result.population_energies
            spread = float(np.std(losses) / np.mean(losses)) if np.isfinite(losses).all() and losses.any() else math.nan
            self.waiting.append(_Generation(self.best, self.least, after, spread))
            self.best, self.least = after, float(intermediate_result.fun)

        generations = min(AT_ONCE, self.method.max_generations - self.bred)
        found = evolve(
            self._losses, self.bounds, strategy=self.method.strategy, maxiter=generations, tol=self.method.rtol, atol=self.atol, callback=note,
            init=self.candidates, polish=False, updating="deferred", vectorized=True, **{randomness: self.generator},
        )  # fmt: skip
        self.bred += generations
        self.candidates, self.settled = found.population, bool(found.success)

    def _losses(self, points: Floats) -> Floats:
        """Mean losses of candidates as scipy hands them over, (p, count)."""
        inside = np.clip(np.atleast_2d(points.T), self.bounds[:, 0], self.bounds[:, 1])  # scipy rounds on the way
        return mean_losses(self.kernel, inside)


# --- the fit that follows -----------------------------------------------------------------------------------------------


def _polishing(problem: Problem, theta: Floats) -> CompiledRun:
    """Begin the fit from the best candidate: Levenberg-Marquardt where the loss has rows that curve there, else LBFGS."""
    begun = replace(problem, parameters=problem.parameters.at(theta))
    if not len(theta) or problem.kernel.loss_kind == "least_squares" or problem.kernel.linearize(theta) is not None:
        return LevenbergMarquardt(max_steps=POLISHING).start(begun)
    descent = GradientDescent("lbfgs")
    return _Single(cast(Run, descent.start(begun)), descent.max_steps)


class _Single:
    """A run that takes one step at a time, as one that takes blocks."""

    def __init__(self, run: Run, most: int) -> None:
        self.run, self.left = run, most
        self.loop_reason, self.source = run.loop_reason, run.source

    def final(self) -> Floats:
        """Give the parameters the run stands for now."""
        return np.asarray(torch.as_tensor(self.run.final()).double())

    def advance(self, limit: int) -> Block:
        """Take one step."""
        row: Evaluation = self.run.step()
        self.left -= 1
        status, detail = row.status, row.detail
        if status is None and self.left == 0:
            status, detail = Status.COMPLETED, "whether that is the minimum, the learning curves must say"
        theta, gradient = (np.asarray(torch.as_tensor(part).double())[None] for part in (row.theta, row.gradient))
        return Block(np.array([row.train_loss]), np.array([row.validation_loss]), {}, theta, gradient, status, detail)


def _gradient(kernel: Kernel, theta: Floats) -> Floats:
    """Gradient of the mean loss, (p,)."""
    near = kernel.linearize(theta)
    if near is not None:
        return near.gradient
    point = torch.as_tensor(theta, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(kernel.loss(point), point)
    return slope.double().numpy()
