"""What was measured against what was asked, as rows of plain text.

A row compares gradfit with one peer. Its figure is "x faster" (the peer's time over gradfit's), "x as long" (gradfit's time over
the peer's), a time, or an amount of memory; beside it stand the figure that must be reached, the one aimed at, and which of them was.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Literal

from timing import Pairs

Kind = Literal["x faster", "x as long", "time", "memory"]
WIDTHS = (27, 31, 14, 14, 17, 12, 12, 8, 6)
HEADINGS = ("work", "beside", "gradfit", "peer", "figure", "must", "aim", "reached", "spread")


@dataclass(frozen=True)
class Figure:
    """What is asked: at least ``must`` for "x faster", at most for the others; None where nothing is."""

    kind: Kind = "x faster"
    must: float | None = None
    aim: float | None = None

    def reached(self, value: float) -> str:
        """Name the better of the two figures that the value reaches: "aim", "must", "no"; "-" where none is asked."""
        asked = {name: wanted for name, wanted in (("aim", self.aim), ("must", self.must)) if wanted is not None}
        for name, wanted in asked.items():
            if value >= wanted if self.kind == "x faster" else value <= wanted:
                return name
        return "no" if asked else "-"


@dataclass(frozen=True)
class Row:
    """One comparison. ``rows`` is given where times are told per row of data, ``fits`` where they are told as fits a second."""

    work: str
    beside: str
    figure: Figure
    gradfit: float | None
    peer: float | None = None
    value: float | None = None
    spread: float | None = None
    pairs: int | None = None
    rows: int | None = None
    fits: int | None = None

    @property
    def reached(self) -> str:
        """Say which figure was reached; "-" where nothing is asked or nothing was measured."""
        return "-" if self.value is None else self.figure.reached(self.value)

    def cells(self) -> tuple[str, ...]:
        """Write the columns of :data:`HEADINGS`."""
        sign = ">=" if self.figure.kind == "x faster" else "<="
        asked = ["" if wanted is None else f"{sign} {self._written(wanted)}" for wanted in (self.figure.must, self.figure.aim)]
        figure = "" if self.value is None else self._written(self.value)
        if figure and self.figure.kind.startswith("x "):
            figure += f" {self.figure.kind}"
        spread = "" if self.spread is None else f"{self.spread:.0%}"
        times = [self.time(seconds) for seconds in (self.gradfit, self.peer)]
        return (self.work, self.beside, *times, figure, *asked, self.reached, spread)

    def time(self, seconds: float | None) -> str:
        """Write seconds a call, nanoseconds a row, or fits a second."""
        if seconds is None:
            return ""
        if self.fits is not None:
            return f"{_large(self.fits / seconds)} fits/s"
        if self.rows is not None:
            return f"{seconds / self.rows * 1e9:.2f} ns/row"
        for size, unit in ((1.0, "s"), (1e-3, "ms")):
            if seconds >= size:
                return f"{number(seconds / size)} {unit}"
        return f"{number(seconds / 1e-6)} us"

    def _written(self, value: float) -> str:
        if self.figure.kind == "memory":
            return f"{value:.0f} MB"
        return self.time(value) if self.figure.kind == "time" else number(value)


@dataclass(frozen=True)
class Notice:
    """A line between the rows: what was left out and why, what to know."""

    text: str


def compared(work: str, beside: str, figure: Figure, pairs: Pairs, *, rows: int | None = None, fits: int | None = None) -> Row:
    """Make the row of a comparison of gradfit (first) with a peer (second)."""
    ours, theirs = median(pairs.first), median(pairs.second)
    value = 1 / pairs.ratio if figure.kind == "x as long" else pairs.ratio
    return Row(work, beside, figure, ours, theirs, value, pairs.spread, len(pairs.first), rows, fits)


def number(value: float) -> str:
    """Three digits, without exponents: 0.00123, 1.31, 46.2, 4123."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _large(value: float) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{number(value / size)} {unit}"
    return number(value)


def line(cells: tuple[str, ...]) -> str:
    """Align the cells: texts to the left, numbers to the right."""
    return "  ".join(
        cell.ljust(width) if place < 2 else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(cells, WIDTHS, strict=True))
    ).rstrip()
