"""From what a caller says to a :class:`~gradfit.jobs.Job`, tried on the first fits whose data are in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from gradfit import api
from gradfit.compiler import calling
from gradfit.data.batch import FINE, SINGLE, Batch, Block
from gradfit.data.dataset import Dataset
from gradfit.errors import DataError, GradfitError, ModelError, OptionError, ParameterError
from gradfit.jobs import BLOCK_NUMBERS, Job
from gradfit.methods.levenberg_marquardt import LevenbergMarquardt
from gradfit.methods.method import Method
from gradfit.model import loss as losses
from gradfit.model.model import Model
from gradfit.model.parameters import Parameters, parameters
from gradfit.model.per_fit import PerFit
from gradfit.results import FitResults
from gradfit.typing import Floats

SAMPLES = 3  # fits with which a model is tried before it is said not to work
LOOKED_AT = 1024  # fits at a time, until some are found


def earlier_ends(start: FitResults, model: Model, count: int) -> dict[str, Floats]:
    """Where an earlier run of the same fits ended, by parameter; NaN where it failed."""
    if len(start) != count:
        raise ParameterError(f"start holds {len(start)} earlier fits and there are {count}; give results of the same fits.")
    values = start.values
    names = [name for name, spec in model.defaults.items() if spec.tied is None]
    lacking = [name for name in names if name not in values]
    if lacking:
        raise ParameterError(
            f"start holds earlier fits of {', '.join(values)}, and {', '.join(lacking)} is not among them; give results of the same model."
        )
    found: dict[str, Floats] = {}
    for name in names:
        found[name] = np.array(values[name], dtype=np.float64)
        found[name][~start.success] = np.nan
    return found


def prepared(
    model: Model,
    batch: Batch,
    own: PerFit,
    tied: Any,
    absolute: bool,
    measured: tuple[Any, float | None],
    given: tuple[Any, dict[str, Any]],
    seed: int,
    dtype: Any,
    engine: str,
    kept: dict[str, Any],
) -> Job:
    """Put together what fits have in common.

    Parameters
    ----------
    measured, given
        The loss with its scale, and the method with its options.
    kept
        Fields of the job that are handed on.

    Raises
    ------
    GradfitError
        What all fits that were tried say against it.
    """
    failures: list[GradfitError] = []

    def made(fit: int, sample: Dataset) -> tuple[Parameters, losses.Loss, tuple[Any, dict[str, Any]], Method]:
        known = parameters(model.defaults, **own.of(fit), tied=tied)
        measure = losses.resolve(measured[0], sample, f_scale=measured[1])
        # Of a named loss it is known that it curves, whatever the sample.
        usual = "lm" if isinstance(measured[0], str) else api.default_method(model, measure, sample)
        named = usual if given[0] is None else given[0]
        return known, measure, (named, given[1]), api.method_of(named, given[1])

    for fit, block, place in _samples(batch, own):
        sample = block.dataset(place, model.data_names, batch.target_name)
        try:
            with np.errstate(over="ignore"):  # its scale may be absurd, which is a status
                known, measure, named, chosen = made(fit, sample)
                precision = api.precision_of(dtype, sample, chosen, model)
                # Levenberg-Marquardt ends in double precision all the same.
                if dtype is None and isinstance(chosen, LevenbergMarquardt) and _is_single(block):
                    precision = torch.float32
                wide = torch.float64 if isinstance(chosen, LevenbergMarquardt) else precision
                tables = own.tables(known, batch.count)
                kernel = calling.build(model, known, sample, measure, dtype=wide, engine=engine, begun=not tables.waiting)
                job = Job(model, batch, kernel, known, tables, chosen, named, measure, precision, absolute, seed, **kept)
                job.check(fit)
        except (ModelError, ParameterError, DataError, OptionError) as error:
            failures.append(error)
            continue
        return job
    if failures:
        raise _with_lengths(failures[0], own, batch.count)
    # No fit has data to try the model on: each has its status, and there is no kernel.
    nothing = Dataset({name: np.ones(1) for name in model.data_names}, np.ones(1), batch.target_name, None, np.arange(1))
    known, measure, named, chosen = made(_first_sound(own, batch.count), nothing)
    precision = api.precision_of(dtype, nothing, chosen, model)
    tables = own.tables(known, batch.count)
    return Job(model, batch, None, known, tables, chosen, named, measure, precision, absolute, seed, **kept)


def _with_lengths(failure: GradfitError, own: PerFit, count: int) -> GradfitError:
    """Add to what a model says which numbers it got as a vector that may have been meant as one per fit."""
    listed = [
        f"{what} of {name} has {len(value)} values, and there are {count} fits: for one each give {count}."
        for what, given in (("start", own.start), ("fixed", own.fixed))
        if isinstance(given, Mapping)
        for name, value in given.items()
        if np.ndim(value) == 1
    ]
    return ModelError(" ".join([str(failure), *listed])) if listed and isinstance(failure, ModelError) else failure


def _is_single(block: Block) -> bool:
    """Whether every number came in single precision."""
    arrays = (*block.columns, block.target, *(() if block.weight is None else (block.weight,)))
    return all(array.dtype == SINGLE for array in arrays)


def _first_sound(own: PerFit, count: int) -> int:
    """Find a fit whose start is in order; the first one where there is none."""
    for begin in range(0, count, LOOKED_AT):
        found = own.sound(begin, min(begin + LOOKED_AT, count))
        if found.any():
            return begin + int(found.argmax())
    return 0


def _samples(batch: Batch, own: PerFit) -> Iterator[tuple[int, Block, int]]:
    """Some fits whose data and starts are in order, to try the model with; those of usual size first."""
    found = 0
    size = max(1, min(LOOKED_AT, BLOCK_NUMBERS // max(batch.n, 1)))
    for begin in range(0, batch.count, size):
        block = batch.block(begin, min(begin + size, batch.count))
        fine = (block.flaws == FINE) & own.sound(begin, begin + block.count)
        longest = np.flatnonzero(fine & (block.sizes >= min(batch.n, block.sizes[fine].max(initial=0))))
        sizes = block.squares[longest]
        with np.errstate(all="ignore"):
            unusual = np.nan_to_num(np.abs(np.log(sizes / np.median(sizes))), nan=np.inf) if longest.size else sizes
        for place in longest[np.argsort(unusual, kind="stable")][:SAMPLES]:
            yield begin + int(place), block, int(place)
            found += 1
        if found >= SAMPLES:
            return
