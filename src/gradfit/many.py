"""fit_many: the same model fitted to many data sets. It puts the rooms together and computes nothing."""

from __future__ import annotations

import dataclasses
import os
import warnings as python_warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from gradfit import api
from gradfit.checkpointing import resumed
from gradfit.data.batch import Batch
from gradfit.data.gather import gather
from gradfit.data.held_out import held_out
from gradfit.data.tables import Cut, Opened, key_columns
from gradfit.data.tables import opened as opened_table
from gradfit.drivers.batched import worker_count
from gradfit.drivers.monitor import check_progress
from gradfit.errors import DataError, FitError, FitWarning, ModelError, OptionError, unknown
from gradfit.methods.many import NAMES, NOT_DONE, SUCCESSFUL
from gradfit.model.model import Model, check_has_parameters, function_model
from gradfit.model.per_fit import per_fit
from gradfit.preparing import earlier_ends, prepared
from gradfit.repeats import Repeats
from gradfit.report import many_storage
from gradfit.result import FitResult
from gradfit.results import FitResults
from gradfit.statistics.many_record import ManyRecord
from gradfit.typing import Missing, OnFailure

NEIGHBOUR = "neighbour"


def fit_many(
    model: str | Callable[..., Any] | Model,
    *arrays: Any,
    data: Any = None,
    target: str | None = None,
    by: str | Sequence[str] | None = None,
    start: Mapping[str, Any] | Sequence[float] | np.ndarray | FitResults | str | None = None,
    bounds: Mapping[str, tuple[Any, Any]] | None = None,
    fixed: Mapping[str, Any] | Sequence[str] | None = None,
    tied: Mapping[str, str | Callable[..., Any]] | None = None,
    sigma: Any = None,
    absolute_sigma: bool = False,
    offsets: Any = None,
    mask: Any = None,
    missing: Missing = "drop",
    loss: str | Callable[..., Any] = "squared",
    f_scale: float | None = None,
    method: Any = None,
    validation: Any = None,
    seed: int = 0,
    dtype: str | torch.dtype | None = None,
    engine: str = "auto",
    covariance: bool = False,
    threads: int | None = None,
    progress: bool | None = None,
    on_failure: OnFailure = "ignore",
    checkpoint: str | os.PathLike[str] | None = None,
    encoding: str = "utf-8",
    **options: Any,
) -> FitResults:
    r"""Fit a model to many data sets, each by itself: one per sensor, pixel, spectrum.

    For each data set i the mean loss over its rows is minimised,
    :math:`\min_{\theta_i} \tfrac1{n_i} \sum_j \rho\big((f(x_{ij}, \theta_i) - y_{ij})/\sigma_{ij}\big)`, as :func:`gradfit.fit` does
    for one. Fits share nothing but the model: what is found for one does not depend on the others, to the last bit, nor on ``threads``
    or the order of work (but with ``start="neighbour"`` on the fits it begins from). A fit that cannot be made has a status that says
    why; the others do not notice.

    Parameters
    ----------
    model
        A function of data and parameters, data first; with a table also a formula such as ``"t_c = w*t_u + b"``. A torch module is for
        one fit: :func:`gradfit.fit`.
    *arrays
        The data arguments in the model's order, then the target. Target (fits, points); a data argument (points,) where all fits share
        it, or (fits, points). For fits of different lengths: lists of arrays, one array per fit; NaN where a value is missing; or long
        columns (rows,) with ``offsets``. numpy's masked arrays are read with their masks. Anything with a shape that gives slices will
        do, such as a file mapped into memory; it is read a block at a time.
    data, target
        Instead of arrays: a dict of columns, a data frame, lazy or not (whatever narwhals knows: pandas, polars, Arrow, ...), or the path
        of a CSV or Parquet file, and its column to predict. Arguments of the model that are columns are data, the rest parameters. A
        Parquet file is read a piece at a time and never held whole.
    by
        The column of the table, or the columns, that say which fit a row belongs to: one fit for each label, or each combination of labels
        that occurs, in the order of sorted labels. Rows of a fit need not be neighbours. ``fits.keys`` holds the labels,
        ``fits.place(sensor="a")`` finds one. A row without a label belongs to no fit, and a warning counts them.
    start
        Where fits begin, in the parameters' units: values by name, each a number, (fits,) for one per fit, or for a vector parameter
        its array or (fits, ...); a list in the order of the signature; a table (fits, parameters) in that order. Or an earlier
        :class:`FitResults` of as many fits and the same parameters: each begins where it ended there, those that failed there, or
        ended outside the bounds given here, at the default. Or ``"neighbour"``: fits whose place is a multiple of 64 begin at the
        default; those at multiples of 8 where the last of these before them ended; all others where the last of those did. Where
        that one failed, a fit begins at the default, and one that fails from a neighbour is made again from there. Good where
        neighbours are alike, as pixels of an image are. The default: the number or :class:`gradfit.Parameter` in the
        signature; starts to go with "neighbour" or earlier results are given there. Where nobody gave a number, the default is
        found, for each fit from its own data: from points that fill the space of such parameters, in units of the data, drawn by
        ``seed``; the best of them are followed by short fits, and the fit begins at the lowest end, also of the parameters
        that were given. ``fits.beginning`` says so. A model linear in all parameters begins at 1.
    bounds
        ``{"w": (lower, upper)}``, each side None, a number, or (fits,); NaN for none.
    fixed
        ``{"b": 0.0}``, or (fits,) values; or a list of names, fixed where they start.
    tied
        ``{"b": "2*w"}``, a formula of other parameters or a function of them in torch or plain arithmetic. A tied parameter has values,
        and errors by the delta method, in the results.
    sigma, absolute_sigma
        Standard deviation of the target, in its units: a number, (points,), (fits, points), (fits, 1) or (fits,) for one per fit; with
        lists or ``offsets`` one per row as the target; with a table also the name of a column. Relative weights, unless ``absolute_sigma``. Rows whose sigma is NaN are missing.
    offsets
        (fits + 1,), rising from 0 to the number of rows: fit i has the rows ``offsets[i]`` up to ``offsets[i + 1]`` of long columns.
    mask
        True where a point is left out, as in numpy.ma: (points,) for all fits, or like the target.
    missing
        "drop": rows in which anything is NaN are left out, each fit its own (``fits.n`` counts what is left). "raise": an error. Infinite
        values are never dropped: they are the status "infinite_data".
    loss, f_scale
        As in :func:`gradfit.fit`: "squared", "huber", "soft_l1", "cauchy", "arctan", "poisson", or a function of (prediction, target).
    method
        "lm", "linear", an optimizer of torch.optim by name or class, or an object, as in :func:`gradfit.fit`. Levenberg-Marquardt on a
        model that can be compiled fits whole blocks in compiled code; with any other method, a loss of your own, or a model on the torch
        engine one fit is made after the other, in about the time of :func:`gradfit.fit`.
    validation
        Rows to set apart in each fit, never used for its gradient: a fraction (of each fit's rows, the last of a permutation seeded with
        ``seed``, the same for fits of one length), row numbers that hold for every fit, or a mask, True for validation: (points,) or
        like the target. ``fits.validation_loss`` is the mean loss there, ``fits.n`` counts the training rows.
    seed
        For the split, mini-batches, and whatever a model draws; the same for every fit.
    dtype
        "float32": Levenberg-Marquardt goes most of the way in single precision and ends in double, to the accuracy of "float64"; gradient
        descent computes in it. Default: "float32" where all numbers came so, else "float64".
    engine
        "auto", "native" or "torch", as in :func:`gradfit.fit`.
    covariance
        Keep the covariance of every fit, (fits, m, m). Otherwise ``fits.covariance`` fits again when it is asked for.
    threads
        How many; default: the cores this process may use, within what threadpoolctl or OMP_NUM_THREADS allow.
    progress
        Show a bar on stderr; default: on long work, if it is a terminal. Ctrl-C ends the work; what was done is given back.
    on_failure
        When some fits did not succeed: "ignore" (see ``fits.failed``, ``fits.counts``), "warn" (FitWarning), "raise" (FitError), at the end.
    checkpoint
        A folder. What is finished is kept in it, so that the same call, after the process was killed, makes what is left and gives the
        same bits as one that was not interrupted. Another model, other data or other options are refused; ``threads``, ``progress`` and
        ``on_failure`` may change.
    encoding
        Of a CSV file.
    **options
        Of the method: ``max_steps``, ``radius``; ``learning_rate``, ``epochs``, ``batch_size``, ...

    Returns
    -------
    FitResults
        ``values["w"]``, ``stderr["w"]``, ``loss``, ``n``, ``steps``, ``status``, ``success``, (fits,) each; ``fits[17]`` is a
        :class:`FitResult`; ``retry``, ``intervals``.

    Raises
    ------
    DataError
        Shapes that do not fit together, no fits, text or complex numbers, offsets that do not rise, a mask or validation rows that are
        none; with ``missing="raise"`` a NaN.
    ParameterError
        Unknown names, contradictions, starts of another shape, earlier results of other fits or parameters.
    ModelError
        The model fails on the first fits whose data are in order, or does not depend on a parameter.
    OptionError
        An unknown option or method, or a method that cannot serve this model and loss; with ``checkpoint`` a model that cannot be
        recognised in another process.
    StorageError
        The folder of ``checkpoint`` holds other work, is in use, or cannot be written to.
    FitError
        With ``on_failure="raise"``.
    """
    check_progress(progress)
    workers = worker_count(threads)
    _check_choices(engine, on_failure, seed, missing, absolute_sigma, sigma, covariance)
    keys: Mapping[str, np.ndarray] = {}
    if data is None and by is None:
        described, batch = _described(model, arrays, target, sigma, offsets, mask)
    else:
        _check_table(arrays, data, by, offsets, mask)
        table = opened_table(data, encoding=encoding)
        described, cut = _grouped(model, table, by, target, sigma, api.names_given(start, bounds, fixed, tied))
        batch, keys = cut.batch, cut.keys
        _report_without(cut.without, by, missing)
    check_has_parameters(described)
    apart = None if validation is None else held_out(validation, batch, seed)
    earlier = earlier_ends(start, described, batch.count) if isinstance(start, FitResults) else {}
    neighbour = isinstance(start, str)
    if neighbour and start != NEIGHBOUR:
        raise OptionError(
            unknown("start", start, (NEIGHBOUR,), "Or give numbers by name, (fits,) for one each, or earlier results.")
        )
    own = per_fit(
        described.defaults,
        batch.count,
        start=None if earlier or neighbour else start,
        bounds=bounds,
        fixed=fixed,
        earlier=earlier,
    )
    kept = {"keys": keys, "held_out": apart, "missing": missing, "neighbour": neighbour}
    job = prepared(described, batch, own, tied, absolute_sigma, (loss, f_scale), (method, options), seed, dtype, engine, kept)
    if checkpoint is None:
        record, whole = job.run(covariance=covariance, threads=workers, progress=progress)
    else:
        said = {"model": model, "loss": loss, "f_scale": f_scale, "tied": tied}
        record, whole = resumed(job, checkpoint, said, covariance=covariance, threads=workers, progress=progress)
    if not whole:
        done = int((record.status != NOT_DONE).sum())
        left = "have the status not_done" if checkpoint is None else "have the status not_done; the same call goes on from here"
        python_warnings.warn(f"interrupted: {done} of {record.count} fits are done, the others {left}.", FitWarning, stacklevel=2)
    _report_failures(record, on_failure)
    return FitResults(record, Repeats(job))


def load(path: str | os.PathLike[str]) -> FitResult | FitResults:
    """Read what :meth:`FitResults.save` wrote (``.parquet``, ``.nc``) or :meth:`FitResult.save` (any other file, JSON), by this version or an older one.

    Raises
    ------
    StorageError
        The file is missing, holds no saved fits, is damaged, or of a newer schema.
    """
    return FitResults(many_storage.load(path)) if many_storage.is_many(path) else api.load(path)


def _check_choices(
    engine: str, on_failure: str, seed: int, missing: object, absolute_sigma: object, sigma: object, covariance: object
) -> None:
    api.check_choices(engine, on_failure, seed, None, None, None)
    if missing not in ("raise", "drop"):
        raise OptionError(unknown("value of missing", missing, ("raise", "drop")))
    if not isinstance(absolute_sigma, bool) or not isinstance(covariance, bool) or isinstance(sigma, bool):
        raise OptionError(
            f"sigma is {str(sigma)[:60]}, absolute_sigma {absolute_sigma!r} and covariance {covariance!r}; expected numbers, and True or False."
        )
    if absolute_sigma and sigma is None:
        raise OptionError("absolute_sigma says that sigma are measured errors, and no sigma was given; pass sigma=.")


def _report_failures(record: ManyRecord, on_failure: OnFailure) -> None:
    """Say how many fits failed, where that was asked for; those that an interrupt left have been told of."""
    lost = {NAMES[code]: count for code, count in enumerate(record.counts) if count and not SUCCESSFUL[code] and code != NOT_DONE}
    if on_failure == "ignore" or not lost:
        return
    told = ", ".join(f"{count} {name}" for name, count in lost.items())
    text = (
        f"{sum(lost.values())} of {record.count} fits did not succeed: {told}; fits.failed names them, fits.message(i) says more."
    )
    if on_failure == "raise":
        raise FitError(f'{text} Pass on_failure="ignore" to get the others.')
    python_warnings.warn(text, FitWarning, stacklevel=3)


def _check_table(arrays: tuple[Any, ...], data: Any, by: Any, offsets: Any, mask: Any) -> None:
    """Refuse a mixture of a table and arrays."""
    if data is None:
        raise DataError(f"by={by!r} names a column of a table, and there is none; pass data=, or leave by out and pass arrays.")
    if arrays:
        raise DataError("both arrays and data= were given; pass one of them.")
    if by is None:
        raise DataError(
            "data= was given without by=: which column says which fit a row belongs to? Pass by='sensor', or a list of columns; for one fit "
            "to the whole table call gradfit.fit."
        )
    for name, given in (("offsets", offsets), ("mask", mask)):
        if given is not None:
            raise DataError(f"{name} belongs to arrays and data= was given; {INSTEAD[name]}.")


INSTEAD = {
    "offsets": "fits are told apart by=, so leave it out",
    "mask": "leave those rows out of the table, or make their target NaN",
}


def _grouped(model: Any, table: Opened, by: Any, target: str | None, sigma: Any, named: set[str]) -> tuple[Model, Cut]:
    """Bring a model and the groups of a table together."""
    _check_no_module(model)
    if not (isinstance(model, str) or callable(model)):
        raise ModelError(f"model is {model!r}; expected a function or a formula.")
    key_columns(by, table.table, {})
    described = api.described_table(model, table.table, target, named)[1]
    assert described.target is not None
    taken = dict.fromkeys(described.data_names, "an argument of the model") | {described.target: "the target"}
    return described, table.cut(key_columns(by, table.table, taken), described.data_names, described.target, sigma)


def _report_without(rows: int, by: Any, missing: Missing) -> None:
    """Say how many rows belong to no fit."""
    if not rows:
        return
    names = by if isinstance(by, str) else " or ".join(by)
    said = f"{names} is missing in {rows} row{'s' * (rows != 1)}, which belong{'s' * (rows == 1)} to no fit"
    if missing == "raise":
        raise DataError(f'{said}; give them a label, or pass missing="drop" to leave them out.')
    python_warnings.warn(
        f"{said} and {'is' if rows == 1 else 'are'} left out; give them a label to fit them.", FitWarning, stacklevel=3
    )


def _check_no_module(model: Any) -> None:
    if isinstance(model, torch.nn.Module):
        raise ModelError(
            "the model is a torch module, which is trained once, on all data; for many fits expected a function of data and parameters. "
            "Write one, or call gradfit.fit for each data set."
        )


def _described(
    model: Any, arrays: tuple[Any, ...], target: str | None, sigma: Any, offsets: Any, mask: Any
) -> tuple[Model, Batch]:
    _check_no_module(model)
    if isinstance(model, str):
        raise DataError("a formula names its columns; pass a table that has them: fit_many(formula, data=table, by='sensor').")
    if len(arrays) < 2:
        raise DataError(
            "no data to fit: write fit_many(model, x, Y) with Y (fits, points), or fit_many(model, data=table, target='y', by='sensor')."
        )
    inputs = arrays[:-1]
    aim = target or "y"
    described = model if isinstance(model, Model) else function_model(model, count=len(inputs), target=aim)
    described = dataclasses.replace(described, target=aim)
    if aim in (*described.data_names, *described.defaults):
        described = dataclasses.replace(described, target=(aim := "target"))
    return described, gather(arrays, described.data_names, aim, sigma=sigma, offsets=offsets, mask=mask)
