"""When to stop: early stopping by the validation loss, divergence, and what counts as having arrived."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real

from gradfit.compiler.descent_code import GROWTH
from gradfit.errors import OptionError

DIVERGED_FACTOR = GROWTH  # a loss this many times its start will not come back
ARRIVED = 0.01  # standard errors: a distance nobody can see in the result


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when the validation loss has not improved for a while, and go back to the best parameters.

    Parameters
    ----------
    patience
        Epochs without improvement before stopping.
    min_delta
        What counts as improvement: a loss lower than the best by more than this, in units of the loss.
    """

    patience: int = 100
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        """Check both numbers."""
        if isinstance(self.patience, bool) or not isinstance(self.patience, Integral) or self.patience < 1:
            raise OptionError(f"patience is {self.patience!r}; expected a whole number of epochs, 1 or more.")
        if not (isinstance(self.min_delta, Real) and 0 <= self.min_delta < math.inf):
            raise OptionError(f"min_delta is {self.min_delta!r}; expected 0 or more, in units of the loss.")
