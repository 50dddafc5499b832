"""Rows are set apart as the notebook does it: torch.randperm, the last part for validation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradfit.data.split import k_folds, permutation, split
from gradfit.errors import DataError, OptionError

ALL = np.arange(11)


@pytest.mark.parametrize("seed", [0, 1, 42, 2**63])
def test_the_split_is_the_notebooks(seed):
    torch.manual_seed(seed)
    shuffled = torch.randperm(11)
    train, held_out = split(11, 0.2, seed=seed, row_numbers=ALL)
    assert train.tolist() == shuffled[:-2].tolist()
    assert held_out.tolist() == shuffled[-2:].tolist()


def test_a_split_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    split(11, 0.2, seed=3, row_numbers=ALL)
    assert torch.equal(torch.get_rng_state(), before)


def test_folds_cover_every_row_once():
    folds = k_folds(11, 4, seed=0)
    assert sorted(np.concatenate([held_out for _, held_out in folds]).tolist()) == ALL.tolist()
    assert [len(held_out) for _, held_out in folds] == [3, 3, 3, 2]
    assert all(sorted([*train, *held_out]) == ALL.tolist() for train, held_out in folds)
    assert np.concatenate([held_out for _, held_out in folds]).tolist() == permutation(11, 0).tolist()


@pytest.mark.parametrize(
    "chosen",
    [[10, 3], (10, 3), np.array([10, 3], dtype="u1"), torch.tensor([10, 3]), ALL == 11],
    ids=lambda chosen: type(chosen).__name__,
)
def test_rows_may_be_named(chosen):
    if isinstance(chosen, np.ndarray) and chosen.dtype == bool:
        chosen = np.isin(ALL, [3, 10])
    train, held_out = split(11, chosen, seed=0, row_numbers=ALL)
    assert sorted(held_out) == [3, 10]
    assert train.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]


def test_rows_are_named_as_in_the_source_though_some_were_left_out():
    numbers = np.array([0, 2, 3, 5])
    train, held_out = split(4, [1, 3], seed=0, row_numbers=numbers, source_rows=7)
    assert numbers[held_out].tolist() == [3]
    assert numbers[train].tolist() == [0, 2, 5]


@pytest.mark.parametrize("chosen", [[6, 3], [False, False, False, True, False, False, True]])
def test_a_row_left_out_at_the_end_may_still_be_named(chosen):
    _, held_out = split(4, chosen, seed=0, row_numbers=np.array([0, 2, 3, 5]), source_rows=7)
    assert held_out.tolist() == [2]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (0, "between 0 and 1"),
        (1.0, "between 0 and 1"),
        (-0.2, "between 0 and 1"),
        (float("nan"), "between 0 and 1"),
        (0.01, "is no row"),
        ([], "expected a fraction"),
        (True, "expected a fraction"),
        ("0.2", "expected a fraction"),
        ([0.5], "expected a fraction"),
        ([[1], [2, 3]], "expected a fraction"),
        (torch.tensor(0.2, requires_grad=True), "expected a fraction"),
        ([1, 1], "twice"),
        ([11], "rows 0 to 10"),
        ([-1], "rows 0 to 10"),
        ([True, False], "2 values for 11 rows"),
        ([True] * 12, "12 values for 11 rows"),
        ([False] * 11, "0 to validate"),
        (list(range(11)), "0 rows to train"),
    ],
)
def test_a_validation_that_names_no_rows_is_refused(chosen, message):
    with pytest.raises(DataError, match=message):
        split(11, chosen, seed=0, row_numbers=ALL, source_rows=11)


@pytest.mark.parametrize("folds", [0, 1, 12, 2.0, True, "5", None])
def test_folds_are_a_whole_number_from_two_to_the_rows(folds):
    with pytest.raises(DataError, match="from 2 to the number of rows, 11"):
        k_folds(11, folds, seed=0)


def test_a_seed_beyond_what_torch_takes_is_refused():
    with pytest.raises(OptionError, match="seed is 1"):
        permutation(5, 10**30)
