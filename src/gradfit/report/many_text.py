"""The results of many fits as text: how they ended, how the parameters are spread, and how well they are known."""

from __future__ import annotations

import numpy as np

from gradfit.methods.many import NAMES
from gradfit.report.many_rows import listed
from gradfit.report.many_table import number, numbers_of
from gradfit.report.text import MANY, columns
from gradfit.statistics.many_record import SENTENCES, ManyRecord
from gradfit.typing import Floats

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SHOWN = 3  # failed fits that are named


def brief(record: ManyRecord) -> str:
    """A few lines: what was fitted, how the fits ended, and their median loss."""
    lines = [heading(record), *_beginning(record), "  " + ", ".join(f"{count} {name}" for name, count in counts(record).items())]
    kept = record.loss[record.success & np.isfinite(record.loss)]
    if len(kept):
        lines.append(f"  median loss {np.median(kept):.4g}")
    return "\n".join(lines if record.count else lines[:1])


def _beginning(record: ManyRecord) -> list[str]:
    """Say where fits began, where the caller did not: one sentence, or none."""
    return [f"  {record.beginning}"] if record.beginning else []


def heading(record: ManyRecord) -> str:
    """What was fitted, to what, how."""
    model = record.model if "=" in record.model else f"{record.target} by {record.model}"
    said = [_rows(record.n[record.n > 0]), record.method, f"loss {record.loss_name}", f"engine {record.engine}"]
    return f"{record.count} fit{'s' * (record.count != 1)} of {model}   ({'; '.join(part for part in said if part)})"


def _rows(numbers: np.ndarray) -> str:
    """Say "30 rows each", or "12 to 30 rows"."""
    if not len(numbers):
        return ""
    low, high = int(numbers.min()), int(numbers.max())
    return f"{low} to {high} rows" if low != high else f"{low} row{'s' * (low != 1)} each"


def counts(record: ManyRecord) -> dict[str, int]:
    """How many fits ended in which status, the most frequent first."""
    found = np.array(record.counts)
    return {NAMES[code]: int(found[code]) for code in np.argsort(-found, kind="stable") if found[code]}


def report(record: ManyRecord, rows: int = 0) -> str:
    """Everything a reader needs: statuses, parameters, their errors, losses; the first fits one by one where ``rows`` asks for them."""
    parts = ["\n".join([heading(record), *_beginning(record)]), listed(record, rows) if rows else "", _statuses(record)]
    if record.success.any():
        parts += [_values(record), _errors(record)]
    parts.append(_failed(record))
    return "\n\n".join(part for part in parts if part) + "\n"


def _statuses(record: ManyRecord) -> str:
    rows = [(f"{count}", name, SENTENCES[name]) for name, count in counts(record).items()]
    good = int(record.success.sum())
    head = f"{good} of {record.count} succeeded"
    width = max((len(count) for count, _, _ in rows), default=0)
    return "\n".join([head, columns([(count.rjust(width), name, told) for count, name, told in rows])] if rows else [head])


def _values(record: ManyRecord) -> str:
    """Quantiles of the parameters, the loss and the steps over the fits that succeeded."""
    rows = [("", "lowest", *(f"{100 * share:.0f}%" for share in QUANTILES), "highest")]
    for name, values in _listed(record):
        rows.append((name, *(_cell(value) for value in _quantiles(values[record.success], (0, *QUANTILES, 1)))))
    return "Values of the fits that succeeded\n" + columns_with_numbers(rows)


def _listed(record: ManyRecord) -> list[tuple[str, Floats]]:
    """Numbers that are told of: parameters, losses, steps."""
    found = [(name, number(record, name)[0]) for name in numbers_of(record)[:MANY]]
    ends = [("loss", record.loss), ("validation loss", record.validation_loss), ("rows", record.n), ("steps", record.steps)]
    return [*found, *((name, np.asarray(values, dtype=np.float64)) for name, values in ends if values is not None)]


def _errors(record: ManyRecord) -> str:
    """Quantiles of the relative standard errors, and how many are not known."""
    rows = [("", *(f"{100 * share:.0f}%" for share in QUANTILES), "no error")]
    for name in record.names[:MANY]:
        value, stderr = number(record, name)
        value, stderr = value[record.success], stderr[record.success]
        known = np.isfinite(stderr)
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = 100 * stderr[known] / np.abs(value[known])
        rows.append((name, *(_percent(share) for share in _quantiles(relative, QUANTILES)), f"{int((~known).sum())}"))
    more = len(record.names) - MANY
    return (
        "Standard errors relative to the values\n"
        + columns_with_numbers(rows)
        + (f"\n  ... and {more} more parameters" if more > 0 else "")
    )


def _failed(record: ManyRecord) -> str:
    """Name the first fits of each way to fail."""
    lines = []
    for name in counts(record):
        code = NAMES.index(name)
        places = np.flatnonzero(record.status == code)
        if not record.success[places[0]]:
            more = f" and {len(places) - SHOWN} more" if len(places) > SHOWN else ""
            lines.append(f"  {name}: {', '.join(title(record, int(place)) for place in places[:SHOWN])}{more}")
    return "\n".join(["Fits that failed", *lines]) if lines else ""


def title(record: ManyRecord, place: int) -> str:
    """Call a fit by its keys, or by its place."""
    return ", ".join(f"{name} {labels[place]}" for name, labels in record.keys.items()) or f"fit {place}"


def _quantiles(values: Floats, shares: tuple[float, ...]) -> Floats:
    finite = values[np.isfinite(values)]
    return np.asarray(np.quantile(finite, shares)) if len(finite) else np.full(len(shares), np.nan)


def _cell(value: float) -> str:
    return f"{value:.5g}"


def _percent(value: float) -> str:
    return f"{value:.2g}%" if value < 1000 else f"{value:.1e}%" if np.isfinite(value) else f"{value}"


def columns_with_numbers(rows: list[tuple[str, ...]]) -> str:
    """Align cells: names to the left, numbers to the right."""
    width = max(len(cell) for row in rows for cell in row[1:])
    return columns([(row[0], *(cell.rjust(width) for cell in row[1:])) for row in rows])
