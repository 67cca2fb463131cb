"""Energies, upper losses, bilevel problems, and a gallery with closed forms."""

from .bilevel import BilevelProblem
from .energy import Energy, EnergyAt
from .fidelity import L2
from .losses import SquaredError

__all__ = ["L2", "BilevelProblem", "Energy", "EnergyAt", "SquaredError"]
