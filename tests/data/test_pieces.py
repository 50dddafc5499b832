"""Lists of arrays read like one array, without joining more of them than is asked for."""

from __future__ import annotations

import numpy as np
import pytest

import gradfit
from gradfit.data.gather import gather
from gradfit.data.pieces import LongColumn, Spread, Table, longest, plain_arrays, rise

RNG = np.random.default_rng(0)
LENGTHS = [3, 0, 5, 0, 0, 4, 6, 0]
PARTS = [RNG.normal(size=length) for length in LENGTHS]
OFFSETS = np.concatenate([[0], np.cumsum(LENGTHS)])


def test_a_long_column_gives_the_rows_of_whole_fits_empty_ones_too():
    joined, column = np.concatenate(PARTS), LongColumn(PARTS, OFFSETS, np.dtype(np.float64))
    spread = Spread(np.arange(8.0), OFFSETS)
    for begin in range(8):
        for end in range(begin, 9):
            rows = slice(OFFSETS[begin], OFFSETS[end])
            assert (column[rows] == joined[rows]).all()
            assert (spread[rows] == np.repeat(np.arange(8.0), LENGTHS)[rows]).all()
    assert column.shape == (18,)


def test_a_table_reads_as_an_array_does():
    parts = [RNG.normal(size=5) for _ in range(7)]
    table = Table(parts, np.dtype(np.float64))
    assert (table.shape, table.ndim, len(table)) == ((7, 5), 2, 7)
    assert (table[2:5] == np.array(parts)[2:5]).all()
    assert table[3:3].shape == (0, 5)
    assert (table[1] == parts[1]).all()
    assert (np.asarray(table) == np.array(parts)).all()


@pytest.mark.parametrize(
    ("parts", "dtype"),
    [
        ([np.zeros(2, np.float32), np.zeros(3, np.float32)], np.float32),
        ([np.zeros(2, np.float32), np.zeros(3)], np.float64),
        ([np.zeros(2, np.float32), np.zeros(3, np.int64)], np.float64),
        ([[0.0, 1.0], np.zeros(2)], None),
        ([np.zeros((2, 2)), np.zeros(2)], None),
        ([np.array(["a", "b"])], None),
        ([np.zeros(2, complex)], None),
        ([np.ma.masked_array([1.0, 2.0], [True, False])], None),
        ([], None),
    ],
)
def test_only_plain_arrays_of_numbers_are_left_in_pieces(parts, dtype):
    assert plain_arrays(parts) == dtype


def test_offsets_are_looked_at_piece_by_piece(monkeypatch):
    monkeypatch.setattr("gradfit.data.pieces.PIECE", 3)
    assert longest(OFFSETS) == 6
    assert longest(np.array([0])) == 0
    assert rise(OFFSETS)
    for place in range(1, 8):
        wrong = OFFSETS.copy()
        wrong[place] = -1
        assert not rise(wrong)


def test_a_fit_sees_the_same_rows_whether_its_data_come_as_a_list_or_as_an_array():
    Y, X, S = (RNG.uniform(1, 2, (6, 5)) for _ in range(3))
    listed = gather([list(X), list(Y)], ("x",), "y", sigma=list(S)).block(1, 5)
    array = gather([X, Y], ("x",), "y", sigma=S).block(1, 5)
    cut = [row[:4] for row in Y[:1]] + list(Y[1:])
    ragged = gather([[X[0, :4], *X[1:]], cut], ("x",), "y", sigma=[S[0, :4], *S[1:]]).block(1, 5)
    for other in (listed, ragged):
        assert (other.target == array.target).all()
        assert (other.columns[0] == array.columns[0]).all()
        assert (other.weight == array.weight).all()


def test_single_precision_in_a_list_stays_single():
    parts = [np.ones(4, np.float32), np.ones(4, np.float32)]
    assert gather([np.arange(4.0), parts], ("x",), "y").block(0, 2).target.dtype == np.float32
    assert gather([parts, [np.ones(4, np.float32), np.ones(4)]], ("x",), "y").block(0, 1).target.dtype == np.float64


def test_one_sigma_for_each_fit_of_different_lengths_is_spread_over_its_rows():
    lists = [[np.arange(3.0), np.arange(5.0)], [np.ones(3), np.ones(5)]]
    for sigma, expected in ((2.0, [0.5, 0.5]), (np.array([2.0, 4.0]), [0.5, 0.25])):
        weight = gather(lists, ("x",), "y", sigma=sigma).block(0, 2).weight
        assert (weight[0, :3] == expected[0]).all()
        assert (weight[1] == expected[1]).all()


def test_text_in_a_list_is_refused_as_ever():
    with pytest.raises(gradfit.DataError):
        gather([np.arange(2.0), [np.array(["a", "b"]), np.array(["c", "d"])]], ("x",), "y")
