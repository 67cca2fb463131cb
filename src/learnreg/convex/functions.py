"""The plain functions of one block: zero, weighted squares, the indicator of an interval."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core.batch import dot
from ..core.errors import InputError
from ..core.ranges import check_positive
from .base import Convex, Step, beyond, clamped, constant, matched, peak, refuse, slack, total
from .tangent import Diagonal, pick


class Zero(Convex):
    """phi = 0; phi* is the indicator of {0}. The block is free: nothing is paid for it."""

    separable = True
    strong = 0.0
    smooth = 0.0
    hessian_lipschitz = 0.0

    def value(self, a: Tensor) -> Tensor:
        return a.new_zeros(a.shape[0])

    def conjugate(self, s: Tensor) -> Tensor:
        return refuse(s.new_zeros(s.shape[0]), beyond(peak(s.abs()), slack(s)))

    def gap(self, a: Tensor, s: Tensor) -> Tensor:
        return self.conjugate(s)

    def prox(self, a: Tensor, step: Step) -> Tensor:
        return a.clone()

    def prox_conjugate(self, s: Tensor, step: Step) -> Tensor:
        return torch.zeros_like(s)

    def prox_tangent(self, a: Tensor, step: Step) -> Diagonal:
        return Diagonal(constant(1.0, a))

    def grad(self, a: Tensor) -> Tensor:
        return torch.zeros_like(a)

    def hessian(self, a: Tensor) -> Diagonal:
        return Diagonal(constant(0.0, a))

    def gauge(self, s: Tensor) -> Tensor:
        return refuse(s.new_ones(s.shape[0]), beyond(peak(s.abs()), slack(s)))


class Squares(Convex):
    """phi(a) = 1/2 sum weight (a - centre)^2;  phi*(s) = sum s^2 / (2 weight) + centre s.

    Args:
        weight: a positive number, or a tensor (b or 1, ...) of numbers >= 0. Where it is zero
            nothing is paid and phi* is the indicator of {0}.
        centre: (b or 1, ...), or None for zero.

    Raises:
        InputError: a weight is negative or not finite; the centre is no floating-point tensor or
            not finite.
    """

    separable = True
    hessian_lipschitz = 0.0
    strengthening = "Give it a positive weight everywhere."

    def __init__(self, weight: float | Tensor = 1.0, centre: Tensor | None = None) -> None:
        self._free: Tensor | None = None
        if isinstance(weight, Tensor):
            self.strong, self.smooth = _range_of(weight)
            self.weight: float | Tensor = weight
            self._inverse: float | Tensor = torch.where(weight > 0, 1 / weight, 0.0)
            if not self.strong:
                self._free = (weight == 0).to(weight.dtype)
        else:
            check_positive("weight", weight)
            self.strong = self.smooth = self.weight = float(weight)
            self._inverse = 1 / self.weight
        self.centre = checked_data("centre", centre)

    def _from_centre(self, a: Tensor) -> Tensor:
        """a - centre as a new tensor."""
        return a.clone() if self.centre is None else a - self.centre

    def value(self, a: Tensor) -> Tensor:
        d = self._from_centre(a)
        return 0.5 * dot(d, d * self.weight)

    def _outside(self, s: Tensor) -> Tensor:
        """Images with s != 0 where nothing is paid."""
        if self._free is None:
            return torch.zeros(s.shape[0], dtype=torch.bool, device=s.device)
        return beyond(peak(s.abs().mul_(self._free)), slack(s))

    def conjugate(self, s: Tensor) -> Tensor:
        squares = 0.5 * dot(s, s * self._inverse)
        if self.centre is not None:
            squares = squares + total(self.centre * s)
        return refuse(squares, self._outside(s))

    def gap(self, a: Tensor, s: Tensor) -> Tensor:
        """|weight (a - centre) - s|^2 / (2 weight)."""
        if isinstance(self.weight, float):
            e = self._from_centre(a).sub_(s, alpha=1 / self.weight)
            return dot(e, e).mul_(0.5 * self.weight)
        e = self._from_centre(a).mul_(self.weight).sub_(s)
        return refuse(0.5 * dot(e, e * self._inverse), self._outside(s))

    def prox(self, a: Tensor, step: Step) -> Tensor:
        """(a + step weight centre) / (1 + step weight), written as a point on the segment from a to
        the centre.
        """
        pull = matched(step, a) * self.weight
        if self.centre is None:
            return a / (1 + pull) if isinstance(pull, Tensor) else a * (1 / (1 + pull))
        return torch.lerp(a, self.centre.to(a.dtype), pull / (1 + pull))

    def prox_(self, a: Tensor, step: Step) -> Tensor:
        if self.centre is None or self.centre.shape != a.shape:
            return self.prox(a, step)
        pull = matched(step, a) * self.weight
        return a.lerp_(self.centre.to(a.dtype), pull / (1 + pull))

    def prox_conjugate(self, s: Tensor, step: Step) -> Tensor:
        step = matched(step, s)
        factor = self.weight / (self.weight + step)
        if self.centre is None:
            return s * factor
        moved = (
            torch.addcmul(s, self.centre, step, value=-1)
            if isinstance(step, Tensor)
            else torch.sub(s, self.centre, alpha=step)
        )
        return moved.mul_(factor)

    def _diagonal(self, value: float | Tensor, like: Tensor) -> Diagonal:
        return Diagonal(
            value.to(like.dtype) if isinstance(value, Tensor) else constant(value, like)
        )

    def prox_tangent(self, a: Tensor, step: Step) -> Diagonal:
        return self._diagonal(1 / (1 + matched(step, a) * self.weight), a)

    def grad(self, a: Tensor) -> Tensor:
        return self._from_centre(a).mul_(self.weight)

    def slopes(self, a: Tensor) -> tuple[Tensor, Tensor]:
        slope = self._from_centre(a) * self.weight  # a may be one number for all entries
        return slope, slope

    def hessian(self, a: Tensor) -> Diagonal:
        return self._diagonal(self.weight, a)

    def conjugate_grad(self, s: Tensor) -> Tensor:
        if not self.strong:
            return super().conjugate_grad(s)
        return s / self.weight if self.centre is None else s / self.weight + self.centre

    def conjugate_hessian(self, s: Tensor) -> Diagonal:
        if not self.strong:
            super().conjugate_hessian(s)
        return self._diagonal(self._inverse, s)

    def gauge(self, s: Tensor) -> Tensor:
        return refuse(s.new_ones(s.shape[0]), self._outside(s))

    def select(self, index: Tensor) -> Squares:
        weight = pick(self.weight, index) if isinstance(self.weight, Tensor) else self.weight
        return Squares(weight, None if self.centre is None else pick(self.centre, index))

    def double(self) -> Squares:
        weight = self.weight.double() if isinstance(self.weight, Tensor) else self.weight
        return Squares(weight, None if self.centre is None else self.centre.double())


class Box(Convex):
    """The indicator of lower <= a <= upper, entry by entry;  phi*(s) = sum max(lower s, upper s).

    Args:
        lower: a number or -inf.
        upper: a number or inf.

    Raises:
        InputError: NaN, no number, or lower > upper.
    """

    smoothing = "An interval has no gradient: use the proximal map."
    strengthening = "Add a term that is strongly convex, for example Squares, on another block."

    def __init__(self, lower: float = 0.0, upper: float = math.inf) -> None:
        for name, bound in (("lower", lower), ("upper", upper)):
            if isinstance(bound, bool) or not isinstance(bound, int | float) or math.isnan(bound):
                raise InputError(
                    name, given=bound, expected="a number, or an infinity", remedy="Pass a float."
                )
        if lower > upper or lower == math.inf or upper == -math.inf:
            raise InputError(
                "lower, upper",
                given=f"{lower}, {upper}",
                expected="lower <= upper, not both infinite with the same sign",
                remedy="Exchange the two bounds.",
            )
        self.lower, self.upper = float(lower), float(upper)

    def _a_outside(self, a: Tensor) -> Tensor:
        least, most = a.flatten(1).amin(dim=1), peak(a)
        return beyond(-least, _reach(self.lower, a) - self.lower) | beyond(
            most, self.upper + _reach(self.upper, a)
        )

    def _s_outside(self, s: Tensor) -> Tensor:
        """Images whose s points to an infinite end."""
        least, most = s.flatten(1).amin(dim=1), peak(s)
        up = beyond(most, slack(s) if math.isinf(self.upper) else math.inf)
        return up | beyond(-least, slack(s) if math.isinf(self.lower) else math.inf)

    def value(self, a: Tensor) -> Tensor:
        return refuse(a.new_zeros(a.shape[0]), self._a_outside(a))

    def conjugate(self, s: Tensor) -> Tensor:
        result = s.new_zeros(s.shape[0])
        if math.isfinite(self.upper):
            result = result + self.upper * total(s.clamp_min(0))
        if math.isfinite(self.lower):
            result = result + self.lower * total(s.clamp_max(0))
        return refuse(result, self._s_outside(s))

    def gap(self, a: Tensor, s: Tensor) -> Tensor:
        """(upper - a) s where s > 0, (a - lower) |s| where s < 0."""
        result = s.new_zeros(s.shape[0])
        if math.isfinite(self.upper):
            result = result + total((self.upper - a).clamp_min_(0).mul_(s.clamp_min(0)))
        if math.isfinite(self.lower):
            result = result + total((self.lower - a).clamp_max_(0).mul_(s.clamp_max(0)))
        return refuse(result, self._a_outside(a) | self._s_outside(s))

    def prox(self, a: Tensor, step: Step) -> Tensor:
        return a.clamp(self.lower, self.upper)

    def prox_conjugate(self, s: Tensor, step: Step) -> Tensor:
        step = matched(step, s)
        return s - clamped(s, step * self.lower, step * self.upper)

    def prox_tangent(self, a: Tensor, step: Step) -> Diagonal:
        return Diagonal(((a > self.lower) & (a < self.upper)).to(a.dtype))

    def gauge(self, s: Tensor) -> Tensor:
        return refuse(s.new_ones(s.shape[0]), self._s_outside(s))


def checked_data(name: str, data: Tensor | None) -> Tensor | None:
    """Data of a function: None, or a finite floating-point tensor (b or 1, ...).

    Raises:
        InputError: anything else.
    """
    if data is None:
        return None
    if not isinstance(data, Tensor) or not data.is_floating_point() or data.dim() < 1:
        given = data.dtype if isinstance(data, Tensor) else type(data).__name__
        raise InputError(
            name,
            given=given,
            expected="a floating-point tensor with the batch first, or None",
            remedy="Convert with torch.as_tensor(...).float().",
        )
    if not bool(torch.isfinite(data).all()):
        raise InputError(
            name,
            given="NaN or Inf",
            expected="finite numbers",
            remedy="Remove or repair these entries.",
        )
    return data


def _range_of(weight: Tensor) -> tuple[float, float]:
    checked_data("weight", weight)
    low, high = (float(end) for end in weight.aminmax())
    if low < 0:
        raise InputError(
            "weight", given=low, expected="numbers >= 0", remedy="A negative square is not convex."
        )
    return low, high


def _reach(end: float, a: Tensor) -> float:
    """How far beyond an end of the interval still counts as the end."""
    return slack(a) * max(1.0, abs(end)) if math.isfinite(end) else 0.0
