"""The start of Fields of Experts for images of several channels."""

import math

import pytest
import torch

import learnreg as lr
from learnreg.data.images import NATURAL, load_image
from learnreg.regularizers import FoE


def photographs(size: int = 40) -> torch.Tensor:
    """Coloured crops of the photographs in the wheel of scikit-image, (3, 3, size, size)."""
    import skimage

    folder = skimage.__path__[0]
    crops = [
        load_image(f"{folder}/data/{NATURAL[name][0]}", channels=3)[:, 100:, 150:]
        for name in ("astronaut", "chelsea", "coffee")
    ]
    return torch.stack([crop[:, :size, :size] for crop in crops])


def start_loss(regularizer: FoE, y: torch.Tensor, x: torch.Tensor) -> float:
    """Sum of squared errors of the reconstruction before anything is learned."""
    import deepinv as dinv

    energy = lr.Energy(dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1)), regularizer)
    return float((lr.solve(energy, y, eps=0.05).value - x).square().sum())


@pytest.mark.parametrize("sigma", [0.1, 0.2])
def test_colour_starts_no_worse_than_its_channels_one_by_one(sigma: float) -> None:
    x = photographs()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    y = x + sigma * noise

    colour = start_loss(FoE(24, 5, channels=3), y, x)
    grey = start_loss(FoE(24, 5), *(t.flatten(0, 1)[:, None] for t in (y, x)))

    assert colour <= grey


@pytest.mark.parametrize("channels", [4, 6])
def test_other_numbers_of_channels_start_no_worse_either(channels: int) -> None:
    x = photographs(32)[:, :1].expand(-1, channels, -1, -1)
    x = x * torch.linspace(0.6, 1, channels).view(-1, 1, 1)
    y = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))

    coupled = start_loss(FoE(8 * channels, 3, channels=channels), y, x)
    grey = start_loss(FoE(8, 3), *(t.flatten(0, 1)[:, None] for t in (y, x)))

    assert coupled <= grey


def test_colour_treats_grey_pictures_as_grey_does() -> None:
    x = photographs()[:, :1]
    colour, grey = FoE(24, 3, channels=3), FoE(8, 3)
    of_brightness = torch.arange(24) % 3 == 0

    # the brightness of (x, x, x) is sqrt(3) x, and a third of the filters sees it
    torch.testing.assert_close(colour.effective()[1][of_brightness], grey.effective()[1])
    assert torch.allclose(colour.value(x.expand(-1, 3, -1, -1)), grey.value(math.sqrt(3) * x))


@pytest.mark.parametrize("channels", [3, 4, 7])
def test_mixtures_are_orthonormal_and_take_turns(channels: int) -> None:
    kernels = FoE(2 * channels, 3, channels=channels).effective()[0].double().flatten(2)

    for turn in (0, 1):
        u, s, _ = torch.linalg.svd(kernels[turn * channels : (turn + 1) * channels])
        assert bool((s[:, 1:] < 1e-6).all())  # one mixture times one pattern
        mixtures = u[:, :, 0]
        assert torch.allclose(mixtures @ mixtures.T, torch.eye(channels).double(), atol=1e-6)


@pytest.mark.parametrize(
    "channels, meant", [(1, "dct"), (2, "dct"), (3, "opponent"), (5, "opponent")]
)
def test_what_auto_stands_for(channels: int, meant: str) -> None:
    auto, named = (FoE(10, 5, channels=channels, init=init) for init in ("auto", meant))

    assert all(
        torch.equal(a, b) for a, b in zip(auto.parameters(), named.parameters(), strict=True)
    )


def test_one_channel_has_one_start() -> None:
    plain, mixed = FoE(24, 5), FoE(24, 5, init="opponent")

    assert all(
        torch.equal(a, b) for a, b in zip(plain.parameters(), mixed.parameters(), strict=True)
    )


def test_a_weight_that_is_given_is_kept() -> None:
    weights = FoE(12, 3, channels=3, weight=0.02).effective()[1]

    assert float(weights.mean()) == pytest.approx(0.02)


def test_more_filters_than_patterns_are_refused() -> None:
    with pytest.raises(lr.InputError, match="at most 24 for init='opponent' and size 3"):
        FoE(25, 3, channels=3)
