"""gradfit fits parametric models to measured data by exact gradients, and says whether the answer can be trusted."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradfit import lineshapes
    from gradfit.api import fit
    from gradfit.comparing import Comparison, compare
    from gradfit.compat.scipy import curve_fit
    from gradfit.errors import (
        DataError,
        FitError,
        FitWarning,
        FormulaError,
        GradfitError,
        GradfitWarning,
        MissingDependencyError,
        ModelError,
        OptionError,
        ParameterError,
        StorageError,
        UndeterminedWarning,
    )
    from gradfit.many import fit_many, load
    from gradfit.methods.differential_evolution import DifferentialEvolution
    from gradfit.methods.gradient_descent import Averaging, GradientDescent
    from gradfit.methods.levenberg_marquardt import LevenbergMarquardt
    from gradfit.methods.linear_least_squares import LinearLeastSquares
    from gradfit.methods.stopping import EarlyStopping
    from gradfit.model.parameters import Parameter
    from gradfit.result import FitResult
    from gradfit.results import FitResults
    from gradfit.statistics.diagnosis import Diagnosis, diagnose

__version__ = "0.1.0"

# Where each public name lives. Names are imported when first used, so that `gradfit --help` need not wait for torch.
_HOMES = {
    "Averaging": "methods.gradient_descent",
    "Comparison": "comparing",
    "DataError": "errors",
    "Diagnosis": "statistics.diagnosis",
    "DifferentialEvolution": "methods.differential_evolution",
    "EarlyStopping": "methods.stopping",
    "FitError": "errors",
    "FitResult": "result",
    "FitResults": "results",
    "FitWarning": "errors",
    "FormulaError": "errors",
    "GradfitError": "errors",
    "GradfitWarning": "errors",
    "GradientDescent": "methods.gradient_descent",
    "LevenbergMarquardt": "methods.levenberg_marquardt",
    "LinearLeastSquares": "methods.linear_least_squares",
    "MissingDependencyError": "errors",
    "ModelError": "errors",
    "OptionError": "errors",
    "Parameter": "model.parameters",
    "ParameterError": "errors",
    "StorageError": "errors",
    "UndeterminedWarning": "errors",
    "compare": "comparing",
    "curve_fit": "compat.scipy",
    "diagnose": "statistics.diagnosis",
    "fit": "api",
    "fit_many": "many",
    "load": "many",
}

__all__ = [
    "Averaging",
    "Comparison",
    "DataError",
    "Diagnosis",
    "DifferentialEvolution",
    "EarlyStopping",
    "FitError",
    "FitResult",
    "FitResults",
    "FitWarning",
    "FormulaError",
    "GradfitError",
    "GradfitWarning",
    "GradientDescent",
    "LevenbergMarquardt",
    "LinearLeastSquares",
    "MissingDependencyError",
    "ModelError",
    "OptionError",
    "Parameter",
    "ParameterError",
    "StorageError",
    "UndeterminedWarning",
    "compare",
    "curve_fit",
    "diagnose",
    "fit",
    "fit_many",
    "lineshapes",
    "load",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name == "lineshapes":  # a module of its own
        return import_module("gradfit.lineshapes")
    if name not in _HOMES:
        raise AttributeError(f"module 'gradfit' has no attribute {name!r}")
    value = getattr(import_module(f"gradfit.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
