"""A FitRecord as text, for a terminal."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

import numpy as np

from gradfit.drivers.monitor import SHOWN
from gradfit.statistics.covariance import correlation
from gradfit.statistics.findings import Finding
from gradfit.statistics.record import Estimate, FitRecord
from gradfit.statistics.rounding import rounded

TRAINING_LINES = 10
STRONG_CORRELATION = 0.95
MANY = 30  # parameters listed in full
MINIMA, MINIMUM_VALUES = 5, 8  # minima listed, and numbers of each
STARTS = {"shape": "start guessed", "search": "start found", "multistart": "start found"}


def report(record: FitRecord) -> str:
    """Everything a reader needs: result, goodness, training, verdict, warnings."""
    parts = [heading(record), record.message, *beginning(record), table(record), "\n".join(quality(record))]
    if record.warnings:
        parts.append("\n".join(f"Warning: {warning}" for warning in record.warnings))
    if record.findings:
        parts.append("\n".join(["Findings", *(line for finding in record.findings for line in _finding(finding))]))
    training = training_lines(record)
    if training:
        parts.append("Training (loss and gradient before each step, parameters after it)\n" + "\n".join(training))
    parts.append(verdict(record))
    return "\n\n".join(parts) + "\n"


def heading(record: FitRecord) -> str:
    """What was fitted, to what, how."""
    rows = f"{record.n} rows" + (f", {record.n_validation} for validation" if record.n_validation else "")
    steps = f"{record.steps} {record.unit}{'s' * (record.steps != 1)}"
    return f"{title(record)}   ({rows}; {record.method}, {steps}; loss {record.loss_name})"


def title(record: FitRecord) -> str:
    """The model and what it describes."""
    model = record.model
    return model.label if model.kind == "formula" and "=" in model.label else f"{model.target} by {model.label}"


def brief(record: FitRecord) -> str:
    """A few lines: parameters and how it ended."""
    lines = [heading(record), *(f"  {estimate}" for estimate in record.estimates[:MANY])]
    told = [record.beginning.text] if record.beginning.text else []
    if len(record.estimates) > MANY:
        lines.append(f"  ... and {len(record.estimates) - MANY} more")
    return "\n".join(
        [*lines, *told, record.message, *(f"Warning: {warning}" for warning in record.warnings if warning != record.message)]
    )


def table(record: FitRecord) -> str:
    """The result table: value ± error, 95% interval, start, remarks."""
    head = ("parameter", "value ± error", "95% interval", "start", "")
    rows = [
        (e.name, rounded(e.value, e.stderr), interval(e), f"{e.start:g}" if math.isfinite(e.start) else "", remark(e, record))
        for e in record.estimates[:MANY]
    ]
    if len(record.estimates) > MANY:
        rows.append((f"... and {len(record.estimates) - MANY} more", "", "", "", ""))
    return columns([head, *rows])


def interval(estimate: Estimate) -> str:
    """The 95% interval with one digit more than the error shows."""
    if not math.isfinite(estimate.stderr) or estimate.stderr == 0:
        return ""
    ratio = max(abs(estimate.value), estimate.stderr) / estimate.stderr
    digits = min(max(4, math.ceil(math.log10(min(ratio, 1e15))) + 3), 17)
    return f"{estimate.lower:.{digits}g} to {estimate.upper:.{digits}g}"


def beginning(record: FitRecord) -> list[str]:
    """Say where the fit began, where the caller did not, and what other minima there are: one text, or none."""
    parts = [part for part in (record.beginning.text, minima(record)) if part]
    return ["\n".join(parts)] if parts else []


def minima(record: FitRecord) -> str:
    """List the lowest minima, where there are several; else ""."""
    found = record.beginning.minima
    if len(found) < 2:
        return ""
    rows = [("minimum", "loss", "starts", "")]
    for place, minimum in enumerate(found[:MINIMA], start=1):
        values = ", ".join(f"{name} = {value:.4g}" for name, value in list(minimum.values.items())[:MINIMUM_VALUES])
        more = ", ..." if len(minimum.values) > MINIMUM_VALUES else ""
        rows.append((str(place), f"{minimum.loss:.6g}", str(minimum.starts), values + more))
    if len(found) > MINIMA:
        rows.append((f"... and {len(found) - MINIMA} more", "", "", ""))
    return columns(rows)


def remark(estimate: Estimate, record: FitRecord) -> str:
    """Say what is special about a parameter."""
    if estimate.fixed:
        return "fixed"
    if estimate.tied is not None:
        return f"= {estimate.tied}"
    notes = ["at its bound"] if estimate.at_bound else [f"no error: {estimate.reason}"] if estimate.reason else []
    return "; ".join(notes + ([STARTS.get(record.beginning.kind, "start assumed")] if estimate.assumed else []))


def quality(record: FitRecord) -> list[str]:
    """Loss, goodness of fit, strong correlations: one line each."""
    good = record.goodness
    lines = [f"mean loss {record.loss:.9g}" + (f", validation {record.validation_loss:.6g}" if record.n_validation else "")]
    if record.fold_losses:
        losses = np.array(record.fold_losses)
        error = f" ± {losses.std(ddof=1) / math.sqrt(len(losses)):.2g}" if len(losses) > 1 else ""
        lines.append(f"cross-validated loss {losses.mean():.6g}{error} over {len(losses)} folds")
    if math.isfinite(good.chi_square):
        dof = f"{record.n} points, {record.n - sum(not e.fixed and e.tied is None and not e.at_bound for e in record.estimates)} degrees of freedom"
        lines.append(f"chi² {good.chi_square:.6g}, reduced {good.reduced_chi_square:.6g} ({dof}), R² {good.r_squared:.6g}")
        lines.append(f"AIC {good.aic:.5g}, AICc {good.aicc:.5g}, BIC {good.bic:.5g}")
    if record.points.distances is not None:
        lines.append(
            f"errors in {' and '.join(record.points.distances.sigma_x)} were fitted too: chi² is of the distances from the nearest points of the model"
        )
    if record.covariance_kind not in ("none", "least squares"):
        lines.append(f"errors from the {record.covariance_kind}")
    strong = strongest_correlation(record)
    if strong:
        lines.append(strong)
    return lines


def strongest_correlation(record: FitRecord) -> str:
    """Name the pair of parameters that are hardest to tell apart, where that is worth a line."""
    tied = {estimate.name for estimate in record.estimates if estimate.tied is not None}  # correlated by definition
    if not record.covariance.size:
        return ""
    free = [index for index, name in enumerate(record.names) if name not in tied]
    matrix = np.nan_to_num(correlation(record.covariance[np.ix_(free, free)]))
    np.fill_diagonal(matrix, 0)
    if matrix.size == 0 or np.abs(matrix).max() < STRONG_CORRELATION:
        return ""
    first, second = np.unravel_index(int(np.abs(matrix).argmax()), matrix.shape)
    names = [record.names[index] for index in free]
    return f"strongest correlation {names[first]}, {names[second]}: {matrix[first, second]:+.3f}"


def _finding(finding: Finding) -> list[str]:
    return [f"  - {finding.kind}: {finding.text}", f"    {finding.advice}"]


def training_lines(record: FitRecord) -> list[str]:
    """About ten evenly spaced lines of the history, aligned."""
    rows = training_rows(record)
    return columns(rows, right=True).splitlines() if rows else []


def training_rows(record: FitRecord) -> list[tuple[str, ...]]:
    """About ten evenly spaced rows of the history as cells, the heading first; none where there was one step."""
    history = record.history
    if len(history) < 2:
        return []
    names = [name for name in history.columns if name != "validation_loss" or record.n_validation]
    shown = names if len(names) <= 4 + 2 * SHOWN else names[:4]
    rows = [tuple(_cell(name, row[name]) for name in shown) for row in history.sample(TRAINING_LINES)]
    return [tuple(record.unit if name == "epoch" else name for name in shown), *rows]


def _cell(name: str, value: float) -> str:
    if name == "epoch":
        return f"{int(value)}"
    return f"{value:.6f}" if 1e-3 <= abs(value) < 1e6 and name.endswith("loss") else f"{value:.5g}"


def verdict(record: FitRecord) -> str:
    """The reading of the learning curves."""
    found = record.diagnosis
    letter = f"({found.letter}) " if found.letter else ""
    return "\n".join([f"Verdict: {letter}{found.verdict}", *(f"  - {reason}" for reason in found.reasons), f"  {found.advice}"])


def columns(rows: Sequence[Sequence[str]], *, right: bool = False) -> str:
    """Align cells; wide (Chinese) characters count as two."""
    widths = [max(width(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = []
    for row in rows:
        gaps = [" " * (size - width(cell)) for cell, size in zip(row, widths, strict=True)]
        cells = [gap + cell if right else cell + gap for cell, gap in zip(row, gaps, strict=True)]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return "\n".join(lines)


def width(text: str) -> int:
    """Columns a text takes in a terminal."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )
