"""Energies, saddle problems, upper losses, bilevel problems, and a gallery with closed forms."""

from .bilevel import BilevelProblem
from .build import energy_for
from .energy import Energy, EnergyAt
from .fidelity import KL, L1, L2, Foreign, Huber, Poisson, WeightedL2
from .losses import ScaledSquaredError, SquaredError
from .saddle import SaddleAt, SaddleEnergy

__all__ = [
    "KL",
    "L1",
    "L2",
    "BilevelProblem",
    "Energy",
    "EnergyAt",
    "Foreign",
    "Huber",
    "Poisson",
    "SaddleAt",
    "SaddleEnergy",
    "ScaledSquaredError",
    "SquaredError",
    "WeightedL2",
    "energy_for",
]
