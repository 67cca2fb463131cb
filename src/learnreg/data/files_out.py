"""Arrays to image files, with what their headers say besides the pixels."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..core.errors import InputError
from .formats import ORIENTATION, TIFF, image_codecs
from .stacks import directory_at, spot_of
from .tiff import MAX_SAMPLE_VALUE

if TYPE_CHECKING:
    import tifffile

WRITABLE = (".png", ".jpg", ".jpeg", *TIFF)
"""Endings of the files that can be written."""

JPEG = (".jpg", ".jpeg")
JPEG_QUALITY = 95
"""Above that files grow faster than they improve."""

_NO_UNIT, _INCH, _CENTIMETRE = 1, 2, 3
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_DESCRIPTION, _ICC = 270, 34675

Rational = tuple[int, int]

Tag = tuple[int, int | str, int | None, object, bool]
"""A tag as tifffile writes it: number, type, count, value, on the first page only."""

BIG = 2**32 - 2**25
"""Bytes of pixels from which a TIFF file has to be a BigTIFF."""


@dataclass(frozen=True)
class Metadata:
    """What is kept of a header.

    Attributes:
        resolution: pixels per unit, (x, y) as fractions.
        unit: of the resolution, by the tag of TIFF: 1 (none), 2 (inch) or 3 (centimetre).
        description: text of TIFF files.
        icc: colour profile.
        exif: what the camera says, without the orientation, since pixels are upright.
    """

    resolution: tuple[Rational, Rational] | None = None
    unit: int = _NO_UNIT
    description: str | None = None
    icc: bytes | None = None
    exif: bytes | None = None

    @property
    def dpi(self) -> tuple[float, float] | None:
        """Pixels per inch, (x, y)."""
        if self.resolution is None or self.unit == _NO_UNIT:
            return None
        per_inch = 2.54 if self.unit == _CENTIMETRE else 1.0
        x, y = (n / d * per_inch for n, d in self.resolution)
        return x, y


def read_metadata(path: Path, page: int | None = None) -> Metadata:
    """The metadata of a readable image file, or a page of it; none where they are damaged."""
    try:
        return _of_tiff(path, page) if path.suffix.lower() in TIFF else _of_picture(path)
    except Exception:  # why all: no picture is refused for what is written beside it
        return Metadata()


def _of_picture(path: Path) -> Metadata:
    with Image.open(path) as picture:
        exif = picture.getexif()
        exif.pop(ORIENTATION, None)
        dpi = picture.info.get("dpi")
        # why not always: a profile for ink does not fit the colours that CMYK is turned into
        fits = picture.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I") or "I;16" in picture.mode
        return Metadata(
            resolution=None if dpi is None else (_rational(dpi[0]), _rational(dpi[1])),
            unit=_NO_UNIT if dpi is None else _INCH,
            icc=picture.info.get("icc_profile") if fits else None,
            exif=exif.tobytes() if len(exif) else None,
        )


def _of_tiff(path: Path, page: int | None) -> Metadata:
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        known = metadata_of(directory_at(tiff, spot_of(path, page)))
    own = (known.description or "").startswith('{"shape"')  # by tifffile
    return replace(known, description=None) if own else known


def metadata_of(page: tifffile.TiffPage) -> Metadata:
    """What the header of a TIFF page says, as it is."""
    tags = page.tags
    x, y = (tags.valueof(code, default=None) for code in (_X_RESOLUTION, _Y_RESOLUTION))
    unit = int(tags.valueof(_RESOLUTION_UNIT, default=_INCH))  # the default of the standard
    described = tags.valueof(_DESCRIPTION, default=None)
    valid = isinstance(x, tuple) and isinstance(y, tuple) and x[1] and y[1]
    return Metadata(
        resolution=(x, y) if valid else None,
        unit=unit if unit in (_NO_UNIT, _INCH, _CENTIMETRE) else _NO_UNIT,
        description=described if isinstance(described, str) else None,
        icc=tags.valueof(_ICC, default=None) if int(page.photometric) < 3 else None,
    )


def _rational(value: float) -> Rational:
    return round(float(value) * 10_000), 10_000


def holds(suffix: str, dtype: np.dtype, channels: int) -> bool:
    """Whether files of this ending can hold pixels of this type here."""
    if suffix in TIFF:
        return dtype.kind in "uif"
    deep = dtype == np.uint16 and suffix == ".png" and (channels == 1 or image_codecs() is not None)
    return dtype == np.uint8 or deep


def check_writable(path: Path) -> None:
    """Refuse endings that cannot be written and folders that do not exist.

    Raises:
        InputError: names the endings, or the folder.
    """
    if path.suffix.lower() not in WRITABLE:
        raise InputError(
            str(path),
            given=f'the ending "{path.suffix}"',
            expected="one of " + ", ".join(WRITABLE),
            remedy="Choose .png for viewing or .tif for exact values.",
        )
    if not path.parent.is_dir():
        raise InputError(
            str(path),
            given=f"a folder {path.parent} that does not exist",
            expected="an existing folder",
            remedy="Create the folder first.",
        )


def write_pixels(
    path: Path, pixels: np.ndarray, metadata: Metadata | None = None, white: int | None = None
) -> None:
    """Write one image.

    Args:
        path: the ending chooses the format.
        pixels: (h, w) or (h, w, 3) of a type that the format ``holds``.
        metadata: what is to stand in the header.
        white: the level that is white, for the header of TIFF files.

    Raises:
        OSError: the file cannot be written.
    """
    known, suffix = metadata or Metadata(), path.suffix.lower()
    codecs = image_codecs()
    if suffix in TIFF:
        _write_tiff(path, pixels, known, white)
    elif pixels.ndim == 3 and pixels.dtype == np.uint16 and codecs is not None:
        path.write_bytes(_deep_png(pixels, known, codecs))
    else:
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        _save(picture, path, suffix, known)


def _save(picture: Image.Image, target: Path | BytesIO, suffix: str, known: Metadata) -> None:
    options: dict[str, object] = {"dpi": known.dpi, "icc_profile": known.icc, "exif": known.exif}
    if suffix in JPEG:
        options |= {"quality": JPEG_QUALITY, "subsampling": 0}  # 4:4:4: colour as fine as grey
    kept = {name: value for name, value in options.items() if value is not None}
    picture.save(target, "JPEG" if suffix in JPEG else "PNG", **kept)


def _write_tiff(path: Path, pixels: np.ndarray, known: Metadata, white: int | None) -> None:
    import tifffile

    # why not always: older programs do not read BigTIFF
    with tifffile.TiffWriter(path, bigtiff=pixels.nbytes > BIG) as file:
        write_page(file, pixels, known, white)


def write_page(
    file: tifffile.TiffWriter,
    pixels: np.ndarray,
    known: Metadata,
    white: int | None = None,
    extra: Sequence[Tag] = (),
) -> None:
    """Write one page of a TIFF file; arguments as for ``write_pixels``, and tags as they are."""
    samples = 3 if pixels.ndim == 3 else 1
    declared: list[Tag] = [
        (MAX_SAMPLE_VALUE, "H", samples, (white,) * samples if samples > 1 else white, True)
    ]
    declared = declared if white is not None and white < 65535 else []
    file.write(
        pixels,
        photometric="rgb" if samples == 3 else "minisblack",
        metadata=None,
        description=None if known.description is None else known.description.encode(),
        resolution=known.resolution,
        resolutionunit=None if known.resolution is None else known.unit,
        iccprofile=known.icc,
        extratags=[*declared, *extra] or None,
    )


# --- PNG with 16-bit colour -----------------------------------------------------------------------

_IHDR_ENDS = 33
"""Bytes of the signature and the first chunk of a PNG file."""


def _deep_png(pixels: np.ndarray, known: Metadata, codecs: ModuleType) -> bytes:
    """A PNG file of 16-bit colour, with the chunks that Pillow would write for the metadata."""
    image = bytes(codecs.png_encode(np.ascontiguousarray(pixels)))
    small = BytesIO()
    _save(Image.new("RGB", (1, 1)), small, ".png", known)
    extra = [
        chunk for kind, chunk in _chunks(small.getvalue()) if kind in (b"pHYs", b"iCCP", b"eXIf")
    ]
    return image[:_IHDR_ENDS] + b"".join(extra) + image[_IHDR_ENDS:]


def _chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    """Kinds and bytes of the chunks: length, kind, content, checksum."""
    found, at = [], 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        found.append((png[at + 4 : at + 8], png[at : at + 12 + length]))
        at += 12 + length
    return found
