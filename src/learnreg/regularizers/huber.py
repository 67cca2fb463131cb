"""Total variation with a Huber potential: exactly linear beyond the smoothing, with a Hessian that
jumps there.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..core.bounds import Bound, Curvature
from ..core.curvature import MeanCurvature
from ..core.ranges import plain_arguments
from ..operators.differences import NORM_SQUARED, gradient, gradient_adjoint
from .base import LinearizedHessian, Regularizer, positive
from .tv import flat_averages, radial_product


class HuberTV(Regularizer):
    """R(x) = w sum_p H(|(Dx)_p|),  H(t) = t^2 / (2 nu) for t <= nu, t - nu / 2 beyond;  theta =
    (log w, log nu).

    Isotropic, D are forward differences without boundary terms, channels are summed separately. R
    is C^1 with a semismooth gradient: ``linearize`` gives an element of the generalized Hessian,
    and hypergradients hold wherever no
    |Dx| equals nu exactly. Nothing bounds the change of that Hessian, so errors of hypergradients
    are estimated.
    Kunisch and Pock, SIAM J. Imaging Sci. 2013, learn its weight by bilevel optimization and solve
    it with the primal-dual semismooth Newton method, ``solver="primal_dual_newton"``.

    Args:
        weight: start value of w.
        smoothing: start value of nu, in intensity units.

    Raises:
        InputError: weight or smoothing not positive.
    """

    pictures = True

    @plain_arguments
    def __init__(self, weight: float = 0.05, smoothing: float = 0.02) -> None:
        super().__init__()
        self.log_weight = nn.Parameter(torch.tensor(math.log(positive("weight", weight))))
        self.log_smoothing = nn.Parameter(torch.tensor(math.log(positive("smoothing", smoothing))))

    def _scales(self) -> tuple[Tensor, Tensor]:
        """w and nu as detached scalars."""
        return self.log_weight.detach().exp(), self.log_smoothing.detach().exp()

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """u = Dx / nu (b, 2, ...) and m = max(1, |u|) (b, 1, ...)."""
        u = gradient(x).div_(self._scales()[1])
        return u, torch.linalg.vector_norm(u, dim=1, keepdim=True).clamp_min(1.0)

    def value(self, x: Tensor) -> Tensor:
        w, nu = self._scales()
        u, m = self._split(x)
        size = torch.linalg.vector_norm(u, dim=1, keepdim=True)
        return w * nu * torch.where(size <= 1, 0.5 * size.square(), m - 0.5).flatten(1).sum(dim=1)

    def grad(self, x: Tensor) -> Tensor:
        u, m = self._split(x)
        return gradient_adjoint(u / m).mul_(self._scales()[0])

    def linearize(self, x: Tensor) -> LinearizedHessian:
        return self.dual_linearize(x, self.dual_start(x))

    def dual_start(self, x: Tensor) -> tuple[Tensor, ...]:
        u, m = self._split(x)
        return (u / m,)

    def dual_linearize(self, x: Tensor, dual: tuple[Tensor, ...]) -> LinearizedHessian:
        """Weights (w / nu) (1 - chi sym(p e^T)) / m, e = u / |u|, chi = 1 beyond the kink; convex
        while |p| <= 1.
        """
        w, nu = self._scales()
        u, m = self._split(x)
        beyond = u / m * (m > 1)
        return LinearizedHessian(radial_product, w / nu / m, beyond, dual[0])

    def dual_update(self, x: Tensor, dual: tuple[Tensor, ...], move: Tensor) -> tuple[Tensor, ...]:
        u, m = self._split(x)
        du, p = gradient(move).div_(self._scales()[1]), dual[0]
        turned = (u / m * (m > 1) * du).sum(dim=1, keepdim=True)
        new = (u + du - p * turned) / m
        return (new / torch.linalg.vector_norm(new, dim=1, keepdim=True).clamp_min(1.0),)

    def directional(self, x: Tensor, v: Tensor) -> Tensor:
        u = gradient(x) / self.log_smoothing.exp()
        m = torch.linalg.vector_norm(u, dim=1, keepdim=True).clamp_min(1.0)
        return self.log_weight.exp() * (u / m * gradient(v)).flatten(1).sum(dim=1)

    def bounds(self) -> Curvature:
        strength = (self.log_weight.detach().double() - self.log_smoothing.detach().double()).exp()
        return Curvature(Bound.exact(0.0), Bound.proven(NORM_SQUARED * float(strength)))

    def mean_curvature(self, x: Tensor) -> MeanCurvature:
        """Weights (w / nu) / max(1, |u|), those of the majorant, averaged; the diagonal as for
        ``TV``.
        """
        w, nu = self._scales()
        weights = (w / nu / self._split(x)[1]).expand(-1, 2, *x.shape[1:])
        return flat_averages(weights, x)

    def spec(self) -> dict[str, Any]:
        return {"type": "HuberTV"}

    def extra_repr(self) -> str:
        w, nu = (math.exp(p.item()) for p in (self.log_weight, self.log_smoothing))
        return f"weight={w:.4g}, smoothing={nu:.4g}"
