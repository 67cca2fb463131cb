"""model.safetensors: weights and the recipe to rebuild the energy; no code is ever executed from a
file.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.errors import ModelFileError
from ..core.files import load_tensors, save_tensors
from ..operators.physics import describe_physics, physics_from_description
from ..problems.build import energy_for
from ..problems.energy import Energy
from ..problems.fidelity import KL, L1, L2
from ..problems.saddle import SaddleEnergy
from ..regularizers import from_spec

FORMAT, VERSION = "learnreg-model", 1
FIDELITIES: dict[str, type[L2] | type[L1] | type[KL]] = {"L2": L2, "L1": L1, "KL": KL}
"""Data terms that a model file can name."""


def save_model(
    path: str | Path, energy: Energy | SaddleEnergy, notes: dict[str, Any] | None = None
) -> Path:
    """Write a trained energy.

    Args:
        path: the file, usually ``model.safetensors``.
        energy: weights and recipe are taken from it. A regularizer without ``spec`` is saved by its
            weights alone.
        notes: JSON-able remarks (training images, PSNR, ...).
    """
    regularizer = energy.regularizer
    spec = (
        regularizer.spec()
        if hasattr(regularizer, "spec")
        else {"type": type(regularizer).__qualname__}
    )
    header = {
        "format": FORMAT,
        "version": VERSION,
        "regularizer": spec,
        **_describe_data_term(energy),
        "physics": describe_physics(energy.physics),
        "notes": notes or {},
    }
    save_tensors(Path(path), regularizer.state_dict(), header)
    return Path(path)


def load_model(
    path: str | Path, *, physics: nn.Module | None = None, regularizer: nn.Module | None = None
) -> Energy | SaddleEnergy:
    """Read a trained energy.

    Args:
        physics: replaces the stored one; needed when the file cannot describe its physics (anything
            but denoising).
        regularizer: an instance to fill with the weights; needed for classes that are not the
            library's own.

    Raises:
        ModelFileError: missing, corrupted or foreign file, newer version, weights that do not fit.
    """
    tensors, header = load_tensors(Path(path), FORMAT)
    if header.get("version") != VERSION:
        raise ModelFileError(
            str(path),
            given=f"version {header.get('version')}",
            expected=f"version {VERSION}",
            remedy="Update learnreg.",
        )
    broken = [k for k, t in tensors.items() if not bool(torch.isfinite(t).all())]
    if broken:
        raise ModelFileError(
            str(path), given=f"NaN or Inf in {', '.join(broken)}", expected="finite weights"
        )
    try:
        module = from_spec(dict(header["regularizer"])) if regularizer is None else regularizer
        module = _filled(module, tensors, str(path))
        found = physics or physics_from_description(header["physics"])
        return energy_for(found, module, *_data_term(header))
    except ModelFileError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelFileError(
            str(path),
            given=f"a damaged recipe ({type(error).__name__}: {error})",
            expected="the header written by save_model",
            remedy="Restore the file from its run.",
        ) from error


def _describe_data_term(energy: Energy | SaddleEnergy) -> dict[str, Any]:
    """The keys of the header for the data term; an Energy has the one of L2 only, as files always
    had.
    """
    fidelity = energy.fidelity
    if isinstance(energy, Energy):
        return {"sigma": fidelity.sigma}
    named = FIDELITIES.get(type(fidelity).__name__) is type(fidelity)
    told = asdict(fidelity) if named else {}
    return {"fidelity": {"type": type(fidelity).__name__, **told}, "tikhonov": energy.tikhonov}


def _data_term(header: dict[str, Any]) -> tuple[L2 | L1 | KL, float]:
    """Data term and tikhonov of a header."""
    if "fidelity" not in header:
        return L2(header["sigma"]), 0.0
    arguments = dict(header["fidelity"])
    kind = arguments.pop("type")
    if kind not in FIDELITIES:
        raise ModelFileError(
            "fidelity",
            given=repr(kind),
            expected=f"one of {', '.join(FIDELITIES)}",
            remedy="Rebuild the energy with your own data term; the weights are in the file.",
        )
    return FIDELITIES[kind](**arguments), header["tikhonov"]


def _filled(module: nn.Module, tensors: dict[str, torch.Tensor], path: str) -> nn.Module:
    """The module in the type of the weights and with the weights; untouched if they do not fit."""
    own = module.state_dict()
    if {k: t.shape for k, t in own.items()} != {k: t.shape for k, t in tensors.items()}:
        names = sorted(set(own) ^ set(tensors)) or [
            k for k, t in own.items() if t.shape != tensors[k].shape
        ]
        raise ModelFileError(
            path,
            given="weights that do not fit the regularizer",
            expected=f"the tensors of {type(module).__name__}",
            remedy=f"Look at {', '.join(names)}.",
        )
    kinds = {t.dtype for t in tensors.values()}
    if not all(k.is_floating_point for k in kinds) or len(kinds) > 1:
        raise ModelFileError(
            path,
            given=f"weights of type {', '.join(sorted(map(str, kinds)))}",
            expected="weights of one floating-point type",
        )
    if tensors:
        module = module.to(
            next(iter(tensors.values())).dtype
        )  # before the weights, which it would round
    module.load_state_dict(tensors)
    return module


def model_notes(path: str | Path) -> dict[str, Any]:
    """The remarks stored with a model."""
    return load_tensors(Path(path), FORMAT)[1].get("notes", {})
