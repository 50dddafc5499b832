"""Rows set apart: a training/validation split, k folds; seeded, never drawn from a global generator."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
import torch

from gradfit.errors import DataError, OptionError


def permutation(n: int, seed: int) -> np.ndarray:
    """Give the permutation that ``torch.manual_seed(seed); torch.randperm(n)`` would."""
    if not -(2**63) <= seed < 2**64:
        raise OptionError(f"seed is {seed}; expected a whole number from 0 to 2**64 - 1.")
    return torch.randperm(n, generator=torch.Generator().manual_seed(int(seed))).numpy()


def split(
    n: int, validation: Any, *, seed: int, row_numbers: np.ndarray, source_rows: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Choose (training, validation) rows, by position.

    Parameters
    ----------
    n
        Number of rows.
    validation
        A fraction: the last ``int(fraction * n)`` rows of a seeded permutation are set apart. Or the rows themselves: a list
        of row numbers of the source, from 0, or a boolean mask over the source's rows.
    row_numbers
        (n,), which row of the source each row was: rows left out as missing keep their number.
    source_rows
        How many rows the source has, those left out included; default: up to the last that was kept.

    Raises
    ------
    DataError
        A fraction outside (0, 1) or too small for one row; row numbers unknown, repeated, or so many that nothing is left.
    """
    if isinstance(validation, numbers.Real) and not isinstance(validation, (bool, np.bool_)):
        return _by_fraction(n, float(validation), seed)
    chosen = _row_list(validation)
    if chosen.ndim != 1 or chosen.size == 0 or chosen.dtype.kind not in "iub":
        raise DataError(f"validation is {validation!r}; expected a fraction like 0.2, row numbers, or a data set of its own.")
    known = source_rows is not None
    source_rows = int(row_numbers.max()) + 1 if source_rows is None else source_rows
    if chosen.dtype.kind == "b":
        if len(chosen) < source_rows or (known and len(chosen) > source_rows):
            raise DataError(f"the validation mask has {len(chosen)} values for {source_rows} rows; give one per row.")
        chosen = np.flatnonzero(chosen)
    if len(np.unique(chosen)) < len(chosen):
        raise DataError("validation names a row twice; name each row once.")
    outside = chosen[(chosen < 0) | (chosen >= source_rows)]
    if outside.size:
        raise DataError(f"validation names row {outside[0]}, and the data have rows 0 to {source_rows - 1}.")
    position = {int(row): place for place, row in enumerate(row_numbers)}
    held_out = np.array([position[int(row)] for row in chosen if int(row) in position], dtype=np.int64)
    train = np.setdiff1d(np.arange(n), held_out)
    if not len(train) or not len(held_out):
        raise DataError(
            f"validation leaves {len(train)} rows to train on and {len(held_out)} to validate; expected some of each."
        )
    return train, held_out


def _row_list(validation: Any) -> np.ndarray:
    try:
        return np.asarray(validation.detach().cpu() if isinstance(validation, torch.Tensor) else validation)
    except (TypeError, ValueError):
        return np.empty(0)  # ragged: refused like anything else that is no list of rows


def _by_fraction(n: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    if not 0 < fraction < 1:
        raise DataError(f"validation is {fraction:g}; expected a fraction between 0 and 1, a list of row numbers, or a data set.")
    held_out = int(fraction * n)
    if held_out == 0:
        raise DataError(f"validation={fraction:g} of {n} rows is no row; raise the fraction or use folds=.")
    shuffled = permutation(n, seed)
    return shuffled[:-held_out], shuffled[-held_out:]


def k_folds(n: int, folds: int, *, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Split rows into ``folds`` parts of nearly one size; each is the validation set once.

    Raises
    ------
    DataError
        Fewer than 2 folds, or more folds than rows.
    """
    if isinstance(folds, bool) or not isinstance(folds, numbers.Integral) or not 2 <= folds <= n:
        raise DataError(f"folds is {folds!r}; expected a whole number from 2 to the number of rows, {n}.")
    parts = np.array_split(permutation(n, seed), int(folds))
    return [(np.concatenate([p for p in parts if p is not part]), part) for part in parts]
