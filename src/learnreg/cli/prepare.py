"""From a configuration to what is learned from: the learning problem and the held-out pairs."""

from __future__ import annotations

from typing import Any

import torch

from ..data import Pairs, pairs
from ..problems import BilevelProblem
from .config import Config
from .measured_section import MeasuredData, build_measured, size_of


def prepare(config: Config) -> tuple[BilevelProblem, Pairs]:
    """The learning problem and the held-out pairs, on the device and in the precision of the
    run.
    """
    data, device = config.data, config.run.check_device()
    dtype = getattr(torch, config.run.dtype)
    physics = config.build_physics(size_of(data), data.channels)
    if isinstance(data, MeasuredData):
        train, _, test = build_measured(data, physics, config.run.seed, dtype)
    else:
        sides: Any = pairs(
            data.source,
            physics,
            size=data.size,
            split=(data.train, data.test),
            seed=config.run.seed,
            channels=data.channels,
            scale=data.scale,
        )
        train, test = sides
    train, test = (side.to(device=device, dtype=dtype) for side in (train, test))
    energy = config.build_energy(physics.to(device), data.channels).to(device)
    return BilevelProblem(energy, train), test
