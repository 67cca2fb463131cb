"""What a convex function of one block can be asked for: values, gaps, proximal maps, derivatives
and constants.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..core.batch import expand
from ..core.errors import MissingPropertyError
from .tangent import Tangent

Step = float | Tensor
"""A step size: a float, or one per image as a tensor (b or 1, 1, ...) that broadcasts to the
block.
"""

ULPS = 16
"""Membership in a domain is granted up to this many units of rounding: what a projection and a
product may lose.
"""


class Convex(ABC):
    """A closed convex function phi of one block (b, ...), summed over its entries or groups, one
    value per image.

    A group is the vector of all entries that differ in dimension 1 only. All results are new
    tensors, and no method changes what it was given, except those whose names end in an underscore.
    The conjugate is phi*(s) = sup_a <a, s> - phi(a). Domains count up to rounding: a point outside
    by at most ``ULPS`` units of rounding (relative to the size of the domain; absolute where it has
    none, for blocks of order one) is treated as its nearest point inside.

    Attributes:
        strong: a proven mu >= 0 with phi - mu/2 |.|^2 convex.
        smooth: a proven Lipschitz constant of the gradient; inf if there is none.
        hessian_lipschitz: a proven Lipschitz constant of the Hessian in the spectral norm; inf if
            there is none.
        separable: whether phi is a sum over single entries.
    """

    separable: bool = False
    strong: float = 0.0
    smooth: float = math.inf
    hessian_lipschitz: float = math.inf

    smoothing: str = "Use the proximal map, or a smoothed variant of this function."
    """What to do when a derivative of phi is missing."""
    strengthening: str = "Add a multiple of |a|^2/2, or use the proximal map of the conjugate."
    """What to do when a derivative of phi* is missing."""

    @abstractmethod
    def value(self, a: Tensor) -> Tensor:
        """phi(a), inf outside of the domain: (b, ...) -> (b,)."""

    @abstractmethod
    def conjugate(self, s: Tensor) -> Tensor:
        """phi*(s), inf outside of the domain: (b, ...) -> (b,)."""

    @abstractmethod
    def gap(self, a: Tensor, s: Tensor) -> Tensor:
        """phi(a) + phi*(s) - <a, s> >= 0 (Fenchel-Young), zero exactly if s is a subgradient at a:
        -> (b,).

        A sum of local terms that are each >= 0 and written without the difference of large numbers;
        inf where a or s lies outside of its domain.
        """

    @abstractmethod
    def prox(self, a: Tensor, step: Step) -> Tensor:
        """argmin_z step phi(z) + 1/2 |z - a|^2: (b, ...) -> (b, ...)."""

    def prox_conjugate(self, s: Tensor, step: Step) -> Tensor:
        """The same for phi*, by Moreau's identity: s - step prox(s / step, 1 / step)."""
        step = matched(step, s)
        return s - step * self.prox(s / step, 1 / step)

    def prox_(self, a: Tensor, step: Step) -> Tensor:
        """``prox``, free to write over a: for iterations limited by memory, where a new tensor
        costs twice as much.
        """
        return self.prox(a, step)

    def prox_conjugate_(self, s: Tensor, step: Step) -> Tensor:
        """``prox_conjugate``, free to write over s."""
        return self.prox_conjugate(s, step)

    @abstractmethod
    def prox_tangent(self, a: Tensor, step: Step) -> Tangent:
        """The derivative of ``prox(., step)`` at a; at a kink an element of the generalized
        Jacobian.
        """

    def prox_conjugate_tangent(self, s: Tensor, step: Step) -> Tangent:
        """The derivative of ``prox_conjugate(., step)`` at s: identity minus that of the prox at s
        / step.
        """
        step = matched(step, s)
        return self.prox_tangent(s / step, 1 / step).mapped(lambda eigenvalue: 1 - eigenvalue)

    def grad(self, a: Tensor) -> Tensor:
        """The gradient of phi: (b, ...) -> (b, ...).

        Raises:
            MissingPropertyError: phi is not differentiable; says what to change.
        """
        raise self.missing("gradient", "a differentiable function", self.smoothing)

    def slopes(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """The least and the largest subgradient at a, entry by entry; of separable functions."""
        slope = self.grad(a)
        return slope, slope

    def floor(self) -> float | Tensor:
        """The least argument of finite value, entry by entry; of separable functions."""
        return -math.inf

    def hessian(self, a: Tensor) -> Tangent:
        """The Hessian of phi at a; an element of the generalized one where the gradient has a kink.

        Raises:
            MissingPropertyError: phi is not differentiable; says what to change.
        """
        raise self.missing("Hessian", "a differentiable function", self.smoothing)

    def conjugate_grad(self, s: Tensor) -> Tensor:
        """The gradient of phi*, which is the inverse of ``grad``: (b, ...) -> (b, ...).

        Raises:
            MissingPropertyError: phi* is not differentiable; says what to change.
        """
        raise self.missing(
            "gradient of the conjugate", "a strongly convex function", self.strengthening
        )

    def conjugate_hessian(self, s: Tensor) -> Tangent:
        """The Hessian of phi* at s, which is the inverse of ``hessian(conjugate_grad(s))``.

        Raises:
            MissingPropertyError: phi* is not differentiable; says what to change.
        """
        raise self.missing(
            "Hessian of the conjugate", "a strongly convex function", self.strengthening
        )

    def gauge(self, s: Tensor) -> Tensor:
        """The smallest t >= 1 such that s / t lies in the domain of phi*, inf if there is none: (b,
        ...) -> (b,).
        """
        return s.new_ones(s.shape[0])

    def change(self, a: Tensor, radius: Tensor) -> Tensor:
        """A proven bound, per entry or group, of how far the Hessian can be from the one at a.

        Args:
            a: (b, ...).
            radius: (b,), the a' meant are those with ||a' - a|| <= radius, image by image.

        Returns:
            Broadcastable to a: a bound of the spectral norm of the local block of hessian(a') -
                hessian(a).

        Raises:
            MissingPropertyError: the Hessian does not exist or is not Lipschitz; says what to
                change.
        """
        if not math.isfinite(self.hessian_lipschitz):
            raise self.missing(
                "bound of the change of the Hessian", "a Lipschitz Hessian", self.smoothing
            )
        return expand(radius * self.hessian_lipschitz, a)

    def growth(self, a: Tensor, s: Tensor, radius: Tensor) -> tuple[Tensor, Tensor] | None:
        """m (b, ...) and an allowance (b,) such that for all z with |z - a| <= radius, entry by
        entry, at which phi is finite,
            [ phi(a) - phi(z) - phi'(z; a - z) ] + [ phi(z) + phi*(s) - <s, z> ] + allowance
                >= sum m (z - a)^2 / 2.

        None where nothing better than ``strong`` is known.

        Args:
            s: in the domain of phi*.
            radius: (b,), float64.
        """
        return None

    def select(self, index: Tensor) -> Convex:
        """The same function for some images."""
        return self

    def double(self) -> Convex:
        """The same function with its data in float64."""
        return self

    def missing(self, what: str, expected: str, remedy: str) -> MissingPropertyError:
        """The error for a derivative that this function does not have."""
        return MissingPropertyError(
            type(self).__name__, given=f"no {what}", expected=expected, remedy=remedy
        )


def matched(step: Step, a: Tensor) -> Step:
    """The step in the dtype of the block, so that it changes no dtype."""
    return step.to(a.dtype) if isinstance(step, Tensor) else step


def clamped(a: Tensor, low: Step, high: Step) -> Tensor:
    """The entries kept within [low, high]: two tensors, or two numbers."""
    if isinstance(low, Tensor) and isinstance(high, Tensor):
        return a.clamp(low, high)
    return a.clamp(float(low), float(high))


def slack(a: Tensor) -> float:
    """The relative rounding that membership in a domain forgives."""
    return ULPS * torch.finfo(a.dtype).eps


def total(local: Tensor) -> Tensor:
    """Sum per image: (b, ...) -> (b,)."""
    return local.flatten(1).sum(dim=1)


def peak(local: Tensor) -> Tensor:
    """Maximum per image: (b, ...) -> (b,)."""
    return local.flatten(1).amax(dim=1)


def beyond(values: Tensor, limit: float) -> Tensor:
    """Which values exceed the limit; NaN does."""
    return ~(values <= limit)


def refuse(values: Tensor, outside: Tensor) -> Tensor:
    """inf for the images that are outside: (b,), boolean (b,) -> (b,)."""
    return values.masked_fill(outside, math.inf)


def constant(value: float, like: Tensor) -> Tensor:
    """A number as a tensor (1, ..., 1) with as many dimensions as ``like``."""
    return like.new_full((1,) * like.dim(), value)
