"""xarray's own tests of curvefit, run on gradfit's: ``python tests/compat/xarray_suite.py [pytest options]``.

The tests are those of the installed xarray. They run twice: with the accessor in the place of xarray's method, and with xarray's own
method on :func:`gradfit.curve_fit`. Each run has a configuration and a root of its own, so that this project's settings do not reach it.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import scipy.optimize
import xarray as xr

import gradfit
import gradfit.compat.xarray

MODULE = "xarray.tests.test_dataarray"
CASES = "curvefit"


def accessor(obj: Any, *arguments: Any, **options: Any) -> xr.Dataset:
    """Call the accessor as xarray's method."""
    return obj.gradfit.curvefit(*arguments, **options)


class Exchange:
    """A pytest plugin: puts gradfit into xarray's or scipy's place while a test runs, and counts how the tests end."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.outcomes: dict[str, str] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Iterator[None]:
        """Exchange the functions for one test."""
        with pytest.MonkeyPatch.context() as patch:
            if self.how == "accessor":
                patch.setattr(xr.DataArray, "curvefit", accessor)
                patch.setattr(xr.Dataset, "curvefit", accessor)
            else:
                patch.setattr(scipy.optimize, "curve_fit", gradfit.curve_fit)
            return (yield)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keep how a test ended; a failure to set it up or to clean up counts too."""
        if report.when == "call" or report.outcome == "failed":
            self.outcomes[report.nodeid.rpartition("::")[2]] = report.outcome


def run(how: str, options: list[str]) -> tuple[int, dict[str, str]]:
    """Run the tests, on the "accessor" or with our curve_fit as "engine"; give pytest's exit code and how each ended."""
    exchange = Exchange(how)
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "pytest.ini"
        settings.write_text("[pytest]\n", encoding="utf-8")
        own = [
            "-c",
            str(settings),
            "--rootdir",
            folder,
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            "-q",
            "-W",
            "ignore::pytest.PytestWarning",
        ]
        code = pytest.main([*own, "--pyargs", MODULE, "-k", CASES, *options], plugins=[exchange])
    return int(code), exchange.outcomes


def main() -> int:
    """Run both, and say how many passed."""
    worst = 0
    for how in ("accessor", "engine"):
        code, outcomes = run(how, sys.argv[1:])
        passed = sum(outcome == "passed" for outcome in outcomes.values())
        print(f"xarray's tests of curvefit, gradfit as {how}: {passed} of {len(outcomes)} passed.")
        worst = max(worst, code)
    return worst


if __name__ == "__main__":
    raise SystemExit(main())
