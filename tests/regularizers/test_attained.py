"""Bounds that are attained: what a bound leaves out shows where nothing is to spare.

Flat images have the largest curvature, and the image that oscillates most is stretched by D as far
as anything can be.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from learnreg.core.params import trainable
from learnreg.regularizers import ICNN, TGV, TV, ExactTV, LearnedTV

SIDE = 24


def wave() -> Tensor:
    """The top eigenvector of D^T D on squares, of length one: (1, 1, h, w)."""
    angles = math.pi * (SIDE - 1) / SIDE * (torch.arange(SIDE, dtype=torch.float64) + 0.5)
    line = angles.cos()
    picture = torch.outer(line, line)[None, None]
    return picture / picture.norm()


def mixed(regularizer: TV, x: Tensor, q: Tensor) -> Tensor:
    """J(x)^T q by autograd."""
    scalar = regularizer.directional(x, q).sum()
    parts = torch.autograd.grad(scalar, trainable(regularizer))
    return torch.cat([p.reshape(-1) for p in parts])


@pytest.mark.parametrize("isotropic", [True, False])
def test_the_mixed_derivative_of_tv_changes_by_as_much_as_allowed_at_flat_images(isotropic):
    regularizer = TV(0.3, 0.2, isotropic=isotropic).double()
    q, radius = 2.5 * wave(), torch.tensor([1e-4], dtype=torch.float64)
    flat = torch.full_like(q, 0.4)
    moved = mixed(regularizer, flat + radius * wave(), q) - mixed(regularizer, flat, q)
    change = float(moved.norm())
    for allowed in (
        float(regularizer.mixed_change(flat, q, radius)),
        regularizer.mixed_lipschitz().value * float(radius * q.norm()),
    ):
        assert 0.98 * allowed <= change <= allowed


@pytest.mark.parametrize("isotropic", [True, False])
def test_the_hessian_of_tv_is_as_large_as_allowed_at_flat_images(isotropic):
    regularizer = TV(0.3, 0.2, isotropic=isotropic).double()
    v = wave()
    bend = float((regularizer.linearize(torch.full_like(v, 0.4))(v)).norm())
    assert 0.98 * regularizer.bounds().L.value <= bend <= regularizer.bounds().L.value


@pytest.mark.parametrize("ratio", [0.1, 5.0])
def test_the_operator_of_tgv_moves_with_theta_as_much_as_its_sensitivity_says(ratio):
    """With a small ratio it is the first weight that counts, and the field beside the image.

    [D, -1] has the norm sqrt(||D||^2 + 1), attained at a top eigenvector u and v = -D u / ||D||^2.
    """
    regularizer = TGV(0.3, ratio=ratio).double()
    u = wave()
    (kappa, offset), nothing = regularizer.sensitivity(u), torch.zeros(1, 2, 1, SIDE, SIDE)
    with torch.no_grad():
        slope, _ = regularizer.linear(u, nothing.double())
        slope = slope / regularizer.log_weight.exp()  # D u
        v = -slope / slope.square().sum()
        row, _ = regularizer.linear(u, v)  # its own derivative in the logarithm of its weight
    found = float(row.norm() / torch.hypot(u.norm(), v.norm()))
    assert offset == 0 and found <= kappa * (1 + 1e-12)
    if ratio < 1:
        assert found >= 0.995 * kappa


@pytest.mark.parametrize("weight", [0.1, 3.0])
@pytest.mark.parametrize("make", [ExactTV, TGV, LearnedTV])
def test_majorants_are_as_large_as_the_square_of_the_weight(make, weight):
    """Above D^T D by no more than the differences across the edges."""
    regularizer, u = make(weight=weight).double(), wave()
    with torch.no_grad():
        row, *_ = regularizer.linear(u, *regularizer.auxiliary(u))
    symbol = regularizer.majorants(u)[0]
    form = float((u * torch.fft.irfft2(torch.fft.rfft2(u) * symbol, s=u.shape[-2:])).sum())
    assert float(row.square().sum()) * (1 - 1e-12) <= form <= 1.1 * float(row.square().sum())


def test_a_root_of_a_hidden_layer_moves_an_icnn_as_much_as_its_sensitivity_says():
    """W = r^2 with r = 3: dW = 2 r dr, spread evenly over a window, on a large constant map."""
    size, side, h = 3, 48, 1e-6
    regularizer = ICNN(2, size, layers=2).double()
    u = torch.zeros(1, 1, side, side, dtype=torch.float64)
    z = [torch.zeros_like(v) for v in regularizer.auxiliary(u)]
    z[0][:, 0] = 1 / side  # of length one
    direction = torch.zeros_like(regularizer.roots[0])
    direction[0, 0] = 1 / size

    def rows(step: float) -> tuple[Tensor, ...]:
        with torch.no_grad():
            regularizer.roots[0].fill_(3.0).add_(direction, alpha=step)
            return regularizer.linear(u, *z)

    ends = zip(rows(h), rows(-h), strict=True)
    found = float(torch.cat([(a - b).flatten() for a, b in ends]).norm()) / (2 * h)
    rows(0.0)
    with torch.no_grad():
        kappa, _ = regularizer.sensitivity(u)
    assert 0.9 * kappa <= found <= kappa * (1 + 1e-6)
