"""The function of counts that an Energy minimizes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.bounds import Constants, Kind
from .data_functions import Box, DataFunction, Diagonal, OnBall, chosen_rows, cropped

Numbers = float | Tensor


@dataclass(frozen=True, eq=False)
class PoissonFunction(DataFunction):
    """sum u - y log u with u = a / gain + r for a >= 0, continued below by its parabola at a = 0.

    The logarithm has no continuation to u <= 0, and its curvature y / u^2 is unbounded towards it.
    Below a = 0, where no expected number of counts lies, its Taylor polynomial of second order
    takes its place: D is convex and twice continuously differentiable everywhere, with Hessian at
    most y / (gain r)^2, and a minimizer with A x >= 0 is the one of the Poisson likelihood.

    Attributes:
        y: counts >= 0, (b, ...).
        background: r > 0, a number or a tensor that broadcasts to y.
        gain: positive, likewise.
        slope: derivative of these counts by the measurements that they were made of, likewise.
    """

    y: Tensor
    background: Numbers
    gain: Numbers
    slope: Numbers = 1.0

    def _split(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """u for a >= 0, and how far a is below zero, in units of u."""
        t = a / self.gain
        return t.clamp_min(0) + self.background, t.clamp_max(0)

    def value(self, a: Tensor) -> Tensor:
        u, below = self._split(a)
        r, y = self.background, self.y
        local = u - y * u.log() + below * (1 - y / r) + 0.5 * y / r**2 * below.square()
        return local.flatten(1).sum(dim=1)

    def grad(self, a: Tensor) -> Tensor:
        u, below = self._split(a)
        return (1 - self.y / u + self.y / self.background**2 * below) / self.gain

    def linearize(self, a: Tensor) -> Diagonal:
        u, _ = self._split(a.detach())
        return Diagonal(self.y.detach() / (u * self.gain).square())

    def target(self, y: Tensor, above: bool = True) -> Tensor:
        """What A x would be without noise for the counts y: gain (y - background)."""
        return ((y - self.background) if above else y) * self.gain

    def steepest(self) -> Tensor:
        """At a = 0."""
        return self.y.detach() / (self.background * self.gain) ** 2

    def constants(self) -> Constants:
        largest = self.steepest().double().flatten(1).amax(dim=1)
        return Constants(torch.zeros_like(largest), largest, Kind.EXACT, Kind.EXACT)

    def on_ball(self, a: Tensor, reach: Tensor) -> OnBall:
        """psi'' = y / (gain u)^2 falls in u; |psi'''| = 2 y / (gain u)^3 where a > 0, else 0."""
        y = self.y.detach().to(a)
        u, _ = self._split(a)
        least, _ = self._split(a - reach)
        most, _ = self._split(a + reach)
        here, above, below = (y / (v * self.gain).square() for v in (u, least, most))
        change = torch.maximum(above - here, here - below)
        return OnBall(above, change, 2 * above / (least * self.gain))

    def mean_weight(self) -> Tensor:
        """At u = y, where the minimizer is near."""
        y = self.y.detach()
        u = torch.maximum(y, torch.as_tensor(self.background, dtype=y.dtype, device=y.device))
        return (y / (u * self.gain).square()).flatten(1).mean(dim=1)

    def to_data(self, a: Tensor, w: Tensor) -> Tensor:
        return super().to_data(a, w) * self.slope

    def select(self, index: Tensor) -> PoissonFunction:
        def chosen(v: Numbers) -> Numbers:
            return chosen_rows(v, index) if isinstance(v, Tensor) else v

        background, gain, slope = map(chosen, (self.background, self.gain, self.slope))
        return PoissonFunction(self.y[index], background, gain, slope)

    def window(self, box: Box) -> PoissonFunction:
        size = self.y.shape[-2:]

        def cut(v: Numbers) -> Numbers:
            return cropped(v, box, size) if isinstance(v, Tensor) else v

        background, gain, slope = map(cut, (self.background, self.gain, self.slope))
        return PoissonFunction(cropped(self.y, box, size), background, gain, slope)

    def double(self) -> PoissonFunction:
        def wide(v: Numbers) -> Numbers:
            return v.double() if isinstance(v, Tensor) else v

        background, gain, slope = map(wide, (self.background, self.gain, self.slope))
        return replace(self, y=self.y.double(), background=background, gain=gain, slope=slope)
