"""The smoothed length sqrt(|a|^2 + eta^2): twice continuously differentiable, with a proven
Lipschitz Hessian.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core.batch import expand
from ..core.ranges import check_number, check_positive
from .base import Convex, Step, beyond, matched, peak, refuse, slack, total
from .norms import RADIAL_THIRD, direction
from .tangent import Radial, inner

THIRD_MAX = 48 / (25 * math.sqrt(5))
"""sup |s'''| = 0.8587 of s(t) = sqrt(1 + t^2): s''' = -3 t (1 + t^2)^(-5/2) is extreme at |t| =
1/2.
"""

LARGEST_RATIO = 1e6
"""Steps per image, as tensors, are prepared for step scale / eta up to this; beyond it the last
digits are lost.
"""


class SmoothNorm(Convex):
    """phi(a) = scale sum (sqrt(|a|^2 + eta^2) - eta) + strong/2 |a|^2, |.| the Euclidean norm over
    dimension 1.

    The Hessian is Lipschitz with constant ``THIRD_MAX`` scale / eta^2, in any number of components.
    Proof: let scale = eta = 1. The third derivative at a is a symmetric trilinear form, which
    attains its norm on the diagonal (Banach 1938), so it suffices to differentiate along lines: for
    a unit vector h,
    |a + t h|^2 + 1 = (t + <a, h>)^2 + k^2 with k^2 = 1 + |a|^2 - <a, h>^2 >= 1. There
    sqrt((t + <a, h>)^2 + k^2) is k s(. / k) with s(t) = sqrt(1 + t^2), and its third derivative is
    at most sup |s'''| / k^2 <= sup |s'''|, with equality for a parallel to h. Groups are
    independent, so the Hessian of the block has the norm of its largest group.

    Without ``strong`` the conjugate is scale eta - eta sqrt(scale^2 - |s|^2) on |s| <= scale, whose
    gradient is unbounded; with it phi* is smooth everywhere and found by a scalar root.

    Args:
        scale: positive.
        eta: positive, the length below which phi is about quadratic.
        strong: >= 0.

    Raises:
        InputError: a number out of range.
    """

    strengthening = "Give it strong > 0."

    def __init__(self, scale: float = 1.0, eta: float = 0.05, strong: float = 0.0) -> None:
        check_positive("scale", scale)
        check_positive("eta", eta)
        check_number("strong", strong, lambda v: v >= 0, "a finite number >= 0")
        self.scale, self.eta, self.strong = float(scale), float(eta), float(strong)
        self.smooth = self.scale / self.eta + self.strong
        self.hessian_lipschitz = THIRD_MAX * self.scale / self.eta**2

    def _inverse(self, square: Tensor) -> Tensor:
        """1 / sqrt(|a|^2 + eta^2) from |a|^2, which is overwritten."""
        return square.add_(self.eta**2).rsqrt_()

    def _bend(self, length: Tensor, linear: Step, curved: Step) -> Tensor:
        """1 / q at the root r of linear r + curved r / q = length, q = sqrt(r^2 + eta^2);
        overwrites ``length``.
        """
        ratio = curved / (linear * self.eta)
        if isinstance(ratio, Tensor):
            most = self.scale / (self.strong * self.eta) if self.strong else LARGEST_RATIO
        else:
            most = ratio
        root = _root(length.div_(linear * self.eta), ratio, most)
        return root.mul_(self.eta).square_().add_(self.eta**2).rsqrt_()

    def value(self, a: Tensor) -> Tensor:
        square = inner(a, a)
        length = torch.sqrt(square + self.eta**2)
        return total(self.scale * square / (length + self.eta) + 0.5 * self.strong * square)

    def _dual(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The slope g of the smoothed length at the point of s, sqrt(scale^2 - |g|^2), and the
        point if it is one.
        """
        if not self.strong:
            return s, (self.scale**2 - inner(s, s)).clamp_min_(0).sqrt_(), None
        point = self.conjugate_grad(s)
        bend = self._inverse(inner(point, point)).mul_(self.scale)
        return point * bend, bend * self.eta, point

    def _outside(self, s: Tensor) -> Tensor:
        if self.strong:
            return torch.zeros(s.shape[0], dtype=torch.bool, device=s.device)
        return beyond(peak(inner(s, s)), self.scale**2 * (1 + 2 * slack(s)))

    def conjugate(self, s: Tensor) -> Tensor:
        slope, height, point = self._dual(s)
        local = inner(slope, slope).mul_(self.eta).div_(height + self.scale)
        if point is not None:
            local.add_(inner(point, point), alpha=0.5 * self.strong)
        return refuse(total(local), self._outside(s))

    def gap(self, a: Tensor, s: Tensor) -> Tensor:
        """q / (2 scale) |(g - slope, h - height)|^2 + strong/2 |a - point|^2, the Bregman distance
        of phi.

        Here q = sqrt(|a|^2 + eta^2), and (slope, height), (g, h) are the vectors of length scale
        that belong to s and a: scale q - <(a, eta), (slope, height)> is their distance squared; h -
        height is written without cancellation.
        """
        slope, height, point = self._dual(s)
        inverse = self._inverse(inner(a, a))
        own = inverse * (self.scale * self.eta)
        g = a * (inverse * self.scale)
        apart = g - slope
        vertical = inner(apart, g.add_(slope)).div_(height.add_(own))
        local = inner(apart, apart).addcmul_(vertical, vertical).div_(inverse.mul_(2 * self.scale))
        if point is not None:
            local.add_(inner(away := a - point, away), alpha=0.5 * self.strong)
        return refuse(total(local), self._outside(s))

    def prox(self, a: Tensor, step: Step) -> Tensor:
        """a / (1 + step (strong + scale / q)), q = sqrt(|prox|^2 + eta^2) by Newton's method on the
        radius.
        """
        step = matched(step, a)
        bend = self._bend(inner(a, a).sqrt_(), 1 + step * self.strong, step * self.scale)
        return a / bend.mul_(self.scale).add_(self.strong).mul_(step).add_(1)

    def prox_conjugate(self, s: Tensor, step: Step) -> Tensor:
        """s h / (step + h) with h = strong + scale / q at the same root as in Moreau's identity."""
        step = matched(step, s)
        h = (
            self._bend(inner(s, s).sqrt_(), step + self.strong, self.scale)
            .mul_(self.scale)
            .add_(self.strong)
        )
        return s * (h / (h + step))

    def prox_tangent(self, a: Tensor, step: Step) -> Radial:
        step = matched(step, a)
        return self.hessian(self.prox(a, step)).mapped(
            lambda eigenvalue: 1 / (1 + step * eigenvalue)
        )

    def grad(self, a: Tensor) -> Tensor:
        return a * self._inverse(inner(a, a)).mul_(self.scale).add_(self.strong)

    def hessian(self, a: Tensor) -> Radial:
        square = inner(a, a)
        unit = direction(a, square.sqrt())
        inverse = self._inverse(square)
        along = (self.scale * self.eta**2) * inverse.square().mul_(inverse)
        return Radial(inverse.mul_(self.scale).add_(self.strong), along.add_(self.strong), unit)

    def conjugate_grad(self, s: Tensor) -> Tensor:
        if not self.strong:
            return super().conjugate_grad(s)
        return s / self._bend(inner(s, s).sqrt_(), self.strong, self.scale).mul_(self.scale).add_(
            self.strong
        )

    def conjugate_hessian(self, s: Tensor) -> Radial:
        return self.hessian(self.conjugate_grad(s)).mapped(lambda eigenvalue: 1 / eigenvalue)

    def gauge(self, s: Tensor) -> Tensor:
        if self.strong:
            return super().gauge(s)
        return peak(inner(s, s)).sqrt_().div_(self.scale).clamp_min_(1)

    def change(self, a: Tensor, radius: Tensor) -> Tensor:
        """min(sup |third derivative| radius, sup |curved part of the Hessian|) over what the ball
        can reach.

        With n the smallest normalized length in reach, the third derivative along a unit vector is
        3 t (n^2 + 1 - t^2) / (n^2 + 1)^(5/2) <= (2 / sqrt 3) / (n^2 + 1), and never more than
        ``THIRD_MAX``; the Hessians are positive semidefinite and at most 1 / sqrt(n^2 + 1), hence
        so is their difference.
        """
        reach = expand(radius, a) / self.eta
        square = (inner(a, a).sqrt_().div_(self.eta) - reach).clamp_min_(0).square_().add_(1)
        slopes = (RADIAL_THIRD / square).clamp_max_(THIRD_MAX).mul_(reach)
        return torch.minimum(slopes, square.rsqrt_()).mul_(self.scale / self.eta)


def _root(target: Tensor, ratio: Step, most: float) -> Tensor:
    """The root x >= 0 of F(x) = x + ratio x / sqrt(1 + x^2) - target, elementwise, by a fixed
    number of Newton steps.

    F is increasing and concave on x >= 0, so every Newton step from anywhere lands left of the root
    and further ones only approach it: no safeguard is needed. The best of up to five tangents
    starts, at zero, at infinity and around the knee at ratio^(1/3), where a large ratio would make
    Newton creep.

    Args:
        most: a bound of the ratio, which sets the number of steps; one number for all images, so
            that none of them depends on its neighbours.
    """
    x = torch.maximum(target / (1 + ratio), target - ratio)
    if most > 1:
        knee = ratio ** (1 / 3)
        for power in (1.0, 2 / 3, 1 / 3):
            at = 0.8 * knee**power
            w = (1 + at * at) ** -0.5
            x = torch.maximum(x, (target - ratio * (at * w) ** 3) * (1 / (1 + ratio * w**3)))
    one = target.new_ones(())
    h, v, slope = (
        torch.empty_like(target) for _ in range(3)
    )  # fresh memory would cost more than the arithmetic
    for _ in range(
        _newton_steps(target.dtype, most)
    ):  # x <- (target - h x (1 - v)) / (1 + h v), h = ratio w, v = w^2
        torch.addcmul(one, x, x, out=h).rsqrt_()
        torch.mul(h, h, out=v)
        torch.addcmul(one, h.mul_(ratio), v, out=slope)
        torch.addcmul(target, x.mul_(h), v.sub_(1), out=x).div_(slope)
    return x


def _newton_steps(dtype: torch.dtype, ratio: float) -> int:
    """Enough for full accuracy at this ratio: as measured up to 1e8, plus one."""
    return (3 if dtype == torch.float32 else 4) + math.ceil(0.6 * math.log10(max(ratio, 1.0)))
