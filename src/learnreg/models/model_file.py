"""model.safetensors: weights and the recipe to rebuild the energy; no code is ever executed from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.errors import ModelFileError
from ..core.files import load_tensors, save_tensors
from ..operators.physics import describe_physics, physics_from_description
from ..problems.energy import Energy
from ..problems.fidelity import L2
from ..regularizers import from_spec

FORMAT, VERSION = "learnreg-model", 1


def save_model(path: str | Path, energy: Energy, notes: dict[str, Any] | None = None) -> Path:
    """Write a trained energy.

    Args:
        path: the file, usually ``model.safetensors``.
        energy: weights and recipe are taken from it. A regularizer without ``spec`` is saved by its weights alone.
        notes: JSON-able remarks (training images, PSNR, ...).
    """
    regularizer = energy.regularizer
    spec = regularizer.spec() if hasattr(regularizer, "spec") else {"type": type(regularizer).__qualname__}
    header = {"format": FORMAT, "version": VERSION, "regularizer": spec, "sigma": energy.fidelity.sigma,
              "physics": describe_physics(energy.physics), "notes": notes or {}}
    save_tensors(Path(path), regularizer.state_dict(), header)
    return Path(path)


def load_model(path: str | Path, *, physics: nn.Module | None = None, regularizer: nn.Module | None = None) -> Energy:
    """Read a trained energy.

    Args:
        physics: replaces the stored one; needed when the file cannot describe its physics (anything but denoising).
        regularizer: an instance to fill with the weights; needed for classes that are not the library's own.

    Raises:
        ModelFileError: missing, corrupted or foreign file, newer version, weights that do not fit.
    """
    tensors, header = load_tensors(Path(path), FORMAT)
    if header.get("version") != VERSION:
        raise ModelFileError(str(path), given=f"version {header.get('version')}", expected=f"version {VERSION}",
                             remedy="Update learnreg.")
    module = from_spec(header["regularizer"]) if regularizer is None else regularizer
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelFileError(str(path), given="weights that do not fit the regularizer",
                             expected=f"the tensors of {type(module).__name__}",
                             remedy=str(error).splitlines()[-1].strip()) from error
    broken = [k for k, t in tensors.items() if not bool(torch.isfinite(t).all())]
    if broken:
        raise ModelFileError(str(path), given=f"NaN or Inf in {', '.join(broken)}", expected="finite weights")
    dtype = next(iter(tensors.values())).dtype if tensors else torch.float32
    return Energy(physics or physics_from_description(header["physics"]), module.to(dtype), L2(header["sigma"]))


def model_notes(path: str | Path) -> dict[str, Any]:
    """The remarks stored with a model."""
    return load_tensors(Path(path), FORMAT)[1].get("notes", {})
