"""Images as people have them, arrays, Pillow's and tensors, to batches of real tensors and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..core.errors import InputError

Array: TypeAlias = np.ndarray
AnyImage: TypeAlias = Array | Image.Image | Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WIDER = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16)
WHOLE = (np.dtype(np.uint8), np.dtype(np.uint16))
MODES = {"L": "L", "RGB": "RGB", "F": "F", "I;16": "I;16", "1": "L", "P": "RGB", "YCbCr": "RGB"}
"""Modes of Pillow, and those that they are reconstructed in."""

TRANSPARENT = {"LA": "L", "RGBA": "RGB"}
"""Modes with a transparency, which stays as it is."""


class Batch(NamedTuple):
    """Images made ready.

    Attributes:
        y: (b, c, h, w), floating-point, 0 to 1 for what integers hold.
        back: makes a result (b, c, h, w) what the image was.
    """

    y: Tensor
    back: Callable[[Tensor], AnyImage]


Levels: TypeAlias = tuple[float, float]


def as_batch(image: object, units: Levels | None = None, *, raw: bool = False) -> Batch:
    """An image of any of the kinds.

    Args:
        units: the integers that were 0 and 1 in the images a model was learned from. Types that
            cannot reach them, and all types when None, are [0, 1] over their whole range.
        raw: integers stay the numbers that they are, counts for example, and the result is
            floating-point.

    Raises:
        InputError: another kind, type or shape; says what would do.
    """
    if isinstance(image, Tensor):
        whole = image.dtype in (torch.uint8, *WIDER)
        return _of_tensor(image.float() if raw and whole else image, units)
    if isinstance(image, Image.Image):
        return _of_pillow(image, units)
    if isinstance(image, np.ndarray):
        whole = np.issubdtype(image.dtype, np.integer)
        return _of_array(image.astype(np.float32) if raw and whole else image, units)
    raise InputError(
        "image",
        given=type(image).__name__,
        expected="a numpy array (h, w) or (h, w, c), a PIL image, or a tensor (c, h, w) or "
        "(b, c, h, w)",
        remedy="Read files with PIL.Image.open(path), or use learnreg reconstruct.",
    )


def _of_tensor(image: Tensor, units: Levels | None) -> Batch:
    if image.dim() not in (2, 3, 4):
        raise _wrong_shape(tuple(image.shape), "(h, w), (c, h, w) or (b, c, h, w)")
    if image.dtype not in (*FLOATS, torch.uint8):
        raise InputError(
            "image",
            given=f"a tensor of type {image.dtype}",
            expected="uint8, or floating-point numbers on the scale of [0, 1]",
            remedy="Convert it: image.float() / (largest value).",
        )
    shape, dtype, device = image.shape, image.dtype, image.device
    y = image.detach()
    y = y[None, None] if y.dim() == 2 else y[None] if y.dim() == 3 else y
    low, high = _levels(np.dtype(np.uint8), units)
    if dtype == torch.uint8:
        y = (y.float() - low) / (high - low)
    elif dtype != torch.float64:
        y = y.float()

    def back(x: Tensor) -> Tensor:
        # measurements have another shape than their image
        fits = x.numel() == shape.numel()
        x = x.reshape(shape) if fits else x if len(shape) == 4 else _fewer_axes(x[0], len(shape))
        if dtype == torch.uint8:
            x = (x * (high - low) + low).round().clamp(0, 255)
        return x.to(device=device, dtype=dtype)

    return Batch(y, back)


def _fewer_axes(x: Tensor, axes: int) -> Tensor:
    """An image (c, h, w), without its channel where that is the only one and was not given."""
    return x[0] if axes == 2 and x.shape[0] == 1 else x


def _levels(dtype: np.dtype, units: Levels | None) -> Levels:
    """The integers that are 0 and 1."""
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    # units of one level or less are those of floating-point images
    reached = (
        units is not None and least <= units[0] and units[1] <= most and units[1] - units[0] > 1
    )
    return units if units is not None and reached else (float(least), float(most))


def _of_array(image: Array, units: Levels | None) -> Batch:
    y = _channels_first(image, units)

    def back(x: Tensor) -> Array:
        values = x[0].permute(1, 2, 0).cpu()
        if values.numel() == image.size:
            return _as(values.reshape(image.shape), image.dtype, units)
        return _as(values[..., 0] if values.shape[-1] == 1 else values, image.dtype, units)

    return Batch(y, back)


def _channels_first(image: Array, units: Levels | None) -> Tensor:
    """(1, c, h, w) of an array (h, w) or (h, w, c).

    Raises:
        InputError: another shape or type.
    """
    if image.ndim not in (2, 3) or image.size == 0:
        raise _wrong_shape(image.shape, "(h, w) or (h, w, c)")
    if image.ndim == 3 and image.shape[2] > 4:
        raise InputError(
            "image",
            given=f"an array of shape {image.shape}",
            expected="channels in the last place, at most 4 of them",
            remedy="Use np.moveaxis(image, 0, -1), or a tensor (c, h, w).",
        )
    values = image[:, :, None] if image.ndim == 2 else image
    if image.dtype in WHOLE:
        low, high = (np.float32(level) for level in _levels(image.dtype, units))
        values = (values.astype(np.float32) - low) / (high - low)
    elif image.dtype in (np.float16, np.float32, np.float64):
        values = values.astype(np.float64 if image.dtype == np.float64 else np.float32)
    else:
        raise InputError(
            "image",
            given=f"an array of type {image.dtype}",
            expected="uint8, uint16, or floating-point numbers on the scale of [0, 1]",
            remedy="Divide by the value that is white: image / 4095.",
        )
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))[None]


def _as(values: Tensor, dtype: np.dtype, units: Levels | None) -> Array:
    """Values in [0, 1] as numbers of a type; integers are clipped and rounded."""
    array = values.numpy()
    if dtype in WHOLE:
        low, high = _levels(dtype, units)
        array = (array * (high - low) + low).round().clip(0, np.iinfo(dtype).max)
    return array.astype(dtype)


def _of_pillow(image: Image.Image, units: Levels | None) -> Batch:
    mode = TRANSPARENT.get(image.mode, MODES.get(image.mode))
    if mode is None:
        raise InputError(
            "image",
            given=f"a PIL image of mode {image.mode}",
            expected=f"one of {', '.join([*MODES, *TRANSPARENT])}",
            remedy="Convert it: image.convert('RGB').",
        )
    alpha = image.getchannel("A") if image.mode in TRANSPARENT else None
    opaque = image if image.mode == mode else image.convert(mode)
    pixels = np.asarray(opaque)
    # why: older releases of Pillow widen 16 bits
    pixels = pixels.astype(np.uint16) if mode == "I;16" else pixels
    of_array = _of_array(pixels, units)

    def back(x: Tensor) -> Image.Image:
        array = of_array.back(x)
        assert isinstance(array, np.ndarray)
        found = Image.fromarray(array)
        if alpha is not None:
            found.putalpha(alpha if alpha.size == found.size else alpha.resize(found.size))
        return found

    return Batch(of_array.y, back)


def _wrong_shape(shape: tuple[int, ...], expected: str) -> InputError:
    return InputError(
        "image",
        given=f"shape {tuple(shape)}",
        expected=f"{expected}, not empty",
        remedy="Pass images one by one, or as one batch of tensors; measurements of any shape as "
        "tensors: model.reconstruct(y).",
    )
