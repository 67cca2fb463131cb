"""Norms: the sum of lengths, its Huber function, and the smoothed length sqrt(|a|^2 + eta^2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core.batch import expand
from ..core.errors import InputError
from ..core.ranges import check_number, check_positive
from .base import Convex, Step, beyond, clamped, matched, peak, refuse, slack, total
from .functions import checked_data
from .tangent import Diagonal, Radial, Tangent, inner, pick

RADIAL_THIRD = 2 / math.sqrt(3)
"""sup |third derivative of |a|| |a|^2: along a unit vector h it is -3 t (1 - t^2) / |a|^2 with t =
<a, h> / |a|.
"""


class Norm(Convex):
    """phi(a) = scale sum |a - centre|, or its Huber function;  phi*(s) = <centre, s> + rounding/2
    |s|^2, |s| <= scale.

    With rounding > 0 the function is |d|^2 / (2 rounding) for |d| = |a - centre| <= rounding scale
    and scale |d| - rounding scale^2 / 2 beyond; its gradient is then (1/rounding)-Lipschitz.

    Args:
        scale: positive.
        centre: (b or 1, ...), or None for zero.
        isotropic: |.| is the Euclidean norm over dimension 1; else the absolute value of every
            entry.
        rounding: >= 0, strong convexity of phi*.

    Raises:
        InputError: a number out of range; the centre is no floating-point tensor or not finite.
    """

    smoothing = "Give it rounding > 0 (the Huber function), or use SmoothNorm."
    strengthening = "Norms grow linearly: use SmoothNorm with strong > 0."

    def __init__(
        self,
        scale: float = 1.0,
        centre: Tensor | None = None,
        isotropic: bool = True,
        rounding: float = 0.0,
    ) -> None:
        check_positive("scale", scale)
        check_number("rounding", rounding, lambda v: v >= 0, "a finite number >= 0")
        if not isinstance(isotropic, bool):
            raise InputError("isotropic", given=isotropic, expected="True or False")
        self.scale, self.rounding, self.isotropic = float(scale), float(rounding), isotropic
        self.separable = not isotropic
        self.centre = checked_data("centre", centre)
        self.smooth = 1 / self.rounding if rounding else math.inf

    def _from_centre(self, a: Tensor) -> Tensor:
        """a - centre; a itself if there is no centre."""
        return a if self.centre is None else a - self.centre

    def _square(self, d: Tensor) -> Tensor:
        """|d|^2 per group, as a new tensor."""
        return inner(d, d) if self.isotropic else d.square()

    def _length(self, d: Tensor) -> Tensor:
        """|d| per group, as a new tensor."""
        return inner(d, d).sqrt_() if self.isotropic else d.abs()

    def _outside(self, square: Tensor) -> Tensor:
        return beyond(peak(square), self.scale**2 * (1 + 2 * slack(square)))

    def value(self, a: Tensor) -> Tensor:
        length = self._length(self._from_centre(a))
        if not self.rounding:
            return self.scale * total(length)
        curved = length.clamp_max(self.rounding * self.scale)
        return total(
            torch.addcmul((length - curved) * self.scale, curved, curved, value=0.5 / self.rounding)
        )

    def conjugate(self, s: Tensor) -> Tensor:
        square = self._square(s)
        result = 0.5 * self.rounding * total(square)
        if self.centre is not None:
            result = result + total(self.centre * s)
        return refuse(result, self._outside(square))

    def gap(self, a: Tensor, s: Tensor) -> Tensor:
        """1/2 [ |d - m s|^2 / m + (m - rounding) (scale^2 - |s|^2) ] with d = a - centre, m =
        max(|d|/scale, rounding).

        d / m is the gradient: for |d| > rounding scale expand scale |d| - <d, s> around it, else
        complete the square.
        """
        d = self._from_centre(a)
        m = self._length(d).div_(self.scale)
        m.clamp_min_(
            max(self.rounding, torch.finfo(a.dtype).tiny)
        )  # d = 0 without rounding: nothing over something
        local = self._square(torch.addcmul(d, m, s, value=-1)).div_(m)
        square = self._square(s)
        outside = self._outside(square)
        room = square.neg_().add_(self.scale**2).clamp_min_(0)
        return refuse(0.5 * total(local.addcmul_(room, m.sub_(self.rounding))), outside)

    def prox(self, a: Tensor, step: Step) -> Tensor:
        """centre + d (1 - step min(scale / |d|, 1 / (rounding + step))) with d = a - centre."""
        step = matched(step, a)
        d = self._from_centre(a)
        cap = step / (step + self.rounding)
        if self.isotropic:
            shrink = self._square(d).rsqrt_().mul_(step * self.scale).clamp_max_(cap)
            return torch.addcmul(a, d, shrink, value=-1)
        bound = step * self.scale
        return a - clamped(d * cap if self.rounding else d, -bound, bound)

    def prox_conjugate(self, s: Tensor, step: Step) -> Tensor:
        """The projection of (s - step centre) / (1 + step rounding) onto |s| <= scale."""
        step = matched(step, s)
        if self.centre is not None:
            s = (
                torch.addcmul(s, self.centre, step, value=-1)
                if isinstance(step, Tensor)
                else torch.sub(s, self.centre, alpha=step)
            )
        if self.isotropic:
            return s * self._shrinkage(s, step)
        return (s if not self.rounding else s / (1 + step * self.rounding)).clamp(
            -self.scale, self.scale
        )

    def prox_conjugate_(self, s: Tensor, step: Step) -> Tensor:
        if self.centre is not None or not self.isotropic:
            return self.prox_conjugate(s, step)
        return s.mul_(self._shrinkage(s, matched(step, s)))

    def _shrinkage(self, s: Tensor, step: Step) -> Tensor:
        """What groups are multiplied by: min(scale / |s|, 1 / (1 + step rounding))."""
        return self._square(s).rsqrt_().mul_(self.scale).clamp_max_(1 / (1 + step * self.rounding))

    def prox_tangent(self, a: Tensor, step: Step) -> Tangent:
        step = matched(step, a)
        d = self._from_centre(a)
        length = self._length(d)
        kept = self.rounding / (self.rounding + step)
        along = torch.where(length > self.scale * (self.rounding + step), 1.0, kept).to(a.dtype)
        if not self.isotropic:
            return Diagonal(along)
        across = 1 - (step * self.scale / length).clamp_max_(step / (step + self.rounding))
        return Radial(across, along, direction(d, length))

    def grad(self, a: Tensor) -> Tensor:
        if not self.rounding:
            return super().grad(a)
        d = self._from_centre(a)
        if not self.isotropic:
            return (d / self.rounding).clamp_(-self.scale, self.scale)
        return d * self._square(d).rsqrt_().mul_(self.scale).clamp_max_(1 / self.rounding)

    def slopes(self, a: Tensor) -> tuple[Tensor, Tensor]:
        if self.rounding or self.isotropic:
            return super().slopes(a)
        d = self._from_centre(a)
        scale = torch.full_like(d, self.scale)
        return torch.where(d > 0, scale, -scale), torch.where(d >= 0, scale, -scale)

    def hessian(self, a: Tensor) -> Tangent:
        if not self.rounding:
            super().hessian(a)
        d = self._from_centre(a)
        length = self._length(d)
        along = (length < self.scale * self.rounding).to(a.dtype).div_(self.rounding)
        if not self.isotropic:
            return Diagonal(along)
        return Radial(
            (self.scale / length).clamp_max_(1 / self.rounding), along, direction(d, length)
        )

    def gauge(self, s: Tensor) -> Tensor:
        return peak(self._length(s)).div_(self.scale).clamp_min_(1)

    def change(self, a: Tensor, radius: Tensor) -> Tensor:
        """Zero within the quadratic part, the radial bound beyond it, 1/rounding for groups that
        can cross over.
        """
        if not self.rounding:
            return super().change(a, radius)
        length, reach, kink = (
            self._length(self._from_centre(a)),
            expand(radius, a),
            self.scale * self.rounding,
        )
        nearest = length - reach
        beyond = (
            self.scale * RADIAL_THIRD * reach / nearest.square()
            if self.isotropic
            else torch.zeros_like(length)
        )
        crossing = torch.where(
            nearest > kink, beyond.clamp_max(1 / self.rounding), 1 / self.rounding
        )
        return torch.where(length + reach < kink, 0.0, crossing)

    def select(self, index: Tensor) -> Norm:
        return self if self.centre is None else self._with(pick(self.centre, index))

    def double(self) -> Norm:
        return self if self.centre is None else self._with(self.centre.double())

    def _with(self, centre: Tensor) -> Norm:
        return Norm(self.scale, centre, self.isotropic, self.rounding)


def direction(d: Tensor, length: Tensor) -> Tensor:
    """d / length, zero where the length is zero."""
    return d / length.clamp_min(torch.finfo(d.dtype).tiny)
