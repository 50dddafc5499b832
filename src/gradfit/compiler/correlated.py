r"""Correlated errors: any kernel on rows whose target has a covariance matrix.

With the covariance :math:`C = LL^T` of the target values, :math:`z = L^{-1}(f - y)` has independent elements of variance 1, and
:math:`z^Tz = (f-y)^T C^{-1} (f-y)`. Each z mixes all rows before it, so a row has no loss of its own: the model's rows come from
the kernel inside, and are whitened here.

References
----------
Seber and Wild, *Nonlinear Regression*, 1989, section 2.1.4 (generalised least squares).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from gradfit.compiler.compiled import NativeKernel
from gradfit.compiler.eager import EagerKernel, hessian_product
from gradfit.compiler.kernel import Linearization
from gradfit.data.dataset import Dataset
from gradfit.errors import OptionError
from gradfit.model.loss import Loss
from gradfit.model.model import Model
from gradfit.model.parameters import Parameters
from gradfit.typing import Floats


@dataclass(frozen=True)
class CorrelatedKernel:
    """A model on rows with a covariance matrix.

    Attributes
    ----------
    inner
        The same model on the same rows, as if their errors were independent and equal.
    data
        The rows, with their covariance.
    """

    inner: EagerKernel | NativeKernel
    data: Dataset = field(repr=False)

    loss_kind = "least_squares"

    # --- what the kernel inside knows ---------------------------------------------------------------------------------

    @property
    def eager(self) -> EagerKernel:
        """The model on the torch engine, for predictions."""
        return self.inner.eager

    @property
    def model(self) -> Model:
        """The model."""
        return self.inner.model

    @property
    def parameters(self) -> Parameters:
        """The parameters."""
        return self.inner.parameters

    @property
    def loss_function(self) -> Loss:
        """The loss, by name: squared residuals."""
        return self.inner.loss_function

    @property
    def numeric(self) -> bool:
        """Whether derivatives are finite differences."""
        return self.inner.numeric

    @property
    def engine(self) -> str:
        """What computes the model's rows."""
        return self.inner.engine

    @property
    def reason(self) -> str:
        """Why that engine."""
        return self.inner.reason

    @property
    def source(self) -> str:
        """The compiled function of one row."""
        return self.inner.source

    @property
    def n(self) -> int:
        """Rows."""
        return self.inner.n

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the model; whitening is always in double precision."""
        return self.inner.dtype

    def predict(self, theta: Tensor, columns: dict[str, Tensor] | None = None) -> Tensor:
        """Prediction of each row, (n,); differentiable."""
        return self.inner.predict(theta, columns)

    def jacobian(self, theta: Floats) -> tuple[Floats, Floats]:
        """Prediction (n,) and its derivative by the free parameters (n, p)."""
        return self.inner.jacobian(theta)

    def on(self, data: Dataset) -> AnyKernel:
        """Give the same model on other rows."""
        return on_rows(self.inner, data)

    def in_double(self) -> CorrelatedKernel:
        """Give the kernel in double precision."""
        return replace(self, inner=self.inner.in_double())

    # --- whitened -----------------------------------------------------------------------------------------------------

    @cached_property
    def _factor(self) -> Tensor:
        return torch.from_numpy(self.data.cholesky)

    @property
    def signal(self) -> float:
        """Mean square of the whitened target."""
        return float(np.mean(self.data.white(self.data.target) ** 2))

    def residual(self, theta: Floats) -> tuple[Floats, Floats]:
        """Whitened residual z (n,), and its derivative (n, p)."""
        prediction, derivative = self.inner.jacobian(theta)
        return self.data.white(prediction - self.data.target), self.data.white(derivative)

    def linearize(self, theta: Floats) -> Linearization:
        """Whitened residual and its derivative; ``weight`` is 1/sigma, of which only the diagonal is told here."""
        prediction, derivative = self.inner.jacobian(theta)
        assert self.data.sigma is not None
        residual = self.data.white(prediction - self.data.target)
        return Linearization(residual, self.data.white(derivative), prediction, 1 / self.data.sigma, np.ones(self.n))

    def mean_loss(self, theta: Floats) -> float:
        """Mean of z², without autograd."""
        with torch.no_grad():
            return float(self.loss(torch.as_tensor(theta, dtype=self.dtype)))

    def loss(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        """Mean of z², a scalar; differentiable, twice where the torch engine's prediction is."""
        if rows is not None:
            raise OptionError(
                "batch_size takes some rows at a time, and with a covariance matrix every row depends on the others; leave batch_size out."
            )
        prediction = self.eager.predicted(theta, self.eager.columns).double()
        difference = prediction - torch.from_numpy(self.data.target)
        white = torch.linalg.solve_triangular(self._factor, difference.unsqueeze(1), upper=False)
        mean: Tensor = (white**2).mean()
        return mean.to(theta.dtype)

    def hessian_product(self, theta: Floats, vector: Floats) -> Floats:
        """Hessian of the mean loss times a vector, (p,), by differentiating twice."""
        return hessian_product(self.loss, theta, vector, self.dtype)


AnyKernel: TypeAlias = EagerKernel | NativeKernel | CorrelatedKernel


def on_rows(kernel: EagerKernel | NativeKernel, data: Dataset) -> AnyKernel:
    """Put a kernel on rows, whatever their errors."""
    if data.covariance is None:
        return kernel.on(data)
    return CorrelatedKernel(kernel.on(data.independent()), data)
