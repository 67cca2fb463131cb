"""The scalar potential phi(t) = sqrt(t^2 + nu^2) in the normalized variable u = t / nu, with
derivative bounds.

phi(t) = nu s(u) with s(u) = sqrt(1 + u^2), so phi' = s', phi'' = s'' / nu, phi''' = s''' / nu^2
where
    s' = u / s,   s'' = s^-3 <= 1,   s''' = -3 u s^-5,   max |s'''| = 48 / (25 sqrt 5) = 0.8587 at
    |u| = 1/2.
The derivative with respect to log nu is nu d/dnu phi' = -u s^-3 =: -k(u), with |k'| <= 1 and |k''|
<= 3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

THIRD_MAX = 48 / (25 * math.sqrt(5))
"""max |s'''|."""


def slope(u: Tensor) -> Tensor:
    """s'(u) = u / sqrt(1 + u^2), elementwise."""
    return (
        torch.addcmul(_one(u), u, u).rsqrt_().mul_(u)
        if not u.requires_grad
        else u * torch.rsqrt(1 + u * u)
    )


def curvature(u: Tensor) -> Tensor:
    """s''(u) = (1 + u^2)^(-3/2), elementwise, in (0, 1]."""
    inverse = torch.addcmul(_one(u), u, u).rsqrt_()
    return inverse.square().mul_(inverse)


def slope_(u: Tensor) -> Tensor:
    """``slope`` that overwrites u."""
    return u.mul_(torch.addcmul(_one(u), u, u).rsqrt_())


def curvature_(u: Tensor, out: Tensor) -> Tensor:
    """``curvature`` into ``out``; overwrites u."""
    inverse = torch.addcmul(_one(u), u, u, out=u).rsqrt_()
    return torch.mul(inverse.square(), inverse, out=out)


def smoothing_slope(u: Tensor) -> Tensor:
    """k(u) = u (1 + u^2)^(-3/2): minus the derivative of s'(t / nu) with respect to log nu."""
    return u * curvature(u)


def size_minus_one(u: Tensor) -> Tensor:
    """s(u) - 1 without cancellation: u^2 / (1 + s(u)). The potential is zero at zero, which changes
    no minimizer.
    """
    return rise(u * u)


def rise(square: Tensor) -> Tensor:
    """The same of u^2, also the squared length of a vector; smooth at zero."""
    return square / (1 + torch.sqrt(1 + square))


def third_sup(u: Tensor, radius: Tensor | float) -> Tensor:
    """sup |s'''| over [u - radius, u + radius], elementwise: |s'''| rises up to |u| = 1/2 and falls
    beyond.
    """
    a = u.abs()
    at = torch.maximum(a - radius, (a + radius).clamp_max_(0.5))
    t = torch.addcmul(_one(u), at, at).rsqrt_()
    return t.square().square_().mul_(t).mul_(at).mul_(3)  # 3 at (1 + at^2)^(-5/2)


def curvature_sup(u: Tensor, radius: Tensor | float) -> Tensor:
    """sup s'' over [u - radius, u + radius], elementwise: attained nearest to zero."""
    return curvature((u.abs() - radius).clamp_min(0))


def third_sup_radial(size: Tensor, radius: Tensor | float) -> Tensor:
    """The same for the radial potential nu s(|v| / nu) of a vector v with normalized length
    ``size``.

    The third derivative along unit a is 3 k^2 |tau| / s^5 with tau = <v, a>, k^2 = s^2 - tau^2, at
    most 3 (2 / (3 sqrt 3)) / s^2 = 1.1547 / s^2, and at most 0.8587 everywhere (k >= 1 reduces it
    to one dimension); a symmetric trilinear form attains its norm on the diagonal (Banach 1938).
    """
    nearest = (size - radius).clamp_min(0)
    return (2 / math.sqrt(3) / (1 + nearest * nearest)).clamp_max(THIRD_MAX)


def dual_curvature(u: Tensor, p: Tensor) -> Tensor:
    """(1 - p u / s) / s: the curvature with the slope p as a variable of its own; s^-3 where p = u
    / s.
    """
    s = torch.sqrt(1 + u * u)
    return (1 - p * u / s) / s


def dual_step(u: Tensor, p: Tensor, du: Tensor) -> Tensor:
    """p after u has moved by du: s p + (u / s) p du = u + du solved for the new p, kept in [-1,
    1].
    """
    s = torch.sqrt(1 + u * u)
    return ((u + du - p * u / s * du) / s).clamp_(-1, 1)


def _one(u: Tensor) -> Tensor:
    return torch.ones((), dtype=u.dtype, device=u.device)
