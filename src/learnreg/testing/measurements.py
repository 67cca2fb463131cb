"""What an independent truth uses of an energy: A itself, never its adjoint, and the data term."""

from __future__ import annotations

import copy
import math
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from ..core.errors import MissingPropertyError
from ..problems import L2
from .claims import normal, relative
from .nouns import Curved, Operator, Term, offered

SAME = 1e-5
"""Relative difference up to which a float64 copy of a physics passes for the original."""


class OfData(Protocol):
    """D(., y) of one image, a (1, ...): value (1,), gradient and diagonal curvature like a."""

    def value(self, a: Tensor) -> Tensor: ...
    def grad(self, a: Tensor) -> Tensor: ...
    def curvature(self, a: Tensor) -> Tensor: ...


class Forward:
    """A of a physics in float64, one image at a time, with real numbers out.

    A copy with every tensor widened is used where it agrees with the original; otherwise the
    original in its own precision.

    Args:
        physics: with ``A``.
        x: (1, c, h, w), an image in the precision that the physics is used with.
    """

    def __init__(self, physics: nn.Module, x: Tensor) -> None:
        self.physics = cast(Operator, physics)
        self.dtype = x.dtype
        wide = _widened(physics)
        if wide is not None and x.dtype != torch.float64:
            self._adopt(cast(Operator, wide), x)

    def _adopt(self, wide: Operator, x: Tensor) -> None:
        probe = normal(x, 7)
        try:
            twin = _real(wide.A(probe.double()))
        except (RuntimeError, TypeError):
            return
        if twin.dtype == torch.float64 and relative(twin, _real(self.physics.A(probe))) < SAME:
            self.physics, self.dtype = wide, torch.float64

    def __call__(self, x: Tensor) -> Tensor:
        """(1, c, h, w) -> (1, ...), float64."""
        return _real(self.physics.A(x.to(self.dtype))).double()

    @torch.no_grad()
    def matrix(self, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """(m, n) and the offset A 0 (m,), column by column."""
        n = math.prod(shape)
        eye = torch.eye(n, dtype=torch.float64).view(n, 1, *shape)
        offset = self(torch.zeros_like(eye[0])).flatten()
        return torch.stack([self(e).flatten() - offset for e in eye], dim=1), offset

    def linear(self, matrix: Tensor, offset: Tensor, shape: torch.Size) -> bool:
        """Whether the matrix tells what A does to an image at random."""
        probe = normal(torch.zeros(1, *shape, dtype=torch.float64), 8)
        found = self(probe).flatten()
        return relative(matrix @ probe.flatten() + offset, found) < 1e-6


def _real(t: Tensor) -> Tensor:
    return torch.view_as_real(t.resolve_conj()) if t.is_complex() else t


def _widened(physics: nn.Module) -> nn.Module | None:
    """A copy whose tensors are all in float64, those that are no buffers included."""
    try:
        clone = copy.deepcopy(physics)
    except (RuntimeError, TypeError):
        return None
    for module in clone.modules():
        for name, held in list(vars(module).items()):
            if isinstance(held, Tensor):
                vars(module)[name] = _wide(held)
            elif held == torch.float32 and isinstance(held, torch.dtype):
                vars(module)[name] = torch.float64
            elif name == "_auto_grad_adjoint_fn":
                vars(module)[name] = None
    return clone._apply(_wide)


def _wide(t: Tensor) -> Tensor:
    if t.is_complex():
        return t.to(torch.complex128)
    return t.to(torch.float64) if t.is_floating_point() else t


class _Squares:
    """1 / (2 sigma^2) ||a - y||^2."""

    def __init__(self, y: Tensor, sigma: float) -> None:
        self.y, self.weight = y, 1 / sigma**2

    def value(self, a: Tensor) -> Tensor:
        return 0.5 * self.weight * (a - self.y).square().flatten(1).sum(dim=1)

    def grad(self, a: Tensor) -> Tensor:
        return self.weight * (a - self.y)

    def curvature(self, a: Tensor) -> Tensor:
        return torch.full_like(a, self.weight)


class _Tied:
    """A data term of the library's protocol, or one of a user's, at one y."""

    def __init__(self, function: Curved) -> None:
        self.function = function

    def value(self, a: Tensor) -> Tensor:
        return self.function.value(a)

    def grad(self, a: Tensor) -> Tensor:
        return self.function.grad(a)

    def curvature(self, a: Tensor) -> Tensor:
        method = offered(lambda: self.function.curvature)
        found = None if method is None else method(a.detach())
        return self._quotient(a) if found is None else found

    def _quotient(self, a: Tensor) -> Tensor:
        """The diagonal by differences of gradients, entry by entry where it is not offered."""
        h = 1e-5 * (1 + a.abs())
        return (self.grad(a + h) - self.grad(a - h)) / (2 * h)


def of_data(fidelity: object, y: Tensor) -> OfData:
    """D(., y) for one image y (1, ...) in float64.

    Raises:
        MissingPropertyError: neither L2 nor a term with ``tie(y)``.
    """
    real = _real(y)
    if isinstance(fidelity, L2):
        return _Squares(real, float(fidelity.sigma))
    tie = offered(lambda: cast(Term, fidelity).tie)
    if tie is None:
        raise MissingPropertyError(
            "fidelity",
            given=f"{type(fidelity).__name__} without tie",
            expected="L2, or a data term with tie(y)",
            remedy="An independent truth is known for differentiable data terms.",
        )
    return _Tied(cast(Curved, tie(real)))
