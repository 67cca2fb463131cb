"""The front door ``hypergradient``: solve the lower level, then differentiate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ..core.batch import per_image
from ..core.guards import check_problem, check_strategy, isolated
from ..core.protocols import Strategy
from ..core.results import Hypergradient, Solution
from ..solvers.select import check_solver
from ..solvers.solve import as_real, solve
from .penalty import penalized
from .piggyback import natural_strategy


@isolated
def hypergradient(
    problem: Any,
    eps: float,
    delta: float,
    *,
    strategy: Strategy | None = None,
    theta: torch.Tensor | None = None,
    solver: str = "auto",
) -> Hypergradient:
    """Gradient of f(theta) = mean_i loss(x_i(theta)) + penalty(theta) with its error bound and its
    bracket of f.

    Args:
        problem: a BilevelProblem.
        eps: lower-level distance per image; a strategy that fixes the steps of the lower level has
            no use for it.
        delta: residual of the adjoint system per image.
        strategy: how to differentiate; ``Implicit(estimate=True)`` when None, or
            ``Piggyback(estimate=True)`` for a SaddleEnergy.
        theta: (d,), the present parameters of the energy when None.

    Raises:
        InputError: eps or delta not positive.
        SolveError: an image missed eps, or is not finite after fixed steps.
    """
    check_problem(problem)
    check_strategy(strategy)
    check_solver(solver)
    strategy = strategy or replace(natural_strategy(problem.energy), estimate=True)
    per_image(eps, problem.pairs.x)
    per_image(delta, problem.pairs.x, "delta")
    theta = problem.theta if theta is None else theta
    energy = problem.energy.with_theta(theta)
    solution = _solution(strategy, energy, problem, eps, solver)
    result = strategy.gradient(problem, energy, solution, delta)
    return penalized(replace(result, cost=result.cost + solution.cost), problem, theta)


def _solution(strategy: Any, energy: Any, problem: Any, eps: float, solver: str) -> Solution:
    """The reconstruction: to eps, or as the strategy prescribes it."""
    y = problem.pairs.y
    if not getattr(strategy, "fixed", False):
        solution = solve(energy, y, eps, solver=solver)
        return replace(solution, value=as_real(solution.value))
    x0 = energy.start(y)
    more = (problem,) if getattr(strategy, "joint", False) else ()
    return strategy.reconstruct(energy.at(y, x0), x0, *more).raise_if_failed()
