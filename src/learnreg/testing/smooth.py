"""Newton's method with conjugate gradients, for one image of any size in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .formulas import Part, value
from .measurements import Forward, OfData
from .nouns import Candidate

ROUNDS, PRODUCTS = 100, 4000


class Smooth:
    """The energy of one image (1, c, h, w) by automatic differentiation of A and of the formula.

    Args:
        forward: A.
        data: D(., y).
        known: parts of the regularizer, or None.
        foreign: the regularizer itself in float64 where there are none.
    """

    def __init__(
        self, forward: Forward, data: OfData, known: list[Part] | None, foreign: Candidate | None
    ) -> None:
        self.forward, self.data, self.known, self.foreign = forward, data, known or [], foreign

    def _transposed(self, at: Tensor, weights: Callable[[Tensor], Tensor]) -> Tensor:
        """A'(at)^T weights(A at)."""
        with torch.enable_grad():
            x = at.detach().requires_grad_()
            a = self.forward(x)
            (back,) = torch.autograd.grad(a, x, weights(a.detach()))
        return back

    def value(self, x: Tensor) -> float:
        with torch.no_grad():
            own = value(self.known, x) if self.foreign is None else self.foreign.value(x)
            return float(self.data.value(self.forward(x)) + own)

    def grad(self, x: Tensor) -> Tensor:
        of_data = self._transposed(x, self.data.grad)
        if self.foreign is not None:
            return of_data + self.foreign.grad(x)
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            (own,) = torch.autograd.grad(value(self.known, point).sum(), point)
        return of_data + own

    def product(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """v -> H v, with the Gauss-Newton part of the data term."""
        a = self.forward(x).detach()
        weights = self.data.curvature(a)
        zero = self.forward(torch.zeros_like(x)).detach()
        own = self._own_product(x)

        def apply(v: Tensor) -> Tensor:
            moved = self.forward(v).detach() - zero
            return self._transposed(x, lambda _: weights * moved) + own(v)

        return apply

    def _own_product(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        if self.foreign is not None:
            return self.foreign.linearize(x)
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            (g,) = torch.autograd.grad(value(self.known, point).sum(), point, create_graph=True)

        def apply(v: Tensor) -> Tensor:
            (product,) = torch.autograd.grad(g, point, v, retain_graph=True)
            return product

        return apply


def newton_cg(f: Smooth, start: Tensor) -> tuple[Tensor, Tensor]:
    """The minimizer (1, ...) and its uncertainty (1,).

    Raises:
        RuntimeError: not there after many steps.
    """
    x = start
    g = f.grad(x)
    first, step = float(g.norm()), torch.full_like(x, torch.inf)
    for _ in range(ROUNDS):
        size = float(g.norm())
        step = _cg(f.product(x), -g, min(0.1, (size / max(first, 1e-300)) ** 0.5) * size)
        if float(step.norm()) <= 1e-11 * (1e-3 + float(x.norm())):
            break
        moved = _searched(f, x, g, step)
        if moved is None:
            break
        x, g = moved
    uncertainty = 4 * float(step.norm()) + 1e-13 * float(x.norm())
    if not uncertainty <= 1e-6 * (1 + float(x.norm())):
        raise RuntimeError(f"no truth: the last step is still {uncertainty:.2e} long")
    return x.detach(), torch.tensor([uncertainty], dtype=torch.float64)


def _searched(f: Smooth, x: Tensor, g: Tensor, step: Tensor) -> tuple[Tensor, Tensor] | None:
    before, slope, size, t = f.value(x), float((g * step).sum()), float(g.norm()), 1.0
    while t > 1e-6:
        new = x + t * step
        gradient = f.grad(new)
        lower = f.value(new) < before + 1e-4 * t * slope and abs(slope) > 1e-13 * abs(before)
        if lower or float(gradient.norm()) < 0.7 * size:
            return new, gradient
        t /= 2
    return None


def _cg(product: Callable[[Tensor], Tensor], b: Tensor, tolerance: float) -> Tensor:
    x, r = torch.zeros_like(b), b
    p, square = r, float((r * r).sum())
    for _ in range(PRODUCTS):
        if square**0.5 <= tolerance:
            break
        hp = product(p)
        step = square / float((p * hp).sum())
        x, r = x + step * p, r - step * hp
        new = float((r * r).sum())
        p, square = r + new / square * p, new
    return x
