r"""The nearest point of a model to a row with errors in x and y.

A row whose inputs x have deviations :math:`s_j` and whose target y has deviation :math:`\sigma` is compared with the nearest point of
the model. With :math:`d_j = s_j u_j`,

.. math:: g^2 = \min_u \; r^2/\sigma^2 + \lVert u \rVert^2, \qquad r = f(x + d; \theta) - y .

At the minimum :math:`u = -\lambda a` with :math:`a_j = s_j\,\partial f/\partial x_j` and :math:`\lambda = r/\sigma^2`, so that

.. math::

    g = \frac{r - a \cdot u}{\sqrt{\sigma^2 + a \cdot a}}, \qquad
    \frac{\partial g}{\partial\theta} = \frac{1}{\sqrt{\sigma^2 + a \cdot a}} \frac{\partial f}{\partial\theta}(x + d)

with the sign of r. The derivative is exact: at its minimum over u the square does not depend on u to first order (the envelope
theorem). :math:`J^TJ` of these rows is what is left of the normal equations of all unknowns, parameters and d, when the d are
eliminated: parameters and their errors are those of the fit that moves all of them at once.

Where :math:`\sigma = 0` the target is exact, and the nearest point has to lie on the model, r = 0. Both are one problem in u and its
multiplier :math:`\lambda`, solved by Newton's method. It begins at the same d whatever the parameters, so that g is a function of them:
at 0, unless somebody knows better (``origin``).

Everything here is arithmetic on one look at many rows. It is written once for numpy arrays and for
:class:`~gradfit.compiler.values.Value`, which compile it: ``on`` is the module whose ``where``, ``sqrt``, ``abs`` and so on are meant.

References
----------
Boggs, Byrd, Schnabel, *A stable and efficient algorithm for nonlinear orthogonal distance regression*, SIAM J. Sci. Stat. Comput. 8,
1987; Fuller, *Measurement Error Models*, 1987, section 3.2; Nocedal, Wright, *Numerical Optimization*, 2nd ed., sections 15.4 and 18.3
(exact penalty, augmented systems).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

MOST = 60  # looks at the model; a row that is none the nearer then keeps what it has
SETTLED = 1e-5  # in deviations of x: of the step whose end is not looked at. Newton's leaves the square of it, and of that the square in g
SETTLED_WITHOUT_CURVATURE = 1e-9  # of steps that leave a share of themselves
SHARE = 0.01  # of a.a beside sigma² in the weight of the augmented system
DEFINITE = 1e-3  # pivots from which the curvature of the model may be used
SHORTEST = 2.0**-30  # part of a step

Many = Any  # numbers of many rows, as an array or as a Value


@dataclass(frozen=True)
class Look:
    """The model at x + d, for many rows.

    Attributes
    ----------
    prediction
        f.
    slope
        a, q of them.
    curvature
        H, second derivatives by u: the lower triangle, row after row.
    curved
        Whether H is known.
    """

    prediction: Many
    slope: Sequence[Many]
    curvature: Sequence[Sequence[Many]]
    curved: bool = True


class Cells(Protocol):
    """Numbers of each row that are kept from one look to the next."""

    def __getitem__(self, name: str) -> Many:
        """Give those of all rows."""

    def update(self, rows: Many, **changes: Many) -> None:
        """Change them in some rows."""


def begin(on: Any, look: Look, moved: Sequence[Many], aim: Many, sigma: Many) -> dict[str, Many]:
    """Fill the cells from a first look, at the origin; the multiplier there is that of a model without curvature."""
    variance = sigma * sigma
    miss, size = look.prediction - aim, _dot(moved, moved)
    lam = (miss - _dot(look.slope, moved)) / (variance + _dot(look.slope, look.slope))
    steps, lam_step, usable, near = _newton(on, look, moved, lam, miss, variance)
    steep = 2.0 * on.abs(lam + lam_step)
    merit = size * 0.5 + _penalty(on, miss, variance, steep)
    cells = {"lam": lam, "lam_step": lam_step, "part": 1.0 + 0.0 * aim, "steepness": steep, "merit": merit}
    for j, (u, step) in enumerate(zip(moved, steps, strict=True)):
        cells |= {f"u{j}": on.where(near, u + step, u), f"step{j}": step}
    return cells | {"ended": near | ~usable, "found": near}


def trial(cells: Cells, q: int) -> list[Many]:
    """Where to look next: u."""
    return [cells[f"u{j}"] + cells["part"] * cells[f"step{j}"] for j in range(q)]


def advance(on: Any, cells: Cells, look: Look, moved: Sequence[Many], aim: Many, sigma: Many) -> None:
    r"""Judge the point that was looked at, and find the next step.

    What may not rise is :math:`\tfrac12\lVert u \rVert^2 + h(r)`, with :math:`h = r^2/2\sigma^2` up to a slope :math:`\mu` and straight on from
    there: the penalty of a target that is missed. For :math:`\mu > |\lambda|` its minimum is that of the problem, also for sigma = 0.
    """
    variance = sigma * sigma
    miss = look.prediction - aim
    size, before, steep, part = _dot(moved, moved), cells["merit"], cells["steepness"], cells["part"]
    merit = size * 0.5 + _penalty(on, miss, variance, steep)
    better = merit <= before + 1e-14 * (before + steep * on.abs(look.prediction))
    going = ~cells["ended"]
    taken, refused = going & better, going & ~better
    lam = cells["lam"] + part * cells["lam_step"]
    steps, lam_step, usable, near = _newton(on, look, moved, lam, miss, variance)
    steep = on.maximum(steep, 2.0 * on.abs(lam + lam_step))
    merit = size * 0.5 + _penalty(on, miss, variance, steep)
    shorter = part * 0.5
    cells.update(refused, part=shorter)
    cells.update(taken, lam=lam, lam_step=lam_step, part=1.0, steepness=steep, merit=merit, found=near)
    for j, (u, step) in enumerate(zip(moved, steps, strict=True)):
        cells.update(taken, **{f"u{j}": on.where(near, u + step, u), f"step{j}": step})  # the last step is taken unseen
    cells.update(going, ended=(taken & (near | ~usable)) | (refused & (shorter < SHORTEST)))


def distance(on: Any, look: Look, moved: Sequence[Many], found: Many, aim: Many, sigma: Many) -> tuple[Many, Many]:
    """Signed distance g, and 1 / sqrt(σ² + a.a). Where the nearest point was not found, the distance of the one at hand."""
    variance = sigma * sigma
    weight = 1.0 / on.sqrt(variance + _dot(look.slope, look.slope))
    miss = look.prediction - aim
    near = (miss - _dot(look.slope, moved)) * weight

    def far() -> Many:
        size = on.sqrt(_dot(moved, moved) + miss * miss / variance)
        return on.where(miss < 0.0, -size, size)

    return on.rarely(~found, near, far), weight


def _penalty(on: Any, miss: Many, variance: Many, steep: Many) -> Many:
    bend = steep * variance  # from here on it is straight
    return on.where(on.abs(miss) < bend, miss * miss * (0.5 / variance), steep * (on.abs(miss) - bend * 0.5))


def _newton(
    on: Any, look: Look, moved: Sequence[Many], lam: Many, miss: Many, variance: Many
) -> tuple[list[Many], Many, Many, Many]:
    r"""Newton's step for u + λa = 0 and σ²λ = r: gives the changes of u and λ, whether they are numbers, and whether it is the last.

    With :math:`M = I + \lambda H` and the second equation :math:`\kappa a` times added to the first, which changes no solution,

    .. math::

        (M + \kappa aa^T)\,\delta u + (1 - \kappa\sigma^2)\, a\, \delta\lambda = -(u + \lambda a) - \kappa a\, r_0, \qquad
        \sigma^2 \delta\lambda - a \cdot \delta u = r_0 = r - \sigma^2\lambda .

    :math:`\kappa` makes the matrix positive definite near any minimum. Where it is not, far from one, H is left out (Gauss-Newton).
    """
    slope, q = look.slope, len(moved)
    if q == 1:
        return _newton_of_one(on, look, moved[0], lam, miss, variance)
    square = _dot(slope, slope)
    weight = 1.0 / (variance + SHARE * square)
    rest, open_part = miss - variance * lam, 1.0 - weight * variance
    aside = [u + lam * a + weight * rest * a for u, a in zip(moved, slope, strict=True)]
    matrix = [
        [lam * look.curvature[i][j] + weight * slope[i] * slope[j] + (1.0 if i == j else 0.0) for j in range(i + 1)]
        for i in range(q)
    ]
    factor, definite = _cholesky(on, matrix)

    def solved(right: Sequence[Many]) -> list[Many]:
        share = weight * _dot(slope, right) / (1.0 + weight * square)  # (I + κaa^T)⁻¹, where H is left out
        flat = [value - share * a for value, a in zip(right, slope, strict=True)]
        return [on.where(definite, a, b) for a, b in zip(_solved(factor, right), flat, strict=True)]

    along, across = solved(aside), solved(slope)
    lam_step = (rest - _dot(slope, along)) / (variance + open_part * _dot(slope, across))
    steps = [-(one + open_part * lam_step * other) for one, other in zip(along, across, strict=True)]
    return steps, lam_step, *_ends(on, look, moved, steps, lam_step, definite)


def _newton_of_one(on: Any, look: Look, u: Many, lam: Many, miss: Many, variance: Many) -> tuple[list[Many], Many, Many, Many]:
    r"""The same step for one u: by Cramer's rule, of the determinant :math:`\sigma^2 M + a^2`."""
    slope = look.slope[0]
    bent, square = 1.0 + lam * look.curvature[0][0], slope * slope
    definite = variance * bent + square > DEFINITE * (variance + square)
    bent = on.where(definite, bent, 1.0)
    over = 1.0 / (variance * bent + square)
    rest, aside = miss - variance * lam, u + lam * slope
    step, lam_step = -(variance * aside + slope * rest) * over, (bent * rest - slope * aside) * over
    return [step], lam_step, *_ends(on, look, [u], [step], lam_step, definite)


def _ends(on: Any, look: Look, moved: Sequence[Many], steps: Sequence[Many], lam_step: Many, definite: Many) -> tuple[Many, Many]:
    """Whether a step is of numbers, and whether it is so short that its end need not be looked at."""
    length, size = _dot(steps, steps), 1.0 + _dot(moved, moved)
    short = length <= SETTLED_WITHOUT_CURVATURE**2 * size
    if look.curved:
        short = short | (definite & (length <= SETTLED**2 * size))
    return on.abs(length + lam_step * lam_step) < float("inf"), short


def _cholesky(on: Any, matrix: Sequence[Sequence[Many]]) -> tuple[list[list[Many]], Many]:
    """Factor L of LL^T, with the inverse of its diagonal in place of it; and whether the matrix is safely positive definite."""
    factor: list[list[Many]] = []
    definite: Many = None
    for i, line in enumerate(matrix):
        row: list[Many] = []
        for j, left in enumerate(line):
            for k in range(j):
                left = left - row[k] * (factor[j][k] if j < i else row[k])
            row.append(left * factor[j][j] if j < i else left)
        sound = row[i] > DEFINITE
        definite = sound if definite is None else definite & sound
        row[i] = 1.0 / on.sqrt(on.where(sound, row[i], 1.0))
        factor.append(row)
    return factor, definite


def _solved(factor: Sequence[Sequence[Many]], right: Sequence[Many]) -> list[Many]:
    """Solve LL^T x = b."""
    found: list[Many] = []
    for i, row in enumerate(factor):
        left = right[i]
        for k in range(i):
            left = left - row[k] * found[k]
        found.append(left * row[i])
    for i in reversed(range(len(factor))):
        left = found[i]
        for k in range(i + 1, len(factor)):
            left = left - factor[k][i] * found[k]
        found[i] = left * factor[i][i]
    return found


def _dot(left: Sequence[Many], right: Sequence[Many]) -> Many:
    total = left[0] * right[0]
    for a, b in zip(left[1:], right[1:], strict=True):
        total = total + a * b
    return total
