r"""Guesses of parameters from data: scan over the nonlinear parameters, project the linear ones.

A shape that is linear in some parameters is, for given values of the others, a linear model: the best linear parameters and the sum
of squares follow in closed form. So only the others are scanned, over candidates that the shape makes from the data
(:mod:`gradfit.model.scans`), and the sum of squares ranks them. From the best few Gauss-Newton steps go down, side by side.

A sum is made term by term (orthogonal matching pursuit): what has no nonlinear parameter is always in the basis; of the other terms
that candidate enters which lowers the sum of squares most, all linear parameters projected anew; then each term is chosen again given the rest.
A factor of a product is scanned given the others, in turn, from seeded draws.

The result does not depend on the order of rows. Sources: Golub and Pereyra, SIAM J. Numer. Anal. 10 (1973) 413 (variable projection);
Pati, Rezaiifar and Krishnaprasad, Proc. 27th Asilomar Conf. (1993) 40 (orthogonal matching pursuit).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gradfit.errors import DataError, OptionError, ParameterError
from gradfit.model.parameters import parameters
from gradfit.model.projection import FLAT, along, curves, directions, unit, without
from gradfit.model.separable import Leaf, Node, SumNode, has_offset, tree
from gradfit.model.window import Window, prepared
from gradfit.typing import Floats

if TYPE_CHECKING:
    from gradfit.model.lineshape import Lineshape

Bounds = Mapping[str, tuple[float | None, float | None]]
Limits = dict[str, tuple[float, float]]
Values = dict[str, Any]  # nonlinear parameters by name: numbers, or (G,) of candidates

FEW = 4  # starts that are refined where one is asked for
DRAWS = 12  # of the other factors, where one factor of a product is scanned
SWEEPS = 2  # in which each term is chosen again given the others
MOST_DESCENTS = 24  # Gauss-Newton steps; for few nonlinear parameters fewer, twice as many for each more
RACED = 2  # more than there are parameters: after so many steps only the lowest third goes on, or as many as are asked for
DAMPINGS = (0.0, 1e-3, 3e-2, 1.0)
PROBE = 1e-3  # steps of the scan over which a derivative is taken
ENOUGH = 1e-6  # of the sum of squares: a smaller gain ends the descent
MOST_NUMBERS = 4_000_000  # evaluated at once
LOOKED_AT = 80  # best candidates among which distinct ones are sought
SAME = 1e-3  # relative difference between starts that are one
ALIKE = 0.98  # cosine between curves that are one start
NEARLY = 0.9995  # and where no others are to be had
ELSEWHERE = 0.7  # and between such as lie far from each other
NEAR = 0.9  # cosine between columns of two pairs that are one start
APART = 0.02  # two columns of a pair with less than that between them are one
MOST_OF_PAIR = 1000  # candidates for either of a pair


def starts(
    lineshape: Lineshape,
    x: Any,
    y: Any,
    sigma: Any,
    *,
    known: Mapping[str, float] | None,
    bounds: Bounds | None,
    count: int,
    refined: bool = True,
) -> list[dict[str, float]]:
    """Give up to ``count`` distinct guesses, the best first; see :meth:`gradfit.model.lineshape.Lineshape.guess`."""
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
        raise OptionError(f"count is {count!r}; expected how many guesses to give, a whole number, 1 or more.")
    fixed, limits = _told(lineshape, known, bounds)
    window = prepared(x, y, sigma)
    node = tree(lineshape, fixed, limits)
    _check(node, lineshape, window, fixed)
    window = window.thinned(sampled=any(leaf.scan.sampled for leaf in node.leaves))
    found = _Search(node, window).run(count, refined=refined)
    results = []
    for values in found:
        clipped = {name: min(max(values[name], limits[name][0]), limits[name][1]) for name in values}
        results.append({name: fixed.get(name, clipped.get(name, math.nan)) for name in lineshape.specs})
    usable = [result for result in results if all(map(math.isfinite, result.values()))]
    if not usable:
        raise DataError(
            f"no start for {lineshape} can be guessed from these data: nowhere in the scan is it finite at every x. Shift or scale x, "
            "or give start= values of your own."
        )
    return usable


def _told(lineshape: Lineshape, known: Mapping[str, float] | None, bounds: Bounds | None) -> tuple[dict[str, float], Limits]:
    """Read what is known of parameters: values of some, and limits of all."""
    told = parameters(lineshape.specs, start=_by_name("known", known), bounds=_by_name("bounds", bounds))
    values = {name: float(spec.start) for name, spec in told.specs.items() if name not in told.assumed}
    limits = {
        name: (-math.inf if spec.lower is None else spec.lower, math.inf if spec.upper is None else spec.upper)
        for name, spec in told.specs.items()
    }
    return values, limits


def _by_name(what: str, given: Any) -> Any:
    if given is not None and not isinstance(given, Mapping):
        raise ParameterError(f"{what} is {given!r}; expected a dict by parameter name, such as {{'center': ...}}.")
    return given


def _check(node: Node, lineshape: Lineshape, window: Window, fixed: Mapping[str, float]) -> None:
    """Refuse data that no guess can be made from."""
    if not window.n:
        raise DataError(f"no row has a finite x and y; expected data to guess the parameters of {lineshape} from.")
    wanted = [name for name in lineshape.specs if name not in fixed]
    different = len(np.unique(window.x))
    if different < len(wanted):
        raise DataError(
            f"{window.n} points at {different} different x cannot tell {len(wanted)} parameters of {lineshape} ({', '.join(wanted)}); "
            "add data, or say what is known of them: known= in a guess, fixed= or start= in a fit."
        )
    for leaf in node.leaves:
        least, scan = window.x[0], leaf.scan
        if least < scan.domain or (scan.open and least <= scan.domain):
            sign = ">" if scan.open else ">="
            raise DataError(
                f"{leaf.shape} is defined for x {sign} {scan.domain:g}, and the least x is {least:g}; leave those rows out."
            )


@dataclass(frozen=True)
class _Picked:
    """Nonlinear parameters with their sum of squares."""

    cost: float
    values: Values


def _unlike_curves(curves: Floats, count: int) -> list[int]:
    """Of unit curves, the best first, choose some that differ: a few that lie near each other, then such as lie apart.

    Where all are much alike, a few that are nearly the same.
    """
    overlap = np.abs(curves @ curves.T)
    kept, nearest = [0], overlap[0]
    few = min(count, FEW)
    for alike, most in ((ALIKE, few), (ELSEWHERE, count), (NEARLY, count)):
        while len(kept) < most and (left := np.flatnonzero(nearest < alike)).size:
            kept.append(int(left[0]))
            nearest = np.maximum(nearest, overlap[left[0]])
    return kept


def _stacked(picks: Sequence[_Picked]) -> tuple[Floats, dict[str, Floats]]:
    """Give the costs of picks, (K,), and their parameters, (K,) each."""
    return np.array([each.cost for each in picks]), {
        name: np.array([each.values[name] for each in picks]) for name in picks[0].values
    }


def _lowest(cost: Floats, values: Mapping[str, Floats], count: int) -> list[int]:
    """Say which are the lowest ``count`` that differ, of finite cost."""
    rows = np.array(list(values.values())).reshape(len(values), len(cost)).T
    kept: list[int] = []
    for k in np.argsort(cost, kind="stable").tolist():
        apart = np.abs(rows[kept] - rows[k]) > SAME * np.maximum(np.abs(rows[kept]), np.abs(rows[k]))
        if len(kept) < count and math.isfinite(cost[k]) and bool(apart.any(axis=1).all()):
            kept.append(k)
    return kept


def _squares(residuals: Floats) -> Floats:
    """Give sums of squares, (...,), of (..., n); infinite where one is not finite."""
    with np.errstate(all="ignore"):
        found = np.einsum("...n,...n->...", residuals, residuals)
    return np.where(np.isfinite(found), found, math.inf)


def _steps_down(slopes: Floats, residual: Floats) -> Floats:
    """Give Gauss-Newton steps of several dampings, (K, S, q), from slopes, (K, q, n), and residuals, (K, n): none longer than a step of the scan."""
    with np.errstate(all="ignore"):
        matrix, gradient = np.nan_to_num(slopes @ slopes.swapaxes(1, 2)), np.nan_to_num(slopes @ residual[..., None])
        sizes, axes = np.linalg.eigh(matrix)
        largest = sizes[:, -1:]
        damped = sizes[:, None] + np.multiply.outer(largest, DAMPINGS).swapaxes(1, 2)
        inverse = np.where(damped > FLAT * largest[:, None], 1 / damped, 0.0)
        steps = -((axes.swapaxes(1, 2) @ gradient).swapaxes(1, 2) * inverse) @ axes.swapaxes(1, 2)
        return np.asarray(steps / np.maximum(1.0, np.abs(steps).max(axis=2, keepdims=True)))


class _Search:
    """The scan over one model and one set of data; residuals are in units of the weights."""

    def __init__(self, node: Node, window: Window) -> None:
        self.node, self.window = node, window
        self.terms = node.parts if isinstance(node, SumNode) else (node,)
        self.moving = [k for k, term in enumerate(self.terms) if any(leaf.nonlinear for leaf in term.leaves)]
        self._candidates: dict[Any, dict[str, Floats]] = {}
        self._columns: dict[Any, tuple[Floats | None, Floats]] = {}

    # The steps of the search, in their order.

    def run(self, count: int, *, refined: bool) -> list[dict[str, float]]:
        """Give up to ``count`` guesses, the best first; without refinement every candidate from which a fit should begin."""
        begun = [self._completed(each) for each in self._next({}, self.moving, self._still, count)]
        finished = self._descended(begun, count) if refined else self._branched(begun)
        if len(self.moving) > 1:
            finished.append(self._one_by_one())
        finished = [each for each in finished if math.isfinite(each.cost)]
        if not finished:
            return []
        finished = [finished[k] for k in _lowest(*_stacked(finished), count if refined else len(finished))]
        return [each.values | linear for each, linear in zip(finished, self._linear(finished, screen=not refined), strict=True)]

    @property
    def _still(self) -> list[int]:
        """Terms without nonlinear parameters."""
        return [k for k in range(len(self.terms)) if k not in self.moving]

    def _completed(self, picked: _Picked) -> _Picked:
        """Place the terms that are left, then choose each again given the others."""
        while rest := [k for k in self.moving if k not in self._placed(picked.values)]:
            (picked,) = self._next(picked.values, rest, [*self._still, *self._placed(picked.values)], 1)
        steps = self._steps(self.moving)
        for step in steps * (SWEEPS if len(steps) > 1 else 0):
            others = [k for k in range(len(self.terms)) if k not in step]
            (again,) = self._placing(step, picked.values, others, 1)
            picked = min(picked, again, key=lambda each: each.cost)
        return picked

    def _one_by_one(self) -> _Picked:
        """Place one term after the other, and refine before the next: else a strong peak that lies between candidates takes a weak one for itself."""
        picked = _Picked(math.inf, {})
        while rest := [k for k in self.moving if k not in self._placed(picked.values)]:
            others = [*self._still, *self._placed(picked.values)]
            options = [self._place(k, picked.values, others, 1)[0] for k in self._unlike(rest)]
            again = min(options, key=lambda each: each.cost)
            picked = next(iter(self._descended([again], 1)), again)
        return picked

    def _next(self, values: Values, rest: Sequence[int], others: Sequence[int], count: int) -> list[_Picked]:
        """Place, of the terms left, one or two at a time, those that lower the cost most, at their best distinct candidates."""
        if not rest:
            return [_Picked(0.0, values)]
        kinds = {tuple(self._kind(k) for k in step): step for step in reversed(self._steps(rest))}
        options = [self._placing(step, values, others, count) for step in reversed(kinds.values())]
        return min(options, key=lambda picks: picks[0].cost)

    def _steps(self, terms: Sequence[int]) -> list[tuple[int, ...]]:
        """Say which terms are chosen together: two of those that have one column, any other alone."""
        simple = [k for k in terms if self._is_simple(k)]
        pairs: list[tuple[int, ...]] = list(itertools.combinations(simple, 2))
        alone = [k for k in terms if k not in simple or not pairs]
        return [*pairs, *((k,) for k in alone)]

    def _placing(self, step: tuple[int, ...], values: Values, others: Sequence[int], count: int) -> list[_Picked]:
        return self._place(step[0], values, others, count) if len(step) == 1 else self._pair(step, values, others, count)

    def _pair(self, step: tuple[int, ...], values: Values, others: Sequence[int], count: int) -> list[_Picked]:
        r"""Choose two terms of one column each together: of unit columns a, b with :math:`\rho = a \cdot b` a pair takes

        .. math:: ((a \cdot r)^2 + (b \cdot r)^2 - 2 \rho\, (a \cdot r)(b \cdot r)) / (1 - \rho^2)

        from the sum of squares of what is left, r.
        """
        rest, basis = self._others(others, values)
        sides = [self._side(self.terms[k].leaves[0], rest, basis) for k in step]
        (first, a, left), (second, b, right) = sides
        overlap = left @ right.T
        room = 1 - overlap**2
        gain = (a[:, None] ** 2 + b**2 - 2 * overlap * np.outer(a, b)) / np.where(room > APART, room, np.inf)
        if self._kind(step[0]) == self._kind(step[1]):
            gain[np.tril_indices_from(gain)] = 0.0  # the two may be exchanged
        order = np.argsort(-gain, axis=None, kind="stable")[: LOOKED_AT if count > 1 else 1]
        places = np.stack(np.unravel_index(order, gain.shape), axis=1)
        chosen: list[Any] = []
        for i, j in places:
            near = (left[[k for k, _ in chosen]] @ left[i], right[[k for _, k in chosen]] @ right[j]) if chosen else ()
            if len(chosen) < count and not (chosen and bool(np.any(np.minimum(*np.abs(near)) > NEAR))):
                chosen.append((i, j))
        total = float(rest @ rest)
        return [
            _Picked(
                total - float(gain[i, j]),
                values
                | {name: float(column[i]) for name, column in first.items()}
                | {name: float(column[j]) for name, column in second.items()},
            )
            for i, j in chosen
        ]

    def _side(self, leaf: Leaf, rest: Floats, basis: Floats) -> tuple[dict[str, Floats], Floats, Floats]:
        """Give the best candidates of one of a pair, what of the rest lies along each, and their unit columns."""
        grid = self._grid(leaf)
        _, columns = self._basis(leaf, leaf, grid, (0, len(next(iter(grid.values())))))
        columns = without(np.nan_to_num(columns[:, 0], posinf=0.0, neginf=0.0), basis)
        length = np.linalg.norm(columns, axis=1)
        columns = columns / np.where(length > math.sqrt(FLAT), length, np.inf)[:, None]
        along = columns @ rest
        order = np.argsort(-np.abs(along), kind="stable")[:MOST_OF_PAIR]
        return {name: column[order] for name, column in grid.items()}, along[order], columns[order]

    def _place(self, k: int, values: Values, others: Sequence[int], count: int) -> list[_Picked]:
        """Choose the nonlinear parameters of term k, given those of the others: the best ``count`` distinct ones."""
        leaves = [leaf for leaf in self.terms[k].leaves if leaf.nonlinear]
        if len(leaves) == 1:
            return self._distinct(k, leaves[0], values, others, count)
        picks = []
        for draw in self._draws(leaves):
            picked = _Picked(math.inf, values | draw)
            for leaf in [*leaves, *leaves]:
                found = self._distinct(k, leaf, picked.values, others, 1)[0]
                picked = min(picked, found, key=lambda each: each.cost)
            picks.append(picked)
        unlike = {round(pick.cost, 12): pick for pick in picks}
        return sorted(unlike.values(), key=lambda each: each.cost)[:count]

    def _draws(self, leaves: Sequence[Leaf]) -> Iterator[Values]:
        """Draw candidates of all factors, seeded."""
        generator = np.random.default_rng(0)
        for _ in range(DRAWS):
            drawn: Values = {}
            for leaf in leaves:
                grid = self._grid(leaf)
                place = generator.integers(len(next(iter(grid.values()))))
                drawn |= {name: float(column[place]) for name, column in grid.items()}
            yield drawn

    def _distinct(self, k: int, leaf: Leaf, values: Values, others: Sequence[int], count: int) -> list[_Picked]:
        """Scan one shape of a term; of the best candidates keep those whose curves differ."""
        grid = self._grid(leaf)
        basis = self._others(others, values)
        cost, _ = self._scanned(k, values, grid, basis, whole=leaf)
        order = np.argsort(cost, kind="stable")[:LOOKED_AT]
        chosen = order[:1]
        if count > 1 and math.isfinite(cost[order[0]]):
            near = {name: column[order] for name, column in grid.items()}
            _, fits = self._scanned(k, values, near, basis, fits=True)
            fits /= np.maximum(np.linalg.norm(fits, axis=1, keepdims=True), np.finfo(float).tiny)
            chosen = order[_unlike_curves(fits[np.isfinite(cost[order])], count)]
        return [
            _Picked(float(cost[place]), values | {name: float(column[place]) for name, column in grid.items()})
            for place in chosen
        ]

    def _branched(self, picks: Sequence[_Picked]) -> list[_Picked]:
        """Give picks, and others of nearly the same curve: of several shapes like branches together, and each with the next ones of the others."""
        found = []
        for picked in picks:
            own = [
                branches for leaf in self._leaves(self._placed(picked.values)) if (branches := leaf.branched(picked.values))[1:]
            ]
            most = max(map(len, own), default=1)
            for shift, place in itertools.product(range(max(len(own), 1)), range(most)):
                values = picked.values
                for k, branches in enumerate(own):
                    values = values | branches[(place + k * shift) % len(branches)]
                found.append(_Picked(picked.cost, values))
        return found

    def _descended(self, picks: Sequence[_Picked], count: int) -> list[_Picked]:
        """Go down from all picks and their branches side by side, after some steps from the lowest ``count`` only.

        Gauss-Newton steps on the projected residual in all nonlinear parameters together, several dampings tried at once. Derivatives
        are differences, in steps of the scan.
        """
        placed = self._placed(picks[0].values)
        terms, leaves = [*self._still, *placed], self._leaves(placed)
        size = sum(len(leaf.nonlinear) for leaf in leaves)
        if not size:
            return list(picks)
        cost, values = _stacked(self._branched(picks))
        going = np.arange(len(cost))
        probes = np.concatenate([np.zeros((1, size)), PROBE * np.eye(size), -PROBE * np.eye(size)])
        for step in range(min(2 ** (size + 1), MOST_DESCENTS)):
            if step == RACED + size:
                going = going[np.isin(going, _lowest(cost, values, max(count, len(cost) // 3)))]
            if not going.size:
                break
            here = {name: column[going] for name, column in values.items()}
            _, residuals = self._residuals(here, leaves, np.broadcast_to(probes, (len(going), *probes.shape)), terms)
            cost[going] = _squares(residuals[:, 0])
            slopes = (residuals[:, 1 : size + 1] - residuals[:, size + 1 :]) / (2 * PROBE)
            moved, after = self._residuals(here, leaves, _steps_down(slopes, residuals[:, 0]), terms)
            costs = _squares(after)
            best = np.arange(len(going)), np.argmin(costs, axis=1)
            lower = np.minimum(costs[best], cost[going])
            gained = costs[best] < cost[going]
            enough = lower < cost[going] * (1 - ENOUGH)
            cost[going] = lower
            for name, column in moved.items():
                values[name][going[gained]] = column[best][gained]
            going = going[enough]
        kept = _lowest(cost, values, count)
        return [_Picked(float(cost[k]), {name: float(column[k]) for name, column in values.items()}) for k in kept]

    def _leaves(self, terms: Sequence[int]) -> list[Leaf]:
        """Give the shapes of some terms that have nonlinear parameters."""
        return [leaf for k in terms for leaf in self.terms[k].leaves if leaf.nonlinear]

    def _residuals(
        self, values: Mapping[str, Floats], leaves: Sequence[Leaf], steps: Floats, terms: Sequence[int]
    ) -> tuple[dict[str, Floats], Floats]:
        """Give K values some steps on, (K, S) each, and what of y is left there by all terms placed, (K, S, n); NaN where that is not finite."""
        moved: dict[str, Floats] = {}
        at = 0
        for leaf in leaves:
            count = len(leaf.nonlinear)
            moved |= leaf.moved(values, steps[..., at : at + count], self.window)
            at += count
        flat = {name: column.ravel() for name, column in moved.items()}
        whole = SumNode([self.terms[k] for k in terms]) if len(terms) > 1 else self.terms[terms[0]]
        offset, columns = whole.basis(self.window.x, flat, screen=True)
        weight = self.window.weight
        y = self.window.scaled if offset is None else self.window.scaled - offset / self.window.height * weight
        found = directions(unit(columns * weight), np.empty((0, self.window.n)))
        with np.errstate(all="ignore"):
            left = y - curves(along(y, found), found)
        finite = np.all(np.isfinite(list(moved.values())), axis=0)  # an infinite decay is a constant, but no start
        return moved, np.where(finite[..., None], left.reshape(*steps.shape[:2], -1), math.nan)

    # Linear algebra.

    def _others(self, terms: Sequence[int], values: Values) -> tuple[Floats, Floats]:
        """Give what is left of y without the other terms' offsets, and an orthonormal basis of their columns, (m, n)."""
        y = self.window.scaled
        found = []
        for k in terms:
            offset, columns = self.terms[k].basis(self.window.x, values)
            y = y if offset is None else y - offset[0] / self.window.height * self.window.weight
            found.append(columns[0] * self.window.weight)
        matrix = unit(np.concatenate(found)) if found else np.empty((0, self.window.n))
        if not len(matrix):
            return y, matrix
        _, sizes, basis = np.linalg.svd(np.nan_to_num(matrix), full_matrices=False)
        basis = basis[sizes > FLAT * sizes[0]]
        return y - (y @ basis.T) @ basis, basis

    def _scanned(
        self,
        k: int,
        values: Values,
        grid: Mapping[str, Floats],
        others: tuple[Floats, Floats],
        *,
        whole: Leaf | None = None,
        fits: bool = False,
    ) -> tuple[Floats, Floats]:
        """Give for each candidate of term k the sum of squares, (G,), and with ``fits`` the curve that the term adds, (G, n).

        ``whole`` names the shape whose whole scan this is, which is kept.
        """
        rest, basis = others
        size = len(next(iter(grid.values())))
        chunk = max(1, MOST_NUMBERS // (self.window.n * max(1, self.terms[k].width)))
        costs: list[Floats] = []
        found: list[Floats] = [np.empty((0, self.window.n))]
        for begin in range(0, size, chunk):
            part = {name: column[begin : begin + chunk] for name, column in grid.items()}
            offset, columns = self._basis(self.terms[k], whole, values | part, (begin, begin + chunk))
            left = rest if offset is None else rest - without(offset, basis)
            own = directions(columns, basis)
            with np.errstate(all="ignore"):
                parts = along(left, own)
                cost = np.einsum("...n,...n->...", left, left) - np.einsum("gm,gm->g", parts, parts)
            costs.append(np.where(np.isfinite(cost), cost, math.inf))
            if fits:
                found.append(curves(parts, own))
        return np.concatenate(costs), np.concatenate(found)

    def _basis(self, term: Node, whole: Leaf | None, values: Values, part: tuple[int, int]) -> tuple[Floats | None, Floats]:
        """Give a term's offset and columns, weighted; those of a shape's whole scan are kept."""
        key = (whole.key, part) if whole is term and whole is not None else None
        if key is not None and key in self._columns:
            return self._columns[key]
        offset, columns = term.basis(self.window.x, values, screen=True)
        weight = self.window.weight
        found = (None if offset is None else offset / self.window.height * weight), unit(columns * weight)
        if key is not None:
            self._columns[key] = found
        return found

    def _linear(self, picks: Sequence[_Picked], *, screen: bool) -> list[dict[str, float]]:
        """Give all linear parameters of picks, given the others."""
        count, width = len(picks), self.node.width
        _, values = _stacked(picks)
        offset, columns = self.node.basis(self.window.x, values, screen=screen)
        y = self.window.scaled if offset is None else self.window.scaled - offset / self.window.height * self.window.weight
        matrix = np.broadcast_to(columns, (count, width, self.window.n)) * self.window.weight
        sizes = np.abs(matrix).max(axis=2, initial=0.0)
        sizes[sizes == 0] = 1.0
        with np.errstate(all="ignore"):
            inverse = np.linalg.pinv(np.nan_to_num(matrix / sizes[..., None]), rcond=FLAT)
            solved = along(y, inverse.swapaxes(1, 2)) * (self.window.height / sizes)
            return [self.node.unpack(row) for row in solved]

    # What is made once.

    def _grid(self, leaf: Leaf) -> dict[str, Floats]:
        if leaf.key not in self._candidates:
            found = leaf.candidates(self.window)
            self._candidates[leaf.key] = {name.removeprefix(leaf.prefix): column for name, column in found.items()}
        return {leaf.prefix + name: column for name, column in self._candidates[leaf.key].items()}

    def _placed(self, values: Values) -> list[int]:
        """Give the moving terms whose nonlinear parameters are chosen."""
        wanted = {k: [leaf.prefix + name for leaf in self.terms[k].leaves for name in leaf.nonlinear] for k in self.moving}
        return [k for k, names in wanted.items() if all(name in values for name in names)]

    def _unlike(self, terms: Sequence[int]) -> list[int]:
        """Of terms that are alike but for their names, the first."""
        return sorted({self._kind(k): k for k in reversed(terms)}.values())

    def _kind(self, k: int) -> tuple[Any, ...]:
        """Tell terms apart that differ by more than the names of their parameters."""
        return tuple(leaf.key for leaf in self.terms[k].leaves)

    def _is_simple(self, k: int) -> bool:
        term = self.terms[k]
        return isinstance(term, Leaf) and term.width == 1 and not has_offset(term)
