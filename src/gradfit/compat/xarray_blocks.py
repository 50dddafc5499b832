"""From a call to arrays of results, block by block: dimensions that are fitted along lie in one chunk, each block is one task."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import xarray as xr

from gradfit.compat.curve_errors import CountError
from gradfit.compat.xarray_call import Array, Axes, Given, Scipy, check_labels, in_numbers, read_sigma
from gradfit.compat.xarray_task import STATUS, Task
from gradfit.errors import DataError, OptionError

SAID = {"start": "Initial guess", "lower": "Lower bound", "upper": "Upper bound", "fixed": "Fixed value"}


@dataclass(frozen=True)
class Call:
    """What a call says, for each variable.

    Attributes
    ----------
    task
        How a block is fitted; without what differs from variable to variable.
    sigma
        As it was given.
    """

    task: Task
    axes: Axes
    given: Given
    scipy: Scipy
    sigma: Any = field(repr=False)

    def fitted(self, name: Hashable, array: Array, *, status: bool) -> dict[str, Array]:
        """Give the results of one variable by what they are; lazily where anything is on dask.

        Raises
        ------
        DataError, CountError, OptionError
            Data that are no numbers, or do not fit to what was given with them; fewer points than parameters.
        """
        values = in_one_piece(self._checked(name, array), self.axes.core)
        sigma = read_sigma(self.sigma, self.scipy, name, values, self.axes)
        others = [*self.axes.coordinates, *([sigma] if isinstance(sigma, xr.DataArray) else []), *self.given.own.values()]
        arrays = [values, *(other.reset_coords(drop=True) for other in others)]  # to compare what is on dask would compute it
        arrays = [cut_alike(in_one_piece(each, self.axes.core), arrays[0]) for each in arrays]
        cores = [[dim for dim in self.axes.core if dim in each.dims] for each in arrays]
        loop = tuple(dict.fromkeys(str(dim) for each in arrays for dim in each.dims if dim not in self.axes.core))
        lazy = any(each.chunks is not None for each in arrays)
        task = replace(
            self.task, loop=loop, settings=self._settings(lazy=lazy), sigma=sigma if isinstance(sigma, float) else None,
            sigma_axes=len(cores[1 + len(self.axes.coordinates)]) if isinstance(sigma, xr.DataArray) else None, outputs=4 if status else 2,
        )  # fmt: skip
        return _applied(task, arrays, cores, self.axes, len(self.given.names))

    def _checked(self, name: Hashable, array: Array) -> Array:
        missing = [dim for dim in self.axes.core if dim not in array.dims]
        if missing:
            raise DataError(
                f"the variable {name!r} has the dimensions {list(array.dims)} and not {missing}, along which is to be fitted; "
                "leave it out: ds[['a', 'b']].gradfit.curvefit(...)."
            )
        values = in_numbers(array, "the data")
        for (what, parameter), other in self.given.own.items():
            check_labels(values, other, f"{SAID[what]} for '{parameter}'")
        n = math.prod(values.sizes[dim] for dim in self.axes.core)
        if n < self.given.free:
            raise CountError(
                f"The number of func parameters={self.given.free} must not exceed the number of data points={n}; give more points, or fix some parameters."
            )
        return values

    def _settings(self, *, lazy: bool) -> dict[str, Any]:
        settings = dict(self.task.settings)
        if lazy:
            if settings["progress"]:
                raise OptionError(
                    "progress=True, and the data are on dask, which does the work later; show its own: dask.diagnostics.ProgressBar()."
                )
            settings["progress"], settings["threads"] = False, settings["threads"] or 1  # dask itself keeps all cores busy
        return settings


def in_one_piece(array: Array, core: tuple[Hashable, ...]) -> Array:
    """Join the chunks along what is fitted; where that would make them too large, cut them along the rest. Nothing is computed."""
    if array.chunks is None:
        return array
    sizes = dict(zip(array.dims, array.chunks, strict=True))
    if all(len(sizes[dim]) == 1 for dim in core if dim in sizes):
        return array
    import dask
    from dask.utils import parse_bytes

    wanted: dict[Hashable, Any] = {dim: -1 for dim in core if dim in sizes}
    block = math.prod(array.sizes[dim] if dim in wanted else max(sizes[dim]) for dim in array.dims) * array.dtype.itemsize
    if block > parse_bytes(dask.config.get("array.chunk-size")):
        wanted |= {dim: "auto" for dim in array.dims if dim not in wanted}
    return array.chunk(wanted)


def cut_alike(array: Array, values: Array) -> Array:
    """Cut an array on dask where the data are cut: chunks of its own would cut these into smaller blocks."""
    if array.chunks is None or values.chunks is None:
        return array
    sizes = dict(zip(values.dims, values.chunks, strict=True))
    return array.chunk({dim: sizes[dim] for dim in array.dims if dim in sizes})


def _applied(task: Task, arrays: list[Array], cores: list[list[Hashable]], axes: Axes, p: int) -> dict[str, Array]:
    """Fit block by block; lazily where anything is on dask."""
    outputs: list[list[str]] = [["param"], ["cov_i", "cov_j"], ["param"], []][: task.outputs]
    found = xr.apply_ufunc(
        task, *arrays,
        input_core_dims=cores, output_core_dims=outputs, exclude_dims=set(axes.core), dask="parallelized",
        output_dtypes=[np.float64, np.float64, np.float64, STATUS.dtype][: task.outputs],
        dask_gufunc_kwargs={"output_sizes": {"param": p, "cov_i": p, "cov_j": p}},
    )  # fmt: skip
    made: dict[str, Array] = dict(zip(("coefficients", "covariance", "stderr", "status"), found, strict=False))
    if "status" in made:
        made["status"].attrs = {"long_name": "how the fit ended"}  # not the units of the data
        made["status"].encoding = {"dtype": "S1"}  # in NetCDF as characters, which are small and read everywhere
    return made
