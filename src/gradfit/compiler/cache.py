"""Compiled code on disk: a file per key, whole or not there.

The folder is ``$GRADFIT_CACHE_DIR``, or ``gradfit`` in the user's cache folder. A file begins with the SHA-256 of the rest, so
that what a crash, a full disk or another program left behind is not taken for code. Files are written aside and renamed:
processes that compile the same thing at once write the same bytes, and a reader sees one of them whole. Where the folder cannot
be written, nothing is kept and everything works, only slower in the next process.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
from pathlib import Path

DIGEST = 32  # bytes of SHA-256


def folder() -> Path:
    """Where compiled code is kept."""
    chosen = os.environ.get("GRADFIT_CACHE_DIR")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "gradfit"


def key(*parts: str) -> str:
    """Name of what is made from these texts, and from nothing else."""
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()


def read(name: str) -> bytes | None:
    """Read what was kept under a name; None where there is nothing, or something damaged."""
    try:
        content = (folder() / name).read_bytes()
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        return None
    digest, body = content[:DIGEST], content[DIGEST:]
    return body if hashlib.sha256(body).digest() == digest else None


def write(name: str, body: bytes) -> None:
    """Keep something under a name, if that is possible; never half of it."""
    with contextlib.suppress(OSError, RuntimeError):
        place = folder()
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, aside = tempfile.mkstemp(dir=place, prefix=".writing-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(hashlib.sha256(body).digest() + body)
            Path(aside).replace(place / name)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(aside).unlink()
            raise
