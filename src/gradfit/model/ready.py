"""Ready models by name in a formula: ``"counts = gaussian(energy) + line(energy)"``.

A term is the name of a ready model with a column in brackets; terms are joined by ``+`` and ``*``. A prefix before the name,
``a:gaussian(x) + b:gaussian(x)``, goes before the names of its parameters, ``a_center``. ``polynomial(x, 3)`` has the degree 3.
"""

from __future__ import annotations

import operator
import re
from functools import reduce

from gradfit.errors import FormulaError, ModelError, unknown
from gradfit.model import lineshapes
from gradfit.model.lineshape import Lineshape

NAMES = tuple(name for name in lineshapes.__all__ if name not in ("Lineshape", "shape"))
TERM = re.compile(
    r"\s*(?:(?P<prefix>[^\W\d]\w*)\s*:)?\s*(?P<name>[^\W\d]\w*)\s*\(\s*(?P<column>`[^`]+`|[^\W\d]\w*)\s*(?:,\s*(?P<degree>\d+)\s*)?\)\s*"
)
MENTIONED = re.compile(r"\b(" + "|".join(NAMES) + r")\s*\(")
MOST_TERMS = 50


def ready_formula(text: str) -> tuple[str | None, Lineshape] | None:
    """Read a formula of ready models: its target, where it names one, and the shape; None where it mentions none.

    Raises
    ------
    FormulaError
        It mixes ready models with other things, or names one that there is not.
    """
    if not MENTIONED.search(text):
        return None
    head, equals, body = text.rpartition("=")
    target = head.strip().strip("`") if equals else None
    try:
        shape = _sum(body)
    except ModelError as error:  # names that clash, a column that is a parameter
        raise FormulaError(f"{error} In a formula a prefix is written b:gaussian(x).") from None
    if shape is None:
        raise FormulaError(
            f"{text!r} mixes ready models with other terms; expected ready models of a column joined by + and *, such as "
            "'y = gaussian(x) + line(x)'. Write the rest as ready models too (constant, line, polynomial), or all of it as a formula."
        )
    return target, shape


def _sum(body: str) -> Lineshape | None:
    """Read a sum of products; None where something else stands there."""
    terms: list[list[Lineshape]] = [[]]
    place = 0
    while True:
        match = TERM.match(body, place)
        if match is None or sum(map(len, terms)) >= MOST_TERMS:
            return None
        terms[-1].append(_shape(match))
        place = match.end()
        if place == len(body):
            break
        sign = body[place]
        if sign not in "+*":
            return None
        if sign == "+":
            terms.append([])
        place += 1
    return reduce(operator.add, (reduce(operator.mul, factors) for factors in terms))


def _shape(match: re.Match[str]) -> Lineshape:
    """Make the shape that a term names."""
    name, degree = match["name"], match["degree"]
    if name not in NAMES:
        raise FormulaError(unknown("ready model", name, NAMES))
    if (name == "polynomial") != (degree is not None):
        raise FormulaError(
            f"{match[0].strip()!r}: a polynomial has a degree, polynomial(x, 3), and no other ready model has one."
        )
    shape: Lineshape = lineshapes.polynomial(int(degree)) if degree is not None else getattr(lineshapes, name)
    shape = shape if match["prefix"] is None else shape.prefixed(f"{match['prefix']}_")
    return shape.of(match["column"].strip("`"))
