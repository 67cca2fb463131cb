"""Files that are whole or absent: atomic writes, and safetensors with a JSON header (never pickle)
and a checksum.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .errors import ModelFileError

KEY, CHECKSUM = "learnreg", "sha256"

DIGITS = 64
"""Of a sha256."""

LENGTH = 8
"""Bytes that say how long the head of a safetensors file is; data begin at a multiple of it."""

OPENING = b'{"__metadata__":{'
SEALED = OPENING + f'"{CHECKSUM}":"'.encode()


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


def save_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, object]) -> None:
    """Tensors and a JSON header as one safetensors file with a checksum, written atomically."""
    from safetensors.torch import save

    data = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    write_atomically(path, _sealed(save(data, {KEY: json.dumps(dict(header))})))


def load_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a file written by ``save_tensors``.

    Files of earlier releases carry no checksum; they are taken as they are.

    Args:
        kind: the ``format`` that the header must name.

    Raises:
        ModelFileError: missing, damaged, foreign, or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise _refusal(path, "no such file", kind)
    try:
        tensors, told, intact = _parsed(path.read_bytes())
        header = json.loads(told.get(KEY, "null"))
    except (OSError, ValueError) as error:
        given = f"a file that is not intact safetensors ({error})"
        raise _refusal(path, given, kind) from error
    if not intact:
        raise _refusal(path, "a file that is damaged: its checksum does not fit", kind)
    if not isinstance(header, dict) or header.get("format") != kind:
        found = header.get("format") if isinstance(header, dict) else "a foreign safetensors file"
        raise _refusal(path, str(found), kind)
    return tensors, header


def _refusal(path: Path, given: str, kind: str) -> ModelFileError:
    remedy = f"Pass a {kind} file written by this library."
    return ModelFileError(str(path), given=given, expected=f"a {kind} file", remedy=remedy)


def _parsed(content: bytes) -> tuple[dict[str, Tensor], dict[str, str], bool]:
    """Tensors, metadata, and whether the checksum fits.

    Raises:
        ValueError: not safetensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(content)
    except (SafetensorError, KeyError, TypeError) as error:  # the last two: a type unknown to torch
        raise ValueError(str(error)) from error
    end = LENGTH + int.from_bytes(content[:LENGTH], "little")
    told = json.loads(content[LENGTH:end]).get("__metadata__") or {}
    return {k: tensors[k] for k in sorted(tensors)}, told, _intact(content, told)


def _sealed(content: bytes) -> bytes:
    """The same file with the checksum of all its other bytes at a fixed place in its head.

    The digits are put in by hand: safetensors writes several metadata in an order that changes
    from one process to the next, and equal content is to give equal files.
    """
    end = LENGTH + int.from_bytes(content[:LENGTH], "little")
    head = content[LENGTH:end].rstrip(b" ")
    if not head.startswith(OPENING):
        return content  # a safetensors that writes otherwise: whole files, without a checksum
    rest = b'",' + head[len(OPENING) :]
    rest += b" " * (-(len(SEALED) + DIGITS + len(rest)) % LENGTH)
    length = (len(SEALED) + DIGITS + len(rest)).to_bytes(LENGTH, "little")
    data = memoryview(content)[end:]
    digest = _digest(length + SEALED, rest, data)
    return b"".join((length, SEALED, digest, rest, data))


def _intact(content: bytes, told: Mapping[str, str]) -> bool:
    """Whether the checksum fits; files from before there was one have a single metadatum.

    A checksum under another name, or at another place, is one that was damaged itself.
    """
    if CHECKSUM not in told:
        return KEY not in told or len(told) == 1
    start = LENGTH + len(SEALED)
    if not content.startswith(SEALED, LENGTH):
        return False
    whole = memoryview(content)
    stop = start + DIGITS
    return whole[start:stop] == _digest(whole[:start], whole[stop:])


def _digest(*pieces: bytes | memoryview) -> bytes:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest().encode()
