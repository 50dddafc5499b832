"""gradfit fit --by: a line for each fit, a file of all, exit 0 when all succeeded, 1 when some did not, 2 for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import gradfit
from gradfit import cli

FORMULA = "t_c = w*t_u + b"


@pytest.fixture
def here(tmp_path, monkeypatch, t_u, t_c) -> Path:
    """A folder with the readings of two thermometers, where the command is called; a third has one reading."""
    monkeypatch.chdir(tmp_path)
    rows = [f"{name},1,{u},{c + shift},2" for u, c in zip(t_u, t_c, strict=True) for name, shift in (("attic", 0), ("hall", 3))]
    text = "\n".join(["sensor,run,t_u,t_c,s", *rows])
    (tmp_path / "two.csv").write_text(text)
    (tmp_path / "three.csv").write_text(f"{text}\nbarn,1,50,10,2\n")
    return tmp_path


def call(capsys, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_line_for_each_fit_and_exit_zero_where_all_succeeded(here, capsys):
    code, out, err = call(capsys, "fit", "two.csv", FORMULA, "--by", "sensor")
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "sensor w b rows status" in lines
    assert "attic 0.537 ± 0.036 -17.3 ± 1.9 11 converged" in lines
    assert "hall 0.537 ± 0.036 -14.3 ± 1.9 11 converged" in lines
    assert "2 of 2 succeeded" in out


def test_exit_one_where_some_did_not_and_why(here, capsys):
    code, out, _ = call(capsys, "fit", "three.csv", FORMULA, "--by", "sensor", "--by", "run")
    assert code == 1
    assert ["barn", "1", "-", "-", "1", "too_few"] in [line.split() for line in out.splitlines()]
    assert "Not fitted: it has fewer rows than parameters" in out


def test_json_is_an_object_for_each_fit(here, capsys):
    code, out, _ = call(capsys, "fit", "three.csv", FORMULA, "--by", "sensor", "--json", "--sigma", "s", "--absolute-sigma")
    assert code == 1
    first, second, _ = (json.loads(line) for line in out.splitlines())
    assert first["key"] == {"sensor": "attic"}
    assert first["values"]["w"] == pytest.approx(0.53677, abs=1e-5)
    assert first["stderr"]["w"] == pytest.approx(0.0376, abs=1e-4)
    assert (first["n"], first["status"], first["success"]) == (11, "converged", True)
    assert (second["key"], second["values"], second["loss"], second["status"]) == (
        {"sensor": "barn"},
        {"w": None, "b": None},
        None,
        "too_few",
    )


@pytest.mark.parametrize("name", ["fits.parquet", "fits.nc"])
def test_the_fits_are_written_and_reported_again(name, here, capsys):
    _, printed, err = call(capsys, "fit", "two.csv", FORMULA, "--by", "sensor", "--save", name)
    assert err == f"wrote {name}\n"
    assert gradfit.load(name).keys["sensor"].tolist() == ["attic", "hall"]
    assert call(capsys, "report", name) == (0, printed, "")
    code, out, _ = call(capsys, "report", name, "--json")
    assert code == 0
    assert [json.loads(line)["fit"] for line in out.splitlines()] == [0, 1]
    for arguments, said in (
        (("report", name, "--html", "f.html"), "--html shows one"),
        (("predict", name, "two.csv"), "predict takes one"),
    ):
        code, out, err = call(capsys, *arguments)
        assert (code, out) == (2, "")
        assert said in err


def test_many_fits_are_cut_short_and_the_rest_is_told_of(here, capsys):
    labels = np.repeat(np.arange(100), 3)
    (here / "many.csv").write_text(
        "k,x,y\n" + "".join(f"{label},{row},{2 * row + row % 2}\n" for row, label in enumerate(labels))
    )
    code, out, _ = call(capsys, "fit", "many.csv", "y = a*x + b", "--by", "k")
    assert code == 0
    assert "... and 60 more" in out
    assert out.endswith("40 of 100 fits are listed; --json prints all.\n")
    assert sum(line.endswith("converged") for line in out.splitlines()) == 40


def test_options_of_a_fit_hold_for_each(here, capsys):
    options = ("--fix", "b=-17", "--start", "w=0.5", "--bounds", "w=0:1", "--threads", "1", "--loss", "huber", "--f-scale", "2")
    code, out, _ = call(capsys, "fit", "two.csv", FORMULA, "--by", "sensor", "--json", *options)
    assert code == 0
    assert [json.loads(line)["values"]["b"] for line in out.splitlines()] == [-17, -17]
    code, out, _ = call(capsys, "fit", "two.csv", FORMULA, "--by", "sensor", "--json", "--validation", "0.2")
    assert [json.loads(line)["n"] for line in out.splitlines()] == [9, 9]
    assert all(json.loads(line)["validation_loss"] > 0 for line in out.splitlines())


def test_a_checkpoint_goes_on_and_refuses_other_work(here, capsys):
    command = ("fit", "two.csv", FORMULA, "--by", "sensor", "--checkpoint", "run")
    first = call(capsys, *command)
    assert call(capsys, *command) == first
    assert first[0] == 0
    code, _, err = call(capsys, *command, "--fix", "b=0")
    assert code == 2
    assert "run" in err


def test_rows_without_a_label_are_told_of_on_stderr(here, capsys):
    (here / "gaps.csv").write_text((here / "two.csv").read_text() + "\n,1,50,10,2\n")
    code, _, err = call(capsys, "fit", "gaps.csv", FORMULA, "--by", "sensor")
    assert code == 0
    assert err.startswith("gradfit: sensor is missing in 1 row")
    assert call(capsys, "fit", "gaps.csv", FORMULA, "--by", "sensor", "--missing", "raise")[0] == 2


BAD = {
    "unknown column": (("--by", "senser"), "unknown group column 'senser'"),
    "the target": (("--by", "t_c"), "also the target"),
    "html": (("--by", "sensor", "--html", "f.html"), "--html is for one fit"),
    "plot": (("--by", "sensor", "--plot", "f.png"), "--plot is for one fit"),
    "folds": (("--by", "sensor", "--folds", "3"), "--folds is for one fit"),
    "weights": (("--by", "sensor", "--weights", "s"), "--weights is for one fit"),
    "every": (("--by", "sensor", "--every", "3"), "--every is for one fit"),
    "validation file": (("--by", "sensor", "--validation", "two.csv"), "expected a fraction"),
    "threads": (("--threads", "2"), "--threads is for many fits"),
    "checkpoint": (("--checkpoint", "run"), "--checkpoint is for many fits"),
    "no thread": (("--by", "sensor", "--threads", "0"), "threads is 0"),
    "save as JSON": (("--by", "sensor", "--save", "f.json"), "many fits are written as a table"),
    "save one as a table": (("--save", "f.parquet"), "one fit is written as JSON"),
    "save in no folder": (("--by", "sensor", "--save", "no/f.parquet"), "no folder"),
    "by as an option": (("--option", "by=sensor"), "none of the optimizer's"),
}  # fmt: skip


@pytest.mark.parametrize(("options", "said"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line_and_exit_two(options, said, here, capsys):
    before = sorted(path.name for path in here.iterdir())
    code, out, err = call(capsys, "fit", "two.csv", FORMULA, *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert sorted(path.name for path in here.iterdir()) == before
