"""A batch that goes on where it was cut off: same bits, or a word about why not."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import gradfit
from gradfit import jobs
from gradfit.drivers import checkpoint
from gradfit.drivers.checkpoint import opened
from gradfit.errors import FitWarning, OptionError, StorageError
from gradfit.statistics.many_record import ARRAYS

COUNT = 640
X = np.linspace(0, 5, 20)
Y = 2 * np.exp(-X / 1.5) + 0.5 + np.random.default_rng(0).normal(0, 0.05, (COUNT, 20))
OFFSET = 0.0


def decay(x, a=1.0, t=1.0, c=0.0):
    return a * np.exp(-x / t) + c


def other_decay(x, a=1.0, t=1.0, c=0.0):
    return a * np.exp(-x / t) + 2 * c


def shifted_decay(x, a=1.0, t=1.0, c=0.0):
    return a * np.exp(-x / t) + c + OFFSET


def shifted_loss(prediction, target):
    return (prediction - target + OFFSET) ** 2


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Ten blocks, each of them a file."""
    monkeypatch.setattr(jobs, "MOST_FITS", 64)
    monkeypatch.setattr(checkpoint, "MOST_BYTES", 1)


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def files(folder):
    return sorted(folder.glob("fits-*.parquet"))


def same(one, other):
    return all(
        (a is None and b is None) or (a.dtype == b.dtype and a.tobytes() == b.tobytes())
        for a, b in ((getattr(fits.record, name) for fits in (one, other)) for name in ARRAYS)
    )


class Counted:
    """Counts fits that are made."""

    def __init__(self, monkeypatch):
        self.made, own = 0, jobs.Job.fit

        def fit(job, block, *rest, **options):
            self.made += block.count
            return own(job, block, *rest, **options)

        monkeypatch.setattr(jobs.Job, "fit", fit)


def some_missing():
    """Data with a fit of no data, one that begins badly, and missing rows."""
    changed = Y.copy()
    changed[3], changed[100, 4], changed[200, 2] = np.nan, np.inf, np.nan
    return changed


LONG = (np.tile(X, COUNT), Y.reshape(-1))
CASES = {
    "plain": ((decay, X, Y), {}),
    "failing fits, covariance": ((decay, X, some_missing()), {"covariance": True}),
    "sigma, starts and bounds of each": (
        (decay, X, Y),
        {
            "sigma": np.linspace(0.1, 1, COUNT)[:, None],
            "absolute_sigma": True,
            "start": {"a": np.linspace(1, 3, COUNT)},
            "bounds": {"t": (0.1, np.linspace(1, 5, COUNT))},
        },
    ),
    "single precision": ((decay, X.astype(np.float32), Y.astype(np.float32)), {"dtype": "float32"}),
    "different lengths": ((decay, *LONG), {"offsets": np.sort(np.r_[0, np.arange(1, COUNT) * 20 - np.arange(1, COUNT) % 7, COUNT * 20])}),
    "validation": ((decay, X, Y), {"validation": 0.2}),
    "neighbours": ((decay, X, Y), {"start": "neighbour"}),
    "tied": ((decay, X, Y), {"tied": {"c": "a/4"}}),
    "one by one": ((decay, X, Y[:150]), {"method": "adam", "epochs": 20}),
    "nothing free": ((decay, X, Y), {"fixed": {"a": 2.0, "t": 1.5, "c": 0.5}}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_was_cut_off_goes_on_with_the_same_bits(case, run, monkeypatch):
    given, options = CASES[case]
    expected = gradfit.fit_many(*given, **options)
    made = Counted(monkeypatch)
    assert same(gradfit.fit_many(*given, **options, checkpoint=run, threads=1), expected)
    assert made.made == len(expected)
    for lost in files(run)[1::2]:
        lost.unlink()
    made.made = 0
    assert same(gradfit.fit_many(*given, **options, checkpoint=run, threads=3), expected)
    assert 0 < made.made < len(expected)
    made.made = 0
    assert same(gradfit.fit_many(*given, **options, checkpoint=str(run), progress=False), expected)
    assert made.made == 0


def test_blocks_of_the_folder_hold_on_though_they_would_be_cut_otherwise_now(run, monkeypatch):
    expected = gradfit.fit_many(decay, X, Y, checkpoint=run)
    files(run)[4].unlink()
    monkeypatch.setattr(jobs, "MOST_FITS", 100)
    made = Counted(monkeypatch)
    assert same(gradfit.fit_many(decay, X, Y, checkpoint=run), expected)
    assert made.made == 64


def test_ctrl_c_keeps_what_is_done_in_the_folder(run, monkeypatch):
    expected = gradfit.fit_many(decay, X, Y)
    own = jobs.Job.fit
    begun = []

    def fit(job, *rest, **options):
        begun.append(1)
        if len(begun) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        return own(job, *rest, **options)

    monkeypatch.setattr(jobs.Job, "fit", fit)
    with pytest.warns(FitWarning, match=r"interrupted: \d+ of 640 .* the same call goes on from here"):
        some = gradfit.fit_many(decay, X, Y, checkpoint=run, threads=1)
    done = some.status != "not_done"
    assert 0 < done.sum() < COUNT
    monkeypatch.setattr(jobs.Job, "fit", own)
    made = Counted(monkeypatch)
    assert same(gradfit.fit_many(decay, X, Y, checkpoint=run), expected)
    assert made.made == COUNT - done.sum()


def test_an_error_in_the_middle_loses_nothing_that_was_done(run, monkeypatch):
    monkeypatch.setattr(checkpoint, "MOST_BYTES", 1 << 20)  # so that blocks wait
    own = jobs.Job.fit
    begun = []

    def fit(job, *rest, **options):
        begun.append(1)
        if len(begun) == 6:
            raise MemoryError
        return own(job, *rest, **options)

    monkeypatch.setattr(jobs.Job, "fit", fit)
    with pytest.raises(MemoryError):
        gradfit.fit_many(decay, X, Y, checkpoint=run, threads=1)
    monkeypatch.setattr(jobs.Job, "fit", own)
    made = Counted(monkeypatch)
    gradfit.fit_many(decay, X, Y, checkpoint=run)
    assert made.made == COUNT - 5 * 64


# --- what changed -----------------------------------------------------------------------------------------------------


def changed_late():
    """Data of which the very last number is another."""
    changed = Y.copy()
    changed[-1, -1] = np.nextafter(changed[-1, -1], 9)
    return changed


BOUNDS = {"t": (0.1, 9.0)}
CHANGES = {
    "model": ({"model": other_decay}, "model changed"),
    "data": ({"Y": changed_late()}, "fits 576 to 639 in .* changed: column y"),
    "x": ({"x": X + 1e-9}, "column x"),
    "precision of the data": ({"Y": Y.astype(np.float32)}, "column y"),
    "fewer fits": ({"Y": Y[:-1]}, "number of fits was 640 and is 639"),
    "sigma": ({"sigma": 0.1}, "sigma"),
    "start": ({"start": {"a": 1.1}}, "changed: start"),
    "start of one fit": ({"start": {"a": np.r_[np.ones(COUNT - 1), 1.1]}}, "fits 576 to 639 .* changed: start"),
    "bounds": ({"bounds": {"t": (0.1, 8.0)}}, "bounds"),
    "fixed": ({"fixed": {"c": 0.4}}, "fixed was none and is c"),
    "tied": ({"tied": {"c": "a/4"}}, "tied"),
    "loss": ({"loss": "huber"}, "loss was squared and is huber"),
    "option of the method": ({"max_steps": 7}, "method changed"),
    "method": ({"method": "adam", "epochs": 3}, "method changed"),
    "dtype": ({"dtype": "float32"}, "dtype was float64 and is float32"),
    "engine": ({"engine": "torch"}, "engine was native and is torch"),
    "covariance": ({"covariance": True}, "covariance was False and is True"),
    "absolute_sigma": ({"sigma": 1.0, "absolute_sigma": True}, "absolute_sigma"),
    "seed": ({"seed": 1}, "seed was 0 and is 1"),
    "validation": ({"validation": 0.1}, "rows"),
    "neighbours": ({"start": "neighbour"}, "neighbours was False and is True"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder that a call filled, with what it gave."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "MOST_FITS", 64)
        patch.setattr(checkpoint, "MOST_BYTES", 1)
        return folder, gradfit.fit_many(decay, X, Y, bounds=BOUNDS, checkpoint=folder)


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_decides_the_results_is_refused_when_it_changed(what, finished, run):
    shutil.copytree(finished[0], run)
    changed, told = CHANGES[what]
    before = {path.name: path.read_bytes() for path in files(run)}
    call = {"model": decay, "x": X, "Y": Y, "bounds": BOUNDS, "checkpoint": run} | changed
    arrays = [call.pop(name) for name in ("model", "x", "Y")]
    with pytest.raises(StorageError, match=told):
        gradfit.fit_many(*arrays, **call)
    assert {path.name: path.read_bytes() for path in files(run)} == before


def test_a_global_that_the_model_or_the_loss_reads_is_part_of_it(run, tmp_path, monkeypatch):
    gradfit.fit_many(shifted_decay, X, Y, checkpoint=run)
    gradfit.fit_many(decay, X, Y[:20], loss=shifted_loss, checkpoint=tmp_path / "loss")
    monkeypatch.setitem(globals(), "OFFSET", 1.0)
    with pytest.raises(StorageError, match="model changed"):
        gradfit.fit_many(shifted_decay, X, Y, checkpoint=run)
    with pytest.raises(StorageError, match="loss changed"):
        gradfit.fit_many(decay, X, Y[:20], loss=shifted_loss, checkpoint=tmp_path / "loss")


def test_what_does_not_decide_the_results_may_change(finished, run):
    shutil.copytree(finished[0], run)
    files(run)[0].unlink()
    again = gradfit.fit_many(
        decay, X[None, :], list(Y), bounds=BOUNDS, threads=1, progress=False, on_failure="warn", checkpoint=run
    )
    assert same(again, finished[1])


def test_a_model_that_cannot_be_recognised_is_refused_before_anything_is_made(run):
    class Model:
        scale = 2.0

        def __call__(self, x, a=1.0, b=0.0):
            return self.scale * a * x + b

    with pytest.raises(OptionError, match="checkpoint needs to know the model again"):
        gradfit.fit_many(Model(), X, Y, checkpoint=run)
    assert not run.exists()


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "of other work"])
def test_damaged_files_are_made_again(damage, finished, run, monkeypatch):
    shutil.copytree(finished[0], run)
    place = files(run)[3]
    content = bytearray(place.read_bytes())
    match damage:
        case "cut":
            place.write_bytes(content[:-100])
        case "flipped":
            content[len(content) // 3] ^= 4
            place.write_bytes(content)
        case "empty":
            place.write_bytes(b"")
        case "of other work":
            gradfit.fit_many(other_decay, X, Y, checkpoint=run.parent / "other")
            shutil.copy(files(run.parent / "other")[3], place)
    made = Counted(monkeypatch)
    with pytest.warns(FitWarning, match="are damaged: 64 fits that were made are made again"):
        again = gradfit.fit_many(decay, X, Y, bounds=BOUNDS, checkpoint=run)
    assert made.made == 64
    assert same(again, finished[1])
    made.made = 0
    assert same(gradfit.fit_many(decay, X, Y, bounds=BOUNDS, checkpoint=run), finished[1])
    assert made.made == 0


def test_a_damaged_block_does_not_spoil_the_others_of_its_file(run, monkeypatch):
    monkeypatch.setattr(checkpoint, "MOST_BYTES", 1 << 30)
    monkeypatch.setattr(checkpoint, "OFTEN", 1e9)
    expected = gradfit.fit_many(decay, X, Y, checkpoint=run)
    (place,) = files(run)
    content = bytearray(place.read_bytes())
    content[len(content) // 2] ^= 1
    place.write_bytes(content)
    made = Counted(monkeypatch)
    with pytest.warns(FitWarning, match="damaged"):
        assert same(gradfit.fit_many(decay, X, Y, checkpoint=run), expected)
    assert 64 <= made.made < COUNT
    made.made = 0
    assert same(gradfit.fit_many(decay, X, Y, checkpoint=run), expected)
    assert made.made == 0


def test_a_lost_or_damaged_manifest_is_no_licence_to_begin_anew(finished, run):
    shutil.copytree(finished[0], run)
    manifest = run / checkpoint.MANIFEST
    said = json.loads(manifest.read_text())
    for text, told in (("{", "is damaged"), ("[]", "is damaged"), (json.dumps(said | {"schema": 2}), "schema 2 .* upgrade"), (None, "no _gradfit.json")):  # fmt: skip
        manifest.unlink() if text is None else manifest.write_text(text)
        with pytest.raises(StorageError, match=told):
            gradfit.fit_many(decay, X, Y, bounds=BOUNDS, checkpoint=run)
    assert len(files(run)) == 10


def test_other_versions_are_told_of_where_fits_are_left(finished, run):
    shutil.copytree(finished[0], run)
    manifest = run / checkpoint.MANIFEST
    said = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(said | {"makers": said["makers"] | {"numpy": "1.0"}}))
    assert same(gradfit.fit_many(decay, X, Y, bounds=BOUNDS, checkpoint=run), finished[1])
    files(run)[5].unlink()
    with pytest.warns(FitWarning, match=r"numpy 1\.0 then and .*: the 64 made now may differ from theirs in the last bits"):
        gradfit.fit_many(decay, X, Y, bounds=BOUNDS, checkpoint=run)


# --- the folder -------------------------------------------------------------------------------------------------------


def test_a_second_process_in_the_folder_is_refused(finished, run):
    shutil.copytree(finished[0], run)
    said = json.loads((run / checkpoint.MANIFEST).read_text())
    with (
        opened(run, said["job"], said["makers"], size=64),
        pytest.raises(StorageError, match=f"in use by process {os.getpid()} on "),
    ):
        gradfit.fit_many(decay, X, Y, bounds=BOUNDS, checkpoint=run)
    gradfit.fit_many(decay, X, Y, bounds=BOUNDS, checkpoint=run)


def test_a_full_disk_is_an_error_and_what_was_written_stays(run, monkeypatch):
    expected = gradfit.fit_many(decay, X, Y)
    sizes = iter([1, 1, 1, 1 << 20])  # three files of one block; the fourth is large, and does not fit
    monkeypatch.setattr(checkpoint, "MOST_BYTES", 1)
    gradfit.fit_many(decay, X, Y[:64], checkpoint=run.parent / "small")
    most = files(run.parent / "small")[0].stat().st_size * 2
    own = checkpoint.Writer.write

    def write(writer):
        own(writer)
        monkeypatch.setattr(checkpoint, "MOST_BYTES", next(sizes, 1 << 20))

    monkeypatch.setattr(checkpoint.Writer, "write", write)
    monkeypatch.setattr(checkpoint, "OFTEN", 1e9)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        with pytest.raises(StorageError, match=r"cannot be written: .*stays valid"):
            gradfit.fit_many(decay, X, Y, checkpoint=run, threads=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files(run)
    assert not [path for path in run.iterdir() if path.name.startswith(".")]
    made = Counted(monkeypatch)
    assert same(gradfit.fit_many(decay, X, Y, checkpoint=run), expected)
    assert 0 < made.made < COUNT


def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    made = Counted(monkeypatch)
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "run", "a\0b"):
        with pytest.raises(StorageError, match="cannot be written to"):
            gradfit.fit_many(decay, X, Y, checkpoint=place)
    if os.geteuid() != 0:  # who may do all things is refused nothing
        tmp_path.chmod(0o500)
        with pytest.raises(StorageError, match="Permission denied"):
            gradfit.fit_many(decay, X, Y, checkpoint=tmp_path / "run")
    for place in (3, "", True):
        with pytest.raises(OptionError, match="name of a folder"):
            gradfit.fit_many(decay, X, Y, checkpoint=place)
    assert made.made == 0


def test_what_a_killed_process_left_half_written_is_cleared_away(finished, run):
    shutil.copytree(finished[0], run)
    (run / ".fits-000000000000-000000000064.parquet.abc123").write_bytes(b"half")
    (run / "._gradfit.json.abc123").write_bytes(b"half")
    (run / "notes.txt").write_text("mine")
    gradfit.fit_many(decay, X, Y, bounds=BOUNDS, checkpoint=run)
    assert not [path for path in run.iterdir() if path.name.startswith(".")]
    assert (run / "notes.txt").exists()


# --- kill -9 ----------------------------------------------------------------------------------------------------------

KILLED = """
import os, random, signal, sys, time
import numpy as np, gradfit
from gradfit.drivers import checkpoint
checkpoint.OFTEN, checkpoint.MOST_BYTES = 0.02, 1 << 20
def decay(x, a=1.0, t=1.0, c=0.0): return a * np.exp(-x / t) + c
x, rng = np.linspace(0, 5, 20), np.random.default_rng(0)
Y = 2 * np.exp(-x / 1.5) + 0.5 + rng.normal(0, 0.05, (200_000, 20))
Y[::1000] = np.nan
gradfit.fit_many(decay, x, Y[:10], checkpoint="warm")

def begin(found, **options):
    child = os.fork()
    if child == 0:
        fits = gradfit.fit_many(decay, x, Y, covariance=True, **options)
        kept = ("values", "stderr", "loss", "n", "steps", "status", "covariance")
        np.savez(found, **{name: getattr(fits.record, name) for name in kept})
        os._exit(0)
    return child

def end(child):
    assert os.waitpid(child, 0)[1] == 0

end(begin("expected.npz", threads=2))
begun = time.monotonic()
end(begin("once.npz", threads=2, checkpoint="once"))
took, chance = time.monotonic() - begun, random.Random(1)
for attempt in range(6):
    child = begin("killed.npz", threads=1 + attempt % 2, checkpoint="run")
    time.sleep(chance.uniform(0.1, 0.6) * took)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print(len([name for name in os.listdir("run") if name.startswith("fits-")]) if os.path.exists("run") else 0)
end(begin("found.npz", threads=2, checkpoint="run"))
"""


@pytest.mark.slow
def test_after_any_number_of_kills_the_same_call_gives_the_same_bits(tmp_path):
    said = subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, capture_output=True, text=True, check=True)
    left = list(map(int, said.stdout.split()))
    assert left == sorted(left)
    assert left[-1] > 0
    expected, once, found = (np.load(tmp_path / f"{name}.npz") for name in ("expected", "once", "found"))
    for name in expected:
        assert expected[name].tobytes() == once[name].tobytes() == found[name].tobytes()
