"""The reconstruction layer on saddle points: derivatives in theta and in y, against finite
differences.
"""

from __future__ import annotations

from types import SimpleNamespace

import deepinv
import pytest
import torch

import learnreg as lr
from learnreg.core.errors import MissingPropertyError
from learnreg.core.params import flatten, trainable
from learnreg.problems import KL
from learnreg.regularizers import TV, ExactTV, LearnedTV

DENOISING = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1))
BLUR = deepinv.physics.Blur(torch.ones(1, 1, 3, 3, dtype=torch.float64) / 9, padding="circular")
SMOOTH = {"smoothing": 0.02, "curvature": 1.0, "rounding": 1e-2}


def images(seed: int) -> torch.Tensor:
    return torch.rand(
        2, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


CASES = {
    "learned": lambda: lr.SaddleEnergy(
        DENOISING, LearnedTV(filters=2, weight=0.1, init="random", **SMOOTH)
    ),
    "blur": lambda: lr.SaddleEnergy(BLUR, ExactTV(0.05, rounding=0.02), lr.L2(0.7), tikhonov=0.1),
    "sigma": lambda: lr.SaddleEnergy(
        DENOISING, ExactTV(0.1, rounding=0.05), lr.L2(0.8), tikhonov=0.1
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_both_derivatives_are_those_of_finite_differences(name):
    energy, x_true, y = CASES[name]().double(), images(0), images(1).requires_grad_()
    layer = lr.Reconstructor(energy, 1e-10, relative_delta=1e-9)

    def loss(at, model=layer):
        return 0.5 * (model(at) - x_true).square().sum()

    params = trainable(energy)
    to_y, *to_theta = torch.autograd.grad(loss(y), [y, *params])
    g = torch.Generator().manual_seed(2)
    h, v = 1e-5, torch.randn(y.shape, generator=g, dtype=torch.float64)
    with torch.no_grad():
        slope = (loss(y + h * v) - loss(y - h * v)) / (2 * h)
        assert float((to_y * v).sum()) == pytest.approx(float(slope), rel=1e-5)
        theta = flatten(params)
        d = torch.randn(theta.shape, generator=g, dtype=torch.float64)
        ends = [
            loss(y, lr.Reconstructor(energy.with_theta(theta + s * h * d), 1e-10)) for s in (1, -1)
        ]
        assert float(flatten(to_theta) @ d) == pytest.approx(
            float(ends[0] - ends[1]) / (2 * h), rel=1e-5
        )


def test_it_agrees_with_the_strategy():
    energy, x_true, y = CASES["learned"]().double(), images(0), images(1)
    problem = lr.BilevelProblem(energy, _Pairs(x_true, y))
    z = lr.hypergradient(problem, 1e-8, 1e-9, strategy=lr.Piggyback()).value
    loss = (
        0.5
        * (lr.Reconstructor(energy, 1e-8, relative_delta=1e-9)(y) - x_true).square().sum()
        / len(y)
    )
    found = flatten(torch.autograd.grad(loss, trainable(energy)))
    assert torch.allclose(found, z, rtol=1e-6, atol=1e-10)


class _Pairs(SimpleNamespace):
    def __init__(self, x, y):
        super().__init__(x=x, y=y)

    def __len__(self):
        return len(self.x)


def test_strategies_of_the_other_kind_are_refused():
    with pytest.raises(MissingPropertyError, match="Piggyback"):
        lr.Reconstructor(CASES["learned"](), 1e-3, hypergradient=lr.Implicit())
    with pytest.raises(MissingPropertyError, match="Implicit"):
        lr.Reconstructor(lr.Energy(DENOISING, TV()), 1e-3, hypergradient=lr.Piggyback())


def test_counts_pass_nothing_back_to_the_data():
    energy = lr.SaddleEnergy(DENOISING, ExactTV(0.1, rounding=0.1), KL(0.1), tikhonov=0.5).double()
    y = images(1).requires_grad_()
    with pytest.raises(MissingPropertyError, match="Detach"):
        lr.Reconstructor(energy, 1e-4)(y).sum().backward()
