"""The works of the benchmark, each beside its peers, and the figures to reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch

import adapters
import latency
import many_cases
import peers_c
import peers_intervals
import peers_numpy
import peers_torch
from gradfit import FitResult
from peers import Peer, Unavailable, load
from problems import Data, celsius, decay, decay_in_both, kinetics, long_decay, noisy_peak, peak, saturation, thermometer
from table import Figure, Notice, Row, compared
from timing import Effort, Run, alone, interleave, one_core

Lines = Iterator[Row | Notice]
PRECISIONS = {"float64": 1e-8, "float32": 1e-3}  # and how near the answers of two peers have to be
OWN_CASE = ("SGD", "Adam")  # each has a case to itself
ELSEWHERE = {"SparseAdam": "takes sparse gradients only", "Muon": "moves matrices only"}


def sgd(effort: Effort) -> Lines:
    """Gradient descent, 5000 epochs on the thermometer, with the whole history."""
    rate, epochs = 1e-2, 5000
    for dtype, data in _precisions(effort):
        figures: dict[str, tuple[Callable[[], Peer], Figure]] = {
            "notebook's torch loop": (partial(peers_torch.notebook, data, rate, epochs), Figure("x faster", 3000, 10_000)),
            "torch.optim loop": (partial(peers_torch.optimizer, data, "SGD", rate, epochs), Figure()),
            "torch.compile'd step": (partial(peers_torch.compiled, data, rate, epochs), Figure()),
            "JAX + optax scan": (partial(_jax, "scan", data, "sgd", rate, epochs), Figure("x faster", 2.5)),
            "C": (partial(peers_c.descent, data, "sgd", rate, epochs), Figure("x as long", 3, 1.5)),
            "C, -ffast-math": (partial(peers_c.descent, data, "sgd", rate, epochs, "-ffast-math"), Figure("x as long")),
        }
        if effort.quick or dtype != "float64":
            del figures["torch.compile'd step"]  # compiles for a minute
        yield from _descent(f"SGD 5000 epochs {dtype}", data, "sgd", rate, epochs, PRECISIONS[dtype], figures, effort)


def adam(effort: Effort) -> Lines:
    """Adam, 2000 epochs on the thermometer, with the whole history."""
    rate, epochs = 1e-1, 2000
    for dtype, data in _precisions(effort):
        figures: dict[str, tuple[Callable[[], Peer], Figure]] = {
            "torch.optim loop": (partial(peers_torch.optimizer, data, "Adam", rate, epochs), Figure("x faster", 2000, 8000)),
            "JAX + optax scan": (partial(_jax, "scan", data, "adam", rate, epochs), Figure("x faster", 1)),
            "C": (partial(peers_c.descent, data, "adam", rate, epochs), Figure("x as long")),
            "C, -ffast-math": (partial(peers_c.descent, data, "adam", rate, epochs, "-ffast-math"), Figure("x as long")),
        }
        yield from _descent(f"Adam 2000 epochs {dtype}", data, "adam", rate, epochs, PRECISIONS[dtype], figures, effort)


def optimizers(effort: Effort) -> Lines:
    """Every other dense optimizer of torch.optim, 2000 epochs, beside its own torch loop."""
    epochs, part = 2000, 200
    data = thermometer()
    yield Notice(f"each torch loop was run for {part} epochs and its time multiplied by {epochs // part}; LBFGS for all {epochs}")
    for name in sorted(_dense()):
        # LBFGS converges within an epoch at torch's own rate and then only evaluates: no part of it stands for the whole
        rate, shown = (1.0, epochs) if name == "LBFGS" else (1e-2, part)
        loop = partial(peers_torch.optimizer, data, name, rate, shown)
        run = partial(adapters.descend, celsius, data, name.lower(), rate, epochs)
        run()  # whatever is compiled for it is compiled now
        expected = adapters.answer(adapters.descend(celsius, data, name.lower(), rate, shown))
        figure = Figure("x faster", 500, 3000)
        yield from _beside(f"{name} 2000 epochs", "own torch loop", loop, run, figure, effort, expected, 1e-6, epochs / shown)
    for name, reason in ELSEWHERE.items():
        yield Notice(f"{name}: left out, it {reason}")


def torch_engine(effort: Effort) -> Lines:
    """The torch engine on the work of the notebook's loop."""
    rate, epochs = 1e-2, 5000
    for dtype, data in _precisions(effort):
        loop = partial(peers_torch.notebook, data, rate, epochs)
        run = partial(adapters.descend, celsius, data, "sgd", rate, epochs, engine="torch")
        expected = adapters.answer(adapters.descend(celsius, data, "sgd", rate, epochs, engine="torch"))
        work, figure = f"engine='torch' {dtype}", Figure("x as long", 1.2, 1.0)
        yield from _beside(work, "notebook's torch loop", loop, run, figure, effort, expected, PRECISIONS[dtype])


def gaussian(effort: Effort) -> Lines:
    """One Gaussian and a constant, 100 points, 4 parameters, with covariance."""
    data = noisy_peak()
    fit = adapters.least_squares(peak, data)
    yield _engine(fit)
    expected = adapters.answer(fit)
    works: dict[str, tuple[Callable[[], Peer], Figure]] = {
        "scipy curve_fit": (partial(peers_numpy.scipy_curve_fit, data, exact=False), Figure("x as long", 0.5, 0.1)),
        "scipy curve_fit, exact Jacobian": (partial(peers_numpy.scipy_curve_fit, data, exact=True), Figure("x as long")),
        "lmfit": (partial(peers_numpy.lmfit_model, data), Figure("x faster", 15)),
        "optimistix inside jit": (partial(_jax, "levenberg_marquardt", data), Figure()),
    }
    run = partial(adapters.least_squares, peak, data)
    for label, (build, figure) in works.items():
        yield from _beside("Gaussian, 100 points", label, build, run, figure, effort, expected, 1e-4)
    seconds = median(alone(run, effort))
    yield Row("Gaussian, 100 points", "Cpufit's 53 us, another day", Figure("time", aim=53e-6), seconds, value=seconds)


def intervals(effort: Effort) -> Lines:
    """Profile intervals of 11 points, 2 parameters; the bootstrap of the Gaussian, 1000 refits, each peer from the fitted point."""
    level, data = 0.95, kinetics()
    fit = adapters.least_squares(saturation, data)
    _ = fit.record  # a fit at hand, of which more is asked
    run = partial(adapters.profile, fit, level)
    peers: dict[str, tuple[Callable[[], Peer], Figure]] = {
        "iminuit minos": (partial(peers_intervals.minos, data, fit, level), Figure("x faster", 1)),
        "lmfit conf_interval": (partial(peers_intervals.conf_interval, data, level), Figure("x faster", 10)),
    }
    for label, (build, figure) in peers.items():
        yield from _beside("profile, 11 points", label, build, run, figure, effort, run(), 1e-3)
    resamples, part = 1000, 100
    data = noisy_peak()
    fit = adapters.least_squares(peak, data)
    yield Notice(f"curve_fit was run for {part} resamples and its time multiplied by {resamples // part}")
    for label, threads in (("curve_fit refits", None), ("curve_fit refits, one thread", 1)):
        figure = Figure("x faster", 100) if threads is None else Figure()
        resample = partial(adapters.resample, fit, resamples, threads)
        refits = partial(peers_intervals.curve_fit_refits, data, fit, part)
        expected = adapters.resample(fit, part).samples.mean(axis=0)
        yield from _beside("bootstrap, 1000 resamples", label, refits, resample, figure, effort, expected, 1e-4, resamples / part)


def orthogonal(effort: Effort) -> Lines:
    """An exponential with errors in x and y, 100 points, with covariance."""
    data, sigma = decay_in_both(), 0.05
    run = partial(adapters.orthogonal, decay, data, sigma)
    run()
    fit = run()
    yield _engine(fit)
    expected = np.concatenate([adapters.answer(fit), np.sqrt(np.diag(fit.covariance))])
    for label, exact, figure in (
        ("odrpack", False, Figure("x faster", 10)),
        ("odrpack, exact derivatives", True, Figure("x faster")),
    ):
        build = partial(_odr, data, sigma, exact=exact)
        yield from _beside("errors in x, 100 points", label, build, run, figure, effort, expected, 1e-4)


def rows(effort: Effort) -> Lines:
    """Loss and gradient of a*exp(-b*x) + c on many rows, float64, on one core."""
    with one_core():
        for n in (10**6,) if effort.quick else (10**6, 10**7):
            yield from _rows(n, effort)


def cold(effort: Effort) -> Lines:
    """Latency in fresh processes, after imports, and of warm calls."""
    yield from latency.lines(1 if effort.quick else 3)


CASES: dict[str, Callable[[Effort], Lines]] = {
    "sgd": sgd,
    "adam": adam,
    "optimizers": optimizers,
    "torch-engine": torch_engine,
    "gaussian": gaussian,
    "intervals": intervals,
    "orthogonal": orthogonal,
    "rows": rows,
    "many": many_cases.fits,
    "many-cube": many_cases.cube,
    "many-memory": many_cases.memory,
    "latency": cold,
}


def _descent(
    work: str,
    data: Data,
    method: str,
    rate: float,
    epochs: int,
    tolerance: float,
    figures: dict[str, tuple[Callable[[], Peer], Figure]],
    effort: Effort,
) -> Lines:
    """Set one descent beside each of its peers."""
    run = partial(adapters.descend, celsius, data, method, rate, epochs)
    fit = adapters.descend(celsius, data, method, rate, epochs)
    yield _engine(fit)
    expected = adapters.answer(fit)
    for label, (build, figure) in figures.items():
        yield from _beside(work, label, build, run, figure, effort, expected, tolerance)


def _beside(
    work: str,
    label: str,
    build: Callable[[], Peer],
    run: Run,
    figure: Figure,
    effort: Effort,
    expected: np.ndarray,
    tolerance: float,
    scale: float = 1.0,
    count: int | None = None,
) -> Lines:
    """Time gradfit and one peer in turn, once both have been seen to give the same answer."""
    try:
        peer = build()
        found = np.asarray(peer(), dtype=float)
    except Unavailable as reason:
        yield Notice(f"{label}: skipped, {reason}")
        return
    if not np.allclose(np.abs(found), np.abs(expected), rtol=tolerance, atol=tolerance):  # a width may have either sign
        yield Notice(f"{label}: answers differ, {found} beside gradfit's {expected}; timed all the same")
    yield compared(work, label, figure, interleave(run, peer, effort, scale=scale), rows=count)


def _rows(n: int, effort: Effort) -> Lines:
    data = long_decay(n)
    theta = np.array(list(data.start.values()))
    work = f"loss + gradient, {n:.0e} rows".replace("e+0", "e")
    peers: dict[str, Callable[[], Peer]] = {
        "C": partial(peers_c.loss_and_gradient, data),
        "C, -ffast-math": partial(peers_c.loss_and_gradient, data, "-ffast-math"),
        "numpy": partial(peers_numpy.loss_and_gradient, data),
        "torch autograd": partial(peers_torch.loss_and_gradient, decay, data),
        "JAX": partial(_jax, "loss_and_gradient", data),
    }
    try:
        kernel = adapters.kernel(decay, data)
        _, expected = adapters.loss_and_gradient(kernel, theta)
    except NotImplementedError as reason:
        yield Notice(f"gradfit, {work}: skipped, {reason}")
        for label, build in peers.items():
            yield from _peer_alone(work, label, build, effort, n)
        return

    run = partial(adapters.loss_and_gradient, kernel, theta)
    for label, build in peers.items():
        yield from _beside(work, label, build, run, Figure(), effort, expected, 1e-6, count=n)
    samples = alone(run, effort)
    figure = Figure("time", 4e-9 * n, 2.5e-9 * n)
    yield Row(work, "alone, median", figure, median(samples), value=median(samples), pairs=len(samples), rows=n)
    yield Row(work, "alone, best: no neighbour", Figure("time"), min(samples), value=min(samples), pairs=len(samples), rows=n)


def _peer_alone(work: str, label: str, build: Callable[[], Peer], effort: Effort, n: int) -> Lines:
    try:
        peer = build()
    except Unavailable as reason:
        yield Notice(f"{label}: skipped, {reason}")
        return
    yield Row(work, label, Figure(), None, median(alone(peer, effort)), rows=n)


def _precisions(effort: Effort) -> Iterator[tuple[str, Data]]:
    for dtype in ("float64",) if effort.quick else PRECISIONS:
        yield dtype, thermometer(dtype)


def _dense() -> set[str]:
    """Names of torch's optimizers that move any dense parameters, those with cases of their own left out."""
    kinds = {name for name, value in vars(torch.optim).items() if isinstance(value, type)}
    known = {name for name in kinds if issubclass(getattr(torch.optim, name), torch.optim.Optimizer)}
    return known - {"Optimizer", *OWN_CASE, *ELSEWHERE}


def _jax(name: str, *arguments: Any) -> Peer:
    """Make a JAX peer; JAX is imported no sooner."""
    peer: Peer = getattr(load("peers_jax"), name)(*arguments)
    return peer


def _odr(data: Data, sigma: float, *, exact: bool) -> Peer:
    """Make odrpack's fit; odrpack is imported no sooner."""
    peer: Peer = load("peers_odr").fit(data, sigma, exact=exact)
    return peer


def _engine(fit: FitResult) -> Notice:
    return Notice(f"gradfit's engine is {fit.engine!r}: {fit.engine_reason}")
