"""Operators whose tensors are functions of theta."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from ..core.bounds import Bound
from .foreign import LinearPhysicsLike
from .private import shallow


class Parametrized(Protocol):
    """A physics A(k(theta)): another one, and those of its tensors that are made from theta."""

    @property
    def base(self) -> LinearPhysicsLike:
        """A(k) at any k."""
        ...

    def tensors(self) -> Mapping[str, Tensor]:
        """k(theta) by the names that ``base`` has for it, differentiable in theta."""
        ...


class KnowsSensitivity(Protocol):
    """A physics of the user's own that knows how it moves with its parameters."""

    def sensitivity(self, x: Tensor) -> Bound:
        """beta with ||A(theta') v - A(theta) v|| <= beta ||theta' - theta|| ||v|| for images v like
        x, and all theta that are met.
        """
        ...


def at_tensors(physics: Parametrized) -> LinearPhysicsLike:
    """The physics of the class of ``base`` at the present tensors, which is no function of theta; a
    copy that shares all others.
    """
    copied = shallow(physics.base)
    copied.update_parameters(**{name: t.detach() for name, t in physics.tensors().items()})
    return copied
