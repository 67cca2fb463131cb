"""Energies, saddle problems, upper losses, bilevel problems, and a gallery with closed forms."""

from .bilevel import BilevelProblem
from .build import energy_for
from .consistency import DataConsistency
from .counts import KL, Poisson, PoissonGaussian, count_weights
from .energy import Energy, EnergyAt
from .fidelity import L1, L2, Foreign, Huber, WeightedL2
from .losses import Custom, ScaledSquaredError, SquaredError, WeightedSquaredError
from .measurement_losses import SURE, Whiteness
from .noise_level import at_noise_level, noise_level
from .penalty import KernelPenalty, SobolevDistance
from .saddle import SaddleAt, SaddleEnergy
from .sampling import SampledL2, SamplingWeights, SparsityPenalty, masked

__all__ = [
    "KL",
    "L1",
    "L2",
    "SURE",
    "BilevelProblem",
    "Custom",
    "DataConsistency",
    "Energy",
    "EnergyAt",
    "Foreign",
    "Huber",
    "KernelPenalty",
    "Poisson",
    "PoissonGaussian",
    "SaddleAt",
    "SaddleEnergy",
    "SampledL2",
    "SamplingWeights",
    "ScaledSquaredError",
    "SparsityPenalty",
    "SobolevDistance",
    "SquaredError",
    "WeightedL2",
    "WeightedSquaredError",
    "Whiteness",
    "at_noise_level",
    "count_weights",
    "energy_for",
    "masked",
    "noise_level",
]
