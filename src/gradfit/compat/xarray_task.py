r"""What is done with a block of an array: all its series are fitted at once. On dask arrays this is one task.

::

    y (..., points), coordinates, numbers of each series  ->  fit_many  ->  coefficients, covariance, status, stderr

The series of a block are never copied as a whole: :class:`Series` gives some of them when they are asked for.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradfit.compat.curve_solution import exhausted
from gradfit.compat.scipy import curve_fit
from gradfit.compat.xarray_model import curve_model
from gradfit.data.dataset import real
from gradfit.data.gather import gather
from gradfit.errors import DataError, FitError, FitWarning, ParameterError
from gradfit.many import fit_many
from gradfit.methods.many import BAD_START, CONVERGED, NAMES, NOT_CONVERGED, NOT_DONE, REFUSED, SUCCESSFUL, Starts, unfit
from gradfit.methods.method import Status
from gradfit.statistics.many_record import SENTENCES
from gradfit.typing import Floats

PIECE = 1 << 14  # series looked at together
STATUS = np.array(NAMES)  # in words
FITTED = len(Status)  # statuses below are of fits that were made
START, LOWER, UPPER, FIXED = "start", "lower", "upper", "fixed"


@dataclass(frozen=True)
class Series:
    """A view of an array, (..., points), as (series, points): slices are copied when they are taken.

    Attributes
    ----------
    array
        (*loop, *core).
    loop
        Shape of the axes along which there is one series each.
    """

    array: np.ndarray
    loop: tuple[int, ...]
    ndim = 2

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the numbers."""
        return self.array.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """(series, points)."""
        return math.prod(self.loop), math.prod(self.array.shape[len(self.loop) :])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, places: slice) -> np.ndarray:
        """Give some of the series."""
        begin, end, _ = places.indices(len(self))
        if not self.loop:
            return self.array.reshape(1, -1)[places]
        taken = self.array[np.unravel_index(np.arange(begin, end), self.loop)]
        return taken.reshape(end - begin, self.shape[1])


@dataclass(frozen=True)
class Numbers:
    """What a block says of the parameters, by name: a number for all of its series, or (series,).

    Attributes
    ----------
    start, lower, upper, fixed
        By name; no start of those that are fixed.
    """

    start: dict[str, Any]
    lower: dict[str, Any]
    upper: dict[str, Any]
    fixed: dict[str, Any]

    @property
    def bounds(self) -> dict[str, tuple[Any, Any]]:
        """Lower and upper bounds of those that have any."""
        pairs = {name: (self.lower[name], self.upper[name]) for name in self.start}
        return {name: pair for name, pair in pairs.items() if any(np.ndim(side) or math.isfinite(side) for side in pair)}

    def starts(self, count: int) -> Starts:
        """Lay them out, (series, parameters) each."""
        theta, lower, upper = (_table(part, self.start, count) for part in (self.start, self.lower, self.upper))
        return Starts(theta, lower, upper, _table(self.fixed, self.fixed, count))


def _table(part: Mapping[str, Any], names: Mapping[str, Any], count: int) -> Floats:
    columns = [np.broadcast_to(np.asarray(part[name], dtype=np.float64), (count,)) for name in names]
    return np.stack(columns, axis=1) if columns else np.empty((count, 0))


@dataclass(frozen=True)
class Task:
    """How the series of a block are fitted; goes to other processes as it is.

    Attributes
    ----------
    func, names
        The function, and its parameters' names.
    coordinates
        How many there are.
    core
        How many axes, the last ones, are fitted along.
    loop
        Names of the other axes, for messages.
    shared
        Numbers that all series have in common: by what they are, then by name.
    own
        What the arrays after the coordinates and sigma are: what, of which parameter.
    settings
        Arguments of :func:`fit_many`.
    scipy
        Options that only :func:`curve_fit` has; None where there are none.
    most
        Evaluations allowed, for the message.
    sigma, sigma_axes
        One sigma for all. Or for how many axes, the last ones, the array after the coordinates is: none for one sigma per series.
    outputs
        How many results are asked for: 2, or 4 with stderr and status.
    """

    func: Callable[..., Any] = field(repr=False)
    names: tuple[str, ...]
    coordinates: int
    core: int
    shared: Mapping[str, Mapping[str, float]] = field(repr=False)
    own: tuple[tuple[str, str], ...]
    skipna: bool
    errors: str
    absolute_sigma: bool
    settings: Mapping[str, Any] = field(repr=False)
    scipy: Mapping[str, Any] | None = field(default=None, repr=False)
    most: int | None = None
    loop: tuple[str, ...] = ()
    sigma: float | None = None
    sigma_axes: int | None = None
    outputs: int = 2

    def __call__(self, y: np.ndarray, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        """Fit the series of a block.

        Returns
        -------
        coefficients (..., p), covariance (..., p, p); if asked for stderr (..., p), status (...) in words. NaN where a fit failed.
        """
        y, own = np.asarray(y), [np.asarray(array) for array in arrays]
        cores = [self.core] * self.coordinates + [0 if self.sigma_axes is None else self.sigma_axes] + [0] * len(self.own)
        if self.sigma_axes is None:
            del cores[self.coordinates]
        loop = np.broadcast_shapes(
            *(part.shape[: part.ndim - core] for part, core in zip((y, *own), (self.core, *cores), strict=True))
        )
        count, p = math.prod(loop), len(self.names)
        if count:
            values, covariance, status = self._found(y, own, loop)
        else:
            values, covariance, status = np.empty((0, p)), np.empty((0, p, p)), np.empty(0, dtype=np.int8)
        shaped = [values.reshape(*loop, p), covariance.reshape(*loop, p, p)]
        if self.outputs > 2:
            stderr = np.sqrt(np.einsum("ijj->ij", covariance))
            shaped += [stderr.reshape(*loop, p), STATUS[status].reshape(loop)]
        return tuple(shaped)

    def _found(self, y: np.ndarray, arrays: Sequence[np.ndarray], loop: tuple[int, ...]) -> tuple[Floats, Floats, np.ndarray]:
        """Give values (series, p), covariance (series, p, p) and status (series,)."""
        target = _series(y, loop, self.core)
        xs = tuple(_shared_or_own(array, loop, self.core) for array in arrays[: self.coordinates])
        sigma = self._sigma(arrays, loop)
        if not self.skipna:
            _refuse_missing(xs, target, sigma)
        values, covariance, status = self._fitted(xs, target, sigma, self._numbers(arrays, loop))
        failed = ~SUCCESSFUL[status]
        self._tell(status, failed, loop)
        values[failed], covariance[failed] = np.nan, np.nan
        return values, covariance, status

    # --- reading ------------------------------------------------------------------------------------------------------

    def _sigma(self, arrays: Sequence[np.ndarray], loop: tuple[int, ...]) -> Any:
        """Give sigma as :func:`fit_many` takes it: None, a number, (points,), (series, 1) or (series, points)."""
        if self.sigma_axes is None:
            return self.sigma
        array = arrays[self.coordinates]
        if self.sigma_axes == 0:
            return np.broadcast_to(array, loop).reshape(-1, 1)
        return _shared_or_own(array, loop, self.sigma_axes)

    def _numbers(self, arrays: Sequence[np.ndarray], loop: tuple[int, ...]) -> Numbers:
        found: dict[str, dict[str, Any]] = {what: dict(self.shared[what]) for what in (START, LOWER, UPPER, FIXED)}
        for (what, name), array in zip(self.own, arrays[len(arrays) - len(self.own) :], strict=True):
            found[what][name] = np.broadcast_to(array, loop).reshape(-1).astype(np.float64)
        for what in (START, LOWER, UPPER):
            found[what] = {name: found[what][name] for name in self.names if name not in found[FIXED]}
        return Numbers(**found)

    # --- fitting ------------------------------------------------------------------------------------------------------

    def _fitted(self, xs: tuple[Any, ...], target: Any, sigma: Any, given: Numbers) -> tuple[Floats, Floats, np.ndarray]:
        """Give values (series, p), covariance (series, p, p) and status (series,)."""
        if self.scipy is not None:
            return self._one_by_one(xs, target, sigma, given)
        model = curve_model(self.func, self.names, self.coordinates)
        try:
            fits = fit_many(
                model, *xs, target, sigma=sigma, start=given.start, bounds=given.bounds or None, fixed=given.fixed or None,
                absolute_sigma=self.absolute_sigma, covariance=True, **self.settings,
            )  # fmt: skip
        except ParameterError:
            status = self._unfit(xs, target, sigma, given)
            if (status == NOT_DONE).any():
                raise
            return *self._nothing(len(target)), status  # none of the block has a start to try the model at
        if given.fixed:
            return *self._with_fixed(fits.values, fits.covariance, fits.names), fits.record.status
        return fits.record.values, fits.covariance, fits.record.status

    def _nothing(self, count: int) -> tuple[Floats, Floats]:
        p = len(self.names)
        return np.full((count, p), np.nan), np.full((count, p, p), np.nan)

    def _with_fixed(self, values: Mapping[str, Floats], covariance: Floats, free: tuple[str, ...]) -> tuple[Floats, Floats]:
        """Put fixed parameters in their places: they are known, so that their covariance is 0."""
        places = [self.names.index(name) for name in free]
        whole = np.zeros((len(covariance), len(self.names), len(self.names)))
        whole[:, np.array(places)[:, None], places] = covariance
        return np.stack([values[name] for name in self.names], axis=1), whole

    def _unfit(self, xs: tuple[Any, ...], target: Any, sigma: Any, given: Numbers) -> np.ndarray:
        """Say of each series why it cannot be fitted, (series,): a status; NOT_DONE where it can."""
        batch = gather((*xs, target), [f"x{place}" for place in range(len(xs))], "y", sigma=sigma)
        starts = given.starts(batch.count)
        pieces = [slice(begin, min(begin + PIECE, batch.count)) for begin in range(0, batch.count, PIECE)]
        return np.concatenate(
            [unfit(batch.block(piece.start, piece.stop), starts.chosen(np.arange(piece.start, piece.stop))) for piece in pieces]
        )

    def _one_by_one(self, xs: tuple[Any, ...], target: Any, sigma: Any, given: Numbers) -> tuple[Floats, Floats, np.ndarray]:
        """Fit one series after the other, as scipy's options ask for."""
        status, starts = self._unfit(xs, target, sigma, given), given.starts(len(target))
        values, covariance = self._nothing(len(target))
        for place in np.flatnonzero(status == NOT_DONE).tolist():
            rows = [np.asarray(row, dtype=np.float64) for row in (*(_row(x, place) for x in xs), _row(target, place))]
            kept = np.isfinite(rows).all(axis=0)
            deviations = None if sigma is None else np.broadcast_to(_row(sigma, place), kept.shape)
            kept &= True if deviations is None else ~np.isnan(deviations)
            x = rows[0][kept] if len(xs) == 1 else np.array(rows[:-1])[:, kept]
            lower, upper = starts.lower[place], starts.upper[place]
            options = dict(self.scipy or {}) | ({"bounds": (lower, upper)} if np.isfinite((lower, upper)).any() else {})
            try:
                values[place], covariance[place] = curve_fit(
                    self.func, x, rows[-1][kept], p0=starts.theta[place], sigma=None if deviations is None else deviations[kept],
                    absolute_sigma=self.absolute_sigma, **options,
                )  # fmt: skip
                status[place] = CONVERGED
            except FitError:
                if self.errors == "raise":
                    raise
                status[place] = NOT_CONVERGED
        return values, covariance, status

    # --- telling ------------------------------------------------------------------------------------------------------

    def _tell(self, status: np.ndarray, failed: np.ndarray, loop: tuple[int, ...]) -> None:
        """Raise for fits that failed, and warn of series that could not be fitted, unless errors are to be ignored."""
        if self.errors == "ignore" or not failed.any():
            return
        tried = failed & ((status < FITTED) | (status == REFUSED))
        if tried.any():
            raise FitError(self._said(tried, status, loop))
        if (begun := status == BAD_START).any():
            raise ParameterError(self._said(begun, status, loop))
        spoiled = failed & (status != NAMES.index("no_data")) & (status != NOT_DONE)
        if spoiled.any():
            warnings.warn(self._said(spoiled, status, loop), FitWarning, stacklevel=2)

    def _said(self, places: np.ndarray, status: np.ndarray, loop: tuple[int, ...]) -> str:
        first = int(np.flatnonzero(places)[0])
        index = ", ".join(f"{name}[{place}]" for name, place in zip(self.loop, np.unravel_index(first, loop), strict=True))
        where = f", the first at {index} of its block" if loop else ""
        name = NAMES[status[first]]
        told = exhausted(self.most) if self.most is not None and name == "not_converged" else SENTENCES[name]
        return (
            f"{int(places.sum())} of {len(status)} fits failed{where}. {told} "
            "With errors='ignore' they are NaN without a word; status=True says how each ended."
        )


def _series(array: np.ndarray, loop: tuple[int, ...], core: int) -> Any:
    """Give an array as (series, points): itself where it lies so in memory."""
    array = _real(array)
    whole = np.broadcast_to(array, loop + array.shape[array.ndim - core :])
    if whole.flags.c_contiguous or not loop:
        return whole.reshape(math.prod(loop), -1)
    return Series(whole, loop)


def _shared_or_own(array: np.ndarray, loop: tuple[int, ...], core: int) -> Any:
    """Give (points,) where all series have the same, else (series, points)."""
    if math.prod(array.shape[: array.ndim - core]) == 1:
        return _real(array).reshape(-1)
    return _series(array, loop, core)


def _real(array: np.ndarray) -> np.ndarray:
    """Give numbers that a fit takes as they are, or as float64."""
    if array.dtype.kind in "fiub":
        return array
    return real(array.reshape(-1), "the data").reshape(array.shape)


def _row(array: Any, place: int) -> Any:
    """Give what one series has of its own, or shares."""
    return array if np.ndim(array) < 2 else array[place : place + 1][0]


def _refuse_missing(xs: tuple[Any, ...], target: Any, sigma: Any) -> None:
    for name, array in (*(("a coordinate", x) for x in xs), ("y", target), ("sigma", sigma)):
        if array is None:
            continue
        values = array.array if isinstance(array, Series) else np.asarray(array)
        missing = np.isnan(values).sum() if values.dtype.kind == "f" else 0
        if missing:
            raise DataError(
                f"{name} holds {missing} NaN and skipna=False was given; leave it out, and points with NaN are skipped."
            )
