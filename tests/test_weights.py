"""What is known of the target's errors: sigma per point, a covariance matrix, weights of rows; every engine and method alike."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import curve_fit, least_squares

import gradfit

X = np.linspace(0, 4, 40)
DISTANCES = np.abs(X[:, None] - X[None, :])
COVARIANCE = 0.04 * np.exp(-DISTANCES / 0.3) + 0.01 * np.eye(40)
START = [2.0, 1.0, 0.3]
ENGINES = ("native", "torch")


def decay(x, a, b, c):
    return a * np.exp(-b * x) + c


def line(x, w, b):
    return w * x + b


@pytest.fixture(scope="module")
def y() -> np.ndarray:
    return decay(X, 2.5, 1.3, 0.5) + np.random.default_rng(0).multivariate_normal(np.zeros(40), COVARIANCE)


def values(fit: gradfit.FitResult) -> np.ndarray:
    return np.array(list(fit.values.values()))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("absolute", [False, True])
def test_a_covariance_matrix_means_what_it_means_in_scipy(y, engine, absolute):
    fit = gradfit.fit(decay, X, y, start=START, sigma=COVARIANCE, absolute_sigma=absolute, engine=engine)
    popt, pcov = curve_fit(decay, X, y, p0=START, sigma=COVARIANCE, absolute_sigma=absolute, method="trf", xtol=1e-14, ftol=1e-14)
    assert fit.engine == engine
    np.testing.assert_allclose(values(fit), popt, rtol=1e-6)
    np.testing.assert_allclose(fit.covariance, pcov, rtol=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_for_a_line_the_covariance_matrix_gives_generalised_least_squares(y, engine):
    design = np.stack([X, np.ones(40)], axis=1)
    weight = np.linalg.inv(COVARIANCE)
    covariance = np.linalg.inv(design.T @ weight @ design)
    for method in ("lm", "linear"):
        fit = gradfit.fit(line, X, y, sigma=COVARIANCE, absolute_sigma=True, engine=engine, method=method)
        np.testing.assert_allclose(values(fit), covariance @ design.T @ weight @ y, rtol=1e-10)
        np.testing.assert_allclose(fit.covariance, covariance, rtol=1e-10)
    residual = line(X, *values(fit)) - y
    assert fit.chi_square == pytest.approx(residual @ weight @ residual, rel=1e-10)
    ones = np.ones(40)
    mean = (ones @ weight @ y) / (ones @ weight @ ones)
    assert fit.r_squared == pytest.approx(1 - fit.chi_square / ((y - mean) @ weight @ (y - mean)), rel=1e-10)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_diagonal_covariance_is_sigma_per_point(y, engine):
    sigma = np.linspace(0.1, 0.3, 40)
    full = gradfit.fit(decay, X, y, start=START, sigma=np.diag(sigma**2), engine=engine)
    points = gradfit.fit(decay, X, y, start=START, sigma=sigma, engine=engine)
    np.testing.assert_allclose(values(full), values(points), rtol=1e-9)
    np.testing.assert_allclose(full.covariance, points.covariance, rtol=1e-8)
    assert full.chi_square == pytest.approx(points.chi_square, rel=1e-12)
    assert full.r_squared == pytest.approx(points.r_squared, rel=1e-12)


@pytest.mark.parametrize("options", [{"method": "lbfgs"}, {"method": "adam", "learning_rate": 0.05, "epochs": 3000}], ids=str)
def test_every_method_takes_a_covariance_matrix(y, options):
    best = gradfit.fit(decay, X, y, start=START, sigma=COVARIANCE)
    fit = gradfit.fit(decay, X, y, start=START, sigma=COVARIANCE, **options)
    assert fit.status == "converged"
    np.testing.assert_allclose(values(fit), values(best), rtol=1e-4)
    np.testing.assert_allclose(fit.covariance, best.covariance, rtol=1e-2)


def test_bounds_fixed_tied_and_a_split_go_with_a_covariance_matrix(y):
    fit = gradfit.fit(
        decay, X, y, start=START, sigma=COVARIANCE, bounds={"a": (0, 2.5)}, tied={"c": "a/5"}, validation=0.2, seed=1
    )
    assert fit.params["a"].at_bound
    assert np.isfinite(fit.validation_loss)
    assert fit.params["c"].value == pytest.approx(0.5)
    part = fit.record.n
    assert part == 32


def test_a_plain_call_after_one_with_a_matrix_is_plain(y):
    plain = gradfit.fit(decay, X, y, start=START)
    sigma = np.full(40, 2.0)
    gradfit.fit(decay, X, y, start=START, sigma=sigma)
    gradfit.fit(decay, X, y, start=START, sigma=COVARIANCE)
    assert values(gradfit.fit(decay, X, y, start=START, sigma=sigma)) == pytest.approx(values(plain), rel=1e-9)
    assert np.array_equal(values(gradfit.fit(decay, X, y, start=START)), values(plain))


def test_rows_with_a_gap_are_left_out_of_the_covariance_matrix_too(y):
    broken, kept = y.copy(), np.arange(40) != 7
    broken[7] = np.nan
    fit = gradfit.fit(decay, X, broken, start=START, sigma=COVARIANCE, missing="drop")
    rest = gradfit.fit(decay, X[kept], y[kept], start=START, sigma=COVARIANCE[np.ix_(kept, kept)])
    assert np.array_equal(values(fit), values(rest))


# --- weights ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_are_sigma_to_the_power_of_minus_two(y, engine):
    weights = np.random.default_rng(1).uniform(0.5, 2, 40)
    fit = gradfit.fit(decay, X, y, start=START, weights=weights, engine=engine)
    same = gradfit.fit(decay, X, y, start=START, sigma=weights**-0.5, engine=engine)
    np.testing.assert_allclose(values(fit), values(same), rtol=1e-9)
    np.testing.assert_allclose(fit.covariance, same.covariance, rtol=1e-8)
    residual = decay(X, *values(fit)) - y
    assert fit.loss == pytest.approx(np.average(residual**2, weights=weights), rel=1e-12)


@pytest.mark.parametrize("factor", [1e-200, 1e200])
def test_only_ratios_of_weights_matter(y, factor):
    weights = np.linspace(1, 3, 40)
    ours, theirs = (gradfit.fit(decay, X, y, start=START, weights=w) for w in (weights, factor * weights))
    np.testing.assert_allclose(values(ours), values(theirs), rtol=1e-12)
    np.testing.assert_allclose(ours.covariance, theirs.covariance, rtol=1e-10)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("loss", ["squared", "huber", "soft_l1", "cauchy", "arctan", "poisson"])
def test_a_row_of_weight_two_is_that_row_twice(engine, loss):
    counts = np.random.default_rng(2).poisson(20 * np.exp(-X) + 1).astype(float)
    early = X < 1
    start = [15.0, 1.0, 1.0]
    twice = np.r_[np.arange(40), np.flatnonzero(early)]
    fit = gradfit.fit(decay, X, counts, start=start, loss=loss, weights=np.where(early, 2.0, 1.0), engine=engine)
    repeated = gradfit.fit(decay, X[twice], counts[twice], start=start, loss=loss, engine=engine)
    np.testing.assert_allclose(values(fit), values(repeated), rtol=1e-6)
    assert fit.loss == pytest.approx(repeated.loss, rel=1e-9)


def test_rows_of_weight_zero_are_left_out_and_counted(y):
    weights = np.ones(40)
    weights[[3, 9]] = 0
    fit = gradfit.fit(decay, X, y, start=START, weights=weights)
    rest = gradfit.fit(decay, X[weights > 0], y[weights > 0], start=START)
    np.testing.assert_allclose(values(fit), values(rest), rtol=1e-12)
    assert (fit.n, fit.dof) == (38, 35)
    assert "2 rows with weight 0 left out." in fit.warnings


def test_weights_may_be_a_column(y):
    table = {"x": X, "y": y, "w": np.linspace(1, 3, 40)}
    fit = gradfit.fit("y = a*exp(-b*x) + c", data=table, start={"a": 2, "b": 1, "c": 0.3}, weights="w")
    same = gradfit.fit(decay, X, y, start=START, weights=table["w"])
    np.testing.assert_allclose(values(fit), values(same), rtol=1e-9)


# --- losses --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("loss", ["huber", "soft_l1", "cauchy", "arctan"])
@pytest.mark.parametrize("sigma", [None, 0.5])
def test_robust_losses_are_those_of_scipy_least_squares(y, engine, loss, sigma):
    fit = gradfit.fit(decay, X, y, start=START, loss=loss, f_scale=0.3, sigma=sigma, engine=engine)
    unit = 1.0 if sigma is None else sigma
    tight = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15}
    theirs = least_squares(lambda p: (decay(X, *p) - y) / unit, START, loss=loss, f_scale=0.3, **tight)
    np.testing.assert_allclose(values(fit), theirs.x, rtol=1e-5)
    assert fit.loss == pytest.approx(2 * theirs.cost / 40, rel=1e-9)
    assert fit.record.covariance_kind != "least squares"


# --- bad input -----------------------------------------------------------------------------------------------------------

ASYMMETRIC = COVARIANCE + np.triu(COVARIANCE, 1)
GAP = COVARIANCE.copy()
GAP[3, 4] = GAP[4, 3] = np.nan
BAD = {
    "both": ({"sigma": COVARIANCE, "weights": X + 1}, gradfit.DataError, "both sigma and weights"),
    "negative definite": ({"sigma": -COVARIANCE}, gradfit.DataError, "not positive definite"),
    "singular": ({"sigma": np.ones((40, 40))}, gradfit.DataError, "not positive definite"),
    "another size": ({"sigma": COVARIANCE[:5, :5]}, gradfit.DataError, r"shape \(5, 5\) for 40 points"),
    "asymmetric": ({"sigma": ASYMMETRIC}, gradfit.DataError, "symmetric"),
    "NaN beside the diagonal": ({"sigma": GAP}, gradfit.DataError, "2 values that are NaN"),
    "matrix and robust": ({"sigma": COVARIANCE, "loss": "huber"}, gradfit.DataError, "one row at a time"),
    "matrix and batches": ({"sigma": COVARIANCE, "method": "sgd", "batch_size": 4}, gradfit.OptionError, "batch_size"),
    "negative weights": ({"weights": X - 1}, gradfit.DataError, "weights are negative in 10 of 40"),
    "all weights zero": ({"weights": 0 * X}, gradfit.DataError, "all 40 weights are 0"),
    "weights of another length": ({"weights": [1, 2]}, gradfit.DataError, "weights has 2 values for 40"),
    "absolute weights": ({"weights": X + 1, "absolute_sigma": True}, gradfit.OptionError, "weights were given"),
    "NaN among weights": ({"weights": np.where(X > 3, np.nan, 1)}, gradfit.DataError, "weights 10"),
}


@pytest.mark.parametrize("case", BAD)
def test_contradictions_are_refused(y, case):
    options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        gradfit.fit(decay, X, y, start=START, **options)


def test_a_loss_of_one_number_knows_no_weights(y):
    def total(prediction, target):
        return ((prediction - target) ** 2).sum()

    with pytest.raises(gradfit.DataError, match="one number for all rows"):
        gradfit.fit(decay, X, y, start=START, loss=total, weights=X + 1)
