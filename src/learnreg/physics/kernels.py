"""Kernels of blurs, sampling patterns and coil maps: tensors made of a few numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from ..core.errors import InputError

FINE = 9
"""Points per pixel and direction from which the weights of a kernel are averaged."""

Kernel: TypeAlias = Literal["gaussian", "disk", "box", "motion"]
Pattern: TypeAlias = Literal["gaussian", "uniform", "equispaced", "radial"]


def kernel_of(name: Kernel, width: float, across: float | None, angle: float) -> Tensor:
    """A kernel (1, 1, k, k), k odd, >= 0, with sum 1.

    Args:
        name: "gaussian" (standard deviations width and across), "disk" (radius width), "box" (half
            a side, width by across), "motion" (a line of length 2 width).
        width: in pixels.
        across: in pixels; as ``width`` when None, 0 for "motion".
        angle: in degrees, counter-clockwise.
    """
    second = width if across is None else across
    reach = max(width, second)
    half = math.ceil(3 * reach if name == "gaussian" else reach)
    offsets = (torch.arange(FINE, dtype=torch.float64) + 0.5) / FINE - 0.5
    axis = (torch.arange(-half, half + 1, dtype=torch.float64)[:, None] + offsets).flatten()
    down, right = torch.meshgrid(axis, axis, indexing="ij")
    turn = math.radians(angle)
    u = math.cos(turn) * right - math.sin(turn) * down
    v = math.sin(turn) * right + math.cos(turn) * down

    if name == "gaussian":
        fine = torch.exp(-0.5 * ((u / width) ** 2 + (v / second) ** 2))
    elif name == "disk":
        fine = (u**2 + v**2 <= width**2).double()
    elif name == "box":
        fine = ((u.abs() <= width) & (v.abs() <= second)).double()
    else:
        fine = ((u.abs() <= width) & (v.abs() <= 0.5)).double()

    kernel = torch.nn.functional.avg_pool2d(fine[None, None], FINE)
    kernel = kernel / kernel.sum()
    return kernel.float()


def line_mask(
    pattern: Pattern, size: tuple[int, int], acceleration: int, center: float | None, seed: int
) -> Tensor:
    """A mask (h, w) of measured frequencies, zero frequency in the middle, by deepinv's generators;
    "radial" are spokes of our own.

    Raises:
        InputError: more lines in the middle than measurements.
    """
    if pattern == "radial":
        return _spokes(size, acceleration)

    from deepinv.physics import generator

    width = size[1]
    share = (0.08 if acceleration < 8 else 0.04) if center is None else center
    if int(share * width) >= width // acceleration:
        raise InputError(
            "center_fraction",
            given=f"{share:g} of {width} lines with acceleration {acceleration}",
            expected=f"less than {(width // acceleration) / width:.3g}: "
            f"{width // acceleration} lines are measured altogether",
            remedy="Choose a smaller center_fraction, a smaller acceleration or larger images.",
        )
    kinds = {
        "gaussian": generator.GaussianMaskGenerator,
        "uniform": generator.RandomMaskGenerator,
        "equispaced": generator.EquispacedMaskGenerator,
    }
    rng = torch.Generator().manual_seed(seed)
    made = kinds[pattern](img_size=size, acceleration=acceleration, center_fraction=share, rng=rng)
    mask: Tensor = made.step(batch_size=1)["mask"]
    return mask[0, 0]


def _spokes(size: tuple[int, int], acceleration: int) -> Tensor:
    """Straight lines through the middle at equal angles, as many as it takes."""
    height, width = size
    middle = (height // 2, width // 2)
    reach = torch.linspace(-1, 1, 4 * max(size), dtype=torch.float64) * math.hypot(*size) / 2
    mask = torch.zeros(size)
    for count in range(1, 4 * max(size)):
        mask = torch.zeros(size)
        angles = torch.arange(count, dtype=torch.float64) * math.pi / count
        rows = (middle[0] + reach * angles.sin()[:, None]).round().long().flatten()
        columns = (middle[1] + reach * angles.cos()[:, None]).round().long().flatten()
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        mask[rows[inside], columns[inside]] = 1.0
        if float(mask.mean()) >= 1 / acceleration:
            break
    return mask


def coil_maps(count: int, size: tuple[int, int]) -> Tensor:
    """Smooth sensitivities (count, h, w), complex64, of coils on a ring around the image.

    Each falls off with the distance from its coil and has a phase that turns with the direction;
    their squares sum to one in every pixel.
    """
    rows, columns = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in size)
    down, right = torch.meshgrid(rows, columns, indexing="ij")
    maps = []
    for angle in torch.arange(count, dtype=torch.float64) * 2 * math.pi / count:
        du, dv = right - 1.5 * angle.cos(), down - 1.5 * angle.sin()
        maps.append(torch.polar(1 / (du**2 + dv**2), torch.atan2(dv, du)))
    stacked = torch.stack(maps)
    return (stacked / stacked.abs().square().sum(dim=0).sqrt()).to(torch.complex64)


def subsampling_filter(name: str, factor: int) -> Tensor:
    """The filter before a super-resolution's subsampling, by deepinv, (1, 1, k, k)."""
    from deepinv.physics import functional

    if name == "gaussian":
        made: Tensor = functional.gaussian_blur(sigma=(factor, factor))
    elif name == "bilinear":
        made = functional.bilinear_filter(factor)
    elif name == "bicubic":
        made = functional.bicubic_filter(factor)
    else:
        made = functional.sinc_filter(factor, length=4 * factor)
    return made / made.sum()


@contextmanager
def own_numbers() -> Iterator[None]:
    """Random numbers that are the same every time, and none taken from the caller's.

    why: deepinv starts the power iteration of its norm at a random image, so that two operators of
    the same settings differed in the sixth digit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
