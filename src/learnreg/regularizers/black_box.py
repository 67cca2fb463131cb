"""Any module with a potential as a regularizer: all derivatives by autograd, nothing proven."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from ..core.asking import offers
from ..core.batch import dot
from ..core.bounds import Bound, Curvature
from ..core.errors import InputError
from ..core.ranges import check_number
from .base import Regularizer
from .lanczos import extreme_eigenvalues

RANDOM_WHILE_TRAINING = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
"""Layers that are no function of one image while they are in training mode."""


class AutogradHessian:
    """The Hessian of a black box at x (b, ...): the graph of its gradient, differentiated again."""

    def __init__(self, box: BlackBox, x: Tensor) -> None:
        self.box, self.x = box, x.detach().clone().requires_grad_()
        self.gradient = box.slope(self.x, again=True)

    def __call__(self, v: Tensor) -> Tensor:
        if not self.gradient.requires_grad:  # the potential is linear
            return torch.zeros_like(v)
        (product,) = torch.autograd.grad(
            self.gradient, self.x, v.detach(), retain_graph=True, materialize_grads=True
        )
        return product

    def select(self, index: Tensor) -> AutogradHessian:
        return AutogradHessian(self.box, self.x[index])


class _Prior(Protocol):
    """A prior of deepinv says whether it has a value."""

    @property
    def explicit_prior(self) -> bool: ...


class BlackBox(Regularizer):
    """R(x) = module(x), one value per image, for a ``deepinv.optim.Prior`` or a network; theta are
    the module's trainable parameters.

    Gradient, Hessian products (reverse mode twice) and mixed derivatives come from autograd. What
    is declared of the curvature is the user's word and counts as an estimate, so nothing that
    rests on it is called certified; ``curvature_near`` tells what it is around given images.

    Args:
        module: (b, c, *axes) -> (b,), a potential that autograd can follow; shared, not copied.
        mu: R - mu / 2 ||x||^2 is convex; negative for a weakly convex R.
        L: Lipschitz constant of the gradient.

    Raises:
        InputError: no module, an implicit prior, or constants that are not finite numbers.
    """

    def __init__(self, module: nn.Module, mu: float | None = None, L: float | None = None) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise InputError(
                "module",
                given=type(module).__name__,
                expected="an nn.Module with one value per image",
                remedy="Wrap a function as deepinv.optim.Prior(g=function).",
            )
        if offers(module, _Prior) and not module.explicit_prior:
            raise InputError(
                "module",
                given=f"{type(module).__name__}, an implicit prior, which has no value",
                expected="a potential, one value per image",
                remedy="Use a prior whose value is known, such as deepinv.optim.Prior(g=function).",
            )
        check_number("mu", mu, lambda v: True, "a finite number, or None", optional=True)
        check_number("L", L, lambda v: v >= 0, "a finite number >= 0, or None", optional=True)
        self.module, self.mu, self.L = module, mu, L

    @property
    def effort(self) -> float:
        """Unknown; a network is not cheap."""
        return 300.0

    def formula(self, x: Tensor) -> Tensor:
        """The module's value (b,), once it looks like one."""
        self._refuse_random_layers()
        value = self.module(x)
        if isinstance(value, Tensor) and value.shape[:1] == x.shape[:1] == (value.numel(),):
            return value.reshape(-1)
        given = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(
            "module",
            given=f"{type(self.module).__name__} with a value of {given} for x of shape "
            f"{tuple(x.shape)}",
            expected=f"one value per image, shape ({x.shape[0]},)",
            remedy="Sum over all dimensions but the first, for example .flatten(1).sum(dim=1).",
        )

    def value(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            return self.formula(x)
        with torch.no_grad():
            return self.formula(x)

    def grad(self, x: Tensor, *parameters: object) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            return self.slope(x, again=True)
        return self.slope(x.detach().requires_grad_(), again=False)

    def slope(self, x: Tensor, again: bool) -> Tensor:
        """The gradient at x, which requires one; differentiable in x and theta if ``again``.

        Raises:
            InputError: the module's value does not depend on x as far as autograd can see.
        """
        with torch.enable_grad():
            total = self.formula(x).sum()
            found = (
                torch.autograd.grad(total, x, create_graph=again, allow_unused=True)[0]
                if total.requires_grad
                else None
            )
        if found is None:
            raise InputError(
                "module",
                given=f"{type(self.module).__name__}, whose value has no derivative in x",
                expected="a value that autograd can follow",
                remedy="Remove detach() and no_grad from the module.",
            )
        return found

    def linearize(self, x: Tensor) -> AutogradHessian:
        return AutogradHessian(self, x)

    def directional(self, x: Tensor, v: Tensor) -> Tensor:
        at = x if x.requires_grad else x.detach().requires_grad_()
        again = torch.is_grad_enabled()
        with torch.set_grad_enabled(again):
            return dot(self.slope(at, again), v)

    def bounds(self) -> Curvature:
        """What was declared, as estimates; unknown where nothing was."""
        return Curvature(*(_declared(c) for c in (self.mu, self.L)))

    def curvature_near(self, x: Tensor, iterations: int = 30) -> tuple[Tensor, Tensor]:
        """Estimates of the smallest and the largest eigenvalue of the Hessian at every image: (b,)
        and (b,), float64.

        Lanczos from one fixed vector; both are Rayleigh quotients, so mu is not below and L not
        above the true one, but for rounding.

        Args:
            x: (b, ...).
            iterations: Hessian products per image, positive.

        Raises:
            InputError: iterations not a positive integer.
        """
        check_number("iterations", iterations, lambda v: v >= 1, "a positive integer", integer=True)
        return extreme_eigenvalues(self.linearize(x), x.detach(), iterations)

    def spec(self) -> dict[str, object]:
        """Names the module; ``load_model(path, regularizer=...)`` has to be given it again."""
        return {
            "type": "BlackBox",
            "module": type(self.module).__name__,
            "mu": self.mu,
            "L": self.L,
        }

    def extra_repr(self) -> str:
        return f"mu={self.mu}, L={self.L}"

    def _refuse_random_layers(self) -> None:
        for name, layer in self.module.named_modules():
            if layer.training and isinstance(layer, RANDOM_WHILE_TRAINING):
                raise InputError(
                    "module",
                    given=f"{type(layer).__name__} {name!r} in training mode",
                    expected="the same value for the same image, whatever its neighbours",
                    remedy="Call .eval() on the module.",
                )


def _declared(constant: float | None) -> Bound:
    return Bound.unknown() if constant is None else Bound.estimate(constant)
