"""A data term of one's own: Cauchy's, which forgives outliers, with proven constants.

python examples/own_data_term.py
"""

import math
from dataclasses import dataclass, replace

import deepinv as dinv
import torch

import learnreg as lr
from learnreg.problems.data_functions import DataFunction, Diagonal


@dataclass(frozen=True)
class Cauchy:
    """D(a, y) = s^2 / 2 sum log(1 + r^2 / s^2) with r = a - y: slopes fall again beyond |r| = s."""

    scale: float = 0.4

    def tie(self, y):
        return CauchyFunction(y, self.scale)


@dataclass(frozen=True, eq=False)
class CauchyFunction(DataFunction):
    """D(., y) of a batch, in the entries of a = A x; t = (r / s)^2."""

    y: torch.Tensor
    scale: float

    def value(self, a):
        t = ((a - self.y) / self.scale) ** 2
        return 0.5 * self.scale**2 * t.log1p().flatten(1).sum(dim=1)

    def grad(self, a):
        r = a - self.y
        return r / (1 + (r / self.scale) ** 2)

    def linearize(self, a):
        t = ((a - self.y) / self.scale).detach() ** 2
        return Diagonal((1 - t) / (1 + t) ** 2)

    def constants(self):
        """-1/8, at t = 3, and 1, at t = 0: both are attained."""
        mu, L = torch.tensor([[-0.125], [1.0]], dtype=torch.float64, device=self.y.device)
        return lr.core.Constants(mu, L, lr.Kind.EXACT, lr.Kind.EXACT)

    def select(self, index):
        return replace(self, y=self.y[index])

    def double(self):
        return replace(self, y=self.y.double())


generator = torch.Generator().manual_seed(0)
x = torch.zeros(2, 1, 24, 24)
x[:, :, 6:18, 6:18] = 0.8
y = x + 0.05 * torch.randn(x.shape, generator=generator)
hit = torch.rand(x.shape, generator=generator) < 0.05  # one pixel in twenty is far too bright
y[hit] = 2.0

lr.testing.check_data_term(Cauchy(), y)

physics = dinv.physics.Denoising()
regularizer = lr.regularizers.TV(weight=0.03) + lr.regularizers.Tikhonov(0.15)  # mu = 0.15 - 0.125
energy = lr.Energy(physics, regularizer, Cauchy())
print(energy.bounds(x))
solution = lr.solve(energy, y, eps=1e-2)
print(solution)
for name, fidelity in {"Cauchy": Cauchy(), "L2": lr.L2()}.items():
    found = lr.solve(lr.Energy(physics, regularizer, fidelity), y, eps=1e-2).value
    print(f"{name}: root mean square error {math.sqrt((found - x).square().mean()):.3f}")
