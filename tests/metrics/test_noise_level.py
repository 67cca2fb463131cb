"""The noise of an image from the image alone: photographs, flat and clipped ones, every unit."""

import pytest
import torch

import learnreg as lr
from learnreg.data.images import load_natural
from learnreg.metrics import estimate_sigma


def photographs(side=192):
    names = ("astronaut", "camera", "chelsea", "coffee")
    return torch.stack([load_natural(name)[:, 40 : 40 + side, 60 : 60 + side] for name in names])


def noisy(x, sigma, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return x + sigma * torch.randn(x.shape, generator=generator, dtype=x.dtype)


@pytest.mark.parametrize(("sigma", "most"), [(0.02, 0.2), (0.05, 0.1), (0.1, 0.06), (0.3, 0.06)])
def test_photographs(sigma, most):
    found = estimate_sigma(noisy(photographs(), sigma))

    assert found.shape == (4,)
    assert bool(((found / sigma - 1).abs() < most).all()), found


@pytest.mark.parametrize(("sigma", "most"), [(0.05, 0.1), (0.1, 0.1), (0.2, 0.15), (0.3, 0.3)])
def test_noise_that_was_clipped_and_rounded_to_8_bits(sigma, most):
    y = (noisy(photographs(), sigma).clamp(0, 1) * 255).round() / 255

    assert bool(((estimate_sigma(y) / sigma - 1).abs() < most).all()), estimate_sigma(y)


def test_textures_mislead_less_than_by_the_median_of_all_details():
    y = noisy(photographs(), 0.02)
    a, b, c, d = y[..., ::2, ::2], y[..., ::2, 1::2], y[..., 1::2, ::2], y[..., 1::2, 1::2]
    median = ((a - b - c + d) / 2).abs().flatten(1).median(dim=1).values / 0.6745

    ours = (estimate_sigma(y) / 0.02 - 1).abs().max()

    assert ours < 0.5 * (median / 0.02 - 1).abs().max()


@pytest.mark.parametrize(
    "shape", [(2, 1, 64, 64), (2, 3, 40, 56), (2, 1, 5, 32, 32), (2, 1, 17, 90)]
)
def test_noise_alone(shape):
    found = estimate_sigma(noisy(torch.full(shape, 0.5), 0.07))

    assert bool(((found / 0.07 - 1).abs() < 0.12).all())


@pytest.mark.parametrize("scale", [1e-30, 255.0, 4095.0, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_unit_and_offset(scale, dtype):
    y = noisy(photographs(96), 0.1)[:2]
    expected = estimate_sigma(y) * scale

    torch.testing.assert_close(estimate_sigma(y.to(dtype) * scale), expected, rtol=1e-3, atol=0.0)
    moved = (y.double() - 0.7) * scale
    torch.testing.assert_close(estimate_sigma(moved), expected, rtol=0.05, atol=0.0)


def test_images_of_a_batch_are_strangers():
    y = torch.cat([noisy(photographs(64)[:2], 0.05), noisy(photographs(64)[2:], 30.0)])

    for i in range(4):
        assert estimate_sigma(y)[i] == estimate_sigma(y[i : i + 1])[0]


def test_a_large_image_is_looked_at_in_strips():
    y = noisy(torch.linspace(0, 1, 2100).expand(1, 1, 2100, 2100), 0.1)

    assert float(estimate_sigma(y)) == pytest.approx(0.1, rel=0.02)


def test_without_noise_there_is_none():
    steps = torch.zeros(1, 1, 64, 64)
    steps[..., 20:, :] = 0.5
    steps[..., 40:, :] = 1.0
    steps[..., :, 32:] += 0.25

    assert float(estimate_sigma(torch.full((1, 1, 32, 32), 0.3))) == 0.0
    assert float(estimate_sigma(steps)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (torch.rand(1, 1, 8, 8), "h, w >= 16"),
        (torch.rand(1, 40, 40), "h, w >= 16"),
        (torch.rand(0, 1, 40, 40), "h, w >= 16"),
        (torch.zeros(1, 1, 40, 40, dtype=torch.uint8), "floating-point"),
        (torch.zeros(1, 1, 40, 40, dtype=torch.complex64), "real"),
        ([[0.5]], "floating-point"),
        (torch.full((1, 1, 40, 40), torch.nan), "finite"),
        ((torch.rand(1, 1, 40, 40) > 0.5).float() * torch.rand(1, 1, 40, 40), "masked"),
        ((torch.randn(1, 1, 40, 40)).sign(), "clipped"),
    ],
    ids=["small", "no batch", "empty", "bytes", "complex", "list", "NaN", "mask", "clipped"],
)
def test_where_there_is_no_telling_it_says_so(y, words):
    with pytest.raises(lr.InputError, match=words):
        estimate_sigma(y)
