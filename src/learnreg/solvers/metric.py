"""Primal steps in a metric that knows frequencies: the image block of PDHG with a circulant in the
place of 1 / tau.

Where A stands in K (tomography, blur), K_u^T S K_u is far from a multiple of the identity: A sees
low frequencies, differences see high ones, and steps that are safe for all frequencies are short
for most. A circulant M >= K_u^T S K_u keeps the method convergent (preconditioned PDHG: Pock and
Chambolle, ICCV 2011, Theorem 1) and costs two FFTs per iteration. For a quadratic g of constant
curvature m the step is
    u+ = u - (M + m)^-1 ( K_u^T p + grad g(u) ).
With M close to K_u^T S K_u that is almost the step of ADMM with penalties S_j, which are steered as
such: to the ratio of the moves of p_j and of K_j x (spectral penalties: Xu, Figueiredo, Goldstein,
AISTATS 2017). Every iteration goes further than that by a factor (over-relaxation: Condat, J.
Optim. Theory Appl. 158, 2013). All of it is per image and steers speed only: no certificate depends
on step sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..core.asking import offers
from ..core.batch import expand, norm
from ..core.protocols import Blocks, SplitSaddle
from .offers import Majorized

MOVES = 0.5
"""S_j is drawn to this multiple of the ratio of the moves (0.3 and 1 are slower by up to a third;
CT with TV).
"""

RELAXATION = 1.7
"""Below 2. Measured on CT with TV, against 1: 20 % fewer iterations to a relative gap of 1e-2, half
as many to 1e-4.
"""

LARGEST_CHANGE = 30.0
"""Of S_j at one look: moves that are nothing but rounding have any ratio."""

LONG = 1e4
"""A dual step, in units of 1 / ||K_j||, after which p_j is as good as the slope of f_j."""


class Point(NamedTuple):
    """x and p with K x + b and K^T p."""

    x: Blocks
    p: Blocks
    kx: Blocks
    ktp: Blocks

    def toward(self, other: Point) -> Point:
        """The point beyond another, on the line through both; what is affine in x or p follows."""
        return Point(
            *(
                tuple(torch.lerp(a, b, RELAXATION) for a, b in zip(ours, theirs, strict=True))
                for ours, theirs in zip(self, other, strict=True)
            )
        )

    def select(self, index: Tensor) -> Point:
        """That of the images ``index``."""
        return Point(*(tuple(a[index] for a in blocks) for blocks in self))


@dataclass(frozen=True, eq=False)
class Metric:
    """Dual steps and what follows from them.

    Attributes:
        symbols: for every dual block j that of a circulant >= K_ju^T K_ju, (1, c, h, w // 2 + 1).
        norms: ||K_ji||, a row for every j.
        curvature: m, of the g of the image.
        dual: S_j, (b,) each.
        primal: tau_i, (b,) each; that of the image is not used.
        inverse: the symbol of (M + m)^-1, (b, c, h, w // 2 + 1).
    """

    symbols: tuple[Tensor, ...]
    norms: tuple[tuple[float, ...], ...]
    curvature: float
    dual: tuple[Tensor, ...]
    primal: tuple[Tensor, ...]
    inverse: Tensor
    first_window: ClassVar[int] = 10
    """Iterations until the first look at the moves."""

    @staticmethod
    def of(
        symbols: tuple[Tensor, ...],
        norms: tuple[tuple[float, ...], ...],
        curvature: float,
        dual: Sequence[Tensor],
    ) -> Metric:
        """The metric of dual steps: M = n sum_j S_j symbol_j, 1 / tau_i = n sum_j S_j ||K_ji||^2
        for n primal blocks.

        By |a_1 + ... + a_n|^2 <= n (|a_1|^2 + ... + |a_n|^2) the blocks together are then no longer
        than one.
        """
        count = len(norms[0])
        weights = [count * s for s in dual]
        M = sum(
            (expand(s, a) * a for s, a in zip(weights, symbols, strict=True)),
            torch.zeros_like(symbols[0]),
        )
        lengths = [
            torch.stack([s * row[i] ** 2 for s, row in zip(weights, norms, strict=True)]).sum(dim=0)
            for i in range(count)
        ]
        primal = tuple(1 / length.clamp_min(1e-30) for length in lengths)
        inverse = (M + curvature).clamp_min(torch.finfo(M.dtype).tiny).reciprocal()
        return Metric(symbols, norms, curvature, tuple(dual), primal, inverse)

    @staticmethod
    def first(f: SplitSaddle, p: Blocks, kx: Blocks) -> Metric | None:
        """The metric to begin with: S_j = |p_j| / |K_j x|, for p_j = 0 with the slope of f_j at K_j
        x in its place.

        None where f offers none: it tells by ``majorants`` the symbols, or None where a metric is
        not worth it.
        """
        symbols = f.majorants() if offers(f, Majorized) else None
        if symbols is None:
            return None
        dual = []
        for phi, q, a, row in zip(f.dual, p, kx, f.norms, strict=True):
            long = expand(norm(a).new_full((a.shape[0],), LONG / max(*row, 1e-30)), a)
            sizes = norm(q), norm(phi.prox_conjugate(long * a, long))
            ratio = torch.where(sizes[0] > 0, *sizes) / norm(a)
            dual.append(torch.where(_usable(ratio), ratio, 1 / max(*row, 1e-30)))
        return Metric.of(symbols, f.norms, f.primal[0].strong, dual)

    def step(self, f: SplitSaddle, at: Point) -> Point:
        """One iteration without relaxation: x first, then p at 2 x+ - x."""
        slope = torch.fft.rfft2(at.ktp[0] + f.primal[0].grad(at.x[0]))
        image = at.x[0] - torch.fft.irfft2(slope.mul_(self.inverse), s=at.x[0].shape[-2:])
        taus = [expand(tau, v) for tau, v in zip(self.primal, at.x, strict=True)]
        x = (
            image,
            *(
                g.prox_(torch.addcmul(v, k, tau, value=-1), tau)
                for g, v, k, tau in zip(f.primal[1:], at.x[1:], at.ktp[1:], taus[1:], strict=True)
            ),
        )
        kx = f.apply(x)
        sigmas = [expand(sigma, q) for sigma, q in zip(self.dual, at.p, strict=True)]
        p = tuple(
            phi.prox_conjugate_(q + sigma * (2 * a - before), sigma)
            for phi, q, a, before, sigma in zip(f.dual, at.p, kx, at.kx, sigmas, strict=True)
        )
        return Point(x, p, kx, f.adjoint(p))

    def followed(self, p: Blocks, kx: Blocks, anchor: tuple[Blocks, Blocks]) -> Metric:
        """The metric after a look at how far p and K x have moved from their places in
        ``anchor``.
        """
        dual = []
        for s, q, a, q_then, a_then in zip(self.dual, p, kx, *anchor, strict=True):
            ratio = MOVES * norm(q - q_then) / norm(a - a_then)
            drawn = (s * ratio).sqrt().clamp(s / LARGEST_CHANGE, s * LARGEST_CHANGE)
            dual.append(torch.where(_usable(ratio), drawn, s))
        return Metric.of(self.symbols, self.norms, self.curvature, dual)

    def select(self, index: Tensor) -> Metric:
        """That of the images ``index``."""
        return replace(
            self,
            dual=tuple(s[index] for s in self.dual),
            primal=tuple(t[index] for t in self.primal),
            inverse=self.inverse[index],
        )


def _usable(ratio: Tensor) -> Tensor:
    return torch.isfinite(ratio) & (ratio > 0)
