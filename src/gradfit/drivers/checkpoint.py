"""Finished fits in a folder, so that work that was cut off goes on where it ended.

The folder holds a manifest, which says what is fitted and how as short texts and hashes; a lock; and files of fits, whose row groups
are blocks. Each block comes with hashes of the data it was fitted to, and with one of its results. A file is there whole or not at all.
Nothing is believed: a block whose hash is not that of its results counts as not done, and one whose data are not those at hand is an
error.

Files are not written block by block, for a quick model makes hundreds in a second and a disk confirms some ten files in that time, but
when waiting longer would put more work at risk than writing costs.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from gradfit.data.files import write_whole
from gradfit.data.table_file import open_table, pyarrow, write_table_atomically
from gradfit.errors import OptionError, StorageError

FORMAT, SCHEMA = "gradfit checkpoint", 1
MANIFEST, LOCK = "_gradfit.json", "_lock"  # readers of Parquet folders skip such names
NAME, LIKE_IT = "fits-{:012}-{:012}.parquet", re.compile(r"fits-(\d+)-(\d+)\.parquet")
LEFTOVER = re.compile(r"\.(fits-\d+-\d+\.parquet|_gradfit\.json)\..+")  # what a killed process was just writing
HEADING = "gradfit_checkpoint"
HASHED = "#"  # begins a text that is a hash

OFTEN, SELDOM = 0.5, 30.0  # seconds between two files, at least and at most
AT_RISK = 0.01  # of the work so far may be lost
COST = 0.05  # of the time may go into writing
MOST_BYTES = 1 << 23  # of results in a file


@dataclass(frozen=True)
class Kept:
    """A block of fits that was made before.

    Attributes
    ----------
    inputs
        Hashes of what it was fitted to, by name.
    results
        Arrays by name, (end - begin, ...).
    """

    begin: int
    end: int
    inputs: Mapping[str, str]
    results: Mapping[str, np.ndarray] = field(repr=False)


@dataclass(frozen=True)
class Folder:
    """A folder that this process alone writes to.

    Attributes
    ----------
    identity
        Hash of what is fitted and how.
    size
        Fits in a block, as it was when the work began.
    strangers
        What made the fits of this folder and is another now: name, then, now.
    """

    place: Path
    identity: str
    size: int
    strangers: tuple[tuple[str, str, str], ...] = ()

    def files(self) -> list[tuple[int, int]]:
        """From which fit up to which the files go."""
        with _writable(self.place):
            found = map(LIKE_IT.fullmatch, os.listdir(self.place))
            return sorted((int(name[1]), int(name[2])) for name in found if name is not None)

    def kept(self, begin: int, end: int) -> Iterator[Kept]:
        """Read the blocks of a file that are whole; none where the file is of other work, or cannot be read."""
        try:
            stored = open_table(self.place / NAME.format(begin, end))
            said = json.loads(stored.metadata[HEADING])
            if said["job"] != self.identity:
                return
            for entry, part in zip(said["blocks"], stored.parts(), strict=True):
                arrays = {name: column for name, column in part.items() if isinstance(column, np.ndarray)}
                block = Kept(entry["begin"], entry["end"], entry["inputs"], arrays)
                if _sum(block) == entry["sum"]:
                    yield block
        except (StorageError, ValueError, KeyError, TypeError, AttributeError):
            return  # damage is no error: what it took is fitted again

    def check(self, block: Kept, inputs: Mapping[str, str]) -> None:
        """Refuse a block that was fitted to other data than those at hand.

        Raises
        ------
        StorageError
            Naming what changed.
        """
        changed = [name for name in {**block.inputs, **inputs} if block.inputs.get(name) != inputs.get(name)]
        if changed:
            raise StorageError(
                f"since fits {block.begin} to {block.end - 1} in {str(self.place)!r} were made, changed: {', '.join(changed)}. Expected what they "
                "were fitted to: give that again, or another folder for the new work; or delete this one to begin anew."
            )

    def remarks(self, files: list[tuple[int, int]], rest: list[tuple[int, int]]) -> list[str]:
        """Say what is amiss, if something is, with fits that are still to be made though there are files."""
        found = []
        damaged = [(begin, end) for begin, end in rest if any(first <= begin and end <= last for first, last in files)]
        if damaged:
            found.append(
                f"files in {str(self.place)!r} are damaged: {sizes(damaged)} fits that were made are made again. Check the disk."
            )
        if files and rest and self.strangers:
            told = ", ".join(f"{name} {then or 'unknown'} then and {now} now" for name, then, now in self.strangers)
            found.append(
                f"fits in {str(self.place)!r} were made elsewhere ({told}): the {sizes(rest)} made now may differ from theirs in the last bits. "
                "Delete the folder to make all of them here."
            )
        return found

    @contextmanager
    def writer(self, results: Callable[[int, int], Mapping[str, np.ndarray]]) -> Iterator[Writer]:
        """Give what writes finished blocks; nothing that was finished is left out, whatever ends the work."""
        made = Writer(self, results)
        try:
            yield made
        finally:
            made.write()


class Writer:
    """Writes finished blocks to a folder, some of them at a time.

    Parameters
    ----------
    results
        ``results(begin, end)``: arrays of some fits by name, without a copy.
    """

    def __init__(self, folder: Folder, results: Callable[[int, int], Mapping[str, np.ndarray]]) -> None:
        self.folder, self.results = folder, results
        self.waiting: list[tuple[int, int, Mapping[str, str]]] = []
        self.bytes = 0
        self.begun = time.monotonic()
        self.due = self.begun + OFTEN

    def add(self, begin: int, end: int, inputs: Mapping[str, str]) -> None:
        """Take note of a block that is finished."""
        if self.waiting and self.waiting[-1][1] != begin:
            self.write()
        self.waiting.append((begin, end, inputs))
        self.bytes += sum(array.nbytes for array in self.results(begin, end).values())
        if self.bytes >= MOST_BYTES:
            self.write()
        self.look()

    def look(self) -> None:
        """Write if it is time."""
        if time.monotonic() >= self.due:
            self.write()

    def write(self) -> None:
        """Write what waits."""
        blocks, self.waiting, self.bytes = self.waiting, [], 0
        if not blocks:
            return
        started = time.monotonic()
        entries = [Kept(begin, end, inputs, self.results(begin, end)) for begin, end, inputs in blocks]
        said = [{"begin": block.begin, "end": block.end, "inputs": block.inputs, "sum": _sum(block)} for block in entries]
        heading = json.dumps({"format": FORMAT, "schema": SCHEMA, "job": self.folder.identity, "blocks": said})
        path = self.folder.place / NAME.format(blocks[0][0], blocks[-1][1])
        try:
            write_table_atomically(path, (block.results for block in entries), {HEADING: heading})
        except StorageError as error:
            raise StorageError(
                f"{error} What {str(self.folder.place)!r} holds stays valid: once it can be written to, the same call goes on from there."
            ) from None
        now = time.monotonic()
        self.due = now + max(OFTEN, min(AT_RISK * (now - self.begun), SELDOM), (now - started) / COST)


def left(blocks: list[tuple[int, int]], done: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Which blocks are not done, though these may have been cut elsewhere."""
    whole: list[list[int]] = []  # pieces without gaps
    for begin, end in sorted(done):
        if whole and begin <= whole[-1][1]:
            whole[-1][1] = max(end, whole[-1][1])
        else:
            whole.append([begin, end])
    starts = [begin for begin, _ in whole]

    def is_done(begin: int, end: int) -> bool:
        place = bisect.bisect_right(starts, begin) - 1
        return place >= 0 and end <= whole[place][1]

    return [block for block in blocks if not is_done(*block)]


def sizes(blocks: list[tuple[int, int]]) -> int:
    """How many fits there are in some blocks."""
    return sum(end - begin for begin, end in blocks)


def hashed(*arrays: np.ndarray) -> str:
    """Hash arrays with their types and shapes."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype.str} {array.shape} ".encode())
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()[:32]


def _sum(block: Kept) -> str:
    """Hash a block with all that is said of it."""
    said = json.dumps([block.begin, block.end, block.inputs, sorted(block.results)], sort_keys=True)
    return hashlib.sha256(f"{said} {hashed(*(block.results[name] for name in sorted(block.results)))}".encode()).hexdigest()[:32]


@contextmanager
def opened(folder: Any, job: Mapping[str, str], makers: Mapping[str, str], *, size: int) -> Iterator[Folder]:
    """Open a folder for some work, or make it; nobody else may do so until the end.

    Parameters
    ----------
    job
        What is fitted and how, by name; texts that begin with HASHED are not for reading. All of it has to be the same when the
        work goes on.
    makers
        What may change the last bits: versions, the processor.
    size
        Fits in a block, where the work begins now.

    Raises
    ------
    StorageError
        It cannot be written to, holds other work, is damaged, or is in use.
    OptionError
        No name of a folder.
    MissingDependencyError
        Without the ``io`` extra.
    """
    if not isinstance(folder, (str, os.PathLike)) or not os.fspath(folder):
        raise OptionError(f"checkpoint is {folder!r}; expected the name of a folder, such as 'run/'.")
    pyarrow()
    place = Path(folder)
    with _writable(place):
        place.mkdir(parents=True, exist_ok=True)
    with _locked(place):
        with _writable(place):
            names = os.listdir(place)
            for name in filter(LEFTOVER.fullmatch, names):
                (place / name).unlink()
        if MANIFEST not in names:
            if any(map(LIKE_IT.fullmatch, names)):
                raise StorageError(
                    f"{str(place)!r} holds fits and no {MANIFEST}, which says of what; expected both, so bring it back, or delete the folder."
                )
            said = {"format": FORMAT, "schema": SCHEMA, "block": size, "job": dict(job), "makers": dict(makers)}
            write_whole(place / MANIFEST, json.dumps(said, indent=1))
        yield _folder(place, job, makers)


def _folder(place: Path, job: Mapping[str, str], makers: Mapping[str, str]) -> Folder:
    """Read the manifest, and compare it with the work to do."""
    then, made, size = _manifest(place)
    changed = [_told(name, then.get(name), job.get(name)) for name in {**then, **job} if then.get(name) != job.get(name)]
    if changed:
        raise StorageError(
            f"{str(place)!r} holds other work: {'; '.join(changed)}. Expected the call that began it: repeat that, or give another folder; "
            "or delete this one to begin anew."
        )
    identity = hashlib.sha256(json.dumps(sorted(job.items())).encode()).hexdigest()[:32]
    strangers = tuple((name, made.get(name, ""), now) for name, now in makers.items() if made.get(name) != now)
    return Folder(place, identity, size, strangers)


def _manifest(place: Path) -> tuple[dict[str, str], dict[str, str], int]:
    try:
        said = json.loads((place / MANIFEST).read_bytes())
        schema = said["schema"]
        if said["format"] != FORMAT:
            raise ValueError("of another format")
        if type(schema) is int and schema > SCHEMA:
            raise StorageError(f"{str(place)!r} has schema {schema} and this gradfit reads up to {SCHEMA}; upgrade gradfit.")
        job, makers = ({str(name): str(text) for name, text in said[part].items()} for part in ("job", "makers"))
        return job, makers, max(1, int(said["block"]))
    except StorageError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StorageError(
            f"{MANIFEST} in {str(place)!r} is damaged ({type(error).__name__}: {error}); bring it back, or delete the folder to begin anew."
        ) from None


def _told(name: str, then: str | None, now: str | None) -> str:
    if any(text is not None and text.startswith(HASHED) for text in (then, now)):
        return f"{name} changed"
    return f"{name} was {then or 'none'} and is {now or 'none'}"


@contextmanager
def _writable(place: Path) -> Iterator[None]:
    """What a folder refuses, as a StorageError."""
    try:
        yield
    except (OSError, ValueError) as error:
        told = getattr(error, "strerror", None) or error
        raise StorageError(
            f"checkpoint {str(place)!r} cannot be written to: {told}; expected a folder, so choose another."
        ) from None


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system takes from a process that dies."""
    with _writable(place):
        file = open(place / LOCK, "a+", encoding="utf-8")  # noqa: SIM115
    with file:
        if not _taken(file):
            file.seek(0)
            holder = file.read(200) or "another process"
            raise StorageError(
                f"checkpoint {str(place)!r} is in use by {holder}; expected a folder that nobody else works in, so wait, or give another."
            )
        with _writable(place):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        yield


def _taken(file: IO[str]) -> bool:
    """Take the lock of an open file, unless somebody has it. Where a file system knows no locks, two processes at once only do work twice."""
    try:
        import fcntl
    except ImportError:  # Windows
        return _taken_on_windows(file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks here
        return True
    return True


def _taken_on_windows(file: IO[str]) -> bool:
    import msvcrt

    file.seek(1 << 20)  # beyond the text, which others may read
    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    except OSError:
        return False
    return True
