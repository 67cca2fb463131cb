"""From a configuration to what is learned from: the learning problem and the held-out pairs."""

from __future__ import annotations

from typing import Any

import torch

from ..data import Pairs, pairs
from ..problems import BilevelProblem, energy_for
from .config import Config
from .measured_section import MeasuredData, build_measured
from .physics_section import build_physics


def prepare(config: Config) -> tuple[BilevelProblem, Pairs]:
    """The learning problem and the held-out pairs."""
    physics, data = build_physics(config.physics), config.data
    dtype = getattr(torch, config.run.dtype)
    if isinstance(data, MeasuredData):
        train, _, test = build_measured(data, physics, config.run.seed, dtype)
        return BilevelProblem(energy_for(physics, config.build_regularizer()), train), test

    sides: Any = pairs(
        data.source,
        physics,
        size=data.size,
        split=(data.train, data.test),
        seed=config.run.seed,
        channels=data.channels,
        scale=data.scale,
    )
    train, test = (side.to(dtype=dtype) for side in sides)
    return BilevelProblem(energy_for(physics, config.build_regularizer()), train), test
