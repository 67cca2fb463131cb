"""Newton's method with matrices, for one small image in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .formulas import Part
from .measurements import OfData
from .nouns import Candidate

ROUNDS = 400


class _Matrices:
    """A part of the regularizer with its features as a matrix (groups, k, n)."""

    def __init__(self, part: Part, shape: torch.Size) -> None:
        n = math.prod(shape)
        eye = torch.eye(n, dtype=torch.float64).view(n, *shape)
        self.part = part
        self.features = part.features(eye).movedim(0, -1).contiguous()
        self.dual = torch.zeros(self.features.shape[:2], dtype=torch.float64)

    def v(self, x: Tensor) -> Tensor:
        return self.features @ x

    def value(self, x: Tensor) -> Tensor:
        return self.part.value(self.v(x)[None])[0]

    def grad(self, x: Tensor) -> Tensor:
        v = self.v(x)
        slope = (self.part.weight / self.part.length(v[None])[0])[:, None] * v
        return torch.einsum("gkn,gk->n", self.features, slope)

    def hessian(self, x: Tensor, dual: bool) -> Tensor:
        """Of the part, or with the curvatures of the primal-dual Newton method (Chan, Golub,
        Mulet, SIAM J. Sci. Comput. 20, 1999): better directions, the same point of rest.
        """
        v = self.v(x)
        s, curved = self.part.length(v[None])[0], self.part.curved(v[None])[0]
        p = self.dual if dual else v / s[:, None]
        outer = torch.einsum("gk,gl->gkl", p, v) / s[:, None, None]
        block = torch.eye(v.shape[1], dtype=v.dtype) - 0.5 * curved[:, None, None] * (
            outer + outer.transpose(1, 2)
        )
        block = block * (self.part.weight / s)[:, None, None]
        weighted = torch.einsum("gkl,gln->gkn", block, self.features)
        return self.features.flatten(0, 1).T @ weighted.flatten(0, 1)

    def follow(self, x: Tensor, move: Tensor) -> None:
        """The dual variable by its linearized equation, kept in the unit ball."""
        v, dv = self.v(x), self.v(move)
        s, curved = self.part.length(v[None])[0], self.part.curved(v[None])[0]
        along = (v * dv).sum(dim=1) / s * curved
        new = (v + dv - self.dual * along[:, None]) / s[:, None]
        self.dual = new / new.norm(dim=1, keepdim=True).clamp_min(1.0)


class Dense:
    """The energy of one image, x and gradients as vectors (n,).

    Args:
        matrix, offset: A x + b.
        measured: shape of the measurements of one image.
        data: D(., y).
        known: parts of the regularizer, or None.
        foreign: the regularizer itself in float64 where there are none.
        shape: of one image.
    """

    def __init__(
        self,
        matrix: Tensor,
        offset: Tensor,
        measured: torch.Size,
        data: OfData,
        known: list[Part] | None,
        foreign: Candidate | None,
        shape: torch.Size,
    ) -> None:
        self.matrix, self.offset, self.data, self.shape = matrix, offset, data, shape
        self.measured = (*measured, 2) if matrix.shape[0] == 2 * math.prod(measured) else measured
        self.known = [_Matrices(p, shape) for p in known or []]
        self.foreign = foreign

    def a(self, x: Tensor) -> Tensor:
        return (self.matrix @ x + self.offset).view(1, *self.measured)

    @torch.no_grad()
    def value(self, x: Tensor) -> Tensor:
        total = self.data.value(self.a(x)).sum()
        if self.foreign is not None:
            return total + self.foreign.value(x.view(1, *self.shape)).sum()
        return total + sum(p.value(x) for p in self.known)

    @torch.no_grad()
    def grad(self, x: Tensor) -> Tensor:
        g = self.matrix.T @ self.data.grad(self.a(x)).flatten()
        if self.foreign is not None:
            return g + self.foreign.grad(x.view(1, *self.shape)).flatten()
        return g + sum((p.grad(x) for p in self.known), torch.zeros_like(g))

    @torch.no_grad()
    def hessian(self, x: Tensor, dual: bool) -> Tensor:
        weights = self.data.curvature(self.a(x)).flatten()
        h = self.matrix.T @ (weights[:, None] * self.matrix)
        if self.foreign is None:
            return h + sum((p.hessian(x, dual) for p in self.known), torch.zeros_like(h))
        n = x.numel()
        eye = torch.eye(n, dtype=x.dtype).view(n, *self.shape)
        at = self.foreign.linearize(x.view(1, *self.shape).expand(n, *self.shape))
        own = at(eye).reshape(n, n)
        return h + (own + own.T) / 2

    def noise(self, x: Tensor) -> float:
        """Rounding of the gradient, roughly: of all products that make it."""
        a = self.matrix.abs() @ x.abs() + self.offset.abs()
        weights = self.data.curvature(self.a(x)).flatten().abs()
        size = float((self.matrix.abs().T @ (weights * a)).norm())
        size += float((self.matrix.abs().T @ self.data.grad(self.a(x)).flatten().abs()).norm())
        for p in self.known:
            slopes = (
                p.features.abs()
                @ x.abs()
                * (p.part.weight / p.part.length(p.v(x)[None])[0])[:, None]
            )
            size += float(torch.einsum("gkn,gk->n", p.features.abs(), slopes).norm())
        return 4 * torch.finfo(x.dtype).eps * size


def newton(f: Dense, start: Tensor) -> tuple[Tensor, Tensor]:
    """The minimizer (1, ...) and its uncertainty (1,).

    Raises:
        RuntimeError: not there after many steps.
    """
    x = start.flatten()
    g = f.grad(x)
    for _ in range(ROUNDS):
        x, g, moved = _best_step(f, x, g)
        if not moved:
            break
    exact = f.hessian(x, dual=False)
    values = torch.linalg.eigvalsh(exact)
    step = torch.linalg.solve(exact, g)
    noise = f.noise(x)
    uncertainty = 2 * float(step.norm()) + noise / max(float(values[0]), 1e-300)
    if not float(g.norm()) <= max(100 * noise, 1e-9 * float(values[0]) * (1 + float(x.norm()))):
        raise RuntimeError(
            f"no truth: the gradient is still {float(g.norm()):.2e}, noise {noise:.2e}"
        )
    return x.view_as(start), torch.tensor([uncertainty], dtype=torch.float64)


def _best_step(f: Dense, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor, bool]:
    """A step that lowers the energy, or at the end of precision the gradient."""
    before, size = float(f.value(x)), float(g.norm())
    for dual in (True, False):
        h = f.hessian(x, dual)
        move = -solved(h, g)
        slope = float(g @ move)
        t = 1.0
        while t > 1e-8:
            new = x + t * move
            gradient = f.grad(new)
            lower = float(f.value(new)) < before + 1e-4 * t * slope and slope < 0
            # near the end values are equal up to rounding: only a smaller gradient counts
            flat = abs(t * slope) < 1e-12 * abs(before)
            if (lower and not flat) or float(gradient.norm()) < 0.7 * size:
                for p in f.known:
                    p.follow(x, t * move)
                return new, gradient, True
            t /= 2 if t > 0.1 else 4
    return x, g, False


def solved(h: Tensor, g: Tensor) -> Tensor:
    """h^-1 g, or a least-squares solution where h is not positive definite."""
    factor, info = torch.linalg.cholesky_ex(h)
    if int(info) == 0:
        return torch.cholesky_solve(g[:, None], factor)[:, 0]
    return torch.linalg.lstsq(h, g[:, None]).solution[:, 0]
