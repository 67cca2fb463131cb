"""What total variations share: parameters and bounds, which differences meet in one potential,
radial Hessians, averages.

Differences are (b, axes, c, *axes); ``over`` are the dimensions that one potential takes together.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..core.bounds import Bound, Curvature
from ..core.curvature import MeanCurvature
from ..core.errors import InputError
from ..core.ranges import check_flag
from ..operators.differences import (
    gradient,
    gradient_adjoint,
    norm_squared,
    spatial_axes,
    symbols,
)
from .base import Regularizer, positive

Channels = Literal["separate", "joint"]


class SmoothedTV(Regularizer):
    """w sum_p phi(|(Dx)_p|) with a phi that bends over lengths of nu:  theta = (log w, log nu).

    The Hessian is at most w ||D||^2 / nu, since phi'' <= 1 / nu.
    """

    pictures = True

    def __init__(
        self, weight: float, smoothing: float, isotropic: bool, channels: Channels
    ) -> None:
        super().__init__()
        self.log_weight = nn.Parameter(torch.tensor(math.log(positive("weight", weight))))
        self.log_smoothing = nn.Parameter(torch.tensor(math.log(positive("smoothing", smoothing))))
        self.isotropic = check_flag("isotropic", isotropic)
        self.channels = checked_channels(channels)

    @property
    def reach(self) -> int:
        """Potentials of forward differences: the neighbours."""
        return 1

    def scaling(self) -> Tensor:
        return self._ones_for([self.log_weight])

    def _scales(self) -> tuple[Tensor, Tensor]:
        """w and nu as detached scalars."""
        return self.log_weight.detach().exp(), self.log_smoothing.detach().exp()

    @property
    def _over(self) -> tuple[int, ...]:
        """Dimensions of (b, axes, c, *axes) that meet in one potential."""
        return groups(self.isotropic, self.channels)

    def _strength(self, axes: int) -> float:
        """S = w ||D||^2 / nu, the bound of the Hessian."""
        return norm_squared(axes) * float(
            (self.log_weight.detach().double() - self.log_smoothing.detach().double()).exp()
        )

    def bounds(self, axes: int = 2) -> Curvature:
        """mu = 0 <= Hessian <= w ||D||^2 / nu for images, and for signals, where it is less.

        Args:
            axes: 3 for volumes; ``bounds_for(x)`` counts them.
        """
        return Curvature(Bound.exact(0.0), Bound.proven(self._strength(axes)))

    def bounds_for(self, x: Tensor) -> Curvature:
        # a subclass that bounds itself knows nothing of axes
        own = type(self).bounds is not SmoothedTV.bounds
        return self.bounds() if own else self.bounds(spatial_axes(x))


def checked_channels(channels: Channels) -> Channels:
    """``channels`` if it is one of the two words.

    Raises:
        InputError: otherwise.
    """
    if channels not in get_args(Channels):
        raise InputError(
            "channels",
            given=channels,
            expected="'separate' or 'joint'",
            remedy="Use 'joint' for edges that all channels share (vectorial total variation).",
        )
    return channels


def groups(isotropic: bool, channels: Channels) -> tuple[int, ...]:
    """Dimensions of (b, axes, c, *axes) that meet in one potential; () if every entry has its
    own.
    """
    return (1,) * isotropic + (2,) * (channels == "joint")


def square(u: Tensor, over: tuple[int, ...]) -> Tensor:
    """|u|^2 per potential, with 1 in the place of the dimensions taken together."""
    return (u * u).sum(dim=over, keepdim=True) if over else u * u


def size(u: Tensor, over: tuple[int, ...]) -> Tensor:
    """|u| per potential; the entries themselves, with their signs, where each has its own."""
    return square(u, over).sqrt_() if over else u


def kept_short(p: Tensor, over: tuple[int, ...]) -> Tensor:
    """p / max(1, |p|)."""
    return p / size(p, over).clamp_min(1.0)


def unit_vectors(u: Tensor, over: tuple[int, ...]) -> Tensor:
    """u / |u|, 0 where u is 0."""
    return u * square(u, over).clamp_min(torch.finfo(u.dtype).tiny).rsqrt()


def split_product(
    v: Tensor, across: Tensor, along: Tensor, unit: Tensor, over: tuple[int, ...]
) -> Tensor:
    """D^T (across (I - unit unit^T) + along unit unit^T) D v, the Hessian of a radial potential."""
    d = gradient(v)
    t = (unit * d).sum(dim=over, keepdim=True)
    return gradient_adjoint((d - unit * t).mul_(across).addcmul_(unit, t * along))


def radial_product(
    v: Tensor, weight: Tensor, unit: Tensor, p: Tensor, over: tuple[int, ...]
) -> Tensor:
    """D^T weight (1 - sym(p unit^T)) D v, the primal-dual Hessian of a potential of the length of
    the differences ``over``.
    """
    d = gradient(v)
    along = (unit * d).sum(dim=over, keepdim=True)
    across = (p * d).sum(dim=over, keepdim=True)
    return gradient_adjoint((d - 0.5 * (p * along + unit * across)).mul_(weight))


def flat_averages(weights: Tensor, x: Tensor) -> MeanCurvature:
    """Of D^T weights D, weights (b, axes, c, *axes), for images like x; every pixel gets the mean
    of the diagonal.
    """
    means = weights.mean(dim=tuple(range(3, weights.dim())), keepdim=True)
    diagonal = (2 * means.sum(dim=1)).expand_as(
        x
    )  # every pixel takes part in two differences per direction
    first, *others = symbols(x)
    symbol = means[:, 0] * first
    for k, s in enumerate(others, start=1):
        symbol = symbol + means[:, k] * s
    return MeanCurvature(diagonal, symbol)
