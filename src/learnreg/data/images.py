"""Images in and out: the photographs that lie in the scikit-image wheel, image files, folders."""

from __future__ import annotations

import importlib.resources
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..core.errors import InputError
from .formats import TIFF, read_pixels

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

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
"""File name endings (in lower case) that count as images."""

LUMA = (
    0.299,
    0.587,
    0.114,
)  # ITU-R BT.601 on gamma-coded values, as in most of the denoising literature
_WRITABLE = (".png", ".jpg", ".jpeg", *TIFF)


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
    file = NATURAL[name][0]
    path = Path(str(importlib.resources.files("skimage"))) / "data" / file
    if not path.is_file():
        raise InputError(
            f'the photograph "{name}"',
            given=f"no file {file} in the data folder of scikit-image",
            expected="the file as it lies in the scikit-image wheel",
            remedy="Reinstall scikit-image from its wheel, or pass a folder of your own images.",
        )
    return load_image(path)


def load_image(path: str | PathLike[str], channels: int = 1) -> Tensor:
    """Read one image file.

    Integer pixels are divided by the largest value of their type; float pixels must be on the scale
    of [0, 1] already (noise may take them outside, so [-1, 2] is accepted and nothing is clipped).
    Transparency is dropped, the orientation tag of cameras is obeyed. Colour becomes grey as 0.299
    R + 0.587 G + 0.114 B; grey becomes colour by repetition. 16-bit colour keeps its 16 bits in
    TIFF files; from PNG files it is read with 8.

    Args:
        path: a PNG, JPEG, TIFF, BMP or WebP file.
        channels: 1 (grey) or 3 (red, green, blue).

    Returns:
        (channels, h, w), float32.

    Raises:
        InputError: no such file, not an image, several pages, no pixels, NaN/Inf or out-of-range
            float pixels.
    """
    if channels not in (1, 3) or isinstance(channels, bool):
        raise InputError(
            "channels",
            given=repr(channels),
            expected="1 (grey) or 3 (colour)",
            remedy="Pass channels=1 or channels=3.",
        )
    path = Path(path)
    if not path.is_file():
        given = "a folder" if path.is_dir() else "no such file"
        raise InputError(str(path), given=given, expected="an image file", remedy="Check the path.")
    pixels = read_pixels(path)
    if pixels.shape[2] in (2, 4):  # grey or colour with transparency
        pixels = pixels[:, :, :-1]
    if channels == 1 and pixels.shape[2] == 3:
        pixels = pixels @ np.asarray(LUMA)[:, None]
    image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32))
    return image.expand(channels, -1, -1).contiguous()


def save_image(path: str | PathLike[str], x: Tensor) -> None:
    """Write one image; the ending of ``path`` chooses the format.

    ``.png`` and ``.jpg`` hold 8 bits: pixels are clipped to [0, 1] and rounded. ``.tif`` holds
    float32 and is not clipped.

    Args:
        path: file to write, in an existing folder; an existing file is replaced.
        x: (h, w), (c, h, w) or (1, c, h, w) with c = 1 or 3; on any device.

    Raises:
        InputError: unknown ending, no such folder, wrong shape, NaN/Inf pixels.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _WRITABLE:
        raise InputError(
            str(path),
            given=f'the ending "{path.suffix}"',
            expected="one of " + ", ".join(_WRITABLE),
            remedy="Choose .png for viewing or .tif for exact values.",
        )
    if not path.parent.is_dir():
        raise InputError(
            str(path),
            given=f"a folder {path.parent} that does not exist",
            expected="an existing folder",
            remedy="Create the folder first.",
        )
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
    if suffix in TIFF:
        import tifffile

        tifffile.imwrite(path, pixels, photometric="minisblack" if image.shape[0] == 1 else "rgb")
    else:
        Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8)).save(path)


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
