"""A FitRecord as a JSON file, and back.

The file carries a schema number. Reading takes any schema up to ours; numbers are written so that they read back to the same
bits, NaN and infinity as the texts "NaN", "Infinity", "-Infinity".
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from gradfit.errors import StorageError
from gradfit.statistics.diagnosis import Diagnosis
from gradfit.statistics.findings import Finding
from gradfit.statistics.goodness import Goodness
from gradfit.statistics.record import Beginning, Distances, Estimate, FitRecord, History, Minimum, ModelRecord, Points

FORMAT = "gradfit fit"
SCHEMA = 1


def to_json(record: FitRecord) -> str:
    """Write a record as JSON text."""
    content = {field.name: plain(getattr(record, field.name)) for field in dataclasses.fields(record)}
    return json.dumps({"format": FORMAT, "schema": SCHEMA, **content}, ensure_ascii=False, allow_nan=False, indent=1)


def from_json(text: str) -> FitRecord:
    """Read a record from JSON text.

    Raises
    ------
    StorageError
        No JSON, no fit, a newer schema, or parts missing.
    """
    try:
        stored = json.loads(text)
    except (ValueError, RecursionError) as error:  # JSONDecodeError, or a number of thousands of digits
        raise StorageError(f"this is no JSON ({error}); expected a file that fit.save() wrote.") from None
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        raise StorageError("this JSON is no saved fit; expected a file that fit.save() wrote.")
    schema = stored.get("schema")
    if type(schema) is not int or not 1 <= schema <= SCHEMA:
        raise StorageError(f"the file has schema {schema!r} and this gradfit reads up to {SCHEMA}; upgrade gradfit.")
    try:
        return _record(stored)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise StorageError(f"the saved fit is damaged or incomplete ({type(error).__name__}: {error}); save it again.") from None


def _record(stored: dict[str, Any]) -> FitRecord:
    given = {"kind": "given", "text": "", "minima": []}
    stored = {"source": "", "findings": [], "beginning": given} | stored  # files of the first versions have none
    fields = {field.name: stored[field.name] for field in dataclasses.fields(FitRecord)}
    model, points, diagnosis = fields["model"], fields["points"], fields["diagnosis"]
    p = len(fields["names"])
    fields |= {
        "model": ModelRecord(
            **{
                **model,
                "data_names": tuple(model["data_names"]),
                "shapes": {name: tuple(int(size) for size in shape) for name, shape in model["shapes"].items()},
            }
        ),
        "estimates": tuple(_estimate(estimate) for estimate in fields["estimates"]),
        "findings": tuple(_finding(finding) for finding in fields["findings"]),
        "beginning": _beginning(fields["beginning"]),
        "names": tuple(fields["names"]),
        "warnings": tuple(fields["warnings"]),
        "covariance": _array(fields["covariance"]).reshape((p, p) if fields["covariance"] else (0, 0)),
        "fold_losses": tuple(number(loss) for loss in fields["fold_losses"]),
        "goodness": Goodness(**{name: number(value) for name, value in fields["goodness"].items()}),
        "history": History({name: _column(values) for name, values in fields["history"].items()}),
        "diagnosis": Diagnosis(**{**diagnosis, "reasons": tuple(diagnosis["reasons"])}),
        "points": Points(
            columns={name: _array(values) for name, values in points["columns"].items()},
            target=_array(points["target"]),
            prediction=_array(points["prediction"]),
            sigma=None if points["sigma"] is None else _array(points["sigma"]),
            held_out=np.array(points["held_out"], dtype=bool),
            complete=bool(points["complete"]),
            distances=_distances(points.get("distances")),
        ),
    }
    numbers = ("loss", "validation_loss", "dof", "noise")
    record = FitRecord(**{**fields, **{name: number(fields[name]) for name in numbers}})
    _check(record)
    return record


def _distances(stored: Mapping[str, Any] | None) -> Distances | None:
    if stored is None:
        return None
    sigma_x, errors = ({name: _array(values) for name, values in stored[table].items()} for table in ("sigma_x", "errors"))
    return Distances(sigma_x, errors, _array(stored["signed"]))


def _beginning(stored: Mapping[str, Any]) -> Beginning:
    minima = (
        Minimum({name: number(value) for name, value in own["values"].items()}, number(own["loss"]), own["starts"])
        for own in stored["minima"]
    )
    return Beginning(stored["kind"], stored["text"], tuple(minima))


def _check(record: FitRecord) -> None:
    """Refuse a record whose parts are of other types than declared, or contradict each other."""
    parts = (record.beginning, *record.beginning.minima, *record.estimates, *record.findings)
    for part in (record, record.model, record.goodness, record.diagnosis, *parts):
        for name, hint in get_type_hints(type(part)).items():
            if not _fits(getattr(part, name), hint):
                raise ValueError(f"{name} is no {getattr(hint, '__name__', hint)}")
    if sum(math.prod(shape) for shape in record.model.shapes.values()) != len(record.estimates):
        raise ValueError("shapes and estimates disagree")
    if not set(record.names) <= {estimate.name for estimate in record.estimates}:
        raise ValueError("names and estimates disagree")
    if any(estimate.stderr < 0 for estimate in record.estimates):
        raise ValueError("a standard error is negative")
    points = record.points
    tables = [[record.history[name] for name in record.history]]
    tables += [[points.target, points.prediction, points.held_out, *points.columns.values()]]
    tables[1] += [] if points.sigma is None else [points.sigma]
    if (found := points.distances) is not None:
        tables[1] += [found.signed, *found.sigma_x.values(), *found.errors.values()]
    if any(len({column.shape[0] for column in table}) > 1 for table in tables):
        raise ValueError("columns have different lengths")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type, as far as plain values go."""
    arguments = get_args(hint)
    if hint in (int, float, str, bool, type(None)):
        return isinstance(value, int if hint is int else hint) and (hint is bool or not isinstance(value, bool))
    if get_origin(hint) is types.UnionType:
        return any(_fits(value, choice) for choice in arguments)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(item, arguments[0]) for item in value)
    if get_origin(hint) is Mapping:
        return isinstance(value, Mapping)
    return True


def _estimate(stored: Mapping[str, Any]) -> Estimate:
    numbers = ("value", "stderr", "lower", "upper", "start")
    low, high = stored["bounds"]
    return Estimate(**{**stored, **{name: number(stored[name]) for name in numbers}, "bounds": (number(low), number(high))})


def _finding(stored: Mapping[str, Any]) -> Finding:
    numbers = {name: number(stored[name]) for name in ("number", "threshold", "p_value")}
    return Finding(**{**stored, **numbers, "parameters": tuple(stored["parameters"]), "rows": tuple(stored["rows"])})


def plain(value: Any) -> Any:
    """Turn a value into what JSON knows."""
    if isinstance(value, History):
        return {name: plain(column) for name, column in value.to_dict().items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def number(stored: Any) -> float:
    if isinstance(stored, bool) or (isinstance(stored, str) and stored not in ("NaN", "Infinity", "-Infinity")):
        raise ValueError(f"{stored!r} is no number")
    return float(stored)


def _array(stored: Any) -> np.ndarray:
    array = np.array(stored, dtype=object)  # numbers and texts side by side stay what they are
    return np.array([number(value) for value in array.ravel().tolist()], dtype=np.float64).reshape(array.shape)


def _column(stored: Any) -> np.ndarray:
    """A column of the history; counts stay whole numbers."""
    whole = isinstance(stored, list) and all(type(value) is int for value in stored)
    return np.array(stored, dtype=np.int64) if whole and stored else _array(stored)


def read_whole(path: str | os.PathLike[str]) -> str:
    """Read a text file; StorageError says what is wrong with it."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise StorageError(f"there is no file {str(path)!r}; check the name and the folder.") from None
    except UnicodeDecodeError:
        raise StorageError(f"{str(path)!r} is no text; expected a file that fit.save() wrote.") from None
    except OSError as error:
        raise StorageError(f"{str(path)!r} cannot be read: {error.strerror}; check the name and its permissions.") from None
    except (TypeError, ValueError) as error:  # no path at all, or a zero byte in it
        raise StorageError(f"{str(path)!r} cannot be read: {error}; check the name.") from None
