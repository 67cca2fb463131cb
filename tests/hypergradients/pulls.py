"""The derivative that a solution map makes at a given solution."""

from __future__ import annotations

from torch import Tensor

from learnreg.core.maps import Ask, Posed, SolutionMap
from learnreg.core.results import Hypergradient, Solution
from learnreg.hypergradients.evaluate import Problem, pulled


def gradient_of(
    strategy: SolutionMap,
    problem: Problem,
    energy: object,
    solution: Solution,
    delta: float | Tensor,
    adjoint: Tensor | None = None,
) -> Hypergradient:
    """Of the mean upper loss at ``solution``, by ``strategy``."""
    return pulled(strategy, problem, Posed(energy, problem.data), solution, Ask(delta, adjoint))
