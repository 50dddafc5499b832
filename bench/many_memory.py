"""Memory that many fits take at their peak, above their data and their results: ``python bench/many_memory.py --fits 1000000``.

The model is compiled beforehand, on a part of the data; then the peak of the process is reset (Linux), and read after the fits.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
from dataclasses import fields
from pathlib import Path

import numpy as np

import adapters
import gradfit
from many_problems import GAUSSIAN, Many, many

PIECE = 50_000


def main() -> None:
    """Measure, and print one line of JSON, in MB."""
    parser = argparse.ArgumentParser(description="Memory of many fits above their data and results.")
    parser.add_argument("--fits", type=int, default=1_000_000)
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    data = drawn(asked.fits, asked.dtype)
    adapters.fit_many(data.part(PIECE), asked.threads)
    released()
    before = of_process("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    fits = adapters.fit_many(data, asked.threads)
    peak = of_process("VmHWM") - before
    results = size(fits)
    amounts = {"data": (data.y.nbytes + data.start.nbytes) / 1e6, "results": results, "peak": peak, "above": peak - results}
    print(json.dumps(amounts | fits.counts))


def drawn(count: int, dtype: str) -> Many:
    """Draw the data piece by piece."""
    y = np.empty((count, len(GAUSSIAN.x)), dtype=dtype)
    start = np.empty((count, len(GAUSSIAN.names)), order="F")  # so that each parameter's starts lie together
    for begin in range(0, count, PIECE):
        piece = many(GAUSSIAN, min(PIECE, count - begin), seed=begin)
        y[begin : begin + PIECE], start[begin : begin + PIECE] = piece.y, piece.start
    return Many(GAUSSIAN, GAUSSIAN.x.astype(dtype), y, start)


def size(fits: gradfit.FitResults) -> float:
    """Give the size of results, in MB."""
    held = [getattr(fits.record, field.name) for field in fields(fits.record)]
    return sum(array.nbytes for array in held if isinstance(array, np.ndarray)) / 1e6


def released() -> None:
    """Give memory that is free back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def of_process(name: str) -> float:
    """Read an amount of memory of this process, in MB."""
    text = Path("/proc/self/status").read_text()
    line = next(line for line in text.splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    main()
