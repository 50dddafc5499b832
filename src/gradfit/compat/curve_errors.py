"""Errors that are gradfit's and scipy's at once, so that code written for either catches them."""

from __future__ import annotations

from gradfit.errors import GradfitError, OptionError


class ChoiceError(OptionError, ValueError):
    """A value of an option that scipy refuses by ValueError."""


class CountError(GradfitError, TypeError):
    """More parameters than points, or starting values that are not as many as the parameters of f."""


class ShapeError(GradfitError, TypeError, ValueError):
    """f or jac gave something that is no array of the right shape."""
