"""A file is written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gradfit.data import files
from gradfit.errors import StorageError


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(moment, tmp_path, monkeypatch):
    target = tmp_path / "kept.txt"
    target.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if moment == "write":
        monkeypatch.setattr(files, "open", lambda *_, **__: fail(), raising=False)
    else:
        monkeypatch.setattr(files.os, moment, fail)
    with pytest.raises(StorageError, match="No space left on device"):
        files.write_whole(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_write_interrupted_by_hand_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    target = tmp_path / "kept.txt"
    target.write_text("old")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_whole(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_read_only_folder_is_refused(tmp_path, monkeypatch):
    def denied(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "kept.txt").write_text("old")
    if hasattr(os, "geteuid") and os.geteuid() == 0:  # the administrator may write anywhere: say what others would hear
        monkeypatch.setattr(files.tempfile, "mkstemp", denied)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StorageError, match="cannot be written"):
            files.write_whole(tmp_path / "kept.txt", "new")
        assert (tmp_path / "kept.txt").read_text() == "old"
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("name", ["no/kept.txt", ".", "a\0b", "long" * 100])
def test_a_place_that_cannot_be_written_says_why(name, tmp_path):
    with pytest.raises(StorageError, match="cannot be written"):
        files.write_whole(str(tmp_path / name), "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="permissions of another kind")
def test_a_file_keeps_its_permissions_and_a_new_one_gets_the_usual(tmp_path):
    old, new, plain = tmp_path / "old", tmp_path / "new", tmp_path / "plain"
    old.write_text("old")
    old.chmod(0o640)
    plain.write_text("")
    for path in (old, new):
        files.write_whole(path, "text")
    assert (old.stat().st_mode & 0o777, new.stat().st_mode) == (0o640, plain.stat().st_mode)


@pytest.mark.skipif(os.name != "posix", reason="links of another kind")
def test_a_link_stays_a_link_and_its_file_gets_the_content(tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "kept.txt").write_text("old")
    link = tmp_path / "kept.txt"
    link.symlink_to(folder / "kept.txt")
    files.write_whole(link, "new")
    assert link.is_symlink()
    assert Path(folder / "kept.txt").read_text() == "new"
