"""Many starts beside as many calls of scipy's curve_fit, and how often a search finds the minimum: ``python bench/multistart.py``.

The starts of scipy are drawn three ways: as gradfit draws them, evenly in a box that holds the answer, and within half of the answer.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.optimize import OptimizeWarning, curve_fit

import gradfit
from gradfit.methods.drawing import around

STARTS, ROUNDS = 64, 9
X = np.linspace(0, 10, 100)


def peak(lib: Any) -> Callable[..., Any]:
    """A Gaussian on a floor, in numpy or torch."""
    return lambda x, a, c, w, o: a * lib.exp(-(((x - c) / w) ** 2) / 2) + o


def decay(lib: Any) -> Callable[..., Any]:
    """An exponential on a floor."""
    return lambda x, a, b, c: a * lib.exp(-b * x) + c


CASES = {  # model, answer, a start, a box, noise
    "peak": (peak, (3.0, 4.0, 1.0, 0.5), (2.0, 5.0, 2.0, 0.0), ((0, 6), (0, 10), (0.1, 5), (-1, 1)), 0.1),
    "decay": (decay, (3.0, 0.5, 0.5), (1.0, 1.0, 1.0), ((0, 6), (0, 3), (-1, 2)), 0.05),
}


def scipys(model: Callable[..., Any], y: np.ndarray, starts: np.ndarray) -> tuple[float, float, int]:
    """Time of a call from each start, the lowest sum of squares, and how many calls failed."""
    best, failures = np.inf, 0
    begin = time.perf_counter()
    for start in starts:
        try:
            found, _ = curve_fit(model, X, y, p0=start)
        except RuntimeError:
            failures += 1
            continue
        best = min(best, float(np.sum((model(X, *found) - y) ** 2)))
    return time.perf_counter() - begin, best, failures


def main() -> None:
    """Print the table."""
    generator = np.random.default_rng(0)
    print("| model | starts of scipy | gradfit ms | scipy ms | ratio | lowest sum, gradfit / scipy | scipy failed |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, (of, answer, start, box, noise) in CASES.items():
        ours, theirs = of(torch), of(np)
        y = theirs(X, *answer) + noise * generator.standard_normal(len(X))
        free = np.full(len(start), np.inf)
        sides = np.array(box).T
        drawn = {
            "as gradfit's": around(np.array(start), STARTS, -free, free, 0),
            "in a box": generator.uniform(*sides, (STARTS, len(start))),
            "near the answer": np.array(answer) * generator.uniform(0.5, 1.5, (STARTS, len(start))),
        }
        for how, starts in drawn.items():
            pairs = []
            for _ in range(ROUNDS):
                begin = time.perf_counter()
                fit = gradfit.fit(ours, X, y, start=list(start), multistart=STARTS)
                own = time.perf_counter() - begin
                other, best, failures = scipys(theirs, y, starts)
                pairs.append((own, other))
            own, other = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(b / a for a, b in pairs)
            lowest = f"{fit.loss * fit.n:.6g} / {best:.6g}"
            print(f"| {name} | {how} | {own * 1e3:.2f} | {other * 1e3:.1f} | {ratio:.0f} | {lowest} | {failures} |")


if __name__ == "__main__":
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", OptimizeWarning)
        main()
