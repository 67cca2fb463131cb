"""Smoothed total variation, isotropic or anisotropic, with learned weight and smoothing."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..core.batch import norm
from ..core.bounds import Bound, Curvature
from ..core.curvature import MeanCurvature
from ..core.errors import InputError
from ..core.ranges import check_flag, plain_arguments
from ..operators.differences import (
    NORM_SQUARED,
    differences,
    differences_adjoint,
    gradient,
    gradient_adjoint,
    symbols,
)
from . import profiles
from .base import LinearizedHessian, Regularizer, positive

ROW = {False: math.sqrt(2.0), True: math.sqrt(3.0)}
"""Operator norm of the rows of D that meet in one potential: one difference, or the two of one
pixel (isotropic).
"""


class TV(Regularizer):
    """R(x) = w sum_p [ phi(|(Dx)_p|) - nu ],  phi(t) = sqrt(t^2 + nu^2),  w = e^{theta_0},  nu =
    e^{theta_1}.

    D are forward differences without boundary terms. Isotropic: one potential per pixel of the
    vector of both differences. Anisotropic: one potential per difference. Channels are summed
    separately. The constant nu is subtracted so that R(0) = 0; it changes no minimizer.

    Args:
        weight: start value of w.
        smoothing: start value of nu, in intensity units.
        isotropic: see above.

    Raises:
        InputError: weight or smoothing not positive.
    """

    pictures = True

    @plain_arguments
    def __init__(
        self, weight: float = 0.05, smoothing: float = 0.02, isotropic: bool = True
    ) -> None:
        super().__init__()
        self.log_weight = nn.Parameter(torch.tensor(math.log(positive("weight", weight))))
        self.log_smoothing = nn.Parameter(torch.tensor(math.log(positive("smoothing", smoothing))))
        check_flag("isotropic", isotropic)
        self.isotropic = isotropic

    def _scales(self) -> tuple[Tensor, Tensor]:
        """w and nu as detached scalars."""
        return self.log_weight.detach().exp(), self.log_smoothing.detach().exp()

    def _size(self, u: Tensor) -> Tensor:
        """Normalized length of the differences that meet in one potential: (b, 2, ...) -> (b, 1 or
        2, ...).
        """
        return torch.linalg.vector_norm(u, dim=1, keepdim=True) if self.isotropic else u

    def _differences(self, x: Tensor) -> Tensor:
        """gradient(x), once x looks like images."""
        _check(x)
        return gradient(x)

    def _pair(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """differences(x), once x looks like images."""
        _check(x)
        return differences(x)

    def value(self, x: Tensor) -> Tensor:
        w, nu = self._scales()
        return (
            w
            * nu
            * profiles.size_minus_one(self._size(self._differences(x).div_(nu)))
            .flatten(1)
            .sum(dim=1)
        )

    def _flux(self, u: Tensor) -> Tensor:
        """Gradient of the normalized potential: u / sqrt(1 + |u|^2)."""
        if self.isotropic:
            return u * torch.rsqrt(1 + u.square().sum(dim=1, keepdim=True))
        return profiles.slope(u)

    def grad(self, x: Tensor) -> Tensor:
        w, nu = self._scales()
        rows, columns = self._pair(x)
        square = nu * nu
        if not self.isotropic:
            fluxes = (d.mul_(torch.addcmul(square, d, d).rsqrt_().mul_(w)) for d in (rows, columns))
            return differences_adjoint(*fluxes)
        inverse = torch.addcmul(square, rows, rows).addcmul_(columns, columns).rsqrt_().mul_(w)
        return differences_adjoint(rows.mul_(inverse), columns.mul_(inverse))

    def linearize(self, x: Tensor) -> LinearizedHessian:
        w, nu = self._scales()
        rows, columns = self._pair(x)
        if not self.isotropic:

            def separate(v: Tensor, a: Tensor, b: Tensor) -> Tensor:
                r, c = differences(v)
                return differences_adjoint(r.mul_(a), c.mul_(b))

            return LinearizedHessian(
                separate, *((w / nu) * profiles.curvature(d.div_(nu)) for d in (rows, columns))
            )
        across, along = (torch.addcmul(nu * nu, d, d) for d in (columns, rows))
        inverse = torch.addcmul(along, columns, columns).rsqrt_()
        scale = (
            inverse.square().mul_(inverse).mul_(w)
        )  # w / (nu s)^3; no 1 - u^2, which cancels at sharp edges

        def product(v: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
            r, s = differences(v)
            return differences_adjoint(
                (a * r).addcmul_(b, s, value=-1), s.mul_(c).addcmul_(b, r, value=-1)
            )

        return LinearizedHessian(
            product, across.mul_(scale), rows.mul_(columns).mul_(scale), along.mul_(scale)
        )

    def dual_start(self, x: Tensor) -> tuple[Tensor, ...]:
        _, nu = self._scales()
        return (self._flux(self._differences(x).div_(nu)),)

    def dual_linearize(self, x: Tensor, dual: tuple[Tensor, ...]) -> LinearizedHessian:
        """Weights (w / nu) (1 - sym(p u^T) / s) / s; positive semidefinite as long as |p| <= 1."""
        w, nu = self._scales()
        u, p = self._differences(x).div_(nu), dual[0]
        if not self.isotropic:
            return LinearizedHessian(
                lambda v, c: gradient_adjoint(gradient(v).mul_(c)),
                profiles.dual_curvature(u, p).mul_(w / nu),
            )
        inverse = torch.rsqrt(1 + u.square().sum(dim=1, keepdim=True))

        return LinearizedHessian(radial_product, w / nu * inverse, u * inverse, p)

    def dual_update(self, x: Tensor, dual: tuple[Tensor, ...], move: Tensor) -> tuple[Tensor, ...]:
        _, nu = self._scales()
        u, du, p = self._differences(x).div_(nu), self._differences(move).div_(nu), dual[0]
        if not self.isotropic:
            return (profiles.dual_step(u, p, du),)
        inverse = torch.rsqrt(1 + u.square().sum(dim=1, keepdim=True))
        new = (u + du - p * (u * du).sum(dim=1, keepdim=True) * inverse) * inverse
        return (new / torch.linalg.vector_norm(new, dim=1, keepdim=True).clamp_min(1.0),)

    def directional(self, x: Tensor, v: Tensor) -> Tensor:
        u = self._differences(x) / self.log_smoothing.exp()
        inner = u.square().sum(dim=1, keepdim=True) if self.isotropic else u.square()
        return self.log_weight.exp() * (u * torch.rsqrt(1 + inner) * gradient(v)).flatten(1).sum(
            dim=1
        )

    def mean_curvature(self, x: Tensor) -> MeanCurvature:
        """Weights (w / nu) / (1 + |u|^2), the geometric mean of the Hessian, s^-3, and of its
        majorant, 1 / s.

        The diagonal shows their average only: TV's curvature varies by orders of magnitude from one
        pixel to the next, and following it costs L-BFGS up to four times the evaluations (measured
        on inpainting).
        """
        w, nu = self._scales()
        u = self._differences(x).div_(nu)
        square = u.square().sum(dim=1, keepdim=True).expand_as(u) if self.isotropic else u.square()
        weights = (w / nu) / (1 + square)
        return flat_averages(weights, x)

    def _strength(self) -> float:
        """S = w ||D||^2 / nu, the bound of the Hessian."""
        return NORM_SQUARED * float(
            (self.log_weight.detach().double() - self.log_smoothing.detach().double()).exp()
        )

    def bounds(self) -> Curvature:
        return Curvature(Bound.exact(0.0), Bound.proven(self._strength()))

    def hessian_lipschitz(self) -> Bound:
        """L_H <= w ||D||^2 row max|s'''| / nu^2: the change of curvature at one pixel sees one row
        of D.
        """
        nu = math.exp(self.log_smoothing.item())
        return Bound.proven(self._strength() * profiles.THIRD_MAX * ROW[self.isotropic] / nu)

    def mixed_lipschitz(self, reach: float = 1.0) -> Bound:
        """L_J <= sqrt(2) S: each of the two columns is S-Lipschitz in x (|s''| <= 1; |k'| <= 1,
        radially as well).
        """
        return Bound.proven(math.sqrt(2.0) * self._strength())

    def _normalized(self, x: Tensor) -> tuple[Tensor, float]:
        nu = math.exp(self.log_smoothing.item())
        return self._differences(x.double()) / nu, nu

    def hessian_change(self, x: Tensor, q: Tensor, radius: Tensor) -> Tensor:
        """S radius max_p M_p |Dq|_p / nu with M_p = sup |s'''| over what the ball can reach at
        pixel p.
        """
        u, nu = self._normalized(x)
        reach = radius.view(-1, *[1] * (u.dim() - 1)) * ROW[self.isotropic] / nu
        third = profiles.third_sup_radial if self.isotropic else profiles.third_sup
        slopes = third(self._size(u), reach) * self._size(gradient(q.double()) / nu).abs()
        return self._strength() * radius * slopes.flatten(1).amax(dim=1)

    def mixed_change(self, x: Tensor, q: Tensor, radius: Tensor) -> Tensor:
        """Both entries of J^T q change by at most (w / nu) ||D|| radius || c Dq ||, c = sup of s''
        in reach.

        For log nu the factor is sup |k'| <= 1; isotropic potentials use 1 for both.
        """
        u, nu = self._normalized(x)
        dq = gradient(q.double())
        if self.isotropic:
            weight = norm(dq)
            return math.sqrt(2.0 * NORM_SQUARED) * self._strength() / NORM_SQUARED * radius * weight
        reach = radius.view(-1, *[1] * (u.dim() - 1)) * ROW[False] / nu
        first, second = norm(profiles.curvature_sup(u, reach) * dq), norm(dq)
        return (
            math.sqrt(NORM_SQUARED)
            * self._strength()
            / NORM_SQUARED
            * radius
            * torch.hypot(first, second)
        )

    def mixed_norm(self, x: Tensor, radius: Tensor) -> Tensor:
        """Exact Frobenius norm of the two columns at x, plus L_J radius."""
        w, nu = math.exp(self.log_weight.item()), math.exp(self.log_smoothing.item())
        u = self._differences(x.double()) / nu
        inverse = torch.rsqrt(1 + self._size(u).square())
        first, second = (norm(gradient_adjoint(w * u * inverse**power)) for power in (1, 3))
        return torch.hypot(first, second) + self.mixed_lipschitz().value * radius

    def spec(self) -> dict[str, Any]:
        return {"type": "TV", "isotropic": self.isotropic}

    def extra_repr(self) -> str:
        return (
            f"isotropic={self.isotropic}, weight={math.exp(self.log_weight.item()):.4g}, "
            f"smoothing={math.exp(self.log_smoothing.item()):.4g}"
        )


def _check(x: Tensor) -> None:
    if x.dim() < 3:
        raise InputError(
            "x",
            given=f"shape {tuple(x.shape)}",
            expected="(b, c, h, w)",
            remedy="Add batch and channel dimensions, for example x[None, None].",
        )


def radial_product(v: Tensor, weight: Tensor, unit: Tensor, p: Tensor) -> Tensor:
    """D^T weight (1 - sym(p unit^T)) D v, the primal-dual Hessian of a potential of the length of
    both differences.
    """
    d = gradient(v)
    along, across = (unit * d).sum(dim=1, keepdim=True), (p * d).sum(dim=1, keepdim=True)
    return gradient_adjoint((d - 0.5 * (p * along + unit * across)).mul_(weight))


def flat_averages(weights: Tensor, x: Tensor) -> MeanCurvature:
    """Of D^T weights D, weights (b, 2, c, h, w), for images like x; every pixel gets the mean of
    the diagonal.
    """
    rows, columns = symbols(x)
    means = weights.mean(dim=(-2, -1), keepdim=True)
    diagonal = (2 * means.sum(dim=1)).expand_as(
        x
    )  # every pixel takes part in two differences per direction
    return MeanCurvature(diagonal, means[:, 0] * rows + means[:, 1] * columns)
