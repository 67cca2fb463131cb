"""Total variation whose discretization is learned: where the dual field is measured before its
length is bounded.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..convex import Box, Convex, Norm, SmoothNorm, Squares
from ..core.errors import InputError
from ..core.ranges import check_choice, check_integer, check_number, plain_arguments
from ..operators.convolutions import Padding
from ..operators.fields import (
    bank_norm,
    correlate_field,
    correlate_field_adjoint,
    gradient_norm,
    laplacian_symbol,
    scaled_gradient,
    scaled_gradient_adjoint,
    window_norm,
)
from .base import positive
from .saddle import SaddleRegularizer, images, non_negative, weight_of

Init = Literal["interpolated", "identity", "random"]

PLACES = 4
"""Points of the grid at which ``interpolated`` measures the field: two kinds of edges, pixels and
corners.
"""


class LearnedTV(SaddleRegularizer):
    """R(u) = sup { w <Du, p> : |(L_l p)_ij| <= 1 for all l, i, j },  w = e^{theta_0}, or a smooth
    relative of it.

    L_l filters each component of the dual field p with a filter of its own (cross-correlation)
    whose entries sum to one; |.| is the length of both filtered components. One filter that is the
    identity gives standard isotropic TV. As a saddle point with auxiliary fields v_l:

        R(u) = min_v max_p <w Du - L^T v, p> + sum_l g(v_l) - rounding/2 |p|^2,
        g(v) = sum sqrt(|v|^2 + smoothing^2) - smoothing + curvature/2 |v|^2,

    so K = [w D, -L(theta)^T]. With rounding = smoothing = curvature = 0 it is the supremum above;
    where all three are positive the lower level is as smooth and strongly convex as certified
    hypergradients ask for. p also has entries at missing neighbours: D does not see them, the
    filters do. Channels are treated alike and summed.

    theta = (log w, coordinates of the filters): a filter is the identity plus an orthonormal
    combination of zero-sum patterns, so no projection is needed. Chambolle and Pock, Learning
    consistent discretizations of the total variation, SIAM J. Imaging Sci. 14(2), 2021.

    Args:
        filters: L, filters for each of the two components.
        size: s, odd.
        weight: start value of w.
        padding: ``reflect`` (edge pixel not repeated) or ``zero``.
        rounding: see above; K (u, v) = 0 is then asked for softly.
        smoothing: see above. Like rounding and curvature it measures w Du, not Du: smoothing / w is
            an intensity. The defaults are 0.05 w^2, 0.05 w and 0.05 / w^2 for w = 0.1; scale them
            with the weight.
        curvature: see above; needs smoothing > 0.
        init: ``interpolated`` averages p to the L first of: the edges between rows, those between
            columns, pixels, corners (the first three are the discretization of Condat, SIAM J.
            Imaging Sci. 10(3), 2017). ``identity``: standard TV; filters that are equal have equal
            gradients and stay equal, so use it with filters=1 or as a reference. ``random``:
            uniform in [-1/s, 1/s], then shifted to sum to one.
        seed: of the random filters.

    Raises:
        InputError: a value out of range.
    """

    @plain_arguments
    def __init__(
        self,
        filters: int = 4,
        size: int = 3,
        weight: float = 0.1,
        padding: Padding = "reflect",
        rounding: float = 5e-4,
        smoothing: float = 5e-3,
        curvature: float = 5.0,
        init: Init = "interpolated",
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_number("filters", filters, lambda v: v >= 1, "a positive integer", integer=True)
        if not isinstance(size, int) or isinstance(size, bool) or size < 3 or size % 2 == 0:
            raise InputError(
                "size", given=size, expected="an odd filter size, at least 3", remedy="Use 3 or 5."
            )
        check_choice("padding", padding, get_args(Padding))
        check_choice("init", init, get_args(Init))
        check_integer("seed", seed, 0)
        self.padding: Padding = padding
        self.rounding, self.smoothing = (
            non_negative("rounding", rounding),
            non_negative("smoothing", smoothing),
        )
        self.curvature = non_negative("curvature", curvature)
        if self.curvature and not self.smoothing:
            raise InputError(
                "curvature",
                given=curvature,
                expected="0 without smoothing",
                remedy="Give smoothing > 0 as well.",
            )
        self.log_weight = nn.Parameter(torch.tensor(math.log(positive("weight", weight))))
        self.coordinates = nn.Parameter(
            to_coordinates(_initial_kernels(init, filters, size, seed)).float()
        )

    @property
    def size(self) -> int:
        """s."""
        return math.isqrt(self.coordinates.shape[-1] + 1)

    def kernels(self) -> Tensor:
        """The filters (2, L, s, s), differentiable in theta; each sums to one."""
        return from_coordinates(self.coordinates)

    @property
    def effort(self) -> float:
        """Measured: 4 filters 3x3 take as long as 240 multiplications of images by a number."""
        return 20.0 + 6.0 * self.coordinates.shape[1] * self.size**2

    def auxiliary(self, u: Tensor) -> tuple[Tensor]:
        """v = 0, (b, 2, c, L, h, w)."""
        b, c, h, w = images(u, self.size).shape
        return (u.new_zeros(b, 2, c, self.coordinates.shape[1], h, w),)

    def primal(self, u: Tensor) -> tuple[Convex]:
        return (
            SmoothNorm(eta=self.smoothing, strong=self.curvature) if self.smoothing else Norm(),
        )

    def dual(self, u: Tensor) -> tuple[Convex]:
        """|a|^2 / (2 rounding), or the indicator of {0}, whose conjugate is zero."""
        return (Squares(1 / self.rounding) if self.rounding else Box(0.0, 0.0),)

    def dual_start(self, u: Tensor) -> tuple[Tensor]:
        b, *shape = images(u, self.size).shape
        return (u.new_zeros(b, 2, *shape),)

    def linear(self, u: Tensor, *v: Tensor) -> tuple[Tensor]:
        spread = correlate_field_adjoint(v[0], self.kernels(), self.padding)
        gradient = scaled_gradient(u, self.log_weight.exp())
        return (gradient - spread if torch.is_grad_enabled() else gradient.sub_(spread),)

    def adjoint(self, *p: Tensor) -> tuple[Tensor, Tensor]:
        return (
            scaled_gradient_adjoint(p[0], self.log_weight.exp()),
            correlate_field(p[0], -self.kernels(), self.padding),
        )

    def norms(self, u: Tensor) -> list[list[float]]:
        """[[w ||D||, bound of ||L||]]: the first is exact, the second is that of ``bank_norm``."""
        h, w = images(u, self.size).shape[-2:]
        filters = from_coordinates(
            self.coordinates.detach().double()
        )  # the same key whatever the precision
        return [
            [
                weight_of(self.log_weight) * gradient_norm(h, w),
                bank_norm(filters, self.padding, h, w),
            ]
        ]

    @torch.no_grad()
    def majorants(self, u: Tensor) -> list[Tensor]:
        """w^2 times the periodic Laplacian, which has differences across the edges besides those of
        D.
        """
        return [self.log_weight.exp().square() * laplacian_symbol(u)]

    def sensitivity(self, u: Tensor) -> tuple[float, float]:
        """kappa = max(w ||D||, W) with W the norm of taking windows (s for zero padding), no
        offset.

        For dtheta = (s, t), dK = [s w D, -L(t)^T], where the entries of the filters L(t) have the
        length of t because the coordinates are orthonormal; ||L(t)|| <= |t| W, and ||[A, B]||^2 <=
        ||A||^2 + ||B||^2.
        """
        h, w = images(u, self.size).shape[-2:]
        gradient = weight_of(self.log_weight) * gradient_norm(h, w)
        return max(gradient, window_norm(self.size, self.padding, h, w)), 0.0

    def units(self) -> Tensor:
        """1 for the logarithm, 1/s^2, the mean of a filter, for its coordinates."""
        return torch.cat(
            [
                torch.full((p.numel(),), 1.0 if p is self.log_weight else self.size**-2.0)
                for p in self.parameters()
                if p.requires_grad
            ]
        )

    def filters(self) -> dict[str, Tensor]:
        """Kernels (2 L, 1, s, s), those of component 0 (between rows) first; weights (2 L,), w for
        all of them.
        """
        kernels = self.kernels().detach().flatten(0, 1).unsqueeze(1)
        return {
            "kernels": kernels,
            "weights": self.log_weight.detach().exp().expand(kernels.shape[0]).clone(),
        }

    def spec(self) -> dict[str, object]:
        return {
            "type": "LearnedTV",
            "filters": self.coordinates.shape[1],
            "size": self.size,
            "padding": self.padding,
            "rounding": self.rounding,
            "smoothing": self.smoothing,
            "curvature": self.curvature,
            "init": "identity",
        }

    def extra_repr(self) -> str:
        return (
            f"filters=2x{self.coordinates.shape[1]}, size={self.size}x{self.size}, "
            f"weight={weight_of(self.log_weight):.4g}, padding={self.padding!r}, "
            f"rounding={self.rounding:g}, smoothing={self.smoothing:g}, "
            f"curvature={self.curvature:g}"
        )


def from_coordinates(coordinates: Tensor) -> Tensor:
    """Kernels that sum to one: (..., n - 1) -> (..., s, s) with n = s^2; zeros give the identity.

    The Householder reflection that exchanges the last unit vector and the constant one of length
    one turns (coordinates, 0) into a zero-sum vector of the same length, which is added to the
    identity.
    """
    n = coordinates.shape[-1] + 1
    total = coordinates.sum(dim=-1, keepdim=True)
    entries = torch.cat([coordinates - total / (n - math.sqrt(n)), total / math.sqrt(n)], dim=-1)
    kernels = entries.unflatten(-1, (math.isqrt(n), math.isqrt(n)))
    return kernels + _identity(kernels)


def to_coordinates(kernels: Tensor) -> Tensor:
    """The inverse of ``from_coordinates``, (..., s, s) -> (..., n - 1), for kernels that sum to
    one.
    """
    entries = (kernels - _identity(kernels)).flatten(-2)
    return entries[..., :-1] + entries[..., -1:] / (math.sqrt(entries.shape[-1]) - 1)


def _identity(like: Tensor) -> Tensor:
    """The kernel (s, s) that changes nothing."""
    kernel = torch.zeros(like.shape[-2:], dtype=like.dtype, device=like.device)
    kernel[like.shape[-2] // 2, like.shape[-1] // 2] = 1
    return kernel


def _initial_kernels(init: str, filters: int, size: int, seed: int) -> Tensor:
    """Start values (2, L, s, s) in float64, each with sum one."""
    if init not in get_args(Init):
        raise InputError(
            "init", given=init, expected=f"one of {', '.join(map(repr, get_args(Init)))}"
        )
    if init == "random":
        uniform = (
            2
            * torch.rand(
                2, filters, size, size, generator=torch.Generator().manual_seed(seed)
            ).double()
            - 1
        )
        kernels = uniform / size
        return kernels + (1 - kernels.sum(dim=(-2, -1), keepdim=True)) / size**2
    if init == "interpolated" and filters > PLACES:
        raise InputError(
            "filters",
            given=filters,
            expected=f"at most {PLACES} for init='interpolated'",
            remedy="Use init='random' for more filters.",
        )
    kernels, m = torch.zeros(2, filters, size, size, dtype=torch.float64), size // 2
    if init == "identity":
        return kernels + _identity(kernels)
    # rows and columns, relative to the index, over which a component is averaged: component 0 is
    # known between rows (half a pixel down), component 1 between columns
    here, back, on = slice(m, m + 1), slice(m - 1, m + 1), slice(m, m + 2)
    places = (
        ((here, here), (on, back)),
        ((back, on), (here, here)),
        ((back, here), (here, back)),
        ((here, on), (on, here)),
    )
    for k, pair in enumerate(places[:filters]):
        for component, where in enumerate(pair):
            kernels[component, k][where] = 1
    return kernels / kernels.sum(dim=(-2, -1), keepdim=True)
