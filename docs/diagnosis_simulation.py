"""Learning curves of known truth against the verdicts of gradfit: prints confusion matrices as markdown.

    python docs/diagnosis_simulation.py [--curves 2000] [--fits 600] [--seed 0]

Two kinds. *Drawn curves*: exponentials and power laws with noise along the epochs (none, white, autocorrelated), and
with the sampling error of the levels that n points have. *Fits*: polynomials, random Fourier features and small neural
networks, trained by full-batch and mini-batch gradient descent. Their truth is the mean squared error on thousands of
hidden points without noise, plus the variance of the noise; and the training loss had the run been twice as long.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtri

from gradfit.statistics.diagnosis import diagnose

Array = NDArray[np.float64]
Case = tuple[str, dict[str, object]]
VERDICTS = [
    "nothing learned",
    "overfitting",
    "falling together",
    "offset",
    "too few points",
    "not converged",
    "diverged",
    "no validation",
]


# Drawn curves -------------------------------------------------------------------------------------------------------


def noise(rng: np.random.Generator, count: int, size: float, phi: float) -> Array:
    """Gaussian noise of standard deviation ``size``; autocorrelation ``phi`` from one epoch to the next."""
    white = rng.standard_normal(count)
    if phi:
        for k in range(1, count):
            white[k] = phi * white[k - 1] + (1 - phi**2) ** 0.5 * white[k]
    return size * white


def decay(rng: np.random.Generator, count: int, settled: bool) -> Array:
    """From 1 towards 0: exponentials of one or two rates, or a power law; settled or still falling at the end."""
    t = np.arange(count, dtype=float)
    tau = count / (rng.uniform(15, 100) if settled else rng.uniform(0.7, 2.5))
    if settled:
        fast = tau / rng.uniform(1, 20)
        share = rng.uniform()
        return share * np.exp(-t / tau) + (1 - share) * np.exp(-t / fast)
    if rng.uniform() < 0.5:
        return np.exp(-t / tau)
    return (1 + t / (count / 30)) ** -rng.uniform(0.5, 1.5)


def drawn(rng: np.random.Generator, truth: str) -> dict[str, object]:
    """Draw one pair of curves whose picture is plain."""
    short = truth in ("falling together", "offset", "too few points", "no validation") and rng.uniform() < 0.1
    count = int(rng.integers(4, 10)) if short else int(10 ** rng.uniform(1.5, 4))
    n_train, n_validation = (int(10 ** rng.uniform(1.5, 4)) for _ in range(2))
    relative = 0.0 if short else float(rng.choice([0.0, 0.003, 0.03, 0.1]))
    phi = float(rng.choice([0.0, 0.5, 0.8]))
    # More epochs than points of noise: autocorrelation must be short against the curve to be seen as such.
    phi = phi if count > 200 else 0.0
    start = 10 ** rng.uniform(0.5, 6)
    floor_t = rng.chisquare(n_train) / n_train
    floor_v = rng.chisquare(n_validation) / n_validation
    kind = rng.choice(["falling together", "overfitting", "offset"]) if truth == "too few points" else truth
    settled = truth not in ("not converged",)
    shape = decay(rng, count, settled)
    t = floor_t + start * shape
    v = floor_v + start * rng.uniform(0.5, 2) * shape
    time_axis = np.linspace(0, 1, count)
    if kind == "overfitting":
        # The fall must be over when the rise begins, or the validation curve only falls more slowly.
        fast = decay(rng, count, settled) ** 4
        t, v = floor_t + start * fast, floor_v + start * fast
        rise = max(0.5, 80 / n_validation) * 10 ** rng.uniform(0, 1)
        begin = rng.uniform(0.2, 0.6)
        growth = 1 - np.exp(-rng.uniform(2, 8) * np.clip(time_axis - begin, 0, None) / (1 - begin))
        v = v + rise * growth / growth[-1]
        t = t - floor_t * rng.uniform(0.1, 0.9) * growth / growth[-1]
    elif kind == "offset":
        clear = float(fdtri(n_validation, n_train, 0.995)) * (1 + 3 * (2 / n_validation + 2 / n_train) ** 0.5)
        v = v + max(clear, 1.3) - 1 + rng.exponential(1)
    elif kind == "not converged":
        begin = 10 ** rng.uniform(0.5, 2)
        t, v = floor_t + begin * shape, floor_v + begin * shape
    elif kind == "nothing learned":
        slope = rng.choice([0.0, 10 ** rng.uniform(-9, -3)])
        t, v = floor_t * (1 - slope * time_axis), floor_v * (1 - slope * time_axis)
    elif kind == "diverged":
        explode = np.exp(rng.uniform(2, 300) * np.clip(time_axis - rng.uniform(0, 0.7), 0, None))
        t, v = floor_t * rng.uniform(1, 3) * explode + 5 * shape, floor_v * explode + 5 * shape
    t, v = (c * (1 + noise(rng, count, relative, phi)) for c in (t, v))
    if kind == "diverged" and rng.uniform() < 0.3:
        t[-int(rng.integers(1, count // 2)) :] = np.nan
    if truth == "too few points":
        n_validation = int(rng.integers(1, 8))
    curves: dict[str, object] = {"train_loss": t, "n_train": n_train}
    if truth != "no validation":
        curves |= {"validation_loss": v, "n_validation": n_validation}
    if short:
        curves["converged"] = True
    return curves


# Fits ---------------------------------------------------------------------------------------------------------------


def features(rng: np.random.Generator) -> tuple[Callable[[Array], Array], int]:
    """A basis, orthonormal on [-1, 1] or nearly: Legendre polynomials or random Fourier features."""
    if rng.uniform() < 0.5:
        degree = int(rng.integers(1, 20))
        scale = np.sqrt(2 * np.arange(degree + 1) + 1)
        return lambda x: np.polynomial.legendre.legvander(x, degree) * scale, degree + 1
    count = int(rng.integers(10, 120))
    frequency, phase = rng.standard_normal(count) * rng.uniform(2, 10), rng.uniform(0, 2 * np.pi, count)
    return lambda x: np.cos(np.outer(x, frequency) + phase) * (2 / count) ** 0.5, count


def truth_of(train: Array, population: Array, epochs: int, n_train: int, n_validation: int) -> tuple[str, bool]:
    """The picture the hidden truth shows ("grey" if it is not plain), and whether the fit certainly does not overfit.

    ``train`` is the full-batch loss at twice the epochs, ``population`` the hidden loss during the epochs.
    """
    end, best = population[-1], population.min()
    rise = end / best - 1
    not_overfit = rise < 0.02
    further = 1 - train[2 * epochs - 1] / train[epochs - 1]
    gap = end / train[epochs - 1]
    clear = 1.1 * float(fdtri(n_validation, n_train, 0.995)) * (1 + 2 * (2 / n_validation) ** 0.5)
    if rise > 0.3 and rise * n_validation > 40:
        return "overfitting", False
    if not not_overfit:
        return "grey", False
    if further > 0.05:
        return "not converged", True
    if further > 0.005:
        return "grey", True
    if gap < 1.1:
        return "falling together", True
    return ("offset" if gap > max(clear, 1.3) else "grey"), True


def linear_fit(rng: np.random.Generator, batch: bool) -> tuple[str, bool, dict[str, object]]:
    """Least squares on a basis by gradient descent, full-batch or mini-batch."""
    basis, width = features(rng)
    n_train, n_validation = int(10 ** rng.uniform(1, 2.5)), int(10 ** rng.uniform(1, 3))
    sigma = 10 ** rng.uniform(-1.5, 0.3)
    bends = rng.uniform(0.5, 4)
    x, xv, hidden = (rng.uniform(-1, 1, n) for n in (n_train, n_validation, 4000))
    target = lambda x: np.sin(np.pi * bends * x)  # noqa: E731
    y, yv = (target(x) + sigma * rng.standard_normal(len(x)) for x in (x, xv))
    f, fv, fh = basis(x), basis(xv), basis(hidden)
    start = rng.standard_normal(width) * rng.choice([0.0, 1.0, 30.0])
    fastest = np.linalg.eigvalsh(f.T @ f / n_train)[-1]
    kind = rng.uniform()
    rate = (2.1 * rng.uniform(1, 2) if kind < 0.1 else 1e-9 if kind < 0.2 else rng.uniform(0.1, 1) / (1 + 4 * batch)) / fastest
    epochs = int(10 ** rng.uniform(1.3, 2.7 if batch else 4))
    weights, seen = (minibatch if batch else full_batch)(rng, f, y, start, rate, epochs)
    mse = lambda f, y: ((weights @ f.T - y) ** 2).mean(axis=1)  # noqa: E731
    with np.errstate(all="ignore"):
        full, validation, moment = mse(f, y), mse(fv, yv), fh.T @ fh / len(hidden)
        cross, power = fh.T @ target(hidden) / len(hidden), float((target(hidden) ** 2).mean())
        population = power - 2 * weights @ cross + np.einsum("ti,ij,tj->t", weights, moment, weights, optimize=True) + sigma**2
    shown = {"train_loss": seen[:epochs], "validation_loss": validation[:epochs]}
    shown |= {"n_train": n_train, "n_validation": n_validation}
    if kind < 0.1:
        return "diverged", True, shown
    if kind < 0.2:
        return "nothing learned", True, shown
    truth, not_overfit = truth_of(full, population[:epochs], epochs, n_train, n_validation)
    return truth, not_overfit, shown


def full_batch(rng: np.random.Generator, f: Array, y: Array, start: Array, rate: float, epochs: int) -> tuple[Array, Array]:
    """Weights before each of ``2 * epochs`` steps, in closed form, and the loss of each."""
    eigenvalues, axes = np.linalg.eigh(f.T @ f / len(y))
    rotated = axes.T @ (f.T @ y / len(y))
    t = np.arange(2 * epochs)[:, None]
    with np.errstate(all="ignore"):
        shrink = (1 - rate * eigenvalues) ** t
        gain = np.where(eigenvalues > 1e-13, (1 - shrink) / np.where(eigenvalues > 1e-13, eigenvalues, 1), rate * t)
        weights = (shrink * (axes.T @ start) + gain * rotated) @ axes.T
        return weights, ((weights @ f.T - y) ** 2).mean(axis=1)


def minibatch(rng: np.random.Generator, f: Array, y: Array, start: Array, rate: float, epochs: int) -> tuple[Array, Array]:
    """Weights after each epoch of steps on batches of about a tenth of the data; the mean loss seen on the way."""
    w, weights, seen = start.copy(), [], []
    parts = min(10, len(y) // 2)
    with np.errstate(all="ignore"):
        for _ in range(2 * epochs):
            total = 0.0
            for rows in np.array_split(rng.permutation(len(y)), parts):
                residual = f[rows] @ w - y[rows]
                total += float(residual @ residual)
                w = w - rate / len(rows) * (f[rows].T @ residual)
            weights.append(w)
            seen.append(total / len(y))
    return np.array(weights), np.array(seen)


def network_fit(rng: np.random.Generator) -> tuple[str, bool, dict[str, object]]:
    """One hidden layer of tanh by gradient descent with momentum, full-batch or mini-batch."""
    n_train, n_validation, width = (
        int(10 ** rng.uniform(1, 2.3)),
        int(10 ** rng.uniform(1, 3)),
        int(rng.integers(4, 40)),
    )
    sigma, bends, parts = 10 ** rng.uniform(-1.3, 0), rng.uniform(0.3, 2), int(rng.choice([1, 1, 4]))
    epochs = int(10 ** rng.uniform(2, 3.2)) // parts
    x, xv, hidden = (rng.uniform(-1, 1, n) for n in (n_train, n_validation, 1000))
    y, yv = (np.sin(np.pi * bends * x) + sigma * rng.standard_normal(len(x)) for x in (x, xv))
    w = [
        rng.standard_normal(width) * 3,
        rng.standard_normal(width),
        rng.standard_normal(width) / width**0.5,
        np.zeros(1),
    ]
    speed = [np.zeros_like(p) for p in w]
    rate, momentum = rng.uniform(0.01, 0.05), rng.choice([0.0, 0.9])
    predict = lambda x: np.tanh(np.outer(x, w[0]) + w[1]) @ w[2] + w[3]  # noqa: E731
    seen, full, validation, population = [], [], [], []
    for _ in range(2 * epochs):
        full.append(float(((predict(x) - y) ** 2).mean()))
        validation.append(float(((predict(xv) - yv) ** 2).mean()))
        population.append(float(((predict(hidden) - np.sin(np.pi * bends * hidden)) ** 2).mean()) + sigma**2)
        total = 0.0
        for rows in np.array_split(rng.permutation(n_train), parts):
            h = np.tanh(np.outer(x[rows], w[0]) + w[1])
            r = h @ w[2] + w[3] - y[rows]
            total += float(r @ r)
            back = r[:, None] * w[2] * (1 - h**2)
            gradient = [x[rows] @ back, back.sum(axis=0), h.T @ r, r.sum(keepdims=True)]
            for k, g in enumerate(gradient):
                speed[k] = momentum * speed[k] - rate / len(rows) * g
                w[k] = w[k] + speed[k]
        seen.append(total / n_train)
    truth, not_overfit = truth_of(np.array(full), np.array(population)[:epochs], epochs, n_train, n_validation)
    shown = {"train_loss": seen[:epochs], "validation_loss": validation[:epochs]}
    return truth, not_overfit, shown | {"n_train": n_train, "n_validation": n_validation}


# Tables -------------------------------------------------------------------------------------------------------------


def confusion(pairs: Sequence[tuple[str, str]]) -> str:
    """Markdown table: one row per truth, one column per verdict, in counts; the last column the share that is right."""
    counts = Counter(pairs)
    lines = ["| truth \\ verdict | " + " | ".join(VERDICTS) + " | right |", "|---" * (len(VERDICTS) + 2) + "|"]
    for truth in [*VERDICTS, "grey"]:
        row = [counts[truth, verdict] for verdict in VERDICTS]
        if sum(row):
            right = "" if truth == "grey" else f"{counts[truth, truth] / sum(row):.1%}"
            lines.append(f"| {truth} | " + " | ".join(str(n or "") for n in row) + f" | {right} |")
    return "\n".join(lines)


def drawn_pairs(count: int, seed: int) -> list[tuple[str, str]]:
    """(truth, verdict) of ``count`` drawn curves."""
    rng = np.random.default_rng(seed)
    truths = [VERDICTS[k % len(VERDICTS)] for k in range(count)]
    return [(truth, diagnose(**drawn(rng, truth)).verdict) for truth in truths]  # type: ignore[arg-type]


def fit_pairs(count: int, seed: int) -> tuple[list[tuple[str, str]], list[str]]:
    """(truth, verdict) of ``count`` fits; the verdicts where there is certainly no overfitting."""
    rng = np.random.default_rng(seed)
    pairs, innocent = [], []
    for k in range(count):
        truth, not_overfit, shown = network_fit(rng) if k % 4 == 3 else linear_fit(rng, batch=k % 4 == 1)
        verdict = diagnose(**shown).verdict  # type: ignore[arg-type]
        pairs.append((truth, verdict))
        if not_overfit:
            innocent.append(verdict)
    return pairs, innocent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--curves", type=int, default=2000)
    parser.add_argument("--fits", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    pairs = drawn_pairs(options.curves, options.seed)
    right = sum(truth == verdict for truth, verdict in pairs) / len(pairs)
    print(f"Drawn curves: {right:.1%} of {len(pairs)} right.\n\n{confusion(pairs)}\n")
    pairs, innocent = fit_pairs(options.fits, options.seed)
    plain = [pair for pair in pairs if pair[0] != "grey"]
    right = sum(truth == verdict for truth, verdict in plain) / len(plain)
    grey = len(pairs) - len(plain)
    print(f"Fits: {right:.1%} of {len(plain)} plain ones right; {grey} are grey.\n\n{confusion(pairs)}\n")
    print(f"False alarms of overfitting: {innocent.count('overfitting')} of {len(innocent)} fits without any.")


if __name__ == "__main__":
    main()
