"""What the header of a TIFF file says of its numbers: type, depth, bands, orientation."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..core.errors import InputError
from .stacks import Spot, directory_at, named, pixels_at, spot_of

if TYPE_CHECKING:
    import tifffile

MAX_SAMPLE_VALUE = 281
ORIENTATION = 274
_ALPHA = (1, 2)
"""Values of ExtraSamples that stand for a transparency."""

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_COLOURS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, 3: 1, 4: 1, 5: 4, 6: 3, 8: 3}
"""PhotometricInterpretation -> values per pixel without extra samples."""


@dataclass(frozen=True)
class Header:
    """What is said of one page of a TIFF file.

    Attributes:
        spot: where the page is.
        size: (height, width) as stored.
        dtype: type of the numbers.
        white: level that is white by BitsPerSample or MaxSampleValue; None for the largest of the
            type.
        orientation: 1 to 8.
        plain: grey levels or red, green, blue: no palette, CMYK and the like.
        white_is_zero: small numbers are bright.
        planar: bands come one after the other.
    """

    spot: Spot
    size: tuple[int, int]
    dtype: np.dtype
    white: int | None
    orientation: int
    plain: bool
    white_is_zero: bool
    planar: bool

    def read(self, path: Path) -> np.ndarray:
        """The numbers as stored, (h, w) or (h, w, bands)."""
        import tifffile

        with tifffile.TiffFile(path) as tiff:
            pixels = pixels_at(tiff, self.spot)
        return np.moveaxis(pixels, 0, -1) if self.planar and pixels.ndim == 3 else pixels


def without_orientation(path: Path, header: Header) -> BytesIO | None:
    """The file with orientation 1 in the header of a page, or None if it is so already: readers
    differ in whether and how they turn.
    """
    import tifffile

    if header.orientation == 1:
        return None
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        tag = directory_at(tiff, header.spot).tags.get(ORIENTATION)
        if tag is not None:
            order: Literal["little", "big"] = "little" if tiff.byteorder == "<" else "big"
            content[tag.valueoffset : tag.valueoffset + 2] = (1).to_bytes(2, order)
    return BytesIO(content)


def read_header(path: Path, number: int | None = None) -> Header:
    """Read it.

    Args:
        path: the file.
        number: of the page; None for the only one.

    Raises:
        InputError: several pages and no number, no such page, bands that are neither
            colours nor a transparency.
    """
    import tifffile

    spot, where = spot_of(path, number), named(path, number)
    with tifffile.TiffFile(path) as tiff:
        page = directory_at(tiff, spot)
        photometric, samples = int(page.photometric), int(page.samplesperpixel)
        _check_bands(photometric, samples, [int(e) for e in page.extrasamples], where)
        dtype = np.dtype(page.dtype if page.dtype is not None else np.uint8)
        white_is_zero = photometric == _WHITE_IS_ZERO
        if white_is_zero and dtype.kind == "f":
            raise InputError(
                where,
                given="float pixels of which 0 is white (PhotometricInterpretation 0)",
                expected="0 for black",
                remedy="Export the image with PhotometricInterpretation BlackIsZero.",
            )
        orientation = page.tags.valueof(ORIENTATION, default=1)
        return Header(
            spot=spot,
            size=(int(page.imagelength), int(page.imagewidth)),
            dtype=dtype,
            white=_white(page, dtype),
            orientation=int(orientation) if orientation in range(1, 9) else 1,
            plain=photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB),
            white_is_zero=white_is_zero,
            planar=int(page.planarconfig) == 2,
        )


def _check_bands(photometric: int, samples: int, extra: list[int], where: str) -> None:
    colours = _COLOURS.get(photometric, samples)
    if photometric == _BLACK_IS_ZERO and samples == 3:  # as scientific software writes colour
        colours = 3
    spare = samples - colours
    if spare <= 0 or (spare == 1 and extra and extra[-1] in _ALPHA):
        return
    kind = {1: "grey", 3: "colour"}.get(colours, "colour")
    raise InputError(
        where,
        given=f"{samples} bands, of which the header calls {colours} {kind} and none transparency",
        expected="1 band (grey) or 3 (colour), and at most a transparency",
        remedy="Save the bands as files of their own, or say what they are in the tags "
        "PhotometricInterpretation and ExtraSamples.",
    )


def _white(page: tifffile.TiffPage, dtype: np.dtype) -> int | None:
    """The white level by the header, if it is not the largest of the type."""
    if dtype.kind != "u":
        return None
    full, bits = int(np.iinfo(dtype).max), int(page.bitspersample)
    if 2**bits - 1 < full:
        return 2**bits - 1
    declared = page.tags.valueof(MAX_SAMPLE_VALUE, default=None)
    values = declared if isinstance(declared, tuple) else (declared,)
    numbers = [value for value in values if isinstance(value, int)]
    # why: many programs write the largest value of this one file here, which is no depth
    depth = max(numbers, default=0)
    return depth if 255 <= depth < full and depth & (depth + 1) == 0 else None
