r"""Findings: what the solution and its residuals say against a fit; a number each, and what to do.

Facts of the solution have a threshold and no chance in them:

============  ===================  =====================================================================================
kind          number               said beyond
============  ===================  =====================================================================================
correlation   |correlation| of two  0.999: a number rounded to two digits of its error is off by up to 0.05 errors, and the
              parameters           narrow direction of such a pair is :math:`\sqrt{1-0.999} = 0.03` errors wide
conditioning  condition of J,      :math:`1/\sqrt\epsilon`: half the digits of the arithmetic are lost
              columns scaled to 1
at bound      how far beyond it    a parameter on its bound
              the data would go
influence     leverage of a row    0.99: without it an error would be ten times as large
============  ===================  =====================================================================================

Tests of the residuals (:mod:`gradfit.statistics.residual_tests`) each have a share of 4%, the chance that clean data raise any of them;
and what is found must also be large enough to matter, since with many rows everything is significant:

====================  ======  ==========================================================================================
test                  share   and at least
====================  ======  ==========================================================================================
slow waves            0.5%    a tenth of the sum of squares
autocorrelation > 0   0.5%    0.1: the true errors of the parameters are then :math:`\sqrt{1.1/0.9} = 1.1` times those given
autocorrelation < 0   0.25%   0.1
runs of signs         0.25%   as few as autocorrelation 0.1 makes: :math:`\arccos(0.1)/\pi`, 6% fewer
outliers              0.75%
influence             0.25%   Cook's distance 1
non-normal            0.5%    skewness 0.5 or excess kurtosis 1
noise level           0.5%    errors off by a tenth: reduced chi-square below 0.81 or above 1.21
spread                0.5%    1.5 times the scatter in one third of the predictions as in another
====================  ======  ==========================================================================================

Rows that are outliers are told once: what comes after them looks at the other rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from gradfit.statistics import residual_tests as tests
from gradfit.statistics.residual_tests import Residuals
from gradfit.statistics.wording import some
from gradfit.typing import Floats

CORRELATED = 0.999
DECISIVE = 0.99  # leverage
ALLOTTED = {
    "waves": 0.005,
    "autocorrelation above": 0.005,
    "autocorrelation below": 0.0025,
    "runs": 0.0025,
    "outliers": 0.0075,
    "influence": 0.0025,
    "non-normal": 0.005,
    "noise level": 0.005,
    "spread": 0.005,
}
STRUCTURE = 0.1
DISTANCE = 1.0
SKEWNESS, KURTOSIS = 0.5, 1.0
LEVEL = (0.81, 1.21)
SPREAD = 1.5
BEYOND = 3.0  # standard errors beyond a bound from which the data contradict it

LEAST_DOF = 3  # below, residuals are nearly fixed by the fit
LEAST_NORMAL = 8  # degrees of freedom, and rows: fewer look normal whatever they are
PER_PARAMETER = 3  # rows from which a single decisive one is no matter of course
LEAST_COUNT = 1.0  # mean expected count from which Pearson's residuals can be judged
HALF = 0.5  # weight of a row, relative to the largest, below which a robust loss has bent
EXACT = 1e-10  # share of the signal below which residuals are rounding, in double precision
EXACT_SINGLE = 1e-6  # in single precision
RANK = 1e-14  # singular value, relative, of a direction in which no prediction changes
MOST_KEPT = 100  # rows
ROUNDS = 20  # of outliers found behind outliers


@dataclass(frozen=True)
class Finding:
    """Something that speaks against a fit, or against taking its numbers one by one.

    Attributes
    ----------
    kind
        "correlation", "conditioning", "at bound", "residual structure", "outliers", "influence", "non-normal", "noise level", "spread".
    number
        What was measured, see :mod:`gradfit.statistics.findings`; NaN for a bound against which the push is not known.
    threshold
        Beyond which it is told; NaN for a bound and for outliers, which have none.
    p_value
        Probability of it on clean data, for this kind alone; NaN where chance plays no part.
    parameters, rows
        Whom it concerns: names; rows as one counts them, from 1, the foremost first.
    text, advice
        What was found; what to do.
    """

    kind: str
    number: float
    threshold: float
    p_value: float
    parameters: tuple[str, ...]
    rows: tuple[int, ...]
    text: str
    advice: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text} {self.advice}"


@dataclass(frozen=True)
class Facts:
    """What findings are drawn from; the rows are those that were fitted.

    Attributes
    ----------
    names, theta, at_bound, bounds
        Free parameters; their values, (p,); which of them ended on a bound; their limits, (2, p).
    covariance
        (p, p), NaN where it cannot be vouched for.
    jacobian, residual
        Of the sum of squares that the loss is near, (n, p) and measured - predicted (n,); in units of sigma for least squares.
    difference
        Measured - predicted in units of sigma, (n,), whatever the loss.
    prediction, weight
        In units of the target, (n,); how much each row counted, relative to the others, (n,).
    x
        The input, where there is one column of it.
    rows
        Row of the source, from 0, (n,).
    kind
        Of loss: "least_squares", "robust", "likelihood"; any other has no residuals to test.
    absolute, correlated
        Whether sigma is a measured error, and whether it is a matrix: then a residual belongs to several rows.
    signal
        Root mean square of the target in units of sigma.
    error, single
        Relative error of J; whether data or model are in single precision.
    """

    names: tuple[str, ...]
    theta: Floats
    at_bound: np.ndarray
    bounds: Floats
    covariance: Floats
    jacobian: Floats = field(repr=False)
    residual: Floats = field(repr=False)
    difference: Floats = field(repr=False)
    prediction: Floats = field(repr=False)
    weight: Floats = field(repr=False)
    x: Floats | None = field(repr=False)
    rows: np.ndarray = field(repr=False)
    kind: str = "least_squares"
    absolute: bool = False
    correlated: bool = False
    signal: float = 1.0
    error: float = float(np.finfo(np.float64).eps)
    single: bool = False

    @cached_property
    def space(self) -> tuple[Floats, float]:
        """Q of the parameters within their bounds, (n, r), and the condition of their columns, scaled to 1."""
        inside = self.jacobian[:, ~self.at_bound]
        norms = np.linalg.norm(inside, axis=0)
        q, r = np.linalg.qr(inside / np.where(norms > 0, norms, 1.0))
        left, values, _ = np.linalg.svd(r, full_matrices=False)
        if not len(values):
            return q, 1.0
        kept = values > RANK * values[0]
        return q @ left[:, kept], float(values[0] / values[-1]) if values[-1] > 0 else math.inf

    @cached_property
    def residuals(self) -> Residuals:
        """Residuals of the sum of squares with the space they were fitted in."""
        return Residuals(self.residual, self.space[0])

    @property
    def testable(self) -> bool:
        """Whether the residuals are more than rounding and more than the parameters take up."""
        limit = (EXACT_SINGLE if self.single else EXACT) * self.signal
        return self.residuals.dof >= LEAST_DOF and math.sqrt(float(np.mean(self.difference**2))) > limit

    @cached_property
    def order(self) -> np.ndarray:
        """Rows in the order of the input; in that of the source where there are several inputs, or errors that mix rows."""
        source = np.argsort(self.rows, kind="stable")
        return source if self.x is None or self.correlated else source[np.argsort(self.x[source], kind="stable")]


def find(facts: Facts) -> tuple[Finding, ...]:
    """Look for everything that the loss allows to look for."""
    if not (np.isfinite(facts.jacobian).all() and np.isfinite(facts.residual).all() and np.isfinite(facts.difference).all()):
        return ()
    with np.errstate(all="ignore"):
        return (*_of_solution(facts), *_of_residuals(facts))


def _of_residuals(facts: Facts) -> Iterator[Finding]:
    if facts.kind not in _TESTS or not facts.testable:
        return
    yield from _TESTS[facts.kind](facts)


# --- the solution ---------------------------------------------------------------------------------------------------------


def _of_solution(facts: Facts) -> Iterator[Finding]:
    yield from _correlation(facts)
    yield from _conditioning(facts)
    yield from _at_bound(facts)


def _correlation(facts: Facts) -> Iterator[Finding]:
    """Tell of pairs of which neither number means much without the other; the strongest, and who else is in it."""
    errors = np.sqrt(np.diag(facts.covariance))
    matrix = np.nan_to_num(facts.covariance / np.outer(errors, errors), posinf=0.0, neginf=0.0)
    np.fill_diagonal(matrix, 0.0)
    close = np.abs(matrix) > CORRELATED
    if not close.any():
        return
    first, second = (int(place) for place in np.unravel_index(int(np.abs(matrix).argmax()), matrix.shape))
    others = [int(place) for place in np.flatnonzero(close.any(axis=0)) if place not in (first, second)]
    a, b = facts.names[first], facts.names[second]
    value = float(matrix[first, second])
    inflated = 1 / math.sqrt(max(1 - value**2, np.finfo(float).eps))
    text = f"{a} and {b} are correlated by {_correlated(value)}: the error of each is {inflated:.3g} times what it were if the other was known."
    if others:
        text += f" So are {some([facts.names[place] for place in others])} with others."
    yield Finding(
        "correlation",
        value,
        CORRELATED,
        math.nan,
        (a, b, *(facts.names[place] for place in others)),
        (),
        text,
        _apart(facts, first, second),
    )


def _apart(facts: Facts, first: int, second: int) -> str:
    """Say how two parameters may be told apart: a slope from its intercept by centring the input."""
    together = "Do not use one without the other: keep their covariance and more digits than the errors show, "
    if facts.x is not None:
        one, other = facts.jacobian[:, first], facts.jacobian[:, second]
        for slope, level in ((one, other), (other, one)):
            if np.allclose(slope, facts.x * level, rtol=1e-9, atol=0) and np.any(slope != 0):
                center = float(facts.x @ level**2 / (level @ level))
                return f"Measure the input from its middle, x - {center:.4g} for x: the same curve, and two numbers that can be told apart."
    return together + "or fix one, or take data where they act differently."


def _conditioning(facts: Facts) -> Iterator[Finding]:
    """Tell of lost digits; what is not determined at all is told by the errors that are not given."""
    undetermined = np.isnan(np.diag(facts.covariance)) & ~facts.at_bound
    limit = 1 / math.sqrt(facts.error)
    condition = facts.space[1]
    if undetermined.any() or not limit < condition < math.inf:
        return
    digits, lost = -math.log10(facts.error), math.log10(condition)
    text = f"the condition of the scaled Jacobian is {condition:.2g}: of {digits:.0f} digits {min(lost, digits):.0f} are lost in the parameters."
    advice = "Centre and scale the inputs, write the model in other parameters (orthogonal polynomials for powers), or fit fewer."
    inside = tuple(name for name, bound in zip(facts.names, facts.at_bound, strict=True) if not bound)
    yield Finding("conditioning", condition, limit, math.nan, inside, (), text, advice)


def _at_bound(facts: Facts) -> Iterator[Finding]:
    for place in np.flatnonzero(facts.at_bound).tolist():
        name, value = facts.names[place], float(facts.theta[place])
        step, push = _push(facts, place)
        low, high = facts.bounds[:, place].tolist()
        outward = push if low == high else -push if abs(value - low) <= abs(value - high) else push
        text = f"{name} ended on its bound {value:.6g} and has no error; the errors of the others hold for {name} at that value."
        if math.isfinite(push):
            text += f" Without the bound it would go to about {value + step:.3g}, {abs(push):.2g} standard errors away."
        if outward > BEYOND:
            advice = f"The data contradict the bound: look at the bound, the model, and the data, before {name} is believed."
        else:
            advice = f"Give {name} as a one-sided limit; if the bound is a guess and no law, widen it."
        yield Finding("at bound", outward, math.nan, math.nan, (name,), (), text, advice)


def _push(facts: Facts, place: int) -> tuple[float, float]:
    """How far a parameter would go without its bound, to first order: in its own unit, and in standard errors."""
    q = facts.space[0]
    column = facts.jacobian[:, place]
    apart = column - q @ (q.T @ column)
    norm = float(np.linalg.norm(apart))
    dof = len(column) - q.shape[1] - 1
    if norm <= 1e-8 * float(np.linalg.norm(column)) or dof < 1 or facts.kind not in _TESTS or not facts.testable:
        return math.nan, math.nan
    along = float(apart @ facts.residual) / norm
    known = facts.absolute or facts.kind == "likelihood"
    scale = 1.0 if known else math.sqrt(max(float(facts.residual @ facts.residual) - along**2, 0.0) / dof)
    return along / norm, along / scale if scale > 0 else math.nan


# --- residuals of least squares ---------------------------------------------------------------------------------------------


def _least_squares(facts: Facts) -> Iterator[Finding]:
    """Test everything; what an earlier finding explains is not told again."""
    everything = facts.residuals
    out, found = (np.zeros(everything.n, dtype=bool), []) if facts.correlated else _outliers(facts, everything)
    yield from found
    if not facts.correlated:
        yield from _influence(facts, everything)
        yield from _leverage(facts, everything)
    rest = everything.without(out) if out.any() else everything
    if rest.dof < LEAST_DOF or rest.sum == 0:
        return
    structure = list(_structure(facts, rest, out, signs=True))
    yield from structure
    yield from _noise_level(facts, rest, bool(structure))
    growth = [] if facts.correlated else list(_spread(facts, rest, out))
    yield from growth
    if not structure and not growth:
        yield from _non_normal(rest)


def _outliers(facts: Facts, residuals: Residuals) -> tuple[np.ndarray, list[Finding]]:
    """Find rows that lie too far off; then those that these had hidden."""
    out = np.zeros(residuals.n, dtype=bool)
    limit = ALLOTTED["outliers"]
    chance = tests.outliers(residuals, absolute=facts.absolute)
    size = np.abs(residuals.externally)
    found: list[int] = []
    smallest = float(chance.min())
    rest = residuals
    for _ in range(ROUNDS):
        kept = np.flatnonzero(~out)
        new = kept[chance < limit]
        if not len(new) or rest.dof <= len(new):
            break
        found += [int(row) for row in new[np.argsort(-size[chance < limit])]]
        out[new] = True
        rest = residuals.without(out)
        if rest.dof < LEAST_DOF or rest.sum == 0:
            break
        chance, size = tests.outliers(rest, absolute=facts.absolute), np.abs(rest.externally)
    if not found or rest.sum == 0:  # beside residuals of 0 every rounding is far off
        return out, []
    rows = tuple(int(facts.rows[row]) + 1 for row in found)
    scale = math.sqrt(rest.sum / rest.dof)
    first = float(residuals.scaled[found[0]])
    text = f"{_rows(rows)} {_lie(len(rows))} too far off for normal errors; row {rows[0]} by {abs(first) / scale:.2g} times the scatter of the others"
    text += f" ({_chance(smallest)} among {residuals.n} rows)."
    advice = "Look how these rows were measured and typed; if nothing is wrong with them, a robust loss ('huber', 'soft_l1', 'cauchy') keeps them from deciding."
    return out, [Finding("outliers", first / scale, math.nan, smallest, (), rows[:MOST_KEPT], text, advice)]


def _influence(facts: Facts, residuals: Residuals) -> Iterator[Finding]:
    """Tell of rows without which the answer would be another one."""
    if facts.at_bound.all():  # nothing is left that a row could move
        return
    distance = tests.cook(residuals)
    row = int(distance.argmax())
    if distance[row] <= DISTANCE:
        return
    chance = tests.cook_chance(residuals, float(distance[row]))
    if chance >= ALLOTTED["influence"]:
        return
    rows = np.flatnonzero(distance > DISTANCE)
    rows = rows[np.argsort(-distance[rows])]
    inside = ~facts.at_bound
    errors = np.sqrt(np.diag(facts.covariance))[inside]
    pull = np.linalg.pinv(facts.jacobian[:, inside])[:, row] * residuals.values[row] / (1 - residuals.leverage[row])
    shifts = np.nan_to_num(np.abs(pull) / errors, posinf=0.0)
    names = [name for name, kept in zip(facts.names, inside, strict=True) if kept]
    most = int(shifts.argmax())
    numbers = tuple(int(facts.rows[one]) + 1 for one in rows)
    text = f"without row {numbers[0]} {names[most]} would change by {shifts[most]:.2g} standard errors (Cook's distance {distance[row]:.2g}, leverage {residuals.leverage[row]:.2g})"
    text += f"; much the same holds of {_rows(numbers[1:])}." if len(numbers) > 1 else "."
    advice = "Fit without it and compare; give an answer that hangs on one row only with that remark, or measure there again."
    yield Finding("influence", float(distance[row]), DISTANCE, chance, (names[most],), numbers[:MOST_KEPT], text, advice)


def _leverage(facts: Facts, residuals: Residuals) -> Iterator[Finding]:
    """Tell of parameters that a row decides alone, whatever its residual is."""
    h, p = residuals.leverage, residuals.basis.shape[1]
    rows = np.flatnonzero(h > DECISIVE)
    if not len(rows) or residuals.n < PER_PARAMETER * max(p, 2):
        return
    rows = rows[np.argsort(-h[rows])]
    row = int(rows[0])
    inside = ~facts.at_bound
    reach = np.linalg.pinv(facts.jacobian[:, inside])
    own, whole = reach[:, row] ** 2, np.sum(reach**2, axis=1)
    names = [name for name, kept in zip(facts.names, inside, strict=True) if kept]
    most = int(np.argmax(own / np.where(whole > 0, whole, 1.0)))
    numbers = tuple(int(facts.rows[one]) + 1 for one in rows)
    alone = 1 - h[row]
    times = (
        f"{math.sqrt(1 + own[most] / whole[most] / alone):.2g} times as large"
        if alone > tests.FIXED_BY_ITSELF
        else "without limit"
    )
    text = (
        f"{names[most]} rests on row {numbers[0]} (leverage {h[row]:.5g}): without it the error of {names[most]} would be {times}"
    )
    text += f"; leverage is above {DECISIVE:g} also in {_rows(numbers[1:])}." if len(numbers) > 1 else "."
    advice = "No other row can tell whether that one is right: measure there again, or nearby."
    yield Finding("influence", float(h[row]), DECISIVE, math.nan, (names[most],), numbers[:MOST_KEPT], text, advice)


def _structure(facts: Facts, rest: Residuals, out: np.ndarray, *, signs: bool) -> Iterator[Finding]:
    """Test the residuals in the order of the input for what the model has left in them; give the most improbable."""
    place = np.cumsum(~out) - 1  # of a row among those that are kept
    residuals = rest.ordered(place[facts.order[~out[facts.order]]])
    along = _along(facts)
    found = [*_waves(residuals, along), *_autocorrelation(residuals, along), *(_runs(residuals.values, along) if signs else ())]
    if found:
        yield min(found, key=lambda finding: finding.p_value)


def _waves(residuals: Residuals, along: str) -> Iterator[Finding]:
    share, chance = tests.waves(residuals)
    if share > STRUCTURE and chance < ALLOTTED["waves"]:
        text = f"{along} slow waves make up {100 * share:.0f}% of the residuals' sum of squares ({_chance(chance)}): the errors given are too small."
        yield Finding("residual structure", share, STRUCTURE, chance, (), (), text, MISSING)


def _autocorrelation(residuals: Residuals, along: str) -> Iterator[Finding]:
    lag = tests.autocorrelation(residuals)
    value = lag.effect
    if value > STRUCTURE and lag.above < ALLOTTED["autocorrelation above"]:
        inflated = f"{math.sqrt((1 + value) / (1 - value)):.2g} times if it is noise" if value < 1 else "many times"
        text = f"{along} each residual resembles the next (autocorrelation {value:.2f}, {_chance(lag.above)}): the errors given are too small, {inflated}."
        yield Finding("residual structure", value, STRUCTURE, lag.above, (), (), text, MISSING)
    elif value < -STRUCTURE and lag.below < ALLOTTED["autocorrelation below"]:
        text = f"{along} each residual goes against the one before it (autocorrelation {value:.2f}, {_chance(lag.below)})."
        yield Finding("residual structure", value, -STRUCTURE, lag.below, (), (), text, ALTERNATING)


def _runs(ordered: Floats, along: str) -> Iterator[Finding]:
    count, above, below = tests.runs(ordered)
    if min(above, below) == 0:
        return
    expected = tests.expected_runs(above, below)
    value = math.cos(
        math.pi / 2 * min((count - 1) / (expected - 1), 2.0)
    )  # the autocorrelation that makes so few of normal errors
    if value <= STRUCTURE:
        return
    chance = tests.few_runs(count, above, below)
    if chance < ALLOTTED["runs"]:
        text = (
            f"{along} the residuals keep their sign too long: {count} runs where {expected:.0f} are expected ({_chance(chance)})."
        )
        yield Finding("residual structure", value, STRUCTURE, chance, (), (), text, MISSING)


def _along(facts: Facts) -> str:
    return f"in the order of {'the rows' if facts.x is None or facts.correlated else 'the input'}"


MISSING = "Look at plot_residuals(): a wave or a bow is a term that the model lacks; if the model is right, the noise is correlated: give its covariance matrix as sigma."

ALTERNATING = (
    "Look for rows that alternate between two instruments, for differences of neighbours taken as data, for a wave of two rows."
)


def _noise_level(facts: Facts, residuals: Residuals, structure: bool) -> Iterator[Finding]:
    if not facts.absolute:
        return
    chance = tests.chi_square(residuals.sum, residuals.dof)
    reduced = residuals.sum / residuals.dof
    text = f"the residuals scatter {math.sqrt(reduced):.3g} times as much as sigma says (reduced chi-square {reduced:.3g}, {residuals.dof} degrees of freedom, {_chance(chance)})."
    factor = "if sigma is known only up to a factor, use absolute_sigma=False."
    small = f"sigma is too large, or the data were smoothed or averaged; {factor}"
    large = f"sigma is too small, or the model misses something; {factor}"
    yield from _level(reduced, chance, text, small, LEFT_IN if structure else large)


LEFT_IN = "Part of it is what the model has left in the residuals, see above; the errors given are too small."


def _level(reduced: float, chance: float, text: str, small: str, large: str) -> Iterator[Finding]:
    """Tell of a reduced chi-square that is improbable and matters, with the advice for one below 1 or above."""
    low, high = LEVEL
    if chance >= ALLOTTED["noise level"] or low <= reduced <= high:
        return
    threshold, advice = (high, large) if reduced > high else (low, small)
    yield Finding("noise level", reduced, threshold, chance, (), (), text, advice)


def _spread(facts: Facts, residuals: Residuals, out: np.ndarray) -> Iterator[Finding]:
    """Test whether the residuals scatter more where the prediction is larger."""
    rank = tests.ranks(facts.prediction[~out])
    thirds = rank > 1 / 3, rank < -1 / 3
    if not (thirds[0].any() and thirds[1].any()):
        return
    upper, lower = (math.sqrt(float(np.mean(residuals.scaled[part] ** 2))) for part in thirds)
    times = upper / lower if lower > 0 else math.inf
    if 1 / SPREAD <= times <= SPREAD:
        return
    ratio = tests.spread(residuals, rank)
    chance = min(2 * min(ratio.above, ratio.below), 1.0)
    if chance >= ALLOTTED["spread"]:
        return
    more, factor = ("large", times) if times > 1 else ("small", 1 / times if times > 0 else math.inf)
    text = f"the residuals scatter {factor:.2g} times as much where the prediction is {more} ({_chance(chance)}): rows that are known better do not count more."
    if times > 1:
        advice = "Give sigma for each row, such as a share of y; for counts use loss='poisson'."
    else:
        advice = "Give sigma for each row."
    yield Finding("spread", times, SPREAD if times > 1 else 1 / SPREAD, chance, (), (), text, advice)


def _non_normal(residuals: Residuals) -> Iterator[Finding]:
    sample = residuals.studentized[residuals.usable]
    if len(sample) < LEAST_NORMAL or residuals.dof < LEAST_NORMAL:
        return
    _, chance = tests.anderson_darling(sample)
    skewness, kurtosis = tests.shape(sample)
    if chance >= ALLOTTED["non-normal"]:
        return
    if abs(skewness) > SKEWNESS:
        number, threshold = skewness, math.copysign(SKEWNESS, skewness)
        text = f"the residuals lean to one side (skewness {skewness:.2g}, {_chance(chance)})"
        advice = "Errors that multiply call for a fit of the logarithm, counts for loss='poisson'; 95% intervals of single predictions do not hold."
    elif abs(kurtosis) > KURTOSIS:
        number, threshold = kurtosis, math.copysign(KURTOSIS, kurtosis)
        heavy = kurtosis > 0
        text = f"the residuals have {'heavier' if heavy else 'lighter'} tails than normal errors (excess kurtosis {kurtosis:.2g}, {_chance(chance)})"
        advice = (
            "A robust loss ('huber', 'soft_l1', 'cauchy') gives smaller errors on such data; 95% intervals of single predictions do not hold."
            if heavy
            else "Look for readings that were rounded coarsely, or two states between which the data jump; the parameters are little affected."
        )
    else:
        return
    yield Finding("non-normal", number, threshold, chance, (), (), text + ".", advice)


# --- residuals of other losses ------------------------------------------------------------------------------------------------


def _robust(facts: Facts) -> Iterator[Finding]:
    """Count what a robust loss has held down; test signs, which outliers do not disturb."""
    dof = facts.residuals.dof
    chance, deviation = tests.far_off(facts.difference, dof)
    out = np.flatnonzero(chance < ALLOTTED["outliers"])
    bent = int(np.count_nonzero(facts.weight < HALF * float(facts.weight.max())))
    n = len(chance)
    if len(out):
        out = out[np.argsort(-np.abs(facts.difference[out]))]
        rows = tuple(int(facts.rows[row]) + 1 for row in out)
        first = float(facts.difference[out[0]]) / deviation
        text = f"{_rows(rows)} {_lie(len(rows))} too far off for normal errors, row {rows[0]} by {abs(first):.2g} times the scatter; {bent} of {n} rows count less than half."
        advice = "The loss expects such rows and holds them down; look how they were measured."
        yield Finding("outliers", first, math.nan, float(chance[out[0]]), (), rows[:MOST_KEPT], text, advice)
    yield from _runs(facts.difference[facts.order], _along(facts))


def _likelihood(facts: Facts) -> Iterator[Finding]:
    """Test counts by their Pearson residuals."""
    mean = facts.prediction
    if float(np.mean(mean)) < LEAST_COUNT:
        return
    residuals = facts.residuals
    structure = list(_structure(facts, residuals, np.zeros(residuals.n, dtype=bool), signs=False))
    yield from structure
    reduced = residuals.sum / residuals.dof
    chance = tests.dispersion(residuals, mean)
    text = f"the counts scatter {math.sqrt(reduced):.3g} times as much as Poisson's do (Pearson's chi-square {reduced:.3g} per degree of freedom, {_chance(chance)})."
    small = "They may not be counts: scaled, averaged or smoothed numbers; fit them with loss='squared' and a sigma."
    large = f"Multiply the errors by {math.sqrt(reduced):.3g}, or look for what else varies from count to count."
    yield from _level(reduced, chance, text, small, LEFT_IN if structure else large)


_TESTS = {"least_squares": _least_squares, "robust": _robust, "likelihood": _likelihood}


# --- words ----------------------------------------------------------------------------------------------------------------


def _correlated(value: float) -> str:
    """Write a correlation with as many nines as it has."""
    digits = min(max(4, 2 - math.floor(math.log10(max(1 - abs(value), 1e-12)))), 12)
    return f"{value:+.{digits}f}"


def _chance(probability: float) -> str:
    return f"p = {probability:.1g}" if probability > 1e-12 else "p < 1e-12"


def _rows(numbers: Sequence[int]) -> str:
    return f"row{'s' * (len(numbers) > 1)} {some([str(number) for number in numbers])}"


def _lie(count: int) -> str:
    return "lies" if count == 1 else "lie"
