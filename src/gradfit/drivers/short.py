"""The short way through a small fit that was made before with other data: one block of memory, two calls of compiled code.

A fit of eleven points takes compiled code less time than Python needs to look at it. Where nothing is to be shown, watched or
drawn from the data first, all that a call has to do is copy its arrays and its start into a block, whose other words were
written once, and let compiled code run. The result is used only where it is the plain success that most fits are; anything
else (data that are not finite, a loss that was lost, a minimum not reached) goes the long way, which words it. Both ways run
the same code on the same numbers: they give the same bits, and the long way can be gone later, when somebody asks for more.

The block::

    inputs, target, deviations | head: context, jobs, state, the solver's memory | solver's scratch | history

with the deviations of :data:`SLOTS`, where rows have such.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from scipy.linalg.blas import ddot

from gradfit.compiler.compiled import ModelCode, address_of
from gradfit.compiler.descent_code import JOB_WORDS
from gradfit.compiler.native import Function
from gradfit.data.dataset import SMALLEST, plain_length
from gradfit.methods import marquardt
from gradfit.methods.compiled_descent import Loop, Schedule
from gradfit.methods.gradient_descent import GradientDescent
from gradfit.methods.levenberg_marquardt import LevenbergMarquardt
from gradfit.methods.solving import EXACT_RANK, JOB, solver_of
from gradfit.methods.stopping import ARRIVED, DIVERGED_FACTOR
from gradfit.typing import Floats

MOST_ROWS = 10_000
MOST_HISTORY = 1_000_000  # numbers
MOST_STEPS = 64  # of Levenberg-Marquardt
MOST_WORK = 10_000_000  # row-epochs: the long way, gone later, should not be felt


Kind: TypeAlias = Literal["exact", "weighted", "inexact"]
# Columns after the target: how many of them the context knows, and how many there are in all; the last is what the solver calls offset.
SLOTS: dict[Kind, tuple[int, int]] = {
    "exact": (0, 0),  # the target is its own offset
    "weighted": (1, 2),  # 1 / sigma; target / sigma
    "inexact": (4, 4),  # sigma, deviation of x, where its search begins (0), and what compiled code fills in
}


@dataclass(frozen=True, slots=True)
class Deviations:
    """Standard deviations of target and input: a number, (n,), or None.

    Attributes
    ----------
    absolute
        Whether these are measured errors.
    largest
        Of the target.
    """

    kind: Kind
    sigma: Any = None
    sigma_x: Any = None
    absolute: bool = False
    largest: float = 1.0


EXACT = Deviations("exact")


def deviations_of(sigma: Any, sigma_x: Any, n: int, *, absolute: bool) -> Deviations | None:
    """Look at deviations; None where they need a closer look: no plain numbers, or not positive."""
    largest = 1.0
    if sigma is not None:
        least, largest = _range(sigma, n)
        if not 0 < least <= largest < math.inf:
            return None
    elif absolute:
        return None
    if sigma_x is None:
        return Deviations("weighted", _kept(sigma), None, absolute, largest)
    least, most = _range(sigma_x, n)
    if not 0 <= least <= most < math.inf or most == 0:
        return None
    return Deviations("inexact", _kept(sigma), _kept(sigma_x), absolute, largest)


def _range(value: Any, n: int) -> tuple[float, float]:
    """Smallest and largest of plain numbers; NaN for anything else."""
    if type(value) is float or type(value) is int:
        return value, value
    return (value.min(), value.max()) if plain_length((value,)) == n > 0 else (math.nan, math.nan)


def _kept(value: Any) -> Any:
    """A number, or a copy of an array, which the caller may change later."""
    return value.copy() if type(value) is np.ndarray else value


@dataclass(frozen=True)
class Ended:
    """A fit that went the short way and converged.

    Attributes
    ----------
    theta
        Parameters, (p,).
    inverse, scale
        :math:`(J^TJ)^{-1}` and s²; the covariance is their product.
    history
        (steps, 2 + 2 p): loss before, damping (of Levenberg-Marquardt), parameters after, gradient before.
    learning_rate
        (steps,), or None for Levenberg-Marquardt.
    arrays
        The copies of inputs and target that were fitted, (columns, n).
    sigma, sigma_x, absolute
        Their deviations, as they were given.
    """

    theta: Floats
    inverse: Floats
    scale: float
    history: Floats
    learning_rate: Floats | None
    arrays: Floats
    sigma: Any = None
    sigma_x: Any = None
    absolute: bool = False

    def columns(self) -> dict[str, Floats]:
        """The history as a solution has it."""
        p, history = len(self.theta), self.history
        unseen = np.full(len(history), np.nan)
        own = {"damping": history[:, 1]} if self.learning_rate is None else {"learning_rate": self.learning_rate}
        loss = {"train_loss": history[:, 0], "validation_loss": unseen}
        return loss | own | {"theta": history[:, 2 : 2 + p], "gradient": history[:, 2 + p :]}


@dataclass(frozen=True)
class Way:
    """The block of a fit of n rows, its words written as far as they do not depend on the data."""

    n: int
    p: int
    size: int
    head: np.ndarray = field(repr=False)
    addresses: np.ndarray = field(repr=False)  # 1 where a word is an address, counted from the block's own
    places: dict[str, int]
    epochs: int
    descend: Function | None
    solve: Function
    schedule: Schedule | None

    def go(self, arrays: Sequence[Any], start: Floats, deviations: Deviations) -> Ended | None:
        """Fit; None where that must go the long way."""
        n, p, at = self.n, self.p, self.places
        block = np.empty(self.size)
        place = 0
        for array in arrays:
            block[place : place + n] = array
            place += n
        target = offset = block[place - n : place]
        sigma = deviations.sigma
        if deviations.kind == "weighted":
            np.divide(1.0, sigma, out=block[place : place + n])
            offset = block[place + n : place + 2 * n]
            np.divide(target, sigma, out=offset)
        elif deviations.kind == "inexact":
            block[place : place + n] = 1.0 if sigma is None else sigma
            block[place + n : place + 2 * n] = deviations.sigma_x
            block[place + 2 * n : place + 3 * n] = 0.0
        place = at["context"]
        words = block[place : place + len(self.head)].view(np.int64)
        base = address_of(block)
        np.multiply(self.addresses, base, out=words)
        words += self.head
        job = base + 8 * at["job"]
        theta = block[at["theta"] : at["theta"] + p]
        theta[:] = start
        square = ddot(offset, offset)
        if not square >= n * (SMALLEST * deviations.largest) ** 2:  # whether squares vanish, the long way finds out
            return None
        if self.descend is not None:
            block[at["ceiling"]] = DIVERGED_FACTOR * square / n
            if self.descend.call(base + 8 * at["descent"]) != self.epochs:
                return None
        if self.solve.call(job) != marquardt.CONVERGED:
            return None
        numbers = block[at["numbers"] : at["numbers"] + marquardt.NUMBERS].tolist()
        if not numbers[marquardt.DISTANCE] <= ARRIVED:
            return None
        steps = self.epochs or int(words[at["counters"] - place + marquardt.STEPS])
        history = block[at["history"] : at["history"] + steps * (2 + 2 * p)].reshape(steps, 2 + 2 * p)
        inverse = block[at["inverse"] : at["inverse"] + (p + 1) * (p + 2)].reshape(p + 1, p + 2)[:p, :p]
        if not numbers[marquardt.CONDITION] <= marquardt.SAFE:  # whether errors can be vouched for, the long way finds out
            return None
        rates = None if self.schedule is None else self.schedule.table[:, 0]
        fitted = block[: n * len(arrays)].reshape(len(arrays), n)
        scale = 1.0 if deviations.absolute else numbers[marquardt.SUM] / (n - p)
        return Ended(theta, inverse, scale, history, rates, fitted, sigma, deviations.sigma_x, deviations.absolute)


def way(
    code: ModelCode, method: Any, n: int, p: int, loop: Loop | None, schedule: Schedule | None, kind: Kind = "exact"
) -> Way | None:
    """Lay out the block for n rows; None where the method or the size asks for the long way."""
    if not p < n <= MOST_ROWS or len(code.prediction.fixed):
        return None
    if isinstance(method, LevenbergMarquardt):
        return _laid_out(code, n, p, 0, min(MOST_STEPS, method.max_steps), method.radius, None, None, kind)
    plain = isinstance(method, GradientDescent) and method.scale is False and method.batch_size is None
    if not plain or loop is None or schedule is None or schedule.plateau is not None or method.averaging or method.early_stopping:
        return None
    if method.max_steps * (2 + 2 * p) > MOST_HISTORY or method.max_steps * n > MOST_WORK:
        return None
    return _laid_out(code, n, p, method.max_steps, 0, 1.0, loop, schedule, kind)


def _laid_out(
    code: ModelCode,
    n: int,
    p: int,
    epochs: int,
    rows: int,
    radius: float,
    loop: Loop | None,
    schedule: Schedule | None,
    kind: Kind,
) -> Way:
    columns, (known, slots) = len(code.prediction.inputs), SLOTS[kind]
    state = len(loop.step.state) if loop is not None else 0
    sizes = {
        "context": 3 + columns + known, "job": JOB, "descent": JOB_WORDS, "state": state + 1, "measures": 3,
        "matrices": marquardt.MATRICES * (p + 1) * (p + 2), "vectors": marquardt.VECTORS * p, "numbers": marquardt.NUMBERS,
        "counters": marquardt.COUNTERS,
    }  # fmt: skip
    begin = (columns + 1 + slots) * n
    at, here = {}, begin
    for name, size in sizes.items():
        at[name] = here
        here += size
    length = here - begin
    at |= {"system": here, "history": here + (p + 1) * n}
    at["theta"] = at["vectors"] + marquardt.THETA * p
    at |= {"inverse": at["matrices"] + marquardt.INVERSE * (p + 1) * (p + 2), "ceiling": at["measures"] + 1}
    head = np.zeros(length)
    head[at["vectors"] - begin + marquardt.LOWER * p :][:p] = -np.inf
    head[at["vectors"] - begin + marquardt.UPPER * p :][:p] = np.inf
    head[at["numbers"] - begin + marquardt.RADIUS] = radius
    head[at["numbers"] - begin + marquardt.RANK_TOLERANCE] = max(n, p) * EXACT_RANK
    head[at["measures"] - begin :][:3] = 1.0, 0.0, np.nan
    words = head.view(np.int64)
    addresses = np.zeros(length, dtype=np.int64)

    def write(place: int, value: int, *, address: bool = False) -> None:
        words[place - begin] = 8 * value if address else value
        addresses[place - begin] = address

    write(at["context"], n)
    for column in range(columns + 1 + known):
        write(at["context"] + 2 + column, column * n, address=True)
    write(at["job"], n)
    write(at["job"] + 1, p)
    write(at["job"] + 2, rows)
    offset = (columns + slots) * n
    for place, value in enumerate((at["context"], at["system"], offset, *(at[name] for name in MEMORY), at["history"]), start=3):
        write(at["job"] + place, value, address=True)
    if loop is not None and schedule is not None:
        for place, name in ((0, "context"), (2, "theta"), (3, "state"), (7, "history"), (10, "measures")):
            write(at["descent"] + place, at[name], address=True)
        write(at["descent"] + 4, 1)
        write(at["descent"] + 5, epochs)
        write(at["descent"] + 6, address_of(schedule.table))
    size = at["history"] + (epochs or rows) * (2 + 2 * p)
    function = None if loop is None else loop.function
    return Way(n, p, size, words, addresses, at, epochs, function, solver_of(code, weighted=kind != "exact"), schedule)


MEMORY = ("matrices", "vectors", "numbers", "counters")
