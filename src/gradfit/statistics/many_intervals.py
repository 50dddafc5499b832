r"""Intervals of many fits: t for all at once; profile and bootstrap fit by fit, each as for a single one.

Compiled fits whose parameters are all determined and on no bound need nothing of a single fit's statistics for their profiles: the
rays leave along :math:`\pm C_{\cdot j}/\sqrt{C_{jj}}`, C the covariance, for in a linear model these cross at tau.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.special

from gradfit.compiler.compiled import NativeKernel
from gradfit.data.batch import Block
from gradfit.errors import FitError, OptionError, unknown
from gradfit.methods import refits
from gradfit.methods.many import Ends, Starts
from gradfit.methods.refitting import Ray, crossings
from gradfit.model.parameters import Parameters
from gradfit.model.per_fit import placed
from gradfit.statistics.batch import at_bound
from gradfit.statistics.bootstrap import MANY_FAILED, bootstrap
from gradfit.statistics.covariance import EXACT
from gradfit.statistics.intervals import check_level, quantile
from gradfit.statistics.profile import profile
from gradfit.statistics.summary import Fitted
from gradfit.typing import Floats

KINDS = ("t", "profile", "bootstrap")
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "t": (),
    "profile": ("threads", "progress"),
    "bootstrap": ("resamples", "scheme", "seed", "method", "threads", "progress"),
}


def check_options(level: float, kind: str, options: Mapping[str, Any]) -> None:
    """Refuse a level, kind or option that is none.

    Raises
    ------
    OptionError
        Naming what is known.
    """
    check_level(level)
    if kind not in KINDS:
        raise OptionError(unknown("kind of interval", kind, KINDS))
    for name in options:
        if name not in OPTIONS[kind]:
            raise OptionError(unknown(f"option of {kind} intervals,", name, OPTIONS[kind]))


def t_limits(values: Floats, stderr: Floats, dof: Floats, level: float) -> tuple[Floats, Floats]:
    """Lower and upper limits, (count, m) each, by Student's t with the degrees of freedom of each fit, (count,)."""
    check_level(level)
    each = np.full(len(dof), np.nan)
    each[np.isinf(dof)] = quantile(level, math.inf)
    some = np.isfinite(dof) & (dof > 0)
    known, back = np.unique(dof[some], return_inverse=True)
    each[some] = scipy.special.stdtrit(known, 0.5 + level / 2)[back]
    half = np.where(stderr == 0, 0.0, each[:, None] * stderr)
    return values - half, values + half


def plain_profiles(
    kernel: NativeKernel, known: Parameters, block: Block, starts: Starts, ends: Ends, *, level: float, absolute: bool
) -> tuple[Floats, Floats, np.ndarray]:
    """Profile limits of compiled fits, (count, p) each; and which fits they were found for, the others need a closer look.

    Parameters
    ----------
    ends
        Where the fits ended, to which all looks go.
    """
    count, p = ends.theta.shape
    lower, upper = np.full((count, p), np.nan), np.full((count, p), np.nan)
    lows, highs = (np.broadcast_to(side, (count, p)) for side in (starts.lower, starts.upper))
    dof = np.full(count, math.inf) if absolute else (block.sizes - p).astype(np.float64)
    with np.errstate(all="ignore"):
        scale = np.ones(count) if absolute else ends.sum / dof
        plain = (block.sizes > p) & ~at_bound(ends.theta, lows, highs).any(axis=1)
        plain &= True if ends.doubtful is None else ~ends.doubtful.any(axis=1)
        plain &= (ends.variances > 0).all(axis=1) & (absolute | (ends.sum > EXACT**2 * block.squares))
    inverse = ends.inverse
    for place in np.flatnonzero(plain).tolist():
        fixed = starts.fixed if starts.fixed.ndim == 1 else starts.fixed[place]
        own = placed(known, ends.theta[place], lows[place], highs[place], fixed)
        data = block.dataset(place, kernel.model.data_names, "")
        some = replace(kernel.on(data), parameters=own)
        matrix = scale[place] * inverse[place]
        rays = [Ray(way * matrix[:, j] / math.sqrt(matrix[j, j]), np.arange(p) == j) for j in range(p) for way in (-1.0, 1.0)]
        found = crossings(
            some, ends.theta[place], lows[place], highs[place], rays, tau=quantile(level, float(dof[place])),
            variance=float(scale[place]), least=float(ends.sum[place]),
        )  # fmt: skip
        for number, crossing in enumerate(found):
            side, beyond = ((lower, -math.inf), (upper, math.inf))[number % 2]
            j = number // 2
            if crossing.code in (refits.CROSSED, refits.AT_BOUND):
                side[place, j] = crossing.theta[j]
            elif crossing.code == refits.OPEN:
                side[place, j] = beyond
    return lower, upper, plain


def profile_limits(fitted: Fitted, names: tuple[str, ...], level: float) -> Floats:
    """Profile limits of one fit, (2, m), in the order of ``names``."""
    found = profile(fitted, level).intervals
    return np.array([found[name] for name in names]).reshape(-1, 2).T


def bootstrap_limits(
    fitted: Fitted, names: tuple[str, ...], level: float, *, place: int, seed: int, method: str = "studentized", **options: Any
) -> tuple[Floats, bool]:
    """Bootstrap limits of one fit, (2, m), and whether so many resampled fits failed that they come from no fair sample.

    Random numbers depend on the seed and on the place of the fit, not on which fits came before.
    """
    own = int(np.random.SeedSequence([seed, place]).generate_state(1, np.uint64)[0] >> 1)
    try:
        found = bootstrap(fitted, seed=own, threads=1, progress=False, **options)
    except FitError:  # not at a minimum, or hardly a resample converged
        return np.full((2, len(names)), np.nan), False
    intervals = found.intervals(level, method)
    total = found.failed + len(found.samples)
    return np.array([intervals[name] for name in names]).reshape(-1, 2).T, found.failed > MANY_FAILED * total
