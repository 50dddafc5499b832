"""Profile intervals and contours against closed forms, independent profiles by scipy's refits, and MINOS."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import brentq, least_squares

import gradfit
from gradfit.statistics.profile import REASONS

NORMAL = 1.959963984540054
X = np.linspace(0, 5, 25)
NOISE = np.random.default_rng(11).normal(0, 0.15, 25)
Y = 3 * np.exp(-X / 1.5) + 0.5 + NOISE
# Minuit2 by iminuit 2.33.0: LeastSquares, strategy 2, tol 1e-8, minos(cl=...).
MINOS = {
    0.6826894921370859: {"v": (205.40170812460747, 220.2285255800813), "k": (0.0556056752250114, 0.07367496126551222)},
    0.95: {"v": (198.6385306712789, 227.74163476677379), "k": (0.04829722065686296, 0.08394550135667883)},
}
SIGMA = np.random.default_rng(12).uniform(0.05, 0.25, 25)
START = {"a": 3.0, "b": 0.7, "c": 0.5}


def decay(x, a, b, c):
    return a * torch.exp(-b * x) + c


def decay_numpy(x, a, b, c):
    return a * np.exp(-b * np.asarray(x)) + c


def decay_residuals(theta, weight=1.0, x=X, y=Y):
    return (theta[0] * np.exp(-theta[1] * x) + theta[2] - y) * weight


def saturation(x, v, k):
    return v * x / (k + x)


def lowest(residuals, theta, held):
    """Sum of squares with some parameters held, minimised over the others from where they were; and they, there."""
    free = [place for place in range(len(theta)) if place not in held]

    def whole(point):
        full = np.array(theta, dtype=float)
        full[free] = point
        return full

    if not free:
        return float((residuals(np.array(theta)) ** 2).sum()), np.array(theta)
    found = least_squares(
        lambda point: residuals(whole(point)),
        np.array(theta, dtype=float)[free],
        x_scale="jac",
        xtol=1e-15,
        ftol=1e-15,
        gtol=1e-15,
    )
    return 2 * found.cost, whole(found.x)


def limit(residuals, theta, place, allowed, step):
    """Where the profile has risen by ``allowed``: walk, then a bracketing root finder; scipy only."""
    least, _ = lowest(residuals, theta, [])
    base = (residuals(np.array(theta)) ** 2).sum()
    assert base == pytest.approx(least, rel=1e-9)
    last = np.array(theta, dtype=float)

    def rise(value):
        nonlocal last
        point = last.copy()
        point[place] = value
        total, last = lowest(residuals, point, [place])
        return total - base - allowed

    low = high = theta[place]
    while rise(high) < 0:
        low, high = high, high + step
    last[place] = low
    return brentq(rise, low, high, xtol=1e-13 * max(abs(high), 1e-3), rtol=1e-13)


def reference(residuals, fit, allowed):
    """Profile interval of each parameter."""
    theta = list(fit.values.values())
    sizes = np.sqrt(np.diag(fit.covariance))
    return {
        name: tuple(limit(residuals, theta, place, allowed, sign * sizes[place] / 4) for sign in (-1, 1))
        for place, name in enumerate(fit.values)
    }


def assert_alike(found, expected, rtol=1e-6):
    assert set(found) == set(expected)
    for name, pair in expected.items():
        np.testing.assert_allclose(found[name], pair, rtol=rtol, err_msg=name)


# --- linear models ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.5, 0.95, 0.9999])
@pytest.mark.parametrize("engine", ["native", "torch"])
def test_profile_of_a_linear_model_is_its_t_interval(t_u, t_c, level, engine):
    fit = gradfit.fit("t_c = w*t_u + q*t_u**2 + b", data={"t_u": t_u, "t_c": t_c}, engine=engine)
    t, profile = fit.intervals(level), fit.intervals(level, kind="profile")
    for name, (lower, upper) in t.items():
        np.testing.assert_allclose(profile[name], (lower, upper), rtol=0, atol=1e-9 * (upper - lower))


def test_profile_of_a_linear_model_with_matrix_sigma_is_its_t_interval():
    matrix = 0.04 * (0.5 ** np.abs(np.subtract.outer(range(25), range(25))))
    for absolute in (True, False):
        fit = gradfit.fit("y = a*x + c", data={"x": X, "y": Y}, sigma=matrix, absolute_sigma=absolute)
        for name, pair in fit.intervals(0.9).items():
            np.testing.assert_allclose(fit.intervals(0.9, kind="profile")[name], pair, atol=1e-9 * (pair[1] - pair[0]), rtol=0)


def test_profile_of_thirty_parameters_is_their_t_interval():
    generator = np.random.default_rng(5)
    x = generator.normal(size=(60, 30))
    y = x @ np.arange(30.0) + generator.normal(size=60)

    def plane(x, c):
        return x @ c

    fit = gradfit.fit(plane, x, y, start={"c": np.zeros(30)})
    t, profile = fit.intervals(), fit.intervals(kind="profile")
    assert list(profile) == [f"c[{place}]" for place in range(30)]
    for name, pair in t.items():
        np.testing.assert_allclose(profile[name], pair, rtol=1e-9, atol=1e-8)


def test_profile_of_a_million_rows_is_found():
    x = np.linspace(0, 5, 1_000_000)
    y = 3 * np.exp(-0.7 * x) + 0.5 + np.random.default_rng(0).normal(0, 0.1, len(x))
    fit = gradfit.fit(decay, x, y, start=START)
    for name, pair in fit.intervals().items():  # so many rows: the parabola is as good as the profile
        half = pair[1] - pair[0]
        np.testing.assert_allclose(fit.intervals(kind="profile")[name], pair, rtol=0, atol=1e-2 * half)


# --- nonlinear models ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.6826894921370859, 0.95, 0.999])
def test_profile_is_that_of_scipys_refits(level):
    fit = gradfit.fit(decay, X, Y, start=START)
    allowed = fit.reduced_chi_square * stats.t.ppf(0.5 + level / 2, 22) ** 2
    assert_alike(fit.intervals(level, kind="profile"), reference(decay_residuals, fit, allowed))


@pytest.mark.parametrize("absolute", [False, True])
def test_profile_with_sigma_is_that_of_scipys_refits(absolute):
    fit = gradfit.fit(decay, X, Y, start=START, sigma=SIGMA, absolute_sigma=absolute)
    allowed = NORMAL**2 if absolute else fit.reduced_chi_square * stats.t.ppf(0.975, 22) ** 2
    assert_alike(fit.intervals(kind="profile"), reference(lambda theta: decay_residuals(theta, 1 / SIGMA), fit, allowed))


def test_profile_with_a_covariance_matrix_is_that_of_scipys_refits():
    matrix = 0.02 * (0.6 ** np.abs(np.subtract.outer(range(25), range(25))))
    white = np.linalg.inv(np.linalg.cholesky(matrix))
    fit = gradfit.fit(decay, X, Y, start=START, sigma=matrix, absolute_sigma=True)
    assert_alike(fit.intervals(kind="profile"), reference(lambda theta: white @ decay_residuals(theta), fit, NORMAL**2))


def test_only_the_ratios_of_weights_matter():
    weights = SIGMA**-2
    expected = gradfit.fit(decay, X, Y, start=START, sigma=SIGMA).intervals(kind="profile")
    for factor in (1.0, 1e6):
        assert_alike(gradfit.fit(decay, X, Y, start=START, weights=factor * weights).intervals(kind="profile"), expected)


@pytest.mark.parametrize("level", MINOS)
def test_profile_is_that_of_minos(level):
    x = np.array([0.02, 0.06, 0.11, 0.22, 0.56, 1.1])
    y = np.array([61.5, 102, 131, 155.5, 196, 203.5])
    fit = gradfit.fit(saturation, x, y, start={"v": 200, "k": 0.1}, sigma=8.0, absolute_sigma=True)
    assert_alike(fit.intervals(level, kind="profile"), MINOS[level], rtol=1e-4)


def test_profile_of_counts_is_that_of_an_independent_deviance():
    counts = np.random.default_rng(3).poisson(20 * np.exp(-X) + 2).astype(float)
    fit = gradfit.fit(decay, X, counts, start={"a": 20, "b": 1, "c": 2}, loss="poisson")

    def deviance_roots(theta):
        mean = np.maximum(theta[0] * np.exp(-theta[1] * X) + theta[2], 1e-12)
        log = np.where(counts > 0, counts * np.log(np.where(counts > 0, counts, 1) / mean), 0.0)
        return np.sign(mean - counts) * np.sqrt(np.maximum(2 * (mean - counts + log), 0))

    assert_alike(fit.intervals(kind="profile"), reference(deviance_roots, fit, NORMAL**2), rtol=1e-5)


@pytest.mark.parametrize(
    ("model", "options"),
    [(decay, {"engine": "torch"}), (decay_numpy, {}), (decay, {"method": "adam", "epochs": 20000, "learning_rate": 0.05})],
    ids=["torch", "numpy", "adam"],
)
def test_every_engine_and_method_finds_the_same_profile(model, options):
    expected = gradfit.fit(decay, X, Y, start=START).intervals(kind="profile")
    assert_alike(gradfit.fit(model, X, Y, start=START, **options).intervals(kind="profile"), expected, rtol=1e-5)


def test_a_fit_in_single_precision_has_its_profile_in_double():
    single = gradfit.fit(decay, X.astype("f4"), Y.astype("f4"), start=START, dtype="float32")
    double = gradfit.fit(decay, X.astype("f4").astype(float), Y.astype("f4").astype(float), start=START)
    assert_alike(single.intervals(kind="profile"), double.intervals(kind="profile"), rtol=1e-4)


# --- units and parametrisation --------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(st.floats(-8, 8), st.floats(-8, 8))
def test_units_do_not_matter(x_power, y_power):
    x_unit, y_unit = 10**x_power, 10**y_power
    own = gradfit.fit(decay, X, Y, start=START).intervals(kind="profile")
    start = {"a": 3 * y_unit, "b": 0.7 / x_unit, "c": 0.5 * y_unit}
    found = gradfit.fit(decay, X * x_unit, Y * y_unit, start=start).intervals(kind="profile")
    units = {"a": y_unit, "b": 1 / x_unit, "c": y_unit}
    assert_alike(found, {name: tuple(np.array(pair) * units[name]) for name, pair in own.items()})


def test_the_way_a_model_is_written_does_not_matter():
    plain = gradfit.fit(decay, X, Y, start=START).intervals(kind="profile")
    data = {"x": X, "y": Y}
    logarithm = gradfit.fit("y = a*exp(-exp(l)*x) + c", data=data, start={"a": 3, "l": -0.3, "c": 0.5}).intervals(kind="profile")
    inverse = gradfit.fit("y = a*exp(-x/t) + c", data=data, start={"a": 3, "t": 1.4, "c": 0.5}).intervals(kind="profile")
    np.testing.assert_allclose(np.exp(logarithm["l"]), plain["b"], rtol=1e-6)
    np.testing.assert_allclose(1 / np.array(inverse["t"])[::-1], plain["b"], rtol=1e-6)
    for name in ("a", "c"):
        np.testing.assert_allclose([logarithm[name], inverse[name]], [plain[name]] * 2, rtol=1e-6)


# --- sides that have no limit, bounds, other minima ---------------------------------------------------------------------


def test_points_below_saturation_set_no_upper_limit_and_a_lower_one():
    x, y = np.array([0.01, 0.02, 0.03, 0.04, 0.05]), np.array([1.0, 2.2, 2.7, 4.3, 4.8])
    fit = gradfit.fit(saturation, x, y, start={"v": 50, "k": 0.5})
    found = fit.profile()
    allowed = fit.reduced_chi_square * stats.t.ppf(0.975, 3) ** 2
    theta = list(fit.values.values())
    for place, (name, (lower, upper)) in enumerate(found.intervals.items()):
        assert upper == math.inf
        assert found.reasons[name] == "the data set it no limit on this side"
        step = -theta[place] / 50  # beyond 0 stands a pole, and beyond that another fit as good
        assert lower == pytest.approx(limit(lambda p: p[0] * x / (p[1] + x) - y, theta, place, allowed, step), rel=1e-6)


def test_an_open_side_is_open_however_the_model_is_written():
    x, y = np.array([0.01, 0.02, 0.03, 0.04, 0.05]), np.array([1.0, 2.2, 2.7, 4.3, 4.8])
    fit = gradfit.fit("y = exp(l)*x/(exp(m) + x)", data={"x": x, "y": y}, start={"l": 4.0, "m": -0.5})
    plain = gradfit.fit(saturation, x, y, start={"v": 50, "k": 0.5}).intervals(kind="profile")
    found = fit.intervals(kind="profile")
    np.testing.assert_allclose(np.exp([found["l"], found["m"]]), [plain["v"], plain["k"]], rtol=1e-5)


def test_a_bound_that_comes_first_is_the_limit():
    free = gradfit.fit(decay, X, Y, start=START).intervals(kind="profile")
    fit = gradfit.fit(decay, X, Y, start=START, bounds={"b": (0.55, None), "c": (None, 5.0)})
    lower, upper = fit.intervals(kind="profile")["b"]
    assert lower == 0.55
    assert upper == pytest.approx(free["b"][1], rel=1e-6)
    assert fit.profile().reasons == {}


def test_a_bound_of_another_parameter_narrows_the_profile():
    fit = gradfit.fit(decay, X, Y, start=START, bounds={"c": (0.3, 0.5)})
    allowed = fit.reduced_chi_square * stats.t.ppf(0.975, 22) ** 2
    lower, upper = fit.intervals(kind="profile")["b"]
    theta = np.array(list(fit.values.values()))
    for edge in (lower, upper):
        found = least_squares(
            lambda p, edge=edge: decay_residuals([p[0], edge, p[1]]),
            theta[[0, 2]],
            bounds=([-9, 0.3], [9, 0.5]),
            xtol=1e-15,
            ftol=1e-15,
            gtol=1e-15,
        )
        assert 2 * found.cost - fit.chi_square == pytest.approx(allowed, rel=1e-5)


def test_an_estimate_on_its_bound_has_an_interval_to_one_side():
    fit = gradfit.fit(decay, X, Y, start=START | {"b": 0.5}, bounds={"b": (None, 0.6)})
    assert fit.params["b"].at_bound
    lower, upper = fit.intervals(kind="profile")["b"]
    assert upper == 0.6
    total, _ = lowest(decay_residuals, [3, lower, 0.5], [1])
    dof = fit.dof
    allowed = fit.chi_square / dof * stats.t.ppf(0.975, dof) ** 2
    assert total - fit.chi_square == pytest.approx(allowed, rel=1e-5)


def test_a_lower_minimum_on_the_way_is_told():
    x = np.linspace(0, 10, 40)
    y = np.sin(1.2 * x) + np.random.default_rng(0).normal(0, 0.5, 40)
    away = gradfit.fit("y = a*sin(b*x)", data={"x": x, "y": y}, start={"a": 0.3, "b": 2.2})
    best = gradfit.fit("y = a*sin(b*x)", data={"x": x, "y": y}, start={"a": 1.0, "b": 1.2})
    assert away.success
    assert away.chi_square > 1.5 * best.chi_square
    with pytest.warns(gradfit.FitWarning, match=r"no profile interval of b: the loss falls below"):
        found = away.intervals(kind="profile")
    assert math.isnan(found["b"][0])


def test_of_a_profile_with_many_minima_the_interval_holds_the_fitted_one():
    x = np.linspace(0, 10, 12)
    y = np.sin(2.1 * x) + np.random.default_rng(1).normal(0, 0.7, 12)
    fit = gradfit.fit("y = sin(b*x)", data={"x": x, "y": y}, start={"b": 2.1})
    allowed = fit.reduced_chi_square * stats.t.ppf(0.975, 11) ** 2
    grid = np.linspace(0.5, 4, 350_001)
    inside = ((np.sin(np.outer(grid, x)) - y) ** 2).sum(axis=1) - fit.chi_square <= allowed
    middle = int(np.searchsorted(grid, fit.values["b"]))
    lower = middle - int(np.argmin(inside[middle::-1]))
    upper = middle + int(np.argmin(inside[middle:]))
    np.testing.assert_allclose(fit.intervals(kind="profile")["b"], grid[[lower, upper]], atol=2e-5)


def test_a_fit_that_jumps_to_another_minimum_is_not_taken_for_the_limit():
    """With c held high the best fit is one that grows; the interval ends where the fit that decays has risen."""
    x = np.linspace(0, 5, 30)
    y = 0.2 * np.exp(-x / 1.3) + 1 + np.random.default_rng(0).normal(0, 0.2, 30)
    fit = gradfit.fit("y = a*exp(-x/t) + c", data={"x": x, "y": y}, start={"a": 0.2, "t": 1.3, "c": 1})
    found = fit.intervals(kind="profile")
    allowed = fit.reduced_chi_square * stats.t.ppf(0.975, 27) ** 2
    upper = limit(lambda p: p[0] * np.exp(-x / p[1]) + p[2] - y, list(fit.values.values()), 2, allowed, 0.005)
    assert found["c"][1] == pytest.approx(upper, rel=1e-6)
    assert found["t"][1] == math.inf


# --- parameters that are not free -----------------------------------------------------------------------------------------


def test_fixed_parameters_are_points_and_tied_ones_follow():
    fit = gradfit.fit(
        "y = a*exp(-b*x) + c + 0*(d + e + f + g)", data={"x": X, "y": Y}, start=START,
        fixed={"e": 2.0}, tied={"d": "b**2", "f": "a*b", "g": "3*e"},
    )  # fmt: skip
    with pytest.warns(gradfit.FitWarning, match="no profile interval of f: it follows several parameters"):
        found = fit.intervals(kind="profile")
    assert_alike({name: found[name] for name in "abc"}, gradfit.fit(decay, X, Y, start=START).intervals(kind="profile"))
    assert found["e"] == (2.0, 2.0)
    assert found["g"] == (6.0, 6.0)
    np.testing.assert_allclose(found["d"], np.square(found["b"]), rtol=1e-12)
    assert math.isnan(found["f"][0])


def test_a_tie_that_is_flat_at_the_fit_still_follows():
    x = np.array([-2.0, -1.0, 1.0, 2.0])
    fit = gradfit.fit("y = a*x + 0*d", data={"x": x, "y": [1.0, 2.0, 2.0, 1.0]}, tied={"d": "a**2"})
    found = fit.intervals(kind="profile")
    assert fit.values["a"] == pytest.approx(0, abs=1e-15)
    assert found["d"][1] == pytest.approx(found["a"][1] ** 2)


def test_undetermined_parameters_have_no_limits_and_the_others_theirs():
    data = {"x": X, "y": 3 * X + 1 + NOISE}
    with pytest.warns(gradfit.UndeterminedWarning):
        fit = gradfit.fit("y = (a + b)*x + c", data=data)
    found = fit.profile()
    assert found.intervals["a"] == found.intervals["b"] == (-math.inf, math.inf)
    assert "a + b" in found.reasons["a"]
    plain = gradfit.fit("y = a*x + c", data=data)
    # one more parameter was counted: one degree of freedom less
    half = stats.t.ppf(0.975, 22) * plain.params["c"].stderr * math.sqrt(23 / 22)
    np.testing.assert_allclose(found.intervals["c"], [plain.values["c"] - half, plain.values["c"] + half], rtol=1e-7)


# --- no profile -------------------------------------------------------------------------------------------------------------


def test_a_fit_that_did_not_converge_has_nan_and_says_why():
    with pytest.warns(gradfit.FitWarning):
        fit = gradfit.fit(decay, X, Y, start={"a": 1, "b": 5, "c": 9}, max_steps=1)
    with pytest.warns(gradfit.FitWarning, match="did not reach its minimum"):
        found = fit.intervals(kind="profile")
    assert all(math.isnan(side) for pair in found.values() for side in pair)
    assert np.isnan(fit.contour("a", "b", points=8)).all()


def test_as_many_points_as_parameters_have_no_profile():
    with pytest.warns(gradfit.UndeterminedWarning):
        fit = gradfit.fit("y = a*x + b", data={"x": [0.0, 1.0], "y": [1.0, 3.0]})
    assert "degree of freedom" in fit.profile().reasons["a"]
    assert np.isnan(fit.profile().intervals["a"]).all()


@pytest.mark.parametrize("formula", ["y = 2*a*x + c", "y = a*exp(-b*x) + c"])
def test_exact_data_have_no_profile_and_it_is_said_why(formula):
    y = 2 * X + 1 if "exp" not in formula else 3 * np.exp(-X) + 1
    fit = gradfit.fit(formula, data={"x": X, "y": y})
    found = fit.profile()
    assert all("rounding" in reason for reason in found.reasons.values())
    assert np.isnan(list(found.intervals.values())).all()


def test_measured_errors_of_exact_data_have_a_profile():
    fit = gradfit.fit("y = a*x + c", data={"x": X, "y": 2 * X + 1}, sigma=0.1, absolute_sigma=True)
    for name, pair in fit.intervals().items():
        np.testing.assert_allclose(fit.intervals(kind="profile")[name], pair, rtol=1e-9)


@pytest.mark.parametrize("loss", ["huber", "cauchy", lambda prediction, target: (prediction - target) ** 4])
def test_a_loss_that_is_no_likelihood_has_no_profile(loss):
    fit = gradfit.fit(decay, X, Y, start=START, loss=loss)
    for refused in (lambda: fit.intervals(kind="profile"), lambda: fit.contour("a", "b")):
        with pytest.raises(gradfit.OptionError, match="needs a likelihood"):
            refused()


def test_weighted_counts_have_no_profile():
    fit = gradfit.fit("y = a*x + 1", data={"x": X, "y": np.arange(25.0)}, loss="poisson", weights=SIGMA)
    with pytest.raises(gradfit.OptionError, match="needs a likelihood"):
        fit.profile()


@pytest.mark.parametrize("level", [0, 1, -0.5, 95, "0.95", True, math.nan])
def test_a_level_that_is_none_is_refused(level):
    fit = gradfit.fit("y = a*x + c", data={"x": X, "y": Y})
    with pytest.raises(gradfit.OptionError, match="level"):
        fit.intervals(level, kind="profile")


def test_unknown_kinds_and_options_are_refused_by_name():
    fit = gradfit.fit("y = a*x + c", data={"x": X, "y": Y})
    with pytest.raises(gradfit.OptionError, match="profile"):
        fit.intervals(kind="profil")
    with pytest.raises(gradfit.OptionError, match="resamples"):
        fit.intervals(kind="profile", resamples=10)


def test_a_loaded_result_has_no_profile(tmp_path):
    gradfit.fit("y = a*x + c", data={"x": X, "y": Y}).save(tmp_path / "fit.json")
    loaded = gradfit.load(tmp_path / "fit.json")
    for refused in (loaded.profile, lambda: loaded.contour("a", "c"), loaded.bootstrap):
        with pytest.raises(gradfit.ModelError, match="fit again"):
            refused()


def test_every_way_a_ray_fails_has_its_sentence():
    assert all(reason and not reason.endswith(".") for reason in REASONS.values())


# --- contours ---------------------------------------------------------------------------------------------------------------


def test_points_of_a_contour_lie_where_the_region_ends():
    fit = gradfit.fit(decay, X, Y, start=START)
    allowed = 2 * fit.reduced_chi_square * stats.f.ppf(0.95, 2, 22)
    edge = fit.contour("b", "c", points=16)
    assert edge.shape == (16, 2)
    for b, c in edge:
        total, _ = lowest(decay_residuals, [3, b, c], [1, 2])
        assert total - fit.chi_square == pytest.approx(allowed, rel=1e-6)


def test_a_contour_of_a_line_is_its_ellipse(t_u, t_c):
    fit = gradfit.fit("t_c = w*t_u + b", data={"t_u": t_u, "t_c": t_c})
    edge = fit.contour("w", "b", level=0.9, points=12) - np.array(list(fit.values.values()))
    square = np.einsum("ij,jk,ik->i", edge, np.linalg.inv(fit.covariance), edge)
    np.testing.assert_allclose(square, 2 * stats.f.ppf(0.9, 2, 9), rtol=1e-7)
    turning = np.unwrap(np.arctan2(*(np.linalg.solve(np.linalg.cholesky(fit.covariance), edge.T)[::-1])))
    assert (np.diff(turning) > 0).all()  # counter-clockwise


def test_a_contour_of_measured_errors_uses_chi_square(t_u, t_c):
    fit = gradfit.fit("t_c = w*t_u + b", data={"t_u": t_u, "t_c": t_c}, sigma=2.0, absolute_sigma=True)
    edge = fit.contour("w", "b", points=8) - np.array(list(fit.values.values()))
    square = np.einsum("ij,jk,ik->i", edge, np.linalg.inv(fit.covariance), edge)
    np.testing.assert_allclose(square, stats.chi2.ppf(0.95, 2), rtol=1e-7)


def test_a_contour_stands_on_a_bound_and_is_nan_where_it_is_open():
    fit = gradfit.fit(decay, X, Y, start=START, bounds={"b": (0.55, None)})
    edge = fit.contour("b", "c", points=16)
    assert np.isfinite(edge).all()
    assert edge[:, 0].min() == 0.55
    x, y = np.array([0.01, 0.02, 0.03, 0.04, 0.05]), np.array([1.0, 2.2, 2.7, 4.3, 4.8])
    edge = gradfit.fit(saturation, x, y, start={"v": 50, "k": 0.5}).contour("v", "k", points=16)
    assert np.isnan(edge).any(axis=1).any()


@pytest.mark.parametrize(
    ("names", "options", "told"),
    [
        (("a", "q"), {}, "'q'"),
        (("a", "a"), {}, "two different"),
        (("a", "b"), {"points": 3}, "points"),
        (("a", "b"), {"points": 8.0}, "points"),
        (("a", "b"), {"level": 2}, "level"),
        (("a", "e"), {}, "'e'"),
    ],
)
def test_a_contour_of_what_is_none_is_refused(names, options, told):
    fit = gradfit.fit("y = a*exp(-b*x) + c + 0*e", data={"x": X, "y": Y}, start=START, fixed={"e": 1.0})
    with pytest.raises(gradfit.OptionError, match=told):
        fit.contour(*names, **options)


def test_the_figure_given_to_intervals_is_the_profile_at_that_level():
    fit = gradfit.fit(decay, X, Y, start=START)
    found = fit.profile(0.8)
    assert found.level == 0.8
    assert dict(found.intervals) == fit.intervals(0.8, kind="profile")
