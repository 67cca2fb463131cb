"""Where trial steps lie: on a ray, or on the projection of one onto a box.

Entries of theta at an end of the box whose gradient points out of it stay there; the others take
the quasi-Newton step of their own curvature, and are projected (two-metric projection: Bertsekas,
SIAM J. Control Optim. 20, 1982). With s = theta - P(theta - alpha d) in the place of alpha d both
tests of ``descent`` hold as they are written there: a step is accepted for a certified decrease of
lambda <s, z>.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..core.results import Hypergradient
from .box import Box
from .curvature import CurvaturePairs


@dataclass(frozen=True)
class Arc:
    """theta(alpha) = P(theta - alpha d).

    Attributes:
        theta: where it starts, in the box.
        direction: d, zero where an entry is held.
        slope: <d, z>, positive.
        z: the hypergradient; its held entries do not count.
        box: None for a ray.
    """

    theta: Tensor
    direction: Tensor
    slope: float
    z: Hypergradient
    box: Box | None

    def at(self, alpha: float) -> tuple[Tensor, float]:
        """theta(alpha) and the decrease that z predicts, <theta - theta(alpha), z>."""
        moved = self.theta - alpha * self.direction
        if self.box is None:
            return moved, alpha * self.slope
        moved = self.box.project(moved)
        return moved, float((self.theta - moved) @ self.z.value)

    def leads_down(
        self, moved: Tensor, predicted: float, eta: float, test: Literal["estimated", "certified"]
    ) -> bool:
        """Whether a step that the box has bent passes the descent test as well; one that it has
        not does, because the direction did.
        """
        if self.box is None:
            return True
        return self.z.along(self.theta - moved, test) <= (1 - eta) * predicted


def free_of(box: Box | None, theta: Tensor, z: Tensor) -> Tensor | None:
    """Which entries may move along -z (d,), bool; None for all of them."""
    if box is None:
        return None
    below = (theta <= box.lower.to(theta)) & (z > 0)
    above = (theta >= box.upper.to(theta)) & (z < 0)
    held = below | above
    return None if not bool(held.any()) else ~held


def seen(z: Hypergradient, free: Tensor | None) -> Hypergradient:
    """The hypergradient of the entries that may move, zero elsewhere, with the estimate of its own
    error.
    """
    if free is None:
        return z
    estimated, correction = z.estimated, z.correction
    if correction is not None:
        whole = float(correction.norm())
        correction = correction * free
        if estimated is not None and whole > 0:
            estimated *= float(correction.norm()) / whole
    return replace(z, value=z.value * free, correction=correction, estimated=estimated)


def restricted(pairs: CurvaturePairs, free: Tensor | None, units: Tensor) -> CurvaturePairs:
    """The curvature of the entries that may move: pairs whose curvature stays positive there."""
    if free is None or not len(pairs):
        return pairs
    s, y = pairs.s * free, pairs.y * free
    sizes = (s / units).norm(dim=1) * (units * y).norm(dim=1)
    kept = torch.nonzero((s * y).sum(dim=1) > 1e-4 * sizes).flatten()
    return CurvaturePairs(s[kept], y[kept])
