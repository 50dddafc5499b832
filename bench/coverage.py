"""How often intervals of 95% hold the truth: simulated data of known parameters, fitted as a user would.

    python bench/coverage.py [--only CASE] [--kind t] [--simulations 2000] [--seed 0] [--json FILE]

Kinds: "t", "profile", "bootstrap" are intervals of parameters; "confidence" and "prediction" are bands, judged point by point at the x of
the data and halfway between. A line tells the parameter (or point) that fares worst, its share with the standard error of the simulation,
and how many fits have no such interval: they did not succeed or give NaN, and are in no share. With R simulations the error is
sqrt(0.95 * 0.05 / R), 0.005 for 2000. One process; the same seed gives the same table.

Noise is Gaussian of a few per cent of the largest signal unless the case says otherwise, as in a study one would publish. Cases
marked "watch" lie outside what the intervals promise; they have no goal.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

import gradfit

LEVEL = 0.95
GOAL = (0.935, 0.965)
ROBUST_GOAL = (0.9, 0.98)  # gross errors on one row of eight: no formula of first order is exact there
INTERVALS, BANDS = ("t", "profile", "bootstrap"), ("confidence", "prediction")
RESAMPLES = 399  # per bootstrap; a table of 2000 simulations refits 800 000 times
Noise = Callable[[np.random.Generator, np.ndarray], np.ndarray]  # (generator, mean) -> what is measured


@dataclass(frozen=True)
class Case:
    """One model with its truth, its x, its noise and what is asked of the fit.

    Attributes
    ----------
    measure
        Draws the target from its mean.
    noise
        The same in words.
    goal
        Between which shares the worst parameter should lie; None for a case that is only watched.
    unjudged
        Parameters that are left out: one that sits on its bound has no interval.
    spread
        Standard deviation of a new measurement at x, where a prediction band can be had; None where not.
    scatter
        Standard deviation of x as it is measured.
    """

    model: Callable[..., Any]
    truth: Mapping[str, float]
    x: np.ndarray
    measure: Noise
    noise: str
    options: Mapping[str, Any] = field(default_factory=dict)
    goal: tuple[float, float] | None = GOAL
    unjudged: tuple[str, ...] = ()
    spread: float | np.ndarray | None = None
    scatter: float = 0.0

    def measured(self, generator: np.random.Generator) -> np.ndarray:
        """Draw x."""
        return self.x + generator.normal(0, self.scatter, len(self.x)) if self.scatter else self.x

    def fit(self, x: np.ndarray, y: np.ndarray) -> gradfit.FitResult:
        """Fit from the truth with a tenth added: minima far away are not the subject here."""
        tied = self.options.get("tied", {})
        start = {name: 1.1 * value + 0.01 for name, value in self.truth.items() if name not in tied}
        return gradfit.fit(self.model, x, y, start=start, on_failure="ignore", **self.options)


def line(x: Any, w: Any, b: Any) -> Any:
    """Straight line."""
    return w * x + b


def line_with_zero(x: Any, w: Any, b: Any, zero: Any) -> Any:
    """Straight line, and where it crosses 0, which only follows from it."""
    return w * x + b + 0 * zero


def decay(x: Any, a: Any, b: Any) -> Any:
    """Exponential."""
    return a * np.exp(-b * x)


def decay_with_offset(x: Any, a: Any, b: Any, c: Any) -> Any:
    """Exponential on a background."""
    return a * np.exp(-b * x) + c


def peak(x: Any, a: Any, mu: Any, width: Any) -> Any:
    """Gaussian peak."""
    return a * np.exp(-0.5 * ((x - mu) / width) ** 2)


def michaelis_menten(x: Any, vmax: Any, km: Any) -> Any:
    """Rate of an enzyme by concentration."""
    return vmax * x / (km + x)


def normal(sigma: float | np.ndarray) -> Noise:
    """Gaussian noise."""
    return lambda generator, mean: mean + generator.normal(0, 1, len(mean)) * sigma


def contaminated(sigma: float) -> Noise:
    """One row in ten has ten times the noise."""
    return lambda generator, mean: (
        mean + generator.normal(0, 1, len(mean)) * np.where(generator.random(len(mean)) < 0.1, 10 * sigma, sigma)
    )


def correlated(matrix: np.ndarray) -> Noise:
    """Gaussian noise of a covariance."""
    root = np.linalg.cholesky(matrix)
    return lambda generator, mean: mean + root @ generator.normal(0, 1, len(mean))


def counts(generator: np.random.Generator, mean: np.ndarray) -> np.ndarray:
    """Poisson."""
    return generator.poisson(mean).astype(float)


def overdispersed(generator: np.random.Generator, mean: np.ndarray) -> np.ndarray:
    """Counts of twice the variance of Poisson's."""
    return generator.negative_binomial(mean, 0.5).astype(float)


def _cases() -> dict[str, Case]:
    decays = {"a": 3.0, "b": 1.0}
    cases = {
        f"line n={n}": Case(line, {"w": 2.0, "b": 1.0}, np.linspace(0, 1, n), normal(0.15), "5%", spread=0.15) for n in (6, 11)
    }
    cases |= {
        f"exponential n={n}": Case(decay, decays, np.linspace(0, 3, n), normal(0.15), "5%", spread=0.15) for n in (6, 11, 50)
    }
    peaks = {"a": 5.0, "mu": 0.3, "width": 1.0}
    cases |= {f"peak n={n}": Case(peak, peaks, np.linspace(-3, 3, n), normal(0.25), "5%", spread=0.25) for n in (11, 30)}
    enzyme = {"vmax": 100.0, "km": 2.0}
    cases |= {
        f"Michaelis-Menten n={n}": Case(michaelis_menten, enzyme, 0.25 * 2.0 ** np.arange(n), normal(4.0), "4%", spread=4.0)
        for n in (7, 8)
    }
    x = np.linspace(0, 3, 11)
    sigma = np.linspace(0.05, 0.25, 11)
    matrix = 0.15**2 * 0.6 ** np.abs(np.subtract.outer(np.arange(11), np.arange(11)))
    cases |= {
        "offset on its bound": Case(
            decay_with_offset, decays | {"c": 0.0}, np.linspace(0, 5, 20), normal(0.15), "5%", {"bounds": {"c": (0, None)}},
            unjudged=("c",), spread=0.15
        ),
        "absolute sigma": Case(decay, decays, x, normal(sigma), "2-8%", {"sigma": sigma, "absolute_sigma": True}, spread=sigma),
        "relative sigma": Case(decay, decays, x, normal(sigma), "2-8%", {"sigma": 7 * sigma}, spread=sigma),
        "weights": Case(decay, decays, x, normal(sigma), "2-8%", {"weights": sigma**-2}),
        "absolute matrix": Case(decay, decays, x, correlated(matrix), "5%, 0.6 correlated", {"sigma": matrix, "absolute_sigma": True}),
        "relative matrix": Case(decay, decays, x, correlated(matrix), "5%, 0.6 correlated", {"sigma": 9 * matrix}),
        "tied -b/w": Case(
            line_with_zero, {"w": 2.0, "b": 1.0, "zero": -0.5}, np.linspace(-1, 1, 11), normal(0.15), "5%", {"tied": {"zero": "-b/w"}}
        ),
        "Poisson peak 40 counts": Case(
            peak, {"a": 40 * 0.6 / math.sqrt(2 * math.pi), "mu": 0.3, "width": 1.0}, np.linspace(-4, 4, 14), counts, "Poisson",
            {"loss": "poisson", "bounds": {"a": (1e-3, None), "width": (1e-2, None)}}, goal=(0.935, 1.0),
        ),
    }  # fmt: skip
    for loss in ("huber", "soft_l1", "cauchy", "arctan"):
        options = {"loss": loss, "f_scale": 0.225}
        cases[f"{loss} line n=8"] = Case(
            line, {"w": 2.0, "b": 1.0}, np.linspace(0, 1, 8), contaminated(0.15), "5%, 10% outliers", options, ROBUST_GOAL
        )
        cases[f"{loss} exponential n=11"] = Case(decay, decays, x, contaminated(0.15), "5%, 10% outliers", options, ROBUST_GOAL)
    both = {"sigma": 0.15, "sigma_x": 0.05}
    cases |= {
        f"errors in x, {name}, {what} sigma": Case(
            model,
            truth,
            np.linspace(0, 3, n),
            normal(0.15),
            "5%, x 2%",
            both | {"absolute_sigma": what == "absolute"},
            scatter=0.05,
        )
        for name, model, truth, n in (("line n=11", line, {"w": 2.0, "b": 1.0}, 11), ("exponential n=20", decay, decays, 20))
        for what in ("absolute", "relative")
    }
    return cases | _watched()


def _watched() -> dict[str, Case]:
    decays, x = {"a": 3.0, "b": 1.0}, np.linspace(0, 3, 11)
    own = {"loss": _own_loss}
    peaks = {"a": 100 / math.sqrt(2 * math.pi), "mu": 0.3, "width": 1.0}
    cases = {
        f"strong noise {share:.0%}, exponential n=11": Case(decay, decays, x, normal(3 * share), f"{share:.0%}", goal=None)
        for share in (0.15, 0.3)
    }
    cases["strong noise 15%, Michaelis-Menten n=8"] = Case(
        michaelis_menten, {"vmax": 100.0, "km": 2.0}, 0.25 * 2.0 ** np.arange(8), normal(15.0), "15%", goal=None
    )
    cases["overdispersed counts"] = Case(
        peak, peaks, np.linspace(-4, 4, 30), overdispersed, "variance twice the mean", {"loss": "poisson"}, goal=None
    )
    cases["own loss, exponential n=11"] = Case(decay, decays, x, normal(0.15), "5%", own, goal=None)
    cases["own loss, exponential n=50"] = Case(decay, decays, np.linspace(0, 3, 50), normal(0.15), "5%", own, goal=None)
    sigma = np.linspace(0.05, 0.25, 50)
    cases["weighted huber n=50"] = Case(
        decay,
        decays,
        np.linspace(0, 3, 50),
        normal(sigma),
        "2-8%",
        {"loss": "huber", "f_scale": 0.225, "weights": sigma**-2},
        goal=None,
    )
    cases["huber, f_scale 0.3 sigma, line n=8"] = Case(
        line, {"w": 2.0, "b": 1.0}, np.linspace(0, 1, 8), normal(0.15), "5%", {"loss": "huber", "f_scale": 0.045}, goal=None
    )
    return cases


def _own_loss(prediction: Any, target: Any) -> Any:
    """Logarithm of the hyperbolic cosine: a loss of the user's own."""
    import torch

    scaled = (prediction - target) / 0.15
    return scaled + torch.nn.functional.softplus(-2 * scaled) - math.log(2)


CASES = _cases()


@dataclass(frozen=True)
class Coverage:
    """Share of intervals that hold the truth: the worst parameter or point of a case.

    Attributes
    ----------
    share, error
        And its standard error.
    missing
        Share of simulations without this interval.
    """

    case: str
    kind: str
    noise: str
    worst: str
    share: float
    error: float
    missing: float
    simulations: int
    reached: bool | None


def measure(name: str, kind: str = "t", *, simulations: int, seed: int = 0) -> Coverage:
    """Simulate one case; the same seed gives the same data whatever the kind."""
    case = CASES[name]
    generator = np.random.default_rng([seed, list(CASES).index(name)])
    mean = np.asarray(case.model(case.x, **case.truth), dtype=float)
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(simulations):
            y = case.measure(generator, mean)
            rows.append(_held(case, case.fit(case.measured(generator), y), kind, generator))
    held = np.array(rows)
    labels = _labels(case, kind)
    given = ~np.isnan(held)
    shares = np.array([np.mean(column[known]) if known.any() else np.nan for column, known in zip(held.T, given.T, strict=True)])
    worst = int(np.nanargmax(np.abs(shares - LEVEL))) if np.isfinite(shares).any() else 0
    if case.goal is not None and np.isfinite(shares).any():
        worst = int(np.nanargmin(shares)) if case.goal[1] >= 1 else worst
    share, count = float(shares[worst]), int(given[:, worst].sum())
    error = math.sqrt(share * (1 - share) / count) if count else math.nan
    reached = None if case.goal is None else bool(case.goal[0] <= share <= case.goal[1])
    return Coverage(name, kind, case.noise, labels[worst], share, error, float(1 - given[:, worst].mean()), simulations, reached)


def _labels(case: Case, kind: str) -> list[str]:
    if kind in INTERVALS:
        return [name for name in case.truth if name not in case.unjudged]
    return [f"x={point:.3g}" for point in _points(case)]


def _points(case: Case) -> np.ndarray:
    return np.sort(np.r_[case.x, (case.x[1:] + case.x[:-1]) / 2])


def _held(case: Case, fit: gradfit.FitResult, kind: str, generator: np.random.Generator) -> list[float]:
    """Whether each interval holds the truth: 1, 0, or NaN where there is none."""
    names = _labels(case, kind)
    if not fit.success:
        return [math.nan] * len(names)
    if kind in INTERVALS:
        more = {"resamples": RESAMPLES, "seed": int(generator.integers(2**31)), "threads": 1} if kind == "bootstrap" else {}
        intervals = fit.intervals(level=LEVEL, kind=kind, **more)
        return [_within(case.truth[name], *intervals[name]) for name in names]
    points = _points(case)
    there = np.asarray(case.model(points, **case.truth), dtype=float)
    options = {}
    if kind == "prediction":
        assert case.spread is not None
        there = there + generator.normal(0, 1, len(there)) * _between(case, case.spread)
        options = {"sigma": _between(case, case.options["sigma"])} if "sigma" in case.options else {}
    band = fit.predict(points, interval=kind, level=LEVEL, **options)
    return [_within(value, low, high) for value, low, high in zip(there, band.lower, band.upper, strict=True)]


def _between(case: Case, sigma: Any) -> np.ndarray:
    """Standard deviations at the points of the bands, from those at x."""
    return np.interp(_points(case), case.x, np.broadcast_to(sigma, len(case.x)))


def _within(value: float, lower: float, upper: float) -> float:
    return math.nan if math.isnan(lower) or math.isnan(upper) else float(lower <= value <= upper)


def table(found: list[Coverage]) -> str:
    """Write rows of text, one line each."""
    reached = {None: "watch", True: "yes", False: "NO"}
    lines = [f"{'case':38} {'noise':22} {'kind':10} {'worst':10} {'share':>6} {'error':>6} {'missing':>7}  reached"]
    lines += [
        f"{row.case:38} {row.noise:22} {row.kind:10} {row.worst:10} {row.share:6.3f} {row.error:6.3f} {row.missing:7.2%}  {reached[row.reached]}"
        for row in found
    ]
    return "\n".join(lines)


def possible(name: str, kind: str) -> bool:
    """Whether a case can have such an interval: a prediction band needs the noise of a new point."""
    return kind != "prediction" or CASES[name].spread is not None


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; 1 if a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="CASE", action="append", help="a case, or the beginning of its name; may be repeated")
    parser.add_argument("--kind", choices=[*INTERVALS, *BANDS], default="t")
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="write the table there too")
    given = parser.parse_args(arguments)
    names = [name for name in CASES if given.only is None or any(name.startswith(start) for start in given.only)]
    if not names:
        parser.error(f"no case begins with {' or '.join(given.only)}; there are: {', '.join(CASES)}")
    found = []
    for name in names:
        if possible(name, given.kind):
            found.append(measure(name, given.kind, simulations=given.simulations, seed=given.seed))
            print(table(found[-1:]).splitlines()[1] if len(found) > 1 else table(found), flush=True)
    if given.json:
        with open(given.json, "w", encoding="utf-8") as file:
            json.dump([asdict(row) for row in found], file, indent=1)
    return int(any(row.reached is False for row in found))


if __name__ == "__main__":
    raise SystemExit(main())
