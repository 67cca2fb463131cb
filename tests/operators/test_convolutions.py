"""Filter banks and differences: exact adjoints, and norm bounds against dense matrices."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from learnreg.operators import dot_test
from learnreg.operators.convolutions import (
    COPIES,
    adjoint_kernels,
    correlate,
    correlate_adjoint,
    kernel_norm_bounds,
    mean_symbol,
    pad,
    pad_adjoint,
    symbol_bound,
)
from learnreg.operators.differences import gradient, gradient_adjoint, norm_squared, symbols

PADDINGS = ("reflect", "zero")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matrix(forward, shape: tuple[int, ...]) -> Tensor:
    """The dense matrix of a linear map on one image of ``shape`` (c, h, w)."""
    n = math.prod(shape)
    return forward(torch.eye(n, dtype=torch.float64).view(n, *shape)).reshape(n, -1).T


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("margin", [0, 1, 2, 3])
@pytest.mark.parametrize("shape", [(4, 5), (7, 4), (9, 8)])
def test_pad_adjoint_is_the_transpose(padding, margin, shape):
    x = normal(2, 3, *shape).requires_grad_()
    p = normal(2, 3, shape[0] + 2 * margin, shape[1] + 2 * margin, seed=1)
    kept = p.clone()
    (expected,) = torch.autograd.grad((pad(x, margin, padding) * p).sum(), x)
    torch.testing.assert_close(pad_adjoint(p, margin, padding), expected, rtol=0, atol=1e-14)
    assert torch.equal(p, kept), "the argument is only read"


def test_reflection_does_not_repeat_the_edge():
    x = torch.arange(3.0).view(1, 1, 1, 3).expand(1, 1, 3, 3)
    assert pad(x, 1, "reflect")[0, 0, 1].tolist() == [1, 0, 1, 2, 1]
    assert pad(x, 1, "zero")[0, 0, 1].tolist() == [0, 0, 1, 2, 0]


def test_correlation_does_not_flip():
    x = torch.zeros(1, 1, 5, 5)
    x[..., 2, 2] = 1
    kernel = torch.arange(9.0).view(1, 1, 3, 3)
    assert torch.equal(correlate(x, kernel, "zero")[0, 0, 1:4, 1:4], kernel[0, 0].flip(0, 1))


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [1, 3, 5, 7])
@pytest.mark.parametrize("shape", [(7, 7), (8, 11)])
def test_correlate_adjoint_is_the_transpose(padding, channels, size, shape):
    kernels, x = (
        normal(4, channels, size, size),
        normal(2, channels, *shape, seed=1).requires_grad_(),
    )
    p = normal(2, 4, *shape, seed=2)
    (expected,) = torch.autograd.grad((correlate(x, kernels, padding) * p).sum(), x)
    result = correlate_adjoint(p, adjoint_kernels(kernels), padding)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)
    mismatch = dot_test(
        lambda u: correlate(u, kernels, padding),
        lambda w: correlate_adjoint(w, adjoint_kernels(kernels), padding),
        x.detach(),
    )
    assert mismatch < 1e-14


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(
    ("size", "channels", "shape"),
    [
        (1, 1, (2, 3)),
        (3, 1, (3, 3)),
        (3, 1, (8, 9)),
        (3, 2, (4, 5)),
        (5, 1, (5, 5)),
        (5, 2, (6, 5)),
        (7, 1, (7, 8)),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_symbol_bound_holds_and_is_not_absurd(padding, size, channels, shape, seed):
    kernels = normal(3, channels, size, size, seed=seed)
    if seed == 2:  # all entries of one sign: constant images, where reflection copies the most
        kernels = kernels.abs()
    weights = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    bank = weights.sqrt().view(-1, 1, 1, 1) * kernels
    exact = (
        float(
            torch.linalg.matrix_norm(
                matrix(lambda x: correlate(x, bank, padding), (channels, *shape)), 2
            )
        )
        ** 2
    )
    bound = symbol_bound(kernels, weights, padding)
    assert exact <= bound
    # the bank sees only a part of a small image, the trace is at most `channels` times the largest
    # eigenvalue
    assert bound <= 6 * channels * COPIES[padding] * exact
    alone = matrix(lambda x: correlate(x, kernels[:1], padding), (channels, *shape))
    assert float(torch.linalg.matrix_norm(alone, 2)) <= float(
        kernel_norm_bounds(kernels, padding)[0]
    )


@pytest.mark.parametrize("size", [3, 5, 7])
def test_symbol_bound_is_sharp_for_zero_padding_and_large_images(size):
    kernels, weights = normal(2, 1, size, size), torch.ones(2, dtype=torch.float64)
    v = normal(1, 1, 64, 64, seed=3)
    for _ in range(60):
        v = correlate_adjoint(correlate(v, kernels, "zero"), adjoint_kernels(kernels), "zero")
        norm = float(v.norm())
        v = v / norm
    assert norm <= symbol_bound(kernels, weights, "zero") <= 1.15 * norm


def test_symbol_bound_catches_a_peak_between_grid_points():
    rows = torch.arange(5, dtype=torch.float64)
    kernel = torch.cos(0.731 * rows)[:, None] * torch.cos(1.93 * rows)[None, :]
    fine = torch.fft.rfft2(kernel, s=(2048, 2048)).abs().square().max()
    one = torch.ones(1, dtype=torch.float64)
    coarse = symbol_bound(kernel.view(1, 1, 5, 5), one, "zero", grid=1)
    assert (
        float(fine)
        <= symbol_bound(kernel.view(1, 1, 5, 5), one, "zero")
        <= coarse
        <= 1.1 * float(fine)
    )


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 6), (1, 5, 1), (2, 6, 7), (1, 12, 12)])
def test_differences_have_an_exact_adjoint_and_a_bounded_norm(shape):
    x = normal(2, *shape)
    assert gradient(x).shape == (2, 2, *shape)
    p = normal(2, 2, *shape, seed=1)
    left = (gradient(x) * p).sum()
    torch.testing.assert_close((x * gradient_adjoint(p)).sum(), left, rtol=0, atol=1e-12)
    norm = float(torch.linalg.matrix_norm(matrix(gradient, shape), 2))
    assert norm**2 < norm_squared(2)
    if shape == (1, 12, 12):
        assert norm**2 > 0.95 * norm_squared(2)


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("shape", [(9, 12), (5, 5), (4, 7), (3, 3), (2, 3), (1, 6), (6, 1), (1, 1)])
def test_the_mean_symbol_is_that_of_the_periodic_filter_bank(size, channels, shape):
    """Every filter laid on the periodic image, which wraps around images smaller than the
    filter.
    """
    kernels, weights = normal(3, channels, size, size), normal(2, 3, seed=1).abs()
    laid = torch.zeros(3, channels, *shape, dtype=torch.float64)
    for i in range(size):
        for j in range(size):
            laid[:, :, i % shape[0], j % shape[1]] += kernels[:, :, i, j]
    wanted = torch.einsum("bk,kchw->bchw", weights, torch.fft.rfft2(laid).abs().square())
    symbol = mean_symbol(kernels, weights, shape)
    torch.testing.assert_close(symbol, wanted, rtol=1e-12, atol=1e-12)
    assert (symbol >= 0).all() and mean_symbol(
        kernels.float(), weights.float(), shape
    ).dtype == torch.float32


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (5, 1), (2, 3), (4, 5), (6, 4)])
def test_symbols_are_those_of_periodic_differences(shape):
    rows, columns = symbols(torch.zeros(1, 1, *shape, dtype=torch.float64))
    assert rows.shape == (shape[0], 1) and columns.shape == (1, shape[1] // 2 + 1)
    spike = torch.zeros(shape, dtype=torch.float64)
    spike[0, 0] = 1
    for symbol, axis in ((rows, 0), (columns, 1)):
        difference = spike.roll(-1, dims=axis) - spike
        wanted = torch.fft.rfft2(difference).abs().square()
        torch.testing.assert_close(symbol.expand_as(wanted), wanted, rtol=1e-12, atol=1e-12)
