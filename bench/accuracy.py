"""Accuracy: certified problems of NIST, and the test set of Moré, Garbow and Hillstrom, by single fits with default settings.

``python bench/accuracy.py [--engine native torch] [--only nist mgh] [--list]``

NIST: 27 data sets from two starts, by formula. Digits are those of the worst parameter, -log10 of its relative error; of the
standard deviations likewise, without Lanczos1, whose residuals are below rounding.

Moré, Garbow, Hillstrom: 117 runs, see ``tests/mgh/problems.py``. A run is solved when its status is success and its sum of squares is
within 1e-6 of the global minimum, relative, and within 1e-12 where that is 0. A run that says it has converged elsewhere is at another
minimum when the gradient is 0 there, by derivatives taken apart from gradfit; otherwise it is wrong. Systems of functions, whose rows
all look at all parameters, run on the torch engine; models of data on either.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

import gradfit

TESTS = Path(__file__).parent.parent / "tests"
sys.path.insert(0, str(TESTS))

from mgh.problems import runs, slope  # noqa: E402 - the tests are no package
from nist_problems import Certified, certified  # noqa: E402

TWO_PEAKS = "b1*exp(-b2*x) + b3*exp(-((x - b4)/b5)**2) + b6*exp(-((x - b7)/b8)**2)"
DECAYS = "b1*exp(-b2*x) + b3*exp(-b4*x) + b5*exp(-b6*x)"
RATIO = "(b1 + b2*x + b3*x**2 + b4*x**3)/(1 + b5*x + b6*x**2 + b7*x**3)"
CYCLES = (
    "b1 + b2*cos(2*pi*x/12) + b3*sin(2*pi*x/12) + b5*cos(2*pi*x/b4) + b6*sin(2*pi*x/b4) + b8*cos(2*pi*x/b7) + b9*sin(2*pi*x/b7)"
)
NIST = {
    "Bennett5": "b1*(b2 + x)**(-1/b3)",
    "BoxBOD": "b1*(1 - exp(-b2*x))",
    "Chwirut1": "exp(-b1*x)/(b2 + b3*x)",
    "Chwirut2": "exp(-b1*x)/(b2 + b3*x)",
    "DanWood": "b1*x**b2",
    "ENSO": CYCLES,
    "Eckerle4": "b1/b2*exp(-0.5*((x - b3)/b2)**2)",
    "Gauss1": TWO_PEAKS,
    "Gauss2": TWO_PEAKS,
    "Gauss3": TWO_PEAKS,
    "Hahn1": RATIO,
    "Kirby2": "(b1 + b2*x + b3*x**2)/(1 + b4*x + b5*x**2)",
    "Lanczos1": DECAYS,
    "Lanczos2": DECAYS,
    "Lanczos3": DECAYS,
    "MGH09": "b1*(x**2 + x*b2)/(x**2 + x*b3 + b4)",
    "MGH10": "b1*exp(b2/(x + b3))",
    "MGH17": "b1 + b2*exp(-x*b4) + b3*exp(-x*b5)",
    "Misra1a": "b1*(1 - exp(-b2*x))",
    "Misra1b": "b1*(1 - (1 + b2*x/2)**(-2))",
    "Misra1c": "b1*(1 - (1 + 2*b2*x)**(-0.5))",
    "Misra1d": "b1*b2*x/(1 + b2*x)",
    "Nelson": "b1 - b2*x*exp(-b3*x2)",
    "Rat42": "b1/(1 + exp(b2 - b3*x))",
    "Rat43": "b1/(1 + exp(b2 - b3*x))**(1/b4)",
    "Roszman1": "b1 - b2*x - arctan(b3/(x - b4))/pi",
    "Thurber": RATIO,
}
LEVELS = (4, 6, 8)


def main() -> None:
    """Run what was asked for and print the tables."""
    parser = argparse.ArgumentParser(
        description="Accuracy on NIST's certified problems and the test set of Moré, Garbow, Hillstrom."
    )
    parser.add_argument("--engine", nargs="+", default=["native", "torch"], choices=["native", "torch"])
    parser.add_argument("--only", nargs="+", default=["nist", "mgh"], choices=["nist", "mgh"])
    parser.add_argument("--list", action="store_true", help="name the runs that were not solved")
    asked = parser.parse_args()
    warnings.simplefilter("ignore", gradfit.UndeterminedWarning)  # systems of as many functions as parameters
    for engine in asked.engine:
        if "nist" in asked.only:
            print(nist(engine, asked.list))
        if "mgh" in asked.only:
            print(mgh(engine, asked.list))


def nist(engine: str, listed: bool) -> str:
    """Fit NIST's problems; give a line of the table."""
    values, deviations, short = [], [], []
    for name in NIST:
        problem = certified(name)
        for start in (0, 1):
            fit = fit_nist(name, problem, start, engine)
            found = [fit.params[f"b{place + 1}"] for place in range(len(problem.values))]
            own = digits([p.value for p in found], problem.values) if fit.success else 0.0
            values.append(own)
            if name != "Lanczos1":
                deviations.append(digits([p.stderr for p in found], problem.deviations) if fit.success else 0.0)
            if own < LEVELS[-1]:
                short.append(f"  {name} from start {start + 1}: {own:.1f} digits, {fit.message}")
    counts = ", ".join(f"{sum(own >= level for own in values)} with {level}" for level in LEVELS)
    known = sum(own >= LEVELS[1] for own in deviations)
    line = (
        f"NIST, {engine}: of {len(values)} runs {counts} digits or more; standard deviations: of {len(deviations)} {known} with 6"
    )
    return "\n".join([line, *(short if listed else [])])


def fit_nist(name: str, problem: Certified, start: int, engine: str) -> gradfit.FitResult:
    """Fit one of NIST's problems, by formula; Nelson's has two predictors."""
    columns = dict(zip(("x", "x2"), np.atleast_2d(problem.x), strict=False)) | {"y": problem.y}
    starts = {f"b{place + 1}": value for place, value in enumerate(problem.starts[start].tolist())}
    return gradfit.fit(f"y = {NIST[name]}", data=columns, target="y", start=starts, engine=engine, on_failure="ignore")


def digits(found: list[float], certified: np.ndarray) -> float:
    """Digits of the worst number."""
    error = np.max(np.abs(np.array(found) / certified - 1))
    return float(np.clip(-np.log10(max(error, 1e-16)), 0, 16)) if np.isfinite(error) else 0.0


def mgh(engine: str, listed: bool) -> str:
    """Run the test set; give a line of the table."""
    ends: Counter[str] = Counter()
    near, lines, native = 0, [], 0
    for problem, factor, start in runs():
        chosen = engine if problem.is_of_data else "torch"
        native += chosen == "native"
        try:
            fit = gradfit.fit(
                problem.model, *problem.columns, problem.target, start={"x": start}, engine=chosen, on_failure="ignore"
            )
        except gradfit.ModelError as error:
            ends["refused"] += 1
            lines.append(f"  {problem.label} from {factor:g} x0: refused, {error}")
            continue
        end = ended(problem, fit)
        ends[end] += 1
        near += end == "solved" and factor == 1
        if end != "solved":
            lines.append(f"  {problem.label} from {factor:g} x0: {end}, {fit.message}")
    total, standard = sum(ends.values()), sum(factor == 1 for _, factor, _ in runs())
    others = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()) if end != "solved")
    line = (
        f"MGH, {engine} ({native} runs native): of {total} runs {ends['solved']} solved, {near} of {standard} from x0; {others}"
    )
    return "\n".join([line, *(lines if listed else [])])


def ended(problem: object, fit: gradfit.FitResult) -> str:
    """Say how a run ended: solved, at another minimum, wrong, or not successful."""
    x = np.asarray(fit.values["x"], dtype=np.longdouble)
    total, steepness = slope(problem, x)
    if not fit.success:
        return "not converged"
    if problem.is_solved(total):
        return "solved"
    return "at another minimum" if steepness < 1e-4 else "wrong"


if __name__ == "__main__":
    main()
