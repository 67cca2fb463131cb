"""Fixed numbers of steps, written down once more: recursions and what their ends are worth."""

from __future__ import annotations

import pytest
import torch
from deepinv.physics import Denoising, GaussianNoise

from learnreg.core.maps import Limits, Posed
from learnreg.hypergradients import JointPiggyback, Unrolled
from learnreg.problems import Energy, SaddleEnergy
from learnreg.problems.losses import SquaredError, tied_loss
from learnreg.regularizers import ExactTV, Tikhonov
from learnreg.solvers.iterate import rounding_of
from learnreg.solvers.pdhg import block_steps


@pytest.mark.parametrize("method", ["gd", "agd"])
def test_the_distance_pays_for_the_rounding_of_the_closing_gradient(method):
    """One step solves 1.5/2 |x|^2 - <x, y>, and what is left of the gradient is all rounding."""
    energy = Energy(Denoising(GaussianNoise(0.1)), Tikhonov(0.5)).double()
    y = torch.rand(3, 1, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    f = energy.at(y)
    solution = Unrolled(steps=2, method=method).solve(Posed(energy, y), 1.0, None, Limits())
    rounding, mu = rounding_of(f, solution.value), f.bounds().mu.value
    assert (solution.gradient_norm < rounding).all()
    torch.testing.assert_close(
        solution.error, (solution.gradient_norm + rounding) / mu, rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("balance", [1.0, 0.6])
def test_joint_steps_are_the_published_recursion(balance):
    """Both variables, and their derivatives, are extrapolated alike; written down once more."""
    generator = torch.Generator().manual_seed(0)
    y, x_true = torch.rand(2, 2, 1, 6, 5, generator=generator, dtype=torch.float64)
    energy = SaddleEnergy(Denoising(GaussianNoise(0.1)), ExactTV(0.1, rounding=0.2)).double()
    f, upper = energy.at(y), tied_loss(SquaredError(), x_true)
    steps = block_steps(f, "basic", balance)
    tau, sigma = balance * steps.primal[0], steps.dual[0] / balance
    (g,), (phi,) = f.primal, f.dual

    (x,), (p,) = f.start(y)
    X, Y = torch.zeros_like(x), torch.zeros_like(p)
    bar, bar_X = x, X
    for count in range(1, 6):
        slope = x - x_true
        at = p + sigma * f.linear((bar,))[0]
        p = phi.prox_conjugate(at, sigma)
        Y = phi.prox_conjugate_tangent(at, sigma)(Y + sigma * f.linear((bar_X,))[0])
        at = x - tau * f.adjoint((p,))[0]
        new = g.prox(at, tau)
        new_X = g.prox_tangent(at, tau)(X - tau * (f.adjoint((Y,))[0] + slope))
        bar, bar_X, x, X = 2 * new - x, 2 * new_X - X, new, new_X

        joint = JointPiggyback(steps=count, balance=balance)
        found = joint.solve(Posed(energy, y), 1.0, y, Limits(), upper)
        z, w = found.state.tensor_split(2, dim=1)
        for state, blocks in ((z, (x, p)), (w, (X, Y))):
            for have, want in zip(f.unpack(state), blocks, strict=True):
                torch.testing.assert_close(have[0], want, rtol=1e-10, atol=1e-12)
