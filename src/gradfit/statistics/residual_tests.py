r"""Tests of the residuals of a fit: order, outliers, influence, normality, spread.

Near the minimum a fit is linear: with :math:`J = QR` and independent normal errors of equal variance the residuals in units of sigma are

.. math:: e = M\varepsilon, \quad M = I - QQ^T, \quad \nu = n - p, \quad h_i = \sum_k Q_{ik}^2

so they are correlated and of unequal variance :math:`1 - h_i` before anything is wrong. Every test here takes that into account:

- *Ratios of quadratic forms*, :math:`v = e^TAe/e^Te`: A shifts by one row for the autocorrelation, and is diagonal, the ranks of the
  predictions, for a spread that grows. v and :math:`e^Te` are independent, so moments of v are ratios of moments. For few degrees of
  freedom the probability comes from the eigenvalues of A within the space of M by the saddlepoint approximation, for more from the beta
  distribution of the same mean and variance, traces that cost O(n p²).
- *Slow waves*: cosines of half a period over all rows and more, as further terms of the model; an F test, and the way to see a bow.
- *Runs of signs*: the distribution for independent signs. Fitting makes neighbours differ more often, so few runs are rarer than it says.
- *Outliers*: externally studentized residuals, Student's t with :math:`\nu - 1` degrees of freedom, times n (Bonferroni).
- *Influence*: Cook's distance :math:`D_i = \frac{r_i^2}{p}\frac{h_i}{1-h_i}`, r internally studentized, so that
  :math:`r_i^2/\nu` is :math:`B(\frac12, \frac{\nu-1}{2})`; the probabilities of all rows that one of them is that large are added up.
- *Normality*: Anderson and Darling's A² of the studentized residuals, for mean and variance estimated.

References
----------
Durbin and Watson, *Testing for serial correlation in least squares regression I*, Biometrika 37, 1950, and III, 58, 1971 (moments, beta);
Lugannani and Rice, *Saddle point approximation for the distribution of the sum of independent random variables*, 1980;
Wald and Wolfowitz, *On a test whether two samples are from the same population*, Ann. Math. Stat. 11, 1940 (runs);
Cook and Weisberg, *Residuals and Influence in Regression*, 1982, sections 2.2 and 3.1;
D'Agostino and Stephens, *Goodness-of-Fit Techniques*, 1986, table 4.9 (A²).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy.special import betainc, betaincc, chdtr, chdtrc, fdtrc, gammainc, gammaincc, gammaln, log_ndtr, ndtr, stdtr

from gradfit.typing import Floats

FEW = 40  # degrees of freedom up to which eigenvalues are computed: beyond, the beta distribution is as good
WAVES = 4
NEW = 0.3  # share of a wave's size outside the space of the model, from which it is a term of its own
MANY_RUNS = 1000  # rows from which the number of runs is as good as normal
FIXED_BY_ITSELF = 1e-8  # 1 - leverage below which a row's residual is rounding
AGREES = 0.01  # each tail of the other rows' chi-square, within which they do not speak against sigma
MEDIAN_EFFICIENCY = 0.37  # of the median deviation, against the standard deviation, for normal errors
NORMAL_MEDIAN = 0.6744897501960817  # of |z|


@dataclass(frozen=True)
class Residuals:
    """Residuals of a linear fit, ready for the tests.

    Attributes
    ----------
    values
        e, measured - predicted in units of sigma, (n,).
    basis
        Q, (n, p), orthonormal: what the parameters can reach.
    """

    values: Floats
    basis: Floats

    @property
    def n(self) -> int:
        """Rows."""
        return len(self.values)

    @property
    def dof(self) -> int:
        """Degrees of freedom, n - p."""
        return self.n - int(self.basis.shape[1])

    @cached_property
    def sum(self) -> float:
        """Sum of squares."""
        return float(self.values @ self.values)

    @cached_property
    def leverage(self) -> Floats:
        """h, (n,): how much of a row's prediction is its own measurement."""
        return np.asarray(np.minimum(np.einsum("ij,ij->i", self.basis, self.basis), 1.0))

    @cached_property
    def usable(self) -> np.ndarray:
        """Which rows have a residual that is more than rounding, (n,)."""
        return 1 - self.leverage > FIXED_BY_ITSELF

    @cached_property
    def scaled(self) -> Floats:
        """Each residual over the root of its own variance, :math:`e_i/\\sqrt{1-h_i}`, in units of sigma, (n,); 0 for unusable rows."""
        return np.where(self.usable, self.values, 0.0) / np.sqrt(np.where(self.usable, 1 - self.leverage, 1.0))

    @cached_property
    def studentized(self) -> Floats:
        """Internally: :math:`r_i = e_i / (s\\sqrt{1-h_i})`, (n,)."""
        return self.scaled * math.sqrt(self.dof / self.sum)

    @cached_property
    def externally(self) -> Floats:
        """Externally studentized, each by the scatter of the others: :math:`t_i = r_i \\sqrt{(\\nu-1)/(\\nu-r_i^2)}`, (n,)."""
        rest = np.maximum(self.dof - self.studentized**2, self.dof * np.finfo(float).eps)
        return self.studentized * np.sqrt((self.dof - 1) / rest)

    def without(self, rows: np.ndarray) -> Residuals:
        """Fit again without some rows (True), to first order."""
        q, r = np.linalg.qr(self.basis[~rows])
        left, values, _ = np.linalg.svd(r)
        basis = q @ left[:, : len(values)][:, values > FIXED_BY_ITSELF]
        kept = self.values[~rows]
        return Residuals(kept - basis @ (basis.T @ kept), basis)

    def ordered(self, order: np.ndarray) -> Residuals:
        """Put the rows into another order."""
        return Residuals(self.values[order], self.basis[order])


# --- ratios of quadratic forms --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ratio:
    """A ratio :math:`v = e^TAe/e^Te`, and how likely it is for normal errors.

    Attributes
    ----------
    value, mean, variance
        v; its mean and variance without any effect.
    ends
        Least and largest eigenvalue of A.
    residuals, matrix
        e and its space; A, (n, n), where the degrees of freedom are few, else None.
    """

    value: float
    mean: float
    variance: float
    ends: tuple[float, float]
    residuals: Residuals = field(repr=False)
    matrix: Floats | None = field(repr=False)

    @property
    def effect(self) -> float:
        """By how much the ratio is above its mean."""
        return self.value - self.mean

    @cached_property
    def above(self) -> float:
        """Probability of a ratio as high as this."""
        if self.matrix is None:
            return float(betaincc(*self._beta))
        basis = self.residuals.basis
        outside = np.linalg.qr(basis, mode="complete")[0][:, basis.shape[1] :]
        return positive(np.linalg.eigvalsh(outside.T @ self.matrix @ outside) - self.value)

    @cached_property
    def below(self) -> float:
        """Probability of a ratio as low as this."""
        return float(betainc(*self._beta)) if self.matrix is None else 1 - self.above

    @property
    def _beta(self) -> tuple[float, float, float]:
        """Beta distribution of this mean and variance between the ends: its two parameters, and where the ratio is."""
        low, length = self.ends[0], self.ends[1] - self.ends[0]
        place = (self.mean - low) / length
        both = place * (1 - place) * length**2 / self.variance - 1
        return place * both, (1 - place) * both, min(max((self.value - low) / length, 0.0), 1.0)


def autocorrelation(residuals: Residuals) -> Ratio:
    """Correlation of each residual with the next, in the order of the rows: 1 - DW/2 but for the ends (Durbin and Watson)."""
    n = residuals.n
    value = float(residuals.values[1:] @ residuals.values[:-1]) / residuals.sum
    shifted = np.zeros_like(residuals.basis)
    shifted[1:] += residuals.basis[:-1] / 2
    shifted[:-1] += residuals.basis[1:] / 2
    limit = math.cos(math.pi / (n + 1))  # the eigenvalues of A are cosines
    matrix = (np.eye(n, k=1) + np.eye(n, k=-1)) / 2 if residuals.dof <= FEW else None
    return _ratio(residuals, value, shifted, (0.0, (n - 1) / 2), (-limit, limit), matrix)


def spread(residuals: Residuals, rank: Floats) -> Ratio:
    """Mean of rank times squared residual: above its mean where the residuals grow with the rank, (n,), from -1 to 1."""
    value = float(rank @ residuals.values**2) / residuals.sum
    matrix = np.diag(rank) if residuals.dof <= FEW else None
    traces = (float(rank.sum()), float(rank @ rank))
    return _ratio(residuals, value, rank[:, None] * residuals.basis, traces, (float(rank.min()), float(rank.max())), matrix)


def _ratio(
    residuals: Residuals,
    value: float,
    applied: Floats,
    traces: tuple[float, float],
    ends: tuple[float, float],
    matrix: Floats | None,
) -> Ratio:
    """Compute mean and variance from AQ, tr A and tr A²."""
    m = residuals.dof
    inner = residuals.basis.T @ applied
    first = traces[0] - float(np.trace(inner))
    second = traces[1] - 2 * float(np.sum(applied**2)) + float(np.sum(inner * inner.T))
    return Ratio(value, first / m, 2 * (m * second - first**2) / (m**2 * (m + 2)), ends, residuals, matrix)


def positive(weights: Floats) -> float:
    r"""Probability that :math:`\sum_i \lambda_i z_i^2 > 0` for independent standard normal z: saddlepoint approximation.

    With :math:`K(t) = -\frac12\sum\ln(1 - 2t\lambda_i)` and :math:`K'(t) = 0` at t: :math:`w = \mathrm{sgn}(t)\sqrt{-2K}`,
    :math:`u = t\sqrt{K''}`, :math:`P = 1 - \Phi(w) + \varphi(w)(1/u - 1/w)`.
    """
    size = float(np.abs(weights).max())
    if size == 0 or weights.min() >= 0 or weights.max() <= 0:
        return float(weights.max() > 0)
    weights = weights / size
    low, high = 0.5 / float(weights.min()), 0.5 / float(weights.max())
    t = 0.0
    for _ in range(100):  # Newton's steps, halved where they leave the bracket
        part = weights / (1 - 2 * t * weights)
        slope, curvature = float(part.sum()), 2 * float(part @ part)
        low, high = (low, t) if slope > 0 else (t, high)
        step = t - slope / curvature
        step = step if low < step < high else (low + high) / 2
        moved, t = abs(step - t), step
        if moved <= 1e-10 * (high - low) or moved <= 1e-10 * abs(t):
            break
    part = weights / (1 - 2 * t * weights)
    w = math.copysign(math.sqrt(max(float(np.log1p(-2 * t * weights).sum()), 0.0)), t)
    u = t * math.sqrt(2 * float(part @ part))
    if abs(w) < 1e-3:  # 1/u - 1/w is a difference of large numbers here; its limit is in the skewness
        skewness = float((part**3).sum()) * math.sqrt(2 / float(part @ part)) ** 3
        return 0.5 - skewness / (6 * math.sqrt(2 * math.pi))
    tail = float(ndtr(-w)) + math.exp(-w * w / 2) / math.sqrt(2 * math.pi) * (1 / u - 1 / w)
    return min(max(tail, 0.0), 1.0)


# --- order --------------------------------------------------------------------------------------------------------------


def waves(residuals: Residuals) -> tuple[float, float]:
    """How much of the sum of squares slow waves would take up, fitted beside the model: half a wave over all rows, one, one and a half, two.

    Returns
    -------
    Their share beyond that of noise, and the probability of as much for normal errors (F test, exact); (0, 1) where too few rows are left.
    """
    n, dof = residuals.n, residuals.dof
    number = np.arange(1, min(WAVES, dof // 3) + 1)
    cosines = math.sqrt(2 / n) * np.cos(np.pi / n * np.outer(np.arange(n) + 0.5, number))
    left, size, _ = np.linalg.svd(cosines - residuals.basis @ (residuals.basis.T @ cosines), full_matrices=False)
    added = left[:, size > NEW]  # the others are nearly in the model
    k = added.shape[1]
    if k == 0:
        return 0.0, 1.0
    share = float(np.sum((added.T @ residuals.values) ** 2)) / residuals.sum
    chance = float(fdtrc(k, dof - k, share / k / max((1 - share) / (dof - k), np.finfo(float).tiny)))
    return (share - k / dof) / (1 - k / dof), chance


def runs(residuals: Floats) -> tuple[int, int, int]:
    """Count runs of one sign, and the residuals above and below zero; exact zeros are left out."""
    above = residuals[residuals != 0] > 0
    count = 1 + int(np.count_nonzero(above[1:] != above[:-1]))
    return count, int(above.sum()), int((~above).sum())


def expected_runs(above: int, below: int) -> float:
    """Mean number of runs of so many residuals of either sign in random order."""
    return 1 + 2 * above * below / (above + below)


def few_runs(count: int, above: int, below: int) -> float:
    """Probability of at most so many runs in random order; exact up to a thousand rows, where it becomes normal."""
    n = above + below
    if min(above, below) == 0:
        return 1.0
    if n > MANY_RUNS:
        mean = expected_runs(above, below)
        deviation = math.sqrt((mean - 1) * max(mean - 2, 0.0) / (n - 1))
        return float(ndtr((count + 0.5 - mean) / deviation)) if deviation > 0 else 1.0
    number = np.arange(2, min(count, 2 * min(above, below) + 1) + 1)
    k, odd = number // 2, number % 2
    ways = _choose(above - 1, k - 1 + odd) + _choose(below - 1, k - 1)
    others = _choose(above - 1, k - 1) + _choose(below - 1, k - 1 + odd)
    return min(float(np.sum(np.exp(ways - _choose(n, above)) + np.exp(others - _choose(n, above)))), 1.0)


def _choose(n: int, k: np.ndarray | int) -> np.ndarray:
    """Logarithm of the binomial coefficient; minus infinity where k is more than n."""
    ways = gammaln(n + 1) - gammaln(np.add(k, 1)) - gammaln(np.maximum(np.subtract(n, k) + 1, 1))
    return np.asarray(np.where(np.less_equal(k, n), ways, -np.inf))


# --- single rows --------------------------------------------------------------------------------------------------------


def outliers(residuals: Residuals, *, absolute: bool) -> Floats:
    """Probability of each row that one of all n rows lies as far off, (n,), at most 1.

    ``absolute``: sigma is a measured error. It is then the measure of a row, by the normal distribution, as long as the chi-square of
    the other rows does not speak against it; otherwise, as without sigma, their own scatter is.
    """
    each = 2 * stdtr(residuals.dof - 1, -np.abs(residuals.externally))
    if absolute:
        rest = np.maximum(residuals.sum - residuals.scaled**2, 0.0)
        agree = (chdtrc(residuals.dof - 1, rest) > AGREES) & (chdtr(residuals.dof - 1, rest) > AGREES)
        each = 2 * np.where(agree, 2 * ndtr(-np.abs(residuals.scaled)), each)  # two measures, either of which may tell
    return np.minimum(np.where(residuals.usable, residuals.n * each, 1.0), 1.0)


def far_off(residuals: Floats, dof: int) -> tuple[Floats, float]:
    """Measure residuals by their median deviation, for fits that outliers do not move.

    Returns
    -------
    Probability of each row that one of all n rows lies as far off for normal errors, (n,), and the standard deviation without them.
    """
    n = len(residuals)
    deviation = float(np.median(np.abs(residuals))) / NORMAL_MEDIAN * math.sqrt(n / dof)
    if deviation == 0:
        return np.ones(n), 0.0
    return np.minimum(2 * n * stdtr(MEDIAN_EFFICIENCY * dof, -np.abs(residuals) / deviation), 1.0), deviation


def cook(residuals: Residuals) -> Floats:
    """Cook's distance of each row, (n,); 1 moves the parameters together to the edge of about their 50% region."""
    h, p = residuals.leverage, residuals.basis.shape[1]
    free = np.where(residuals.usable, 1 - h, 1.0)
    return np.asarray(np.where(residuals.usable, residuals.studentized**2 * h / free / p, 0.0))


def cook_chance(residuals: Residuals, distance: float) -> float:
    """Probability that one of all rows has so large a distance, at most 1."""
    h, p, dof = residuals.leverage, residuals.basis.shape[1], residuals.dof
    needed = distance * p * (1 - h) / np.maximum(h, np.finfo(float).tiny) / dof
    possible = residuals.usable & (needed < 1)
    return min(float(np.sum(betaincc(0.5, (dof - 1) / 2, needed[possible]))), 1.0)


# --- distribution -------------------------------------------------------------------------------------------------------


def anderson_darling(sample: Floats) -> tuple[float, float]:
    """A² of a sample against the normal distribution of its own mean and variance, and its probability.

    The probability holds from 8 values on; it is not resolved below 1e-30.
    """
    n = len(sample)
    z = np.sort((sample - sample.mean()) / sample.std(ddof=1))
    odd = 2 * np.arange(1, n + 1) - 1
    squared = -n - float(odd @ (log_ndtr(z) + log_ndtr(-z[::-1]))) / n
    a = squared * (1 + 0.75 / n + 2.25 / n**2)
    if a >= 0.6:
        a = min(a, 13.0)
        return squared, math.exp(1.2937 - 5.709 * a + 0.0186 * a * a)
    if a >= 0.34:
        return squared, math.exp(0.9177 - 4.279 * a - 1.38 * a * a)
    low = -8.318 + 42.796 * a - 59.938 * a * a if a >= 0.2 else -13.436 + 101.14 * a - 223.73 * a * a
    return squared, 1 - math.exp(low)


def shape(sample: Floats) -> tuple[float, float]:
    """Skewness and excess kurtosis; both are 0 for normal errors."""
    z = (sample - sample.mean()) / sample.std()
    return float(np.mean(z**3)), float(np.mean(z**4)) - 3


def chi_square(value: float, dof: float) -> float:
    """Probability of a chi-square as far from its mean, to either side."""
    return min(2 * min(float(chdtrc(dof, value)), float(chdtr(dof, value))), 1.0)


def dispersion(residuals: Residuals, mean: Floats) -> float:
    r"""Probability of the sum of Poisson's squared residuals, to either side; ``mean`` are the expected counts, (n,).

    The square of one has the variance :math:`2 + 1/\mu`; a gamma distribution of that mean and variance stands for the sum.
    """
    variance = 2 * residuals.dof + float(np.sum(1 / mean)) * residuals.dof / residuals.n
    k, scale = residuals.dof**2 / variance, variance / residuals.dof
    return min(2 * min(float(gammaincc(k, residuals.sum / scale)), float(gammainc(k, residuals.sum / scale))), 1.0)


def ranks(values: Floats) -> Floats:
    """Ranks from -1 to 1, equal values sharing theirs, (n,); all 0 where there is one value."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(count) - (count + 1) / 2
    return np.asarray((2 * middle / max(len(values) - 1, 1) - 1)[place])
