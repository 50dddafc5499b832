"""Models side by side, as text for a terminal and as HTML for a notebook."""

from __future__ import annotations

import math
from html import escape

from gradfit.report.text import columns
from gradfit.statistics.comparison import F_TEST, Compared, Pair, Row

QUESTION = "Nested models: if the smaller one is true, how probable is so much gain?"
NUMBERS = ("loss", "reduced χ²", "AIC", "AICc", "ΔAICc", "weight", "BIC", "cross-validated")


def text(comparison: Compared) -> str:
    """Give the heading, the table, the tests of nested models, and what is not tested."""
    parts = [heading(comparison), columns(table(comparison))]
    if tests := test_rows(comparison):
        parts.append(f"{QUESTION}\n{columns(tests)}")
    parts += [
        "\n".join(lines) for lines in (untested(comparison), [f"Warning: {warning}" for warning in comparison.warnings]) if lines
    ]
    return "\n\n".join(parts)


def html(comparison: Compared) -> str:
    """Give the same for a notebook cell."""
    parts = [f"<p>{escape(heading(comparison))}</p>", _html_table(table(comparison))]
    if tests := test_rows(comparison):
        parts += [f"<p>{escape(QUESTION)}</p>", _html_table(tests)]
    notes = [*untested(comparison), *comparison.warnings]
    if notes:
        parts.append(f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>")
    return f"<div>{''.join(parts)}</div>"


def heading(comparison: Compared) -> str:
    """What is compared, on what, and what came out best."""
    folds = f"; {comparison.folds} folds" if comparison.folds else ""
    rows = f"{comparison.n} row{'s' * (comparison.n != 1)}"
    best = (
        f"best: {comparison.best}" if comparison.best is not None else "no best: there is neither AICc nor a cross-validated loss"
    )
    return f"{len(comparison.rows)} models of {comparison.target}   ({rows}; loss {comparison.loss_name}{folds})   {best}"


def table(comparison: Compared) -> list[tuple[str, ...]]:
    """One row of cells per model, the heading first; columns without a number are left out."""
    rows = [(row.name, f"{row.parameters}", *_numbers(row), row.remark) for row in comparison.rows]
    head = ("model", "parameters", *NUMBERS, "")
    kept = [place for place in range(len(head)) if any(row[place] for row in rows)]
    return [tuple(row[place] for place in kept) for row in (head, *rows)]


def _numbers(row: Row) -> tuple[str, ...]:
    folded, error = row.cross_validated_loss, row.cross_validated_stderr
    return (
        _cell(row.loss, ".5g"), _cell(row.reduced_chi_square, ".5g"), _cell(row.aic, ".2f"), _cell(row.aicc, ".2f"),
        _cell(row.delta, ".2f"), _cell(row.weight, ".3f"), _cell(row.bic, ".2f"),
        f"{folded:.4g} ± {error:.2g}" if math.isfinite(folded) else "failed" if row.fold_losses else "",
    )  # fmt: skip


def _cell(value: float, form: str) -> str:
    if not math.isfinite(value):
        return ""
    return f"{value:{form}}" if not (form == ".3f" and 0 < value < 5e-4) else f"{value:.1e}"


def test_rows(comparison: Compared) -> list[tuple[str, ...]]:
    """The tests of nested models as cells, the heading first; none where nothing was tested."""
    rows = [(pair.smaller, pair.larger, statistic(pair), f"p = {pair.p_value:.3g}", pair.reason) for pair in comparison.tests]
    return [("smaller", "larger", "test", "", ""), *rows] if rows else []


def statistic(pair: Pair) -> str:
    """Name a test with its degrees of freedom and its value: ``F(1, 36) = 12.3``."""
    if pair.test == F_TEST:
        return f"F({pair.dof}, {pair.dof_residual:.0f}) = {pair.statistic:.4g}"
    return f"χ²({pair.dof}) = {pair.statistic:.4g}"


def untested(comparison: Compared) -> list[str]:
    """Say of the pairs that were not tested why, a line for each reason."""
    by_reason: dict[str, list[str]] = {}
    for pair in comparison.pairs:
        if not pair.test:
            by_reason.setdefault(pair.reason, []).append(f"{pair.smaller} / {pair.larger}")
    return [f"no test of {', '.join(pairs)}: {reason}" for reason, pairs in by_reason.items()]


def _html_table(rows: list[tuple[str, ...]]) -> str:
    head, *body = rows
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in body)
    return f"<table><tr>{top}</tr>{lines}</table>"
