"""Many fits with a checkpoint: what they are made from, as texts and hashes; what the folder holds is read, the others are made."""

from __future__ import annotations

import importlib.metadata
import platform
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from gradfit.compiler.compiled import NativeKernel
from gradfit.compiler.correlated import AnyKernel
from gradfit.compiler.digest import digest, digest_of
from gradfit.compiler.native import target
from gradfit.data.batch import Batch, Block
from gradfit.drivers.batched import run
from gradfit.drivers.checkpoint import HASHED, Folder, hashed, left, opened, sizes
from gradfit.errors import FitWarning, OptionError
from gradfit.jobs import Job
from gradfit.methods.many import Starts
from gradfit.model.model import Model
from gradfit.statistics.many_record import ManyRecord


def resumed(
    job: Job, place: Any, said: Mapping[str, Any], *, covariance: bool, threads: int, progress: bool | None
) -> tuple[ManyRecord, bool]:
    """Make the fits that a folder does not hold yet, and keep them there; tell whether none was left by an interrupt.

    Parameters
    ----------
    place
        The folder, as the caller named it.
    said
        What the caller said of ``model``, ``loss``, ``f_scale`` and ``tied``.

    Raises
    ------
    StorageError
        The folder holds other work, is damaged, in use, or cannot be written to.
    OptionError
        No name of a folder; or something that decides the results cannot be told from its like in another process.
    """
    work = _work(job, **said) | {"covariance": str(covariance)}
    with opened(place, work, _makers(job.kernel), size=job.shared_out(threads)) as folder:
        return _made(job, folder, covariance=covariance, threads=threads, progress=progress)


def _made(job: Job, folder: Folder, *, covariance: bool, threads: int, progress: bool | None) -> tuple[ManyRecord, bool]:
    record = job.room(covariance=covariance)
    done: list[tuple[int, int]] = []

    def kept(begin: int, end: int) -> list[tuple[int, int]]:
        found = []
        for block in folder.kept(begin, end):
            folder.check(block, _hashes(job.batch, *job.read(block.begin, block.end)))
            record.put_arrays(block.begin, block.end, block.results)
            found.append((block.begin, block.end))
        return found

    def note(begin: int, end: int, found: list[tuple[int, int]]) -> None:
        done.extend(found)

    def fit(begin: int, end: int) -> tuple[ManyRecord, dict[str, str]]:
        parts = job.read(begin, end)
        return job.fit(*parts, covariance=covariance), _hashes(job.batch, *parts)

    def consume(begin: int, end: int, found: tuple[ManyRecord, dict[str, str]]) -> None:
        record.put(slice(begin, end), found[0])
        writer.add(begin, end, found[1])

    files, count = folder.files(), job.batch.count
    if not run(files, kept, note, total=sizes(files), threads=threads, progress=progress, what="reading"):
        return record, False
    rest = left(job.blocks(folder.size), done)
    for remark in folder.remarks(files, rest):
        warnings.warn(remark, FitWarning, stacklevel=4)
    with folder.writer(record.arrays) as writer:
        whole = run(
            rest, fit, consume, total=count, done=count - sizes(rest), threads=threads, progress=progress, meanwhile=writer.look
        )  # fmt: skip
    return record, whole


def _hashes(batch: Batch, block: Block, held: Block | None, starts: Starts) -> dict[str, str]:
    """Hash what the fits of a block are made from, by name."""
    parts: dict[str, tuple[np.ndarray | None, ...]] = {}
    for rows, of in ((block, ""), (held, " (validation)")):
        if rows is not None:
            columns, names = (*rows.columns, rows.target), (*batch.names, batch.target_name)
            parts |= {f"column {name}{of}": (column,) for name, column in zip(names, columns, strict=True)}
            parts |= {f"sigma{of}": (rows.weight,), f"rows{of}": (rows.sizes, rows.numbers)}
    parts |= {"start": (starts.theta,), "bounds": (starts.lower, starts.upper), "fixed": (starts.fixed,)}
    return {name: hashed(*(array for array in arrays if array is not None)) for name, arrays in parts.items()}


def _work(job: Job, *, model: Any, loss: Any, f_scale: float | None, tied: Mapping[str, Any] | None) -> dict[str, str]:
    """Say what is fitted and how, by all that decides the results but data, starts and bounds: texts, and hashes of functions."""
    settings = getattr(job.method, "settings", job.method)
    computed = model.function if isinstance(model, Model) else model
    functions = {"model": computed, "loss": loss, "tied": tied, "method": settings}
    known = job.parameters
    said = {
        "number of fits": str(job.batch.count),
        "parameters": ", ".join(known.names),
        "fixed": ", ".join(name for name in known.names if known.specs[name].fixed),
        "f_scale": str(f_scale),
        "engine": getattr(job.kernel, "engine", "none"),
        "dtype": str(job.dtype).removeprefix("torch."),
        "absolute_sigma": str(job.absolute),
        "seed": str(job.seed),
        "start from neighbours": str(job.neighbour),
    }
    if job.tables.waiting:
        said["without a start"] = ", ".join(job.tables.waiting)
    for name, function in functions.items():
        if function is None or isinstance(function, str):
            said[name] = str(function)
        elif (known_by := digest_of(function)) is not None:
            said[name] = f"{HASHED}{known_by}"
        else:
            raise OptionError(
                f"checkpoint needs to know the {name} again, and it computes with an object whose changes would not be noticed; expected a "
                "function of numbers, arrays and other functions, so pass these to it as such, or leave checkpoint out."
            )
    return said


def _makers(kernel: AnyKernel | None) -> dict[str, str]:
    """What the last bits of the results may depend on."""
    versions = {name: importlib.metadata.version(name) for name in ("gradfit", "numpy", "torch")}
    processor = digest(target().description) if isinstance(kernel, NativeKernel) else platform.machine()
    return versions | {"Python": platform.python_version(), "processor and compiler": processor}
