"""Parameters as one flat vector theta, and back."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .errors import InputError


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that are learned, in the order in which theta lists them."""
    return [p for p in module.parameters() if p.requires_grad]


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """Any number of tensors -> theta (d,), detached."""
    parts = [t.detach().reshape(-1) for t in tensors]
    return torch.cat(parts) if parts else torch.zeros(0)


def with_theta(module: nn.Module, theta: Tensor) -> nn.Module:
    """A deep copy of ``module`` with the trainable parameters set to ``theta`` (d,); ``module`` is
    not touched.

    The copy takes the dtype and device of ``theta``.

    Raises:
        InputError: theta has another length than the trainable parameters.
    """
    params = trainable(module)
    expected = sum(p.numel() for p in params)
    if theta.dim() != 1 or theta.numel() != expected:
        raise InputError(
            "theta",
            given=f"shape {tuple(theta.shape)}",
            expected=f"shape ({expected},)",
            remedy="Use the theta of the same regularizer.",
        )
    clone = copy.deepcopy(module).to(dtype=theta.dtype, device=theta.device)
    with torch.no_grad():
        start = 0
        for p in trainable(clone):
            p.copy_(theta[start : start + p.numel()].view_as(p))
            start += p.numel()
    return clone


def names(module: nn.Module) -> list[str]:
    """One readable name per entry of theta, for reports: ``log_weight[3]``."""
    out = []
    for name, p in module.named_parameters():
        if p.requires_grad:
            out += [name] if p.numel() == 1 else [f"{name}[{i}]" for i in range(p.numel())]
    return out
