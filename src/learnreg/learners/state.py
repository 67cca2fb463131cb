"""State of a descent learner between two accepted steps: everything a checkpoint needs, nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..core.status import Status
from .curvature import CurvaturePairs
from .lower_level import LowerLevel, Point


@dataclass(frozen=True)
class DescentState:
    """Between two steps.

    Attributes:
        point: theta_k with its lower-level solution.
        adjoint: (b, ...), the latest q, or None before the first hypergradient.
        eps, delta: present accuracies.
        step_size: the first trial of the next line search.
        pairs: curvature of the upper level.
        last: (2, d), theta_{k-1} and z_{k-1}, or None.
        info: what the record shows of the step that led here.
    """

    point: Point
    adjoint: Tensor | None
    eps: float
    delta: float
    step_size: float | None
    pairs: CurvaturePairs
    last: Tensor | None
    info: dict[str, Any]


def in_double(state: DescentState, lower: LowerLevel) -> DescentState:
    """The same state for a float64 lower level; the certificates stay valid, a float32 image is one in float64 too."""
    solution = state.point.solution
    status = tuple(Status.CONVERGED if s is Status.ROUNDING_FLOOR else s for s in solution.status)
    solution = replace(solution, value=solution.value.double(), gradient=solution.gradient.double(), status=status)
    theta = state.point.theta.double()
    point = lower.point(theta, lower.problem.energy.with_theta(theta), solution, state.point.eps)
    pairs = CurvaturePairs(state.pairs.s.double(), state.pairs.y.double())
    return replace(state, point=point, pairs=pairs, adjoint=None if state.adjoint is None else state.adjoint.double(),
                   last=None if state.last is None else state.last.double())
