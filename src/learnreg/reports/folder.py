"""The folder of a report."""

from __future__ import annotations

import os
from pathlib import Path

from ..core import InputError


def made(folder: str | os.PathLike[str]) -> Path:
    """The folder, with ``figures`` inside it; made where it is not there.

    Raises:
        InputError: it is a file or cannot be created.
    """
    folder = Path(folder)
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            "folder",
            given=f"{folder} ({error.strerror})",
            expected="a folder that can be written",
            remedy="Choose another one.",
        ) from error
    return folder
