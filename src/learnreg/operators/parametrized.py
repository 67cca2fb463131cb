"""Operators whose tensors are functions of theta."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from ..core.bounds import Bound
from .foreign import LinearPhysicsLike


class Parametrized(Protocol):
    """A physics A(k(theta)), linear in the tensors k, which are made from theta."""

    def tensors(self) -> Mapping[str, Tensor]:
        """k(theta) by the names of the tensors of A(k), differentiable in theta."""
        ...

    def fixed(self) -> LinearPhysicsLike:
        """A(k) at the present tensors, of a class of its own."""
        ...


class KnowsSensitivity(Protocol):
    """A physics of the user's own that knows how it moves with its parameters."""

    def sensitivity(self, x: Tensor) -> Bound:
        """beta with ||A(theta') v - A(theta) v|| <= beta ||theta' - theta|| ||v|| for images v like
        x, and all theta that are met.
        """
        ...


def at_tensors(physics: Parametrized) -> LinearPhysicsLike:
    """A(k) at the present tensors, which is no function of theta."""
    with torch.no_grad():
        return physics.fixed()
