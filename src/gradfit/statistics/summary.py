"""From an outcome to a FitRecord: uncertainties, goodness, verdict, and everything worth a warning."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import torch

from gradfit.compiler.correlated import AnyKernel
from gradfit.compiler.kernel import Linearization
from gradfit.compiler.orthogonal import OrthogonalKernel
from gradfit.data.dataset import Dataset
from gradfit.drivers.short import Ended
from gradfit.drivers.single import MAX_LINEARIZED, Outcome
from gradfit.methods.marquardt import INVOLVED
from gradfit.methods.method import Method, Status
from gradfit.methods.stopping import ARRIVED
from gradfit.model.model import Model
from gradfit.model.parameters import Parameters, elements
from gradfit.statistics.covariance import Covariance, covariance, is_plain, propagate, without_effect
from gradfit.statistics.diagnosis import Diagnosis, diagnose
from gradfit.statistics.findings import Facts, Finding, find
from gradfit.statistics.goodness import Goodness, goodness
from gradfit.statistics.intervals import t_interval
from gradfit.statistics.rank import DIFFERENCES, DOUBLE, SINGLE
from gradfit.statistics.record import GIVEN, LEVEL, Beginning, Distances, Estimate, FitRecord, ModelRecord, Points, history
from gradfit.typing import Floats

MAX_NAMED = 8  # names in one sentence
LITTLE = 0.05  # of the target's variance: a model that explains less, from an assumed start, has probably missed its minimum
MAX_POINTS = 5000  # rows kept for pictures
BOUND_TOLERANCE = 1e-10


@dataclass(frozen=True)
class Setting:
    """What a fit was asked for, as far as the summary needs it."""

    model: Model
    parameters: Parameters
    data: Dataset
    validation: Dataset | None
    method: Method
    absolute_sigma: bool
    dropped: int
    beginning: Beginning = GIVEN


@dataclass(frozen=True)
class Fitted:
    """A fit that has ended, before anything is drawn from it."""

    outcome: Outcome
    kernel: AnyKernel
    setting: Setting
    fold_losses: Floats

    @cached_property
    def covariance(self) -> Covariance:
        """Covariance of the free parameters."""
        return _covariance(self.outcome, self.kernel, self.setting)

    @property
    def shortcoming(self) -> str:
        """What the data do not determine, or leave no means to know, in a successful fit: sentences, or "". A network has none.

        Nobody expects errors of a network's weights, which are hardly ever determined one by one.
        """
        outcome, setting = self.outcome, self.setting
        conclusion = outcome.conclusion
        if conclusion is None or not outcome.solution.status.success or setting.model.kind == "module":
            return ""
        if is_plain(conclusion, outcome.kernel) and setting.data.n > len(outcome.solution.theta):
            return ""
        spread, names = self.covariance, setting.parameters.free_elements
        return " ".join(
            _no_error([name for name, own in zip(names, spread.reasons, strict=True) if own == reason], reason, spread)
            for reason in spread.grave
        )

    @property
    def dof(self) -> float:
        """Degrees of freedom of the noise estimate; infinite where the noise is known."""
        return _dof(self.outcome, self.kernel.loss_kind, self.setting)

    @property
    def at_bound(self) -> np.ndarray:
        """Which free parameters ended on a bound, (p,) bool."""
        return _on_bound(self.outcome, self.setting)

    @property
    def undetermined(self) -> np.ndarray:
        """Which free parameters the data do not determine, (p,) bool."""
        spread, conclusion = self.covariance, self.outcome.conclusion
        told = np.array([reason in spread.grave for reason in spread.reasons], dtype=bool)
        return told if conclusion is None else told | (conclusion.undetermined >= INVOLVED)

    @property
    def plain(self) -> bool:
        """Whether every parameter is free and a single number: then theta is all there is to know of their values."""
        parameters = self.setting.parameters
        return parameters.free_elements == parameters.names


@dataclass(frozen=True)
class Short:
    """A fit that went the short way; ``whole`` goes the long one, to the same bits, when more is asked for."""

    names: tuple[str, ...]
    ended: Ended
    whole: Callable[[], Fitted]


def summarize(fitted: Fitted) -> FitRecord:
    """Draw every conclusion a fit allows."""
    outcome, kernel, setting, fold_losses = fitted.outcome, fitted.kernel, fitted.setting, fitted.fold_losses
    solution, data = outcome.solution, setting.data
    kind = kernel.loss_kind
    spread = fitted.covariance
    quality = _goodness(outcome, kind, setting)
    estimates, names, full = _estimates(outcome, kind, setting, spread)
    return FitRecord(
        model=_model_record(setting),
        estimates=estimates,
        names=names,
        covariance=full,
        covariance_kind=spread.kind,
        status=solution.status.name.lower(),
        success=solution.status.success,
        message=solution.message,
        warnings=_warnings(outcome, setting, estimates, kernel, quality, spread),
        loss_name=kernel.loss_function.name,
        loss=outcome.loss,
        validation_loss=math.nan if outcome.validation_loss is None else outcome.validation_loss,
        fold_losses=tuple(float(loss) for loss in fold_losses),
        goodness=quality,
        n=data.n,
        n_validation=0 if setting.validation is None else setting.validation.n,
        dropped=setting.dropped,
        dof=_dof(outcome, kind, setting),
        noise=math.sqrt(spread.scale) if kind == "least_squares" and spread.scale >= 0 else math.nan,
        absolute_sigma=setting.absolute_sigma,
        method=setting.method.name,
        unit=setting.method.unit,
        steps=solution.steps,
        engine=kernel.engine,
        engine_reason=f"{kernel.reason.rstrip('.')}; {solution.loop_reason}" if solution.loop_reason else kernel.reason,
        source=solution.source or kernel.source,
        history=history(solution.columns, setting.parameters.free_elements),
        diagnosis=_diagnosis(outcome, setting),
        points=_points(outcome, kernel, setting),
        findings=_findings(outcome, kernel, setting, spread),
        beginning=setting.beginning,
    )


def _on_bound(outcome: Outcome, setting: Setting) -> np.ndarray:
    """Tell which free parameters ended on a bound, (p,): they have no error, and take no degree of freedom."""
    theta, parameters = outcome.solution.theta, setting.parameters
    if not parameters.bounded:
        return np.zeros(len(theta), dtype=bool)
    return np.asarray(at(theta, parameters.lower) | at(theta, parameters.upper))


def _dof(outcome: Outcome, kind: str, setting: Setting) -> float:
    """Degrees of freedom of the noise estimate; infinite where the noise is known."""
    if kind == "likelihood" or (kind == "least_squares" and setting.absolute_sigma):
        return math.inf
    return float(setting.data.n - int((~_on_bound(outcome, setting)).sum()))


def _covariance(outcome: Outcome, kernel: AnyKernel, setting: Setting) -> Covariance:
    conclusion, p = outcome.conclusion, len(outcome.solution.theta)
    why = why_no_errors(outcome, kernel)
    if conclusion is None or why:
        unknown = np.full((p, p), np.nan) if p <= MAX_LINEARIZED else np.empty((0, 0))  # a network's would fill the memory
        idle = (
            without_effect(outcome.kernel, outcome.solution.theta, outcome.near, setting.parameters.free_elements)
            if outcome.without_effect and outcome.near is not None
            else ("",) * p
        )
        return Covariance(unknown, "none", tuple(own or why for own in idle), math.nan)
    return covariance(
        conclusion,
        outcome.kernel,
        outcome.solution.theta,
        lambda: cast(Linearization, outcome.near),
        data=setting.data,
        absolute=setting.absolute_sigma,
        names=setting.parameters.free_elements,
        at_bound=_on_bound(outcome, setting) if setting.parameters.bounded else None,
    )


def why_no_errors(outcome: Outcome, kernel: AnyKernel) -> str:
    """Say why a fit has no errors to give; "" where it has."""
    status = outcome.solution.status
    if status is Status.NOT_FINITE:
        return "the fit did not start"
    if outcome.conclusion is None:
        if len(outcome.solution.theta) > MAX_LINEARIZED:
            return f"errors are given up to {MAX_LINEARIZED} parameters"
        return f"the loss {kernel.loss_function.name} has no rows to estimate errors from"
    if not status.success:
        return "the fit did not reach its minimum"
    if outcome.conclusion.curved:
        return "to first order the residuals do not tell that this is a minimum, so the errors would be wrong"
    if outcome.distance > ARRIVED:
        return f"the fit ended {outcome.distance:.2g} standard errors short of the minimum"
    return ""


def at(theta: Floats, bound: Floats) -> np.ndarray:
    """Tell which parameters stand on a bound: (p,), or of many fits (count, p)."""
    finite = np.isfinite(bound)
    limit = np.where(finite, bound, 0.0)
    return np.asarray(finite & (np.abs(theta - limit) <= BOUND_TOLERANCE * np.maximum(np.abs(limit), 1e-300)))


def _estimates(
    outcome: Outcome, kind: str, setting: Setting, spread: Covariance
) -> tuple[tuple[Estimate, ...], tuple[str, ...], Floats]:
    """Estimates of all parameters; names and covariance of those that are not fixed (tied ones by the delta method)."""
    parameters, theta = setting.parameters, outcome.solution.theta
    point = torch.as_tensor(theta, dtype=torch.float64)
    values = parameters.all_values(point).numpy() if len(parameters.all_elements) else np.empty(0)
    full = _propagated(spread, parameters, theta)
    variances = np.diag(full) if full.size else np.full(len(values), np.nan)
    reasons = dict(zip(parameters.free_elements, spread.reasons, strict=True))
    bounds = dict(zip(parameters.free_elements, zip(parameters.lower, parameters.upper, strict=True), strict=True))
    at_bound = dict(zip(parameters.free_elements, _on_bound(outcome, setting), strict=True))
    dof = _dof(outcome, kind, setting)
    estimates, kept = [], []
    index = 0
    for name in parameters.names:
        spec = parameters.specs[name]
        starts = np.ravel(spec.start)
        for offset, element in enumerate(elements(name, parameters.shape(name))):
            fixed = spec.fixed
            stderr = 0.0 if fixed else math.sqrt(variances[index]) if variances[index] >= 0 else math.nan
            lower, upper = t_interval(float(values[index]), stderr, level=LEVEL, dof=dof)
            tied = spec.tied if isinstance(spec.tied, str) else getattr(spec.tied, "__name__", None) if spec.tied else None
            low, high = bounds.get(element, (-math.inf, math.inf))
            reason = reasons.get(element, "" if math.isfinite(stderr) else "it follows parameters whose errors are not given")
            start = math.nan if spec.tied is not None else float(starts[offset])
            estimates.append(
                Estimate(element, float(values[index]), stderr, lower, upper, start, (float(low), float(high)), name in parameters.assumed,
                         fixed, tied, bool(at_bound.get(element, False)), reason)
            )  # fmt: skip
            if not fixed:
                kept.append(index)
            index += 1
    return tuple(estimates), tuple(estimates[i].name for i in kept), full[np.ix_(kept, kept)] if full.size else full


def _propagated(spread: Covariance, parameters: Parameters, theta: Floats) -> Floats:
    """Covariance of all numbers, fixed and tied ones included; empty where that of the free ones is not held."""
    if spread.matrix.shape[0] != len(theta) or parameters.all_elements == parameters.free_elements:
        return spread.matrix
    return propagate(spread.matrix, parameters.all_slopes(theta))


def _goodness(outcome: Outcome, kind: str, setting: Setting) -> Goodness:
    if outcome.near is None or kind != "least_squares":
        return Goodness()
    data, near = setting.data, outcome.near
    return goodness(
        near.residual,
        _white(near, data, data.target),
        _white(near, data, np.ones(data.n)),
        parameters=int((~_on_bound(outcome, setting)).sum()),
        absolute=setting.absolute_sigma,
    )


def _white(near: Linearization, data: Dataset, values: Floats) -> Floats:
    """Values of the target's kind, (n,), in the units of the residuals: where x has errors, these have a part in them."""
    return data.white(values) if data.sigma_x is None else values * near.weight


def _diagnosis(outcome: Outcome, setting: Setting) -> Diagnosis:
    """Read the learning curves: the losses before each step, and at the end."""
    solution = outcome.solution
    train, validation = solution.columns["train_loss"], solution.columns["validation_loss"]
    if solution.status not in (Status.DIVERGED, Status.NOT_FINITE):
        train = np.append(train, outcome.loss)
        validation = np.append(validation, math.nan if outcome.validation_loss is None else outcome.validation_loss)
    settled = {Status.CONVERGED: True, Status.NOT_CONVERGED: False, Status.STALLED: False}.get(solution.status)
    return diagnose(
        train,
        None if setting.validation is None else validation,
        n_train=setting.data.n,
        n_validation=None if setting.validation is None else setting.validation.n,
        converged=settled,
        diverged=solution.status in (Status.DIVERGED, Status.NOT_FINITE),
    )


def _findings(outcome: Outcome, kernel: AnyKernel, setting: Setting, spread: Covariance) -> tuple[Finding, ...]:
    """Look at the solution and its residuals; a network, and a fit that did not reach its minimum, have none to look at."""
    if setting.model.kind == "module" or outcome.near is None or why_no_errors(outcome, kernel):
        return ()
    near, data, parameters = outcome.near, setting.data, setting.parameters
    counts = kernel.loss_kind == "robust" and kernel.loss_function.name == "poisson"  # weighted: no likelihood, no bend either
    columns = list(data.columns.values())
    exact = data.sigma_x is None
    model_error = SINGLE if outcome.kernel.dtype == torch.float32 else DOUBLE
    return find(
        Facts(
            names=parameters.free_elements,
            theta=outcome.solution.theta,
            at_bound=_on_bound(outcome, setting),
            bounds=np.stack([parameters.lower, parameters.upper]),
            covariance=spread.matrix,
            jacobian=near.jacobian,
            residual=-near.residual,
            difference=data.white(data.target - near.prediction) if exact else -near.residual,
            prediction=near.prediction,
            weight=(near.weight if data.sigma is None or not exact else near.weight * data.sigma) ** 2,
            x=columns[0] if len(columns) == 1 and columns[0].ndim == 1 else None,
            rows=data.row_numbers,
            kind="custom" if counts else kernel.loss_kind,
            absolute=setting.absolute_sigma,
            correlated=data.covariance is not None,
            signal=math.sqrt(float(np.mean(_white(near, data, data.target if exact else near.prediction) ** 2))),
            error=max(model_error, DIFFERENCES) if kernel.numeric else model_error,
            single=data.single or kernel.dtype == torch.float32,
        )
    )


def _warnings(
    outcome: Outcome, setting: Setting, estimates: Sequence[Estimate], kernel: AnyKernel, quality: Goodness, spread: Covariance
) -> tuple[str, ...]:
    status = outcome.solution.status
    found = [] if status.success else [outcome.solution.message]
    assumed = [estimate.name for estimate in estimates if estimate.assumed]
    lost = setting.beginning.kind == "none"
    if lost:
        found.append(setting.beginning.text)
    elif assumed and not status.success:
        found.append(f"no start was given for {_some(assumed)}: the fit began at a guess; pass start=.")
    found_nothing = quality.r_squared < LITTLE
    by_reason: dict[str, list[str]] = {}
    for estimate in estimates:
        if estimate.reason and status.success:
            by_reason.setdefault(estimate.reason, []).append(estimate.name)
    found += [_no_error(names, reason, spread) for reason, names in by_reason.items()]
    if spread.exact and status.success:
        found.append(
            "the data are fitted to rounding: errors from such residuals say nothing about noise; pass sigma=, absolute_sigma=True."
        )
    if assumed and status.success and found_nothing:
        found.append(f"the model explains almost nothing, from a start that nobody gave for {_some(assumed)}; pass start=.")
    if setting.data.sigma_x is not None and setting.data.sigma is None:
        found.append(
            f"no sigma was given beside sigma_x: the error of {setting.data.target_name} was taken to be 1, in its unit."
        )
    left_out = {"missing values": setting.dropped, "weight 0": setting.data.weightless}
    found += [f"{count} row{'s' * (count != 1)} with {what} left out." for what, count in left_out.items() if count]
    if kernel.numeric:
        found.append(kernel.reason)
    return tuple(found)


def _no_error(names: Sequence[str], reason: str, spread: Covariance) -> str:
    """Say which parameters have no error, why, and what that means."""
    detail = spread.grave.get(reason, "")
    return f"no error is given for {_some(names)}: {reason}{f' ({detail})' if detail else ''}."


def _some(names: Sequence[str]) -> str:
    """Name a few of many."""
    return ", ".join(names) if len(names) <= MAX_NAMED else f"{', '.join(names[:MAX_NAMED])} and {len(names) - MAX_NAMED} more"


def _model_record(setting: Setting) -> ModelRecord:
    model, parameters = setting.model, setting.parameters
    shapes = {name: parameters.shape(name) for name in parameters.names}
    return ModelRecord(model.kind, model.label, model.text, model.data_names, setting.data.target_name, shapes)


def _points(outcome: Outcome, kernel: AnyKernel, setting: Setting) -> Points:
    """Keep rows for pictures, training rows first; evenly thinned where they are many."""
    parts = [setting.data] if setting.validation is None else [setting.data, setting.validation]
    total = sum(part.n for part in parts)
    stride = math.ceil(total / MAX_POINTS)
    kept = [part.rows(np.arange(0, part.n, stride)) for part in parts]
    point = torch.as_tensor(outcome.solution.theta, dtype=kernel.dtype)
    with torch.no_grad():
        predictions = [kernel.on(part).predict(point).double().numpy() for part in kept]
    return Points(
        columns={name: np.concatenate([part.columns[name] for part in kept]) for name in setting.data.columns},
        target=np.concatenate([part.target for part in kept]),
        prediction=np.concatenate(predictions),
        sigma=None if any(part.sigma is None for part in kept) else np.concatenate([np.asarray(part.sigma) for part in kept]),
        held_out=np.repeat(np.arange(len(kept)) == 1, [part.n for part in kept]),
        complete=stride == 1,
        distances=_distances(outcome, stride),
    )


def _distances(outcome: Outcome, stride: int) -> Distances | None:
    """Where the nearest points of the model are, of rows with errors in x: training rows first, thinned."""
    theta, found = outcome.solution.theta, []
    for kernel in (outcome.kernel, outcome.held_out):
        if isinstance(kernel, OrthogonalKernel):
            assert kernel.data.sigma_x is not None
            errors, distances = kernel.nearest(theta).errors, kernel.residual(theta)[0]
            given, own = ({name: values[::stride] for name, values in table.items()} for table in (kernel.data.sigma_x, errors))
            found.append(Distances(given, own, -distances[::stride]))
    return Distances.joined(found) if found else None
