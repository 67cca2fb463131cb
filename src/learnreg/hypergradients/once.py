"""What a layer that is differentiable once says when it is differentiated again."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from ..core.errors import MissingPropertyError


class _Once(torch.autograd.Function):
    """The identity in its first argument; its derivative is an error.

    It depends on everything that the value was computed from, so that whoever asks for a derivative
    with respect to any of it meets the error. (torch's ``once_differentiable`` hides its error from
    ``autograd.grad`` with given inputs, which then returns zeros.)
    """

    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor, *sources: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[object, ...]:
        raise MissingPropertyError(
            "Reconstructor",
            given="a second derivative",
            expected="first derivatives: the layer is once differentiable",
            remedy="Call autograd without create_graph, or take differences of first derivatives.",
        )


def once(
    values: tuple[Tensor | None, ...], sources: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """The results of a backward pass, for good where no graph of them is recorded."""
    if not torch.is_grad_enabled():
        return values
    return tuple(_Once.apply(v, *sources) if isinstance(v, Tensor) else v for v in values)
