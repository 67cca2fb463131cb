"""Operators whose tensors are functions of theta."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeGuard

import torch
from torch import Tensor

from ..core.asking import offers
from ..core.bounds import Bound
from .foreign import LinearPhysicsLike

MAPS = ("A", "A_adjoint", "A_adj")
"""What a class that derives from a parametrized physics may write anew."""


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


def is_parametrized(physics: object) -> TypeGuard[Parametrized]:
    """Whether a physics is the A(k(theta)) that it says.

    A map that a later class, or the object itself, has in the place of that of the class that wrote
    ``fixed`` is another one, of which nothing is known.
    """
    if not offers(physics, Parametrized):
        return False
    if any(vars(physics).get(name) is not None for name in MAPS):
        return False
    order = type(physics).__mro__
    writers = [next((i for i, c in enumerate(order) if n in vars(c)), -1) for n in ("fixed", *MAPS)]
    return all(writers[0] <= writer for writer in writers[1:] if writer >= 0)


def at_tensors(physics: Parametrized) -> LinearPhysicsLike:
    """A(k) at the present tensors, which is no function of theta."""
    with torch.no_grad():
        return physics.fixed()
