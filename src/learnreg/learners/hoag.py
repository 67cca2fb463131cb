"""HOAG: gradient descent whose accuracy follows a summable schedule and whose step adapts to the
observed decrease.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..core.grants import Grants
from ..core.objective import Halt, Objective, Row, Value, row_of, settled
from ..core.ranges import check_choice, check_fraction, check_number, check_positive, tidy
from ..core.results import StopReason
from .box import Ranges, box_of, check_ranges

SMALLEST_EPS = 1e-12
"""No schedule goes below (Pedregosa's code has the same floor)."""

GROWTH_REJECTED = 1.2
"""A step after which the loss is this many times larger is undone."""


@dataclass(frozen=True)
class HOAGState:
    """Between two passes.

    Attributes:
        point: theta_k with its solution.
        adjoint: (b, ...), the latest q.
        eps, delta: present accuracies.
        eps0, ratio: where the schedule started, and delta / eps.
        k: passes so far.
        curvature: L, None before the first move.
        last: theta_{k-1} with its solution, None where there is no move to judge.
        info: what the record shows.
    """

    point: Value
    adjoint: Tensor | None
    eps: float
    delta: float
    eps0: float
    ratio: float
    k: int
    curvature: float | None
    last: Value | None
    info: Row

    @property
    def theta(self) -> Tensor:
        return self.point.theta

    def row(self) -> Row:
        """The point, and how the pass went."""
        return row_of(self.point, self.info)


@dataclass(frozen=True)
class HOAG:
    """Hyperparameter optimization with approximate gradients (Pedregosa 2016, arXiv 1602.02355).

    Pass k, at theta_k solved to eps_k with loss g_k: first the last move is judged, incr =
    ||theta_k - theta_k-1||,
        g_k <= g_k-1 + C eps_k+1 + eps_k (C + 1) incr - L incr^2:   L becomes 0.95 L;
        g_k >= 1.2 g_k-1:   theta_k-1 is restored, L becomes 2 L, the next eps is halved, and
        nothing else happens;
    then theta_k+1 = theta_k - z_k / L (projected on the box), which is the only move of the pass;
    it is undone at once where the lower level cannot be solved. At the first pass L = ||z_0|| /
    sqrt(d) unless ``alpha0`` is given. The public code moves twice when the first test passes and
    leaves the rejected theta in place; both are avoided here.

    Convergence needs summable eps and a step 1 / L_f (ibid.); all three schedules are summable. No
    decrease is certified.

    Args:
        schedule: ``quadratic`` eps0 / (k + 1)^2, ``cubic`` eps0 / (k + 1)^3, ``geometric`` eps0
            ratio^k.
        eps0: first accuracy, a distance per image; derived at theta_0 when None.
        delta0: first residual of the linear system, which follows the same schedule; derived at
            theta_0 when None.
        ratio: of the geometric schedule, in (0, 1).
        alpha0: first step size 1 / L; a first move of length sqrt(d) when None.
        constant: C of the test above.
        box: [lower, upper] of the parameters, or a table by name.
        gradient_tolerance: stop when ||z|| is below.

    Raises:
        InputError: a value out of range.
    """

    schedule: Literal["quadratic", "cubic", "geometric"] = "quadratic"
    eps0: float | None = None
    delta0: float | None = None
    ratio: float = 0.9
    alpha0: float | None = None
    constant: float = 0.25
    box: Ranges = None
    gradient_tolerance: float = 1e-9

    def __post_init__(self) -> None:
        tidy(self)
        check_choice("schedule", self.schedule, ("quadratic", "cubic", "geometric"))
        check_positive("eps0", self.eps0, optional=True)
        check_positive("delta0", self.delta0, optional=True)
        check_positive("alpha0", self.alpha0, optional=True)
        check_fraction("ratio", self.ratio)
        check_number("constant", self.constant, lambda v: v >= 0, "a number >= 0")
        check_ranges("box", self.box)
        check_positive("gradient_tolerance", self.gradient_tolerance)

    needs: ClassVar[Grants] = Grants.LOSS | Grants.GRADIENT | Grants.ADAPTIVE
    state: ClassVar[type[HOAGState]] = HOAGState

    def factor(self, k: int) -> float:
        """eps_k / eps_0 of the schedule."""
        powers = {"quadratic": 2, "cubic": 3}
        return (
            self.ratio**k if self.schedule == "geometric" else (k + 1.0) ** -powers[self.schedule]
        )

    def init(self, objective: Objective, theta: Tensor, seed: int = 0) -> HOAGState:
        """Solve at theta_0 to eps_0; nothing is drawn at random."""
        box_of(self.box, objective)
        eps, delta = objective.accuracies(theta, self.eps0, self.delta0)
        point = objective.evaluate(theta, eps)
        info = {
            "eps": point.eps,
            "delta": delta,
            "step_size": None,
            "gradient_norm": None,
            "undone": False,
        }
        return HOAGState(
            point, None, point.eps, delta, point.eps, delta / point.eps, 0, None, None, info
        )

    def step(self, objective: Objective, state: HOAGState) -> HOAGState:
        """One pass: judge the last move, then move once or undo."""
        later = max(min(state.eps, state.eps0 * self.factor(state.k + 1)), SMALLEST_EPS)
        state = replace(state, point=settled(objective.refine(state.point, state.eps)))
        curvature = state.curvature
        if state.last is not None and curvature is not None:
            verdict = self._judge(state, curvature, later)
            if verdict == "undo":
                return _undone(objective, state, state.last, curvature, later)
            curvature = 0.95 * curvature if verdict == "lengthen" else curvature
        z = objective.gradient(state.point, state.delta, state.adjoint, "none")
        if not torch.isfinite(z.value).all():
            raise Halt(StopReason("not_finite", "NaN or Inf appeared in the hypergradient"))
        state = replace(state, adjoint=z.adjoint)
        if (
            z.norm == 0 and later > SMALLEST_EPS
        ):  # q = 0 may have met delta, which says nothing about theta
            return _after(
                state, settled(objective.refine(state.point, later)), later, curvature, None, z.norm
            )
        if z.norm <= self.gradient_tolerance:
            raise Halt(StopReason("stationary", f"the inexact hypergradient has norm {z.norm:.2e}"))
        curvature = curvature or self._first_curvature(z.norm, z.value.numel())
        theta = box_of(self.box, objective).project(state.theta - z.value / curvature)
        point = objective.trial(theta, later, state.point)
        if point is None:
            return _undone(objective, state, state.point, curvature, later, z.norm)
        return _after(state, settled(point), later, curvature, state.point, z.norm)

    def _first_curvature(self, norm: float, d: int) -> float:
        """L of the first move."""
        if self.alpha0 is not None:
            return 1 / self.alpha0
        return norm / math.sqrt(d) if norm > 1e-3 else 1.0

    def _judge(
        self, state: HOAGState, curvature: float, later: float
    ) -> Literal["lengthen", "keep", "undo"]:
        """What the losses say about the move from ``last`` to the present theta."""
        assert state.last is not None
        before, now = state.last.loss, state.point.loss
        move = float((state.theta - state.last.theta).norm())
        slack = self.constant * later + state.eps * (self.constant + 1) * move
        if now <= before + slack - curvature * move**2:
            return "lengthen"
        return "undo" if now >= GROWTH_REJECTED * before else "keep"


def _after(
    state: HOAGState,
    point: Value,
    eps: float,
    curvature: float | None,
    last: Value | None,
    norm: float | None,
    undone: bool = False,
) -> HOAGState:
    """The state one pass later."""
    delta = eps * state.ratio
    info = {
        "eps": eps,
        "delta": delta,
        "step_size": 1 / curvature if curvature else None,
        "gradient_norm": norm,
        "undone": undone,
    }
    return replace(
        state,
        point=point,
        eps=eps,
        delta=delta,
        k=state.k + 1,
        curvature=curvature,
        last=last,
        info=info,
    )


def _undone(
    objective: Objective,
    state: HOAGState,
    point: Value,
    curvature: float,
    later: float,
    norm: float | None = None,
) -> HOAGState:
    """Back at ``point``, where theta was before the move, more accurately."""
    eps = max(0.5 * later, SMALLEST_EPS)
    return _after(
        state, settled(objective.refine(point, eps)), eps, 2 * curvature, None, norm, undone=True
    )
