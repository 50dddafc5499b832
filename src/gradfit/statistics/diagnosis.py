r"""Learning curves: nothing learned, overfitting, falling together, offset; and what to do.

Two curves, the training and the validation loss of each epoch, are read as one reads their four pictures:

======  ================  =====================================================================================
letter  verdict           the picture
======  ================  =====================================================================================
A       nothing learned   neither loss falls
B       overfitting       training falls, validation has risen from its lowest level
C       falling together  both fell and settled at one level
D       offset            both fell and settled, validation at another level
--      too few points    the validation set is too small to carry B, C or D
--      not converged     the training loss was still changing when it stopped
--      diverged          the training loss grew, or is not finite
--      no validation     the training loss settled; without a validation set nothing more can be said
======  ================  =====================================================================================

They are asked for in this order: diverged, A, too few points, B, not converged, D, C. What the training curve says by
itself comes first; B does not wait for convergence, since more epochs make it worse; C and D compare final levels, so
they do.

Three errors are kept apart. *Noise along a curve* (mini-batches) is measured on the curve itself, :class:`_Curve`; a
curve without turning points has none. *Sampling of levels*: a mean of n squared residuals has n degrees of freedom, so
two levels compare by :math:`F(n_v, n_t)`. *Sampling of a rise*: the validation points are the same at every epoch. If
the prediction moved by :math:`\delta` since the minimum, their mean loss changes by :math:`\overline{\delta^2} +
2\,\overline{r\delta}`, so a rise has the variance :math:`4 V D / n_v` with :math:`D = \overline{\delta^2}`, far
smaller than that of two separate samples. D is not seen; the rise itself and the fall of the training loss since then
are each about D, and the larger counts.

The verdict does not depend on the unit of the loss. It does depend on its zero where "one percent of the loss" and F
do; if a loss is negative it has no zero that means anything, and the total fall of the curve is the yardstick instead.
A positive loss with a large constant added is read as flatter than it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import fdtri

from gradfit.errors import DataError

# The least validation points that carry a verdict. The mean square of n residuals scatters as chi_square(n) / n, whose
# 95th percentile is 2.01 at n = 7 and 1.94 at n = 8: with fewer than 8, one validation set in twenty shows twice the
# true loss by chance.
MIN_VALIDATION = 8
# Stands in for a number of points that was not told: a level is then known to sqrt(2 / 400) = 7%, and only plain
# effects count.
UNKNOWN_POINTS = 400
# Changes below one percent of the loss are not seen on a plot, nor do they matter to a prediction (0.5% of its error).
VISIBLE = 0.01
# Standard errors of the curve's noise that a change must exceed. Four, not two: the noise itself is estimated from
# about ten independent numbers (Student's t: 0.1% each side), and several changes are looked at in each curve.
NOISE_Z = 4.0
# Standard errors of the validation sampling that a rise must exceed. More than two, since the lowest point is picked by
# hindsight.
SAMPLING_Z = 2.5
# Two-sided level at which two final losses count as different.
OFFSET_ALPHA = 0.01
# Two final losses closer than this are one level in practice, however many points prove them different.
OFFSET_VISIBLE = 0.10
# A training loss that rises again is called diverged beyond this multiple of its lowest level.
GROWTH = 2.0
# Twelve decades below the range of a curve is zero: the residuals are then a millionth of what they were.
ZERO = 1e-12
# The fall still to come is counted for this many times the epochs that were run. Not one: a curve that creeps down at a
# steady 0.1% per run shows no sign of an end (the thermometer in unscaled units, where only one parameter has moved).
HORIZON = 10
# The noise is estimated from this many batches of the second half of the curve.
BATCHES = 20

ADVICE = {
    "nothing learned": "Check that the model uses its data and that the gradients are not zero; then raise the "
    "learning rate by factors of ten, or use method='lm', which needs none.",
    "overfitting": "Stop at the epoch of the lowest validation loss, or use fewer parameters, more data or a penalty.",
    "falling together": "Nothing needs to be done; the fit carries over to data it has not seen.",
    "offset": "Check that both sets were drawn at random from the same data; if so the model is too flexible for its "
    "training points: use more data, fewer parameters or a penalty.",
    "too few points": "Do not read the validation loss. Use folds=5, so that every point validates once, or all "
    "points for training and the standard errors of the fit; a verdict needs at least "
    f"{MIN_VALIDATION} validation points.",
    "not converged": "Give it more epochs or a higher learning rate, let the parameters be scaled, or use method='lm'.",
    "diverged": "Lower the learning rate by factors of ten, let the parameters be scaled, or use method='lm'.",
    "no validation": "The training loss cannot show overfitting; use validation=0.2 or folds=5 to see it.",
}
UNSTABLE = "Lower the learning rate, or let it decay; or use method='lm'."
WIDENING = (
    "Validation is far above training and no longer falls: more epochs will not close that gap. Use early_stopping, more data, "
    "fewer parameters or a penalty."
)
EASIER = (
    "Validation is the lower one: its points are easier, or repeated in training. Draw both sets at random from the "
    "same data, each point once."
)
LETTERS = {"nothing learned": "A", "overfitting": "B", "falling together": "C", "offset": "D"}


@dataclass(frozen=True)
class Diagnosis:
    """What a pair of learning curves says, why, and what to do.

    Attributes
    ----------
    verdict
        One of the names in the table of :mod:`gradfit.statistics.diagnosis`.
    letter
        "A" to "D", the four pictures; None if the curves cannot carry one.
    reasons
        Sentences with the numbers that decided.
    advice
        What to do, in plain words.
    """

    verdict: str
    letter: str | None
    reasons: tuple[str, ...]
    advice: str

    def __str__(self) -> str:
        head = f"{self.letter}: {self.verdict}." if self.letter else f"{self.verdict[0].upper()}{self.verdict[1:]}."
        return " ".join((head, *self.reasons, self.advice))


@dataclass(frozen=True, eq=False)
class _Curve:
    """A loss per epoch, all finite, with its noise along the epochs."""

    values: NDArray[np.float64]

    @cached_property
    def noise(self) -> tuple[float, float]:
        """Variance of one epoch, and of the mean of many epochs times their number; (0, 0) for a smooth curve.

        The second half is cut into batches. Second differences of batch means have no slope and six times the variance
        of one mean, autocorrelation included; the variance within the batches adds up with it to that of one epoch.
        Mean absolute values, not squares, and a median, so that a bend or a spike counts little.
        """
        tail = self.values[-max(8, len(self.values) // 2) :]
        steps = np.sign(np.diff(tail))
        turns = np.count_nonzero(steps[1:] * steps[:-1] < 0)
        # White noise turns at 2/3 of all points, strongly autocorrelated noise at 1/2; a smooth curve once or twice.
        if turns < max(2, 0.1 * len(tail)):
            return 0.0, 0.0
        length = max(1, len(tail) // BATCHES)
        batches = tail[len(tail) % length :].reshape(-1, length)[-BATCHES:]
        means = batches.mean(axis=1)
        between = float(np.abs(np.diff(means, 2)).mean()) ** 2 * (np.pi / 2) / 6
        within = float(np.median(batches.var(axis=1)))
        return within + between, max(between * length, within)

    @cached_property
    def window(self) -> int:
        """Epochs averaged into a level: the last tenth of a noisy curve, one of a smooth curve."""
        return max(1, len(self.values) // 10) if self.noise[0] > 0 else 1

    def stderr(self, length: int | NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """Standard error of the mean of ``length`` epochs, of one window if not given."""
        one, many = self.noise
        return np.sqrt(np.minimum(one, many / np.asarray(self.window if length is None else length)))

    def level(self, fraction: float, length: int) -> float:
        """Mean loss of ``length`` epochs that end at this fraction of the curve."""
        end = int(fraction * (len(self.values) - 1)) + 1
        return float(self.values[max(0, end - length) : end].mean())

    @cached_property
    def end(self) -> float:
        return self.level(1.0, self.window)

    @cached_property
    def range(self) -> float:
        return float(np.ptp(self.values))

    @property
    def has_zero(self) -> bool:
        """Zero is the least possible loss, as for a mean of squares."""
        return bool(self.values.min() >= 0)

    @property
    def fall(self) -> float:
        """From the first epoch to the final level, 0 if it is within the noise."""
        first = float(self.values[0])
        drop = first - self.end
        noise = float(np.hypot(self.stderr(1), self.stderr()))
        if abs(drop) > NOISE_Z * noise:
            return drop
        # A slow fall in much noise: the first tenth against the last.
        drop = float(self.values[: self.window].mean()) - self.end
        return drop if abs(drop) > NOISE_Z * 2**0.5 * float(self.stderr()) else 0.0

    @property
    def fell(self) -> bool:
        return self.fall > (VISIBLE * float(self.values[0]) if self.has_zero else ZERO * float(np.abs(self.values).max()))

    @property
    def next_fall(self) -> float:
        """Expected fall if the run were continued for ``HORIZON`` times its epochs; negative if the curve rises.

        The falls of successive quarters of an exponential are a geometric series; of a power law nearly so. So the next
        are the last times powers of the ratio of the last two, at most 1, which is a straight line.
        """
        # Noisy levels are means of a whole quarter: the slope is then nearly as sharp as that of a straight line fit.
        length = max(1, len(self.values) // 4) if self.noise[0] > 0 else 1
        second, third, last = (self.level(fraction, length) for fraction in (0.5, 0.75, 1.0))
        if abs(second - last) <= NOISE_Z * 2**0.5 * float(self.stderr(length)):
            return 0.0
        if last > second:
            return second - last
        fall = max(third - last, 0.0)
        ratio = min(1.0, fall / (second - third)) if second > third else 1.0
        further = fall * sum(ratio**k for k in range(1, 4 * HORIZON + 1))
        if length > 1 and 0 < ratio < 1:
            # The mean of a quarter lies above its end: by this factor, for an exponential.
            further *= -np.log(ratio) * ratio / (1 - ratio)
        return min(further, self.end) if self.has_zero else further

    @property
    def tolerance(self) -> float:
        """A fall, or rise, at the end that can be neglected."""
        scale = min(self.end, self.range) if self.has_zero else self.range
        return max(VISIBLE * scale, ZERO * self.range)

    @property
    def grew(self) -> bool:
        """The loss ended clearly above where it started, or climbs from its lowest level."""
        unit = float(self.values[0]) if self.has_zero else 0.5 * self.range
        lowest, _ = self.lowest
        climb = self.end - lowest
        unit_low = lowest if self.has_zero else 0.5 * self.range
        climbs = self.next_fall < -0.1 * climb and climb > max((GROWTH - 1) * unit_low, ZERO * self.range)
        return self.fall < -0.1 * unit or climbs

    @cached_property
    def lowest(self) -> tuple[float, slice]:
        """Lowest level of the curve and the epochs that make it.

        In noise, blocks of epochs grow by a tenth, from single epochs at the start: an early minimum is kept, a late
        one is averaged. The block is picked by its level plus its error, so that a lucky dip is not the minimum.
        """
        if self.noise[0] == 0:
            best = int(np.argmin(self.values))
            return float(self.values[best]), slice(best, best + 1)
        starts, count = [0], len(self.values)
        while (following := starts[-1] + max(1, starts[-1] // 10)) < count:
            starts.append(following)
        lengths = np.diff([*starts, count])
        levels = np.add.reduceat(self.values, starts) / lengths
        best = int(np.argmin(levels + NOISE_Z * self.stderr(lengths)))
        return float(levels[best]), slice(starts[best], starts[best] + int(lengths[best]))


def diagnose(
    train_loss: ArrayLike,
    validation_loss: ArrayLike | None = None,
    *,
    n_train: int | None = None,
    n_validation: int | None = None,
    converged: bool | None = None,
    diverged: bool = False,
) -> Diagnosis:
    """Read learning curves: which of the four pictures they show, if they can carry one.

    Parameters
    ----------
    train_loss : (epochs,)
        Mean loss per epoch, in any unit. Values that are not finite are allowed at the end only: the fit diverged.
    validation_loss : (epochs,)
        The same for points that were not trained on, always the same ones.
    n_train, n_validation
        Numbers of points behind each loss; 400 is assumed if not told.
    converged
        What the solver knows: True or False overrides the slope of the curve. None if it does not know.
    diverged
        The solver gave up.

    Returns
    -------
    Diagnosis

    Raises
    ------
    DataError
        Curves that are empty, of different lengths, not one-dimensional, or not finite before the end.

    Examples
    --------
    >>> print(diagnose([80.0, 5.0, 2.9, 2.9], [90.0, 6.0, 4.0, 4.0], n_train=9, n_validation=2, converged=True).verdict)
    too few points
    """
    train = _checked("train_loss", train_loss)
    validation = None if validation_loss is None else _checked("validation_loss", validation_loss)
    if validation is not None and len(validation) != len(train):
        raise DataError(
            f"validation_loss has {len(validation)} values for {len(train)} of train_loss; expected one of each per "
            "epoch; give the epochs that have both."
        )
    for name, count in (("n_train", n_train), ("n_validation", None if validation is None else n_validation)):
        if count is not None and count < 1:
            raise DataError(f"{name} is {count}; expected the number of points behind the loss, at least 1; or leave it out.")

    lost = next((t for t in (train, validation) if t is not None and not np.isfinite(t[-1])), None)
    if lost is not None or diverged:
        return _verdict("diverged", _lost(train, validation))
    # One power of two for both curves: squares cannot overflow, and not a bit of the comparison changes.
    largest = max(float(np.abs(c).max()) for c in (train, validation) if c is not None)
    exponent = -min(int(np.frexp(largest)[1]), 1000)
    unit = float(np.ldexp(1.0, -exponent))
    t = _Curve(np.ldexp(train, exponent))
    v = None if validation is None else _Curve(np.ldexp(validation, exponent))
    return _decide(t, v, unit, n_train, n_validation, converged)


def _decide(
    t: _Curve, v: _Curve | None, unit: float, n_train: int | None, n_validation: int | None, converged: bool | None
) -> Diagnosis:
    """The order of the questions, most telling first."""
    course = _course("Training", t, unit)
    # A loss of zero throughout has nowhere to fall, whatever the solver says.
    converged = True if not t.values.any() else converged
    if converged is not True:
        if t.grew:
            return _verdict("diverged", [course, f"Its lowest was {t.lowest[0] * unit:.4g}."])
        if len(t.values) == 1:
            return _verdict("not converged", ["One epoch shows no trend."])
        if not t.fell and not (v is not None and v.fell and (n_validation or UNKNOWN_POINTS) >= MIN_VALIDATION):
            return _verdict("nothing learned", [course, f"That is less than {VISIBLE:.0%}, or within its noise."])
    elif not t.fell and not t.grew:
        course = f"Training started at the minimum, a loss of {t.end * unit:.4g}."
    moving = _moving(t, unit, converged)
    if v is None:
        return moving or _verdict("no validation", [course])
    if n_validation is not None and n_validation < MIN_VALIDATION:
        few = f"A validation loss from {n_validation} points is known to {(2 / n_validation) ** 0.5:.0%} only."
        return _verdict("too few points", [few, *(moving.reasons if moving else (course,))])
    courses = [course, _course("Validation", v, unit)]
    rise = _rise(t, v, unit, n_validation)
    if rise:
        return _verdict("overfitting", [*courses, rise])
    side, compared = _offset(t, v, n_train, n_validation)
    if moving and side > 0 and v.next_fall <= v.tolerance:  # more epochs would only widen the gap
        return replace(moving, reasons=(*moving.reasons, courses[1], compared), advice=WIDENING)
    if moving:
        return replace(moving, reasons=(*moving.reasons, courses[1]))
    if side:
        return _verdict("offset", [*courses, compared], None if side > 0 else EASIER)
    return _verdict("falling together", [*courses, compared])


def _moving(t: _Curve, unit: float, converged: bool | None) -> Diagnosis | None:
    """Not converged, with its reason; None if the training loss has settled."""
    if converged is True:
        return None
    if t.next_fall < -10 * t.tolerance:
        risen = f"Training rose by {-t.next_fall * unit:.3g} to {t.end * unit:.4g} in the second half of the epochs."
        return _verdict("not converged", [risen], UNSTABLE)
    if t.next_fall > t.tolerance:
        now, further = t.end * unit, t.next_fall * unit
        falling = f"In {HORIZON} times its epochs the training loss, now {now:.4g}, would fall by about {further:.2g}."
        return _verdict("not converged", [falling])
    if converged is False:
        return _verdict("not converged", [f"The solver had not converged, at a training loss of {t.end * unit:.4g}."])
    return None


def _rise(t: _Curve, v: _Curve, unit: float, n_validation: int | None) -> str | None:
    """Overfitting in a sentence: the rise of the validation loss from its lowest level; None if there is none."""
    lowest, where = v.lowest
    rise = v.end - lowest
    fall = float(t.values[where].mean()) - t.end
    noise = float(np.hypot(v.stderr(), v.stderr(where.stop - where.start)))
    # The lowest level is the final one, or training rose as well: that is not overfitting.
    if where.stop > len(v.values) - v.window or rise <= max(NOISE_Z * noise, ZERO * v.range):
        return None
    if fall < -NOISE_Z * float(t.stderr()) - t.tolerance:
        return None
    where_text = f"Validation rose by {rise * unit:.3g} from its lowest, {lowest * unit:.4g} at epoch {where.stop}"
    if not v.has_zero:
        return f"{where_text}." if rise > OFFSET_VISIBLE * v.range else None
    sampling = 2 * (lowest * max(rise, fall) / (n_validation or UNKNOWN_POINTS)) ** 0.5
    if rise <= max(VISIBLE * lowest, SAMPLING_Z * float(np.hypot(sampling, noise))):
        return None
    return f"{where_text}, {rise / max(np.hypot(sampling, noise), ZERO * rise):.1f} standard errors."


def _offset(t: _Curve, v: _Curve, n_train: int | None, n_validation: int | None) -> tuple[int, str]:
    """1 if validation ends higher, -1 lower, 0 if the final levels agree; and the sentence that says so."""
    if not (t.has_zero and v.has_zero):
        gap = (v.end - t.end) / max(t.range, v.range, np.finfo(float).tiny)
        return int(gap > OFFSET_VISIBLE) - int(gap < -OFFSET_VISIBLE), f"They end {gap:.0%} of the total fall apart."
    # Below this both losses are zero but for rounding: the residuals are 1e-12 of the first ones.
    floor = max(ZERO**2 * float(max(t.values[0], v.values[0])), float(np.finfo(float).tiny))
    ratio = (v.end + floor) / (t.end + floor)
    counts = (n_validation or UNKNOWN_POINTS, n_train or UNKNOWN_POINTS)
    low, high = (float(fdtri(*counts, p)) for p in (OFFSET_ALPHA / 2, 1 - OFFSET_ALPHA / 2))
    low, high = min(low, 1 / (1 + OFFSET_VISIBLE)), max(high, 1 + OFFSET_VISIBLE)
    told = "" if n_train and n_validation else f" ({UNKNOWN_POINTS} points assumed where not told)"
    sentence = f"Validation ends at {ratio:.3g} times the training loss; chance alone gives {low:.2f} to {high:.2f}{told}."
    return int(ratio > high) - int(ratio < low), sentence


def _course(name: str, curve: _Curve, unit: float) -> str:
    return f"{name} went from {curve.values[0] * unit:.4g} to {curve.end * unit:.4g}."


def _lost(train: NDArray[np.float64], validation: NDArray[np.float64] | None) -> list[str]:
    for name, curve in (("training", train), ("validation", validation)):
        if curve is not None and not np.isfinite(curve[-1]):
            return [f"The {name} loss is not finite from epoch {int(np.isfinite(curve).sum()) + 1}."]
    return [f"The solver gave up at a training loss of {train[-1]:.4g}."]


def _verdict(verdict: str, reasons: Sequence[str], advice: str | None = None) -> Diagnosis:
    return Diagnosis(verdict, LETTERS.get(verdict), tuple(reasons), advice or ADVICE[verdict])


def _checked(name: str, losses: ArrayLike) -> NDArray[np.float64]:
    """One finite loss per epoch, but for a tail that is not."""
    try:
        curve = np.asarray(losses, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} is not numeric ({error}); expected one loss per epoch; give a list of numbers.") from error
    if curve.ndim != 1 or not len(curve):
        raise DataError(f"{name} has shape {curve.shape}; expected one loss per epoch, at least one; give a flat array.")
    finite = np.isfinite(curve)
    if np.any(finite[1:] & ~finite[:-1]):
        first = int(np.argmin(finite)) + 1
        raise DataError(
            f"{name} is {curve[first - 1]} at epoch {first} and finite again later; expected finite losses up to the "
            "end, or up to where the fit diverged; leave out the epochs without a loss."
        )
    return curve
