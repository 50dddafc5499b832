"""Many fits in hand-written C (``many.c``): one after another, and side by side in the lanes of a vector; parameters and errors."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

from many_problems import Many
from peers import Peer
from peers_c import library, pointer

SOURCE = Path(__file__).with_name("many.c")
ENOUGH = 1e-6  # of the variance of a residual: the gain below which a last step is taken, as in gradfit
MOST = 60


def one_by_one(data: Many) -> Peer:
    """Make the fits one after the other; the compiler may use vectors along the rows of a fit."""
    return _peer("fit_each", data)


def side_by_side(data: Many, enough: float = ENOUGH) -> Peer:
    """Make as many fits at once as a vector has lanes."""
    return _peer("fit_lanes", data, enough)


def _peer(name: str, data: Many, enough: float = ENOUGH) -> Peer:
    function = getattr(library(data.y.dtype.name, "-ffast-math", f"-DMODEL={data.work.in_c}", source=SOURCE), name)
    function.restype = None
    kind = data.y.dtype
    count, p = data.start.shape
    x, y, start = (np.ascontiguousarray(part, dtype=kind) for part in (data.x, data.y, data.start))

    def run() -> np.ndarray:
        theta, errors, sums = np.empty((p, count), dtype=kind), np.empty((p, count), dtype=kind), np.empty(count, dtype=kind)
        steps = np.empty(count, dtype=np.int32)
        function(
            pointer(x), pointer(y), ctypes.c_long(len(x)), ctypes.c_long(count), pointer(start), ctypes.c_double(enough),
            ctypes.c_long(MOST), *map(pointer, (theta, errors, sums, steps)),
        )  # fmt: skip
        return theta

    return run
