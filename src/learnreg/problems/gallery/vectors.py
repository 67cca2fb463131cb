"""What the problems of the gallery share: vectors in the place of images, theta as the only
parameter.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from ...core.errors import InputError
from ...core.offers import certificate_of
from ...core.params import with_theta
from ...core.protocols import Loss
from ..bilevel import BilevelProblem


@dataclass(eq=False)
class VectorPairs:
    """Ground truth ``x`` (images, n) and what the energy knows of each image, ``y`` (images, m)."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return self.x.shape[0]


class VectorEnergy(nn.Module):
    """The part of the protocol of ``Energy`` that does not depend on the energy.

    Args:
        theta: (d,), the start; copied.
    """

    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(theta.detach().clone())

    def with_theta(self, theta: Tensor) -> Self:
        """The same energy at theta (d,), in theta's dtype and device; this one is not touched."""
        return with_theta(self, theta)

    def widened(self) -> Self:
        """A float64 copy; unlike ``nn.Module.double`` it leaves this energy as it is."""
        return copy.deepcopy(self).to(torch.float64)

    def certificate(self, name: str, *args: Tensor) -> Tensor | None:
        """``hessian_change``, ``mixed_change`` or ``mixed_norm`` as ``Energy.certificate``; None if
        not offered.
        """
        method = certificate_of(self, name)
        return None if method is None else method(*args)


class VectorProblem(BilevelProblem):
    """A BilevelProblem with exact answers.

    Args:
        energy: the lower level.
        x: (images, n) ground truth.
        y: (images, m).
        loss: the upper level; ``SquaredError()`` when None.
    """

    def __init__(
        self, energy: VectorEnergy, x: Tensor, y: Tensor, loss: Loss | None = None
    ) -> None:
        super().__init__(energy, VectorPairs(x, y), loss)

    def exact_solution(self, theta: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """x*(theta): (b, n) float64; the present theta and the problem's own data when None."""
        raise NotImplementedError

    def exact_hypergradient(self, theta: Tensor | None = None) -> Tensor:
        """grad f(theta): (d,) float64."""
        raise NotImplementedError

    def exact_loss(self, theta: Tensor | None = None) -> float:
        """f(theta)."""
        return float(self.loss.value(self.exact_solution(theta), self.pairs.x.double()).mean())

    def to(self, dtype: torch.dtype) -> Self:
        """The same problem with data in another type; the exact answers are then those of the
        rounded data.
        """
        other = type(self)(self.energy, self.pairs.x.to(dtype), self.pairs.y.to(dtype), self.loss)
        other.penalty = self.penalty
        return other

    def _at(self, theta: Tensor | None) -> Tensor:
        """theta in float64, the present one when None."""
        return (self.theta if theta is None else theta).detach().double()


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def positive_integer(name: str, value: int) -> None:
    """Raise InputError unless ``value`` is one."""
    if not isinstance(value, int) or value < 1:
        raise InputError(name, given=value, expected="a positive integer")


def at_least(name: str, value: float, smallest: float, strictly: bool = False) -> None:
    """Raise InputError unless ``value`` is finite and at least (or above) ``smallest``."""
    if not math.isfinite(value) or value < smallest or (strictly and value == smallest):
        raise InputError(
            name,
            given=value,
            expected=f"a finite number {'above' if strictly else '>='} {smallest}",
        )
