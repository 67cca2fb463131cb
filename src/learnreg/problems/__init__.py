"""Energies, saddle problems, upper losses, bilevel problems, and a gallery with closed forms."""

from .bilevel import BilevelProblem
from .build import energy_for
from .energy import Energy, EnergyAt
from .fidelity import KL, L1, L2
from .losses import SquaredError
from .saddle import SaddleAt, SaddleEnergy

__all__ = [
    "KL",
    "L1",
    "L2",
    "BilevelProblem",
    "Energy",
    "EnergyAt",
    "SaddleAt",
    "SaddleEnergy",
    "SquaredError",
    "energy_for",
]
