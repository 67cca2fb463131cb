"""What the solution maps that solve to an accuracy share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

from torch import Tensor

from ..core.maps import Ask, Limits, Posed, Pullback, Upper
from ..core.results import Solution
from ..solvers.solve import first_of, solve_potential, spent_on


def solved(posed: Posed, eps: float | Tensor, start: Tensor | None, limits: Limits) -> Solution:
    """The reconstructions to the certified distance eps.

    The cost contains what tying the problem to its data has spent.
    """
    f = posed.at(start)
    first = first_of(posed.energy, f, posed.y) if start is None else start
    solution = solve_potential(
        f,
        eps,
        first,
        limits.solver,
        max_steps=limits.max_steps,
        should_stop=limits.should_stop,
    )
    return replace(solution, cost=solution.cost + spent_on(f))


class ToAccuracy(ABC):
    """A solution map whose reconstructions are solved to the distance that is asked for."""

    def solve(
        self,
        posed: Posed,
        eps: float | Tensor,
        start: Tensor | None,
        limits: Limits,
        upper: Upper | None = None,
    ) -> Solution:
        """See ``core.maps.SolutionMap``; the upper loss plays no part."""
        return solved(posed, eps, start, limits)

    @abstractmethod
    def pull(self, posed: Posed, solution: Solution, upper: Upper, ask: Ask) -> Pullback:
        """See ``core.maps.SolutionMap``."""
