"""What an input-convex network is made of: its activation, zero-padded convolutions, pooling,
proven norms.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..operators.convolutions import Padding
from ..operators.fields import bank_norm

SAFETY = 1 + 1e-12
"""For the rounding of norms computed in float64."""


# --- the activation -------------------------------------------------------------------------------


def leaky(a: Tensor, slope: float, rounding: float) -> Tensor:
    """slope a + (1 - slope) h(a); h is max(0, a), or for rounding om > 0 a^2/(2 om) on [0, om] and
    a - om/2 beyond.
    """
    positive = a.clamp_min(0)
    if rounding:
        curved = positive.clamp_max(rounding)
        positive = curved.square() / (2 * rounding) + (positive - curved)
    return torch.lerp(positive, a, slope)


def leaky_slope(a: Tensor, slope: float, rounding: float) -> Tensor:
    """Its derivative, in [slope, 1]; ``slope`` at the kink."""
    rising = (a / rounding).clamp(0, 1) if rounding else (a > 0).to(a.dtype)
    return slope + (1 - slope) * rising


# --- linear maps ----------------------------------------------------------------------------------


def mix(z: Tensor, weights: Tensor) -> Tensor:
    """Convolution (cross-correlation) of feature maps continued by zero: (b, c, h, w), (K, c, s, s)
    -> (b, K, h, w).
    """
    return F.conv2d(z, weights, padding=weights.shape[-1] // 2)


def mix_adjoint(p: Tensor, weights: Tensor) -> Tensor:
    """Its exact adjoint, (b, K, h, w) -> (b, c, h, w): for odd s a convolution with the turned
    filters.
    """
    return F.conv2d(p, weights.flip(-2, -1).transpose(0, 1), padding=weights.shape[-1] // 2)


def connect(z: Tensor, weights: Tensor) -> Tensor:
    """Fully connected: (b, c, h, w), (K, c, h, w) -> (b, K, 1, 1)."""
    return F.linear(z.flatten(1), weights.flatten(1))[..., None, None]


def connect_adjoint(p: Tensor, weights: Tensor) -> Tensor:
    """Its exact adjoint, (b, K, 1, 1) -> (b, c, h, w)."""
    return (p.flatten(1) @ weights.flatten(1)).view(-1, *weights.shape[1:])


def pooled(side: int, pooling: int) -> int:
    """Pixels per side after pooling: windows are not left out, the last one may reach over the
    edge.
    """
    return -(-side // pooling)


def pool(z: Tensor, pooling: int) -> Tensor:
    """Means over windows n x n, (b, c, h, w) -> (b, c, ceil(h/n), ceil(w/n)); what lies over the
    edge counts as zero.

    So every pixel has the weight 1/n^2, whatever the size of the image, and the norm of the map is
    at most 1/n.
    """
    if pooling == 1:
        return z
    bottom, right = (pooled(side, pooling) * pooling - side for side in z.shape[-2:])
    return F.avg_pool2d(F.pad(z, (0, right, 0, bottom)) if bottom or right else z, pooling)


def pool_adjoint(p: Tensor, pooling: int, shape: Sequence[int]) -> Tensor:
    """Its exact adjoint, (b, c, ceil(h/n), ceil(w/n)) -> (b, c, h, w) for ``shape`` = (h, w)."""
    if pooling == 1:
        return p
    b, c, h, w = p.shape
    spread = (p / pooling**2)[:, :, :, None, :, None].expand(b, c, h, pooling, w, pooling)
    return spread.reshape(b, c, h * pooling, w * pooling)[..., : shape[0], : shape[1]]


# --- norms ----------------------------------------------------------------------------------------


def first_norm(kernels: Tensor, padding: Padding, h: int, w: int) -> float:
    """A proven bound for the bank ``kernels`` (K, c, s, s) on images h x w: channels add up at most
    in squares.
    """
    if kernels.shape[-1] == 1:  # the same small matrix at every pixel
        return float(torch.linalg.matrix_norm(kernels.detach().double().flatten(1), 2)) * SAFETY
    return (
        sum(bank_norm(kernels[:, i][None], padding, h, w) ** 2 for i in range(kernels.shape[1]))
        ** 0.5
    )


def mix_norm(weights: Tensor) -> float:
    """A proven bound for ``mix`` with weights >= 0, nearly attained by large constant maps.

    A zero frame turns the convolution into a part of a periodic one, whose norm is the largest
    spectral norm of the symbol C(omega), a matrix (K, c). Its entries are at most those of C(0) in
    absolute value because no weight is negative, and then so is the spectral norm (Horn and
    Johnson, Matrix Analysis, Theorem 8.1.18).
    """
    return float(torch.linalg.matrix_norm(weights.detach().double().sum(dim=(-2, -1)), 2)) * SAFETY


def connect_norm(weights: Tensor) -> float:
    """A proven bound for ``connect``: ||W||^2 <= ||W||_1 ||W||_inf, and ||W|| <= ||W||_F."""
    w = weights.detach().double().flatten(1).abs()
    by_sums = float((w.sum(dim=0).max() * w.sum(dim=1).max()).sqrt())
    return min(by_sums, float(torch.linalg.vector_norm(w))) * SAFETY
