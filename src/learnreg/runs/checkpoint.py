"""Checkpoints: the latest state in one file, written atomically; resuming gives the same
numbers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import CheckpointError, ModelFileError
from ..core.files import load_tensors, save_tensors
from ..core.objective import Objective
from ..core.packing import Packed
from .digest import digest_of

FORMAT, VERSION, FILE = "learnreg-checkpoint", 4, "checkpoint.safetensors"


def fingerprint(objective: Objective, learner: object) -> str:
    """Identifies objective, data, start and learner, so that a checkpoint is not continued on
    another run.

    Raises:
        CheckpointError: something in them cannot be told from another of its kind.
    """
    return digest_of(objective.describe(), type(objective), learner, objective.identity())


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
