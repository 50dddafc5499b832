"""A hash of what a function computes with, the same in every process: by it a stored job knows its model again.

A fingerprint (:mod:`gradfit.compiler.fingerprint`) holds code objects and functions of libraries, which are compared as they are in
memory. Here they are spelled out: code as the bytes Python compiled it to, without file and line; what a library made, by its name.
A newer gradfit gives the same hash; another Python compiles to other bytes, and gives another.
"""

from __future__ import annotations

import hashlib
import math
import types
from collections.abc import Hashable
from typing import Any

import numpy as np
import torch

from gradfit.compiler.fingerprint import fingerprint

LENGTH = 32  # hexadecimal digits: 128 bits
CODE = (
    "co_code", "co_consts", "co_names", "co_varnames", "co_freevars", "co_cellvars", "co_argcount", "co_posonlyargcount",
    "co_kwonlyargcount", "co_flags", "co_exceptiontable",
)  # fmt: skip


def digest_of(value: Any) -> str | None:
    """Give a hash of a function with all it reads, or of plain values; None where something in it cannot be told from its like."""
    key = fingerprint(value, largest=math.inf)
    return None if key is None else digest(key)


def digest(key: Hashable) -> str:
    """Give the hash of a fingerprint."""
    return hashlib.sha256(_spelled(key)).hexdigest()[:LENGTH]


def _spelled(key: Any) -> bytes:
    """Spell a key out; no two keys are spelled alike."""
    match key:
        case bytes():
            return _framed(b"bytes", key)
        case tuple():
            return _framed(b"tuple", *map(_spelled, key))
        case frozenset():
            return _framed(b"set", *sorted(map(_spelled, key)))
        case types.CodeType():
            return _framed(b"code", *(_spelled(getattr(key, part)) for part in CODE))
        case None | bool() | int() | float() | complex() | str() | types.EllipsisType() | torch.dtype():
            return _framed(type(key).__name__.encode(), repr(key).encode("utf-8", "surrogatepass"))
    return _framed(b"library", _name(key).encode())


def _framed(kind: bytes, *parts: bytes) -> bytes:
    return b"".join((kind, b"(", *(b"%d:%b" % (len(part), part) for part in parts), b")"))


def _name(value: Any) -> str:
    """Name a function or class of a library."""
    if isinstance(value, (torch._ops.OpOverload, torch._ops.OpOverloadPacket, np.ufunc)):
        return f"{type(value).__name__} {value}"
    own = getattr(value, "__self__", None)
    home = getattr(own, "__qualname__", None) or getattr(own, "__name__", None) or getattr(value, "__module__", None)
    return f"{type(value).__name__} {home} {getattr(value, '__qualname__', None) or value.__name__}"
