r"""The bootstrap: how the estimates scatter when the data are drawn again, in a way the data themselves suggest.

============  ==============================================================  ==================================================
scheme        a resampled data set                                            holds where
============  ==============================================================  ==================================================
residual      :math:`f_i + \sigma_i e^*`, e* drawn from the residuals         errors alike at all points, in units of sigma,
              :math:`r_i/\sqrt{1 - h_i}`, centred                             of any distribution
pairs         n rows drawn from the n rows                                    rows independent; errors may differ from row to row
parametric    :math:`f_i + s\sigma_i z`, z normal; for counts                 the distribution assumed in the fit
              Poisson numbers of mean :math:`f_i`; with errors in x
              x and y around the nearest point of the model
============  ==============================================================  ==================================================

with h the leverage. With a covariance matrix :math:`LL^T` of the points, whitened residuals are drawn, and L times them added.

A resampled fit that fails, or whose data do not determine a parameter that the original data determine (n equal points give no slope),
is left out and counted.

Intervals: *studentized*, :math:`\theta - q_{1-\alpha/2} s_\theta` to :math:`\theta - q_{\alpha/2} s_\theta` with q the quantiles of
:math:`(\theta^* - \theta)/s_{\theta^*}`, which like Student's t allows for the error of the error; and *percentile*, the quantiles of
:math:`\theta^*`, for which a few points are too few.

References
----------
Davison and Hinkley, *Bootstrap Methods and their Application*, 1997, sections 2.4, 5.2, 6.2-6.3 and 7.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from gradfit.compiler.orthogonal import OrthogonalKernel, sigma_of
from gradfit.drivers.monitor import check_progress
from gradfit.drivers.resampled import Drawn, Resampling
from gradfit.errors import FitError, OptionError, unknown
from gradfit.statistics.covariance import EXACT_DATA, no_freedom
from gradfit.statistics.intervals import check_level
from gradfit.statistics.rank import directions, jacobian_error
from gradfit.statistics.summary import Fitted, why_no_errors
from gradfit.typing import Floats

SCHEMES = ("residual", "pairs", "parametric")
METHODS = ("studentized", "percentile")
RESAMPLES = 1000
MANY_FAILED = 0.05  # of the resamples: beyond, what is left is no fair sample


@dataclass(frozen=True)
class Bootstrap:
    """Resampled estimates.

    Attributes
    ----------
    names
        Parameters that are not fixed, in the order of the columns.
    samples
        (resamples, p), estimates of those fits that converged; NaN of a parameter that the original data do not determine.
    stderrs
        (resamples, p), their standard errors; NaN where there is none (tied parameters, on a bound, other losses).
    values, errors
        The original estimates and standard errors, (p,).
    failed
        How many fits did not converge, or had data that do not determine a parameter.
    reasons
        Why a parameter has no interval, by name.
    scheme, seed
        How, and from what seed, the data were drawn.
    """

    names: tuple[str, ...]
    samples: Floats
    stderrs: Floats
    values: Floats
    errors: Floats
    failed: int
    reasons: Mapping[str, str]
    scheme: str
    seed: int

    @property
    def covariance(self) -> Floats:
        """Covariance of the estimates over the resamples, (p, p)."""
        return np.atleast_2d(np.cov(self.samples, rowvar=False)) if len(self.names) else np.empty((0, 0))

    @property
    def stderr(self) -> dict[str, float]:
        """Standard deviation of each estimate over the resamples."""
        return dict(zip(self.names, np.sqrt(np.diag(self.covariance)).tolist(), strict=True))

    def intervals(self, level: float = 0.95, method: str = "studentized") -> dict[str, tuple[float, float]]:
        """Interval of each parameter; "studentized" (percentile where there are no standard errors) or "percentile"; NaN for a reason.

        Raises
        ------
        OptionError
            A level outside (0, 1) or too high for so few resamples, an unknown method.
        """
        check_level(level)
        if method not in METHODS:
            raise OptionError(unknown("method of the bootstrap interval", method, METHODS))
        if len(self.samples) * (1 - level) < 2:
            needed = math.ceil(2 / (1 - level))
            raise OptionError(f"{len(self.samples)} resamples do not tell a level of {level}; it needs {needed} or more.")
        return {name: self._interval(place, level, method) for place, name in enumerate(self.names)}

    def _interval(self, place: int, level: float, method: str) -> tuple[float, float]:
        tails = [0.5 - level / 2, 0.5 + level / 2]
        own, error = self.values[place], self.errors[place]
        errors = self.stderrs[:, place]
        usable = np.isfinite(errors) & (errors > 0)
        if method == "percentile" or not math.isfinite(error) or usable.sum() < (1 - MANY_FAILED) * len(errors):
            lower, upper = np.quantile(self.samples[:, place], tails)
            return float(lower), float(upper)
        low, high = np.quantile((self.samples[usable, place] - own) / errors[usable], tails)
        return float(own - high * error), float(own - low * error)

    def __repr__(self) -> str:
        """Show how many, and how they were drawn."""
        lost = f", {self.failed} more failed" if self.failed else ""
        return f"Bootstrap({len(self.samples)} resamples of {', '.join(self.names)}; {self.scheme}, seed {self.seed}{lost})"


def bootstrap(
    fitted: Fitted,
    *,
    resamples: int = RESAMPLES,
    scheme: str | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: bool | None = None,
) -> Bootstrap:
    """Fit again to resampled data.

    Raises
    ------
    OptionError
        Numbers that are none, an unknown scheme, or one that this loss or these data cannot have.
    FitError
        The fit itself is not at a minimum, its residuals tell nothing of errors, or hardly a resample converged.
    """
    _check_numbers(resamples, seed, threads)
    check_progress(progress)
    chosen = _scheme(fitted, scheme)
    outcome, setting = fitted.outcome, fitted.setting
    why = why_no_errors(outcome, fitted.kernel) or _no_residuals(fitted, chosen)
    if why:
        raise FitError(f"there is nothing to resample: {why}.")
    parameters = setting.parameters
    draw = _drawing(fitted, chosen, np.random.default_rng(seed))
    again = Resampling(outcome.kernel, setting.data, outcome.solution.theta, parameters, known=math.isinf(fitted.dof))
    refits = again.refit(draw, resamples, threads=threads, progress=progress)
    open_ones = fitted.undetermined
    usable = refits.converged & ~np.isinf(refits.stderr[:, ~open_ones]).any(axis=1)
    count = int(usable.sum())
    if count < 2:
        raise FitError(f"{count} of {resamples} resampled fits converged; the data may hardly determine the parameters.")
    theta, stderr = refits.theta[usable].copy(), refits.stderr[usable].copy()
    theta[:, open_ones] = stderr[:, open_ones] = np.nan
    return _collected(fitted, theta, stderr, resamples - count, chosen, seed)


def _no_residuals(fitted: Fitted, scheme: str) -> str:
    """Say why the residuals, or rows, say nothing of errors; "" where they do, or are not asked."""
    n, p = fitted.setting.data.n, len(fitted.outcome.solution.theta)
    spread = fitted.covariance
    if scheme == "parametric" and math.isinf(fitted.dof):
        return ""
    if n <= p:
        return no_freedom(n, p)
    return EXACT_DATA if spread.exact or (fitted.kernel.loss_kind == "least_squares" and not spread.scale > 0) else ""


def _check_numbers(resamples: int, seed: int, threads: int | None) -> None:
    for name, value, least in (("resamples", resamples, 2), ("seed", seed, 0), ("threads", 1 if threads is None else threads, 1)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise OptionError(f"{name} is {value!r}; expected a whole number, {least} or more.")


def _scheme(fitted: Fitted, scheme: str | None) -> str:
    kernel, data = fitted.kernel, fitted.setting.data
    kind = kernel.loss_kind
    if scheme is None and data.sigma_x is not None:
        return "parametric"
    if scheme is None:
        counts = kernel.loss_function.name == "poisson"
        return "parametric" if kind == "likelihood" else "pairs" if kind == "custom" or counts else "residual"
    if scheme not in SCHEMES:
        raise OptionError(unknown("scheme of the bootstrap", scheme, SCHEMES))
    if scheme == "pairs" and data.covariance is not None:
        raise OptionError("rows with a covariance matrix cannot be drawn one by one; use scheme='residual' or 'parametric'.")
    if scheme == "residual" and data.sigma_x is not None:
        raise OptionError("with errors in x a residual is one number for errors of x and y; use scheme='parametric' or 'pairs'.")
    if scheme == "residual" and kernel.loss_function.name == "poisson":
        raise OptionError("residuals of counts are not alike at all points; use scheme='parametric' or 'pairs'.")
    if scheme == "parametric" and kind not in ("least_squares", "likelihood"):
        raise OptionError(
            f"the loss {kernel.loss_function.name} assumes no distribution to draw from; use scheme='residual' or 'pairs'."
        )
    return scheme


def _drawing(fitted: Fitted, scheme: str, generator: np.random.Generator) -> Callable[[int], Drawn]:
    """Give the function that draws data sets."""
    data, n = fitted.setting.data, fitted.setting.data.n
    if scheme == "pairs":
        return lambda count: Drawn(index=generator.integers(0, n, (count, n)))
    kernel, theta = fitted.outcome.kernel, fitted.outcome.solution.theta
    if isinstance(kernel, OrthogonalKernel):
        return _drawing_in_x_and_y(fitted, kernel, generator)
    with torch.no_grad():
        prediction = kernel.predict(torch.as_tensor(theta, dtype=kernel.dtype)).double().numpy()
    if fitted.kernel.loss_kind == "likelihood":
        return lambda count: Drawn(target=generator.poisson(prediction, (count, n)).astype(np.float64))

    def with_errors(white: Floats) -> Drawn:
        """Add errors, (count, n) in units of sigma."""
        if data.covariance is not None:
            return Drawn(target=prediction + white @ data.cholesky.T)
        return Drawn(target=prediction + (white if data.sigma is None else white * data.sigma))

    if scheme == "parametric":
        deviation = math.sqrt(fitted.covariance.scale)
        return lambda count: with_errors(deviation * generator.standard_normal((count, n)))
    pool = _modified_residuals(fitted, prediction)
    return lambda count: with_errors(pool[generator.integers(0, n, (count, n))])


def _drawing_in_x_and_y(fitted: Fitted, kernel: OrthogonalKernel, generator: np.random.Generator) -> Callable[[int], Drawn]:
    """Draw x and y around the nearest points of the model."""
    found, data, deviation = kernel.nearest(fitted.outcome.solution.theta), kernel.data, math.sqrt(fitted.covariance.scale)
    errors = sigma_of(data)

    def draw(count: int) -> Drawn:
        shape = (count, data.n)
        target = found.prediction + deviation * errors * generator.standard_normal(shape)
        columns = {
            name: data.columns[name] + moved + deviation * (data.sigma_x or {})[name] * generator.standard_normal(shape)
            for name, moved in found.errors.items()
        }
        return Drawn(target=target, columns=columns)

    return draw


def _modified_residuals(fitted: Fitted, prediction: Floats) -> Floats:
    r"""Residuals in units of sigma, over :math:`\sqrt{1 - h}` so that all have the errors' variance, and centred; (n,)."""
    data, near = fitted.setting.data, fitted.outcome.near
    assert near is not None
    kernel, theta = fitted.outcome.kernel, fitted.outcome.solution.theta
    _, jacobian = kernel.residual(theta)
    jacobian = jacobian[:, ~fitted.at_bound]
    if fitted.undetermined.any():
        q = directions(jacobian, jacobian_error(kernel, theta, near)).left
    else:
        q, _ = np.linalg.qr(jacobian / np.linalg.norm(jacobian, axis=0))
    leverage = np.minimum((q**2).sum(axis=1), 1 - 1e-9)  # a point that decides alone has no residual to scale
    residual = data.white(data.target - prediction) / np.sqrt(1 - leverage)
    return np.asarray(residual - residual.mean())


def _collected(fitted: Fitted, theta: Floats, stderr: Floats, failed: int, scheme: str, seed: int) -> Bootstrap:
    """All parameters that are not fixed, tied ones computed from the others."""
    parameters, own = fitted.setting.parameters, fitted.outcome.solution.theta
    errors = np.sqrt(np.diag(fitted.covariance.matrix))
    names = parameters.free_elements
    lost = dict(zip(names, fitted.covariance.reasons, strict=True))
    if parameters.ties:
        kept = [place for place, name in enumerate(parameters.all_elements) if not parameters.specs[name.partition("[")[0]].fixed]
        names = tuple(parameters.all_elements[place] for place in kept)
        free = {name: place for place, name in enumerate(parameters.free_elements)}
        nothing = np.full(len(theta), np.nan)
        stderr = np.stack([stderr[:, free[name]] if name in free else nothing for name in names], axis=1)
        errors = np.array([errors[free[name]] if name in free else np.nan for name in names])
        theta, own = (parameters.all_values_of(points)[:, kept] for points in (theta, own[None]))
        own = own[0]
    follows = "it follows parameters that the data do not determine"
    reasons = {name: lost.get(name) or follows for name, sample in zip(names, theta.T, strict=True) if np.isnan(sample).all()}
    return Bootstrap(names, theta, stderr, own, errors, failed, reasons, scheme, seed)
