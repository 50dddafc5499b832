"""Training lines and the progress bar."""

from __future__ import annotations

import io
import math
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

import gradfit
from gradfit.drivers import monitor
from gradfit.drivers.monitor import Monitor, Rate, counted, number, training_line
from gradfit.methods.method import Evaluation


def row(loss=1.5, validation=math.nan, p=2):
    return Evaluation(loss, validation, [0.5] * p, [2.0] * p, {})


def test_a_line_reads_as_the_notebooks():
    line = training_line(("w", "b"), "epoch", 500, row())
    assert line == "epoch 500  loss 1.500000  w 0.5000  b 0.5000  grad_w 2.0000  grad_b 2.0000"
    assert "  validation 2.000000  w" in training_line(("w", "b"), "epoch", 500, row(validation=2.0))


def test_many_parameters_are_left_out_of_the_line():
    names = tuple("abcdefg")
    assert training_line(names, "epoch", 1, row(p=7)) == "epoch 1  loss 1.500000"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(7.8601153, "7.860115"), (0.0, "0.000000"), (-3e-9, "-3.000000e-09"), (2.5e12, "2.500000e+12"), (math.nan, "nan"), (math.inf, "inf")],
)  # fmt: skip
def test_numbers_show_digits_in_any_unit(value, shown):
    assert number(value, 6) == shown


def test_lines_come_at_the_first_step_and_every_so_many():
    out = io.StringIO()
    with Monitor(("w", "b"), 10, unit="epoch", every=4, out=out, progress=False) as seen:
        for step in range(1, 11):
            seen(step, row())
    assert [line.split()[1] for line in out.getvalue().splitlines()] == ["1", "4", "8"]


def test_lines_go_to_stdout_unless_told_otherwise(capsys, t_u, t_c):
    options = {"method": "sgd", "epochs": 10, "every": 5, "on_failure": "ignore"}
    gradfit.fit(lambda x, w, b: w * x + b, t_u, t_c, **options)
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 3
    assert printed.err == ""
    out = io.StringIO()
    gradfit.fit(lambda x, w, b: w * x + b, t_u, t_c, out=out, **options)
    assert out.getvalue() == printed.out


def test_a_bar_appears_only_on_long_work_and_is_taken_down(monkeypatch, capsys):
    with Monitor(("w", "b"), 10, unit="epoch", every=None, out=None, progress=True) as short:
        short(1, row())
        assert short.bar is None
    monkeypatch.setattr(monitor, "PATIENCE", -1.0)
    with Monitor(("w", "b"), 10, unit="epoch", every=None, out=None, progress=True) as long:
        long(1, row())
        assert long.bar is not None
        assert long.bar.live.is_started
    assert not long.bar.live.is_started
    assert capsys.readouterr().out == ""


def test_no_terminal_no_bar(monkeypatch, capsys):
    monkeypatch.setattr(monitor, "PATIENCE", -1.0)
    with Monitor(("w", "b"), 10, unit="epoch", every=None, out=None, progress=None) as silent:
        silent(1, row())
    assert silent.bar is None
    assert capsys.readouterr().err == ""


def test_the_bar_of_many_fits_says_how_fast_they_are_made_and_how_long_it_will_take(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(monitor.time, "monotonic", lambda: now[0])
    monkeypatch.setenv("COLUMNS", "120")
    out = io.StringIO()
    monkeypatch.setattr(
        monitor, "Console", lambda stderr: Console(file=out, force_terminal=True, width=120, get_time=lambda: now[0])
    )
    with counted(10_000, "fitting", True, unit="fits", done=4_000) as advance:
        for _ in range(30):
            now[0] += 0.1
            advance(100)
    shown = out.getvalue()
    assert "fitting" in shown
    assert "7000/10000" in shown
    assert "1,000 fits/s" in shown
    assert re.search("0:00:0[34]", shown)


def test_a_bar_without_end_costs_nothing_between_two_looks(monkeypatch):
    calls = []
    monkeypatch.setattr(monitor.Progress, "update", lambda *_, **told: calls.append(told["advance"]))
    with counted(10**9, "fitting", True, unit="fits") as advance:
        for _ in range(2_000):
            advance(1)
    assert len(calls) < 20


@pytest.mark.parametrize(
    ("speed", "shown"), [(None, ""), (0.123, "0.12 fits/s"), (12.3, "12 fits/s"), (2.1e6, "2,100,000 fits/s")]
)
def test_rates_are_told_with_the_digits_that_matter(speed, shown):
    assert Rate("fits").render(SimpleNamespace(speed=speed)).plain == shown
