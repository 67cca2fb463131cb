"""Vector fields: gradients in one buffer and filter banks per component, their exact adjoints and
their norms.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from learnreg.operators import fields
from learnreg.operators.convolutions import correlate
from learnreg.operators.differences import gradient
from learnreg.operators.fields import (
    bank_norm,
    clear_missing_,
    correlate_field,
    correlate_field_adjoint,
    gradient_norm,
    scaled_gradient,
    scaled_gradient_adjoint,
    window_norm,
)

SHAPES = ((1, 1, 1), (1, 1, 6), (1, 5, 1), (3, 6, 7), (2, 8, 5))
SCALE = torch.tensor(0.7, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matrix(forward: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    """The dense matrix of a linear map on one element of ``shape``."""
    n = math.prod(shape)
    return forward(torch.eye(n, dtype=torch.float64).view(n, *shape)).reshape(n, -1).T


def largest(m: Tensor) -> float:
    return float(torch.linalg.matrix_norm(m, 2))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("graph", [False, True])
def test_scaled_gradient_and_its_adjoint(shape, graph):
    x, p = normal(3, *shape), normal(3, 2, *shape, seed=1)
    with torch.set_grad_enabled(graph):
        forward, backward = scaled_gradient(x, SCALE), scaled_gradient_adjoint(p, SCALE)
    torch.testing.assert_close(forward, SCALE * gradient(x), rtol=0, atol=1e-15)
    torch.testing.assert_close((forward * p).sum(), (x * backward).sum(), rtol=1e-13, atol=1e-13)


def test_clear_missing_touches_only_what_belongs_to_no_difference():
    p = clear_missing_(torch.ones(1, 2, 1, 3, 4))
    assert torch.equal(p, (gradient(normal(1, 1, 3, 4)) != 0).float())


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (5, 1), (4, 7), (9, 8)])
def test_gradient_norm_is_exact(shape):
    assert gradient_norm(*shape) == pytest.approx(largest(matrix(gradient, (1, *shape))), abs=1e-13)


@pytest.mark.parametrize("padding", ["reflect", "zero"])
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("graph", [False, True])
def test_correlate_field_filters_every_component_with_its_own_bank(padding, size, channels, graph):
    kernels, p = normal(2, 4, size, size), normal(2, 2, channels, 7, 6, seed=1)
    with torch.set_grad_enabled(graph):
        result = correlate_field(p, kernels, padding)
    assert result.shape == (2, 2, channels, 4, 7, 6)
    for k in range(2):
        for c in range(channels):
            expected = correlate(p[:, k, c : c + 1], kernels[k].unsqueeze(1), padding)
            torch.testing.assert_close(result[:, k, c], expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("padding", ["reflect", "zero"])
@pytest.mark.parametrize("size", [3, 5, 7])
@pytest.mark.parametrize("shape", [(1, 7, 7), (3, 8, 11), (1, 9, 12)])
@pytest.mark.parametrize("graph", [False, True])
def test_correlate_field_adjoint_is_exact(padding, size, shape, graph):
    kernels, p = normal(2, 3, size, size), normal(2, 2, *shape, seed=1)
    v = normal(2, 2, shape[0], 3, *shape[1:], seed=2)
    kept = p.clone(), v.clone()
    with torch.set_grad_enabled(graph):
        forward, backward = (
            correlate_field(p, kernels, padding),
            correlate_field_adjoint(v, kernels, padding),
        )
    assert backward.shape == p.shape
    torch.testing.assert_close((forward * v).sum(), (p * backward).sum(), rtol=1e-12, atol=1e-12)
    assert torch.equal(p, kept[0]) and torch.equal(v, kept[1]), "arguments are only read"


@pytest.mark.parametrize("padding", ["reflect", "zero"])
def test_the_paths_with_and_without_autograd_agree_whatever_the_tiles(padding, monkeypatch):
    kernels, p, v = (
        normal(2, 3, 3, 3),
        normal(3, 2, 2, 6, 5, seed=1),
        normal(3, 2, 2, 3, 6, 5, seed=2),
    )
    expected = correlate_field(p, kernels, padding), correlate_field_adjoint(v, kernels, padding)
    for limit in (1, 5000, 2**21):
        monkeypatch.setattr(fields, "CHUNK_BYTES", limit)
        with torch.no_grad():
            result = (
                correlate_field(p, kernels, padding),
                correlate_field_adjoint(v, kernels, padding),
            )
        for a, b in zip(result, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_every_map_is_differentiable_in_its_field_and_its_parameters():
    x, p, v = (
        t.requires_grad_()
        for t in (normal(1, 1, 4, 3), normal(1, 2, 1, 4, 3), normal(1, 2, 1, 2, 4, 3))
    )
    kernels, scale = normal(2, 2, 3, 3).requires_grad_(), SCALE.clone().requires_grad_()
    assert torch.autograd.gradcheck(scaled_gradient, (x, scale))
    assert torch.autograd.gradcheck(scaled_gradient_adjoint, (p, scale))
    for padding in ("reflect", "zero"):
        assert torch.autograd.gradcheck(
            lambda a, k, how=padding: correlate_field(a, k, how), (p, kernels)
        )
        assert torch.autograd.gradcheck(
            lambda a, k, how=padding: correlate_field_adjoint(a, k, how), (v, kernels)
        )


@torch.no_grad()
def test_images_do_not_see_their_neighbours():
    kernels, p = normal(2, 4, 3, 3).float(), normal(5, 2, 1, 16, 16, seed=1).float()
    v = correlate_field(p, kernels, "reflect")
    back = correlate_field_adjoint(v, kernels, "reflect")
    for i in range(5):
        torch.testing.assert_close(
            correlate_field(p[i : i + 1], kernels, "reflect"), v[i : i + 1], rtol=0, atol=1e-6
        )
        torch.testing.assert_close(
            correlate_field_adjoint(v[i : i + 1], kernels, "reflect"),
            back[i : i + 1],
            rtol=0,
            atol=1e-5,
        )


def banks(size: int) -> dict[str, Tensor]:
    """Filters of the kinds that make a bound loose or wrong."""
    delta = torch.zeros(2, 2, size, size, dtype=torch.float64)
    delta[..., size // 2, size // 2] = 1
    corner = torch.zeros_like(delta)
    corner[..., 0, 0] = 1  # under reflection this one reads some pixels twice
    one_sided = torch.zeros_like(delta)
    one_sided[:, :, :, 0] = 1
    return {
        "delta": delta,
        "corner": corner,
        "one-sided": one_sided,
        "mean": torch.full_like(delta, size**-2.0),
        "normal": normal(2, 2, size, size),
        "positive": normal(2, 2, size, size, seed=3).abs(),
    }


@pytest.mark.parametrize("padding", ["reflect", "zero"])
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("name", banks(3))
@pytest.mark.parametrize("shape", [(5, 5), (6, 14)])
def test_bank_norm_holds(padding, size, name, shape):
    kernels = banks(size)[name]
    exact = largest(matrix(lambda p: correlate_field(p, kernels, padding), (2, 1, *shape)))
    assert exact * (1 - 1e-12) <= bank_norm(kernels, padding, *shape)


@pytest.mark.parametrize("padding", ["reflect", "zero"])
@pytest.mark.parametrize("name", banks(3))
@torch.no_grad()
def test_bank_norm_is_sharp_for_small_filters_and_large_images(padding, name):
    kernels, p = banks(3)[name], normal(1, 2, 1, 33, 30, seed=3)
    for _ in range(200):
        p = correlate_field_adjoint(correlate_field(p, kernels, padding), kernels, padding)
        square = float(p.norm())
        p = p / square
    found = math.sqrt(square)
    assert found * (1 - 1e-12) <= bank_norm(kernels, padding, 33, 30) <= 1.2 * found


def test_bank_norm_is_that_of_the_larger_component_and_the_same_for_all_large_images():
    kernels = normal(2, 3, 3, 3)
    small = bank_norm(torch.stack([kernels[0], 0.01 * kernels[1]]), "reflect", 64, 64)
    assert small == pytest.approx(bank_norm(kernels[:1].expand(2, -1, -1, -1), "reflect", 64, 64))
    assert bank_norm(kernels, "reflect", 64, 64) == bank_norm(kernels, "reflect", 200, 80)


@pytest.mark.parametrize("padding", ["reflect", "zero"])
@pytest.mark.parametrize(("size", "shape"), [(3, (3, 3)), (3, (8, 7)), (5, (9, 6))])
def test_window_norm_is_the_supremum_over_unit_filters(padding, size, shape):
    bound, found = window_norm(size, padding, *shape), 0.0
    for seed in range(3):  # ascent: the best filter for the best field, in turn
        kernels = normal(2, 1, size, size, seed=seed)
        for _ in range(15):
            kernels = kernels / kernels.norm()
            dense = matrix(lambda p, k=kernels: correlate_field(p, k, padding), (2, 1, *shape))
            left, values, right = torch.linalg.svd(dense, full_matrices=False)
            found = max(found, float(values[0]))
            leaf = kernels.clone().requires_grad_()
            answer = (
                correlate_field(right[0].view(1, 2, 1, *shape), leaf, padding).flatten()
                @ left[:, 0]
            )
            (kernels,) = torch.autograd.grad(answer, leaf)
    assert found <= bound * (1 + 1e-12)
    assert bound <= 1.6 * found
