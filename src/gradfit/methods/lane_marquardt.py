r"""Levenberg-Marquardt by normal equations, written for all lanes of a vector at once: the quick way through many small fits.

Each lane holds a fit. With A, g and S at its point and D the largest diagonal of A so far, the step solves

.. math:: (A + \lambda D)\,\delta = -g

by Cholesky's decomposition. The damping :math:`\lambda` falls by ten after a step that did what it promised and is 0 at the end, where the gain
that is left, :math:`g^T A^{-1} g`, is the squared distance to the minimum in standard deviations of a residual. Below a millionth of the
variance of a residual the step is taken unseen, and the fit has ended: where each step leaves less than half of the way, as it does when
residuals are small or bend little, no more than that is left. Where steps shorten the way slowly they go on, to a hundredth of that.

Normal equations square the condition of J. So a fit is ended here only where its errors are finite and its condition, that of J with
its columns scaled to 1, is moderate (`SOUND`); every other one is given up, for :mod:`gradfit.methods.marquardt` to find out with care.

A parameter on a bound beyond which the loss falls is held; one that a step would carry across is set on it and the others are solved
for again.

References
----------
Marquardt, J. SIAM 11, 1963 (scaling, damping); Nielsen, *Damping parameter in Marquardt's method*, IMM-REP-1999-05 (the ratio of gains);
van der Sluis, Numer. Math. 14, 1969 (Cholesky's errors do not depend on a diagonal scaling).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence

from gradfit.compiler.lanes import Look
from gradfit.compiler.values import Value, isfinite, maximum, minimum, muladd, sqrt, where

FIRST_DAMPING = 1e-2
LEAST_DAMPING = 1e-4  # below it none is left
AFTER_REFUSAL = 1e-2  # of an undamped step
MOST_DAMPING = 1e7  # a step so short finds nothing: given up
FAIR = 1e-4  # of the predicted gain must be real
SURE = 10.0  # variances of a residual: after a step of such a gain damping only delays
TINY = 1e-3  # of the variance: a gain at which nobody is lost without damping
ENOUGH = {True: 1e-6, False: 1e-3}  # of the variance, in double and in single precision: a gain below is taken unseen
GUARD = {True: 1e-10, False: 1e-6}  # of the norm of the data: what stands for the deviation where data are exact
EPSILON = {True: 2.0**-52, False: 2.0**-23}
MODERATE = 100.0  # condition up to which errors change by less than a hundredth in the last step
SOUND = 1e5  # condition up to which normal equations are trusted
FADED = 1e-12  # of the largest that a diagonal element of A has been: its parameter may have run onto a plateau
SETTLING = 3.0  # looks before a fit may end: one that begins beside a point without slope leaves it in these
QUICK = 0.25  # of the gain is left by a step: half of the way
SLOW = 1e-4  # of the gain that is enough, where steps leave more
GIVEN_UP, ENDED, ENDED_SLOWLY = 0.0, 1.0, 2.0


def triangle(j: int, k: int) -> int:
    """Place of element (j, k), k <= j, in a packed lower triangle."""
    return j * (j + 1) // 2 + k


class LaneMarquardt:
    """The algorithm, as :class:`gradfit.compiler.lanes.Algorithm` describes it."""

    def cells(self, p: int, *, bounded: bool) -> dict[str, str]:
        """Numbers kept for a fit, and what they begin as."""
        cells = {f"theta {j}": f"start {j}" for j in range(p)} | {f"trial {j}": f"start {j}" for j in range(p)}
        if bounded:
            cells |= {f"lower {j}": f"lower {j}" for j in range(p)} | {f"upper {j}": f"upper {j}" for j in range(p)}
        cells |= {f"gradient {j}": "0" for j in range(p)} | {f"largest {j}": "0" for j in range(p)}
        cells |= {f"normal {i}": "0" for i in range(p * (p + 1) // 2)}
        # The sum is NaN until a look at the start was finite: that of a fit which could not begin is none, not the lowest of all.
        numbers = {"sum": "nan", "damping": "damping 0", "predicted": "0", "left": "0", "looks": "0", "steps": "0", "how": "0"}
        return cells | numbers | {"rows": "rows"}

    def result_size(self, p: int, *, brief: bool) -> int:
        """How many numbers are kept of a fit: parameters, the inverse of A, sum, condition, steps, how; without errors the first and last."""
        return p + 3 if brief else p + p * (p + 1) // 2 + 4

    def step(self, cells: Mapping[str, Value], look: Look, most: Value, *, bounded: bool) -> tuple[dict[str, Value], Value]:
        """Take the trial or refuse it, and propose the next."""
        p = len(look.gradient)
        state = _State(cells, p, bounded)
        first = state.looks == 0.0
        double = look.sum.is_double
        noise = 16 * EPSILON[double] * state.sum + 4 * EPSILON[double] * sqrt(look.square * state.sum)
        finite = isfinite(_total([look.sum, *look.gradient, *(look.normal[triangle(j, j)] for j in range(p))]))
        gain = state.sum - look.sum
        taken = finite & (first | (gain >= FAIR * state.predicted - noise))
        state.take(taken, look)
        ratio = gain / maximum(state.predicted, noise)
        damping = _damping(state, taken, first, ratio, noise)
        delta, predicted, left = _proposal(state, damping)
        variance = maximum(state.sum - left, 0.0) / maximum(state.rows - float(p), 1.0)
        enough = maximum(ENOUGH[double] * variance, GUARD[double] ** 2 * look.square)
        # Who begins undamped comes from single precision, where it was found out.
        quick = ((left <= QUICK * cells["left"]) & (state.looks >= SETTLING)) | (first & (state.damping == 0.0))
        arrived = taken & (damping == 0.0) & (left <= enough) & (quick | (left <= SLOW * enough))
        hopeless = (damping > MOST_DAMPING) | (state.looks >= most) | (first & ~finite)
        trial = [theta + part for theta, part in zip(state.theta, delta, strict=True)]
        if bounded:
            trial = [minimum(maximum(value, low), high) for value, low, high in zip(trial, state.lower, state.upper, strict=True)]
        changed = {f"trial {j}": trial[j] for j in range(p)}
        changed |= {f"theta {j}": where(arrived, trial[j], state.theta[j]) for j in range(p)}
        changed |= {f"gradient {j}": state.gradient[j] for j in range(p)} | {f"largest {j}": state.largest[j] for j in range(p)}
        changed |= {f"normal {i}": value for i, value in enumerate(state.normal)}
        changed |= {
            "sum": where(arrived, maximum(state.sum - left, 0.0), state.sum), "damping": damping, "predicted": predicted, "left": left,
            "looks": state.looks + 1.0, "steps": state.steps + where(taken & ~first | arrived, state.sum.like(1.0), 0.0),
            "how": where(arrived, where(quick, state.sum.like(ENDED), state.sum.like(ENDED_SLOWLY)), state.sum.like(GIVEN_UP)),
        }  # fmt: skip
        return changed, arrived | hopeless

    def results(self, cells: Mapping[str, Value], p: int, *, bounded: bool, brief: bool) -> list[Value]:
        """Parameters, the inverse of A (of those off their bounds), the sum of squares, condition, steps, and whether it ended here."""
        state = _State(cells, p, bounded)
        if brief:
            return [*state.theta, state.sum, state.steps, cells["how"]]
        free = None
        if bounded:
            on = [
                (theta <= low) | (theta >= high) for theta, low, high in zip(state.theta, state.lower, state.upper, strict=True)
            ]
            free = [~stands for stands in on]
        normal = _restricted(state.normal, free, p)
        inverse = _inverse(_cholesky(normal, p), p)
        condition = _total([normal[triangle(j, j)] * inverse[triangle(j, j)] for j in range(p)])
        faded = state.normal[0] != state.normal[0]
        for j in range(p):
            own = state.normal[triangle(j, j)] < FADED * state.largest[j]
            faded = faded | (own if free is None else own & free[j])
        how = where(faded, 0.0, cells["how"])
        return [*state.theta, *inverse, state.sum, condition, state.steps, how]

    @property
    def edition(self) -> str:
        """The algorithm's own text."""
        return inspect.getsource(sys.modules[__name__])


class _State:
    """The cells by name."""

    def __init__(self, cells: Mapping[str, Value], p: int, bounded: bool) -> None:
        several: Callable[[str, int], list[Value]] = lambda name, count: [cells[f"{name} {j}"] for j in range(count)]  # noqa: E731
        self.theta, self.trial = several("theta", p), several("trial", p)
        self.gradient, self.largest, self.normal = (
            several("gradient", p),
            several("largest", p),
            several("normal", p * (p + 1) // 2),
        )
        self.lower, self.upper = (several("lower", p), several("upper", p)) if bounded else ([], [])
        self.sum, self.damping, self.predicted = cells["sum"], cells["damping"], cells["predicted"]
        self.looks, self.steps, self.rows = cells["looks"], cells["steps"], cells["rows"]
        self.bounded, self.p = bounded, p

    def take(self, taken: Value, look: Look) -> None:
        """Move to the trial, in the lanes where it is taken."""
        p = self.p
        self.theta = [where(taken, new, old) for new, old in zip(self.trial, self.theta, strict=True)]
        self.gradient = [where(taken, new, old) for new, old in zip(look.gradient, self.gradient, strict=True)]
        self.normal = [where(taken, new, old) for new, old in zip(look.normal, self.normal, strict=True)]
        self.sum = where(taken, look.sum, self.sum)
        self.largest = [maximum(self.largest[j], self.normal[triangle(j, j)]) for j in range(p)]

    def free(self) -> list[Value] | None:
        """Which parameters may move: not those on a bound beyond which the loss falls."""
        if not self.bounded:
            return None
        free = []
        for theta, low, high, slope in zip(self.theta, self.lower, self.upper, self.gradient, strict=True):
            free.append(~(((theta <= low) & (slope > 0.0)) | ((theta >= high) & (slope < 0.0)) | (low == high)))
        return free


def _damping(state: _State, taken: Value, first: Value, ratio: Value, noise: Value) -> Value:
    """The damping after a look; none after a step so small that its real gain is rounding."""
    tiny = (state.predicted * (state.rows - float(state.p)) <= TINY * state.sum) | (state.predicted <= noise)
    damping = state.damping
    lower = damping * 0.1
    lower = where((lower < LEAST_DAMPING) | (state.predicted * (state.rows - float(state.p)) < SURE * state.sum), 0.0, lower)
    kept = where(ratio > 0.75, lower, where(ratio < 0.25, maximum(damping * 4.0, AFTER_REFUSAL), damping))
    kept = where(tiny, 0.0, kept)
    return where(taken, where(first, damping, kept), maximum(damping * 10.0, AFTER_REFUSAL))


def _proposal(state: _State, damping: Value) -> tuple[list[Value], Value, Value]:
    """The step, by how much it lowers the sum of squares in the linear form, and the whole gain that is left."""
    p = state.p
    free = state.free()
    diagonal = [where(largest > 0.0, largest, 1.0) for largest in state.largest]
    damped = list(state.normal)
    for j in range(p):
        damped[triangle(j, j)] = muladd(damping, diagonal[j], damped[triangle(j, j)])
    delta, left = _solve(damped, state.gradient, free, p)
    delta = _shortened(state, delta, diagonal, left)
    if state.bounded and free is not None:
        delta = _within(state, damped, delta, free)
        left = _fall(state, delta)
    return delta, _fall(state, delta), left


def _solve(normal: Sequence[Value], gradient: Sequence[Value], free: list[Value] | None, p: int) -> tuple[list[Value], Value]:
    """Solve for the step; gives also :math:`g^T A^{-1} g`."""
    lower = _cholesky(_restricted(normal, free, p), p)
    slope = list(gradient) if free is None else [where(own, part, 0.0) for own, part in zip(free, gradient, strict=True)]
    forward: list[Value] = []
    for j in range(p):
        total = slope[j]
        for k in range(j):
            total = total - lower[triangle(j, k)] * forward[k]
        forward.append(total / lower[triangle(j, j)])
    delta: list[Value] = [forward[0]] * p
    for j in reversed(range(p)):
        total = forward[j]
        for k in range(j + 1, p):
            total = total - lower[triangle(k, j)] * delta[k]
        delta[j] = total / lower[triangle(j, j)]
    return [-part for part in delta], _total([part * part for part in forward])


def _shortened(state: _State, delta: list[Value], diagonal: list[Value], left: Value) -> list[Value]:
    """Go no further than the parameters are large, or the data far."""
    size = _total([scale * theta * theta for scale, theta in zip(diagonal, state.theta, strict=True)])
    length = _total([scale * part * part for scale, part in zip(diagonal, delta, strict=True)])
    reach = maximum(size, left)
    factor = where(length > reach, sqrt(reach / length), 1.0)
    return [factor * part for part in delta]


def _within(state: _State, damped: list[Value], delta: list[Value], free: list[Value]) -> list[Value]:
    """Set those that a step would carry across a bound on it, and solve for the others again."""
    p = state.p
    held, moved = [], []
    for j in range(p):
        wanted = state.theta[j] + delta[j]
        inside = minimum(maximum(wanted, state.lower[j]), state.upper[j])
        crossed = free[j] & (inside != wanted)
        held.append(crossed)
        moved.append(where(crossed, inside - state.theta[j], 0.0))
    slope = []
    for j in range(p):
        total = state.gradient[j]
        for k in range(p):
            total = total + state.normal[triangle(max(j, k), min(j, k))] * moved[k]
        slope.append(total)
    again, _ = _solve(damped, slope, [own & ~cut for own, cut in zip(free, held, strict=True)], p)
    found = [where(cut, shift, part) for cut, shift, part in zip(held, moved, again, strict=True)]
    return [minimum(maximum(state.theta[j] + found[j], state.lower[j]), state.upper[j]) - state.theta[j] for j in range(p)]


def _fall(state: _State, delta: Sequence[Value]) -> Value:
    r""":math:`-2 g^T\delta - \delta^T A \delta`."""
    p = state.p
    total = None
    for j in range(p):
        row = 2.0 * state.gradient[j]
        for k in range(p):
            row = muladd(state.normal[triangle(max(j, k), min(j, k))], delta[k], row)
        part = row * delta[j]
        total = part if total is None else total + part
    assert total is not None
    return -total


def _restricted(normal: Sequence[Value], free: list[Value] | None, p: int) -> list[Value]:
    """A with the rows and columns of held parameters replaced by those of the unit matrix."""
    if free is None:
        return list(normal)
    places = [(j, k) for j in range(p) for k in range(j + 1)]
    return [where(free[j] & free[k], normal[triangle(j, k)], 1.0 if j == k else 0.0) for j, k in places]


def _cholesky(normal: Sequence[Value], p: int) -> list[Value]:
    """L of :math:`A = LL^T`; NaN where A is not positive definite."""
    lower: list[Value] = list(normal)
    for j in range(p):
        for k in range(j + 1):
            total = normal[triangle(j, k)]
            for i in range(k):
                total = total - lower[triangle(j, i)] * lower[triangle(k, i)]
            lower[triangle(j, k)] = sqrt(total) if j == k else total / lower[triangle(k, k)]
    return lower


def _inverse(lower: Sequence[Value], p: int) -> list[Value]:
    """:math:`A^{-1} = L^{-T} L^{-1}`, its lower triangle."""
    inner: dict[tuple[int, int], Value] = {}
    for j in range(p):
        inner[j, j] = 1.0 / lower[triangle(j, j)]
        for k in range(j):
            total = lower[triangle(j, k)] * inner[k, k]
            for i in range(k + 1, j):
                total = total + lower[triangle(j, i)] * inner[i, k]
            inner[j, k] = -(total * inner[j, j])
    return [_total([inner[i, j] * inner[i, k] for i in range(j, p)]) for j in range(p) for k in range(j + 1)]


def _total(parts: Sequence[Value]) -> Value:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
