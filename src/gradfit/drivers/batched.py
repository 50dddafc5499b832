"""Many independent fits: a block of them is one piece of work, taken by whichever thread is free.

Blocks are read, fitted and handed on one by one, so that memory does not grow with the number of fits. How fits are cut into blocks
changes no result.
"""

from __future__ import annotations

import numbers
import os
import signal
import threading
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

from gradfit.drivers.monitor import counted
from gradfit.drivers.resampled import cores
from gradfit.errors import OptionError

Found = TypeVar("Found")
AHEAD = 2  # blocks that wait for each thread
PATIENCE = 0.5  # seconds between two looks at what else there is to do while a block is fitted


def run(
    blocks: Iterable[tuple[int, int]],
    fit: Callable[[int, int], Found],
    consume: Callable[[int, int, Found], None],
    *,
    total: int,
    threads: int,
    progress: bool | None,
    done: int = 0,
    what: str = "fitting",
    meanwhile: Callable[[], None] = lambda: None,
) -> bool:
    """Fit block after block; tell whether all were done: an interrupt (Ctrl-C) ends the work, and what was found is kept.

    After an interrupt blocks that have begun are finished, the others are left. A second one raises KeyboardInterrupt at once.

    Parameters
    ----------
    blocks
        From which fit up to which.
    fit
        Makes the fits of a block; called in several threads.
    consume
        Takes what was found, in the order of the blocks; called in the caller's thread.
    total, done
        Fits in all, and how many were there before: for the progress bar.
    what
        What the bar says.
    meanwhile
        Called now and then while the caller's thread waits for a block.
    """
    waiting: deque[tuple[int, int, Future[Found]]] = deque()
    left = hurried = False

    def take() -> None:
        nonlocal left
        begin, end, future = waiting[0]
        while not future.done():
            wait([future], timeout=PATIENCE)
            meanwhile()
        waiting.popleft()
        if future.cancelled():
            left = True
            return
        consume(begin, end, future.result())
        advance(end - begin)

    with counted(total, what, progress, unit="fits", done=done) as advance, first_interrupt() as interrupted:
        pool = ThreadPoolExecutor(threads)
        try:
            for begin, end in blocks:
                if interrupted():
                    left = True
                    break
                waiting.append((begin, end, pool.submit(fit, begin, end)))
                if len(waiting) > AHEAD * threads:
                    take()
            while waiting:
                if interrupted():
                    for _, _, future in reversed(waiting):  # else the next one begins when one is cancelled
                        future.cancel()
                take()
        except KeyboardInterrupt:
            hurried = True
            raise
        finally:
            pool.shutdown(wait=not hurried, cancel_futures=True)
    return not left


@contextmanager
def first_interrupt() -> Iterator[Callable[[], bool]]:
    """Put Ctrl-C off: the first one is noted, for a look at a good moment; the second one raises as ever.

    An exception in the middle of something would leave it half done. Where the caller takes signals himself, or another thread
    does, nothing is changed.
    """
    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return
    noted: list[int] = []

    def note(number: int, frame: types.FrameType | None) -> None:
        noted.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(noted)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def worker_count(threads: Any) -> int:
    """How many threads to use: as asked, else one per core this process may use, within what threadpoolctl was told.

    Raises
    ------
    OptionError
        No whole number of 1 or more.
    """
    if threads is not None:
        if isinstance(threads, bool) or not isinstance(threads, numbers.Integral) or threads < 1:
            raise OptionError(f"threads is {threads!r}; expected a whole number, 1 or more, or None for all cores.")
        return int(threads)
    from threadpoolctl import threadpool_info  # looks at every library that is loaded: only when it is asked

    allowed = max((int(pool["num_threads"]) for pool in threadpool_info()), default=cores())
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # a list says how many at each level of nesting
    return max(1, min(cores(), allowed, int(given) if given.isdigit() and int(given) else cores()))
