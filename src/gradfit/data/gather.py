"""From what a caller has, arrays of many fits, lists of arrays, long columns, to a :class:`~gradfit.data.batch.Batch`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from gradfit.data.batch import Batch, DenseBatch, RaggedBatch, numbers, ragged
from gradfit.data.dataset import real
from gradfit.data.pieces import LongColumn, Spread, Table, plain_arrays, rise
from gradfit.errors import DataError


def gather(
    arrays: Sequence[Any], names: Sequence[str], target_name: str, *, sigma: Any = None, offsets: Any = None, mask: Any = None
) -> Batch:
    """Bring the data of many fits together.

    Parameters
    ----------
    arrays
        Inputs, then the target. Target (fits, points) and inputs (points,) for all fits or (fits, points); or lists of arrays, one
        per fit; or with ``offsets`` long columns, (rows,).
    sigma
        One number, (points,), (fits, points), (fits, 1) for one per fit, or like the target.
    mask
        True where a point is left out: (points,) for all fits, or like the target.

    Raises
    ------
    DataError
        Shapes that do not fit together, no fits, offsets that do not rise from 0 to the number of rows, text.
    """
    *inputs, target = [_plain(array, name) for array, name in zip(arrays, (*names, target_name), strict=True)]
    if offsets is not None:
        made = _long(inputs, target, offsets, sigma, names, target_name)
        return made if mask is None else replace(made, mask=_long_mask(mask, np.diff(made.offsets)))
    if isinstance(target, list):
        made = _listed(inputs, target, sigma, names, target_name)
        return made if mask is None else replace(made, mask=_long_mask(mask, np.diff(made.offsets)))
    whole = _dense(inputs, target, sigma, names, target_name)
    return whole if mask is None else replace(whole, mask=_dense_mask(mask, whole.count, whole.n))


def _plain(values: Any, name: str) -> Any:
    """Give an array, something that gives slices like one, or a list of arrays of different lengths."""
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().numpy()
    if isinstance(values, (list, tuple)) or (isinstance(values, np.ndarray) and values.dtype == object):
        return _list(values, name)
    if isinstance(values, np.ndarray) and values.dtype.kind not in "fiub":
        return real(values, name)
    if isinstance(values, np.ndarray) or (
        hasattr(values, "shape") and hasattr(values, "dtype") and hasattr(values, "__getitem__")
    ):
        return np.asarray(values) if hasattr(values, "iloc") or hasattr(values, "dims") else values
    if hasattr(values, "__array__") and not isinstance(values, (str, bytes)):
        return np.asarray(values)
    raise DataError(
        f"{name} is of type {type(values).__name__}; expected an array (fits, points), or a list of arrays, one per fit."
    )


def _list(values: Any, name: str) -> Any:
    """Tell a list of arrays, one per fit, from one of numbers."""
    parts = [part.detach().cpu().numpy() if isinstance(part, torch.Tensor) else part for part in values]
    if any(isinstance(part, (str, bytes)) for part in parts) or not any(
        np.ndim(part) for part in parts if hasattr(part, "__len__")
    ):
        return real(parts, name)
    if any(isinstance(part, np.ma.MaskedArray) for part in parts) and len({len(part) for part in parts}) == 1:
        return np.ma.stack([np.ma.asarray(part) for part in parts])
    if any(not hasattr(part, "__len__") for part in parts):
        raise DataError(f"{name} mixes numbers and arrays; expected one array for each fit.")
    if len({len(part) for part in parts}) == 1:
        dtype = plain_arrays(parts)
        if dtype is not None:
            return Table(parts, dtype)
        return real(np.array([np.asarray(part) for part in parts]), name)
    return parts


def _dense(inputs: list[Any], target: Any, sigma: Any, names: Sequence[str], target_name: str) -> DenseBatch:
    if len(target.shape) != 2:
        shape = tuple(target.shape)
        advice = "for one data set use gradfit.fit" if len(shape) == 1 else f"reshape it to (-1, {shape[-1]})"
        raise DataError(f"{target_name} has shape {shape}; expected (fits, points): {advice}.")
    count, n = map(int, target.shape)
    if count == 0 or n == 0:
        raise DataError(f"{target_name} has shape ({count}, {n}): there is nothing to fit; expected (fits, points).")
    columns = []
    for column, name in zip(inputs, names, strict=True):
        shape = () if isinstance(column, list) else tuple(column.shape)
        if shape not in ((n,), (count, n), (1, n)):
            told = f"{len(column)} arrays of different lengths" if isinstance(column, list) else f"shape {shape}"
            raise DataError(
                f"{name} has {told} and {target_name} has {(count, n)}; expected ({n},) for all fits, or {(count, n)}."
            )
        columns.append(column[0] if shape == (1, n) and count > 1 else column)
    return DenseBatch(tuple(names), target_name, tuple(columns), target, _dense_sigma(sigma, count, n))


def _dense_sigma(sigma: Any, count: int, n: int) -> Any:
    if sigma is None:
        return None
    if not isinstance(sigma, (list, tuple)) and np.ndim(sigma) == 0:
        return np.full(n, real(np.array([sigma], dtype=object), "sigma")[0])
    given = _plain(sigma, "sigma")
    shape = () if isinstance(given, list) else tuple(given.shape)
    if shape == (count,) and count != n:
        return np.asarray(given)[:, None]
    if shape not in ((n,), (count, n), (count, 1), (1, n)):
        raise DataError(
            f"sigma has shape {shape} for {count} fits of {n} points; expected ({n},) for all fits, ({count}, {n}), or ({count}, 1), one per fit."
        )
    return given[0] if shape == (1, n) and count > 1 else given


def _listed(inputs: list[Any], target: list[Any], sigma: Any, names: Sequence[str], target_name: str) -> RaggedBatch:
    columns = [_parts(column, name, len(target)) for column, name in zip(inputs, names, strict=True)]
    made = ragged(columns, target, None, names, target_name)
    return RaggedBatch(made.names, target_name, made.columns, made.target, made.offsets, _long_sigma(sigma, made.offsets))


def _parts(column: Any, name: str, count: int) -> list[Any]:
    if isinstance(column, list):
        return column
    if len(column.shape) == 2 and len(column) == count:
        return list(column)
    raise DataError(
        f"{name} has shape {tuple(column.shape)}, and the fits have different lengths; expected a list of {count} arrays."
    )


def _long(inputs: list[Any], target: Any, offsets: Any, sigma: Any, names: Sequence[str], target_name: str) -> RaggedBatch:
    for column, name in zip((*inputs, target), (*names, target_name), strict=True):
        if isinstance(column, list) or len(column.shape) != 1:
            raise DataError(f"with offsets {name} is one long column, (rows,); it is a list or has several dimensions.")
        if len(column) != len(target):
            raise DataError(f"{name} has {len(column)} rows and {target_name} has {len(target)}; give columns of one length.")
    try:
        edges = np.asarray(offsets)
        whole = edges.ndim == 1 and edges.dtype.kind in "iu" and len(edges) > 1
    except (TypeError, ValueError):
        whole = False
    if not whole:
        raise DataError(f"offsets is {str(offsets)[:60]}; expected whole numbers, (fits + 1,), from 0 to the number of rows.")
    edges = edges.astype(np.int64, copy=False)
    if edges[0] != 0 or edges[-1] != len(target) or not rise(edges):
        raise DataError(
            f"offsets go from {edges[0]} to {edges[-1]}; expected them to rise from 0 to the number of rows, {len(target)}."
        )
    return RaggedBatch(tuple(names), target_name, tuple(inputs), target, edges, _long_sigma(sigma, edges))


def _long_sigma(sigma: Any, offsets: np.ndarray) -> Any:
    """One sigma for each row of the long columns."""
    if sigma is None:
        return None
    total, lengths = int(offsets[-1]), np.diff(offsets)
    if not isinstance(sigma, (list, tuple)) and np.ndim(sigma) == 0:
        return np.broadcast_to(real(np.array([sigma], dtype=object), "sigma")[0], (total,))
    given = _plain(sigma, "sigma")
    if isinstance(given, list):
        other = np.array([len(part) for part in given])
        if len(other) == len(lengths) and (other == lengths).all():
            dtype = plain_arrays(given)
            return (
                np.concatenate([numbers(part, "sigma") for part in given]) if dtype is None else LongColumn(given, offsets, dtype)
            )
    elif given.shape in ((len(lengths),), (len(lengths), 1)):
        return Spread(numbers(given, "sigma").reshape(-1), offsets)
    elif given.shape == (total,):
        return numbers(given, "sigma")
    elif len(given.shape) == 2 and len(given) == len(lengths) and (lengths == given.shape[1]).all():
        if isinstance(given, Table):
            return LongColumn(given.parts, offsets, given.dtype)
        return numbers(given, "sigma").reshape(-1)
    raise DataError(
        f"sigma does not fit the data: expected one number, one per fit ({len(lengths)}), or one per row like the target."
    )


def _flags(mask: Any) -> Any:
    """Read truth values, an array or a list of arrays."""
    if isinstance(mask, torch.Tensor):
        mask = mask.detach().cpu().numpy()
    listed = isinstance(mask, (list, tuple)) and any(np.ndim(part) for part in mask)
    parts = [np.asarray(part) for part in mask] if listed else [mask if hasattr(mask, "shape") else np.asarray(mask)]
    if any(getattr(part, "dtype", None) != np.bool_ for part in parts):
        raise DataError("mask holds other things than True and False; expected True where a point is left out, as in numpy.ma.")
    if not listed:
        return parts[0]
    return np.stack(parts) if len({part.shape for part in parts}) == 1 else parts


def _dense_mask(mask: Any, count: int, n: int) -> Any:
    given = _flags(mask)
    shape = () if isinstance(given, list) else tuple(given.shape)
    if shape not in ((n,), (count, n)):
        told = f"{len(given)} arrays of different lengths" if isinstance(given, list) else f"shape {shape}"
        raise DataError(f"mask has {told} for {count} fits of {n} points; expected ({n},) for all fits, or ({count}, {n}).")
    return given


def _long_mask(mask: Any, lengths: np.ndarray) -> np.ndarray:
    """One truth value for each row of the long columns."""
    given = _flags(mask)
    if isinstance(given, list) or given.ndim == 2:
        other = np.array([len(part) for part in given])
        if len(other) == len(lengths) and (other == lengths).all():
            return np.concatenate(list(given))
    elif given.shape == (int(lengths.sum()),):
        return np.asarray(given)
    raise DataError("mask does not fit the data: expected one truth value per row, like the target.")
