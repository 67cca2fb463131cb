"""Which kind of lower level a regularizer needs, for callers that are given any of them."""

from __future__ import annotations

from torch import nn

from ..core.errors import InputError
from ..core.offers import is_saddle
from .energy import Energy
from .saddle import SaddleEnergy


def energy_for(
    physics: nn.Module,
    regularizer: nn.Module,
    fidelity: object | None = None,
    tikhonov: float = 0.0,
    constraint: object | None = None,
) -> Energy | SaddleEnergy:
    """A SaddleEnergy for a saddle regularizer (one whose ``saddle`` is True), an Energy for any
    other.

    Args:
        physics, regularizer, fidelity, constraint: as for both of them.
        tikhonov: as for a SaddleEnergy.

    Raises:
        InputError: what they refuse; ``tikhonov`` for a differentiable regularizer.
    """
    if is_saddle(regularizer):
        return SaddleEnergy(physics, regularizer, fidelity, tikhonov, constraint)
    if tikhonov:
        raise InputError(
            "tikhonov",
            given=tikhonov,
            expected="0 with a differentiable regularizer",
            remedy="Add learnreg.regularizers.Tikhonov to the regularizer.",
        )
    return Energy(physics, regularizer, fidelity, constraint)
