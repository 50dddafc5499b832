"""Where many fits begin that were given no start: found for each from its own data, whatever is beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from gradfit.compiler.compiled import NativeKernel
from gradfit.compiler.correlated import AnyKernel
from gradfit.compiler.units import Role
from gradfit.data.batch import Batch, Block, common
from gradfit.errors import DataError
from gradfit.methods.many import NOT_DONE, Starts, unfit
from gradfit.methods.many_starts import StartSearch
from gradfit.methods.method import Method
from gradfit.model.parameters import Parameters
from gradfit.model.per_fit import Tables
from gradfit.starting import MOST_SEARCHED, Starter, guessed, roles_of, unsearched
from gradfit.statistics.record import GIVEN, Beginning
from gradfit.statistics.summary import Setting

# Puts the kernel on the data of one fit of a block.
Put = Callable[[int], tuple[AnyKernel, Setting]]


@dataclass(frozen=True)
class ManyStarter:
    """Finds where many fits begin.

    Attributes
    ----------
    kernel
        The model; None where no fit has data.
    tables
        What is known of starts and bounds.
    in_blocks
        Whether compiled code serves many fits at once; else each is looked at as :func:`gradfit.fit` does.
    """

    kernel: AnyKernel | None
    parameters: Parameters
    tables: Tables
    batch: Batch
    method: Method
    seed: int
    radius: float
    in_blocks: bool
    apart: bool

    @cached_property
    def waiting(self) -> np.ndarray:
        """Which free numbers have no start, (p,)."""
        return np.array([name in self.tables.waiting for name in self.parameters.owners], dtype=bool)

    @cached_property
    def known(self) -> dict[str, Role] | None:
        """The role of each free number, where some have no start; None where the model is not compiled."""
        kernel = self.kernel
        return roles_of(kernel, kernel.data) if isinstance(kernel, NativeKernel) and self.waiting.any() else None

    @cached_property
    def search(self) -> StartSearch | None:
        """Finds the starts of a block at once; None where it is not to."""
        kernel, known = self.kernel, self.known
        if not isinstance(kernel, NativeKernel) or known is None or not self.in_blocks or len(self.waiting) > MOST_SEARCHED:
            return None
        shared, scaled = common(self.batch)
        tables = self.tables
        own = [start for start, waits in zip(tables.starts, self.waiting, strict=True) if not waits]
        # Rows set apart may be other ones in each fit.
        shared &= not self.apart and all(np.ndim(part) == 0 for part in (*own, *tables.lowers, *tables.uppers, *tables.fixed))
        return StartSearch(kernel, known, self.waiting, shared, scaled, self.seed, self.radius)

    @cached_property
    def beginning(self) -> Beginning:
        """Say where fits begin that were given no start."""
        if self.kernel is None or not self.waiting.any():
            return GIVEN
        names, search = ", ".join(self.tables.waiting), self.search
        if len(self.waiting) > MOST_SEARCHED:
            return unsearched(names, len(self.waiting))
        if self.known is not None and self.waiting.all() and all(role.linear for role in self.known.values()):
            return Beginning("assumed", "")
        if search is None:
            return Beginning("search", f"No start was given for {names}: searched for in each fit by itself (seed {self.seed}).")
        if not search.searched.size:
            return Beginning("search", f"No start was given for {names}: begun where the squares are least, given the others.")
        text = (
            f"No start was given for {names}: chosen for each fit among {search.number(self.batch.n)} points that fill the space "
            f"(seed {self.seed}), by short fits from the best of them."
        )
        return Beginning("search", text)

    def begun(self, block: Block, starts: Starts, put: Put) -> Starts:
        """Give the starts of a block with those found that nobody gave."""
        if starts.open is None or not starts.open.any() or self.beginning.kind != "search":
            return starts
        if self.search is not None:
            return self.search.begun(block, starts)
        theta = np.array(starts.theta)
        for place in np.flatnonzero(starts.open & (unfit(block, starts) == NOT_DONE)).tolist():
            kernel, setting = put(place)
            try:
                guesses = guessed(setting.model, kernel.parameters, setting.data, self.method)
            except DataError:  # the shape cannot describe these data: the fit itself will say so
                continue
            with np.errstate(all="ignore"):
                found, _ = Starter(kernel, setting.data, self.method, guesses, self.seed).find()
            theta[place] = found.start
        return replace(starts, theta=theta)
