"""What is asked of a deepinv physics, for type checkers: deepinv itself has no types."""

from __future__ import annotations

from torch import Tensor, nn

from ..core.measured import Native


class LinearPhysicsLike(nn.Module):
    """A ``deepinv.physics.LinearPhysics``; nothing is ever made of this class.

    Attributes:
        img_size: (c, h, w), needed where the adjoint is made by autograd.
    """

    img_size: tuple[int, ...] | None

    def A(self, x: Tensor, **tensors: object) -> Tensor:
        """A x; of a stacked physics a list of tensors, which a ``Layout`` takes as well."""
        raise NotImplementedError

    def A_adjoint(self, y: Native, **tensors: object) -> Tensor:
        raise NotImplementedError

    def noise(self, x: Native, **parameters: object) -> Native:
        """Measurements with noise."""
        raise NotImplementedError

    def sensor(self, x: Native) -> Native:
        """What a sensor makes of them."""
        raise NotImplementedError

    def update(self, **tensors: Tensor) -> None:
        """Replace parameters of the operator and of its noise."""
        raise NotImplementedError

    def update_parameters(self, **tensors: object) -> None:
        """Replace parameters of the operator alone."""
        raise NotImplementedError


class DecomposablePhysicsLike(LinearPhysicsLike):
    """A ``deepinv.physics.DecomposablePhysics``, A = U diag(mask) V^T."""

    mask: Tensor

    def V(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def V_adjoint(self, x: Tensor) -> Tensor:
        raise NotImplementedError
