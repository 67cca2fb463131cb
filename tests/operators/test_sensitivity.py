"""beta of operators that are learned: never below what occurs, against matrices of single taps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from deepinv import physics as dphysics
from torch import Tensor, nn

import learnreg as lr
from learnreg.core.bounds import Bound, Kind
from learnreg.core.params import named_trainable
from learnreg.operators.sensitivity import jacobian_of, moves, sensitivity

PADDINGS = ("circular", "valid", "constant", "reflect", "replicate")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def derivative(physics: Any, x: Tensor, learned: list[Tensor]) -> Tensor:
    """dA x, (measurements, d), of everything that is learned."""
    y = physics.A(x)
    parts = y if not isinstance(y, Tensor) else [y]
    flat = torch.cat([p.reshape(-1) for p in parts])
    rows = [
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(v, learned, retain_graph=True)])
        for v in flat
    ]
    return torch.stack(rows)


def largest(physics: Any, x: Tensor) -> float:
    """The largest ||dA v|| / (||dtheta|| ||v||) that is found, from several images on."""
    best, learned = 0.0, [t for _, t in named_trainable(physics)]
    tries = [torch.ones_like(x), drawn(*x.shape, seed=1), torch.zeros_like(x)]
    tries[2][..., 1, 1] = 1
    for v in tries:
        best = max(
            best, float(torch.linalg.matrix_norm(derivative(physics, v / v.norm(), learned), 2))
        )
    return best


def blur(padding: str, taps: tuple[int, int] = (5, 5), channels: int = 1) -> dphysics.Blur:
    return dphysics.Blur(filter=drawn(1, channels, *taps).requires_grad_(), padding=padding)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("taps", "channels"), [((5, 5), 1), ((3, 4), 2), ((2, 2), 1)])
def test_blurs(padding, taps, channels):
    physics, x = blur(padding, taps, channels), drawn(1, 2, 7, 6)
    beta = sensitivity(physics, x)
    assert beta.kind is Kind.BOUND and largest(physics, x) <= beta.value * (1 + 1e-12)


@pytest.mark.parametrize(
    ("padding", "beta"),
    [("circular", 5), ("valid", 5), ("constant", 5), ("reflect", 6), ("replicate", 6)],
)
def test_published_numbers(padding, beta):
    """12^2 pixels, 5x5 taps: 5 circular, at most 5 with zeros; 5.21 and 5.40 were found for
    reflected and repeated edges, where a pixel is seen by 6 windows of a line at most.
    """
    assert sensitivity(blur(padding), torch.zeros(1, 1, 12, 12)).value == beta


@pytest.mark.parametrize("padding", ["circular", "reflect", "valid"])
@pytest.mark.parametrize("made", [dphysics.Downsampling, dphysics.Upsampling])
def test_sampling(made, padding):
    if made is dphysics.Upsampling and padding == "valid":
        pytest.skip("deepinv has none")
    physics = made(img_size=(1, 8, 8), filter=drawn(1, 1, 3, 3), factor=2, padding=padding)
    physics.filter = physics.filter.detach().requires_grad_()
    x = drawn(1, 1, 8, 8) if made is dphysics.Downsampling else drawn(1, 1, 4, 4)
    beta = sensitivity(physics, x)
    assert beta.certified and largest(physics, x) <= beta.value <= 3


def masked(kind: str) -> tuple[nn.Module, Tensor]:
    if kind == "inpainting":
        physics = dphysics.Inpainting((1, 4, 5), mask=torch.rand(1, 4, 5))
        x = drawn(1, 1, 4, 5)
    elif kind == "MRI":
        physics, x = dphysics.MRI(mask=torch.rand(4, 5), img_size=(2, 4, 5)), drawn(1, 2, 4, 5)
    else:
        physics = lr.physics.MRI(coils=3).build((4, 6), channels=2)
        x = drawn(1, 2, 4, 6)
        physics.coil_maps = physics.coil_maps.to(torch.complex128)
    physics.mask = physics.mask.double().detach().requires_grad_()
    return physics, x


@pytest.mark.parametrize("kind", ["inpainting", "MRI", "coils"])
def test_masks(kind):
    physics, x = masked(kind)
    beta = sensitivity(physics, x)
    assert beta.certified and largest(physics, x) <= beta.value * (1 + 1e-9)


class Parametrized(dphysics.LinearPhysics):
    """A blur whose kernel is a curve in theta, as ``operators.parametrized`` asks for it."""

    def __init__(self, base: Any, numbers: int, kept: bool) -> None:
        super().__init__()
        self.base, self.kept = base, kept
        self.theta = nn.Parameter(drawn(numbers, seed=2))
        self.register_buffer("basis", drawn(25, numbers, seed=3))

    def tensors(self) -> Mapping[str, Tensor]:
        taps = (self.basis @ self.theta.exp()).tanh()
        taps = taps.softmax(dim=0) if self.kept else taps
        return {"filter": taps.view(1, 1, 5, 5)}

    def fixed(self) -> Any:
        return dphysics.Blur(filter=self.tensors()["filter"], padding=self.base.padding)

    def A(self, x: Tensor, **_: object) -> Tensor:
        return dphysics.functional.conv2d(x, self.tensors()["filter"], padding=self.base.padding)

    def A_adjoint(self, y: Tensor, **_: object) -> Tensor:
        kernel = self.tensors()["filter"]
        return dphysics.functional.conv_transpose2d(y, kernel, padding=self.base.padding)


@pytest.mark.parametrize("numbers", [1, 4])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("kept", [False, True])
def test_a_curved_parametrization(numbers, padding, kept):
    base = dphysics.Blur(filter=drawn(1, 1, 5, 5), padding=padding)
    physics, x = Parametrized(base, numbers, kept), drawn(1, 1, 7, 7)
    found = moves(physics, x)
    assert found.beta.certified and largest(physics, x) <= found.beta.value * (1 + 1e-9)
    learned = [t for _, t in named_trainable(physics)]
    for v in (x, x + 10, torch.full_like(x, 2.0)):
        exact = float(torch.linalg.matrix_norm(derivative(physics, v, learned), 2))
        assert exact <= float(found.of(v)) * (1 + 1e-9)
    flat = float(found.of(torch.ones_like(x))) < 1e-3 * found.beta.value
    assert flat == (kept and padding != "constant"), "the sum of the kernel stays what it is"
    assert not base.filter.requires_grad, "the base is not touched"


def test_a_jacobian_is_that_of_differences():
    p, q = drawn(3).requires_grad_(), drawn(2, seed=1).requires_grad_()

    def made() -> Tensor:
        return torch.outer(p.exp(), q).square()

    found = jacobian_of(made(), [p, q, drawn(1).requires_grad_()])
    columns = []
    for t in (p, q):
        for i in range(len(t)):
            with torch.no_grad():
                t[i] += 1e-6
                above = made()
                t[i] -= 2e-6
                columns.append((above - made()) / 2e-6)
                t[i] += 1e-6
    expected = torch.stack([c.reshape(-1) for c in columns], dim=1)
    assert torch.allclose(found[:, :5], expected, atol=1e-7) and not found[:, 5].any()


def rays() -> Any:
    made = dphysics.Tomography(
        angles=4, img_width=6, normalize=False, adjoint_via_backprop=True, circle=False
    )
    return made.double()


@pytest.mark.parametrize(
    "make",
    [
        lambda: blur("reflect", (3, 3)) * blur("circular", (3, 3)),
        lambda: dphysics.Blur(filter=drawn(1, 1, 3, 3), padding="reflect") * blur("valid", (3, 3)),
        lambda: blur("reflect", (3, 3)) * dphysics.Blur(filter=drawn(1, 1, 3, 3), padding="valid"),
        lambda: (
            lr.Energy(  # whose parts torch knows
                blur("reflect", (3, 3)).stack(blur("circular", (3, 3))), lr.regularizers.TV()
            ).physics
        ),
    ],
    ids=["both", "first", "last", "stack"],
)
def test_products_and_stacks(make):
    physics, x = make(), drawn(1, 1, 6, 6)
    beta = sensitivity(physics, x)
    assert beta.certified and 0.01 * beta.value <= largest(physics, x) <= beta.value * (1 + 1e-12)


class Foreign(dphysics.Blur):
    """Nobody knows what it does."""


def test_what_is_not_known_is_said_to_be_unknown():
    physics, x = (
        Foreign(filter=drawn(1, 1, 3, 3).requires_grad_(), padding="circular"),
        drawn(1, 1, 6, 6),
    )
    assert sensitivity(physics, x).kind is Kind.UNKNOWN
    assert sensitivity(blur("circular", (3, 3)) * physics, x).kind is Kind.UNKNOWN
    assert sensitivity(dphysics.Blur(filter=drawn(1, 1, 3, 3)), x).value == 0


def test_the_word_of_a_physics_is_taken():
    physics, x = (
        Foreign(filter=drawn(1, 1, 3, 3).requires_grad_(), padding="circular"),
        drawn(1, 1, 6, 6),
    )
    physics.sensitivity = lambda x: Bound.proven(3.0)
    assert sensitivity(physics, x).value == 3


def test_shared_tensors_of_a_product_are_not_taken_for_two():
    part = blur("circular", (3, 3))
    assert sensitivity(part * part, drawn(1, 1, 6, 6)).kind is Kind.UNKNOWN
