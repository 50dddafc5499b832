"""scipy's own tests of curve_fit, run on gradfit's: ``python tests/compat/scipy_suite.py [pytest options]``.

The tests are those of the installed scipy. Once they are collected, the name ``curve_fit`` in their module is put for
``gradfit.curve_fit``. The run has a configuration and a root of its own, so that this project's settings do not reach it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

import gradfit

MODULE = "scipy.optimize.tests.test_minpack"
CASES = "TestCurveFit"

# Tests that gradfit fails on purpose, each with its reason.
EXCEPTIONS = {
    "test_gh4555b": "its reference, to 2e-7, is what scipy's default tolerances leave: 1.6e-6 off the covariance at the minimum, "
    "which scipy itself gives with an exact jac and tight tolerances (tests/compat/test_curve_fit.py compares all three)",
}


class Exchange:
    """A pytest plugin: puts gradfit's function into the module of the tests, and counts how they end."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Put our function in the place of scipy's; mark what is expected to fail."""
        for item in items:
            item.module.curve_fit = gradfit.curve_fit
            reason = EXCEPTIONS.get(item.name)
            if reason is not None:
                item.add_marker(pytest.mark.xfail(reason=reason, strict=True))

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keep how a test ended; a failure to set it up or to clean up counts too."""
        name = report.nodeid.rpartition("::")[2]
        if report.when == "call" or report.outcome == "failed":
            self.outcomes[name] = "fails as expected" if hasattr(report, "wasxfail") else report.outcome


def run(options: list[str]) -> tuple[int, dict[str, str]]:
    """Run the tests; give pytest's exit code and how each ended."""
    exchange = Exchange()
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "pytest.ini"
        settings.write_text("[pytest]\n", encoding="utf-8")
        own = ["-c", str(settings), "--rootdir", folder, "-p", "no:cacheprovider", "-p", "no:xdist", "-q"]
        code = pytest.main([*own, "--pyargs", MODULE, "-k", CASES, *options], plugins=[exchange])
    return int(code), exchange.outcomes


def main() -> int:
    """Run, and say how many passed."""
    code, outcomes = run(sys.argv[1:])
    passed = sum(outcome == "passed" for outcome in outcomes.values())
    print(f"scipy's tests of curve_fit on gradfit.curve_fit: {passed} of {len(outcomes)} passed.")
    for name, outcome in outcomes.items():
        if outcome != "passed":
            print(f"  {name}: {outcome}. {EXCEPTIONS.get(name, '')}")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
