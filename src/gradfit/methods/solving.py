r"""The least-squares solver (:mod:`gradfit.methods.marquardt`) compiled, at work on any kernel; and what a fit ends with.

On a compiled model with squared loss the solver calls compiled code. On any other kernel it calls Python: for a robust loss or
counts the sum of squares is the one that the loss is near (``linearize``), and what is compared is n times the mean loss.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import TypeGuard

import numpy as np

from gradfit.compiler import solver as translator
from gradfit.compiler.callbacks import Callbacks, trampoline_object
from gradfit.compiler.compiled import ModelCode, NativeKernel, address_of
from gradfit.compiler.kernel import Kernel
from gradfit.compiler.native import Function, compiled, load
from gradfit.compiler.solver import Entry, Size
from gradfit.errors import ModelError
from gradfit.methods import marquardt
from gradfit.typing import Floats

EXACT_RANK = float(np.finfo(np.float64).eps)  # times max(n, p): rounding of an exact Jacobian
NUMERIC_RANK = 1e-8  # finite differences carry about ten digits
JOB = 11  # words
P, ONE_MORE, TWO_MORE = Size("p"), Size("p", more=1), Size("p", more=2)
# Shapes of the solver's arrays, and what is called from outside.
STATE: dict[str, tuple[Size, ...]] = {
    "system": (ONE_MORE, Size("n")),
    "offset": (Size("n"),),
    "matrices": (Size(more=marquardt.MATRICES), ONE_MORE, TWO_MORE),
    "vectors": (Size(more=marquardt.VECTORS), P),
    "numbers": (Size(more=marquardt.NUMBERS),),
    "counters": (Size(more=marquardt.COUNTERS),),
    "history": (Size("rows"), Size("p", 2, marquardt.HISTORY)),
}
SOLVE = Entry("gf_solve", "solve", ("n", "p", "rows"), STATE)


@dataclass(frozen=True)
class Conclusion:
    """The sum of squares near where a fit ended.

    Attributes
    ----------
    distance
        Distance to the minimum in standard errors: :math:`\\lVert QQ^T r \\rVert / s` with :math:`J = QR` and
        :math:`s^2 = \\lVert r - QQ^T r\\rVert^2/(n-p)`. Infinite where a parameter moves no prediction.
    inverse
        :math:`(J^T J)^{-1}`, (p, p); rows and columns of parameters on a bound are NaN.
    undetermined
        (p,), the share of each parameter in directions that the data do not determine.
    sum, rest
        Sum of squares, and the part of it that no change of the parameters reaches.
    signal
        Norm of prediction / sigma.
    condition
        Norm of the inverse of J, its columns scaled to 1; infinite where a direction is not determined.
    guard
        What stands for the deviation of a residual where the data are exact.
    curved
        Whether the linear form could not tell that this is a minimum: errors from it do not hold.
    """

    distance: float
    inverse: Floats = field(repr=False)
    undetermined: Floats = field(repr=False)
    sum: float
    rest: float
    signal: float
    condition: float
    guard: float
    curved: bool


class Solver:
    """The solver's memory for one fit.

    Parameters
    ----------
    theta, lower, upper
        Start and bounds, (p,).
    radius
        First step at most, as a share of the parameters' own size.
    exact
        Whether derivatives are exact.
    """

    def __init__(
        self, kernel: Kernel, theta: Floats, lower: Floats, upper: Floats, *, radius: float = 1.0, exact: bool = True
    ) -> None:
        n, p = kernel.n, len(theta)
        self.kernel, self.n, self.p = kernel, n, p
        size, (job, offset, matrices, vectors, numbers, counters) = _layout(n, p)
        block = self.block = np.zeros(size)  # zeros that are not touched cost nothing
        begin = address_of(block)
        self.job, self.counters = block[job].view(np.int64), block[counters].view(np.int64)
        self.offset, self.numbers = block[offset], block[numbers]
        self.matrices = block[matrices].reshape(marquardt.MATRICES, p + 1, p + 2)
        self.vectors = block[vectors].reshape(marquardt.VECTORS, p)
        self.vectors[marquardt.THETA], self.vectors[marquardt.LOWER], self.vectors[marquardt.UPPER] = theta, lower, upper
        self.numbers[marquardt.RADIUS] = radius
        self.numbers[marquardt.RANK_TOLERANCE] = max(n, p) * EXACT_RANK if exact else NUMERIC_RANK
        self.steps = 0
        self.refusal = ""  # what the model last said where it could not be evaluated
        self.callbacks: Callbacks | None = None
        self.function = linked(kernel, "gf_solve", _solver_object)
        if is_compiled(kernel):
            self.context = kernel.context_for(self.offset)  # kept alive
            context = self.context.address
        else:
            self.callbacks = Callbacks(n, p, self._linearize, self._sum_of_squares)
            context = address_of(self.callbacks.context)
        parts = (offset, matrices, vectors, numbers, counters)
        # of what the algorithm takes: context, system, offset, matrices, vectors, numbers, counters
        self.addresses = (context, begin, *[begin + 8 * part.start for part in parts])
        self.job[:] = (n, p, 0, *self.addresses, 0)
        self.place = begin + 8 * job.start

    @property
    def theta(self) -> Floats:
        """Where it stands, (p,)."""
        return np.array(self.vectors[marquardt.THETA])

    def run(self, rows: int) -> tuple[int, Floats]:
        """Take at most so many steps; gives how it goes on (a code of marquardt) and a row of history per step."""
        history = np.empty((rows, marquardt.HISTORY + 2 * self.p))
        self.job[2], self.job[10] = rows, address_of(history)
        code: int = self.function.call(self.place)
        if self.callbacks is not None:
            self.callbacks.check()
        steps = int(self.counters[marquardt.STEPS])
        taken, self.steps = steps - self.steps, steps
        return code, history[: max(taken, 1)] if code == marquardt.NOT_FINITE else history[:taken]

    def conclusion(self) -> Conclusion:
        """Read what was concluded at the end."""
        numbers, p = self.numbers.tolist(), self.p
        return Conclusion(
            distance=numbers[marquardt.DISTANCE],
            inverse=self.matrices[marquardt.INVERSE, :p, :p].copy(),
            undetermined=self.vectors[marquardt.UNDETERMINED].copy(),
            sum=numbers[marquardt.SUM],
            rest=numbers[marquardt.REST],
            signal=numbers[marquardt.SIGNAL],
            condition=numbers[marquardt.CONDITION],
            guard=numbers[marquardt.GUARD],
            curved=bool(self.counters[marquardt.CURVED]),
        )

    def _linearize(self, theta: Floats, residual: Floats, jacobian: Floats) -> float:
        try:
            near = self.kernel.linearize(theta.copy())
        except ModelError as error:
            return self._refused(error)
        if near is None:
            return math.nan
        residual[:], jacobian[:] = near.residual, near.jacobian.T
        with np.errstate(over="ignore", invalid="ignore"):  # an infinite sum is a status, told in words
            self.offset[:] = near.prediction * near.weight - near.residual
            if self.kernel.loss_kind == "least_squares":
                return float(near.residual @ near.residual)
        return self._sum_of_squares(theta)

    def _sum_of_squares(self, theta: Floats) -> float:
        try:
            return self.kernel.mean_loss(theta.copy()) * self.n
        except ModelError as error:
            return self._refused(error)

    def _refused(self, error: ModelError) -> float:
        self.refusal = str(error)
        return math.nan


@functools.lru_cache(maxsize=128)
def _layout(n: int, p: int) -> tuple[int, tuple[slice, ...]]:
    """Where in one block of words the parts lie: how many words there are; job, offset, matrices, vectors, numbers, counters.

    The block begins with the solver's scratch, (p + 1, n).
    """
    sizes = (n, marquardt.MATRICES * (p + 1) * (p + 2), marquardt.VECTORS * p, marquardt.NUMBERS, marquardt.COUNTERS)
    ends = list(itertools.accumulate((JOB, *sizes), initial=(p + 1) * n))
    return ends[-1], tuple(map(slice, ends[:-1], ends[1:]))


def conclude(kernel: Kernel, theta: Floats, lower: Floats, upper: Floats, *, exact: bool = True) -> Conclusion | None:
    """Conclude at a point that another method found; None where the model is not finite there, or the loss has no rows."""
    solver = Solver(kernel, theta, lower, upper, exact=exact)
    code, _ = solver.run(0)
    return None if code == marquardt.NOT_FINITE else solver.conclusion()


@functools.cache
def _solver_object() -> bytes:
    return algorithm_object([marquardt], [SOLVE])


def algorithm_object(modules: Sequence[ModuleType], entries: Sequence[Entry]) -> bytes:
    """Compile an algorithm that asks a model for its numbers."""
    key = repr(("solver", *map(inspect.getsource, modules), inspect.getsource(translator), tuple(entries)))
    return compiled(key, lambda: translator.solver_ir(modules, entries))


def solver_of(code: ModelCode, *, weighted: bool) -> Function:
    """Link the solver with a compiled model, once."""
    return code.linked("gf_solve", weighted=weighted, algorithm=_solver_object)


def is_compiled(kernel: Kernel) -> TypeGuard[NativeKernel]:
    """Whether compiled code finds the residuals of a kernel by itself; of any other it asks Python."""
    return isinstance(kernel, NativeKernel) and kernel.loss_kind == "least_squares"


def linked(kernel: Kernel, name: str, algorithm: Callable[[], bytes]) -> Function:
    """Link an algorithm with what computes a kernel's numbers, once; give its function of this name."""
    if is_compiled(kernel):
        return kernel.code.linked(name, weighted=kernel.weighted, algorithm=algorithm)
    return _calling(name, algorithm)


@functools.cache
def _calling(name: str, algorithm: Callable[[], bytes]) -> Function:
    """Link an algorithm with the functions that call Python."""
    return Function(load([algorithm(), trampoline_object()], [name]), name, ctypes.c_int64, 1)
