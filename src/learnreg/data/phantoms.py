"""Phantoms: piecewise smooth images made of random ellipses and rectangles."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .seeds import check_count, check_seed, generator

SHAPES = (4, 9)  # fewest and most shapes in one image
_FINE = 2  # drawn this much finer and averaged, so that edges fall between pixels as a camera's do


def phantoms(n: int, size: int, seed: int, channels: int = 1) -> Tensor:
    """Random piecewise smooth images.

    Each image is a shaded background under 4 to 9 rotated ellipses and rectangles that hide one
    another; a shape's grey level is ``level + slope . position``, so that an image is smooth (not
    constant) between sharp edges.

    Args:
        n: how many images; the first k images are the same for every n >= k.
        size: height and width in pixels, at least 8.
        seed: non-negative integer.
        channels: with more than one, every channel of a shape has a level and a slope of its own.

    Returns:
        (n, channels, size, size), float32 in [0, 1].

    Raises:
        InputError: n < 0, size < 8, channels < 1 or a seed that is not a non-negative integer.
    """
    check_count(n, "n", least=0, remedy="Pass the number of images.")
    check_count(size, "size", least=8, remedy="Smaller phantoms would show no shape.")
    check_seed(seed)
    check_count(channels, "channels", least=1, remedy="Pass the number of channels.")
    images = [_phantom(size, channels, generator(seed, "phantom", index)) for index in range(n)]
    return torch.stack(images) if images else torch.zeros(0, channels, size, size)


def _phantom(size: int, channels: int, rng: torch.Generator) -> Tensor:
    """One phantom (channels, size, size)."""

    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=rng))

    axis = (torch.arange(size * _FINE) + 0.5) / (size * _FINE) * 2 - 1
    v, u = torch.meshgrid(axis, axis, indexing="ij")

    def shading() -> Tensor:
        return torch.stack(
            [
                draw(0.1, 0.9) + draw(-0.15, 0.15) * u + draw(-0.15, 0.15) * v
                for _ in range(channels)
            ]
        )

    image = shading()
    for _ in range(int(torch.randint(SHAPES[0], SHAPES[1] + 1, (), generator=rng))):
        angle, across, along = draw(0, math.pi), draw(0.08, 0.5), draw(0.08, 0.5)
        du, dv = u - draw(-0.8, 0.8), v - draw(-0.8, 0.8)
        a = (math.cos(angle) * du + math.sin(angle) * dv) / across
        b = (math.cos(angle) * dv - math.sin(angle) * du) / along
        ellipse = draw(0, 1) < 0.5
        inside = (a.square() + b.square() < 1) if ellipse else (torch.maximum(a.abs(), b.abs()) < 1)
        image = torch.where(inside, shading(), image)
    return torch.nn.functional.avg_pool2d(image[None], _FINE)[0].clamp(0, 1)
