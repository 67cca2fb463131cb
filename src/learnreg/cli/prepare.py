"""From a configuration to what is learned from: the learning problem and the held-out pairs."""

from __future__ import annotations

from typing import Any

import torch

from ..data import Pairs, pairs
from ..problems import BilevelProblem
from .config import Config


def prepare(config: Config) -> tuple[BilevelProblem, Pairs]:
    """The learning problem and the held-out pairs, on the device and in the precision of the
    run.
    """
    data, device = config.data, config.run.check_device()
    physics = config.build_physics((data.size, data.size), data.channels)
    sides: Any = pairs(
        data.source,
        physics,
        size=data.size,
        split=(data.train, data.test),
        seed=config.run.seed,
        channels=data.channels,
        scale=data.scale,
    )
    dtype = getattr(torch, config.run.dtype)
    train, test = (side.to(device=device, dtype=dtype) for side in sides)
    energy = config.build_energy(physics.to(device), data.channels).to(device)
    return BilevelProblem(energy, train), test
