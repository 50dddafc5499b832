"""What a hostile user would try: each case ends in an error of gradfit's own that says what came, what was expected and what to do, or
in a result that is right, or in one that says itself what is wrong with it. None is silent and wrong.

Oracles: exact rational arithmetic, numpy's conversion of the same numbers, the same fit on rows that were chosen by hand.
"""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import functools
import math
import multiprocessing
import os
import re
import threading
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose

import gradfit
from gradfit.cli import main
from gradfit.errors import (
    DataError,
    FitWarning,
    FormulaError,
    GradfitError,
    ModelError,
    OptionError,
    ParameterError,
    StorageError,
)

X = np.array([35.7, 55.9, 58.2, 81.9, 56.3, 48.9, 33.9, 21.8, 48.4, 60.4, 68.4])
Y = np.array([0.5, 14.0, 15.0, 28.0, 11.0, 8.0, 3.0, -4.0, 6.0, 13.0, 21.0])
N = len(X)
COUNTS = np.array([0.0, 1, 3, 2, 0, 1, 5, 7, 3, 2, 1])
ONES = np.ones(N)
BIG = 2**53 + np.arange(1, N + 1)
ENGINES = ["auto", "torch"]

Call = Callable[..., Any]


def line(x, w, b):
    return w * x + b


def fitting(*arrays: Any, **settings: Any) -> Call:
    """Give a call of ``fit`` that still takes an engine."""
    return functools.partial(gradfit.fit, *arrays, **settings)


def on_line(x: Any = X, y: Any = Y, **settings: Any) -> Call:
    return fitting(line, x, y, **settings)


def with_value(value: Any, values: np.ndarray = X, row: int = 3) -> np.ndarray:
    changed = values.copy()
    changed[row] = value
    return changed


def masked(values: np.ndarray, row: int = 3) -> np.ma.MaskedArray:
    return np.ma.masked_array(values, mask=np.arange(N) == row)


# --- refused -----------------------------------------------------------------------------------------------------------


def in_place(x, w, b):
    x -= 1.0
    return w * x + b


def in_place_on_arrays(x, w, b):
    if not isinstance(x, np.ndarray):
        raise TypeError("arrays only")
    np.multiply(x, 2.0, out=x)
    return w * x + b


def sorting(x, w, b):
    x.sort()  # in place on an array, and not on a tensor
    return w * x + b


CALLS = [0]


def counting(x, w, b):
    CALLS[0] += 1
    return w * x + b + CALLS[0]


def shape_of_parameter(x, n, b):
    return sum(x**power for power in range(int(n))) * b


async def later(x, w, b):
    return w * x + b


def one_by_one(x, w, b):
    yield from w * x + b


def with_default_object(x, w, b=float("nan")):
    return w * x + b


class Tuple(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(1, 1)

    def forward(self, x):
        return self.inner(x), x


class ComplexWeight(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, dtype=torch.complex64))

    def forward(self, x):
        return (x * self.weight).real


ONE_ROW = "expected a number for each row"
FINITE = "NaN, empty or infinite"

DATA: dict[str, tuple[Call, str, str, str]] = {
    "NaN": (on_line(with_value(np.nan)), FINITE, r"x 1 \(row 4\), of 11 rows", "missing="),
    "infinity": (on_line(y=with_value(np.inf, Y)), FINITE, r"y 1 \(row 4\)", "missing="),
    "text": (on_line(["a"] * N), "holds 'a'", "expected a number", "Clean the column"),
    "decimal commas": (on_line(["1,5"] * N), "holds '1,5'", "expected a number", "Write a point"),
    "digits in groups": (on_line(["1_0"] * N), "holds '1_0'", "expected a number", "Clean the column"),
    "dates": (on_line(pd.date_range("2020", periods=N)), "dates or durations", "numbers first", "seconds since"),
    "durations": (on_line(pd.timedelta_range("1s", periods=N)), "dates or durations", "numbers first", "seconds since"),
    "date objects": (on_line([datetime.date(2020, 1, 1)] * N), "holds datetime", "expected a number", "Clean the column"),
    "complex": (on_line(X + 0j), "holds complex", "real and imaginary", "as real columns"),
    "complex objects": (on_line(y=[1j] * N), "holds complex", "real and imaginary", "as real columns"),
    "objects": (on_line([object()] * N), "holds <object", "expected a number", "Clean the column"),
    "pandas NA": (on_line(pd.Series([*X[:3], pd.NA, *X[4:]], dtype="Float64")), FINITE, r"x 1 \(row 4\)", "missing="),
    "a masked value": (on_line(masked(X)), FINITE, r"x 1 \(row 4\)", "missing="),
    "a masked target": (on_line(y=masked(Y)), FINITE, r"y 1 \(row 4\)", "missing="),
    "a masked sigma": (on_line(sigma=masked(ONES)), FINITE, r"sigma 1 \(row 4\)", "missing="),
    "masked values in a list": (on_line([*X[:3], np.ma.masked, *X[4:]]), FINITE, r"x 1 \(row 4\)", "missing="),
    "a list of masked arrays": (on_line(y=list(masked(Y)[:, None])), FINITE, r"y 1 \(row 4\)", "missing="),
    "masked objects": (on_line(np.array([*X[:3], np.ma.masked, *X[4:]], dtype=object)), FINITE, r"x 1 \(row 4\)", "missing="),
    "all masked": (on_line(np.ma.masked_all(N), missing="drop"), "no row is complete", "of 11 rows", "nothing is left"),
    "a row for a column": (on_line(y=Y[None]), r"y has shape \(1, 11\)", "expected one value per row", r"\(n,\)"),
    "two targets": (on_line(y=np.stack([Y, Y], 1)), r"y has shape \(11, 2\)", "expected one value per row", r"\(n,\)"),
    "a column of inputs": (on_line(X[:, None]), r"gave shape \(11, 1\)", r"expected \(11,\)", "one value per row"),
    "three dimensions": (on_line(X[:, None, None]), r"shape \(11, 1, 1\)", r"expected \(n,\)", "rows first"),
    "ragged": (on_line([[1, 2], [3]] * 5 + [[1]]), "x is ragged", "different lengths", "one number per row"),
    "a number": (on_line(3.0, 4.0), "x is a single number", "expected", "one value per row"),
    "empty": (on_line([], []), "y is empty", "0 rows", "at least as many rows as parameters"),
    "None": (on_line(None), "x is None", "expected", "array of numbers"),
    "text for an array": (on_line("abc"), "x is 'abc'", "expected", "array of numbers"),
    "a generator": (on_line(v for v in X), "of type generator", ONE_ROW, "make a list"),
    "a set": (on_line(set(X.tolist())), "of type set", ONE_ROW, "make a list"),
    "a map": (on_line(map(float, X)), "of type map", ONE_ROW, "make a list"),
    "a function": (on_line(lambda: X), "of type function", ONE_ROW, "make a list"),
    "a frame for a column": (on_line(pd.DataFrame({"x": X})), "x is a table", "give it as data=", "or pass one column"),
    "records": (on_line(np.zeros(N, dtype=[("x", float)])), "x has values of type", "expected", "real numbers"),
    "an object that gives no array": (on_line(type("Off", (), {"__array__": lambda self, *a, **k: 1 / 0})()), "of type Off", "division", "convert it"),
    "a tensor without numbers": (on_line(torch.empty(N, device="meta")), "of type Tensor", "gives no array", "convert it"),
    "lengths": (on_line(X, Y[:5]), "x has 11 values and y has 5", "arrays", "of one length"),
    "whole numbers that are rounded": (on_line(BIG), "9007199254740993, which float64 rounds", r"up to 2\*\*53", "Subtract an offset"),
    "a rounded target": (on_line(y=BIG), "y, row 1 of 11", r"expected numbers up to 2\*\*53", "Subtract an offset"),
    "rounded unsigned": (on_line(np.full(N, 2**64 - 1, dtype=np.uint64)), "which float64 rounds", "expected numbers", "Subtract"),
    "rounded objects": (on_line(np.array([2**70 + i for i in range(N)], dtype=object)), "row 2 of 11", "expected numbers", "Subtract"),
    "beyond float64": (on_line([10**400] + [1] * 10), "row 1 of 11", "beyond float64", "rescale it"),
    "series in another order": (on_line(pd.Series(X), pd.Series(Y[::-1], index=range(N)[::-1])), "label .*0.* in different rows", "expected one order", r"reindex|to_numpy"),
    "series shifted by one": (on_line(pd.Series(X)[1:], pd.Series(Y)[:-1]), "label", "expected one order", "Align them"),
    "a sigma in another order": (on_line(pd.Series(X), pd.Series(Y), sigma=pd.Series(ONES, index=range(N)[::-1])), "x and sigma", "expected one order", "Align them"),
    "tiny targets": (on_line(y=Y * 1e-300), "of size 2.8e-299 .row 4.", "expected 1e-140 or more", "other units"),
    "sigma all 1e300": (on_line(sigma=1e300), "y / sigma are of size", "expected 1e-140 or more", "other units"),
    "a sigma of 0": (on_line(sigma=with_value(0.0, ONES)), r"zero or negative in 1 of 11 rows \(row 4\)", "is positive", "Leave sigma out"),
    "a negative sigma": (on_line(sigma=with_value(-1.0, ONES)), "zero or negative in 1 of 11", "is positive", "Leave sigma out"),
    "minus zero": (on_line(sigma=with_value(-0.0, ONES)), "zero or negative in 1 of 11", "is positive", "Leave sigma out"),
    "a NaN sigma": (on_line(sigma=with_value(np.nan, ONES)), FINITE, r"sigma 1 \(row 4\)", "missing="),
    "an infinite sigma": (on_line(sigma=with_value(np.inf, ONES)), FINITE, r"sigma 1 \(row 4\)", "missing="),
    "sigma of another length": (on_line(sigma=[1.0, 2.0]), "sigma has 2 values", "for 11 points", "give one per point"),
    "sigma of a wrong shape": (on_line(sigma=np.ones((N, 2))), r"shape \(11, 2\) for 11 points", "expected", "standard deviations"),
    "a singular covariance": (on_line(sigma=np.ones((N, N))), "no covariance matrix", "not positive definite", "check its entries"),
    "a complex sigma": (on_line(sigma=1j * ONES), "sigma holds complex", "real and imaginary", "real columns"),
    "sigma and weights": (on_line(sigma=ONES, weights=ONES), "both sigma and weights", "up to a factor", "pass one of them"),
    "negative weights": (on_line(weights=with_value(-1.0, ONES)), "negative in 1 of 11 rows", "expected", "0 or more"),
    "no weight at all": (on_line(weights=0 * ONES), "all 11 weights are 0", "nothing is left", "positive weight"),
    "negative counts": (on_line(y=COUNTS - 1, loss="poisson"), "y has 2 negative values", "counts are", "0 or more"),
    "no counts": (on_line(y=0 * COUNTS, loss="poisson"), "y is 0 in all 11 rows", "no estimate", "Give rows with counts"),
    "counts with sigma": (on_line(y=COUNTS, loss="poisson", sigma=ONES), "sigma was given", "no use for it", "leave one of them out"),
    "fewer points than parameters": (on_line(X[:1], Y[:1]), "1 rows cannot", "2 parameters", "add data, or fix some"),
    "two columns of one name": (fitting("y = w*x + b", data=pd.DataFrame(np.ones((3, 3)), columns=["x", "x", "y"])), "'x'", "unique", "mend the frame"),
    "two names of one spelling": (fitting("y = w*x + b", data={1: X, "1": X, "x": X, "y": Y}), "two columns", "called '1'", "rename one"),
    "a number for a column": (fitting("y = w*x + b*z", data={"x": X, "y": Y, "z": 3.0}), "z is a single number", "expected", "one value per row"),
    "a number for a target's name": (on_line(target=5), "target is 5", "expected a name", "leave it out"),
    "no validation row": (on_line(validation=0.01), "validation=0.01 of 11 rows", "is no row", "raise the fraction"),
    "all rows to validate": (on_line(validation=list(range(N))), "0 rows to train on", "expected", "some of each"),
    "validation row -1": (on_line(validation=[-1]), "names row -1", "the data have", "rows 0 to 10"),
    "one fold": (on_line(folds=1), "folds is 1", "expected a whole number", "from 2"),
}  # fmt: skip
for _fraction in (0, 1, -0.1, 1.5, math.nan):
    DATA[f"a validation of {_fraction}"] = (
        on_line(validation=_fraction),
        f"validation is {_fraction:g}",
        "expected a fraction",
        "or a data set",
    )

ONCE = "draw its random numbers once|keep no state"
MODEL: dict[str, tuple[Call, str, str, str]] = {
    "changes its data": (fitting(in_place, X, Y), "in_place changes its input 'x'", "in place", "compute a new array"),
    "changes its arrays": (fitting(in_place_on_arrays, X, Y), "changes its input 'x'", "in place", "compute a new array"),
    "sorts its data": (fitting(sorting, X, Y), "sorting changes its input 'x'", "in place", "compute a new array"),
    "gives a number": (fitting(lambda x, w: w, X, Y), r"gave shape \(\)", r"expected \(11,\)", "one value per row"),
    "gives a column": (fitting(lambda x, w: (w * x)[:, None], X, Y), r"gave shape \(11, 1\)", r"expected \(11,\)", "one value per row"),
    "gives a matrix": (fitting(lambda x, w: w * x[:, None] + x[None], X, Y), r"gave shape \(11, 11\)", r"expected \(11,\)", "one value per row"),
    "gives complex numbers": (fitting(lambda x, w, b: w * x + b * 1j, X, Y), "complex128", "expected", "real floating-point"),
    "gives whole numbers": (fitting(lambda x, w, b: (w * x + b).long(), X, Y), "int64", "expected", "real floating-point"),
    "gives nothing": (fitting(lambda x, w, b: None, X, Y), "gave None", "does it end", "with a return"),
    "gives two things": (fitting(lambda x, w, b: [w * x, b * x], X, Y), "gave shape", r"expected \(11,\)", "one value per row"),
    "gives a dict": (fitting(lambda x, w, b: {"y": w * x + b}, X, Y), "gave dict", "expected an array", "one per row"),
    "is asynchronous": (fitting(later, X, Y), "later is async", "expected numbers", "without async"),
    "is a generator": (fitting(one_by_one, X, Y), "gave generator", "expected an array", "one per row"),
    "raises": (fitting(lambda x, w: 1 / 0, X, Y), "ZeroDivisionError", "cannot be evaluated", "at the start"),
    "leaves Python": (fitting(lambda x, w: exit(3), X, Y), "SystemExit|NameError", "cannot be evaluated", "at the start"),
    "is random": (fitting(lambda x, w, b: w * x + b + np.random.default_rng().normal(size=N), X, Y), "other values", "the same parameters", ONCE),
    "is a little random": (fitting(lambda x, w, b: w * x + b + 1e-6 * torch.rand(N), X, Y), "other values", "the same parameters", ONCE),
    "keeps count": (fitting(counting, X, Y), "other values", "the same parameters", ONCE),
    "rounds a parameter": (fitting(lambda x, w, b: np.round(w) * x + b, X, Y), "does not depend on w", "no prediction changes", "Remove it"),
    "takes a whole part": (fitting(lambda x, w, b: int(w) * x + b, X, Y), "does not depend on w", "no prediction changes", "Remove it"),
    "changes its shape with a parameter": (fitting(shape_of_parameter, X, Y), r"gave shape|near the start", "", "one value per row|start"),
    "ignores a parameter": (fitting(lambda x, w, b: w * x + 0 * b, X, Y), "does not depend on b", "no prediction changes", "Remove it"),
    "is only zero times": (on_line(0 * X), "does not depend on w", "no prediction changes", "Remove it"),
    "swallows errors": (fitting(lambda x, w: x @ w if x is w else np.zeros(N), X, Y), "does not depend on w", "no prediction", "Remove it"),
    "takes any number": (fitting(lambda x, *p: p[0] * x, X, Y), r"takes \*p", "name each parameter", "one vector parameter"),
    "takes keywords": (fitting(lambda x, **p: p["w"] * x, X, Y), r"takes \*p", "name each parameter", "one vector parameter"),
    "has no parameters": (fitting(np.exp, X, Y), "exp has no parameters", "needs a name to fit", "such as w"),
    "has no signature": (fitting(math.hypot, X, Y), "arguments of hypot", "cannot be read", "wrap it"),
    "is a class": (fitting(torch.nn.Linear, X, Y), "is the class Linear", "expected a function or an object", r"pass Linear\(...\)"),
    "is a number": (fitting(5, X, Y), "model is 5", "expected a function", "formula, or a torch module"),
    "is vectorized": (fitting(np.vectorize(line), X, Y), r"takes \*args", "name each parameter", "one vector parameter"),
    "reads its target": (fitting(lambda x, y, w: w * x + y, data={"x": X, "y": Y}, target="y"), "'y' is the target", "also an input", "does not read"),
    "is lazy": (fitting(torch.nn.LazyLinear(1), X, Y), "is lazy", "has no shape yet", "call the module once"),
    "has no numbers": (fitting(torch.nn.Linear(1, 1, device="meta"), X, Y), "meta device", "has no numbers", "to_empty"),
    "has complex weights": (fitting(ComplexWeight(), X, Y), "complex parameters", "expected real ones", "real and imaginary part"),
    "is a module of two outputs": (fitting(Tuple(), X, Y), "gave tuple", "where a tensor of 11", "one number per row"),
    "is a module of another width": (fitting(torch.nn.Linear(2, 1), X, Y), "RuntimeError", "at the start", "11x1 and 2x1"),
    "has a loss that changes the target": (on_line(loss=lambda p, t: (p - t.mul_(2)) ** 2), "changes its target", "in place", "compute a new tensor"),
    "has a loss of all pairs": (on_line(loss=lambda p, t: (p[:, None] - t[None]) ** 2), r"gave shape \(11, 11\)", "expected one number", "or one per row"),
    "has a loss without a gradient": (on_line(loss=lambda p, t: t), "does not depend on the prediction", "torch functions", "no gradient"),
}  # fmt: skip

CIRCLE = ("in a circle", "at least one", "must be free")
PAIR = "each a number or None"
PARAMETER: dict[str, tuple[Call, str, str, str]] = {
    "tied to itself": (on_line(tied={"w": "2*w"}), *CIRCLE),
    "tied in a circle": (on_line(tied={"w": "b", "b": "w"}), *CIRCLE),
    "tied and fixed": (on_line(tied={"w": "b"}, fixed={"w": 1}), "both fixed and tied", "expected one", "leave the other out"),
    "tied and bounded": (on_line(tied={"w": "b"}, bounds={"w": (0, 1)}), "w is tied and has bounds", "bound the parameters", "computed from"),
    "all at once": (on_line(tied={"w": "b"}, fixed={"w": 1}, start={"w": 5}, bounds={"w": (0, 1)}), "w is", "", "out|choose"),
    "tied to NaN": (on_line(tied={"w": "sqrt(b)"}, start={"b": -1}), r"'sqrt\(b\)', which is nan .*b = -1", "expected a finite", "Start where"),
    "tied to infinity": (on_line(tied={"w": "1/(b-b)"}), "which is inf", "expected a finite number", "Start where"),
    "tied to a vector": (on_line(tied={"w": lambda b: torch.stack([b, b])}), r"gave shape \(11, 2\)", "expected", "one value per row"),
    "tied to nothing": (on_line(tied={"w": lambda b: None}), "gave None", "expected a real number", "let it return one"),
    "tied to text": (on_line(tied={"w": lambda b: "a"}), "gave 'a'", "expected a real number", "let it return one"),
    "tied to complex": (on_line(tied={"w": lambda b: b * 1j}), "gave torch.complex128", "expected a real number", "real part"),
    "tied by what raises": (on_line(tied={"w": lambda b: 1 / 0}), "ZeroDivisionError", "at the start", "torch functions"),
    "tied by numpy": (on_line(tied={"w": lambda b: np.sqrt(b)}), "tied to the function", "raised|plain number", "formula such as"),
    "tied by a plain number": (on_line(tied={"w": lambda b: 2 * b.item()}), "turns b into a plain number", "expected plain arithmetic", "formula such as"),
    "tied by any number": (on_line(tied={"w": lambda *b: 1}), "arguments cannot be read", "write a formula", r"2\*w"),
    "tied to nobody": (on_line(tied={"w": "q"}), "unknown parameter 'q'", "known: b, w", "tied to it"),
    "tied to data": (on_line(tied={"w": "x*b"}), "unknown parameter 'x'", "known: b, w", "tied to it"),
    "tied to an equation": (on_line(tied={"w": "w=2*b"}), "'w=2", "only the right side", "without '='"),
    "tied to code": (on_line(tied={"w": "__import__('os')"}), "unknown function '__import__'", "known", "abs"),
    "tied to a number": (on_line(tied={"w": 3}), "tied to 3", "expected a formula", r"2\*w"),
    "bounds reversed": (on_line(bounds={"w": (1, 0)}), r"bounds of w are \(1.0, 0.0\)", "lower < upper", "Swap them"),
    "bounds equal": (on_line(bounds={"w": (1, 1)}), r"bounds of w are \(1.0, 1.0\)", "lower < upper", "fixed="),
    "bounds of NaN": (on_line(bounds={"w": (np.nan, 1)}), r"\(nan, 1.0\)", "lower < upper", "Swap them"),
    "bounds of infinity": (on_line(bounds={"w": (np.inf, None)}), r"\(inf, None\)", "lower < upper", "Swap them"),
    "bounds of scipy": (on_line(bounds=([0, 0], [1, 1])), "bounds is", "expected a dict", "bounds="),
    "three bounds": (on_line(bounds={"w": (0, 1, 2)}), "bounds of w", PAIR, "write"),
    "text bounds": (on_line(bounds={"w": ("0", "1")}), "bounds of w", PAIR, "write"),
    "bounds of truth": (on_line(bounds={"w": (np.False_, np.True_)}), "bounds of w", PAIR, "write"),
    "a set of bounds": (on_line(bounds={"w": {0, 1}}), "bounds of w", PAIR, "write"),
    "masked bounds": (on_line(bounds={"w": (np.ma.masked, 1)}), "bounds of w", PAIR, "write"),
    "bounds of nobody": (on_line(bounds={"v": (0, 1)}), "unknown parameter 'v'", "known: b, w", "named in bounds"),
    "start outside": (on_line(start={"w": 5}, bounds={"w": (0, 1)}), "start of w is 5", "outside its bounds", "choose one inside"),
    "fixed outside": (on_line(fixed={"w": 5}, bounds={"w": (0, 1)}), "fixed value of w is 5", "outside its bounds", "choose one inside"),
    "start NaN": (on_line(start={"w": np.nan}), "w is nan", "expected finite", "Choose a start"),
    "start infinite": (on_line(start={"w": np.inf}), "w is inf", "expected finite", "Choose a start"),
    "start in the signature NaN": (fitting(with_default_object, X, Y), "b is nan", "expected finite", "Choose a start"),
    "start text": (on_line(start={"w": "1"}), "w is '1'", "expected a number", "array of numbers"),
    "start complex": (on_line(start={"w": 1j}), "w is 1j", "expected a number", "array of numbers"),
    "start None": (on_line(start={"w": None}), "w is None", "expected a number", "array of numbers"),
    "start true": (on_line(start={"w": True}), "w is True", "expected a number", "array of numbers"),
    "start a date": (on_line(start={"w": np.datetime64("2020-01-01")}), "datetime64", "expected a number", "array of numbers"),
    "start masked": (on_line(start={"w": np.ma.masked}), "w is masked", "expected a number", "array of numbers"),
    "start a set": (on_line(start={1.0, 2.0}), "start is a set", "no order", "give a dict"),
    "start too short": (on_line(start=[1.0]), "start has 1 values for 2", "w, b", "give one for each"),
    "start too long": (on_line(start=[1.0, 2, 3]), "start has 3 values for 2", "w, b", "give one for each"),
    "start of nobody": (on_line(start={"v": 1.0}), "unknown parameter 'v'", "known: b, w", "named in start"),
    "start of data": (on_line(start={"x": 1.0}), "unknown parameter 'x'", "known: b, w", "named in start"),
    "fixed without a value": (on_line(fixed=["w"]), "w is fixed and has no value", "write", "fixed="),
    "fixed NaN": (on_line(fixed={"w": np.nan}), "w is nan", "expected finite", "Choose a start"),
}  # fmt: skip

WHOLE = "expected a whole number"
POSITIVE = "expected a positive number"
OPTION: dict[str, tuple[Call, str, str, str]] = {
    "an unknown method": (on_line(method="Nelder-Mead"), "unknown method 'Nelder-Mead'", "known: adadelta", "lm"),
    "a number for a method": (on_line(method=5), "method is 5", "expected a name", "such as"),
    "a scheduler for a method": (on_line(method=torch.optim.lr_scheduler.StepLR), "method is <class", "expected a name", "such as"),
    "a misspelt option": (on_line(max_step=5), "unknown option of method 'lm', 'max_step'", "known: max_steps", "Did you mean 'max_steps'"),
    "an option of fit misspelt": (on_line(sigmas=1.0), "'sigmas'", "known", "Did you mean 'sigma'"),
    "an option of scipy": (on_line(maxfev=100), "'maxfev'", "known", "max_steps"),
    "an option of descent": (on_line(learning_rate=0.1), "learning_rate belongs to", "name an optimizer", "method='adam'"),
    "an option of another optimizer": (on_line(method="adam", epochs=5, momentum=0.9), "unknown option of Adam 'momentum'", "known", "betas"),
    "a radius of text": (on_line(radius="a"), "radius is 'a'", POSITIVE, "such as 1"),
    "a learning rate of 0": (on_line(method="adam", learning_rate=0), "learning_rate is 0", "expected", "positive number"),
    "a learning rate of NaN": (on_line(method="adam", learning_rate=math.nan), "learning_rate is nan", "expected", "positive number"),
    "no epochs": (on_line(method="adam", epochs=0), "epochs is 0", WHOLE, "1 or more"),
    "half a batch": (on_line(method="adam", epochs=5, batch_size=1.5), "batch_size is 1.5", WHOLE, "1 or more"),
    "absolute_sigma yes": (on_line(sigma=ONES, absolute_sigma="yes"), "absolute_sigma 'yes'", "expected numbers", "True or False"),
    "sigma true": (on_line(sigma=True), "sigma is True", "expected numbers", "True or False"),
    "absolute without sigma": (on_line(absolute_sigma=True), "no sigma was given", "measured errors", "pass sigma="),
    "an unknown loss": (on_line(loss="hubbert"), "unknown loss 'hubbert'", "known: arctan", "Did you mean 'huber'"),
    "no loss": (on_line(loss=None), "loss is None", "expected one of", "or a function"),
    "f_scale true": (on_line(loss="huber", f_scale=True), "f_scale is True", POSITIVE, "units of the residual"),
    "f_scale without use": (on_line(f_scale=2.0), "f_scale belongs to", "huber", "the loss here is squared"),
    "an unknown dtype": (on_line(dtype="float16"), "unknown dtype 'float16'", "known: float32", "Did you mean"),
    "an unknown way with gaps": (on_line(missing="skip"), "unknown value of missing 'skip'", "known", "drop, raise"),
    "an unknown failure": (on_line(on_failure="skip"), "unknown value of on_failure", "known", "ignore, raise, warn"),
    "every 0": (on_line(every=0), "every is 0", WHOLE, "1 or more"),
    "progress yes": (on_line(progress="yes"), "progress is 'yes'", "expected True, False", "None"),
    "both ways to validate": (on_line(folds=3, validation=0.2), "both validation and folds", "validate on every row", "choose one"),
}  # fmt: skip
for _steps in (0, -1, 1.5, True, "5", None):
    OPTION[f"max_steps {_steps!r}"] = (on_line(max_steps=_steps), f"max_steps is {_steps!r}", WHOLE, "1 or more")
for _scale in (0, -1, math.nan, math.inf, 1e-300, 1e300):
    OPTION[f"f_scale {_scale}"] = (
        on_line(loss="huber", f_scale=_scale),
        re.escape(f"f_scale is {_scale}"),
        POSITIVE,
        "units of the residual",
    )
for _seed in (-1, 1.5, None, "0", 2**63):
    OPTION[f"seed {_seed!r}"] = (on_line(seed=_seed, validation=0.2), f"seed is {_seed!r}", WHOLE, "from 0")

REFUSED = [
    pytest.param(kind, call, (came, expected, remedy), id=f"{kind.__name__}: {name}")
    for kind, table in ((DataError, DATA), (ModelError, MODEL), (ParameterError, PARAMETER), (OptionError, OPTION))
    for name, (call, came, expected, remedy) in table.items()
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("kind", "call", "parts"), REFUSED)
def test_bad_input_is_refused_with_what_came_what_was_expected_and_what_to_do(
    kind: type[GradfitError], call: Call, parts: tuple[str, str, str], engine: str
):
    with pytest.raises(GradfitError) as caught:
        call(engine=engine)
    assert isinstance(caught.value, (kind, ModelError)), "a wrong shape shows only when the model is called"
    came, expected, remedy = parts
    assert caught.match(rf"(?s)(?=.*{came})(?=.*(?:{expected}))(?=.*(?:{remedy}))")


def test_there_are_more_than_sixty_two_cases():
    assert len(REFUSED) > 62


@pytest.mark.parametrize("engine", ["gpu", "", None, "Native", 5])
def test_an_unknown_engine_is_refused(engine):
    with pytest.raises(OptionError, match=r"unknown engine .*known: auto, native, torch"):
        gradfit.fit(line, X, Y, engine=engine)


# --- fitted, and right -------------------------------------------------------------------------------------------------


def exact_line(x: np.ndarray, y: np.ndarray) -> tuple[list[float], list[float]]:
    """Least-squares line and its standard errors in rational arithmetic, for the very numbers the computer holds."""
    u, v = [Fraction(float(value)) for value in x], [Fraction(float(value)) for value in y]
    n = len(u)
    center = sum(u) / n
    square = sum((a - center) ** 2 for a in u)
    slope = sum((a - center) * b for a, b in zip(u, v, strict=True)) / square
    intercept = sum(v) / n - slope * center
    rest = sum((slope * a + intercept - b) ** 2 for a, b in zip(u, v, strict=True)) / (n - 2)
    variances = (rest / square, rest * (Fraction(1, n) + center**2 / square))
    return [float(slope), float(intercept)], [math.sqrt(variance) for variance in variances]


def stderrs(fit: Any) -> list[float]:
    return [estimate.stderr for estimate in fit.params.values()]


OFFSET = {"1e9": X + 1e9, "-1e9": X - 1e9, "1e12": X + 1e12, "1e15": X + 1e15, "1e9, narrow": 1e-3 * X + 1e9}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("x", OFFSET.values(), ids=OFFSET.keys())
def test_a_line_far_from_the_origin_is_the_exact_one(x, engine):
    values, errors = exact_line(x, Y)
    fit = gradfit.fit(line, x, Y, engine=engine)
    rounding = np.finfo(np.float64).eps * np.abs(x).max() / x.std()  # what a last digit of an x is worth
    assert_allclose(fit.values["w"], values[0], rtol=10 * rounding)
    assert_allclose(stderrs(fit), errors, rtol=1e-6 + 10 * rounding)
    assert_allclose(
        fit.predict(x), x * values[0] + values[1], atol=10 * rounding * np.abs(Y).max() + 4 * np.spacing(abs(values[1]))
    )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("scale", [1e-130, 1e-12, 1e12, 1e130])
def test_the_unit_of_the_target_changes_nothing_else(scale, engine):
    values, errors = exact_line(X, Y)
    fit = gradfit.fit(line, X, Y * scale, engine=engine)
    assert_allclose([value / scale for value in fit.values.values()], values, rtol=1e-10)
    assert_allclose([error / scale for error in stderrs(fit)], errors, rtol=1e-8)


def peak(x, height, place, width):
    return height * np.exp(-(((x - place) / width) ** 2) / 2)


def peak_on_arrays(x, height, place, width):
    if not isinstance(x, np.ndarray):
        raise TypeError("arrays only")
    return peak(x, height, place, width)


@pytest.mark.parametrize("model", [peak, peak_on_arrays])
@pytest.mark.parametrize(("offset", "width"), [(0.0, 1.0), (1e6, 1.0), (1e9, 1.0), (1.7e9, 1e4)])
def test_a_peak_far_from_the_origin_has_the_errors_it_has_there(model, offset, width):
    z = np.linspace(-5, 5, 50)
    y = 3 * np.exp(-((z - 0.3) ** 2) / 2) + 0.1 * np.sin(7 * np.arange(50))
    near = gradfit.fit(peak, z, y)
    far = gradfit.fit(model, z * width + offset, y, start=[1.0, offset, width])
    size = np.array([1.0, width, width])
    assert far.success
    assert_allclose((np.array(list(far.values.values())) - [0, offset, 0]) / size, list(near.values.values()), rtol=1e-4)
    assert_allclose(stderrs(far) / size, stderrs(near), rtol=1e-3)


KEPT = np.arange(N) != 3
MASKED = {
    "input": (masked(X), Y),
    "target": (X, masked(Y)),
    "a target in a column": (X, masked(Y)[:, None]),
    "a list with a masked value": ([*X[:3], np.ma.masked, *X[4:]], Y),
    "a list of masked arrays": (X, list(masked(Y)[:, None])),
    "pandas NA": (pd.Series([*X[:3], pd.NA, *X[4:]], dtype="Float64"), Y),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("x", "y"), MASKED.values(), ids=MASKED.keys())
def test_masked_rows_are_missing_rows(x, y, engine):
    values, errors = exact_line(X[KEPT], Y[KEPT])
    fit = gradfit.fit(line, x, y, missing="drop", engine=engine)
    assert_allclose(list(fit.values.values()), values, rtol=1e-10)
    assert_allclose(stderrs(fit), errors, rtol=1e-8)
    assert fit.record.dropped == 1
    assert any("1 row with missing values" in warning for warning in fit.warnings)


def frozen(values: np.ndarray) -> np.ndarray:
    kept = values.copy()
    kept.flags.writeable = False
    return kept


KINDS: dict[str, Any] = {
    "read-only": frozen(X), "not contiguous": np.repeat(X, 2)[::2], "backwards": X[::-1][::-1], "big-endian": X.astype(">f8"),
    "big-endian whole numbers": X.astype(">i4"), "float16": X.astype(np.float16), "float32": X.astype(np.float32),
    "long double": X.astype(np.longdouble), "uint8": (2 * X).astype(np.uint8), "int8": X.astype(np.int8), "bool": X > 50,
    "objects": X.astype(object), "texts": [str(value) for value in X], "decimals": [decimal.Decimal(str(value)) for value in X],
    "ratios": [Fraction(str(value)) for value in X], "array.array": array.array("d", X), "deque": collections.deque(X),
    "range": range(N), "series": pd.Series(X), "series of other rows": pd.Series(X, index=range(100, 100 + N)),
    "categories": pd.Series(X).astype("category"), "sparse": pd.arrays.SparseArray(X), "tensor": torch.tensor(X, requires_grad=True),
    "bfloat16": torch.tensor(X, dtype=torch.bfloat16), "int8 tensor": torch.tensor(X).to(torch.int8),
}  # fmt: skip


def as_floats(values: Any) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        return values.detach().double().numpy()
    return np.array([float(value) for value in values])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_array_is_the_numbers_it_holds(kind, engine):
    def square(x, w, b):
        return w * x**2 + b  # beyond 255, and beyond what float16 resolves

    values, errors = exact_line(as_floats(KINDS[kind]) ** 2, Y)
    fit = gradfit.fit(square, KINDS[kind], pd.Series(Y), engine=engine)
    assert_allclose(list(fit.values.values()), values, rtol=1e-9)
    assert_allclose(stderrs(fit), errors, rtol=1e-7)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_column_of_targets_is_no_matrix_of_residuals(engine):
    fit = gradfit.fit(line, X, Y[:, None], sigma=2 * ONES[:, None], absolute_sigma=True, engine=engine)
    assert_allclose(list(fit.values.values()), exact_line(X, Y)[0], rtol=1e-10)
    assert_allclose(fit.params["w"].stderr, 2 / math.sqrt(((X - X.mean()) ** 2).sum()), rtol=1e-10)


def doubling(x, c):
    c *= 2  # the caller's own numbers
    return c[0] * x + c[1]


def sometimes_in_place(x, w, b):
    if w < 0.8:
        x *= 1.5
    return w * x + b


def standardised(x, w, b):
    return w * (x - x.mean()) / x.std() + b  # torch divides by n - 1, numpy by n


def printing(x, w, b):
    print(end="")
    return w * x + b


def in_single(x, w, b):
    return np.float32(w * x + b) if isinstance(x, np.ndarray) else (w * x + b).float()


class Line:
    def __call__(self, x, w, b):
        return w * x + b

    def method(self, x, w, b):
        return w * x + b


def as_list(x, w, b):
    return [w * value + b for value in x]


def by_keyword(*, x, w, b):
    return w * x + b


def by_place(x, w, b, /):
    return w * x + b


def with_text(x, w, b, mode="line"):
    return w * x + b if mode == "line" else w * x


def branching(x, w, b):
    if w > 1e6:
        return 0 * x
    return w * x + b


VALUES, ERRORS = exact_line(X, Y)
STANDARD = [VALUES[0] * float(X.std()), float(Y.mean())]
MODELS: dict[str, tuple[Call, dict[str, Any], list[float], float]] = {
    "changes its parameters": (doubling, {"start": {"c": [1.0, 1.0]}}, [value / 2 for value in VALUES], 1e-6),
    "changes its data now and then": (sometimes_in_place, {}, [VALUES[0] / 1.5, VALUES[1]], 1e-8),
    "means numpy's standard deviation": (standardised, {}, STANDARD, 1e-6),
    "prints": (printing, {}, VALUES, 1e-9),
    "computes in single precision": (in_single, {}, VALUES, 1e-5),
    "is an object": (Line(), {}, VALUES, 1e-9),
    "is a method": (Line().method, {}, VALUES, 1e-9),
    "is cached": (functools.lru_cache(line), {}, VALUES, 1e-9),
    "is a partial": (functools.partial(with_text, mode="line"), {}, VALUES, 1e-9),
    "gives a list": (as_list, {}, VALUES, 1e-6),
    "takes keywords only": (by_keyword, {}, VALUES, 1e-9),
    "takes places only": (by_place, {}, VALUES, 1e-9),
    "has text among its defaults": (with_text, {}, VALUES, 1e-9),
    "branches on a parameter": (branching, {}, VALUES, 1e-9),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("model", "settings", "values", "rtol"), MODELS.values(), ids=MODELS.keys())
def test_an_unusual_model_is_fitted_for_what_it_is(model, settings, values, rtol, engine):
    x, y = X.copy(), Y.copy()
    fit = gradfit.fit(model, x, y, engine=engine, **settings)
    assert fit.success
    assert_allclose(np.concatenate([np.ravel(value) for value in fit.values.values()]), values, rtol=rtol)
    predicted = fit.predict(X)
    assert_allclose(fit.loss, np.mean((predicted - Y) ** 2), rtol=1e-5)
    assert (x == X).all()
    assert (y == Y).all()


def test_a_fixed_value_stays_when_the_same_call_is_made_again():
    for start in ([5.0, 0.0], [7.0, 1.0], [5.0, 0.0]):  # in order, so that it must name the fixed one too
        assert gradfit.fit(line, X, Y, start=start, fixed={"w": 1.0}).values["w"] == 1.0


def test_a_fixed_value_goes_before_a_start_by_name():
    for start in (1.0, 5.0):
        assert gradfit.fit(line, X, Y, start={"w": start, "b": 0.0}, fixed={"w": 1.0}).values["w"] == 1.0


def test_values_of_one_fit_start_another_with_the_same_ties():
    tied = {"b": "-30*w"}
    first = gradfit.fit(line, X, Y, tied=tied)
    assert gradfit.fit(line, X, Y, tied=tied, start=first.values).values == pytest.approx(first.values, rel=1e-9)


@pytest.mark.parametrize("repeated", [False, True])
def test_tiny_targets_are_refused_also_where_the_call_is_known(repeated):
    def twice(x, w, b):
        return 2 * w * x + b

    for _ in range(3 * repeated):
        gradfit.fit(twice, X, Y)
    with pytest.raises(DataError, match=r"of size 2\.8e-299"):
        gradfit.fit(twice, X, 1e-300 * Y)


# --- fitted, and honest about it ---------------------------------------------------------------------------------------


def told(call: Call, engine: str) -> tuple[Any, str]:
    """Fit, and give all that was said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit = call(engine=engine)
    assert all(issubclass(warning.category, gradfit.GradfitWarning) for warning in caught), [str(w.message) for w in caught]
    return fit, " ".join([*fit.warnings, *(str(warning.message) for warning in caught)])


TWO = np.where(np.arange(N) % 2, 1.0, 2.0)
UNDETERMINED: dict[str, tuple[Call, str, list[str], str]] = {
    "a sum": (fitting(lambda x, a, b, c: (a + b) * x + c, X, Y), "a b", ["c"], r"only a \+ b is determined"),
    "a sum of exact data": (fitting(lambda x, a, b, c: (a + b) * x + c, X, 2 * X + 1), "a b", ["c"], r"only a \+ b is determined"),
    "a product": (fitting(lambda x, a, b: a * b * x, X, Y), "a b", [], r"only a\*b is determined"),
    "one x": (on_line(3 * ONES), "w b", [], r"only 3\*w \+ b is determined"),
    "two x for a parabola": (fitting(lambda x, a, b, c: a * x * x + b * x + c, TWO, Y), "a b c", [], "determined"),
    "two constants": (fitting(lambda x, b, c: b + c + 0 * x, X, Y), "b c", [], r"only b \+ c"),
    "as many points as parameters": (on_line(X[:2], Y[:2]), "w b", [], "no degree of freedom is left"),
    "one point": (fitting(lambda x, w: w * x, X[:1], Y[:1]), "w", [], "no degree of freedom is left"),
    "one weight for all": (on_line(sigma=with_value(1e-30, ONES)), "w b", [], "determined"),
    "a bound that excludes the optimum": (on_line(bounds={"w": (0.6, None)}), "w", ["b"], "at its bound"),
    "bounds that leave nothing": (on_line(bounds={"w": (0.53, 0.53 + 1e-15)}), "w", ["b"], "at its bound"),
}  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("call", "lost", "kept", "why"), UNDETERMINED.values(), ids=UNDETERMINED.keys())
def test_no_error_is_given_where_the_data_give_none(call, lost, kept, why, engine):
    fit, said = told(call, engine)
    for name in lost.split():
        assert math.isnan(fit.params[name].stderr), name
        assert fit.params[name].reason, name
    for name in kept:
        assert math.isfinite(fit.params[name].stderr), name
    assert re.search(why, said), said


def test_the_rest_of_a_fit_on_its_bound_is_the_fit_with_the_bound_as_value():
    at_bound = gradfit.fit(line, X, Y, bounds={"w": (0.6, None)})
    fixed = gradfit.fit(line, X, Y, fixed={"w": 0.6})
    assert at_bound.params["w"].at_bound
    assert at_bound.values["b"] == pytest.approx(fixed.values["b"], rel=1e-10)
    assert at_bound.params["b"].stderr == pytest.approx(fixed.params["b"].stderr, rel=1e-8)


SAID: dict[str, tuple[Call, str]] = {
    "exact data": (on_line(y=2 * X + 1), "fitted to rounding"),
    "a constant": (on_line(y=5 * ONES), "fitted to rounding"),
    "the target is the input": (on_line(y=X), "fitted to rounding"),
    "fractional counts": (on_line(y=COUNTS + 0.5, loss="poisson"), "11 fractional values .*whole counts"),
    "rates for counts": (on_line(y=1e-3 * COUNTS, loss="poisson"), "fractional values .*exposure"),
    "no start for noise": (fitting(lambda x, a, w: a * np.exp(-w * x), np.linspace(1, 2, 50), np.random.default_rng(4).normal(size=50)), "explains almost nothing"),
}  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("call", "saying"), SAID.values(), ids=SAID.keys())
def test_a_fit_that_means_little_says_so(call, saying, engine):
    _, said = told(call, engine)
    assert re.search(saying, said), said


FAILED: dict[str, tuple[Call, str]] = {
    "x of 1e300": (on_line(1e300 * X), "not_finite"),
    "x of 1e-300": (on_line(1e-300 * X), "stalled"),
    "targets of 1e300": (on_line(y=1e300 * Y), "not_finite"),
    "sigma 1e-300 beside 1": (on_line(sigma=with_value(1e-300, ONES)), "not_finite"),
    "a start of 1e308": (on_line(start={"w": 1e308}), "not_finite"),
    "a model of NaN": (fitting(lambda x, w, b: np.log(w - 2) * x + b, X, Y, start=[1.0, 1.0]), "not_finite"),
    "a pole in the data": (fitting(lambda x, w, b: w / (x - 35.7) + b, X, Y), "not_finite"),
    "a negative mean of counts": (on_line(y=COUNTS, loss="poisson", start=[1.0, -100.0]), "not_finite"),
    "a kink": (fitting(lambda x, a, b: abs(a) * x + b, X, -Y), "stalled"),
    "a step": (fitting(lambda x, w, b: w * x + b if w > 0.6 else (w + 5) * x + b, X, Y, start=[1.0, 1.0]), "stalled"),
    "a learning rate of 1": (on_line(method="sgd", learning_rate=1.0, epochs=50, scale=False), "diverged"),
    "a loss without a minimum": (on_line(loss=lambda p, t: -((p - t) ** 2)), "diverged"),
    "too few epochs": (on_line(method="sgd", learning_rate=1e-5, epochs=10, scale=False), "not_converged"),
}  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("call", "status"), FAILED.values(), ids=FAILED.keys())
def test_a_fit_that_fails_says_how_and_gives_no_errors(call, status, engine):
    fit, said = told(call, engine)
    assert not fit.success
    assert fit.status == status
    assert fit.message in said
    assert all(math.isnan(error) for error in stderrs(fit))


# --- afterwards --------------------------------------------------------------------------------------------------------

GIVEN = gradfit.fit(line, X, Y)
AFTER: dict[str, tuple[Call, type[GradfitError], str]] = {
    "a level of 0": (lambda: GIVEN.intervals(level=0), OptionError, "level is 0; expected a number between 0 and 1, such as"),
    "a level of 95": (lambda: GIVEN.intervals(level=95), OptionError, "level is 95; expected"),
    "a level of text": (lambda: GIVEN.intervals(level="95%"), OptionError, "level is '95%'; expected"),
    "a level of nothing": (lambda: GIVEN.predict(X, interval="confidence", level=None), OptionError, "level is None; expected"),
    "an unknown kind": (lambda: GIVEN.intervals(kind="student"), OptionError, "unknown kind of interval 'student'; known"),
    "an unknown band": (lambda: GIVEN.predict(X, interval="conf"), OptionError, "interval is 'conf'; expected"),
    "NaN": (lambda: GIVEN.predict([np.nan]), DataError, "1 values that are NaN or infinite; leave"),
    "a masked value": (lambda: GIVEN.predict(masked(X)), DataError, "1 values that are NaN or infinite; leave"),
    "dates": (lambda: GIVEN.predict(pd.date_range("2020", periods=2)), DataError, "dates or durations"),
    "other columns": (lambda: GIVEN.predict(data={"z": X}), DataError, "unknown column 'x'; known: z"),
    "too many arrays": (lambda: GIVEN.predict(X, X), DataError, "given 2 arrays; expected 1: x"),
    "nothing to predict": (lambda: GIVEN.predict(), DataError, "one array for each of x"),
    "sigma of another length": (lambda: GIVEN.predict(X, interval="prediction", sigma=[1, 2]), DataError, "sigma has shape"),
    "a negative sigma": (lambda: GIVEN.predict(X, interval="prediction", sigma=-1), DataError, "positive"),
    "no resamples": (lambda: GIVEN.bootstrap(0), OptionError, "resamples is 0; expected a whole number"),
    "a derived circle": (lambda: GIVEN.derive("w = b"), ModelError, "without '='"),
    "a derived division by zero": (lambda: GIVEN.derive("1/0"), FormulaError, "not a finite real number"),
    "a derived plain number": (lambda: GIVEN.derive(lambda w: w.item()), ModelError, "does not depend on w"),
    "no folder": (lambda: GIVEN.save("no/such/fit.json"), StorageError, "cannot be written.*choose another"),
    "no name": (lambda: GIVEN.save(None), StorageError, "name of the file is None; expected a text or a path"),
    "no file": (lambda: gradfit.load("no.json"), StorageError, "there is no file 'no.json'; check"),
    "another file": (lambda: gradfit.load(__file__), StorageError, "no JSON.*expected a file that"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), AFTER.values(), ids=AFTER.keys())
def test_bad_questions_to_a_result_are_refused(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_saving_to_a_pipe_fills_it_and_leaves_it_a_pipe(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    GIVEN.save(pipe)
    reader.join(timeout=60)
    assert pipe.is_fifo()
    assert read == [GIVEN.to_json()]
    assert [entry.name for entry in tmp_path.iterdir()] == ["pipe"]


def _save_often(path: str, slope: float) -> None:
    fit = gradfit.fit(line, X, slope * X + Y)
    for _ in range(30):
        fit.save(path)


def test_two_processes_that_save_to_one_file_leave_one_whole_result(tmp_path):
    path = str(tmp_path / "fit.json")
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_save_often, args=(path, slope)) for slope in (1.0, 2.0)]
    for writer in writers:
        writer.start()
    found = set()
    while any(writer.is_alive() for writer in writers):
        if os.path.exists(path):
            found.add(round(gradfit.load(path).values["w"], 6))
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    found.add(round(gradfit.load(path).values["w"], 6))
    assert found <= {round(VALUES[0] + 1, 6), round(VALUES[0] + 2, 6)}
    assert os.listdir(tmp_path) == ["fit.json"]


@pytest.mark.parametrize("engine", ENGINES)
def test_threads_that_fit_at_once_find_what_one_finds(engine):
    targets = [Y + place for place in range(8)]
    alone = [gradfit.fit(peak, X, target, start=[30.0, 90.0, 30.0], engine=engine).values for target in targets]
    together: list[Any] = [None] * len(targets)

    def work(place: int) -> None:
        together[place] = gradfit.fit(peak, X, targets[place], start=[30.0, 90.0, 30.0], engine=engine).values

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(targets))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


@pytest.mark.parametrize("engine", ENGINES)
def test_an_interrupt_in_a_model_ends_the_fit_and_changes_nothing(engine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = [0]

    def interrupted(x, w, b):
        calls[0] += 1
        if calls[0] > 30:
            raise KeyboardInterrupt
        return w * x**2 * np.exp(-b * x / 100)

    def until_interrupted() -> None:
        for _ in range(30):
            gradfit.fit(interrupted, x, Y, engine=engine, on_failure="ignore").save("fit.json")

    x = X.copy()
    with pytest.raises(KeyboardInterrupt):
        until_interrupted()
    assert (x == X).all()
    assert set(os.listdir()) <= {"fit.json"}
    assert gradfit.fit(line, X, Y).values == pytest.approx(dict(zip("wb", VALUES, strict=True)), rel=1e-9)


def test_an_interrupt_while_saving_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "fit.json"
    GIVEN.save(path)
    before = path.read_text()

    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        gradfit.fit(line, X, 2 * Y).save(path)
    assert path.read_text() == before
    assert os.listdir(tmp_path) == ["fit.json"]


def test_a_warning_is_the_callers_to_turn_into_an_error():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FitWarning, match="fractional"):
            gradfit.fit(line, X, COUNTS + 0.5, loss="poisson")


# --- from the command line -----------------------------------------------------------------------------------------------

TABLE = "x,y,s,neg,txt\n" + "".join(f"{x},{y},1,{1 - 2 * (row == 1)},a\n" for row, (x, y) in enumerate(zip(X, Y, strict=True)))
COMMANDS = {
    "an unknown method": ("--method nope", "unknown method 'nope'"),
    "no steps": ("--max-steps 0", "max_steps is 0"),
    "half a step": ("--max-steps 1.5", "Invalid value for '--max-steps'"),
    "a start of NaN": ("--start w=nan", "w is nan; expected finite numbers"),
    "two starts": ("--start w=1,w=2", "names 'w' twice"),
    "a start of nobody": ("--start q=1", "unknown parameter 'q'; known: b, w"),
    "reversed bounds": ("--bounds w=1:0", "expected lower < upper"),
    "bounds of NaN": ("--bounds w=nan:1", "expected lower < upper"),
    "tied to itself": ("--tie b=b", "in a circle"),
    "tied and fixed": ("--tie b=w --fix b=1", "both fixed and tied"),
    "a negative sigma": ("--sigma neg", "zero or negative in 1 of 11"),
    "a sigma of text": ("--sigma txt", "holds 'a'; expected a number"),
    "a sigma of 0": ("--sigma 0", "zero or negative in 11 of 11"),
    "absolute without sigma": ("--absolute-sigma", "no sigma was given"),
    "weights and sigma": ("--weights s --sigma s", "both sigma and weights"),
    "an unknown loss": ("--loss nope", "unknown loss 'nope'"),
    "negative counts": ("--loss poisson", "negative values"),
    "f_scale of NaN": ("--loss huber --f-scale nan", "f_scale is nan"),
    "a validation of 1.5": ("--validation 1.5", "validation is 1.5; expected a fraction"),
    "one fold": ("--folds 1", "folds is 1; expected"),
    "a negative seed": ("--seed -1", "seed is -1; expected"),
    "an unknown engine": ("--engine gpu", "unknown engine 'gpu'; known"),
    "an unknown dtype": ("--dtype float16", "unknown dtype"),
    "epochs without descent": ("--epochs 5", "name an optimizer too"),
    "a learning rate of NaN": ("--method adam --learning-rate nan", "learning_rate is nan; expected"),
    "an unknown option": ("--method adam --option foo=1", "unknown option of Adam 'foo'"),
    "saving over the data": ("--save t.csv", "is read by the same command"),
    "saving nowhere": ("--save no/fit.json", "there is no folder"),
}  # fmt: skip


@pytest.mark.parametrize(("options", "message"), COMMANDS.values(), ids=COMMANDS.keys())
def test_a_bad_command_is_one_line_and_exit_2(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text(TABLE)
    assert main(["fit", "t.csv", "y = w*x + b", *options.split()]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert os.listdir() == ["t.csv"]
