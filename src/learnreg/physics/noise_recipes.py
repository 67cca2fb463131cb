"""Recipes of noise models for files: kind and parameters."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..operators.private import noise_of

PARAMETERS: dict[str, tuple[str, ...]] = {
    "ZeroNoise": (),
    "GaussianNoise": ("sigma",),
    "PoissonNoise": ("gain", "normalize", "clip_positive"),
    "PoissonGaussianNoise": ("gain", "sigma", "clip_positive"),
    "UniformNoise": ("a",),
    "UniformGaussianNoise": ("sigma_min", "sigma_max"),
    "SaltPepperNoise": ("p", "s"),
    "LaplaceNoise": ("b",),
    "RicianNoise": ("sigma",),
    "GammaNoise": ("l",),
    "LogPoissonNoise": ("N0", "mu"),
    "Counts": ("gain", "background"),
}
"""Arguments of the noise models that a file can name."""


def describe_noise(physics: nn.Module) -> dict[str, object]:
    """Kind and parameters of the noise; a kind that files do not know is named alone.

    Parameters that differ from image to image belong to the images: such noise is named alone, too.
    """
    noise = dict(physics.named_children()).get("noise_model", vars(physics).get("noise_model"))
    kind = type(noise).__name__
    header: dict[str, object] = {"type": kind}
    if _classes().get(kind) is not type(noise):
        return header
    held = noise_of(physics)
    for name in PARAMETERS[kind]:
        value = held.get(name)
        if isinstance(value, Tensor) and value.numel() != 1:
            return {"type": kind, "several": name}
        number = _number(value)
        if number is not None:
            header[name] = number
    return header


def rebuild_noise(header: Mapping[str, object]) -> nn.Module:
    """The noise of the header of a physics; none where the file does not know it.

    Raises:
        ValueError: parameters that are no numbers >= 0.
    """
    from deepinv.physics import GaussianNoise, ZeroNoise

    told = header.get("noise")
    if told is None and "settings" not in header:  # files of earlier releases
        told = {"type": "GaussianNoise", "sigma": header.get("sigma", 0.1)}
    if not isinstance(told, Mapping):
        raise ValueError("noise that is no table")
    kind = told.get("type")
    if not isinstance(kind, str) or kind not in PARAMETERS or "several" in told:
        silent: nn.Module = ZeroNoise()
        return silent

    arguments: dict[str, bool | float] = {}
    for name in PARAMETERS[kind]:
        if name not in told:
            continue
        value = told[name]
        number = isinstance(value, int | float) and math.isfinite(value) and value >= 0
        if not number:
            raise ValueError(f"{kind} with {name} = {value!r}"[:200])
        arguments[name] = value if isinstance(value, bool) else float(value)
    made: nn.Module = (GaussianNoise if kind == "GaussianNoise" else _classes()[kind])(**arguments)
    return made


def _number(value: object) -> bool | float | None:
    """One number of a setting or a tensor; None for several."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            return None
        return bool(value) if value.dtype == torch.bool else float(value)
    return value if isinstance(value, bool | int | float) else None


@functools.cache
def _classes() -> dict[str, type]:
    from deepinv import physics as known

    from . import own

    return {name: own.Counts if name == "Counts" else vars(known)[name] for name in PARAMETERS}
