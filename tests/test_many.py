"""fit_many beside gradfit.fit of the same data: every option, one fit after the other; and fits that must not see each other."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

import gradfit
from gradfit import jobs
from gradfit.drivers.batched import worker_count
from gradfit.methods.many import NAMES
from gradfit.methods.optimizers import OPTIMIZERS
from gradfit.statistics.many_record import ARRAYS, SENTENCES

COUNT, POINTS = 30, 20
X = np.linspace(0, 4, POINTS)
NOISE = 0.05
NEAR = 3e-3  # standard errors between where a batch and a single fit end


def decay(x, a=1.0, t=1.0, c=0.0):
    return a * np.exp(-x / t) + c


def drawn(count=COUNT, seed=0):
    rng = np.random.default_rng(seed)
    a, t = rng.uniform(1, 3, count), rng.uniform(0.5, 2, count)
    return a[:, None] * np.exp(-X / t[:, None]) + 0.5 + rng.normal(0, NOISE, (count, POINTS))


Y = drawn()
rng = np.random.default_rng(1)
SIGMA = rng.uniform(0.03, 0.08, (COUNT, POINTS))
MASK = rng.random((COUNT, POINTS)) < 0.1
APART = rng.random((COUNT, POINTS)) < 0.2
APART[:, 3] = True
GAPS = np.where(MASK, np.nan, Y)
OWN = rng.uniform(0.45, 0.55, COUNT)
UPPER = rng.uniform(1.0, 1.6, COUNT)


def single(i, x=X, y=None, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gradfit.GradfitWarning)
        return gradfit.fit(decay, x, Y[i] if y is None else y, on_failure="ignore", **options)


def agree(fits, i, fit):
    """Compare one of many fits with a single one."""
    assert fits.status[i] == fit.status
    assert fits.n[i] == fit.n
    assert fits.loss[i] == pytest.approx(fit.loss, rel=1e-4)
    limits = fits.intervals(0.9)
    for name, (lower, upper) in fit.intervals(0.9).items():
        value, error = fit.params[name].value, fit.params[name].stderr
        atol = max(NEAR * np.nan_to_num(error), 1e-7 * abs(value))
        assert fits.values[name][i] == pytest.approx(value, abs=atol)
        assert fits.stderr[name][i] == pytest.approx(error, rel=0.01, nan_ok=True)
        assert (limits[name][0][i], limits[name][1][i]) == pytest.approx((lower, upper), rel=1e-6, abs=10 * atol, nan_ok=True)
    if fits.validation_loss is not None:
        assert fits.validation_loss[i] == pytest.approx(fit.validation_loss, rel=0.01)


def same(one, other, places=slice(None), beside=slice(None)):
    """Compare two records to the last bit."""
    for name in ARRAYS:
        if getattr(one, name) is not None:
            assert np.array_equal(getattr(one, name)[places], getattr(other, name)[beside], equal_nan=True), name


CASES = {
    "plain": ({}, lambda i: {}),
    "one sigma per fit": ({"sigma": SIGMA[:, :1]}, lambda i: {"sigma": SIGMA[i, 0]}),
    "measured errors": (
        {"sigma": SIGMA, "absolute_sigma": True},
        lambda i: {"sigma": SIGMA[i], "absolute_sigma": True},
    ),
    "starts": ({"start": {"t": UPPER, "a": 2}}, lambda i: {"start": {"t": UPPER[i], "a": 2}}),
    "a table of starts": (
        {"start": np.column_stack([UPPER, UPPER, OWN])},
        lambda i: {"start": [UPPER[i], UPPER[i], OWN[i]]},
    ),
    "bounds": ({"bounds": {"t": (0.1, UPPER)}}, lambda i: {"bounds": {"t": (0.1, UPPER[i])}}),
    "fixed": ({"fixed": {"c": OWN}}, lambda i: {"fixed": {"c": OWN[i]}}),
    "fixed where it starts": (
        {"fixed": ["c"], "start": {"c": OWN}},
        lambda i: {"fixed": ["c"], "start": {"c": OWN[i]}},
    ),
    "tied": ({"tied": {"c": "a/4"}}, lambda i: {"tied": {"c": "a/4"}}),
    "tied to two": ({"tied": {"c": "exp(-t) + 0.1*a"}}, lambda i: {"tied": {"c": "exp(-t) + 0.1*a"}}),
    "everything fixed": ({"fixed": {"a": 2, "t": 1, "c": 0.5}}, lambda i: {"fixed": {"a": 2, "t": 1, "c": 0.5}}),
    "neighbours": ({"start": "neighbour"}, lambda i: {}),
    "a fraction to validate on": ({"validation": 0.2, "seed": 3}, lambda i: {"validation": 0.2, "seed": 3}),
    "rows to validate on": ({"validation": [1, 5, 7]}, lambda i: {"validation": [1, 5, 7]}),
    "robust": ({"loss": "soft_l1", "f_scale": 0.1}, lambda i: {"loss": "soft_l1", "f_scale": 0.1}),
    "robust, validated": (
        {"loss": "huber", "f_scale": 0.1, "validation": 0.2},
        lambda i: {"loss": "huber", "f_scale": 0.1, "validation": 0.2},
    ),
    "single precision": ({"dtype": "float32"}, lambda i: {}),
}


@pytest.mark.parametrize("case", CASES)
def test_many_fits_are_those_made_one_by_one(case):
    options, own = CASES[case]
    fits = gradfit.fit_many(decay, X, Y, **options)
    for i in (0, 9, COUNT - 1):
        agree(fits, i, single(i, **own(i)))


def test_missing_points_are_left_out_however_they_are_told():
    given = {
        "NaN": gradfit.fit_many(decay, X, GAPS),
        "masked": gradfit.fit_many(decay, X, np.ma.array(Y, mask=MASK)),
        "mask": gradfit.fit_many(decay, X, Y, mask=MASK),
        "lists": gradfit.fit_many(decay, [X[~own] for own in MASK], [y[~own] for y, own in zip(Y, MASK, strict=True)]),
    }
    for fits in given.values():
        same(given["NaN"].record, fits.record)
        assert (fits.n == (~MASK).sum(axis=1)).all()
    for i in (0, 9):
        agree(given["NaN"], i, single(i, X[~MASK[i]], Y[i][~MASK[i]]))
    assert given["NaN"][0].record.dropped == MASK[0].sum()
    for_all = gradfit.fit_many(decay, X, Y, mask=MASK[0])
    agree(for_all, 9, single(9, X[~MASK[0]], Y[9][~MASK[0]]))


@pytest.mark.parametrize("validation", [0.2, [1, 4, 5, 7], APART], ids=["fraction", "rows", "mask"])
def test_validation_rows_are_told_apart_before_missing_ones_are_left_out(validation):
    fits = gradfit.fit_many(decay, X, GAPS, validation=validation, start="neighbour")
    for i in (0, 9, COUNT - 1):
        own = APART[i] if validation is APART else validation
        agree(fits, i, single(i, y=GAPS[i], validation=own, missing="drop"))


def test_long_columns_take_masks_and_validation_like_arrays():
    lengths = np.random.default_rng(5).integers(10, POINTS + 1, COUNT)
    inside = np.arange(POINTS) < lengths[:, None]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    long_x, long_y = np.broadcast_to(X, Y.shape)[inside], Y[inside]
    options = {"mask": MASK[inside], "validation": APART[inside], "sigma": SIGMA[inside]}
    fits = gradfit.fit_many(decay, long_x, long_y, offsets=offsets, **options)
    for i in (0, 9, COUNT - 1):
        kept = inside[i] & ~MASK[i]
        own = {"validation": APART[i][kept], "sigma": SIGMA[i][kept]}
        agree(fits, i, single(i, X[kept], Y[i][kept], **own))


def line(x, c=np.zeros(2), k=1.0):
    return k * (c[0] * x + c[1])


def test_vector_parameters_have_starts_ties_and_intervals_of_their_shape():
    starts = np.random.default_rng(2).normal(size=(COUNT, 2))
    fits = gradfit.fit_many(line, X, Y, start={"c": starts}, tied={"k": lambda c: 1 + c[0] ** 2})
    assert fits.names == ("c[0]", "c[1]", "k")
    assert fits.values["c"].shape == fits.intervals()["c"][0].shape == (COUNT, 2)
    assert fits.covariance.shape == (COUNT, 3, 3)
    fit = gradfit.fit(line, X, Y[4], start={"c": starts[4]}, tied={"k": lambda c: 1 + c[0] ** 2})
    np.testing.assert_allclose(fits.covariance[4], fit.covariance, rtol=0.01)
    np.testing.assert_allclose(fits.values["c"][4], fit.values["c"], rtol=1e-4)
    assert fits.stderr["k"][4] == pytest.approx(fit.params["k"].stderr, rel=0.01)


def test_nearly_singular_fits_have_the_errors_of_single_ones():
    def cubic(x, a=1.0, b=1.0, c=1.0, d=1.0):
        return a * x**3 + b * x**2 + c * x + d

    fits = gradfit.fit_many(cubic, X + 100, Y[:3], covariance=True)
    fit = gradfit.fit(cubic, X + 100, Y[2])
    np.testing.assert_allclose(fits.covariance[2], fit.covariance, rtol=0.01)
    np.testing.assert_allclose(fits.stderr["a"][2], fit.params["a"].stderr, rtol=0.01)


@pytest.mark.parametrize("name", ["adam", "sgd", pytest.param("rest", marks=pytest.mark.slow)])
def test_optimizers_of_torch_take_the_same_steps_as_in_a_single_fit(name):
    rest = sorted(set(OPTIMIZERS) - {"adam", "sgd", "sparseadam", "muon"})
    for method in rest if name == "rest" else [name]:
        options = {"method": method, "epochs": 20, "validation": 0.2, "learning_rate": 0.02, "seed": 4}
        options |= {"batch_size": 4} if method == "sgd" else {}
        fits = gradfit.fit_many(decay, X, Y[:4], **options)
        for i in (0, 3):
            fit = single(i, **options)
            assert [fits.values[name][i] for name in fits.values] == list(fit.values.values())
            assert (fits.steps[i], fits.validation_loss[i]) == (len(fit.history["train_loss"]), fit.validation_loss)


# --- starts --------------------------------------------------------------------------------------------------------------


def test_earlier_results_are_starts_but_where_they_failed_or_are_outside_the_bounds():
    broken = Y.copy()
    broken[3] = np.nan
    earlier = gradfit.fit_many(decay, X, broken)
    plain, warm = gradfit.fit_many(decay, X, Y), gradfit.fit_many(decay, X, Y, start=earlier)
    assert (warm.steps[[0, 1, 2, 4]] < plain.steps[[0, 1, 2, 4]]).all()
    same(plain.record, warm.record, [3], [3])
    outside = gradfit.fit_many(decay, X, Y, start=earlier, bounds={"t": (0.9, None)})
    far = earlier.values["t"] < 0.9
    anew = gradfit.fit_many(decay, X, Y, bounds={"t": (0.9, None)})
    same(anew.record, outside.record, far, far)
    for start, told in ((gradfit.fit_many(decay, X, Y[:5]), "5 earlier fits"), (gradfit.fit_many(line, X, Y), "is not among")):
        with pytest.raises(gradfit.ParameterError, match=told):
            gradfit.fit_many(decay, X, Y, start=start)


def test_from_neighbours_begin_multiples_of_64_then_of_8_then_the_others(monkeypatch):
    data = np.repeat(Y[:1], 140, axis=0)
    data[[8, 64]] = np.nan
    alone = gradfit.fit_many(decay, X, Y[:1]).steps[0]
    fits = gradfit.fit_many(decay, X, data, start="neighbour")
    own = np.flatnonzero(fits.steps == alone).tolist()
    # 0 and 128 begin for themselves; those after 8 and 64, which have no data, at the default: to 72 leads 64.
    assert own == [0, *range(9, 16), *range(65, 72), 72, 80, 88, 96, 104, 112, 120, 128]
    assert (np.delete(fits.steps, own) < alone).all()
    monkeypatch.setattr(jobs, "BLOCK_NUMBERS", 1)
    same(fits.record, gradfit.fit_many(decay, X, data, start="neighbour", threads=2).record)


def test_a_fit_that_fails_from_its_neighbour_is_made_again_from_the_default():
    def pole(x, w=20.0):
        return np.log(w - x)

    x = np.stack([X, X + 10])  # where the first ends, w = 5, the second has no value
    fits = gradfit.fit_many(pole, x, np.log([[5.0], [15.0]] - x), start="neighbour")
    np.testing.assert_allclose(fits.values["w"], [5, 15])
    assert fits[1].values["w"] == pytest.approx(15)


# --- each for itself -------------------------------------------------------------------------------------------------------

GARBAGE = {
    "all NaN": lambda y, x, sigma, t: y.fill(np.nan),
    "infinite": lambda y, x, sigma, t: y.__setitem__(5, -np.inf),
    "constant": lambda y, x, sigma, t: y.fill(2.0),
    "all zero": lambda y, x, sigma, t: y.fill(0.0),
    "two points": lambda y, x, sigma, t: y.__setitem__(slice(2, None), np.nan),
    "a gap": lambda y, x, sigma, t: y.__setitem__(4, np.nan),
    "NaN for a start": lambda y, x, sigma, t: t.fill(np.nan),
    "a start where the model overflows": lambda y, x, sigma, t: t.fill(-1e-3),
    "equal x": lambda y, x, sigma, t: x.fill(1.0),
    "zero sigma": lambda y, x, sigma, t: sigma.__setitem__(7, 0.0),
    "huge": lambda y, x, sigma, t: y.__imul__(1e200),
    "tiny": lambda y, x, sigma, t: y.__imul__(1e-200),
}
SLOWLY = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def run_with(garbage, options, order=slice(None)):
    """Fit with some data sets spoiled."""
    y, x, sigma, t = Y.copy(), np.tile(X, (COUNT, 1)), SIGMA.copy(), np.ones((COUNT, 1))
    for place, kind in garbage.items():
        GARBAGE[kind](y[place], x[place], sigma[place], t[place])
    return gradfit.fit_many(decay, x[order], y[order], sigma=sigma[order], start={"t": t[order, 0]}, covariance=True, **options)


OPTIONS = st.sampled_from([{}, {"tied": {"c": "exp(a)/30"}}, {"validation": 0.2}, {"dtype": "float32"}, {"loss": "huber"}])


@SLOWLY
@given(st.dictionaries(st.integers(0, COUNT - 1), st.sampled_from(sorted(GARBAGE)), max_size=8), OPTIONS)
def test_what_is_wrong_with_some_fits_changes_no_bit_of_the_others(garbage, options):
    clean, spoiled = run_with({}, options), run_with(garbage, options)
    others = np.setdiff1d(np.arange(COUNT), list(garbage))
    same(clean.record, spoiled.record, others, others)
    assert "not_done" not in spoiled.status


@SLOWLY
@given(st.permutations(range(COUNT)), st.integers(1, COUNT), OPTIONS)
def test_neither_the_order_of_fits_nor_who_is_beside_them_changes_a_bit(order, count, options):
    garbage = {2: "all NaN", 5: "huge", 11: "equal x"}
    whole, some = run_with(garbage, options), run_with(garbage, options, list(order[:count]))
    same(whole.record, some.record, list(order[:count]))


@pytest.mark.parametrize(
    ("kind", "status"),
    [("all NaN", "no_data"), ("infinite", "infinite_data"), ("two points", "too_few"), ("NaN for a start", "bad_start"),
     ("a start where the model overflows", "not_finite"), ("zero sigma", "bad_sigma"), ("tiny", "vanishing_data")],
)  # fmt: skip
def test_the_status_says_what_is_wrong(kind, status):
    fits = run_with({4: kind}, {})
    assert (fits.status[4], fits.counts) == (status, {"converged": COUNT - 1, status: 1})
    assert fits.failed.tolist() == [4]
    assert np.isnan([fits.stderr["a"][4], *(side[4] for side in fits.intervals()["a"])]).all()
    assert fits.message(4) == SENTENCES[status]
    if status != "not_finite":
        assert np.isnan(fits.values["a"][4])
        with pytest.raises(gradfit.FitError, match="fit 4 has no result"):
            fits[4]


def test_a_batch_without_any_data_has_its_statuses():
    data = np.full((3, POINTS), np.nan)
    data[1] = np.inf
    fits = gradfit.fit_many(decay, X, data, tied={"c": "a/4"}, validation=0.2)
    assert fits.status.tolist() == ["no_data", "infinite_data", "no_data"]
    assert np.isnan(fits.values["c"]).all()
    assert np.isnan(fits.intervals(kind="profile")["a"][0]).all()
    assert fits.retry(multistart=3).counts == fits.counts


def test_an_error_of_one_fit_is_its_status_and_raised_when_it_is_looked_at():
    def picky(x, a=1.0, b=0.0):
        if np.max(x) > 100:
            raise ValueError("out of range")
        return a * np.asarray(x) + b

    x = np.tile(X, (5, 1))
    x[2, -1] = 1000.0
    fits = gradfit.fit_many(picky, x, Y[:5])
    assert fits.status.tolist() == ["converged", "converged", "refused", "converged", "converged"]
    with pytest.raises(gradfit.ModelError, match="out of range"):
        fits[2]
    counts = np.random.default_rng(0).poisson(20 * Y[:5]).astype(float)
    counts[1, 3] = -1
    assert gradfit.fit_many(decay, X, counts, loss="poisson", start={"a": 20, "c": 10}).status[1] == "refused"


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"epochs": 3}, gradfit.OptionError, "belongs to gradient descent"),
        ({"method": "linear"}, gradfit.ModelError, "not linear"),
        ({"method": "nothing"}, gradfit.OptionError, "unknown method"),
        ({"loss": "squared", "f_scale": 1.0}, gradfit.OptionError, "f_scale"),
        ({"start": {"q": 1.0}}, gradfit.ParameterError, "unknown parameter 'q'"),
        ({"start": {"a": np.ones(COUNT + 1)}}, gradfit.ParameterError, "31 values for 30 fits"),
        ({"start": np.ones((COUNT, 2))}, gradfit.ParameterError, "a column for each of a, t, c"),
        ({"start": "neighbor"}, gradfit.OptionError, "Did you mean 'neighbour'"),
        ({"tied": {"c": "q"}}, gradfit.ParameterError, "tied to it"),
        ({"missing": "keep"}, gradfit.OptionError, "unknown value of missing"),
        ({"on_failure": "cry"}, gradfit.OptionError, "unknown value of on_failure"),
        ({"absolute_sigma": True}, gradfit.OptionError, "no sigma was given"),
        ({"threads": 0}, gradfit.OptionError, "threads is 0"),
        ({"threads": 1.5}, gradfit.OptionError, "threads is 1.5"),
        ({"validation": 1.2}, gradfit.DataError, "between 0 and 1"),
        ({"validation": 0.01}, gradfit.DataError, "is no row"),
        ({"validation": [0, 40]}, gradfit.DataError, "names row 40"),
        ({"validation": "all"}, gradfit.DataError, "expected a fraction"),
        ({"validation": np.ones((3, 4), dtype=bool)}, gradfit.DataError, "has shape"),
        ({"validation": np.ones((COUNT, POINTS), dtype=bool)}, gradfit.DataError, "everything"),
        ({"mask": np.zeros((3, POINTS), dtype=bool)}, gradfit.DataError, "mask has shape"),
        ({"mask": np.zeros(POINTS)}, gradfit.DataError, "True and False"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_wrong_for_all_fits_is_raised_at_once(options, error, told):
    with pytest.raises(error, match=told):
        gradfit.fit_many(decay, X, Y, **options)


def test_missing_values_and_failures_are_raised_where_that_is_asked_for():
    with pytest.raises(gradfit.DataError, match=r"fit 7 has values that are NaN in 2 of its rows"):
        gradfit.fit_many(decay, X, np.where((np.arange(COUNT)[:, None] == 7) & (X < 0.3), np.nan, Y), missing="raise")
    broken = Y.copy()
    broken[3] = np.nan
    told = r"1 of 30 fits did not succeed: 1 no_data"
    with pytest.warns(gradfit.FitWarning, match=told):
        gradfit.fit_many(decay, X, broken, on_failure="warn")
    with pytest.raises(gradfit.FitError, match=told):
        gradfit.fit_many(decay, X, broken, on_failure="raise")


def test_a_module_is_no_model_of_many_fits():
    import torch

    with pytest.raises(gradfit.ModelError, match="trained once"):
        gradfit.fit_many(torch.nn.Linear(1, 1), X, Y)


# --- again -----------------------------------------------------------------------------------------------------------------


def test_retry_makes_the_failures_again_and_leaves_the_others_to_the_last_bit():
    few = gradfit.fit_many(decay, X, Y, max_steps=3)
    lost, kept = few.failed, np.flatnonzero(few.success)
    assert 0 < len(lost) < COUNT
    more = few.retry(max_steps=100)
    assert more.success.all()
    same(few.record, more.record, kept, kept)
    for i in (lost[0], kept[0]):
        agree(more, i, single(i))
        agree(more, i, more[int(i)])
    whole = gradfit.fit_many(decay, X, Y, covariance=True)
    np.testing.assert_allclose(more.covariance, whole.covariance, rtol=0.02, atol=1e-8)
    descended = few.retry(method="adam", epochs=3000, learning_rate=0.05)
    agree(descended, lost[0], single(lost[0], method="adam", epochs=3000, learning_rate=0.05))


def test_more_starts_find_the_lowest_minimum_and_are_drawn_for_each_fit_alone():
    options = {"start": {"t": np.where(np.arange(COUNT) % 4 == 1, 1e-3, 1.0)}}
    fits = gradfit.fit_many(decay, X, Y, **options)
    lost = fits.failed
    assert len(lost) > 1
    again = fits.retry(multistart=12, seed=5)
    assert (again.loss[lost] < fits.loss[lost]).all()
    assert again.success.sum() > fits.success.sum()
    same(fits.record, again.record, fits.success, fits.success)
    alone = np.where(np.arange(COUNT)[:, None] == lost[0], Y, np.nan)
    one = gradfit.fit_many(decay, X, alone, **options).retry(multistart=12, seed=5)
    same(again.record, one.record, [lost[0]], [lost[0]])
    assert not np.array_equal(fits.retry(multistart=12, seed=6).loss[lost], again.loss[lost])


def test_retry_says_at_once_what_cannot_be():
    few = gradfit.fit_many(decay, X, Y, max_steps=3)
    for options, error, told in (
        ({"epochs": 3}, gradfit.OptionError, "belongs to gradient descent"),
        ({"method": "linear"}, gradfit.ModelError, "not linear"),
        ({"multistart": 0}, gradfit.OptionError, "multistart is 0"),
        ({"seed": -1}, gradfit.OptionError, "seed is -1"),
    ):
        with pytest.raises(error, match=told):
            few.retry(**options)


def test_ragged_fits_are_made_again_from_their_own_rows():
    lengths = np.random.default_rng(5).integers(6, POINTS + 1, COUNT)
    x, y = [X[:n] for n in lengths], [own[:n] for own, n in zip(Y, lengths, strict=True)]
    apart = np.concatenate([APART[i, :n] for i, n in enumerate(lengths)])
    options = {"offsets": np.concatenate([[0], np.cumsum(lengths)]), "validation": apart}
    whole = gradfit.fit_many(decay, np.concatenate(x), np.concatenate(y), **options)
    again = gradfit.fit_many(decay, np.concatenate(x), np.concatenate(y), max_steps=3, **options).retry(max_steps=1000)
    assert (again.n == whole.n).all()
    good = whole.success & again.success
    np.testing.assert_allclose(again.validation_loss[good], whole.validation_loss[good], rtol=0.02)


# --- intervals -------------------------------------------------------------------------------------------------------------


def test_profile_intervals_are_those_of_the_fits_one_by_one():
    fits = gradfit.fit_many(decay, X, np.vstack([Y[:6], np.full((1, POINTS), 2.0), np.full((1, POINTS), np.nan)]))
    limits = fits.intervals(kind="profile", threads=2)
    for i in (0, 5):
        for name, expected in fits[i].intervals(kind="profile").items():
            assert [side[i] for side in limits[name]] == pytest.approx(expected, rel=1e-4)
    assert np.isnan(limits["a"][0][7])
    bounded = gradfit.fit_many(decay, X, Y[:4], bounds={"t": (0.1, 1.0)}, tied={"c": "a/4"})
    for i in range(4):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", gradfit.FitWarning)
            expected = bounded[i].intervals(kind="profile")
        found = bounded.intervals(kind="profile")
        for name in expected:
            assert [side[i] for side in found[name]] == pytest.approx(expected[name], rel=1e-4, nan_ok=True)


def test_bootstrap_intervals_depend_on_seed_and_place_only():
    fits = gradfit.fit_many(decay, X, Y[:20], tied={"c": "a/4"})
    options = {"kind": "bootstrap", "resamples": 60, "seed": 3}
    limits, again = fits.intervals(**options, threads=2), fits.intervals(**options, threads=1)
    assert all(np.array_equal(limits[name][side], again[name][side]) for name in limits for side in (0, 1))
    other = fits.intervals(kind="bootstrap", resamples=60, seed=4)
    assert not np.array_equal(other["a"][0], limits["a"][0])
    t = fits.intervals()
    widths = (limits["t"][1] - limits["t"][0]) / (t["t"][1] - t["t"][0])
    assert 0.7 < np.median(widths) < 1.3
    assert (limits["c"][0] < limits["c"][1]).all()


def test_intervals_say_what_they_cannot_be():
    fits = gradfit.fit_many(decay, X, Y[:3], loss="huber")
    for options, told in (
        ({"level": 2}, "level is 2"),
        ({"kind": "bayes"}, "unknown kind of interval"),
        ({"seed": 1}, "option of t intervals"),
        ({"kind": "profile"}, "needs a likelihood"),
        ({"kind": "bootstrap", "scheme": "parametric"}, "assumes no distribution"),
    ):
        with pytest.raises(gradfit.OptionError, match=told):
            fits.intervals(**options)


# --- threads ---------------------------------------------------------------------------------------------------------------


def test_threads_keep_within_what_other_libraries_were_told(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("gradfit.drivers.batched.cores", lambda: 64)
    assert worker_count(np.int64(3)) == 3
    with threadpool_limits(1):
        assert worker_count(None) == 1
        assert worker_count(5) == 5
    monkeypatch.setattr("threadpoolctl.threadpool_info", lambda: [{"num_threads": 8}, {"num_threads": 1}])
    assert worker_count(None) == 8
    for given_to_openmp, expected in (("4", 4), ("2,8", 2), ("many", 8)):
        monkeypatch.setenv("OMP_NUM_THREADS", given_to_openmp)
        assert worker_count(None) == expected


def test_every_status_has_its_sentence():
    assert set(SENTENCES) == set(NAMES)


def test_a_lower_bound_of_infinity_fails_its_fit_alone():
    low = np.array([-np.inf, np.inf, -np.inf])
    fits = gradfit.fit_many(lambda x, a=1.0, b=1.0: a * x + b, X, Y[:3], bounds={"a": (low, None)})
    assert fits.status.tolist() == ["converged", "bad_start", "converged"]


@pytest.mark.parametrize("what", ["start", "fixed"])
def test_numbers_meant_one_per_fit_are_told_to_be_too_few(what):
    target = np.exp(-np.linspace(0, 3, 12)) * np.ones((7, 1))
    with pytest.raises(gradfit.ModelError, match=f"{what} of a has 5 values, and there are 7 fits: for one each give 7"):
        gradfit.fit_many(lambda x, a, b: a * np.exp(-b * x), np.linspace(0, 3, 12), target, **{what: {"a": np.ones(5)}})
