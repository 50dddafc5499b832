"""FitResult: a FitRecord with verbs: predict, plot, report, save."""

from __future__ import annotations

import math
import os
import warnings as python_warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from gradfit.compiler.correlated import AnyKernel
from gradfit.compiler.eager import EagerKernel
from gradfit.compiler.orthogonal import OrthogonalKernel
from gradfit.compiler.saved_trace import trace
from gradfit.data.dataset import Dataset, real
from gradfit.data.files import write_whole
from gradfit.data.sources import read
from gradfit.errors import DataError, FitWarning, GradfitError, ModelError, OptionError, unknown
from gradfit.methods.method import Solution, Status
from gradfit.model.parameters import Parameter, parameters
from gradfit.report import html, plots, storage, text
from gradfit.statistics.bootstrap import MANY_FAILED, RESAMPLES, Bootstrap, bootstrap
from gradfit.statistics.covariance import correlation
from gradfit.statistics.derived import Derived, Design, derive, design, ufloats
from gradfit.statistics.diagnosis import Diagnosis
from gradfit.statistics.findings import Finding
from gradfit.statistics.intervals import band, t_interval
from gradfit.statistics.profile import Profile, contour, ellipse, profile
from gradfit.statistics.record import Beginning, Estimate, FitRecord, History, Minimum, history
from gradfit.statistics.summary import Fitted, Short, summarize
from gradfit.typing import Floats, IntervalKind

KINDS = ("t", "profile", "bootstrap")
BOOTSTRAP_OPTIONS = ("resamples", "scheme", "seed", "threads", "progress", "method")
REGIONS = (0.683, 0.954)  # one and two standard deviations of a normal distribution
CONTOUR_POINTS = 96
GRAPH_AGREEMENT = 1e-9
GRAPH_ROWS = 1000


class FitResult:
    """What a fit found, and what can be done with it.

    Everything known is in ``record``, plain values; the properties below are its names on the public face. The record of a fit
    that was just made is drawn up when somebody asks for more than values, covariance and status.
    """

    def __init__(self, known: FitRecord | Fitted | Short, predictor: EagerKernel | None = None) -> None:
        self._given, self._given_predictor = known, predictor

    @property
    def _short(self) -> Short | None:
        """The fit as far as the short way knows it."""
        return self._given if isinstance(self._given, Short) else None

    @cached_property
    def _known(self) -> FitRecord | Fitted:
        return self._given.whole() if isinstance(self._given, Short) else self._given

    @cached_property
    def record(self) -> FitRecord:
        """All that is known of the fit."""
        return self._known if isinstance(self._known, FitRecord) else summarize(self._known)

    @cached_property
    def _predictor(self) -> EagerKernel | None:
        if isinstance(self._known, FitRecord):
            return self._given_predictor
        return predictor_for(self.record, self._known.kernel)

    @property
    def _fitted(self) -> Fitted | None:
        """The fit before its record was drawn up, where it is simple enough to answer by itself."""
        known = self._known
        return known if isinstance(known, Fitted) and known.plain else None

    # --- parameters ---------------------------------------------------------------------------------------------------

    @cached_property
    def params(self) -> Mapping[str, Estimate]:
        """Each parameter by name: value, stderr, lower, upper (95%), fixed, tied, at_bound, start, reason."""
        return {estimate.name: estimate for estimate in self.record.estimates}

    @property
    def values(self) -> dict[str, Any]:
        """Fitted values by parameter, as the model takes them: numbers, arrays for vector parameters."""
        if self._short is not None:
            return dict(zip(self._short.names, self._short.ended.theta.tolist(), strict=True))
        if self._fitted is not None:
            return dict(zip(self.names, self._fitted.outcome.solution.theta.tolist(), strict=True))
        flat = iter(estimate.value for estimate in self.record.estimates)
        result: dict[str, Any] = {}
        for name, shape in self.record.model.shapes.items():
            numbers = [next(flat) for _ in range(math.prod(shape))]
            result[name] = np.array(numbers).reshape(shape) if shape else numbers[0]
        return result

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all parameters that are not fixed: the order of ``covariance``."""
        if self._short is not None:
            return self._short.names
        return self.record.names if self._fitted is None else self._fitted.setting.parameters.names

    @property
    def covariance(self) -> Floats:
        """Covariance of ``names``, (p, p), in parameter units squared; NaN where it cannot be vouched for."""
        if self._short is not None:
            return self._short.ended.scale * self._short.ended.inverse
        if self._fitted is not None:
            return self._fitted.covariance.matrix.copy()
        p = len(self.record.names)
        return self.record.covariance.copy() if self.record.covariance.size or p == 0 else np.full((p, p), np.nan)

    @property
    def correlation(self) -> Floats:
        """Correlation matrix of ``names``, (p, p)."""
        return correlation(self.covariance)

    def intervals(self, level: float = 0.95, kind: str = "t", **options: Any) -> dict[str, tuple[float, float]]:
        """Interval of each parameter, (lower, upper) by name.

        Parameters
        ----------
        level
            Of confidence, between 0 and 1.
        kind
            "t": value ± t * stderr, Student's t with ``dof`` degrees of freedom. "profile": from the loss itself, see
            :meth:`profile`. "bootstrap": from resampled fits, see :meth:`bootstrap`, which takes the options.
        **options
            Of "bootstrap": ``resamples``, ``scheme``, ``seed``, ``threads``, ``progress``, and ``method`` of its intervals.

        Raises
        ------
        OptionError
            A level outside (0, 1), an unknown kind or option, or a kind that this loss cannot have.
        FitError
            A bootstrap of a fit that is not at a minimum.
        """
        if kind not in KINDS:
            raise OptionError(unknown("kind of interval", kind, KINDS))
        unknown_options = [name for name in options if kind != "bootstrap" or name not in BOOTSTRAP_OPTIONS]
        if unknown_options:
            known = BOOTSTRAP_OPTIONS if kind == "bootstrap" else ()
            raise OptionError(unknown(f"option of {kind} intervals,", unknown_options[0], known))
        if kind == "profile":
            return self._profiled(level)
        if kind == "bootstrap":
            return self._resampled(level, **options)
        return {
            name: t_interval(estimate.value, estimate.stderr, level=level, dof=self.record.dof)
            for name, estimate in self.params.items()
        }

    def _profiled(self, level: float) -> dict[str, tuple[float, float]]:
        found = self.profile(level)
        lost = [name for name, (lower, upper) in found.intervals.items() if math.isnan(lower) or math.isnan(upper)]
        _tell("profile", {name: found.reasons[name] for name in lost})
        return dict(found.intervals)

    def _resampled(self, level: float, method: str = "studentized", **options: Any) -> dict[str, tuple[float, float]]:
        found = self.bootstrap(**options)
        if found.failed > MANY_FAILED * (found.failed + len(found.samples)):
            total = found.failed + len(found.samples)
            python_warnings.warn(
                f"{found.failed} of {total} resampled fits did not converge, or not determine a parameter; the rest is no fair sample.",
                FitWarning,
                stacklevel=3,
            )
        _tell("bootstrap", found.reasons)
        fixed = {name: (estimate.value, estimate.value) for name, estimate in self.params.items() if estimate.fixed}
        intervals = found.intervals(level, method) | fixed
        return {name: intervals[name] for name in self.params}

    def profile(self, level: float = 0.95) -> Profile:
        """Profile-likelihood intervals, with the reasons of limits that are infinite or NaN; see :mod:`gradfit.statistics.profile`.

        Raises
        ------
        OptionError
            A level outside (0, 1), a loss that is no likelihood.
        ModelError
            A loaded result: the profile needs the model on its data.
        """
        return profile(self._at_hand("a profile"), level)

    def contour(self, first: str, second: str, *, level: float = 0.95, points: int = 64) -> Floats:
        """Edge of the joint confidence region of two parameters, (points, 2), counter-clockwise; NaN where it is open.

        Raises
        ------
        OptionError
            Names that are no two free parameters, a level outside (0, 1), a loss that is no likelihood.
        ModelError
            A loaded result.
        """
        return contour(self._at_hand("a contour"), first, second, level=level, points=points)

    def bootstrap(
        self,
        resamples: int = RESAMPLES,
        *,
        scheme: str | None = None,
        seed: int = 0,
        threads: int | None = None,
        progress: bool | None = None,
    ) -> Bootstrap:
        """Fit again to resampled data; see :mod:`gradfit.statistics.bootstrap`.

        Parameters
        ----------
        resamples
            How many.
        scheme
            "residual" (default), "pairs" (default for losses of your own), or "parametric" (default for counts).
        seed
            Of the random numbers; the same seed gives the same bits, whatever the threads.
        threads
            At most; default: all cores.
        progress
            Show a bar on stderr; default: on long work, if it is a terminal.

        Raises
        ------
        OptionError
            Numbers that are none, a scheme that is unknown or does not suit the loss.
        FitError
            The fit is not at a minimum, its residuals tell nothing of errors, or hardly a resample converged.
        ModelError
            A loaded result.
        """
        return bootstrap(
            self._at_hand("a bootstrap"), resamples=resamples, scheme=scheme, seed=seed, threads=threads, progress=progress
        )

    def _at_hand(self, what: str) -> Fitted:
        if isinstance(self._known, FitRecord):
            raise ModelError(f"{what} fits again, and this result was loaded from a file; fit again with the data at hand.")
        return self._known

    def derive(self, quantity: str | Callable[..., Any]) -> Derived:
        """Compute a quantity of the parameters, with its error by the delta method: ``fit.derive("-b/w")``.

        Parameters
        ----------
        quantity
            A formula of parameter names, or a function of them (plain arithmetic or torch functions) that gives one number.

        Returns
        -------
        Derived
            value, stderr, lower, upper (95%); unpacks as (value, stderr).

        Raises
        ------
        ModelError, ParameterError
            What cannot be read or computed; a name that is no parameter.
        """
        return derive(quantity, self.record, self.values, self._design)

    def _design(self) -> Design | None:
        return None if isinstance(self._known, FitRecord) else design(self._known)

    def ufloats(self) -> dict[str, Any]:
        """Parameters as correlated numbers of the package uncertainties, by name; with them errors propagate by themselves.

        Raises
        ------
        MissingDependencyError
            uncertainties is not installed.
        """
        return ufloats(self.record)

    # --- how it went --------------------------------------------------------------------------------------------------

    @property
    def _solution(self) -> Solution | None:
        return self._known.outcome.solution if isinstance(self._known, Fitted) else None

    @property
    def success(self) -> bool:
        """Whether the fit reached a minimum, or did all it was asked to."""
        if self._short is not None:
            return True
        return self._solution.status.success if self._solution is not None else self.record.success

    @property
    def status(self) -> str:
        """How it ended, one word: converged, completed, stopped_early, not_converged, stalled, diverged, not_finite."""
        if self._short is not None:
            return Status.CONVERGED.name.lower()
        return self._solution.status.name.lower() if self._solution is not None else self.record.status

    @property
    def message(self) -> str:
        """How it ended, a sentence."""
        return self._solution.message if self._solution is not None else self.record.message

    @property
    def warnings(self) -> tuple[str, ...]:
        """What deserves a look before the numbers are used."""
        return self.record.warnings

    @property
    def beginning(self) -> Beginning:
        """Where the fit began: ``kind``, and a sentence, ``text``, where nobody gave a start; :class:`~gradfit.statistics.record.Beginning`."""
        return self.record.beginning

    @property
    def minima(self) -> tuple[Minimum, ...]:
        """Distinct minima that many starts led to, the lowest first: ``values`` by name, ``loss``, how many ``starts`` ended there."""
        return self.record.beginning.minima

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the solution and its residuals say against the fit, a number and advice each; empty where nothing does."""
        return self.record.findings

    @property
    def diagnosis(self) -> Diagnosis:
        """Reading of the learning curves: verdict, letter, reasons, advice."""
        return self.record.diagnosis

    @property
    def history(self) -> History:
        """Row e: loss and gradient before step e, parameters after it."""
        return self._history

    @cached_property
    def _history(self) -> History:
        if self._short is not None:
            return history(self._short.ended.columns(), self._short.names)
        known = self._known
        if isinstance(known, FitRecord) or "record" in vars(self):
            return self.record.history
        return history(known.outcome.solution.columns, known.setting.parameters.free_elements)

    @property
    def engine(self) -> str:
        """What computed the fit."""
        return self.record.engine

    @property
    def engine_reason(self) -> str:
        """Why that engine, and how the model was called."""
        return self.record.engine_reason

    @property
    def source(self) -> str:
        """The compiled code, as readable Python: the function of one row, and for gradient descent the optimizer's step. "" for torch."""
        return self.record.source

    # --- how good it is -----------------------------------------------------------------------------------------------

    @property
    def loss(self) -> float:
        """Mean loss over the training rows at the fitted parameters."""
        return self.record.loss

    @property
    def validation_loss(self) -> float:
        """Mean loss over the validation rows; NaN without any."""
        return self.record.validation_loss

    @property
    def cross_validation(self) -> Floats:
        """Mean loss on each fold when fitted without it, (folds,); empty without ``folds``. Its mean is the cross-validated loss."""
        return np.array(self.record.fold_losses)

    @property
    def n(self) -> int:
        """Rows that were fitted."""
        return self.record.n

    @cached_property
    def errors_in_x(self) -> dict[str, Floats]:
        """What was found to be added to each inexact input, (n,) by name: there the model is nearest to the row. Empty without ``sigma_x``.

        Raises
        ------
        ModelError
            A loaded result that does not hold all of its rows.
        """
        known = self._known
        if isinstance(known, Fitted):
            kernel = known.outcome.kernel
            errors = kernel.nearest(known.outcome.solution.theta).errors if isinstance(kernel, OrthogonalKernel) else {}
            return dict(errors)
        points = self.record.points
        if points.distances is None:
            return {}
        if not points.complete:
            raise ModelError(f"this loaded result holds {len(points.target)} of {self.n} rows; fit again with the data at hand.")
        return {name: errors[~points.held_out] for name, errors in points.distances.errors.items()}

    @property
    def x_fitted(self) -> dict[str, Floats]:
        """The inexact inputs with their errors taken off: where the model is nearest to each row, (n,) by name. Empty without ``sigma_x``."""
        errors, known = self.errors_in_x, self._known
        if isinstance(known, Fitted):
            columns: Mapping[str, Floats] = known.setting.data.columns
        else:
            points = self.record.points
            columns = {name: column[~points.held_out] for name, column in points.columns.items()}
        return {name: columns[name] + error for name, error in errors.items()}

    @property
    def dof(self) -> float:
        """Degrees of freedom n - p; infinite where the noise is known (absolute sigma, counts)."""
        return self.record.dof

    @property
    def chi_square(self) -> float:
        """Sum of squared residuals in units of sigma, of squared distances where x has errors; NaN for other losses."""
        return self.record.goodness.chi_square

    @property
    def reduced_chi_square(self) -> float:
        """chi_square / (n - p)."""
        return self.record.goodness.reduced_chi_square

    @property
    def r_squared(self) -> float:
        """Share of the target's variance that the model explains."""
        return self.record.goodness.r_squared

    @property
    def aic(self) -> float:
        """Akaike's information criterion."""
        return self.record.goodness.aic

    @property
    def aicc(self) -> float:
        """Akaike's criterion corrected for few points."""
        return self.record.goodness.aicc

    @property
    def bic(self) -> float:
        """Bayesian information criterion."""
        return self.record.goodness.bic

    # --- predict ------------------------------------------------------------------------------------------------------

    def predict(
        self,
        *inputs: Any,
        data: Any = None,
        interval: IntervalKind | None = None,
        level: float = 0.95,
        sigma: Any = None,
        encoding: str = "utf-8",
    ) -> Any:
        """Predict the target for new data.

        Parameters
        ----------
        *inputs
            One array per data argument of the model, in its order; or one table.
        data
            A table (dict, data frame, path) with the model's data columns.
        interval
            "confidence": where the curve lies; "prediction": where one more measurement would fall.
        sigma
            Standard deviations of the new points, for "prediction" of a fit that had sigma.

        Returns
        -------
        (m,) predictions, or a :class:`~gradfit.statistics.intervals.Band` (value, lower, upper) with ``interval``.

        Raises
        ------
        DataError
            Missing columns, wrong lengths, values that are not finite.
        ModelError
            A loaded result whose model could not be stored.
        """
        columns = self._columns(inputs, data, encoding)
        predictor = self._ready()
        m = len(next(iter(columns.values())))
        kernel = predictor.on(Dataset(columns, np.zeros(m), "", None, np.arange(m)))
        if interval is None:
            with torch.no_grad():
                point = torch.as_tensor(kernel.parameters.start, dtype=kernel.dtype)
                return kernel.predict(point).double().numpy()
        value, derivative = kernel.jacobian(kernel.parameters.start)
        kept = [index for index, estimate in enumerate(self.record.estimates) if not estimate.fixed]
        return band(
            value, derivative[:, kept], self.record.covariance, kind=interval, level=level, dof=self.record.dof,
            noise=self._noise(sigma, m) if interval == "prediction" else 0.0,
        )  # fmt: skip

    def _columns(self, inputs: tuple[Any, ...], data: Any, encoding: str) -> dict[str, Floats]:
        names = self.record.model.data_names
        if data is None and len(inputs) == 1 and _is_table(inputs[0]):
            data, inputs = inputs[0], ()
        if bool(inputs) == (data is not None):
            raise DataError(f"predict takes one array for each of {', '.join(names)}, or a table with these columns.")
        if data is not None:
            table = read(data, encoding=encoding)
            columns = {name: real(table[name], name) for name in names}
        else:
            if len(inputs) != len(names):
                raise DataError(f"predict was given {len(inputs)} arrays; expected {len(names)}: {', '.join(names)}.")
            columns = {
                name: real(np.atleast_1d(values) if np.ndim(values) == 0 else values, name)
                for name, values in zip(names, inputs, strict=True)
            }
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"the columns have different lengths: {lengths}; give one value per row in each.")
        for name, column in columns.items():
            if not np.isfinite(column).all():
                raise DataError(
                    f"{name} holds {int((~np.isfinite(column)).sum())} values that are NaN or infinite; leave those rows out."
                )
        return columns

    def _noise(self, sigma: Any, m: int) -> Floats | float:
        if self.record.points.sigma is not None and sigma is None:
            raise DataError("this fit had a sigma per point; pass sigma= of the new points to predict where a measurement falls.")
        if not math.isfinite(self.record.noise):
            raise OptionError(
                f"a prediction interval needs the noise of one point, which the loss {self.record.loss_name} does not give."
            )
        if sigma is None:
            return self.record.noise
        values = real(np.atleast_1d(sigma), "sigma")
        if values.shape not in ((1,), (m,)) or not (values > 0).all():
            raise DataError(f"sigma has shape {np.shape(sigma)} for {m} points; expected one positive number, or one per point.")
        return self.record.noise * values

    def _ready(self) -> EagerKernel:
        if self._predictor is None:
            model = self.record.model
            raise ModelError(
                f"this loaded result cannot predict: {model.needs}. Fit again with the function {model.label} at hand."
            )
        return self._predictor

    def module(self) -> torch.nn.Module:
        """Give a copy of the fitted torch module, with the fitted parameters; in evaluation mode."""
        predictor = self._ready()
        if predictor.model.module is None:
            raise ModelError(f"{self.record.model.label} is no torch module; use predict().")
        copy = predictor.model.in_precision(predictor.dtype).module
        assert copy is not None
        state = {name: torch.as_tensor(value, dtype=predictor.dtype) for name, value in self.values.items()}
        copy.load_state_dict(copy.state_dict() | state)
        return copy.eval()

    # --- show ---------------------------------------------------------------------------------------------------------

    def report(self) -> str:
        """Everything a reader needs, as text."""
        return text.report(self.record)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw data, fit and confidence band. Returns a matplotlib figure; also written to ``path`` if given."""
        return plots.show(plots.fit_figure(self.record, self.curve()), path)

    def plot_history(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw the learning curves. Returns a matplotlib figure."""
        return plots.show(plots.history_figure(self.record), path)

    def plot_residuals(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw the residuals against the input. Returns a matplotlib figure."""
        return plots.show(plots.residual_figure(self.record), path)

    def plot_contour(
        self, first: str, second: str, path: str | os.PathLike[str] | None = None, *, levels: Sequence[float] = REGIONS
    ) -> Any:
        """Draw the joint confidence regions of two parameters, by profile and by covariance. Returns a matplotlib figure."""
        plots.require()
        fitted = self._at_hand("a contour")
        regions = [
            plots.Region(level, contour(fitted, first, second, level=level, points=CONTOUR_POINTS),
                         ellipse(fitted, first, second, level=level, points=CONTOUR_POINTS))
            for level in levels
        ]  # fmt: skip
        center = self.params[first].value, self.params[second].value
        return plots.show(plots.contour_figure((first, second), center, regions), path)

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """Give the report as one self-contained page; also written to ``path`` if given."""
        page = html.page(self.record, self.curve())
        if path is not None:
            write_whole(path, page)
        return page

    def curve(self) -> plots.Curve | None:
        """The fitted curve with its band over the range of the data; None where there is more than one input."""
        points, names = self.record.points, self.record.model.data_names
        columns = [points.columns[name] for name in names]
        if self._predictor is None or len(columns) != 1 or columns[0].ndim != 1 or len(columns[0]) == 0:
            return None
        grid = plots.grid(columns[0])
        try:
            curve = self.predict(grid, interval="confidence")
        except (
            GradfitError,
            RuntimeError,
        ):  # a model that only works on its own rows: the picture shows predictions there
            return None
        return plots.Curve(grid, curve.value, curve.lower, curve.upper) if np.isfinite(curve.value).any() else None

    # --- keep ---------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the result as JSON: readable by any gradfit, and by anything that reads JSON. Never half written."""
        write_whole(path, storage.to_json(self._storable()))

    def to_json(self) -> str:
        """The result as JSON text, as ``save`` writes it."""
        return storage.to_json(self._storable())

    def _storable(self) -> FitRecord:
        """Add the model's graph, so that the loaded result predicts without the function."""
        record, predictor = self.record, self._predictor
        if record.model.kind == "formula" or record.model.graph is not None or predictor is None:
            return record
        if record.model.kind == "module" or predictor.numeric or any(record.model.shapes.values()):
            what = {"module": "a torch module"}.get(
                record.model.kind, "a numpy function" if predictor.numeric else "a model with vectors"
            )
            return replace(record, model=replace(record.model, needs=f"{what} cannot be stored as data"))
        columns = {name: column[:GRAPH_ROWS] for name, column in record.points.columns.items()}
        found = _row_graph(predictor, columns, self.values)
        if isinstance(found, str):
            return replace(record, model=replace(record.model, needs=found))
        return replace(record, model=replace(record.model, graph=found))

    # --- in a terminal, in a notebook ---------------------------------------------------------------------------------

    def __repr__(self) -> str:
        """Values with errors, and how it ended."""
        return text.brief(self.record)

    __str__ = __repr__

    def _repr_html_(self) -> str:
        return html.fragment(self.record)


def at_hand(result: FitResult) -> Fitted | None:
    """Give a fit with its model and its data; None for a result that was loaded from a file."""
    known = result._known
    return known if isinstance(known, Fitted) else None


def _tell(kind: str, reasons: Mapping[str, str]) -> None:
    """Warn of intervals that are not given, once for each reason."""
    for reason in dict.fromkeys(reasons.values()):
        names = ", ".join(name for name, own in reasons.items() if own == reason)
        python_warnings.warn(f"no {kind} interval of {names}: {reason}.", FitWarning, stacklevel=4)


def _is_table(value: Any) -> bool:
    return isinstance(value, (Mapping, str, os.PathLike)) or hasattr(value, "columns")


def _row_graph(predictor: EagerKernel, columns: Mapping[str, Floats], values: Mapping[str, float]) -> dict[str, Any] | str:
    """Trace the model for one row and check that the graph gives the model's own predictions."""
    if any(column.ndim > 1 for column in columns.values()):
        return "the model takes a table, not one number per row"
    # All values differ: the tracer would take equal tensors for one.
    example = {
        name: torch.tensor(float(number) * (1 + 1e-9 * place) + 1e-12 * place, dtype=torch.float64)
        for place, (name, number) in enumerate(
            ({name: column[0] for name, column in columns.items()} | dict(values)).items(), start=1
        )
    }
    graph = trace(predictor.call, example)
    if isinstance(graph, str):
        return graph
    rows = {name: torch.from_numpy(np.ascontiguousarray(column)) for name, column in columns.items()}
    known = {name: torch.tensor(float(value), dtype=torch.float64) for name, value in values.items()}
    ours = graph.evaluate(rows | known).expand(len(next(iter(rows.values())))).numpy()
    theirs = predictor.call(**rows, **known).numpy()
    if not np.allclose(ours, theirs, rtol=GRAPH_AGREEMENT, atol=0, equal_nan=True):
        return "the model mixes rows, or branches on their values"
    return graph.to_dict()


def predictor_for(record: FitRecord, given: AnyKernel) -> EagerKernel:
    """Give a kernel whose start is the solution, all parameters free."""
    kernel = given.eager
    flat = iter(estimate.value for estimate in record.estimates)
    fitted = {
        name: Parameter(start=np.array([next(flat) for _ in range(math.prod(shape))]).reshape(shape))
        for name, shape in record.model.shapes.items()
    }
    return replace(kernel, parameters=parameters(fitted, packed=kernel.parameters.packed))
