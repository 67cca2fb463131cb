"""Symmetric linear maps that act per entry or per small group, with their eigenvalues at hand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

SMALL = 4
"""Groups up to this size are summed slice by slice: faster than a reduction over a short strided
dimension.
"""


def pick(data: Tensor, index: Tensor) -> Tensor:
    """The rows of some images; data shared by all images (first dimension 1) stay as they are."""
    return data if data.shape[0] == 1 else data[index]


def inner(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> over dimension 1, which stays with length 1: (b, g, ...), (b, g, ...) -> (b, 1,
    ...).
    """
    if a.shape[1] > SMALL or a.shape[1] != b.shape[1]:
        return (a * b).sum(dim=1, keepdim=True)
    total = a[:, :1] * b[:, :1]
    for k in range(1, a.shape[1]):
        total.addcmul_(a[:, k : k + 1], b[:, k : k + 1])
    return total


class Tangent(ABC):
    """A symmetric map v -> T v on one block that knows its eigenvalues; the batch is its first
    dimension.
    """

    @abstractmethod
    def __call__(self, v: Tensor) -> Tensor:
        """T v for v: (b, ...)."""

    @abstractmethod
    def select(self, index: Tensor) -> Tangent:
        """The same map for some images: ``index`` is what a tensor can be indexed with along the
        batch.
        """

    @abstractmethod
    def mapped(self, f: Callable[[Tensor], Tensor]) -> Tangent:
        """The map with the same eigenvectors and the eigenvalues f(lambda); ``f`` acts elementwise
        on tensors.

        For example ``lambda l: 1 / (1 + step * l)``, the resolvent, with step a float or (b, 1,
        ...).
        """


@dataclass(frozen=True, eq=False)
class Diagonal(Tangent):
    """v -> weights v, entry by entry.

    Args:
        weights: (b or 1, ...), broadcastable to the block.
    """

    weights: Tensor

    def __call__(self, v: Tensor) -> Tensor:
        return self.weights * v

    def select(self, index: Tensor) -> Diagonal:
        return Diagonal(pick(self.weights, index))

    def mapped(self, f: Callable[[Tensor], Tensor]) -> Diagonal:
        return Diagonal(f(self.weights))


@dataclass(frozen=True, eq=False)
class Radial(Tangent):
    """v -> across v + (along - across) unit <unit, v>: one distinguished direction per group, the
    group is dimension 1.

    Every symmetric 2 x 2 matrix is of this form, so it also serves functions of pairs.

    Args:
        across: (b or 1, 1, ...), the eigenvalue orthogonal to ``unit``.
        along: (b or 1, 1, ...), the eigenvalue of ``unit``.
        unit: (b or 1, g, ...), of length one per group, or zero where the map is ``across`` times
            the identity.
    """

    across: Tensor
    along: Tensor
    unit: Tensor
    excess: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "excess", self.along - self.across)

    def __call__(self, v: Tensor) -> Tensor:
        return torch.addcmul(self.across * v, inner(self.unit, v).mul_(self.excess), self.unit)

    def select(self, index: Tensor) -> Radial:
        return Radial(pick(self.across, index), pick(self.along, index), pick(self.unit, index))

    def mapped(self, f: Callable[[Tensor], Tensor]) -> Radial:
        return Radial(f(self.across), f(self.along), self.unit)
