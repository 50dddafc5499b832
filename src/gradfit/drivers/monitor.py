"""What a running fit shows: a training line every N steps, a progress bar on long work.

The bar appears on stderr after a second, and only where stderr is a terminal; lines go where the caller says.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import TextIO

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from gradfit.errors import OptionError
from gradfit.methods.method import Block, Evaluation

PATIENCE = 1.0  # seconds before a bar appears
REFRESH = 0.1  # seconds between two updates of it
SHOWN = 6  # parameters in a training line


class Monitor:
    """Observer of the loop; a context manager, so that the bar is taken down whatever happens."""

    def __init__(
        self,
        names: Sequence[str],
        total: int,
        *,
        unit: str,
        every: int | None,
        out: TextIO | None,
        progress: bool | None,
    ) -> None:
        self.names, self.total, self.unit, self.every = names, total, unit, every
        self.out = out if out is not None else sys.stdout
        self.bar_wanted = _bar_wanted(progress)
        self.bar: Progress | None = None
        self.shown_at = time.monotonic() + PATIENCE - REFRESH

    def __enter__(self) -> Monitor:
        """Begin."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Take the bar down."""
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, step: int, evaluation: Evaluation) -> None:
        """See one step."""
        if self.every is not None and (step % self.every == 0 or step == 1):
            print(training_line(self.names, self.unit, step, evaluation), file=self.out, flush=True)
        if self.bar_wanted and time.monotonic() - self.shown_at > REFRESH:
            self._show(step, evaluation)

    def block(self, first: int, block: Block) -> None:
        """See many steps at once, the first of them by number."""
        last = first + len(block.train_loss) - 1
        for step in self._lines(first, last):
            print(training_line(self.names, self.unit, step, _row(block, step - first)), file=self.out, flush=True)
        if self.bar_wanted and time.monotonic() - self.shown_at > REFRESH:
            self._show(last, _row(block, -1))

    def _lines(self, first: int, last: int) -> list[int]:
        """Steps of a block that get a line."""
        if self.every is None:
            return []
        multiples = range(first + (-first) % self.every, last + 1, self.every)
        return sorted({*multiples, *([1] if first == 1 else [])})

    def _show(self, step: int, evaluation: Evaluation) -> None:
        if self.bar is None:
            self.bar = progress_bar()
            self.task = self.bar.add_task("fitting", total=self.total)
            self.bar.start()
        self.bar.update(self.task, completed=step, description=f"loss {evaluation.train_loss:.6g}")
        self.shown_at = time.monotonic()


def monitored(
    names: Sequence[str], total: int, unit: str, every: int | None, out: TextIO | None, progress: bool | None
) -> AbstractContextManager[Monitor | None]:
    """Give a monitor; none where there is nothing to show and nobody to see it."""
    if every is None and not _bar_wanted(progress):
        return UNSEEN
    return Monitor(names, total, unit=unit, every=every, out=out, progress=progress)


UNSEEN: AbstractContextManager[None] = nullcontext()


@contextmanager
def counted(total: int, what: str, progress: bool | None, *, unit: str = "", done: int = 0) -> Iterator[Callable[[int], None]]:
    """Count work that is done in pieces: gives ``advance(pieces)``, which moves a bar after the first second.

    Parameters
    ----------
    unit
        What the pieces are called; where it is given, the bar says how many are done in a second.
    done
        How many were done before.
    """
    if not _bar_wanted(progress):
        yield lambda pieces: None
        return
    bar = progress_bar(unit)
    task = bar.add_task(what, total=total, completed=done)
    begun = shown = time.monotonic()
    unseen = 0

    def advance(pieces: int) -> None:
        nonlocal unseen, shown
        unseen += pieces
        now = time.monotonic()
        if now - shown < REFRESH:
            return
        bar.update(task, advance=unseen)
        unseen, shown = 0, now
        if not bar.live.is_started and now - begun > PATIENCE:
            bar.start()

    try:
        yield advance
    finally:
        bar.stop()


def check_progress(progress: object) -> None:
    """Refuse what does not say whether to show a bar.

    Raises
    ------
    OptionError
        It is not True, False or None.
    """
    if progress is not None and not isinstance(progress, bool):
        raise OptionError(f"progress is {progress!r}; expected True, False, or None for a bar on long work.")


def _bar_wanted(progress: bool | None) -> bool:
    """Whether a bar may be shown: as asked, else where somebody sees it."""
    return (sys.stderr is not None and sys.stderr.isatty()) if progress is None else progress


def progress_bar(unit: str = "") -> Progress:
    """Make a bar for stderr: what is done, how much of it, how fast where the unit of work is given, how long it will take."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *((Rate(unit),) if unit else ()))
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)


class Rate(ProgressColumn):
    """How much is done in a second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        """Give the text of the column."""
        rate = task.speed
        if rate is None:
            return Text("")
        return Text(f"{rate:,.0f} {self.unit}/s" if rate >= 10 else f"{rate:.2g} {self.unit}/s", style="progress.data.speed")


def _row(block: Block, place: int) -> Evaluation:
    settings = {name: float(values[place]) for name, values in block.settings.items()}
    losses = float(block.train_loss[place]), float(block.validation_loss[place])
    return Evaluation(*losses, block.theta[place], block.gradient[place], settings)


def training_line(names: Sequence[str], unit: str, step: int, evaluation: Evaluation) -> str:
    """One line of training: losses, parameters after the step, gradient before it."""
    validation = "" if np.isnan(evaluation.validation_loss) else f"  validation {number(evaluation.validation_loss, 6)}"
    return f"{unit} {step}  loss {number(evaluation.train_loss, 6)}{validation}{parameters_and_gradient(names, evaluation.theta, evaluation.gradient)}"


def parameters_and_gradient(names: Sequence[str], theta: Sequence[float], gradient: Sequence[float]) -> str:
    """Parameters and gradient as a part of a training line; nothing where there are too many to read."""
    if not 0 < len(names) <= SHOWN:
        return ""
    values = "  ".join(f"{name} {number(float(value), 4)}" for name, value in zip(names, theta, strict=True))
    slopes = "  ".join(f"grad_{name} {number(float(value), 4)}" for name, value in zip(names, gradient, strict=True))
    return f"  {values}  {slopes}"


def number(value: float, decimals: int) -> str:
    """Print with fixed decimals, as the notebook does; with an exponent where these would show no digit, or too many."""
    plain = value == 0 or not np.isfinite(value) or 10.0**-decimals <= abs(value) < 1e9
    return f"{value:.{decimals}f}" if plain else f"{value:.{decimals}e}"
