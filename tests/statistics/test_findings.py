"""Findings: each statistic against closed forms, scipy, direct refits and simulation; what is planted is found, clean data are left alone."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import scipy.stats
import torch

import gradfit
from gradfit.report import storage
from gradfit.statistics import residual_tests as tests
from gradfit.statistics.findings import ALLOTTED, CORRELATED, Facts, Finding, find
from gradfit.statistics.residual_tests import Residuals


def fitted(x: np.ndarray, y: np.ndarray) -> Residuals:
    """Residuals of least squares on the columns of x."""
    q, _ = np.linalg.qr(x)
    return Residuals(y - q @ (q.T @ y), q)


@pytest.fixture
def regression() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(5)
    u = generator.uniform(0, 3, 15)
    return np.stack([np.ones(15), u, np.exp(-u)], axis=1), generator.normal(size=15)


def kinds(fit: gradfit.FitResult) -> list[str]:
    return [finding.kind for finding in fit.findings]


def the(fit: gradfit.FitResult, kind: str) -> Finding:
    (found,) = [finding for finding in fit.findings if finding.kind == kind]
    return found


def line(seed: int, n: int = 40, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    x = np.linspace(0, 10, n)
    return x, 2 * x + 1 + np.random.default_rng(seed).normal(0, noise, n)


# --- statistics -----------------------------------------------------------------------------------------------------------


def test_studentized_residuals_and_cooks_distance_are_those_of_a_refit_without_the_row(regression):
    x, y = regression
    n, p = x.shape
    residuals = fitted(x, y)
    whole, *_ = np.linalg.lstsq(x, y, rcond=None)
    distance = tests.cook(residuals)
    for row in range(n):
        kept = np.arange(n) != row
        beta, *_ = np.linalg.lstsq(x[kept], y[kept], rcond=None)
        s = math.sqrt(np.sum((y[kept] - x[kept] @ beta) ** 2) / (n - 1 - p))
        beyond = x[row] @ np.linalg.inv(x[kept].T @ x[kept]) @ x[row]
        assert residuals.externally[row] == pytest.approx((y[row] - x[row] @ beta) / (s * math.sqrt(1 + beyond)))
        moved = x @ (whole - beta)
        assert distance[row] == pytest.approx(moved @ moved / (p * residuals.sum / (n - p)))


def test_residuals_without_rows_are_those_of_a_refit(regression):
    x, y = regression
    out = np.isin(np.arange(15), [3, 7])
    beta, *_ = np.linalg.lstsq(x[~out], y[~out], rcond=None)
    rest = fitted(x, y).without(out)
    np.testing.assert_allclose(rest.values, y[~out] - x[~out] @ beta, atol=1e-12)
    assert rest.dof == 10


def test_without_a_row_that_alone_decides_a_parameter_a_degree_of_freedom_stays():
    x = np.stack([np.ones(8), np.arange(8.0) == 5], axis=1)
    rest = fitted(x, np.arange(8.0) ** 2).without(np.arange(8) == 5)
    assert rest.basis.shape == (7, 1)


@pytest.mark.parametrize(("above", "below"), [(3, 4), (1, 6), (5, 5), (2, 7)])
def test_the_distribution_of_runs_is_that_of_all_orders(above, below):
    n = above + below
    counts = []
    for places in itertools.combinations(range(n), above):
        signs = np.full(n, -1.0)
        signs[list(places)] = 1.0
        counts.append(tests.runs(signs)[0])
    assert tests.expected_runs(above, below) == pytest.approx(np.mean(counts))
    for count in range(1, n + 1):
        assert tests.few_runs(count, above, below) == pytest.approx(np.mean(np.array(counts) <= count), abs=1e-12)


def test_the_normal_distribution_of_many_runs_follows_the_exact_one(monkeypatch):
    exact = tests.few_runs(465, 480, 510)
    monkeypatch.setattr(tests, "MANY_RUNS", 100)
    assert tests.few_runs(465, 480, 510) == pytest.approx(exact, rel=0.02)
    assert 0.001 < exact < 0.05


def ratios(x: np.ndarray, rank: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Simulated autocorrelations and spreads of the residuals of a fit on the columns of x."""
    q, _ = np.linalg.qr(x)
    noise = np.random.default_rng(1).normal(size=(count, len(x)))
    e = noise - (noise @ q) @ q.T
    total = np.sum(e**2, axis=1)
    return np.sum(e[:, 1:] * e[:, :-1], axis=1) / total, e**2 @ rank / total


@pytest.mark.parametrize("n", [6, 10, 20, 60])
def test_probabilities_of_autocorrelation_and_spread_are_those_of_simulation(n):
    u = np.linspace(-1, 2, n)
    x = np.stack([np.ones(n), u, np.exp(u)], axis=1)
    rank = tests.ranks(np.exp(u))
    residuals = fitted(x, np.random.default_rng(0).normal(size=n))
    for found, simulated in zip(
        (tests.autocorrelation(residuals), tests.spread(residuals, rank)), ratios(x, rank, 200_000), strict=True
    ):
        assert found.mean == pytest.approx(simulated.mean(), abs=5e-3)
        assert found.variance == pytest.approx(simulated.var(), rel=0.02)
        for share in (0.01, 0.05):
            # the saddlepoint is on the safe side by 15% where there are three degrees of freedom
            at = placed(found, float(np.quantile(simulated, 1 - share)))
            assert at.above == pytest.approx(share, rel=0.2)
            at = placed(found, float(np.quantile(simulated, share)))
            assert at.below == pytest.approx(share, rel=0.2)


def placed(ratio: tests.Ratio, value: float) -> tests.Ratio:
    return tests.Ratio(value, ratio.mean, ratio.variance, ratio.ends, ratio.residuals, ratio.matrix)


def test_the_beta_distribution_goes_on_where_the_eigenvalues_end(monkeypatch):
    x = np.stack([np.ones(41), np.linspace(0, 1, 41)], axis=1)
    y = np.random.default_rng(3).normal(size=41) + 1.5 * np.sin(np.linspace(0, 12, 41))
    exact = tests.autocorrelation(fitted(x, y)).above
    monkeypatch.setattr(tests, "FEW", 10)
    assert tests.autocorrelation(fitted(x, y)).above == pytest.approx(exact, rel=0.1)
    assert exact < 0.05


def test_the_saddlepoint_gives_the_f_distribution():
    for a, b, f in [(3, 8, 0.2), (5, 5, 1.0), (4, 20, 3.5), (10, 10, 4.0)]:
        weights = np.concatenate([np.full(a, 1 / a), np.full(b, -f / b)])
        assert tests.positive(weights) == pytest.approx(scipy.stats.f.sf(f, a, b), rel=0.05)
    assert tests.positive(np.array([1.0, 2.0])) == 1.0
    assert tests.positive(np.array([-1.0, -2.0])) == 0.0


def test_slow_waves_are_tested_by_f_against_the_larger_model():
    n = 30
    u = np.linspace(0, 1, n)
    x = np.ones((n, 1))
    y = np.random.default_rng(2).normal(size=n) + np.cos(2 * np.pi * u)
    larger = np.hstack([x, np.cos(np.pi / n * np.outer(np.arange(n) + 0.5, [1, 2, 3, 4]))])
    _, chance = tests.waves(fitted(x, y))
    small, large = fitted(x, y), fitted(larger, y)
    f = (small.sum - large.sum) / (small.dof - large.dof) / (large.sum / large.dof)
    assert small.dof - large.dof == 4
    assert chance == pytest.approx(scipy.stats.f.sf(f, 4, large.dof))
    assert tests.waves(Residuals(np.array([1.0, -1.0]), np.empty((2, 0)))) == (0.0, 1.0)


def test_normality_is_scipys_statistic_and_the_published_percentage_points():
    sample = np.random.default_rng(4).exponential(size=50)
    statistic, chance = tests.anderson_darling(sample)
    z = np.sort((sample - sample.mean()) / sample.std(ddof=1))
    i = np.arange(1, 51)
    assert statistic == pytest.approx(
        -50 - np.sum((2 * i - 1) * (scipy.stats.norm.logcdf(z) + scipy.stats.norm.logsf(z[::-1]))) / 50
    )
    assert chance < 1e-4
    assert tests.shape(sample) == pytest.approx((scipy.stats.skew(sample), scipy.stats.kurtosis(sample)))


@pytest.mark.parametrize("n", [10, 40])
def test_the_probability_of_normality_is_that_of_simulation(n):
    generator = np.random.default_rng(6)
    chances = np.array([tests.anderson_darling(generator.normal(size=n))[1] for _ in range(4000)])
    for share in (0.02, 0.1, 0.5, 0.9):
        assert np.mean(chances < share) == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 4000) + 0.1 * share)


def test_outliers_follow_students_distribution(regression):
    x, _ = regression
    generator = np.random.default_rng(7)
    smallest = np.array([tests.outliers(fitted(x, generator.normal(size=15)), absolute=False).min() for _ in range(4000)])
    assert np.mean(smallest < 0.05) == pytest.approx(0.05, abs=0.012)
    known = np.array([tests.outliers(fitted(x, generator.normal(size=15)), absolute=True).min() for _ in range(4000)])
    assert 0.01 < np.mean(known < 0.05) < 0.055


def test_the_probability_of_cooks_distance_is_that_of_simulation(regression):
    x, y = regression
    generator = np.random.default_rng(8)
    largest = np.array([tests.cook(fitted(x, generator.normal(size=15))).max() for _ in range(20_000)])
    for share in (0.01, 0.05):
        assert tests.cook_chance(fitted(x, y), float(np.quantile(largest, 1 - share))) == pytest.approx(share, rel=0.15)


def test_dispersion_is_that_of_simulated_counts():
    mean = np.geomspace(0.5, 50, 40)
    residuals = [(np.random.default_rng([9, k]).poisson(mean) - mean) / np.sqrt(mean) for k in range(4000)]
    chances = np.array([tests.dispersion(Residuals(one, np.empty((40, 0))), mean) for one in residuals])
    assert np.mean(chances < 0.05) == pytest.approx(0.05, abs=0.015)
    assert np.mean(chances < 0.005) < 0.012


def test_ranks_are_scipys_between_minus_one_and_one():
    values = np.array([3.0, 1.0, 3.0, 2.0, 7.0])
    np.testing.assert_allclose(tests.ranks(values), 2 * (scipy.stats.rankdata(values) - 1) / 4 - 1)
    assert not tests.ranks(np.full(6, 3.7)).any()


# --- clean data -----------------------------------------------------------------------------------------------------------


def test_all_tests_together_are_allotted_at_most_four_percent():
    assert sum(ALLOTTED.values()) <= 0.04 + 1e-12


def drawn(name: str, n: int, generator: np.random.Generator) -> Facts:
    """A model at its minimum with clean errors of known sigma, made linear by hand: what ``find`` gets, without a fit."""
    x = np.linspace(0.3, 8, n)
    columns = {
        "line": [x, np.ones(n)],
        "exponential": [np.exp(-x / 2), 5 * x / 4 * np.exp(-x / 2), np.ones(n)],
        "peak": [g := np.exp(-0.5 * (x - 4) ** 2), 9 * (x - 4) * g, 9 * (x - 4) ** 2 * g],
        "kinetics": [x / (2 + x), -10 * x / (2 + x) ** 2],
    }[name]
    sigma = np.linspace(0.5, 1.5, n)
    jacobian = np.stack(columns, axis=1) / sigma[:, None]
    q, _ = np.linalg.qr(jacobian)
    noise = generator.normal(size=n)
    e = noise - q @ (q.T @ noise)
    p = len(columns)
    return Facts(
        names=("a", "b", "c")[:p], theta=np.ones(p), at_bound=np.zeros(p, dtype=bool), bounds=np.full((2, p), np.nan),
        covariance=np.linalg.inv(jacobian.T @ jacobian), jacobian=jacobian, residual=e, difference=e, prediction=10 * columns[0],
        weight=np.ones(n), x=x, rows=np.arange(n), absolute=True,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["line", "exponential", "peak", "kinetics"])
@pytest.mark.parametrize("n", [6, 12, 50])
def test_clean_data_raise_a_finding_in_fewer_than_one_fit_in_twenty(name, n):
    generator = np.random.default_rng(10)
    alarms = sum(bool(find(drawn(name, n, generator))) for _ in range(600))
    # 4% are allotted; as many by chance as one series in a hundred would show are allowed
    assert alarms <= 0.04 * 600 + 2.3 * math.sqrt(600 * 0.04 * 0.96)


def test_fits_of_clean_data_are_left_alone(t_u, t_c):
    assert gradfit.fit("t_c = w*t_u + b", data={"t_u": t_u, "t_c": t_c}).findings == ()
    found = 0
    for seed in range(60):
        x, y = line(seed)
        found += bool(gradfit.fit("y = w*x + b", data={"x": x, "y": y}, sigma=0.3, absolute_sigma=True).findings)
    assert found <= 6


def test_a_million_rows_raise_no_finding_over_trifles():
    n = 200_000
    x = np.linspace(0, 1, n)
    generator = np.random.default_rng(11)
    noise = generator.normal(size=n)
    noise[1:] += 0.03 * noise[:-1]
    y = 2 * x + 1 + (1 + 0.05 * x) * noise + 0.05 * np.sin(9 * x)
    fit = gradfit.fit("y = w*x + b", data={"x": x, "y": y}, sigma=1.0, absolute_sigma=True)
    assert kinds(fit) == []


# --- faults ---------------------------------------------------------------------------------------------------------------


def test_a_row_six_sigma_off_is_an_outlier_and_named_as_the_user_counts():
    x, y = line(0)
    y[20] += 1.8
    found = the(gradfit.fit("y = w*x + b", data={"x": x, "y": y}), "outliers")
    assert found.rows == (21,)
    assert found.number > 4
    assert found.p_value < ALLOTTED["outliers"]
    assert "row 21" in found.text


def test_rows_keep_their_number_where_others_were_left_out_or_set_apart():
    x, y = line(0)
    y[20] += 3
    y[:3] = np.nan
    fit = gradfit.fit("y = w*x + b", data={"x": x, "y": y}, missing="drop", validation=[5, 6, 30])
    assert the(fit, "outliers").rows == (21,)
    y[5] += 30  # a validation row is not tested
    fit = gradfit.fit("y = w*x + b", data={"x": x, "y": y}, missing="drop", validation=[5, 6, 30])
    assert the(fit, "outliers").rows == (21,)


def test_outliers_that_hide_behind_a_larger_one_are_named_after_it():
    x, y = line(1)
    y[10] += 12
    y[30] -= 2.5
    fit = gradfit.fit("y = w*x + b", data={"x": x, "y": y})
    assert the(fit, "outliers").rows == (11, 31)
    assert kinds(fit) == ["outliers"]


def test_with_measured_errors_few_rows_show_an_outlier():
    x, y = line(2, n=5)
    y[2] += 3
    assert "outliers" not in kinds(gradfit.fit("y = w*x + b", data={"x": x, "y": y}))
    fit = gradfit.fit("y = w*x + b", data={"x": x, "y": y}, sigma=0.3, absolute_sigma=True)
    assert the(fit, "outliers").rows == (3,)


@pytest.mark.parametrize("left", [lambda x: 0.5 * np.sin(2 * x), lambda x: 0.05 * (x - 5) ** 2], ids=["sine", "quadratic"])
def test_what_the_model_misses_is_found_in_the_order_of_the_input(left):
    x, y = line(3, n=100)
    order = np.random.default_rng(0).permutation(100)
    fit = gradfit.fit("y = w*x + b", data={"x": x[order], "y": (y + left(x))[order]})
    assert the(fit, "residual structure").number > 0.1
    assert "non-normal" not in kinds(fit)


def test_with_several_inputs_the_order_is_that_of_the_rows():
    generator = np.random.default_rng(12)
    u, v = generator.normal(size=(2, 80))
    y = u + 2 * v + generator.normal(0, 0.2, 80) + 0.3 * np.sin(np.arange(80) / 5)
    found = the(gradfit.fit("y = a*u + b*v", data={"u": u, "v": v, "y": y}), "residual structure")
    assert "order of the rows" in found.text


def test_differences_of_neighbours_alternate():
    noise = np.random.default_rng(13).normal(size=201)
    x = np.arange(200.0)
    found = the(gradfit.fit("y = a + b*x", data={"x": x, "y": np.diff(noise)}), "residual structure")
    assert found.number < -0.3


def test_correlated_noise_is_structure_until_its_covariance_is_given():
    x = np.linspace(0, 10, 80)
    matrix = 0.09 * np.exp(-np.abs(x[:, None] - x) / 0.5)
    y = 2 * x + 1 + np.linalg.cholesky(matrix) @ np.random.default_rng(14).normal(size=80)
    data = {"x": x, "y": y}
    assert "residual structure" in kinds(gradfit.fit("y = w*x + b", data=data, sigma=0.3, absolute_sigma=True))
    assert kinds(gradfit.fit("y = w*x + b", data=data, sigma=matrix, absolute_sigma=True)) == []


def test_signs_tell_of_structure_that_wild_rows_hide():
    x = np.linspace(0, 10, 120)
    signs = np.sign(np.sin(2 * np.pi * x / 1.7))
    sizes = np.random.default_rng(15).pareto(1.0, 120)
    fit = gradfit.fit("y = w*x + b", data={"x": x, "y": 2 * x + signs * sizes}, loss="huber")
    assert "runs" in the(fit, "residual structure").text


def test_exponential_noise_is_not_normal():
    x = np.linspace(0, 10, 100)
    y = 2 * x + np.random.default_rng(16).exponential(0.3, 100)
    found = the(gradfit.fit("y = w*x + b", data={"x": x, "y": y}), "non-normal")
    assert found.number > 0.5


def test_two_states_have_light_tails():
    x = np.linspace(0, 10, 100)
    y = 2 * x + np.random.default_rng(17).choice([-0.5, 0.5], 100) + np.random.default_rng(18).normal(0, 0.05, 100)
    assert the(gradfit.fit("y = w*x + b", data={"x": x, "y": y}), "non-normal").number < -1


def test_scatter_that_grows_with_the_prediction_is_found_and_goes_with_its_sigma():
    x = np.linspace(1, 10, 80)
    y = 2 * x * (1 + 0.1 * np.random.default_rng(19).normal(size=80))
    assert the(gradfit.fit("y = w*x + b", data={"x": x, "y": y}), "spread").number > 1.5
    assert kinds(gradfit.fit("y = w*x + b", data={"x": x, "y": y}, sigma=0.2 * x)) == []
    falling = the(gradfit.fit("y = w*x + b", data={"x": -x, "y": y}, sigma=0.02 * x[::-1] ** 2), "spread")
    assert falling.number > 1.5 or falling.number < 1 / 1.5


@pytest.mark.parametrize(("sigma", "word"), [(0.15, "too small"), (0.6, "too large")])
def test_measured_errors_are_held_against_the_scatter(sigma, word):
    x, y = line(4, n=60)
    found = the(gradfit.fit("y = w*x + b", data={"x": x, "y": y}, sigma=sigma, absolute_sigma=True), "noise level")
    assert word in found.advice
    assert found.number == pytest.approx((0.3 / sigma) ** 2, rel=0.4)
    assert kinds(gradfit.fit("y = w*x + b", data={"x": x, "y": y}, sigma=sigma)) == []


def test_a_row_without_which_the_answer_would_be_another_is_named_with_its_pull():
    x, y = line(5, n=12)
    x[-1], y[-1] = 25.0, 2 * 25 + 1 - 4.0
    fit = gradfit.fit("y = w*x + b", data={"x": x, "y": y})
    found = the(fit, "influence")
    without = gradfit.fit("y = w*x + b", data={"x": x[:-1], "y": y[:-1]})
    moved = abs(without.values["w"] - fit.values["w"]) / fit.params["w"].stderr
    assert found.rows == (12,)
    assert found.parameters == ("w",)
    assert f"w would change by {moved:.2g} standard errors" in found.text


def test_a_row_that_alone_decides_a_parameter_is_named_whatever_its_residual():
    x, y = line(6, n=12)
    x[-1], y[-1] = 1000.0, 2001.0
    fit = gradfit.fit("y = w*x + b", data={"x": x, "y": y})
    found = the(fit, "influence")
    without = gradfit.fit("y = w*x + b", data={"x": x[:-1], "y": y[:-1]})
    grown = math.sqrt((without.covariance / without.reduced_chi_square)[0, 0] / (fit.covariance / fit.reduced_chi_square)[0, 0])
    assert found.rows == (12,)
    assert f"{grown:.2g} times as large" in found.text


# --- the solution -----------------------------------------------------------------------------------------------------------


def test_a_slope_and_its_intercept_far_away_are_told_to_centre_the_input(t_u, t_c):
    x, y = line(7)
    fit = gradfit.fit("y = w*x + b", data={"x": x + 2000, "y": y})
    found = the(fit, "correlation")
    assert set(found.parameters) == {"w", "b"}
    assert found.number == pytest.approx(fit.correlation[0, 1])
    assert "x - 2005" in found.advice
    centred = gradfit.fit("y = w*(x - 2005) + b", data={"x": x + 2000, "y": y})
    assert centred.findings == ()
    assert abs(gradfit.fit("t_c = w*t_u + b", data={"t_u": t_u, "t_c": t_c}).correlation[0, 1]) < CORRELATED


def test_pairs_beyond_the_threshold_lose_their_curve_when_they_are_rounded():
    # 0.05 errors is what rounding to two digits of an error costs; the narrow direction of a pair at the threshold is narrower
    narrow = np.sqrt(np.linalg.eigvalsh([[1, CORRELATED], [CORRELATED, 1]])[0])
    assert 0.02 < narrow < 0.05


def test_lost_digits_are_told_with_the_condition():
    x, y = line(8)
    fit = gradfit.fit("y = a + b*x + c*x**2 + d*x**3", data={"x": x + 2000, "y": y})
    found = the(fit, "conditioning")
    u = np.vander(x + 2000, 4)
    u = u / np.linalg.norm(u, axis=0)
    assert found.number == pytest.approx(np.linalg.cond(u), rel=1e-3)
    assert found.number > found.threshold == pytest.approx(2**26)


def test_a_parameter_on_its_bound_is_told_with_how_far_the_data_would_go():
    x, y = line(9)
    free = gradfit.fit("y = w*x + b", data={"x": x, "y": y})
    limit = free.values["w"] - 5 * free.params["w"].stderr
    fit = gradfit.fit("y = w*x + b", data={"x": x, "y": y}, bounds={"w": (None, limit)})
    found = the(fit, "at bound")
    assert found.parameters == ("w",)
    assert found.number == pytest.approx(5)
    assert f"about {free.values['w']:.3g}" in found.text
    assert "contradict" in found.advice
    near = gradfit.fit("y = w*x + b", data={"x": x, "y": y}, bounds={"w": (None, free.values["w"] - free.params["w"].stderr)})
    assert "one-sided" in the(near, "at bound").advice


# --- other losses -----------------------------------------------------------------------------------------------------------


def test_a_robust_loss_counts_the_rows_it_holds_down_and_asks_for_no_normality():
    x, y = line(20, n=60)
    y[[10, 40]] += [9.0, -12.0]
    fit = gradfit.fit("y = w*x + b", data={"x": x, "y": y}, loss="soft_l1", f_scale=1.0)
    found = the(fit, "outliers")
    assert found.rows == (41, 11)
    assert "2 of 60 rows count less than half" in found.text
    assert kinds(fit) == ["outliers"]


def test_counts_are_tested_for_their_scatter():
    x = np.linspace(0, 5, 50)
    mean = 40 * np.exp(-x / 2) + 3
    generator = np.random.default_rng(21)
    clean = gradfit.fit("y = a*exp(-x/t) + c", data={"x": x, "y": generator.poisson(mean)}, loss="poisson", start=[30, 2, 2])
    assert clean.findings == ()
    wild = generator.poisson(mean * generator.gamma(4, 0.25, 50))
    fit = gradfit.fit("y = a*exp(-x/t) + c", data={"x": x, "y": wild}, loss="poisson", start=[30, 2, 2])
    assert the(fit, "noise level").number > 1.5
    bow = generator.poisson(mean + 15 * np.exp(-(((x - 3) / 0.4) ** 2)))
    fit = gradfit.fit("y = a*exp(-x/t) + c", data={"x": x, "y": bow}, loss="poisson", start=[30, 2, 2])
    assert "residual structure" in kinds(fit)


def test_a_loss_of_ones_own_has_no_residuals_to_test():
    x, y = line(22)
    y[20] += 30
    fit = gradfit.fit("y = w*x + b", data={"x": x + 2000, "y": y}, loss=lambda f, t: (f - t) ** 4, on_failure="ignore")
    assert set(kinds(fit)) <= {"correlation", "conditioning"}


# --- what has nothing to test -----------------------------------------------------------------------------------------------


def exact(x: np.ndarray) -> np.ndarray:
    return 2 * x + 1


@pytest.mark.parametrize(
    ("formula", "x", "y", "options"),
    [
        ("y = w*x + b", np.arange(20.0), exact(np.arange(20.0)), {}),
        ("y = w*x + b", np.arange(20, dtype="f4"), exact(np.arange(20, dtype="f4") / 7), {}),
        ("y = w*x + b", np.arange(2.0), np.array([1.0, 4.0]), {}),
        ("y = w*x + b", np.arange(4.0), np.array([1.0, 4.0, 0.0, 9.0]), {}),
        ("y = (a + b)*x + c", *line(23), {}),
        ("y = w*x + b", *line(23), {"fixed": {"b": 1.0}}),
        ("y = w*x + b", *line(23), {"tied": {"b": "w/2"}}),
        ("y = w*x + b", *line(23), {"method": "sgd", "epochs": 2}),
        ("y = w*x + b", np.arange(20.0), np.zeros(20), {}),
        ("y = w*x + b", np.arange(20.0), exact(np.arange(20.0)), {"loss": "huber"}),
    ],
    ids=["exact", "single", "n = p", "n = p + 2", "undetermined", "fixed", "tied", "far from the minimum", "zeros", "huber"],
)
@pytest.mark.filterwarnings("ignore::gradfit.FitWarning")
def test_where_nothing_can_be_said_nothing_is_said(formula, x, y, options):
    assert gradfit.fit(formula, data={"x": x, "y": y}, on_failure="ignore", **options).findings == ()


def test_a_network_has_no_findings():
    x, y = line(24)
    y[20] += 30
    fit = gradfit.fit(torch.nn.Linear(1, 1), x[:, None], y, method="adam", epochs=20, on_failure="ignore")
    assert fit.findings == ()


def test_vector_parameters_go_by_their_elements():
    x, y = line(25)
    fit = gradfit.fit(lambda x, c: c[0] * x + c[1], x + 5000, y, start={"c": [1.0, 1.0]})
    assert set(the(fit, "correlation").parameters) == {"c[0]", "c[1]"}


# --- shown and kept -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def troubled() -> gradfit.FitResult:
    x, y = line(26)
    y[20] += 3
    return gradfit.fit("y = w*x + b", data={"x": x + 2000, "y": y}, bounds={"b": (-1e9, 1e9)})


def test_the_report_and_the_page_tell_them(troubled, t_u, t_c):
    assert kinds(troubled) == ["correlation", "outliers"]
    text, page = troubled.report(), troubled.to_html()
    assert "\nFindings\n  - correlation: " in text
    assert "<h2>Findings</h2>" in page
    assert "row 21" in page
    quiet = gradfit.fit("t_c = w*t_u + b", data={"t_u": t_u, "t_c": t_c})
    assert "Findings" not in quiet.report() + quiet.to_html()


def test_they_are_saved_and_loaded_and_older_files_have_none(troubled, tmp_path):
    troubled.save(tmp_path / "fit.json")
    loaded = gradfit.load(tmp_path / "fit.json")
    assert repr(loaded.findings) == repr(troubled.findings)
    older = json.loads(troubled.to_json())
    del older["findings"]
    assert storage.from_json(json.dumps(older)).findings == ()


def test_a_finding_reads_as_one_sentence_after_another(troubled):
    for finding in troubled.findings:
        assert str(finding) == f"{finding.kind}: {finding.text} {finding.advice}"
        assert finding.text.endswith(".")
        assert finding.advice.endswith(".")
