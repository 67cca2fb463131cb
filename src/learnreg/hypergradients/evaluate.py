"""The front door ``hypergradient``: solve the lower level, then differentiate.

The pullback of a learning problem is shared with learning.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from ..core.asking import offers
from ..core.batch import per_image
from ..core.errors import InputError
from ..core.guards import check_problem, check_strategy, isolated
from ..core.maps import (
    Ask,
    Level,
    Limits,
    OfTheta,
    Posed,
    Pullback,
    SolutionMap,
    Upper,
    upper_at,
)
from ..core.measured import Measured
from ..core.ranges import shown
from ..core.results import Hypergradient, Solution
from ..solvers.select import check_solver
from . import error_bound
from .choose import natural_map
from .implicit import Implicit
from .piggyback import Piggyback


class Problem(Protocol):
    """A bilevel problem: a lower level, its data, and what is asked of the reconstructions."""

    @property
    def energy(self) -> Level: ...

    @property
    def theta(self) -> Tensor: ...

    @property
    def data(self) -> Tensor | Measured: ...

    @property
    def upper(self) -> Upper: ...

    def penalty_at(self, theta: Tensor) -> tuple[float, Tensor]: ...


@isolated
def hypergradient(
    problem: Problem,
    eps: float,
    delta: float,
    *,
    strategy: SolutionMap | None = None,
    theta: Tensor | None = None,
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
    first = problem.upper  # asked before the solve, so that what is wrong with it is said at once
    theta = problem.theta if theta is None else theta
    posed = Posed(problem.energy.with_theta(theta), problem.data)
    per_image(eps, theta[None])
    per_image(delta, theta[None], "delta")

    chosen = strategy or _with_estimate(natural_map(problem.energy))
    upper = upper_at(first, posed.energy)
    solution = chosen.solve(posed, eps, None, Limits(solver), upper).raise_if_failed()
    result = pulled(chosen, problem, posed, solution, Ask(delta), theta=theta)
    return replace(result, cost=result.cost + solution.cost)


def _with_estimate(natural: SolutionMap) -> SolutionMap:
    """Where nothing was chosen the error is estimated as well."""
    if isinstance(natural, Implicit | Piggyback):
        return replace(natural, estimate=True)
    return natural


def pulled(
    strategy: SolutionMap,
    problem: Problem,
    posed: Posed,
    solution: Solution,
    ask: Ask,
    *,
    theta: Tensor | None = None,
) -> Hypergradient:
    """The gradient of the mean upper loss, penalty included, at a solution.

    A loss that depends on theta adds its own derivative at fixed x, at the very point at which the
    solution map took the other part.

    Args:
        posed: the lower level at the theta in question.
        solution: made by the ``solve`` of the same strategy.
        ask: accuracies, a warm start, what to find out about the error.
        theta: where the penalty is taken; the present parameters when None.
    """
    upper, size = upper_at(problem.upper, posed.energy), solution.value.shape[0]
    at = problem.theta if theta is None else theta
    pull = checked_pull(strategy, posed, solution, upper, ask, at.numel())
    if offers(upper, OfTheta):
        pull = with_direct_part(pull, upper, solution)

    correction = None if pull.correction is None else pull.correction / size
    estimated = None if correction is None else error_bound.estimated_error(correction)
    certified = None if pull.certified is None else float(pull.certified.mean())
    if certified is not None and correction is not None:
        # triangle inequality: the bound was for the derivative before the polish
        certified += float(torch.linalg.vector_norm(correction))

    lower, highest = upper.bracket(solution.value, solution.error)
    penalty, slope = problem.penalty_at(at)
    loss = float(upper.value(solution.value.double()).mean())
    return Hypergradient(
        pull.theta / size + slope.to(pull.theta),
        loss + penalty,
        (float(lower.mean()) + penalty, float(highest.mean()) + penalty),
        min(solution.kind, upper.kind),
        certified,
        estimated,
        correction,
        pull.adjoint,
        pull.residual,
        pull.status,
        pull.cost,
        None if pull.undecided is None else int(pull.undecided.sum()),
    )


def with_direct_part(pull: Pullback, upper: OfTheta, solution: Solution) -> Pullback:
    """A pullback with the derivative of the upper loss in theta at fixed x."""
    x = solution.value.detach()
    own = upper.slope(x).to(pull.theta)
    there = own if pull.point is None else upper.slope(pull.point.detach()).to(own)
    correction = None if pull.correction is None else pull.correction + own - there

    certified = pull.certified
    if certified is not None:
        change = upper.slope_change(x, solution.error)
        certified = None if change is None else certified + change.to(certified)
    return replace(pull, theta=pull.theta + there, certified=certified, correction=correction)


def checked_pull(
    strategy: SolutionMap,
    posed: Posed,
    solution: Solution,
    upper: Upper,
    ask: Ask,
    count: int,
) -> Pullback:
    """What a solution map of anybody's own gives, if it is a pullback to ``count`` parameters.

    Raises:
        InputError: something else.
    """
    pull = strategy.pull(posed, solution, upper, ask)
    name, fits = type(strategy).__name__, isinstance(pull, Pullback)
    if not fits:
        raise InputError(
            f"{name}.pull",
            given=shown(pull),
            expected="a learnreg.core.maps.Pullback",
            remedy="Return Pullback(theta, adjoint, residual, status, cost).",
        )
    if pull.theta.shape != (count,):
        raise InputError(
            f"{name}.pull",
            given=f"a derivative of shape {tuple(pull.theta.shape)}",
            expected=f"shape ({count},), one entry per trainable parameter",
            remedy="Sum over the images; leave requires_grad as it was in the forward pass.",
        )
    return pull
