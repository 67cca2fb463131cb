"""What all lower levels share: a physics, a regularizer with the parameters, a data term, copies at
other theta.
"""

from __future__ import annotations

import copy
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..core.params import with_theta
from ..operators.physics import LinearMap


class Tied(nn.Module):
    """A physics tied to a regularizer and a data term.

    Args:
        physics: a linear ``deepinv`` physics A.
        regularizer: holds theta as its trainable parameters.
        fidelity: the data term.
    """

    def __init__(self, physics: nn.Module, regularizer: nn.Module, fidelity: Any) -> None:
        super().__init__()
        self.operator = LinearMap(physics)
        self.regularizer: Any = regularizer
        self.fidelity: Any = fidelity

    @property
    def physics(self) -> nn.Module:
        return self.operator.physics

    def with_theta(self, theta: Tensor) -> Self:
        """The same at theta (d,), in theta's dtype and device; this one is not touched."""
        return self._like(with_theta(self.regularizer, theta), self.operator)

    def with_physics(self, physics: nn.Module) -> Self:
        """The same regularizer (shared, not copied) with another physics."""
        return self if physics is self.physics else self._like(self.regularizer, LinearMap(physics))

    def double(self) -> Self:
        """A float64 copy; unlike ``nn.Module.double`` it leaves this one as it is."""
        return self._like(copy.deepcopy(self.regularizer).to(torch.float64), self.operator.double())

    def _like(self, regularizer: nn.Module, operator: LinearMap) -> Self:
        clone = type(self).__new__(type(self))
        nn.Module.__init__(clone)
        clone.operator, clone.regularizer, clone.fidelity = operator, regularizer, self.fidelity
        return clone

    def start(self, y: Tensor) -> Tensor:
        """A^T y, the picture a solve starts from when nothing better is known (y itself for
        denoising).
        """
        return self.operator.adjoint(y)

    def describe(self) -> str:
        """One line for records."""
        return f"{type(self.regularizer).__name__} with {type(self.physics).__name__}"
