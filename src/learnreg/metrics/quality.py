"""A metric of every image of a data set, at the scale of the whole set."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..core.errors import InputError
from .image import Scale, psnr, scale_of, ssim


def measured(
    metric: Callable[..., Tensor], image: Tensor, truth: Tensor, scale: Scale
) -> tuple[float, ...]:
    """A metric of every image (b, ...) at the scale of the data set; NaN where it is not
    defined.
    """
    unknown = (math.nan,) * len(truth)
    if image.shape != truth.shape:
        return unknown

    modulus = image.is_complex() or truth.is_complex()
    if modulus:
        image, truth = image.abs(), truth.abs()
    values = [math.nan] * len(truth)
    for i, peak in enumerate(scale.peak.tolist()):
        if not peak > 0:
            continue
        clip = bool(torch.isfinite(scale.high[i]))
        with contextlib.suppress(InputError):  # SSIM is not defined for images of this shape
            one = metric(image[i : i + 1], truth[i : i + 1], max_pixel=peak, clip=clip)
            values[i] = float(one)
    return tuple(values)


def qualities(image: Tensor, truth: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """PSNR and SSIM of every image (b, ...) as ``Run.evaluate`` measures them."""
    scale = scale_of(truth, together=True)
    image = image.to(truth.device)
    return measured(psnr, image, truth, scale), measured(ssim, image, truth, scale)
