r"""Tied parameters of many fits at once: :math:`g_i(\theta_i)` and its derivative, row by row of a table of free numbers.

A tie is a torch computation on the parameters of one fit; ``torch.func.vmap`` makes one on those of all of it. A tie that looks at its
values (``if a > 0``) cannot be made so, and is computed one fit after the other.

What is found for a fit does not depend on the fits beside it, to the last bit: torch computes the last few of many numbers, which do
not fill a vector register, by other functions, so tables are filled up to whole registers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from gradfit.model.parameters import Parameters, elements
from gradfit.typing import Floats

WHOLE = 64  # rows: a multiple of the numbers that two vector registers hold


def not_fixed(known: Parameters) -> tuple[str, ...]:
    """Names of all numbers that are free or tied, in the order of the signature."""
    kept = [name for name in known.names if not known.specs[name].fixed or known.specs[name].tied is not None]
    return tuple(element for name in kept for element in elements(name, known.shape(name)))


def with_tied(known: Parameters, theta: Floats, fixed: Floats) -> tuple[Floats, Floats]:
    """Compute free and tied numbers of many fits, (count, m), and their derivative by the free ones, (count, m, p).

    Parameters
    ----------
    theta
        Free numbers, (count, p).
    fixed
        Fixed numbers, (q,) or (count, q).
    """
    count, p = theta.shape
    filled = -count % WHOLE
    rows = [
        np.pad(part, ((0, filled), (0, 0)), mode="edge") for part in (theta, np.broadcast_to(fixed, (count, fixed.shape[-1])))
    ]
    point, kept = (torch.from_numpy(np.ascontiguousarray(part, dtype=np.float64)) for part in rows)
    point.requires_grad_()
    numbers = _numbers(known)
    try:
        value = torch.func.vmap(numbers)(point, kept)
    except Exception:  # noqa: BLE001  # whatever a tie of the caller's raises when it is given many numbers at once
        value = torch.stack([numbers(own, constant) for own, constant in zip(point, kept, strict=True)])
    # A row depends on its own fit alone, so the derivative of a column's sum holds that of each row.
    slopes = np.zeros((count, value.shape[1], p))
    for place, column in enumerate(value.unbind(1)):
        if column.requires_grad:
            (slope,) = torch.autograd.grad(column.sum(), point, retain_graph=True, allow_unused=True)
            slopes[:, place] = 0.0 if slope is None else slope[:count].numpy()
    return value[:count].detach().numpy(), slopes


def _numbers(known: Parameters) -> Callable[[Tensor, Tensor], Tensor]:
    """Give ``numbers(theta, fixed)``: free and tied numbers of one fit, (m,)."""
    shapes = {name: known.shape(name) for name in known.names}
    constant = [name for name in known.names if known.specs[name].fixed and known.specs[name].tied is None]
    wanted = [name for name in known.names if name not in constant]

    def cut(vector: Tensor, names: tuple[str, ...] | list[str]) -> dict[str, Tensor]:
        parts = torch.split(vector, [math.prod(shapes[name]) for name in names]) if names else ()
        return {name: part.reshape(shapes[name]) for name, part in zip(names, parts, strict=True)}

    def numbers(theta: Tensor, fixed: Tensor) -> Tensor:
        values = cut(theta, known.free_names) | cut(fixed, constant)
        for name, tie in known.ties.items():
            values[name] = torch.as_tensor(tie(values), dtype=theta.dtype)
        return torch.cat([values[name].reshape(-1) for name in wanted])

    return numbers
