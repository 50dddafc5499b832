"""Projection of what is left of y on the columns of many candidates at once."""

from __future__ import annotations

import numpy as np

from gradfit.typing import Floats

FLAT = 1e-12  # of a column's squared length: where less than that is left, it is no direction of its own


def unit(columns: Floats) -> Floats:
    """Scale columns to a largest number of 1, so that their squares neither overflow nor fade."""
    with np.errstate(all="ignore"):
        size = np.abs(columns).max(axis=-1, keepdims=True)
        return columns / np.where((size > 0) & np.isfinite(size), size, 1.0)


def without(rows: Floats, basis: Floats) -> Floats:
    """Take from rows, (..., n), what lies in an orthonormal basis, (m, n)."""
    return rows - (rows @ basis.T) @ basis if len(basis) else rows


def projected(rest: Floats, columns: Floats, basis: Floats) -> tuple[Floats, Floats]:
    """Project what is left, (n,) or (G, n), on columns, (G, m, n), outside of a basis: the sums of squares left, and the projections.

    Gram and Schmidt, column by column; a column that adds nothing to those before it is passed over. Candidates that are not finite cost
    an infinity.
    """
    with np.errstate(all="ignore"):
        finite = np.asarray(np.isfinite(columns).all(axis=(1, 2)))
        columns = np.where(finite[:, None, None], columns, 0.0)
        lengths = np.einsum("gmn,gmn->gm", columns, columns)
        columns = without(columns, basis)
        left = np.broadcast_to(rest, (len(columns), rest.shape[-1]))
        fit = np.zeros_like(left)
        for place in range(columns.shape[1]):
            column = columns[:, place]
            for earlier in range(place):
                known = columns[:, earlier]
                column = column - np.einsum("gn,gn->g", column, known)[:, None] * known
            length = np.einsum("gn,gn->g", column, column)
            own = length > FLAT * lengths[:, place]
            column = column * np.where(own, 1 / np.sqrt(np.where(own, length, 1.0)), 0.0)[:, None]
            columns[:, place] = column
            fit = fit + np.einsum("gn,gn->g", left, column)[:, None] * column
        left = left - fit
        cost = np.einsum("gn,gn->g", left, left)
        return np.where(finite & np.isfinite(cost), cost, np.inf), fit
