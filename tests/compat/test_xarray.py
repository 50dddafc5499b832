"""The accessor: what xarray's own curvefit gives, and what it cannot."""

from __future__ import annotations

import functools
import inspect
import re
import subprocess
import sys
from pathlib import Path

import cloudpickle
import dask
import dask.array
import numpy as np
import pytest
import scipy.optimize
import xarray as xr

import gradfit
import gradfit.compat.xarray
from gradfit.compat.xarray_model import curve_model
from gradfit.errors import FitWarning, GradfitError

TIGHT = {"ftol": 1e-14, "xtol": 1e-14, "gtol": 1e-14, "maxfev": 10_000}
COEFFICIENTS, COVARIANCE = "curvefit_coefficients", "curvefit_covariance"


def decay(t, a, tau=1.5):
    return a * np.exp(-t / tau)


def slope(t, a, tau):
    return np.stack([np.exp(-t / tau), a * np.exp(-t / tau) * t / tau**2], axis=1)


def pair(x, a, b, c):
    first, second = x
    return a * np.exp(-first) + b * second + c


@pytest.fixture
def cube():
    """Decays of 4 by 3 pixels: (t, y, x), with labels, units, and a coordinate that belongs to no dimension."""
    rng = np.random.default_rng(0)
    t = np.linspace(0, 5, 25)
    a, tau = rng.uniform(1, 3, (2, 4, 3))
    values = decay(t[:, None, None], a, tau) + 0.02 * rng.normal(size=(25, 4, 3))
    coords = {"t": t, "y": [10, 20, 30, 40], "name": ("x", ["p", "q", "r"])}
    return xr.DataArray(values, dims=("t", "y", "x"), coords=coords, name="signal", attrs={"units": "K"})


def grid(values):
    return xr.DataArray(values, dims=("y", "x"), coords={"y": [10, 20, 30, 40]})


def assert_same_as_xarray(obj, *arguments, **options):
    ours = obj.gradfit.curvefit(*arguments, **options)
    theirs = obj.curvefit(*arguments, **{"kwargs": TIGHT, **options})
    assert list(ours) == list(theirs)
    assert ours.attrs == theirs.attrs
    for name in theirs:
        assert ours[name].dims == theirs[name].dims
        assert ours[name].attrs == theirs[name].attrs
        close = 1e-4 if name.endswith(COVARIANCE) else 1e-6  # theirs is of forward differences, one step from the end
        xr.testing.assert_allclose(ours[name], theirs[name], rtol=close, atol=close * float(abs(theirs[name]).max()))
    return ours


def status(fits):
    return fits.curvefit_status.values


# --- as xarray ---------------------------------------------------------------------------------------------------------


def test_arguments_are_those_of_xarray_and_more_by_name():
    own = inspect.signature(xr.DataArray.curvefit).parameters
    ours = inspect.signature(xr.DataArray([1.0]).gradfit.curvefit).parameters
    theirs = [(name, p.default) for name, p in own.items() if name != "self"]
    assert [(name, ours[name].default) for name in list(ours)[: len(theirs)]] == theirs
    assert {p.kind for p in list(ours.values())[len(theirs) :]} == {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}


def test_an_array_gives_the_dataset_of_xarray(cube):
    ours = assert_same_as_xarray(cube, "t", decay)
    assert list(ours.param.values) == ["a", "tau"]
    assert_same_as_xarray(cube, [cube.t], decay, p0={"a": 2}, bounds={"tau": (0.1, 10)})
    assert_same_as_xarray(cube.transpose("y", "t", "x"), coords="t", func=decay, reduce_dims="x")
    assert_same_as_xarray(cube[:, 0, 0], "t", decay)


def test_a_dataset_gives_results_of_each_variable(cube):
    data = xr.Dataset({"u": cube, "v": 2 * cube.isel(x=0, drop=True)}, attrs={"title": "two"})
    assert_same_as_xarray(data, "t", decay)


def test_starts_and_bounds_may_differ_from_series_to_series(cube):
    low = grid(np.linspace(0.05, 0.2, 12).reshape(4, 3))
    assert_same_as_xarray(cube, "t", decay, p0={"a": 10 * low}, bounds={"tau": (low, 10.0)})
    assert_same_as_xarray(cube, "t", decay, bounds={"tau": (0.05, 9 + low)})


def test_a_function_of_several_coordinates_is_fitted_over_all_their_dimensions(cube):
    place = xr.DataArray(np.arange(4) ** 2 / 4, dims="y", coords={"y": cube.y}, name="place")
    assert_same_as_xarray(cube, ["t", place], pair, reduce_dims="y")
    assert_same_as_xarray(
        cube.assign_coords(place=place), ["t", "place"], lambda x, a, b: a * x[0] + b * x[1, :], reduce_dims="y"
    )


def test_each_series_may_have_coordinates_of_its_own(cube):
    stretched = cube.t * (1 + 0.1 * grid(np.arange(12).reshape(4, 3)))
    assert_same_as_xarray(cube, stretched, decay, reduce_dims="t")


def test_missing_points_are_skipped(cube):
    holes = cube.where(np.random.default_rng(1).random(cube.shape) > 0.2)
    holes[:, 1, 1] = np.nan
    ours = assert_same_as_xarray(holes, "t", decay)
    assert np.isnan(ours[COEFFICIENTS][1, 1]).all()
    with pytest.raises(ValueError, match="skipna=False"):
        holes.gradfit.curvefit("t", decay, skipna=False)


def test_functions_that_name_no_parameters_take_names(cube):
    ours = assert_same_as_xarray(cube + 1, "t", lambda t, *p: p[0] * np.exp(-t) + p[1], param_names=["a", "b"])
    assert list(ours.cov_i.values) == ["a", "b"]
    assert_same_as_xarray(cube.t**0.7 + 0.1 * cube, "t", np.power, param_names=["a"], reduce_dims="x")


def test_what_a_partial_binds_is_no_parameter(cube):
    bound = functools.partial(lambda t, a, tau, *, scale: scale * decay(t, a, tau), scale=2.0)
    fits = cube.gradfit.curvefit("t", bound)
    assert list(fits.param.values) == ["a", "tau"]
    expected = cube.gradfit.curvefit("t", lambda t, a, tau: 2.0 * decay(t, a, tau))
    np.testing.assert_allclose(fits[COEFFICIENTS], expected[COEFFICIENTS], rtol=1e-9)


def test_dates_are_numbers_as_xarray_has_them(cube):
    hours = np.datetime64("2020-01-01", "ns") + np.arange(25) * np.timedelta64(1, "h")
    dated = cube.assign_coords(t=hours)
    origin = float(dated.t.astype(float)[0])
    unit = float(dated.t.astype(float)[1]) - origin
    assert_same_as_xarray(dated, "t", lambda t, a, tau: a * np.exp(-(t - origin) / unit / tau), p0={"tau": 5.0})


@pytest.mark.parametrize(
    "kwargs",
    [
        {"absolute_sigma": True},
        {"sigma": np.linspace(0.1, 0.3, 25), "absolute_sigma": True},
        {"method": "trf", "ftol": 1e-12},
        {"method": "trf", "loss": "soft_l1", "f_scale": 0.01, "ftol": 1e-14, "xtol": 1e-14, "gtol": 1e-14},
        {"jac": slope},
    ],
    ids=["absolute", "sigma", "method", "loss", "jac"],
)
def test_options_of_scipy_are_followed(cube, kwargs):
    assert_same_as_xarray(cube[:, :2, :2], "t", decay, kwargs={**TIGHT, **kwargs} if "loss" not in kwargs else kwargs)


@pytest.mark.slow
def test_xarrays_own_tests_pass():
    run = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "xarray_suite.py")],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert run.returncode == 0, run.stdout
    counts = re.findall(r"(\d+) of (\d+) passed", run.stdout)
    assert len(counts) == 2
    assert all(passed == total and int(total) >= 9 for passed, total in counts)


# --- what xarray cannot ------------------------------------------------------------------------------------------------


def one_by_one(cube, sigma):
    """Fit each series by scipy: coefficients (y, x, 2), covariance (y, x, 2, 2)."""
    popt, pcov = np.empty((4, 3, 2)), np.empty((4, 3, 2, 2))
    for place in np.ndindex(4, 3):
        y, s = cube.values[(slice(None), *place)], np.broadcast_to(sigma, cube.shape)[(slice(None), *place)]
        kept = ~np.isnan(y) & ~np.isnan(s)
        popt[place], pcov[place] = scipy.optimize.curve_fit(
            decay, cube.t.values[kept], y[kept], (1, 1.5), s[kept], absolute_sigma=True, jac=slope, **TIGHT
        )
    return popt, pcov


@pytest.mark.parametrize("dims", [("y", "x"), ("t",), ("t", "y", "x"), ("x", "t")])
def test_sigma_may_be_given_per_series_per_point_and_per_value_and_the_data_have_gaps(cube, dims):
    rng = np.random.default_rng(2)
    holes = cube.where(rng.random(cube.shape) > 0.2)
    sigma = xr.DataArray(rng.uniform(0.1, 0.5, [cube.sizes[dim] for dim in dims]), dims=dims)
    if len(dims) == 3:
        sigma[3, 1, 1] = np.nan
    fits = holes.gradfit.curvefit("t", decay, sigma=sigma, absolute_sigma=True)
    popt, pcov = one_by_one(holes, sigma.broadcast_like(holes).transpose("t", "y", "x").values)
    np.testing.assert_allclose(fits[COEFFICIENTS], popt, rtol=2e-6)
    np.testing.assert_allclose(fits[COVARIANCE], pcov, rtol=3e-4)


def test_each_variable_may_have_a_sigma_of_its_own(cube):
    data = xr.Dataset({"u": cube, "v": cube})
    fits = data.gradfit.curvefit("t", decay, sigma={"u": 0.1, "v": grid(np.full((4, 3), 0.2))}, absolute_sigma=True)
    np.testing.assert_allclose(4 * fits.u_curvefit_covariance, fits.v_curvefit_covariance, rtol=1e-9)


def test_one_bad_series_spoils_no_other_and_has_its_status(cube):
    bad = cube.copy(deep=True)
    bad[3, 0, 0], bad[:, 0, 1], bad[1:, 0, 2] = np.inf, np.nan, np.nan
    sigma = xr.ones_like(cube)
    sigma[2, 1, 0] = -1
    with pytest.warns(FitWarning, match=r"3 of 12 fits failed, the first at y\[0\], x\[0\]"):
        fits = bad.gradfit.curvefit("t", decay, sigma=sigma, status=True)
    good = cube.gradfit.curvefit("t", decay, sigma=xr.ones_like(cube), status=True)
    assert status(fits)[:2].tolist() == [["infinite_data", "no_data", "too_few"], ["bad_sigma", "converged", "converged"]]
    failed = fits.curvefit_status != "converged"
    assert np.isnan(fits[COEFFICIENTS].where(failed)).all()
    for name in fits:
        assert np.array_equal(fits[name].values[~failed.values], good[name].values[~failed.values])
    quiet = bad.gradfit.curvefit("t", decay, sigma=sigma, status=True, errors="ignore")
    xr.testing.assert_identical(quiet, fits)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_where_nothing_can_be_fitted_all_is_nan(cube, value):
    fits = xr.full_like(cube, value).gradfit.curvefit("t", decay, errors="ignore", status=True)
    assert set(status(fits).ravel()) == {"no_data" if np.isnan(value) else "infinite_data"}
    assert np.isnan(fits[COEFFICIENTS]).all()
    starts = cube.gradfit.curvefit("t", decay, p0={"a": grid(np.full((4, 3), np.nan))}, errors="ignore", status=True)
    assert set(status(starts).ravel()) == {"bad_start"}


def test_a_fit_that_fails_raises_what_xarray_raises_or_is_nan(cube):
    worse = cube.copy(deep=True)
    worse[:, 2, 1] = 1e3 * np.sin(50 * np.arange(25) ** 2)
    with pytest.raises(RuntimeError, match=r"calls to function has reached maxfev = 3") as caught:
        worse.gradfit.curvefit("t", decay, kwargs={"maxfev": 3})
    assert isinstance(caught.value, GradfitError)
    fits = worse.gradfit.curvefit("t", decay, kwargs={"maxfev": 12}, errors="ignore", status=True)
    failed = status(fits) != "converged"
    assert failed[2, 1]
    assert failed.sum() < 12
    assert np.array_equal(np.isnan(fits[COEFFICIENTS]).all("param").values, failed)
    with pytest.raises(RuntimeError, match=r"maxfev = 3"):
        worse.gradfit.curvefit("t", decay, kwargs={"maxfev": 3, "jac": lambda t, a, tau: np.ones((len(t), 2))})


def test_numpy_functions_are_compiled_with_their_derivatives(cube):
    target = cube.values.reshape(25, -1).T
    for func, names, count in (
        (decay, ["a", "tau"], 1),
        (lambda t, *p: p[0] * np.exp(-t / p[1]), ["a", "tau"], 1),
        (pair, list("abc"), 2),
    ):
        model = curve_model(func, names, count)
        fits = gradfit.fit_many(model, *[cube.t.values] * 1, *[cube.t.values**2] * (count - 1), target)
        assert fits.record.engine == "native"


def test_functions_that_cannot_be_compiled_are_fitted_too(cube):
    few = cube[:, :2, :2]
    place = np.linspace(0, 5, 200)

    def table(t, a, b):
        return a * np.interp(t, place, np.exp(-place)) + b

    def branch(t, a, b):
        return a * np.exp(-t) + b if a < 100 else 0.0

    for func in (table, branch):
        assert_same_as_xarray(few, "t", func)


def test_parameters_may_be_fixed_for_all_or_for_each(cube):
    kept = grid(np.linspace(1, 2, 12).reshape(4, 3))
    fits = cube.gradfit.curvefit("t", decay, fixed={"tau": kept}, status=True)
    expected = [
        gradfit.curve_fit(lambda t, a, tau=tau: decay(t, a, tau), cube.t.values, y, 1.0)
        for y, tau in zip(cube.values.reshape(25, -1).T, kept.values.ravel(), strict=True)
    ]
    np.testing.assert_allclose(fits[COEFFICIENTS].sel(param="a").values.ravel(), [popt[0] for popt, _ in expected], rtol=1e-9)
    np.testing.assert_allclose(fits[COVARIANCE].values[..., 0, 0].ravel(), [pcov[0, 0] for _, pcov in expected], rtol=1e-6)
    assert np.array_equal(fits[COEFFICIENTS].sel(param="tau").values, kept.values)
    assert not fits[COVARIANCE].sel(cov_j="tau").any()
    listed = cube.gradfit.curvefit("t", decay, fixed=["tau"])
    assert (listed[COEFFICIENTS].sel(param="tau") == 1.5).all()


def test_losses_methods_and_precision_are_those_of_fit_many(cube):
    target, start = cube.values.reshape(25, -1).T, {"a": 1.0, "tau": 1.5}
    for options in (
        {"loss": "huber", "f_scale": 0.01},
        {"dtype": "float32"},
        {"method": "adam", "learning_rate": 0.1, "epochs": 400},
    ):
        ours = cube.gradfit.curvefit("t", decay, **options)
        fits = gradfit.fit_many(decay, cube.t.values, target, start=start, **options)
        assert np.array_equal(ours[COEFFICIENTS].values.reshape(-1, 2), np.stack(list(fits.values.values()), axis=1))


# --- dask --------------------------------------------------------------------------------------------------------------


def forbidden(*arguments, **options):
    raise AssertionError("something was computed when the call was made")


class Counting:
    """A scheduler that counts tasks, and of them the fits."""

    def __init__(self):
        self.tasks = 0

    def __call__(self, dsk, keys, **options):
        graph = dict(dsk.__dask_graph__() if hasattr(dsk, "__dask_graph__") else dsk)
        self.tasks += len(graph)
        return dask.get(graph, keys)


def test_lazy_and_eager_are_the_same_bits_whatever_the_chunks(cube):
    holes = cube.where(np.random.default_rng(1).random(cube.shape) > 0.2)
    holes[:, :, 2] = np.nan
    start, sigma = grid(np.linspace(1, 2, 12).reshape(4, 3)), 0.01 + abs(cube)
    options = {"absolute_sigma": True, "status": True}
    eager = holes.gradfit.curvefit("t", decay, p0={"a": start}, sigma=sigma, **options)
    for chunks in ({"x": 1}, {"y": 3, "x": 2}, {"t": 4}, {"t": 4, "y": 1}):
        with dask.config.set(scheduler=forbidden):
            cut = {dim: size for dim, size in chunks.items() if dim != "t"}
            lazy = holes.chunk(chunks).gradfit.curvefit(
                "t", decay, p0={"a": start.chunk(cut)}, sigma=sigma.chunk({"t": 7}), **options
            )
            assert all(lazy[name].chunks is not None and lazy[name].dtype == eager[name].dtype for name in eager)
        xr.testing.assert_identical(lazy.compute(scheduler="threads"), eager)


def test_blocks_are_tasks_and_pixels_are_not():
    t = np.linspace(0, 5, 12)
    values = dask.array.random.default_rng(0).random((12, 60, 60), chunks=(3, 30, 30))
    with dask.config.set(scheduler=forbidden):
        fits = xr.DataArray(values, dims=("t", "y", "x"), coords={"t": t}).gradfit.curvefit("t", lambda t, a, b: a * t + b)
    counting = Counting()
    dask.compute(fits[COEFFICIENTS].data, scheduler=counting)
    assert fits[COEFFICIENTS].chunks == ((30, 30), (30, 30), (2,))
    assert counting.tasks < 80


def test_a_joined_dimension_that_makes_a_block_too_large_cuts_the_others():
    data = xr.DataArray(dask.array.zeros((1000, 500, 500), chunks=(1, 500, 500)), dims=("t", "y", "x"))
    with dask.config.set(scheduler=forbidden):
        fits = data.gradfit.curvefit("t", lambda t, a, b: a * t + b)
    assert max(map(max, fits[COEFFICIENTS].chunks[:2])) < 500


def test_coordinates_on_dask_are_not_computed(cube):
    lazy = cube.chunk({"y": 2}).assign_coords(s=("t", dask.array.from_array(cube.t.values, chunks=9)))
    with dask.config.set(scheduler=forbidden):
        fits = lazy.gradfit.curvefit(lazy.s, decay, reduce_dims="t")
    assert np.array_equal(fits[COEFFICIENTS], cube.gradfit.curvefit("t", decay)[COEFFICIENTS])


def test_errors_on_dask_come_when_it_is_computed(cube):
    lazy = cube.chunk({"y": 2}).gradfit.curvefit("t", decay, kwargs={"maxfev": 1})
    with pytest.raises(RuntimeError, match="maxfev = 1"):
        lazy.compute()
    with pytest.raises(gradfit.errors.OptionError, match="ProgressBar"):
        cube.chunk({"y": 2}).gradfit.curvefit("t", decay, progress=True)


@pytest.mark.slow
def test_blocks_are_fitted_in_other_processes(cube):
    scale = 2.0
    fits = cube.chunk({"y": 2}).gradfit.curvefit("t", lambda t, a, tau: scale * a * np.exp(-t / tau), status=True)
    here = fits.compute(scheduler="synchronous")
    xr.testing.assert_identical(fits.compute(scheduler="processes", num_workers=2), here)


def test_a_task_survives_pickling(cube):
    scale = 2.0
    fits = cube.chunk({"y": 2}).gradfit.curvefit("t", lambda t, a, tau: scale * a * np.exp(-t / tau))
    again = cloudpickle.loads(cloudpickle.dumps(fits))
    xr.testing.assert_identical(again.compute(), fits.compute())


@pytest.mark.parametrize("lazy", [False, True])
def test_results_survive_netcdf(cube, tmp_path, lazy):
    bad = cube.copy(deep=True)
    bad[3, 0, 0] = np.inf
    fits = (bad.chunk({"y": 2}) if lazy else bad).gradfit.curvefit("t", decay, status=True, errors="ignore")
    assert list(fits) == [COEFFICIENTS, COVARIANCE, "curvefit_stderr", "curvefit_status"]
    np.testing.assert_array_equal(fits.curvefit_stderr.values**2 > 0, np.isfinite(fits[COEFFICIENTS]))
    fits.to_netcdf(tmp_path / "fits.nc")
    xr.testing.assert_identical(xr.load_dataset(tmp_path / "fits.nc"), fits.compute())


# --- bad input ---------------------------------------------------------------------------------------------------------

WRONG = {
    "unknown dimension": (ValueError, "'altitude'; known: t, x, y", {"reduce_dims": "altitude"}),
    "unknown coordinate": (KeyError, "unknown coordinate 'time'", {"coords": "time"}),
    "no dimension": (ValueError, "No arguments to `coords` were identified as a dimension", {"coords": xr.DataArray(1.0)}),
    "no coordinates": (ValueError, "coords is empty", {"coords": []}),
    "unknown start": (ValueError, "unknown parameter 'b'; known: a, tau. It was named in p0", {"p0": {"b": 1}}),
    "unknown bound": (ValueError, "'ta'.* Did you mean 'tau'", {"bounds": {"ta": (0, 1)}}),
    "start of the wrong kind": (ValueError, "expected a number, or a DataArray", {"p0": {"a": [1, 2]}}),
    "start with fitted dimension": (ValueError, "has unexpected dimensions", {"p0": {"a": xr.DataArray(np.ones(25), dims="t")}}),
    "start of other labels": (ValueError, "same labels", {"p0": {"a": grid(np.ones((4, 3))).assign_coords(y=[1, 2, 3, 4])}}),
    "start out of bounds": (ValueError, r"outside its bounds \(0, 3\)", {"p0": {"a": -1}, "bounds": {"a": (0, 3)}}),
    "bounds swapped": (ValueError, "expected lower < upper", {"bounds": {"a": (3, 0)}}),
    "all fixed": (ValueError, "every parameter is fixed", {"fixed": ["a", "tau"]}),
    "no function": (ValueError, "expected a function", {"func": "a*x"}),
    "no names": (ValueError, "`param_names` must be provided", {"func": lambda t, *p: t}),
    "errors": (ValueError, "errors must be either", {"errors": "warn"}),
    "sigma of other dimensions": (ValueError, "that the data do not have", {"sigma": xr.DataArray([1.0, 2.0], dims="z")}),
    "sigma as an array": (ValueError, "whose dimensions say what it is for", {"sigma": np.ones(25)}),
    "sigma negative": (ValueError, "a standard deviation is positive", {"sigma": -1}),
    "sigma twice": (TypeError, "sigma was given twice", {"sigma": 1, "kwargs": {"sigma": np.ones(25)}}),
    "absolute without sigma": (TypeError, "no sigma was given", {"absolute_sigma": True}),
    "unknown option": (TypeError, "'sigm'.* Did you mean 'sigma'", {"sigm": 1}),
    "unknown option of scipy": (TypeError, "Did you mean 'maxfev'", {"kwargs": {"maxfew": 3}}),
    "lm with bounds": (ValueError, "only works for unconstrained", {"kwargs": {"method": "lm"}, "bounds": {"a": (0, 3)}}),
    "both ways": (TypeError, "knows no fixed", {"kwargs": {"jac": decay}, "fixed": ["a"]}),
    "unknown loss": (TypeError, "unknown loss", {"loss": "hubert"}),
    "threads": (TypeError, "threads is 0", {"threads": 0}),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("lazy", [False, True])
def test_mistakes_are_refused_before_anything_is_computed(cube, wrong, lazy):
    kind, text, options = WRONG[wrong]
    obj = cube.chunk({"y": 2}) if lazy else cube
    with dask.config.set(scheduler=forbidden), pytest.raises(kind, match=text) as caught:
        obj.gradfit.curvefit(**{"coords": "t", "func": decay, **options})
    assert isinstance(caught.value, GradfitError)


def test_variables_that_cannot_be_fitted_are_named(cube):
    with pytest.raises(ValueError, match=r"the variable 'v' has the dimensions \['y'\]"):
        xr.Dataset({"u": cube, "v": ("y", np.ones(4))}).gradfit.curvefit("t", decay)
    with pytest.raises(ValueError, match="expected real numbers"):
        cube.astype(str).gradfit.curvefit("t", decay)
    with pytest.raises(ValueError, match="rename it"):
        cube.rename(x="param").gradfit.curvefit("t", decay)
    with pytest.raises(TypeError, match="must not exceed the number of data points=1"):
        cube[:1].gradfit.curvefit("t", decay)
