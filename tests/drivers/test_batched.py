"""Many fits in blocks: the order of results, interrupts, errors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from gradfit.drivers.batched import run

BLOCKS = [(begin, begin + 3) for begin in range(0, 60, 3)]


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


class Work:
    """Fits that only note that they were made; ``at`` says what happens at the start of which block."""

    def __init__(self, at=None, *, seconds=0.0):
        self.at, self.seconds, self.consumed = at or {}, seconds, []

    def fit(self, begin, end):
        self.at.get(begin, lambda: None)()
        time.sleep(self.seconds)
        return list(range(begin, end))

    def consume(self, begin, end, found):
        assert found == list(range(begin, end))
        self.consumed.append((begin, end))

    def run(self, *, threads=2, **options):
        return run(BLOCKS, self.fit, self.consume, total=60, threads=threads, progress=False, **options)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_the_order_of_the_blocks_whatever_is_done_first(threads):
    work = Work({0: lambda: time.sleep(0.05)})
    assert work.run(threads=threads)
    assert work.consumed == BLOCKS


@pytest.mark.parametrize("threads", [1, 3])
def test_ctrl_c_keeps_what_is_done_and_ends_soon(threads):
    work = Work({15: press_ctrl_c}, seconds=0.002)
    assert not work.run(threads=threads)
    assert work.consumed == BLOCKS[: len(work.consumed)]
    assert 6 <= len(work.consumed) < len(BLOCKS)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_while_the_last_blocks_are_made_leaves_nothing_out():
    work = Work({57: press_ctrl_c})
    assert work.run(threads=1)
    assert work.consumed == BLOCKS


def test_a_second_ctrl_c_ends_at_once():
    free = threading.Event()

    def hang():
        press_ctrl_c()
        time.sleep(0.1)  # two at once are one
        press_ctrl_c()
        free.wait(10)

    work = Work({15: hang})
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        work.run(threads=1)
    free.set()
    assert time.monotonic() - begun < 5
    assert work.consumed == BLOCKS[:5]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_callers_own_way_with_signals_is_left_alone():
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    try:
        work = Work({15: press_ctrl_c})
        assert work.run()
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [1]
    assert work.consumed == BLOCKS


def test_work_in_another_thread_is_not_interrupted():
    work, whole = Work(), []
    thread = threading.Thread(target=lambda: whole.append(work.run()))
    thread.start()
    thread.join()
    assert whole == [True]


def test_an_error_in_a_block_is_the_callers():
    def fail():
        raise ZeroDivisionError("block 15")

    work = Work({15: fail})
    with pytest.raises(ZeroDivisionError, match="block 15"):
        work.run()
    assert work.consumed == BLOCKS[:5]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_caller_is_asked_now_and_then_while_a_block_takes_long(monkeypatch):
    monkeypatch.setattr("gradfit.drivers.batched.PATIENCE", 0.01)
    asked = []
    work = Work({0: lambda: time.sleep(0.2)})
    assert work.run(meanwhile=lambda: asked.append(list(work.consumed)))
    assert asked.count([]) >= 3


INTERRUPTED = """
import os, random, signal, sys, time, warnings
import numpy as np, gradfit
def decay(x, a=1.0, t=1.0, c=0.0): return a * np.exp(-x / t) + c
x, rng = np.linspace(0, 5, 20), np.random.default_rng(0)
Y = 2 * np.exp(-x / 1.5) + 0.5 + rng.normal(0, 0.05, (500_000, 20))
gradfit.fit_many(decay, x, Y[:10])

def begin(found):
    child = os.fork()
    if child == 0:
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                fits = gradfit.fit_many(decay, x, Y, threads=2)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            told = [str(each.message) for each in said]
            np.savez(found, done=fits.status != "not_done", a=fits.values["a"], a_stderr=fits.stderr["a"], told=told)
        except KeyboardInterrupt:  # before the first block or after the last one, as in any other program
            os._exit(1)
        os._exit(0)
    return child

begun = time.monotonic()
os.waitpid(begin("full.npz"), 0)
took, chance = time.monotonic() - begun, random.Random(5)
for attempt in range(8):
    child = begin(f"found{attempt}.npz")
    time.sleep(chance.uniform(0.05, 0.6) * took)
    os.kill(child, signal.SIGINT)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.slow
def test_ctrl_c_at_any_time_gives_whole_fits_or_none(tmp_path):
    said = subprocess.run([sys.executable, "-c", INTERRUPTED], cwd=tmp_path, capture_output=True, text=True, check=True)
    ends = list(map(int, said.stdout.split()))
    full = np.load(tmp_path / "full.npz")
    assert full["done"].all()
    assert set(ends) <= {0, 1}
    partly = 0
    for attempt in (place for place, code in enumerate(ends) if code == 0):
        found = np.load(tmp_path / f"found{attempt}.npz")
        done = found["done"]
        told = [f"interrupted: {done.sum()} of {len(done)} fits are done, the others have the status not_done."]
        assert found["told"].tolist() == ([] if done.all() else told)
        for name in ("a", "a_stderr"):
            assert (found[name][done] == full[name][done]).all()
            assert np.isnan(found[name][~done]).all()
        partly += bool(done.any() and not done.all())
    assert partly
