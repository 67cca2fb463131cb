"""Tikhonov: weight / 2 ||x||^2, the plain way to add strong convexity."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..core.batch import dot
from ..core.bounds import Bound, Curvature
from ..core.curvature import MeanCurvature
from ..core.ranges import check_flag, plain_arguments
from .base import LinearizedHessian, Regularizer, positive
from .derivatives import differentiable_gradient, differentiable_value


class Tikhonov(Regularizer):
    """R(x) = weight / 2 ||x||^2 with weight = e^t; theta = (t). Adds strong convexity.

    x: (b, c, n), (b, c, h, w) or (b, c, d, h, w).

    Args:
        weight: positive start value.
        learned: False keeps the weight fixed (theta is then empty).
    """

    @plain_arguments
    def __init__(self, weight: float = 1e-3, learned: bool = True) -> None:
        super().__init__()
        check_flag("learned", learned)
        self.log_weight = nn.Parameter(
            torch.tensor(math.log(positive("weight", weight))), requires_grad=learned
        )

    @property
    def effort(self) -> float:
        return 2.0

    @property
    def reach(self) -> int:
        """Every pixel for itself."""
        return 0

    @differentiable_value
    def value(self, x: Tensor) -> Tensor:
        return 0.5 * self.log_weight.exp().detach() * dot(x, x)

    def formula(self, x: Tensor) -> Tensor:
        return 0.5 * self.log_weight.exp() * dot(x, x)

    @differentiable_gradient
    def grad(self, x: Tensor) -> Tensor:
        return self.log_weight.exp().detach() * x

    def linearize(self, x: Tensor) -> LinearizedHessian:
        weight = self.log_weight.exp().detach()
        return LinearizedHessian(lambda v: weight * v)

    def directional(self, x: Tensor, v: Tensor) -> Tensor:
        return self.log_weight.exp() * dot(x, v)

    def scaling(self) -> Tensor:
        return self._ones_for([self.log_weight])

    def bounds(self) -> Curvature:
        weight = Bound.exact(math.exp(self.log_weight.item()))
        return Curvature(weight, weight)

    def mean_curvature(self, x: Tensor) -> MeanCurvature:
        weight = math.exp(self.log_weight.item())
        return MeanCurvature(
            torch.full_like(x, weight), x.new_full((*x.shape[:-1], x.shape[-1] // 2 + 1), weight)
        )

    def dual_start(self, x: Tensor) -> tuple[Tensor, ...]:
        return ()

    def dual_linearize(self, x: Tensor, dual: tuple[Tensor, ...]) -> LinearizedHessian:
        return self.linearize(x)

    def dual_update(self, x: Tensor, dual: tuple[Tensor, ...], move: Tensor) -> tuple[Tensor, ...]:
        return ()

    def hessian_lipschitz(self) -> Bound:
        return Bound.exact(0.0)

    def mixed_lipschitz(self, reach: float = 1.0) -> Bound:
        return (
            Bound.exact(math.exp(self.log_weight.item()))
            if self.log_weight.requires_grad
            else Bound.exact(0.0)
        )

    def hessian_change(self, x: Tensor, q: Tensor, radius: Tensor) -> Tensor:
        return torch.zeros_like(radius)

    def mixed_change(self, x: Tensor, q: Tensor, radius: Tensor) -> Tensor:
        return self.mixed_lipschitz().value * radius * q.double().flatten(1).norm(dim=1)

    def mixed_norm(self, x: Tensor, radius: Tensor) -> Tensor:
        return self.mixed_lipschitz().value * (x.double().flatten(1).norm(dim=1) + radius)

    def spec(self) -> dict[str, object]:
        return {
            "type": "Tikhonov",
            "weight": math.exp(self.log_weight.item()),
            "learned": self.log_weight.requires_grad,
        }
