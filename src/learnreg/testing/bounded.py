"""Newton's method with matrices within bounds of pixels, for one small image in float64."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .dense import ROUNDS, Dense, solved


class Limits:
    """lower <= x <= upper for one image as a vector (n,)."""

    def __init__(self, lower: Tensor, upper: Tensor) -> None:
        self.lower, self.upper = lower, upper

    def inside(self, x: Tensor) -> Tensor:
        """The nearest x that keeps to them."""
        return torch.minimum(torch.maximum(x, self.lower), self.upper)

    def held(self, x: Tensor, g: Tensor) -> Tensor:
        """Pixels at a bound that g presses them against."""
        pressed = ((x <= self.lower) & (g >= 0)) | ((x >= self.upper) & (g <= 0))
        return pressed | (self.lower == self.upper)


def bounded_newton(f: Dense, start: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
    """The minimizer (1, ...) within bounds, and its uncertainty (1,).

    Newton's step on the pixels that are not held, and a gradient step where that leads nowhere:
    its end is a point where the gradient presses against bounds only.

    Raises:
        RuntimeError: not there after many steps.
    """
    x = limits.inside(start.flatten())
    g = f.grad(x)
    for _ in range(ROUNDS):
        found = next(_better(f, x, g, limits), None)
        if found is None:
            break
        x, g = found

    free, noise = ~limits.held(x, g), f.noise(x)
    if not bool(free.any()):
        return x.view_as(start), torch.zeros(1, dtype=torch.float64)
    exact = f.hessian(x, dual=False)[free][:, free]
    least = max(float(torch.linalg.eigvalsh(exact)[0]), 1e-300)
    left = float(g[free].norm())
    uncertainty = 2 * float(torch.linalg.solve(exact, g[free]).norm()) + noise / least
    if not left <= max(100 * noise, 1e-9 * least * (1 + float(x.norm()))):
        raise RuntimeError(f"no truth: the free gradient is still {left:.2e}, noise {noise:.2e}")
    return x.view_as(start), torch.tensor([uncertainty], dtype=torch.float64)


def _better(f: Dense, x: Tensor, g: Tensor, limits: Limits) -> Iterator[tuple[Tensor, Tensor]]:
    """Points with a lower energy or, at the end of precision, a smaller free gradient."""
    before, free = float(f.value(x)), ~limits.held(x, g)
    size = float(g[free].norm())
    for way in _ways(f, x, g, free):
        t = 1.0
        while t > 1e-8:
            new = limits.inside(x + t * way)
            slope = float(g @ (new - x))
            lower = float(f.value(new)) < before + 1e-4 * slope and slope < 0
            flat = abs(slope) < 1e-12 * abs(before)
            gradient = f.grad(new)
            left = float(gradient[~limits.held(new, gradient)].norm())
            if (lower and not flat) or left < 0.7 * size:
                for p in f.known:
                    p.follow(x, new - x)
                yield new, gradient
            t /= 2


def _ways(f: Dense, x: Tensor, g: Tensor, free: Tensor) -> Iterator[Tensor]:
    if not bool(free.any()):
        return
    for dual in (True, False):
        h = f.hessian(x, dual)[free][:, free]
        way = torch.zeros_like(x)
        way[free] = -solved(h, g[free])
        yield way
    yield torch.where(free, -g / float(h.diagonal().max()), 0.0)
