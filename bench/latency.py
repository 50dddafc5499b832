"""Latency: the first fits of fresh processes, from an empty folder of compiled code to a model seen before.

Each measurement is a process of its own, ``python bench/latency.py MODEL METHOD``, which imports everything, then times its first
fit and the calls after it, and prints them as JSON. ``GRADFIT_CACHE_DIR`` names the folder where compiled code is kept:

1. the folder is empty: the very first fit of an installation;
2. another model, the same folder: solvers and loops are there, the model is new;
3. that model again: everything is there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from statistics import median
from time import perf_counter

from table import Figure, Notice, Row

STEPS = {
    "first fit of an installation": ("peak", Figure("time", 5.0)),
    "new model": ("wave", Figure("time", 1.0)),
    "model seen before": ("wave", Figure("time", 0.3, 0.1)),
}
METHODS = {"lm": "Levenberg-Marquardt", "sgd": "SGD 500 epochs", "adam": "Adam 500 epochs"}
TIMEOUT = 300


def lines(repeats: int) -> Iterator[Row | Notice]:
    """Run the three steps in turn, each method in a folder of its own, and give the medians of the repeats."""
    for method, work in METHODS.items():
        found: dict[str, list[dict[str, float]]] = {step: [] for step in STEPS}
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as folder:
                for step, (model, _) in STEPS.items():
                    measured = _measure(model, method, folder)
                    if isinstance(measured, str):
                        yield Notice(f"{work}, {step}: failed, {measured}")
                        break
                    found[step].append(measured)
        for step, (_, figure) in STEPS.items():
            if found[step]:
                seconds = median(one["first"] for one in found[step])
                yield Row(work, step, figure, seconds, value=seconds, pairs=len(found[step]))
        last = found["model seen before"]
        if last:
            seconds = median(one["warm"] for one in last)
            yield Row(work, "warm call", Figure("time"), seconds, value=seconds, pairs=len(last))
            yield Notice(f"imports took {median(one['imports'] for one in last):.1f} s; they are not in the times")


def _measure(model: str, method: str, folder: str) -> dict[str, float] | str:
    """Time one fresh process; a text says why it could not be done."""
    environment = {**os.environ, "GRADFIT_CACHE_DIR": folder}
    command = [sys.executable, __file__, model, method]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer within {TIMEOUT} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def _child(model: str, method: str) -> dict[str, float]:
    """Import everything, fit once, fit again."""
    began = perf_counter()
    import scipy.optimize
    import scipy.stats  # noqa: F401

    import adapters
    import problems

    imports = perf_counter() - began
    data = {"peak": problems.noisy_peak, "wave": problems.noisy_wave}[model]()
    function = getattr(problems, model)

    def fit() -> float:
        began = perf_counter()
        if method == "lm":
            adapters.least_squares(function, data)
        else:
            adapters.descend(function, data, method, 1e-3, 500)
        return perf_counter() - began

    first = fit()
    warm = [fit() for _ in range(5)]
    while len(warm) < 200 and sum(warm) < 0.5:
        warm.append(fit())
    return {"imports": imports, "first": first, "warm": median(warm)}


if __name__ == "__main__":
    print(json.dumps(_child(*sys.argv[1:])))
