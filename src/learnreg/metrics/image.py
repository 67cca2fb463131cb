"""Image metrics, one number per image: a mean over the batch would hide the worst image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.batch import expand
from ..core.errors import InputError
from ..core.ranges import check_flag, check_positive, shown

SSIM_LEAST = 11  # the side of the SSIM window

DIM = 0.05
"""Pictures that are nowhere brighter are data in other units rather than dark photographs."""

ROUNDING = 1e-5
"""Pixels may leave [-1, 1] by so much, the work of a resampling or of float32."""


@dataclass(frozen=True)
class Scale:
    """The peak of PSNR and SSIM, and the range that pixels are clipped to.

    Attributes:
        peak: (b,) float64, NaN where none is defined.
        low, high: (b,) float64, infinite where nothing is clipped.
    """

    peak: Tensor
    low: Tensor
    high: Tensor


def scale_of(ref: Tensor, *, together: bool = False) -> Scale:
    """The peak that suits true images, per image.

    Data in units where white is 1, that is within [-1, 1], of a range of at most 1 and somewhere
    brighter than 0.05, have peak 1, and those without negative pixels are clipped to [0, 1], the
    range a viewer shows. All others have their own range, max - min, as peak and are not clipped.

    Args:
        ref: true images (b, ...); of complex ones the moduli.
        together: whether one picture beyond the limits means that all of them are in other units;
            for images of one data set.
    """
    flat = (ref.abs() if ref.is_complex() else ref).detach().flatten(1).double()
    low, high = flat.amin(dim=1), flat.amax(dim=1)
    if together:
        low, high = low.min().expand_as(low), high.max().expand_as(high)
    unit = _in_units_of_white(low, high)

    extent = flat.amax(dim=1) - flat.amin(dim=1)
    if together:  # a constant picture has no range of its own
        extent = torch.where(extent > 0, extent, high - low)
    own = torch.where(extent > 0, extent, torch.nan)

    clipped = unit & (low >= -ROUNDING)
    return Scale(
        torch.where(unit, 1.0, own),
        torch.where(clipped, 0.0, -torch.inf).double(),
        torch.where(clipped, 1.0, torch.inf).double(),
    )


def _in_units_of_white(low: Tensor, high: Tensor) -> Tensor:
    largest, extent = torch.maximum(low.abs(), high.abs()), high - low
    fits = (largest <= 1 + ROUNDING) & (extent <= 1 + ROUNDING)
    return fits & ((largest >= DIM) | (extent == 0))


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


def psnr(
    x: Tensor,
    ref: Tensor,
    *,
    max_pixel: float | Tensor | None = None,
    clip: bool | None = None,
    modulus: bool = False,
) -> Tensor:
    """Peak signal-to-noise ratio in decibels, of each image::

        PSNR = 10 log10( max_pixel^2 / mean( (x - ref)^2 ) )

    The peak follows from the true image (see :func:`scale_of`): 1 where white is 1, and then pixels
    are clipped to [0, 1], the range a viewer shows; max - min of the true image otherwise
    (Hounsfield units, 0 to 255, ...), as scikit-image has it with that ``data_range``, and then
    nothing is clipped.

    Args:
        x: images (b, ...), of any number of dimensions.
        ref: true images, same shape.
        max_pixel: the peak, one or (b,), positive; see above when None.
        clip: True clips both to [0, max_pixel] (to the range of ``ref`` where the peak is that),
            False compares the pixels as they are. When None, both are clipped only where ``ref``
            itself lies within.
        modulus: compare the moduli of complex images, or of real ones with two channels, real and
            imaginary part.

    Returns:
        (b,), in dB; inf for identical images, NaN for an image with NaN pixels and for a constant
        true image that has no peak.

    Raises:
        InputError: as :func:`mse`, complex images without ``modulus``, or max_pixel that is not a
            positive number.
    """
    x, ref = _ready(x, ref, modulus)
    scale = _scale(ref, max_pixel, clip)
    error = mse(_clipped(x, scale), _clipped(ref, scale))
    return 20 * torch.log10(scale.peak.to(error)) - 10 * torch.log10(error)


def data_psnr(x: Tensor, ref: Tensor) -> Tensor:
    """:func:`psnr` (b,) of the images of one data set, which has one unit; of complex ones by their
    moduli.
    """
    scale = scale_of(ref, together=True)
    x, ref = (v.abs() if v.is_complex() else v for v in (x, ref))
    error = mse(_clipped(x, scale), _clipped(ref, scale))
    return 20 * torch.log10(scale.peak.to(error)) - 10 * torch.log10(error)


def ssim(
    x: Tensor,
    ref: Tensor,
    *,
    max_pixel: float | Tensor | None = None,
    clip: bool | None = None,
    modulus: bool = False,
) -> Tensor:
    """Structural similarity of each image, as in deepinv (Gaussian window 11 x 11, sigma 1.5).

    Args:
        x: images (b, c, h, w), h and w at least 11.
        ref: true images, same shape.
        max_pixel: the range of the data; max_pixel, ``clip`` and ``modulus`` as in :func:`psnr`.

    Returns:
        (b,), at most 1; the mean over channels and windows. NaN for an image with NaN pixels and
        for a constant true image that has no peak.

    Raises:
        InputError: as :func:`psnr`, not four dimensions, or images smaller than the window.
    """
    x, ref = _ready(x, ref, modulus)
    if x.dim() != 4 or min(x.shape[2:]) < SSIM_LEAST:
        raise InputError(
            "x",
            given=f"shape {tuple(x.shape)}",
            expected=f"shape (b, c, h, w) with h, w >= {SSIM_LEAST}, the window of SSIM",
            remedy="Compare larger images, or use psnr.",
        )

    scale = _scale(ref, max_pixel, clip)
    x, ref = _clipped(x, scale), _clipped(ref, scale)
    dtype = torch.promote_types(x.dtype, ref.dtype)
    x, ref, peaks = x.to(dtype), ref.to(dtype), scale.peak.tolist()
    # one image at a time: no number may depend on its neighbours, not even in its last digit
    return torch.cat([_similar(x[i : i + 1], ref[i : i + 1], peaks[i]) for i in range(len(x))])


def _similar(x: Tensor, ref: Tensor, peak: float) -> Tensor:
    """SSIM (1,) of one image."""
    from deepinv.loss.metric import SSIM

    if not peak > 0:
        return x.new_full((1,), torch.nan)
    return SSIM(max_pixel=peak)(x, ref).reshape(1)


def _scale(ref: Tensor, max_pixel: float | Tensor | None, clip: bool | None) -> Scale:
    """What was asked for, or what suits ``ref``."""
    if clip is not None:
        check_flag("clip", clip)
    found = scale_of(ref) if max_pixel is None else _given(ref, max_pixel)
    if clip is None:
        return found

    free = torch.full_like(found.peak, torch.inf)
    if not clip:
        return Scale(found.peak, -free, free)
    if max_pixel is not None:
        return Scale(found.peak, torch.zeros_like(free), found.peak)
    flat, unit = ref.flatten(1).double(), found.peak == 1
    low = torch.where(unit, 0.0, flat.amin(dim=1))
    return Scale(found.peak, low, torch.where(unit, 1.0, flat.amax(dim=1)))


def _given(ref: Tensor, max_pixel: float | Tensor) -> Scale:
    """A peak that was given; pixels are clipped where ``ref`` lies within [0, max_pixel]."""
    if isinstance(max_pixel, Tensor) and max_pixel.dim() == 1:
        peak = max_pixel.detach().to(ref.device).double()
        if peak.numel() != len(ref) or bool((peak <= 0).any() | peak.isinf().any()):
            raise InputError(
                "max_pixel",
                given=shown(max_pixel),
                expected=f"{len(ref)} positive numbers, one per image",
                remedy="Leave it out: the peak then follows from the true images.",
            )
    else:
        number = check_positive("max_pixel", max_pixel)
        peak = torch.full((len(ref),), float(number), dtype=torch.float64, device=ref.device)

    flat = ref.detach().flatten(1).double()
    slack = ROUNDING * peak
    inside = (flat.amin(dim=1) >= -slack) & (flat.amax(dim=1) <= peak + slack)
    return Scale(
        peak, torch.where(inside, 0.0, -torch.inf).double(), torch.where(inside, peak, torch.inf)
    )


def _clipped(x: Tensor, scale: Scale) -> Tensor:
    low, high = (expand(v.to(x), x) for v in (scale.low, scale.high))
    return torch.minimum(torch.maximum(x, low), high)


def _ready(x: Tensor, ref: Tensor, modulus: bool) -> tuple[Tensor, Tensor]:
    """Two checked batches of real images."""
    check_flag("modulus", modulus)
    if modulus:
        x, ref = _modulus(x, "x"), _modulus(ref, "ref")
    _check(x, ref)
    return x, ref


def _modulus(x: Tensor, what: str) -> Tensor:
    """The modulus of complex images; of real ones with two channels that of both together."""
    if isinstance(x, Tensor) and x.is_complex():
        return x.abs()
    if not isinstance(x, Tensor) or x.dim() < 3 or x.shape[1] != 2:
        raise InputError(
            what,
            given=shown(x),
            expected="complex images, or two channels, real and imaginary part",
            remedy="Leave out modulus for real images.",
        )
    return torch.linalg.vector_norm(x, dim=1, keepdim=True)


def _check(x: Tensor, ref: Tensor) -> None:
    for what, tensor in (("x", x), ("ref", ref)):
        if isinstance(tensor, Tensor) and tensor.is_complex():
            raise InputError(
                what,
                given=f"{tensor.dtype}",
                expected="a floating-point tensor (b, c, h, w)",
                remedy="Compare the moduli with modulus=True.",
            )
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            given = tensor.dtype if isinstance(tensor, Tensor) else shown(tensor)
            raise InputError(
                what,
                given=given,
                expected="a floating-point tensor (b, c, h, w)",
                remedy="Convert with .float().",
            )
        if tensor.layout != torch.strided or tensor.is_meta:
            raise InputError(
                what,
                given="a tensor without values" if tensor.is_meta else f"a {tensor.layout} tensor",
                expected="a dense tensor with values",
                remedy=f"Pass {what}.to_dense().",
            )
    if x.shape != ref.shape or x.dim() < 2 or x.numel() == 0:
        raise InputError(
            "x and ref",
            given=f"shapes {tuple(x.shape)} and {tuple(ref.shape)}",
            expected="equal shapes (b, c, h, w) with at least one image",
            remedy="Add a batch dimension with x[None]; the two are compared image by image.",
        )
    if x.device != ref.device:
        raise InputError(
            "x and ref",
            given=f"devices {x.device} and {ref.device}",
            expected="one device",
            remedy="Move one of them with .to(device).",
        )
