r"""Several models of the same data side by side: information criteria, Akaike weights, tests of nested models, cross-validation.

With k fitted parameters (those not fixed, tied or on a bound), n rows and L the largest likelihood:

.. math::

    AIC = -2\ln L + 2k, \quad AICc = AIC + \frac{2k(k+1)}{n-k-1}, \quad BIC = -2\ln L + k\ln n

where, up to a constant that all models of the same data share, :math:`-2\ln L` is :math:`n\ln(\chi^2/n)` for squared residuals,
:math:`\chi^2` where sigma is known (``absolute_sigma``) and the deviance for counts (loss "poisson"): the criteria of
:mod:`gradfit.statistics.goodness`, to which the last is added. With :math:`\Delta_i = AICc_i - \min AICc`,

.. math:: w_i = e^{-\Delta_i/2} / \sum_j e^{-\Delta_j/2}

is the Akaike weight: how probable it is that model i is, of these, the one that would predict new data best. The ranking is by AICc:
AIC favours large models where n/k is below 40, AICc has its limit where n is large, and criteria must not be mixed (Burnham and
Anderson, section 2.4). What lies below the rounding of the data is no misfit: of squared residuals that small, the criteria take
the rounding, so that of models that all fit exactly the smallest is best.

For A nested in B, if A is true,

.. math:: F = \frac{(\chi^2_A - \chi^2_B)/(k_B - k_A)}{\chi^2_B/(n - k_B)} \sim F_{k_B-k_A,\,n-k_B}, \qquad
          2 \ln (L_B/L_A) \sim \chi^2_{k_B-k_A}

the first exactly for models linear in their parameters and normal errors of unknown size, the second where that size is known, and
for counts in the limit of many.

References
----------
Burnham and Anderson, *Model Selection and Multimodel Inference*, 2nd ed., 2002, sections 2.2 to 2.9;
Seber and Wild, *Nonlinear Regression*, 1989, section 5.3 (the F test); Wilks, Ann. Math. Statist. 9, 1938 (the likelihood ratio);
Hastie, Tibshirani and Friedman, *The Elements of Statistical Learning*, 2nd ed., section 7.10 (cross-validation and its error).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import scipy.special

from gradfit.statistics.covariance import EXACT
from gradfit.statistics.record import FitRecord
from gradfit.typing import Floats

CRITERION = "AICc"
F_TEST, LIKELIHOOD_RATIO = "F", "likelihood ratio"
WORSE = 1e-6  # relative: a larger model's loss above the smaller one's by more is no rounding


@dataclass(frozen=True)
class Row:
    """One model of a comparison.

    Attributes
    ----------
    name, model
        What the comparison calls it, and the model's own label.
    status, success
        How the fit ended.
    parameters, n
        How many parameters were fitted (not fixed, tied or on a bound), to how many rows.
    loss, chi_square, reduced_chi_square
        Mean loss; sum of squared residuals in units of sigma, and the same by n - k. NaN for other losses.
    aic, aicc, bic
        Information criteria; NaN where the loss is no likelihood, and AICc where n <= k + 1.
    delta, weight
        AICc above the lowest one; Akaike weight. NaN where there is no AICc, and for a failed fit.
    fold_losses
        Mean loss on each fold when fitted without it; empty without ``folds``.
    remark
        Why numbers are missing; else "".
    """

    name: str
    model: str
    status: str
    success: bool
    parameters: int
    n: int
    loss: float
    chi_square: float
    reduced_chi_square: float
    aic: float
    aicc: float
    bic: float
    delta: float = math.nan
    weight: float = math.nan
    fold_losses: tuple[float, ...] = ()
    remark: str = ""

    @property
    def cross_validated_loss(self) -> float:
        """Mean of the losses on the folds; NaN without folds, or where a fit without one of them failed."""
        return float(np.mean(self.fold_losses)) if self.fold_losses else math.nan

    @property
    def cross_validated_stderr(self) -> float:
        """Standard error of that mean: the standard deviation over the folds by the root of their number."""
        return float(np.std(self.fold_losses, ddof=1)) / math.sqrt(len(self.fold_losses)) if self.fold_losses else math.nan

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        averages = {"cross_validated_loss": self.cross_validated_loss, "cross_validated_stderr": self.cross_validated_stderr}
        plain = asdict(self)
        return {name: value for name, value in plain.items() if name != "remark"} | averages | {"remark": self.remark}


@dataclass(frozen=True)
class Relation:
    """Whether a smaller model is nested in a larger one: True, False, or None where that is not known; and why."""

    nested: bool | None
    reason: str


@dataclass(frozen=True)
class Pair:
    """A smaller and a larger model, and the test of one against the other where there is one.

    Attributes
    ----------
    smaller, larger
        Names.
    nested, reason
        Whether the smaller one is a special case of the larger one (None: not known), and why there is no test, or a doubt of it.
    test
        "F", "likelihood ratio", or "" where there is none.
    statistic, dof, dof_residual, p_value
        F or twice the logarithm of the likelihoods' ratio; how many parameters the larger has more; n - k of the larger (infinite for
        the likelihood ratio); the probability of a statistic as large or larger if the smaller model is true.
    """

    smaller: str
    larger: str
    nested: bool | None
    reason: str = ""
    test: str = ""
    statistic: float = math.nan
    dof: int = 0
    dof_residual: float = math.nan
    p_value: float = math.nan


@dataclass(frozen=True)
class Compared:
    """Models side by side, the best first.

    Attributes
    ----------
    rows
        One per model: by rising delta, then those without one as they were given, failed fits last.
    pairs
        All pairs, tested or not.
    target, n, loss_name, folds, seed
        What was fitted; 0 folds where nothing was cross-validated.
    warnings
        What deserves a look before the numbers are used.
    """

    rows: tuple[Row, ...]
    pairs: tuple[Pair, ...]
    target: str
    n: int
    loss_name: str
    folds: int
    seed: int
    warnings: tuple[str, ...] = ()
    criterion: str = CRITERION

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the models, the best first."""
        return tuple(row.name for row in self.rows)

    @property
    def tests(self) -> tuple[Pair, ...]:
        """The pairs that could be tested."""
        return tuple(pair for pair in self.pairs if pair.test)

    @property
    def best(self) -> str | None:
        """Name of the model with the largest weight; without weights that of the lowest cross-validated loss; None without both."""
        weighed = [row for row in self.rows if math.isfinite(row.weight)]
        if weighed:
            return max(weighed, key=lambda row: row.weight).name
        folded = [row for row in self.rows if row.success and math.isfinite(row.cross_validated_loss)]
        return min(folded, key=lambda row: row.cross_validated_loss).name if folded else None


def compared(
    records: Mapping[str, FitRecord],
    relations: Mapping[tuple[str, str], Relation],
    fold_losses: Mapping[str, Floats],
    remarks: Mapping[str, str],
    *,
    seed: int,
) -> Compared:
    """Put fits to the same data side by side.

    Parameters
    ----------
    records
        The fits by name.
    relations
        What is known of (smaller, larger).
    fold_losses
        Of those that were cross-validated, on the same folds.
    remarks
        What the table should say of a model, by name.
    """
    rounding = _rounding(records.values())
    deviances = {name: deviance(record, rounding) for name, record in records.items()}
    rows = [
        replace(_row(name, record, deviances[name]), fold_losses=tuple(fold_losses.get(name, np.empty(0)).tolist()))
        for name, record in records.items()
    ]
    weighed = _weighed([_remarked(row, remarks.get(row.name, ""), records[row.name]) for row in rows])
    order = sorted(weighed, key=lambda row: (not row.success, row.delta if math.isfinite(row.delta) else math.inf))
    sizes = {row.name: row.parameters for row in rows}
    ordered = [sorted(two, key=lambda name: sizes[name]) for two in combinations(records, 2)]
    pairs = tuple(_pair(smaller, larger, records, sizes, relations, rounding) for smaller, larger in ordered)
    first = next(iter(records.values()))
    warnings = [
        f"the fit {row.name!r} ended as {row.status}, so it is not ranked: {records[row.name].message}"
        for row in rows
        if not row.success
    ]
    warnings += [f"{pair.smaller!r} in {pair.larger!r}: {pair.reason}." for pair in pairs if pair.reason.startswith(BELOW)]
    folds = max((len(row.fold_losses) for row in rows), default=0)
    return Compared(tuple(order), pairs, first.model.target, first.n, first.loss_name, folds, seed, tuple(warnings))


# --- one model ----------------------------------------------------------------------------------------------------------


def size_of(record: FitRecord) -> int:
    """How many parameters were fitted: those that are not fixed, tied or on a bound."""
    return sum(not (estimate.fixed or estimate.tied is not None or estimate.at_bound) for estimate in record.estimates)


def chi_square(record: FitRecord) -> float:
    """Sum of squares in units of sigma, also of a model all of whose parameters are fixed; NaN for other losses."""
    if size_of(record) == 0 and record.loss_name == "squared":
        return record.n * record.loss
    return record.goodness.chi_square


def deviance(record: FitRecord, rounding: float = 0.0) -> float:
    """:math:`-2\\ln L` up to what models of the same data share; NaN where the loss is no likelihood, or the fit has no statistics.

    Parameters
    ----------
    rounding
        The sum of squares below which residuals are the rounding of the data.
    """
    n, squares = record.n, chi_square(record)
    if math.isfinite(squares):
        if record.absolute_sigma:
            return squares
        least = max(squares, rounding)
        return n * (math.log(least) - math.log(n)) if least > 0 else -math.inf
    counts = record.loss_name == "poisson" and math.isinf(record.dof)
    return n * record.loss if counts and math.isfinite(record.loss) else math.nan


def _rounding(records: Any) -> float:
    """Sum of squares that rounding leaves of the data, the same for all models."""
    return max((_rounding_of(record) for record in records), default=0.0)


def _rounding_of(record: FitRecord) -> float:
    points = record.points
    sigma = 1.0 if points.sigma is None else points.sigma
    size = points.target / sigma
    own = size[~points.held_out] if len(points.held_out) == len(size) else size
    return EXACT**2 * record.n * float(np.mean(own**2)) if own.size and np.isfinite(own).all() else 0.0


def _row(name: str, record: FitRecord, minus_two: float) -> Row:
    k, n = size_of(record), record.n
    squares = chi_square(record)
    aic = minus_two + 2 * k
    return Row(
        name=name,
        model=record.model.label,
        status=record.status,
        success=record.success,
        parameters=k,
        n=n,
        loss=record.loss,
        chi_square=squares,
        reduced_chi_square=squares / (n - k) if n > k else math.nan,
        aic=aic,
        aicc=aic + 2 * k * (k + 1) / (n - k - 1) if n > k + 1 else math.nan,
        bic=minus_two + k * math.log(n),
    )


def _remarked(row: Row, said: str, record: FitRecord) -> Row:
    """Say of a model why numbers are missing; a failed fit keeps none that would rank it."""
    if not row.success:
        return replace(row, aic=math.nan, aicc=math.nan, bic=math.nan, remark=f"not ranked: {row.status}")
    notes = [said] if said else []
    if math.isnan(row.aic):
        why = f"the loss {record.loss_name} is no likelihood" if math.isfinite(row.loss) else "its loss is not finite"
        if record.loss_name == "squared" and math.isfinite(row.loss):
            why = "the fit has no sum of squares to judge by"
        notes.append(f"no AIC: {why}")
    elif math.isnan(row.aicc):
        notes.append(f"no AICc: {row.n} rows for {row.parameters} parameters, and it needs {row.parameters + 2}")
    return replace(row, remark="; ".join(notes))


def _weighed(rows: Sequence[Row]) -> list[Row]:
    deltas, weights = akaike_weights(np.array([row.aicc for row in rows]))
    return [
        replace(row, delta=float(delta), weight=float(weight)) for row, delta, weight in zip(rows, deltas, weights, strict=True)
    ]


def akaike_weights(criterion: Floats) -> tuple[Floats, Floats]:
    r"""Differences :math:`\Delta_i` to the lowest criterion, and :math:`e^{-\Delta_i/2}/\sum e^{-\Delta_j/2}`, (models,) each; NaN where it is.

    References
    ----------
    Burnham and Anderson, equation 2.9.
    """
    known = np.isfinite(criterion)
    delta, weight = (np.full(len(criterion), np.nan) for _ in range(2))
    if known.any():
        delta[known] = criterion[known] - criterion[known].min()
        likelihood = np.exp(-delta[known] / 2)
        weight[known] = likelihood / likelihood.sum()
    return delta, weight


# --- two models ---------------------------------------------------------------------------------------------------------

BELOW = "the larger model should fit at least as well"


def f_test(smaller: float, larger: float, *, dof: int, dof_residual: float) -> tuple[float, float]:
    """F of two sums of squares, and its p-value; see the module. ``dof``: parameters more, ``dof_residual``: n - k of the larger."""
    if larger <= 0:
        return (math.inf, 0.0) if smaller > 0 else (0.0, 1.0)
    statistic = (smaller - larger) / dof / (larger / dof_residual)
    return statistic, float(scipy.special.fdtrc(dof, dof_residual, max(statistic, 0.0)))


def likelihood_ratio_test(smaller: float, larger: float, *, dof: int) -> tuple[float, float]:
    """Difference of two deviances, and its p-value by chi-square with ``dof`` degrees of freedom."""
    statistic = smaller - larger
    return statistic, float(scipy.special.chdtrc(dof, max(statistic, 0.0)))


def _pair(
    smaller: str,
    larger: str,
    records: Mapping[str, FitRecord],
    sizes: Mapping[str, int],
    relations: Mapping[tuple[str, str], Relation],
    rounding: float,
) -> Pair:
    relation = relations.get((smaller, larger)) or relations.get((larger, smaller)) or Relation(None, "not looked at")
    pair = Pair(smaller, larger, relation.nested, relation.reason)
    few, many = records[smaller], records[larger]
    extra = sizes[larger] - sizes[smaller]
    if relation.nested is not True:
        return pair
    if extra == 0:
        return replace(pair, reason="as many parameters were fitted in both (those on a bound are not counted)")
    if math.isnan(deviance(few)) or math.isnan(deviance(many)):
        return replace(pair, reason=f"the loss {many.loss_name} is no likelihood, and has no such test")
    doubt = _doubt(many)
    if math.isfinite(chi_square(many)) and not many.absolute_sigma:
        rest = many.n - sizes[larger]
        if rest < 1:
            return replace(pair, reason=f"{larger!r} leaves no degrees of freedom: {many.n} rows, {sizes[larger]} parameters")
        squares = [max(chi_square(record), rounding) for record in (few, many)]
        if squares[1] > squares[0] * (1 + WORSE):
            return replace(pair, reason=_below(*squares))
        statistic, p_value = f_test(*squares, dof=extra, dof_residual=rest)
        return replace(pair, reason=doubt, test=F_TEST, statistic=statistic, dof=extra, dof_residual=float(rest), p_value=p_value)
    levels = [deviance(record) for record in (few, many)]
    if levels[1] > levels[0] + WORSE * max(abs(levels[0]), 1.0):
        return replace(pair, reason=_below(*levels))
    statistic, p_value = likelihood_ratio_test(*levels, dof=extra)
    return replace(
        pair, reason=doubt, test=LIKELIHOOD_RATIO, statistic=statistic, dof=extra, dof_residual=math.inf, p_value=p_value
    )


def _below(smaller: float, larger: float) -> str:
    return (
        f"{BELOW}, and has {larger:.6g} where the smaller one has {smaller:.6g}; it ended in a lesser minimum, so fit it again, started from "
        "the smaller one's parameters"
    )


def _doubt(record: FitRecord) -> str:
    """What makes a test of a larger model approximate."""
    held = [estimate.name for estimate in record.estimates if estimate.at_bound]
    return f"{', '.join(held)} of the larger model stands on a bound, so the p-value is approximate" if held else ""
