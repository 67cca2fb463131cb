"""From a configuration to what is learned from: the learning problem and the held-out pairs."""

from __future__ import annotations

import torch

from ..data import Pairs
from ..problems import BilevelProblem, energy_for
from .config import Config
from .data_section import build_pairs
from .physics_section import build_physics


def prepare(config: Config) -> tuple[BilevelProblem, Pairs]:
    """The learning problem and the held-out pairs."""
    physics, data = build_physics(config.physics), config.data
    train, _, test = build_pairs(data, physics, config.run.seed)
    train, test = (side.to(dtype=getattr(torch, config.run.dtype)) for side in (train, test))
    return BilevelProblem(energy_for(physics, config.build_regularizer()), train), test
