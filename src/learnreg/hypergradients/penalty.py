"""The upper-level penalty p(theta), which has no lower level, added to a hypergradient."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from ..core.results import Hypergradient


def penalized(result: Hypergradient, problem: Any, theta: Tensor) -> Hypergradient:
    """``result`` of mean_i g(x_i(theta)) as that of mean_i g(x_i(theta)) + p(theta)."""
    if getattr(problem, "penalty", None) is None:
        return result
    value, gradient = problem.penalty_at(theta)
    lower, upper = result.bracket
    return replace(
        result,
        value=result.value + gradient.to(result.value),
        loss=result.loss + value,
        bracket=(lower + value, upper + value),
    )
