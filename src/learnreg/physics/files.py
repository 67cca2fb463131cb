"""Kernels, masks, coil maps, angles from files: NumPy arrays, and pictures of kernels and masks."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..core.errors import InputError
from ..core.ranges import shown

PICTURES = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")


def tensor_of(path: object, what: str) -> Tensor:
    """The array of a .npy file, or the grey values of a picture in [0, 1]; float32 or complex64.

    Args:
        path: the file.
        what: name of the argument, for messages.

    Raises:
        InputError: no such file, another format, numbers that are not finite, objects.
    """
    if not isinstance(path, str | PathLike):
        raise _refused(what, shown(path), "a path")
    file = Path(path)
    if not file.is_file():
        raise _refused(what, f"{file}: no such file", "a file")

    suffix = file.suffix.lower()
    try:
        if suffix == ".npy":
            found = np.load(file, allow_pickle=False)
        elif suffix in PICTURES:
            found = _picture(file)
        else:
            raise _refused(what, str(file), f".npy, or a picture ({', '.join(PICTURES)})")
    except InputError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise _refused(what, f"{file}, which cannot be read ({error})", "an intact file") from error

    if found.dtype.kind not in "biufc" or not found.size or not bool(np.isfinite(found).all()):
        given = f"{file} with {found.size} entries of {found.dtype}, or with NaN or Inf"
        raise _refused(what, given, "finite numbers")
    kind = torch.complex64 if found.dtype.kind == "c" else torch.float32
    return torch.from_numpy(np.ascontiguousarray(found)).to(kind)


def _picture(file: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    from PIL import Image

    with Image.open(file) as image:
        return np.asarray(image.convert("L")).astype(np.float32) / np.float32(255)


def _refused(what: str, given: str, expected: str) -> InputError:
    return InputError(
        what,
        given=given,
        expected=expected,
        remedy="Write an array with numpy.save(path, array); paths are relative to the folder you "
        "start in.",
    )
