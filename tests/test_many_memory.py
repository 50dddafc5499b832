"""What a batch needs beyond its data and its results does not grow with the number of fits."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

MOST = 50  # MB
MEASURED = """
import json
import numpy as np, gradfit

def decay(x, a=1.0, t=1.0, c=0.0): return a * np.exp(-x / t) + c

def field(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1]) / 1024

def beyond(count, **options):
    Y = np.tile(some, (count // len(some), 1))
    start = np.tile(np.array([1.5, 1.0, 0.1]), (count, 1))
    open("/proc/self/clear_refs", "w").write("5")  # forget the highest use so far
    before = field("VmRSS")
    fits = gradfit.fit_many(decay, x, Y, start=start, threads=2, progress=False, on_failure="raise", **options)
    record = fits.record
    kept = sum(array.nbytes for array in vars(record).values() if isinstance(array, np.ndarray))
    return field("VmHWM") - before - kept / 2**20

x, rng = np.linspace(0, 5, 20, dtype=np.float32), np.random.default_rng(0)
some = (2 * np.exp(-x / 1.5) + 0.5 + rng.normal(0, 0.05, (1000, 20))).astype(np.float32)
beyond(10_000, checkpoint="warm")
print(json.dumps([beyond(250_000), beyond(1_000_000), beyond(1_000_000, checkpoint="run"), beyond(1_000_000, checkpoint="run")]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the highest use of memory is read from /proc")
def test_memory_beyond_data_and_results_is_that_of_some_blocks(tmp_path):
    said = subprocess.run([sys.executable, "-c", MEASURED], cwd=tmp_path, capture_output=True, text=True, check=True)
    few, many, kept, read = json.loads(said.stdout)
    assert many < few + 10
    assert max(few, many, kept, read) < MOST
