"""Image metrics, one number per image: a mean over the batch would hide the worst image."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.errors import InputError

SSIM_LEAST = 11  # the side of the SSIM window


def mse(x: Tensor, ref: Tensor) -> Tensor:
    """Mean squared error ``mean((x - ref)^2)`` of each image.

    Args:
        x: images (b, ...).
        ref: true images, same shape.

    Returns:
        (b,); NaN for an image with NaN pixels.

    Raises:
        InputError: shapes that differ, no batch dimension, no pixels, or pixels that are not
            floating point.
    """
    _check(x, ref)
    return (x - ref).square().flatten(1).mean(dim=1)


def psnr(x: Tensor, ref: Tensor, *, max_pixel: float = 1.0, clip: bool = True) -> Tensor:
    """Peak signal-to-noise ratio in decibels, of each image::

        PSNR = 10 log10( max_pixel^2 / mean( (clip(x) - clip(ref))^2 ) )

    with ``clip`` to [0, max_pixel], the range a viewer shows.

    Args:
        x: images (b, ...).
        ref: true images, same shape.
        max_pixel: brightest possible pixel, positive.
        clip: False compares the pixels as they are.

    Returns:
        (b,), in dB; inf for identical images, NaN for an image with NaN pixels.

    Raises:
        InputError: as :func:`mse`, or max_pixel that is not a positive number.
    """
    if not 0 < max_pixel < float("inf"):
        raise InputError(
            "max_pixel",
            given=max_pixel,
            expected="a positive number",
            remedy="Images of learnreg lie in [0, 1]: leave max_pixel=1.",
        )
    _check(x, ref)
    if clip:
        x, ref = x.clamp(0, max_pixel), ref.clamp(0, max_pixel)
    return -10 * torch.log10(mse(x / max_pixel, ref / max_pixel))


def ssim(x: Tensor, ref: Tensor, *, clip: bool = True) -> Tensor:
    """Structural similarity of each image, as in deepinv (Gaussian window 11 x 11, sigma 1.5).

    Args:
        x: images (b, c, h, w), h and w at least 11.
        ref: true images, same shape, in [0, 1].
        clip: clip both to [0, 1] first, as :func:`psnr` does.

    Returns:
        (b,), at most 1; the mean over channels and windows. NaN for an image with NaN pixels.

    Raises:
        InputError: as :func:`mse`, not four dimensions, or images smaller than the window.
    """
    _check(x, ref)
    if x.dim() != 4 or min(x.shape[2:]) < SSIM_LEAST:
        raise InputError(
            "x",
            given=f"shape {tuple(x.shape)}",
            expected=f"shape (b, c, h, w) with h, w >= {SSIM_LEAST}, the window of SSIM",
            remedy="Compare larger images, or use psnr.",
        )
    from deepinv.loss.metric import SSIM

    if clip:
        x, ref = x.clamp(0, 1), ref.clamp(0, 1)
    dtype = torch.promote_types(x.dtype, ref.dtype)
    x, ref, metric = x.to(dtype), ref.to(dtype), SSIM()
    # one image at a time: no number may depend on its neighbours, not even in its last digit
    return torch.cat([metric(x[i : i + 1], ref[i : i + 1]).reshape(1) for i in range(len(x))])


def _check(x: Tensor, ref: Tensor) -> None:
    for what, tensor in (("x", x), ("ref", ref)):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            given = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise InputError(
                what,
                given=given,
                expected="a floating-point tensor (b, c, h, w)",
                remedy="Convert with .float() and scale to [0, 1].",
            )
    if x.shape != ref.shape or x.dim() < 2 or x.numel() == 0:
        raise InputError(
            "x and ref",
            given=f"shapes {tuple(x.shape)} and {tuple(ref.shape)}",
            expected="equal shapes (b, c, h, w) with at least one image",
            remedy="Add a batch dimension with x[None]; the two are compared image by image.",
        )
