"""Pictures: data and fit with its band, residuals, learning curves. The only door to matplotlib.

Colours are Okabe and Ito's, which people with colour-blind eyes can tell apart; training is blue, validation orange, in
every picture.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from gradfit.data.files import write_whole
from gradfit.errors import MissingDependencyError, StorageError
from gradfit.statistics.record import FitRecord
from gradfit.typing import Floats

BLUE, ORANGE, BLACK, GREY = "#0072B2", "#D55E00", "#222222", "#8a8a8a"
CURVE_POINTS = 201
MAX_VERTICES = 800  # of a curve; beyond, its envelope is drawn
MAX_MARKERS = 1500  # of one colour in a picture; beyond, an even selection is drawn
DOT = 1.6  # points, of markers too many to keep their shape on a page
ALWAYS_DRAWN = 100  # first epochs of a learning curve: a logarithmic axis shows each of them
SIZE = (5.4, 3.6)  # inches; so small that text is readable where a phone shrinks the picture to its width
# Chinese labels, where one of these is installed.
FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "Microsoft YaHei",
    "PingFang SC",
    "SimHei",
)


@dataclass(frozen=True)
class Curve:
    """The fitted curve on a grid, with its confidence band; each (m,)."""

    x: Floats
    value: Floats
    lower: Floats
    upper: Floats


def grid(x: Floats) -> Floats:
    """Give points over the range of x, for a smooth curve."""
    return np.linspace(float(x.min()), float(x.max()), CURVE_POINTS)


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise MissingDependencyError("pictures need matplotlib; run: pip install 'gradfit[plot]'") from None
    return matplotlib


def require() -> None:
    """Raise MissingDependencyError now if pictures cannot be drawn later."""
    _matplotlib()


@cache
def fonts() -> list[str]:
    """Give the fonts that are installed, in order of preference."""
    _matplotlib()
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    return [name for name in FONTS if name in installed]


def _figure(title: str) -> tuple[Any, Any]:
    """Make a figure of one drawing that belongs to no window and to no global state."""
    figure = blank(SIZE)
    return figure, drawing(figure, title)


def blank(size: tuple[float, float]) -> Any:
    """Make an empty figure."""
    _matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def drawing(figure: Any, title: str, *place: int, size: float = 11) -> Any:
    """Add axes to a figure: one drawing, or with ``place`` (rows, columns, number) one of many."""
    axes = figure.add_subplot(*place)
    axes.set_title(title, fontsize=size, color=BLACK, parse_math=False, family=fonts())
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def name_axes(axes: Any, x: str, y: str) -> None:
    """Name the axes."""
    axes.set_xlabel(x, parse_math=False, family=fonts())
    axes.set_ylabel(y, parse_math=False, family=fonts())


def _legend(axes: Any) -> None:
    """Say what is what, where there are two things or more."""
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(framealpha=0.8, edgecolor="none", prop={"family": fonts(), "size": 9})


def _abscissa(record: FitRecord) -> tuple[Floats, str]:
    """What to draw against: the input where there is one, else the prediction."""
    names = record.model.data_names
    column = record.points.columns[names[0]]
    if len(names) == 1 and column.ndim == 1:
        return column, names[0]
    return record.points.prediction, f"predicted {record.model.target}"


def fit_figure(record: FitRecord, curve: Curve | None) -> Any:
    """Data with the fitted curve and its 95% confidence band; for several inputs measured against predicted."""
    target = record.model.target
    figure, axes = _figure(f"{target}: data and fit" if curve is not None else f"{target}: measured and predicted")
    draw_fit(axes, record, curve)
    _legend(axes)
    return figure


def draw_fit(axes: Any, record: FitRecord, curve: Curve | None) -> None:
    """Draw data and fit into axes."""
    points = record.points
    x, abscissa = _abscissa(record)
    found = points.distances
    spread = None if found is None or abscissa.startswith("predicted ") else found.sigma_x.get(abscissa)
    _markers(axes, record, x, points.target, points.sigma, spread)
    if curve is not None:
        axes.plot(curve.x, curve.value, color=BLACK, linewidth=1.4, label="fit", zorder=3)
        if np.isfinite(curve.lower).all():
            axes.fill_between(curve.x, curve.lower, curve.upper, color=BLACK, alpha=0.12, linewidth=0, label="95% confidence")
    else:
        _diagonal(axes, record, x, abscissa)
    name_axes(axes, abscissa, record.model.target)


def _diagonal(axes: Any, record: FitRecord, x: Floats, abscissa: str) -> None:
    """Without a curve: the line of perfect prediction, or the predictions themselves."""
    if abscissa.startswith("predicted "):
        ends = [float(np.nanmin(x)), float(np.nanmax(x))]
        axes.plot(ends, ends, color=BLACK, linewidth=1.2, label="measured = predicted")
    else:
        order = np.argsort(x)
        axes.plot(*_thin(x[order], record.points.prediction[order]), color=BLACK, linewidth=1.2, label="fit")


def residual_figure(record: FitRecord) -> Any:
    """Residuals against the input (or the prediction, where there are several inputs)."""
    points = record.points
    x, abscissa = _abscissa(record)
    if points.distances is not None:
        figure, axes = _figure("distances from the model, in units of sigma")
        residual = points.distances.signed
    else:
        figure, axes = _figure("residuals: measured - predicted" + (", in units of sigma" if points.sigma is not None else ""))
        residual = (points.target - points.prediction) / (1.0 if points.sigma is None else points.sigma)
    _markers(axes, record, x, residual, None)
    axes.axhline(0, color=BLACK, linewidth=1)
    name_axes(axes, abscissa, f"residual of {record.model.target}")
    _legend(axes)
    return figure


@dataclass(frozen=True)
class Region:
    """Joint confidence region of two parameters at a level.

    Attributes
    ----------
    profile, ellipse
        Its edge by profile likelihood, and by the covariance, (m, 2) each; NaN where the edge is not known.
    """

    level: float
    profile: Floats
    ellipse: Floats


def contour_figure(names: tuple[str, str], center: tuple[float, float], regions: Sequence[Region]) -> Any:
    """Regions of two parameters: the profile as a line, the ellipse of the covariance dashed."""
    figure, axes = _figure(f"{names[0]} and {names[1]}: joint confidence regions")
    for region, color in zip(regions, (BLUE, ORANGE, GREY, BLACK) * len(regions), strict=False):
        for edge, style, what in ((region.profile, "-", "profile"), (region.ellipse, "--", "covariance")):
            closed = np.vstack([edge, edge[:1]])
            axes.plot(closed[:, 0], closed[:, 1], style, color=color, linewidth=1.2, label=f"{100 * region.level:.4g}% {what}")
    axes.plot(*center, "o", color=BLACK, markersize=4)
    name_axes(axes, *names)
    _legend(axes)
    return figure


def history_figure(record: FitRecord) -> Any:
    """Learning curves: training and validation loss by epoch, with the verdict."""
    history, found = record.history, record.diagnosis
    figure, axes = _figure(f"learning curves: {f'({found.letter}) ' if found.letter else ''}{found.verdict}")
    curves = [("train_loss", "training", BLUE), ("validation_loss", "validation", ORANGE)]
    drawn = [(history[name], label, color) for name, label, color in curves if np.isfinite(history[name]).any()]
    for values, label, color in drawn:
        marker = {"marker": "o", "markersize": 4} if len(history) <= 30 else {}
        axes.plot(*_thin(history["epoch"], values), color=color, linewidth=1.4, label=label, **marker)
    if record.steps > 0 and drawn and all(np.nanmin(np.where(np.isfinite(v), v, np.nan)) > 0 for v, _, _ in drawn):
        axes.set_yscale("log")
    if drawn and _early(drawn[0][0]):
        axes.set_xscale("log")
    name_axes(axes, record.unit, f"mean loss ({record.loss_name})")
    _legend(axes)
    return figure


def _early(losses: Floats) -> bool:
    """Whether nearly all of a long training's fall lies in its first hundredth, where a linear axis would hide it."""
    first = max(len(losses) // 100, 1)
    fall = losses[0] - losses[-1]
    return len(losses) > 200 and bool(losses[0] - losses[first] > 0.9 * fall > 0)


def _markers(axes: Any, record: FitRecord, x: Floats, y: Floats, sigma: Floats | None, sigma_x: Floats | None = None) -> None:
    """Draw training rows in blue, validation rows in orange; with bars of the errors that were given."""
    held_out = record.points.held_out
    parts: Sequence[tuple[np.ndarray, str, str, str]] = [
        (~held_out, "training" if held_out.any() else "data", BLUE, "o"),
        (held_out, "validation", ORANGE, "D"),
    ]
    for rows, name, color, marker in parts:
        if not rows.any():
            continue
        chosen = np.flatnonzero(rows)
        chosen = chosen[:: -(-len(chosen) // MAX_MARKERS)]
        total = record.n_validation if rows is held_out else record.n
        label = name if len(chosen) == total else f"{name} ({len(chosen)} of {total})"
        size = 4.5 if len(chosen) <= 200 else 2.0 if len(chosen) <= 2000 else 1.0
        bars = [yerror(None if error is None else error[chosen]) for error in (sigma, sigma_x)]
        axes.errorbar(
            x[chosen],
            y[chosen],
            *bars,
            fmt=marker,
            color=color,
            markersize=size,
            elinewidth=0.8,
            label=label,
            zorder=2,
        )


def yerror(sigma: Floats | None) -> Floats | None:
    """Error bars of one sigma; none drawn where there are too many to see."""
    return sigma if sigma is not None and len(sigma) <= 200 else None


def _thin(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Draw a long curve by its envelope: the lowest and the highest value of each stretch, so that no spike is lost."""
    if len(x) <= MAX_VERTICES:
        return x, y
    kept = {*range(ALWAYS_DRAWN), len(x) - 1}
    for stretch in np.array_split(np.arange(len(x)), MAX_VERTICES // 2 - ALWAYS_DRAWN):
        values = np.where(np.isfinite(y[stretch]), y[stretch], 0.0)
        kept.update((int(stretch[values.argmin()]), int(stretch[values.argmax()])))
    index = np.array(sorted(kept))
    return x[index], y[index]


def show(figure: Any, path: str | os.PathLike[str] | None) -> Any:
    """Write a figure to a file if a path is given, whole or not at all; give the figure back."""
    if path is None:
        return figure
    suffix = Path(path).suffix.lstrip(".").lower()
    known = sorted(figure.canvas.get_supported_filetypes())
    if suffix not in known:
        raise StorageError(f"pictures cannot be written as {Path(path).suffix!r}; known: {', '.join(known)}.")
    content = io.BytesIO()
    figure.savefig(content, format=suffix, dpi=150)
    write_whole(path, content.getvalue())
    return figure


def _dots(markers: re.Match[str]) -> str:
    """Write many markers as one path of dots: a seventh of the bytes."""
    places = re.findall(r'x="([-\d.]+)" y="([-\d.]+)"', markers.group())
    color = re.search(r"fill: (#\w+)", markers.group())
    path = "".join(f"M{float(x):.1f} {float(y):.1f}h0" for x, y in places)
    stroke = color.group(1) if color else BLACK
    return f'<path d="{path}" style="fill: none; stroke: {stroke}; stroke-width: {DOT}; stroke-linecap: round"/>'


def _coarse(attribute: re.Match[str]) -> str:
    """Cut coordinates to a hundredth of a point, finer than any screen; texts are not touched."""
    return re.sub(r"(\d\.\d\d)\d+", r"\1", attribute.group())


def svg(figure: Any, name: str) -> str:
    """Give a figure as SVG to stand inside a page: no address, no fonts, no clashing ids, the same bytes every time."""
    matplotlib = _matplotlib()
    content = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)  # the browser draws the text, with its own fonts
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    drawing = content.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", drawing).replace("xlink:href", "href")
    drawing = re.sub(
        r'(<svg[^>]*?) width="[^"]*" height="[^"]*"|(<svg[^>]*?) height="[^"]*" width="[^"]*"',
        r"\1\2",
        drawing,
        count=1,
    )
    # matplotlib numbers its groups from 1 in every figure: on one page they need a name of their own.
    drawing = re.sub(r"(?:<use [^>]*/>\s*){100,}", _dots, drawing)
    drawing = re.sub(r'\b(?:d|x|y)="[^"]*"', _coarse, drawing)
    drawing = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', drawing)
    drawing = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', drawing)
    drawing = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", drawing)
    return re.sub(r"\n\s*", "\n", drawing).strip()
