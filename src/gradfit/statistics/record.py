"""FitRecord: all that is known of a fit, as plain values. What is saved, printed and drawn is this and nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradfit.errors import DataError, unknown
from gradfit.statistics.diagnosis import Diagnosis
from gradfit.statistics.findings import Finding
from gradfit.statistics.goodness import Goodness
from gradfit.statistics.rounding import rounded
from gradfit.typing import Floats

LEVEL = 0.95
MAX_COLUMNS = 64  # parameters that get history columns of their own


class History:
    """The history of a fit as a table: one row per step, columns by name.

    ``history["train_loss"]`` is a column (steps,); ``history.row(500)`` the row of epoch 500; ``history.to_dict()`` plain
    lists, which any data frame takes. Columns: epoch (from 1), train_loss, validation_loss, learning_rate (or damping), one
    per free parameter, one per gradient (``grad_w``). Row e holds loss and gradient before step e, parameters after it.
    A parameter that is named like another column stands under ``param_`` and its name.
    """

    def __init__(self, columns: Mapping[str, Any]) -> None:
        self._columns = {name: np.asarray(values) for name, values in columns.items()}

    @property
    def columns(self) -> tuple[str, ...]:
        """Column names."""
        return tuple(self._columns)

    def __getitem__(self, name: str) -> np.ndarray:
        """Give a column."""
        if name not in self._columns:
            raise DataError(unknown("column of the history", name, self._columns))
        return self._columns[name]

    def __contains__(self, name: object) -> bool:
        """Whether there is a column of this name."""
        return name in self._columns

    def __iter__(self) -> Iterator[str]:
        """Iterate over column names, as a mapping does."""
        return iter(self._columns)

    def keys(self) -> tuple[str, ...]:
        """Column names: with ``[]`` this makes ``pandas.DataFrame(dict(history))`` work."""
        return self.columns

    def __len__(self) -> int:
        """Give the number of rows."""
        return len(next(iter(self._columns.values()), ()))

    def row(self, epoch: int) -> dict[str, float]:
        """Row of an epoch, counted from 1; negative counts from the end."""
        index = epoch - 1 if epoch > 0 else epoch
        if not -len(self) <= index < len(self) or epoch == 0:
            raise DataError(f"the history has epochs 1 to {len(self)}; {epoch} is none of them.")
        return {name: values[index].item() for name, values in self._columns.items()}

    def to_dict(self) -> dict[str, list[Any]]:
        """Columns as lists."""
        return {name: values.tolist() for name, values in self._columns.items()}

    def to_pandas(self) -> Any:
        """Give a pandas DataFrame; needs pandas."""
        import pandas

        return pandas.DataFrame(dict(self._columns))

    def sample(self, count: int) -> list[dict[str, float]]:
        """About ``count`` rows, evenly spaced, the last one included."""
        if len(self) == 0:
            return []
        step = max(1, len(self) // count)
        epochs = sorted({*range(step, len(self) + 1, step), 1, len(self)})
        return [self.row(epoch) for epoch in epochs]

    def __repr__(self) -> str:
        """Show the size and the columns."""
        return f"History({len(self)} rows: {', '.join(self.columns)})"


@dataclass(frozen=True)
class Estimate:
    """One fitted parameter.

    Attributes
    ----------
    value, stderr
        Fitted value and standard error; the error is NaN where it cannot be vouched for, 0 for a fixed parameter.
    lower, upper
        95% interval by Student's t.
    start, bounds
        Where it began (``assumed`` if nobody said), and its limits.
    fixed, tied, at_bound
        Kept at its start; the formula it follows; whether it ended on a bound.
    reason
        Why the error is NaN; else "".
    """

    name: str
    value: float
    stderr: float
    lower: float
    upper: float
    start: float
    bounds: tuple[float, float] = (-math.inf, math.inf)
    assumed: bool = False
    fixed: bool = False
    tied: str | None = None
    at_bound: bool = False
    reason: str = ""

    def __str__(self) -> str:
        """Value and error, rounded."""
        return f"{self.name} = {rounded(self.value, self.stderr)}"


@dataclass(frozen=True)
class Minimum:
    """One of the minima that many starts led to.

    Attributes
    ----------
    values
        The free numbers there, by name.
    loss
        Mean loss.
    starts
        How many starts ended there.
    """

    values: Mapping[str, float]
    loss: float
    starts: int


@dataclass(frozen=True)
class Beginning:
    """Where a fit began.

    Attributes
    ----------
    kind
        "given", "shape" (guessed from the shape of the curve), "search", "multistart", "assumed" (at 1, which is as good as any for a model
        linear in its parameters), or "none" (none was found).
    text
        A sentence for the report; "" where there is nothing to say.
    minima
        Distinct minima that were found on the way, the lowest first.
    """

    kind: str
    text: str
    minima: tuple[Minimum, ...] = ()


GIVEN = Beginning("given", "")


@dataclass(frozen=True)
class ModelRecord:
    """What is kept of the model: enough to read it, and where possible to predict with it.

    Attributes
    ----------
    kind, label, text
        "formula", "function" or "module"; a heading; the formula or the source text, for reading only.
    data_names, target
        Its columns.
    shapes
        Shape of each parameter by name, () for a scalar.
    graph
        The computation of one row as plain values, or None.
    needs
        Why there is no graph, and what a prediction from a loaded result needs; "" where nothing.
    """

    kind: str
    label: str
    text: str | None
    data_names: tuple[str, ...]
    target: str
    shapes: Mapping[str, tuple[int, ...]]
    graph: Mapping[str, Any] | None = None
    needs: str = ""


@dataclass(frozen=True)
class Distances:
    """What is known of rows with errors in x.

    Attributes
    ----------
    sigma_x
        Standard deviations of the inexact inputs by name, (m,) each.
    errors
        What was found to be added to them, by name, (m,): x + error is the nearest point of the model.
    signed
        Distance from there in units of the deviations, (m,); positive where the target lies above the model.
    """

    sigma_x: Mapping[str, Floats]
    errors: Mapping[str, Floats]
    signed: Floats

    @classmethod
    def joined(cls, parts: Sequence[Distances]) -> Distances:
        """Join rows of several parts."""
        return cls(
            {name: np.concatenate([part.sigma_x[name] for part in parts]) for name in parts[0].sigma_x},
            {name: np.concatenate([part.errors[name] for part in parts]) for name in parts[0].errors},
            np.concatenate([part.signed for part in parts]),
        )


@dataclass(frozen=True)
class Points:
    """Rows kept for pictures: all of them, or an even selection where they are many.

    Attributes
    ----------
    columns
        Inputs by name, (m,) or (m, k).
    target, prediction
        (m,).
    sigma
        (m,) or None.
    held_out
        (m,) bool: rows of the validation set.
    complete
        Whether no row is missing here.
    distances
        Where x has errors, else None.
    """

    columns: Mapping[str, Floats]
    target: Floats
    prediction: Floats
    sigma: Floats | None
    held_out: np.ndarray
    complete: bool
    distances: Distances | None = None


@dataclass(frozen=True)
class FitRecord:
    """All that is known of a fit; see the fields of :class:`gradfit.result.FitResult` for their meaning."""

    model: ModelRecord
    estimates: tuple[Estimate, ...]
    names: tuple[str, ...]
    covariance: Floats
    covariance_kind: str
    status: str
    success: bool
    message: str
    warnings: tuple[str, ...]
    loss_name: str
    loss: float
    validation_loss: float
    fold_losses: tuple[float, ...]
    goodness: Goodness
    n: int
    n_validation: int
    dropped: int
    dof: float
    noise: float
    absolute_sigma: bool
    method: str
    unit: str
    steps: int
    engine: str
    engine_reason: str
    history: History
    diagnosis: Diagnosis
    points: Points
    source: str = ""
    findings: tuple[Finding, ...] = ()
    beginning: Beginning = GIVEN


def history(solution_columns: Mapping[str, Floats], names: Sequence[str]) -> History:
    """Arrange a solution's columns as the history table.

    Beyond ``limit`` parameters single columns would fill the memory: the norm of the gradient stands for them.
    """
    columns = {name: values for name, values in solution_columns.items() if name not in ("theta", "gradient")}
    steps = len(columns["train_loss"])
    theta, gradient = solution_columns["theta"], solution_columns["gradient"]
    table: dict[str, Any] = {"epoch": np.arange(1, steps + 1), **columns}
    if len(names) > MAX_COLUMNS:
        return History(table | {"grad_norm": np.linalg.norm(gradient, axis=1)})
    slopes = {f"grad_{name}": gradient[:, index] for index, name in enumerate(names)}
    taken = {*table, *slopes}
    values = {f"param_{name}" if name in taken else name: theta[:, index] for index, name in enumerate(names)}
    return History(table | values | slopes)
