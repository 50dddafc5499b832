"""The bootstrap against direct computations, closed forms and refits by scipy; degenerate resamples, threads, interrupts."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import curve_fit, minimize

import gradfit
from gradfit.drivers import monitor, resampled

X = np.linspace(0, 5, 40)
Y = 3 * np.exp(-0.7 * X) + 0.5 + np.random.default_rng(11).normal(0, 0.15, 40)
START = {"a": 3.0, "b": 0.7, "c": 0.5}
LINE = 2 * X + 1 + np.random.default_rng(2).normal(0, 0.3, 40)
SIGMA = np.random.default_rng(3).uniform(0.1, 0.5, 40)


def decay(x, a, b, c):
    return a * torch.exp(-b * x) + c


def decay_numpy(x, a, b, c):
    return a * np.exp(-b * np.asarray(x)) + c


def line_fit(**options):
    return gradfit.fit("y = a*x + c", data={"x": X, "y": LINE}, **options)


def weighted_line(x, y, sigma):
    """Estimate and standard errors of a line, by the normal equations of Q R."""
    design, target = np.column_stack([x, np.ones(len(x))]) / sigma[:, None], y / sigma
    q, r = np.linalg.qr(design)
    theta = np.linalg.solve(r, q.T @ target)
    s2 = ((design @ theta - target) ** 2).sum() / (len(x) - 2)
    return theta, np.sqrt(np.diag(s2 * np.linalg.inv(r.T @ r)))


# --- what is drawn, and fitted ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [None, SIGMA], ids=["plain", "sigma"])
def test_pairs_are_the_fits_of_the_rows_drawn(sigma):
    found = line_fit(sigma=sigma).bootstrap(50, scheme="pairs", seed=4)
    index = np.random.default_rng(4).integers(0, 40, (50, 40))
    unit = np.ones(40) if sigma is None else sigma
    for rows, sample, stderr in zip(index, found.samples, found.stderrs, strict=True):
        theta, errors = weighted_line(X[rows], LINE[rows], unit[rows])
        np.testing.assert_allclose(sample, theta, rtol=1e-9)
        np.testing.assert_allclose(stderr, errors, rtol=1e-9)


def test_residuals_are_modified_centred_and_drawn_with_replacement():
    fit = line_fit()
    found = fit.bootstrap(50, seed=5)
    design = np.column_stack([X, np.ones(40)])
    hat = design @ np.linalg.inv(design.T @ design) @ design.T
    prediction = hat @ LINE
    pool = (LINE - prediction) / np.sqrt(1 - np.diag(hat))
    pool -= pool.mean()
    index = np.random.default_rng(5).integers(0, 40, (50, 40))
    expected = np.linalg.lstsq(design, (prediction + pool[index]).T, rcond=None)[0].T
    np.testing.assert_allclose(found.samples, expected, rtol=1e-9)
    assert found.scheme == "residual"
    assert found.failed == 0


@pytest.mark.parametrize("absolute", [False, True])
def test_parametric_errors_have_the_variance_assumed(absolute):
    fit = line_fit(sigma=SIGMA, absolute_sigma=absolute)
    found = fit.bootstrap(30, scheme="parametric", seed=6)
    deviation = 1.0 if absolute else math.sqrt(fit.reduced_chi_square)
    target = fit.predict(X) + SIGMA * deviation * np.random.default_rng(6).standard_normal((30, 40))
    expected = [weighted_line(X, one, SIGMA)[0] for one in target]
    np.testing.assert_allclose(found.samples, expected, rtol=1e-9)


def test_parametric_counts_are_poisson_numbers_of_the_fitted_mean():
    counts = np.random.default_rng(3).poisson(20 * np.exp(-X) + 2).astype(float)
    fit = gradfit.fit(decay, X, counts, start={"a": 20, "b": 1, "c": 2}, loss="poisson")
    found = fit.bootstrap(6, seed=7)
    assert found.scheme == "parametric"
    drawn = np.random.default_rng(7).poisson(fit.predict(X), (6, 40))
    for target, sample in zip(drawn, found.samples, strict=True):

        def likelihood(theta, target=target):
            mean = decay_numpy(X, *theta)
            return (mean - target * np.log(mean)).sum() if (mean > 0).all() else math.inf

        best = minimize(
            likelihood, list(fit.values.values()), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 5000}
        )
        errors = np.array([fit.params[name].stderr for name in "abc"])
        assert (np.abs(sample - best.x) / errors).max() < 1e-3


@pytest.mark.parametrize(
    ("model", "options"), [(decay, {}), (decay, {"engine": "torch"}), (decay_numpy, {}), (decay, {"dtype": "float32"})],
    ids=["native", "torch", "numpy", "float32"],
)  # fmt: skip
def test_refits_are_those_of_curve_fit(model, options):
    fit = gradfit.fit(model, X, Y, start=START, **options)
    found = fit.bootstrap(12, scheme="pairs", seed=8)
    index = np.random.default_rng(8).integers(0, 40, (12, 40))
    for rows, sample, stderr in zip(index, found.samples, found.stderrs, strict=True):
        popt, pcov = curve_fit(decay_numpy, X[rows], Y[rows], p0=list(START.values()), ftol=1e-14, xtol=1e-14, gtol=1e-14)
        errors = np.sqrt(np.diag(pcov))
        assert (np.abs(sample - popt) / errors).max() < 1e-3
        np.testing.assert_allclose(stderr, errors, rtol=2e-3)


def test_scatter_of_a_line_is_its_covariance():
    fit = line_fit()
    for scheme in ("residual", "parametric"):
        found = fit.bootstrap(20_000, scheme=scheme)
        np.testing.assert_allclose(found.covariance, fit.covariance, rtol=0.05)  # 1% by chance, and by the residuals at hand
        np.testing.assert_allclose(list(found.stderr.values()), np.sqrt(np.diag(fit.covariance)), rtol=0.03)


def test_scatter_with_a_covariance_matrix_is_the_covariance():
    matrix = 0.04 * (0.5 ** np.abs(np.subtract.outer(range(40), range(40))))
    fit = line_fit(sigma=matrix, absolute_sigma=True)
    for scheme in ("residual", "parametric"):
        found = fit.bootstrap(400, scheme=scheme)
        scale = fit.reduced_chi_square if scheme == "residual" else 1.0
        np.testing.assert_allclose(np.diag(found.covariance) / np.diag(fit.covariance), scale, rtol=0.25)
    with pytest.raises(gradfit.OptionError, match="cannot be drawn one by one"):
        fit.bootstrap(scheme="pairs")


# --- bits, threads, interrupts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["residual", "pairs", "parametric"])
def test_same_seed_same_bits_whatever_the_threads_and_the_chunks(scheme, monkeypatch):
    fit = gradfit.fit(decay, X, Y, start=START)
    first = fit.bootstrap(101, scheme=scheme, seed=9, threads=1)
    others = [fit.bootstrap(101, scheme=scheme, seed=9, threads=threads) for threads in (2, 7)]
    for chunk in (40, 40 * 13):
        monkeypatch.setattr(resampled, "CHUNK", chunk)
        others.append(fit.bootstrap(101, scheme=scheme, seed=9, threads=3))
    for other in others:
        assert other.samples.tobytes() == first.samples.tobytes()
        assert other.stderrs.tobytes() == first.stderrs.tobytes()
    assert fit.bootstrap(101, scheme=scheme, seed=10).samples.tobytes() != first.samples.tobytes()


def test_an_interrupt_ends_it_at_once(monkeypatch):
    fit = gradfit.fit(decay, X, Y, start=START)
    monkeypatch.setattr(resampled, "CHUNK", 40)
    seen = []

    def interrupted(*arguments, **options):
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    original = resampled.refit
    monkeypatch.setattr(resampled, "refit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit.bootstrap(1000, threads=1)
    assert len(seen) == 3


def test_an_interrupt_inside_a_model_passes_through():
    calls = []

    def model(x, a, c):
        calls.append(1)
        if len(calls) > limit:
            raise KeyboardInterrupt
        return np.interp(x, x, a * x + c)

    limit = 10**9
    fit = gradfit.fit(model, X, LINE)
    limit = len(calls) + 50
    with pytest.raises(KeyboardInterrupt):
        fit.bootstrap(1000)
    assert len(calls) == limit + 1


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_appears_on_a_terminal_and_never_elsewhere(monkeypatch):
    monkeypatch.setattr(monitor, "PATIENCE", -1.0)
    monkeypatch.setattr(monitor, "REFRESH", 0.0)
    monkeypatch.setattr(resampled, "CHUNK", 400)
    monkeypatch.setenv("TERM", "xterm")
    fit = line_fit()
    for screen, options, shown in (
        (Terminal(), {}, True),
        (Terminal(), {"progress": False}, False),
        (io.StringIO(), {}, False),
    ):
        monkeypatch.setattr("sys.stderr", screen)
        fit.bootstrap(100, **options)
        assert ("refitting" in screen.getvalue()) is shown


def test_no_bar_before_the_first_second(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr(monitor, "PATIENCE", 1e6)
    line_fit().bootstrap(100)
    assert "refitting" not in screen.getvalue()


# --- failures are counted ---------------------------------------------------------------------------------------------------


def test_resamples_that_leave_a_parameter_open_are_counted_not_used():
    x, y = np.array([0.0, 1.0, 2.0]), np.array([0.1, 0.9, 2.2])
    fit = gradfit.fit("y = a*x + c", data={"x": x, "y": y})
    index = np.random.default_rng(0).integers(0, 3, (900, 3))
    useless = int((np.ptp(index, axis=1) == 0).sum())
    assert useless > 50
    found = fit.bootstrap(900, scheme="pairs")
    assert found.failed == useless
    assert len(found.samples) == 900 - useless
    assert f"{useless} more failed" in repr(found)
    with pytest.warns(gradfit.FitWarning, match=rf"{useless} of 900 resampled fits did not converge, or not determine"):
        fit.intervals(kind="bootstrap", resamples=900, scheme="pairs")


def test_a_failing_model_is_counted():
    def model(x, a, c):
        return a * torch.sqrt(x - 0.5 * (a > 2.05)) + c  # not finite at x = 0 for a large slope

    x = np.concatenate([np.zeros(3), np.linspace(0.6, 5, 37)])
    y = 2 * np.sqrt(x) + 1 + np.random.default_rng(0).normal(0, 0.3, 40)
    fit = gradfit.fit(model, x, y, start={"a": 2.0, "c": 1.0}, on_failure="ignore")
    if fit.success:
        found = fit.bootstrap(100)
        assert found.failed + len(found.samples) == 100
        assert np.isfinite(found.samples).all()


def test_a_fit_that_did_not_converge_has_nothing_to_resample():
    with pytest.warns(gradfit.FitWarning):
        fit = gradfit.fit(decay, X, Y, start={"a": 1, "b": 5, "c": 9}, max_steps=1)
    with pytest.raises(gradfit.FitError, match="nothing to resample: the fit did not reach its minimum"):
        fit.bootstrap()


@pytest.mark.parametrize("scheme", ["residual", "pairs", "parametric"])
def test_as_many_points_as_parameters_leave_nothing_to_resample(scheme):
    with pytest.warns(gradfit.UndeterminedWarning):
        fit = gradfit.fit("y = a*x + b", data={"x": [0.0, 1.0], "y": [1.0, 3.0]})
    with pytest.raises(gradfit.FitError, match="no degree of freedom"):
        fit.bootstrap(scheme=scheme)


def test_as_many_points_as_parameters_with_measured_errors_can_be_drawn_from_these():
    fit = gradfit.fit("y = a*x + b", data={"x": [0.0, 1.0], "y": [1.0, 3.0]}, sigma=0.1, absolute_sigma=True)
    with pytest.raises(gradfit.FitError, match="no degree of freedom"):
        fit.bootstrap()
    found = fit.bootstrap(5000, scheme="parametric")
    assert found.stderr["a"] == pytest.approx(0.1 * math.sqrt(2), rel=0.05)


@pytest.mark.parametrize("target", [2 * X + 1, 0.1 * X + 0.3], ids=["zero residuals", "rounding"])
def test_exact_data_leave_nothing_to_resample(target):
    fit = gradfit.fit("y = a*x + c", data={"x": X, "y": target})
    with pytest.raises(gradfit.FitError, match="rounding"):
        fit.bootstrap()


def test_undetermined_parameters_have_no_interval_and_the_others_theirs():
    with pytest.warns(gradfit.UndeterminedWarning):
        fit = gradfit.fit("y = (a + b)*x + c", data={"x": X, "y": LINE})
    found = fit.bootstrap(200)
    assert found.failed == 0
    assert np.isnan(found.samples[:, :2]).all()
    assert "a + b" in found.reasons["a"]
    with pytest.warns(gradfit.FitWarning, match=r"no bootstrap interval of a, b: only a \+ b"):
        intervals = fit.intervals(kind="bootstrap", resamples=200)
    assert np.isnan(intervals["a"]).all()
    plain = line_fit().bootstrap(200)
    assert "a" not in plain.reasons
    np.testing.assert_allclose(found.samples[:, 2], plain.samples[:, 1], rtol=1e-6)


# --- schemes and losses -----------------------------------------------------------------------------------------------------


def test_losses_have_the_scheme_that_suits_them():
    counts = np.random.default_rng(3).poisson(5 * np.exp(-X) + 2).astype(float)
    expected = [
        ({}, Y, "residual"),
        ({"loss": "huber"}, Y, "residual"),
        ({"loss": lambda prediction, target: (prediction - target) ** 2 + (prediction - target) ** 4}, Y, "pairs"),
        ({"loss": "poisson"}, counts, "parametric"),
        ({"loss": "poisson", "weights": SIGMA}, counts, "pairs"),
    ]
    for options, target, scheme in expected:
        assert gradfit.fit(decay, X, target, start=START, **options).bootstrap(3).scheme == scheme


def test_schemes_that_do_not_suit_a_loss_are_refused():
    counts = gradfit.fit("y = a + 0*x", data={"x": X, "y": np.arange(40.0)}, loss="poisson")
    robust = gradfit.fit("y = a*x + c", data={"x": X, "y": LINE}, loss="huber")
    with pytest.raises(gradfit.OptionError, match="parametric"):
        counts.bootstrap(scheme="residual")
    with pytest.raises(gradfit.OptionError, match="no distribution"):
        robust.bootstrap(scheme="parametric")
    with pytest.raises(gradfit.OptionError, match="'residual'"):
        robust.bootstrap(scheme="residuals")


def test_a_robust_loss_has_percentile_intervals_of_robust_fits():
    target = LINE.copy()
    target[5] += 20
    fit = gradfit.fit("y = a*x + c", data={"x": X, "y": target}, loss="huber")
    found = fit.bootstrap(60, scheme="pairs")
    index = np.random.default_rng(0).integers(0, 40, (60, 40))
    own = gradfit.fit("y = a*x + c", data={"x": X[index[3]], "y": target[index[3]]}, loss="huber")
    errors = np.sqrt(np.diag(fit.covariance))
    assert (np.abs(found.samples[3] - list(own.values.values())) / errors).max() < 1e-3
    assert np.isnan(found.stderrs).all()
    assert found.intervals(0.9) == found.intervals(0.9, "percentile")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"resamples": 1}, "resamples"), ({"resamples": 10.0}, "resamples"), ({"resamples": True}, "resamples"),
        ({"seed": -1}, "seed"), ({"seed": "a"}, "seed"), ({"threads": 0}, "threads"), ({"threads": 1.5}, "threads"),
        ({"progress": "yes"}, "progress"),
    ],
)  # fmt: skip
def test_numbers_that_are_none_are_refused(options, told):
    with pytest.raises(gradfit.OptionError, match=told):
        line_fit().bootstrap(**options)


# --- parameters that are not free -----------------------------------------------------------------------------------------


def test_tied_fixed_and_vector_parameters_have_their_columns():
    fit = gradfit.fit("y = a*exp(-b*x) + c + 0*(d + e)", data={"x": X, "y": Y}, start=START, tied={"d": "a*b"}, fixed={"e": 4.0})
    found = fit.bootstrap(50)
    assert set(found.names) == {"a", "b", "c", "d"}
    column = {name: found.samples[:, place] for place, name in enumerate(found.names)}
    np.testing.assert_allclose(column["d"], column["a"] * column["b"], rtol=1e-14)
    intervals = fit.intervals(kind="bootstrap", resamples=50)
    assert list(intervals) == list(fit.params)
    assert intervals["e"] == (4.0, 4.0)
    np.testing.assert_allclose(intervals["d"], np.quantile(column["d"], [0.025, 0.975]), rtol=1e-14)

    def line(x, c):
        return c[0] * x + c[1]

    vector = gradfit.fit(line, X, LINE, start={"c": np.zeros(2)}).bootstrap(50)
    assert vector.names == ("c[0]", "c[1]")
    np.testing.assert_allclose(vector.samples, line_fit().bootstrap(50).samples, rtol=1e-6)


def test_refits_stay_within_bounds():
    fit = gradfit.fit(decay, X, Y, start=START, bounds={"b": (0.6, None)})
    samples = fit.bootstrap(200).samples
    place = list(fit.values).index("b")
    assert samples[:, place].min() >= 0.6
    lower, _ = fit.intervals(kind="bootstrap", resamples=200)["b"]
    assert lower >= 0.6


# --- intervals --------------------------------------------------------------------------------------------------------------


def test_intervals_are_those_of_the_formulas():
    fit = gradfit.fit(decay, X, Y, start=START)
    found = fit.bootstrap(500, seed=2)
    for place, name in enumerate("abc"):
        value, error = fit.values[name], fit.params[name].stderr
        scaled = (found.samples[:, place] - value) / found.stderrs[:, place]
        low, high = np.quantile(scaled, [0.05, 0.95])
        assert found.intervals(0.9)[name] == pytest.approx((value - high * error, value - low * error), rel=1e-12)
        assert found.intervals(0.9, "percentile")[name] == tuple(np.quantile(found.samples[:, place], [0.05, 0.95]))
    assert fit.intervals(0.9, kind="bootstrap", resamples=500, seed=2) == found.intervals(0.9)
    assert fit.intervals(0.9, kind="bootstrap", resamples=500, seed=2, method="percentile") == found.intervals(0.9, "percentile")


def test_a_level_that_so_few_resamples_do_not_tell_is_refused():
    found = line_fit().bootstrap(100)
    assert found.intervals(0.98)
    for level in (0.99, 0.9999):
        with pytest.raises(gradfit.OptionError, match="resamples do not tell"):
            found.intervals(level)
    for level in (0, 1, 95):
        with pytest.raises(gradfit.OptionError, match="level"):
            found.intervals(level)
    with pytest.raises(gradfit.OptionError, match="percentile"):
        found.intervals(method="percentiles")


@pytest.mark.slow
def test_studentized_intervals_of_a_line_hold_the_truth_as_often_as_they_say():
    generator = np.random.default_rng(0)
    x, held = np.linspace(0, 1, 12), 0
    for trial in range(200):
        y = 2 * x + 1 + generator.exponential(0.3, 12) - 0.3
        lower, upper = gradfit.fit("y = a*x + c", data={"x": x, "y": y}).intervals(
            0.9, kind="bootstrap", resamples=300, seed=trial
        )["a"]
        held += lower <= 2 <= upper
    assert stats.binomtest(held, 200, 0.9).pvalue > 1e-3


def test_a_million_rows_are_resampled_a_fit_at_a_time():
    x = np.linspace(0, 5, 300_000)
    y = 2 * x + 1 + np.random.default_rng(0).normal(0, 1, len(x))
    fit = gradfit.fit("y = a*x + c", data={"x": x, "y": y})
    found = fit.bootstrap(20, scheme="pairs")
    assert np.ptp(found.samples[:, 0]) < 10 * fit.params["a"].stderr
