"""Ten million fits from a file: ``python bench/many_ten_million.py [--fits 10000000] [--threads 2] [--dtype float32] [--file FILE]``.

Gaussian peaks on an offset, 30 points each, lie in a memory-mapped file, 1.2 GB in float32; all begin from one start. Reported are the
time, how the fits ended, and the peak of memory: that of the process itself (anonymous pages), looked at twenty times a second. Pages of
the file that the system keeps in memory while there is room are told apart, for they are the system's to take back.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import numpy as np

import gradfit
from many_memory import of_process, released, size
from many_problems import GAUSSIAN, many

PIECE = 50_000
DIFFERENT = 20  # pieces of different data; then they come again
PAUSE = 0.05  # seconds between two looks at the memory


def main() -> None:
    """Write the file, fit, report."""
    asked = _arguments()
    shape = (asked.fits, len(GAUSSIAN.x))
    with tempfile.TemporaryDirectory() as folder:
        path = asked.file or Path(folder) / "peaks.raw"
        if not path.exists() or path.stat().st_size != np.dtype(asked.dtype).itemsize * shape[0] * shape[1]:
            write(path, shape, asked.dtype)
        report = measured(path, shape, asked.dtype, asked.threads)
    for name, text in report.items():
        print(f"{name:22} {text}")
    if asked.json is not None:
        asked.json.write_text(json.dumps(report, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Many fits from a memory-mapped file, in bounded memory.")
    parser.add_argument("--fits", type=int, default=10_000_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--file", type=Path, help="where the data are, or are to be written and kept; otherwise a temporary file")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report to a file as well")
    return parser.parse_args()


def write(path: Path, shape: tuple[int, int], dtype: str) -> None:
    """Draw the data piece by piece; every twentieth piece is the first again, for drawing takes longer than fitting."""
    pieces = [
        many(GAUSSIAN, min(PIECE, shape[0]), seed=place).y.astype(dtype) for place in range(min(DIFFERENT, -(-shape[0] // PIECE)))
    ]
    with path.open("wb") as file:
        for place, begin in enumerate(range(0, shape[0], PIECE)):
            file.write(pieces[place % len(pieces)][: shape[0] - begin].tobytes())


def measured(path: Path, shape: tuple[int, int], dtype: str, threads: int) -> dict[str, str]:
    """Make the fits, and say what they took."""
    y = np.memmap(path, dtype=dtype, mode="r", shape=shape)
    x, start = GAUSSIAN.x.astype(dtype), dict(zip(GAUSSIAN.names, GAUSSIAN.common, strict=True))

    def run(part: np.ndarray) -> gradfit.FitResults:
        return gradfit.fit_many(GAUSSIAN.model, x, part, start=start, threads=threads, dtype=dtype)

    run(y[:PIECE])  # compiles
    released()
    before = of_process("RssAnon")
    began = perf_counter()
    with peak_of("RssAnon") as peak:
        fits = run(y)
    seconds = perf_counter() - began
    held = size(fits)
    return {
        "fits": f"{shape[0]}, {dtype}, {threads} threads",
        "time": f"{seconds:.1f} s, {shape[0] / seconds:.3g} fits/s",
        "ended": ", ".join(f"{number} {name}" for name, number in fits.counts.items()),
        "statuses": f"{sum(fits.counts.values())} in all, {int(fits.success.sum())} successful",
        "data in the file": f"{y.nbytes / 1e6:.0f} MB",
        "results": f"{held:.0f} MB",
        "memory at its peak": f"{peak() - before:.0f} MB above what was there before, {peak() - before - held:.0f} MB above the results",
    }


@contextmanager
def peak_of(name: str) -> Iterator[Callable[[], float]]:
    """Look at an amount of memory now and then; gives a function that says the highest."""
    seen = [of_process(name)]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(PAUSE):
            seen.append(of_process(name))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield lambda: max(seen)
    finally:
        over.set()
        watcher.join()
        seen.append(of_process(name))


if __name__ == "__main__":
    main()
