"""Each theorem holds for random quadratics, and is attained where nothing better can be had."""

from __future__ import annotations

import pytest
import torch

from learnreg.core.batch import norm
from learnreg.core.bounds import Bound
from learnreg.core.certificates import (
    distance_from_gap,
    distance_from_gradient,
    distance_from_residuals,
    distance_in_metric,
    squared_error_bracket,
)

ULP = 1e-12


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("mu", [1e-3, 0.2, 40.0])
def test_a_gradient_and_mu_give_the_distance_of_an_isotropic_quadratic(mu):
    x = normal(5, 7, seed=0)  # h(x) = mu/2 |x|^2
    exact = norm(x)
    for given in (Bound.exact(mu), torch.full((5,), mu, dtype=torch.float64)):
        torch.testing.assert_close(distance_from_gradient(norm(mu * x), given), exact)


@pytest.mark.parametrize("mu", [1e-3, 0.2, 40.0])
def test_a_gap_and_mu_give_the_distance_of_an_isotropic_quadratic(mu):
    u = normal(5, 7, seed=1)  # P(u) = mu/2 |u|^2, and the dual variable is exact: D(p) = 0
    torch.testing.assert_close(distance_from_gap(0.5 * mu * u.square().sum(dim=1), mu), norm(u))


@pytest.mark.parametrize("stiff", [1.0, 1e3])
def test_gradient_and_gap_never_promise_too_much(stiff):
    mu, curvature = 0.3, 0.3 * stiff ** torch.linspace(0, 1, 9, dtype=torch.float64)
    x = normal(20, 9, seed=2)
    true = norm(x) * (1 - ULP)
    assert (distance_from_gradient(norm(curvature * x), Bound.proven(mu)) >= true).all()
    gap = 0.5 * (curvature * x.square()).sum(dim=1)
    assert (distance_from_gap(gap, mu) >= true).all()


def test_rounding_that_makes_a_gap_negative_makes_a_distance_of_zero():
    assert distance_from_gap(torch.tensor([-1e-18]), 0.5).item() == 0


def test_residuals_of_blocks_weigh_as_their_moduli_say():
    moduli = [0.01, 2.0, 50.0]
    z = [normal(30, 4, seed=3 + j) for j in range(3)]
    residuals = [norm(mu * block) for mu, block in zip(moduli, z, strict=True)]
    bounds = distance_from_residuals(residuals, moduli)
    assert all((b >= norm(block)).all() for b, block in zip(bounds, z, strict=True))

    nothing = torch.zeros(30, dtype=torch.float64)
    for j, mu in enumerate(moduli):  # one block alone is at its exact distance, the others see it
        alone = [residuals[j] if i == j else nothing for i in range(3)]
        for other, bound in zip(moduli, distance_from_residuals(alone, moduli), strict=True):
            torch.testing.assert_close(bound, norm(z[j]) * (mu / other) ** 0.5)


def test_both_ends_of_a_bracket_are_attained_and_zero_is_the_least():
    x, truth = normal(6, 5, seed=9), normal(6, 5, seed=10)
    d = norm(x - truth)
    eps = d * torch.tensor([0.1, 0.5, 0.9, 1.0, 1.5, 10.0], dtype=torch.float64)
    lower, upper = squared_error_bracket(d, eps)
    away = (x - truth) / d[:, None]
    farthest = x + eps[:, None] * away
    nearest = x - torch.minimum(eps, d)[:, None] * away
    torch.testing.assert_close(upper, 0.5 * norm(farthest - truth).square())
    torch.testing.assert_close(lower, 0.5 * norm(nearest - truth).square(), atol=ULP, rtol=ULP)


@pytest.mark.parametrize("how", ["any", "cg", "exact", "zero"])
def test_the_distance_in_a_metric_is_never_too_small(how):
    """10^4 energies 1/2 ||A x - y||^2 + sum sqrt(1 + (K x)^2) + mu/2 ||x||^2 with known minimizers;
    M knows the data term and mu only.
    """
    generator = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    b, n, mu = 10_000, 5, 1e-2
    A, K, star = drawn(b, 3, n) * 3 ** drawn(b, 1, 1), drawn(b, 4, n), drawn(b, n)
    e = drawn(b, n) * 10 ** drawn(b, 1)
    M = A.mT @ A + mu * torch.eye(n, dtype=torch.float64)

    def slope(x: torch.Tensor) -> torch.Tensor:
        t = (K @ x[:, :, None])[:, :, 0]
        return (K.mT @ (t / (1 + t**2).sqrt())[:, :, None])[:, :, 0]

    g = (M @ e[:, :, None])[:, :, 0] + slope(star + e) - slope(star)
    exact = torch.linalg.solve(M, g)
    if how == "cg":  # one step
        length = torch.linalg.vecdot(g, g) / torch.linalg.vecdot(g, (M @ g[:, :, None])[:, :, 0])
        v = length[:, None] * g
    else:
        v = {"any": drawn(b, n), "exact": exact, "zero": torch.zeros_like(g)}[how]
    Mv = (M @ v[:, :, None])[:, :, 0]
    found = distance_in_metric(g, v, Mv, mu)
    true, plain = norm(e), norm(g) / mu
    assert (true <= found * (1 + 1e-9)).all() and (found <= plain * (1 + 1e-12)).all()

    if how in ("cg", "zero"):  # what the docstring says of its limits
        least = torch.minimum(norm(g - Mv), norm(g)) / mu
        assert (found >= least * (1 - 1e-9)).all()
    if how == "exact":
        assert (found / true).median() < 0.3 * (plain / true).median()


def test_the_distance_in_a_metric_is_sharp_for_one_curvature():
    g = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    torch.testing.assert_close(distance_in_metric(g, g / 2, g, 2.0), torch.tensor([2.5]).double())
