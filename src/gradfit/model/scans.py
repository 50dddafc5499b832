"""Candidates for the nonlinear parameters of the ready models, made from the data: dense enough that a fit finds its way from the best.

Each function takes the :class:`~gradfit.model.window.Window` and gives columns of equal length, one per parameter. Candidates scale with the units of x.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.constants

from gradfit.model.separable import Move, Scan
from gradfit.model.window import Window
from gradfit.typing import Floats

LARGEST_EXPONENT = 600.0  # exp of more overflows once it is multiplied
WIEN = float(scipy.constants.physical_constants["Wien wavelength displacement law constant"][0])
GAS_CONSTANT = float(scipy.constants.R)


def _log_grid(low: float, high: float, factor: float, most: int = 60) -> Floats:
    """Give numbers from low to high, each about ``factor`` times the one before."""
    count = math.ceil(math.log(high / low) / math.log(factor)) + 1
    return np.geomspace(low, high, min(max(count, 2), most))


def _pairs(first: Sequence[float] | Floats, second: Sequence[float] | Floats) -> tuple[Floats, Floats]:
    """Give all pairs, as two columns."""
    left, right = np.meshgrid(np.asarray(first, dtype=float), np.asarray(second, dtype=float), indexing="ij")
    return left.ravel(), right.ravel()


def _both(values: Floats) -> Floats:
    """Give values and their negatives, the positive ones first."""
    return np.concatenate([values, -values])


def _unit_of(name: str) -> Callable[[Mapping[str, Any], Window], Any]:
    return lambda values, window: abs(values[name])


# --- peaks and steps ----------------------------------------------------------------------------------------------------


def _places(
    window: Window, *, least: float, stride: float, factor: float = 1.5, outside: tuple[float, ...] = ()
) -> tuple[Floats, Floats]:
    """Give centers and widths: widths from ``least`` gaps to three spans, centers ``stride`` widths apart wherever there are data, and beside them.

    Wide ones also stand outside the window, others ``outside`` of it by so many widths, where no more than their tail is seen.
    """
    centers, widths = [], []
    for width in _log_grid(least * window.gap, 3 * window.span, factor, most=45):
        step = stride * width
        cells = np.floor((window.x - window.x[0]) / step)
        beside = 0 if step < window.gap else 1 if width < 0.1 * window.span else 3
        cells = np.unique(np.add.outer(cells, np.arange(-beside, beside + 1)))
        beyond = np.array(outside) * width
        centers.append(np.concatenate([window.x[0] + (cells + 0.5) * step, window.x[0] - beyond, window.x[-1] + beyond]))
        widths.append(np.full(len(centers[-1]), width))
    return np.concatenate(centers), np.concatenate(widths)


def _peak(window: Window) -> Mapping[str, Floats]:
    centers, widths = _places(window, least=0.7, stride=0.9, factor=1.6)
    return {"center": centers, "sigma": widths}


PEAK_MOVES = {"center": Move(0.7, _unit_of("sigma")), "sigma": Move(0.4)}
PEAK = Scan(("amplitude",), _peak, PEAK_MOVES)


SHARES = (
    (1.0, 0.05),
    (0.6, 0.5),
    (0.1, 1.0),
)  # of a width in sigma and gamma: nearly a Gaussian, half and half, nearly a Lorentzian


def _voigt(window: Window) -> Mapping[str, Floats]:
    """Half and half."""
    centers, widths = _places(window, least=1.0, stride=1.0, factor=1.7)
    return {"center": centers, "sigma": SHARES[1][0] * widths, "gamma": SHARES[1][1] * widths}


def _voigt_branches(values: Mapping[str, float]) -> Sequence[Mapping[str, float]]:
    width = values["sigma"] + values["gamma"]
    return [{"center": values["center"], "sigma": gauss * width, "gamma": lorentz * width} for gauss, lorentz in SHARES]


def _like_voigt(x: Floats, amplitude: Floats, center: Floats, sigma: Floats, gamma: Floats) -> Floats:
    """Approximate a Voigt profile by a pseudo-Voigt within 1%; Thompson, Cox and Hastings, J. Appl. Cryst. 20 (1987) 79."""
    gauss, lorentz = 2 * math.sqrt(2 * math.log(2)) * sigma, 2 * gamma
    powers = ((1.0, 5, 0), (2.69269, 4, 1), (2.42843, 3, 2), (4.47163, 2, 3), (0.07842, 1, 4), (1.0, 0, 5))
    width = sum(factor * gauss**a * lorentz**b for factor, a, b in powers) ** 0.2
    share = lorentz / width
    fraction = 1.36603 * share - 0.47719 * share**2 + 0.11116 * share**3
    square = ((x - center) / (width / 2)) ** 2
    bell = math.sqrt(math.log(2) / math.pi) * np.exp(-math.log(2) * square)
    found: Floats = amplitude / (width / 2) * ((1 - fraction) * bell + fraction / (math.pi * (1 + square)))
    return found


VOIGT_MOVES = {
    "center": Move(0.6, lambda values, window: values["sigma"] + values["gamma"]),
    "sigma": Move(0.5),
    "gamma": Move(0.7),
}
VOIGT = Scan(("amplitude",), _voigt, VOIGT_MOVES, screen=_like_voigt, branches=_voigt_branches)


def _pseudo_voigt(window: Window) -> Mapping[str, Floats]:
    centers, widths = _places(window, least=1.0, stride=1.0, factor=1.7)
    return {"center": centers, "sigma": widths, "fraction": np.full_like(widths, 0.5)}


PSEUDO_VOIGT = Scan(
    ("amplitude",),
    _pseudo_voigt,
    PEAK_MOVES | {"fraction": Move(0.2, lambda values, window: 1.0)},
    branches=lambda values: [{**values, "fraction": fraction} for fraction in (0.1, 0.5, 0.9)],
)


def _skewed(window: Window) -> Mapping[str, Floats]:
    """Not skewed at first."""
    centers, widths = _places(window, least=0.7, stride=0.9, factor=1.6)
    return {"center": centers, "sigma": widths, "gamma": np.zeros_like(widths)}


def _moments(gamma: float) -> tuple[float, float]:
    """Give mean and standard deviation of a skewed peak with center 0 and sigma 1; Azzalini 1985."""
    mean = math.sqrt(2 / math.pi) * gamma / math.sqrt(1 + gamma**2)
    return mean, math.sqrt(1 - mean**2)


def _skewed_branches(values: Mapping[str, float]) -> Sequence[Mapping[str, float]]:
    """Give peaks of the same mean and standard deviation, skewed little and much to either side."""
    mean, deviation = _moments(values["gamma"])
    found = []
    for gamma in (1.0, -1.0, 3.0, -3.0, 12.0, -12.0):
        own_mean, own_deviation = _moments(gamma)
        sigma = values["sigma"] * deviation / own_deviation
        found.append({"center": values["center"] + values["sigma"] * mean - sigma * own_mean, "sigma": sigma, "gamma": gamma})
    return found


SKEW_MOVE = Move(0.7, lambda values, window: np.maximum(1.0, abs(values["gamma"]) / 2))
SKEWED = Scan(("amplitude",), _skewed, PEAK_MOVES | {"gamma": SKEW_MOVE}, branches=_skewed_branches)


def _steps(window: Window) -> Mapping[str, Floats]:
    centers, widths = _places(window, least=0.5, stride=1.2, factor=1.8, outside=(2.0, 4.0, 7.0, 11.0))
    return {"center": np.tile(centers, 2), "sigma": _both(widths)}


STEP = LOGISTIC = Scan(("amplitude",), _steps, PEAK_MOVES)


# --- decays -------------------------------------------------------------------------------------------------------------


def _rates(window: Window, factor: float) -> Floats:
    """Give rates from a tenth of 1/span to 3/gap, as far as exp(rate * x) neither overflows nor fades."""
    least = 0.05 / window.span
    most = max(min(3 / window.gap, LARGEST_EXPONENT / max(window.farthest, window.span)), 2 * least)
    return _log_grid(least, most, factor)


def _decay_move(name: str, step: float) -> Move:
    """Move a rate by a share of itself, and a little more, so that it can change its sign."""
    return Move(step, lambda values, window: abs(1 / values[name]) + 0.2 / window.span, inverse=True)


def _exponential(window: Window) -> Mapping[str, Floats]:
    return {"decay": 1 / _both(_rates(window, 1.2))}


EXPONENTIAL = Scan(("amplitude",), _exponential, {"decay": _decay_move("decay", 0.2)})


def _biexponential(window: Window) -> Mapping[str, Floats]:
    """Every pair of decays; growth too, more coarsely."""
    rates = _rates(window, 1.6)
    decays = np.concatenate([1 / rates, -1 / rates[::3]])
    first, second = _pairs(decays, decays)
    ordered = first < second
    return {"decay_1": first[ordered], "decay_2": second[ordered]}


BIEXPONENTIAL = Scan(
    ("amplitude_1", "amplitude_2"),
    _biexponential,
    {"decay_1": _decay_move("decay_1", 0.3), "decay_2": _decay_move("decay_2", 0.3)},
)


def _stretched(window: Window) -> Mapping[str, Floats]:
    low, high = window.positive
    decay, beta = _pairs(_log_grid(low / 10, 30 * high, 1.35), (0.15, 0.25, 0.4, 0.55, 0.75, 1.0, 1.4, 2.0, 3.0, 5.0))
    return {"decay": decay, "beta": beta}


STRETCHED = Scan(("amplitude",), _stretched, {"decay": Move(0.3), "beta": Move(0.3)}, domain=0.0)


def _power_law(window: Window) -> Mapping[str, Floats]:
    """Exponents under which y changes over the window by little to beyond any measure."""
    low, high = window.positive
    change = _both(_log_grid(0.01, 80.0, 1.2)) / max(math.log(high / low), 1e-6)
    farthest = max(abs(math.log(low)), abs(math.log(high)), 1e-6)
    return {"exponent": np.concatenate([[0.0], change[np.abs(change) * farthest < LARGEST_EXPONENT]])}


POWER_LAW = Scan(("amplitude",), _power_law, {"exponent": Move(0.2)}, domain=0.0)


def _arrhenius(window: Window) -> Mapping[str, Floats]:
    low, high = window.positive
    change = _both(_log_grid(0.01, 80.0, 1.2)) / max(1 / low - 1 / high, 1e-6 / high)
    return {"activation_energy": GAS_CONSTANT * change[np.abs(change) / low < LARGEST_EXPONENT]}


ARRHENIUS = Scan(("prefactor",), _arrhenius, {"activation_energy": Move(0.2)}, domain=0.0, open=True)


# --- saturation ---------------------------------------------------------------------------------------------------------


def _hill(window: Window) -> Mapping[str, Floats]:
    low, high = window.positive
    slopes = np.array([0.25, 0.5, 0.9, 1.5, 2.5, 4.0, 7.0, 14.0])
    k, n = _pairs(_log_grid(low / 10, 30 * high, 1.4), _both(slopes))
    return {"k": k, "n": n}


HILL = Scan(("vmax",), _hill, {"k": Move(0.25), "n": Move(0.35)}, domain=0.0)


def _michaelis_menten(window: Window) -> Mapping[str, Floats]:
    low, high = window.positive
    return {"km": _log_grid(low / 30, 100 * high, 1.2)}


MICHAELIS_MENTEN = Scan(("vmax",), _michaelis_menten, {"km": Move(0.2)}, domain=0.0)


# --- waves --------------------------------------------------------------------------------------------------------------

OVERSAMPLING = 5  # frequencies per cycle over the window
MOST_FREQUENCIES = 400  # beyond, those of the highest peaks of the spectrum
PEAKS = 60


def _cycle(values: Mapping[str, Any], window: Window) -> Any:
    """One cycle over the window, or over the decay where that is shorter."""
    return 1 / np.minimum(window.span, values.get("decay", window.span))


def _frequencies(window: Window, step: float) -> Floats:
    """Give frequencies up to half a cycle per point on average, ``step`` cycles apart; where they are too many, those of the highest peaks."""
    whole = window.whole or window
    slow = np.geomspace(0.03, step, 12, endpoint=False) if step < 1 else np.empty(0)
    top = max(len(whole.different) / 2, 1.0)
    if top / step <= MOST_FREQUENCIES and window.whole is None:
        cycles = np.arange(step, top + step, step)
    else:
        cycles = _highest(whole, top, step)
    return np.concatenate([slow, cycles]) / window.span


def _highest(whole: Window, top: float, step: float) -> Floats:
    """Give cycles at the highest peaks of the spectrum, and around them; the points are put on a fine grid (Press and Rybicki's way)."""
    cells = 8 * math.ceil(top)
    x = (whole.x - whole.x[0]) / whole.span
    trend = np.stack([np.ones_like(x), x]).T
    y = whole.y / whole.height
    y = y - trend @ np.linalg.lstsq(trend, y, rcond=None)[0]
    places = np.rint(x * (cells - 1)).astype(int)
    gridded = np.bincount(places, y * whole.weight**2, minlength=cells)
    power = np.abs(np.fft.rfft(gridded, OVERSAMPLING * cells)) ** 2
    cycles = np.arange(len(power)) * (cells - 1) / (OVERSAMPLING * cells)
    inner = (power[1:-1] >= power[:-2]) & (power[1:-1] >= power[2:]) & (cycles[1:-1] <= top)
    peaks = np.flatnonzero(inner) + 1
    best = cycles[peaks[np.argsort(-power[peaks], kind="stable")[:PEAKS]]]
    around = np.arange(-3, 4) / (2 * OVERSAMPLING)
    found = (best[:, None] + around * max(1.0, step * OVERSAMPLING / 2)).ravel()
    return np.concatenate([np.arange(step, 6, step), found[found > 0]])


def _sine(window: Window) -> Mapping[str, Floats]:
    return {"frequency": _frequencies(window, 1 / OVERSAMPLING)}


SINE = Scan(("amplitude",), _sine, {"frequency": Move(1 / OVERSAMPLING, _cycle)}, phase=True, sampled=True)


def _damped_sine(window: Window) -> Mapping[str, Floats]:
    """The shorter the decay, the broader the resonance, and the fewer the frequencies."""
    frequencies, decays = [], []
    for decay in np.geomspace(0.04, 6.0, 6) * window.span:
        own = _frequencies(window, window.span / min(window.span, 2 * decay) / OVERSAMPLING)
        frequencies.append(own)
        decays.append(np.full(len(own), decay))
    return {"frequency": np.concatenate(frequencies), "decay": np.concatenate(decays)}


DAMPED_SINE = Scan(
    ("amplitude",), _damped_sine, {"frequency": Move(1 / OVERSAMPLING, _cycle), "decay": Move(0.5)}, phase=True, sampled=True
)


# --- radiation ----------------------------------------------------------------------------------------------------------


def _planck(window: Window) -> Mapping[str, Floats]:
    """Temperatures whose brightest wavelength lies in the window, or far on either side."""
    low, high = window.positive
    return {"temperature": WIEN / _log_grid(low / 30, 50 * high, 1.12, most=150)}


PLANCK = Scan(("amplitude",), _planck, {"temperature": Move(0.12)}, domain=0.0, open=True)
