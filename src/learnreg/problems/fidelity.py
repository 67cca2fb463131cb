"""Data terms D(Ax, y): the squared distance and its constants; L1 and KL for saddle-point
problems.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..convex import Convex, KullbackLeibler, Norm, Squares, Zero
from ..core.batch import dot
from ..core.bounds import Bound, Curvature
from ..core.curvature import MeanCurvature
from ..core.ranges import check_positive, tidy
from ..operators.physics import LinearMap


@dataclass(frozen=True)
class L2:
    """D(Ax, y) = 1 / (2 sigma^2) ||A x - y||^2, as ``deepinv.optim.L2``.

    Args:
        sigma: positive noise level; 1 leaves the plain squared distance, so that the regularizer
            carries the scale.
    """

    sigma: float = 1.0

    def __post_init__(self) -> None:
        tidy(self)
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

    def of_image(self, operator: LinearMap, y: Tensor, u: Tensor, tikhonov: float) -> Convex | None:
        """D(Au, y) + tikhonov/2 ||u||^2 as a function of u, up to a constant; None where its prox
        needs a solve.
        """
        if operator.is_identity:
            weight: float | Tensor = 1 / self.sigma**2
            pulled = y * weight
        elif operator.is_mask:  # the measurements of a mask have the shape of the image
            weight = operator.normal(torch.ones_like(u[:1])) / self.sigma**2
            pulled = operator.adjoint(y) / self.sigma**2
        else:
            return None
        total = weight + tikhonov
        centre = (
            pulled / total
            if isinstance(total, float)
            else pulled / torch.where(total > 0, total, 1.0)
        )
        return Squares(total, centre)

    def of_data(self, y: Tensor) -> Convex:
        """D(., y), for a dual block of its own."""
        return Squares(1 / self.sigma**2, y)

    def rest(self, tikhonov: float) -> Convex:
        """What is left for the image when the data term has a dual block."""
        return _ridge(tikhonov)


@dataclass(frozen=True)
class L1:
    """D(Ax, y) = weight ||A x - y||_1, for outliers such as salt and pepper; saddle-point problems
    only.

    Args:
        weight: positive.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        tidy(self)
        check_positive("weight", self.weight)

    def bounds(self, operator: LinearMap, x: Tensor) -> Curvature:
        """No curvature: add ``tikhonov`` to the energy where a distance is to be certified."""
        return Curvature(Bound.exact(0.0), Bound.unknown())

    def of_image(self, operator: LinearMap, y: Tensor, u: Tensor, tikhonov: float) -> Convex | None:
        """D as a function of u for denoising without ``tikhonov``."""
        return (
            Norm(self.weight, y, isotropic=False) if operator.is_identity and not tikhonov else None
        )

    def of_data(self, y: Tensor) -> Convex:
        """D(., y), for a dual block of its own."""
        return Norm(self.weight, y, isotropic=False)

    def rest(self, tikhonov: float) -> Convex:
        """What is left for the image when the data term has a dual block."""
        return _ridge(tikhonov)


@dataclass(frozen=True)
class KL:
    """D(Ax, y) = sum A x + r - y + y log(y / (A x + r)), for counts with a background r;
    saddle-point problems only.

    Args:
        background: r, positive.
    """

    background: float = 1.0

    def __post_init__(self) -> None:
        tidy(self)
        check_positive("background", self.background)

    def bounds(self, operator: LinearMap, x: Tensor) -> Curvature:
        """No curvature that holds everywhere: add ``tikhonov`` where a distance is to be
        certified.
        """
        return Curvature(Bound.exact(0.0), Bound.unknown())

    def of_image(self, operator: LinearMap, y: Tensor, u: Tensor, tikhonov: float) -> Convex | None:
        """D as a function of u for denoising without ``tikhonov``."""
        return (
            KullbackLeibler(y, self.background) if operator.is_identity and not tikhonov else None
        )

    def of_data(self, y: Tensor) -> Convex:
        """D(., y), for a dual block of its own."""
        return KullbackLeibler(y, self.background)

    def rest(self, tikhonov: float) -> Convex:
        """What is left for the image when the data term has a dual block."""
        return _ridge(tikhonov)


def _ridge(tikhonov: float) -> Convex:
    return Squares(tikhonov) if tikhonov else Zero()
