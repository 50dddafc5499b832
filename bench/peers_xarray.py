"""A cube of spectra: xarray's curvefit, and gradfit's with the same words."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

import gradfit.compat.xarray  # noqa: F401 - gives DataArray its .gradfit
from many_problems import GAUSSIAN, many


def cube(side: int) -> Any:
    """Make a cube (side, side, 30): a noisy peak in each pixel."""
    data = many(GAUSSIAN, side * side)
    return xr.DataArray(data.y.reshape(side, side, -1), dims=("row", "column", "x"), coords={"x": data.x}, name="signal")


def curvefit(array: Any, *, own: bool) -> np.ndarray:
    """Fit every pixel from one start; gives the coefficients, (pixels, 4)."""
    fit = array.curvefit if own else array.gradfit.curvefit
    found = fit("x", GAUSSIAN.plain, p0=dict(zip(GAUSSIAN.names, GAUSSIAN.common, strict=True)))
    return np.asarray(found["curvefit_coefficients"]).reshape(-1, len(GAUSSIAN.names))
