"""What a run was made of, in plain values: data, physics, noise, data term, regularizer, machine.

Objects are described from outside, by their class, their small numbers and a checksum of their
large tensors, so that a physics or a noise model of the user's own is described as well.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from typing import Protocol

import torch
from torch import Tensor, nn

from .. import __version__
from ..core.asking import offers
from ..core.measured import Measured, Native, measured
from ..core.offers import Specified
from ..core.params import named_trainable
from ..core.ranges import plain

NOISE, PARTS = "noise_model", "physics_list"

SMALL = 32
"""Tensors of no more entries are written down, larger ones by shape and checksum."""

MACHINERY = frozenset(
    {"training", "SVD", "A_adj", "max_iter", "tol", "solver", "implicit_backward_solver"}
)
"""Attributes of a physics that say how deepinv inverts it, not what it measures."""


STARTS = frozenset({"init", "weight", "smoothing", "seed"})
"""Arguments of regularizers that only say where learning starts."""


class Regularized(Protocol):
    """An energy of parts."""

    regularizer: nn.Module
    fidelity: object
    physics: nn.Module


class InWords(Protocol):
    """What says what it is in a few words."""

    words: str


class Constrained(Protocol):
    """An energy that bounds pixels."""

    constraint: InWords


class Seeded(Protocol):
    """Pairs that know the seed that made them."""

    seed: int | None


class Named(Protocol):
    """Pairs that know where their images come from."""

    names: Sequence[str]


class InUnits(Protocol):
    """Pairs that know which levels of their files became 0 and 1."""

    units: tuple[float, float] | None


class HasProblem(Protocol):
    """An objective made of a problem."""

    problem: object


class HasGiven(Protocol):
    """A problem that remembers the pairs that it was handed."""

    given: object


class HasEnergy(Protocol):
    """A problem, or an objective, made of an energy."""

    energy: object


class HasX(Protocol):
    """Something that holds images."""

    x: object


class HasY(Protocol):
    """Something that holds measurements."""

    y: Native | Measured


class HasTheta(Protocol):
    """An objective that knows where learning starts."""

    @property
    def theta(self) -> Tensor: ...


class Boxed(Protocol):
    """A learner that keeps parameters within ranges."""

    box: object


def setup_of(objective: object, learner: object, device: torch.device) -> dict[str, object]:
    """What is learned from what, how and where; what an objective does not have is left out."""
    problem = objective.problem if offers(objective, HasProblem) else objective
    pairs = problem.given if offers(problem, HasGiven) else problem
    found: dict[str, object] = {}
    if data := data_of(pairs):
        found["data"] = data
    if offers(problem, HasEnergy):
        found |= energy_of(problem.energy)
    if is_dataclass(learner) and not isinstance(learner, type):
        found["learner"] = {"type": type(learner).__name__, **_settings(asdict(learner))}
    if offers(learner, Boxed):
        found["box"] = plain(learner.box)
    if offers(objective, HasTheta) and objective.theta.numel() <= SMALL:
        found["start"] = objective.theta.detach().flatten().tolist()
    return found | {
        "machine": machine(device),
        "versions": versions(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def energy_of(energy: object) -> dict[str, object]:
    """Physics, noise, data term and regularizer of an energy, and which of them are learned."""
    if not offers(energy, Regularized):
        return {}
    parts = {
        "regularizer": energy.regularizer,
        "fidelity": energy.fidelity,
        "physics": energy.physics,
    }
    learned = [
        name
        for name, part in parts.items()
        if isinstance(part, nn.Module) and named_trainable(part)
    ]
    return {
        "physics": operator_of(energy.physics),
        "noise": noise_of(energy.physics),
        "fidelity": _fidelity(energy.fidelity),
        "regularizer": _regularizer(energy.regularizer),
        "learned": learned,
        **({"constraint": energy.constraint.words} if offers(energy, Constrained) else {}),
    }


class MadeOfParameters(Protocol):
    """A physics whose tensors are made of parameters to learn."""

    base: nn.Module
    parametrizations: nn.ModuleDict


def operator_of(physics: nn.Module) -> dict[str, object]:
    """A physics as ``described``; of one with learned tensors that inside, and what makes them."""
    if not offers(physics, MadeOfParameters):
        return described(physics)
    made = physics.parametrizations
    kept = {k: v for k, v in described(physics.base).items() if k not in made}
    return {**kept, "learned": ", ".join(f"{name} by {m}" for name, m in made.items())}


def data_of(pairs: object) -> dict[str, object]:
    """Number, shape and names of images, and the seed of crops and noise."""
    found: dict[str, object] = {}
    if offers(pairs, HasX) and isinstance(pairs.x, Tensor):
        found |= {
            "images": len(pairs.x),
            "shape": list(pairs.x.shape[1:]),
            "dtype": str(pairs.x.dtype).removeprefix("torch."),
        }
    if offers(pairs, HasY):
        found["measurements"] = [list(t.shape[1:]) for t in measured(pairs.y).tensors]
    if offers(pairs, Named):
        names = [str(name) for name in pairs.names]
        found["names"] = names
        found["sources"] = list(dict.fromkeys(name.rsplit("@", 1)[0] for name in names))
    if offers(pairs, Seeded):
        found["seed"] = pairs.seed
    # an objective has units of another kind
    if offers(pairs, InUnits) and isinstance(pairs.units, tuple):
        found["units"] = list(pairs.units)
    return found


def described(module: nn.Module) -> dict[str, object]:
    """Class, small values, and checksums of large tensors of a physics or a noise model."""
    found: dict[str, object] = {"type": type(module).__name__}
    for name, value in vars(module).items():
        if not name.startswith("_") and name not in MACHINERY and _is_plain(value):
            found[name] = list(value) if isinstance(value, list | tuple) else value
    own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    for name, t in own:
        if not name.startswith("_"):
            found[name] = _of_tensor(t)
    parts = dict(module.named_children()).get(PARTS)
    if parts is not None:
        found["parts"] = [described(part) for part in parts.children()]
    return found


def noise_of(physics: nn.Module) -> dict[str, object] | None:
    """The noise model of a physics; None where it has none."""
    children = dict(physics.named_children())
    if NOISE in children:
        return described(children[NOISE])
    if PARTS in children:
        found = [noise_of(part) for part in children[PARTS].children()]
        return {"type": "one per part", "parts": [noise for noise in found if noise]}
    return {"type": "a function"} if NOISE in vars(physics) else None


def machine(device: torch.device) -> dict[str, object]:
    """The machine in words that name no host."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "device": kind,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def versions() -> dict[str, str]:
    """Of this library and what its numbers depend on."""
    found = {"learnreg": __version__, "python": platform.python_version()}
    for package in ("torch", "deepinv", "numpy", "scipy"):
        try:
            found[package] = installed(package)
        except PackageNotFoundError:
            continue
    return found


def _fidelity(fidelity: object) -> dict[str, object]:
    if isinstance(fidelity, nn.Module):
        return described(fidelity)
    values: Mapping[str, object] = (
        asdict(fidelity) if is_dataclass(fidelity) and not isinstance(fidelity, type) else {}
    )
    plain = {name: value for name, value in values.items() if _is_plain(value)}
    return {"type": type(fidelity).__name__, **plain}


def _regularizer(regularizer: nn.Module) -> dict[str, object]:
    if not offers(regularizer, Specified):
        return {"type": type(regularizer).__name__}
    try:
        return _kept(regularizer.spec())
    except NotImplementedError:  # a class of the user's own that has none
        return {"type": type(regularizer).__name__}


def _kept(spec: Mapping[str, object]) -> dict[str, object]:
    """A recipe without the start values in it: a spec rebuilds a class, its parameters come from
    theta.
    """
    fixed = spec.get("learned") is False
    found: dict[str, object] = {}
    for name, value in spec.items():
        if isinstance(value, dict):
            found[name] = _kept(value)
        elif isinstance(value, list) and all(isinstance(v, dict) for v in value):
            found[name] = [_kept(v) for v in value]
        elif fixed or name not in STARTS:
            found[name] = value
    return found


def _settings(values: Mapping[str, object]) -> dict[str, object]:
    """Plain settings, also in tables within tables."""
    found: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found[name] = _settings(value)
        elif value is None or _is_plain(value):
            found[name] = value
        else:
            found[name] = type(value).__name__
    return found


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= SMALL and all(isinstance(v, bool | int | float | str) for v in value)
    return isinstance(value, bool | int | float | str)


def _of_tensor(t: Tensor) -> object:
    """The values of a small tensor; shape, share of non-zeros and checksum of a large one."""
    t = t.detach().cpu().resolve_conj().resolve_neg()
    if t.numel() == 1 and not t.is_complex():
        return t.item()
    if t.numel() <= SMALL and not t.is_complex():
        return t.flatten().tolist() if t.dim() < 2 else t.tolist()
    shape = "x".join(map(str, t.shape))
    share = float((t != 0).double().mean())
    digest = hashlib.sha256(t.contiguous().numpy().tobytes()).hexdigest()
    return f"{shape}, {100 * share:.3g} % not zero, sha256 {digest[:12]}"
