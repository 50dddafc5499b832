"""Pictures of many fits: how a parameter is spread, its map over an image, and single fits side by side.

A few values far out would make everything else one bar or one colour: what is drawn ends where a value is two and a half times as far from the
median as the 5% farthest on its side, and the picture says how many lie beyond, and how many fits failed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradfit.report.plots import BLACK, BLUE, ORANGE, SIZE, Curve, blank, draw_fit, drawing, fonts, name_axes
from gradfit.statistics.record import FitRecord
from gradfit.typing import Floats

FENCE = 2.5
BINS = (10, 60)
MAX_CROSSES = 400  # failed pixels that are marked one by one
GREY = "#d0d0d0"
PANELS = 3  # side by side
PANEL = (2.9, 2.25)  # inches
WIDEST = 4.0  # a map that is longer than this is stretched


@dataclass(frozen=True)
class Panel:
    """One fit among others: its title, its record and its curve."""

    title: str
    record: FitRecord
    curve: Curve | None


def robust_range(values: Floats) -> tuple[float, float]:
    """From where to where values are drawn."""
    lower, middle, upper = np.quantile(values, (0.05, 0.5, 0.95))
    if lower == upper:
        return float(values.min()), float(values.max())
    inside = values[(values >= middle - FENCE * (middle - lower)) & (values <= middle + FENCE * (upper - middle))]
    return float(inside.min()), float(inside.max())


def remarks(values: Floats, success: np.ndarray, low: float, high: float) -> str:
    """Say what is not drawn."""
    shown = values[success]
    said = [
        (int((~success).sum()), "{} of {} fits failed"),
        (int((~np.isfinite(shown)).sum()), "{} of {} have no number"),
        (int(((shown < low) | (shown > high)).sum()), "{} of {} lie beyond the range shown"),
    ]
    return "; ".join(text.format(count, len(values)) for count, text in said if count)


def histogram_figure(name: str, values: Floats, stderr: Floats | None, success: np.ndarray) -> Any:
    """How a number is spread over the fits that succeeded, beside its typical standard error."""
    drawn = values[success & np.isfinite(values)]
    figure = blank(SIZE)
    axes = drawing(figure, f"{name} of {len(drawn)} fit{'s' * (len(drawn) != 1)}")
    name_axes(axes, name, "fits")
    if not len(drawn):
        _note(figure, remarks(values, success, -np.inf, np.inf))
        return figure
    low, high = robust_range(drawn)
    counts, edges = np.histogram(drawn, _edges(drawn, low, high))
    axes.stairs(counts, edges, fill=True, color=BLUE, alpha=0.75)
    middle = float(np.median(drawn))
    axes.axvline(middle, color=BLACK, linewidth=1.2, label=f"median {middle:.4g}")
    if stderr is not None and np.isfinite(own := stderr[success]).any():
        error = float(np.median(own[np.isfinite(own)]))
        bar = {"fmt": "none", "color": ORANGE, "capsize": 3, "elinewidth": 1.4}
        axes.errorbar(middle, 0.5 * counts.max(), xerr=error, label=f"± median standard error {error:.2g}", **bar)
    axes.set_ylim(0, 1.25 * counts.max())  # room for the legend
    axes.legend(framealpha=0.8, edgecolor="none", prop={"family": fonts(), "size": 9})
    _note(figure, remarks(values, success, low, high))
    return figure


def _edges(values: Floats, low: float, high: float) -> Floats:
    """Give the edges of bins by the rule of Freedman and Diaconis; whole numbers get bins of their own."""
    if high <= low:
        wide = max(abs(low) * 0.1, 0.5 if low == 0 else 0)
        return np.array([low - wide, low + wide])
    if high - low < BINS[1] and (values == np.round(values)).all():
        return np.arange(low, high + 2) - 0.5
    inside = values[(values >= low) & (values <= high)]
    first, third = np.quantile(inside, (0.25, 0.75))
    wide = 2 * (third - first) / len(inside) ** (1 / 3)
    count = (high - low) / wide if wide > 0 else BINS[1]
    return np.linspace(low, high, int(np.clip(math.ceil(count), *BINS)) + 1)


def map_figure(name: str, values: Floats, success: np.ndarray, shape: tuple[int, int]) -> Any:
    """Give a number of each pixel as a colour; pixels whose fit failed are grey, and crossed where they are few."""
    kept = success & np.isfinite(values)
    grid = np.where(kept, values, np.nan).reshape(shape)
    low, high = robust_range(values[kept]) if kept.any() else (0.0, 1.0)
    figure = blank(_map_size(shape))
    axes = drawing(figure, name)
    axes.grid(False)
    axes.set_facecolor(GREY)
    aspect = "equal" if max(shape) <= WIDEST * min(shape) else "auto"
    image = axes.imshow(grid, cmap="viridis", vmin=low, vmax=high, aspect=aspect, interpolation="nearest")
    below, above = bool((values[kept] < low).any()), bool((values[kept] > high).any())
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[below, above]
    bar = figure.colorbar(image, ax=axes, extend=extend, pad=0.02)
    bar.set_label(name, parse_math=False, family=fonts())
    bar.outline.set_visible(False)
    rows, columns = np.nonzero(~kept.reshape(shape))
    if 0 < len(rows) <= MAX_CROSSES:
        axes.plot(columns, rows, "x", color=ORANGE, markersize=4, markeredgewidth=1.0, linestyle="none")
    axes.locator_params(integer=True)
    name_axes(axes, "column", "row")
    _note(figure, remarks(values, success, low, high))
    return figure


def _map_size(shape: tuple[int, int]) -> tuple[float, float]:
    """Give a figure about as tall as its map needs."""
    rows, columns = shape
    wide = SIZE[0]
    tall = (wide - 1.6) * rows / columns + 1.2
    return wide, float(np.clip(tall, 2.4, 6.0))


def fits_figure(title: str, panels: Sequence[Panel]) -> Any:
    """Single fits side by side, data and curve."""
    across = min(PANELS, len(panels))
    down = -(-len(panels) // across)
    figure = blank((PANEL[0] * across, PANEL[1] * down + 0.35))
    figure.suptitle(title, fontsize=11, color=BLACK, parse_math=False, family=fonts())
    for place, panel in enumerate(panels):
        axes = drawing(figure, panel.title, down, across, place + 1, size=9)
        draw_fit(axes, panel.record, panel.curve)
        axes.tick_params(labelsize=8)
        if place % across:
            axes.set_ylabel("")
        if place + across < len(panels):
            axes.set_xlabel("")
    return figure


def _note(figure: Any, text: str) -> None:
    if text:
        figure.supxlabel(text, fontsize=8.5, color="#555555", parse_math=False, family=fonts())
