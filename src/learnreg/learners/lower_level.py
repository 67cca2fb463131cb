"""LowerLevel: the lower level as learners see it, with warm starts per image and honest
counters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.batch import dot
from ..core.cost import Cost
from ..core.errors import InputError, MissingPropertyError
from ..core.protocols import Solver
from ..core.results import Hypergradient, Solution
from ..core.status import Status
from ..hypergradients.penalty import penalized
from ..solvers.select import check_solver
from ..solvers.solve import solve_potential, spent_on, start_distance

START_FRACTION = 0.02
"""eps0 and delta0, when not given, are this fraction of the start's distance bound and of ||grad
loss||.
"""

TRIAL_STEPS = 2000
"""Solver steps of a trial, unless the present solution took more than a tenth of that; beyond, the
trial has failed.
"""


class OutOfBudget(Exception):
    """Raised between or inside solves when the budget is used up; the upper loop turns it into a
    stop reason.
    """


@dataclass(frozen=True)
class Point:
    """A theta with its lower-level solution.

    Attributes:
        theta: (d,).
        energy: the lower level at theta.
        solution: x~ with certified distances.
        eps: the distance that was asked for.
        loss: mean loss at x~, penalty included.
        lower, upper: certified bracket of f(theta).
    """

    theta: Tensor
    energy: Any
    solution: Solution
    eps: float
    loss: float
    lower: float
    upper: float

    @property
    def width(self) -> float:
        return self.upper - self.lower

    def corrected(self, q: Tensor | None) -> float:
        """Estimate of f(theta) that is of second order in eps: mean of g(x~) - <q, grad h(x~)>,
        free of charge.

        Newton's model of h at x~ moves x~ by -H^-1 grad h(x~), which changes g by -<q, grad h(x~)>
        with H q = grad g; the q of a nearby theta serves as well. Not a bound;
        ``hypergradients.error_bound.corrected_bracket`` has the proven form.
        """
        if q is None:
            return self.loss
        return self.loss - float(dot(q.double(), self.solution.gradient.double()).mean())

    @property
    def at_floor(self) -> bool:
        return any(s is Status.ROUNDING_FLOOR for s in self.solution.status)

    @property
    def failed(self) -> bool:
        """Some image has no usable certificate (NaN, or the step limit)."""
        return any(s in (Status.NOT_FINITE, Status.MAX_STEPS) for s in self.solution.status)


class Meter:
    """What a run has spent, and the question whether it may go on; shared by all parts of a lower
    level.
    """

    def __init__(self) -> None:
        self.cost = Cost()
        self.should_stop: Callable[[], bool] = lambda: False


class LowerLevel:
    """Solves and differentiates the lower level at any theta, and counts.

    Args:
        problem: the BilevelProblem.
        strategy: how to differentiate.
        solver: name or object, as in ``solve``.
        max_steps: of one solve, as in ``solve`` when None; reaching it is reported, never silent.
        meter: counters and budget; new ones when None.
    """

    def __init__(
        self,
        problem: Any,
        strategy: Any,
        solver: str | Solver = "auto",
        max_steps: int | None = None,
        meter: Meter | None = None,
    ) -> None:
        self.problem, self.strategy, self.max_steps = problem, strategy, max_steps
        check_solver(solver)
        self.solver = solver
        self.meter = meter or Meter()

    @property
    def cost(self) -> Cost:
        """Everything evaluated so far, summed over images."""
        return self.meter.cost

    @property
    def _fixed(self) -> bool:
        """Whether the strategy prescribes the reconstruction (see ``hypergradients.Unrolled``)."""
        return bool(getattr(self.strategy, "fixed", False))

    def on(self, problem: Any) -> LowerLevel:
        """The same for another problem (some of the images, or another type of number), with the
        same counters.
        """
        return LowerLevel(problem, self.strategy, self.solver, self.max_steps, self.meter)

    def start(self, theta: Tensor) -> Tensor:
        """The first x0 of a run: A^T y.

        Raises:
            InputError: reconstructions would have another shape than the ground truth.
        """
        x0 = self.problem.energy.with_theta(theta).start(self.problem.pairs.y)
        if x0.shape != self.problem.pairs.x.shape:
            raise InputError(
                "pairs",
                given=f"ground truth of shape {tuple(self.problem.pairs.x.shape)}",
                expected=f"shape {tuple(x0.shape)}, that of the reconstructions",
                remedy="Make the pairs with the physics of the energy.",
            )
        return x0

    def start_residual(self, theta: Tensor, x0: Tensor) -> tuple[float, float]:
        """(mean distance bound of x0, mean ||grad loss(x0)||), counted as one gradient per
        image.
        """
        potential = self.problem.energy.with_theta(theta).at(self.problem.pairs.y, x0)
        residual = start_distance(potential, x0).mean()
        self.meter.cost += Cost(gradients=x0.shape[0])
        return float(residual), float(
            self.problem.loss.grad(x0, self.problem.pairs.x).flatten(1).norm(dim=1).mean()
        )

    def solve(self, theta: Tensor, eps: float, x0: Tensor, max_steps: int | None = None) -> Point:
        """Solve at theta to eps, from x0; ``max_steps`` replaces the general limit.

        Raises:
            OutOfBudget: the budget was used up before or during the solve.
        """
        return self._solve(theta, self.problem.energy.with_theta(theta), eps, x0, max_steps)

    def trial(self, theta: Tensor, eps: float, near: Point) -> Point | None:
        """A theta that may be hopeless, from the solution of ``near``, with a limit of steps so
        that it costs little.

        None where some image could not be solved, or the energy has no finite constants so far out.
        """
        limit = max(TRIAL_STEPS, 10 * int(near.solution.steps.max()))
        try:
            point = self.solve(theta, eps, near.solution.warm, limit)
        except MissingPropertyError:
            return None
        return None if point.failed else point

    def refine(self, point: Point, eps: float) -> Point:
        """The same theta to a smaller eps, going on from its x~; a fixed number of steps has
        nothing to go on with.
        """
        if self._fixed:
            return point
        if point.at_floor or bool((point.solution.error <= eps).all()):
            return replace(point, eps=eps)
        return self._solve(point.theta, point.energy, eps, point.solution.warm)

    def _solve(
        self, theta: Tensor, energy: Any, eps: float, x0: Tensor, max_steps: int | None = None
    ) -> Point:
        if self.meter.should_stop():
            raise OutOfBudget
        potential = energy.at(self.problem.pairs.y, x0)
        if getattr(self.strategy, "joint", False):  # goes on from where it was, and needs the loss
            solution = self.strategy.reconstruct(potential, x0, self.problem)
        elif self._fixed:  # neither eps nor a warm start may change the map that is differentiated
            solution = self.strategy.reconstruct(potential, energy.start(self.problem.pairs.y))
        else:
            solution = solve_potential(
                potential,
                eps,
                x0,
                self.solver,
                max_steps=max_steps or self.max_steps,
                should_stop=self.meter.should_stop,
            )
        self.meter.cost += solution.cost + spent_on(potential)
        if any(s is Status.BUDGET for s in solution.status):
            raise OutOfBudget
        return self.point(theta, energy, solution, eps)

    def point(self, theta: Tensor, energy: Any, solution: Solution, eps: float) -> Point:
        """Bracket the loss, penalty included, at a solution."""
        x_true, loss = self.problem.pairs.x, self.problem.loss
        lower, upper = loss.bracket(solution.value, x_true, solution.error)
        values = loss.value(solution.value.double(), x_true.double())
        penalty = self.problem.penalty_at(theta)[0]
        mean, low, high = (
            torch.stack([values.mean(), lower.mean(), upper.mean()]) + penalty
        ).tolist()
        return Point(theta, energy, solution, eps, mean, low, high)

    def gradient(self, point: Point, delta: float, adjoint: Tensor | None) -> Hypergradient:
        """The hypergradient at a point.

        Raises:
            OutOfBudget: the budget was used up before it.
        """
        if self.meter.should_stop():
            raise OutOfBudget
        result = self.strategy.gradient(self.problem, point.energy, point.solution, delta, adjoint)
        self.meter.cost += result.cost
        return penalized(result, self.problem, point.theta)


def first_accuracies(
    lower: LowerLevel, theta: Tensor, eps: float | None, delta: float | None
) -> tuple[float, float]:
    """eps0 and delta0 as given, or derived at theta_0 from how far the first x0 is from the
    solution.
    """
    if eps is not None and delta is not None:
        return eps, delta
    x0 = lower.start(theta)
    distance, slope = (v if math.isfinite(v) else 0.0 for v in lower.start_residual(theta, x0))
    scale = float(x0.flatten(1).norm(dim=1).mean())
    return (
        eps or START_FRACTION * (distance or scale) or START_FRACTION,
        delta or START_FRACTION * slope or START_FRACTION,
    )


def first_point(
    lower: LowerLevel, theta: Tensor, eps: float | None, delta: float | None
) -> tuple[Point, float]:
    """theta_0 solved to eps, and delta; accuracies that are not given are derived there."""
    eps, delta = first_accuracies(lower, theta, eps, delta)
    return lower.solve(theta, eps, lower.start(theta)), delta
