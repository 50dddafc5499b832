"""Accuracy of many fits: how far each ended from the minimum, in standard errors. ``python bench/many_accuracy.py [--fits 20000]``.

Every fit is followed up in double precision by steps that are not gradfit's: Gauss and Newton's by QR, in numpy, from where gradfit
ended; and where these do not settle soon, scipy's ``least_squares`` with exact derivatives and the tightest tolerances. Where that leads
to a point which one more step would not leave, less than 1% of each standard error away, the fit was at a minimum.

A minimum need not be the lowest. So scipy also begins from gradfit's own starts (``--from-start`` of the fits), and where it ends
elsewhere, by more than 1% of a standard error, the sums of squares say who is lower. Where the loss only falls towards infinity there is
no minimum to be at; gradfit must then not say that it converged, or not vouch for the errors.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import least_squares

import adapters
from many_problems import DECAY, GAUSSIAN, SETS, Many

NEAR = 0.01  # of a standard error
SETTLED = 1e-5  # of a standard error: what one more step would do
STEPS = 8
PIECE = 5000


@dataclass(frozen=True)
class End:
    """Where a follow-up ended: parameters and standard errors (fits, p), sums of squares, and which settled (fits,)."""

    theta: np.ndarray
    errors: np.ndarray
    sums: np.ndarray
    settled: np.ndarray


def main() -> None:
    """Print a line for each set of data, precision and model."""
    parser = argparse.ArgumentParser(description="How far many fits end from the minimum, in standard errors.")
    parser.add_argument("--fits", type=int, default=20_000)
    parser.add_argument(
        "--from-start", type=int, default=1000, metavar="FITS", help="of which scipy makes so many from their start"
    )
    parser.add_argument("--only", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    for work in (GAUSSIAN, DECAY):
        for name in asked.only:
            drawn = SETS[name](work, asked.fits)
            for dtype in ("float32", "float64"):
                print(f"{work.title}, {name}, {dtype}: {judged(drawn.of(dtype), asked.from_start, asked.threads)}", flush=True)


def judged(data: Many, from_start: int, threads: int | None) -> str:
    """Fit, follow up, and say what came out."""
    fits = adapters.fit_many(data, threads)
    values, errors = (np.column_stack([table[name] for name in data.work.names]) for table in (fits.values, fits.stderr))
    vouched = fits.success & np.isfinite(errors).all(axis=1)
    end = followed(data, values)
    with np.errstate(all="ignore"):
        away = (np.abs(values - end.theta) / end.errors).max(axis=1)
        mistaken = np.abs(errors / end.errors - 1).max(axis=1)
    good = end.settled & (away <= NEAR)
    wrong = vouched & ~good
    told = [
        f"{good[vouched].mean():.2%} of {vouched.sum()} within 1% of a standard error, furthest {np.nanmax(away[vouched & end.settled]):.1e}",
        f"errors off by {np.nanmax(mistaken[vouched & good]):.1e} at most",
    ]
    if wrong.any():
        told.append(f"WRONG: {wrong.sum()}, the first is fit {np.flatnonzero(wrong)[0]}")
    if not vouched.all():
        others = ", ".join(f"{number} {name}" for name, number in fits.counts.items())
        told.append(
            f"not vouched for: {(~vouched).sum()} ({others}), {(good & ~vouched).sum()} of them at a minimum all the same"
        )
    told.append(compared_from_start(data.part(from_start), values, end, vouched))
    return "; ".join(told)


def compared_from_start(data: Many, values: np.ndarray, end: End, vouched: np.ndarray) -> str:
    """Let scipy begin where gradfit did, and say how often they ended apart, and who is lower."""
    count = len(data)
    scipy = [exact(data, y, start) for y, start in zip(data.y, data.start, strict=True)]
    theta, sums = np.array([fit[0] for fit in scipy]), np.array([fit[1] for fit in scipy])
    with np.errstate(all="ignore"):
        apart = ~((np.abs(np.abs(theta) - np.abs(end.theta[:count])) <= NEAR * end.errors[:count]).all(axis=1))
    own = np.where(end.settled, end.sums, np.inf)[:count]
    lower, higher = apart & (own < sums), apart & (own >= sums) & vouched[:count]
    neither = apart & ~lower & ~higher
    return f"of {count} from scipy's way {apart.sum()} elsewhere: {lower.sum()} lower, {higher.sum()} higher, {neither.sum()} without a verdict"


def followed(data: Many, values: np.ndarray) -> End:
    """Follow all fits up, piece by piece."""
    pieces = []
    for begin in range(0, len(values), PIECE):
        y, theta = data.y[begin : begin + PIECE].astype(np.float64), values[begin : begin + PIECE].copy()
        end = newton(data, y, theta, STEPS)
        for place in np.flatnonzero(~end.settled & np.isfinite(theta).all(axis=1)):  # steps of a slow way, or none that leads on
            theta[place], _ = exact(data, y[place], theta[place])
        theta[end.settled] = end.theta[end.settled]
        pieces.append(newton(data, y, theta, 0))
    return End(*(np.concatenate([getattr(piece, name) for piece in pieces]) for name in ("theta", "errors", "sums", "settled")))


def newton(data: Many, y: np.ndarray, theta: np.ndarray, steps: int) -> End:
    """Take so many of Gauss and Newton's steps by QR from each point, and see how far one more would lead."""
    x, theta = data.x.astype(np.float64), theta.copy()
    n, p = len(x), theta.shape[1]
    with np.errstate(all="ignore"):
        for left in reversed(range(steps + 1)):
            value, columns = data.work.slopes(np, x, *(column[:, None] for column in theta.T))
            residual, jacobian = value - y, np.stack(np.broadcast_arrays(*columns), axis=2)
            broken = ~(np.isfinite(residual).all(axis=1) & np.isfinite(jacobian).all(axis=(1, 2)))
            jacobian[broken], residual[broken] = 0.0, np.nan
            q, r = np.linalg.qr(jacobian)
            r[np.abs(np.diagonal(r, axis1=1, axis2=2)).min(axis=1) == 0] = np.nan
            inverse = _inverse(r)
            step = -np.einsum("fjk,fik,fi->fj", inverse, q, residual)
            theta += step if left else 0.0
        sums = (residual**2).sum(axis=1)
        errors = np.sqrt((inverse**2).sum(axis=2) * sums[:, None] / (n - p))
        settled = (np.abs(step) <= SETTLED * errors + 1e-13 * np.abs(theta)).all(axis=1)
    return End(theta, errors, sums, settled)


def exact(data: Many, y: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, float]:
    """Fit one data set by scipy, with exact derivatives and the tightest tolerances: parameters, sum of squares."""
    x, y = data.x.astype(np.float64), np.asarray(y, dtype=np.float64)
    work = data.work

    def residual(theta: Any) -> np.ndarray:
        return np.asarray(work.plain(x, *theta) - y)

    def slopes(theta: Any) -> np.ndarray:
        return work.jacobian(x, *theta)

    with np.errstate(all="ignore"):
        try:
            found = least_squares(residual, start, slopes, method="lm", xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=2000)
        except ValueError:  # the model is not finite where it went
            return np.full(len(start), np.nan), np.inf
    return found.x, float(2 * found.cost)


def _inverse(r: np.ndarray) -> np.ndarray:
    """Inverses of upper triangles; NaN where there is none."""
    found = np.full_like(r, np.nan)
    sound = np.isfinite(r).all(axis=(1, 2))
    found[sound] = np.linalg.inv(r[sound])
    return found


if __name__ == "__main__":
    main()
