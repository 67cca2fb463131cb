"""model.safetensors: weights and the recipe to rebuild the energy; no code is ever executed from a
file.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.asking import offers
from ..core.constraints import Between
from ..core.errors import DataWarning, ModelFileError
from ..core.files import load_tensors, save_tensors
from ..core.noise import followed
from ..core.offers import Specified
from ..core.params import named_trainable
from ..operators.private import clone
from ..physics import describe, rebuild
from ..problems.build import energy_for
from ..problems.counts import KL, PoissonGaussian
from ..problems.energy import Energy
from ..problems.fidelity import L1, L2, DataTerm, Huber, SaddleDataTerm, WeightedL2
from ..problems.per_image import HasTensors
from ..problems.saddle import SaddleEnergy
from ..problems.sampling import SampledL2, SamplingWeights
from ..regularizers import from_spec

FORMAT, VERSION = "learnreg-model", 3
READABLE = (1, 2, VERSION)
"""Versions that can be read; files of the first hold the physics of denoising only, and those
before the third no bounds of pixels.
"""

FIDELITIES: dict[str, Callable[..., DataTerm | SaddleDataTerm]] = {
    "L2": L2,
    "L1": L1,
    "KL": KL,
    "PoissonGaussian": PoissonGaussian,
    "Huber": Huber,
}
"""Data terms that a model file can name, built from the numbers and the tensors in it."""

SMALL = 2**12
"""A product of the sizes of a regularizer up to which its memory does not matter."""

OTHERS = ("fidelity", "physics", "recipe", "constraint")
"""Parts of an energy whose tensors stand in the file under their own name: what was learned of the
data term and of the physics, and what the recipe of the physics needs.
"""


def save_model(
    path: str | Path, energy: Energy | SaddleEnergy, notes: Mapping[str, object] | None = None
) -> Path:
    """Write a trained energy; the file holds all that a reconstruction needs.

    The physics is stored as a recipe: the name of a known class, its settings and its tensors
    (``learnreg.physics.describe``). What the recipe would not give back as it was is named only,
    with a DataWarning that says why.

    Args:
        path: the file, usually ``model.safetensors``.
        energy: weights and recipe are taken from it. A regularizer without ``spec`` is saved by its
            weights alone.
        notes: JSON-able remarks (training images, PSNR, ...).
    """
    regularizer = energy.regularizer
    spec = (
        regularizer.spec()
        if offers(regularizer, Specified)
        else {"type": type(regularizer).__qualname__}
    )
    told, held = describe(energy.physics)
    if "note" in told:
        warnings.warn(
            f"{path}: the file names the physics {told['type']} and does not hold it: "
            f"{told['note']}. Load it with load_model(path, physics=...).",
            DataWarning,
            stacklevel=2,
        )
    header = {
        "format": FORMAT,
        "version": _version(energy, told["type"]),
        "regularizer": spec,
        **_describe_data_term(energy),
        **_describe_constraint(energy),
        "physics": told,
        "notes": dict(notes or {}),
    }
    tensors = dict(regularizer.state_dict()) | learned_tensors(energy)
    tensors |= {f"recipe:{name}": t for name, t in held.items()}
    tensors |= {f"constraint:{name}": t for name, t in _bounds_per_pixel(energy).items()}
    save_tensors(Path(path), tensors, header)
    return Path(path)


def learned_tensors(energy: Energy | SaddleEnergy) -> dict[str, Tensor]:
    """What was learned outside of the regularizer, by the name of its part: ``physics:taps``.

    Weights of a data term are data of its own and are kept as well.
    """
    parts = {"fidelity": energy.fidelity, "physics": energy.physics}
    found = {
        f"{part}:{name}": t.detach()
        for part, module in parts.items()
        if isinstance(module, nn.Module)
        for name, t in named_trainable(module)
    }
    if offers(energy.fidelity, HasTensors):
        found |= {f"fidelity:{k}": t.detach() for k, t in energy.fidelity.tensors().items()}
    pattern = _pattern(energy.fidelity)
    for name, t in () if pattern is None else pattern.named_parameters():
        found[f"fidelity:weights.{name}"] = t.detach()
    return found


def _pattern(fidelity: object) -> SamplingWeights | None:
    """The sampling pattern of a data term that a file can describe."""
    own = fidelity.weights if type(fidelity) is SampledL2 else None
    return own if type(own) is SamplingWeights else None


def load_model(
    path: str | Path,
    *,
    physics: nn.Module | None = None,
    regularizer: nn.Module | None = None,
    fidelity: object | None = None,
) -> Energy | SaddleEnergy:
    """Read a trained energy.

    Args:
        physics: replaces the stored one; needed when the file names its physics only (a class of
            your own, tensors of single scans). Where its Gaussian noise has another level, the
            energy follows it (``problems.at_noise_level``).
        regularizer: an instance to fill with the weights; needed for classes that are not the
            library's own.
        fidelity: the data term; needed where it is a function of your own.

    What was learned of the physics or the data term is written into a copy of them.

    Raises:
        ModelFileError: missing, corrupted or foreign file, newer version, weights that do not fit.

    Warns:
        DataWarning: a physics with noise that the model was not learned for, and no rule for it.
    """
    tensors, header = load_tensors(Path(path), FORMAT)
    version = header.get("version")
    if isinstance(version, bool) or version not in READABLE:
        raise ModelFileError(
            str(path),
            given=f"version {version}",
            expected=f"version {VERSION}",
            remedy="Update learnreg.",
        )
    bounds = _of_part(tensors, "constraint")  # where infinities have a meaning
    weights = {k: t for k, t in tensors.items() if not k.startswith("constraint:")}
    broken = [k for k, t in weights.items() if not bool(torch.isfinite(t).all())]
    if broken:
        raise ModelFileError(
            str(path), given=f"NaN or Inf in {', '.join(broken)}", expected="finite weights"
        )
    try:
        own = {k: t for k, t in tensors.items() if k.partition(":")[0] not in OTHERS}
        if regularizer is None:
            _check_size(header["regularizer"], sum(t.numel() for t in own.values()))
        module = from_spec(dict(header["regularizer"])) if regularizer is None else regularizer
        module = _filled(module, own, str(path))
        found = physics or rebuild(header["physics"], _of_part(tensors, "recipe"))
        found = _with_learned(found, _of_part(tensors, "physics"), "physics")
        data_term, tikhonov = _data_term(header, _of_part(tensors, "fidelity"), fidelity)
        constraint = _constraint(header, bounds)
        energy = energy_for(found, module, data_term, tikhonov, constraint)
    except ModelFileError:
        raise
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
        OverflowError,
        MemoryError,
    ) as error:
        raise ModelFileError(
            str(path),
            given=f"a damaged recipe ({type(error).__name__}: {error})",
            expected="the header written by save_model",
            remedy="Restore the file from its run.",
        ) from error
    return energy if physics is None else followed(energy, _learned_level(header), stacklevel=3)


def _version(energy: Energy | SaddleEnergy, physics: object) -> int:
    """The earliest version that says all: earlier releases can read the file then."""
    if energy.constraint is not None:
        return 3
    return 1 if physics == "Denoising" else 2


def _check_size(spec: Mapping[str, Any], numbers: int) -> None:
    """Refuse a regularizer of more numbers than the file holds, before any memory is taken.

    Raises:
        ValueError: names the integers.
    """
    sizes = [v for k, v in spec.items() if type(v) is int and k != "seed"]
    # why two: a bank of filters has as many weights as its two largest sizes multiply to, or more
    largest = sorted((max(1, abs(v)) for v in sizes), reverse=True)[:2]
    if math.prod(largest) > max(SMALL, numbers):
        raise ValueError(f"{spec.get('type')} of sizes {sizes} with {numbers} weights"[:200])
    terms = spec.get("terms")
    for part in (*(terms if isinstance(terms, list) else ()), spec.get("regularizer")):
        if isinstance(part, Mapping):
            _check_size(part, numbers)


def _learned_level(header: Mapping[str, Any]) -> float | None:
    """The standard deviation of the Gaussian noise of the training data."""
    told = header["physics"].get("sigma")
    return float(told) if isinstance(told, int | float) and told > 0 else None


def _describe_data_term(energy: Energy | SaddleEnergy) -> dict[str, object]:
    """The keys of the header for the data term; L2 of an Energy has the one that files always
    had.
    """
    fidelity = energy.fidelity
    if isinstance(energy, Energy) and type(fidelity) is L2:
        return {"sigma": fidelity.sigma}
    kind = type(fidelity).__name__
    named = FIDELITIES.get(kind) is type(fidelity)
    told: dict[str, object] = asdict(fidelity) if named and is_dataclass(fidelity) else {}
    told = {key: value for key, value in told.items() if not isinstance(value, torch.Tensor)}
    pattern = _pattern(fidelity)
    if pattern is not None:
        told = {"weights": pattern.spec(), "learned": pattern.numbers.requires_grad}
    tikhonov = energy.tikhonov if isinstance(energy, SaddleEnergy) else 0.0
    return {"fidelity": {"type": kind, **told}, "tikhonov": tikhonov}


def _describe_constraint(energy: Energy | SaddleEnergy) -> dict[str, object]:
    """The key of the header for bounds of pixels: numbers, null for none, "per pixel" for those
    that stand in the file as tensors.
    """
    constraint = energy.constraint
    if constraint is None:
        return {}
    ends = {"lower": constraint.lower, "upper": constraint.upper}
    return {"constraint": {k: "per pixel" if isinstance(v, Tensor) else v for k, v in ends.items()}}


def _bounds_per_pixel(energy: Energy | SaddleEnergy) -> dict[str, Tensor]:
    constraint = energy.constraint
    if constraint is None:
        return {}
    ends = {"lower": constraint.lower, "upper": constraint.upper}
    return {name: end.detach() for name, end in ends.items() if isinstance(end, Tensor)}


def _constraint(header: Mapping[str, Any], tensors: dict[str, Tensor]) -> Between | None:
    """The bounds of a header; None in files that have none."""
    if header.get("constraint") is None:
        return None
    told = dict(header["constraint"])
    return Between(*(tensors.get(name, told[name]) for name in ("lower", "upper")))


def _of_part(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """The learned tensors of one part, by their names in it."""
    prefix = f"{part}:"
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def _with_learned(module: nn.Module, tensors: dict[str, Tensor], what: str) -> nn.Module:
    """A copy of ``module`` with what the file has learned of it.

    Raises:
        ModelFileError: it has no such tensors.
    """
    if not tensors:
        return module
    copied = clone(module)
    own = dict((*copied.named_parameters(), *copied.named_buffers()))
    wrong = [k for k, t in tensors.items() if k not in own or own[k].shape != t.shape]
    if wrong:
        raise ModelFileError(
            what,
            given=f"{type(module).__name__} without {', '.join(wrong)}",
            expected=f"the {what} whose parameters were learned",
            remedy=f"Pass an object of the class that was learned: load_model(path, {what}=...).",
        )
    with torch.no_grad():
        for name, t in tensors.items():
            own[name].copy_(t)
    return copied


def _data_term(
    header: dict[str, Any], tensors: dict[str, Tensor], given: object | None
) -> tuple[object, float]:
    """Data term and tikhonov of a header; ``given`` replaces what a file cannot describe."""
    tikhonov = header["tikhonov"] if "fidelity" in header else 0.0
    if isinstance(given, nn.Module):
        return _with_learned(given, tensors, "fidelity"), tikhonov
    if given is not None:
        return given, tikhonov
    if "fidelity" not in header:
        return L2(header["sigma"]), tikhonov
    arguments = dict(header["fidelity"])
    kind = arguments.pop("type")
    if kind == "WeightedL2" and "weights" in tensors:
        return WeightedL2(tensors["weights"]), tikhonov
    if kind == "SampledL2" and "weights" in arguments:
        (numbers,) = tensors.values()
        told, learned = arguments["weights"], bool(arguments["learned"])
        return SampledL2(SamplingWeights.rebuilt(told, numbers, learned)), tikhonov
    if kind not in FIDELITIES:
        raise ModelFileError(
            "fidelity",
            given=repr(kind),
            expected=f"one of {', '.join(FIDELITIES)}",
            remedy="Pass your own data term: load_model(path, fidelity=...).",
        )
    return FIDELITIES[kind](**arguments, **tensors), tikhonov


def _filled(module: nn.Module, tensors: dict[str, Tensor], path: str) -> nn.Module:
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
    notes: dict[str, Any] = load_tensors(Path(path), FORMAT)[1].get("notes", {})
    return notes
