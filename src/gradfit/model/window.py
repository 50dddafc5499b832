"""Window: the data a guess is made from, in an order of their own, and what can be read off them without a model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from gradfit.errors import DataError
from gradfit.typing import Floats

MOST_POINTS = 600


@dataclass(frozen=True)
class Window:
    """Points sorted by x, then y, so that nothing depends on the order of rows.

    Attributes
    ----------
    x, y
        (n,) each.
    weight
        1/sigma, the largest being 1, (n,).
    whole
        The points before they were thinned; None if they were not.
    """

    x: Floats
    y: Floats
    weight: Floats
    whole: Window | None = None

    @property
    def n(self) -> int:
        """Number of points."""
        return len(self.x)

    @cached_property
    def height(self) -> float:
        """Largest absolute y; 1 where all are 0."""
        return float(np.abs(self.y).max()) or 1.0

    @cached_property
    def scaled(self) -> Floats:
        """The y in units of the height, weighted."""
        return self.y / self.height * self.weight

    @cached_property
    def different(self) -> Floats:
        """Different x, rising."""
        return np.unique(self.x)

    @cached_property
    def span(self) -> float:
        """Length of the window; where all x are equal, their size, or 1."""
        return float(self.x[-1] - self.x[0]) or float(abs(self.x[0])) or 1.0

    @cached_property
    def gap(self) -> float:
        """A small distance between neighbours: one in seven is smaller."""
        gaps = np.diff(self.different)
        return float(np.quantile(gaps, 0.15)) if len(gaps) else self.span

    @cached_property
    def positive(self) -> tuple[float, float]:
        """Least and largest x above 0."""
        above = self.x[self.x > 0]
        return (float(above[0]), float(above[-1])) if len(above) else (self.span, self.span)

    @cached_property
    def farthest(self) -> float:
        """Largest absolute x."""
        return float(np.abs(self.x).max())

    def thinned(self, *, sampled: bool) -> Window:
        """Give at most some hundred points: averages of neighbours, or with ``sampled`` some of the points."""
        if self.n <= MOST_POINTS:
            return self
        edges = np.linspace(0, self.n, MOST_POINTS + 1).round().astype(int)
        if sampled:  # one of each cell, not always at the same place in it
            places = np.random.default_rng(0).integers(edges[:-1], edges[1:])
            return Window(self.x[places], self.y[places], self.weight[places], self)
        weight = np.add.reduceat(self.weight**2, edges[:-1])
        x, y = (np.add.reduceat(values * self.weight**2, edges[:-1]) / weight for values in (self.x, self.y))
        return Window(x, y, np.sqrt(weight / weight.max()), self)


def prepared(x: Any, y: Any, sigma: Any) -> Window:
    """Check data and put them in order; rows with NaN or infinite values are left out.

    Raises
    ------
    DataError
        What is no column of real numbers, lengths that differ, a sigma that is not positive.
    """
    columns = [_column(x, "x"), _column(y, "y")]
    if len(columns[0]) != len(columns[1]):
        raise DataError(f"x has {len(columns[0])} values and y {len(columns[1])}; expected as many, one of each per row.")
    if sigma is None:
        columns.append(np.ones_like(columns[0]))
    else:
        given = np.asarray(sigma)
        columns.append(np.full_like(columns[0], float(given)) if given.ndim == 0 else _column(sigma, "sigma"))
        if len(columns[2]) != len(columns[0]):
            raise DataError(
                f"sigma has {len(columns[2])} values for {len(columns[0])} rows; expected one number, or one per row."
            )
    rows = np.stack(columns)
    rows = rows[:, np.isfinite(rows).all(axis=0)]
    if rows.shape[1] and rows[2].min() <= 0:
        raise DataError(f"sigma has a value of {rows[2].min():g}; expected standard deviations above 0.")
    rows = rows[:, np.lexsort(rows[::-1])]
    weight = rows[2].min(initial=np.inf) / rows[2]
    return Window(rows[0], rows[1], weight)


def _column(values: Any, name: str) -> Floats:
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "biuf" and not (array.dtype.kind == "O" and array.ndim == 1):
            raise TypeError(f"values of type {array.dtype}")
        array = array.astype(np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{name} cannot be read as numbers ({error}); expected a column of real numbers.") from None
    if array.ndim != 1:
        raise DataError(f"{name} has shape {array.shape}; expected one column, (n,).")
    return array
