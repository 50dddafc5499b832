"""Compiled code on disk: whole or not there, and never in the way."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gradfit.compiler import cache

FIT = """
import numpy as np, gradfit
x = np.linspace(0, 4, 30)
fit = gradfit.fit(lambda x, a, k: a * np.exp(-k * x), x, 2 * np.exp(-0.7 * x) + 0.01 * np.sin(9 * x))
print(fit.engine, repr(fit.values))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADFIT_CACHE_DIR", str(tmp_path / "kept"))
    return tmp_path / "kept"


def test_what_was_written_is_read_again(folder):
    assert cache.read("a") is None
    cache.write("a", b"code")
    assert cache.read("a") == b"code"
    assert [place.name for place in folder.iterdir()] == ["a"]


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 100])
def test_a_damaged_file_counts_as_none(folder, content):
    cache.write("a", b"code")
    (folder / "a").write_bytes(content)
    assert cache.read("a") is None


def test_a_truncated_file_counts_as_none(folder):
    cache.write("a", b"code" * 100)
    whole = (folder / "a").read_bytes()
    (folder / "a").write_bytes(whole[:-1])
    assert cache.read("a") is None


def test_a_key_tells_texts_apart_that_only_their_joints_tell_apart():
    assert cache.key("ab", "c") != cache.key("a", "bc")


def test_a_full_disk_leaves_nothing_behind(folder, monkeypatch):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fdopen", full)
    cache.write("a", b"code")
    assert cache.read("a") is None
    assert list(folder.iterdir()) == []


def run(folder, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", FIT], env=os.environ | {"GRADFIT_CACHE_DIR": str(folder)} | environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def answer(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err == ""
    return out


@pytest.mark.slow
def test_processes_that_compile_the_same_at_once_and_those_that_find_it_give_the_same_bits(tmp_path):
    at_once = [run(tmp_path / "kept") for _ in range(3)]
    answers = {answer(process) for process in at_once}
    answers.add(answer(run(tmp_path / "kept")))
    assert len(answers) == 1
    assert answers.pop().startswith("native")
    assert not [place for place in (tmp_path / "kept").iterdir() if place.name.startswith(".")]


@pytest.mark.slow
def test_where_nothing_can_be_kept_fits_are_the_same(tmp_path):
    blocked = tmp_path / "a file"
    blocked.write_text("in the way")
    expected = answer(run(tmp_path / "kept"))
    assert answer(run(blocked)) == expected
    assert answer(run(blocked / "below")) == expected
    for place in Path(tmp_path / "kept").iterdir():
        place.write_bytes(b"damaged")
    assert answer(run(tmp_path / "kept")) == expected
