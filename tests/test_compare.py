"""Models compared: criteria, weights and tests by their formulas and scipy's distributions, nestedness found, one table, honest refusals."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.stats
import torch

import gradfit
from gradfit import cli

X = np.linspace(0.1, 10, 40)
NOISE = np.random.default_rng(3).normal(0, 0.3, 40)


def line(x, w=1.0, b=0.0):
    return w * x + b


def parabola(x, p=1.0, q=0.1, r=0.1):
    return p + q * x + r * x**2


def constant(x, c=1.0):
    return c + 0 * x


def power(x, a=1.0, k=1.0):
    return a * x**k


def decay(x, a=3.0, k=0.5):
    return a * torch.exp(-k * x)


def stretched(x, h=3.0, t=2.0, beta=0.9):
    return h * torch.exp(-((x / t) ** beta))


def two_decays(x, a1=2.0, k1=0.3, a2=1.5, k2=2.0):
    return a1 * torch.exp(-k1 * x) + a2 * torch.exp(-k2 * x)


def peak(x, height=2.0, place=3.0, width=1.0, base=0.0):
    return height * torch.exp(-(((x - place) / width) ** 2)) + base


def two_peaks(x, a1=2.0, m1=3.0, s1=1.0, a2=1.0, m2=7.0, s2=1.0, c=0.0):
    return a1 * torch.exp(-(((x - m1) / s1) ** 2)) + a2 * torch.exp(-(((x - m2) / s2) ** 2)) + c


def lorentzian(x, a=2.0, m=3.0, s=1.0, c=0.0):
    return a / (1 + ((x - m) / s) ** 2) + c


STRAIGHT = 2 * X + 1 + NOISE
DECAYING = 2 * np.exp(-0.3 * X) + 1.5 * np.exp(-2 * X) + 0.1 * NOISE
PEAKED = 2 * np.exp(-((X - 3) ** 2)) + np.exp(-((X - 7) ** 2)) + 0.1 * NOISE


def fit(model, y=STRAIGHT, x=X, **options):
    return gradfit.fit(model, x, y, **options)


def pair(comparison, smaller, larger):
    return next(pair for pair in comparison.pairs if (pair.smaller, pair.larger) == (smaller, larger))


# --- numbers ------------------------------------------------------------------------------------------------------------


def test_criteria_are_those_of_the_fits_and_weights_follow_their_formula():
    fits = {"constant": fit(constant), "line": fit(line), "parabola": fit(parabola)}
    comparison = gradfit.compare(fits)
    aicc = np.array([one.aicc for one in fits.values()])
    likelihood = np.exp(-(aicc - aicc.min()) / 2)
    for (name, one), weight in zip(fits.items(), likelihood / likelihood.sum(), strict=True):
        row = comparison[name]
        assert (row.aic, row.aicc, row.bic, row.chi_square) == (one.aic, one.aicc, one.bic, one.chi_square)
        assert row.delta == pytest.approx(one.aicc - aicc.min())
        assert row.weight == pytest.approx(weight, rel=1e-12)
    assert comparison.best == "line" == comparison.rows[0].name


def test_the_f_test_is_that_of_the_sums_of_squares():
    small, large = (np.polynomial.Polynomial.fit(X, STRAIGHT, degree)(X) - STRAIGHT for degree in (1, 2))
    rest = large @ large / (40 - 3)
    f = (small @ small - large @ large) / 1 / rest
    test = pair(gradfit.compare([fit(line), fit(parabola)]), "line", "parabola")
    assert (test.test, test.dof, test.dof_residual) == ("F", 1, 37)
    assert test.statistic == pytest.approx(f, rel=1e-8)
    assert test.p_value == pytest.approx(scipy.stats.f.sf(f, 1, 37), rel=1e-7)


def test_known_errors_are_tested_by_the_likelihood_ratio():
    fits = [fit(model, sigma=0.3, absolute_sigma=True) for model in (line, parabola)]
    test = pair(gradfit.compare(fits), "line", "parabola")
    gain = fits[0].chi_square - fits[1].chi_square
    assert (test.test, test.statistic) == ("likelihood ratio", pytest.approx(gain))
    assert test.p_value == pytest.approx(scipy.stats.chi2.sf(gain, 1), rel=1e-9)


def test_counts_are_compared_by_their_likelihood():
    counts = np.random.default_rng(0).poisson(20 + 0.5 * X)
    comparison = gradfit.compare([fit(constant, counts, loss="poisson"), fit(line, counts, start=[1, 20], loss="poisson")])

    means = counts.mean(), fit(line, counts, start=[1, 20], loss="poisson").predict(X)
    small, large = (scipy.stats.poisson.logpmf(counts, mean).sum() for mean in means)
    ratio = 2 * (large - small)
    test = pair(comparison, "constant", "line")
    assert (test.test, test.statistic) == ("likelihood ratio", pytest.approx(ratio, rel=1e-9))
    assert test.p_value == pytest.approx(scipy.stats.chi2.sf(ratio, 1), rel=1e-7)
    assert comparison["constant"].aic - comparison["line"].aic == pytest.approx(ratio - 2, rel=1e-9)


def test_a_loss_that_is_no_likelihood_is_ranked_by_folds_alone():
    fits = [fit(constant, loss="huber"), fit(line, loss="huber")]
    comparison = gradfit.compare(fits)
    assert comparison.best is None
    assert "no likelihood" in comparison["line"].remark
    assert "no likelihood" in pair(comparison, "constant", "line").reason
    assert gradfit.compare(fits, folds=4).best == "line"


@pytest.mark.slow
def test_p_values_are_uniform_where_the_smaller_model_is_true():
    generator = np.random.default_rng(11)
    values = []
    for _ in range(300):
        y = 3 * np.exp(-0.5 * X) + generator.normal(0, 0.1, 40)
        table = {"x": X, "y": y}
        smaller, larger = fit(decay, y), gradfit.fit("y = a*exp(-k*x) + c", data=table, start={"a": 3, "k": 0.5, "c": 0})
        values.append(gradfit.compare({"a": smaller, "b": larger}).tests[0].p_value)
    assert scipy.stats.kstest(values, "uniform").pvalue > 0.01


# --- nestedness ---------------------------------------------------------------------------------------------------------

NESTED = [
    (line, parabola, STRAIGHT, {}, True),
    (constant, power, STRAIGHT, {}, True),
    (power, parabola, STRAIGHT, {}, False),
    (decay, stretched, DECAYING, {}, True),
    (decay, two_decays, DECAYING, {}, True),
    (stretched, two_decays, DECAYING, {}, False),
    (peak, two_peaks, PEAKED, {}, True),
    (lorentzian, two_peaks, PEAKED, {}, False),
    (line, parabola, 1e7 + STRAIGHT, {}, True),
    (line, peak, 1e7 + 0.02 * STRAIGHT, {"start": [0.5, 5, 4, 1e7]}, False),  # an offset does not hide what differs
    (line, parabola, STRAIGHT + 0.1 * X**2, {"bounds": {"r": (0.05, None)}}, False),
    (line, parabola, STRAIGHT + 0.1 * X**2, {"bounds": {"r": (-0.05, None)}}, True),
    (decay, two_decays, DECAYING, {"tied": {"a2": "0.5*a1"}}, True),  # where both decays are alike
]


@pytest.mark.filterwarnings("ignore::gradfit.FitWarning")
@pytest.mark.parametrize(
    ("smaller", "larger", "y", "options", "expected", "engine"),
    [*[(*case, "auto") for case in NESTED], *[(*NESTED[place], "torch") for place in (0, 2, 4)]],
)
def test_nestedness_is_found(smaller, larger, y, options, expected, engine):
    comparison = gradfit.compare([fit(smaller, y, engine=engine), fit(larger, y, engine=engine, **options)])
    found = comparison.pairs[0]
    assert found.nested is expected, found.reason
    assert bool(found.test) is expected or "bound" in found.reason or "lesser minimum" in found.reason


def test_fixing_a_parameter_makes_a_nested_model_and_the_same_model_is_none():
    comparison = gradfit.compare([fit(line, fixed={"b": 0.5}), fit(line), fit(line)])
    assert comparison.names == ("line 2", "line 3", "line")
    assert [pair(comparison, "line", name).test for name in ("line 2", "line 3")] == ["F", "F"]
    assert "as many parameters" in pair(comparison, "line 2", "line 3").reason


def test_a_model_without_free_parameters_is_tested_as_a_hypothesis():
    comparison = gradfit.compare({"known": fit(line, fixed={"w": 2.0, "b": 1.0}), "line": fit(line)})
    squares = np.sum((2 * X + 1 - STRAIGHT) ** 2)
    rest = comparison["line"].chi_square
    assert (comparison["known"].parameters, comparison["known"].chi_square) == (0, pytest.approx(squares))
    assert comparison["known"].aic == pytest.approx(40 * np.log(squares / 40))
    assert comparison.tests[0].statistic == pytest.approx((squares - rest) / 2 / (rest / 38))


def test_a_model_that_agrees_at_one_place_only_is_not_nested():
    def bent(x, c=1.0, r=gradfit.Parameter(0.5, lower=0.0)):
        return c + r * torch.sin(x) ** 2

    y = 1 - 0.2 * np.sin(X) ** 2 + 0.01 * NOISE
    small = fit(bent, y)
    assert small.params["r"].at_bound
    reason = pair(gradfit.compare([small, fit(line, y)]), "bent", "line").reason
    assert "not beside it" in reason


def test_the_user_may_know_better():
    fits = {"power": fit(power), "parabola": fit(parabola)}
    assert gradfit.compare(fits, nested={("power", "parabola"): True}).tests[0].test == "F"
    fits = {"line": fit(line), "parabola": fit(parabola)}
    assert not gradfit.compare(fits, nested={("line", "parabola"): False}).tests


def test_a_larger_model_that_fits_worse_ended_elsewhere_and_is_told_of():
    def sloped(x, height=1.0, place=7.0, width=1.0, base=0.0, slope=0.0):
        return height * torch.exp(-(((x - place) / width) ** 2)) + base + slope * x

    fits = {"peak": fit(peak, PEAKED), "sloped": fit(sloped, PEAKED)}
    with pytest.warns(gradfit.FitWarning, match="lesser minimum"):
        comparison = gradfit.compare(fits)
    assert math.isnan(comparison.pairs[0].p_value)


def test_parameters_that_the_data_do_not_determine_are_not_tested():
    with pytest.warns(gradfit.UndeterminedWarning):
        double = gradfit.fit("y = (a + b)*x + c", data={"x": X, "y": STRAIGHT})
    reason = gradfit.compare({"double": double, "line": fit(line)}).pairs[0].reason
    assert "do not determine a, b" in reason


# --- cross-validation ---------------------------------------------------------------------------------------------------


def test_models_are_cross_validated_on_the_same_folds():
    comparison = gradfit.compare([fit(line), fit(parabola)], folds=5, seed=4)
    for model in (line, parabola):
        alone = fit(model, folds=5, seed=4).cross_validation
        row = comparison[model.__name__]
        np.testing.assert_allclose(row.fold_losses, alone, rtol=1e-9)
        assert row.cross_validated_loss == pytest.approx(alone.mean())
        assert row.cross_validated_stderr == pytest.approx(alone.std(ddof=1) / math.sqrt(5))


def test_a_descent_that_was_stopped_does_not_remember_the_rows_it_must_not_know():
    options = {"method": "sgd", "learning_rate": 0.01, "epochs": 5, "on_failure": "ignore"}
    comparison = gradfit.compare({"lm": fit(line), "sgd": fit(line, method="sgd", learning_rate=0.1, epochs=2000)}, folds=4)
    assert comparison["sgd"].cross_validated_loss == pytest.approx(comparison["lm"].cross_validated_loss, rel=1e-4)
    network = torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1), torch.nn.Flatten(0))
    table = X[:, None]
    trained = [gradfit.fit(network, table, STRAIGHT, **(options | {"epochs": epochs})) for epochs in (5, 6)]
    found = gradfit.compare(trained, folds=4)
    alone = gradfit.fit(network, table, STRAIGHT, folds=4, **options).cross_validation
    np.testing.assert_allclose(found["torch.nn module Sequential"].fold_losses, alone, rtol=1e-6)


# --- bad input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda: fit(line, STRAIGHT[:-1], X[:-1]), "40 and 39 training rows"),
        (lambda: fit(line, STRAIGHT + (X > 9.9)), r"target \(y\) differs in 1 of 40 rows \(row 40\)"),
        (lambda: fit(line, STRAIGHT[::-1], X[::-1]), "target .* differs in the order of its rows"),
        (lambda: fit(line, x=2 * X), "x differs in 40 of 40 rows"),
        (lambda: fit(line, sigma=0.3), "sigma was given for one of them only"),
        (lambda: fit(line, loss="huber"), "their losses are squared and huber"),
        (lambda: fit(line, validation=0.2), "40 and 32 training rows"),
    ],
)
@pytest.mark.parametrize("loaded", [False, True])
def test_fits_to_different_data_are_refused_by_name(other, said, loaded, tmp_path):
    theirs = other()
    if loaded:
        theirs.save(tmp_path / "fit.json")
        theirs = gradfit.load(tmp_path / "fit.json")
    with pytest.raises(gradfit.DataError, match=f"'first' and 'second' cannot be compared: .*{said}"):
        gradfit.compare({"first": fit(parabola), "second": theirs})


def test_errors_and_losses_are_compared_too():
    known = fit(line, sigma=0.3, absolute_sigma=True)
    with pytest.raises(gradfit.DataError, match="sigma differs"):
        gradfit.compare([known, fit(line, sigma=0.4, absolute_sigma=True)])
    with pytest.raises(gradfit.DataError, match="absolute_sigma"):
        gradfit.compare([known, fit(line, sigma=0.3)])
    with pytest.raises(gradfit.DataError, match="huber and huber"):
        gradfit.compare([fit(line, loss="huber"), fit(line, loss="huber", f_scale=2.0)])
    with pytest.raises(gradfit.DataError, match="give different values"):
        gradfit.compare([fit(line, loss=lambda f, y: (f - y) ** 2), fit(line, loss=lambda f, y: (f - y) ** 4)])


def test_errors_in_x_are_compared_and_do_not_hinder_the_test():
    measured = {"sigma": 0.3, "sigma_x": 0.1}
    fits = [fit(line, **measured), fit(parabola, **measured)]
    test = gradfit.compare(fits).tests[0]
    few, many = (one.chi_square for one in fits)
    assert test.statistic == pytest.approx((few - many) / (many / 37))
    with pytest.raises(gradfit.DataError, match="sigma_x of x was given for one of them only"):
        gradfit.compare([fit(line, **measured), fit(parabola, sigma=0.3)])
    with pytest.raises(gradfit.DataError, match="sigma_x of x differs"):
        gradfit.compare([fit(line, **measured), fit(parabola, sigma=0.3, sigma_x=0.2)])


def test_inputs_may_differ_where_their_names_do():
    table = {"x": X, "z": np.sin(X), "y": STRAIGHT}
    comparison = gradfit.compare([gradfit.fit(text, data=table) for text in ("y = w*x + b", "y = w*z + b", "y = w*x + v*z + b")])
    assert comparison.best.startswith("y = w*x")
    assert {(test.smaller, test.larger) for test in comparison.tests} == {
        ("y = w*x + b", "y = w*x + v*z + b"), ("y = w*z + b", "y = w*x + v*z + b")
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "options", "error", "said"),
    [
        (list, {}, gradfit.DataError, "no fit"),
        (lambda: [fit(line)], {}, gradfit.DataError, "one fit"),
        (lambda: fit(line), {}, gradfit.OptionError, "a single fit"),
        (lambda: gradfit.fit_many(line, X, np.stack([STRAIGHT, STRAIGHT])), {}, gradfit.OptionError, "results of 2 fits"),
        (lambda: [fit(line), "fit.json"], {}, gradfit.OptionError, "in place 1"),
        (lambda: [fit(line), fit(parabola)], {"names": ["a"]}, gradfit.OptionError, "one name for each"),
        (lambda: {"a": fit(line), "b": fit(parabola)}, {"names": ["a", "b"]}, gradfit.OptionError, "leave names out"),
        (lambda: [fit(line), fit(parabola)], {"nested": {("line", "cubic"): True}}, gradfit.OptionError, "unknown model 'cubic'"),
        (
            lambda: [fit(line), fit(parabola)],
            {"nested": {("parabola", "line"): True}},
            gradfit.OptionError,
            "smaller model first",
        ),
        (lambda: [fit(line), fit(parabola)], {"nested": [("line", "parabola")]}, gradfit.OptionError, "expected pairs"),
        (lambda: [fit(line), fit(parabola)], {"folds": 1}, gradfit.DataError, "folds is 1"),
        (lambda: [fit(line), fit(parabola)], {"folds": 2, "seed": -1}, gradfit.OptionError, "seed is -1"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_words(given, options, error, said):
    with pytest.raises(error, match=said):
        gradfit.compare(given(), **options)


def test_a_failed_fit_is_a_row_and_never_the_best():
    failed = fit(two_decays, DECAYING, max_steps=1, on_failure="ignore")
    with pytest.warns(gradfit.FitWarning, match="not ranked"):
        comparison = gradfit.compare({"decay": fit(decay, DECAYING), "failed": failed}, folds=4)
    assert comparison.best == "decay"
    row = comparison["failed"]
    assert (row.status, row.success, row.fold_losses) == ("not_converged", False, ())
    assert np.isnan([row.weight, row.aicc]).all()
    assert "failed" in pair(comparison, "decay", "failed").reason


def test_too_few_points_for_aicc_leave_the_others_their_weights():
    x, y = X[::10], STRAIGHT[::10]
    comparison = gradfit.compare([fit(constant, y, x), fit(line, y, x), fit(parabola, y, x)])
    assert "needs 5" in comparison["parabola"].remark
    assert math.isnan(comparison["parabola"].weight)
    assert sum(row.weight for row in comparison.rows if not math.isnan(row.weight)) == pytest.approx(1)
    assert pair(comparison, "line", "parabola").test == "F"


def test_of_models_that_fit_exactly_the_smallest_is_best():
    y = 2 * X + 1
    comparison = gradfit.compare([fit(parabola, y), fit(line, y), fit(constant, y)])
    assert comparison.best == "line"
    assert comparison["parabola"].delta == pytest.approx(2.4, abs=0.5)
    assert pair(comparison, "line", "parabola").p_value == 1
    assert pair(comparison, "constant", "line").p_value < 1e-100


# --- kept and shown -----------------------------------------------------------------------------------------------------


def test_loaded_results_are_compared_by_their_records(tmp_path):
    live = {"line": fit(line), "parabola": fit(parabola)}
    for name, one in live.items():
        one.save(tmp_path / f"{name}.json")
    loaded = {name: gradfit.load(tmp_path / f"{name}.json") for name in live}
    comparison = gradfit.compare(loaded, folds=3)
    assert not comparison.tests
    assert "loaded from a file" in comparison.pairs[0].reason
    assert "not cross-validated" in comparison["line"].remark
    told = gradfit.compare(loaded, nested={("line", "parabola"): True})
    ours = gradfit.compare(live)
    assert [row.weight for row in told.rows] == [row.weight for row in ours.rows]
    assert told.tests[0].p_value == ours.tests[0].p_value


def test_a_long_loaded_result_is_compared_by_the_rows_it_kept(tmp_path):
    x = np.linspace(0, 1, 12_000)
    y = x + np.random.default_rng(0).normal(size=12_000)
    gradfit.fit(line, x, y).save(tmp_path / "line.json")
    loaded = gradfit.load(tmp_path / "line.json")
    assert len(gradfit.compare([loaded, gradfit.fit(parabola, x, y)]).rows) == 2
    with pytest.raises(gradfit.DataError, match="target"):
        gradfit.compare([loaded, gradfit.fit(parabola, x, y + 1)])


def test_a_comparison_is_frozen_and_shown_as_one_table():
    comparison = gradfit.compare([fit(constant), fit(line), fit(parabola)], names=["none", "line", "<bent>"], folds=4)
    with pytest.raises(AttributeError):
        comparison.rows = ()
    text = str(comparison)
    for word in ("3 models of y", "40 rows", "best: line", "ΔAICc", "weight", "F(1, 37)", "cross-validated", "±"):
        assert word in text
    assert "&lt;bent&gt;" in comparison._repr_html_()
    table = comparison.to_pandas()
    assert list(table.index) == list(comparison.names)
    assert table.loc["line", "aicc"] == comparison["line"].aicc
    assert json.loads(comparison.to_json())["rows"][0] | {"fold_losses": None} == comparison.to_dict()["rows"][0] | {
        "fold_losses": None
    }
    with pytest.raises(gradfit.OptionError, match="unknown model of the comparison"):
        comparison["cubic"]


def test_the_command_compares_saved_fits(tmp_path, capsys):
    for model in (line, parabola):
        fit(model).save(tmp_path / f"{model.__name__}.json")
    files = [str(tmp_path / "line.json"), str(tmp_path / "parabola.json")]
    assert cli.main(["compare", *files, "--nested", "line=parabola"]) == 0
    out, err = capsys.readouterr()
    assert "best: line" in out
    assert "F(1, 37)" in out
    assert err == ""
    assert cli.main(["compare", *files, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["best"] == "line"
    fit(line, STRAIGHT + 1).save(tmp_path / "other.json")
    assert cli.main(["compare", files[0], str(tmp_path / "other.json")]) == 2
    assert "cannot be compared" in capsys.readouterr().err
    fit(two_decays, method="sgd", epochs=3, on_failure="ignore").save(tmp_path / "failed.json")
    assert cli.main(["compare", files[0], str(tmp_path / "failed.json")]) == 1
    out, err = capsys.readouterr()
    assert "not ranked" in out
    assert err.startswith("gradfit: the fit 'failed'")
