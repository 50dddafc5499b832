"""The work of many small fits, beside its peers: fits a second, two threads, a cube of spectra, memory.

gradfit is called as a user calls it, with values, standard errors, losses and statuses of all fits; compiling is not timed. Peers
that take long make a part of the fits, and their time is multiplied.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import adapters
import peers_many
import peers_many_c
import peers_many_torch
from many_problems import DECAY, GAUSSIAN, Many, Work, many
from peers import Peer, Unavailable, load
from table import Figure, Notice, Row, compared
from timing import Effort, Pairs, interleave

Lines = Iterator[Row | Notice]
COUNT, QUICK_COUNT = 200_000, 20_000
PARTS = {"scipy": 500, "lmfit": 50, "optimistix": 5000, "batched": 20_000}
# Cpufit is in no registry. What it makes while scipy's loop makes one fit, both in float64, and in C with vectors: shared/ANCHORS.md
CPUFIT = {"float32": 1.2e5 / 2.0e3, "float64": 8.8e4 / 2.0e3}
SCIPY = {("Gaussian", "float32"): 300, ("Gaussian", "float64"): 200, ("decay", "float32"): 500}
ANCHOR = {"float32": 2.0e6, "float64": 7.7e5}  # fits/s of the Gaussian in C with vectors, one thread; from there too
MOST_MEMORY = 50.0  # MB
SIDE, STRIP = 300, 10  # pixels of the cube, and rows of it for xarray


def fits(effort: Effort) -> Lines:
    """Many small fits, each with noise, start and errors of its own, one thread and two."""
    for work in (GAUSSIAN, DECAY):
        drawn = many(work, COUNT)
        for dtype in ("float32", "float64"):
            data = drawn.of(dtype)
            yield from _work(work, data.part(QUICK_COUNT) if effort.quick else data, effort)
            yield _two_threads(data, effort)  # of all: few blocks are not shared out evenly


def cube(effort: Effort) -> Lines:
    """A cube of 300 x 300 spectra of 30 points through DataArray.gradfit.curvefit, all cores, beside xarray's curvefit."""
    try:
        peers_xarray: Any = load("peers_xarray")
    except Unavailable as reason:
        yield Notice(f"skipped, {reason}")
        return
    side = SIDE // 3 if effort.quick else SIDE
    array = peers_xarray.cube(side)
    strip = array.isel(row=slice(STRIP))
    run = partial(peers_xarray.curvefit, array, own=False)
    peer = partial(peers_xarray.curvefit, strip, own=True)
    yield Notice(f"xarray's curvefit was run for {STRIP} of the {side} rows and its time multiplied")
    yield from _agreement("xarray's curvefit", peer(), run()[: STRIP * side], np.full((1, 4), 0.1))
    pairs = interleave(run, peer, effort, scale=side / STRIP)
    yield compared(f"cube {side} x {side} x 30", "xarray's curvefit", Figure("x faster", 200, 500), pairs, fits=side * side)


def memory(effort: Effort) -> Lines:
    """Memory at its peak above what data and results take, in a fresh process, two threads."""
    count = 200_000 if effort.quick else 1_000_000
    for dtype in ("float32", "float64"):
        command = [sys.executable, str(Path(__file__).with_name("many_memory.py")), "--fits", str(count), "--dtype", dtype]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            yield Notice(f"{dtype}: could not be measured: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
            continue
        told = json.loads(done.stdout)
        yield Notice(
            f"{dtype}: data {told['data']:.0f} MB, results {told['results']:.0f} MB, peak {told['peak']:.0f} MB above the data"
        )
        yield Row(
            f"{count:.0e} fits {dtype}".replace("e+0", "e"),
            "data and results",
            Figure("memory", MOST_MEMORY),
            None,
            value=told["above"],
        )


def _work(work: Work, data: Many, effort: Effort) -> Lines:
    dtype, count = data.y.dtype.name, len(data)
    label = f"{work.title} {dtype}"
    run = partial(adapters.fit_many, data, 1)
    made = run()
    yield Notice(
        f"{label}: {count} fits; {', '.join(f'{number} {name}' for name, number in made.counts.items())}; {made.steps.mean():.2f} steps a fit"
    )
    values, errors = (np.column_stack([table[name] for name in work.names]) for table in (made.values, made.stderr))
    for beside, (build, part, figure) in _peers(work, dtype, count).items():
        try:
            peer = build(data.part(part))
            found = peer()
        except Unavailable as reason:
            yield Notice(f"{beside}: skipped, {reason}")
            continue
        yield from _agreement(beside, found.T, values[:part], errors[:part])
        pairs = interleave(run, peer, effort, scale=count / part)
        yield compared(label, beside, figure, pairs, fits=count)
        if beside.startswith("scipy") and work is GAUSSIAN:
            yield _cpufit(label, dtype, pairs, count)
        if beside.startswith("C, vectors") and work is GAUSSIAN:
            yield _anchor(label, dtype, pairs, count)


def _two_threads(data: Many, effort: Effort) -> Row:
    label = f"{data.work.title} {data.y.dtype.name}, 2 threads"
    pairs = interleave(partial(adapters.fit_many, data, 2), partial(adapters.fit_many, data, 1), effort)
    return compared(label, "itself on one thread", Figure("x faster", 1.7), pairs, fits=len(data))


def _peers(work: Work, dtype: str, count: int) -> dict[str, tuple[Callable[[Many], Peer], int, Figure]]:
    """Who is set beside a work: how to build it, how many fits it makes, what is asked."""
    batch = min(count, PARTS["batched"])
    slow = Figure("x faster", 20) if (work, dtype) == (GAUSSIAN, "float64") else Figure()
    peers: dict[str, tuple[Callable[[Many], Peer], int, Figure]] = {
        "C, vectors across fits": (peers_many_c.side_by_side, count, Figure("x faster", aim=0.8)),
        "C, one fit after another": (peers_many_c.one_by_one, count, Figure()),
        "JAX, by hand under vmap": (partial(_jax, "by_hand"), batch, Figure()),
        "optimistix under vmap": (partial(_jax, "optimistix_vmap"), PARTS["optimistix"], slow),
        "torch, batched by hand": (peers_many_torch.batched, batch, Figure()),
        "scipy curve_fit loop": (peers_many.scipy_loop, PARTS["scipy"], Figure("x faster", SCIPY.get((work.title, dtype)))),
        "lmfit loop": (peers_many.lmfit_loop, PARTS["lmfit"], Figure()),
    }
    if (work, dtype) == (GAUSSIAN, "float32"):
        peers["Cpufit"] = (peers_many.cpufit, count, Figure("x faster", 4, 12))
    return peers


def _anchor(label: str, dtype: str, pairs: Pairs, count: int) -> Row:
    """Say how gradfit stands to what C made when the figures were set."""
    ours, theirs = median(pairs.first), count / ANCHOR[dtype]
    return Row(label, "C with vectors, another day", Figure("x faster", aim=0.8), ours, theirs, theirs / ours, fits=count)


def _cpufit(label: str, dtype: str, pairs: Pairs, count: int) -> Row:
    """Say how gradfit stands to Cpufit by way of scipy's loop."""
    ratio = CPUFIT[dtype]
    aim = 12 if dtype == "float32" else None
    return Row(
        label, f"Cpufit, taken as {ratio:.0f} scipy loops", Figure("x faster", 4, aim), median(pairs.first),
        median(pairs.second) / ratio, pairs.ratio / ratio, pairs.spread, len(pairs.first), fits=count,
    )  # fmt: skip


def _agreement(beside: str, found: np.ndarray, values: np.ndarray, errors: np.ndarray) -> Lines:
    """Say so where a peer ends elsewhere: further than a tenth of a standard error; a width may have either sign."""
    with np.errstate(invalid="ignore"):
        near = (np.abs(np.abs(found) - np.abs(values)) <= 0.1 * errors).all(axis=1)
    if not near.all():
        yield Notice(f"{beside}: {near.mean():.2%} of its fits end where gradfit's do; timed all the same")


def _jax(name: str, data: Many) -> Peer:
    """Make a JAX peer; JAX is imported no sooner."""
    peer: Peer = getattr(load("peers_many_jax"), name)(data)
    return peer
