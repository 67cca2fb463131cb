"""Which solution map suits a lower level."""

from __future__ import annotations

from ..core.errors import MissingPropertyError
from ..core.maps import SolutionMap
from ..core.offers import is_saddle
from .implicit import Implicit
from .piggyback import Piggyback


def natural_map(energy: object) -> SolutionMap:
    """The solution map that suits a lower level when none is asked for."""
    return Piggyback() if is_saddle(energy) else Implicit()


def check_map(chosen: SolutionMap, energy: object) -> None:
    """Refuse a solution map for lower levels of another kind.

    Raises:
        MissingPropertyError: names the one that suits.
    """
    natural = natural_map(energy)
    if chosen.view != natural.view:
        raise MissingPropertyError(
            "hypergradient",
            given=f"{type(chosen).__name__} for {type(energy).__name__}",
            expected=type(natural).__name__,
            remedy="Leave the choice to hypergradient=None.",
        )
