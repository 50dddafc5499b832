r"""What the data do not determine, in words that are true.

The Jacobian says along which directions no prediction changes to first order: at :math:`a = b` the direction (1, -1) fits both a + b
and a b. So each form that fits the direction is tried out: far along the family it claims, the predictions must stay what they are,
while the same change of one parameter alone must move them. Forms of two quantities,

.. math:: c_1\,\varphi_1(u) + c_2\,\varphi_2(v), \qquad \varphi \in \{u,\; \ln u,\; e^u,\; u^2,\; 1/u,\; \ln\ln u\}

are u + v, u v, u/v, u exp(v), exp(u) + v, u² + v², 1/u + 1/v, u**v and so on. Where one is true the two become one quantity, and the
search goes on with it: a, b, c of :math:`(a + b)\,c\,x` become (a + b)*c. Directions that take three quantities at once are tried as sums and
as products. What is left has no form that was found, and is told by its derivative, near the values of the fit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from gradfit.errors import ModelError
from gradfit.statistics.forms import ANY_COEFFICIENT, LOG, PAIRS, PLAIN, Form, Pair, Quantity, pair_detail, parameter, sum_text
from gradfit.statistics.wording import MOST_NAMED, listed, some
from gradfit.typing import Floats

Predict = Callable[[Floats], Floats]
ALIKE = 1e-6  # two columns of J that differ by less, as a share of their norm, may be one
WHOLE = 1e-6  # relative; a coefficient that near to a simple fraction is tried as one
DENOMINATORS = 12
UNCHANGED = 1e-9  # of the predictions and of what one parameter alone does to them, for an exact form
CHANGED = 1e3  # times that, what one parameter alone must do
MOVES = ((2.5, 0.0), (0.4, 0.0), (1.0, 1.5), (1.0, -0.7), (1.3, 0.0), (1.0, 0.3))  # factor and shift, in units of the value
ENOUGH = 2  # moves that must have been possible
SMALLEST = 1e-100  # of coefficients
MOST_MIXED = 4  # quantities of which every mixture of sums and logarithms is tried
MOST_INVOLVED = 40


@dataclass(frozen=True)
class Undetermined:
    """Parameters that the data determine only together, or not at all.

    Attributes
    ----------
    members
        Their places among the parameters examined.
    reason
        Why none of them has an error: "only a + b is determined by the data".
    detail
        What that means: "a can rise by any amount while b falls by as much"; or "".
    """

    members: tuple[int, ...]
    reason: str
    detail: str = ""


def undetermined(
    predict: Predict, jacobian: Floats, theta: Floats, names: Sequence[str], null: Floats, *, error: float
) -> tuple[Undetermined, ...]:
    """Say of each group of parameters that hang together what of them is determined.

    Parameters
    ----------
    predict, jacobian
        Predictions at a theta, (n,), which may raise `ModelError`; and their derivative at the fit, (n, p).
    theta, names
        Where the fit ended, (p,).
    null
        Undetermined directions in units of the scaled parameters, (p, k).
    error
        Relative error of the Jacobian.
    """
    with np.errstate(all="ignore"):  # far from the fit a model may overflow
        world = _World(predict, theta, error)
        return tuple(_explained(world, group, names, jacobian) for group in _groups(null))


@dataclass
class _World:
    """The model, to be tried out."""

    given: Predict
    theta: Floats
    error: float

    def __post_init__(self) -> None:
        self.here = self.predict(self.theta)
        self.tolerance = max(UNCHANGED, 1e3 * self.error)

    def predict(self, theta: Floats) -> Floats:
        try:
            return self.given(theta)
        except ModelError:
            return np.full(1, math.nan)

    def stays(self, alone: Floats, both: Floats) -> bool | None:
        """Whether predictions stay when both change, and would not if one did; None where the model has no value there."""
        effect, change = (np.abs(self.predict(point) - self.here) for point in (alone, both))
        if not (np.isfinite(effect).all() and np.isfinite(change).all()):
            return None
        size = np.abs(self.here).max()
        if change.max() > self.tolerance * (size + effect.max()):
            return False
        return True if effect.max() > CHANGED * self.tolerance * size else None


def _groups(null: Floats) -> list[list[int]]:
    """Parameters that some undetermined direction joins, by the sparsest basis that elimination gives."""
    reduced = _eliminated(null.T)
    groups: list[set[int]] = []
    for row in reduced:
        mine = set(np.flatnonzero(row).tolist())
        touched = [group for group in groups if group & mine]
        groups = [group for group in groups if not group & mine] + [mine.union(*touched)]
    return sorted(sorted(group) for group in groups if group)


def _eliminated(rows: Floats, tolerance: float = 1e-7) -> Floats:
    """Reduced row echelon form with full pivoting; what is below the tolerance is 0."""
    work = np.array(rows, dtype=np.float64)
    done: list[int] = []
    for _ in range(len(work)):
        open_rows = [index for index in range(len(work)) if index not in done]
        part = np.abs(work[open_rows])
        if not part.size or part.max() <= tolerance:
            break
        row, column = np.unravel_index(int(part.argmax()), part.shape)
        pivot = open_rows[int(row)]
        work[pivot] /= work[pivot, column]
        for other in range(len(work)):
            if other != pivot:
                work[other] -= work[other, column] * work[pivot]
        done.append(pivot)
    work = work[done]
    work[np.abs(work) <= tolerance * np.abs(work).max(axis=1, keepdims=True, initial=1.0)] = 0.0
    return work


# --- one group ----------------------------------------------------------------------------------------------------------


def _explained(world: _World, group: Sequence[int], names: Sequence[str], jacobian: Floats) -> Undetermined:
    members = tuple(group)
    if len(group) == 1:
        return Undetermined(members, *_idle(world, jacobian, names, group[0]))
    if len(group) > MOST_INVOLVED:
        return Undetermined(members, f"the data do not determine {some([names[place] for place in group])} one by one")
    quantities = [parameter(names[place], place, jacobian[:, place]) for place in group]
    joined: Pair | None = None
    while (found := _true_pair(world, quantities)) is not None:
        joined, merged = found, found.merged(world.theta)
        if not np.isfinite(merged.column).all():
            return Undetermined(members, _near(world, quantities, group, names))
        place = quantities.index(found.first)
        quantities = [
            merged if index == place else quantity
            for index, quantity in enumerate(quantities)
            if index == place or quantity is not found.second
        ]
    if _deficit(quantities, world.error) == 0:
        texts = [quantity.text for quantity in quantities if len(quantity.members) > 1]
        detail = pair_detail(joined) if joined is not None and len(group) == 2 else "each can change if the others make up for it"
        return Undetermined(members, _only(texts, world, group, names), detail)
    several = _true_sums(world, quantities)
    if several is not None:
        return Undetermined(members, _only(several, world, group, names), "each can change if the others make up for it")
    return Undetermined(members, _near(world, quantities, group, names))


def _only(texts: Sequence[str], world: _World, group: Sequence[int], names: Sequence[str]) -> str:
    """Word what is determined; the names alone where the forms are long."""
    texts = sorted(texts, key=len)
    if not texts:
        return f"the data do not determine {some([names[place] for place in group])}"
    if len(group) > MOST_NAMED:
        count = "one combination" if len(texts) == 1 else f"{len(texts)} combinations"
        return f"only {count} of {some([names[place] for place in group])} {'is' if len(texts) == 1 else 'are'} determined by the data"
    return f"only {listed(texts)} {'is' if len(texts) == 1 else 'are'} determined by the data"


def _deficit(quantities: Sequence[Quantity], error: float) -> int:
    """How many directions of these quantities move no prediction."""
    columns = np.column_stack([quantity.column for quantity in quantities])
    return len(quantities) - len(_row_space(columns, error))


def _row_space(columns: Floats, error: float) -> Floats:
    """Combinations of the quantities that their columns, (n, count), tell apart, (rank, count), by the sparsest basis."""
    norms = np.linalg.norm(columns, axis=0)
    norms = np.where(norms > 0, norms, 1.0)
    _, values, right = np.linalg.svd(columns / norms, full_matrices=False)  # U of all rows by all rows would fill the memory
    limit = min(1e3 * math.sqrt(columns.shape[1]) * error, ALIKE)
    return _eliminated(right[: int((values > limit).sum())]) * norms


def _true_pair(world: _World, quantities: Sequence[Quantity]) -> Pair | None:
    """The first form of two quantities that holds far from the fit; of all pairs, one with simple coefficients first."""
    alike = [(first, second, ratio) for first, second in itertools.combinations(quantities, 2)
             if (ratio := _ratio(world, first, second)) is not None]  # fmt: skip
    for simple in (True, False):
        for first, second, ratio in alike:
            for candidate in _candidates(first, second, ratio, world.theta, simple=simple):
                if _holds(world, candidate):
                    return candidate
    return None


def _ratio(world: _World, first: Quantity, second: Quantity) -> float | None:
    """How much more the second moves the predictions than the first; None where they do not move them alike."""
    sizes = float(np.linalg.norm(first.column)), float(np.linalg.norm(second.column))
    if not (0 < sizes[0] < math.inf and 0 < sizes[1] < math.inf):
        return None
    ratio = float((first.column / sizes[0]) @ (second.column / sizes[1])) * sizes[1] / sizes[0]
    off = float(np.linalg.norm(second.column - ratio * first.column))
    return ratio if off <= max(ALIKE, 10 * world.error) * sizes[1] else None


def _candidates(first: Quantity, second: Quantity, ratio: float, theta: Floats, *, simple: bool) -> Iterator[Pair]:
    """Forms whose derivative is that of the predictions, with simple coefficients or with any."""
    for forms in PAIRS:
        slopes = [form.slope(quantity.value(theta)) for form, quantity in zip(forms, (first, second), strict=True)]
        if not all(math.isfinite(slope) and slope != 0 for slope in slopes):
            continue
        relative = ratio * slopes[0] / slopes[1]
        if not SMALLEST < abs(relative) < 1 / SMALLEST:
            continue
        near = Fraction(relative).limit_denominator(DENOMINATORS)
        is_simple = 0 < abs(near) <= DENOMINATORS and abs(float(near) / relative - 1) <= WHOLE
        if simple and is_simple:
            yield Pair(first, second, forms, (float(near.denominator), float(near.numerator)))
        elif not simple and not is_simple and forms in ANY_COEFFICIENT:
            sign = math.copysign(1.0, relative)
            yield Pair(first, second, forms, (1.0, relative) if abs(relative) >= 1 else (abs(1 / relative), sign))


def _holds(world: _World, pair: Pair) -> bool:
    """Try a form out along its family."""
    held = 0
    here = pair.first.value(world.theta)
    size = abs(here) if here != 0 else 1.0
    for factor, shift in MOVES:
        points = pair.along(world.theta, factor * here + shift * size)
        stays = None if points is None else world.stays(*points)
        if stays is False:
            return False
        held += stays is True
    return held >= ENOUGH


# --- three and more at once ---------------------------------------------------------------------------------------------


def _true_sums(world: _World, quantities: Sequence[Quantity]) -> list[str] | None:
    """Texts of the sums and products of several quantities that are determined; None where none was found to hold."""
    if not all(np.isfinite(quantity.column).all() for quantity in quantities):
        return None
    count = len(quantities)
    uniform = [(PLAIN,) * count, (LOG,) * count]
    mixed = list(itertools.product((PLAIN, LOG), repeat=count)) if count <= MOST_MIXED else []
    for forms in [*uniform, *(forms for forms in mixed if forms not in uniform)]:
        texts = _sums(world, quantities, forms)
        if texts is not None:
            return texts
    return None


def _sums(world: _World, quantities: Sequence[Quantity], forms: Sequence[Form]) -> list[str] | None:
    values = [quantity.value(world.theta) for quantity in quantities]
    slopes = np.array([form.slope(value) for form, value in zip(forms, values, strict=True)])
    if not (np.isfinite(slopes).all() and (slopes != 0).all()):
        return None
    columns = np.column_stack([quantity.column for quantity in quantities]) / slopes
    rows = np.array([_simple(row) for row in _row_space(columns, world.error)])
    if not len(rows):  # nothing of them is determined
        return None
    null = np.linalg.svd(rows)[2][len(rows) :]
    # Each direction by itself, and all together: a product is straight along each factor.
    together = np.random.default_rng(0).choice([-1.0, 1.0], (3, len(null))) @ null
    if not all(_stays_along(world, quantities, forms, direction) for direction in [*null, *together]):
        return None
    return [sum_text(quantities, forms, row) for row in rows if np.count_nonzero(row) > 1]


def _stays_along(world: _World, quantities: Sequence[Quantity], forms: Sequence[Form], direction: Floats) -> bool:
    """Try a direction out with large steps of all quantities."""
    values = [quantity.value(world.theta) for quantity in quantities]
    levels = [form.of(value) for form, value in zip(forms, values, strict=True)]
    sizes = [1.0 if form is LOG else (abs(value) or 1.0) for form, value in zip(forms, values, strict=True)]
    unit = max(abs(step) / size for step, size in zip(direction, sizes, strict=True))
    held = 0
    for length in (0.8, -0.6, 0.3, -1.7):
        there: Floats | None = world.theta
        alone: Floats | None = None
        for quantity, form, level, step, value in zip(quantities, forms, levels, direction, values, strict=True):
            if step != 0 and there is not None:
                there = quantity.moved(there, form.back(level + length * step / unit, value))
                alone = there if alone is None else alone
        stays = None if there is None or alone is None else world.stays(alone, there)
        if stays is False:
            return False
        held += stays is True
    return held >= ENOUGH


def _simple(row: Floats) -> Floats:
    """Scale the coefficients of a sum: to small whole numbers where that goes, else so that the smallest is 1."""
    size = np.abs(row[row != 0])
    scaled = row / size.min()
    fractions = [Fraction(float(entry)).limit_denominator(DENOMINATORS) for entry in scaled]
    if all(abs(float(f) - entry) <= WHOLE * abs(entry) for f, entry in zip(fractions, scaled, strict=True)):
        common = math.lcm(*(fraction.denominator for fraction in fractions))
        whole = [int(fraction * common) for fraction in fractions]
        if max(map(abs, whole)) <= DENOMINATORS**2:
            scaled = np.array(whole, dtype=np.float64) / math.gcd(*whole)
    first = scaled[np.flatnonzero(scaled)[0]]
    return np.asarray(scaled if first > 0 else -scaled)


# --- words --------------------------------------------------------------------------------------------------------------


def _near(world: _World, quantities: Sequence[Quantity], group: Sequence[int], names: Sequence[str]) -> str:
    """What holds to first order only."""
    columns = np.column_stack([quantity.column for quantity in quantities])
    space = _row_space(columns, world.error) if np.isfinite(columns).all() and len(group) <= MOST_NAMED else ()
    if not 0 < len(space) <= 2:
        return f"the data do not determine {some([names[place] for place in group])} one by one"
    rows = [row / row[np.abs(row).argmax()] for row in space]
    texts = [sum_text(quantities, (PLAIN,) * len(quantities), row) for row in rows]
    return f"only {listed(texts)} {'is' if len(texts) == 1 else 'are'} determined by the data, near these values"


def why_idle(predict: Predict, jacobian: Floats, theta: Floats, names: Sequence[str], place: int) -> tuple[str, str]:
    """Say of a parameter that moves no prediction: always, because of another one, or only by small steps; and what that means."""
    with np.errstate(all="ignore"):
        return _idle(_World(predict, theta, 0.0), jacobian, names, place)


def _idle(world: _World, jacobian: Floats, names: Sequence[str], place: int) -> tuple[str, str]:
    theta, name = world.theta, names[place]
    size = float(np.abs(world.here).max(initial=0.0))
    idle = np.abs(theta) * np.linalg.norm(jacobian, axis=0) <= world.tolerance * size
    for other in np.flatnonzero(idle).tolist():
        woken = theta.copy()
        woken[other] = 1.0
        if other != place and _has_effect(world, woken, place):
            return f"{name} has no influence because {names[other]} is {theta[other]:.3g}", ""
    if _has_effect(world, theta, place):
        return f"a small change of {name} changes no prediction", "its derivative is 0, so that nothing tells its error"
    return f"{name} has no influence on the predictions here", ""


def _has_effect(world: _World, theta: Floats, place: int) -> bool:
    """Whether a large change of one parameter changes a prediction."""
    here = world.predict(theta)
    size = float(np.abs(here).max(initial=0.0))
    for factor, shift in MOVES:
        there = theta.copy()
        there[place] = factor * theta[place] + shift * (abs(theta[place]) or 1.0)
        change = np.abs(world.predict(there) - here)
        if np.isfinite(change).all() and change.max(initial=0.0) > CHANGED * world.tolerance * size:
            return True
    return False
