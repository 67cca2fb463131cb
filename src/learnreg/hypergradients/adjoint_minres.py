"""Minimal residuals for the linear saddle point of an adjoint.

With Pi the projection onto the components of finite curvature, the system of ``adjoint_saddle`` is
    S (X, Y) = (-grad l, 0),   S = Pi [ Hg  K^T ; K  -Hf ] Pi,
symmetric, indefinite, and singular where a cycle of flat differences leaves Y open; it always has a
solution, since X is the minimizer of a quadratic under homogeneous equations. MINRES needs no more
than that. A step is one application of K and one of K^T, as an iteration of PDHG is, and fewer are
needed (exact TV with L1 or Kullback-Leibler: a half to a tenth). Curvatures of very different size
are met by the preconditioner diag( 1 / (Hg + k), 1 / (Hf + k) ), k the norm of the rows or columns
of K.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.cost import Cost
from ..linear.minres import minres
from .adjoint_saddle import AdjointSaddle


@dataclass(frozen=True, eq=False)
class System:
    """v -> S v on packed (X, Y)."""

    linear: AdjointSaddle

    def __call__(self, v: Tensor) -> Tensor:
        """(b, n) -> (b, n)."""
        f = self.linear
        x, p = f.unpack(projected(f, v))
        kx, ktp = f.apply(x), f.adjoint(p)
        rows = tuple(g.finite(a) + k for g, a, k in zip(f.primal, x, ktp, strict=True))
        columns = tuple(k - h.finite(a) for h, a, k in zip(f.dual, p, kx, strict=True))
        return projected(f, f.pack(rows, columns))

    def select(self, index: Tensor) -> System:
        return System(self.linear.select(index))


@dataclass(frozen=True, eq=False)
class Scaling:
    """r -> the preconditioner times r, packed."""

    linear: AdjointSaddle

    def __call__(self, r: Tensor) -> Tensor:
        """(b, n) -> (b, n)."""
        f, norms = self.linear, self.linear.norms
        x, p = f.unpack(r)
        columns = [sum(row[i] for row in norms) for i in range(len(x))]
        rows = [sum(row) for row in norms]
        return f.pack(
            tuple(g.scaled(a, k) for g, a, k in zip(f.primal, x, columns, strict=True)),
            tuple(h.scaled(a, k) for h, a, k in zip(f.dual, p, rows, strict=True)),
        )

    def select(self, index: Tensor) -> Scaling:
        return Scaling(self.linear.select(index))


def projected(f: AdjointSaddle, z: Tensor) -> Tensor:
    """Pi z: (b, n) -> (b, n)."""
    x, p = f.unpack(z)
    return f.pack(
        tuple(g.allowed(a) for g, a in zip(f.primal, x, strict=True)),
        tuple(h.allowed(a) for h, a in zip(f.dual, p, strict=True)),
    )


@torch.no_grad()
def nearer(
    f: AdjointSaddle, delta: float | Tensor, start: Tensor, max_steps: int
) -> tuple[Tensor, Cost]:
    """A packed (X, Y), with a residual of delta where that could be reached, and what it has cost.

    Args:
        f: the linear problem.
        delta: residual per image.
        start: packed, projected before it is used.
        max_steps: of MINRES, per image.
    """
    x, p = f.unpack(torch.zeros_like(start))
    slope = f.pack(
        tuple(a if g.linear is None else g.linear for g, a in zip(f.primal, x, strict=True)), p
    )
    found = minres(
        System(f),
        -projected(f, slope),
        delta,
        projected(f, start),
        Scaling(f),
        max_steps=max_steps,
    )
    return found.value, found.cost
