"""Checkpoints: the latest state in one file, written atomically; resuming gives the same
numbers.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

from ..core.errors import CheckpointError, ModelFileError
from ..core.files import load_tensors, save_tensors
from ..core.objective import Objective
from ..core.packing import Packed

FORMAT, VERSION, FILE = "learnreg-checkpoint", 3, "checkpoint.safetensors"


class Digest(Protocol):
    """What ``hashlib`` makes."""

    def update(self, data: bytes, /) -> None: ...


def fingerprint(objective: Objective, learner: object) -> str:
    """Identifies objective, data, start and learner, so that a checkpoint is not continued on
    another run.
    """
    # a class without words of its own is told by its fields: the default is an address
    plain = type(learner).__repr__ is object.__repr__
    known = learner if plain else repr(learner)
    return digest_of(objective.describe(), known, objective.identity())


def digest_of(*parts: object) -> str:
    """Changes when any of the parts does."""
    digest = hashlib.sha256()
    _feed(digest, parts, {})
    return digest.hexdigest()


def _feed(digest: Digest, part: object, seen: dict[int, int]) -> None:
    """Everything that tells ``part`` from another of its kind: tensors, numbers, words, and what it
    is made of.

    ``seen`` numbers the objects met so far, so that those that refer to each other come to an end.
    """
    if isinstance(part, Tensor):
        digest.update(str((part.dtype, tuple(part.shape))).encode())
        for piece in (
            part.detach().split(64) if part.dim() else [part.detach()]
        ):  # data may be larger than memory
            digest.update(
                piece.cpu().resolve_conj().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            )
    elif isinstance(part, str | int | float | complex | bool | torch.dtype | type(None)):
        digest.update(repr(part).encode())
    elif isinstance(part, ModuleType | type):
        digest.update(part.__name__.encode())
    elif isinstance(part, dict):
        for key in part:
            digest.update(repr(key).encode())
            _feed(digest, part[key], seen)
    elif isinstance(part, list | tuple):
        for item in part:
            _feed(digest, item, seen)
    elif isinstance(part, MethodType):
        _feed(digest, (part.__func__, part.__self__), seen)
    elif isinstance(part, torch.Generator | torch.device | BuiltinFunctionType):
        return
    elif isinstance(part, FunctionType) and not any(
        (part.__closure__, part.__defaults__, part.__kwdefaults__)
    ):  # two that do the same are the same
        _feed_object(digest, part, seen)
    elif id(part) in seen:
        digest.update(f"object {seen[id(part)]}".encode())
    else:
        seen[id(part)] = len(seen)
        _feed_object(digest, part, seen)


def _feed_object(digest: Digest, part: object, seen: dict[int, int]) -> None:
    """A function with what it has caught, or the public fields of anything else."""
    if isinstance(part, FunctionType):
        _feed_code(digest, part.__code__)
        caught = tuple(cell.cell_contents for cell in part.__closure__ or ())
        _feed(digest, (caught, part.__defaults__, part.__kwdefaults__), seen)
    elif isinstance(part, partial):
        _feed(digest, (part.func, part.args, part.keywords), seen)
    else:
        digest.update(type(part).__qualname__.encode())
        private = isinstance(
            part, torch.nn.Module
        )  # modules keep parameters and buffers in underscored fields
        _feed(
            digest,
            {
                k: v
                for k, v in fields_of(part).items()
                if not k.startswith("_")
                or (private and k in ("_parameters", "_buffers", "_modules"))
            },
            seen,
        )


def fields_of(part: object) -> dict[str, object]:
    """The attributes of an object; none of one that keeps them elsewhere."""
    try:
        return vars(part)
    except TypeError:  # built into the interpreter, or with slots
        return {}


def _feed_code(digest: Digest, code: CodeType) -> None:
    """What a function does, the functions inside it included."""
    constants = [
        sorted(map(repr, c))
        if isinstance(c, frozenset)
        else c  # in an order that differs between processes
        for c in code.co_consts
        if not isinstance(c, CodeType)
    ]  # whose repr is an address
    digest.update(code.co_code + repr((constants, code.co_names)).encode())
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            _feed_code(digest, inner)


def save_checkpoint(
    folder: Path, packed: Packed, thetas: list[Tensor], header: Mapping[str, object]
) -> None:
    """Write ``folder/checkpoint.safetensors``."""
    tensors = packed.tensors | {"thetas": torch.stack([t.to(thetas[-1].dtype) for t in thetas])}
    save_tensors(
        folder / FILE,
        tensors,
        {"format": FORMAT, "version": VERSION, "state": packed.numbers, **header},
    )


def check_folder(folder: Path, resume: bool) -> None:
    """Refuse, before anything is computed, a folder that cannot hold a checkpoint, and to resume
    where there is none.

    Raises:
        CheckpointError: names the folder and what is wrong with it.
    """
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise CheckpointError(
            f"checkpoint {folder}",
            given=f"{existing}, which is a file",
            expected="a folder",
            remedy="Name another folder, or remove the file.",
        )
    if resume and not (folder / FILE).exists():
        raise CheckpointError(
            f"checkpoint {folder}",
            given="no checkpoint in it" if folder.is_dir() else "no such folder",
            expected=f"a folder that holds {FILE}",
            remedy="Start without resume, or name the folder of the interrupted run.",
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise CheckpointError(
            f"checkpoint {folder}",
            given=f"{existing}, which is read-only",
            expected="a folder that can be written to",
            remedy="Change its permissions, or name another folder.",
        )


def load_checkpoint(
    folder: Path, device: torch.device, expected: str
) -> tuple[Packed, list[Tensor], dict[str, Any]]:
    """The state, the thetas so far and the header.

    Raises:
        CheckpointError: no intact checkpoint, or one of another run.
    """
    try:
        tensors, header = load_tensors(folder / FILE, FORMAT)
    except ModelFileError as error:
        raise CheckpointError(
            str(folder),
            given=error.given,
            expected="a checkpoint of this run",
            remedy="Start without resume.",
        ) from error
    if header.get("version") != VERSION:
        raise CheckpointError(
            str(folder),
            given=f"version {header.get('version')}",
            expected=f"version {VERSION}",
            remedy="Resume with the release that wrote it, or start without resume.",
        )
    if header["fingerprint"] != expected:
        raise CheckpointError(
            str(folder),
            given="a checkpoint of another problem, data set or learner",
            expected="the same settings as in the interrupted run",
            remedy="Use the same configuration, or another checkpoint folder.",
        )
    # copies lie at aligned addresses, as fresh tensors do; sums over unaligned ones may be rounded
    # otherwise
    tensors = {k: v.to(device).clone() for k, v in tensors.items()}
    thetas = list(tensors.pop("thetas"))
    return Packed(tensors, header["state"]), thetas, header
