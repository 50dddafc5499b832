r"""Forms of two quantities that a model may depend on as one number: what stays along them, and how they are written.

.. math:: c_1\,\varphi_1(u) + c_2\,\varphi_2(v), \qquad \varphi \in \{u,\; \ln u,\; e^u,\; u^2,\; 1/u,\; \ln\ln u\}

are u + v, u v, u/v, u exp(v), exp(u) + v, u² + v², 1/u + 1/v, u**v and so on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gradfit.typing import Floats

# --- forms --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """A function of one quantity; NaN where it has no value."""

    of: Callable[[float], float]
    slope: Callable[[float], float]
    back: Callable[[float, float], float]  # from its value and a quantity of the sign that is wanted


def _log(value: float) -> float:
    return math.log(abs(value)) if value != 0 else math.nan


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


PLAIN = Form(lambda v: v, lambda v: 1.0, lambda u, v: u)
LOG = Form(_log, lambda v: 1 / v if v else math.nan, lambda u, v: math.copysign(_exp(u), v))
EXP = Form(_exp, _exp, lambda u, v: math.log(u) if u > 0 else math.nan)
SQUARE = Form(lambda v: v * v, lambda v: 2 * v, lambda u, v: math.copysign(math.sqrt(u), v) if u >= 0 else math.nan)
INVERSE = Form(
    lambda v: 1 / v if v else math.nan, lambda v: -1 / (v * v) if v * v else math.nan, lambda u, v: 1 / u if u else math.nan
)
LOG_LOG = Form(
    lambda v: _log(math.log(v)) if v > 0 else math.nan,
    lambda v: 1 / (v * math.log(v)) if v > 1e-300 and v != 1 else math.nan,
    lambda u, v: _exp(math.copysign(_exp(u), math.log(v))),
)
# In this order: the simplest that is true is told.
PAIRS = (
    (PLAIN, PLAIN), (LOG, LOG), (LOG, PLAIN), (PLAIN, LOG), (EXP, PLAIN), (PLAIN, EXP), (LOG_LOG, LOG), (LOG, LOG_LOG),
    (SQUARE, SQUARE), (INVERSE, INVERSE), (EXP, EXP), (PLAIN, SQUARE), (SQUARE, PLAIN), (PLAIN, INVERSE), (INVERSE, PLAIN),
    (LOG, EXP), (EXP, LOG), (LOG, SQUARE), (SQUARE, LOG), (LOG, INVERSE), (INVERSE, LOG),
)  # fmt: skip
ANY_COEFFICIENT = {
    (PLAIN, PLAIN),
    (LOG, LOG),
    (LOG, PLAIN),
    (PLAIN, LOG),
}  # 3.7*a + b is worth telling, exp(a) + 3.7*exp(b) is not


# --- quantities ---------------------------------------------------------------------------------------------------------

SUM, PRODUCT, ATOM = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Quantity:
    """A parameter, or a form of several that the model depends on as one number.

    Attributes
    ----------
    text, rank
        How it is written, and how tightly that holds together: `SUM`, `PRODUCT` or `ATOM`.
    members
        Places of the parameters in it.
    value
        Its value at a theta.
    moved
        A theta, (p,), at which it has another value, reached by one of its parameters; None where there is none.
    column
        Derivative of the predictions by it, (n,).
    """

    text: str
    rank: int
    members: tuple[int, ...]
    value: Callable[[Floats], float] = field(repr=False)
    moved: Callable[[Floats, float], Floats | None] = field(repr=False)
    column: Floats = field(repr=False)

    def factor(self) -> str:
        """Text as a part of a product."""
        return self.text if self.rank >= PRODUCT else f"({self.text})"

    def base(self) -> str:
        """Text as the base of a power, or below a fraction."""
        return self.text if self.rank == ATOM else f"({self.text})"


def parameter(name: str, place: int, column: Floats) -> Quantity:
    """Give a parameter as a quantity."""

    def moved(theta: Floats, value: float) -> Floats | None:
        if not math.isfinite(value):
            return None
        there = theta.copy()
        there[place] = value
        return there

    return Quantity(name, ATOM, (place,), lambda theta: float(theta[place]), moved, column)


@dataclass(frozen=True, eq=False)
class Pair:
    """A form of two quantities: ``c1 f1(first) + c2 f2(second)``, the exponential of that where it is a product."""

    first: Quantity
    second: Quantity
    forms: tuple[Form, Form]
    coefficients: tuple[float, float]

    @property
    def is_product(self) -> bool:
        return LOG in self.forms and self.forms != (LOG, LOG_LOG) and self.forms != (LOG_LOG, LOG)

    @property
    def is_power(self) -> bool:
        return LOG_LOG in self.forms

    def level(self, theta: Floats) -> float:
        """What stays along the family."""
        (f, g), (c, d) = self.forms, self.coefficients
        return c * f.of(self.first.value(theta)) + d * g.of(self.second.value(theta))

    def along(self, theta: Floats, value: float) -> tuple[Floats, Floats] | None:
        """Give the first quantity a value: alone, and with the second making up for it; None where that cannot be."""
        (f, g), (c, d) = self.forms, self.coefficients
        rest = (self.level(theta) - c * f.of(value)) / d
        here = self.first.value(theta)
        # A logarithm has a branch for each sign, that of a logarithm one for bases below 1.
        other = (f is LOG and value * here <= 0) or (f is LOG_LOG and (value - 1) * (here - 1) <= 0)
        if other or not math.isfinite(rest):
            return None
        second = g.back(rest, self.second.value(theta))
        alone = self.first.moved(theta, value)
        both = None if alone is None or not math.isfinite(second) else self.second.moved(alone, second)
        return None if alone is None or both is None else (alone, both)

    def merged(self, theta: Floats) -> Quantity:
        """The two as one quantity."""
        (f, _), (c, _) = self.forms, self.coefficients
        sign = self._sign(theta)

        def value(point: Floats) -> float:
            level = self.level(point)
            return self._sign(point) * _exp(level) if self.is_product else _exp(sign * _exp(level)) if self.is_power else level

        def moved(point: Floats, aim: float) -> Floats | None:
            if self.is_product:
                if aim * self._sign(point) <= 0:
                    return None
                level = math.log(abs(aim))
            elif self.is_power:
                level = LOG_LOG.of(aim) if aim > 0 and sign * math.log(aim) > 0 else math.nan
            else:
                level = aim
            f, g = self.forms
            rest = (level - self.coefficients[1] * g.of(self.second.value(point))) / self.coefficients[0]
            there = f.back(rest, self.first.value(point)) if math.isfinite(rest) else math.nan
            return self.first.moved(point, there) if math.isfinite(there) else None

        inner = c * f.slope(self.first.value(theta))
        here = value(theta)
        outer = here if self.is_product else (here * math.log(here) if here > 0 else math.nan) if self.is_power else 1.0
        column = self.first.column / (outer * inner)  # not finite where it cannot be told; that ends the search
        text, rank = _pair_text(self)
        return Quantity(text, rank, self.first.members + self.second.members, value, moved, column)

    def _sign(self, theta: Floats) -> float:
        """Sign of a product of whole powers; of the logarithm of a power."""
        if self.is_power:
            base = self.first if self.forms[0] is LOG_LOG else self.second
            exponent = self.second if self.forms[0] is LOG_LOG else self.first
            return math.copysign(1.0, math.log(base.value(theta)) * exponent.value(theta))
        sign = 1.0
        for quantity, form, power in zip((self.first, self.second), self.forms, self.coefficients, strict=True):
            if form is LOG and float(power).is_integer() and int(power) % 2:
                sign = math.copysign(sign, sign * quantity.value(theta))
        return sign


# --- words --------------------------------------------------------------------------------------------------------------


def _number(value: float) -> str:
    """A coefficient: whole as it is, otherwise four digits."""
    return f"{value:.0f}" if value == round(value) and abs(value) < 1e6 else f"{value:.4g}"


def sum_text(quantities: Sequence[Quantity], forms: Sequence[Form], row: Floats) -> str:
    """A sum, or a product where every quantity stands with its logarithm."""
    used = [(q, f, float(c)) for q, f, c in zip(quantities, forms, row, strict=True) if c != 0]
    if all(form is LOG for _, form, _ in used):
        return _product([(quantity, power) for quantity, _, power in used])
    text = ""
    for quantity, form, coefficient in used:
        inner = (
            f"log({quantity.text})"
            if form is LOG
            else quantity.text
            if abs(coefficient) == 1 and quantity.rank
            else quantity.factor()
        )
        text = _added(text, inner, coefficient)
    return text


def _added(text: str, term: str, coefficient: float) -> str:
    size = "" if abs(coefficient) == 1 else f"{_number(abs(coefficient))}*"
    if not text:
        return f"{'-' if coefficient < 0 else ''}{size}{term}"
    return f"{text} {'-' if coefficient < 0 else '+'} {size}{term}"


def _product(parts: Sequence[tuple[Quantity, float]]) -> str:
    above = [_power(quantity, power) for quantity, power in parts if power > 0]
    below = [_power(quantity, -power) for quantity, power in parts if power < 0]
    text = "*".join(above) if above else "1"
    if not below:
        return text
    return f"{text}/{below[0]}" if len(below) == 1 else f"{text}/({'*'.join(below)})"


def _power(quantity: Quantity, power: float) -> str:
    return quantity.factor() if power == 1 and quantity.rank == PRODUCT else (
        quantity.base() if power == 1 else f"{quantity.base()}**{_number(power)}"
    )  # fmt: skip


def _pair_text(pair: Pair) -> tuple[str, int]:
    """Text of a form of two, and how tightly it holds together."""
    (f, g), (c, d), first, second = pair.forms, pair.coefficients, pair.first, pair.second
    if pair.is_power:
        base, exponent = (first, second) if f is LOG_LOG else (second, first)
        return f"{base.base()}**{exponent.base()}", PRODUCT
    if (f, g) == (LOG, LOG):
        return _product([(first, c), (second, d)]), PRODUCT
    if LOG in (f, g):
        outside, inside, form, power, rate = (first, second, g, c, d) if f is LOG else (second, first, f, d, c)
        rise = _added("", inside.text if form is PLAIN and rate == 1 else _term(inside, form, rate, False), rate)
        return f"{_power(outside, power)}*exp({rise})" if power > 0 else f"exp({rise})/{_power(outside, -power)}", PRODUCT
    text = ""
    for quantity, form, coefficient in ((first, f, c), (second, g, d)):
        text = _added(text, _term(quantity, form, coefficient, bool(text)), coefficient)
    return text, SUM


def _term(quantity: Quantity, form: Form, coefficient: float, follows: bool) -> str:
    if form is EXP:
        return f"exp({quantity.text})"
    if form is SQUARE:
        return f"{quantity.base()}**2"
    if form is INVERSE:
        return f"1/{quantity.base()}"
    return quantity.text if coefficient == 1 or (abs(coefficient) == 1 and not follows and quantity.rank) else quantity.factor()


def pair_detail(pair: Pair) -> str:
    """What a form of two parameters means."""
    first, second, (c, d) = pair.first.text, pair.second.text, pair.coefficients
    if pair.forms == (PLAIN, PLAIN):
        rate = c / d
        times = "as much" if abs(rate) == 1 else f"{_number(abs(rate))} times as much"
        return f"{first} can rise by any amount while {second} {'falls' if rate > 0 else 'rises'} by {times}"
    if pair.forms == (LOG, LOG) and abs(c) == abs(d):
        return (
            f"{first} can be multiplied by any number while {second} is divided by it"
            if c == d
            else f"{first} and {second} can be multiplied by any number together"
        )
    return f"{first} can change if {second} makes up for it"
