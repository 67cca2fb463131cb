"""Constants of the smoothed length, and its scalar equation at extreme parameters."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from learnreg.convex import SmoothNorm
from learnreg.convex.smooth import THIRD_MAX

from .cases import normal, random


def third_derivative(a: Tensor) -> Tensor:
    """All third derivatives of sqrt(|a|^2 + 1) at the points a: (n, g) -> (n, g, g, g)."""

    def phi(x: Tensor) -> Tensor:
        return torch.sqrt(x.square().sum() + 1)

    return torch.func.vmap(torch.func.jacfwd(torch.func.hessian(phi)))(a)


def trilinear_norm(tensor: Tensor, starts: int = 20) -> float:
    """sup |T(h, k, l)| over three independent unit vectors, by alternating maximization from many
    starts.
    """
    g, best = tensor.shape[-1], torch.zeros(len(tensor), dtype=tensor.dtype)
    for seed in range(starts):
        k, m = (
            torch.nn.functional.normalize(normal((len(tensor), g), 2 * seed + i), dim=1)
            for i in range(2)
        )
        for _ in range(30):
            h = torch.nn.functional.normalize(torch.einsum("nijk,nj,nk->ni", tensor, k, m), dim=1)
            k = torch.nn.functional.normalize(torch.einsum("nijk,ni,nk->nj", tensor, h, m), dim=1)
            slope = torch.einsum("nijk,ni,nj->nk", tensor, h, k)
            m = torch.nn.functional.normalize(slope, dim=1)
        best = torch.maximum(best, slope.norm(dim=1))
    return float(best.max())


@pytest.mark.parametrize("components", [1, 2, 3])
def test_the_third_derivative_has_the_same_norm_in_every_dimension(components: int):
    directions = torch.nn.functional.normalize(normal((61, components), 1), dim=1)
    lengths = torch.linspace(
        0, 3, 61, dtype=torch.float64
    )  # 1/2, where it is extreme, is among them
    found = trilinear_norm(third_derivative(directions * lengths[:, None]))
    assert found <= THIRD_MAX * (1 + 1e-9)
    assert found >= THIRD_MAX * (1 - 1e-9)


def test_the_constants_are_attained():
    f = SmoothNorm(0.3, 0.02, 0.7)
    a = torch.tensor([[0.01 - 1e-6, 0.0], [0.0, 0.0]], dtype=torch.float64)
    b = a + torch.tensor([[2e-6, 0.0], [1e-7, 0.0]], dtype=torch.float64)
    v = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    change = (f.hessian(b)(v) - f.hessian(a)(v)).norm(dim=1)[0] / 2e-6
    assert f.hessian_lipschitz * 0.999 <= change <= f.hessian_lipschitz
    slope = (f.grad(b) - f.grad(a)).norm(dim=1)[1] / 1e-7
    assert f.smooth * 0.999 <= slope <= f.smooth * (1 + 1e-9)
    assert f.hessian(torch.full((1, 2), 1e4, dtype=torch.float64)).along.item() == pytest.approx(
        f.strong
    )


@pytest.mark.parametrize("eta", [1e-4, 0.05, 3.0])
@pytest.mark.parametrize("step", [1e-3, 1.0, 1e3])
def test_the_root_is_exact_at_every_scale(eta: float, step: float):
    """Points are made from their proximal points, so that the truth is known."""
    f = SmoothNorm(0.4, eta, 0.1)
    truth = normal((500, 2), 4) * eta * 10 ** (8 * random((500, 1), 5) - 4)
    a = truth + step * f.grad(truth)
    for given in (step, torch.full((500, 1), step, dtype=torch.float64)):
        found = f.prox(a, given)
        # conditioning of the equation: an ulp of a moves its root by (derivative of the prox) ulps
        allowed = 1e-13 * truth.norm(dim=1) + 1e-14 * f.prox_tangent(a, step)(a).norm(dim=1)
        assert ((found - truth).norm(dim=1) <= allowed).all()
    rough = f.prox(a.float(), step)
    allowed = 2e-6 * truth.norm(dim=1) + 2e-6 * f.prox_tangent(a, step)(a).norm(dim=1)
    assert ((rough - truth).norm(dim=1) <= allowed).all()


@pytest.mark.parametrize("strong", [1e-6, 1e-2, 10.0])
def test_the_conjugate_is_inverted_at_every_scale(strong: float):
    f = SmoothNorm(0.4, 0.02, strong)
    truth = normal((500, 2), 6) * 10 ** (8 * random((500, 1), 7) - 4)
    s = f.grad(truth)
    found = f.conjugate_grad(s)
    torch.testing.assert_close(f.grad(found), s, rtol=1e-12, atol=1e-15)
    assert (f.gap(truth, s) <= 1e-14 * (1 + (truth * s).sum(dim=1).abs())).all()


def test_far_from_the_bend_the_hessian_hardly_changes():
    f = SmoothNorm(0.4, 0.02)
    a = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    bound = f.change(a, torch.full((2,), 1e-3, dtype=torch.float64)).flatten()
    assert bound[0] == pytest.approx(f.hessian_lipschitz * 1e-3)
    assert bound[1] < 1e-3 * bound[0]
    wide = f.change(a, torch.full((2,), 1e3, dtype=torch.float64))
    assert (wide <= f.smooth * (1 + 1e-12)).all() and math.isfinite(wide.sum())
