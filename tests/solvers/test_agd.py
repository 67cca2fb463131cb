"""Accelerated gradient is the published recursion, image by image, and its L stays where it may."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learnreg.core.bounds import Bound, Constants, Curvature, Kind
from learnreg.solvers import AGD

STEPS = 60


class Quadratics:
    """h(x) = 1/2 <x, A x> with a diagonal A (b, n), and constants that are declared per image."""

    def __init__(self, diagonal: Tensor, mu: Tensor, L: Tensor) -> None:
        self.diagonal = diagonal
        self.constants = Constants(mu, L, Kind.EXACT, Kind.EXACT)

    def grad(self, x: Tensor) -> Tensor:
        return self.diagonal * x

    def bounds(self) -> Curvature:
        mu, L = float(self.constants.mu.min()), float(self.constants.L.max())
        return Curvature(Bound.exact(mu), Bound.exact(L))


def problems() -> tuple[Quadratics, Tensor]:
    """Conditions 1, 10, 1000, and a mu that is a hundred times too small: momentum overshoots."""
    low = torch.tensor([2.0, 0.5, 0.01, 1.0], dtype=torch.float64)
    high = torch.tensor([2.0, 5.0, 10.0, 20.0], dtype=torch.float64)
    ratio = (high / low)[:, None] ** torch.linspace(0, 1, 6, dtype=torch.float64)
    mu = low * torch.tensor([1.0, 1.0, 1.0, 0.01], dtype=torch.float64)
    start = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Quadratics(low[:, None] * ratio, mu, high), start


def published(diagonal: Tensor, mu: float, L: float, x0: Tensor) -> tuple[list[Tensor], int]:
    """The points y_k of one image, written down once more, and how often they restarted."""
    q = math.sqrt(mu / L)
    points, x, restarts = [x0], x0, 0
    for _ in range(STEPS):
        y = points[-1]
        g = diagonal * y
        new = y - g / L
        uphill = float(g @ (new - x)) > 0
        beta = 0.0 if uphill else (1 - q) / (1 + q)
        restarts += uphill
        points.append(new + beta * (new - x))
        x = new
    return points, restarts


def test_the_recursion_is_the_published_one():
    f, x0 = problems()
    solver = AGD(optimism=1.0)
    state = solver.init(f, x0)
    run = [state.point]
    for _ in range(STEPS):
        state = solver.step(f, state)
        run.append(state.point)
        torch.testing.assert_close(state.evidence, (f.diagonal * state.point).norm(dim=1))

    restarts = []
    for i in range(4):
        mu, L = float(f.constants.mu[i]), float(f.constants.L[i])
        expected, count = published(f.diagonal[i], mu, L, x0[i])
        restarts.append(count)
        for found, point in zip(run, expected, strict=True):
            torch.testing.assert_close(found[i], point, rtol=1e-9, atol=1e-12)
    assert restarts[3] > 1 and restarts[1] == 0, "both branches are visited"


def test_the_distance_falls_as_promised():
    """Scheme 2.2.22: h(x_k) <= L (1 - sqrt(mu / L))^k |x_0|^2, so mu |x_k|^2 / 2 is below it."""
    f, x0 = problems()
    solver, (mu, L) = AGD(optimism=1.0), (f.constants.mu, f.constants.L)
    state = solver.init(f, x0)
    for k in range(1, STEPS):
        state = solver.step(f, state)
        value = 0.5 * (f.diagonal * state.x.square()).sum(dim=1)
        allowed = L * (1 - (mu / L).sqrt()) ** k * x0.square().sum(dim=1)
        assert (value <= allowed * (1 + 1e-9) + 1e-25).all()


def test_a_local_L_is_raised_to_what_was_seen_and_never_beyond_the_proven_one():
    f, x0 = problems()
    solver = AGD(optimism=0.25)
    state = solver.init(f, x0)
    start = torch.maximum(f.constants.mu, 0.25 * f.constants.L)
    assert torch.equal(state.L, start)
    for _ in range(STEPS):
        before, state = state, solver.step(f, state)
        apart = (state.point - before.point).norm(dim=1)
        moving = apart > 1e-9
        seen = (state.g - before.g).norm(dim=1) / apart
        assert (state.L <= f.constants.L).all() and (state.L >= before.L).all()
        assert (seen * (1 - 1e-9) <= state.L)[moving].all()
        assert ((state.L == before.L) | (seen > before.L))[moving].all()
    assert (start < state.L)[1:].all(), "what there is to see was seen"
