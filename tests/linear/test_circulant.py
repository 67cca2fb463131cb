"""Preconditioners for images: symmetric positive definite, exact where they can be, and worth their
price.
"""

from __future__ import annotations

import math

import deepinv
import pytest
import torch
from tests.linear.cases import normal
from torch import Tensor

from learnreg.core.curvature import MeanCurvature
from learnreg.linear.cg import cg
from learnreg.linear.circulant import SMALLEST, preconditioner
from learnreg.operators.convolutions import mean_symbol
from learnreg.operators.physics import LinearMap
from learnreg.problems import Energy
from learnreg.regularizers import TV, FoE, Tikhonov

KINDS = ("diagonal", "circulant", "scaled")
SHAPES = ((1, 4, 4), (1, 5, 5), (2, 4, 5), (2, 5, 4), (1, 1, 6), (1, 5, 1), (3, 2, 2), (1, 1, 1))


def averages(*shape: int, seed: int = 0) -> MeanCurvature:
    """Positive diagonals and symbols of symmetric periodic convolutions, others for every image (b,
    c, h, w).
    """
    b, c, h, w = shape
    diagonal = 0.1 + normal(*shape, seed=seed).square()
    weights = 0.1 + normal(b, 2, seed=seed + 1).square()
    return MeanCurvature(
        diagonal, 0.3 + mean_symbol(normal(2, c, 3, 3, seed=seed + 2), weights, (h, w))
    )


def dense(operator, shape: tuple[int, ...]) -> Tensor:
    """One matrix for every image: (b, n, n) of a map on (b, c, h, w)."""
    b, n = shape[0], math.prod(shape[1:])
    columns = [
        operator(e.view(1, *shape[1:]).expand(shape).clone()).reshape(b, n)
        for e in torch.eye(n).double()
    ]
    return torch.stack(columns, dim=2)


def convolution(symbol: Tensor, size: tuple[int, int]) -> Tensor:
    """Periodic convolution with a symbol (b, c, h, w // 2 + 1) as matrices (b, n, n): shifted
    copies of one column.
    """
    (b, c), (h, w) = symbol.shape[:2], size
    response = torch.fft.irfft2(symbol.to(torch.complex128), s=size)
    out = torch.zeros(b, c, h, w, c, h, w, dtype=torch.float64)
    for channel in range(c):
        for i in range(h):
            for j in range(w):
                out[:, channel, :, :, channel, i, j] = response[:, channel].roll(
                    (i, j), dims=(-2, -1)
                )
    return out.view(b, c * h * w, c * h * w)


# --- what is computed -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_symmetric_and_positive_definite_and_what_the_formula_says(kind, shape):
    mean = averages(3, *shape)
    d, symbol = mean.diagonal.flatten(1), convolution(mean.symbol, shape[1:])
    scaling = torch.diag_embed((d.mean(dim=1, keepdim=True) / d).sqrt())
    inverse = torch.linalg.inv(symbol)
    wanted = {
        "diagonal": torch.diag_embed(1 / d),
        "circulant": inverse,
        "scaled": scaling @ inverse @ scaling,
    }[kind]
    matrix = dense(preconditioner(mean, kind), (3, *shape))
    torch.testing.assert_close(matrix, wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(matrix, matrix.mT, rtol=0, atol=1e-13)
    assert torch.linalg.eigvalsh(matrix).min() > 0


def test_scaled_is_what_is_taken_when_nothing_is_said():
    mean, r = averages(2, 1, 4, 5), normal(2, 1, 4, 5, seed=9)
    assert torch.equal(preconditioner(mean)(r), preconditioner(mean, "scaled")(r))


@pytest.mark.parametrize("shape", SHAPES[:4])
def test_the_circulant_inverts_a_periodic_convolution(shape):
    """Of a real physics, with its own averages: A^T A + 0.1 I."""
    kernel = normal(1, 1, 3, 3, seed=4)
    energy = Energy(deepinv.physics.Blur(filter=kernel, padding="circular"), Tikhonov(0.1).double())
    x = normal(2, *shape)
    potential = energy.at(x)
    hessian = potential.linearize(x)
    for kind in ("circulant", "scaled"):  # the diagonal is constant, so there is nothing to scale
        torch.testing.assert_close(
            preconditioner(potential.mean_curvature(x), kind)(hessian(x)), x, rtol=0, atol=1e-10
        )
    solved = cg(hessian, x, 1e-9, None, preconditioner(potential.mean_curvature(x)))
    assert solved.ok and solved.steps.max() <= 2


def test_the_diagonal_inverts_a_diagonal():
    mask = 0.2 + normal(1, 5, 6, seed=3).abs()
    energy = Energy(deepinv.physics.Inpainting((1, 5, 6), mask=mask), Tikhonov(0.1).double())
    x = normal(3, 1, 5, 6)
    potential = energy.at(x)
    hessian, mean = potential.linearize(x), potential.mean_curvature(x)
    for kind in ("diagonal", "scaled"):  # the symbol is constant, so there is nothing to transform
        torch.testing.assert_close(preconditioner(mean, kind)(hessian(x)), x, rtol=0, atol=1e-10)


# --- the batch is a list of strangers -------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_does_not_see_its_neighbours(kind):
    mean, r = averages(5, 2, 5, 4), normal(5, 2, 5, 4, seed=7)
    P = preconditioner(mean, kind)
    whole = P(r)
    for index in (
        torch.tensor([4, 2, 0, 3, 1]),
        torch.tensor([3]),
        torch.tensor([0, 4]),
        torch.tensor([1, 1]),
    ):
        part = preconditioner(MeanCurvature(mean.diagonal[index], mean.symbol[index]), kind)
        torch.testing.assert_close(part(r[index]), whole[index], rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(P.select(index)(r[index]), whole[index], rtol=1e-13, atol=1e-14)
    again = P.select(torch.tensor([4, 1, 3])).select(torch.tensor([2, 0]))
    torch.testing.assert_close(again(r[[3, 4]]), whole[[3, 4]], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_the_worst_neighbour_changes_nothing(kind):
    mean, r = averages(3, 1, 4, 4), normal(3, 1, 4, 4)
    clean = preconditioner(mean, kind)(r)
    mean.diagonal[1], mean.symbol[1], r[1] = math.nan, math.inf, math.nan
    torch.testing.assert_close(
        preconditioner(mean, kind)(r)[[0, 2]], clean[[0, 2]], rtol=1e-14, atol=1e-15
    )


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_lent_is_mutated_and_the_type_stays(kind):
    mean, r = averages(2, 1, 4, 5), normal(2, 1, 4, 5)
    kept = [t.clone() for t in (mean.diagonal, mean.symbol, r)]
    P = preconditioner(mean, kind)
    z = P(r)
    z.add_(1)
    assert all(
        torch.equal(a, b) for a, b in zip((mean.diagonal, mean.symbol, r), kept, strict=True)
    )
    torch.testing.assert_close(P(r), z - 1, rtol=0, atol=1e-13)  # nor does one call change the next
    single = preconditioner(MeanCurvature(mean.diagonal.float(), mean.symbol.float()), kind)(
        r.float()
    )
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), P(r), rtol=1e-4, atol=1e-5)


# --- curvature that vanishes ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_zero_curvature_is_floored(kind, dtype):
    mean = averages(3, 1, 4, 4)
    mean.symbol[0, :, 0, 0], mean.symbol[1, :, :, 1] = 0, 0
    mean.diagonal[0, :, 2, 2], mean.diagonal[1, :, 1] = 0, 0
    P = preconditioner(MeanCurvature(mean.diagonal.to(dtype), mean.symbol.to(dtype)), kind)
    r = normal(3, 1, 4, 4).to(dtype)
    assert P(r).isfinite().all() and ((P(r) * r).flatten(1).sum(dim=1) > 0).all()
    if dtype == torch.float64:
        eigenvalues = torch.linalg.eigvalsh(dense(P, (3, 1, 4, 4)))
        assert eigenvalues.min() > 0
        assert (eigenvalues[:, -1] / eigenvalues[:, 0]).max() < 100 / SMALLEST ** (
            1 + (kind == "scaled")
        )


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_without_any_curvature_gives_finite_numbers(kind):
    """As a term scaled by zero leaves it; nothing is known then, but NaN would be worse."""
    mean, r = averages(2, 1, 4, 4), normal(2, 1, 4, 4)
    mean.diagonal[1], mean.symbol[1] = 0, 0
    z = preconditioner(mean, kind)(r)
    assert z.isfinite().all() and ((z * r).flatten(1).sum(dim=1) > 0).all()


def test_a_blur_that_loses_frequencies_is_preconditioned_all_the_same():
    """The mean of 2 x 2 pixels has a symbol with zeros; the regularizer is all there is at those
    frequencies.
    """
    kernel = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    kernel[..., :2, :2] = 0.25
    physics = deepinv.physics.Blur(filter=kernel, padding="circular")
    x = normal(2, 1, 6, 6)
    symbol = LinearMap(physics).mean_curvature(x).symbol
    assert (
        symbol.min() < 1e-15
        and preconditioner(LinearMap(physics).mean_curvature(x))(x[:1]).isfinite().all()
    )
    potential = Energy(physics, Tikhonov(1e-4).double()).at(x)
    solved = cg(potential.linearize(x), x, 1e-8, None, preconditioner(potential.mean_curvature(x)))
    assert solved.ok and solved.steps.max() <= 3


# --- worth its price ------------------------------------------------------------------------------


def pictures(size: int = 32) -> Tensor:
    """Two noisy pictures with edges, (2, 1, h, w)."""
    rows, columns = (torch.linspace(0, 1, size).double().view(s) for s in ((-1, 1), (1, -1)))
    edges = 0.5 * ((rows - 0.5) ** 2 + (columns - 0.4) ** 2 < 0.1) + 0.3 * columns
    return torch.stack([edges, 0.4 * (rows > columns) + 0.2 * rows])[:, None] + 0.03 * normal(
        2, 1, size, size
    )


REGULARIZERS = {"tv": lambda: TV(0.1, 0.02), "foe": lambda: FoE(8, 5, weight=0.2)}
PHYSICS = {
    "denoising": lambda: deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1)),
    "deblurring": lambda: deepinv.physics.Blur(
        filter=torch.ones(1, 1, 5, 5).double() / 25, padding="circular"
    ),
}


@pytest.mark.parametrize("physics", PHYSICS)
@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_it_saves_steps_of_conjugate_gradients(physics, regularizer):
    energy, x = (
        Energy(PHYSICS[physics](), (REGULARIZERS[regularizer]() + Tikhonov(1e-3)).double()),
        pictures(),
    )
    potential = energy.at(x)
    hessian, mean, b = potential.linearize(x), potential.mean_curvature(x), normal(*x.shape, seed=5)
    solved = {
        kind: cg(hessian, b, 1e-4, None, None if kind == "plain" else preconditioner(mean, kind))
        for kind in ("plain", "circulant", "scaled")
    }
    assert all(s.ok for s in solved.values())
    steps = {kind: s.steps.double().mean() for kind, s in solved.items()}
    assert steps["scaled"] < 0.9 * steps["plain"] and steps["circulant"] < 0.95 * steps["plain"]
