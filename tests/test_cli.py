"""The command line: results on stdout, one line on stderr for bad input, exit 0, 1 or 2, nothing half written."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gradfit
from gradfit import cli

FORMULA = "t_c = w*t_u + b"
SGD = ("--method", "sgd", "--learning-rate", "0.1", "--epochs", "60")


@pytest.fixture
def here(tmp_path, monkeypatch, t_u, t_c) -> Path:
    """A folder with the thermometer, where the command is called."""
    monkeypatch.chdir(tmp_path)
    rows = "\n".join(f"{u},{c},{2 + index % 2},note" for index, (u, c) in enumerate(zip(t_u, t_c, strict=True)))
    (tmp_path / "t.csv").write_text(f"t_u,t_c,s,remark\n{rows}\n")
    return tmp_path


def call(capsys, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def fitted(capsys, *options: str) -> dict:
    """The result of a fit as it is printed with --json."""
    code, out, _ = call(capsys, "fit", "t.csv", FORMULA, "--json", *options)
    assert code in (0, 1)

    def no_constant(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(out, parse_constant=no_constant) | {"code": code}


def estimate(record: dict, name: str) -> dict:
    return next(estimate for estimate in record["estimates"] if estimate["name"] == name)


def test_a_fit_prints_its_report_and_exits_with_zero(here, capsys):
    code, out, err = call(capsys, "fit", "t.csv", FORMULA)
    assert (code, err) == (0, "")
    assert "0.537 ± 0.036" in out
    assert "2.92764557" in out


def test_json_is_strict_and_holds_the_same_result(here, capsys):
    record = fitted(capsys)
    assert estimate(record, "w")["value"] == pytest.approx(0.53677192, abs=1e-8)
    assert record["code"] == 0


def test_a_fit_that_does_not_succeed_prints_its_report_and_exits_with_one(here, capsys):
    code, out, err = call(capsys, "fit", "t.csv", FORMULA, "--method", "sgd", "--epochs", "1")
    assert (code, err) == (1, "")
    assert "loss" in out


OPTIONS = {
    # option: what it changes in the result
    "start": (("--start", "w=3,b=-2"), lambda r: (estimate(r, "w")["start"], estimate(r, "w")["assumed"]) == (3, False)),
    "bounds": (("--bounds", "w=0:,b=-20:20"), lambda r: estimate(r, "b")["bounds"] == [-20, 20]),
    "fix": (("--fix", "b=0"), lambda r: estimate(r, "b")["fixed"] and estimate(r, "b")["value"] == 0),
    "tie": (("--tie", "b=-30*w"), lambda r: estimate(r, "b")["tied"] == "-30*w"),
    "sigma column": (("--sigma", "s"), lambda r: r["points"]["sigma"][:2] == [2, 3]),
    "sigma number": (("--sigma", "2"), lambda r: r["points"]["sigma"][:2] == [2, 2]),
    "absolute sigma": (("--sigma", "s", "--absolute-sigma"), lambda r: r["absolute_sigma"] is True),
    "max steps": (("--max-steps", "2"), lambda r: r["steps"] <= 2),
    "validation": (("--validation", "0.2"), lambda r: (r["n"], r["n_validation"]) == (9, 2)),
    "validation file": (("--validation", "t.csv"), lambda r: (r["n"], r["n_validation"]) == (11, 11)),
    "folds": (("--folds", "5"), lambda r: len(r["fold_losses"]) == 5),
    "method": (("--method", "linear"), lambda r: "linear" in r["method"]),
    "epochs": (SGD, lambda r: r["steps"] == 60),
    "learning rate": ((*SGD, "--learning-rate", "0.05"), lambda r: r["history"]["learning_rate"][0] == 0.05),
    "no scale": ((*SGD, "--no-scale"), lambda r: r["status"] == "diverged"),
    "f_scale": ((*SGD, "--loss", "huber", "--f-scale", "0.5"), lambda r: "huber" in r["loss_name"]),
    "scheduler": (
        (*SGD, "--scheduler", "StepLR", "--scheduler-option", "step_size=10", "--scheduler-option", "gamma=0.5"),
        lambda r: r["history"]["learning_rate"][-1] < r["history"]["learning_rate"][0],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("options", "shows"), OPTIONS.values(), ids=OPTIONS.keys())
def test_every_option_of_a_fit_does_what_it_says(options, shows, here, capsys):
    assert shows(fitted(capsys, *options))


@pytest.mark.parametrize(
    "option",
    [("--option", "momentum=0.9"), ("--averaging", "ema"), ("--batch-size", "4"), ("--dtype", "float32"), ("--loss", "huber")],
    ids=lambda option: option[0],
)
def test_an_option_of_the_descent_changes_where_it_ends(option, here, capsys):
    plain, changed = fitted(capsys, *SGD), fitted(capsys, *SGD, *option)
    assert estimate(plain, "w")["value"] != estimate(changed, "w")["value"]


def test_the_seed_chooses_the_split(here, capsys):
    points = [fitted(capsys, "--validation", "0.2", "--seed", seed)["points"] for seed in ("0", "0", "1")]
    held_out = [{u for u, out in zip(p["columns"]["t_u"], p["held_out"], strict=True) if out} for p in points]
    assert held_out[0] == held_out[1] != held_out[2]


def test_early_stopping_watches_the_validation(here, capsys):
    record = fitted(capsys, *SGD, "--epochs", "3000", "--validation", "0.3", "--early-stopping", "3")
    assert record["steps"] < 3000


def test_training_lines_go_to_stderr(here, capsys):
    code, out, err = call(capsys, "fit", "t.csv", FORMULA, *SGD, "--every", "20")
    assert code in (0, 1)
    assert [line.split()[1] for line in err.splitlines()] == ["1", "20", "40", "60"]
    assert out.startswith(FORMULA)


def test_missing_rows_are_dropped_and_counted_when_asked_to(here, capsys):
    (here / "gap.csv").write_text((here / "t.csv").read_text() + "nan,1,2,\n,2,2,\n")
    code, _, err = call(capsys, "fit", "gap.csv", FORMULA)
    assert code == 2
    assert "rows 12, 13" in err
    code, out, _ = call(capsys, "fit", "gap.csv", FORMULA, "--missing", "drop", "--json")
    assert (code, json.loads(out)["dropped"], json.loads(out)["n"]) == (0, 2, 11)


def test_a_chinese_table_is_read_in_its_encoding(here, capsys):
    (here / "温度.csv").write_bytes("读数,温度\n1,2\n2,4.1\n3,6\n".encode("gb18030"))
    code, out, _ = call(capsys, "fit", "温度.csv", "温度 = 斜率*读数 + 截距", "--encoding", "gb18030")
    assert code == 0
    assert "斜率" in out


def test_a_python_file_is_a_door_for_models(here, capsys):
    (here / "models.py").write_text("def celsius(t_u, w, b):\n    return w * t_u + b\n")
    code, out, _ = call(capsys, "fit", "t.csv", "--model", "models.py:celsius", "--target", "t_c")
    assert code == 0
    assert "0.537 ± 0.036" in out


def test_a_formula_without_target_takes_the_option(here, capsys):
    code, out, _ = call(capsys, "fit", "t.csv", "w*t_u + b", "--target", "t_c")
    assert code == 0
    assert "0.537 ± 0.036" in out


@pytest.fixture
def saved(here, capsys) -> str:
    assert call(capsys, "fit", "t.csv", FORMULA, "--save", "fit.json")[0] == 0
    return "fit.json"


def test_files_are_written_and_named_on_stderr(here, capsys):
    code, _, err = call(capsys, "fit", "t.csv", FORMULA, "--save", "fit.json", "--html", "fit.html", "--plot", "fit.svg")
    assert code == 0
    assert err.split() == ["wrote", "fit.json", "wrote", "fit.html", "wrote", "fit.svg"]
    assert gradfit.load("fit.json").values["w"] == pytest.approx(0.53677192)
    assert "<html" in (here / "fit.html").read_text()
    assert "<svg" in (here / "fit.svg").read_text()


def test_predictions_are_printed_as_csv(saved, here, capsys, t_u):
    code, out, err = call(capsys, "predict", saved, "t.csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert (code, err, list(rows[0])) == (0, "", ["t_u", "t_c"])
    expected = gradfit.load(saved).predict(t_u)
    assert [float(row["t_c"]) for row in rows] == expected.tolist()


def test_an_interval_adds_two_columns_and_its_level_counts(saved, here, capsys):
    widths = []
    for options in (("confidence",), ("prediction",), ("prediction", "--level", "0.5")):
        code, out, _ = call(capsys, "predict", saved, "t.csv", "--interval", *options)
        rows = list(csv.DictReader(io.StringIO(out)))
        assert (code, list(rows[0])) == (0, ["t_u", "t_c", "t_c_lower", "t_c_upper"])
        widths.append(float(rows[0]["t_c_upper"]) - float(rows[0]["t_c_lower"]))
    assert widths[1] > widths[0]
    assert widths[1] > widths[2]


def test_a_saved_fit_is_reported_as_it_was(saved, here, capsys):
    _, first, _ = call(capsys, "fit", "t.csv", FORMULA)
    code, again, _ = call(capsys, "report", saved)
    assert (code, again) == (0, first)
    code, out, _ = call(capsys, "report", saved, "--json")
    assert (code, json.loads(out)) == (0, json.loads((here / saved).read_text()))


def test_a_saved_fit_becomes_a_page_and_a_picture(saved, here, capsys):
    code, _, _ = call(capsys, "report", saved, "--html", "fit.html", "--plot", "fit.png")
    assert code == 0
    assert (here / "fit.png").read_bytes().startswith(b"\x89PNG")
    assert "<html" in (here / "fit.html").read_text()


REFUSED = {
    "no data": (("fit",), "Missing argument"),
    "no formula": (("fit", "t.csv"), "give a formula"),
    "two models": (("fit", "t.csv", FORMULA, "--model", "m.py:f"), "one of them"),
    "unknown command": (("guess", "t.csv"), "No such command 'guess'"),
    "unknown option": (("fit", "t.csv", FORMULA, "--epoch", "5"), "No such option"),
    "text for a number": (("fit", "t.csv", FORMULA, "--epochs", "many"), "--epochs"),
    "an argument too many": (("fit", "t.csv", FORMULA, "more"), "unexpected extra argument"),
    "epochs of lm": (("fit", "t.csv", FORMULA, "--epochs", "5"), "epochs"),
    "start without value": (("fit", "t.csv", FORMULA, "--start", "w"), "NAME=VALUE"),
    "start with text": (("fit", "t.csv", FORMULA, "--start", "w=x"), "expected a number"),
    "start twice": (("fit", "t.csv", FORMULA, "--start", "w=1,w=2"), "twice"),
    "start empty": (("fit", "t.csv", FORMULA, "--start", ""), "NAME=VALUE"),
    "bounds without colon": (("fit", "t.csv", FORMULA, "--bounds", "w=1"), "LOWER:UPPER"),
    "bounds with text": (("fit", "t.csv", FORMULA, "--bounds", "w=a:b"), "LOWER:UPPER"),
    "bounds twice": (("fit", "t.csv", FORMULA, "--bounds", "w=0:,w=1:"), "twice"),
    "tie twice": (("fit", "t.csv", FORMULA, "--tie", "b=w", "--tie", "b=2*w"), "twice"),
    "option without value": (("fit", "t.csv", FORMULA, *SGD, "--option", "momentum"), "NAME=VALUE"),
    "option twice": (("fit", "t.csv", FORMULA, *SGD, "--option", "momentum=1", "--option", "momentum=0"), "twice"),
    "option unknown": (("fit", "t.csv", FORMULA, *SGD, "--option", "momentun=1"), "momentun"),
    "option of the call": (("fit", "t.csv", FORMULA, "--option", "loss=huber"), "none of the optimizer's"),
    "option for the model": (("fit", "t.csv", FORMULA, "--option", "model=x"), "none of the optimizer's"),
    "option with its own door": (("fit", "t.csv", FORMULA, *SGD, "--option", "epochs=9"), "none of the optimizer's"),
    "validation file missing": (("fit", "t.csv", FORMULA, "--validation", "v.csv"), "existing file"),
    "validation too large": (("fit", "t.csv", FORMULA, "--validation", "2"), "between 0 and 1"),
    "folds and validation": (("fit", "t.csv", FORMULA, "--folds", "5", "--validation", "0.2"), "choose one"),
    "a seed too large": (("fit", "t.csv", FORMULA, "--validation", "0.2", "--seed", "9" * 40), "seed"),
    "no such folder": (("fit", "t.csv", FORMULA, "--save", "no/fit.json"), "there is no folder 'no'"),
    "a folder as file": (("fit", "t.csv", FORMULA, "--html", "."), "is a folder"),
    "an empty name": (("fit", "t.csv", FORMULA, "--save", ""), "no name of a file"),
    "an impossible name": (("fit", "t.csv", FORMULA, "--save", "a\0b"), "no name of a file"),
    "over the data": (("fit", "t.csv", FORMULA, "--save", "./t.csv"), "is read by the same command"),
    "one file for two": (("fit", "t.csv", FORMULA, "--save", "a.html", "--html", "a.html"), "is written by the same command"),
    "a picture of unknown kind": (("fit", "t.csv", FORMULA, "--plot", "fit.xyz"), "cannot be written as '.xyz'"),
    "model without function": (("fit", "t.csv", "--model", "m.py"), "file.py:function"),
    "model file missing": (("fit", "t.csv", "--model", "m.py:f"), "no file 'm.py'"),
    "model file of data": (("fit", "t.csv", "--model", "t.csv:f"), "no Python file"),
    "predict without file": (("predict", "no.json", "t.csv"), "there is no file 'no.json'"),
    "predict from a table": (("predict", "t.csv", "t.csv"), "no JSON"),
    "level without interval": (("predict", "no.json", "t.csv", "--level", "0.5"), "add --interval"),
    "sigma without interval": (("predict", "no.json", "t.csv", "--sigma", "2"), "add --interval"),
    "report of a folder": (("report", "."), "cannot be read"),
    "report to no folder": (("report", "no.json", "--html", "no/x.html"), "there is no folder 'no'"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_input_gets_one_line_and_exit_two_and_writes_nothing(arguments, message, here, capsys):
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("gradfit: ")
    assert err.count("\n") == 1
    assert message in err
    assert {path.name: path.read_bytes() for path in here.iterdir()} == before


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(:", "SyntaxError"),
        ("raise ValueError('boom')", "ValueError: boom"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("f = 5", "no function 'f'"),
        ("def f(t_u, w): raise ValueError('boom')", "boom"),
    ],
)
def test_a_model_file_that_fails_gets_one_line_and_exit_two(source, message, here, capsys):
    (here / "m.py").write_text(source)
    code, out, err = call(capsys, "fit", "t.csv", "--model", "m.py:f", "--target", "t_c")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_predicting_with_a_column_missing_is_refused(saved, here, capsys):
    (here / "new.csv").write_text("t_v\n1\n")
    code, out, err = call(capsys, "predict", saved, "new.csv")
    assert (code, out) == (2, "")
    assert "Did you mean 't_v'" in err


def test_an_old_file_stays_when_the_fit_is_refused(here, capsys):
    (here / "fit.json").write_text("old")
    assert call(capsys, "fit", "t.csv", "t_c = w*t_u + 1/0", "--save", "fit.json")[0] == 2
    assert (here / "fit.json").read_text() == "old"


def test_an_old_file_stays_when_the_disk_is_full_and_the_result_is_seen(here, capsys, monkeypatch):
    (here / "fit.json").write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gradfit.data.files.os.fsync", full)
    code, out, err = call(capsys, "fit", "t.csv", FORMULA, "--save", "fit.json")
    assert code == 2
    assert "0.537 ± 0.036" in out
    assert "No space left on device" in err
    assert (here / "fit.json").read_text() == "old"
    assert sorted(path.name for path in here.iterdir()) == ["fit.json", "t.csv"]


def test_without_arguments_the_help_is_shown(capsys):
    code, out, err = call(capsys)
    assert (code, err) == (0, "")
    assert out.startswith("Usage: gradfit ")


def test_text_from_the_command_line_is_never_run(here, capsys):
    code, _, err = call(capsys, "fit", "t.csv", "t_c = __import__('os').mkdir('owned')*t_u")
    assert code == 2
    assert "plain name" in err
    assert not (here / "owned").exists()


def in_a_new_process(code: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, **options)


def test_help_imports_neither_torch_nor_numba():
    done = in_a_new_process(
        "import sys; from gradfit.cli import main; code = main(['fit', '--help']);"
        "print(sorted({'torch', 'numba', 'numpy', 'matplotlib'} & set(sys.modules)), code)"
    )
    assert done.stdout.splitlines()[-1] == "[] 0", done.stderr


FIT = "import sys; from gradfit.cli import main; sys.exit(main(['fit', 't.csv', 't_c = w*t_u + b']))"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_to_a_full_disk_ends_with_one_line(here):
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", FIT], stdout=full, stderr=subprocess.PIPE, text=True, check=False, cwd=here)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "No space left" in done.stderr


def test_a_narrow_terminal_shows_a_question_mark_for_letters_it_does_not_have(here):
    narrow = in_a_new_process(FIT, env={"PYTHONIOENCODING": "ascii", "PATH": ""}, cwd=here)
    assert (narrow.returncode, narrow.stderr) == (0, "")
    assert "0.537 ? 0.036" in narrow.stdout


def test_columns_of_the_prediction_are_exact_to_the_last_bit(saved, here, capsys):
    (here / "new.csv").write_text("t_u\n0.1\n1e-300\n12345678.900000001\n")
    _, out, _ = call(capsys, "predict", saved, "new.csv")
    assert [float(row["t_u"]) for row in csv.DictReader(io.StringIO(out))] == [0.1, 1e-300, 12345678.900000001]
    assert np.isfinite([float(row["t_c"]) for row in csv.DictReader(io.StringIO(out))]).all()


def test_an_interrupted_fit_says_so_in_one_line_and_writes_nothing(here, monkeypatch, capsys):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gradfit.api.fit", interrupted)
    place = here / "fit.json"
    assert cli.main(["fit", "t.csv", FORMULA, "--save", str(place)]) == 130
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "gradfit: interrupted\n")
    assert not place.exists()
