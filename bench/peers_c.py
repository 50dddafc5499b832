"""Hand-written C (``reference.c``), compiled when it is needed into a temporary folder and called through ctypes."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from peers import Peer, Unavailable
from problems import Data

SOURCE = Path(__file__).with_name("reference.c")
FLAGS = ("-O3", "-march=native")
TYPES = {"float64": "double", "float32": "float"}


def compiler() -> str | None:
    """Find a C compiler."""
    return shutil.which("gcc") or shutil.which("cc")


@cache
def library(dtype: str, *extra: str, source: Path = SOURCE) -> ctypes.CDLL:
    """Compile a source for one precision and load it; the file is gone afterwards, the loaded code stays."""
    found = compiler()
    if found is None:
        raise Unavailable("there is no C compiler: neither gcc nor cc is on the path")
    with tempfile.TemporaryDirectory() as folder:
        target = str(Path(folder) / "reference.so")
        command = [found, *FLAGS, *extra, f"-DREAL={TYPES[dtype]}", "-shared", "-fPIC", str(source), "-o", target, "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Unavailable(f"the C compiler refuses: {(done.stderr.strip().splitlines() or ['no reason given'])[0]}")
        return ctypes.CDLL(target)


def descent(data: Data, optimizer: str, rate: float, epochs: int, *extra: str) -> Peer:
    """Make the descent of a straight line, "sgd" or "adam", with its whole history, (epochs, 5)."""
    dtype = data.x.dtype
    function = getattr(library(dtype.name, *extra), optimizer)
    function.restype = None
    start = np.array(list(data.start.values()), dtype=dtype)
    x, y, n = pointer(data.x), pointer(data.y), ctypes.c_long(len(data.x))

    def run() -> np.ndarray:
        theta = start.copy()
        history = np.empty((epochs, 5), dtype=dtype)
        function(x, y, n, pointer(theta), ctypes.c_double(rate), ctypes.c_long(epochs), pointer(history))
        return theta

    return run


def loss_and_gradient(data: Data, *extra: str) -> Peer:
    """Make the mean squared residual of an exponential decay and its gradient; gives the gradient."""
    function = library(data.x.dtype.name, *extra).decay
    function.restype = ctypes.c_double
    theta = np.array(list(data.start.values()), dtype=data.x.dtype)
    x, y, n = pointer(data.x), pointer(data.y), ctypes.c_long(len(data.x))

    def run() -> np.ndarray:
        gradient = np.empty_like(theta)
        function(x, y, n, pointer(theta), pointer(gradient))
        return gradient

    return run


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    """Give the address of an array's numbers."""
    return ctypes.c_void_p(array.ctypes.data)
