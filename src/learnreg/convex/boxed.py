"""A separable function within bounds: phi(a) + the indicator of lower <= a <= upper, pixel by
pixel.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core.constraints import Interval
from ..core.errors import InputError
from .base import Convex, Step, beyond, peak, refuse, slack, total
from .tangent import Diagonal, Tangent


class Boxed(Convex):
    """phi(a) for lower <= a <= upper, inf elsewhere, with phi a sum over entries.

    A function of one variable that is cut off at the ends of an interval has the clamped proximal
    map, and every slope s splits into one of phi inside the interval and a rest that the end bears:
        s = s' + (s - s'),   s' = s kept between the least slope at lower and the largest at upper,
        phi_box*(s) = phi*(s') + max(lower (s - s'), upper (s - s')),
        gap(a, s) = gap_phi(a, s') + (a - lower) (s' - s)_+ + (upper - a) (s - s')_+.
    Proof: where s' = s the maximizer of <a, s> - phi(a) lies inside. Where s < s', the least slope
    at lower, it is lower itself, at which s' is a slope of phi: phi_box*(s) = lower s - phi(lower)
    = phi*(s') + lower (s - s'). The gap is the sum of value and conjugate minus a s. Likewise
    above.

    Args:
        inner: phi, separable.
        bounds: of the entries.

    Raises:
        InputError: a function of groups of entries.
    """

    separable = True
    smoothing = "At a bound there is no gradient: use the proximal map."

    def __init__(self, inner: Convex, bounds: Interval) -> None:
        if not inner.separable:
            raise InputError(
                "inner",
                given=type(inner).__name__,
                expected="a sum over entries, separable = True",
                remedy="Bound a function of groups by a block of its own.",
            )
        self.inner, self.bounds = inner, bounds
        self.strong = inner.strong
        # the domain of phi itself may end before
        floor, lower = inner.floor(), bounds.lower
        floor = floor if isinstance(floor, Tensor) else lower.new_tensor(floor)
        lower = torch.maximum(lower, floor)
        upper = bounds.upper
        self.lower, self.upper = lower, upper
        # infinite where nothing is cut off: all slopes are those of phi there
        self._least = _where_finite(lower, inner.slopes(_finite(lower))[0], -math.inf)
        self._most = _where_finite(upper, inner.slopes(_finite(upper))[1], math.inf)

    def _inside(self, a: Tensor) -> Tensor:
        return torch.clamp(a, self.lower, self.upper)

    def _outside(self, a: Tensor) -> Tensor:
        """Images that leave their bounds by more than rounding."""
        inside = self._inside(a)
        return beyond(peak((a - inside).abs() - slack(a) * inside.abs().clamp_min(1)), 0.0)

    def _split(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """s' and s - s'; a rest is left only at finite ends."""
        of_inner = torch.clamp(s, self._least, self._most)
        return of_inner, s - of_inner

    def value(self, a: Tensor) -> Tensor:
        return refuse(self.inner.value(self._inside(a)), self._outside(a))

    def conjugate(self, s: Tensor) -> Tensor:
        of_inner, rest = self._split(s)
        ends = torch.where(rest > 0, _finite(self.upper), _finite(self.lower))
        return self.inner.conjugate(of_inner) + total(ends * rest)

    def gap(self, a: Tensor, s: Tensor) -> Tensor:
        inside, (of_inner, rest) = self._inside(a), self._split(s)
        ends = torch.where(rest > 0, _finite(self.upper), _finite(self.lower))
        local = (ends - inside).mul_(rest)
        outside = self._outside(a) | a.isnan().flatten(1).any(dim=1)
        return refuse(self.inner.gap(inside, of_inner) + total(local), outside)

    def prox(self, a: Tensor, step: Step) -> Tensor:
        return self._inside(self.inner.prox(a, step))

    def prox_(self, a: Tensor, step: Step) -> Tensor:
        return self._inside(self.inner.prox_(a, step))

    def prox_tangent(self, a: Tensor, step: Step) -> Tangent:
        """That of phi where its proximal map stays inside, zero at the bounds."""
        z = self.inner.prox(a, step)
        free = (z > self.lower) & (z < self.upper)
        inner = self.inner.prox_tangent(a, step)
        ones = torch.ones_like(a)
        return Diagonal(torch.where(free, inner(ones), 0.0))

    def gauge(self, s: Tensor) -> Tensor:
        """That of phi for the slopes that no end bears."""
        borne = (s > 0) & self.upper.isfinite() | (s < 0) & self.lower.isfinite()
        return self.inner.gauge(torch.where(borne, 0.0, s))

    def select(self, index: Tensor) -> Boxed:
        return Boxed(self.inner.select(index), self.bounds.select(index))

    def double(self) -> Boxed:
        return Boxed(self.inner.double(), self.bounds.double())


def _finite(end: Tensor) -> Tensor:
    """An end of intervals, zero where it is infinite."""
    return torch.where(end.isinf(), 0.0, end)


def _where_finite(end: Tensor, slope: Tensor, otherwise: float) -> Tensor:
    return torch.where(end.isinf(), otherwise, slope)
