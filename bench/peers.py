"""What a peer is: a function to time that gives back its answer, or the reason why it cannot run here."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType

import numpy as np

Peer = Callable[[], np.ndarray]
INSTALL = "pip install --constraint constraints.txt -r bench/requirements.txt"


class Unavailable(Exception):
    """The peer is not installed or cannot work here; says why."""


def load(module: str) -> ModuleType:
    """Import a module of peers; a package it lacks makes them unavailable."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise Unavailable(f"{error.name} is not installed: {INSTALL}") from error
