"""Image files to plain arrays: every format ends as the numbers that were stored, upright, with 0
as black, or as an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps

from ..core.asking import offers
from ..core.errors import InputError
from .stacks import TIFF as TIFF
from .stacks import check_page, named
from .tiff import Header, read_header, without_orientation

ORIENTATION = 0x0112
"""Number of the tag by which cameras say how they were held."""

_MODES = ("1", "L", "LA", "RGB", "RGBA", "F", "I")
"""Modes of Pillow whose numbers are grey levels or colours."""

_PNG_COLOUR = (2, 4, 6)
"""Kinds of PNG (colour, grey with transparency, colour with transparency) that Pillow reads with 8
bits.
"""


@dataclass(frozen=True, eq=False)
class Raw:
    """An image as it is stored.

    Attributes:
        pixels: (h, w, c) of any real type, upright, without transparency; c = 1 or 3.
        white: the level that the header says is white; None for the largest of the type.
        transparent: the file has a transparency, which is left out here.
        narrowed: the file holds more bits per value than could be read.
    """

    pixels: np.ndarray
    white: int | None = None
    transparent: bool = False
    narrowed: bool = False


def read_raw(path: Path, page: int | None = None, check: bool = True) -> Raw:
    """The numbers in an image file, or in one page of a TIFF file.

    Args:
        path: the file.
        page: of a TIFF file, from 0; None where there is one.
        check: refuse what is no image of finite real numbers; else they are (h, w) or (h, w, c) as
            they stand in the file.

    Raises:
        InputError: no such file, damaged or foreign file, several pages or frames and none named,
            no such page, bands that are no colours, no pixels, NaN or Inf.
    """
    check_file(path)
    tiff = path.suffix.lower() in TIFF
    if page is not None and not tiff:
        check_page(path, page, 1)
    if tiff:
        raw = _read_tiff(path, page)
    elif _is_deep_png(path) and (codecs := image_codecs()) is not None:
        raw = _read_deep_png(path, codecs)
    else:
        raw = _plain(_by_pillow(path), narrowed=_is_deep_png(path))
    return raw if not check else _checked(raw, named(path, page if tiff else None))


def size_of(path: Path, page: int | None = None) -> tuple[int, int]:
    """Height and width, from the header where it suffices.

    Raises:
        InputError: as ``read_raw``.
    """
    check_file(path)
    try:
        if path.suffix.lower() in TIFF:
            header = read_header(path, page)
            return header.size[::-1] if header.orientation >= 5 else header.size
        with Image.open(path) as picture:
            # why not always: Pillow decodes a whole PNG to look for a tag behind its pixels
            tags = picture.getexif() if picture.format != "PNG" or "exif" in picture.info else {}
            turned = tags.get(ORIENTATION, 1) >= 5
            return (picture.width, picture.height) if turned else (picture.height, picture.width)
    except InputError:
        raise
    except Exception:  # why all: the reader of whole files finds the words, or a way
        height, width = read_raw(path, page).pixels.shape[:2]
        return height, width


def check_file(path: Path) -> None:
    """Refuse what is no file."""
    if not path.is_file():
        given = "a folder" if path.is_dir() else "no such file"
        raise InputError(str(path), given=given, expected="an image file", remedy="Check the path.")


def image_codecs() -> ModuleType | None:
    """The package ``imagecodecs``, if it is installed (the extra "formats")."""
    try:
        import imagecodecs
    except ImportError:
        return None
    module: ModuleType = imagecodecs
    return module


class _Framed(Protocol):
    """An image file that may hold several."""

    @property
    def n_frames(self) -> int: ...


# --- PNG, JPEG and what else Pillow knows ---------------------------------------------------------


def _by_pillow(
    path: Path,
    problem: Exception | None = None,
    content: BytesIO | None = None,
    frame: int | None = None,
    where: str | None = None,
) -> np.ndarray:
    """The pixels (h, w) or (h, w, bands) as Pillow reads them, upright.

    Args:
        path: the file.
        problem: what another reader said, for the message.
        content: what to read in the place of the file.
        frame: which of several, if it has been chosen.
        where: what it is called in messages; the path when None.
    """
    try:
        with Image.open(content or path) as picture:
            frames = _frames(picture)
            if frame is not None:
                picture.seek(frame)
            elif frames > 1:
                raise InputError(
                    where or str(path),
                    given=f"an image with {frames} frames or pages",
                    expected="a single image",
                    remedy="Save each of them as a file of its own.",
                )
            picture.load()
            upright = ImageOps.exif_transpose(picture)
            if upright.mode not in _MODES and not upright.mode.startswith("I;16"):
                upright = upright.convert("RGBA" if "A" in upright.getbands() else "RGB")
            pixels = np.asarray(upright)
    except InputError:
        raise
    except (OSError, EOFError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        size = path.stat().st_size
        raise InputError(
            where or str(path),
            given=f"{size} bytes that cannot be read as an image ({problem or error})",
            expected="a readable PNG, JPEG, TIFF, BMP or WebP file",
            remedy="Remove the file or export it again.",
        ) from error
    return pixels


def _frames(picture: Image.Image) -> int:
    """Frames of an animation or stack; the previews that cameras add to JPEG files do not count."""
    previews = picture.format in ("JPEG", "MPO")
    return 1 if previews or not offers(picture, _Framed) else int(picture.n_frames)


def _plain(pixels: np.ndarray, *, narrowed: bool = False) -> Raw:
    """Pixels of Pillow, whose modes say what the bands are."""
    if pixels.dtype == np.int32 and _fits_16_bit(pixels):
        pixels = pixels.astype(np.uint16)
    transparent = pixels.ndim == 3 and pixels.shape[2] in (2, 4)
    return Raw(
        pixels[:, :, :-1] if transparent else pixels,
        transparent=transparent,
        narrowed=narrowed,
    )


def _fits_16_bit(pixels: np.ndarray) -> bool:
    """Whether 32-bit integers are the 16-bit image that older releases of Pillow widen."""
    return pixels.size > 0 and pixels.min() >= 0 and pixels.max() <= 65535


def _is_deep_png(path: Path) -> bool:
    """A PNG with 16 bits per value and several bands; from the header, bytes 24 and 25."""
    with path.open("rb") as file:
        head = file.read(26)
    png = head.startswith(b"\x89PNG\r\n\x1a\n") and len(head) == 26
    return png and head[24] == 16 and head[25] in _PNG_COLOUR


def _read_deep_png(path: Path, codecs: ModuleType) -> Raw:
    try:
        pixels: np.ndarray = codecs.png_decode(path.read_bytes())
        with Image.open(path) as picture:
            tag = picture.getexif().get(ORIENTATION, 1)
    except Exception as error:  # why all: Pillow says what is wrong with a damaged file
        return _plain(_by_pillow(path, error), narrowed=True)
    return _plain(_upright(pixels, tag))


# --- TIFF -----------------------------------------------------------------------------------------


def _read_tiff(path: Path, page: int | None) -> Raw:
    """tifffile keeps what Pillow would narrow; Pillow knows more compressions and colour spaces."""
    problem: Exception | None = None
    try:
        header = read_header(path, page)
    except InputError:
        raise
    except Exception as error:  # why all: readers fail in many ways on damaged files
        return _plain(_by_pillow(path, error, frame=page, where=named(path, page)))

    pixels: np.ndarray | None = None
    if header.plain:
        try:
            pixels = _upright(header.read(path), header.orientation)
        except Exception as error:  # why all: as above; Pillow has the last word
            problem = error
    if pixels is None:
        pixels, narrowed = _tiff_by_pillow(path, header, problem, named(path, page))
    else:
        narrowed = False
        pixels = _black_is_zero(pixels, header) if header.white_is_zero else pixels
    transparent = pixels.ndim == 3 and pixels.shape[2] in (2, 4)
    white = header.white if pixels.dtype == header.dtype else None
    return Raw(pixels[:, :, :-1] if transparent else pixels, white, transparent, narrowed)


def _tiff_by_pillow(
    path: Path, header: Header, problem: Exception | None, where: str
) -> tuple[np.ndarray, bool]:
    """The pixels, and whether bits were lost."""
    pixels = _by_pillow(path, problem, without_orientation(path, header), header.spot.index, where)
    pixels = _upright(pixels, header.orientation)
    if pixels.dtype == np.int32 and header.dtype.kind in "iu":
        pixels = pixels.astype(header.dtype)
    # Pillow turns 1 and 8 bits over itself, but not 16
    if header.white_is_zero and pixels.dtype.itemsize > 1:
        pixels = _black_is_zero(pixels, header)
    return pixels, pixels.dtype.itemsize < header.dtype.itemsize and header.dtype.kind in "iuf"


def _black_is_zero(pixels: np.ndarray, header: Header) -> np.ndarray:
    """White-is-zero pixels turned over."""
    if pixels.dtype == np.bool_:
        return ~pixels
    top = header.white or np.iinfo(pixels.dtype).max
    return (top - pixels.astype(np.int64)).clip(min=0).astype(pixels.dtype)


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels (h, w, ...) as they are to be seen, from the tag of the TIFF specification."""
    if orientation >= 5:  # 5 to 8: rows are columns
        pixels = np.swapaxes(pixels, 0, 1)
    down = orientation in (3, 4, 7, 8)
    across = orientation in (2, 3, 6, 7)
    return pixels[:: -1 if down else 1, :: -1 if across else 1]


def _checked(raw: Raw, where: str) -> Raw:
    """The same with pixels (h, w, c), real, finite and in the byte order of the machine."""
    pixels = raw.pixels[:, :, None] if raw.pixels.ndim == 2 else raw.pixels
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or pixels.size == 0:
        raise InputError(
            where,
            given=f"pixels of shape {raw.pixels.shape}",
            expected="(height, width) or (height, width, channels), grey or colour",
            remedy="Export the image as plain grey or colour.",
        )
    if pixels.dtype.kind not in "buif":
        raise InputError(
            where,
            given=f"pixels of type {pixels.dtype}",
            expected="integers or real floats",
            remedy="Export the magnitude, or real and imaginary part as files of their own.",
        )
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise InputError(
            where,
            given="NaN or Inf pixels",
            expected="finite pixels",
            remedy="Repair or remove the image.",
        )
    native = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    return Raw(native, raw.white, raw.transparent, raw.narrowed)
