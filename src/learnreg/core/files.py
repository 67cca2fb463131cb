"""Files that are whole or absent: atomic writes, and safetensors with a JSON header (never
pickle).
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from .errors import ModelFileError


def write_atomically(path: Path, content: bytes) -> None:
    """Write to a temporary file beside ``path`` and rename it; a crash leaves the old file or
    none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def save_tensors(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Tensors and a JSON header as one safetensors file, written atomically."""
    from safetensors.torch import save

    data = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    write_atomically(path, save(data, {"learnreg": json.dumps(header)}))


def load_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a file written by ``save_tensors``.

    Args:
        kind: the ``format`` that the header must name.

    Raises:
        ModelFileError: missing, corrupted, foreign, or of another kind.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    remedy = f"Pass a {kind} file written by this library."
    if not path.is_file():
        raise ModelFileError(
            str(path), given="no such file", expected=f"a {kind} file", remedy=remedy
        )
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("learnreg", "null"))
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelFileError(
            str(path),
            given=f"a file that is not intact safetensors ({error})",
            expected=f"a {kind} file",
            remedy=remedy,
        ) from error
    if not isinstance(header, dict) or header.get("format") != kind:
        found = header.get("format") if isinstance(header, dict) else "a foreign safetensors file"
        raise ModelFileError(str(path), given=str(found), expected=f"a {kind} file", remedy=remedy)
    return tensors, header
