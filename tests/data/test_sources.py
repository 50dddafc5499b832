"""Tables come from files, frames and dicts; what cannot be read says what came, what was expected and what to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gradfit.data.dataset import dataset, real
from gradfit.data.sources import read
from gradfit.errors import DataError

SAME_TABLE = {
    "plain": b"x,y\n1,2\n3,4\n",
    "byte order mark": b"\xef\xbb\xbfx,y\n1,2\n3,4\n",
    "semicolons": b"x;y\n1;2\n3;4\n",
    "tabs, no newline at the end": b"x\ty\n1\t2\n3\t4",
    "quoted cells": b'"x","y"\n"1","2"\n"3","4"\n',
    "quotes after a space": b'x, "y"\n1, "2"\n3,4\n',
    "a comma in a quoted name": b'"x","y","a,b"\n1,2,9\n3,4,9\n',
    "semicolons in a quoted name": b'"a;b;c;d",x,y\n9,1,2\n9,3,4\n',
    "commas in names between semicolons": b"x;y;time, s, since start, a, b\n1;2;9\n3;4;9\n",
    "blank lines": b"\n\nx,y\n\n1,2\n   \n3,4\n\n",
    "carriage returns and newlines": b"x,y\r\n1,2\r\n3,4\r\n",
    "old carriage returns": b"x,y\r1,2\r3,4\r",
    "spaces around cells": b"x , y\n 1 , 2 \n 3 , 4\n",
    "exponents and signs": b"x,y\n+1e0,2.\n.3E+1,4\n",
    "an unused text column": b"x,y,note\n1,2,good\n3,4,\n",
    "a text over two lines": b'x,y,note\n1,2,"a\nb"\n3,4,c\n',
    "line separators within a text": "x,y,note\n1,2,a\u2028b\x85c\x0bd\x0ce\n3,4,f\n".encode(),
    "an index without a name, as pandas writes it": b",x,y\n0,1,2\n1,3,4\n",
    "a delimiter after the last column": b"x,y,\n1,2,\n3,4,\n",
}

REFUSED = {
    "empty": (b"", "is empty"),
    "blank": (b"  \n\n", "is empty"),
    "no header": (b"1,2\n3,4\n", "has no header"),
    "two columns of one name": (b"x,y,x\n1,2,3\n", "two columns called 'x'"),
    "too few cells": (b"x,y\n1,2\n3\n", r"line 3, has 1 cells and the header has 2 \(x, y\)"),
    "too many cells": (b"x,y\n1,2\n3,4,5\n", "line 3, has 3 cells"),
    "too many cells late": (b"x,y\n" + b"1,2\n" * 30_000 + b"1,2,3\n", "line 30002, has 3 cells"),
    "an open quote": (b'x,y\n"1,2\n3,4\n', "mend the quotes"),
    "zero bytes": (b"x,y\n1,\x002\n", "zero bytes"),
    "UTF-16 without a mark": ("x,y\n1,2\n".encode("utf-16-le"), "UTF-16"),
    "UTF-16": ("x,y\n1,2\n".encode("utf-16"), "utf-16"),
    "Chinese text of another encoding": ("x,温度\n1,2\n".encode("gb18030"), "gb18030"),
    "a bad byte at the end": (b"x,y\n" + b"1,2\n" * 50_000 + b"\xff,2\n", "byte 200004: 0xff"),
}


def written(folder: Path, content: bytes, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("content", SAME_TABLE.values(), ids=SAME_TABLE.keys())
def test_every_way_to_write_a_table_reads_to_the_same_numbers(content, tmp_path):
    rows = dataset(read(written(tmp_path, content)), ["x"], "y")
    assert rows.columns["x"].tolist() == [1, 3]
    assert rows.target.tolist() == [2, 4]


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_file_that_is_no_table_is_refused_with_the_reason(content, message, tmp_path):
    with pytest.raises(DataError, match=message) as caught:
        read(written(tmp_path, content))
    error = caught.value
    assert error.__context__ is None or error.__suppress_context__, "no traceback of the parser beside it"


@pytest.mark.parametrize("encoding", ["gb18030", "gbk", "utf-16", "utf-8-sig", "UTF_8"])
def test_a_named_encoding_reads_chinese_columns(encoding, tmp_path):
    table = read(written(tmp_path, "读数,温度\n1,2\n".encode(encoding)), encoding=encoding)
    assert table.names == ("读数", "温度")


@pytest.mark.parametrize("encoding", ["nope", "", "hex", "a\0b", 5, None])
def test_an_encoding_nobody_knows_is_refused(encoding, tmp_path):
    with pytest.raises(DataError, match="encoding"):
        read(written(tmp_path, b"x,y\n1,2\n"), encoding=encoding)


@pytest.mark.parametrize(
    ("cell", "shown"),
    [("abc", "'abc'"), ("1_000", "'1_000'"), ("0x10", "'0x10'"), ("1D5", "'1D5'"), ("-", "'-'"), ("−1", "'−1'")],
)
def test_text_in_a_column_that_is_used_names_the_row(cell, shown, tmp_path):
    table = read(written(tmp_path, f"x,y\n1,2\n{cell},4\n".encode()))
    with pytest.raises(DataError, match=rf"x, row 2 of 2, holds {shown}; expected a number"):
        dataset(table, ["x"], "y")


def test_a_decimal_comma_is_recognised_in_the_message(tmp_path):
    table = read(written(tmp_path, b"x;y\n1,5;2\n"))
    with pytest.raises(DataError, match="decimal sign"):
        dataset(table, ["x"], "y")


def test_a_header_alone_has_no_rows_to_fit(tmp_path):
    with pytest.raises(DataError, match="0 rows"):
        dataset(read(written(tmp_path, b"x,y\n")), ["x"], "y")


GAPS = b"x,y\n1,2\nnan,4\n,\ninf,6\nNA,7\n8,9\n"


def test_missing_values_are_refused_with_count_and_rows(tmp_path):
    with pytest.raises(DataError, match=r"x 4 \(rows 2, 3, 4, 5\); y 1 \(row 3\), of 6 rows"):
        dataset(read(written(tmp_path, GAPS)), ["x"], "y")


def test_missing_values_are_dropped_and_counted_when_asked_to(tmp_path):
    rows = dataset(read(written(tmp_path, GAPS)), ["x"], "y", missing="drop")
    assert (rows.target.tolist(), rows.row_numbers.tolist(), rows.dropped) == ([2, 9], [0, 5], 4)


def test_a_million_cells_are_read_in_seconds(tmp_path):
    import time

    values = np.random.default_rng(0).normal(size=(250_000, 2))
    path = written(tmp_path, ("x,y\n" + "\n".join(f"{a!r},{b!r}" for a, b in values.tolist())).encode())
    began = time.process_time()
    rows = dataset(read(path), ["x"], "y")
    assert time.process_time() - began < 5
    assert np.array_equal(np.column_stack([rows.columns["x"], rows.target]), values)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nope.csv", "there is no file"),
        ("nope.parquet", "there is no file"),
        ("table.xlsx", "cannot tell the format"),
        ("table", "cannot tell the format"),
        (".", "is a folder"),
        ("a\0b.csv", "cannot be read"),
        ("long" * 100 + ".csv", "cannot be read: File name too long"),
    ],
)
def test_a_path_that_is_no_file_is_refused(name, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read(str(tmp_path / name))


@pytest.mark.parametrize(
    "source", [5, None, [1, 2], np.zeros((3, 2)), pd.Series([1, 2])], ids=lambda source: type(source).__name__
)
def test_an_object_that_is_no_table_is_refused(source):
    with pytest.raises(DataError, match="expected a dict of columns, a data frame, or the path"):
        read(source)


FRAMES = {
    "dict of lists": {"x": [1, None], "y": (2, 4)},
    "pandas": pd.DataFrame({"x": [1, np.nan], "y": [2, 4]}),
    "pandas nullable": pd.DataFrame({"x": pd.array([1, pd.NA], dtype="Int64"), "y": pd.array([2, 4], dtype="Float32")}),
    "pandas on arrow": pd.DataFrame({"x": [1, None], "y": [2, 4]}, dtype="int64[pyarrow]"),
    "pandas objects": pd.DataFrame({"x": [1, pd.NA], "y": [2, 4]}, dtype=object),
    "polars": pl.DataFrame({"x": [1, None], "y": [2, 4]}),
    "polars lazy": pl.LazyFrame({"x": [1, None], "y": [2, 4]}),
    "arrow": pa.table({"x": [1, None], "y": [2, 4]}),
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES.keys())
def test_every_frame_gives_the_same_rows_and_null_is_missing(frame):
    rows = dataset(read(frame), ["x"], "y", missing="drop")
    assert (rows.columns["x"].tolist(), rows.target.tolist(), rows.dropped) == ([1], [2], 1)


def test_a_frame_whose_names_are_numbers_is_read_by_their_text():
    table = read(pd.DataFrame({0: [1, 2], 1: [3, 4]}))
    assert table.names == ("0", "1")
    assert real(table["1"], "1").tolist() == [3, 4]


@pytest.mark.parametrize(
    "source",
    [pd.DataFrame([[1, 2]], columns=["a", "a"]), pd.DataFrame({0: [1], "0": [2]}), {0: [1], "0": [2]}],
    ids=["pandas", "number and text", "dict"],
)
def test_two_columns_of_one_name_are_refused(source):
    with pytest.raises(DataError, match=r"two columns|unique column names"):
        read(source)


def test_a_lazy_query_that_fails_says_why_in_one_line():
    with pytest.raises(DataError, match="conversion from `str`") as caught:
        read(pl.LazyFrame({"a": ["x"]}).select(pl.col("a").cast(pl.Int64)))
    assert "\n" not in str(caught.value)


def test_a_parquet_file_gives_its_columns_and_only_those_used_must_be_numbers(tmp_path):
    pq.write_table(pa.table({"x": [1, 3], "y": [2.0, 4.0], "note": ["a", "b"]}), tmp_path / "a.parquet")
    rows = dataset(read(tmp_path / "a.parquet"), ["x"], "y")
    assert rows.columns["x"].tolist() == [1, 3]
    with pytest.raises(DataError, match="note, row 1 of 2, holds 'a'"):
        dataset(read(tmp_path / "a.parquet"), ["note"], "y")


@pytest.mark.parametrize("damage", ["no parquet", "empty", "half"])
def test_a_damaged_parquet_file_is_refused(damage, tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": [1, 3]}), path)
    whole = path.read_bytes()
    path.write_bytes({"no parquet": b"hello", "empty": b"", "half": whole[: len(whole) // 2]}[damage])
    with pytest.raises(DataError, match="no readable Parquet file"):
        read(path)


def test_a_parquet_file_damaged_inside_is_refused_when_the_column_is_read(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": [1, 3]}), path)
    content = bytearray(path.read_bytes())
    content[6:30] = b"\xff" * 24
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        real(read(path)["x"], "x")


def test_a_parquet_file_with_two_columns_of_one_name_is_refused(tmp_path):
    pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["x", "x"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="two columns called 'x'"):
        read(tmp_path / "a.parquet")


def test_an_unknown_column_is_named_with_its_neighbour():
    with pytest.raises(DataError, match=r"unknown column 't_v'; known: t_c, t_u. Did you mean 't_u'\?"):
        read({"t_u": [1], "t_c": [2]})["t_v"]
