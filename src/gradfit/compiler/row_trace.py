"""A model and its loss -> the source of one row: value and derivatives, by torch's autograd under the recorder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gradfit.compiler.eager import EagerKernel
from gradfit.compiler.graph import Graph, Untraceable, check, ordered
from gradfit.compiler.lower import lower
from gradfit.compiler.rows import RowSource
from gradfit.compiler.simplify import simplify
from gradfit.compiler.trace import DTYPES, Recorder, elements, record
from gradfit.model.loss import Loss, used_curvature

# No argument of a model has a blank in its name.
TARGET, SIGMA, ALONG = " target", " target_sigma", "along "
Named = Mapping[str, Tensor]
UNCHANGED = nullcontext()


def prediction_row(kernel: EagerKernel) -> RowSource:
    """Source of the prediction and its derivative by each free number, in double precision.

    Raises
    ------
    Untraceable
        The model is no graph of single numbers; the text says why.
    """
    return _row_source(kernel.in_precision(torch.float64), "prediction", lambda known: _predict(kernel, known), guarded=True)


def prediction_graph(kernel: EagerKernel) -> Graph:
    """Graph of the prediction of one row, by its columns and numbers.

    Raises
    ------
    Untraceable
        The model is no graph of single numbers; the text says why.
    """
    wide = kernel.in_precision(torch.float64)
    return simplify(record(lambda **known: _predict(wide, known), _example(wide, (), along=False)))


def loss_row(kernel: EagerKernel) -> RowSource:
    """Source of a row's loss and its derivative by each free number, in the kernel's precision."""

    def loss(known: Named) -> Tensor:
        rows = kernel.loss_function.pointwise(_predict(kernel, known), known[TARGET], known.get(SIGMA))
        return rows.reshape(1) if kernel.loss_function.whole else rows

    return _row_source(kernel, "loss", loss, (TARGET,) if kernel.sigma is None else (TARGET, SIGMA))


def hessian_row(kernel: EagerKernel) -> RowSource:
    """Source of a row's slope along a direction, and of its derivative: the row's Hessian times the direction.

    Its parameters are the free numbers, then as many of the direction.
    """
    free = kernel.parameters.free_names

    def slope(known: Named) -> Tensor:
        leaves = [known[name] for name in free]
        rows = kernel.loss_function.pointwise(_predict(kernel, known), known[TARGET], known.get(SIGMA))
        slopes = torch.autograd.grad(rows.sum(), leaves, create_graph=True, allow_unused=True)
        parts = [(part * known[ALONG + name]).sum() for part, name in zip(slopes, free, strict=True) if part is not None]
        return torch.stack(parts).sum().reshape(1) if parts else torch.zeros_like(rows)

    return _row_source(kernel, "slope", slope, (TARGET,) if kernel.sigma is None else (TARGET, SIGMA), along=True)


def curved_row(kernel: EagerKernel, inexact: Sequence[str]) -> RowSource:
    r"""Source of the prediction, its derivatives by some inputs and by each free number, in double precision.

    Outputs are :math:`f`, :math:`\partial f/\partial x_i`, the lower triangle of :math:`\partial^2 f/\partial x_i \partial x_j` row after
    row, :math:`\partial f/\partial\theta_k`.

    Parameters
    ----------
    inexact
        Names of the inputs x_i.
    """
    kernel = kernel.in_precision(torch.float64)
    example = _example(kernel, (), along=False)
    free, fixed = _free_and_fixed(kernel, example)

    def value_and_slopes(**values: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            leaves = [values[name].requires_grad_() for name in (*inexact, *free)]
            result = _one_number(_predict(kernel, values), kernel)
            slopes = _slopes(result, leaves)
            curvatures = [part for place in range(len(inexact)) for part in _slopes(slopes[place], leaves[: place + 1])]
        q = len(inexact)
        return [result, *slopes[:q], *curvatures, *slopes[q:]]

    graph = simplify(record(value_and_slopes, example), guarded=True)
    check(graph)
    numbers, known = ([element for name in names for element in elements(name, example[name])] for names in (free, fixed))
    pairs = [f"d_{one}_{other}" for place, one in enumerate(inexact) for other in inexact[: place + 1]]
    outputs = ("prediction", *(f"d_{name}" for name in inexact), *pairs, *(f"d_{number}" for number in numbers))
    title = f"Prediction of one row, and its derivatives by {', '.join(inexact)} and by each parameter."
    return RowSource(lower(graph, outputs, title=title), "double", tuple(kernel.columns), tuple(numbers), tuple(known), outputs)


def measure_row(loss: Loss) -> RowSource:
    r"""Source of one row of a loss: its value l, and :math:`l'/2` and :math:`h/2` with the curvature h of a sum of squares near it.

    A function of prediction and target, both in units of sigma; h as in :func:`gradfit.model.loss.gauss_newton_rows`, but for the floor
    that looks at all rows. For :math:`l = r^2` that is :math:`r^2, r, 1`.

    Raises
    ------
    Untraceable
        The loss has no rows, or is no graph of single numbers.
    """
    if loss.whole:
        raise Untraceable("the loss gives one number for all rows")

    def measured(**known: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            point, target = known["prediction"].requires_grad_(), known["target"]
            rows = loss.pointwise(point, target, None)
            (slope,) = torch.autograd.grad(rows.sum(), point, create_graph=True)
            own = torch.autograd.grad(slope.sum(), point)[0] if slope.requires_grad else torch.zeros_like(slope)
        return [rows, slope / 2, used_curvature(loss, point, target, slope, own, None) / 2]

    names, outputs = ("prediction", "target"), ("loss", "slope", "curvature")
    example = {name: torch.tensor([value], dtype=torch.float64) for name, value in zip(names, (1.3, 2.0), strict=True)}
    graph = simplify(record(measured, example))
    check(graph)
    text = lower(graph, outputs, title="Loss of one row, half its slope, and half the curvature of the squares near it.")
    return RowSource(text, "double", names, (), (), outputs)


def check_rows(kernel: EagerKernel) -> None:
    """Refuse a model whose rows depend on each other, or on how many there are.

    A mean over the one row that is traced is that row: only with two rows does it show.
    """
    recorder, example = Recorder(), _example(kernel, (), along=False)
    rows = {name: torch.stack([column[0], column[-1]]) for name, column in kernel.columns.items()}
    mode = _Counting(recorder, frozenset(kernel.columns))
    graph = record(lambda **known: _predict(kernel, known, mode), example | rows, recorder=recorder)
    if len(graph.outputs) != 2:
        raise Untraceable(f"it gives {len(graph.outputs)} values for two rows")
    for own, output in enumerate(graph.outputs):
        others = {f"{name}[{1 - own}]" for name in kernel.columns}
        if any(node.operation == "input" and node.value in others for node in ordered([output])):
            raise Untraceable("it gives other values for all rows at once than for each row by itself")


class _Counting(TorchFunctionMode):
    """Refuses to tell a model how many rows its data have: code compiled for a few would serve many."""

    def __init__(self, recorder: Recorder, names: frozenset[str]) -> None:
        super().__init__()
        self.recorder, self.names = recorder, names

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at what asks for a size."""
        if func in SIZES and self.recorder.knows(args[0]) and args[0].dim():
            inputs = [node.value for node in ordered(self.recorder.read(args[0]).reshape(-1)) if node.operation == "input"]
            if any(str(name).endswith(("[0]", "[1]")) and str(name)[:-3] in self.names for name in inputs):
                raise Untraceable("it looks at how many rows there are")
        return func(*args, **(kwargs or {}))


SIZES = frozenset([Tensor.__len__, Tensor.size, Tensor.numel, Tensor.nelement, Tensor.shape.__get__])  # type: ignore[attr-defined]


def _predict(kernel: EagerKernel, known: Named, mode: AbstractContextManager[Any] = UNCHANGED) -> Tensor:
    """Call the model on one row; tied parameters are computed from the others."""
    values = dict(known)
    for name, tie in kernel.parameters.ties.items():
        values[name] = tie(values)
    with mode:
        prediction = _called(kernel, values)
    if not isinstance(prediction, Tensor):
        raise Untraceable("it gives no tensor for one row")
    return prediction


def _called(kernel: EagerKernel, values: Named) -> Any:
    return kernel.call(**{name: values[name] for name in (*kernel.columns, *kernel.parameters.names)})


def _row_source(
    kernel: EagerKernel,
    output: str,
    compute: Callable[[Named], Tensor],
    extra: Sequence[str] = (),
    *,
    along: bool = False,
    guarded: bool = False,
) -> RowSource:
    example = _example(kernel, extra, along=along)
    free, fixed = _free_and_fixed(kernel, example)

    def value_and_slopes(**values: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            leaves = [values[name].requires_grad_() for name in free]
            result = _one_number(compute(values), kernel)
            if not result.requires_grad:
                return [result, *map(torch.zeros_like, leaves)]
            slopes = torch.autograd.grad(result.sum(), leaves, allow_unused=True)
        return [result, *(torch.zeros_like(leaf) if slope is None else slope for slope, leaf in zip(slopes, leaves, strict=True))]

    graph = simplify(record(value_and_slopes, example), guarded=guarded)
    check(graph)
    numbers, known = ([element for name in names for element in elements(name, example[name])] for names in (free, fixed))
    outputs = (output, *(f"d_{number}" for number in numbers))
    if along:
        numbers += [element for name in free for element in elements(ALONG + name, example[ALONG + name])]
    title = f"{output.capitalize()} of one row, and its derivative by each parameter."
    inputs = (*kernel.columns, *(name.strip() for name in extra))
    return RowSource(lower(graph, outputs, title=title), DTYPES[kernel.dtype], inputs, tuple(numbers), tuple(known), outputs)


def _free_and_fixed(kernel: EagerKernel, example: Named) -> tuple[list[str], list[str]]:
    specs = kernel.parameters.specs
    known = [name for name in kernel.parameters.names if name in example]
    return [name for name in known if not specs[name].fixed], [name for name in known if specs[name].fixed]


def _one_number(result: Tensor, kernel: EagerKernel) -> Tensor:
    """Give what a model gave for one row, where that is one real number."""
    if result.dtype == torch.float32 and kernel.dtype == torch.float64:  # of a model that computes in single precision
        result = result.to(kernel.dtype)
    if result.shape != (1,) or not result.is_floating_point():
        raise Untraceable(f"it gives {result.dtype} of shape {tuple(result.shape)} for one row")
    return result


def _slopes(result: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Derivatives that can be differentiated again; 0 where the result does not depend on a leaf."""
    if not result.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    slopes = torch.autograd.grad(result.sum(), leaves, create_graph=True, allow_unused=True)
    return [torch.zeros_like(leaf) if slope is None else slope for slope, leaf in zip(slopes, leaves, strict=True)]


def _example(kernel: EagerKernel, extra: Sequence[str], *, along: bool) -> dict[str, Tensor]:
    """Give the first row and the start as tensors, in the order of the row's arguments: data, free, a direction, fixed."""
    example: dict[str, Tensor] = {}
    for name, column in kernel.columns.items():
        if column.dim() != 1:
            raise Untraceable(f"its input {name} has several columns")
        example[name] = column[:1]
    rows = {TARGET: kernel.target, SIGMA: kernel.sigma}
    example |= {name: values[:1] for name in extra if (values := rows[name]) is not None}
    specs = kernel.parameters.specs
    for fixed in (False, True):
        for name, spec in specs.items():
            if spec.tied is None and spec.fixed == fixed:
                example[name] = torch.as_tensor(spec.start, dtype=kernel.dtype)
        if along and not fixed:
            free = kernel.parameters.free_names
            example |= {ALONG + name: torch.full_like(example[name], 0.7) for name in free}
    return example
