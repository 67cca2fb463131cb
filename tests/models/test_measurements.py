"""Models whose measurements are no images: what a call takes and gives back."""

from __future__ import annotations

import deepinv as dinv
import numpy as np
import pytest
import torch
from torch import Tensor

import learnreg as lr

SETUPS = {
    "CT": (lr.physics.CT(angles=12), (16, 16)),
    "fan": (lr.physics.CT(angles=9, geometry="fan"), (16, 16)),
    "PET": (lr.physics.PET(angles=12), (16, 16)),
    "valid": (lr.physics.Blur(width=0.5, padding="valid"), (14, 16)),
    "superresolution": (lr.physics.SuperResolution(2, filter="bilinear"), (16, 24)),
}


def saved(physics: torch.nn.Module, tmp_path, fidelity: object = None) -> lr.Energy:
    ridge = lr.regularizers.Tikhonov(0.1, learned=False)
    energy = lr.Energy(physics, lr.regularizers.TV(0.01, 0.5) + ridge, fidelity)
    lr.save_model(tmp_path / "model.safetensors", energy)
    return energy


@pytest.mark.parametrize("name", SETUPS)
@pytest.mark.parametrize("kind", ["h w", "h w 1", "tensor", "c h w", "b c h w"])
def test_measurements_come_back_as_an_image_of_their_kind(name, kind, tmp_path):
    setup, size = SETUPS[name]
    physics = setup.build(size)
    energy = saved(physics, tmp_path)
    y = physics.A(torch.rand(1, 1, *size))
    given = {
        "h w": y[0, 0].numpy(),
        "h w 1": y[0, 0, :, :, None].numpy(),
        "tensor": y[0, 0],
        "c h w": y[0],
        "b c h w": y.expand(2, *y.shape[1:]),
    }[kind]
    found = lr.load(tmp_path, eps=1e-2)(given)
    assert type(found) is type(given) and found.dtype == given.dtype
    batch = given.shape[:1] if kind == "b c h w" else ()
    assert found.shape[:1] == batch + size[: 1 - len(batch)] or found.shape[-2:] == size
    exact = lr.solve(energy, y, eps=1e-2).value
    flat = torch.as_tensor(found).reshape(-1, *size)
    assert all(torch.dist(image, exact[0, 0]) <= 2e-2 for image in flat)


@pytest.mark.parametrize("type_", [np.uint8, np.uint16, np.int32, np.int64])
def test_counts_keep_their_numbers(type_, tmp_path):
    """Integers are no pictures in [0, 1] where they are counts."""
    physics = dinv.physics.Denoising(dinv.physics.PoissonNoise(1.0, normalize=False))
    energy = saved(physics, tmp_path, lr.KL(1.0))
    counts = np.random.default_rng(0).poisson(20, (8, 8))
    model = lr.load(tmp_path, eps=1e-2)
    exact = lr.solve(energy, torch.tensor(counts)[None, None].float(), eps=1e-2).value[0, 0]
    for given in (counts.astype(type_), torch.tensor(counts)):
        found = torch.as_tensor(model(given))
        assert found.is_floating_point() and torch.dist(found, exact) <= 2e-2


def test_pictures_in_integers_are_still_pictures(tmp_path):
    saved(lr.physics.Blur(width=0.5).build((16, 16), noise=lr.physics.NoNoise()), tmp_path)
    picture = np.full((16, 16), 128, np.uint8)
    assert abs(int(lr.load(tmp_path)(picture).mean()) - 128) <= 30


class Fourier(dinv.physics.LinearPhysics):
    def A(self, x: Tensor, **_: object) -> Tensor:
        return torch.fft.fft2(x, norm="ortho")

    def A_adjoint(self, y: Tensor, **_: object) -> Tensor:
        return torch.fft.ifft2(y, norm="ortho").real


@pytest.mark.filterwarnings("ignore:.*names the physics")
def test_complex_measurements_keep_both_parts(tmp_path):
    physics = Fourier()
    energy = saved(physics, tmp_path)
    y = physics.A(torch.rand(2, 1, 8, 8))
    found = lr.load(tmp_path, eps=1e-2, physics=physics).reconstruct(y)
    assert torch.dist(found.value, lr.solve(energy, y, eps=1e-2).value) <= 4e-2
