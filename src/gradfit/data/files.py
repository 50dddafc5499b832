"""Files that are there whole or not at all: written under a temporary name beside their own, to disk, then renamed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gradfit.errors import StorageError


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file whole or not at all.

    Raises
    ------
    StorageError
        No such folder, no permission, a full disk; what was there before is untouched.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    with written_whole(path) as place, open(place, "wb", buffering=0 if _is_device(place) else -1) as file:
        file.write(data)


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary place to write to; where the block ends without an error, its file becomes the one at ``path``.

    Raises
    ------
    StorageError
        No such folder, no permission, a full disk, inside the block too; what was there before is untouched.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise StorageError(f"the name of the file is {path!r}; expected a text or a path, so give one.")
    target = Path(os.path.realpath(path)) if os.path.islink(path) else Path(path)  # a link stays, its file is replaced
    temporary: str | None = None
    try:
        if _is_device(target):  # a device or a pipe must not be replaced by a file
            yield target
            return
        temporary = _temporary(target)
        yield Path(temporary)
        _sync(Path(temporary), os.O_RDWR)
        os.chmod(temporary, _mode(target))
        os.replace(temporary, target)
        temporary = None
        if os.name == "posix":  # makes the rename itself durable; other systems cannot open folders
            _sync(target.parent, os.O_RDONLY)
    except OSError as error:
        raise StorageError(f"{str(target)!r} cannot be written: {error.strerror or error}; choose another place.") from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def existing(path: str | os.PathLike[str]) -> Path:
    """Give the path of a file that is there; StorageError otherwise."""
    if not isinstance(path, (str, os.PathLike)):
        raise StorageError(f"the name of the file is {path!r}; expected a text or a path, so give one.")
    place = Path(path)
    if not place.is_file():
        what = "is a folder" if place.is_dir() else "does not exist"
        raise StorageError(f"{str(path)!r} {what}; expected a file, so check the name and the folder.")
    return place


def _temporary(target: Path) -> str:
    """Make an empty file beside the target."""
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    except ValueError as error:  # a zero byte in the name
        raise StorageError(f"{str(target)!r} cannot be written: {error}; choose another name.") from None
    os.close(handle)
    return temporary


def _is_device(path: Path) -> bool:
    return path.exists() and not path.is_file() and not path.is_dir()


def _mode(target: Path) -> int:
    """Permissions the file had, or those a new file gets (mkstemp's are private)."""
    if target.exists():
        return target.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _sync(path: Path, way: int) -> None:
    handle = os.open(path, way)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
