"""The symmetrized gradient: where its values live, that it has no boundary terms, its adjoint and
its norm.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from learnreg.operators.differences import gradient
from learnreg.operators.fields import clear_missing_
from learnreg.operators.symmetrized import symmetrized, symmetrized_adjoint, symmetrized_norm

SHAPES = ((1, 1, 1), (1, 1, 6), (2, 5, 1), (1, 2, 2), (1, 2, 5), (3, 6, 7), (2, 9, 4))
SCALE = torch.tensor(0.7, dtype=torch.float64)
ONE = torch.ones((), dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def picture(h: int, w: int, formula) -> Tensor:
    """(1, 1, h, w) of formula(row, column)."""
    i, j = torch.meshgrid(
        torch.arange(h, dtype=torch.float64), torch.arange(w, dtype=torch.float64), indexing="ij"
    )
    return formula(i, j).expand(1, 1, h, w)


def by_hand(v: Tensor) -> Tensor:
    """Entry by entry, from the formulas in the module's docstring, of one field (2, h, w)."""
    _, h, w = v.shape
    out = torch.zeros(3, h, w, dtype=v.dtype)
    for i in range(h):
        for j in range(w):
            if 1 <= i <= h - 2:
                out[0, i, j] = v[0, i, j] - v[0, i - 1, j]
            if 1 <= j <= w - 2:
                out[1, i, j] = v[1, i, j] - v[1, i, j - 1]
            if i <= h - 2 and j <= w - 2:
                out[2, i, j] = (
                    v[0, i, j + 1] - v[0, i, j] + v[1, i + 1, j] - v[1, i, j]
                ) / math.sqrt(2)
    return out


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("graph", [False, True])
def test_values_and_adjoint(shape, graph):
    v, q = normal(2, 2, *shape), normal(2, 3, *shape, seed=1)
    kept = v.clone(), q.clone()
    with torch.set_grad_enabled(graph):
        forward, backward = symmetrized(v, SCALE), symmetrized_adjoint(q, SCALE)
    for b in range(2):
        for c in range(shape[0]):
            torch.testing.assert_close(
                forward[b, :, c], SCALE * by_hand(v[b, :, c]), rtol=0, atol=1e-14
            )
    torch.testing.assert_close((forward * q).sum(), (v * backward).sum(), rtol=1e-12, atol=1e-12)
    assert torch.equal(backward, clear_missing_(backward.clone())), "zero at missing neighbours"
    assert torch.equal(v, kept[0]) and torch.equal(q, kept[1]), "arguments are only read"


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 2), (3, 8), (7, 6)])
@torch.no_grad()
def test_affine_images_have_no_second_derivative_edges_included(shape):
    slope = gradient(picture(*shape, lambda i, j: 3 + 2 * i - 5 * j))
    assert not symmetrized(slope, ONE).any()


@torch.no_grad()
def test_second_derivatives_of_quadratic_images():
    """Hessians diag(1, 0), diag(0, 1) and [[0, 1], [1, 0]], whose lengths are 1, 1 and sqrt(2)."""
    inside = (..., slice(1, -1), slice(1, -1))
    for k, formula in enumerate(
        (lambda i, j: i * i / 2, lambda i, j: j * j / 2, lambda i, j: i * j)
    ):
        result = symmetrized(gradient(picture(6, 7, formula)), ONE)[0, :, 0][inside]
        expected = torch.zeros_like(result)
        expected[k] = math.sqrt(2) if k == 2 else 1
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-13)


def test_differentiable_in_both_arguments():
    v, q, scale = normal(1, 2, 1, 4, 3), normal(1, 3, 1, 4, 3), SCALE.clone()
    assert torch.autograd.gradcheck(symmetrized, (v.requires_grad_(), scale.requires_grad_()))
    assert torch.autograd.gradcheck(symmetrized_adjoint, (q.requires_grad_(), scale))


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (1, 6), (2, 2), (4, 7), (9, 8), (12, 12)])
def test_norm_is_bounded_closely(shape):
    n = 2 * shape[0] * shape[1]
    rows = symmetrized(torch.eye(n, dtype=torch.float64).view(n, 2, 1, *shape), ONE).reshape(n, -1)
    exact, bound = float(torch.linalg.matrix_norm(rows, 2)), symmetrized_norm(*shape)
    assert exact <= bound * (1 + 1e-13) + 1e-15
    assert bound <= math.sqrt(8)
    if min(shape) > 3:
        assert bound <= 1.1 * exact
