"""From a configuration to what is learned from: the learning problem and the held-out pairs."""

from __future__ import annotations

import torch

from ..data import Pairs
from ..problems import BilevelProblem
from .config import Config
from .data_section import build_pairs
from .measured_section import MeasuredData, build_measured, size_of


def prepare(config: Config) -> tuple[BilevelProblem, Pairs]:
    """The learning problem and the held-out pairs."""
    problem, _, test = prepared(config)
    return problem, test


def prepared(config: Config) -> tuple[BilevelProblem, Pairs, Pairs]:
    """The learning problem, the pairs to validate on (none unless asked for) and the held-out
    pairs, on the device and in the precision of the run.
    """
    data, device, seed = config.data, config.run.check_device(), config.run.seed
    dtype = getattr(torch, config.run.dtype)
    physics = config.build_physics(size_of(data), data.channels)
    sides = (
        build_measured(data, physics, seed, dtype)
        if isinstance(data, MeasuredData)
        else build_pairs(data, physics, seed)
    )
    train, validation, test = (side.to(device=device, dtype=dtype) for side in sides)
    energy = config.build_energy(physics.to(device), data.channels).to(device)
    problem = BilevelProblem(energy, train, penalty=config.build_penalty(energy))
    return problem, validation, test
