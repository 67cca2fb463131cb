"""Box constraints on theta: one range for all parameters, or one per name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from ..core.errors import InputError
from ..core.objective import Objective
from ..core.ranges import plain, shown

Ranges: TypeAlias = list[float] | dict[str, list[float]] | None
"""[lower, upper] for every entry of theta, or {parameter name: [lower, upper]}; None is no
constraint.
"""


@dataclass(frozen=True)
class Box:
    """lower <= theta <= upper.

    Attributes:
        lower, upper: (d,) float64, infinite where nothing is asked for.
    """

    lower: Tensor
    upper: Tensor

    @property
    def bounded(self) -> bool:
        """Whether every entry has both ends."""
        return bool(torch.isfinite(self.lower).all() and torch.isfinite(self.upper).all())

    def project(self, theta: Tensor) -> Tensor:
        """The nearest point of the box, in theta's type."""
        return torch.minimum(torch.maximum(theta, self.lower.to(theta)), self.upper.to(theta))


def check_ranges(name: str, ranges: object) -> None:
    """Refuse what is no box at all; whether the names fit is known when the problem is
    (``box_of``).

    Raises:
        InputError: not two finite or infinite numbers in increasing order.
    """
    if ranges is None:
        return
    for key, pair in ranges.items() if isinstance(ranges, dict) else [("", ranges)]:
        ends = [plain(v) for v in pair] if isinstance(pair, list | tuple) else []
        usable = len(ends) == 2 and all(
            isinstance(v, int | float) and not isinstance(v, bool) and not math.isnan(v)
            for v in ends
        )
        if not usable or not ends[0] < ends[1]:
            raise InputError(
                f"{name} {key}".strip(),
                given=shown(pair),
                expected="[lower, upper] with lower < upper",
                remedy="For example box=[-7, 7], or box={'log_weight': [-7, 0]}.",
            )


def _means(key: str, name: str) -> bool:
    """Whether a key stands for a parameter: ``a.b``, or ``b`` alone, with or without the index."""
    # why: a problem calls its own parameters regularizer.log_weight, objectives log_weight
    known = {n for full in (name, f"regularizer.{name}") for n in (full, full.partition("[")[0])}
    return key in known or any(n.endswith(f".{key}") for n in known)


def box_of(ranges: Ranges, objective: Objective) -> Box:
    """The box for the theta of ``objective``.

    Args:
        ranges: names are those of the parameters, with or without their index and the parts that
            they belong to: ``log_weight``, ``filters[3]``, ``fidelity.weights.omega`` or ``omega``.

    Raises:
        InputError: a name that no parameter has, or a start outside the box.
    """
    theta = objective.theta.double()
    names = objective.names
    lower, upper = torch.full_like(theta, -math.inf), torch.full_like(theta, math.inf)
    for key, (low, high) in (
        ({None: ranges} if not isinstance(ranges, dict) else ranges).items() if ranges else ()
    ):
        chosen = [i for i, n in enumerate(names) if key is None or _means(key, n)]
        if not chosen:
            known = sorted({n.partition("[")[0] for n in names})
            raise InputError(
                f"box {key!r}",
                given="a name that no parameter has",
                expected=f"one of {', '.join(known)}",
            )
        lower[chosen], upper[chosen] = low, high
    slack = 1e-6 * (
        1 + theta.abs()
    )  # a start that equals a bound may be rounded to the other side of it
    outside = [
        names[i]
        for i in torch.nonzero((theta < lower - slack) | (theta > upper + slack)).flatten().tolist()
    ]
    if outside:
        raise InputError(
            "box",
            given=f"a start outside of it ({', '.join(outside[:5])})",
            expected="a start inside the box",
            remedy="Widen the box, or start elsewhere.",
        )
    return Box(lower, upper)
