"""Image files in and out of ``reconstruct``: what is written has the type, the units and the
metadata of what was read, where the format can hold them.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from ..core.errors import DataWarning, InputError
from ..data.files_out import JPEG, WRITABLE, Metadata, holds, read_metadata, write_pixels
from ..data.formats import TIFF, read_raw
from ..data.units import Facts, Levels, as_image, facts_of, levels_of, remarks_on, scaled

__all__ = ["WRITABLE", "Picture", "read_picture", "write_picture"]

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
    """

    path: Path
    pixels: Tensor
    deep: bool
    transparent: bool
    dtype: np.dtype = np.dtype(np.uint8)
    levels: Levels = (0.0, 255.0)
    white: int | None = None
    metadata: Metadata = Metadata()


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
    raw = read_raw(path)
    facts = facts_of(str(path), raw)
    given = units if units is None or _reaches(facts, units) else None
    levels = levels_of(facts, given)
    remarks = remarks_on([facts], {facts.name: levels}, given)
    if units is not None and given is None:
        remarks.append(
            f"{path}: {facts.dtype} pixels, which cannot be in the units [{units[0]:g}, "
            f"{units[1]:g}] of the images that were learned from; taken in [{levels[0]:g}, "
            f"{levels[1]:g}]."
        )
    for remark in remarks:
        warnings.warn(remark, DataWarning, stacklevel=2)
    return Picture(
        path,
        as_image(raw, levels, raw.pixels.shape[2]),
        raw.pixels.dtype.itemsize > 1,
        raw.transparent,
        raw.pixels.dtype,
        levels,
        raw.white,
        read_metadata(path),
    )


def _reaches(facts: Facts, units: Levels) -> bool:
    """Whether the type of a file holds such levels."""
    if facts.dtype.kind == "f":
        return True
    if facts.dtype.kind == "b":
        return False
    limits = np.iinfo(facts.dtype)
    return bool(limits.min <= units[0] and units[1] <= limits.max)


def write_picture(path: Path, x: Tensor, like: Picture) -> str:
    """Write (c, h, w) so that ``path`` is whole or absent; returns a remark on what the file cannot
    hold.

    From TIFF to TIFF the type and the units of ``like`` are kept. Other files keep 8 bits, and 16
    in .png (colour of 16 bits with the extra ``formats``); .tif holds float32 in [0, 1] if ``like``
    was no TIFF. JPEG has quality 95 without subsampling. How far the file is from ``x``, over the
    whole image, is measured by reading it again.

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
    white = like.white if form.levels == (0, like.white) else None
    pixels = _pixels(values, form, white)
    try:
        write_pixels(
            part,
            pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1),
            like.metadata,
            white,
        )
        distance = _distance(part, values, form)
        os.replace(part, path)
    except OSError as error:
        raise InputError(
            "--output",
            given=f"{path} ({error.strerror or error})",
            expected="a file that can be written",
            remedy="Choose another output.",
        ) from error
    finally:
        part.unlink(missing_ok=True)
    remarks = _remarks(suffix, form, like, distance)
    return f"; {', '.join(remarks)}" if remarks else ""


def _form(suffix: str, like: Picture, channels: int) -> _Form:
    """The nearest to the form of what was read that the format can hold."""
    if suffix in TIFF and like.path.suffix.lower() not in TIFF:
        return _Form(np.dtype(np.float32), UNIT)  # asked for because it keeps everything
    if like.dtype != np.bool_ and holds(suffix, like.dtype, channels):
        return _Form(like.dtype, like.levels)
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


def _distance(path: Path, x: Tensor, form: _Form) -> float:
    """How far the file is from the result, over the whole image, in its scale."""
    written = scaled(read_raw(path).pixels, form.levels)
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
