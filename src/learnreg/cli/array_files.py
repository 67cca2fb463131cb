"""Measurements and results of ``reconstruct`` in files of arrays: sinograms, k-space, volumes."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
from torch import Tensor

from ..core.errors import DataWarning, InputError
from ..data import read_array, save_array
from ..data.arrays import ARRAYS, array_file
from ..data.formats import TIFF
from .pictures import Picture

SUFFIXES = tuple(suffix for suffix in ARRAYS if suffix not in TIFF)
"""Endings of files that hold no pictures; a TIFF file may be one."""


def read_measured(path: Path) -> Picture:
    """A measurement (c, ...) in the units of its file; a channel is added to (h, w), and complex
    numbers become two real channels, as deepinv's MRI has them.

    Raises:
        InputError: see ``learnreg.data.read_array``; NaN or Inf.
    """
    y = read_array(path)
    if not bool(torch.isfinite(torch.view_as_real(y) if y.is_complex() else y).all()):
        raise InputError(
            str(path),
            given="NaN or Inf",
            expected="finite numbers",
            remedy="Repair or leave it out.",
        )
    if y.is_complex():
        y = torch.view_as_real(y).movedim(-1, 0)
    return Picture(path, y if y.dim() > 2 else y[None], deep=True, transparent=False)


RESULT = ".npy"
"""Ending of files that hold a result as it is."""


def is_array(path: Path) -> bool:
    """Whether a file holds an array, by its name: no picture."""
    return path.name.lower().endswith(SUFFIXES)


SHOWN = 5
"""Names at most in a warning."""


def list_inputs(folder: Path, pictures: tuple[str, ...]) -> list[Path]:
    """The pictures and arrays of a folder, sorted by name; hidden files are passed over.

    Raises:
        InputError: there is none.

    Warns:
        DataWarning: names the files and subfolders that are left out.
    """
    known = (*pictures, *SUFFIXES)
    entries = [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")]
    found = [p for p in entries if p.name.lower().endswith(known)]
    if not found:
        raise InputError(
            str(folder),
            given=f"{len(entries)} files, none of them readable" if entries else "an empty folder",
            expected="at least one of *" + ", *".join(known),
            remedy="Put the files directly into this folder (subfolders are not searched).",
        )
    _tell_left_out(folder, [p.name for p in entries if p not in set(found)])
    return sorted(found, key=lambda p: p.name)


def _tell_left_out(folder: Path, files: list[str]) -> None:
    """What is in a folder and is not treated, in one warning."""
    below = [f"{p.name}/" for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")]
    names = sorted(files) + sorted(below)
    if not names:
        return
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    warnings.warn(
        f"{folder}: left out {', '.join(names[:SHOWN])}{more}. Subfolders are not searched, and "
        "files of other formats not read: name the folders as inputs of their own, convert the "
        "files.",
        DataWarning,
        stacklevel=3,
    )


def result_name(source: Path) -> str:
    """The name of the result for an array: what holds every value."""
    return f"{array_file(source).stem}{RESULT}"


def write_result(path: Path, x: Tensor) -> str:
    """Write a result (c, ...) so that ``path`` is whole or absent: one channel without its axis.

    Raises:
        InputError: the file cannot be written.
    """
    part = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        save_array(part, x[0] if x.shape[0] == 1 else x)
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
    return ""
