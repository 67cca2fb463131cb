"""Linear models of residuals through n + 1 samples, and the geometry of the samples.

With F(theta) = sum_i r_i(theta)^2 known at u_0, ..., u_n (theta in scaled variables) in general
position there is one affine r~(u) with r~(u_j) = r(u_j); its square is the Gauss-Newton model of F.
The Lagrange polynomials l_j are affine, l_j(u_i) = 1 if i = j else 0: |l_j(u)| says by how much the
volume of the simplex changes when u takes the place of u_j.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core.errors import MissingPropertyError
from ..core.objective import Objective, Value
from .box import Box, Ranges, box_of


@dataclass(frozen=True)
class Scaling:
    """theta = shift + width u: a box becomes [0, 1]^n; entries without both ends are measured in
    their units.

    Attributes:
        box: the range of theta.
        shift, width: (n,) float64.
    """

    box: Box
    shift: Tensor
    width: Tensor

    @classmethod
    def of(cls, ranges: Ranges, objective: Objective) -> Scaling:
        """For the theta of ``objective``.

        Raises:
            InputError: a name that no parameter has, or a start outside the box.
        """
        box, units = box_of(ranges, objective), objective.units.double()
        closed = torch.isfinite(box.lower) & torch.isfinite(box.upper)
        return cls(
            box,
            torch.where(closed, box.lower, 0.0),
            torch.where(closed, box.upper - box.lower, units),
        )

    def to_u(self, theta: Tensor) -> np.ndarray:
        """(n,) float64."""
        return ((theta.double() - self.shift) / self.width).cpu().numpy()

    def to_theta(self, u: np.ndarray, like: Tensor) -> Tensor:
        """The nearest theta of the box, in the type of ``like``."""
        return self.box.project(
            (self.shift + self.width * torch.from_numpy(u).to(self.shift)).to(like)
        )

    def room(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How far u may move down (n,) <= 0 and up (n,) >= 0."""
        low, high = (
            ((end - self.shift) / self.width).cpu().numpy()
            for end in (self.box.lower, self.box.upper)
        )
        return np.minimum(low - u, 0.0), np.maximum(high - u, 0.0)


@dataclass(frozen=True)
class Sample:
    """One theta at which F was evaluated.

    Attributes:
        point: with the solution that later evaluations at this theta go on from.
        u: (n,), theta in scaled variables.
        residuals: (m,) float64, r~.
        error: the largest certified |r~_i - r_i|.
        value, low, high: F~ and a certified bracket of F.
    """

    point: Value
    u: np.ndarray
    residuals: np.ndarray
    error: float
    value: float
    low: float
    high: float

    @property
    def uncertainty(self) -> float:
        """Bound of |F~ - F|."""
        return max(self.high - self.value, self.value - self.low)


def sample(objective: Objective, scaling: Scaling, point: Value, pixels: bool) -> Sample:
    """A value with its residuals (``core.objective.Value.residuals``).

    Raises:
        InputError: a loss below zero.
        MissingPropertyError: ``pixels`` with a loss that is not half the square of its gradient.
    """
    found = point.residuals(pixels)
    if found is None:
        raise MissingPropertyError(
            "residuals",
            given="'pixels' with a loss that is not 1/2 ||x - x_true||^2",
            expected="the squared error",
            remedy="Use residuals='images'.",
        )
    value, low, high = (2 * objective.size * v for v in (point.loss, point.lower, point.upper))
    residuals = found.values.cpu().numpy()
    return Sample(point, scaling.to_u(point.theta), residuals, found.error, value, low, high)


class Model(NamedTuple):
    """F(u_k + s) is about value + 2 <g, s> + <s, H s>."""

    value: float
    g: np.ndarray
    h: np.ndarray

    def reduction(self, s: np.ndarray) -> float:
        """Predicted decrease of F by the step s."""
        return -float(2 * self.g @ s + s @ self.h @ s)


def gauss_newton(samples: Sequence[Sample], k: int) -> Model:
    """The model around sample k."""
    others = [s for j, s in enumerate(samples) if j != k]
    inverse = np.linalg.inv(_directions(samples, k))
    jacobian = inverse @ np.stack(
        [s.residuals - samples[k].residuals for s in others]
    )  # (n, m), transposed
    return Model(samples[k].value, jacobian @ samples[k].residuals, jacobian @ jacobian.T)


def lagrange(samples: Sequence[Sample], k: int) -> np.ndarray:
    """Gradients of all l_j, (n + 1, n): l_j(u_k + s) = [j = k] + <gradient_j, s>."""
    rows = np.linalg.inv(_directions(samples, k)).T
    return np.insert(rows, k, -rows.sum(axis=0), axis=0)


def distances(samples: Sequence[Sample], u: np.ndarray) -> np.ndarray:
    """(n + 1,), from u."""
    return np.array([float(np.linalg.norm(s.u - u)) for s in samples])


def nearest(samples: Sequence[Sample], u: np.ndarray) -> Sample:
    """The sample closest to u."""
    return samples[int(np.argmin(distances(samples, u)))]


def _directions(samples: Sequence[Sample], k: int) -> np.ndarray:
    """u_j - u_k in rows, without j = k."""
    return np.stack([s.u - samples[k].u for j, s in enumerate(samples) if j != k])
