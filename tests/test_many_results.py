"""What can be done with the results of many fits: parts, tables, files, texts, pictures."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import gradfit
from gradfit.report.many_plots import robust_range

COUNT, POINTS = 24, 20
X = np.linspace(0, 4, POINTS)


def decay(x, a, t=1.0, c=0.1):
    return a * np.exp(-x / t) + c


def data() -> np.ndarray:
    """Decays of rising amplitude; one missing, one infinite, one with an outlier, one with few rows."""
    rng = np.random.default_rng(7)
    a = np.linspace(1, 5, COUNT)
    y = a[:, None] * np.exp(-X / 1.5) + 0.5 + rng.normal(0, 0.05, (COUNT, POINTS))
    y[3], y[10, 4], y[17, 8], y[20, 2:] = np.nan, np.inf, 9.0, np.nan
    return y


FAILED = [3, 10, 20]


@pytest.fixture(scope="module")
def fits() -> gradfit.FitResults:
    return gradfit.fit_many(decay, X, data())


@pytest.fixture(scope="module")
def named() -> gradfit.FitResults:
    """With keys, a fixed and a vector parameter, and covariance."""
    table = {"sensor": np.repeat([f"s{i:02}" for i in range(COUNT)], POINTS), "x": np.tile(X, COUNT), "y": data().ravel()}
    return gradfit.fit_many(
        lambda x, p, b: p[0] * np.exp(-x / p[1]) + b,
        data=table,
        target="y",
        by="sensor",
        start={"p": [1.0, 1.0]},
        fixed={"b": np.linspace(0.4, 0.6, COUNT)},
        covariance=True,
    )


# --- one, some, which failed -----------------------------------------------------------------------------------------------


def test_statuses_are_counted_and_told(fits):
    assert fits.failed.tolist() == FAILED
    assert fits.counts == {"converged": 21, "no_data": 1, "infinite_data": 1, "too_few": 1}
    assert "infinite" in fits.message(10) == fits.message(10 - COUNT)
    with pytest.raises(IndexError, match="24 fits"):
        fits.message(COUNT)


def test_a_part_is_results_of_its_own(fits):
    for chosen, places in (
        (slice(3, 10), range(3, 10)),
        (slice(None, None, -5), range(COUNT - 1, -1, -5)),
        (fits.values["a"] > 3, np.flatnonzero(fits.values["a"] > 3)),
        ([5, -1, 5], [5, COUNT - 1, 5]),
        (fits.failed, FAILED),
        ([], []),
        (slice(7, 7), []),
    ):
        part, places = fits[chosen], list(places)
        assert isinstance(part, gradfit.FitResults)
        assert part.keys["fit"].tolist() == places
        assert part.values["a"].tobytes() == fits.values["a"][places].tobytes()
        assert part.status.tolist() == fits.status[places].tolist()
        assert part[::-1].keys["fit"].tolist() == places[::-1]


def test_a_part_can_do_what_all_can(fits):
    part = fits[12:19]
    assert part[-2].values == fits[17].values
    assert part[-2].n == POINTS
    np.testing.assert_array_equal(part.covariance, fits.covariance[12:19])
    for kind in ("t", "profile"):
        for ours, theirs in zip(part.intervals(kind=kind)["t"], fits.intervals(kind=kind)["t"], strict=True):
            np.testing.assert_array_equal(ours, theirs[12:19])
    again = fits[fits.failed].retry(method="lm", max_steps=50)
    assert again.status.tolist() == fits.status[FAILED].tolist()
    with pytest.raises(gradfit.FitError, match="fit 0 has no result"):
        again[0]


@pytest.mark.parametrize(
    "wrong", [True, 1.5, "a", None, [0.5], [True], np.zeros((2, 2), dtype=int), np.ones(COUNT + 1, dtype=bool)]
)
def test_what_is_no_place_is_refused(wrong, fits):
    with pytest.raises(gradfit.DataError, match=r"fits\["):
        fits[wrong]


@pytest.mark.parametrize("beyond", [COUNT, -COUNT - 1, [0, COUNT], np.array([-COUNT - 1])])
def test_a_place_beyond_the_fits_is_an_index_error(beyond, fits):
    with pytest.raises(IndexError, match="24 fits, 0 to 23"):
        fits[beyond]


# --- tables ----------------------------------------------------------------------------------------------------------------


def test_tables_have_a_row_for_each_fit(fits, named):
    columns = ["a", "a_stderr", "t", "t_stderr", "c", "c_stderr", "loss", "n", "dof", "steps", "status"]
    frame = fits.to_pandas()
    assert list(frame.columns) == columns
    assert frame.index.name == "fit"
    assert frame["status"].value_counts().to_dict() == fits.counts
    assert frame["a"].to_numpy().tobytes() == fits.values["a"].tobytes()
    polars, arrow = fits.to_polars(), fits.to_arrow()
    assert polars.columns == arrow.column_names == ["fit", *columns]
    assert polars["status"].to_list() == arrow["status"].to_pylist() == fits.status.tolist()
    for other in (polars, arrow):
        np.testing.assert_array_equal(other["t_stderr"].to_numpy(), fits.stderr["t"])
    frame = named.to_pandas().set_index("sensor")
    assert list(frame.columns)[:6] == ["p[0]", "p[0]_stderr", "p[1]", "p[1]_stderr", "b", "b_stderr"]
    assert frame.loc["s23", "b"] == pytest.approx(0.6)
    assert (frame["b_stderr"] == 0).all()
    np.testing.assert_array_equal(frame["p[1]"], named.values["p"][:, 1])


def test_names_of_the_caller_stay_and_ours_give_way():
    def model(x, n, n_stderr, loss):
        return n * x**2 + n_stderr * x + loss

    table = {
        "status": np.repeat(["u", "v"], POINTS),
        "x": np.tile(X, 2),
        "y": np.tile(3 * X**2 + 2 * X + 1, 2) + np.tile([0.0, 0.1], POINTS),
    }
    fits = gradfit.fit_many(model, data=table, target="y", by="status")
    frame = fits.to_pandas()
    assert list(frame.columns) == [
        "status", "n", "n_stderr_", "n_stderr", "n_stderr_stderr", "loss", "loss_stderr", "loss_", "n_", "dof", "steps", "status_"
    ]  # fmt: skip
    assert frame["n"].tolist() == pytest.approx([3, 3], abs=0.05)
    assert frame["n_"].tolist() == [POINTS, POINTS]
    assert frame["status"].tolist() == ["u", "v"]
    assert fits.to_xarray()["status_"].values.tolist() == ["u", "v"]


def test_an_xarray_dataset_has_dimensions_of_fits_and_parameters(fits, named):
    dataset = named.to_xarray()
    assert dict(dataset.sizes) == {"fit": COUNT, "param": 3, "cov_i": 2, "cov_j": 2}
    one = dataset.sel(sensor="s05")
    assert one.value.sel(param="p[0]").item() == named.values["p"][5, 0]
    assert one.covariance.sel(cov_i="p[0]", cov_j="p[0]").item() == pytest.approx(
        one.stderr.sel(param="p[0]").item() ** 2, rel=1e-12
    )
    assert one.stderr.sel(param="b").item() == 0
    assert dataset.status.values.tolist() == named.status.tolist()
    assert dataset.attrs["target"] == "y"
    assert dataset.attrs["method"] == "Levenberg-Marquardt"
    plain = fits.to_xarray()
    assert "covariance" not in plain
    assert plain.attrs["model"] == "decay"
    assert plain.fit.values.tolist() == list(range(COUNT))
    assert fits[3:5].to_xarray().fit.values.tolist() == [3, 4]


# --- files -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".parquet", ".nc"])
def test_loaded_results_are_the_saved_ones(suffix, fits, named, tmp_path):
    for number, results in enumerate((fits, named, named[::7], fits[fits.failed])):
        path = tmp_path / f"{number}{suffix}"
        results.save(path)
        loaded = gradfit.load(str(path))
        assert repr(loaded) == repr(results)
        assert loaded.report() == results.report()
        for name in results.values:
            assert loaded.values[name].tobytes() == results.values[name].tobytes()
            assert loaded.stderr[name].tobytes() == results.stderr[name].tobytes()
            for ours, theirs in zip(loaded.intervals()[name], results.intervals()[name], strict=True):
                np.testing.assert_array_equal(ours, theirs)
        assert loaded.status.tolist() == results.status.tolist()
        assert {name: labels.tolist() for name, labels in loaded.keys.items()} == {
            name: labels.tolist() for name, labels in results.keys.items()
        }
    np.testing.assert_array_equal(gradfit.load(tmp_path / f"1{suffix}").covariance, named.covariance)


def test_stored_results_say_what_they_cannot(fits, tmp_path):
    fits.save(tmp_path / "fits.parquet")
    loaded = gradfit.load(tmp_path / "fits.parquet")
    for ask in (
        lambda: loaded[17],
        lambda: loaded[3:5][0],
        lambda: loaded.covariance,
        lambda: loaded[3:5].covariance,
        lambda: loaded.retry(),
        lambda: loaded.plot_fits(),
        lambda: loaded.intervals(kind="profile"),
    ):
        with pytest.raises(gradfit.FitError, match="stored results hold no"):
            ask()


def test_a_single_fit_is_still_loaded_from_json(tmp_path):
    fit = gradfit.fit(decay, X, data()[0])
    fit.save(tmp_path / "fit.json")
    assert gradfit.load(tmp_path / "fit.json").values == fit.values


@pytest.mark.parametrize(
    ("package", "ask"),
    [
        ("pandas", lambda fits, _: fits.to_pandas()),
        ("polars", lambda fits, _: fits.to_polars()),
        ("pyarrow", lambda fits, _: fits.to_arrow()),
        ("xarray", lambda fits, _: fits.to_xarray()),
        ("pyarrow", lambda fits, folder: fits.save(folder / "fits.parquet")),
        ("h5py", lambda fits, folder: fits.save(folder / "fits.nc")),
        ("matplotlib", lambda fits, _: fits.plot("a")),
    ],
)
def test_what_is_not_installed_is_named(package, ask, fits, tmp_path, monkeypatch):
    pytest.importorskip("h5netcdf")  # it looks for h5py once, when it is first imported
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(gradfit.MissingDependencyError, match=f"{package}.*pip install"):
        ask(fits, tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- texts -----------------------------------------------------------------------------------------------------------------


def test_the_summary_is_short(fits):
    assert repr(fits).splitlines()[0] == (
        "24 fits of y by decay   (2 to 20 rows; Levenberg-Marquardt; loss squared; engine native)"
    )
    assert "21 converged, 1 no_data, 1 infinite_data, 1 too_few" in repr(fits)
    assert f"median loss {np.median(fits.loss[fits.success]):.4g}" in repr(fits)
    assert fits.beginning == "No start was given for a: begun where the squares are least, given the others."
    assert repr(fits).splitlines()[1] == f"  {fits.beginning}"
    assert len(repr(fits).splitlines()) == 4


def test_the_report_holds_quantiles_of_values_and_errors(fits):
    lines = {line.split()[0]: line.split() for line in fits.report().splitlines() if line.strip()}
    a, error = fits.values["a"][fits.success], fits.stderr["a"][fits.success]
    text = fits.report()
    assert "21 of 24 succeeded" in text
    assert f"{np.quantile(a, 0.5):.5g}" in text.split("Standard errors")[0]
    assert f"{100 * np.nanquantile(error / a, 0.95):.2g}%" in text.split("Standard errors")[1]
    assert lines["no_data:"] == ["no_data:", "fit", "3"]
    assert (
        "sensor s03"
        in gradfit.fit_many(
            decay,
            data={"sensor": ["s02"] * POINTS + ["s03"] * POINTS, "x": [*X, *X], "y": data()[2:4].ravel()},
            target="y",
            by="sensor",
        ).report()
    )
    assert "Values" not in fits[fits.failed].report()
    assert fits[[]].report().startswith("0 fits of y by decay")


# --- pictures --------------------------------------------------------------------------------------------------------------


def test_a_histogram_tells_what_it_does_not_show(fits, tmp_path):
    figure = fits.plot("a", tmp_path / "a.png")
    axes = figure.axes[0]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    counts = axes.patches[0].get_data().values
    assert counts.sum() + (0 if "beyond" not in figure.get_supxlabel() else 1) == 21
    assert "3 of 24 fits failed" in figure.get_supxlabel()
    assert axes.get_title() == "a of 21 fits"
    for name in ("a_stderr", "loss", "steps", "dof"):
        assert fits.plot(name).axes[0].get_xlabel() == name
    assert fits[fits.failed].plot("a").get_supxlabel() == "3 of 3 fits failed"
    with pytest.raises(gradfit.OptionError, match="known: a, a_stderr"):
        fits.plot("b")


def test_values_far_out_do_not_squeeze_the_rest():
    values = np.random.default_rng(0).normal(size=1000)
    low, high = robust_range(np.array([*values, 1e9, -1e300]))
    assert values.min() <= low < -3.5
    assert 3 < high <= values.max()
    assert robust_range(np.array([1.0, 1.0, 1.0])) == (1.0, 1.0)


def test_a_map_marks_failed_pixels_and_knows_its_shape(fits):
    figure = fits.plot_map("a", (4, 6))
    axes = figure.axes[0]
    image = axes.images[0].get_array()
    assert image.shape == (4, 6)
    assert np.flatnonzero(np.isnan(np.ma.filled(image, np.nan).ravel())).tolist() == FAILED
    columns, rows = axes.lines[0].get_data()
    assert [6 * row + column for row, column in zip(rows, columns, strict=True)] == FAILED
    assert image[2, 3] == fits.values["a"][15]
    assert figure.axes[1].get_ylabel() == "a"
    for wrong in ((5, 5), (24,), (2.0, 12), (-4, -6), "46", None):
        with pytest.raises(gradfit.DataError, match="shape"):
            fits.plot_map("a", wrong)


def test_single_fits_are_drawn_the_worst_first(fits, tmp_path):
    worst = fits.plot_fits(count=2, path=tmp_path / "worst.svg")
    assert worst.axes[0].get_title().startswith("fit 17: reduced loss")
    assert len(worst.axes) == 2
    median = fits.plot_fits("median", count=3)
    reduced = [float(axes.get_title().split()[-1]) for axes in median.axes]
    assert sorted(reduced, reverse=True) == reduced
    assert reduced[1] == pytest.approx(np.median((fits.loss * fits.n / (fits.n - 3))[fits.success]), rel=1e-2)
    chosen = fits.plot_fits([5, -1])
    assert [axes.get_title() for axes in chosen.axes] == ["fit 5", "fit 23"]
    assert fits[4:8].plot_fits([1]).axes[0].get_title() == "fit 5"
    curve = chosen.axes[0].lines[-1]
    np.testing.assert_allclose(curve.get_ydata(), decay(curve.get_xdata(), **fits[5].values), rtol=1e-6)


def test_pictures_of_single_fits_refuse_what_is_not_there(fits):
    for wrong, error in (
        ({"kind": "best"}, gradfit.OptionError),
        ({"count": 0}, gradfit.OptionError),
        ({"count": True}, gradfit.OptionError),
        ({"kind": []}, gradfit.DataError),
        ({"kind": [0.5]}, gradfit.DataError),
        ({"kind": [99]}, IndexError),
        ({"kind": [3]}, gradfit.FitError),
    ):
        with pytest.raises(error):
            fits.plot_fits(**wrong)
    with pytest.raises(gradfit.FitError, match="none of 3 fits succeeded"):
        fits[fits.failed].plot_fits()
