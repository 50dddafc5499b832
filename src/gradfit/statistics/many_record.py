"""ManyRecord: all that is known of many fits, as plain arrays; what is stored, exported and drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gradfit.data.batch import FLAWS
from gradfit.data.pieces import PIECE
from gradfit.methods.many import BAD_START, NAMES, NOT_DONE, OF_FLAW, REFUSED, SUCCESSFUL, TOO_FEW
from gradfit.typing import Floats

SENTENCES = {
    "converged": "Converged: the loss is at its minimum, to less than a hundredth of a standard error.",
    "completed": "Completed its epochs; whether that is the minimum, the learning curves must say.",
    "stopped_early": "Stopped early: the validation loss no longer fell; the best parameters are kept.",
    "not_converged": "Not converged: no minimum within the steps allowed; raise max_steps, or start closer.",
    "stalled": "No further step lowers the loss, and the minimum is not certain: a plateau, or a rough model; start elsewhere, or set bounds.",
    "diverged": "Diverged: the loss grew beyond return; lower the learning rate.",
    "not_finite": "The loss or its derivative is not finite at the start; start where the model gives finite numbers.",
    "not_done": "Not fitted: the work was interrupted before this fit.",
}
SENTENCES |= {NAMES[OF_FLAW[flaw]]: f"Not fitted: {sentence}." for flaw, sentence in FLAWS.items()}
SENTENCES[NAMES[TOO_FEW]] = (
    "Not fitted: it has fewer rows than parameters, or none left to validate on; add data, or fix some parameters."
)
SENTENCES[NAMES[BAD_START]] = "Not fitted: its start is NaN, or outside its bounds."
SENTENCES[NAMES[REFUSED]] = "Not fitted: the model or the method raised an error for its data, which fits[i] raises again."


@dataclass(frozen=True)
class ManyRecord:
    """Results of many fits.

    Attributes
    ----------
    names
        Names of the numbers that are not fixed, free and tied ones: the columns of ``values``.
    shapes
        Shape of every parameter by name, fixed ones included; () for a number.
    fixed
        Values of fixed parameters by name: a number or an array of its shape for all fits, or one for each: (count,) or (count, ...).
    keys
        What each fit is called, by name of the grouping column: (count,) each. Empty: by its place.
    values, stderr
        (count, m), in the parameters' units. A failed fit keeps the best values it found, NaN where there was none to make; an error is NaN where it
        cannot be vouched for.
    loss, validation_loss
        Mean loss of the rows, (count,); of the validation rows, or None.
    n, steps
        Rows fitted and steps taken, (count,).
    status
        (count,) int8, places in :data:`gradfit.methods.many.NAMES`.
    covariance
        (count, m, m), or None where it was not asked for.
    dof
        Degrees of freedom of each, (count,): rows less free parameters that are on no bound, infinite where the noise is known, NaN
        where nothing was fitted; or None where that is not known.
    model, method, loss_name, engine, engine_reason
        What was fitted, and how.
    beginning
        Where fits began that were given no start, in a sentence; "" where there is nothing to say.
    """

    names: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    fixed: Mapping[str, float | Floats]
    values: Floats = field(repr=False)
    stderr: Floats = field(repr=False)
    loss: Floats = field(repr=False)
    n: np.ndarray = field(repr=False)
    steps: np.ndarray = field(repr=False)
    status: np.ndarray = field(repr=False)
    covariance: Floats | None = field(default=None, repr=False)
    validation_loss: Floats | None = field(default=None, repr=False)
    dof: Floats | None = field(default=None, repr=False)
    keys: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    model: str = ""
    data_names: tuple[str, ...] = ()
    target: str = "y"
    method: str = ""
    loss_name: str = "squared"
    engine: str = "native"
    engine_reason: str = ""
    beginning: str = ""

    @classmethod
    def empty(cls, count: int, names: tuple[str, ...], *, covariance: bool, validation: bool, **said: object) -> ManyRecord:
        """Make room for the results of fits that are not made yet."""
        m = len(names)

        def unknown(*shape: int) -> Floats:
            return np.full(shape[::-1], np.nan).T  # a parameter lies in one piece

        return cls(
            names=names,
            values=unknown(count, m),
            stderr=unknown(count, m),
            loss=unknown(count),
            n=np.zeros(count, dtype=np.int32),
            steps=np.zeros(count, dtype=np.int32),
            status=np.full(count, NOT_DONE, dtype=np.int8),
            covariance=unknown(count, m, m) if covariance else None,
            validation_loss=unknown(count) if validation else None,
            dof=unknown(count),
            **said,  # type: ignore[arg-type]
        )

    @property
    def count(self) -> int:
        """How many fits."""
        return len(self.status)

    @property
    def success(self) -> np.ndarray:
        """Which may be used as fits, (count,) bool."""
        return np.asarray(SUCCESSFUL[self.status])

    @property
    def counts(self) -> list[int]:
        """How many fits ended in which status, by place in :data:`gradfit.methods.many.NAMES`."""
        found = np.zeros(len(NAMES), dtype=np.int64)
        for begin in range(0, self.count, PIECE):
            found += np.bincount(self.status[begin : begin + PIECE], minlength=len(NAMES))
        return found.tolist()

    def of_its_own(self, name: str) -> bool:
        """Whether each fit has a value of its own for a fixed parameter."""
        return np.ndim(self.fixed[name]) > len(self.shapes.get(name, ()))

    def part(self, places: np.ndarray | slice) -> ManyRecord:
        """Give some of the fits."""
        arrays: dict[str, Any] = {name: None if (own := getattr(self, name)) is None else own[places] for name in ARRAYS}
        keys = {name: labels[places] for name, labels in self.keys.items()}
        fixed = {name: np.asarray(value)[places] if self.of_its_own(name) else value for name, value in self.fixed.items()}
        return replace(self, **arrays, keys=keys, fixed=fixed)

    def arrays(self, begin: int, end: int) -> dict[str, np.ndarray]:
        """Results of some fits by name, without a copy: (end - begin,) or (end - begin, k) each, none without numbers."""
        found = {name: own[begin:end] for name in ARRAYS if (own := getattr(self, name)) is not None and own.size}
        return {name: own if own.ndim < 3 else own.reshape(end - begin, -1) for name, own in found.items()}

    def put_arrays(self, begin: int, end: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Take in what :meth:`arrays` gave."""
        for name, array in arrays.items():
            own = getattr(self, name)[begin:end]
            own[:] = array.reshape(own.shape)

    def put(self, places: np.ndarray | slice, other: ManyRecord) -> None:
        """Take in the results of some of the fits."""
        for name in ARRAYS:
            own = getattr(self, name)
            if own is not None:
                own[places] = getattr(other, name)


ARRAYS = ("values", "stderr", "loss", "n", "steps", "status", "covariance", "validation_loss", "dof")
