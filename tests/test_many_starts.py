"""fit_many where nobody gave a start: each fit finds its own, from its own data alone, and says so."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gradfit
from gradfit import jobs
from gradfit.lineshapes import constant, gaussian
from gradfit.statistics.many_record import ARRAYS

COUNT, POINTS = 120, 30
X = np.linspace(-4, 4, POINTS)
rng = np.random.default_rng(0)
OWN_X = np.sort(rng.uniform(-4, 4, (COUNT, POINTS)), axis=1)
TRUE = {
    "height": rng.uniform(1, 3, COUNT),
    "center": rng.uniform(-3.3, 3.3, COUNT),
    "width": rng.uniform(0.4, 1.5, COUNT),
    "offset": np.full(COUNT, 0.5),
}
NOISE = rng.normal(size=(COUNT, POINTS)) * (rng.uniform(0.05, 0.15, COUNT) * TRUE["height"])[:, None]


def peak(x, height, center, width, offset):
    return height * np.exp(-0.5 * ((x - center) / width) ** 2) + offset


def decay(x, a, k, c):
    return a * np.exp(-k * x) + c


def wave(x, a, w, p, c):
    return a * np.sin(w * x + p) + c


def line(x, a, b):
    return a * x + b


def at(x):
    return peak(x, *(value[:, None] for value in TRUE.values())) + NOISE


Y = at(X)
GAPS = np.where(rng.random(Y.shape) < 0.05, np.nan, Y)


def reach(fits, best):
    """Share of fits that end as low as those that began at the truth."""
    lost = np.where(fits.success, fits.loss, np.inf)
    return np.mean(lost <= np.where(best.success, best.loss, np.inf) * (1 + 1e-4))


def same(one, other, places=slice(None)):
    """Compare records to the last bit."""
    for name in ARRAYS:
        if getattr(one, name) is not None:
            assert np.array_equal(getattr(one, name)[places], getattr(other, name), equal_nan=True), name


def waves(count):
    generator = np.random.default_rng(1)
    t = np.linspace(0, 10, POINTS)
    true = {"a": generator.uniform(1, 3, count), "w": generator.uniform(0.5, 7, count), "p": generator.uniform(-3, 3, count)}
    true["c"] = generator.uniform(-1, 1, count)
    noise = generator.normal(0, 0.1, (count, POINTS)) * true["a"][:, None]
    return t, wave(t, *(value[:, None] for value in true.values())) + noise, true


def decays(count):
    generator = np.random.default_rng(2)
    t = np.linspace(0, 10, POINTS)
    true = {
        "a": generator.uniform(1, 3, count),
        "k": 10 ** generator.uniform(-1, 0.7, count),
        "c": generator.uniform(-1, 1, count),
    }
    return t, decay(t, *(value[:, None] for value in true.values())) + generator.normal(0, 0.05, (count, POINTS)), true


CASES = {
    "peaks": (peak, X, Y, TRUE, {}),
    "peaks at their own x": (peak, OWN_X, at(OWN_X), TRUE, {}),
    "peaks with gaps": (peak, X, GAPS, TRUE, {}),
    "peaks with bounds": (peak, X, Y, TRUE, {"bounds": {"height": (0, 5), "width": (0.1, 4)}}),
    "robust peaks": (peak, X, Y, TRUE, {"loss": "soft_l1", "f_scale": 0.3}),
    "waves": (wave, *waves(COUNT), {}),
    "decays": (decay, *decays(COUNT), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_fits_without_a_start_end_where_fits_from_the_truth_do(case):
    model, x, y, true, options = CASES[case]
    fits = gradfit.fit_many(model, x, y, **options)
    assert reach(fits, gradfit.fit_many(model, x, y, start=true, **options)) >= 0.98
    assert fits.beginning.startswith(f"No start was given for {', '.join(true)}: chosen for each fit among ")
    assert fits.beginning in fits.report()
    assert fits.beginning in str(fits)


@pytest.mark.parametrize("x", [1e-9 * X, 1e6 * X], ids=["tiny", "huge"])
def test_units_do_not_matter(x):
    fits = gradfit.fit_many(peak, x, 1e-8 * Y)
    unit = x[-1] / X[-1]
    usual = gradfit.fit_many(peak, X, Y)
    assert np.mean(np.abs(fits.values["center"] / unit - usual.values["center"]) < 1e-5) >= 0.98


def test_a_lineshape_needs_no_start():
    fits = gradfit.fit_many(gaussian + constant, X, Y)
    assert reach(fits, gradfit.fit_many(peak, X, Y, start=TRUE)) >= 0.98
    assert (fits.values["sigma"] > 0).all()


def test_a_width_is_rather_positive():
    assert np.mean(gradfit.fit_many(peak, X, Y).values["width"] > 0) >= 0.98


@pytest.mark.parametrize("case", ["peaks", "peaks at their own x", "peaks with gaps", "waves"])
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places=st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=COUNT, unique=True), threads=st.integers(1, 3))
def test_where_a_fit_begins_does_not_depend_on_the_others(case, places, threads):
    model, x, y, _, _ = CASES[case]
    whole = gradfit.fit_many(model, x, y).record
    some = gradfit.fit_many(model, x if x.ndim == 1 else x[places], y[places], threads=threads).record
    same(whole, some, places)


def test_blocks_change_nothing(monkeypatch):
    whole = gradfit.fit_many(peak, X, GAPS).record
    monkeypatch.setattr(jobs, "MOST_FITS", 7)
    monkeypatch.setattr(jobs, "LEAST", 7)
    same(whole, gradfit.fit_many(peak, X, GAPS).record)


def test_one_fit_begins_where_it_began_in_the_batch():
    fits = gradfit.fit_many(peak, X, Y)
    for place in range(0, COUNT, 17):
        fit = fits[place]
        assert fit.beginning.text == fits.beginning
        assert fit.record.steps <= 5
        assert fit.params["center"].start == pytest.approx(fit.values["center"], abs=fit.params["center"].stderr)
        assert fit.values["center"] == pytest.approx(fits.values["center"][place], abs=3e-3 * fits.stderr["center"][place])


def test_a_given_start_is_no_matter_of_search():
    t, y, true = waves(COUNT)
    told = gradfit.fit_many(wave, t, y, start={"w": true["w"]})
    assert told.beginning.startswith("No start was given for a, p, c: ")
    assert reach(told, gradfit.fit_many(wave, t, y, start=true)) == 1
    elsewhere = gradfit.fit_many(wave, t, y, start={"w": 3.0})
    assert np.mean(np.abs(elsewhere.values["w"] - 3) < 1) > 0.8  # the next minimum, whatever the lowest is
    assert gradfit.fit_many(wave, t, y, start=true).beginning == ""


def test_a_model_linear_in_all_parameters_needs_no_search():
    fits = gradfit.fit_many(line, X, Y)
    assert fits.beginning == ""
    slope, offset = np.polyfit(X, Y.T, 1)
    np.testing.assert_allclose(fits.values["a"], slope, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(fits.values["b"], offset, rtol=1e-9)


def test_numbers_in_which_a_model_is_linear_follow_from_given_ones():
    fits = gradfit.fit_many(peak, X, Y, start={"center": TRUE["center"], "width": TRUE["width"]})
    assert fits.beginning == "No start was given for height, offset: begun where the squares are least, given the others."
    assert fits.success.all()


def test_earlier_results_and_neighbours_take_what_is_found_as_the_default():
    usual = gradfit.fit_many(peak, X, Y)
    earlier = gradfit.fit_many(peak, X, Y, max_steps=2, start={"height": 1, "center": 0, "width": 1, "offset": 0})
    assert not earlier.success.all()
    again = gradfit.fit_many(peak, X, Y, start=earlier)
    assert again.success.all()
    lost = ~earlier.success
    same(usual.record, again.record.part(lost), lost)
    led = gradfit.fit_many(peak, X, Y, start="neighbour")
    same(usual.record, led.record.part(np.array([0, 64])), [0, 64])


def test_a_descent_and_the_torch_engine_search_fit_by_fit():
    y = Y[:3]
    descent = gradfit.fit_many(peak, X, y, method="adam", learning_rate=0.02, epochs=3000)
    slow = gradfit.fit_many(peak, X, y, engine="torch")
    usual = gradfit.fit_many(peak, X, y)
    for fits in (descent, slow):
        assert (
            fits.beginning == "No start was given for height, center, width, offset: searched for in each fit by itself (seed 0)."
        )
        np.testing.assert_allclose(fits.values["center"], usual.values["center"], atol=0.02)


def test_failures_are_retried_from_what_was_found():
    hasty = gradfit.fit_many(peak, X, Y[:4], method="adam", epochs=1)
    assert not hasty.success.any()
    again = hasty.retry(method="lm", multistart=3)
    usual = gradfit.fit_many(peak, X, Y[:4])
    assert (again.loss <= usual.loss * (1 + 1e-9)).all()


def test_saved_fits_say_where_they_began(tmp_path):
    fits = gradfit.fit_many(peak, X, Y)
    for name in ("fits.parquet", "fits.nc"):
        pytest.importorskip("pyarrow" if name.endswith("parquet") else "h5netcdf")
        fits.save(tmp_path / name)
        assert gradfit.load(tmp_path / name).beginning == fits.beginning


def test_a_checkpoint_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    whole = gradfit.fit_many(peak, X, Y, checkpoint=tmp_path / "run").record
    files = sorted((tmp_path / "run").glob("fits-*.parquet"))
    files[-1].unlink()
    same(whole, gradfit.fit_many(peak, X, Y, checkpoint=tmp_path / "run").record)
    with pytest.raises(gradfit.StorageError, match="without a start"):
        gradfit.fit_many(peak, X, Y, checkpoint=tmp_path / "run", start=dict.fromkeys(TRUE, 1.0))


def test_what_is_wrong_with_some_data_disturbs_no_other():
    y = Y[:6].copy()
    y[1], y[2, 3:], y[3, 0], y[4] = np.nan, np.nan, np.inf, 0.0
    fits = gradfit.fit_many(peak, X, y)
    assert list(fits.status[1:4]) == ["no_data", "too_few", "infinite_data"]
    same(gradfit.fit_many(peak, X, Y[:6]).record, fits.record.part([0, 5]), [0, 5])
