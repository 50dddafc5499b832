"""Bad input through the public face: one clear error of gradfit's own, and nothing of the caller's is changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import gradfit
from gradfit.errors import DataError, FormulaError, GradfitError, ModelError, OptionError, ParameterError

X = np.array([35.7, 55.9, 58.2, 81.9, 56.3, 48.9, 33.9, 21.8, 48.4, 60.4, 68.4])
Y = np.array([0.5, 14.0, 15.0, 28.0, 11.0, 8.0, 3.0, -4.0, 6.0, 13.0, 21.0])
TABLE = {"t_u": X, "t_c": Y}
LINE = "t_c = w*t_u + b"


def celsius(t_u, w, b):
    return w * t_u + b


def raises(t_u, w):
    raise RuntimeError("the instrument is off")


def with_gap(place: int, value: float) -> dict[str, np.ndarray]:
    broken = X.copy()
    broken[place] = value
    return {"t_u": broken, "t_c": Y}


DATA = {
    "missing file": (lambda: gradfit.fit(LINE, data="no.csv"), "there is no file 'no.csv'"),
    "a folder": (lambda: gradfit.fit(LINE, data="."), "is a folder"),
    "an unknown kind of file": (lambda: gradfit.fit(LINE, data="pyproject.toml"), "cannot tell the format"),
    "unknown target": (lambda: gradfit.fit(celsius, data=TABLE, target="t_x"), "unknown target column 't_x'"),
    "no target": (lambda: gradfit.fit(celsius, data=TABLE), "which column is the target"),
    "text": (lambda: gradfit.fit(celsius, X, ["a"] * 11), "row 1 of 11, holds 'a'"),
    "NaN": (lambda: gradfit.fit(LINE, data=with_gap(3, np.nan)), r"t_u 1 \(row 4\), of 11 rows"),
    "infinity": (lambda: gradfit.fit(LINE, data=with_gap(0, -np.inf)), r"t_u 1 \(row 1\)"),
    "empty": (lambda: gradfit.fit(celsius, [], []), "empty"),
    "too few points": (lambda: gradfit.fit(celsius, X[:1], Y[:1]), "1 rows cannot determine 2 parameters"),
    "too few after dropping": (
        lambda: gradfit.fit(celsius, [1, None, None], [1, 2, 3], missing="drop"),
        "1 rows cannot determine 2",
    ),
    "lengths": (lambda: gradfit.fit(celsius, X, Y[:5]), "11 values and .* has 5"),
    "sigma of another length": (lambda: gradfit.fit(celsius, X, Y, sigma=[1, 2]), "2 values for 11 points"),
    "sigma zero": (lambda: gradfit.fit(celsius, X, Y, sigma=np.zeros(11)), "zero or negative in 11 of 11"),
    "sigma negative": (lambda: gradfit.fit(celsius, X, Y, sigma=-1), "zero or negative"),
    "no data": (lambda: gradfit.fit(celsius, X), "no data to fit"),
    "both": (lambda: gradfit.fit(celsius, X, Y, data=TABLE, target="t_c"), "both arrays and data="),
    "a list as table": (lambda: gradfit.fit(LINE, data=[X, Y]), "expected a dict"),
    "validation too small": (lambda: gradfit.fit(celsius, X, Y, validation=0.01), "is no row"),
    "validation row twice": (lambda: gradfit.fit(celsius, X, Y, validation=[1, 1]), "twice"),
    "folds": (lambda: gradfit.fit(celsius, X, Y, folds=12), "folds is 12"),
}  # fmt: skip

MODEL = {
    "unknown column for a function": (
        lambda: gradfit.fit(celsius, data={"u": X, "t_c": Y}, target="t_c"),
        "no argument of the model",
    ),
    "no model": (lambda: gradfit.fit(5, X, Y), "expected a function"),
    "raises": (lambda: gradfit.fit(raises, X, Y), "the instrument is off"),
    "wrong shape": (lambda: gradfit.fit(lambda t_u, w: w * t_u[:3], X, Y), "shape"),
    "does not depend": (lambda: gradfit.fit(lambda t_u, w, b: w * t_u + 0 * b, X, Y), "does not depend on b"),
    "no parameters": (lambda: gradfit.fit(lambda t_u: t_u, X, Y), "has no parameters"),
    "star arguments": (lambda: gradfit.fit(lambda *a: a[0], X, Y), "takes"),
    "target as input": (lambda: gradfit.fit("t_c = w*t_c", data=TABLE), "is the target and also an input"),
    "a slip": (lambda: gradfit.fit("t_c = w*t_v + b", data=TABLE), "Did you mean 't_u'"),
}

FORMULA = {
    "too long": (lambda: gradfit.fit("t_c = " + "w*t_u + " * 300 + "b", data=TABLE), "at most 2000"),
    "too deep": (lambda: gradfit.fit("t_c = " + "(" * 90 + "w*t_u" + ")" * 90, data=TABLE), "nested"),
    "import": (lambda: gradfit.fit("t_c = __import__('os')*t_u", data=TABLE), "unknown function"),
    "attribute": (lambda: gradfit.fit("t_c = w*t_u.real", data=TABLE), "no dot"),
    "a tower": (lambda: gradfit.fit("t_c = w*t_u + 9**9**9", data=TABLE), "finite real number"),
    "no target": (lambda: gradfit.fit("w*t_u", data=TABLE), "which column"),
}

PARAMETER = {
    "start outside": (lambda: gradfit.fit(celsius, X, Y, start={"w": 5}, bounds={"w": (0, 1)}), "outside its bounds"),
    "reversed": (lambda: gradfit.fit(celsius, X, Y, bounds={"w": (1, 0)}), "lower < upper"),
    "unknown": (lambda: gradfit.fit(celsius, X, Y, start={"v": 5}), "unknown parameter 'v'"),
    "circle": (lambda: gradfit.fit(celsius, X, Y, tied={"w": "b", "b": "w"}), "in a circle"),
}

OPTION = {
    "unknown option": (lambda: gradfit.fit(celsius, X, Y, max_step=5), "unknown option.*max_step"),
    "unknown method": (lambda: gradfit.fit(celsius, X, Y, method="lmm"), "unknown method 'lmm'"),
    "option of another method": (lambda: gradfit.fit(celsius, X, Y, epochs=5), "epochs"),
    "unknown loss": (lambda: gradfit.fit(celsius, X, Y, loss="hubber"), "unknown loss 'hubber'"),
    "sparse": (lambda: gradfit.fit(celsius, X, Y, method="sparseadam"), "sparse"),
    "engine": (lambda: gradfit.fit(celsius, X, Y, engine="abacus"), "unknown engine"),
    "missing": (lambda: gradfit.fit(celsius, X, Y, missing="skip"), "unknown value of missing"),
    "absolute without sigma": (lambda: gradfit.fit(celsius, X, Y, absolute_sigma=True), "no sigma was given"),
}

CASES = [
    pytest.param(kind, *case, id=f"{kind.__name__}: {name}")
    for kind, table in (
        (DataError, DATA),
        (ModelError, MODEL),
        (FormulaError, FORMULA),
        (ParameterError, PARAMETER),
        (OptionError, OPTION),
    )
    for name, case in table.items()
]


@pytest.mark.parametrize(("kind", "call", "message"), CASES)
def test_bad_input_is_refused_by_an_error_that_says_what_came(kind: type[GradfitError], call: Any, message: str):
    with pytest.raises(kind, match=message) as caught:
        call()
    assert len(str(caught.value)) > 30, "what came, what was expected, what to do"


def test_a_fit_changes_nothing_of_the_callers():
    x, y, sigma = X.copy(), Y.copy(), np.ones(11)
    start, tensor = {"w": 1.0}, torch.tensor([1.0, 2.0], requires_grad=True)
    gradfit.fit(celsius, x, y, sigma=sigma, start=start)
    gradfit.fit(lambda t, w: w * t, tensor, [2.0, 4.0])
    assert (x == X).all()
    assert (y == Y).all()
    assert (sigma == 1).all()
    assert start == {"w": 1.0}
    assert tensor.grad is None


def test_dropped_rows_are_counted_in_the_result():
    assert gradfit.fit(LINE, data=with_gap(3, np.nan), missing="drop").record.dropped == 1


@pytest.mark.parametrize("source", [list, tuple, np.array, torch.tensor], ids=lambda source: source.__name__)
def test_the_thermometer_is_the_same_from_every_kind_of_array(source):
    fit = gradfit.fit(celsius, source(X), source(Y))
    assert fit.values == pytest.approx({"w": 0.53677192, "b": -17.3047855}, abs=1e-7)
