"""How often a fit without a start, and one from the guess, of a ready model reaches the optimum: random draws of every shape's parameters, 5% noise.

    python bench/guesses.py [--only SHAPE] [--draws 200] [--seed 0] [--json FILE]

For each draw Levenberg-Marquardt goes without a start ("fit"), from the guess, from the truth, and where lmfit is installed and has the model, from lmfit's
guess. A success: the loss is within 1e-6 of the lowest of these. Draws are wide: 20 to 500 points in shuffled order, evenly spaced, at random
or ever farther apart, windows of any unit; peaks of either sign, from two spacings wide to as wide as the window, centers in the window and a tenth of it outside; decays
from a tenth of the window to three; waves from 0.3 cycles to n/4. The noise is 5% of peak to peak. Two columns of counts: "none", draws in which no fit
ends at a minimum (the loss falls on to infinity, as for the flank of a peak that lies outside: there is nothing to reach, they are in no share),
and "far", draws in which the fit from the truth ends higher than the one from the guess. Times are those of the guess alone,
and of the fit without a start, once its model is compiled, in ms of a processor.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np

import gradfit
from gradfit import lineshapes

NOISE = 0.05
WITHIN = 1e-6
EXACT = 1e-20  # of the mean square of y: a loss below is a rounding error
GOAL = 0.99
Generator = np.random.Generator
Draw = Callable[[Generator, np.ndarray], tuple[np.ndarray, dict[str, float]]]  # (generator, x in 0..1) -> x, parameters


@dataclass(frozen=True)
class Case:
    """One model, how its parameters are drawn, and what lmfit calls it.

    Attributes
    ----------
    peer
        lmfit's model class, its options, and its names of parameters by ours where they differ.
    goal
        Share of draws that must succeed; None for one that is only watched.
    """

    name: str
    model: Any
    draw: Draw
    peer: tuple[str, dict[str, Any]] | None = None
    goal: float | None = GOAL


def unit(generator: Generator) -> np.ndarray:
    """Draw x of a window from 0 to 1, shuffled."""
    n = round(math.exp(generator.uniform(math.log(20), math.log(500))))
    kind = generator.integers(3)
    if kind == 0:
        x = np.linspace(0, 1, n)
    elif kind == 1:
        x = generator.uniform(0, 1, n)
    else:
        x = np.linspace(0, 1, n) ** 1.5
    return generator.permutation(x)


def sign(generator: Generator) -> float:
    return float(generator.choice([-1.0, 1.0]))


def log_uniform(generator: Generator, low: float, high: float) -> float:
    return math.exp(generator.uniform(math.log(low), math.log(high)))


def window(generator: Generator, x: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Draw units of x, and where the window lies: x, its beginning, its length."""
    span = log_uniform(generator, 1e-3, 1e3)
    begin = generator.uniform(-2, 2) * span
    return begin + span * x, begin, span


def peak(generator: Generator, x: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    x, begin, span = window(generator, x)
    amplitude = sign(generator) * log_uniform(generator, 1e-3, 1e3)
    return x, {
        "amplitude": amplitude,
        "center": begin + span * generator.uniform(-0.1, 1.1),
        "sigma": span * log_uniform(generator, 2 / len(x), 1.0),
    }


def voigt(generator: Generator, x: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    x, drawn = peak(generator, x)
    return x, drawn | {"gamma": drawn["sigma"] * log_uniform(generator, 0.1, 10.0)}


def pseudo_voigt(generator: Generator, x: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    x, drawn = peak(generator, x)
    return x, drawn | {"fraction": generator.uniform(0, 1)}


def skewed(generator: Generator, x: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    x, drawn = peak(generator, x)
    return x, drawn | {"gamma": sign(generator) * log_uniform(generator, 0.3, 8.0)}


def edge(generator: Generator, x: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    x, drawn = peak(generator, x)
    return x, drawn | {"sigma": sign(generator) * drawn["sigma"] / 2}


def exponential(generator: Generator, x: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    x, _, span = window(generator, x)
    decay = sign(generator) * span * log_uniform(generator, 0.1, 3.0)
    return x, {"amplitude": sign(generator) * log_uniform(generator, 1e-3, 1e3), "decay": decay}


def biexponential(generator: Generator, x: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    span = log_uniform(generator, 1e-3, 1e3)
    first, size = log_uniform(generator, 0.1, 1.0), log_uniform(generator, 1e-3, 1e3)
    second = first * log_uniform(generator, 3.0, 10.0)
    return span * x, {
        "amplitude_1": sign(generator) * size,
        "decay_1": span * first,
        "amplitude_2": sign(generator) * size * log_uniform(generator, 0.3, 3.0),
        "decay_2": span * second,
    }


def stretched(generator: Generator, x: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    span = log_uniform(generator, 1e-3, 1e3)
    return span * x, {
        "amplitude": sign(generator) * log_uniform(generator, 1e-3, 1e3),
        "decay": span * log_uniform(generator, 0.1, 3.0),
        "beta": generator.uniform(0.3, 2.0),
    }


def power_law(generator: Generator, x: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    x = log_uniform(generator, 1e-3, 1e3) * (0.05 + x)
    return x, {"amplitude": sign(generator) * log_uniform(generator, 1e-3, 1e3), "exponent": generator.uniform(-4, 4)}


def arrhenius(generator: Generator, x: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    x = generator.uniform(200, 400) + generator.uniform(50, 500) * x
    return x, {"prefactor": log_uniform(generator, 1e-2, 1e14), "activation_energy": generator.uniform(-5e4, 2e5)}


def hill(generator: Generator, x: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    span = log_uniform(generator, 1e-3, 1e3)
    return span * x, {
        "vmax": sign(generator) * log_uniform(generator, 1e-3, 1e3),
        "k": span * log_uniform(generator, 0.05, 1.5),
        "n": generator.uniform(0.5, 6.0) * sign(generator),
    }


def michaelis_menten(generator: Generator, x: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    span = log_uniform(generator, 1e-3, 1e3)
    return span * x, {"vmax": log_uniform(generator, 1e-3, 1e3), "km": span * log_uniform(generator, 0.02, 3.0)}


def sine(generator: Generator, x: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    n = len(x)
    x, _, span = window(generator, x)
    cycles = log_uniform(generator, 0.3, n / 4)
    return x, {
        "amplitude": log_uniform(generator, 1e-3, 1e3),
        "frequency": cycles / span,
        "phase": generator.uniform(-math.pi, math.pi),
    }


def damped_sine(generator: Generator, x: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    span = log_uniform(generator, 1e-3, 1e3)
    _, drawn = sine(generator, x)
    cycles = log_uniform(generator, 1.0, len(x) / 4)
    return span * x, drawn | {"frequency": cycles / span, "decay": span * log_uniform(generator, 0.1, 3.0)}


def planck(generator: Generator, x: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    temperature = log_uniform(generator, 100, 2e4)
    brightest = 2.9e-3 / temperature
    return brightest * (0.3 + generator.uniform(1, 6) * x), {
        "amplitude": log_uniform(generator, 1e-3, 1e3),
        "temperature": temperature,
    }


def plain(*names: str) -> Draw:
    """Draw linear parameters of like effect."""

    def draw(generator: Generator, x: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        x, begin, span = window(generator, x)
        size = max(abs(begin), abs(begin + span))
        return x, {name: generator.normal() / size**power for power, name in enumerate(names)}

    return draw


def two_peaks(generator: Generator, x: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    """Draw two peaks at least two widths apart, on a line."""
    x, begin, span = window(generator, x)
    count = len(x)
    widths = [span * log_uniform(generator, 2 / count, 0.12) for _ in range(2)]
    centers = [begin + span * generator.uniform(0.05, 0.95)]
    while len(centers) < 2:
        other = begin + span * generator.uniform(0.05, 0.95)
        if abs(other - centers[0]) > 2 * max(widths):
            centers.append(other)
    heights = [log_uniform(generator, 0.3, 1.0) for _ in range(2)]
    drawn = {}
    for prefix, center, width, height in zip("ab", centers, widths, heights, strict=True):
        area = height * width * math.sqrt(2 * math.pi)
        drawn |= {f"{prefix}_amplitude": area, f"{prefix}_center": center, f"{prefix}_sigma": width}
    slope = generator.normal() / span
    return x, drawn | {"slope": slope, "intercept": generator.normal() - slope * begin}


TWO = lineshapes.gaussian.prefixed("a_") + lineshapes.gaussian.prefixed("b_") + lineshapes.line
CASES = [
    Case("constant", lineshapes.constant, plain("c"), ("ConstantModel", {})),
    Case("line", lineshapes.line, lambda g, x: (lambda x, p: (x, {"slope": p["c1"], "intercept": p["c0"]}))(*plain("c0", "c1")(g, x)), ("LinearModel", {})),
    Case("polynomial(3)", lineshapes.polynomial(3), plain("c0", "c1", "c2", "c3"), ("PolynomialModel", {"degree": 3})),
    Case("exponential", lineshapes.exponential, exponential, ("ExponentialModel", {})),
    Case("biexponential", lineshapes.biexponential, biexponential),
    Case("stretched_exponential", lineshapes.stretched_exponential, stretched),
    Case("power_law", lineshapes.power_law, power_law, ("PowerLawModel", {})),
    Case("arrhenius", lineshapes.arrhenius, arrhenius),
    Case("gaussian", lineshapes.gaussian, peak, ("GaussianModel", {})),
    Case("lorentzian", lineshapes.lorentzian, peak, ("LorentzianModel", {})),
    Case("voigt", lineshapes.voigt, voigt, ("VoigtModel", {})),
    Case("pseudo_voigt", lineshapes.pseudo_voigt, pseudo_voigt, ("PseudoVoigtModel", {})),
    Case("skewed_gaussian", lineshapes.skewed_gaussian, skewed, ("SkewedGaussianModel", {})),
    Case("logistic", lineshapes.logistic, edge, ("StepModel", {"form": "logistic"})),
    Case("step", lineshapes.step, edge, ("StepModel", {"form": "erf"})),
    Case("hill", lineshapes.hill, hill),
    Case("michaelis_menten", lineshapes.michaelis_menten, michaelis_menten),
    Case("sine", lineshapes.sine, sine, ("SineModel", {})),
    Case("damped_sine", lineshapes.damped_sine, damped_sine),
    Case("planck", lineshapes.planck, planck),
    Case("two gaussians + line", TWO, two_peaks, goal=None),
]  # fmt: skip


@dataclass
class Trial:
    """One draw: losses by where the fit began, how long guess and fit took, whether any fit ended at a minimum, and the mean square of y."""

    losses: dict[str, float]
    milliseconds: dict[str, float]
    ends: bool
    signal: float

    def reached(self, start: str) -> bool:
        """Whether the fit from a start ended at the lowest loss known."""
        return self.losses[start] <= min(self.losses.values()) * (1 + WITHIN) + EXACT * self.signal


def trial(case: Case, seed: int) -> Trial:
    """Draw data, guess, and fit from every start."""
    generator = np.random.default_rng([seed, sum(map(ord, case.name))])
    x, truth = case.draw(generator, unit(generator))
    signal = case.model(x, **truth)
    size = np.ptp(signal) or np.abs(signal).max()
    y = signal + NOISE * size * generator.normal(size=len(x))
    begin = time.process_time()
    guess = case.model.guess(x, y)
    took = {"guess": 1e3 * (time.process_time() - begin)}
    starts: dict[str, Mapping[str, float] | None] = {"truth": truth, "guess": guess, "fit": None}
    if case.peer is not None and (theirs := lmfit_guess(case, x, y)) is not None:
        starts["lmfit"] = theirs
    found = {}
    for name, start in starts.items():
        begin = time.process_time()
        found[name] = end_from(case.model, x, y, start)
        took |= {"fit": 1e3 * (time.process_time() - begin)} if start is None else {}
    losses = {name: loss for name, (loss, _) in found.items()}
    if case.peer is not None and "lmfit" not in losses:
        losses["lmfit"] = math.inf
    return Trial(losses, took, any(success for _, success in found.values()), float(np.mean(y**2)))


def end_from(model: Any, x: np.ndarray, y: np.ndarray, start: Mapping[str, float] | None) -> tuple[float, bool]:
    """Give the loss that a fit from a start ends at, infinity where none can begin there, and whether it is a minimum."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            fit = gradfit.fit(model, x, y, start=None if start is None else dict(start), on_failure="ignore")
        except gradfit.GradfitError:
            return math.inf, False
        return float(fit.loss), fit.success


def lmfit_guess(case: Case, x: np.ndarray, y: np.ndarray) -> dict[str, float] | None:
    """Give lmfit's guess by our names, None where it has none; its data are sorted, as its peaks want them."""
    import lmfit.models

    assert case.peer is not None
    kind, options = case.peer
    model = getattr(lmfit.models, kind)(**options)
    order = np.argsort(x)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            found = {name: float(value) for name, value in model.guess(y[order], x=x[order]).valuesdict().items()}
        except (ValueError, TypeError, IndexError, np.linalg.LinAlgError):
            return None
    if kind == "SineModel":
        found |= {"frequency": found["frequency"] / (2 * math.pi), "phase": found["shift"]}
    known = {name: found[name] for name in case.model.parameters if name in found}
    return known if all(map(math.isfinite, known.values())) else None


def without_peer(case: Case) -> Case:
    """Leave lmfit out."""
    return replace(case, peer=None)


def has_lmfit() -> bool:
    """Whether lmfit is there to be compared with."""
    from importlib.util import find_spec

    return find_spec("lmfit") is not None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json")
    parser.add_argument("--failures", action="store_true", help="print the draws that fail")
    options = parser.parse_args()
    print(
        f"{'shape':24}{'fit':>8}{'guess':>8}{'lmfit':>8}{'none':>6}{'far':>6}{'guess ms':>10}{'most':>6}{'fit ms':>8}{'most':>6}"
    )
    table = {}
    for case in CASES:
        if options.only is not None and options.only not in case.name:
            continue
        own = case if has_lmfit() else without_peer(case)
        peer = own.peer
        trials = [trial(own, 100_000 * options.seed + draw) for draw in range(options.draws)]
        judged = [each for each in trials if each.ends]
        share = {
            start: sum(each.reached(start) for each in judged) / len(judged)
            for start in ("fit", "guess", *(("lmfit",) if peer else ()))
        }
        far, none = sum(not each.reached("truth") for each in judged), len(trials) - len(judged)
        shown = "".join(f"{share[start]:8.3f}" if start in share else 8 * " " for start in ("fit", "guess", "lmfit"))
        times = {name: sorted(each.milliseconds[name] for each in trials) for name in ("guess", "fit")}
        took = f"{median(times['guess']):10.1f}{times['guess'][-1]:6.0f}{median(times['fit']):8.1f}{times['fit'][-1]:6.0f}"
        print(f"{case.name:24}{shown}{none:6d}{far:6d}{took}", flush=True)
        table[case.name] = share | {
            "none": none,
            "far": far,
            "median_ms": {name: median(each) for name, each in times.items()},
            "goal": case.goal,
        }
        if options.failures:
            for draw, each in enumerate(trials):
                if not (each.reached("guess") and each.reached("fit")):
                    print(f"    draw {100_000 * options.seed + draw}: {each.losses}{'' if each.ends else ' no minimum'}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(table, file, indent=1)


if __name__ == "__main__":
    main()
