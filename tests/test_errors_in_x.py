"""Errors in x: odrpack's published examples, what scipy and algebra say of the limits, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from odrpack import odr_fit
from scipy.optimize import least_squares

import gradfit
from gradfit.cli import main
from gradfit.statistics.summary import Short

ENGINES = ("native", "torch")
TIGHT = {"diff_scheme": "central", "sstol": 1e-15, "partol": 1e-13, "maxit": 500}
GENERATOR = np.random.default_rng(1)
X = np.linspace(0, 10, 60)
Y = 3 * np.exp(-0.5 * X) + 1 + GENERATOR.normal(0, 0.05, 60)
X = X + GENERATOR.normal(0, 0.1, 60)
START = [2.0, 0.4, 0.5]


def decay(x, a, b, c):
    return a * np.exp(-b * x) + c


def line(x, w, b):
    return w * x + b


def found(fit):
    return np.array(list(fit.values.values())), np.array([parameter.stderr for parameter in fit.params.values()])


def agrees(fit, other, rtol=1e-6):
    """Compare with a result of odrpack."""
    values, errors = found(fit)
    np.testing.assert_allclose(values, other.beta, rtol=rtol)
    np.testing.assert_allclose(errors, other.sd_beta, rtol=rtol)
    assert fit.chi_square == pytest.approx(other.sum_square, rel=rtol)
    assert fit.reduced_chi_square == pytest.approx(other.res_var, rel=rtol)
    moved = np.array(list(fit.errors_in_x.values()))
    np.testing.assert_allclose(moved, np.atleast_2d(other.delta), atol=rtol * np.abs(other.delta).max())


# --- published examples -----------------------------------------------------------------------------------------------

FULLER = (
    np.array([0, 0, 5, 7, 7.5, 10, 16, 26, 30, 34, 34.5, 100]),
    np.array([1265, 1263.6, 1258, 1254, 1253, 1249.8, 1237, 1218, 1220.6, 1213.8, 1215.5, 1212]),
)
ELLIPSE = np.array([
    [0.50, 1.20, 1.60, 1.86, 2.12, 2.36, 2.44, 2.36, 2.06, 1.74, 1.34, 0.90, -0.28, -0.78, -1.36, -1.90, -2.50, -2.88, -3.18, -3.44],
    [-0.12, -0.60, -1.00, -1.40, -2.54, -3.36, -4.00, -4.75, -5.25, -5.64, -5.97, -6.32, -6.44, -6.44, -6.41, -6.25, -5.88, -5.50, -5.24, -4.86],
])  # fmt: skip
BOUNDED = np.array([0.982, 1.998, 4.978, 6.01]), np.array([2.7, 7.4, 148.0, 403.0])


def curve(x, b1, b2, b3):
    return b1 + b2 * (np.exp(b3 * x) - 1) ** 2


def conic(v, h, b1, b2, b3, b4, b5):
    return b3 * (v - b1) ** 2 + 2 * b4 * (v - b1) * (h - b2) + b5 * (h - b2) ** 2 - 1


def growth(x, a, b):
    return a * np.exp(b * x)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_explicit_example_of_the_odrpack95_guide(engine):
    """Section 3.A, after Fuller: x is exact in the first, the second and the last row."""
    exact = np.isin(FULLER[0], (0, 100))
    start = [1500.0, -50.0, -0.1]
    other = odr_fit(lambda x, b: curve(x, *b), *FULLER, np.array(start), fix_x=exact, **TIGHT)
    fit = gradfit.fit(curve, *FULLER, sigma_x=np.where(exact, 0.0, 1.0), start=start, engine=engine)
    agrees(fit, other)
    np.testing.assert_allclose(found(fit)[0], [1264.6548, -54.018384, -0.087849850], rtol=1e-7)  # as printed in the guide
    assert not fit.errors_in_x["x"][exact].any()
    assert fit.engine == engine


@pytest.mark.parametrize("engine", ENGINES)
def test_the_implicit_example_of_the_odrpack95_guide(engine):
    """Section 3.B: an ellipse. odrpack reaches it by a penalty that grows, and with its defaults stops at a small one."""
    start = [-1.0, -3.0, 0.09, 0.02, 0.08]
    exact = {"sigma": 0, "sigma_x": {"v": 1.0, "h": 1.0}}
    fit = gradfit.fit(conic, *ELLIPSE, np.zeros(20), **exact, start=start, engine=engine)
    settings = {"task": "implicit-ODR", "diff_scheme": "central", "maxit": 200}
    agrees(fit, odr_fit(lambda x, b: conic(*x, *b), ELLIPSE, np.zeros(20), np.array(start), partol=1e-9, **settings))
    default = odr_fit(lambda x, b: conic(*x, *b), ELLIPSE, np.zeros(20), np.array(start), **settings)
    np.testing.assert_allclose(found(fit)[0], default.beta, rtol=1e-6)
    np.testing.assert_allclose(found(fit)[1], default.sd_beta, rtol=3e-5)  # odrpack's, at its penalty
    np.testing.assert_allclose(conic(*fit.x_fitted.values(), *fit.values.values()), 0, atol=1e-10)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_example_of_odrpacks_own_documentation(engine):
    start, bounds = [2.0, 0.5], {"a": (0, 10), "b": (0, 2)}
    other = odr_fit(lambda x, b: growth(x, *b), *BOUNDED, np.array(start), bounds=([0, 0], [10, 2]), **TIGHT)
    agrees(gradfit.fit(growth, *BOUNDED, sigma_x=1.0, start=start, bounds=bounds, engine=engine), other)


def test_on_a_bound_the_sum_is_the_least_one_where_odrpack_stops_above_it():
    """With b up to 0.9 the answer printed for odrpack, a = 1.6334, has a sum of squares of 0.267; the minimum is 0.192."""
    x, y = BOUNDED

    def all_unknowns(unknown):
        a, b, *d = unknown
        return np.r_[growth(x + d, a, b) - y, d]

    limits = ([0, 0, *[-9] * 4], [10, 0.9, *[9] * 4])
    best = least_squares(all_unknowns, [2.0, 0.5, 0, 0, 0, 0], bounds=limits, xtol=1e-15, ftol=1e-15, gtol=1e-15)
    fit = gradfit.fit(growth, x, y, sigma_x=1.0, start=[2.0, 0.5], bounds={"a": (0, 10), "b": (0, 0.9)})
    np.testing.assert_allclose(found(fit)[0], best.x[:2], rtol=1e-6)
    assert fit.chi_square == pytest.approx(2 * best.cost, rel=1e-9)
    assert fit.params["b"].at_bound
    printed = odr_fit(lambda x, b: growth(x, *b), x, y, np.array([2.0, 0.5]), bounds=([0, 0], [10, 0.9]))
    assert printed.sum_square > 1.3 * fit.chi_square
    held = odr_fit(lambda x, b: growth(x, *b), x, y, np.array([2.0, 0.9]), fix_beta=np.array([False, True]), **TIGHT)
    assert fit.params["a"].stderr == pytest.approx(held.sd_beta[0], rel=1e-6)  # given b at its bound


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("each", [False, True], ids=["one error for all", "an error per point"])
def test_values_errors_and_distances_are_odrpacks(engine, each):
    sigma, sigma_x = (np.linspace(0.03, 0.09, 60), np.linspace(0.05, 0.2, 60)) if each else (0.05, 0.1)
    weights = {"weight_y": np.ones(60) * np.asarray(sigma) ** -2.0, "weight_x": np.ones(60) * np.asarray(sigma_x) ** -2.0}
    other = odr_fit(lambda x, b: decay(x, *b), X, Y, np.array(START), **weights, **TIGHT)
    agrees(gradfit.fit(decay, X, Y, sigma=sigma, sigma_x=sigma_x, start=START, engine=engine), other)


def test_a_model_that_takes_numpy_alone_agrees_too():
    def opaque(x, a, b, c):
        return decay(np.interp(x, [-100.0, 100.0], [-100.0, 100.0]), a, b, c)

    other = odr_fit(lambda x, b: decay(x, *b), X, Y, np.array(START), weight_y=400.0, weight_x=100.0, **TIGHT)
    fit = gradfit.fit(opaque, X, Y, sigma=0.05, sigma_x=0.1, start=START)
    assert "finite differences" in fit.engine_reason
    agrees(fit, other, rtol=1e-5)


def test_fixed_and_tied_parameters_and_bounds():
    other = odr_fit(
        lambda x, b: decay(x, b[0], b[1], b[0] / 3), X, Y, np.array(START[:2]), weight_y=400.0, weight_x=100.0, **TIGHT
    )
    fit = gradfit.fit(decay, X, Y, sigma=0.05, sigma_x=0.1, start={"a": 2.0, "b": 0.4}, tied={"c": "a/3"})
    np.testing.assert_allclose(found(fit)[0][:2], other.beta, rtol=1e-6)
    np.testing.assert_allclose(found(fit)[1][:2], other.sd_beta, rtol=1e-6)
    fixed = gradfit.fit(decay, X, Y, sigma=0.05, sigma_x=0.1, start=START, fixed={"c": 1.0})
    other = odr_fit(lambda x, b: decay(x, *b), X, Y, np.array([2.0, 0.4, 1.0]), fix_beta=np.array([False, False, True]), weight_y=400.0, weight_x=100.0, **TIGHT)  # fmt: skip
    np.testing.assert_allclose(found(fixed)[0], other.beta, rtol=1e-6)


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("absolute", [False, True])
def test_a_line_with_equal_errors_is_demings(absolute):
    ratio = 0.2 / 0.05
    y = 2 * X + 1 + GENERATOR.normal(0, 0.2, 60)
    fit = gradfit.fit(line, X, y, sigma=0.2, sigma_x=0.05, absolute_sigma=absolute)
    (sxx, sxy), (_, syy) = np.cov(X, y)
    spread = syy - ratio**2 * sxx
    slope = (spread + np.hypot(spread, 2 * ratio * sxy)) / (2 * sxy)
    np.testing.assert_allclose(found(fit)[0], [slope, y.mean() - slope * X.mean()], rtol=1e-9)
    scale = 1.0 if absolute else fit.reduced_chi_square
    assert fit.params["b"].stderr > np.sqrt(scale * (0.2**2 + (slope * 0.05) ** 2) / 60)


@pytest.mark.parametrize("form", [0, 0.0, np.zeros(60), {"x": 0.0}])
def test_sigma_x_of_0_at_all_points_is_ordinary_least_squares_to_the_bit(form):
    plain = gradfit.fit(decay, X, Y, sigma=0.05, start=START)
    fit = gradfit.fit(decay, X, Y, sigma=0.05, sigma_x=form, start=START)
    assert fit.values == plain.values
    assert np.array_equal(fit.covariance, plain.covariance)
    assert fit.report() == plain.report()
    assert fit.errors_in_x == {} == fit.x_fitted


def test_exact_y_is_the_regression_of_x_on_y():
    y = 2 * X + 1
    x = X + GENERATOR.normal(0, 0.1, 60)
    fit = gradfit.fit(line, x, y, sigma=0, sigma_x=0.1)
    inverse = gradfit.fit(line, y, x, sigma=0.1)
    assert fit.values["w"] == pytest.approx(1 / inverse.values["w"], rel=1e-9)
    assert fit.chi_square == pytest.approx(inverse.chi_square, rel=1e-9)
    np.testing.assert_allclose(line(fit.x_fitted["x"], *fit.values.values()), y, atol=1e-10)


def test_units_change_nothing_but_units():
    fit = gradfit.fit(decay, X, Y, sigma=0.05, sigma_x=0.1, start=START)
    scaled = gradfit.fit(decay, X * 1e8, Y * 1e-8, sigma=0.05e-8, sigma_x=0.1e8, start=[2e-8, 0.4e-8, 0.5e-8])
    units = np.array([1e-8, 1e-8, 1e-8])
    for ours, theirs in zip(found(scaled), found(fit), strict=True):
        np.testing.assert_allclose(ours, theirs * units, rtol=1e-7)
    assert scaled.chi_square == pytest.approx(fit.chi_square, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_where_y_is_nearly_exact_the_minimum_is_found_by_way_of_larger_errors(seed):
    """Crests that the data overshoot: the distance bends sharply there, and from the start no step lowers it all the way."""
    generator = np.random.default_rng(seed)
    x = np.linspace(0, 10, 80)
    y = 2 * np.sin(1.3 * x + 0.4) + generator.normal(0, 0.02, 80)
    x = x + generator.normal(0, 0.3, 80)
    fit = gradfit.fit("y = a*sin(w*x + p)", data={"x": x, "y": y}, sigma=0.02, sigma_x=0.3, start={"a": 2.1, "w": 1.25, "p": 0.5})
    other = odr_fit(lambda x, b: b[0] * np.sin(b[1] * x + b[2]), x, y, np.array([2.1, 1.25, 0.5]), weight_y=2500.0, weight_x=1 / 0.09, maxit=500)  # fmt: skip
    assert fit.success
    assert fit.chi_square <= other.sum_square * (1 + 1e-6)


# --- what else a fit does ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fit():
    return gradfit.fit(decay, X, Y, sigma=0.05, sigma_x=0.1, start=START, absolute_sigma=True)


def test_profile_and_bootstrap_intervals_agree_with_those_by_t(fit):
    by_t = fit.intervals()
    for options in ({"kind": "profile"}, {"kind": "bootstrap", "resamples": 400}, {"kind": "bootstrap", "scheme": "pairs"}):
        for name, (lower, upper) in fit.intervals(**options).items():
            low, high = by_t[name]
            np.testing.assert_allclose([lower, upper], [low, high], atol=0.35 * (high - low))
    # the profile by definition: chi² minimised over the others rises by 1.96² at its ends
    lower, _ = fit.intervals(kind="profile")["b"]
    held = gradfit.fit(decay, X, Y, sigma=0.05, sigma_x=0.1, start=START, fixed={"b": lower})
    assert held.chi_square - fit.chi_square == pytest.approx(1.959964**2, rel=1e-4)
    with pytest.raises(gradfit.OptionError, match="parametric"):
        fit.bootstrap(scheme="residual")


def test_resampled_fits_are_those_of_fit(fit):
    rows = np.random.default_rng(0).integers(0, 60, (2, 60))
    drawn = fit.bootstrap(resamples=2, scheme="pairs", seed=0).samples
    for index, sample in zip(rows, drawn, strict=True):
        own = gradfit.fit(decay, X[index], Y[index], sigma=0.05, sigma_x=0.1, start=START)
        np.testing.assert_allclose(sample, found(own)[0], rtol=1e-4)


def test_a_saved_fit_keeps_its_errors_in_x(fit, tmp_path):
    fit.save(tmp_path / "fit.json")
    loaded = gradfit.load(tmp_path / "fit.json")
    for name in ("errors_in_x", "x_fitted"):
        np.testing.assert_array_equal(getattr(loaded, name)["x"], getattr(fit, name)["x"])
    assert loaded.report() == fit.report()
    assert "errors in x were fitted too" in fit.report()
    np.testing.assert_allclose(loaded.predict([1.0, 2.0]), decay(np.array([1.0, 2.0]), *fit.values.values()))


def test_pictures_show_distances_and_bars_of_both_errors(fit):
    (axes,) = fit.plot().axes
    (bars,) = axes.containers
    assert bars.has_xerr
    assert bars.has_yerr
    (axes,) = fit.plot_residuals().axes
    heights = axes.containers[0].lines[0].get_ydata()
    assert heights @ heights == pytest.approx(fit.chi_square, rel=1e-9)
    assert "<svg" in fit.to_html()


def test_validation_rows_and_folds_are_judged_by_their_distances():
    rows = np.arange(0, 60, 5)
    fit = gradfit.fit(decay, X, Y, sigma=0.05, sigma_x=0.1, start=START, validation=rows)
    rest = np.setdiff1d(np.arange(60), rows)
    own = gradfit.fit(decay, X[rest], Y[rest], sigma=0.05, sigma_x=0.1, start=START)
    assert fit.values == pytest.approx(own.values, rel=1e-9)
    held = gradfit.fit(decay, X[rows], Y[rows], sigma=0.05, sigma_x=0.1, fixed=own.values, start=START)
    assert fit.validation_loss == pytest.approx(held.loss, rel=1e-8)
    folded = gradfit.fit(decay, X, Y, sigma=0.05, sigma_x=0.1, start=START, folds=4)
    assert 0.5 * fit.loss < folded.cross_validation.mean() < 3 * fit.loss


def test_columns_of_a_table_and_rows_that_are_missing():
    table = {"x": X, "y": Y, "dx": np.full(60, 0.1), "dy": np.full(60, 0.05)}
    plain = gradfit.fit(decay, X[2:], Y[2:], sigma=0.05, sigma_x=0.1, start=START)
    table["dx"][:2] = np.nan
    with pytest.raises(gradfit.DataError, match=r"sigma_x of x 2 \(rows 1, 2\)"):
        gradfit.fit(decay, data=table, target="y", sigma="dy", sigma_x="dx", start=START)
    for given in ("dx", {"x": "dx"}):
        fit = gradfit.fit(decay, data=table, target="y", sigma="dy", sigma_x=given, start=START, missing="drop")
        assert fit.values == pytest.approx(plain.values, rel=1e-12)
        assert "2 rows with missing values left out." in fit.warnings


def test_without_sigma_the_error_of_y_is_1_and_that_is_said():
    fit = gradfit.fit(decay, X, Y, sigma_x=2.0, start=START)
    assert any("error of y was taken to be 1" in warning for warning in fit.warnings)
    assert fit.values == pytest.approx(gradfit.fit(decay, X, Y, sigma=1.0, sigma_x=2.0, start=START).values, rel=1e-12)


@pytest.mark.parametrize("sigma", [None, 0.05, np.linspace(0.04, 0.06, 60)], ids=["none", "number", "array"])
@pytest.mark.parametrize("sigma_x", [None, 0.1, np.linspace(0.0, 0.2, 60)], ids=["exact", "number", "array"])
@pytest.mark.parametrize("absolute", [False, True])
def test_the_short_way_gives_the_same_bits(sigma, sigma_x, absolute):
    if absolute and sigma is None:
        pytest.skip("there is no sigma to be absolute")
    options = {"sigma": sigma, "sigma_x": sigma_x, "absolute_sigma": absolute, "start": START}
    gradfit.fit(decay, X, Y, **options)
    short = gradfit.fit(decay, X, Y, **options)
    long = gradfit.fit(decay, X, Y, every=10**6, **options)
    assert isinstance(short._given, Short)
    assert not isinstance(long._given, Short)
    assert short.values == long.values
    assert np.array_equal(short.covariance, long.covariance)
    assert np.array_equal(short.history["train_loss"], long.history["train_loss"])
    assert short.report() == long.report()


def test_the_short_way_keeps_copies():
    sigma, sigma_x = np.full(60, 0.05), np.full(60, 0.1)
    for _ in range(2):
        fit = gradfit.fit(decay, X, Y, sigma=sigma, sigma_x=sigma_x, start=START)
    expected = fit.values
    sigma *= 3
    sigma_x *= 0
    assert fit.record.estimates[0].value == expected["a"]


def test_the_command_line_takes_columns_and_numbers(tmp_path, capsys):
    place = tmp_path / "data.csv"
    np.savetxt(place, np.c_[X, Y, np.full(60, 0.1)], delimiter=",", header="x,y,dx", comments="", fmt="%.17g")
    formula = ["fit", str(place), "y = a*exp(-b*x) + c", "--start", "a=2,b=0.4,c=0.5", "--sigma", "0.05", "--json"]
    expected = gradfit.fit(decay, X, Y, sigma=0.05, sigma_x=0.1, start=START)
    for given in ("dx", "0.1", "x=dx", "x=0.1"):
        assert main([*formula, "--sigma-x", given]) == 0
        record = json.loads(capsys.readouterr().out)
        assert [estimate["value"] for estimate in record["estimates"]] == pytest.approx(found(expected)[0], rel=1e-9)
        assert list(record["points"]["distances"]["sigma_x"]) == ["x"]
    assert main([*formula, "--sigma-x", "z=dx"]) == 2
    assert "unknown input in sigma_x 'z'; known: x" in capsys.readouterr().err
    assert main([*formula, "--sigma-x", "dx", "--by", "dx"]) == 2
    assert "--sigma-x is for one fit" in capsys.readouterr().err


# --- what is refused --------------------------------------------------------------------------------------------------


def plane(x, z, a, b):
    return a * x + b * z


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"sigma_x": -0.1}, gradfit.DataError, "sigma_x of x is negative in 60 of 60 rows"),
        ({"sigma_x": np.where(np.arange(60) == 3, np.nan, 0.1)}, gradfit.DataError, r"sigma_x of x 1 \(row 4\)"),
        ({"sigma_x": np.inf}, gradfit.DataError, "NaN, empty or infinite"),
        ({"sigma_x": np.ones(59)}, gradfit.DataError, "sigma_x of x has 59 values for 60 points"),
        ({"sigma_x": {"t": 0.1}}, gradfit.DataError, "unknown input in sigma_x 't'; known: x"),
        ({"sigma_x": True}, gradfit.DataError, "sigma_x of x is True"),
        ({"sigma_x": {"x": None}}, gradfit.DataError, "sigma_x of x is None"),
        ({"sigma_x": np.ones((60, 2))}, gradfit.DataError, r"shape \(60, 2\)"),
        ({"sigma_x": 0.1, "sigma": np.where(np.arange(60) < 2, -1, 1.0)}, gradfit.DataError, "sigma is negative"),
        ({"sigma_x": np.arange(60) / 60, "sigma": 0}, gradfit.DataError, r"0 where sigma_x is 0 too, in 1 of 60 rows \(row 1\)"),
        ({"sigma_x": 0, "sigma": 0}, gradfit.DataError, "sigma is zero or negative"),
        ({"sigma_x": 0.1, "sigma": np.eye(60)}, gradfit.OptionError, "a covariance matrix as sigma"),
        ({"sigma_x": 0.1, "weights": np.ones(60)}, gradfit.OptionError, "together with weights"),
        ({"sigma_x": 0.1, "loss": "huber"}, gradfit.OptionError, "the loss is huber"),
        ({"sigma_x": 0.1, "method": "adam"}, gradfit.OptionError, "method='lm'"),
        ({"sigma_x": 0.1, "method": "linear"}, gradfit.OptionError, "method='lm'"),
        ({"sigma_x": 0.1, "dtype": "float32"}, gradfit.OptionError, "leave dtype out"),
        ({"sigma_x": 0.1, "absolute_sigma": True}, gradfit.OptionError, "no sigma was given"),
        ({"sigma_x": 0.1, "sigma": 1.0, "validation": (X, Y)}, gradfit.DataError, "has no sigma"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_in_words(options, error, says):
    with pytest.raises(error, match=says):
        gradfit.fit(decay, X, Y, start=START, **options)


def test_of_several_inputs_it_has_to_be_said_which():
    z = np.cos(X)
    with pytest.raises(gradfit.DataError, match="one value for 2 inputs, x, z; say which it belongs to"):
        gradfit.fit(plane, X, z, Y, sigma_x=0.1)
    one = gradfit.fit(plane, X, z, Y, sigma=0.1, sigma_x={"z": 0.1})
    assert list(one.errors_in_x) == ["z"]
    both = gradfit.fit(plane, X, z, Y, sigma=0.1, sigma_x={"z": 0.1, "x": 0.0})
    assert both.values == one.values


def test_a_model_that_mixes_rows_or_a_network_has_no_errors_in_x():
    with pytest.raises(gradfit.ModelError, match="each row must depend on its own x alone"):
        gradfit.fit(lambda x, w, b: w * (x - x.mean()) + b, X, Y, sigma_x=0.1)
    with pytest.raises(gradfit.OptionError, match="a torch module"):
        gradfit.fit(torch.nn.Linear(1, 1), X, Y, sigma_x=0.1, method="lm")


def test_where_x_can_do_nothing_for_an_exact_y_the_status_says_so():
    """A constant cannot be moved onto data by moving x."""
    fit = gradfit.fit(lambda x, c: c + 0 * x, X, Y, sigma=0, sigma_x=0.1, start=[1.0], on_failure="ignore")
    assert fit.status == "not_finite"
    assert "not finite" in fit.message
