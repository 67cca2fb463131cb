"""A regularizer as a prior of deepinv's optimization algorithms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import deepinv
import torch
from torch import Tensor, nn


class PriorLike(Protocol):
    """What is asked of the regularizer, an ``nn.Module``."""

    def value(self, x: Tensor) -> Tensor: ...
    def grad(self, x: Tensor) -> Tensor: ...
    def prox(self, x: Tensor, *, gamma: float | Tensor = 1.0, tol: float = 1e-5) -> Tensor: ...
    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...


class RegularizerPrior(deepinv.optim.Prior):
    """``deepinv.optim.Prior`` with value, gradient and proximal point of a regularizer.

    The parameter that deepinv hands to a prior (``g_param``) is not used. All three are
    differentiable in x and in the regularizer's parameters, so an unfolded algorithm trains them.

    Args:
        regularizer: shared, not copied.
    """

    def __init__(self, regularizer: PriorLike) -> None:
        super().__init__()
        self.regularizer = regularizer
        self.explicit_prior = True

    def fn(self, x: Tensor, *parameters: object, **options: object) -> Tensor:
        """(b, ...) -> (b,)."""
        return self.regularizer.value(self._followed(x))

    def grad(self, x: Tensor, *parameters: object, **options: object) -> Tensor:
        """(b, ...) -> (b, ...)."""
        return self.regularizer.grad(self._followed(x))

    def prox(
        self,
        x: Tensor,
        *parameters: object,
        gamma: float | Tensor = 1.0,
        tol_inter: float = 1e-5,
        **options: object,
    ) -> Tensor:
        """argmin_z gamma R(z) + 1/2 ||z - x||^2 to a distance of tol_inter ||x||."""
        return self.regularizer.prox(self._followed(x), gamma=gamma, tol=tol_inter)

    def _followed(self, x: Tensor) -> Tensor:
        """x such that a graph is made where the parameters want one."""
        wanted = torch.is_grad_enabled() and not x.requires_grad
        if wanted and any(p.requires_grad for p in self.regularizer.parameters()):
            return x.detach().requires_grad_()
        return x
