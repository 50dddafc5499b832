"""Many independent fits: a block of them is one piece of work, taken by whichever thread is free.

Blocks are read, fitted and handed on one by one, so that memory does not grow with the number of fits. How fits are cut into blocks
changes no result.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from gradfit.drivers.monitor import counted
from gradfit.drivers.resampled import cores
from gradfit.errors import OptionError

Found = TypeVar("Found")
AHEAD = 2  # blocks that wait for each thread


def run(
    blocks: Iterable[tuple[int, int]],
    fit: Callable[[int, int], Found],
    consume: Callable[[int, int, Found], None],
    *,
    total: int,
    threads: int,
    progress: bool | None,
) -> bool:
    """Fit block after block; tell whether all were done: an interrupt (Ctrl-C) ends the work, and what was found is kept.

    Parameters
    ----------
    blocks
        From which fit up to which.
    fit
        Makes the fits of a block; called in several threads.
    consume
        Takes what was found, in the order of the blocks; called in the caller's thread.
    total
        Fits in all, for the progress bar.
    """
    waiting: deque[tuple[int, int, Future[Found]]] = deque()

    with counted(total, "fitting", progress) as advance:

        def take() -> None:
            begin, end, future = waiting[0]
            found = future.result()
            waiting.popleft()
            consume(begin, end, found)
            advance(end - begin)

        with ThreadPoolExecutor(threads) as pool:
            try:
                for begin, end in blocks:
                    waiting.append((begin, end, pool.submit(fit, begin, end)))
                    if len(waiting) > AHEAD * threads:
                        take()
                while waiting:
                    take()
            except KeyboardInterrupt:
                for _, _, future in waiting:
                    future.cancel()
                while waiting and not waiting[0][2].cancelled():
                    take()
                return False
            except BaseException:
                for _, _, future in waiting:
                    future.cancel()
                raise
    return True


def worker_count(threads: Any) -> int:
    """How many threads to use: as asked, else one per core this process may use, within what threadpoolctl was told.

    Raises
    ------
    OptionError
        No whole number of 1 or more.
    """
    if threads is not None:
        if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
            raise OptionError(f"threads is {threads!r}; expected a whole number, 1 or more, or None for all cores.")
        return threads
    from threadpoolctl import threadpool_info  # looks at every library that is loaded: only when it is asked

    allowed = max((int(pool["num_threads"]) for pool in threadpool_info()), default=cores())
    given = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores(), allowed, int(given) if given.isdigit() and int(given) else cores()))
