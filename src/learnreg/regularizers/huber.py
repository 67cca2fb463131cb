"""Total variation with a Huber potential: exactly linear beyond the smoothing, with a Hessian that
jumps there.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from ..core.curvature import MeanCurvature
from ..core.ranges import plain_arguments
from ..operators.differences import (
    gradient,
    gradient_adjoint,
    plain_differences,
    spatial_axes,
)
from .base import LinearizedHessian
from .derivatives import differentiable_gradient, differentiable_value
from .grouped import (
    Channels,
    SmoothedTV,
    flat_averages,
    kept_short,
    radial_product,
    size,
    square,
)


class HuberTV(SmoothedTV):
    """R(x) = w sum_p H(|(Dx)_p|),  H(t) = t^2 / (2 nu) for t <= nu, t - nu / 2 beyond;  theta =
    (log w, log nu).

    x: (b, c, n), (b, c, h, w) or (b, c, d, h, w). Isotropic, D are forward differences along all
    axes after the channels, without boundary terms; channels are summed separately or enter one
    potential together, as those of ``TV``. R is C^1 with a semismooth gradient: ``linearize`` gives
    an element of the generalized Hessian, and hypergradients hold wherever no |Dx| equals nu
    exactly. Nothing bounds the change of that Hessian, so errors of hypergradients
    are estimated.
    Kunisch and Pock, SIAM J. Imaging Sci. 2013, learn its weight by bilevel optimization and solve
    it with the primal-dual semismooth Newton method, ``solver="primal_dual_newton"``.

    Args:
        weight: start value of w.
        smoothing: start value of nu, in intensity units.
        channels: ``separate`` or ``joint``.

    Raises:
        InputError: weight or smoothing not positive, a word that is neither of the two.
    """

    @plain_arguments
    def __init__(
        self, weight: float = 0.05, smoothing: float = 0.02, channels: Channels = "separate"
    ) -> None:
        super().__init__(weight, smoothing, True, channels)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """u = Dx / nu (b, axes, ...) and m = max(1, |u|), 1 in the place of what meets in one
        potential.
        """
        spatial_axes(x)
        u = gradient(x).div_(self._scales()[1])
        return u, size(u, self._over).clamp_min(1.0)

    @differentiable_value
    def value(self, x: Tensor) -> Tensor:
        w, nu = self._scales()
        u, m = self._split(x)
        length = size(u, self._over)
        bent = torch.where(length <= 1, 0.5 * length.square(), m - 0.5)
        return w * nu * bent.flatten(1).sum(dim=1)

    def formula(self, x: Tensor) -> Tensor:
        w, nu = self.log_weight.exp(), self.log_smoothing.exp()
        squares = square(plain_differences(x) / nu, self._over)
        beyond = squares > 1
        length = torch.sqrt(torch.where(beyond, squares, 1.0))  # no root of zero to differentiate
        return w * nu * torch.where(beyond, length - 0.5, 0.5 * squares).flatten(1).sum(dim=1)

    @differentiable_gradient
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
        product = partial(radial_product, over=self._over)
        return LinearizedHessian(product, w / nu / m, beyond, dual[0])

    def dual_update(self, x: Tensor, dual: tuple[Tensor, ...], move: Tensor) -> tuple[Tensor, ...]:
        u, m = self._split(x)
        du, p = gradient(move).div_(self._scales()[1]), dual[0]
        turned = (u / m * (m > 1) * du).sum(dim=self._over, keepdim=True)
        new = (u + du - p * turned) / m
        return (kept_short(new, self._over),)

    def directional(self, x: Tensor, v: Tensor) -> Tensor:
        spatial_axes(x)
        u = gradient(x) / self.log_smoothing.exp()
        m = square(u, self._over).clamp_min(1.0).sqrt()
        return self.log_weight.exp() * (u / m * gradient(v)).flatten(1).sum(dim=1)

    def mean_curvature(self, x: Tensor) -> MeanCurvature:
        """Weights (w / nu) / max(1, |u|), those of the majorant, averaged; the diagonal as for
        ``TV``.
        """
        w, nu = self._scales()
        u, m = self._split(x)
        return flat_averages((w / nu / m).expand_as(u), x)

    def spec(self) -> dict[str, object]:
        return {"type": "HuberTV", "channels": self.channels}

    def extra_repr(self) -> str:
        w, nu = (math.exp(p.item()) for p in (self.log_weight, self.log_smoothing))
        return f"weight={w:.4g}, smoothing={nu:.4g}, channels={self.channels!r}"
