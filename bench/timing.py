"""Medians of interleaved pairs: first, second, first, second, ...

A machine that slows down, or a neighbour that works, then hits both members of a pair, and the ratio within a pair stays. The
ratio reported is the median over the pairs; so are the two times, which drift from run to run.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter

import torch

SAMPLE = 5e-3  # seconds of one sample at least: a short run is repeated within it
LEAST_PAIRS = 3

Run = Callable[[], object]


@dataclass(frozen=True)
class Effort:
    """How long to measure: up to ``pairs`` pairs within ``budget`` seconds, never fewer than three; ``quick`` also drops cases."""

    pairs: int = 21
    budget: float = 5.0
    quick: bool = False


QUICK = Effort(pairs=7, budget=1.0, quick=True)


@dataclass(frozen=True)
class Pairs:
    """Seconds a call of both sides, pair by pair."""

    first: tuple[float, ...]
    second: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Median of second / first."""
        return median(self.ratios)

    @property
    def ratios(self) -> list[float]:
        """Second / first, pair by pair."""
        return [theirs / ours for ours, theirs in zip(self.first, self.second, strict=True)]

    @property
    def spread(self) -> float:
        """Interquartile range of the ratios, as a part of their median."""
        low, _, high = quantiles(self.ratios, n=4, method="inclusive")
        return (high - low) / self.ratio


def interleave(first: Run, second: Run, effort: Effort, *, scale: float = 1.0) -> Pairs:
    """Time two runs in turn; the second's seconds are multiplied by ``scale`` (a loop of which only a part was run)."""
    calls = [_calls(run) for run in (first, second)]
    gc.collect()
    ours: list[float] = []
    theirs: list[float] = []
    began = perf_counter()
    while len(ours) < LEAST_PAIRS or (len(ours) < effort.pairs and perf_counter() - began < effort.budget):
        ours.append(_sample(first, calls[0]))
        theirs.append(_sample(second, calls[1]) * scale)
    return Pairs(tuple(ours), tuple(theirs))


def alone(run: Run, effort: Effort) -> list[float]:
    """Time a run that has nothing beside it: seconds a call, sample by sample."""
    calls = _calls(run)
    gc.collect()
    seconds: list[float] = []
    began = perf_counter()
    while len(seconds) < LEAST_PAIRS or (len(seconds) < effort.pairs and perf_counter() - began < effort.budget):
        seconds.append(_sample(run, calls))
    return seconds


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Keep every thread of this process on one core, whoever started it; elsewhere than on Linux only torch is held to one."""
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if cores:
        _pin({max(cores)})
    try:
        yield
    finally:
        if cores:
            _pin(cores)
        torch.set_num_threads(torch_threads)


def _pin(cores: set[int]) -> None:
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # the thread has ended meanwhile
            os.sched_setaffinity(int(thread), cores)


def _sample(run: Run, calls: int) -> float:
    began = perf_counter()
    for _ in range(calls):
        run()
    return (perf_counter() - began) / calls


def _calls(run: Run) -> int:
    """Calls that fill a sample; the run that finds out also warms up."""
    return max(1, min(1000, round(SAMPLE / _sample(run, 1))))
