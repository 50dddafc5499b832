"""A saved fit reads back to the same bits; what is damaged is refused."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import gradfit
from gradfit.errors import GradfitError, StorageError
from gradfit.report import storage
from gradfit.statistics.record import History


@pytest.fixture(scope="module")
def fit() -> gradfit.FitResult:
    x = np.array([0.1, 1.0, 2.0, 3.3, 4.0, 5.1])
    noise = np.array([0.1, -0.2, 0.05, 0.1, -0.1, 0.02])
    return gradfit.fit("温度 = w*x + b", data={"x": x, "温度": 2 * x + 1 + noise}, bounds={"w": (0, None)}, validation=[1, 4])


def same(one: Any, other: Any) -> bool:
    """Equal to the last bit; NaN equals NaN, and types count."""
    if dataclasses.is_dataclass(one):
        return type(one) is type(other) and all(
            same(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one)
        )
    if isinstance(one, History):
        return same({name: one[name] for name in one}, {name: other[name] for name in other})
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, float) and math.isnan(one):
        return math.isnan(other)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def test_a_saved_fit_reads_back_to_the_same_bits(fit, tmp_path):
    fit.save(tmp_path / "fit.json")
    loaded = gradfit.load(tmp_path / "fit.json")
    assert same(loaded.record, fit.record)
    assert loaded.to_json() == fit.to_json()
    assert loaded.predict([0.1, 7.0]).tolist() == fit.predict([0.1, 7.0]).tolist()


def test_nan_and_infinity_survive_in_strict_json(fit):
    record = dataclasses.replace(
        fit.record,
        loss=math.nan,
        dof=math.inf,
        noise=-math.inf,
        covariance=np.array([[math.nan, math.inf], [-math.inf, -0.0]]),
        fold_losses=(math.nan, 1 / 3),
    )
    text = storage.to_json(record)
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert same(storage.from_json(text), record)


def test_numbers_keep_every_bit(fit):
    numbers = (0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 2.0**53 + 2)
    record = dataclasses.replace(fit.record, fold_losses=numbers)
    assert [n.hex() for n in storage.from_json(storage.to_json(record)).fold_losses] == [n.hex() for n in numbers]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no JSON"),
        ("hello", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("9" * 5000, "no JSON"),
        ("[]", "no saved fit"),
        ("null", "no saved fit"),
        ('{"format": "another"}', "no saved fit"),
        ('{"format": "gradfit fit"}', "schema None"),
        ('{"format": "gradfit fit", "schema": 2}', "upgrade gradfit"),
        ('{"format": "gradfit fit", "schema": 0}', "schema 0"),
        ('{"format": "gradfit fit", "schema": true}', "schema True"),
        ('{"format": "gradfit fit", "schema": "1"}', "schema '1'"),
        ('{"format": "gradfit fit", "schema": 1}', "damaged or incomplete"),
    ],
)
def test_what_is_no_saved_fit_is_refused(text, message, tmp_path):
    (tmp_path / "fit.json").write_text(text)
    with pytest.raises(StorageError, match=message):
        gradfit.load(tmp_path / "fit.json")


def test_a_truncated_file_is_refused_wherever_it_ends(fit):
    text = fit.to_json()
    for end in range(0, len(text), 97):
        with pytest.raises(StorageError):
            storage.from_json(text[:end])


def places(stored: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if way:
        yield way
    if isinstance(stored, dict):
        for key in stored:
            yield from places(stored[key], (*way, key))
    elif isinstance(stored, list):
        for index in range(min(2, len(stored))):
            yield from places(stored[index], (*way, index))


@pytest.mark.parametrize("damage", [None, "x", -1, [], {}, True, [[1], [2, 3]], "gone"], ids=repr)
def test_any_part_replaced_by_nonsense_is_refused_or_harmless(fit, damage):
    whole = json.loads(fit.to_json())
    for way in places(whole):
        damaged = copy.deepcopy(whole)
        inner = damaged
        for key in way[:-1]:
            inner = inner[key]
        if damage == "gone":
            del inner[way[-1]]
        else:
            inner[way[-1]] = damage
        try:
            record = storage.from_json(json.dumps(damaged))
        except StorageError:
            continue
        storage.to_json(record)
        assert all(isinstance(name, str) for name in (*record.names, *record.warnings, record.message, record.model.label))


@pytest.mark.parametrize(
    "change",
    [
        lambda stored: stored["estimates"][0].update(stderr=-1.0),
        lambda stored: stored["history"]["train_loss"].pop(),
        lambda stored: stored["points"]["target"].pop(),
        lambda stored: stored["points"]["columns"]["x"].pop(),
        lambda stored: stored["estimates"].pop(),
        lambda stored: stored["covariance"].pop(),
        lambda stored: stored.update(names=["w", "q"]),
        lambda stored: stored.update(unknown_part=1) or stored.pop("loss"),
    ],
)
def test_parts_that_contradict_each_other_are_refused(fit, change):
    stored = json.loads(fit.to_json())
    change(stored)
    with pytest.raises(StorageError, match="damaged or incomplete"):
        storage.from_json(json.dumps(stored))


def test_a_formula_in_a_saved_fit_is_data_and_never_code(fit, tmp_path):
    stored = json.loads(fit.to_json())
    stored["model"]["text"] = f"温度 = __import__('os').mkdir({str(tmp_path / 'owned')!r})*x"
    (tmp_path / "fit.json").write_text(json.dumps(stored))
    with pytest.raises(GradfitError):
        gradfit.load(tmp_path / "fit.json")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.json", None, "there is no file"),
        ("bytes.json", b"\xff\xfe\x00", "is no text"),
        (".", None, "cannot be read"),
        ("a\0b", None, "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(StorageError, match=message):
        gradfit.load(str(tmp_path / name))
