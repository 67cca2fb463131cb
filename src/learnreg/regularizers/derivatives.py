"""Values and gradients in closed form as autograd sees them: fast kernels forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from ..core.batch import expand
from ..core.protocols import Hessian


class Smooth(Protocol):
    """What a regularizer offers so that its closed forms become differentiable."""

    def grad(self, x: Tensor, *parameters: object) -> Tensor: ...
    def linearize(self, x: Tensor) -> Hessian: ...
    def directional(self, x: Tensor, v: Tensor) -> Tensor: ...
    def formula(self, x: Tensor) -> Tensor: ...
    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...


R = TypeVar("R", bound=Smooth)


class Context(Protocol):
    """What torch hands to ``forward`` and ``backward`` of a function of autograd."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _Of(Context, Protocol):
    """The context of a function of a regularizer."""

    regularizer: Smooth


def differentiable_value(evaluate: Callable[[R, Tensor], Tensor]) -> Callable[[R, Tensor], Tensor]:
    """A method x -> (b,) that autograd can follow where x requires a gradient, and that is called
    as it is everywhere else.

    Its derivative in x is ``grad``, that in the trainable parameters autograd of ``formula``.
    """

    @wraps(evaluate)
    def value(self: R, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            return _Value.apply(x, self, evaluate, *_theta(self))
        return evaluate(self, x)

    return value


def differentiable_gradient(evaluate: Callable[[R, Tensor], Tensor]) -> Callable[..., Tensor]:
    """A method x -> gradient that autograd can follow where x requires a gradient.

    Its derivative in x is the product with ``linearize``, that in the trainable parameters comes
    from ``directional``; further derivatives are those of ``formula``. Arguments after x, which
    ``deepinv`` hands to its priors, have no effect.
    """

    @wraps(evaluate)
    def grad(self: R, x: Tensor, *parameters: object) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            return _Gradient.apply(x, self, evaluate, *_theta(self))
        return evaluate(self, x)

    return grad


def _theta(regularizer: Smooth) -> list[nn.Parameter]:
    return [p for p in regularizer.parameters() if p.requires_grad]


class _Value(torch.autograd.Function):
    """R(x), with the gradient in closed form as its derivative."""

    @staticmethod
    def forward(
        ctx: _Of, x: Tensor, regularizer: R, evaluate: Callable[[R, Tensor], Tensor], *theta: Tensor
    ) -> Tensor:
        ctx.regularizer = regularizer
        ctx.save_for_backward(x, *theta)
        return evaluate(regularizer, x)

    @staticmethod
    def backward(ctx: _Of, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (x, *theta), again = outer, ctx.saved_tensors, torch.is_grad_enabled()
        in_x = expand(g, x) * ctx.regularizer.grad(x) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[3:]):
            return in_x, None, None, *[None] * len(theta)

        with torch.enable_grad():
            total = (g * ctx.regularizer.formula(x if again else x.detach())).sum()
        return in_x, None, None, *_derivatives(total, theta, again)


class _Gradient(torch.autograd.Function):
    """The gradient of R at x, with Hessian and mixed products as its derivatives."""

    @staticmethod
    def forward(
        ctx: _Of, x: Tensor, regularizer: R, evaluate: Callable[[R, Tensor], Tensor], *theta: Tensor
    ) -> Tensor:
        ctx.regularizer = regularizer
        ctx.save_for_backward(x, *theta)
        return evaluate(regularizer, x)

    @staticmethod
    def backward(ctx: _Of, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (v,), (x, *theta), r = outer, ctx.saved_tensors, ctx.regularizer
        if torch.is_grad_enabled():  # a third derivative is asked for
            (gradient,) = torch.autograd.grad(r.formula(x).sum(), x, create_graph=True)
            in_x, *in_theta = _derivatives((gradient * v).sum(), [x, *theta], True)
            return in_x, None, None, *in_theta

        in_x = r.linearize(x)(v) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[3:]):
            return in_x, None, None, *[None] * len(theta)

        with torch.enable_grad():
            slope = r.directional(x.detach(), v.detach()).sum()
        return in_x, None, None, *_derivatives(slope, theta, False)


def _derivatives(total: Tensor, of: Sequence[Tensor], again: bool) -> tuple[Tensor | None, ...]:
    """Derivatives of a scalar, None where it does not depend on the argument."""
    if not total.requires_grad:
        return (None,) * len(of)
    return torch.autograd.grad(total, of, create_graph=again, allow_unused=True)
