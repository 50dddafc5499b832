"""The thermometer: eleven readings in unknown units, and the same in degrees Celsius; and a cache of compiled code for the tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session", autouse=True)
def compiled_code(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep compiled code in a folder of this run, which its processes share, and never in the user's own."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"
    before = os.environ.get("GRADFIT_CACHE_DIR")
    os.environ["GRADFIT_CACHE_DIR"] = str(folder)
    yield folder
    os.environ.pop("GRADFIT_CACHE_DIR")
    if before is not None:
        os.environ["GRADFIT_CACHE_DIR"] = before


@pytest.fixture
def t_u() -> np.ndarray:
    """Readings of the thermometer of unknown units."""
    return np.array([35.7, 55.9, 58.2, 81.9, 56.3, 48.9, 33.9, 21.8, 48.4, 60.4, 68.4])


@pytest.fixture
def t_c() -> np.ndarray:
    """The same temperatures in degrees Celsius."""
    return np.array([0.5, 14.0, 15.0, 28.0, 11.0, 8.0, 3.0, -4.0, 6.0, 13.0, 21.0])


@pytest.fixture
def thermometer_csv() -> Path:
    """The example file of the README."""
    return Path(__file__).parent.parent / "examples" / "thermometer.csv"
