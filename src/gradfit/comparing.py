"""compare: models of the same data side by side. Checks that they can be compared, and puts the numbers together."""

from __future__ import annotations

import json
import warnings as python_warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from itertools import combinations
from typing import Any

import numpy as np

from gradfit.data.split import k_folds
from gradfit.drivers.single import cross_validate
from gradfit.errors import DataError, FitWarning, OptionError, unknown
from gradfit.methods.method import Status
from gradfit.model.parameters import Parameters
from gradfit.report import comparison_table, storage
from gradfit.result import FitResult, at_hand
from gradfit.results import FitResults
from gradfit.statistics.comparison import Compared, Relation, compared, size_of
from gradfit.statistics.nesting import nested as find_nested
from gradfit.statistics.same_data import check_same_data
from gradfit.statistics.summary import Fitted
from gradfit.typing import Floats

LOADED = "a fit that was loaded from a file has no model and data at hand"


class Comparison(Compared):
    """Models side by side, the best first; see :class:`gradfit.statistics.comparison.Compared` for its fields.

    ``print`` shows the table; ``comparison["line"]`` is the row of a model, ``comparison.best`` the name of the best one.
    """

    def __getitem__(self, name: str) -> Any:
        """Give the row of a model."""
        for row in self.rows:
            if row.name == name:
                return row
        raise OptionError(unknown("model of the comparison", name, self.names))

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values: ``rows`` and ``pairs`` are lists of dicts."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        lists = {"rows": [row.to_dict() for row in self.rows], "pairs": [dict(vars(pair)) for pair in self.pairs]}
        return plain | lists | {"warnings": list(self.warnings), "best": self.best}

    def to_json(self) -> str:
        """The same as JSON text; numbers that are not finite are texts, as in a saved fit."""
        return json.dumps(storage.plain(self.to_dict()), ensure_ascii=False, allow_nan=False, indent=1)

    def to_pandas(self) -> Any:
        """Give the rows as a pandas DataFrame by name; needs pandas."""
        import pandas

        table = pandas.DataFrame([row.to_dict() for row in self.rows]).drop(columns="fold_losses")
        return table.set_index("name")

    def __str__(self) -> str:
        """Show the table, the tests, and what was not tested."""
        return comparison_table.text(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return comparison_table.html(self)


def compare(
    fits: Sequence[FitResult] | Mapping[str, FitResult],
    *,
    folds: int | None = None,
    seed: int = 0,
    names: Sequence[str] | None = None,
    nested: Mapping[tuple[str, str], bool] | None = None,
) -> Comparison:
    """Compare models that were fitted to the same data: information criteria, Akaike weights, tests of nested models, cross-validation.

    Parameters
    ----------
    fits
        Results of :func:`gradfit.fit`, two or more, in a list or by name in a dict. They must share the training rows, the target, its
        sigma and the loss; inputs may differ where their names do.
    folds
        Cross-validate all models on the same folds of the training rows, this many: each with its own method, from its solution where
        that is a minimum, otherwise from its start.
    seed
        Of the folds.
    names
        What to call the models in a list; default: their labels. Of names that are alike the later ones get numbers.
    nested
        ``{("line", "parabola"): True}`` says that the first is a special case of the second, or that it is not, instead of finding it
        out; see :mod:`gradfit.statistics.nesting`. A loaded result cannot find it out.

    Returns
    -------
    Comparison

    Raises
    ------
    DataError
        Fewer than two fits, fits to different data, folds that leave fewer rows than parameters.
    OptionError
        What is no fit, names that do not match, ``nested`` of models that are not there or not smaller and larger.
    """
    results = _named(fits, names)
    known = {name: at_hand(result) for name, result in results.items()}
    records = {name: result.record for name, result in results.items()}
    check_same_data(known, records)
    sizes = {name: size_of(record) for name, record in records.items()}
    relations = _relations(known, sizes, _checked_nested(nested, sizes))
    remarks: dict[str, str] = {}
    losses: dict[str, Floats] = {}
    if folds is not None:
        losses, remarks = _cross_validated(known, records, folds, seed)
    found = compared(records, relations, losses, remarks, seed=seed)
    comparison = Comparison(**{field.name: getattr(found, field.name) for field in fields(found)})
    for warning in comparison.warnings:
        python_warnings.warn(warning, FitWarning, stacklevel=2)
    return comparison


# --- what came ----------------------------------------------------------------------------------------------------------


def _named(fits: Any, names: Sequence[str] | None) -> dict[str, FitResult]:
    """Give the fits by name, each name once."""
    if isinstance(fits, (FitResult, FitResults)) or not isinstance(fits, Iterable):
        raise OptionError(
            f"compare was given {_told(fits)}; expected a list of fits, or a dict of them by name: compare([fit1, fit2])."
        )
    if isinstance(fits, Mapping):
        if names is not None:
            raise OptionError(
                "names were given beside a dict of fits, whose keys are their names; leave names out, or pass a list."
            )
        listed, called = list(fits.values()), [str(name) for name in fits]
    else:
        listed, called = list(fits), []
    for place, one in enumerate(listed):
        if not isinstance(one, FitResult):
            hint = " One fit of many is fits[place]." if isinstance(one, FitResults) else ""
            raise OptionError(f"compare was given {_told(one)} in place {place}; expected results of gradfit.fit.{hint}")
    if len(listed) < 2:
        count = "no fit" if not listed else "one fit"
        raise DataError(f"compare was given {count}; expected two or more, so fit another model to the same data.")
    if names is not None:
        if isinstance(names, str) or len(names) != len(listed):
            raise OptionError(f"names is {names!r} for {len(listed)} fits; give one name for each.")
        called = [str(name) for name in names]
    return dict(zip(numbered(called or [one.record.model.label for one in listed]), listed, strict=True))


def _told(value: Any) -> str:
    if isinstance(value, FitResults):
        return f"the results of {len(value)} fits"
    return "a single fit" if isinstance(value, FitResult) else f"{type(value).__name__} {value!r}"[:80]


def numbered(names: Sequence[str]) -> list[str]:
    """Tell names that are alike apart: line, line 2, line 3."""
    found: list[str] = []
    for name in names:
        candidate, number = name, 1
        while candidate in found:
            number += 1
            candidate = f"{name} {number}"
        found.append(candidate)
    return found


def _checked_nested(nested: Any, sizes: Mapping[str, int]) -> dict[tuple[str, str], bool]:
    if nested is None:
        return {}
    if not isinstance(nested, Mapping):
        raise OptionError(
            f"nested is {nested!r}; expected pairs of names with True or False, such as {{('line', 'parabola'): True}}."
        )
    for pair, claim in nested.items():
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(claim, bool)):
            raise OptionError(
                f"nested has {pair!r}: {claim!r}; expected two names and True or False, such as ('line', 'parabola'): True."
            )
        for name in pair:
            if name not in sizes:
                raise OptionError(unknown("model", name, sizes, "nested speaks of it."))
        smaller, larger = pair
        if claim and sizes[smaller] >= sizes[larger]:
            raise OptionError(
                f"nested says that {smaller!r} is a special case of {larger!r}, and they fitted {sizes[smaller]} and {sizes[larger]} parameters; "
                "name the smaller model first."
            )
    return dict(nested)


# --- what is found out --------------------------------------------------------------------------------------------------


def _relations(
    known: Mapping[str, Fitted | None], sizes: Mapping[str, int], told: Mapping[tuple[str, str], bool]
) -> dict[tuple[str, str], Relation]:
    """Which of two models is nested in the other."""
    found = {}
    for two in combinations(known, 2):
        smaller, larger = sorted(two, key=lambda name: sizes[name])
        claim = told.get((smaller, larger))
        few, many = known[smaller], known[larger]
        if claim is not None:
            relation = Relation(claim, "" if claim else "not nested, as was said")
        elif sizes[smaller] == sizes[larger]:
            relation = Relation(None, "as many parameters in both, so neither is a special case of the other")
        elif few is None or many is None:
            relation = Relation(None, f"{LOADED}, so whether it is nested cannot be found out; say nested= yourself")
        else:
            relation = find_nested(few, many)
        found[smaller, larger] = relation
    return found


def _cross_validated(
    known: Mapping[str, Fitted | None], records: Collection[str], folds: int, seed: int
) -> tuple[dict[str, Floats], dict[str, str]]:
    """Losses on the same folds, by model; and what to say of those that have none."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**63:
        raise OptionError(f"seed is {seed!r}; expected a whole number from 0 to 2**63 - 1.")
    losses: dict[str, Floats] = {}
    remarks: dict[str, str] = {}
    for name in records:
        fitted = known[name]
        if fitted is None:
            remarks[name] = f"not cross-validated: {LOADED}"
            continue
        data, method = fitted.setting.data, fitted.setting.method
        parts = k_folds(data.n, folds, seed=seed)
        free = len(fitted.setting.parameters.free_elements)
        smallest = min(len(rows) for rows, _ in parts)
        if fitted.setting.model.kind != "module" and smallest < free:
            raise DataError(
                f"folds={folds} leaves {smallest} rows for the {free} parameters of {name!r}; use more folds or more data."
            )
        if fitted.outcome.solution.status.success:
            losses[name] = cross_validate(method, fitted.kernel, _begun(fitted), data, parts, seed=seed)
    return losses, remarks


def _begun(fitted: Fitted) -> Parameters:
    """Where the fits without a fold begin.

    A minimum is a minimum wherever one begins, so at the solution, which keeps to the same one. A descent that was stopped on its
    way would remember there the rows it must not know: it begins as the fit did.
    """
    parameters, solution = fitted.setting.parameters, fitted.outcome.solution
    if solution.status is not Status.CONVERGED or fitted.setting.model.kind == "module":
        return parameters
    return parameters.at(solution.theta)
