"""A FitRecord as one self-contained page: no scripts, no outside address, readable on a phone and without a network."""

from __future__ import annotations

import math
from html import escape

from gradfit.report import plots, text
from gradfit.statistics.record import FitRecord
from gradfit.statistics.rounding import rounded

STYLE = """
:root{color-scheme:light}
body{font:16px/1.5 system-ui,-apple-system,"Segoe UI","Noto Sans","Noto Sans CJK SC","PingFang SC","Microsoft YaHei",sans-serif;
color:#222;background:#fff;max-width:46rem;margin:0 auto;padding:1rem}
h1{font-size:1.35rem;line-height:1.3;margin:.2rem 0 .6rem;overflow-wrap:anywhere}h2{font-size:1.1rem;margin:1.8rem 0 .4rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.95rem;width:100%}
th,td{text-align:left;padding:.3rem .7rem .3rem 0;border-bottom:1px solid #e3e3e3;white-space:nowrap}td.wrap{white-space:normal;min-width:9rem}
.training td,.training th{text-align:right}
.ok,.bad,.note{padding:.5rem .8rem;border-left:4px solid #0072B2;background:#f2f7fb;margin:.6rem 0}
.bad{border-color:#D55E00;background:#fdf3ec}.note{border-color:#8a8a8a;background:#f5f5f5}
svg{width:100%;height:auto;display:block}svg text{font-family:system-ui,"Noto Sans","Noto Sans CJK SC","Microsoft YaHei",sans-serif!important}
pre{background:#f5f5f5;padding:.6rem;overflow-x:auto;font-size:.85rem}ul{padding-left:1.2rem}footer{color:#666;font-size:.85rem;margin-top:2rem}
"""


def page(record: FitRecord, curve: plots.Curve | None) -> str:
    """Give the whole page, under 150 kB."""
    title = escape(text.title(record))
    parts = [
        f"<h1>{title}</h1>",
        _ending(record),
        "<h2>Result</h2>",
        result_table(record),
        f"<p>{'<br>'.join(escape(line) for line in text.quality(record))}</p>",
        _findings(record),
        "<h2>Data and fit</h2>",
        _picture(plots.fit_figure(record, curve), "fit", "Data and fit with its 95% confidence band"),
        _picture(plots.residual_figure(record), "residuals", "Residuals"),
        "<h2>Learning curves</h2>",
        _verdict(record),
        _picture(plots.history_figure(record), "history", "Learning curves"),
        _training(record),
        _model(record),
        f"<footer>{escape(text.heading(record))}. Engine {escape(record.engine)}: {escape(record.engine_reason)}</footer>",
    ]
    body = "\n".join(part for part in parts if part)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n'
    )


def fragment(record: FitRecord) -> str:
    """Give the result table for a notebook cell."""
    return f"<div>{_ending(record)}{result_table(record)}</div>"


def result_table(record: FitRecord) -> str:
    """Parameters with errors, intervals, starts."""
    rows = []
    for estimate in record.estimates[: text.MANY]:
        start = f"{estimate.start:g}" if math.isfinite(estimate.start) else ""
        cells = (estimate.name, rounded(estimate.value, estimate.stderr), text.interval(estimate), start)
        rows.append(
            "".join(f"<td>{escape(cell)}</td>" for cell in cells)
            + f'<td class="wrap">{escape(text.remark(estimate, record))}</td>'
        )
    if len(record.estimates) > text.MANY:
        rows.append(f'<td colspan="5">... and {len(record.estimates) - text.MANY} more</td>')
    head = "".join(f"<th>{name}</th>" for name in ("parameter", "value ± error", "95% interval", "start", ""))
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(f"<tr>{row}</tr>" for row in rows)}</table></div>'


def _ending(record: FitRecord) -> str:
    main = f'<p class="{"ok" if record.success else "bad"}">{escape(record.message)}</p>'
    others = [warning for warning in record.warnings if warning != record.message]
    begun = f'<p class="note">{escape(record.beginning.text)}</p>' if record.beginning.text else ""
    begun += f'<pre class="scroll">{escape(table)}</pre>' if (table := text.minima(record)) else ""
    return main + begun + "".join(f'<p class="note">{escape(warning)}</p>' for warning in others)


def _findings(record: FitRecord) -> str:
    if not record.findings:
        return ""
    found = "".join(
        f"<li><b>{escape(finding.kind)}</b>: {escape(finding.text)} {escape(finding.advice)}</li>" for finding in record.findings
    )
    return f"<h2>Findings</h2><ul>{found}</ul>"


def _verdict(record: FitRecord) -> str:
    found = record.diagnosis
    letter = f"({found.letter}) " if found.letter else ""
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in found.reasons)
    return f"<p><b>{escape(letter + found.verdict)}</b></p><ul>{reasons}</ul><p>{escape(found.advice)}</p>"


def _picture(figure: object, name: str, alt: str) -> str:
    return f'<figure style="margin:1rem 0" role="img" aria-label="{escape(alt)}">{plots.svg(figure, name)}</figure>'


def _training(record: FitRecord) -> str:
    lines = text.training_rows(record)
    if not lines:
        return ""
    head, *rows = lines
    cells = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    return (
        "<h2>Training</h2><p>Loss and gradient before each step, parameters after it.</p>"
        f'<div class="scroll"><table class="training"><tr>{top}</tr>{cells}</table></div>'
    )


def _model(record: FitRecord) -> str:
    if record.model.kind == "formula" or not record.model.text:
        return ""
    return f"<h2>Model</h2><pre>{escape(record.model.text[:4000])}</pre>"
