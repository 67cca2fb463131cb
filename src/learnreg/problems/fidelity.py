"""Data terms D(Ax, y): the squared distance and its constants."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..core.batch import dot
from ..core.bounds import Curvature
from ..core.curvature import MeanCurvature
from ..core.ranges import check_positive
from ..operators.physics import LinearMap


@dataclass(frozen=True)
class L2:
    """D(Ax, y) = 1 / (2 sigma^2) ||A x - y||^2, as ``deepinv.optim.L2``.

    Args:
        sigma: positive noise level; 1 leaves the plain squared distance, so that the regularizer carries the scale.
    """

    sigma: float = 1.0

    def __post_init__(self) -> None:
        check_positive("sigma", self.sigma)

    def value(self, operator: LinearMap, x: Tensor, y: Tensor) -> Tensor:
        """(b, ...) -> (b,)."""
        residual = operator.forward(x) - y
        return 0.5 / self.sigma**2 * dot(residual, residual)

    def grad(self, operator: LinearMap, x: Tensor, y: Tensor) -> Tensor:
        """A^T (A x - y) / sigma^2."""
        gradient = operator.adjoint(operator.forward(x) - y)
        return gradient if self.sigma == 1 else gradient / self.sigma**2

    def hessian(self, operator: LinearMap, v: Tensor) -> Tensor:
        """A^T A v / sigma^2, the same at every x."""
        product = operator.normal(v)
        return product if self.sigma == 1 else product / self.sigma**2

    def data_adjoint(self, operator: LinearMap, q: Tensor) -> Tensor:
        """A q / sigma^2, minus the derivative of the gradient with respect to y, applied to q."""
        product = operator.forward(q)
        return product if self.sigma == 1 else product / self.sigma**2

    def bounds(self, operator: LinearMap, x: Tensor) -> Curvature:
        """mu and L of D for images like ``x``."""
        return operator.spectrum(x) * (1 / self.sigma**2)

    def mean_curvature(self, operator: LinearMap, x: Tensor) -> MeanCurvature:
        """Averages of the Hessian for images like ``x``, for preconditioners."""
        return operator.mean_curvature(x) * (1 / self.sigma**2)
