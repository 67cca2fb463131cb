"""Limited-memory curvature of the upper level: the two-loop recursion (Nocedal and Wright, Algorithm 7.4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CurvaturePairs:
    """Pairs s = theta_{k+1} - theta_k, y = z_{k+1} - z_k with <s, y> > 0; the newest last.

    Attributes:
        s, y: (m, d).
    """

    s: Tensor
    y: Tensor

    @staticmethod
    def empty(theta: Tensor) -> CurvaturePairs:
        return CurvaturePairs(theta.new_zeros(0, theta.numel()), theta.new_zeros(0, theta.numel()))

    def __len__(self) -> int:
        return self.s.shape[0]

    def add(self, s: Tensor, y: Tensor, memory: int, units: Tensor) -> CurvaturePairs:
        """With the new pair, or unchanged when its curvature along s is not clearly positive (cautious update)."""
        size = float((s / units).norm() * (units * y).norm())
        if memory == 0 or not float(s @ y) > 1e-4 * size:
            return self
        return CurvaturePairs(torch.cat([self.s, s[None]])[-memory:], torch.cat([self.y, y[None]])[-memory:])

    def direction(self, z: Tensor, units: Tensor) -> Tensor:
        """The quasi-Newton direction P z; P starts from the squared units (d,), scaled by the newest pair."""
        metric = units.square()
        d, coefficients = z.clone(), []
        for s, y in zip(self.s.flip(0), self.y.flip(0), strict=True):
            rho = 1 / (s @ y)
            a = rho * (s @ d)
            d = d - a * y
            coefficients.append((a, rho))
        d = metric * d
        if len(self):
            d = d * (self.s[-1] @ self.y[-1]) / (self.y[-1] @ (metric * self.y[-1]))
        for (a, rho), s, y in zip(reversed(coefficients), self.s, self.y, strict=True):
            d = d + (a - rho * (y @ d)) * s
        return d
