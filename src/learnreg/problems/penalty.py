"""Penalties on theta, which have no lower level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..core.asking import offers
from ..core.errors import InputError, MissingPropertyError
from ..core.params import named_trainable, trainable
from ..core.ranges import check_positive
from ..operators.parametrized import Parametrized
from ..operators.private import tensor_named

Penalty = Callable[[Tensor], Tensor]
"""From theta (d,) to a scalar >= 0 that autograd can differentiate."""


def value_and_slope(penalty: Penalty | None, theta: Tensor) -> tuple[float, Tensor]:
    """p(theta) and its gradient (d,); zero without a penalty.

    Raises:
        InputError: a penalty that is no scalar >= 0, or cannot be differentiated.
        MissingPropertyError: one that is not finite at theta.
    """
    if penalty is None:
        return 0.0, torch.zeros_like(theta)
    with torch.enable_grad():
        at = theta.detach().clone().requires_grad_()
        value = penalty(at)
        usable = isinstance(value, Tensor) and value.numel() == 1 and value.requires_grad
        if not usable or value < 0:
            raise InputError(
                "penalty",
                given=value,
                expected="a finite scalar >= 0 that depends on theta",
                remedy="Compute it from theta with torch operations.",
            )
        if not torch.isfinite(value):
            # learners take such a theta for one that cannot be solved
            raise MissingPropertyError(
                "penalty",
                given=value.item(),
                expected="a finite scalar >= 0",
                remedy="Start where it is finite.",
            )
        (gradient,) = torch.autograd.grad(value.squeeze(), at)
    return float(value.detach()), gradient


class _Tensors(nn.Module):
    """A tensor of a physics as what a module returns, so that theta can be put in its place."""

    def __init__(self, physics: nn.Module, name: str) -> None:
        super().__init__()
        self.physics, self.name = physics, name

    def forward(self) -> Tensor:
        if offers(self.physics, Parametrized):
            found = self.physics.tensors().get(self.name)
        else:
            found = tensor_named(self.physics, self.name)
        if found is None:
            raise InputError(
                "tensor",
                given=self.name,
                expected=f"a tensor of {type(self.physics).__name__}",
                remedy="Use the name that the physics has for it, for example 'filter'.",
            )
        return found


class WithPhysics(Protocol):
    """An energy whose physics is learned."""

    physics: nn.Module


@dataclass(frozen=True, eq=False)
class KernelPenalty:
    """A penalty on what theta makes of a tensor of the physics, a blur kernel for instance.

    Args:
        energy: whose theta is learned; it is asked for names and shapes only.
        function: tensor -> scalar >= 0 that autograd can differentiate.
        tensor: its name.

    Raises:
        InputError: nothing of the physics is learned.

    >>> import torch, deepinv, learnreg as lr
    >>> blur = deepinv.physics.Blur(filter=torch.ones(1, 1, 3, 3).requires_grad_())
    >>> energy = lr.Energy(blur, lr.regularizers.TV())
    >>> penalty = KernelPenalty(energy, lambda k: (k.sum() - 1) ** 2)
    """

    energy: WithPhysics
    function: Callable[[Tensor], Tensor]
    tensor: str = "filter"

    def __post_init__(self) -> None:
        if not isinstance(self.energy, nn.Module) or not trainable(self.energy.physics):
            raise InputError(
                "energy",
                given=f"{type(self.energy).__name__} without a physics that is learned",
                expected="an energy with theta in its physics",
                remedy="Set requires_grad=True on a tensor of the physics.",
            )

    def __call__(self, theta: Tensor) -> Tensor:
        """The penalty at theta (d,)."""
        assert isinstance(self.energy, nn.Module)
        named = named_trainable(self.energy)
        parts = theta.split([t.numel() for _, t in named])
        own = {
            name: part.view_as(t)
            for (name, t), part in zip(named, parts, strict=True)
            if name.startswith("physics.")
        }
        asked = _Tensors(self.energy.physics, self.tensor)
        return self.function(functional_call(asked, own, ()))


@dataclass(frozen=True, eq=False)
class SobolevDistance:
    """weight (||k - r||^2 + ||D (k - r)||^2)^(1/2), D forward differences along the last two axes:
    the H^1 norm of what a kernel differs from a reference by.

    Args:
        reference: r, of the shape of the kernel; a copy is kept, so that it does not follow one
            that is learned. Zero when None.
        weight: positive.

    Raises:
        InputError: no tensor, or a value out of range.
    """

    reference: Tensor | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_positive("weight", self.weight)
        if self.reference is not None and not isinstance(self.reference, Tensor):
            raise InputError(
                "reference",
                given=type(self.reference).__name__,
                expected="a tensor like the kernel",
                remedy="Pass the kernel that is known, or leave it out.",
            )
        if self.reference is not None:
            object.__setattr__(self, "reference", self.reference.detach().clone())

    def __call__(self, kernel: Tensor) -> Tensor:
        """One number."""
        r = self.reference
        d = kernel if r is None else kernel - r.to(kernel)
        parts = [d, d[..., 1:, :] - d[..., :-1, :], d[..., 1:] - d[..., :-1]]
        return self.weight * torch.cat([p.reshape(-1) for p in parts]).norm()
