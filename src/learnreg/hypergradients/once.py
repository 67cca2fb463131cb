"""What a layer that is differentiable once says when it is differentiated again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.errors import MissingPropertyError


class _Once(torch.autograd.Function):
    """The identity in its first argument; its derivative is an error.

    It depends on everything that the value was computed from, so that whoever asks for a derivative
    with respect to any of it meets the error. (torch's ``once_differentiable`` hides its error from
    ``autograd.grad`` with given inputs, which then returns zeros.)
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, *sources: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        raise MissingPropertyError(
            "Reconstructor",
            given="a second derivative",
            expected="first derivatives: the layer is once differentiable",
            remedy="Call autograd without create_graph, or take differences of first derivatives.",
        )


def once(values: tuple[Any, ...], sources: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """The results of a backward pass, for good where no graph of them is recorded."""
    if not torch.is_grad_enabled():
        return values
    return tuple(_Once.apply(v, *sources) if isinstance(v, Tensor) else v for v in values)
