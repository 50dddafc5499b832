"""A solver written in plain functions -> text in LLVM's language: the one place that needs Numba, once per installation.

The functions call one another by name, take arrays and numbers, and neither allocate nor raise. So the text needs no runtime:
only the model's two functions, and what every C library has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import FunctionType, ModuleType
from typing import Any

SYMBOL = "gf_solve"
MODEL_SYMBOLS = ("gf_linearize", "gf_sum_of_squares")
FAST = {"reassoc", "contract", "nsz"}  # sums in any order, so that they run in vectors; infinities and NaN keep their meaning


def solver_ir(algorithm: ModuleType) -> str:
    """Compile ``advance`` and ``conclude`` of a module into one C function, ``gf_solve``; give its LLVM text.

    ::

        int64 gf_solve(int64 n, int64 p, int64 rows, void *context, double *system, double *offset, double *matrices,
                       double *vectors, double *numbers, int64 *counters, double *history)

    Takes at most ``rows`` steps, and concludes where the fit has ended or ``rows`` is 0; gives the code of ``advance``, or of
    ``conclude`` for 0 rows. The module says what the arrays hold. It calls

    ::

        double gf_linearize(double *theta, void *context, double *residual, double *jacobian)   // residual (n,), jacobian (p, n)
        double gf_sum_of_squares(double *theta, void *context)
    """
    import llvmlite.binding as llvm
    import numba
    from numba import types

    for symbol in MODEL_SYMBOLS:  # Numba looks every symbol up once it has compiled; the text only names them
        if not llvm.address_of_symbol(symbol):
            llvm.add_symbol(symbol, 1)
    number, pointer = types.float64, types.CPointer(types.float64)
    linearize_model = types.ExternalFunction("gf_linearize", number(types.voidptr, types.voidptr, types.voidptr, types.voidptr))
    sum_model = types.ExternalFunction("gf_sum_of_squares", number(types.voidptr, types.voidptr))

    @numba.njit(_nrt=False)
    def linearize(theta: Any, context: Any, system: Any) -> Any:
        return linearize_model(theta.ctypes, context, system[theta.shape[0]].ctypes, system.ctypes)

    @numba.njit(_nrt=False)
    def sum_of_squares(theta: Any, context: Any) -> Any:
        return sum_model(theta.ctypes, context)

    compiled = _compiled(algorithm)
    advance, conclude = compiled["advance"], compiled["conclude"]
    planes, height, width, length = algorithm.MATRICES, algorithm.VECTORS, algorithm.HISTORY, algorithm.NUMBERS
    count, running = algorithm.COUNTERS, algorithm.RUNNING

    def solve(n, p, rows, context, system_, offset_, matrices_, vectors_, numbers_, counters_, history_):  # type: ignore[no-untyped-def]
        system, offset = numba.carray(system_, (p + 1, n)), numba.carray(offset_, (n,))
        matrices, vectors = numba.carray(matrices_, (planes, p + 1, p + 2)), numba.carray(vectors_, (height, p))
        numbers, counters = numba.carray(numbers_, (length,)), numba.carray(counters_, (count,))
        code = running
        if rows > 0:
            history = numba.carray(history_, (rows, width + 2 * p))
            code = advance(
                linearize, sum_of_squares, context, system, offset, matrices, vectors, numbers, counters, history
            )
            if code == running:
                return code
        ended = conclude(linearize, context, system, offset, matrices, vectors, numbers, counters)
        return code if rows > 0 else ended

    whole = types.int64
    signature = whole(
        whole, whole, whole, types.voidptr, pointer, pointer, pointer, pointer, pointer, types.CPointer(whole), pointer
    )
    text: str = numba.cfunc(signature, nopython=True, error_model="numpy")(solve).inspect_llvm()
    return text


def _compiled(algorithm: ModuleType) -> Mapping[str, Any]:
    """Copies of a module's functions, ready to be compiled, that call one another."""
    import numba

    namespace = dict(vars(algorithm))
    for name, function in _functions(algorithm):
        copy = FunctionType(function.__code__, namespace, name, function.__defaults__)
        fast = {"fastmath": FAST} if name in algorithm.IN_VECTORS else {}
        namespace[name] = numba.njit(error_model="numpy", _nrt=False, **fast)(copy)
    return namespace


def _functions(algorithm: ModuleType) -> Iterable[tuple[str, FunctionType]]:
    return [(n, f) for n, f in vars(algorithm).items() if isinstance(f, FunctionType) and f.__module__ == algorithm.__name__]
