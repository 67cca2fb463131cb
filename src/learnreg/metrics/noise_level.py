"""The standard deviation of white noise, from the image alone."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ..core.errors import InputError

LEAST_SIDE = 16
"""Images below it have too few details to tell noise from structure."""

WINDOW = 5
"""Side of the neighbourhoods, in details, in which activity is averaged."""

SHARE = 0.3
"""Of the neighbourhoods so many are taken, the flattest ones: at 0.1 textures come in, at 0.02
noise is measured on too few.
"""

LEAST_COUNT = 300
"""So many details at least: a standard deviation known to about 4 per cent."""

CLIPPED = 0.03
"""Neighbourhoods with more clipped pixels than this say too little of the noise."""

HOPELESS = 0.3
"""Where even the best neighbourhoods are clipped to this extent there is no telling."""

LIMIT = 1 << 22
"""Pixels that are looked at; of larger images strips of ``STRIP`` rows, evenly spread."""

STRIP = 64

MEDIAN = 0.6744897501960817
"""Median of |n| for a standard normal n."""

WINSOR = 2.5
"""Details beyond so many deviations count as being there."""

WINSORIZED = 0.9775599834528067
"""E min(n^2, 2.5^2) for a standard normal n."""


def estimate_sigma(y: Tensor) -> Tensor:
    """The standard deviation of white Gaussian noise on images, per image.

    The finest diagonal Haar details of a flat region are pure noise (Donoho and Johnstone,
    Biometrika 81 (1994), take the median of their moduli over the whole image). Textures make
    details too, so only the flattest 30 per cent of the image are looked at. What is flat is told
    by horizontal and vertical details, which are independent of the diagonal ones in white noise,
    hence this choice makes no bias. Neighbourhoods with pixels at the ends of the range, where
    noise was clipped, are left out.

    On photographs in [0, 1] the relative error is within 10 per cent for sigma from 0.05 to 0.2,
    and within 40 for 0.02, where textures look like noise; clipped at 0 and 1 (8-bit files) and at
    0.3 it is up to 30 per cent too small.
    ``docs/noise_levels.md`` has the table. Noise that is not white (of scaled, demosaicked or
    compressed pictures) is underestimated, and so is noise in the measurements of masks.

    Args:
        y: images or measurements like images, (b, c, ..., h, w), in any units; channels and
            slices are taken together.

    Returns:
        (b,), float64, in the units of y; 0 for a constant image.

    Raises:
        InputError: no such tensor, NaN or Inf, sides below 16 pixels, complex numbers, or images of
            which most pixels are at the ends of the range or exactly zero (masks).

    Example:
        ``estimate_sigma(x + 0.1 * torch.randn_like(x))`` is about 0.1.
    """
    _check(y)
    slices = y.detach().flatten(1, -3)
    return torch.stack([_of_image(image, i) for i, image in enumerate(slices)])


def _check(y: Tensor) -> None:
    if not isinstance(y, Tensor) or not y.is_floating_point():
        complex_ = isinstance(y, Tensor) and y.is_complex()
        raise InputError(
            "y",
            given=f"{y.dtype}" if isinstance(y, Tensor) else type(y).__name__,
            expected="real floating-point images (b, c, h, w)",
            remedy="Take the real part of images, y.real; noise in k-space is not estimated."
            if complex_
            else "Convert them with .float().",
        )
    if y.dim() < 4 or min(y.shape[-2:]) < LEAST_SIDE or y.numel() == 0:
        raise InputError(
            "y",
            given=f"shape {tuple(y.shape)}",
            expected=f"(b, c, h, w) with h, w >= {LEAST_SIDE}",
            remedy="Say the noise level of signals and of smaller images.",
        )
    if not bool(torch.isfinite(y).all()):
        raise InputError("y", given="NaN or Inf", expected="finite pixels")


def _of_image(image: Tensor, index: int) -> Tensor:
    """sigma of one image (c, h, w), a number in float64."""
    image = _strips(image.double())
    low, high = image.amin(), image.amax()
    if bool(low == high):
        return torch.zeros((), dtype=torch.float64, device=image.device)
    # in units of its own range, so that squares neither overflow nor vanish
    scaled = ((image - low) / (high - low))[:, None]
    doubtful = ((image == low) | (image == high) | (image == 0))[:, None].double()
    details, activity, clipped = _on_all_grids(scaled, doubtful)
    usable = clipped <= CLIPPED
    if int(usable.sum()) < LEAST_COUNT:
        enough = min(LEAST_COUNT, clipped.numel())
        worst = clipped.kthvalue(enough).values
        if float(worst) > HOPELESS:
            raise InputError(
                f"image {index}",
                given=f"{float(clipped.mean()):.0%} of the pixels at the ends of the range or zero",
                expected="noise that shows: neither clipped nor masked",
                remedy="Say the noise level instead of having it estimated.",
            )
        usable = clipped <= worst
    details, activity = details[usable], activity[usable]
    count = min(len(activity), max(LEAST_COUNT, round(SHARE * len(activity))))
    flat = details[activity <= activity.kthvalue(count).values]
    return _deviation(flat) * (high - low)


def _strips(image: Tensor) -> Tensor:
    """(c, h, w), or of a large image strips of it, (n, STRIP, w)."""
    step = -(-image.numel() // LIMIT)
    if step == 1 or image.shape[-2] < STRIP:
        return image
    return image.unfold(-2, STRIP, STRIP * step).flatten(0, 1).mT


def _on_all_grids(scaled: Tensor, doubtful: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What ``_details`` finds in the four positions of the grid, flat."""
    found = [_details(scaled[..., i:, j:], doubtful[..., i:, j:]) for i in (0, 1) for j in (0, 1)]
    details, activity, clipped = (torch.cat([f[k] for f in found]) for k in range(3))
    return details, activity, clipped


def _details(scaled: Tensor, doubtful: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Diagonal Haar details of images (c, 1, h, w), the mean square of the other two kinds around
    each, and the share of doubtful pixels there; flat.
    """
    h, w = (side // 2 * 2 for side in scaled.shape[-2:])
    a, b = scaled[..., 0:h:2, 0:w:2], scaled[..., 0:h:2, 1:w:2]
    c, d = scaled[..., 1:h:2, 0:w:2], scaled[..., 1:h:2, 1:w:2]
    diagonal = (a - b - c + d) / 2
    others = ((a + b - c - d) / 2).square() + ((a - b + c - d) / 2).square()
    share = avg_pool2d(doubtful[..., :h, :w], 2)
    return diagonal.flatten(), _around(others).flatten(), _around(share).flatten()


def _around(t: Tensor) -> Tensor:
    return avg_pool2d(t, WINDOW, stride=1, padding=WINDOW // 2, count_include_pad=False)


def _deviation(details: Tensor) -> Tensor:
    """By the median of the moduli, then by squares that outliers cannot reach.

    The second step uses all details, and does not move in the steps of 8-bit data.
    """
    first = details.abs().median() / MEDIAN
    limited = torch.minimum(details.square(), (WINSOR * first).square())
    return (limited.mean() / WINSORIZED).sqrt()
