"""Compiled code that asks Python for a model's numbers: the same solver for models that cannot be compiled.

The solver calls ``gf_linearize`` and ``gf_sum_of_squares``. Here these are two lines of machine code that call what the context
holds the address of: a Python function, made callable by ctypes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from gradfit.compiler.native import compiled
from gradfit.typing import Floats

TRAMPOLINE = """
define double @gf_linearize(ptr %theta, ptr %context, ptr %residual, ptr %jacobian) {
  %function = load ptr, ptr %context
  %sum = call double %function(ptr %theta, ptr %residual, ptr %jacobian)
  ret double %sum
}

define double @gf_sum_of_squares(ptr %theta, ptr %context) {
  %place = getelementptr i64, ptr %context, i64 1
  %function = load ptr, ptr %place
  %sum = call double %function(ptr %theta)
  ret double %sum
}
"""
LINEARIZE = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
SUM = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_void_p)


def trampoline_object() -> bytes:
    """Object file of the two functions."""
    return compiled("trampoline", lambda: TRAMPOLINE)


class Callbacks:
    """Two Python functions as the context of compiled code.

    An exception cannot pass through compiled code: it is kept, NaN is given to the solver, and :meth:`check` raises it.

    Parameters
    ----------
    linearize
        ``linearize(theta, residual, jacobian) -> sum of squares``: fills residual (n,) and jacobian (p, n).
    sum_of_squares
        ``sum_of_squares(theta) -> sum of squares``.
    """

    def __init__(
        self, n: int, p: int, linearize: Callable[[Floats, Floats, Floats], float], sum_of_squares: Callable[[Floats], float]
    ) -> None:
        self.error: BaseException | None = None

        def first(theta: int, residual: int, jacobian: int) -> float:
            return self._guarded(linearize, _array(theta, p), _array(residual, n), _array(jacobian, p * n).reshape(p, n))

        def second(theta: int) -> float:
            return self._guarded(sum_of_squares, _array(theta, p))

        self.functions = LINEARIZE(first), SUM(second)
        addresses = [ctypes.cast(function, ctypes.c_void_p).value for function in self.functions]
        self.context = np.array(addresses, dtype=np.int64)

    def _guarded(self, function: Callable[..., float], *arguments: Floats) -> float:
        if self.error is not None:
            return float("nan")
        try:
            return float(function(*arguments))
        except BaseException as error:  # noqa: BLE001 - raised again by check(); also an interrupt by the user
            self.error = error
            return float("nan")

    def check(self) -> None:
        """Raise what one of the functions raised."""
        if self.error is not None:
            raise self.error


def _array(address: int | None, count: int) -> Floats:
    """Look at numbers in memory; ctypes gives no address for a null pointer, which an empty array may have."""
    if not count or address is None:
        return np.empty(0)
    kind: Any = ctypes.c_double * count
    return np.frombuffer(kind.from_address(address), dtype=np.float64)
