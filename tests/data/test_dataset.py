"""Columns become float64 arrays, checked once: whatever type they came in, the numbers are the same or the reason is said."""

from __future__ import annotations

import decimal
import fractions

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from gradfit.data.dataset import dataset, real
from gradfit.data.sources import read
from gradfit.errors import DataError, OptionError

READ_ONLY = np.array([1.0, 2.0])
READ_ONLY.flags.writeable = False

ONE_TWO = {
    "list": [1, 2],
    "tuple": (1, 2),
    "range": range(1, 3),
    "int8": np.array([1, 2], dtype="i1"),
    "uint64": np.array([1, 2], dtype="u8"),
    "float16": np.array([1, 2], dtype="f2"),
    "long double": np.array([1, 2], dtype=np.longdouble),
    "big-endian": np.array([1, 2], dtype=">f8"),
    "read-only": READ_ONLY,
    "non-contiguous": np.array([1, 9, 2, 9])[::2],
    "reversed": np.array([2, 1])[::-1],
    "masked, nothing masked": np.ma.masked_array([1, 2], mask=[False, False]),
    "object": np.array([1, decimal.Decimal(2)], dtype=object),
    "fractions": [fractions.Fraction(1), fractions.Fraction(2)],
    "text": ["1", " 2 "],
    "bytes": np.array([b"1", b"2"]),
    "numpy strings": np.array(["1", "2"], dtype=np.dtypes.StringDType()),
    "torch": torch.tensor([1.0, 2.0]),
    "torch with gradient": torch.tensor([1.0, 2.0], requires_grad=True),
    "torch bfloat16": torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
    "torch float16": torch.tensor([1.0, 2.0], dtype=torch.float16),
    "torch int": torch.tensor([1, 2]),
    "torch negated view": torch._neg_view(torch.tensor([-1.0, -2.0])),
    "torch sparse": torch.tensor([1.0, 2.0]).to_sparse(),
    "list of tensors": [torch.tensor(1.0), torch.tensor(2.0, requires_grad=True)],
    "list of bfloat16": [torch.tensor(1.0, dtype=torch.bfloat16), 2],
    "pandas": pd.Series([1, 2], index=[5, 3]),
    "pandas category": pd.Series([1, 2], dtype="category"),
    "pandas sparse": pd.Series([1.0, 2.0], dtype="Sparse[float]"),
    "polars": pl.Series([1, 2]),
    "polars decimal": pl.Series([decimal.Decimal(1), decimal.Decimal(2)]),
    "arrow": pa.array([1, 2]),
    "arrow chunks": pa.chunked_array([[1], [2]]),
}

WITH_GAP = {
    "None": [1, None],
    "nan": np.array([1, np.nan]),
    "masked int": np.ma.masked_array([1, 2], mask=[False, True]),
    "masked object": np.ma.masked_array(np.array([1, "x"], dtype=object), mask=[False, True]),
    "pandas Int64": pd.Series([1, None], dtype="Int64"),
    "pandas NA": [1, pd.NA],
    "pandas NaT": [1, pd.NaT],
    "polars": pl.Series([1, None]),
    "arrow": pa.array([1, None]),
    "empty text": ["1", ""],
    "NA": ["1", "NA"],
    "decimal": [decimal.Decimal(1), decimal.Decimal("NaN")],
}


class Unwilling:
    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("no array today")


REFUSED = {
    "None": (None, "expected an array"),
    "text": ("abc", "expected an array"),
    "number": (1.0, "single number"),
    "0-d": (np.array(1.0), "single number"),
    "3-d": (np.zeros((2, 2, 2)), "rows first"),
    "ragged": ([[1, 2], [3]], "ragged"),
    "complex": (np.array([1j]), "complex"),
    "complex tensor": (torch.tensor([1j]), "complex"),
    "complex objects": (np.array([1j, 1], dtype=object), "expected a number"),
    "masked complex": (np.ma.masked_array([1j, 2]), "complex"),
    "masked text": (np.ma.masked_array(["a", "b"], mask=[False, True]), "expected a number"),
    "dates": (np.array(["2020-01-01"], dtype="M8[D]"), "dates"),
    "masked dates": (np.ma.masked_array(np.array(["2020-01-01"], dtype="M8[D]")), "dates"),
    "durations": (np.array([1], dtype="m8[s]"), "durations"),
    "pandas dates": (pd.Series(pd.to_datetime(["2020-01-01"])), "dates"),
    "pandas dates with zone": (pd.Series(pd.to_datetime(["2020-01-01"], utc=True)), "expected a number"),
    "records": (np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]), "expected real numbers"),
    "dicts": ([{"a": 1}], "expected a number"),
    "a generator": ((i for i in range(3)), "expected a number"),
    "arrays in objects": (np.array([np.ones(1), None], dtype=object), "expected a number"),
    "beyond float64": ([10**400, 1], "beyond float64"),
    "a table": (pd.DataFrame({"a": [1]}), "is a table"),
    "a tensor without data": (torch.empty(3, device="meta"), "gives no array"),
    "an unwilling object": (Unwilling(), r"no array today.*convert it to a numpy array"),
}


@pytest.mark.parametrize("values", ONE_TWO.values(), ids=ONE_TWO.keys())
def test_numbers_of_every_type_become_float64(values):
    array = real(values, "x")
    assert array.dtype == np.float64
    assert array.tolist() == [1, 2]
    assert array.flags.c_contiguous
    assert array.flags.writeable


@pytest.mark.parametrize("values", WITH_GAP.values(), ids=WITH_GAP.keys())
def test_every_kind_of_missing_value_becomes_nan(values):
    assert np.array_equal(real(values, "x"), [1, np.nan], equal_nan=True)


@pytest.mark.parametrize(("values", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_column_of_numbers_is_refused_with_the_reason(values, message):
    with pytest.raises(DataError, match=message) as caught:
        real(values, "x")
    assert str(caught.value).startswith("x")


def test_booleans_are_zero_and_one():
    assert real([True, False], "x").tolist() == [1, 0]


def test_a_broadcast_column_of_zero_stride_is_copied():
    assert real(np.broadcast_to(np.float64(3), (4,)), "x").tolist() == [3, 3, 3, 3]


def test_a_long_double_beyond_float64_is_infinite_and_so_refused():
    table = read({"x": np.array(["1e400", "1"]).astype(np.longdouble), "y": [1, 2]})
    with pytest.raises(DataError, match="infinite"):
        dataset(table, ["x"], "y")


def test_later_changes_to_the_callers_array_do_not_reach_the_data():
    x = np.array([1.0, 2.0])
    rows = dataset(read({"x": x, "y": x}), ["x"], "y")
    x[:] = 0
    assert rows.columns["x"].tolist() == [1, 2]


def test_a_column_is_asked_for_once():
    asked: list[str] = []
    table = read({"x": [1], "y": [2]})
    counting = type(table)(table.names, lambda name: asked.append(name) or table.column(name), "here")
    dataset(counting, ["x"], "y")
    assert asked == ["x", "y"]


@pytest.mark.parametrize(
    ("sigma", "message"),
    [
        (0, "zero or negative in 2 of 2 rows"),
        ([1, -1], r"1 of 2 rows \(row 2\)"),
        ([1, 2, 3], "3 values for 2 points"),
        (np.ones((2, 2)), "not positive definite"),
        ([1, np.nan], r"sigma 1 \(row 2\)"),
        ("s", "unknown column 's'"),
        (1j, "complex"),
        ({"a": 1}, "table"),
    ],
)
def test_a_sigma_that_is_no_standard_deviation_is_refused(sigma, message):
    with pytest.raises(DataError, match=message):
        dataset(read({"x": [1, 2], "y": [3, 4]}), ["x"], "y", sigma=sigma)


@pytest.mark.parametrize("sigma", [2, "s", [2, 2], torch.tensor(2.0), np.full((2, 1), 2)])
def test_sigma_is_a_number_a_column_or_one_value_per_row(sigma):
    rows = dataset(read({"x": [1, 2], "y": [3, 4], "s": [2, 2]}), ["x"], "y", sigma=sigma)
    assert rows.sigma.tolist() == [2, 2]


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(DataError, match="x has 3 values and y has 2"):
        dataset(read({"x": [1, 2, 3], "y": [3, 4]}), ["x"], "y")


def test_nothing_left_after_dropping_is_refused():
    with pytest.raises(DataError, match="nothing is left"):
        dataset(read({"x": [None, 1], "y": [1, None]}), ["x"], "y", missing="drop")


def test_missing_takes_two_words_only():
    with pytest.raises(OptionError, match="known: drop, raise"):
        dataset(read({"x": [1], "y": [1]}), ["x"], "y", missing="ignore")


@pytest.mark.parametrize(("x", "y", "single"), [("f4", "f4", True), ("f4", "f8", False), ("i4", "f4", False)])
def test_single_precision_is_noted_only_where_all_numbers_came_in_it(x, y, single):
    assert dataset(read({"x": np.ones(2, x), "y": np.ones(2, y)}), ["x"], "y").single is single
