"""Accuracy schedules: how eps and delta change from step to step."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.ranges import check_fraction, check_number, tidy


@dataclass(frozen=True)
class Adaptive:
    """Tighten when a decision fails, loosen after a step (Salehi et al., arXiv 2308.10098,
    Algorithm 3.1).

    Args:
        tighten: nu in (0, 1).
        loosen: nu_bar >= 1.
    """

    tighten: float = 0.5
    loosen: float = 1.05

    def __post_init__(self) -> None:
        tidy(self)
        check_fraction("tighten", self.tighten)
        check_number("loosen", self.loosen, lambda v: v >= 1, "a number >= 1")


@dataclass(frozen=True)
class Fixed:
    """One accuracy for the whole run: nothing is ever tightened or loosened."""


Accuracy = Adaptive | Fixed
