"""Images in and out: the photographs that lie in the scikit-image wheel, image files, folders."""

from __future__ import annotations

import importlib.resources
import warnings
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..core.errors import DataWarning, InputError
from ..core.ranges import plain
from .files_out import check_writable, write_pixels
from .formats import TIFF, check_file, read_raw, size_of
from .stacks import layout_of, named, series_remarks
from .units import RangeLike, as_image, auto_levels, check_range, facts_of, levels_of, remarks_on

NATURAL = {
    "astronaut": ("astronaut.png", "a portrait: skin, cloth, a flag, a helmet"),
    "camera": ("camera.png", "a man with a camera on a lawn: silhouette, sky, grass"),
    "chelsea": ("chelsea.png", "a cat's face: fur, eyes, whiskers"),
    "coffee": ("coffee.png", "a cup on a wooden table: smooth porcelain, grain, highlights"),
    "coins": ("coins.png", "old coins on cloth: reliefs and round outlines"),
    "motorcycle": ("motorcycle_left.png", "a motorcycle in a garage: metal, spokes, clutter"),
    "rocket": ("rocket.jpg", "a rocket at dusk: a smooth sky, towers, lamps"),
}
"""Name -> (file in the wheel, what it shows): scenes and objects with outlines.

Left out: pictures by instruments (moon, Hubble field, retina, microscopy), text and charts, the
deliberately blurred clock, the second view of the motorcycle (the same scene as the first), and the
three close-ups in which one material fills the frame (brick, grass, gravel). The last are
photographs too, but all texture: no method removes much noise from grass and gravel, and a filter
bank trained on one brick wall learns that wall. So figures on this list are kinder than figures on
textures would be.
"""

GREY = ("camera", "coins")
"""Those of :data:`NATURAL` without colour."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
"""File name endings (in lower case) that count as images."""


def natural_photographs() -> dict[str, Tensor]:
    """The photographs of :data:`NATURAL`, read from the installed scikit-image wheel without a
    network.

    Returns:
        Name -> grey image (h, w), float32 in [0, 1], at its native size (300 to 741 pixels a side),
        sorted by name.

    Raises:
        InputError: a file is missing from the installation of scikit-image.
    """
    return {name: load_natural(name)[0] for name in sorted(NATURAL)}


def load_natural(name: str) -> Tensor:
    """One photograph of :data:`NATURAL` as (1, h, w), float32 in [0, 1]."""
    return load_image(natural_file(name))


def natural_file(name: str) -> Path:
    """The file of one photograph of :data:`NATURAL`.

    Raises:
        InputError: it is missing from the installation of scikit-image.
    """
    file = NATURAL[name][0]
    path = Path(str(importlib.resources.files("skimage"))) / "data" / file
    if not path.is_file():
        raise InputError(
            f'the photograph "{name}"',
            given=f"no file {file} in the data folder of scikit-image",
            expected="the file as it lies in the scikit-image wheel",
            remedy="Reinstall scikit-image from its wheel, or pass a folder of your own images.",
        )
    return path


def load_image(
    path: str | PathLike[str],
    channels: int = 1,
    range: RangeLike = None,
    page: int | None = None,
) -> Tensor:
    """Read one image file, or one page of a TIFF stack.

    Transparency is dropped, the orientation tag of cameras is obeyed, white-is-zero files are
    turned over. Colour becomes grey as 0.299 R + 0.587 G + 0.114 B; grey becomes colour by
    repetition. Nothing is clipped. Colour of 16 bits is read as such from uncompressed TIFF
    files, and from PNG and compressed TIFF files with the extra ``formats``.

    Args:
        path: a PNG, JPEG, TIFF, BMP or WebP file.
        channels: 1 (grey) or 3 (red, green, blue).
        range: ``(lo, hi)``, the levels that become 0 and 1; ``"dtype"`` for 0 and the largest value
            of the integer type; ``"auto"`` for 0 and the smallest 2^k - 1 that holds the image, or
            its smallest and largest value if it is float or signed. None is "dtype" for integers of
            8 and 16 bits, or the depth that a TIFF header declares; float pixels must then be on
            the scale of [0, 1] (noise may take them to [-1, 2]).
        page: of a TIFF file with several, counted from 0; :func:`count_pages` says how many there
            are. Previews and masks do not count; of several series, the first is read.

    Returns:
        (channels, h, w), float32.

    Raises:
        InputError: no such file, not an image, several pages and none named, no such page,
            bands that are no colours, no pixels, NaN/Inf, or pixels whose scale must not be
            guessed.

    Warns:
        DataWarning: the image fills less than a fifth of its range, or was read with fewer bits
            than it has; the file has further series.

    Example:
        >>> x = load_image("slice.tif", range=(-1000, 1000))  # doctest: +SKIP
        >>> pages = [load_image("stack.tif", page=i) for i in range(count_pages("stack.tif"))]
        ... # doctest: +SKIP
    """
    check_channels(channels)
    raw = read_raw(Path(path), page)
    facts, given = facts_of(named(path, page), raw), check_range(range)
    levels = auto_levels([facts]) if given == "auto" else levels_of(facts, given)
    for remark in series_remarks(Path(path)) + remarks_on([facts], {facts.name: levels}, given):
        warnings.warn(remark, DataWarning, stacklevel=2)
    return as_image(raw, levels, channels)


def count_pages(path: str | PathLike[str]) -> int:
    """Number of pages of an image file: 1 but for TIFF stacks.

    Raises:
        InputError: no such file, a damaged one, a volume behind one header.

    Example:
        >>> count_pages("stack.tif")  # doctest: +SKIP
        64
    """
    file = Path(path)
    check_file(file)
    if file.suffix.lower() not in TIFF:
        size_of(file)
        return 1
    try:
        return len(layout_of(file))
    except InputError:
        raise
    except Exception:  # why all: the reader of pixels finds the words, or a way
        read_raw(file)
        return 1


def check_channels(channels: object) -> int:
    """1 or 3.

    Raises:
        InputError: anything else.
    """
    number = plain(channels)
    if not isinstance(number, int) or isinstance(number, bool) or number not in (1, 3):
        raise InputError(
            "channels",
            given=repr(channels),
            expected="1 (grey) or 3 (colour)",
            remedy="Pass channels=1 or channels=3.",
        )
    return number


def save_image(path: str | PathLike[str], x: Tensor) -> None:
    """Write one image; the ending of ``path`` chooses the format.

    ``.png`` and ``.jpg`` hold 8 bits: pixels are clipped to [0, 1] and rounded, and JPEG (quality
    95, colour as fine as grey) loses a little more. ``.tif`` holds float32 and is not clipped.

    Args:
        path: file to write, in an existing folder; an existing file is replaced.
        x: (h, w), (c, h, w) or (1, c, h, w) with c = 1 or 3; on any device.

    Raises:
        InputError: unknown ending, no such folder, wrong shape, NaN/Inf pixels.
    """
    path = Path(path)
    check_writable(path)
    image = x.detach().cpu().float()
    image = image[0] if image.dim() == 4 and image.shape[0] == 1 else image
    image = image[None] if image.dim() == 2 else image
    if image.dim() != 3 or image.shape[0] not in (1, 3) or image.numel() == 0:
        raise InputError(
            "x",
            given=f"shape {tuple(x.shape)}",
            expected="(h, w), (c, h, w) or (1, c, h, w), c = 1 or 3",
            remedy="Save the images of a batch one by one.",
        )
    if not bool(torch.isfinite(image).all()):
        raise InputError(
            "x",
            given="NaN or Inf pixels",
            expected="finite pixels",
            remedy="Look for a diverged solve.",
        )
    pixels = (
        image[0].numpy() if image.shape[0] == 1 else image.permute(1, 2, 0).contiguous().numpy()
    )
    if path.suffix.lower() not in TIFF:
        pixels = (pixels.clip(0, 1) * 255).round().astype(np.uint8)
    write_pixels(path, pixels)


def list_images(folder: str | PathLike[str]) -> list[Path]:
    """The image files of a folder (not of its subfolders), sorted by name; hidden files are passed
    over.

    Raises:
        InputError: no such folder, not a folder, or no image in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        given = "a file" if folder.exists() else "no such folder"
        raise InputError(
            str(folder),
            given=given,
            expected="a folder of images",
            remedy="Pass the folder itself, or a list of files.",
        )
    entries = [p for p in folder.iterdir() if not p.name.startswith(".")]
    images = [p for p in entries if p.is_file() and p.suffix.lower() in SUFFIXES]
    if not images:
        given = f"{len(entries)} entries, none an image" if entries else "an empty folder"
        raise InputError(
            str(folder),
            given=given,
            expected="at least one of *" + ", *".join(SUFFIXES),
            remedy="Put images directly into this folder (subfolders are not searched).",
        )
    return sorted(images, key=lambda p: p.name)
