"""How often a minimum is found without a start, and with many: ``python bench/starts.py [--seeds 4] [--systems]``.

NIST's certified problems of nonlinear regression are fitted with no start at all; with ``--systems`` also the set of Moré, Garbow and
Hillstrom with ``multistart=64`` from x0, 10 x0 and 100 x0, which takes some minutes, for systems of functions are not compiled.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

import numpy as np

import gradfit

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "mgh")]

from nist_problems import MODELS, certified  # noqa: E402
from problems import runs, slope  # noqa: E402


def is_found(name: str, seed: int) -> bool:
    """Whether a fit without a start ends at the certified minimum."""
    problem, model = certified(name), MODELS[name]
    arrays = (problem.x,)
    if name == "Nelson":
        arrays, model = tuple(problem.x), lambda x1, x2, b1, b2, b3: b1 - b2 * x1 * np.exp(-b3 * x2)
    fit = gradfit.fit(model, *arrays, problem.y, seed=seed, on_failure="ignore")
    least = float(np.sum((model(*arrays, *problem.values) - problem.y) ** 2))
    return fit.success and fit.loss * fit.n <= least * (1 + 1e-6) + 1e-20


def main() -> None:
    """Print how many are found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--systems", action="store_true")
    asked = parser.parse_args()
    for seed in range(asked.seeds):
        begin = time.perf_counter()
        missed = [name for name in MODELS if not is_found(name, seed)]
        told = f"missed: {', '.join(missed)}" if missed else "none missed"
        print(
            f"NIST, no start, seed {seed}: {len(MODELS) - len(missed)} of {len(MODELS)} in {time.perf_counter() - begin:.1f} s; {told}"
        )
    if asked.systems:
        solved, total = 0, runs()
        for problem, factor, start in total:
            fit = gradfit.fit(
                problem.model, *problem.columns, problem.target, start={"x": start}, multistart=64, on_failure="ignore"
            )
            arrived = problem.is_solved(slope(problem, np.asarray(fit.values["x"]))[0])
            solved += arrived
            if not arrived:
                print(f"missed: {problem.label} from {factor:g} x0")
        print(f"More, Garbow and Hillstrom, multistart=64: {solved} of {len(total)}")


if __name__ == "__main__":
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", gradfit.GradfitWarning)
        main()
