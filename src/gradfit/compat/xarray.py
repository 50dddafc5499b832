"""``da.gradfit.curvefit`` and ``ds.gradfit.curvefit``: the signature, the words and the result of xarray's own, the solver gradfit's.

``import gradfit.compat.xarray`` registers them.

::

    coords, func, p0, bounds  ->  a Task  ->  apply_ufunc, block by block  ->  Dataset

An array in memory is one block. Of a dask array each chunk is one, and nothing is computed before it is asked for. What is
deliberately another than in xarray stands in ``docs/many_xarray.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import xarray as xr

from gradfit.compat.xarray_blocks import Call
from gradfit.compat.xarray_call import check_absolute, check_settings, read_axes, read_parameters, read_scipy
from gradfit.compat.xarray_task import Task

__all__ = ["Accessor", "DataArrayAccessor", "DatasetAccessor"]


class Accessor:
    """What ``obj.gradfit`` is, for an object of xarray's."""

    def __init__(self, obj: Any) -> None:
        self._obj = obj

    def curvefit(
        self,
        coords: str | xr.DataArray | Iterable[str | xr.DataArray],
        func: Callable[..., Any],
        reduce_dims: Any = None,
        skipna: bool = True,
        p0: Mapping[Any, float | xr.DataArray] | None = None,
        bounds: Mapping[Any, tuple[float | xr.DataArray | None, float | xr.DataArray | None]] | None = None,
        param_names: Sequence[Hashable] | None = None,
        errors: str = "raise",
        kwargs: Mapping[str, Any] | None = None,
        *,
        sigma: Any = None,
        absolute_sigma: bool = False,
        fixed: Mapping[Any, float | xr.DataArray | None] | Sequence[str] | None = None,
        loss: str | Callable[..., Any] = "squared",
        f_scale: float | None = None,
        method: Any = None,
        seed: int = 0,
        dtype: Any = None,
        engine: str = "auto",
        status: bool = False,
        threads: int | None = None,
        progress: bool | None = None,
        **options: Any,
    ) -> xr.Dataset:
        """Fit a function to each series of an array, with the signature and the result of xarray's ``curvefit``.

        Parameters
        ----------
        coords
            The coordinate that ``func`` takes, or a list of several: by name, or as DataArrays.
        func
            ``func(x, *parameters)``, or ``func((x, t), *parameters)`` of several coordinates. Functions of numpy or torch calls are
            compiled with their exact derivatives; others are called as they are.
        reduce_dims
            Dimensions that are fitted along, besides those of the coordinates; ``...`` for all.
        skipna
            Whether points with NaN, in the data, a coordinate or sigma, are left out. False: they are an error.
        p0
            Starts by parameter: numbers, or DataArrays with one for each series. Of the others by xarray's rules: from the signature
            or 1, or a value between the bounds.
        bounds
            Lower and upper bounds by parameter, numbers or DataArrays; None for none.
        param_names
            Names of the parameters, where the signature does not tell.
        errors
            "raise" an error where a fit fails; "ignore": coefficients and covariance are NaN there.
        kwargs
            Options of scipy's curve_fit.
        sigma
            Standard deviation of the data: a number; a DataArray with one per series, per point, or per value; for a Dataset also a
            mapping of these by variable.
        absolute_sigma
            Whether sigma are measured errors. Otherwise they are relative weights, and the covariance is scaled by the reduced
            chi-square.
        fixed
            Parameters that are kept: values by name, numbers or DataArrays; or a list of names, kept where they start. Their covariance
            is 0.
        loss, f_scale, method, seed, dtype, engine, **options
            As in :func:`gradfit.fit_many`.
        status
            Whether the result also has ``curvefit_status`` and ``curvefit_stderr``.
        threads
            In memory: all cores by default. On dask each task has one of its own by default.
        progress
            Whether to show the progress; None: where there is somebody to see it. dask has progress bars of its own.

        Returns
        -------
        Dataset with
            ``[var]_curvefit_coefficients`` (..., param), ``[var]_curvefit_covariance`` (..., cov_i, cov_j); with ``status`` also
            ``[var]_curvefit_stderr`` (..., param) and ``[var]_curvefit_status`` (...), text such as "converged".

        Raises
        ------
        DataError, ParameterError, ModelError, ChoiceError
            Which are ValueErrors: unknown dimensions or names, values that cannot be.
        OptionError, CountError
            Which are TypeErrors: unknown options; fewer points than parameters.
        FitError
            Which is a RuntimeError: a fit failed, with ``errors="raise"``. On dask arrays when they are computed.

        Warns
        -----
        FitWarning
            Series whose data cannot be fitted, such as those that hold infinities: their results are NaN. Not with ``errors="ignore"``.
        """
        axes = read_axes(self._obj, coords, reduce_dims)
        given = read_parameters(func, param_names, p0, bounds, fixed, axes.kept)
        scipy = read_scipy(kwargs, given)
        settings = {
            "loss": loss, "f_scale": f_scale, "method": method, "seed": seed, "dtype": dtype, "engine": engine, "threads": threads,
            "progress": progress, **options,
        }  # fmt: skip
        check_settings(settings, options, scipy, given, errors)
        check_absolute(sigma, absolute_sigma, scipy)
        task = Task(
            func, given.names, len(axes.coordinates), len(axes.core), given.shared, tuple(given.own), bool(skipna), errors,
            bool(absolute_sigma or scipy.absolute_sigma), settings | dict(scipy.method), scipy.alone, scipy.most,
        )  # fmt: skip
        return _assembled(self._obj, Call(task, axes, given, scipy, sigma), status=status)


@xr.register_dataarray_accessor("gradfit")  # type: ignore[no-untyped-call]
class DataArrayAccessor(Accessor):
    """``da.gradfit``."""


@xr.register_dataset_accessor("gradfit")  # type: ignore[no-untyped-call]
class DatasetAccessor(Accessor):
    """``ds.gradfit``."""


def _assembled(obj: Any, call: Call, *, status: bool) -> xr.Dataset:
    """Fit each variable and put the results together as xarray does."""
    alone = isinstance(obj, xr.DataArray)
    result: xr.Dataset = xr.Dataset() if alone else type(obj)()
    for name, array in {obj.name: obj}.items() if alone else obj.data_vars.items():
        for key, found in call.fitted(name, array, status=status).items():
            result[f"curvefit_{key}" if alone else f"{name}_curvefit_{key}"] = found
    labels = list(call.given.labels)
    result = result.assign_coords({"param": labels, "cov_i": labels, "cov_j": labels})
    result.attrs = {} if alone else dict(obj.attrs)
    return result
