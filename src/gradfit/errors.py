"""Exceptions and warnings, drawn as one tree.

::

    GradfitError                     everything gradfit raises
    ├── DataError        ValueError  data that cannot be fitted: missing file, NaN, wrong length, bad sigma
    ├── ModelError       ValueError  a model that does not work as a function of its data and parameters
    │   └── FormulaError             a formula outside the grammar
    ├── ParameterError   ValueError  start, bounds, fixed, tied: unknown names, contradictions
    ├── OptionError      TypeError   an unknown method, option or value of an option
    ├── FitError         RuntimeError a fit that failed, where ``on_failure="raise"`` asks for an exception
    ├── StorageError     ValueError  a saved fit that cannot be read, or written
    └── MissingDependencyError  ImportError  a package of an extra is needed and not installed

    GradfitWarning       UserWarning everything gradfit warns of
    └── FitWarning                   the fit needs attention: not converged
        └── UndeterminedWarning  scipy.optimize.OptimizeWarning  parameters that the data do not determine, errors that cannot be had

Each message has three parts: what came, what was expected, what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scipy.optimize import OptimizeWarning


class GradfitError(Exception):
    """Base of every exception that gradfit raises."""


class DataError(GradfitError, ValueError):
    """The data cannot be fitted as given."""


class ModelError(GradfitError, ValueError):
    """The model does not work as a function of its data and parameters."""


class FormulaError(ModelError):
    """The text is not a formula of the grammar in :mod:`gradfit.model.expression`."""


class ParameterError(GradfitError, ValueError):
    """Start values, bounds, fixed or tied parameters contradict each other or the model."""


class OptionError(GradfitError, TypeError):
    """An option, method or value that gradfit does not know."""


class FitError(GradfitError, RuntimeError):
    """The fit failed and ``on_failure="raise"`` was asked for."""


class StorageError(GradfitError, ValueError):
    """A saved fit cannot be read or written."""


class MissingDependencyError(GradfitError, ImportError):
    """An optional package is needed for what was asked."""


class GradfitWarning(UserWarning):
    """Base of every warning that gradfit issues."""


class FitWarning(GradfitWarning):
    """The fit ended, but not in a way to be trusted without a look."""


if TYPE_CHECKING:

    class UndeterminedWarning(FitWarning, OptimizeWarning):
        """The fit reached its minimum, and the data do not determine every parameter, or leave nothing to estimate errors from."""

else:

    def __getattr__(name: str) -> Any:
        """Make `UndeterminedWarning` when it is first asked for: it is also scipy's, and scipy.optimize takes a second to import."""
        if name != "UndeterminedWarning":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from scipy.optimize import OptimizeWarning

        said = "The fit reached its minimum, and the data do not determine every parameter, or leave nothing to estimate errors from."
        made = type(name, (FitWarning, OptimizeWarning), {"__module__": __name__, "__doc__": said})
        return globals().setdefault(name, made)  # of two threads the first one's


def unknown(kind: str, given: object, known: Iterable[str], remedy: str = "") -> str:
    """Word the message for a name nobody knows: what came, what is known, the nearest match."""
    names = sorted(known)
    near = get_close_matches(str(given).lower(), [name.lower() for name in names], n=1, cutoff=0.6)
    guess = next((name for name in names if near and name.lower() == near[0]), None)
    hint = f" Did you mean {guess!r}?" if guess else ""
    tail = f" {remedy}" if remedy else ""
    return f"unknown {kind} {given!r}; known: {', '.join(names) or 'none'}.{hint}{tail}"
