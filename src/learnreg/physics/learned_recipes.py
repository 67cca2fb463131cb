"""What a file holds of a learned physics: its base, the kinds of its parametrizations, their
parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from ..core.asking import offers
from .given import Given, Unknown, own_tensors
from .kernel_parameters import KINDS, Free, Rebuilt
from .learned import LearnedPhysics

PREFIX = "parametrizations."

MOST = 2**24
"""Entries of the kernels that a file may ask for."""


def settings(physics: nn.Module) -> dict[str, object]:
    """The kinds of the parametrizations, by the names of the tensors.

    Raises:
        Unknown: one of the user's own; one for single images.
    """
    told: dict[str, object] = {}
    for name, module in _modules(physics).items():
        made = module()
        kind = _classes().get(type(module).__name__)
        if kind is not type(module) or not offers(module, Rebuilt):
            raise Unknown(f"{type(module).__name__} of {name} is no class that a file can name")
        if made.dim() >= 4 and made.shape[0] > 1:
            raise Unknown(
                f"its {name} holds one slice for each of {made.shape[0]} images, which belong to "
                "the scans and not to the model"
            )
        told[name] = module.spec()
    return {"parametrizations": told}


def inside(physics: nn.Module) -> dict[str, Tensor]:
    """The parameters, by their names in the physics."""
    return {
        f"{PREFIX}{name}.{key}": p
        for name, module in _modules(physics).items()
        for key, p in module.named_parameters()
    }


def held(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those of one physics in a file."""
    start = prefix + PREFIX
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(start)}


def make(given: Given) -> nn.Module:
    """The physics of settings and tensors; nothing requires a gradient yet.

    Raises:
        ValueError: kinds that nobody knows, tensors that do not fit them.
    """
    told = given.settings.get("parametrizations")
    if not isinstance(told, Mapping) or not told or len(given.parts) != 1:
        raise ValueError("LearnedPhysics without parametrizations or without its base")
    modules = {str(name): _module(str(name), spec, given) for name, spec in told.items()}
    return LearnedPhysics(given.parts[0], modules)


def tensors_of(module: nn.Module) -> Mapping[str, Tensor]:
    """Tensors of a module by name; of a learned physics those that it makes."""
    if isinstance(module, LearnedPhysics):
        with torch.no_grad():
            return module.tensors()
    return own_tensors(module)


def _modules(physics: nn.Module) -> dict[str, nn.Module]:
    assert isinstance(physics, LearnedPhysics)
    return dict(physics.parametrizations.items())


def _classes() -> dict[str, type]:
    return {kind.__name__: kind for kind in (*KINDS.values(), Free)}


def _module(name: str, spec: object, given: Given) -> nn.Module:
    """A parametrization with its parameters."""
    if not isinstance(spec, Mapping) or spec.get("type") not in _classes():
        raise ValueError(f"a parametrization of {name} that nobody knows")
    stored = {
        k.removeprefix(f"{PREFIX}{name}."): t
        for k, t in given.tensors.items()
        if k.startswith(f"{PREFIX}{name}.")
    }
    arguments = {str(k): v for k, v in spec.items() if k != "type"}
    module = (
        _free(arguments, stored)
        if spec["type"] == "Free"
        else _kernel(_classes()[str(spec["type"])], arguments)
    )
    own = dict(module.named_parameters())
    if {k: p.shape for k, p in own.items()} != {k: t.shape for k, t in stored.items()}:
        raise ValueError(f"parameters of {name} that do not fit its kind")
    for key, p in own.items():
        p.data = stored[key].clone()
        p.requires_grad_(False)
    return module


def _free(arguments: Mapping[str, object], stored: Mapping[str, Tensor]) -> nn.Module:
    taps = stored.get("taps")
    if taps is None or not isinstance(arguments.get("complex"), bool):
        raise ValueError("Free without its taps")
    return Free(start=torch.view_as_complex(taps) if arguments["complex"] else taps)


def _kernel(kind: type, arguments: Mapping[str, object]) -> nn.Module:
    size = arguments.get("size")
    numbers = [
        *(size if isinstance(size, list) else ()),
        *map(arguments.get, ("channels", "images")),
    ]
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in numbers)
    if len(numbers) != 4 or not whole or math.prod(cast("list[int]", numbers)) > MOST:
        raise ValueError(f"{kind.__name__} of sizes {numbers}"[:200])
    module: nn.Module = kind(**arguments)
    return module
