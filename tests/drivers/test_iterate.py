"""The loop: what it writes down, and when it stops. Driven by runs that follow a script."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import gradfit
from gradfit.drivers.iterate import KEPT, iterate
from gradfit.methods.method import Evaluation, Status
from gradfit.methods.stopping import EarlyStopping

NAN = float("nan")


@dataclass
class Scripted:
    """A method whose losses are given; its parameter after step e is e."""

    losses: list[float]
    validation: list[float] = field(default_factory=list)
    last: float = 1.0
    early_stopping: EarlyStopping | None = None
    status: dict[int, Status] = field(default_factory=dict)
    name: str = "scripted"
    unit: str = "epoch"
    size: int = 1
    loop_reason: str = ""
    source: str = ""

    @property
    def max_steps(self):
        return len(self.losses)

    def check(self, problem):
        pass

    def start(self, problem):
        self.steps = itertools.count(1)
        return self

    def step(self):
        step = self.now = next(self.steps)
        held = self.validation[step - 1] if self.validation else NAN
        theta = np.full(self.size, float(step))
        gradient = np.full(self.size, NAN if self.losses[step - 1] == 0.5 else 3.0)
        return Evaluation(self.losses[step - 1], held, theta, gradient, {"learning_rate": 0.1}, self.status.get(step), "there")

    def final(self):
        return np.full(self.size, float(self.now))

    def problem(self, lower=-np.inf, upper=np.inf):
        start = np.zeros(self.size)
        parameters = SimpleNamespace(
            start=start,
            lower=start + lower,
            upper=start + upper,
            bounded=True,
            free_elements=tuple(f"p{i}" for i in range(self.size)),
        )
        kernel = SimpleNamespace(signal=1.0, mean_loss=lambda theta: self.last)
        return SimpleNamespace(parameters=parameters, kernel=kernel, dtype=torch.float64)


def run(*losses, **options):
    method = Scripted(list(losses), **options)
    return iterate(method, method.problem())


def test_all_steps_taken_is_left_to_be_judged():
    solution, settled = run(3.0, 2.0, 1.0)
    assert not settled
    assert solution.theta.tolist() == [3]
    assert solution.steps == 3
    assert solution.columns["train_loss"].tolist() == [3, 2, 1]
    assert solution.columns["theta"].tolist() == [[1], [2], [3]]
    assert solution.columns["learning_rate"].tolist() == [0.1] * 3


def test_a_method_that_has_arrived_ends_the_loop():
    solution, settled = run(3.0, 2.0, 1.0, status={2: Status.CONVERGED})
    assert settled
    assert solution.status is Status.CONVERGED
    assert solution.steps == 2


@pytest.mark.parametrize("lost", [NAN, np.inf, 1e11, -np.inf])
def test_a_lost_loss_ends_the_loop_at_the_lowest_one(lost):
    solution, settled = run(3.0, 1.0, 2.0, lost, 1.0)
    assert settled
    assert solution.status is Status.DIVERGED
    assert solution.steps == 4
    assert solution.theta.tolist() == [1]  # the loss of row 2 is that of the parameters after step 1
    assert "3 to" in solution.message


@pytest.mark.parametrize("lost", [NAN, np.inf])
def test_a_start_that_is_not_finite_is_no_divergence(lost):
    solution, settled = run(lost, 1.0)
    assert settled
    assert solution.status is Status.NOT_FINITE
    assert solution.theta.tolist() == [0]
    assert solution.steps == 1


@pytest.mark.parametrize("lost", [NAN, np.inf, 1e11])
def test_the_loss_after_the_last_step_counts_too(lost):
    solution, settled = run(3.0, 2.0, last=lost)
    assert settled
    assert solution.status is Status.DIVERGED
    assert solution.theta.tolist() == [1]


def test_a_gradient_that_is_not_finite_is_named():
    solution, _ = run(3.0, 0.5, NAN)  # the script has no gradient at 0.5
    assert solution.status is Status.DIVERGED
    assert "epoch 2 is finite and its gradient is not" in solution.message


def test_patience_returns_to_the_best_validation_loss():
    held = [5.0, 3.0, 2.0, 2.5, 2.2, 2.1, 1.0]
    solution, settled = run(*[1.0] * 7, validation=held, early_stopping=EarlyStopping(3))
    assert settled
    assert solution.status is Status.STOPPED_EARLY
    assert solution.steps == 6
    assert solution.theta.tolist() == [2]


def test_the_best_may_be_the_start():
    solution, _ = run(*[1.0] * 4, validation=[1.0, 2.0, 3.0, 4.0], early_stopping=EarlyStopping(2))
    assert solution.theta.tolist() == [0]


def test_small_gains_wear_patience_out_and_the_first_loss_always_counts():
    held = [5.0, 4.9, 4.8, 4.7, 4.6]
    solution, _ = run(*[1.0] * 5, validation=held, early_stopping=EarlyStopping(2, min_delta=1.0))
    assert solution.status is Status.STOPPED_EARLY
    assert solution.steps == 3


def test_a_validation_loss_that_is_never_finite_wears_nothing_out():
    solution, settled = run(*[1.0] * 4, validation=[NAN] * 4, early_stopping=EarlyStopping(2))
    assert solution.steps == 4
    assert not settled


def test_a_best_before_the_end_is_kept_and_one_at_the_end_is_judged():
    kept, settled = run(*[1.0] * 3, validation=[3.0, 1.0, 2.0], early_stopping=EarlyStopping(9))
    assert settled
    assert kept.status is Status.COMPLETED
    assert kept.theta.tolist() == [1]
    _, settled = run(*[1.0] * 3, validation=[3.0, 2.0, 1.0], early_stopping=EarlyStopping(9))
    assert not settled


def test_parameters_at_a_rounded_bound_stand_exactly_there():
    method = Scripted([1.0])
    problem = method.problem(upper=1 - 1e-16)
    solution, _ = iterate(method, problem)
    assert solution.theta[0] == problem.parameters.upper[0]


def test_many_parameters_keep_the_norm_of_their_gradient_only():
    solution, _ = run(3.0, 1.0, NAN, size=KEPT + 1)
    assert solution.theta.tolist() == [1.0] * (KEPT + 1)
    assert solution.columns["theta"].shape == (3, 0)
    np.testing.assert_allclose(solution.columns["gradient"][:, 0], 3 * np.sqrt(KEPT + 1))


def test_a_wide_module_fits_and_shows_the_norm(t_u, t_c):
    module = torch.nn.Sequential(torch.nn.Linear(1, 100), torch.nn.Tanh(), torch.nn.Linear(100, 1))
    fit = gradfit.fit(module, 0.1 * t_u, t_c, epochs=3, on_failure="ignore")
    assert len(fit.history["grad_norm"]) == 3
    assert (fit.history["grad_norm"] > 0).all()


def test_the_observer_sees_every_step():
    seen = []
    method = Scripted([3.0, 2.0])
    iterate(method, method.problem(), lambda step, row: seen.append((step, row.train_loss)))
    assert seen == [(1, 3.0), (2, 2.0)]
