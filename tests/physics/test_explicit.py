"""Operators by their matrices."""

from __future__ import annotations

import copy

import pytest
import torch
from deepinv import physics as D

import learnreg as lr
from learnreg.core.bounds import Kind
from learnreg.core.errors import InputError
from learnreg.operators.physics import LinearMap
from learnreg.physics import Explicit, explicit

SIDE = 10


def rays() -> D.Tomography:
    return D.Tomography(6, SIDE, circle=False, normalize=False, adjoint_via_backprop=True)


OPERATORS = {
    "rays": (rays, (1, SIDE, SIDE)),
    "blur of colours": (lambda: D.Blur(torch.ones(1, 1, 3, 3) / 9, "circular"), (3, 6, 5)),
    "mask": (lambda: D.Inpainting((1, 6, 6), mask=0.5), (1, 6, 6)),
    "differences": (
        lambda: D.Blur(torch.tensor([[[[1.0, -1.0, 0.0]] * 3]]), "circular"),
        (1, 6, 6),
    ),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_it_is_the_operator(name):
    make, image = OPERATORS[name]
    physics = make()
    found = explicit(physics, image, block=7)
    x = torch.rand(3, *image, generator=torch.Generator().manual_seed(0))
    y = physics.A(x)
    torch.testing.assert_close(found.A(x), y, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.A_adjoint(y), physics.A_adjoint(y), rtol=1e-5, atol=1e-5)
    lr.testing.check_operator(found, x)


def test_it_is_probed_copied_and_certified_like_any_other():
    physics = rays()
    found = copy.deepcopy(explicit(physics, (1, SIDE, SIDE)))
    x = lr.data.phantoms(2, SIDE, 0)
    regularizer = lr.regularizers.TV(0.1, 0.1) + lr.regularizers.Tikhonov(0.1, learned=False)
    one = lr.solve(lr.Energy(found, regularizer), physics.A(x), eps=1e-2)
    other = lr.solve(lr.Energy(physics, regularizer), physics.A(x), eps=1e-2)
    assert one.ok and torch.dist(one.value, other.value) <= 4e-2


@pytest.mark.parametrize(("name", "kind"), [("rays", Kind.BOUND), ("differences", Kind.ESTIMATE)])
def test_norms_of_matrices_without_negative_entries_are_proven(name, kind):
    make, image = OPERATORS[name]
    found = explicit(make(), image)
    exact = float(torch.linalg.matrix_norm(dense(found), 2)) ** 2
    bound = LinearMap(found).spectrum(torch.zeros(1, *image)).L
    assert bound.kind is kind
    assert kind is Kind.ESTIMATE or exact <= bound.value * (1 + 1e-6) <= 1.01 * exact


def dense(physics: Explicit) -> torch.Tensor:
    size = torch.Size(physics.image).numel()
    return physics.A(torch.eye(size).view(size, *physics.image)).flatten(1).T


class Narrow(D.LinearPhysics):
    """Computes in single precision whatever it is given, as compiled projectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = [rays()]

    def A(self, x, **_):
        return self.inner[0].A(x.float()).to(x)

    def A_adjoint(self, y, **_):
        return self.inner[0].A_adjoint(y.float()).to(y)


def test_a_projector_of_single_precision_becomes_one_that_certificates_can_use():
    found = explicit(Narrow(), (1, SIDE, SIDE))
    wide = LinearMap(found).double().physics
    x = torch.rand(1, 1, SIDE, SIDE, dtype=torch.float64)
    assert wide.A(x).dtype == torch.float64
    lr.testing.check_operator(found, x.float())
    emission = lr.physics.EmissionTomography(found, filter=lr.physics.resolution(1.5))
    assert LinearMap(emission).spectrum(x.float()).L.kind is Kind.BOUND


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (torch.ones(3, 5), "3 x 4"),
        (torch.ones(3, 4, dtype=torch.complex64), "real"),
        (torch.ones(3, 4).int(), "real"),
        (torch.full((3, 4), torch.nan), "NaN"),
        ([[1.0]], "list"),
    ],
    ids=["sizes", "complex", "integers", "NaN", "list"],
)
def test_what_is_no_matrix_is_refused(matrix, words):
    with pytest.raises(InputError, match=words):
        Explicit(matrix, (1, 2, 2), (1, 3))


class Fourier(D.LinearPhysics):
    def A(self, x, **_):
        return torch.fft.fft2(x, norm="ortho")

    def A_adjoint(self, y, **_):
        return torch.fft.ifft2(y, norm="ortho").real


def test_complex_measurements_are_refused():
    with pytest.raises(InputError, match="real measurements"):
        explicit(Fourier(), (1, 8, 8))
