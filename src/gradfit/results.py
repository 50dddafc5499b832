"""FitResults: the results of many fits, with verbs."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, overload

import numpy as np

from gradfit.errors import DataError, FitError, OptionError, unknown
from gradfit.methods.many import NAMES, NOT_DONE
from gradfit.report import many_plots, many_storage, many_table, many_text, many_xarray, plots
from gradfit.result import FitResult
from gradfit.statistics.many_intervals import check_options, t_limits
from gradfit.statistics.many_record import ARRAYS, SENTENCES, ManyRecord
from gradfit.typing import Floats


class Source(Protocol):
    """What the results came from: how to make fits again. A stored result has none."""

    def single(self, fit: int, values: Floats) -> FitResult:
        """Make one of the fits by itself; it ended at ``values`` in the batch, (m,)."""

    def covariance(self) -> Floats:
        """Covariance of all fits, (count, m, m), where it was not kept."""

    def again(
        self, places: np.ndarray, *, method: Any, multistart: int | None, seed: int, covariance: bool, options: Mapping[str, Any]
    ) -> tuple[ManyRecord, Source]:
        """Make some fits once more; gives their records in this order, and what can make them again."""

    def intervals(self, record: ManyRecord, level: float, kind: str, options: Mapping[str, Any]) -> tuple[Floats, Floats]:
        """Lower and upper limits of all fits, (count, m) each, by profile or bootstrap."""


@dataclass(frozen=True)
class Merged:
    """Results of which some were made once more.

    Attributes
    ----------
    first, second
        How all were made, and those made once more.
    places, within
        Which of the latter were taken: where they stand among all, and among those.
    """

    first: Source
    second: Source
    places: np.ndarray
    within: np.ndarray

    def single(self, fit: int, values: Floats) -> FitResult:
        """Make one of the fits by itself."""
        found = np.flatnonzero(self.places == fit)
        return self.second.single(int(self.within[found[0]]), values) if found.size else self.first.single(fit, values)

    def covariance(self) -> Floats:
        """Covariance of all fits."""
        whole = self.first.covariance()
        whole[self.places] = self.second.covariance()[self.within]
        return whole

    def again(self, places: np.ndarray, **how: Any) -> tuple[ManyRecord, Source]:
        """Make some fits once more, as all were made at first."""
        return self.first.again(places, **how)

    def intervals(self, record: ManyRecord, level: float, kind: str, options: Mapping[str, Any]) -> tuple[Floats, Floats]:
        """Limits of all fits: these go by where a fit ended, not by how it came there."""
        return self.first.intervals(record, level, kind, options)


@dataclass(frozen=True)
class Part:
    """Some of many fits.

    Attributes
    ----------
    whole
        All of them.
    places
        Which these are, (part,).
    """

    whole: FitResults
    places: np.ndarray

    @property
    def source(self) -> Source:
        """How all were made."""
        return self.whole.made_by("a fit")

    def single(self, fit: int, values: Floats) -> FitResult:
        """Make one of the fits by itself."""
        return self.source.single(int(self.places[fit]), values)

    def covariance(self) -> Floats:
        """Covariance of these fits; that of all is computed once."""
        return np.asarray(self.whole.covariance[self.places])

    def again(self, places: np.ndarray, **how: Any) -> tuple[ManyRecord, Source]:
        """Make some fits once more."""
        return self.source.again(self.places[places], **how)

    def intervals(self, record: ManyRecord, level: float, kind: str, options: Mapping[str, Any]) -> tuple[Floats, Floats]:
        """Limits of these fits: the others are told to be not done, and left out."""
        among = _copied(self.whole.record)
        among.status[:] = NOT_DONE
        among.put(self.places, record)
        lower, upper = self.source.intervals(among, level, kind, options)
        return lower[self.places], upper[self.places]


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
        return self._by_name(self.record.stderr, dict.fromkeys(self.record.fixed, 0.0))

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
    def keys(self) -> Mapping[str, np.ndarray]:
        """What each fit is called, by name of the grouping column, (fits,) each; empty where fits go by their place."""
        return self.record.keys

    @property
    def engine(self) -> str:
        """What computed the fits: "native" or "torch"."""
        return self.record.engine

    @property
    def engine_reason(self) -> str:
        """Why that engine."""
        return self.record.engine_reason

    @property
    def loss(self) -> Floats:
        """Mean loss of each fit, (fits,)."""
        return self.record.loss

    @property
    def beginning(self) -> str:
        """Where fits began that were given no start, in a sentence; "" where there is nothing to say."""
        return self.record.beginning

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
        return np.asarray(np.asarray(NAMES)[self.record.status])

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
        """How many fits ended in which status, the most frequent first."""
        return many_text.counts(self.record)

    def place(self, **key: Any) -> int:
        """Place of the fit with these labels, one for each key column: ``fits[fits.place(sensor="a")]``.

        Raises
        ------
        DataError
            An unknown key column, no such fit, or several.
        """
        found = np.ones(len(self), dtype=bool)
        for name, label in key.items():
            if name not in self.keys:
                raise DataError(unknown("key", name, self.keys, "" if self.keys else "These fits go by their place: fits[0]."))
            labels = self.keys[name]
            found &= np.asarray(labels == (np.datetime64(label) if labels.dtype.kind == "M" else label))
        places = np.flatnonzero(found)
        if len(places) == 1:
            return int(places[0])
        told = ", ".join(f"{name}={label!r}" for name, label in key.items()) or "no key"
        rest = ", ".join(name for name in self.keys if name not in key)
        if len(places):
            raise DataError(
                f"{told} names {len(places)} of {len(self)} fits, expected one; {f'name {rest} too' if rest else 'choose one by its place'}."
            )
        known = ", ".join(f"{name} has {', '.join(map(repr, self.keys[name][:3].tolist()))}, ..." for name in key)
        raise DataError(f"no fit has {told}; {known}. Write a label as it is there.")

    def _place(self, fit: Any) -> int:
        if isinstance(fit, bool) or not isinstance(fit, (int, np.integer)):
            raise DataError(f"fits[{fit!r}]: expected the place of a fit, a whole number from 0 to {len(self) - 1}.")
        if not -len(self) <= fit < len(self):
            raise IndexError(f"fits[{fit}]: there are {len(self)} fits, 0 to {len(self) - 1}.")
        return int(fit) % len(self)

    def __len__(self) -> int:
        return self.record.count

    @overload
    def __getitem__(self, fit: int) -> FitResult: ...

    @overload
    def __getitem__(self, fit: slice | Sequence[int] | Sequence[bool] | np.ndarray) -> FitResults: ...

    def __getitem__(self, fit: Any) -> FitResult | FitResults:
        """One fit with everything a single fit tells; or with a slice, a mask or an array of places the results of some.

        A part of fits that have no keys gets the key "fit": where each stood among all.

        Raises
        ------
        FitError
            It could not be made: bad data, too few rows; or the data are not at hand, for stored results.
        DataError
            No place, a mask of another length.
        IndexError
            There is no such fit.
        """
        if isinstance(fit, slice) or np.ndim(fit) > 0:
            return self._part(np.arange(len(self))[fit] if isinstance(fit, slice) else self._places(fit))
        place = self._place(fit)
        source = self.made_by("a closer look at a fit")
        if not np.isfinite(self.record.loss[place]) and NAMES[self.record.status[place]] not in MADE:
            raise FitError(f"fit {place} has no result. {self.message(place)}")
        return source.single(place, self.record.values[place])

    def _places(self, chosen: Any) -> np.ndarray:
        """Places of the fits that a mask or an array of places means."""
        given = np.asarray(chosen)
        if given.ndim == 1 and given.dtype == bool and len(given) == len(self):
            return np.flatnonzero(given)
        if given.ndim != 1 or not (given.dtype.kind in "iu" or given.size == 0):
            raise DataError(
                f"fits[...] was given {given.dtype} of shape {given.shape}; expected a mask of {len(self)} fits, or places of fits."
            )
        beyond = given[(given < -len(self)) | (given >= len(self))]
        if beyond.size:
            raise IndexError(f"fits[{beyond[0]}]: there are {len(self)} fits, 0 to {len(self) - 1}.")
        return np.asarray(given.astype(np.int64) % max(len(self), 1))

    def _part(self, places: np.ndarray) -> FitResults:
        record = self.record.part(places)
        if not record.keys:
            record = replace(record, keys={many_table.PLACE: places})
        return FitResults(record, None if self._source is None else Part(self, places))

    def made_by(self, what: str) -> Source:
        """How the fits were made; FitError for stored results, which hold no data."""
        if self._source is None:
            raise FitError(f"stored results hold no data, which {what} needs; call fit_many anew.")
        return self._source

    def __iter__(self) -> Iterator[FitResult]:
        return (self[place] for place in range(len(self)))

    # --- again --------------------------------------------------------------------------------------------------------

    def retry(self, *, method: Any = None, multistart: int | None = None, seed: int = 0, **options: Any) -> FitResults:
        """Fit again those that failed, and only those; gives all results, the better ones taken in, the others as they are, to the last bit.

        Parameters
        ----------
        method
            Another method, as in :func:`gradfit.fit_many`; None: the same, with its options as they were but for those given here.
        multistart
            Fit each from that many starts and keep the lowest loss among the fits that succeed: from its own start, and from others around
            it. A drawn start is even between two finite bounds; otherwise the start times :math:`4^z`, or z where it is 0, with z normal,
            within the bounds. A fit that began at a neighbour's end begins at its own start.
        seed
            Of what is drawn; what is drawn for a fit does not depend on which others failed.
        **options
            Of the method: ``max_steps=5000``, ``learning_rate=0.1``.

        Returns
        -------
        FitResults
            Of all fits. Fits whose data cannot be fitted keep their status. Without any argument those that an interrupt left are made.

        Raises
        ------
        FitError
            Stored results, which hold no data.
        OptionError
            An unknown method or option, or a number that is none.
        """
        places = self.failed
        first = self.made_by("another fit")
        kept = self.record.covariance is not None
        again, source = first.again(places, method=method, multistart=multistart, seed=seed, covariance=kept, options=options)
        before = self.record.part(places)
        better = np.flatnonzero(improved(before, again))
        merged = _copied(self.record)
        merged.put(places[better], again.part(better))
        return FitResults(merged, Merged(first, source, places[better], better))

    def intervals(self, level: float = 0.95, kind: str = "t", **options: Any) -> dict[str, tuple[Floats, Floats]]:
        """Interval of each parameter of each fit: (lower, upper) by name, (fits,) each, (fits, ...) of a vector parameter.

        Parameters
        ----------
        level
            Of confidence, between 0 and 1.
        kind
            "t": value ± t · stderr, Student's t with the degrees of freedom of each fit. "profile": where the sum of squares of a fit has
            risen by :math:`s^2t^2`, the others fitted again; infinite where its data set no limit. "bootstrap": from fits to resampled data.
            The last two are those of :meth:`FitResult.intervals`, fit by fit, from where each fit ended.
        **options
            Of "profile" and "bootstrap": ``threads``, ``progress``. Of "bootstrap": ``resamples`` (1000), ``scheme``, ``seed``, ``method``;
            the random numbers of a fit depend on the seed and its place only.

        Returns
        -------
        dict
            NaN where there is no interval: a fit that failed, an error that cannot be vouched for. A fixed parameter is its own interval.

        Raises
        ------
        OptionError
            A level outside (0, 1), an unknown kind or option, a kind or scheme that this loss cannot have.
        FitError
            Stored results: profile and bootstrap need the data.
        """
        check_options(level, kind, options)
        record = self.record
        if kind != "t":
            lower, upper = self.made_by(f"an interval by {kind}").intervals(record, level, kind, options)
        elif record.dof is None:
            raise FitError("these stored results do not hold their degrees of freedom; fit again.")
        else:
            lower, upper = t_limits(record.values, record.stderr, record.dof, level)
        sides = [self._by_name(side, record.fixed) for side in (lower, upper)]
        return {name: (sides[0][name], sides[1][name]) for name in sides[0]}

    # --- as a table ---------------------------------------------------------------------------------------------------

    def to_pandas(self) -> Any:
        """A pandas DataFrame, one row per fit: keys, ``w``, ``w_stderr``, ..., loss, validation_loss, n, dof, steps, status.

        Without keys the index is the place of the fit. A column of ours whose name a key or a parameter has gets an underscore: ``n_``.
        """
        return many_table.to_pandas(self.record)

    def to_polars(self) -> Any:
        """A polars DataFrame with the columns of :meth:`to_pandas`; without keys the first is the place of the fit."""
        return many_table.to_polars(self.record)

    def to_arrow(self) -> Any:
        """A pyarrow Table with the columns of :meth:`to_polars`."""
        return many_table.to_arrow(self.record)

    def to_xarray(self) -> Any:
        """An xarray Dataset: value and stderr (fit, param), covariance (fit, cov_i, cov_j) if it was kept, loss, n, steps, status (fit)."""
        return many_xarray.to_xarray(self.record)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the results as Parquet (``.parquet``) or NetCDF (``.nc``), to the bit, whole or not at all; :func:`gradfit.load` reads them.

        The data are not stored: loaded results cannot fit again, nor give a single fit.

        Raises
        ------
        StorageError
            Another suffix, a place that cannot be written, a full disk, keys that the format does not know.
        """
        many_storage.save(self.record, path)

    # --- to look at ---------------------------------------------------------------------------------------------------

    def report(self, rows: int = 0) -> str:
        """As text: how many fits ended how, how the parameters are spread, and how well they are known.

        Parameters
        ----------
        rows
            List that many fits one by one too, the first ones.
        """
        return many_text.report(self.record, rows)

    def plot(self, name: str, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw a histogram of a parameter over the fits that succeeded; give the matplotlib figure, write it if a path is given.

        Parameters
        ----------
        name
            Of a number: ``w``, ``c[0]``; or any other column of numbers of :meth:`to_pandas`: ``w_stderr``, ``loss``, ``steps``.
        """
        values = many_table.drawable(self.record, name)
        stderr = many_table.number(self.record, name)[1] if name in self.names else None
        return plots.show(many_plots.histogram_figure(name, values, stderr, self.success), path)

    def plot_map(self, name: str, shape: tuple[int, int], path: str | os.PathLike[str] | None = None) -> Any:
        """Draw a parameter as an image, one pixel per fit; those that failed are grey, and crossed where they are few.

        Parameters
        ----------
        name
            As in :meth:`plot`.
        shape
            (rows, columns) of the image; fits are taken row after row.

        Raises
        ------
        DataError
            The shape does not have as many pixels as there are fits.
        """
        values = many_table.drawable(self.record, name)
        if np.shape(shape) != (2,) or not all(isinstance(size, (int, np.integer)) and size > 0 for size in shape):
            raise DataError(f"shape is {shape!r}; expected (rows, columns) of the image.")
        if math.prod(shape) != len(self):
            raise DataError(
                f"shape {tuple(shape)} has {math.prod(shape)} pixels for {len(self)} fits; expected as many, row after row."
            )
        return plots.show(many_plots.map_figure(name, values, self.success, shape), path)

    def plot_fits(
        self, kind: str | Sequence[int] | np.ndarray = "worst", count: int = 6, path: str | os.PathLike[str] | None = None
    ) -> Any:
        """Draw single fits side by side, data and fitted curve.

        Parameters
        ----------
        kind
            "worst": the largest reduced loss (loss · n / dof) among the fits that succeeded; "median": those around the median; or places.
        count
            How many, for "worst" and "median".

        Raises
        ------
        FitError
            Stored results, which hold no data; none that succeeded; a fit that was not made.
        """
        self.made_by("a picture of single fits")
        if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
            raise OptionError(f"count is {count!r}; expected how many fits to draw, a whole number, 1 or more.")
        if isinstance(kind, str):
            places, reduced = self._ranked(kind, count), self._reduced()
            panels = [self._panel(int(place), f": reduced loss {reduced[place]:.3g}") for place in places]
            title = f"{kind} of {int(self.success.sum())} fits by {self.record.model}"
        else:
            places = self._places(kind)
            if not places.size:
                raise DataError("there is no fit among the places given; expected one at least, so choose some.")
            panels = [self._panel(int(place), "") for place in places]
            title = f"{len(places)} of {len(self)} fits by {self.record.model}"
        return plots.show(many_plots.fits_figure(title, panels), path)

    def _panel(self, place: int, told: str) -> many_plots.Panel:
        fit = self[place]
        return many_plots.Panel(many_text.title(self.record, place) + told, fit.record, fit.curve())

    def _reduced(self) -> Floats:
        """Sum of losses by degree of freedom, (fits,); NaN of fits that failed."""
        record = self.record
        free = np.maximum(record.n - len(record.names), 1)
        if record.dof is not None:
            free = np.where(np.isfinite(record.dof) & (record.dof > 0), record.dof, free)
        return np.where(self.success, record.loss * record.n / free, np.nan)

    def _ranked(self, kind: str, count: int) -> np.ndarray:
        """Places of the worst or the median fits, the largest reduced loss first."""
        if kind not in KINDS:
            raise OptionError(unknown("kind of fits to draw,", kind, KINDS, "Or give places."))
        reduced = self._reduced()
        order = np.argsort(-reduced, kind="stable")[: int(np.isfinite(reduced).sum())]
        if not order.size:
            raise FitError(f"none of {len(self)} fits succeeded, so there is none to draw; see fits.report().")
        first = max((len(order) - count) // 2, 0) if kind == "median" else 0
        return order[first : first + count]

    def __repr__(self) -> str:
        """What was fitted, how the fits ended, their median loss; how long it took is not known."""
        return many_text.brief(self.record)


KINDS = ("worst", "median")
MADE = ("not_finite", "diverged", "stalled", "refused")  # statuses of fits that began, without a loss


def improved(one: ManyRecord, other: ManyRecord) -> np.ndarray:
    """Where another run of the same fits did better, (count,) bool: success before failure, then the lower loss."""
    lower = (other.loss < one.loss) | (np.isnan(one.loss) & (other.status != NOT_DONE))
    return np.asarray(np.where(other.success == one.success, lower, other.success))


def _copied(record: ManyRecord) -> ManyRecord:
    """Give a record whose arrays may be written to."""
    arrays = {name: None if (own := getattr(record, name)) is None else own.copy() for name in ARRAYS}
    return replace(record, **arrays)  # type: ignore[arg-type]
