"""What a run has spent, and the question whether it may go on."""

from __future__ import annotations

from collections.abc import Callable

from .cost import Cost


class OutOfBudget(Exception):
    """Raised between or inside solves when the budget is used up; the upper loop turns it into a
    stop reason.
    """


def never() -> bool:
    """Nothing limits the work."""
    return False


def nothing() -> float:
    """No part of a budget is used up where there is none."""
    return 0.0


class Meter:
    """Counters and budget; shared by all parts of an objective.

    Attributes:
        cost: everything evaluated so far, summed over images.
        should_stop: asked between and inside evaluations.
        used: the part of the budget of seconds and work that is used up, for learners that have
            something to finish before its end.
    """

    def __init__(self) -> None:
        self.cost = Cost()
        self.should_stop: Callable[[], bool] = never
        self.used: Callable[[], float] = nothing

    def check(self) -> None:
        """Go on only where there is budget left.

        Raises:
            OutOfBudget: it is used up.
        """
        if self.should_stop():
            raise OutOfBudget
