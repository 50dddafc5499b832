"""How often clean data raise a finding, and how often a planted fault is found.

``python bench/false_alarms.py --count 2000 --seed 0`` simulates every case that many times: data from the model itself with normal
errors, fitted from near the truth; the share of fits with any finding must stay below 5%. ``--power`` plants faults instead, and counts
the fits in which the finding that names the fault appears. ``--only TEXT`` keeps the cases whose name holds it.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

import gradfit

Floats = np.ndarray
Noise = Callable[[np.random.Generator, Floats, Floats], Floats]
ALLOWED = 0.05


def line(x, w, b):
    return w * x + b


def decay(x, a, t, c):
    return a * np.exp(-x / t) + c


def peak(x, a, m, s, c):
    return a * np.exp(-0.5 * ((x - m) / s) ** 2) + c


def kinetics(x, v, k):
    return v * x / (k + x)


@dataclass(frozen=True)
class Shape:
    """A model, the true parameters, and where it is measured."""

    model: Callable[..., Any]
    truth: dict[str, float]
    ends: tuple[float, float]

    def x(self, n: int) -> Floats:
        return np.linspace(*self.ends, n)

    def y(self, x: Floats) -> Floats:
        return np.asarray(self.model(x, **self.truth))


SHAPES = {
    "line": Shape(line, {"w": 2.0, "b": 1.0}, (0.0, 10.0)),
    "exponential": Shape(decay, {"a": 10.0, "t": 2.0, "c": 1.0}, (0.0, 8.0)),
    "peak": Shape(peak, {"a": 10.0, "m": 0.3, "s": 1.0, "c": 1.0}, (-3.5, 3.5)),
    "kinetics": Shape(kinetics, {"v": 10.0, "k": 2.0}, (0.3, 12.0)),
}
SIZES = (5, 6, 8, 12, 20, 50, 200, 1000)
LEAST = {"peak": 8, "exponential": 6}  # rows that such a curve takes to be seen at all


@dataclass(frozen=True)
class Case:
    """Data to simulate: ``sigma`` is "none", "relative" or "absolute", of a scatter that grows with y where it is given."""

    shape: Shape
    n: int
    sigma: str = "none"
    counts: bool = False
    kind: str = ""
    fault: Noise | None = field(default=None, repr=False)

    def fit(self, generator: np.random.Generator) -> gradfit.FitResult:
        x = self.shape.x(self.n)
        true = self.shape.y(x)
        spread = 0.2 + 0.05 * true if self.sigma != "none" else np.full(self.n, 0.3)
        y = generator.poisson(5 * true).astype(float) if self.counts else true + spread * generator.normal(size=self.n)
        if self.fault is not None:
            y = self.fault(generator, x, true)
        start = {name: value * (5.0 if self.counts and name in "acvwb" else 1.0) for name, value in self.shape.truth.items()}
        options: dict[str, Any] = {"loss": "poisson"} if self.counts else {}
        if self.sigma != "none":
            options |= {"sigma": spread, "absolute_sigma": self.sigma == "absolute"}
        return gradfit.fit(self.shape.model, x, y, start=start, on_failure="ignore", **options)


def clean(sizes: Sequence[int]) -> Iterator[tuple[str, Case]]:
    """Every model at every size, with and without sigma; counts where they are many enough to be tested."""
    for name, shape in SHAPES.items():
        for n in sizes:
            if n < LEAST.get(name, 0):
                continue
            for sigma in ("none", "relative", "absolute"):
                yield f"{name}, {n} rows, sigma {sigma}", Case(shape, n, sigma)
            if n >= 12:
                yield f"{name}, {n} rows, counts", Case(shape, n, counts=True)


def _plain(generator: np.random.Generator, true: Floats) -> Floats:
    return true + generator.normal(0, 0.3, len(true))


def _outlier(generator: np.random.Generator, x: Floats, true: Floats) -> Floats:
    y = _plain(generator, true)
    y[len(y) // 3] += 6 * 0.3
    return y


def _sine(generator: np.random.Generator, x: Floats, true: Floats) -> Floats:
    return _plain(generator, true) + 0.3 * np.sin(2 * np.pi * 3 * (x - x[0]) / (x[-1] - x[0]))


def _quadratic(generator: np.random.Generator, x: Floats, true: Floats) -> Floats:
    return _plain(generator, true) + 0.9 * (2 * (x - x[0]) / (x[-1] - x[0]) - 1) ** 2


def _exponential(generator: np.random.Generator, x: Floats, true: Floats) -> Floats:
    return true + generator.exponential(0.3, len(x))


def _student(generator: np.random.Generator, x: Floats, true: Floats) -> Floats:
    return true + 0.3 * generator.standard_t(3, len(x))


def _growing(generator: np.random.Generator, x: Floats, true: Floats) -> Floats:
    return true + 0.1 * true * generator.normal(size=len(x))


def _autoregressive(generator: np.random.Generator, x: Floats, true: Floats) -> Floats:
    noise = generator.normal(0, 0.3, len(x))
    for row in range(1, len(x)):
        noise[row] += 0.5 * noise[row - 1]
    return true + noise


def _pulled(generator: np.random.Generator, x: Floats, true: Floats) -> Floats:
    y = _plain(generator, true)
    y[-1] += 2.4
    return y


def _louder(generator: np.random.Generator, x: Floats, true: Floats) -> Floats:
    return true + 1.5 * (0.2 + 0.05 * true) * generator.normal(size=len(x))


def _overdispersed(generator: np.random.Generator, x: Floats, true: Floats) -> Floats:
    return generator.poisson(5 * true * generator.gamma(10, 0.1, len(x))).astype(float)


FAULTS: dict[str, tuple[str, Noise, dict[str, Any]]] = {
    "a row 6 sigma off": ("outliers", _outlier, {}),
    "the last row 8 sigma off": ("influence", _pulled, {}),
    "a wave of 1 sigma": ("residual structure", _sine, {}),
    "a bow of 3 sigma": ("residual structure", _quadratic, {}),
    "noise correlated by 0.5": ("residual structure", _autoregressive, {}),
    "exponential noise": ("non-normal", _exponential, {}),
    "Student's noise, 3 dof": ("non-normal", _student, {}),
    "scatter of a tenth of y": ("spread", _growing, {}),
    "sigma 1.5 times too small": ("noise level", _louder, {"sigma": "absolute"}),
    "counts of a rate that varies by a third": ("noise level", _overdispersed, {"counts": True}),
}


def faulty() -> Iterator[tuple[str, Case]]:
    """Every fault on a line, at sizes where it could be seen by eye."""
    for name, (kind, fault, options) in FAULTS.items():
        for n in (12, 30, 100, 1000):
            yield f"{name}, {n} rows", Case(SHAPES["line"], n, kind=kind, fault=fault, **options)


def simulate(case: Case, count: int, seed: int) -> tuple[int, int, Counter[str]]:
    """Count the fits that reached their minimum, those of them with a finding, and the kinds found."""
    fits, any_found, kinds = 0, 0, Counter[str]()
    for number in range(count):
        fit = case.fit(np.random.default_rng([seed, case.n, number]))
        if not fit.success:
            continue
        fits += 1
        found = {finding.kind for finding in fit.findings}
        any_found += bool(found)
        kinds.update(found)
    return fits, any_found, kinds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000, help="simulations of each case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="rows of the clean cases")
    parser.add_argument("--power", action="store_true", help="plant faults instead")
    options = parser.parse_args()
    worst, begin = ("", 0.0), time.perf_counter()
    for name, case in faulty() if options.power else clean(options.sizes):
        if options.only not in name:
            continue
        fits, found, kinds = simulate(case, options.count, options.seed)
        if fits == 0:
            print(f"{name:45} no fit reached its minimum")
            continue
        shares = ", ".join(f"{kind} {100 * times / fits:.2f}%" for kind, times in kinds.most_common())
        if options.power:
            print(f"{name:45} {100 * kinds[case.kind] / fits:6.1f}% {case.kind}   (all: {shares})", flush=True)
            continue
        print(f"{name:45} {100 * found / fits:6.2f}% of {fits}   {shares}", flush=True)
        worst = max(worst, (name, found / fits), key=lambda pair: pair[1])
    if not options.power:
        print(f"worst: {100 * worst[1]:.2f}%, {worst[0]}; allowed {100 * ALLOWED:.0f}%")
    print(f"{time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
