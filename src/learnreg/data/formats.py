"""Image files to plain arrays: every format ends as finite float64 pixels on the scale of [0, 1],
or as an error.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..core.errors import InputError

TIFF = (".tif", ".tiff")
_MODES = (
    "1",
    "L",
    "LA",
    "RGB",
    "RGBA",
    "F",
    "I",
)  # modes of Pillow whose numbers are grey levels or colours


def read_pixels(path: Path) -> np.ndarray:
    """The pixels of an image file, float64 (h, w, c) in [0, 1].

    c = 1 (grey), 2 (grey, alpha), 3 (colour) or 4 (colour, alpha).

    Raises:
        InputError: damaged or foreign file, several pages, no pixels, NaN/Inf or out-of-range float
            pixels.
    """
    return _scaled(_read(path), path)


def _read(path: Path) -> np.ndarray:
    """The pixels of ``path`` as stored, (h, w) or (h, w, c)."""
    problem: Exception | None = None
    if (
        path.suffix.lower() in TIFF
    ):  # tifffile keeps 16-bit colour and floats; Pillow knows more compressions
        try:
            pixels = _read_tiff(path)
            if pixels is not None:
                return pixels
        except InputError:
            raise
        except (
            Exception
        ) as error:  # readers fail in many ways on damaged files; Pillow has the last word
            problem = error
    try:
        with Image.open(path) as picture:
            picture.load()
            upright = ImageOps.exif_transpose(picture)
            if upright.mode not in _MODES and not upright.mode.startswith("I;16"):
                upright = upright.convert("RGBA" if "A" in upright.getbands() else "RGB")
            pixels = np.asarray(upright)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        size = path.stat().st_size
        raise InputError(
            str(path),
            given=f"{size} bytes that cannot be read as an image ({problem or error})",
            expected="a readable PNG, JPEG, TIFF, BMP or WebP file",
            remedy="Remove the file or export it again.",
        ) from error
    return pixels.astype(np.uint16) if pixels.dtype == np.int32 and _fits_16_bit(pixels) else pixels


def _fits_16_bit(pixels: np.ndarray) -> bool:
    """Whether 32-bit integers are the 16-bit image that older releases of Pillow widen."""
    return pixels.size > 0 and pixels.min() >= 0 and pixels.max() <= 65535


def _read_tiff(path: Path) -> np.ndarray | None:
    """The pixels of a plain grey or colour TIFF file; None for palettes and the like (left to
    Pillow).
    """
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        if len(tiff.pages) != 1:
            raise InputError(
                str(path),
                given=f"a TIFF file with {len(tiff.pages)} pages",
                expected="a single page",
                remedy="Save each page as a file of its own.",
            )
        page = tiff.pages.first
        if page.photometric not in (1, 2):  # MINISBLACK, RGB
            return None
        pixels = page.asarray()
        planar = page.planarconfig == 2 and pixels.ndim == 3
        return np.moveaxis(pixels, 0, -1) if planar else pixels


def _scaled(pixels: np.ndarray, path: Path) -> np.ndarray:
    """Pixels as float64 (h, w, c) in [0, 1]."""
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 2, 3, 4) or pixels.size == 0:
        raise InputError(
            str(path),
            given=f"pixels of shape {pixels.shape}",
            expected="(height, width) or (height, width, channels) with 1 to 4 channels",
            remedy="Export the image as plain grey or colour.",
        )
    if pixels.dtype == np.bool_:
        return pixels.astype(np.float64)
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels / float(np.iinfo(pixels.dtype).max)
    if not np.issubdtype(pixels.dtype, np.floating):
        raise InputError(
            str(path),
            given=f"pixels of type {pixels.dtype}",
            expected="8-bit, 16-bit or float pixels",
            remedy="Convert the image to 8 or 16 bits.",
        )
    if not np.isfinite(pixels).all():
        raise InputError(
            str(path),
            given="NaN or Inf pixels",
            expected="finite pixels",
            remedy="Repair or remove the image.",
        )
    low, high = float(pixels.min()), float(pixels.max())
    if low < -1 or high > 2:  # noise may leave [0, 1]; a scale of 0 to 255 may not pass for it
        raise InputError(
            str(path),
            given=f"float pixels in [{low:.4g}, {high:.4g}]",
            expected="float pixels on the scale of [0, 1], at most [-1, 2] with noise",
            remedy="Rescale the image: what counts as 1 must not be guessed.",
        )
    return pixels.astype(np.float64)
