"""Small problems with bounds of pixels, and minimizers found without the solvers."""

from __future__ import annotations

import deepinv
import numpy as np
import torch
from scipy.optimize import lsq_linear
from torch import Tensor

import learnreg as lr
from learnreg.problems import Energy
from learnreg.regularizers import TV, FoE, Tikhonov


class Matrix(deepinv.physics.LinearPhysics):
    """A x = M x for images of one shape; M >= 0 makes its norm a proven one."""

    nonnegative = True

    def __init__(self, M: Tensor, shape: tuple[int, ...]):
        super().__init__()
        self.register_buffer("M", M)
        self.shape = shape

    def A(self, x, **_):
        return x.flatten(1) @ self.M.T.to(x)

    def A_adjoint(self, y, **_):
        return (y @ self.M.to(y)).reshape(-1, *self.shape)


def random(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return scale * torch.rand(shape, generator=g, dtype=torch.float64)


def squares(seed: int, constraint: object, ridge: float = 0.1) -> tuple[Energy, Tensor]:
    """1/2 |M x - y|^2 + ridge/2 |x|^2 of three images (1, 4, 5), partly negative without bounds."""
    shape = (1, 4, 5)
    M = random(14, 20, seed=seed) * (random(14, 20, seed=seed + 100) < 0.5)
    truth = random(3, *shape, seed=seed + 200, scale=2.0) - 0.8
    y = Matrix(M, shape).A(truth)
    energy = Energy(
        Matrix(M, shape), Tikhonov(ridge, learned=False).double(), constraint=constraint
    )
    return energy, y


def by_active_sets(energy: Energy, y: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """The minimizers of ``squares`` by SciPy's bounded least squares, one after the other."""
    M, shape = energy.physics.M, energy.physics.shape
    ridge = float(energy.regularizer.bounds().mu.value)
    stacked = torch.cat([M, ridge**0.5 * torch.eye(M.shape[1], dtype=M.dtype)]).numpy()
    found = []
    for i in range(len(y)):
        low, high = (b.expand(len(y), *shape)[i].flatten().numpy() for b in (lower, upper))
        fixed = low == high
        data = np.concatenate([y[i].numpy(), np.zeros(M.shape[1])])
        x = low.copy()
        if not fixed.all():
            rest = data - stacked[:, fixed] @ low[fixed]
            bounds = (low[~fixed], high[~fixed])
            x[~fixed] = lsq_linear(stacked[:, ~fixed], rest, bounds, "bvls", tol=1e-15).x
        found.append(torch.from_numpy(x).reshape(shape))
    return torch.stack(found)


def counts(seed: int, constraint: object = None) -> tuple[Energy, Tensor, Tensor]:
    """KL + smoothed total variation + ridge: 30 unknowns, 24 counts; energy, truth, counts."""
    g = torch.Generator().manual_seed(seed)
    M = torch.rand(24, 30, generator=g, dtype=torch.float64)
    M = M * (torch.rand(24, 30, generator=g) < 0.35)
    truth = 4 * torch.rand(1, 1, 5, 6, generator=g, dtype=torch.float64)
    truth = truth * (torch.rand(1, 1, 5, 6, generator=g) < 0.7)
    physics = Matrix(M, (1, 5, 6))
    y = torch.poisson(physics.A(truth) + 0.5, generator=g)
    regularizer = TV(0.3, 0.2).double() + Tikhonov(0.1, learned=False)
    return Energy(physics, regularizer, lr.KL(0.5), constraint), truth, y


def denoised(kind: str, constraint: object, dtype: torch.dtype = torch.float64) -> Energy:
    """Denoising by total variation or Fields of Experts."""
    physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1))
    regularizer = {"TV": TV(0.05, 0.02), "FoE": FoE(4, 3, weight=0.05)}[kind].to(dtype)
    return Energy(physics, regularizer, constraint=constraint)


def noisy(count: int = 3, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Images (1, 12, 10) around zero."""
    return (random(count, 1, 12, 10, seed=seed) * 0.4 - 0.15).to(dtype)
