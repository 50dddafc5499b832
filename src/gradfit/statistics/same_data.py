"""Whether fits were made to the same data: what is compared is what was fitted, row by row, not how many rows there were."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from gradfit.errors import DataError
from gradfit.statistics.record import FitRecord
from gradfit.statistics.summary import MAX_POINTS, Fitted
from gradfit.typing import Floats

ROWS_NAMED = 3
TARGET, INPUT = "target", "input "  # keys: an input may be called anything


def check_same_data(known: Mapping[str, Fitted | None], records: Mapping[str, FitRecord]) -> None:
    """Refuse fits whose likelihoods are not of the same data.

    Parameters
    ----------
    known
        The fits with their data, by name; None where they were loaded: then the rows kept in the record are compared.

    Raises
    ------
    DataError
        They differ in the training rows, the target, its errors, an input of the same name, or the loss.
    """
    first, *others = records
    for other in others:
        difference = _loss(known[first], known[other], records[first], records[other]) or _rows(
            known[first], known[other], records[first], records[other]
        )
        if difference:
            raise DataError(
                f"{first!r} and {other!r} cannot be compared: {difference}. Fit both to the same rows with the same sigma and loss."
            )


def _loss(one: Fitted | None, two: Fitted | None, first: FitRecord, second: FitRecord) -> str:
    """What differs in the loss; "" where nothing does."""
    if first.loss_name != second.loss_name:
        return f"their losses are {first.loss_name} and {second.loss_name}"
    if first.absolute_sigma != second.absolute_sigma:
        return "sigma is a measured error in one (absolute_sigma) and a weight in the other"
    if one is None or two is None or one.kernel.loss_kind != "custom" or one.setting.data.n != two.setting.data.n:
        return ""
    # Functions of one name may be different functions: they are told apart by what they give.
    target = torch.from_numpy(one.setting.data.target)
    prediction = target + torch.linspace(-1, 1, len(target), dtype=target.dtype) * (target.abs().mean() + 1)
    ours, theirs = (fitted.kernel.loss_function.mean(prediction, target, None) for fitted in (one, two))
    alike = torch.equal(ours, theirs) or bool(ours.isnan() and theirs.isnan())
    return "" if alike else f"their losses, both called {first.loss_name}, give different values"


def _rows(one: Fitted | None, two: Fitted | None, first: FitRecord, second: FitRecord) -> str:
    """What differs in the training rows; "" where nothing does."""
    if first.n != second.n:
        return f"they have {first.n} and {second.n} training rows"
    mine, theirs = (_arrays(one), _arrays(two)) if one is not None and two is not None else _kept(first, second)
    shared = [what for what in mine if what in theirs]
    lone = [what for what in (*mine, *theirs) if what not in shared and not what.startswith(INPUT)]
    if lone:
        return f"{lone[0]} was given for one of them only"
    for what in shared:
        if found := _differ(mine[what], theirs[what]):
            names = ", ".join(dict.fromkeys((first.model.target, second.model.target)))
            return f"{f'the target ({names})' if what == TARGET else what.removeprefix(INPUT)} differs {found}"
    return ""


def _arrays(fitted: Fitted) -> dict[str, Floats]:
    """The arrays that were fitted, by what they are called in a message."""
    data = fitted.setting.data
    return _named(data.target, {"sigma": data.sigma, "the covariance matrix": data.covariance}, data.sigma_x or {}, data.columns)


def _kept(first: FitRecord, second: FitRecord) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """The training rows that both records keep: all, or an even selection."""
    mine, theirs = (
        np.arange(0, record.n, max(1, -(-(record.n + record.n_validation) // MAX_POINTS))) for record in (first, second)
    )
    places = np.flatnonzero(np.isin(mine, theirs)), np.flatnonzero(np.isin(theirs, mine))
    found = []
    for record, chosen in zip((first, second), places, strict=True):
        points = record.points
        rows = np.flatnonzero(~points.held_out)[chosen]
        columns, errors = (
            {name: column[rows] for name, column in table.items()}
            for table in (points.columns, {} if points.distances is None else points.distances.sigma_x)
        )
        sigma = None if points.sigma is None else points.sigma[rows]
        found.append(_named(points.target[rows], {"sigma": sigma}, errors, columns))
    return found[0], found[1]


def _named(
    target: Floats, given: Mapping[str, Floats | None], sigma_x: Mapping[str, Floats], columns: Mapping[str, Floats]
) -> dict[str, Floats]:
    known = {what: values for what, values in given.items() if values is not None}
    known |= {f"sigma_x of {name}": errors for name, errors in sigma_x.items()}
    return {TARGET: target, **known, **{INPUT + name: column for name, column in columns.items()}}


def _differ(ours: Floats, other: Floats) -> str:
    """Where two arrays differ, in words; "" where they do not."""
    if ours.shape != other.shape:
        return f"in shape, {ours.shape} and {other.shape}"
    apart = np.flatnonzero((ours != other).reshape(len(ours), -1).any(axis=1)) if len(ours) else np.empty(0, dtype=int)
    if not apart.size:
        return ""
    if ours.ndim == 1 and np.array_equal(np.sort(ours), np.sort(other)):
        return "in the order of its rows"
    named = ", ".join(f"{row + 1}" for row in apart[:ROWS_NAMED])
    more = " and others" if apart.size > ROWS_NAMED else ""
    return f"in {apart.size} of {len(ours)} rows (row {named}{more})"
