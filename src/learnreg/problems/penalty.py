"""A penalty on theta, which has no lower level."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.errors import InputError, MissingPropertyError

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
