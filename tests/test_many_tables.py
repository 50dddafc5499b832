"""fit_many on tables: one fit per label of a column, from whatever holds columns, with the bits of the same data as arrays."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import gradfit
from gradfit import DataError, FitWarning, ModelError, OptionError

FORMULA = "t_c = w*t_u + b"
SENSORS = {"attic": (0.54, -17.3), "cellar": (0.61, -20.0), "hall": (0.50, -15.5), "loft": (0.57, -18.0)}
RESULTS = ("values", "stderr", "loss", "n", "steps", "status")


def celsius(t_u, w, b):
    return w * t_u + b


@pytest.fixture(scope="module")
def readings() -> pd.DataFrame:
    """Readings of four thermometers as they came in: mixed."""
    rng = np.random.default_rng(0)
    sensor = rng.choice(list(SENSORS), 200)
    t_u = rng.uniform(20, 80, 200)
    s = rng.uniform(0.1, 0.5, 200)
    w, b = np.array([SENSORS[name] for name in sensor]).T
    return pd.DataFrame(
        {"sensor": sensor, "run": rng.integers(1, 3, 200), "t_u": t_u, "t_c": w * t_u + b + rng.normal(0, s), "s": s}
    )


def assert_same(one, other, names=RESULTS) -> None:
    for name in names:
        assert_array_equal(getattr(one.record, name), getattr(other.record, name))


def test_each_fit_is_that_of_its_rows_alone(readings):
    fits = gradfit.fit_many(FORMULA, data=readings, by="sensor", sigma="s", absolute_sigma=True)
    assert fits.keys["sensor"].tolist() == sorted(SENSORS)
    for place, name in enumerate(sorted(SENSORS)):
        own = gradfit.fit(FORMULA, data=readings[readings.sensor == name], sigma="s", absolute_sigma=True)
        for parameter in ("w", "b"):
            assert_allclose(fits.values[parameter][place], own.values[parameter], rtol=1e-9)
            assert_allclose(fits.stderr[parameter][place], own.params[parameter].stderr, rtol=1e-6)
        assert fits.n[place] == own.n
    assert fits[2].values == pytest.approx({"w": 0.5, "b": -15.5}, abs=0.3)


def test_every_kind_of_table_gives_the_same_bits(readings, tmp_path):
    readings.to_csv(tmp_path / "t.csv", index=False)
    readings.to_parquet(tmp_path / "t.parquet", row_group_size=17)
    columns = {name: readings[name].to_numpy() for name in readings}
    tables = (
        pl.from_pandas(readings),
        pl.from_pandas(readings).lazy(),
        pa.Table.from_pandas(readings),
        columns,
        {**columns, "sensor": list(columns["sensor"])},
    )
    first = gradfit.fit_many(celsius, data=readings, target="t_c", by=["sensor", "run"], sigma="s")
    for table in (*tables, tmp_path / "t.csv", str(tmp_path / "t.parquet")):
        fits = gradfit.fit_many(celsius, data=table, target="t_c", by=["sensor", "run"], sigma="s")
        assert_same(fits, first)
        assert {name: labels.tolist() for name, labels in fits.keys.items()} == {
            name: labels.tolist() for name, labels in first.keys.items()
        }
    arrays = [group for _, group in readings.groupby(["sensor", "run"])]
    lists = [[group[name].to_numpy() for group in arrays] for name in ("t_u", "t_c", "s")]
    assert_same(gradfit.fit_many(celsius, lists[0], lists[1], sigma=lists[2]), first)


def test_how_rows_are_mixed_does_not_matter_but_for_the_order_within_a_fit(readings):
    fits = [
        gradfit.fit_many(FORMULA, data=table, by="sensor") for table in (readings, readings.sort_values("sensor", kind="stable"))
    ]
    assert_same(*fits)


def test_a_fit_is_found_by_its_labels(readings):
    fits = gradfit.fit_many(FORMULA, data=readings, by=["sensor", "run"])
    place = fits.place(sensor="hall", run=2)
    assert (fits.keys["sensor"][place], fits.keys["run"][place]) == ("hall", 2)
    for key, said in (
        ({"sensor": "hall"}, "names 2 of 8 fits, expected one; name run too"),
        ({"sensor": "barn", "run": 1}, "no fit has sensor='barn', run=1; sensor has 'attic'"),
        ({"senser": "hall"}, "unknown key 'senser'; known: run, sensor. Did you mean 'sensor'"),
        ({}, "no key names 8 of 8"),
    ):
        with pytest.raises(DataError, match=said):
            fits.place(**key)
    days = gradfit.fit_many(
        "y = a + 0*x", data={"day": np.array(["2024-01-02", "2024-01-01"], "M8[D]"), "x": [1.0, 1], "y": [5.0, 7]}, by="day"
    )
    assert days.values["a"][days.place(day="2024-01-02")] == 5
    with pytest.raises(DataError, match="go by their place"):
        gradfit.fit_many(celsius, np.arange(5.0), np.ones((2, 5))).place(sensor="a")


def test_labels_come_with_the_results_and_are_kept_with_them(readings, tmp_path):
    fits = gradfit.fit_many(FORMULA, data=readings, by=["sensor", "run"])
    frame = fits.to_pandas()
    assert list(frame.columns[:4]) == ["sensor", "run", "w", "w_stderr"]
    assert frame.sensor.tolist() == sorted([*SENSORS, *SENSORS])
    for name in ("fits.parquet", "fits.nc"):
        fits.save(tmp_path / name)
        again = gradfit.load(tmp_path / name)
        assert again.place(sensor="loft", run=1) == fits.place(sensor="loft", run=1)
        assert_same(again, fits)


def test_starts_bounds_and_fixed_values_stand_in_the_order_of_the_groups(readings):
    b = np.array([SENSORS[name][1] for name in sorted(SENSORS)])
    fits = gradfit.fit_many(
        FORMULA, data=readings, by="sensor", fixed={"b": b}, start={"w": b}, bounds={"w": (None, [9, 9, 0.4, 9])}
    )
    assert_array_equal(fits.values["b"], b)
    assert_allclose(fits.values["w"], [0.54, 0.61, 0.4, 0.57], atol=0.01)
    with pytest.raises(gradfit.GradfitError):
        gradfit.fit_many(FORMULA, data=readings, by="sensor", start={"w": [1.0, 2.0]})


BAD_ROWS = {
    "nothing": ([np.nan, 1.0], [2.0, np.nan], "no_data"),
    "one": ([1.0], [2.0], "too_few"),
    "infinite": ([1.0, 2.0, np.inf], [1.0, 2.0, 3.0], "infinite_data"),
}


@pytest.mark.parametrize(("t_u", "t_c", "status"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_bad_group_has_its_status_and_the_others_keep_their_bits(t_u, t_c, status, readings, tmp_path):
    bad = pd.DataFrame({"sensor": "barn", "t_u": t_u, "t_c": t_c})
    table = pd.concat([readings[["sensor", "t_u", "t_c"]].iloc[:100], bad, readings[["sensor", "t_u", "t_c"]].iloc[100:]])
    table.to_parquet(tmp_path / "t.parquet")
    sound = gradfit.fit_many(FORMULA, data=readings, by="sensor")
    for source in (table, tmp_path / "t.parquet"):
        fits = gradfit.fit_many(FORMULA, data=source, by="sensor")
        assert fits.status[fits.place(sensor="barn")] == status
        assert_same(fits[fits.success], sound)


def test_missing_values_are_left_out_of_their_fit(readings):
    gaps = readings.copy()
    gaps.loc[[3, 50, 70], "t_c"] = np.nan
    gaps.loc[7, "t_u"] = np.nan
    fits = gradfit.fit_many(FORMULA, data=gaps, by="sensor")
    assert_same(fits, gradfit.fit_many(FORMULA, data=gaps.dropna(), by="sensor"))
    with pytest.raises(DataError, match="NaN"):
        gradfit.fit_many(FORMULA, data=gaps, by="sensor", missing="raise")


def test_rows_without_a_label_are_told_of(readings):
    gaps = readings.copy()
    gaps.loc[[3, 4], "sensor"] = None
    with pytest.warns(FitWarning, match="sensor is missing in 2 rows, which belong to no fit"):
        fits = gradfit.fit_many(FORMULA, data=gaps, by="sensor")
    assert fits.n.sum() == 198
    with pytest.raises(DataError, match="give them a label"):
        gradfit.fit_many(FORMULA, data=gaps, by="sensor", missing="raise")


def test_validation_rows_may_be_marked_in_the_order_of_the_table(readings):
    apart = np.arange(200) % 5 == 0
    fits = gradfit.fit_many(FORMULA, data=readings, by="sensor", validation=apart)
    assert_same(fits, gradfit.fit_many(FORMULA, data=readings[~apart], by="sensor"))
    assert np.isfinite(fits.validation_loss).all()


def test_failures_of_a_file_are_fitted_again(readings, tmp_path):
    readings.to_parquet(tmp_path / "t.parquet", row_group_size=31)
    model, begin = "t_c = exp(k*t_u) + b", {"k": 1.0, "b": 1.0}
    short = gradfit.fit_many(model, data=tmp_path / "t.parquet", by="sensor", start=begin, max_steps=1)
    assert len(short.failed) == 4
    again = short.retry(max_steps=500)
    whole = gradfit.fit_many(model, data=readings, by="sensor", start=begin, max_steps=500)
    assert_array_equal(again.success, whole.success)
    assert_array_equal(again.values["k"], whole.values["k"])


def test_work_on_a_file_goes_on_where_it_was_cut_off(readings, tmp_path, monkeypatch):
    readings.to_parquet(tmp_path / "t.parquet", row_group_size=31)
    whole = gradfit.fit_many(FORMULA, data=readings, by="sensor")
    for _ in range(2):
        fits = gradfit.fit_many(FORMULA, data=tmp_path / "t.parquet", by="sensor", checkpoint=tmp_path / "run")
        assert_same(fits, whole)
    changed = readings.assign(t_c=readings.t_c + 1)
    changed.to_parquet(tmp_path / "t.parquet", row_group_size=31)
    with pytest.raises(gradfit.StorageError, match="column t_c"):
        gradfit.fit_many(FORMULA, data=tmp_path / "t.parquet", by="sensor", checkpoint=tmp_path / "run")


def test_a_million_groups_of_one_row_have_a_status_each():
    n = 1_000_000
    fits = gradfit.fit_many(
        celsius, data={"sensor": np.arange(n), "t_u": np.ones(n), "t_c": np.ones(n)}, target="t_c", by="sensor"
    )
    assert fits.counts == {"too_few": n}


def test_a_long_group_beside_many_short_ones_needs_no_more_room_than_its_own():
    rng = np.random.default_rng(1)
    sensor = np.concatenate([np.repeat(np.arange(5000), 10), np.full(200_000, 2500)])
    t_u = rng.random(len(sensor))
    fits = gradfit.fit_many(celsius, data={"sensor": sensor, "t_u": t_u, "t_c": 2 * t_u + 1}, target="t_c", by="sensor")
    assert fits.success.all()
    assert fits.n[2500] == 200_010


BAD = {
    "no by": ({"data": {"t_u": [1], "t_c": [1]}}, DataError, "data= was given without by="),
    "unknown column": ({"by": "sensr"}, DataError, "unknown group column 'sensr'; .* Did you mean 'sensor'"),
    "the target": ({"by": "t_c"}, DataError, "'t_c', which is also the target"),
    "an argument": ({"by": ["sensor", "t_u"]}, DataError, "'t_u', which is also an argument of the model"),
    "twice": ({"by": ["sensor", "sensor"]}, DataError, "names 'sensor' twice"),
    "nothing": ({"by": []}, DataError, "by is \\[\\]; expected the name of the column"),
    "no name": ({"by": 3}, DataError, "by is 3; expected"),
    "offsets": ({"by": "sensor", "offsets": [0, 200]}, DataError, "offsets belongs to arrays"),
    "a mask": ({"by": "sensor", "mask": np.zeros(200, bool)}, DataError, "mask belongs to arrays"),
    "no table": ({"by": "sensor", "data": 3}, DataError, "data is of type int; expected a dict of columns"),
    "no file": ({"by": "sensor", "data": "nothing.parquet"}, DataError, "there is no file 'nothing.parquet'"),
    "target": ({"by": "sensor", "target": "tc"}, ModelError, "formula describes 't_c' and target= says 'tc'"),
    "sigma": ({"by": "sensor", "sigma": "q"}, DataError, "unknown column 'q'"),
    "encoding": ({"by": "sensor", "data": "t.csv", "encoding": 3}, DataError, "encoding is 3"),
    "option": ({"by": "sensor", "max_step": 3}, OptionError, "max_step"),
}


@pytest.mark.parametrize(("given", "error", "said"), BAD.values(), ids=BAD.keys())
def test_bad_calls_are_refused_in_words(given, error, said, readings):
    with pytest.raises(error, match=said):
        gradfit.fit_many(FORMULA, **{"data": readings, **given})


def test_a_table_and_arrays_do_not_mix(readings):
    x, y = np.arange(5.0), np.ones((2, 5))
    with pytest.raises(DataError, match="there is none; pass data="):
        gradfit.fit_many(celsius, x, y, by="sensor")
    with pytest.raises(DataError, match="both arrays and data="):
        gradfit.fit_many(celsius, x, y, data=readings, by="sensor")
    with pytest.raises(DataError, match="a formula names its columns"):
        gradfit.fit_many(FORMULA, x, y)
    with pytest.raises(DataError, match="which column is the target"):
        gradfit.fit_many(celsius, data=readings, by="sensor")
