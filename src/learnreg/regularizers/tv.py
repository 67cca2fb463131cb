"""Smoothed total variation of signals, images and volumes, with learned weight and smoothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from ..core.batch import expand, norm
from ..core.bounds import Bound
from ..core.curvature import MeanCurvature
from ..core.ranges import plain_arguments
from ..operators.differences import (
    differences,
    differences_adjoint,
    gradient,
    gradient_adjoint,
    norm_squared,
    plain_differences,
    spatial_axes,
)
from . import profiles
from .base import LinearizedHessian
from .derivatives import differentiable_gradient, differentiable_value
from .grouped import (
    Channels,
    SmoothedTV,
    flat_averages,
    kept_short,
    radial_product,
    size,
    split_product,
    square,
    unit_vectors,
)


class TV(SmoothedTV):
    """R(x) = w sum_p [ phi(|(Dx)_p|) - nu ],  phi(t) = sqrt(t^2 + nu^2),  w = e^{theta_0},  nu =
    e^{theta_1}.

    x: (b, c, n), (b, c, h, w) or (b, c, d, h, w). D are forward differences along all axes after
    the channels, without boundary terms. Isotropic: one potential per pixel of the vector of its
    differences. Anisotropic: one potential per difference. Channels are summed separately, or enter
    one potential together: vectorial total variation (Bresson and Chan, Inverse Problems and
    Imaging 2 (2008)), whose edges are shared by the channels, for example by the real and the
    imaginary part of complex images. The constant nu is subtracted so that R(0) = 0; it changes no
    minimizer.

    Args:
        weight: start value of w.
        smoothing: start value of nu, in intensity units.
        isotropic: see above.
        channels: ``separate`` or ``joint``.

    Raises:
        InputError: weight or smoothing not positive, a word that is neither of the two.
    """

    @plain_arguments
    def __init__(
        self,
        weight: float = 0.05,
        smoothing: float = 0.02,
        isotropic: bool = True,
        channels: Channels = "separate",
    ) -> None:
        super().__init__(weight, smoothing, isotropic, channels)

    def _differences(self, x: Tensor) -> Tensor:
        """gradient(x), once x looks like images."""
        spatial_axes(x)
        return gradient(x)

    def _parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """differences(x), once x looks like images."""
        spatial_axes(x)
        return differences(x)

    @differentiable_value
    def value(self, x: Tensor) -> Tensor:
        w, nu = self._scales()
        squares = square(self._differences(x).div_(nu), self._over)
        return w * nu * profiles.rise(squares).flatten(1).sum(dim=1)

    def formula(self, x: Tensor) -> Tensor:
        w, nu = self.log_weight.exp(), self.log_smoothing.exp()
        squares = square(plain_differences(x) / nu, self._over)
        return w * nu * profiles.rise(squares).flatten(1).sum(dim=1)

    def _flux(self, u: Tensor) -> Tensor:
        """Gradient of the normalized potential: u / sqrt(1 + |u|^2)."""
        if self._over:
            return u * torch.rsqrt(1 + square(u, self._over))
        return profiles.slope(u)

    @differentiable_gradient
    def grad(self, x: Tensor) -> Tensor:
        return differences_adjoint(*self._fluxes(self._parts(x)))

    def _fluxes(self, parts: tuple[Tensor, ...]) -> Iterator[Tensor]:
        """w d / sqrt(nu^2 + |d|^2), axis by axis; overwrites the parts."""
        w, nu = self._scales()
        least = nu * nu
        for together in (parts,) if self.isotropic else [(d,) for d in parts]:
            first = together[0]
            if self.channels == "joint":
                inverse = sum((d.square() for d in together[1:]), first.square())
                inverse = inverse.sum(dim=1, keepdim=True).add_(least)
            else:
                inverse = torch.addcmul(least, first, first)
                for d in together[1:]:
                    inverse.addcmul_(d, d)
            inverse.rsqrt_().mul_(w)
            for d in together:
                yield d.mul_(inverse)

    def linearize(self, x: Tensor) -> LinearizedHessian:
        axes = spatial_axes(x)
        if self.channels == "separate" and (axes == 1 or not self.isotropic):
            return self._linearize_each(x)
        if self.channels == "separate" and axes == 2:
            return self._linearize_pairs(x)

        w, nu = self._scales()
        u = gradient(x).div_(nu)
        inverse = torch.rsqrt(1 + square(u, self._over))
        return LinearizedHessian(
            partial(split_product, over=self._over),
            w / nu * inverse,
            w / nu * inverse * inverse.square(),
            unit_vectors(u, self._over),
        )

    def _linearize_each(self, x: Tensor) -> LinearizedHessian:
        """One potential per difference."""
        w, nu = self._scales()

        def product(v: Tensor, *weights: Tensor) -> Tensor:
            parts = differences(v)
            for d, a in zip(parts, weights, strict=True):
                d.mul_(a)
            return differences_adjoint(*parts)

        return LinearizedHessian(
            product, *((w / nu) * profiles.curvature(d.div_(nu)) for d in differences(x))
        )

    def _linearize_pairs(self, x: Tensor) -> LinearizedHessian:
        """One potential per pixel of an image, channels separate."""
        w, nu = self._scales()
        rows, columns = differences(x)
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
        if not self._over:
            return LinearizedHessian(
                lambda v, c: gradient_adjoint(gradient(v).mul_(c)),
                profiles.dual_curvature(u, p).mul_(w / nu),
            )
        inverse = torch.rsqrt(1 + square(u, self._over))
        product = partial(radial_product, over=self._over)
        return LinearizedHessian(product, w / nu * inverse, u * inverse, p)

    def dual_update(self, x: Tensor, dual: tuple[Tensor, ...], move: Tensor) -> tuple[Tensor, ...]:
        _, nu = self._scales()
        u, du, p = self._differences(x).div_(nu), self._differences(move).div_(nu), dual[0]
        if not self._over:
            return (profiles.dual_step(u, p, du),)
        inverse = torch.rsqrt(1 + square(u, self._over))
        new = (u + du - p * (u * du).sum(dim=self._over, keepdim=True) * inverse) * inverse
        return (kept_short(new, self._over),)

    def directional(self, x: Tensor, v: Tensor) -> Tensor:
        u = self._differences(x) / self.log_smoothing.exp()
        inner = square(u, self._over)
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
        weights = (w / nu) / (1 + square(u, self._over).expand_as(u))
        return flat_averages(weights, x)

    def _row(self, axes: int) -> float:
        """Operator norm of the rows of D that meet in one potential: one difference, sqrt 2, or
        those of one pixel, which share it: M M^T = I + 1 1^T, sqrt(1 + axes). Channels do not share
        pixels, so that taking them together changes nothing.
        """
        return math.sqrt(1.0 + axes) if self.isotropic else math.sqrt(2.0)

    def hessian_lipschitz(self, axes: int = 2) -> Bound:
        """L_H <= w ||D||^2 row max|s'''| / nu^2: the change of curvature at one pixel sees one row
        of D.

        Args:
            axes: as for ``bounds``.
        """
        nu = math.exp(self.log_smoothing.item())
        return Bound.proven(self._strength(axes) * profiles.THIRD_MAX * self._row(axes) / nu)

    def mixed_lipschitz(self, reach: float = 1.0, axes: int = 2) -> Bound:
        """L_J <= sqrt(2) S: each of the two columns is S-Lipschitz in x (|s''| <= 1; |k'| <= 1,
        radially as well).

        Args:
            axes: as for ``bounds``.
        """
        return Bound.proven(math.sqrt(2.0) * self._strength(axes))

    def _normalized(self, x: Tensor) -> tuple[Tensor, float]:
        nu = math.exp(self.log_smoothing.item())
        return self._differences(x.double()) / nu, nu

    def hessian_change(self, x: Tensor, q: Tensor, radius: Tensor) -> Tensor:
        """S radius max_p M_p |Dq|_p / nu with M_p = sup |s'''| over what the ball can reach at
        pixel p.
        """
        (u, nu), axes, over = self._normalized(x), spatial_axes(x), self._over
        reach = expand(radius, u) * self._row(axes) / nu
        third = profiles.third_sup_radial if over else profiles.third_sup
        slopes = third(size(u, over), reach) * size(gradient(q.double()) / nu, over).abs()
        return self._strength(axes) * radius * slopes.flatten(1).amax(dim=1)

    def mixed_change(self, x: Tensor, q: Tensor, radius: Tensor) -> Tensor:
        """Both entries of J^T q change by at most (w / nu) ||D|| radius || c Dq ||, c = sup of s''
        in reach.

        For log nu the factor is sup |k'| <= 1; potentials of several differences use 1 for both.
        """
        (u, nu), axes = self._normalized(x), spatial_axes(x)
        strength = math.sqrt(norm_squared(axes)) * self._strength(axes) / norm_squared(axes)
        dq = gradient(q.double())
        if self._over:
            return math.sqrt(2.0) * strength * radius * norm(dq)
        reach = expand(radius, u) * self._row(axes) / nu
        first, second = norm(profiles.curvature_sup(u, reach) * dq), norm(dq)
        return strength * radius * torch.hypot(first, second)

    def mixed_norm(self, x: Tensor, radius: Tensor) -> Tensor:
        """Exact Frobenius norm of the two columns at x, plus L_J radius."""
        w, axes = math.exp(self.log_weight.item()), spatial_axes(x)
        u, _ = self._normalized(x)
        inverse = torch.rsqrt(1 + square(u, self._over))
        first, second = (norm(gradient_adjoint(w * u * inverse**power)) for power in (1, 3))
        return torch.hypot(first, second) + self.mixed_lipschitz(axes=axes).value * radius

    def spec(self) -> dict[str, object]:
        return {"type": "TV", "isotropic": self.isotropic, "channels": self.channels}

    def extra_repr(self) -> str:
        return (
            f"isotropic={self.isotropic}, weight={math.exp(self.log_weight.item()):.4g}, "
            f"smoothing={math.exp(self.log_smoothing.item()):.4g}, channels={self.channels!r}"
        )
