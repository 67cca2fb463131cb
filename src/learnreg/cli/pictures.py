"""Image files in and out of ``reconstruct``: what is written has the type, the units and the
metadata of what was read, where the format can hold them.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from ..core.errors import DataWarning, InputError
from ..data.files_out import JPEG, WRITABLE, Metadata, holds, read_metadata, write_pixels
from ..data.formats import TIFF, read_raw
from ..data.stacks import named, series_remarks
from ..data.units import Facts, Levels, as_image, facts_of, levels_of, listed, remarks_on, scaled

__all__ = ["WRITABLE", "Picture", "read_facts", "read_picture", "write_picture"]

UNIT: Levels = (0.0, 1.0)


@dataclass(frozen=True)
class Picture:
    """An image file as it was read.

    Attributes:
        path: the file.
        pixels: (c, h, w), float32, [0, 1] for what its range holds, c = 1 or 3.
        deep: it has more than 8 bits per value.
        transparent: it has a transparency, which is not reconstructed.
        dtype: type of its numbers.
        levels: the numbers that are 0 and 1 in ``pixels``.
        white: the level that its header says is white; None for the largest of the type.
        metadata: resolution, description, colour profile, what the camera says.
        page: of a stack.
    """

    path: Path
    pixels: Tensor
    deep: bool
    transparent: bool
    dtype: np.dtype = np.dtype(np.uint8)
    levels: Levels = (0.0, 255.0)
    white: int | None = None
    metadata: Metadata = Metadata()
    page: int | None = None


@dataclass(frozen=True)
class _Form:
    """How numbers are written: their type, and the levels of 0 and 1."""

    dtype: np.dtype
    levels: Levels


def read_picture(path: Path, units: Levels | None = None) -> Picture:
    """Read an image file with the channels that it has.

    Args:
        path: the file.
        units: the levels that were 0 and 1 in the images a model was learned from, if a range was
            asked for (``Pairs.units``). A file whose type cannot reach them has its own range.

    Raises:
        InputError: see ``load_image``.

    Warns:
        DataWarning: see ``load_image``; units beyond the type of the file.
    """
    picture, facts = read_facts(path, units)
    for remark in [*series_remarks(path), *remarks_for([(picture, facts)], units)]:
        warnings.warn(remark, DataWarning, stacklevel=2)
    return replace(picture, metadata=read_metadata(path))


def read_facts(
    path: Path, units: Levels | None = None, page: int | None = None
) -> tuple[Picture, Facts]:
    """An image file or a page of one, without its metadata, and what there is to know of it.

    Raises:
        InputError: see ``load_image``.
    """
    raw = read_raw(path, page)
    facts = facts_of(named(path, page), raw)
    levels = levels_of(facts, units if units is None or _reaches(facts, units) else None)
    picture = Picture(
        path,
        as_image(raw, levels, raw.pixels.shape[2]),
        raw.pixels.dtype.itemsize > 1,
        raw.transparent,
        raw.pixels.dtype,
        levels,
        raw.white,
        page=page,
    )
    return picture, facts


def remarks_for(read: Sequence[tuple[Picture, Facts]], units: Levels | None) -> list[str]:
    """What is to be said of the numbers of an image, or of all pages of a stack together.

    Args:
        read: pictures, of which the pixels are not needed, and their facts.
        units: as for ``read_picture``.
    """
    facts = [entry for _, entry in read]
    levels = {entry.name: picture.levels for picture, entry in read}
    foreign = [entry for entry in facts if units is not None and not _reaches(entry, units)]
    within = [entry for entry in facts if units is None or _reaches(entry, units)]
    remarks = remarks_on(within, levels, units) if within else []
    remarks += remarks_on(foreign, levels, None) if foreign else []
    if units is not None and foreign:
        lo, hi = levels[foreign[0].name]
        remarks.append(
            f"{listed([entry.name for entry in foreign], 3)}: {foreign[0].dtype} pixels, which "
            f"cannot be in the units [{units[0]:g}, {units[1]:g}] of the images that were learned "
            f"from; taken in [{lo:g}, {hi:g}]."
        )
    return remarks


def _reaches(facts: Facts, units: Levels) -> bool:
    """Whether the type of a file holds such levels."""
    if facts.dtype.kind == "f":
        return True
    if facts.dtype.kind == "b":
        return False
    limits = np.iinfo(facts.dtype)
    # units of one level or less are those of floating-point files
    levels = units[1] - units[0] > 1
    return bool(levels and limits.min <= units[0] and units[1] <= limits.max)


def write_picture(path: Path, x: Tensor, like: Picture) -> str:
    """Write (c, h, w) so that ``path`` is whole or absent; returns a remark on what the file cannot
    hold.

    From TIFF to TIFF the type and the units of ``like`` are kept. Other files keep 8 bits, and 16
    in .png (colour of 16 bits with the extra ``formats``), over their whole range where ``like``
    was a TIFF; .tif holds float32 in [0, 1] if ``like`` was no TIFF. JPEG has quality 95 without
    subsampling. How far the file is from ``x``, over the whole image, is measured by reading it
    again.

    Args:
        path: the file; the ending chooses the format.
        x: the result, in the scale of ``like.pixels``.
        like: what was read.

    Raises:
        InputError: the file cannot be written.
    """
    suffix = path.suffix.lower()
    part = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    form, values = _form(suffix, like, x.shape[0]), x.detach().cpu().double()
    pixels, white = stored(values, like, form)
    try:
        write_pixels(part, pixels, like.metadata, white)
        distance = _distance(read_raw(part).pixels, values, form)
        os.replace(part, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        part.unlink(missing_ok=True)
    return joined(_remarks(suffix, form, like, distance))


def joined(remarks: Sequence[str]) -> str:
    """Remarks as they follow a verdict."""
    return f"; {', '.join(remarks)}" if remarks else ""


def unwritable(path: Path, error: OSError) -> InputError:
    """The error for a result that cannot be written."""
    return InputError(
        "--output",
        given=f"{path} ({error.strerror or error})",
        expected="a file that can be written",
        remedy="Choose another output.",
    )


def stored(
    x: Tensor, like: Picture, form: _Form | None = None, suffix: str = ".tif"
) -> tuple[np.ndarray, int | None]:
    """A result (c, h, w), float64, as the numbers of a file, (h, w) or (h, w, c), and its white."""
    form = form or _form(suffix, like, x.shape[0])
    white = like.white if form.levels == (0, like.white) else None
    pixels = _pixels(x, form, white)
    return pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1), white


def rounding(x: Tensor, like: Picture) -> tuple[float, list[str]]:
    """How far a page is from the result when it is written to a TIFF file, which loses nothing
    more, and remarks on it.
    """
    form = _form(".tif", like, x.shape[0])
    pixels, _ = stored(x, like, form)
    distance = _distance(pixels[:, :, None] if pixels.ndim == 2 else pixels, x, form)
    return distance, _remarks(".tif", form, like, distance)


def _form(suffix: str, like: Picture, channels: int) -> _Form:
    """The nearest to the form of what was read that the format can hold."""
    if suffix in TIFF and like.path.suffix.lower() not in TIFF:
        return _Form(np.dtype(np.float32), UNIT)  # asked for because it keeps everything
    if like.dtype != np.bool_ and holds(suffix, like.dtype, channels):
        # why: a picture in another format is looked at, and 12 bits of 16 would be nearly black
        shown = like.dtype.kind == "u" and suffix not in TIFF and like.path.suffix.lower() in TIFF
        full = (0.0, float(np.iinfo(like.dtype).max)) if shown else like.levels
        return _Form(like.dtype, full)
    sixteen = np.dtype(np.uint16)
    if like.deep and holds(suffix, sixteen, channels):
        return _Form(sixteen, (0.0, 65535.0))
    return _Form(np.dtype(np.uint8), (0.0, 255.0))


def _pixels(x: Tensor, form: _Form, white: int | None) -> np.ndarray:
    """(c, h, w) in the type and the units of a file."""
    lo, hi = form.levels
    values = x.numpy() * (hi - lo) + lo
    if form.dtype.kind == "f":
        return values.astype(form.dtype)
    limits = np.iinfo(form.dtype)
    return values.round().clip(limits.min, white or limits.max).astype(form.dtype)


def _distance(pixels: np.ndarray, x: Tensor, form: _Form) -> float:
    """How far pixels (h, w, c) are from the result, over the whole image, in its scale."""
    written = scaled(pixels, form.levels)
    return float(np.linalg.norm(np.moveaxis(written, -1, 0) - x.numpy()))


def _remarks(suffix: str, form: _Form, like: Picture, distance: float) -> list[str]:
    remarks = []
    bits = 8 * form.dtype.itemsize
    if suffix in JPEG:
        remarks.append(f"JPEG, {distance:.1e} from the result")
    elif form.dtype.kind != "f" or bits < 32:
        remarks.append(f"rounded to {bits} bits, {distance:.1e} from the result")
    if like.deep and bits == 8:
        remarks.append("written with 8 bits, .tif would keep more")
    full = like.dtype.kind == "b" or (
        like.dtype.kind == "u" and like.levels == (0, np.iinfo(like.dtype).max)
    )
    if form.levels != like.levels and not full and like.levels != UNIT:
        lo, hi = form.levels
        remarks.append(f"{like.levels[0]:g} to {like.levels[1]:g} written as {lo:g} to {hi:g}")
    if like.transparent:
        remarks.append("transparency was dropped")
    return remarks
