"""Total variation as a saddle point: no smoothing is needed, the edges may be as sharp as they
are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..convex import Norm
from ..core.ranges import check_flag, plain_arguments
from ..operators.fields import (
    gradient_norm,
    laplacian_symbol,
    scaled_gradient,
    scaled_gradient_adjoint,
)
from .base import positive
from .saddle import SaddleRegularizer, images, non_negative, weight_of


class ExactTV(SaddleRegularizer):
    """R(u) = w sum_p |(Du)_p|, w = e^theta: K = w D and f the sum of norms, f* the indicator of |p|
    <= 1.

    D are forward differences without boundary terms. Isotropic: the Euclidean norm of both
    differences of a pixel. Anisotropic: the sum of their absolute values. Channels are summed
    separately. Rudin, Osher and Fatemi, Physica D 60 (1992); the saddle point of Chambolle and
    Pock, JMIV 40 (2011).

    Args:
        weight: start value of w.
        isotropic: see above.
        rounding: rho >= 0 adds rho / 2 |p|^2 to f*, so that f is Huber's function of w Du:
            quadratic where |w Du| <= rho, and off by at most rho / 2 elsewhere. 0 is exact total
            variation.

    Raises:
        InputError: a value out of range.
    """

    @plain_arguments
    def __init__(self, weight: float = 0.05, isotropic: bool = True, rounding: float = 0.0) -> None:
        super().__init__()
        self.log_weight = nn.Parameter(torch.tensor(math.log(positive("weight", weight))))
        self.isotropic, self.rounding = (
            check_flag("isotropic", isotropic),
            non_negative("rounding", rounding),
        )

    @property
    def effort(self) -> float:
        """Measured: as long as ten multiplications of images by a number."""
        return 10.0

    def dual(self, u: Tensor) -> tuple[Norm]:
        return (Norm(isotropic=self.isotropic, rounding=self.rounding),)

    def dual_start(self, u: Tensor) -> tuple[Tensor]:
        b, *shape = images(u).shape
        return (u.new_zeros(b, 2, *shape),)

    def linear(self, u: Tensor, *v: Tensor) -> tuple[Tensor]:
        return (scaled_gradient(u, self.log_weight.exp()),)

    def adjoint(self, *p: Tensor) -> tuple[Tensor]:
        return (scaled_gradient_adjoint(p[0], self.log_weight.exp()),)

    def norms(self, u: Tensor) -> list[list[float]]:
        """[[w ||D||]]: exact."""
        h, w = images(u).shape[-2:]
        return [[weight_of(self.log_weight) * gradient_norm(h, w)]]

    @torch.no_grad()
    def majorants(self, u: Tensor) -> list[Tensor]:
        """w^2 times the periodic Laplacian, which has differences across the edges besides those of
        D.
        """
        return [self.log_weight.exp().square() * laplacian_symbol(u)]

    def sensitivity(self, u: Tensor) -> tuple[float, float]:
        """dK = dtheta w D, hence kappa = w ||D||; there is no offset."""
        return self.norms(u)[0][0], 0.0

    def spec(self) -> dict[str, object]:
        return {"type": "ExactTV", "isotropic": self.isotropic, "rounding": self.rounding}

    def extra_repr(self) -> str:
        return (
            f"weight={weight_of(self.log_weight):.4g}, isotropic={self.isotropic}, "
            f"rounding={self.rounding:g}"
        )
