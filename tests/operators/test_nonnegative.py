"""Norms of operators without negative entries: never below those of the dense matrix, and close."""

import math

import pytest
import torch
from deepinv import physics as dphysics
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learnreg.core.bounds import Kind
from learnreg.operators.nonnegative import CLOSE, collatz_wielandt, known_nonnegative
from learnreg.operators.physics import LinearMap


def tomography(width: int, angles: int, **more: object) -> dphysics.Tomography:
    return dphysics.Tomography(
        angles=angles, img_width=width, normalize=False, adjoint_via_backprop=True, **more
    )


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    zeros=st.floats(0, 0.95),
    scale=st.floats(1e-4, 1e4),
)
@settings(max_examples=200, deadline=None)
def test_the_norm_of_a_nonnegative_matrix_lies_between_the_bounds(
    seed, rows, columns, zeros, scale
):
    a = scale * drawn(rows, columns, seed=seed) * (drawn(rows, columns, seed=seed + 1) >= zeros)
    largest = float(torch.linalg.matrix_norm(a, 2)) ** 2
    found = collatz_wielandt(lambda x: x @ (a.T @ a), torch.zeros(1, columns))
    assert float(found.lower) <= largest * (1 + 1e-12)
    assert largest <= float(found.upper) * (1 + 1e-12)


def test_a_matrix_with_negative_products_is_given_up():
    a = torch.tensor([[1.0, -2.0], [0.5, 1.0]], dtype=torch.float64)
    assert collatz_wielandt(lambda x: x @ (a.T @ a), torch.zeros(1, 2)) is None


@pytest.mark.parametrize("more", [{}, {"circle": True}, {"fan_beam": True}])
def test_the_norm_of_tomography_is_proven_and_close(more):
    physics = tomography(12, 7, **more)
    operator = LinearMap(physics)
    found = operator.spectrum(torch.zeros(1, 1, 12, 12))
    wide = operator.double()
    columns = [wide.forward(e[None]).flatten() for e in torch.eye(144).double().view(-1, 1, 12, 12)]
    a = torch.stack(columns, dim=1)
    assert float(a.min()) >= 0
    largest = float(torch.linalg.matrix_norm(a, 2)) ** 2
    assert found.L.kind is Kind.BOUND and found.mu.value == 0
    assert largest <= found.L.value <= largest * (1 + 50 * CLOSE)


def test_a_published_pair_of_bounds_comes_out():
    """64^2, 30 angles: 1854.388 <= ||A||^2 <= 1854.390 after ten products (independent)."""
    wide = LinearMap(tomography(64, 30)).double()
    found = collatz_wielandt(wide.normal, torch.zeros(1, 1, 64, 64))
    assert float(found.lower) == pytest.approx(1854.389, rel=2 * CLOSE)
    assert 1854.388 <= float(found.upper) <= 1854.388 * (1 + 2 * CLOSE)


@pytest.mark.parametrize("padding", ["circular", "reflect", "replicate", "valid"])
def test_one_bound_per_image_where_kernels_differ(padding):
    kernels = drawn(2, 1, 3, 3, seed=3).float()
    operator = LinearMap(dphysics.Blur(filter=kernels, padding=padding))
    x = torch.zeros(2, 1, 6, 5)
    both = operator.on(x).spectrum(x)
    assert both.L_kind is Kind.BOUND and both.L.shape == (2,)
    for i in range(2):
        alone = LinearMap(dphysics.Blur(filter=kernels[i : i + 1], padding=padding))
        assert float(both.L[i]) == pytest.approx(alone.spectrum(x[:1]).L.value, rel=1e-9)


class Words(dphysics.LinearPhysics):
    """Sums of neighbours, by the user's word without negative entries."""

    def __init__(self, nonnegative: object, sign: float = 1.0) -> None:
        super().__init__()
        self.nonnegative, self.sign = nonnegative, sign

    def A(self, x, **_):
        return x + self.sign * x.flip(-1)

    A_adjoint = A


class Other(dphysics.Tomography):
    """A subclass may do as it likes."""


@pytest.mark.parametrize(
    ("physics", "kind"),
    [
        (Words(True), Kind.ESTIMATE),
        (Words("yes"), Kind.UNKNOWN),
        (Words(False), Kind.UNKNOWN),
        (Other(angles=3, img_width=8, normalize=False), Kind.UNKNOWN),
        (dphysics.Blur(filter=-drawn(1, 1, 3, 3, seed=1).float()), Kind.UNKNOWN),
        (dphysics.Blur(filter=drawn(1, 1, 3, 3, seed=1).float()), Kind.BOUND),
        (dphysics.Denoising(), Kind.BOUND),
    ],
)
def test_who_is_believed(physics, kind):
    assert known_nonnegative(physics) is kind


@pytest.mark.parametrize("sign", [-1.0, -0.1])
def test_a_word_that_is_not_kept_falls_back_to_power_iterations(sign):
    found = LinearMap(Words(True, sign=sign)).spectrum(torch.zeros(1, 1, 4, 4))
    largest = (1 - sign) ** 2
    assert found.L.kind is Kind.ESTIMATE
    assert math.isclose(found.L.value, largest * 1.02, rel_tol=1e-3)


def test_an_overridden_map_of_a_known_class_is_not_believed():
    physics = tomography(8, 3)
    physics.A = lambda x, **_: -x
    assert known_nonnegative(physics) is Kind.UNKNOWN
