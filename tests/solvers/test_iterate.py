"""The loop itself: what closes an image, what that costs, and what its certificate is made of."""

from __future__ import annotations

import deepinv
import pytest
import torch
from tests.regularizers.cases import ENERGIES, pairs

from learnreg.problems import L2, Energy
from learnreg.regularizers import TV, Tikhonov
from learnreg.solvers import minimize, solve
from learnreg.solvers.agd import AGD
from learnreg.solvers.iterate import rounding_of
from learnreg.solvers.lbfgs import LBFGS
from learnreg.solvers.newton import NewtonCG

SOLVERS = [AGD(), LBFGS(), NewtonCG()]


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.name)
def test_three_equal_images_cost_three_times_one(solver):
    """They close together, and every one of them pays."""
    energy, y = ENERGIES["tv"](), pairs(1).y
    one = solve(energy, y, 1e-4, solver=solver)
    three = solve(energy, y.expand(3, -1, -1, -1).contiguous(), 1e-4, solver=solver)
    assert three.cost == one.cost + one.cost + one.cost
    assert torch.equal(three.steps, one.steps.expand(3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_certificate_is_the_closing_gradient_and_its_rounding_over_mu(dtype):
    energy, y = ENERGIES["tv"]().to(dtype), pairs(3).y.to(dtype)
    f = energy.at(y)
    solution = minimize(f, 1e-2, LBFGS(), y)
    wide, x, mu = f.double(), solution.value.double(), f.bounds().mu.value
    size, rounding = wide.grad(x).flatten(1).norm(dim=1), rounding_of(wide, x)
    torch.testing.assert_close(solution.gradient_norm, size, rtol=1e-12, atol=0)
    torch.testing.assert_close(solution.error, (size + rounding) / mu, rtol=1e-12, atol=0)
    # exact certificates would be smaller, by something that can be seen
    assert (solution.error > (size + 0.5 * rounding) / mu).all() and (rounding > 0).all()


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("at_zero", [True, False])
def test_gradients_of_float32_are_as_near_as_their_rounding_says(at_zero, scale):
    """At x = 0 all of it comes from the data."""
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])[None, None] / 16
    physics = deepinv.physics.Blur(filter=kernel, padding="circular")
    energy = Energy(physics, TV(0.05, 0.05) + Tikhonov(0.1), L2(0.3))
    g = torch.Generator().manual_seed(0)
    y = scale * torch.rand(4, 1, 12, 12, generator=g)
    f, x = energy.at(y), torch.zeros_like(y) if at_zero else y + 0.1
    exact = f.double().grad(x.double())
    apart = (f.grad(x).double() - exact).flatten(1).norm(dim=1)
    allowed = f.rounding(x)
    assert (apart > 0).all() and (apart <= allowed).all()
    assert (allowed <= 1e-4 * exact.flatten(1).norm(dim=1)).all(), "and not absurdly large"
