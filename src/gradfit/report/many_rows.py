"""The results of many fits one by one: a line of text each, or a JSON object each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from gradfit.methods.many import NAMES
from gradfit.report.many_table import ENDS, number, numbers_of
from gradfit.report.text import columns
from gradfit.statistics.many_record import SENTENCES, ManyRecord
from gradfit.statistics.rounding import rounded

WIDE = 8  # parameters in a line


def listed(record: ManyRecord, most: int) -> str:
    """The first fits as a table: what each is called, value ± error of each parameter, how many rows it has, how it ended."""
    names = numbers_of(record)
    shown = names[:WIDE]
    places = range(min(record.count, most))
    head = [*(record.keys or ["fit"]), *shown, *(["..."] if len(names) > WIDE else []), "rows", "status"]
    numbers = [number(record, name) for name in shown]
    rows = [
        (
            *_called(record, place),
            *(_cell(values[place], stderr[place]) for values, stderr in numbers),
            *(["..."] if len(names) > WIDE else []),
            str(record.n[place]),
            NAMES[record.status[place]],
        )
        for place in places
    ]
    more = record.count - len(rows)
    return columns([head, *rows]) + (f"\n  ... and {more} more" if more > 0 else "")


def _called(record: ManyRecord, place: int) -> list[str]:
    return [str(labels[place]) for labels in record.keys.values()] or [str(place)]


def _cell(value: float, stderr: float) -> str:
    return "-" if np.isnan(value) else rounded(float(value), float(stderr))


def json_lines(record: ManyRecord) -> Iterator[str]:
    """One JSON object for each fit; numbers that are not finite are null."""
    names = numbers_of(record)
    numbers = [number(record, name) for name in names]
    ends = [(name, found) for name in ENDS if name != "status" and (found := getattr(record, name)) is not None]
    success = record.success
    for place in range(record.count):
        status = NAMES[record.status[place]]
        yield json.dumps(
            {
                "fit": place,
                "key": {name: _label(labels[place]) for name, labels in record.keys.items()},
                "values": {name: _number(values[place]) for name, (values, _) in zip(names, numbers, strict=True)},
                "stderr": {name: _number(stderr[place]) for name, (_, stderr) in zip(names, numbers, strict=True)},
                **{name: _number(values[place]) for name, values in ends},
                "status": status,
                "success": bool(success[place]),
                "message": SENTENCES[status],
            },
            allow_nan=False,
            ensure_ascii=False,
        )


def _number(value: Any) -> float | int | None:
    """A number as JSON has it."""
    found = value.item()
    return found if isinstance(found, int) or np.isfinite(found) else None


def _label(label: Any) -> Any:
    """A label as JSON has it: a number, a truth value, or text."""
    found = label.item() if isinstance(label, np.generic) and label.dtype.kind in "biuf" else label
    return found if isinstance(found, (bool, int, float)) else str(found)
