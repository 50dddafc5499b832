"""Projection of what is left of y on the columns of many candidates at once."""

from __future__ import annotations

import numpy as np

from gradfit.typing import Floats

FLAT = 1e-12  # of a column's squared length: where less than that is left, it is no direction of its own


def unit(columns: Floats) -> Floats:
    """Scale columns to a largest number of 1, so that their squares neither overflow nor fade."""
    with np.errstate(all="ignore"):
        size = np.maximum(columns.max(axis=-1, keepdims=True), -columns.min(axis=-1, keepdims=True))
        return columns * np.where((size > 0) & np.isfinite(size), 1 / size, 1.0)


def without(rows: Floats, basis: Floats) -> Floats:
    """Take from rows, (..., n), what lies in an orthonormal basis, (m, n)."""
    return rows - (rows @ basis.T) @ basis if len(basis) else rows


def directions(columns: Floats, basis: Floats) -> Floats:
    """Give orthonormal directions, (G, m, n), of columns, (G, m, n), outside of a basis; NaN for a candidate that is not finite.

    Gram and Schmidt, column by column; of a column that adds nothing to those before it 0 is left.
    """
    with np.errstate(all="ignore"):
        lengths = np.einsum("gmn,gmn->gm", columns, columns)
        found = np.empty_like(columns)
        for place in range(columns.shape[1]):
            column = without(columns[:, place], basis)
            for earlier in range(place):
                known = found[:, earlier]
                column = column - np.einsum("gn,gn->g", column, known)[:, None] * known
            length = np.einsum("gn,gn->g", column, column)
            own = ~(length <= FLAT * lengths[:, place])
            np.multiply(column, np.where(own, 1 / np.sqrt(length), 0.0)[:, None], out=found[:, place])
    return found


def along(rest: Floats, found: Floats) -> Floats:
    """Give how much of what is left, (n,) or (G, n), lies along directions, (G, m, n): (G, m)."""
    return found @ rest if rest.ndim == 1 else np.einsum("gmn,gn->gm", found, rest)


def curves(parts: Floats, found: Floats) -> Floats:
    """Give the sums of directions, (G, m, n), times parts, (G, m): (G, n)."""
    return np.asarray(np.einsum("gm,gmn->gn", parts, found))
