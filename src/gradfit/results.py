"""FitResults: the results of many fits, with verbs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from gradfit.errors import DataError, FitError
from gradfit.methods.many import NAMES
from gradfit.result import FitResult
from gradfit.statistics.many_record import SENTENCES, ManyRecord
from gradfit.typing import Floats


@dataclass(frozen=True)
class Source:
    """What the results came from: how to make fits again. A stored result has none.

    Attributes
    ----------
    single
        ``single(i, theta)``: one of the fits as a FitResult of its own; theta, where the batch ended.
    covariance
        The covariance of all fits, (count, m, m), where it was not kept.
    again
        ``again(places, method=, multistart=, seed=)``: fit some once more; gives their records, in this order.
    """

    single: Callable[[int], FitResult]
    covariance: Callable[[], Floats]
    again: Callable[..., ManyRecord]


class FitResults:
    """What many fits found. Everything known is in ``record``, plain arrays."""

    def __init__(self, record: ManyRecord, source: Source | None = None) -> None:
        self.record, self._source = record, source

    # --- per fit ------------------------------------------------------------------------------------------------------

    @property
    def values(self) -> Mapping[str, Floats]:
        """Fitted values by parameter, (fits,) each; (fits, ...) of a vector parameter; fixed ones too."""
        return self._by_name(self.record.values, self.record.fixed)

    @property
    def stderr(self) -> Mapping[str, Floats]:
        """Standard errors by parameter, (fits,) each; 0 of fixed ones, NaN where it cannot be vouched for."""
        return self._by_name(self.record.stderr, {name: 0.0 for name in self.record.fixed})

    def _by_name(self, table: Floats, fixed: Mapping[str, Any]) -> dict[str, Floats]:
        record, found = self.record, {}
        columns = {name: table[:, place] for place, name in enumerate(record.names)}
        for name, shape in record.shapes.items():
            own = [column for element, column in columns.items() if element == name or element.startswith(f"{name}[")]
            if own:
                found[name] = own[0] if shape == () else np.stack(own, axis=1).reshape(record.count, *shape)
            else:
                found[name] = np.broadcast_to(np.asarray(fixed[name], dtype=np.float64), (record.count, *shape)).copy()
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all numbers that are not fixed: the order of ``covariance``."""
        return self.record.names

    @cached_property
    def covariance(self) -> Floats:
        """Covariance of ``names`` of each fit, (fits, m, m); computed when asked for, unless ``covariance=True`` had it kept."""
        if self.record.covariance is not None:
            return self.record.covariance
        if self._source is None:
            raise FitError("these stored results hold no covariance; fit with covariance=True and save again.")
        return self._source.covariance()

    @property
    def loss(self) -> Floats:
        """Mean loss of each fit, (fits,)."""
        return self.record.loss

    @property
    def validation_loss(self) -> Floats | None:
        """Mean loss of the validation rows, (fits,); None without such rows."""
        return self.record.validation_loss

    @property
    def n(self) -> np.ndarray:
        """Rows of each fit, missing ones not counted, (fits,)."""
        return self.record.n

    @property
    def steps(self) -> np.ndarray:
        """Steps of each fit, (fits,)."""
        return self.record.steps

    @property
    def status(self) -> np.ndarray:
        """How each fit ended, (fits,) of text."""
        return np.asarray(NAMES)[self.record.status]

    @property
    def success(self) -> np.ndarray:
        """Which may be used as fits, (fits,) bool."""
        return self.record.success

    @property
    def failed(self) -> np.ndarray:
        """Places of the fits that did not succeed."""
        return np.flatnonzero(~self.success)

    def message(self, fit: int) -> str:
        """Say how a fit ended."""
        return SENTENCES[NAMES[self.record.status[self._place(fit)]]]

    @property
    def counts(self) -> dict[str, int]:
        """How many fits ended in which status."""
        found = np.bincount(self.record.status, minlength=len(NAMES))
        return {name: int(count) for name, count in zip(NAMES, found, strict=True) if count}

    def _place(self, fit: Any) -> int:
        if isinstance(fit, bool) or not isinstance(fit, (int, np.integer)):
            raise DataError(f"fits[{fit!r}]: expected the place of a fit, a whole number from 0 to {len(self) - 1}.")
        if not -len(self) <= fit < len(self):
            raise IndexError(f"fits[{fit}]: there are {len(self)} fits, 0 to {len(self) - 1}.")
        return int(fit) % len(self)

    def __len__(self) -> int:
        return self.record.count

    def __getitem__(self, fit: int) -> FitResult:
        """One fit with everything a single fit tells.

        Raises
        ------
        FitError
            It could not be made: bad data, too few rows; or the data are not at hand, for stored results.
        """
        place = self._place(fit)
        if self._source is None:
            raise FitError("stored results hold no data, so a fit cannot be looked at closer; fit them again.")
        if not np.isfinite(self.record.loss[place]) and NAMES[self.record.status[place]] not in (
            "not_finite",
            "diverged",
            "stalled",
        ):
            raise FitError(f"fit {place} has no result. {self.message(place)}")
        return self._source.single(place)

    def __iter__(self) -> Iterator[FitResult]:
        return (self[place] for place in range(len(self)))

    # --- again --------------------------------------------------------------------------------------------------------

    def retry(self, *, method: Any = None, multistart: int | None = None, seed: int = 0, **options: Any) -> FitResults:
        """Fit again those that failed, and only those; gives all results, with the better ones taken in.

        Parameters
        ----------
        method
            Another method, by name or object.
        multistart
            Begin each from this many starts, drawn around the start with ``seed``; the lowest loss is kept.
        """
        places = self.failed
        if self._source is None:
            raise FitError("stored results hold no data to fit again; call fit_many anew.")
        again = self._source.again(places, method=method, multistart=multistart, seed=seed, **options)
        better = again.success | ~(again.loss >= self.record.loss[places])
        merged = self.record.part(slice(None))
        merged = replace(merged, **{name: None if (own := getattr(merged, name)) is None else own.copy() for name in COPIED})
        merged.put(places[better], again.part(better))
        return FitResults(merged, self._source)

    def __repr__(self) -> str:
        told = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        return f"<FitResults: {len(self)} fits of {self.record.model}; {told}>"


COPIED = ("values", "stderr", "loss", "n", "steps", "status", "covariance", "validation_loss")
