"""Groups of a table: sorted keys whatever the rows' order, labels of any type, nothing lost silently, Parquet files a piece at a time."""

from __future__ import annotations

import datetime
import decimal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gradfit.data import parquet, tables
from gradfit.data.batch import RaggedBatch, cuts
from gradfit.data.groups import grouped, labelled
from gradfit.data.tables import opened
from gradfit.errors import DataError

DAY = datetime.date(2024, 2, 1)
NOON = datetime.datetime(2024, 2, 1, 12)


def cut(source, by="k", inputs=("x",), target="y", sigma=None):
    return opened(source).cut((by,) if isinstance(by, str) else by, inputs, target, sigma)


def table(keys, **more):
    """Rows numbered by x, so that a block shows which rows each fit has."""
    n = len(keys)
    return {"k": keys, "x": np.arange(float(n)), "y": np.arange(float(n)) * 2, **more}


def rows_of(batch, fit: int) -> list[float]:
    block = batch.block(fit, fit + 1)
    return block.columns[0][0, : block.sizes[0]].tolist()


def assert_same_batch(one, other, cuts=()) -> None:
    """Every number of every block to the bit."""
    assert one.count == other.count
    for begin, end in [(0, one.count), (one.count // 3, 2 * one.count // 3), *cuts]:
        first, second = one.block(begin, end), other.block(begin, end)
        for name in ("target", "weight", "sizes", "flaws", "squares"):
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
        for mine, theirs in zip(first.columns, second.columns, strict=True):
            assert mine.dtype == theirs.dtype
            np.testing.assert_array_equal(mine, theirs)


# --- keys ---------------------------------------------------------------------------------------------------------------

LABELS = {
    "text": (["b", "a", None, "b", "ä"], ["a", "b", "ä"]),
    "whole numbers": ([3, -1, None, 3, 7], [-1, 3, 7]),
    "numbers": ([0.5, np.nan, -2.0, 0.5, 1e300], [-2.0, 0.5, 1e300]),
    "truth values": ([True, False, None, True, True], [False, True]),
    "days": ([DAY, None, DAY.replace(year=2023), DAY, DAY], [DAY.replace(year=2023), DAY]),
    "times": ([NOON, None, NOON.replace(hour=1), NOON, NOON], [NOON.replace(hour=1), NOON]),
    "decimals": ([decimal.Decimal("1.5"), None, decimal.Decimal("-1"), decimal.Decimal("1.5")], [decimal.Decimal("-1"), decimal.Decimal("1.5")]),
}  # fmt: skip


@pytest.mark.parametrize(("keys", "labels"), LABELS.values(), ids=LABELS.keys())
@pytest.mark.parametrize("frame", [dict, pd.DataFrame, pl.DataFrame, lambda t: pl.DataFrame(t).lazy(), pa.table, "parquet"])
def test_labels_of_every_type_are_sorted_and_rows_without_one_are_counted(frame, keys, labels, tmp_path):
    source = table(keys)
    if frame == "parquet":
        pq.write_table(pa.table(source), tmp_path / "t.parquet")
        source = tmp_path / "t.parquet"
    else:
        source = frame(source)
    found = cut(source)
    assert np.array_equal(found.keys["k"], np.array(labels, dtype=found.keys["k"].dtype))
    lost = [key is None or key != key for key in keys]
    assert found.without == sum(lost)
    fits = [[float(row) for row, key in enumerate(keys) if not lost[row] and key == label] for label in labels]
    assert [rows_of(found.batch, fit) for fit in range(len(labels))] == fits


@pytest.mark.parametrize(
    "keys",
    [
        pd.Categorical(["lo", "hi", "lo"], categories=["hi", "lo", "never"]),
        pl.Series(["lo", "hi", "lo"], dtype=pl.Enum(["lo", "hi", "never"])),
        pl.Series(["lo", "hi", "lo"], dtype=pl.Categorical),
        pa.array(["lo", "hi", "lo"]).dictionary_encode(),
    ],
    ids=["pandas", "polars enum", "polars", "Arrow"],
)
def test_categories_are_their_text_and_those_that_do_not_occur_make_no_fit(keys, tmp_path):
    frame = (
        pa.table(table(keys))
        if isinstance(keys, pa.Array)
        else pl.DataFrame(table(keys))
        if isinstance(keys, pl.Series)
        else pd.DataFrame(table(keys))
    )
    path = tmp_path / "t.parquet"
    frame.to_parquet(path) if isinstance(frame, pd.DataFrame) else pq.write_table(
        frame if isinstance(frame, pa.Table) else frame.to_arrow(), path
    )
    for source in (frame, path):
        found = cut(source)
        assert found.keys["k"].tolist() == ["hi", "lo"]
        assert rows_of(found.batch, 1) == [0, 2]


def test_whole_numbers_with_gaps_do_not_become_floats():
    large = 2**60
    for frame in (
        pd.DataFrame(table(pd.array([large + 1, None, large], dtype="Int64"))),
        pl.DataFrame(table([large + 1, None, large])),
    ):
        assert cut(frame).keys["k"].tolist() == [large, large + 1]


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (["10", "9", " 9 ", "-1"], [-1, 9, 10]),
        (["0.5", "10", "2"], [0.5, 2.0, 10.0]),
        (["0.10", "0.20", ""], [0.1, 0.2]),
        (["007", "7"], ["007", "7"]),  # these are names
        (["1E5", "2"], ["1E5", "2"]),
        (["1.0", "1"], ["1", "1.0"]),  # as numbers the two would be one
        (["NA", "", "b "], ["NA", "b"]),  # Namibia
    ],
)
def test_labels_of_a_text_file_are_numbers_where_no_two_become_one(cells, labels, tmp_path):
    (tmp_path / "t.csv").write_text("k,x,y\n" + "".join(f'"{cell}",1,2\n' for cell in cells))
    found = cut(tmp_path / "t.csv")
    assert found.keys["k"].tolist() == labels
    assert found.without == cells.count("")


def test_ranks_are_the_same_however_they_are_found():
    ids = np.random.default_rng(3).integers(-50, 50, 1000)
    for values in (
        ids,
        np.sort(ids),
        ids * 10**15,
        ids.astype(np.int8),
        ids.astype(str),
        ids / 4,
        (ids + 50).astype(np.uint64) + 2**63,
    ):
        found = labelled(values, "k")
        expected, codes = np.unique(values, return_inverse=True)
        assert np.array_equal(found.labels, expected)
        assert np.array_equal(found.codes, codes)


def test_several_key_columns_make_a_fit_of_each_combination_that_occurs():
    rng = np.random.default_rng(4)
    columns = {"a": rng.integers(0, 50, 300), "b": rng.choice(["x", "y", "z"], 300), "c": rng.integers(0, 9, 300) * 10**17}
    index, codes = grouped({name: labelled(values, name) for name, values in columns.items()})
    expected = pd.DataFrame(columns).groupby(list(columns)).ngroup().to_numpy()
    assert np.array_equal(codes, expected)
    assert pd.DataFrame(index.keys).equals(pd.DataFrame(columns).drop_duplicates().sort_values(list(columns), ignore_index=True))
    back = index.find([labels[::-1] for labels in index.keys.values()])
    assert np.array_equal(back, np.arange(index.count)[::-1])
    assert index.find([np.array([1]), np.array(["q"]), np.array([0])]).tolist() == [-1]


def test_a_row_without_a_label_in_one_of_the_key_columns_belongs_to_no_fit():
    found = cut({**table(["a", "a", None, "b"]), "g": [1, None, 1, 2]}, by=("k", "g"))
    assert found.without == 2
    assert {name: labels.tolist() for name, labels in found.keys.items()} == {"k": ["a", "b"], "g": [1, 2]}
    assert [rows_of(found.batch, fit) for fit in (0, 1)] == [[0.0], [3.0]]


BAD = {
    "mixed labels": (table(["a", 1]), {}, "cannot be sorted as labels"),
    "lists as labels": (table([[1], [2]]), {}, "cannot be sorted"),
    "complex labels": (table(np.array([1j, 2j])), {}, "complex"),
    "labels in two dimensions": (table(np.ones((2, 2))), {}, "one label per row"),
    "one label": (table([1, 2]) | {"k": "a"}, {}, "one label per row"),
    "no labels": (table([None, None]), {}, "k is empty in all 2 rows"),
    "no rows": (table([]), {}, "no rows"),
    "lengths": (table([1, 2]) | {"k": [1]}, {}, "k has 1 values and y has 2"),
    "text as data": (table([1, 2]) | {"x": ["1", "?"]}, {}, "x, row 2 of 2"),
    "several numbers a row": (table([1, 2]) | {"x": np.ones((2, 3))}, {}, "one value per row"),
    "sigma of another length": (table([1, 1, 2]), {"sigma": [1.0] * 4}, "sigma has 4 values for 3 rows and 2 fits"),
    "sigma's column": (table([1, 2]), {"sigma": "q"}, "unknown column 'q'"),
}


@pytest.mark.parametrize(("source", "more", "said"), BAD.values(), ids=BAD.keys())
def test_bad_tables_are_refused_in_words(source, more, said):
    with pytest.raises(DataError, match=said):
        cut(source, **more)


def test_labels_of_a_type_that_arrow_only_wraps_are_refused_in_words(tmp_path):
    periods = pd.PeriodIndex(["2020-01", "2020-02"], freq="M")
    pd.DataFrame({"k": periods, "x": [0.0, 1.0], "y": [0.0, 1.0]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match="k has values of type extension"):
        cut(tmp_path / "t.parquet")


def test_sigma_is_a_column_a_number_one_for_each_row_or_one_for_each_fit(tmp_path):
    keys = ["b", "a", "b"]
    source = table(keys, s=np.array([2.0, 4.0, 8.0]))
    pq.write_table(pa.table(source), tmp_path / "t.parquet")
    for sigma, expected in (
        ("s", [[0.25, 0.0], [0.5, 0.125]]),
        (2, [[0.5, 0], [0.5, 0.5]]),
        ([4.0, 2.0], [[0.25, 0], [0.5, 0.5]]),
    ):
        for given in (source, tmp_path / "t.parquet"):
            block = cut(given, sigma=sigma).batch.block(0, 2)
            assert [block.weight[0, 0], *block.weight[1]] == [expected[0][0], *expected[1]]
    assert cut(source, sigma=[2.0, 4.0, 8.0]).batch.block(1, 2).weight.tolist() == [[0.5, 0.125]]


def test_plain_columns_in_memory_are_not_copied():
    source = table(np.repeat([1, 2], 50))
    batch = cut(source).batch
    assert batch.order is None
    assert np.shares_memory(batch.target, source["y"])


def test_a_lazy_frame_computes_only_the_columns_that_are_needed():
    def never(column):
        raise AssertionError("computed")

    lazy = pl.DataFrame(table([2, 1, 2])).lazy().with_columns(bad=pl.col("x").map_batches(never, return_dtype=pl.Float64))
    assert rows_of(cut(lazy).batch, 1) == [0, 2]


def test_blocks_hold_many_short_fits_or_one_long_one():
    sizes = np.array([3] * 10 + [1000] + [3] * 10)
    batch = RaggedBatch((), "y", (), np.zeros(sizes.sum()), np.append(0, np.cumsum(sizes)))
    found = cuts(batch, 8, 100)
    assert [begin for begin, _ in found] == [0, *(end for _, end in found[:-1])]
    assert found[-1][1] == batch.count
    assert (10, 11) in found
    assert max(end - begin for begin, end in found) == 8


# --- Parquet --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_pieces(monkeypatch):
    """Windows, parts and slices of a few rows, so that a small file has many."""
    for name, size in (("SLICE", 37), ("PART", 50), ("WINDOW", 8 * 3 * 60), ("WIDE_WINDOW", 8 * 3 * 300), ("PENDING", 20)):
        monkeypatch.setattr(parquet, name, size)


def readings(rows: int = 900, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "run": rng.integers(0, 3, rows),
            "sensor": [f"s{label}" for label in rng.integers(0, 30, rows)],
            "x": rng.random(rows),
            "i": pl.Series(rng.integers(0, 9, rows)).set(pl.Series(rng.random(rows) < 0.1), None),
            "y": rng.random(rows).astype(np.float32),
            "s": 1 + rng.random(rows),
        }
    )


ORDERS = {
    "scattered": lambda frame: frame,
    "in order": lambda frame: frame.sort("sensor", "run", maintain_order=True),
    "neighbours in another order": lambda frame: frame.sort("sensor", "run", descending=True, maintain_order=True),
    "some without a label": lambda frame: frame.sort("sensor", maintain_order=True).with_columns(
        sensor=pl.when(pl.int_range(pl.len()) % 41 == 7).then(None).otherwise(pl.col("sensor"))
    ),
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS.keys())
@pytest.mark.parametrize("row_group", [29, 200, 5000])
def test_a_parquet_file_gives_the_bits_of_the_table_in_memory(order, row_group, small_pieces, tmp_path):
    frame = order(readings())
    frame.write_parquet(tmp_path / "t.parquet", row_group_size=row_group)
    wanted = (("sensor", "run"), ("x", "i"), "y", "s")
    memory, file = opened(frame).cut(*wanted), opened(tmp_path / "t.parquet").cut(*wanted)
    assert memory.without == file.without
    assert all(np.array_equal(memory.keys[name], file.keys[name]) for name in ("sensor", "run"))
    assert_same_batch(memory.batch, file.batch, [(place, place + 1) for place in (0, 17, memory.batch.count - 1)])
    assert len(file.batch.edges) > 2


def test_of_a_file_in_order_only_a_piece_is_read_for_a_block(small_pieces, tmp_path, monkeypatch):
    frame = ORDERS["in order"](readings())
    frame.write_parquet(tmp_path / "t.parquet", row_group_size=50)
    batch = opened(tmp_path / "t.parquet").cut(("sensor", "run"), ("x",), "y", None).batch
    read = []
    slices = parquet.Source.slices
    monkeypatch.setattr(
        parquet.Source,
        "slices",
        lambda self, groups, names, keys: read.append((len(groups), *names)) or slices(self, groups, names, keys),
    )
    batch.block(40, 41)
    assert sum(groups for groups, *_ in read) <= 4  # of 18 row groups
    assert {tuple(names) for _, *names in read} == {("x", "y")}  # and no key


def test_threads_share_what_is_read(small_pieces, tmp_path, monkeypatch):
    readings().write_parquet(tmp_path / "t.parquet", row_group_size=100)
    batch = opened(tmp_path / "t.parquet").cut(("sensor",), ("x",), "y", None).batch
    expected = opened(readings()).cut(("sensor",), ("x",), "y", None).batch
    counted: list[int] = []
    read = parquet.ParquetBatch.read_window
    monkeypatch.setattr(parquet.ParquetBatch, "read_window", lambda self, window: counted.append(window) or read(self, window))
    monkeypatch.setattr(parquet, "KEPT", 100)
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(lambda begin: assert_same_batch(batch, expected, [(begin, begin + 5)]), range(0, 25, 5)))
    assert sorted(counted) == list(range(len(batch.edges) - 1))  # each once


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "t.parquet"
    readings().write_parquet(path)
    batch = opened(path).cut(("sensor",), ("x",), "y", None).batch
    readings(800, seed=1).write_parquet(path)
    with pytest.raises(DataError, match="changed"):
        batch.block(0, 1)


def test_what_cannot_be_fitted_in_a_file_is_told_before_it_is_read(tmp_path):
    path = tmp_path / "t.parquet"
    frame = {
        "k": [1, 1],
        "x": [1.0, 2.0],
        "y": [1.0, 2.0],
        "text": ["a", "b"],
        "day": [DAY, DAY],
        "list": [[1], [2]],
        "big": [2**60 + 1, 1],
    }
    pq.write_table(pa.table(frame), path)
    for more, said in (
        ({"inputs": ("text",)}, "text has values of type string"),
        ({"target": "day"}, "day has values of type date32"),
        ({"by": "list"}, "list has values of type list"),
        ({"sigma": [1.0, 2.0, 3.0]}, "sigma has 3 values for 1 fits"),
    ):
        with pytest.raises(DataError, match=said):
            cut(path, **more)
    with pytest.raises(DataError, match="float64 rounds"):
        cut(path, inputs=("big",)).batch.block(0, 1)
    pq.write_table(pa.table({name: frame[name][:0] for name in ("k", "x", "y")}), path)
    with pytest.raises(DataError, match="no rows"):
        cut(path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match="no readable Parquet file"):
        cut(path)


def test_a_million_groups_of_one_row_take_no_loop():
    n = 1_000_000
    found = tables.opened(table(np.arange(n)[::-1])).cut(("k",), ("x",), "y", None)
    assert found.batch.count == n
    assert rows_of(found.batch, 0) == [n - 1]
