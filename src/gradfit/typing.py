"""Type aliases shared by all layers."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.floating[Any]]
"""An array of real numbers; the docstring says the shape."""

Missing: TypeAlias = Literal["raise", "drop"]
OnFailure: TypeAlias = Literal["warn", "raise", "ignore"]
IntervalKind: TypeAlias = Literal["confidence", "prediction"]
