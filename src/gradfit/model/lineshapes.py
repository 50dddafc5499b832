r"""Ready models: peaks, decays, steps, saturation, waves, each with a guess from data.

Names and meanings of parameters are those of lmfit's models wherever it has the model, and the units follow from the formula: ``center``,
``sigma`` and ``gamma`` of a peak are in units of x, its ``amplitude`` is the area, in units of x times y. Where lmfit's word would mislead the text of the
shape says what differs: :data:`sine`, :data:`damped_sine`.

>>> gaussian(np.array([0.0]), amplitude=1.0, center=0.0, sigma=1.0)
array([0.39894228])
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.constants
import torch
from torch import Tensor

from gradfit.errors import ModelError
from gradfit.model import scans
from gradfit.model.lineshape import Lineshape, Single, shape
from gradfit.model.parameters import Parameter
from gradfit.model.separable import Scan, register

__all__ = [
    "Lineshape", "arrhenius", "biexponential", "constant", "damped_sine", "exponential", "gaussian", "hill", "line", "logistic",
    "lorentzian", "michaelis_menten", "planck", "polynomial", "power_law", "pseudo_voigt", "shape", "sine", "skewed_gaussian", "step",
    "stretched_exponential", "voigt",
]  # fmt: skip

GAS_CONSTANT = float(scipy.constants.R)  # J / (mol K), exact since 2019
FIRST_RADIATION = 2 * scipy.constants.h * scipy.constants.c**2  # 2 h c², W m² / sr
SECOND_RADIATION = scipy.constants.h * scipy.constants.c / scipy.constants.k  # h c / k, m K
MOST_POWERS = 12
POSITIVE = Parameter(lower=0.0)
FRACTION = Parameter(lower=0.0, upper=1.0)


def _ready(scan: Scan, **bounds: Parameter) -> Callable[[Callable[..., Any]], Single]:
    """Make a formula a lineshape, with what a guess must know of it."""

    def make(formula: Callable[..., Any]) -> Single:
        register(formula, scan)
        _, *names = inspect.signature(formula).parameters
        label = formula.__name__
        formula.__name__ = formula.__qualname__ = f"{label}_formula"  # where pickle finds it; the plain name is the lineshape
        globals()[formula.__name__] = formula
        return Single(label, formula, tuple((name, bounds.get(name, Parameter())) for name in names))

    return make


# --- without shape of their own -----------------------------------------------------------------------------------------


@_ready(Scan(linear=("c",)))
def constant(x: Tensor, c: Tensor) -> Tensor:
    """``c`` at every x; in units of y. lmfit: ConstantModel."""
    return c + torch.zeros_like(x)


@_ready(Scan(linear=("slope", "intercept")))
def line(x: Tensor, slope: Tensor, intercept: Tensor) -> Tensor:
    """``slope*x + intercept``; slope in units of y/x, intercept of y. lmfit: LinearModel."""
    return slope * x + intercept


def polynomial(degree: int) -> Lineshape:
    """``c0 + c1*x + ... + cd*x**d``; ck in units of y/x**k. lmfit: PolynomialModel.

    Raises
    ------
    ModelError
        The degree is no whole number from 0 to 12.
    """
    if isinstance(degree, bool) or not isinstance(degree, (int, np.integer)) or not 0 <= degree <= MOST_POWERS:
        raise ModelError(f"degree is {degree!r}; expected a whole number from 0 to {MOST_POWERS}; for more, shift and scale x.")
    names = tuple(f"c{power}" for power in range(degree + 1))
    return Single("polynomial", _horner, tuple((name, Parameter()) for name in names))


def _horner(x: Tensor, *coefficients: Tensor) -> Tensor:
    """``c0 + c1*x + ... + cd*x**d``; ck in units of y/x**k. lmfit: PolynomialModel."""
    total = coefficients[-1] + torch.zeros_like(x)
    for coefficient in coefficients[-2::-1]:
        total = total * x + coefficient
    return total


register(_horner, Scan(linear=None))


# --- decays and growth --------------------------------------------------------------------------------------------------


@_ready(scans.EXPONENTIAL)
def exponential(x: Tensor, amplitude: Tensor, decay: Tensor) -> Tensor:
    """``amplitude * exp(-x/decay)``; decay in units of x, negative for growth. lmfit: ExponentialModel."""
    return amplitude * torch.exp(-x / decay)


@_ready(scans.BIEXPONENTIAL)
def biexponential(x: Tensor, amplitude_1: Tensor, decay_1: Tensor, amplitude_2: Tensor, decay_2: Tensor) -> Tensor:
    """``amplitude_1 * exp(-x/decay_1) + amplitude_2 * exp(-x/decay_2)``; decays in units of x. The guess has decay_1 < decay_2."""
    return amplitude_1 * torch.exp(-x / decay_1) + amplitude_2 * torch.exp(-x / decay_2)


@_ready(scans.STRETCHED, decay=POSITIVE, beta=POSITIVE)
def stretched_exponential(x: Tensor, amplitude: Tensor, decay: Tensor, beta: Tensor) -> Tensor:
    """``amplitude * exp(-(x/decay)**beta)`` for x >= 0 (NaN below); decay in units of x, beta without unit.

    Source: Kohlrausch, Ann. Phys. 167 (1854) 56; Williams and Watts, Trans. Faraday Soc. 66 (1970) 80.
    """
    inside = x > 0
    power = torch.exp(beta * torch.log(torch.where(inside, x, 1.0) / decay))
    return torch.where(x < 0, math.nan, amplitude * torch.exp(-torch.where(inside, power, 0.0)))


@_ready(scans.POWER_LAW)
def power_law(x: Tensor, amplitude: Tensor, exponent: Tensor) -> Tensor:
    """``amplitude * x**exponent`` for x > 0; amplitude is the value at x = 1. lmfit: PowerLawModel."""
    return amplitude * x**exponent


@_ready(scans.ARRHENIUS)
def arrhenius(x: Tensor, prefactor: Tensor, activation_energy: Tensor) -> Tensor:
    """``prefactor * exp(-activation_energy / (R*x))``; x in K, activation_energy in J/mol, prefactor in units of y.

    R = 8.31446261815324 J/(mol K), CODATA. Source: Arrhenius, Z. Phys. Chem. 4 (1889) 226.
    """
    return prefactor * torch.exp(-activation_energy / (GAS_CONSTANT * x))


# --- peaks --------------------------------------------------------------------------------------------------------------


@_ready(scans.PEAK, sigma=POSITIVE)
def gaussian(x: Tensor, amplitude: Tensor, center: Tensor, sigma: Tensor) -> Tensor:
    """``amplitude / (sigma*sqrt(2*pi)) * exp(-(x - center)**2 / (2*sigma**2))``; amplitude is the area. lmfit: GaussianModel."""
    distance = (x - center) / sigma
    return amplitude / (sigma * math.sqrt(2 * math.pi)) * torch.exp(-0.5 * distance * distance)


@_ready(scans.PEAK, sigma=POSITIVE)
def lorentzian(x: Tensor, amplitude: Tensor, center: Tensor, sigma: Tensor) -> Tensor:
    """``amplitude / (pi*sigma) / (1 + ((x - center)/sigma)**2)``; amplitude is the area, sigma half the width at half height. lmfit: LorentzianModel."""
    distance = (x - center) / sigma
    return amplitude / (math.pi * sigma) / (1 + distance * distance)


def _weideman(order: int) -> tuple[float, tuple[float, ...]]:
    """Give L and the coefficients, highest power first, of Weideman's rational approximation of the Faddeeva function.

    Source: Weideman, SIAM J. Numer. Anal. 31 (1994) 1497, the program in its appendix.
    """
    length = math.sqrt(order / math.sqrt(2))
    count = 2 * order
    points = length * np.tan(np.arange(1 - count, count) * np.pi / (2 * count))
    values = np.concatenate([[0.0], np.exp(-(points**2)) * (length**2 + points**2)])
    terms = np.fft.fft(np.fft.fftshift(values)).real / (2 * count)
    return length, tuple(terms[order:0:-1].tolist())


LENGTH, COEFFICIENTS = _weideman(32)


@_ready(scans.VOIGT, sigma=POSITIVE, gamma=POSITIVE)
def voigt(x: Tensor, amplitude: Tensor, center: Tensor, sigma: Tensor, gamma: Tensor) -> Tensor:
    r"""``amplitude * Re(w(z)) / (sigma*sqrt(2*pi))``, ``z = (x - center + i*gamma) / (sigma*sqrt(2))``, w the Faddeeva function.

    A Gaussian of standard deviation sigma, convolved with a Lorentzian of half width gamma; amplitude is the area. lmfit: VoigtModel, where gamma
    is tied to sigma unless it is set free; here it is free.

    With :math:`s = \sqrt2 \sigma`, :math:`D = L s + \gamma - i (x - x_0)` and :math:`Z = (L s - \gamma + i (x - x_0)) / D` Weideman's approximation is
    :math:`\mathrm{Re}[2 s\, p(Z) / D^2 + 1 / (\sqrt\pi D)] / \sqrt\pi`, which does not divide by sigma: at sigma = 0 it is the Lorentzian. Within
    1e-12 of the peak's height. Source: Weideman, SIAM J. Numer. Anal. 31 (1994) 1497.
    """
    width = math.sqrt(2) * sigma
    size = LENGTH * width + gamma
    share, distance = width / size, (x - center) / size
    square = distance * distance
    scale = 1 / (1 + square)
    real, imaginary = ((LENGTH * width - gamma) / size - square) * scale, 2 * LENGTH * share * distance * scale
    up, across = COEFFICIENTS[0] + torch.zeros_like(real), torch.zeros_like(real)
    for coefficient in COEFFICIENTS[1:]:  # Horner, with real numbers
        up, across = up * real - across * imaginary + coefficient, up * imaginary + across * real
    inner = 2 * share * scale * (up * (1 - square) - 2 * across * distance)
    return amplitude / (math.sqrt(math.pi) * size) * scale * (inner + 1 / math.sqrt(math.pi))


@_ready(scans.PSEUDO_VOIGT, sigma=POSITIVE, fraction=FRACTION)
def pseudo_voigt(x: Tensor, amplitude: Tensor, center: Tensor, sigma: Tensor, fraction: Tensor) -> Tensor:
    """``(1 - fraction) * gaussian(x, amplitude, center, sigma/sqrt(2*log(2))) + fraction * lorentzian(x, amplitude, center, sigma)``.

    Both have half the width at half height sigma; amplitude is the area. lmfit: PseudoVoigtModel.
    """
    distance = (x - center) / sigma
    square = distance * distance
    gauss = math.sqrt(math.log(2) / math.pi) * torch.exp(-math.log(2) * square)
    return amplitude / sigma * ((1 - fraction) * gauss + fraction / (math.pi * (1 + square)))


@_ready(scans.SKEWED, sigma=POSITIVE)
def skewed_gaussian(x: Tensor, amplitude: Tensor, center: Tensor, sigma: Tensor, gamma: Tensor) -> Tensor:
    """``gaussian(x, amplitude, center, sigma) * (1 + erf(gamma*(x - center) / (sigma*sqrt(2))))``; amplitude is the area, gamma has no unit.

    lmfit: SkewedGaussianModel. Source: Azzalini, Scand. J. Statist. 12 (1985) 171.
    """
    distance = (x - center) / sigma
    bell = amplitude / (sigma * math.sqrt(2 * math.pi)) * torch.exp(-0.5 * distance * distance)
    skewed: Tensor = bell * torch.special.erfc(-gamma * distance / math.sqrt(2))
    return skewed


# --- steps and saturation -----------------------------------------------------------------------------------------------


@_ready(scans.LOGISTIC)
def logistic(x: Tensor, amplitude: Tensor, center: Tensor, sigma: Tensor) -> Tensor:
    """``amplitude / (1 + exp(-(x - center)/sigma))``; amplitude is the height; falls where sigma < 0. lmfit: StepModel(form="logistic")."""
    return amplitude * torch.sigmoid((x - center) / sigma)


@_ready(scans.STEP)
def step(x: Tensor, amplitude: Tensor, center: Tensor, sigma: Tensor) -> Tensor:
    """``amplitude/2 * (1 + erf((x - center)/sigma))``; amplitude is the height; falls where sigma < 0. lmfit: StepModel(form="erf")."""
    height: Tensor = 0.5 * amplitude * torch.special.erfc(-(x - center) / sigma)
    return height


@_ready(scans.HILL, k=POSITIVE)
def hill(x: Tensor, vmax: Tensor, k: Tensor, n: Tensor) -> Tensor:
    """``vmax * x**n / (k**n + x**n)`` for x >= 0 (NaN below); k in units of x, n without unit, negative for a falling curve.

    Source: Hill, J. Physiol. 40 (1910) iv.
    """
    inside = x > 0
    rising = torch.sigmoid(n * torch.log(torch.where(inside, x, 1.0) / k))
    at_zero = torch.where(n > 0, 0.0, 1.0)
    return vmax * torch.where(inside, rising, torch.where(x < 0, math.nan, at_zero))


@_ready(scans.MICHAELIS_MENTEN, km=POSITIVE)
def michaelis_menten(x: Tensor, vmax: Tensor, km: Tensor) -> Tensor:
    """``vmax * x / (km + x)``; km in units of x, vmax of y. Source: Michaelis and Menten, Biochem. Z. 49 (1913) 333."""
    return vmax * x / (km + x)


# --- waves and radiation ------------------------------------------------------------------------------------------------


@_ready(scans.SINE)
def sine(x: Tensor, amplitude: Tensor, frequency: Tensor, phase: Tensor) -> Tensor:
    """``amplitude * sin(2*pi*frequency*x + phase)``; frequency in cycles per unit of x, phase in radians.

    lmfit's SineModel has an angular frequency, 2*pi times this one, and calls the phase shift.
    """
    return amplitude * torch.sin(2 * math.pi * frequency * x + phase)


@_ready(scans.DAMPED_SINE, decay=POSITIVE)
def damped_sine(x: Tensor, amplitude: Tensor, frequency: Tensor, phase: Tensor, decay: Tensor) -> Tensor:
    """``amplitude * exp(-x/decay) * sin(2*pi*frequency*x + phase)``; decay in units of x, frequency and phase as of a sine.

    The decay is that of :data:`exponential`; lmfit's function expsine has its inverse.
    """
    return amplitude * torch.exp(-x / decay) * torch.sin(2 * math.pi * frequency * x + phase)


@_ready(scans.PLANCK, temperature=POSITIVE)
def planck(x: Tensor, amplitude: Tensor, temperature: Tensor) -> Tensor:
    """``amplitude * 2*h*c**2 / x**5 / (exp(h*c/(x*k*temperature)) - 1)``: spectral radiance, W/(m² sr m); x is the wavelength in m, temperature in K.

    amplitude has no unit; it is 1, or the emissivity, where y is in W/(m² sr m). h, c, k are CODATA's. Source: Planck, Ann. Phys. 309 (1901) 553.
    """
    exponent = SECOND_RADIATION / (x * temperature)
    return amplitude * FIRST_RADIATION / x**5 * torch.exp(-exponent) / -torch.expm1(-exponent)
