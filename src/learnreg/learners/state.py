"""State of a descent learner between two accepted steps: everything a checkpoint needs, nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .curvature import CurvaturePairs
from .lower_level import Point


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
        last_error: error of z_{k-1}, estimated or certified.
        info: what the record shows of the step that led here.
    """

    point: Point
    adjoint: Tensor | None
    eps: float
    delta: float
    step_size: float | None
    pairs: CurvaturePairs
    last: Tensor | None
    last_error: float
    info: dict[str, Any]
