"""Many fits read back to the same bits from Parquet and NetCDF; what is damaged is refused; a file is written whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradfit.data.table_file import Categories, open_table, read_table, write_table_atomically
from gradfit.errors import StorageError
from gradfit.methods.many import NAMES
from gradfit.report import many_heading, many_storage
from gradfit.statistics.many_record import ManyRecord

pytest.importorskip("pyarrow")
xarray = pytest.importorskip("xarray")
pytest.importorskip("h5py")

SUFFIXES = (".parquet", ".nc")
# NaN with marks of their own, minus zero, infinity: numbers that an == would not tell apart.
ODD = np.array([0x7FF8000000000001, 0xFFF8000000000007, 0x8000000000000000, 0x7FF0000000000000], dtype=np.uint64).view(np.float64)
KEYS = {
    "text": np.array(["a", "β", "", "d d", "e", "f"]),
    "object": np.array(["a", "bb", "", "d", "e", "温度"], dtype=object),
    "whole": np.arange(6, dtype=np.uint8),
    "real": np.array([*ODD[:3], 0.1, 2.0, -1.0]),
    "truth": np.array([True, False] * 3),
    "day": np.arange(6).astype("M8[D]"),
    "moment": np.array([*np.arange(5), np.iinfo(np.int64).min]).astype("M8[ns]"),  # the last is NaT
    "span": np.arange(6).astype("m8[us]"),
    "loss": np.arange(6),  # what we call a column of ours
    "a": np.arange(6),  # what a parameter is called
}


def record(count: int = 6, *, covariance: bool = True, validation: bool = True, keys: dict[str, Any] | None = None) -> ManyRecord:
    rng = np.random.default_rng(0)
    made = ManyRecord.empty(
        count, ("a", "c[0]", "c[1]", "n"), covariance=covariance, validation=validation,
        shapes={"a": (), "f": (), "c": (2,), "each": (), "v": (2,), "w": (2,), "n": ()}, keys=keys or {}, model="gauß", data_names=("x", "z"),
        fixed={"v": np.array([1.0, 1 / 3]), "f": 1 / 7, "each": rng.normal(size=count), "w": rng.normal(size=(count, 2))},
        method="lm", loss_name="huber", engine_reason="it could be\ncompiled",
    )  # fmt: skip
    for name in ("values", "stderr", "loss", "covariance", "validation_loss", "dof"):
        if (array := getattr(made, name)) is not None:
            array[:] = rng.normal(size=array.shape)
            array.reshape(-1)[: len(ODD)] = ODD[: array.size]
    made.values[: len(ODD), 0] = ODD[:count]
    made.status[:] = np.arange(count) % len(NAMES)
    made.n[:], made.steps[:] = np.arange(count), 7
    return made


def same(one: Any, other: Any) -> bool:
    """Equal to the last bit, and of the same type."""
    if dataclasses.is_dataclass(one):
        return all(same(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(one))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, np.ndarray):
        alike = one.dtype == other.dtype and one.shape == other.shape
        return alike and (one.tolist() == other.tolist() if one.dtype == object else one.tobytes() == other.tobytes())
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "keys", [{}, *({name: labels} for name, labels in KEYS.items()), KEYS], ids=lambda keys: "+".join(keys)[:9]
)
def test_many_fits_read_back_to_the_same_bits(keys, suffix, tmp_path):
    made = record(keys=keys)
    many_storage.save(made, tmp_path / f"fits{suffix}")
    assert same(many_storage.load(tmp_path / f"fits{suffix}"), made)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("kept", [True, False])
def test_no_fit_and_one_fit_are_stored_too(count, kept, suffix, tmp_path):
    made = record(count, covariance=kept, validation=kept, keys={"text": np.array(["a"] * count, dtype="U5")})
    many_storage.save(made, tmp_path / f"fits{suffix}")
    assert same(many_storage.load(tmp_path / f"fits{suffix}"), made)


def test_fits_of_several_row_groups_are_read_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr("gradfit.report.many_parquet.PART", 4)
    made = record(23, keys={"text": np.arange(23).astype(str)})
    many_storage.save(made, tmp_path / "fits.parquet")
    assert open_table(tmp_path / "fits.parquet").file.num_row_groups == 6
    assert same(many_storage.load(tmp_path / "fits.parquet"), made)


def test_other_programs_read_the_columns(tmp_path):
    import pandas
    import polars

    made = record(keys={"sensor": KEYS["text"]})
    many_storage.save(made, tmp_path / "fits.parquet")
    many_storage.save(made, tmp_path / "fits.nc")
    for frame in (pandas.read_parquet(tmp_path / "fits.parquet"), polars.read_parquet(tmp_path / "fits.parquet")):
        np.testing.assert_array_equal(frame["c[1]"].to_numpy(), made.values[:, 2])
        assert frame["status"].to_list()[0] == NAMES[0]
        np.testing.assert_array_equal(frame["n"].to_numpy(), made.values[:, 3])  # the parameter called n
        np.testing.assert_array_equal(frame["n_"].to_numpy(), made.n)
    with xarray.open_dataset(tmp_path / "fits.nc") as dataset:
        np.testing.assert_array_equal(dataset.value.sel(param="f"), np.full(6, 1 / 7))
        np.testing.assert_array_equal(dataset.covariance.sel(cov_i="a", cov_j="n"), made.covariance[:, 0, 3])
        assert dataset.status.values[1] == NAMES[1]
        assert dataset.sensor.values.tolist() == KEYS["text"].tolist()


def test_the_file_is_the_dataset(tmp_path):
    from gradfit.report.many_xarray import to_xarray

    made = record(keys={"sensor": KEYS["text"], "day": KEYS["day"]})
    many_storage.save(made, tmp_path / "fits.nc")
    with xarray.open_dataset(tmp_path / "fits.nc") as dataset:
        said = {name: text for name, text in dataset.attrs.items() if name not in (many_heading.HEADING, many_heading.CHECKSUM)}
        found = dataset.load()
        found.attrs = said
        xarray.testing.assert_identical(found, to_xarray(made))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # h5netcdf closes what it could not open
@pytest.mark.parametrize(("suffix", "times"), [(".parquet", 60), (".nc", 20)])
def test_damage_never_passes_for_a_result(suffix, times, tmp_path):
    made = record(50, keys={"text": np.arange(50).astype(str)})
    path = tmp_path / f"fits{suffix}"
    many_storage.save(made, path)
    whole, rng, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(times):
        damaged = bytearray(whole)
        start = rng.randrange(len(whole))
        if rng.random() < 0.3:
            del damaged[start:]
        else:
            damaged[start] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            found = many_storage.load(path)
        except StorageError:
            refused += 1
        else:  # a bit that nobody reads
            assert same(found, made)
    assert refused > times / 3


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_holds_no_fits_is_refused(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    with pytest.raises(StorageError, match="does not exist"):
        many_storage.load(path)
    for content in (b"", b"hello", b"PAR1" * 10, b"\x89HDF\r\n\x1a\n" * 10):
        path.write_bytes(content)
        with pytest.raises(StorageError, match="no readable"):
            many_storage.load(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(StorageError, match="is a folder"):
        many_storage.load(path)
    path.rmdir()
    if suffix == ".nc":
        xarray.Dataset({"x": ("t", np.arange(3.0))}).to_netcdf(path, engine="h5netcdf")
    else:
        write_table_atomically(path, [{"x": np.arange(3.0)}])
    with pytest.raises(StorageError, match="holds no fits"):
        many_storage.load(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "upgrade gradfit"),
        ({"schema": True}, "schema True"),
        ({"schema": None}, "schema None"),
        ({"format": "another"}, "holds no fits"),
        ({"count": 5}, "6 rows of 5"),
        ({"names": ["a"]}, "names and shapes disagree"),
        ({"shapes": {}}, "damaged or incomplete"),
        ({"keys": {"gone": "<U3"}}, "no readable|damaged or incomplete"),
        ({"keys": {"gone": "nonsense"}}, "damaged or incomplete"),
        ({"arrays": {}}, "damaged or incomplete"),
        ({"texts": None}, "damaged or incomplete"),
        ({"sums": {}}, "values, stderr.*not what was saved"),
    ],
    ids=str,
)
def test_a_heading_that_does_not_fit_is_refused(change, message, suffix, tmp_path, monkeypatch):
    def changed(made: ManyRecord) -> dict[str, str]:
        text = json.dumps(json.loads(many_heading.heading(made)[many_heading.HEADING]) | change)
        return {many_heading.HEADING: text, many_heading.CHECKSUM: many_heading.checksum(text)}

    monkeypatch.setattr("gradfit.report.many_parquet.heading", changed)
    monkeypatch.setattr("gradfit.report.many_xarray.heading", changed)
    many_storage.save(record(), tmp_path / f"fits{suffix}")
    with pytest.raises(StorageError, match=message):
        many_storage.load(tmp_path / f"fits{suffix}")


@pytest.mark.parametrize("name", ["fits.csv", "fits.json", "fits", 7, None])
def test_an_unknown_suffix_is_refused(name, tmp_path):
    with pytest.raises(StorageError, match=r"\.parquet"):
        many_storage.save(record(), tmp_path / name if isinstance(name, str) else name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_place_that_cannot_be_written_says_why_and_stays_as_it_was(suffix, tmp_path):
    with pytest.raises(StorageError, match="cannot be written"):
        many_storage.save(record(), tmp_path / "no" / f"fits{suffix}")
    (tmp_path / f"fits{suffix}").mkdir()
    with pytest.raises(StorageError, match="cannot be written"):
        many_storage.save(record(), tmp_path / f"fits{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == [f"fits{suffix}"]


def test_keys_that_a_format_does_not_know_are_refused(tmp_path):
    mixed = record(keys={"mixed": np.array([1, "a", None, 2.5, (), b""], dtype=object)})
    for suffix, advice in ((".parquet", "convert it"), (".nc", r"save as \.parquet")):
        with pytest.raises(StorageError, match=advice):
            many_storage.save(mixed, tmp_path / f"fits{suffix}")
    nothing = record(keys={"some": np.array(["a", None, "c", None, "e", "f"], dtype=object)})
    many_storage.save(nothing, tmp_path / "fits.parquet")
    assert same(many_storage.load(tmp_path / "fits.parquet"), nothing)
    assert [path.name for path in tmp_path.iterdir()] == ["fits.parquet"]


FULL = """
import resource, signal, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from test_many_storage import record
from gradfit.errors import StorageError
from gradfit.report import many_storage
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
made = record(20_000, keys={"text": np.arange(20_000).astype(str)})
for path in sys.argv[2:]:
    for most in (0, 1_000, 50_000, 1_000_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
        try:
            many_storage.save(made, path)
        except StorageError as error:
            assert "File too large" in str(error), error
        else:
            raise AssertionError(most)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no such limit")
@pytest.mark.slow
def test_a_full_disk_leaves_the_old_file_and_a_living_process(tmp_path):
    paths = [tmp_path / f"fits{suffix}" for suffix in SUFFIXES]
    for path in paths:
        many_storage.save(record(), path)
    before = [path.read_bytes() for path in paths]
    # In a process of its own: HDF5 has been known to take the process with it.
    words = [sys.executable, "-c", FULL, str(Path(__file__).parent), *map(str, paths)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.read_bytes() for path in paths] == before
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_columns_of_a_table_keep_their_bits(tmp_path):
    parts = [
        {"number": ODD, "list": np.arange(8.0).reshape(4, 2), "text": np.array(list("abca")), "kind": Categories(np.array([0, 1, 0, 1]), ("x", "y"))},
        {"number": ODD[:1], "list": np.ones((1, 2)), "text": np.array(["z"]), "kind": Categories(np.array([0]), ("z",))},
    ]  # fmt: skip
    write_table_atomically(tmp_path / "t.parquet", parts, {"what": "ü"})
    found = read_table(tmp_path / "t.parquet")
    assert found["number"].tobytes() == ODD.tobytes() + ODD[:1].tobytes()
    assert found["list"].shape == (5, 2)
    assert found["text"].tolist() == list("abcaz")
    assert found["kind"].text.tolist() == list("xyxyz")
    assert open_table(tmp_path / "t.parquet").metadata["what"] == "ü"
    assert list(read_table(tmp_path / "t.parquet", ["text"])) == ["text"]
