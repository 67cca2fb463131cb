"""Parameters per image: their first axis counts the images, whatever axes they lack after it."""

from __future__ import annotations

import pytest
import torch
from deepinv import physics as dphysics
from torch import Tensor

import learnreg as lr
from learnreg.core.errors import InputError


def masks(count: int, *shape: int) -> Tensor:
    drawn = torch.rand(count, *shape, generator=torch.Generator().manual_seed(count))
    return (drawn < 0.5).float()


SIDES = (6, 8)

OPERATORS = {
    "MRI": (lambda: dphysics.MRI(img_size=(2, *SIDES)), (2, *SIDES), "mask", SIDES),
    "coils": (
        lambda: lr.physics.MRI(coils=3).build(SIDES, channels=2),
        (2, *SIDES),
        "mask",
        SIDES,
    ),
    "real": (lambda: lr.physics.MRI().build(SIDES), (1, *SIDES), "mask", SIDES),
    "inpainting": (
        lambda: lr.physics.Inpainting().build(SIDES, channels=3),
        (3, *SIDES),
        "mask",
        SIDES,
    ),
    "blur": (
        lambda: dphysics.Blur(filter=torch.ones(1, 1, 3, 3), padding="circular"),
        (3, *SIDES),
        "filter",
        (3, 3),
    ),
}


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", OPERATORS)
def test_axes_that_are_missing_are_not_filled_with_images(name, count):
    """Two masks (2, h, w) are those of two images, not of real and imaginary part."""
    make, shape, tensor, sides = OPERATORS[name]
    physics, x = make(), torch.rand(count, *shape)
    given = masks(count, *sides) + 0.1
    full = given[:, None]
    y = torch.cat([physics(x[i : i + 1], **{tensor: full[i : i + 1]}) for i in range(count)])

    ridge = lr.regularizers.Tikhonov(0.1, learned=False)
    energy = lr.Energy(make(), lr.regularizers.TV(1e-2, 0.5) + ridge)
    short = lr.solve(energy, y, eps=1e-2, params={tensor: given})
    long = lr.solve(energy, y, eps=1e-2, params={tensor: full})
    assert torch.dist(short.value, long.value) <= 2e-2 * count


class Swallowing(dphysics.LinearPhysics):
    """Keeps its gains, given per image, as one tensor for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gains", torch.ones(1, 1, 1, 1))

    def update_parameters(self, gains: Tensor, **_: object) -> None:
        self.gains = gains.reshape(1, gains.shape[0], 1, 1)

    def A(self, x: Tensor, **_: object) -> Tensor:
        return x * self.gains

    def A_adjoint(self, y: Tensor, **_: object) -> Tensor:
        return y * self.gains


def test_parameters_that_lose_their_first_axis_are_refused():
    energy = lr.Energy(Swallowing(), lr.regularizers.TV(1e-2) + lr.regularizers.Tikhonov(1e-2))
    y = torch.rand(2, 2, 4, 4)
    with pytest.raises(InputError, match="slice per image"):
        lr.solve(energy, y, eps=1e-2, params={"gains": torch.tensor([1.0, 3.0])[:, None]})
