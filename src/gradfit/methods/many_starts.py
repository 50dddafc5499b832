r"""Where many fits begin that were given no start: for each points that fill the space, judged by its own data, the best of them followed.

Candidates are drawn in units of x (:mod:`gradfit.methods.drawing`); the numbers in which the model is linear follow from them in closed
form. What is left of the squares of a fit at each candidate ranks these. Where fits share x, all of them at all candidates are one
product of matrices: with an orthonormal basis Q of the linear parameters' derivatives, :math:`\min_c\lVert Jc - y\rVert^2 = \lVert
y\rVert^2 - \lVert Q^Ty\rVert^2`. Where they do not, compiled code projects fit by fit (:mod:`gradfit.methods.projections`).

The best candidates are followed by short fits until two of them ended at the lowest minimum so far; fits that do not agree so soon get more.

Nothing is drawn from other fits: where a fit begins depends on its own data alone, whatever is beside it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from gradfit.compiler.compiled import NativeKernel, address_of
from gradfit.compiler.solver import Entry, Size
from gradfit.compiler.units import UNIT_OF_TARGET, Role
from gradfit.data.batch import FINE, Block
from gradfit.methods import evaluating, marquardt, projections
from gradfit.methods.drawing import Axis, cube, drawn, frequency_of, some_half, some_rows, within
from gradfit.methods.many import CONVERGED, NOT_DONE, Limits, Starts, fit_block, unfit
from gradfit.methods.multistart import MOST_JUDGED, NOTHING_LEFT, SAME_LOSS
from gradfit.methods.solving import ONE_MORE, P, algorithm_object
from gradfit.typing import Floats

CANDIDATES = (1, 128, 128, 256, 1024)  # by how many numbers are drawn: more for more
FOR_EACH_ROW, MOST_CANDIDATES = 6, 2048  # where a frequency is drawn, more rows tell more of them apart
FOLLOWED = (2, 2, 4, 8)  # candidates of each round
STEPS = 24  # of a short fit
AGREE = 2  # ends at the lowest minimum that are enough
SHARED_AT_ONCE, OWN_AT_ONCE, PRODUCT_AT_ONCE = 4096, 256, 512  # fits
DIGITS = 24  # binary ones of a candidate: how a power is rounded may depend on how numbers lie in memory
COARSE, NOWHERE = 2.0**28, 2**31 - 1  # steps in which squares are compared: products of matrices round by their shapes
INDEPENDENT = 1e-10  # of the largest: singular values of a basis

PROJECT_ALL = Entry(
    "gf_project_all",
    "project_all",
    ("n", "p", "count", "each", "width", "k"),
    {"points": (Size("count"), Size("each"), P), "words": (Size("width"),), "strides": (Size("width"),)}
    | {"limits": (Size("count"), Size(more=2), P), "linear": (Size("k"),), "system": (ONE_MORE, Size("n"))}
    | {"small": (Size("k"), Size("k", more=1)), "results": (Size("count"), Size("each"))},
)


@dataclass(frozen=True)
class Candidates:
    """Where fits may begin, and what each makes of it.

    Attributes
    ----------
    theta
        (1, candidates, p) for all, or (count, candidates, p); linear numbers are 0.
    plain
        How many, the first ones, have no negative sizes: a width is rather positive.
    left
        Share of the squares that is left, in steps of 1 / COARSE, (count, candidates) int32; NOWHERE where the model has no value.
    """

    theta: Floats
    plain: int
    left: np.ndarray

    def taken(self, fits: np.ndarray, most: int, *, first: bool) -> tuple[Floats, np.ndarray]:
        """Take the best of some fits that were not taken yet; gives theta (fits, most, p), and which there are, (fits, most).

        The first of all is one without negative sizes, unless there is none.
        """
        theta, there = np.empty((len(fits), most, self.theta.shape[2])), np.empty((len(fits), most), dtype=bool)
        left = self.left if len(fits) == len(self.left) else self.left[fits]  # most often all, which need no copy
        each = np.arange(len(fits))
        for place in range(most):
            best = left.argmin(axis=1)
            if first and place == 0 and self.plain:
                plain = left[:, : self.plain].argmin(axis=1)
                best = np.where(left[each, plain] < NOWHERE, plain, best)
            there[:, place] = left[each, best] < NOWHERE
            theta[:, place] = self.theta[0, best] if len(self.theta) == 1 else self.theta[fits, best]
            left[each, best] = NOWHERE
        self.left[fits] = left
        return theta, there


@dataclass(frozen=True)
class StartSearch:
    """Finds where the fits of a block begin.

    Attributes
    ----------
    kernel
        The model.
    known
        The role of each free number.
    waiting
        Which numbers have no start, (p,).
    shared
        Whether all fits have the same columns, weights, fixed numbers, starts and bounds, but for missing rows, and but for a factor
        of the weights where these are ``scaled``.
    seed
        Of the points.
    radius
        Of the first step of a fit.
    """

    kernel: NativeKernel
    known: Mapping[str, Role]
    waiting: np.ndarray
    shared: bool
    scaled: bool
    seed: int
    radius: float

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Free numbers."""
        return self.kernel.parameters.free_elements

    @cached_property
    def linear(self) -> np.ndarray:
        """Which numbers follow from the others in closed form, (p,)."""
        return np.asarray(self.waiting & np.array([self.known[name].linear for name in self.names]))

    @cached_property
    def searched(self) -> np.ndarray:
        """Places of the numbers that are drawn."""
        return np.flatnonzero(self.waiting & ~self.linear)

    @cached_property
    def in_units_of_target(self) -> bool:
        """Whether a drawn number has a unit in which the target's is."""
        powers = [self.known[self.names[place]].powers or {} for place in self.searched]
        return any(own.get(UNIT_OF_TARGET, 0.0) for own in powers)

    @cached_property
    def in_common(self) -> bool:
        """Whether all fits have the same candidates, but for those with missing rows."""
        return self.shared and not self.in_units_of_target

    def rates(self) -> dict[int, str]:
        """Drawn numbers that may be a frequency, and along which column."""
        own = {int(place): frequency_of(self.known[self.names[place]]) for place in self.searched}
        return {place: column for place, column in own.items() if column}

    def number(self, rows: int) -> int:
        """How many candidates there are for fits of so many rows."""
        usual = CANDIDATES[min(len(self.searched), len(CANDIDATES) - 1)]
        return max(usual, min(FOR_EACH_ROW * min(rows, MOST_JUDGED), MOST_CANDIDATES)) if self.rates() else usual

    # --- the search ---------------------------------------------------------------------------------------------------

    def begun(self, block: Block, starts: Starts) -> Starts:
        """Give the starts with those of the open fits found; a fit that nothing can be found for keeps its own."""
        theta = np.array(starts.theta)
        sound = np.flatnonzero((unfit(block, starts) == NOT_DONE) & starts.open)
        for places, some in self._pieces(block, sound):
            theta[places] = self._found(some, starts.chosen(places))
        return replace(starts, theta=theta)

    def _pieces(self, block: Block, sound: np.ndarray) -> Iterator[tuple[np.ndarray, Block]]:
        """Cut fits into pieces of one length, each with at most so many rows that they judge quickly."""
        for n in np.unique(block.sizes[sound]):
            alike = sound[block.sizes[sound] == n]
            alone = np.full(block.count, not self.in_common)
            alone |= False if block.dropped is None else block.dropped > 0
            for apart, size in (False, SHARED_AT_ONCE), (True, OWN_AT_ONCE):
                places = alike[alone[alike] == apart]
                for begin in range(0, len(places), size):
                    some = places[begin : begin + size]
                    own = block.chosen(some).narrowed()
                    yield some, self._thinned(own if apart else self._in_one(own))

    def _in_one(self, block: Block) -> Block:
        """Give fits that have the same columns and weights with these once for all: missing rows of others may have set them apart."""
        columns = tuple(np.atleast_2d(column)[0] for column in block.columns)
        weight = block.weight
        return replace(block, columns=columns, weight=weight if weight is None or self.scaled else np.atleast_2d(weight)[0])

    def _thinned(self, block: Block) -> Block:
        """Give fits of one length with at most so many rows."""
        n = block.target.shape[1]
        if n <= MOST_JUDGED:
            return block
        return block.picked(some_rows(n, MOST_JUDGED, self.seed), np.full(block.count, MOST_JUDGED))

    def _found(self, block: Block, starts: Starts) -> Floats:
        """Find where fits of one length begin, (count, p)."""
        (count, p), most = starts.theta.shape, sum(FOLLOWED)
        choice = self._candidates(block, starts)
        begun, ends = np.repeat(starts.theta[:, None], most, axis=1), np.empty((count, most, p))
        total, converged = np.full((count, most), math.inf), np.zeros((count, most), dtype=bool)
        rounding = NOTHING_LEFT * block.squares
        going, at = np.arange(count), 0
        for more in FOLLOWED:
            theta, there = choice.taken(going, more, first=at == 0)
            fits, nth = np.nonzero(there)
            if not fits.size:
                break
            fits, nth, theta = going[fits], at + nth, theta[there]
            some, own = block.chosen(fits), starts.chosen(fits)
            self._project(some, own, theta[:, None])
            short = fit_block(self.kernel, some, replace(own, theta=theta), Limits(STEPS, self.radius, careful=False))
            begun[fits, nth], ends[fits, nth] = theta, short.theta
            total[fits, nth] = np.where(np.isfinite(short.sum) & np.isfinite(short.theta).all(axis=1), short.sum, math.inf)
            converged[fits, nth] = short.status == CONVERGED
            at += more
            going = going[~_agreed(total[going, :at], converged[going, :at], rounding[going])]
            if not going.size:
                break
        return self._best(block, starts, begun, ends, total, converged, rounding)

    def _best(
        self, block: Block, starts: Starts, begun: Floats, ends: Floats, total: Floats, converged: np.ndarray, rounding: Floats
    ) -> Floats:
        """Choose the lowest end; one that has not converged is made to its end first, and left for one that has where it does not arrive."""
        each = np.arange(len(total))
        place = _lowest(ends, total, converged, rounding)
        best = ends[each, place]
        lost = np.flatnonzero(~np.isfinite(total[each, place]))
        best[lost] = np.where(np.isfinite(begun[lost, 0]), begun[lost, 0], starts.theta[lost])
        left = np.setdiff1d(np.flatnonzero(~converged[each, place]), lost)
        left = left[converged[left].any(axis=1)]
        if left.size and self.kernel.loss_kind == "least_squares":
            whole = fit_block(
                self.kernel, block.chosen(left), replace(starts.chosen(left), theta=best[left]), Limits(radius=self.radius)
            )
            arrived = np.where(converged[left], total[left], math.inf)
            failed = left[whole.status != CONVERGED]
            other = arrived.argmin(axis=1)[whole.status != CONVERGED]
            best[failed] = ends[failed, other]
        return np.asarray(best)

    # --- candidates ---------------------------------------------------------------------------------------------------

    def _candidates(self, block: Block, starts: Starts) -> Candidates:
        """Draw candidates for fits of one length, and rank them."""
        common = self.in_common and all(column.ndim == 1 for column in block.columns)
        few = np.arange(1 if common else block.count)
        theta, plain = self._drawn(block.chosen(few), starts.chosen(few))
        if not self.searched.size:
            return Candidates(theta, plain, np.zeros((block.count, 1), dtype=np.int32))
        bounded = any(np.isfinite(side[..., self.linear]).any() for side in (starts.lower, starts.upper))
        if common and not bounded:
            left = self._in_one_product(block, starts, theta[0])
        else:
            whole = np.array(np.broadcast_to(theta, (block.count, *theta.shape[1:])), order="C")
            with np.errstate(all="ignore"):
                left = _stepped(self._project(block, starts, whole) / block.squares[:, None])
        return Candidates(theta, plain, left)

    def _drawn(self, block: Block, starts: Starts) -> tuple[Floats, int]:
        """Draw candidates for each fit of a block, (count, candidates, p), linear numbers 0; the first so many have no negative sizes.

        Half of them have none. In half of all, a rate is one of evenly spaced frequencies, up to the highest that the points tell from a
        lower one, and a number without unit an angle.
        """
        number, places = self.number(block.target.shape[1]), self.searched
        theta = np.repeat(starts.theta[:, None], number, axis=1)
        theta[:, :, self.linear] = 0.0
        if not places.size:
            return theta, number
        points = cube(len(places), 0, number, self.seed)
        names = self.kernel.base.model.data_names
        scales = {
            name: Axis.of_each(np.atleast_2d(column).astype(np.float64), block.sizes[: len(np.atleast_2d(column))])
            for name, column in zip(names, block.columns, strict=True)
        }
        if self.in_units_of_target:
            scales[UNIT_OF_TARGET] = Axis.of_each(block.target.astype(np.float64), block.sizes)
        waving, positive = some_half(number, 0), some_half(number, 1)
        for place, share in zip(places.tolist(), points.T, strict=True):
            role = self.known[self.names[place]]
            values = drawn(share, role, scales, waving)
            if not role.column:
                values = np.where(positive, np.abs(values), values)
            lower, upper = (np.reshape(side[..., place], (-1, 1)) for side in (starts.lower, starts.upper))
            theta[:, :, place] = np.clip(_rounded(within(share, lower, upper, values)), lower, upper)
        return theta[:, np.argsort(~positive, kind="stable")], int(positive.sum())

    def _in_one_product(self, block: Block, starts: Starts, theta: Floats) -> np.ndarray:
        """Share of the squares that is left of all fits at all of their common candidates, (candidates, p), as `Candidates` has it."""
        number, n = len(theta), block.target.shape[1]
        weight = block.weight if block.weight is not None and block.weight.ndim == 1 else None
        zeros = Block(block.columns, np.zeros((number, n)), weight, np.full(number, n), np.full(number, FINE), np.zeros(number))
        offset, slopes = evaluating.rows(self.kernel, zeros, theta, starts.fixed)
        slopes = slopes[:, self.linear]
        lost = np.asarray(~(np.isfinite(offset).all(axis=1) & np.isfinite(slopes).all(axis=(1, 2))))
        offset, slopes = np.where(lost[:, None], 0.0, offset), np.where(lost[:, None, None], 0.0, slopes)
        basis = _orthonormal(slopes)
        k = basis.shape[1]
        rows = [*basis.swapaxes(0, 1), offset] if offset.any() else list(basis.swapaxes(0, 1))
        table = np.ascontiguousarray(np.concatenate([*rows, np.empty((0, n))]).T)
        moved, norms = np.einsum("ikn,in->ki", basis, offset), np.einsum("in,in->i", offset, offset)
        left = np.empty((block.count, number), dtype=np.int32)
        for begin in range(0, block.count, PRODUCT_AT_ONCE):
            part = slice(begin, begin + PRODUCT_AT_ONCE)
            target = block.target[part].astype(np.float64, copy=False)
            white = target if weight is None else target * weight
            with np.errstate(all="ignore"):
                size = np.sqrt(np.einsum("in,in->i", white, white))[:, None]
                product = (white / size) @ table
                rest = np.ones((len(target), number))
                if offset.any():
                    rest += norms / size**2 - 2 * product[:, k * number :] / size
                for place in range(k):
                    along = product[:, place * number : (place + 1) * number]
                    if offset.any():
                        along -= moved[place] / size
                    along *= along
                    rest -= along
                left[part] = _stepped(rest)
        left[:, lost] = NOWHERE
        return left

    def _project(self, block: Block, starts: Starts, theta: Floats) -> Floats:
        """Fill in the linear numbers of points of each fit, (count, each, p); gives the sums of squares there, (count, each)."""
        count, each, p = theta.shape
        n = int(block.sizes[0])
        words, strides, kept = evaluating.contexts(block, n, starts.fixed)
        places = np.flatnonzero(self.linear)
        theta[:, :, places] = 0.0
        limits = np.empty((count, 2, p))
        limits[:, 0], limits[:, 1] = starts.lower, starts.upper
        system, small, results = np.empty((p + 1, n)), np.empty((len(places), len(places) + 1)), np.empty((count, each))
        arrays = [theta, words, strides, limits, places, system, small, results]
        job = np.array([n, p, count, each, len(words), len(places), address_of(words), *map(address_of, arrays)], dtype=np.int64)
        self.kernel.code.linked("gf_project_all", weighted=block.weight is not None, algorithm=_object).call(address_of(job))
        del kept
        return np.where(np.isnan(results), math.inf, results)


def _agreed(total: Floats, converged: np.ndarray, rounding: Floats) -> np.ndarray:
    """Which fits have ended often enough at their lowest minimum, (count,)."""
    lowest = total.min(axis=1)[:, None]
    near = converged & (total <= lowest * (1 + SAME_LOSS) + rounding[:, None])
    return np.asarray((near.sum(axis=1) >= AGREE) | (lowest[:, 0] <= rounding))


def _lowest(ends: Floats, total: Floats, converged: np.ndarray, rounding: Floats) -> np.ndarray:
    """Places of the lowest ends, (count,): among equals one that has converged, with as few negative numbers as may be."""
    near = total <= total.min(axis=1, keepdims=True) * (1 + SAME_LOSS) + rounding[:, None]
    p = ends.shape[2]
    with np.errstate(invalid="ignore"):
        worth = (ends < 0).sum(axis=2) + (p + 1) * ~converged + 2 * (p + 1) * ~near
    return np.asarray(worth.argmin(axis=1))


def _stepped(share: Floats) -> np.ndarray:
    """Give shares of squares as whole numbers of steps; no share, of a target without squares, counts as 0."""
    share *= COARSE
    np.rint(share, out=share)
    np.clip(share, 0.0, NOWHERE - 1.0, out=share)
    if not np.isfinite(share.sum()):
        share[np.isnan(share)] = 0.0
    return share.astype(np.int32)


def _orthonormal(slopes: Floats) -> Floats:
    """Give an orthonormal basis of each of some sets of vectors, (count, k, n); zeros where these depend on each other."""
    with np.errstate(all="ignore"):
        size = np.linalg.norm(slopes, axis=2, keepdims=True)
        units = np.where(size > 0, slopes / np.where(size > 0, size, 1.0), 0.0)
    if units.shape[1] < 2:
        return np.asarray(units)
    _, values, basis = np.linalg.svd(units, full_matrices=False)
    return np.asarray(np.where((values > INDEPENDENT * values[:, :1])[:, :, None], basis, 0.0))


def _rounded(values: Floats) -> Floats:
    """Round numbers to so many binary digits."""
    dropped = 52 - DIGITS
    bits = np.ascontiguousarray(values).view(np.int64)
    return ((bits + (1 << (dropped - 1))) >> dropped << dropped).view(np.float64)


@functools.cache
def _object() -> bytes:
    return algorithm_object([marquardt, projections], [PROJECT_ALL])
