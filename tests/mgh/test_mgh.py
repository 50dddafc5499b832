"""The test set of Moré, Garbow and Hillstrom through ``gradfit.fit``, one run each with default settings; nobody claims a false minimum."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy.optimize import approx_fprime

import gradfit
from problems import PROBLEMS, Problem, runs, slope

KNOWN = [  # a minimizer that the paper, or algebra, knows
    (1, [1, 1]), (2, [5, 4]), (3, [1.098159329699759e-5, 9.106146739867318]), (4, [1e6, 2e-6]), (5, [3, 0.5]), (7, [1, 0, 0]),
    (11, [50, 25, 1.5]), (12, [1, 10, 1]), (12, [10, 1, -1]), (13, [0] * 4), (14, [1] * 4), (18, [1, 10, 1, 5, 4, 3]),
    (21, [1] * 10), (22, [0] * 12), (25, [1] * 10), (27, [1] * 10), (32, [-1] * 10),
]  # fmt: skip
# Systems of as many functions as parameters have no errors, which is said each time.
pytestmark = pytest.mark.filterwarnings("ignore::gradfit.UndeterminedWarning")
STATIONARY = 1e-4  # cosine between residuals and any column of their derivative
FAST = [problem for problem in PROBLEMS if len(problem.start) <= 5 and problem.number not in (10, 16)]


def fitted(problem: Problem, start, engine="torch"):
    return gradfit.fit(problem.model, *problem.columns, problem.target, start={"x": start}, engine=engine, on_failure="ignore")


def solved(problem, fit):
    """Whether a run is solved; what claims to be a minimum and is none fails here."""
    total, steepness = slope(problem, np.asarray(fit.values["x"]))
    if not fit.success:
        return False
    assert problem.is_solved(total) or steepness < STATIONARY, f"{problem.label}: {fit.message} at {total}, slope {steepness}"
    return problem.is_solved(total)


def test_the_set_has_41_problems_and_117_runs():
    assert len(PROBLEMS) == 41
    assert len(runs()) == 117
    assert len({problem.number for problem in PROBLEMS}) == 35
    assert Counter(factor for _, factor, _ in runs()) == {1.0: 41, 10.0: 38, 100.0: 38}


@pytest.mark.parametrize(("number", "minimizer"), KNOWN)
def test_known_minimizers_have_the_known_minimum(number, minimizer):
    problem = next(problem for problem in PROBLEMS if problem.number == number)
    total, _ = slope(problem, np.array(minimizer, dtype=np.longdouble))
    assert problem.is_solved(total)
    assert total >= problem.minimum * (1 - 1e-6)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.label)
def test_the_model_that_is_fitted_is_the_problem(problem):
    """What gradfit makes of the numpy text has the residuals and the gradient of the text itself."""
    start = problem.start + 0.01
    if problem.number == 34:
        start = problem.start
    residual = problem.residual(start)
    fit = gradfit.fit(
        problem.model, *problem.columns, problem.target, start={"x": start}, engine="torch", max_steps=1, on_failure="ignore"
    )
    assert fit.history["train_loss"][0] == pytest.approx(residual @ residual / len(residual), rel=1e-12)
    gradient = [fit.history[f"grad_{name}"][0] for name in fit.names]
    numeric = approx_fprime(start, lambda x: float(problem.residual(x) @ problem.residual(x)) / len(residual), 1e-7)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-3, atol=1e-4 * np.abs(numeric).max())


@pytest.mark.parametrize("problem", FAST, ids=lambda problem: problem.label)
def test_small_problems_are_solved_from_the_standard_start(problem):
    fit = fitted(problem, problem.start)
    assert fit.success
    assert solved(problem, fit) == (problem.number != 2)  # from there everybody finds its other minimum


@pytest.mark.parametrize("problem", [p for p in FAST if p.is_of_data], ids=lambda problem: problem.label)
def test_models_of_data_are_compiled_and_solved_alike(problem):
    fit = fitted(problem, problem.start, engine="native")
    assert fit.engine == "native"
    assert solved(problem, fit)


@pytest.mark.slow
def test_most_of_the_set_is_solved_and_no_claim_is_false():
    standard = total = 0
    for problem, factor, start in runs():
        try:
            found = solved(problem, fitted(problem, start))
        except gradfit.ModelError as error:
            assert "near the start" in str(error)  # noqa: PT017 - a start where nothing matters is refused
            continue
        total += found
        standard += found and factor == 1
    assert total >= 91
    assert standard >= 39
