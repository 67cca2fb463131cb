"""The hinge max(a, 0), with an optional quadratic start."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core.batch import expand
from ..core.ranges import check_number, check_positive
from .base import Convex, Step, beyond, clamped, matched, peak, refuse, slack, total
from .tangent import Diagonal


class Hinge(Convex):
    """phi(a) = scale sum max(a, 0), rounded;  phi*(s) = rounding/2 |s|^2 for 0 <= s <= scale.

    With rounding > 0, phi is a^2 / (2 rounding) for 0 <= a <= rounding scale and scale a - rounding
    scale^2 / 2 beyond; its gradient is then (1/rounding)-Lipschitz.

    Args:
        scale: positive.
        rounding: >= 0, strong convexity of phi*.

    Raises:
        InputError: a number out of range.
    """

    smoothing = "Give it rounding > 0."
    strengthening = "It grows linearly: add Squares on the same variable."

    def __init__(self, scale: float = 1.0, rounding: float = 0.0) -> None:
        check_positive("scale", scale)
        check_number("rounding", rounding, lambda v: v >= 0, "a finite number >= 0")
        self.scale, self.rounding = float(scale), float(rounding)
        self.smooth = 1 / self.rounding if rounding else math.inf

    def _outside(self, s: Tensor) -> Tensor:
        tolerance = self.scale * slack(s)
        return beyond(peak(s), self.scale + tolerance) | beyond(peak(-s), tolerance)

    def value(self, a: Tensor) -> Tensor:
        positive = a.clamp_min(0)
        if not self.rounding:
            return self.scale * total(positive)
        curved = positive.clamp_max(self.rounding * self.scale)
        return total(
            positive.sub_(curved)
            .mul_(self.scale)
            .addcmul_(curved, curved, value=0.5 / self.rounding)
        )

    def conjugate(self, s: Tensor) -> Tensor:
        return refuse(0.5 * self.rounding * total(s.square()), self._outside(s))

    def gap(self, a: Tensor, s: Tensor) -> Tensor:
        """(a - rounding scale)_+ (scale - s) + (-a)_+ s + rounding/2 (grad - s)^2."""
        local = (a - self.rounding * self.scale).clamp_min_(0).mul_((self.scale - s).clamp_min_(0))
        local.sub_(a.clamp_max(0).mul_(s.clamp_min(0)))
        if self.rounding:
            local.add_(self.grad(a).sub_(s).square_(), alpha=0.5 * self.rounding)
        return refuse(total(local), self._outside(s))

    def prox(self, a: Tensor, step: Step) -> Tensor:
        step = matched(step, a)
        share, bound = step / (step + self.rounding), step * self.scale
        return a - _between(a if not self.rounding else a * share, bound)

    def prox_conjugate(self, s: Tensor, step: Step) -> Tensor:
        step = matched(step, s)
        return _between(s if not self.rounding else s / (1 + step * self.rounding), self.scale)

    def prox_tangent(self, a: Tensor, step: Step) -> Diagonal:
        step = matched(step, a)
        inside = (a > 0) & (a < self.scale * (self.rounding + step))
        return Diagonal(1 - inside.to(a.dtype) * (step / (step + self.rounding)))

    def grad(self, a: Tensor) -> Tensor:
        return _between(a / self.rounding, self.scale) if self.rounding else super().grad(a)

    def hessian(self, a: Tensor) -> Diagonal:
        if not self.rounding:
            super().hessian(a)
        return Diagonal(
            ((a > 0) & (a < self.scale * self.rounding)).to(a.dtype).div_(self.rounding)
        )

    def gauge(self, s: Tensor) -> Tensor:
        return refuse((peak(s) / self.scale).clamp_min_(1), beyond(peak(-s), self.scale * slack(s)))

    def change(self, a: Tensor, radius: Tensor) -> Tensor:
        """1/rounding for entries that can cross an end of the quadratic part, else zero."""
        if not self.rounding:
            return super().change(a, radius)
        reach = expand(radius, a)
        nearest = torch.minimum(a.abs(), (a - self.scale * self.rounding).abs())
        return (nearest <= reach).to(a.dtype).div_(self.rounding)


def _between(a: Tensor, bound: Step) -> Tensor:
    """The entries kept within [0, bound]."""
    return clamped(a, torch.zeros_like(bound) if isinstance(bound, Tensor) else 0.0, bound)
