"""Image files in and out of ``reconstruct``: grey stays grey, and 16 bits stay 16 bits where they
can.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ..core.errors import InputError
from ..data import load_image, save_image
from ..data.formats import read_pixels

BITS_PER_SAMPLE = 258  # number of a TIFF tag
WRITABLE = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


@dataclass(frozen=True)
class Picture:
    """An image file as it was read.

    Attributes:
        path: the file.
        pixels: (c, h, w), float32 in [0, 1], c = 1 or 3.
        deep: it has more than 8 bits per value.
        transparent: it has a transparency, which is not reconstructed.
    """

    path: Path
    pixels: Tensor
    deep: bool
    transparent: bool


def read_picture(path: Path) -> Picture:
    """Read an image file with the channels that it has.

    Raises:
        InputError: see ``load_image``.
    """
    pixels = load_image(path, 3)
    bands = read_pixels(path).shape[2]
    return Picture(path, pixels[:1] if bands < 3 else pixels, _is_deep(path), bands in (2, 4))


def write_picture(path: Path, x: Tensor, like: Picture) -> str:
    """Write (c, h, w) so that ``path`` is whole or absent; returns a remark on what the file cannot
    hold.

    Grey images of more than 8 bits go to .png with 16 bits, .tif holds float32, everything else 8
    bits.
    """
    suffix = path.suffix.lower()
    part = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    deep_grey = like.deep and suffix == ".png" and x.shape[0] == 1
    try:
        if deep_grey:
            values = (x[0].cpu().double().clamp(0, 1) * 65535).round().numpy().astype(np.uint16)
            Image.fromarray(values).save(part)
        else:
            save_image(part, x)
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
    remarks = []
    if like.deep and not deep_grey and suffix not in (".tif", ".tiff"):
        remarks.append("written with 8 bits, .tif would keep more")
    if like.transparent:
        remarks.append("transparency was dropped")
    return f"; {', '.join(remarks)}" if remarks else ""


def _is_deep(path: Path) -> bool:
    """More than 8 bits per value; Pillow has no mode for deep colour, so TIFF files are asked for
    their bits.
    """
    try:
        with Image.open(path) as picture:
            bits = getattr(picture, "tag_v2", {}).get(BITS_PER_SAMPLE, 8)
            deep = max(bits) > 8 if isinstance(bits, tuple) else bits > 8
            return deep or picture.mode in ("I", "F") or picture.mode.startswith("I;16")
    except OSError:  # a kind of TIFF that only the reader of the library knows
        return True
