"""The epigraph of the (smoothed) leaky ReLU, the building block of lifted convex networks."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.errors import InputError
from ..core.ranges import check_number
from .base import Convex, Step, beyond, matched, peak, refuse, slack, total
from .tangent import Radial


class Epigraph(Convex):
    """The indicator of {(s, t): t >= f(s)} for blocks (b, 2, ...), dimension 1 holding s and then
    t.

    f(s) = slope s + (1 - slope) h(s), where h is the hinge max(s, 0) whose start is the parabola
    s^2 / (2 rounding) on [0, rounding]. The conjugate lives on the cone slope |tau| <= sigma <=
    |tau|, tau <= 0, where it is rounding (sigma - slope |tau|)^2 / (2 (1 - slope) |tau|). The
    proximal map is the projection, whatever the step.

    Args:
        slope: of the negative part, in [0, 1); 0 is the ReLU.
        rounding: >= 0, the length of the parabola.

    Raises:
        InputError: a number out of range; (at the call) a block whose dimension 1 is not 2.

    Source: the lifting of input-convex networks to such constraints is that of arXiv 2410.12441;
    the smoothed activation and its projection are derived here.
    """

    smoothing = "An indicator has no gradient: use the proximal map, which is the projection."
    strengthening = "Its support function grows linearly: use the proximal map of the conjugate."

    def __init__(self, slope: float = 0.2, rounding: float = 0.0) -> None:
        check_number("slope", slope, lambda v: 0 <= v < 1, "a number in [0, 1)")
        check_number("rounding", rounding, lambda v: v >= 0, "a finite number >= 0")
        self.slope, self.rounding = float(slope), float(rounding)

    def height(self, s: Tensor) -> Tensor:
        """f(s), elementwise."""
        if not self.rounding:
            return torch.maximum(s, self.slope * s)
        positive = s.clamp_min(0)
        curved = positive.clamp_max(self.rounding)
        positive.sub_(curved).addcmul_(curved, curved, value=0.5 / self.rounding)
        return torch.add(positive.mul_(1 - self.slope), s, alpha=self.slope)

    def _steepness(self, s: Tensor) -> Tensor:
        """f'(s); one of the two slopes at a kink."""
        share = (s / self.rounding).clamp_(0, 1) if self.rounding else (s > 0).to(s.dtype)
        return share.mul_(1 - self.slope).add_(self.slope)

    def _a_outside(self, s: Tensor, t: Tensor) -> Tensor:
        return beyond(peak(self.height(s) - t - slack(s) * (s.abs() + t.abs())), 0.0)

    def _s_outside(self, sigma: Tensor, tau: Tensor) -> Tensor:
        tolerance = slack(sigma) * (sigma.abs() + tau.abs())
        return beyond(peak(torch.maximum(-self.slope * tau - sigma, sigma + tau) - tolerance), 0.0)

    def _dual(self, sigma: Tensor, tau: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """|tau|, the most that sigma can exceed slope |tau|, and its excess."""
        depth = (-tau).clamp_min_(0)
        most = depth * (1 - self.slope)
        excess = torch.minimum((sigma - self.slope * depth).clamp_min_(0), most)
        return depth, most, excess

    def value(self, a: Tensor) -> Tensor:
        return refuse(a.new_zeros(a.shape[0]), self._a_outside(*_split(a)))

    def conjugate(self, s: Tensor) -> Tensor:
        sigma, tau = _split(s)
        _, most, excess = self._dual(sigma, tau)
        local = excess.square().div_(most.clamp_min_(torch.finfo(s.dtype).tiny))
        return refuse(0.5 * self.rounding * total(local), self._s_outside(sigma, tau))

    def gap(self, a: Tensor, s: Tensor) -> Tensor:
        """|tau| (t - f(s)) plus what sigma / |tau| misses of the slope of f at s."""
        (x, t), (sigma, tau) = _split(a), _split(s)
        depth, most, excess = self._dual(sigma, tau)
        local = (t - self.height(x)).clamp_min_(0).mul_(depth)
        local.sub_(x.clamp_max(0).mul_(excess))
        local.add_((x - self.rounding).clamp_min_(0).mul_(most - excess))
        if self.rounding:
            missed = (x / self.rounding).clamp_(0, 1).mul_(most).sub_(excess).square_()
            local.add_(
                missed.div_(most.clamp_min_(torch.finfo(a.dtype).tiny)), alpha=0.5 * self.rounding
            )
        return refuse(total(local), self._a_outside(x, t) | self._s_outside(sigma, tau))

    def _foot(self, s: Tensor, t: Tensor) -> Tensor:
        """The first coordinate of the projection of (s, t)."""
        a = self.slope
        if (
            not self.rounding
        ):  # the nearest points of the two half-planes; at most one of the summands is not zero
            right = torch.add(s, (t - s).clamp_max_(0), alpha=0.5).clamp_min_(0)
            return right.add_(
                torch.add(s, (t - a * s).clamp_max_(0), alpha=a / (1 + a * a)).clamp_max_(0)
            )
        graph = self.height(s)
        below = torch.minimum(
            t, graph
        )  # points above the graph are projected from the graph, then put back
        left = torch.add(s, below, alpha=a).div_(1 + a * a).clamp_max_(0)
        right = torch.add(s, below).mul_(0.5).sub_(self.rounding * (3 + a) / 4).clamp_min_(0)
        x = self._on_parabola(s, below).mul_(self.rounding).add_(left).add_(right)
        return torch.lerp(x, s, (t >= graph).to(s.dtype))

    def _on_parabola(self, s: Tensor, t: Tensor) -> Tensor:
        """y in [0, 1] with rounding y the foot of (s, t); 0 and 1 for the points whose foot is left
        or right of it.

        Stationarity is the cubic (1-a)^2/2 y^3 + 3a(1-a)/2 y^2 + (1 + a^2 - (1-a) t/rounding) y =
        (s + a t)/rounding. Below the graph and left of y = 1 we have t <= f(rounding) = (1+a)/2
        rounding, so the linear coefficient is at least 1/2 and the cubic increasing and convex:
        Newton's method from the right is monotone.
        """
        a = self.slope
        t = t.clamp_max((1 + a) / 2 * self.rounding)
        linear = (t * (-(1 - a) / self.rounding)).add_(1 + a * a)
        target = torch.add(s, t, alpha=a).div_(self.rounding)
        cubic, square = (1 - a) ** 2 / 2, 1.5 * a * (1 - a)
        y = (target / linear).clamp_(0, 1)
        flat, slope = (
            torch.empty_like(y),
            torch.empty_like(y),
        )  # fresh memory would cost more than the arithmetic
        for _ in range(
            NEWTON_STEPS[s.dtype == torch.float32]
        ):  # y <- (2 c3 y^3 + c2 y^2 + target) / derivative
            torch.mul(y, y, out=flat)
            torch.add(linear, y, alpha=2 * square, out=slope).add_(flat, alpha=3 * cubic)
            torch.addcmul(target, y.mul_(2 * cubic).add_(square), flat, out=y).div_(slope).clamp_(
                0, 1
            )
        return y

    def prox(self, a: Tensor, step: Step) -> Tensor:
        s, t = _split(a)
        x = self._foot(s, t)
        return torch.cat((x, torch.maximum(t, self.height(x))), dim=1)

    def prox_conjugate(self, s: Tensor, step: Step) -> Tensor:
        """Moreau's identity; the result is kept in the cone against rounding."""
        step = matched(step, s)
        first, second = _split(
            s / step if self.rounding else s
        )  # without rounding the cone knows no scale
        x = self._foot(first, second)
        depth = (self.height(x) - second).clamp_min_(0)
        sigma = torch.minimum(torch.maximum(first - x, self.slope * depth), depth)
        residual = torch.cat((sigma, depth.neg_()), dim=1)
        return residual.mul_(step) if self.rounding else residual

    def prox_tangent(self, a: Tensor, step: Step) -> Radial:
        """The identity above the graph; below it v -> (1, m) <(1, m), v> / (1 + m^2 + f''
        distance), m = f'.
        """
        s, t = _split(a)
        inside = (t >= self.height(s)).to(a.dtype)
        x = self._foot(s, t)
        m = self._steepness(x)
        square = m.square().add_(1)
        if self.rounding:
            bent = (
                ((x > 0) & (x < self.rounding)).to(a.dtype).mul_((1 - self.slope) / self.rounding)
            )
            along = square / torch.addcmul(square, bent, (self.height(x) - t).clamp_min_(0))
        else:
            along = (x != 0).to(
                a.dtype
            )  # the kink is a corner: everything near is projected onto it
        return Radial(
            inside,
            torch.maximum(along, inside),
            torch.cat((torch.ones_like(m), m), dim=1) * square.rsqrt(),
        )

    def gauge(self, s: Tensor) -> Tensor:
        return refuse(s.new_ones(s.shape[0]), self._s_outside(*_split(s)))


NEWTON_STEPS = {True: 4, False: 6}
"""Enough from the start above, in float32 (True) and float64 (False)."""


def _split(a: Tensor) -> tuple[Tensor, Tensor]:
    """The two components, (b, 1, ...) each."""
    if a.dim() < 2 or a.shape[1] != 2:
        raise InputError(
            "block",
            given=f"shape {tuple(a.shape)}",
            expected="(b, 2, ...)",
            remedy="Stack s and t along dimension 1 with torch.stack((s, t), dim=1).",
        )
    return a[:, :1], a[:, 1:]
