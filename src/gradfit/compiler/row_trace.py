"""A model and its loss -> the source of one row: value and derivatives, by torch's autograd under the recorder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from gradfit.compiler.eager import EagerKernel
from gradfit.compiler.graph import Untraceable, check
from gradfit.compiler.lower import lower
from gradfit.compiler.rows import RowSource
from gradfit.compiler.simplify import simplify
from gradfit.compiler.trace import DTYPES, elements, record

# No argument of a model has a blank in its name.
TARGET, SIGMA, ALONG = " target", " target_sigma", "along "
Named = Mapping[str, Tensor]


def prediction_row(kernel: EagerKernel) -> RowSource:
    """Source of the prediction and its derivative by each free number, in double precision.

    Raises
    ------
    Untraceable
        The model is no graph of single numbers; the text says why.
    """
    return _row_source(kernel.in_precision(torch.float64), "prediction", lambda known: _predict(kernel, known))


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


def _predict(kernel: EagerKernel, known: Named) -> Tensor:
    """Call the model on one row; tied parameters are computed from the others."""
    values = dict(known)
    for name, tie in kernel.parameters.ties.items():
        values[name] = tie(values)
    prediction = kernel.call(**{name: values[name] for name in (*kernel.columns, *kernel.parameters.names)})
    if not isinstance(prediction, Tensor):
        raise Untraceable("it gives no tensor for one row")
    return prediction


def _row_source(
    kernel: EagerKernel, output: str, compute: Callable[[Named], Tensor], extra: Sequence[str] = (), *, along: bool = False
) -> RowSource:
    example = _example(kernel, extra, along=along)
    specs = kernel.parameters.specs
    free = [name for name in kernel.parameters.names if name in example and not specs[name].fixed]
    fixed = [name for name in kernel.parameters.names if name in example and specs[name].fixed]

    def value_and_slopes(**values: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            leaves = [values[name].requires_grad_() for name in free]
            result = compute(values)
            if result.shape != (1,) or not result.is_floating_point():
                raise Untraceable(f"it gives {result.dtype} of shape {tuple(result.shape)} for one row")
            if not result.requires_grad:
                return [result, *map(torch.zeros_like, leaves)]
            slopes = torch.autograd.grad(result.sum(), leaves, allow_unused=True)
        return [result, *(torch.zeros_like(leaf) if slope is None else slope for slope, leaf in zip(slopes, leaves, strict=True))]

    graph = simplify(record(value_and_slopes, example))
    check(graph)
    numbers, known = ([element for name in names for element in elements(name, example[name])] for names in (free, fixed))
    outputs = (output, *(f"d_{number}" for number in numbers))
    if along:
        numbers += [element for name in free for element in elements(ALONG + name, example[ALONG + name])]
    title = f"{output.capitalize()} of one row, and its derivative by each parameter."
    inputs = (*kernel.columns, *(name.strip() for name in extra))
    return RowSource(lower(graph, outputs, title=title), DTYPES[kernel.dtype], inputs, tuple(numbers), tuple(known), outputs)


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
