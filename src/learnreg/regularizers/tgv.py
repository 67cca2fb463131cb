"""Total generalized variation of second order: slopes are free, only their changes are paid for."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..convex import Convex, Norm, Squares, Zero
from ..convex.tangent import inner
from ..core.batch import expand
from ..core.ranges import plain_arguments
from ..operators.fields import (
    clear_missing_,
    gradient_norm,
    laplacian_symbol,
    scaled_gradient,
    scaled_gradient_adjoint,
)
from ..operators.symmetrized import symmetrized, symmetrized_adjoint, symmetrized_norm
from .base import positive
from .saddle import SaddleRegularizer, images, non_negative, weight_of


class TGV(SaddleRegularizer):
    """R(u) = min_v w1 sum_p |(Du - v)_p| + w0 sum_p |(E v)_p|,  w1 = e^{theta_0},  w0 =
    e^{theta_1}.

    v is a vector field on the differences that exist, E its symmetrized gradient with the Frobenius
    norm (see ``operators.symmetrized`` for where the values live); none of the operators has
    boundary terms, so R is zero at affine images of any size, edges included, and at most w1 TV. K
    = [[w1 D, -w1], [0, w0 E]]. Channels are summed separately, with one pair of weights. Bredies,
    Kunisch and Pock, SIAM J. Imaging Sci. 3(3), 2010.

    Args:
        weight: start value of w1.
        ratio: start value of w0 / w1; 2 is common for images with pixels of size one.
        rounding: rho >= 0 adds rho / 2 |p|^2 to both f*: the norms become Huber functions.
        curvature: mu >= 0 adds mu / 2 |v|^2, which makes the problem strongly convex in v; 0 is
            exact TGV.

    Raises:
        InputError: a value out of range.
    """

    @plain_arguments
    def __init__(
        self,
        weight: float = 0.05,
        ratio: float = 2.0,
        rounding: float = 0.0,
        curvature: float = 0.0,
    ) -> None:
        super().__init__()
        first = math.log(positive("weight", weight))
        self.log_weight = nn.Parameter(torch.tensor(first))
        self.log_second_weight = nn.Parameter(
            torch.tensor(first + math.log(positive("ratio", ratio)))
        )
        self.rounding, self.curvature = (
            non_negative("rounding", rounding),
            non_negative("curvature", curvature),
        )

    def _weights(self) -> tuple[float, float]:
        return weight_of(self.log_weight), weight_of(self.log_second_weight)

    @property
    def effort(self) -> float:
        """Measured: as long as seventy multiplications of images by a number."""
        return 70.0

    def auxiliary(self, u: Tensor) -> tuple[Tensor]:
        """v = 0, where the value is w1 TV."""
        return (self._zeros(u, 2),)

    def primal(self, u: Tensor) -> tuple[Convex]:
        return (Squares(self.curvature) if self.curvature else Zero(),)

    def dual(self, u: Tensor) -> tuple[Norm, Norm]:
        return Norm(rounding=self.rounding), Norm(rounding=self.rounding)

    def dual_start(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return self._zeros(u, 2), self._zeros(u, 3)

    @staticmethod
    def _zeros(u: Tensor, components: int) -> Tensor:
        b, *shape = images(u).shape
        return u.new_zeros(b, components, *shape)

    def linear(self, u: Tensor, *v: Tensor) -> tuple[Tensor, Tensor]:
        first = self.log_weight.exp()
        return _minus(scaled_gradient(u, first), v[0], first), symmetrized(
            v[0], self.log_second_weight.exp()
        )

    def adjoint(self, *p: Tensor) -> tuple[Tensor, Tensor]:
        first, second = self.log_weight.exp(), self.log_second_weight.exp()
        return scaled_gradient_adjoint(p[0], first), _minus(
            symmetrized_adjoint(p[1], second), p[0], first
        )

    def norms(self, u: Tensor) -> list[list[float]]:
        """[[w1 ||D||, w1], [0, w0 ||E||]]; that of E is a bound, the others are exact."""
        h, w = images(u).shape[-2:]
        first, second = self._weights()
        return [[first * gradient_norm(h, w), first], [0.0, second * symmetrized_norm(h, w)]]

    @torch.no_grad()
    def majorants(self, u: Tensor) -> list[Tensor]:
        """w1^2 times the periodic Laplacian, which has differences across the edges besides those
        of D; zero.
        """
        symbol = laplacian_symbol(u)
        return [self.log_weight.exp().square() * symbol, torch.zeros_like(symbol)]

    @torch.no_grad()
    def feasible(self, x: tuple[Tensor, ...], p: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """For free v: w1 p1 = w0 E^T p0 for a p0 shrunk until |p0|, |p1| <= 1; None where v is not
        free.

        The dual of TGV has only p0 as its variable: p1 is what remains of it after one divergence.
        Nothing is lost at a solution, where the equation holds.
        """
        if self.curvature:
            return None
        first, second = self.log_weight.exp(), self.log_second_weight.exp()
        rest = symmetrized_adjoint(p[1], second).div_(first)
        largest = torch.maximum(_largest(p[1]), _largest(rest)).clamp_min_(1.0)
        shrunk = p[1] / expand(largest, p[1])
        return symmetrized_adjoint(shrunk, second).div_(first), shrunk

    def sensitivity(self, u: Tensor) -> tuple[float, float]:
        """kappa = max(w1 sqrt(||D||^2 + 1), w0 ||E||), no offset.

        For dtheta = (s, t), |dK (u, v)|^2 = s^2 w1^2 |Du - v|^2 + t^2 w0^2 |E v|^2 with s^2 + t^2 =
        1, and
        |Du - v|^2 <= (||D||^2 + 1) (|u|^2 + |v|^2).
        """
        (gradient, identity), (_, second) = self.norms(u)
        return max(math.hypot(gradient, identity), second), 0.0

    def spec(self) -> dict[str, object]:
        return {"type": "TGV", "rounding": self.rounding, "curvature": self.curvature}

    def extra_repr(self) -> str:
        first, second = self._weights()
        return (
            f"weight={first:.4g}, ratio={second / first:.4g}, rounding={self.rounding:g}, "
            f"curvature={self.curvature:g}"
        )


def _minus(a: Tensor, v: Tensor, weight: Tensor) -> Tensor:
    """a - weight v on the differences that exist; a (b, 2, c, h, w) is zero elsewhere. May
    overwrite a.
    """
    if torch.is_grad_enabled():
        return a - weight * clear_missing_(v.clone())
    return clear_missing_(a.addcmul_(v, weight.to(v), value=-1))


def _largest(p: Tensor) -> Tensor:
    """The largest length of a vector, per image: (b, k, c, h, w) -> (b,)."""
    return (
        inner(p, p).flatten(1).amax(dim=1).sqrt_()
    )  # torch's norm over a dimension of 2 or 3 is slow
