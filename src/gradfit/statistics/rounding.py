"""Value and error rounded as the field does: the error to two significant digits, the value to the same place.

The error is rounded first; 0.0962 becomes 0.096 and 0.0996 becomes 0.100 (two digits, and the carry shown), so the last
digit of the value always stands where the last digit of its error stands.

References
----------
JCGM 100:2008 (GUM), section 7.2.6: "it usually suffices to quote ... [uncertainties] to at most two significant digits".
"""

from __future__ import annotations

import math
from decimal import Decimal

WITHOUT_ERROR = 6  # significant digits of a value whose error is unknown
DIGITS = 15  # a float64 has no more to show
PLAIN = range(-5, 7)  # powers of ten written without an exponent


def rounded(value: float, stderr: float) -> str:
    """Give "0.537 ± 0.041"; a value alone where there is no error to round by."""
    if not math.isfinite(value):
        return str(value)
    if stderr == 0:
        return f"{value:.{WITHOUT_ERROR}g}"
    if not (math.isfinite(stderr) and stderr > 0):
        return f"{value:.{WITHOUT_ERROR}g} ± ?"
    top = max(_power(value), _power(stderr))
    place = _power(stderr) - 1  # of the second digit of the error
    if place < top - DIGITS:
        return f"{value:.{DIGITS}g} ± {stderr:.2g}"
    if top in PLAIN and place > -12:
        return f"{_at(value, place)} ± {_at(stderr, place)}"
    return f"({_at(value, place, top)} ± {_at(stderr, place, top)})e{top:+03d}"


def _power(number: float) -> int:
    """Power of ten of the first digit."""
    return math.floor(math.log10(abs(number))) if number != 0 else -400


def _at(number: float, place: int, unit: int = 0) -> str:
    """Round at a power of ten and write in units of another."""
    rounded_value = Decimal(repr(number)).quantize(Decimal(1).scaleb(place))
    digits = max(unit - place, 0)
    rounded_value = abs(rounded_value) if rounded_value == 0 else rounded_value  # no "-0"
    return f"{rounded_value.scaleb(-unit):.{digits}f}"
