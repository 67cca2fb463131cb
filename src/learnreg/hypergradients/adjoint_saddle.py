"""The linear saddle point behind the hypergradient, in a form that the primal-dual solver takes.

At a computed (x, p), with Hg, Hf the Hessians of g at x and of f* at p and l the loss of the image:
    min_X max_Y <K X, Y> + 1/2 <Hg X, X> - 1/2 <Hf Y, Y> + <grad l, X>,
that is  Hg X + K^T Y + grad l = 0,  K X - Hf Y = 0  (Bogensperger, Ehrhardt, Pock, Salehi, Wong,
arXiv 2412.06436; derived again). Where g or f* has no Hessian, that of the derivative of its
proximal map stands in: eigenvalues in [0, inf], of which inf keeps a component at zero, as the
constraint that made it does. Such a derivative is formal at kinks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ..convex.tangent import Tangent
from ..core.batch import norm
from ..core.bounds import Bound, Curvature
from ..core.protocols import Blocks
from .saddle_nouns import Tied


class Residual(NamedTuple):
    """Norm (b,) of the residual of a packed (X, Y), a code that stands for it, and the residual
    itself (b, n).
    """

    distance: Tensor
    theorem: Tensor
    gradient: Tensor


@dataclass(frozen=True, eq=False)
class Curved:
    """1/2 <H a, a> + <b, a> with eigenvalues of H in [0, inf]: one block of the linear problem.

    Args:
        hessian: H.
        linear: b, (b, ...) or None for zero.
        strong: mu, a lower bound of the eigenvalues.
        smooth: an upper one.
    """

    hessian: Tangent
    linear: Tensor | None
    strong: float
    smooth: float = math.inf

    def prox(self, a: Tensor, step: Tensor) -> Tensor:
        """(I + step H)^-1 (a - step b)."""
        shifted = a if self.linear is None else torch.addcmul(a, self.linear, step, value=-1)
        return self.hessian.mapped(lambda e: 1 / (1 + step * e))(shifted)

    prox_ = prox_conjugate = prox_conjugate_ = prox
    """A dual block holds H of f* itself, so that its proximal map is the one that the solver asks
    for.
    """

    def grad(self, a: Tensor) -> Tensor:
        """H a + b, for finite eigenvalues."""
        return self.hessian(a) if self.linear is None else self.hessian(a) + self.linear

    def residual(self, a: Tensor, coupling: Tensor) -> Tensor:
        """H a + coupling + b, with components of infinite curvature left out."""
        total = coupling if self.linear is None else coupling + self.linear
        return self.finite(a) + self.allowed(total)

    def finite(self, a: Tensor) -> Tensor:
        """H a without its components of infinite curvature."""
        return self.hessian.mapped(lambda e: torch.where(e.isinf(), 0.0, e))(a)

    def allowed(self, a: Tensor) -> Tensor:
        """a without them."""
        return self.hessian.mapped(lambda e: (~e.isinf()).to(e.dtype))(a)

    def scaled(self, a: Tensor, shift: float) -> Tensor:
        """(H + shift)^-1 a, of which components of infinite curvature stay as they are."""
        least = max(shift, 1e-30)
        return self.hessian.mapped(lambda e: torch.where(e.isinf(), 1.0, 1 / (e + least)))(a)

    def select(self, index: Tensor) -> Curved:
        return Curved(
            self.hessian.select(index),
            None if self.linear is None else self.linear[index],
            self.strong,
            self.smooth,
        )


@dataclass(frozen=True, eq=False)
class AdjointSaddle:
    """The linear problem of a batch, with the methods that ``solvers.pdhg`` and ``solvers.iterate``
    ask for.

    Its evidence is the norm of the residual, so ``eps`` of a solve is delta.

    Attributes:
        f: the saddle function that was solved.
        primal, dual: the blocks.
        rebuild: makes the same problem in float64.
    """

    f: Tied
    primal: tuple[Curved, ...]
    dual: tuple[Curved, ...]
    rebuild: Callable[[], AdjointSaddle]
    theorems: tuple[str, ...] = ("residual",)
    measure: ClassVar[Literal["residual"]] = "residual"

    @property
    def norms(self) -> tuple[tuple[float, ...], ...]:
        return self.f.norms

    def majorants(self) -> Blocks | None:
        """As the saddle function: K is the same, and so is a constant curvature."""
        return self.f.majorants()

    def bounds(self) -> Curvature:
        """A mu of one: the residual itself is asked to be small."""
        return Curvature(Bound.exact(1.0), Bound.unknown())

    def moduli(self) -> list[float]:
        """Strong convexity of every block."""
        return [b.strong for b in (*self.primal, *self.dual)]

    def apply(self, x: Blocks) -> Blocks:
        """K X; there is no offset in the linear problem."""
        return self.f.linear(x)

    def adjoint(self, p: Blocks) -> Blocks:
        """K^T Y."""
        return self.f.adjoint(p)

    def pack(self, x: Blocks, p: Blocks, tempo: Tensor | None = None) -> Tensor:
        """All variables as (b, n), as the saddle function packs them."""
        return self.f.pack(x, p, tempo)

    def tempo(self, z: Tensor) -> Tensor:
        """What the solver remembers in a packed state, (b,)."""
        return self.f.tempo(z)

    def unpack(self, z: Tensor) -> tuple[Blocks, Blocks]:
        """The inverse of ``pack``."""
        return self.f.unpack(z)

    def start(self, x0: Tensor) -> tuple[Blocks, Blocks]:
        """Only packed starts have a meaning here."""
        return self.unpack(x0)

    def image(self, z: Tensor) -> Tensor:
        """All of it: the solution of a linear problem is no picture."""
        return z

    def residuals(self, x: Blocks, p: Blocks, kx: Blocks, ktp: Blocks) -> tuple[Blocks, Blocks]:
        """(Hg X + K^T Y + grad l, Hf Y - K X)."""
        rx = tuple(g.residual(a, s) for g, a, s in zip(self.primal, x, ktp, strict=True))
        rp = tuple(h.residual(a, -s) for h, a, s in zip(self.dual, p, kx, strict=True))
        return rx, rp

    def evidence(self, x: Blocks, p: Blocks, kx: Blocks, ktp: Blocks) -> Tensor:
        """The norm of the residual (b,)."""
        rx, rp = self.residuals(x, p, kx, ktp)
        return torch.stack([norm(r) for r in (*rx, *rp)]).norm(dim=0)

    def certify(self, z: Tensor) -> Residual:
        """The residual of a packed (X, Y)."""
        x, p = self.unpack(z)
        gradient = self.pack(*self.residuals(x, p, self.apply(x), self.adjoint(p)))
        size = norm(gradient)
        return Residual(size, torch.zeros_like(size, dtype=torch.int64), gradient)

    def rounding_distance(self, z: Tensor) -> Tensor:
        """Residuals (b,) below which rounding is what is left, roughly."""
        scale = torch.stack([norm(b.linear) for b in self.primal if b.linear is not None]).sum(
            dim=0
        )
        return 3 * torch.finfo(z.dtype).eps * scale.double()

    def select(self, index: Tensor) -> AdjointSaddle:
        """The problems of the images ``index``."""
        return replace(
            self,
            f=self.f.select(index),
            primal=tuple(b.select(index) for b in self.primal),
            dual=tuple(b.select(index) for b in self.dual),
            rebuild=lambda: self.double().select(index),
        )

    def double(self) -> AdjointSaddle:
        """The same in float64, linearized at the same point."""
        slope = self.primal[0].linear
        return self if slope is not None and slope.dtype == torch.float64 else self.rebuild()


def linearized(f: Tied, x: Blocks, p: Blocks, slope: Tensor) -> AdjointSaddle:
    """The linear problem at (x, p).

    Args:
        f: the saddle function.
        x, p: its computed solution.
        slope: gradient of the loss in the image, (b, c, h, w).
    """
    moduli = f.moduli()
    count = len(f.primal)
    if f.smooth:
        hx = [g.hessian(a) for g, a in zip(f.primal, x, strict=True)]
        hp = [phi.conjugate_hessian(s) for phi, s in zip(f.dual, p, strict=True)]
    else:
        kx, ktp = f.apply(x), f.adjoint(p)
        hx = [
            _from_resolvent(g.prox_tangent(a - s, 1.0))
            for g, a, s in zip(f.primal, x, ktp, strict=True)
        ]
        hp = [
            _from_resolvent(phi.prox_conjugate_tangent(s + a, 1.0))
            for phi, s, a in zip(f.dual, p, kx, strict=True)
        ]
    linear: list[Tensor | None] = [slope, *[None] * (count - 1)]
    primal = tuple(
        Curved(h, b, mu, g.smooth)
        for h, b, mu, g in zip(hx, linear, moduli[:count], f.primal, strict=True)
    )
    dual = tuple(Curved(h, None, mu) for h, mu in zip(hp, moduli[count:], strict=True))

    # asked for at the end of every image; a closure over the result would be a cycle that holds its
    # tensors
    @cache
    def rebuild() -> AdjointSaddle:
        x64, p64 = (tuple(t.double() for t in blocks) for blocks in (x, p))
        return linearized(f.double(), x64, p64, slope.double())

    return AdjointSaddle(f, primal, dual, rebuild)


def _from_resolvent(tangent: Tangent) -> Tangent:
    """H with (I + H)^-1 the given map: its eigenvalues e give 1/e - 1."""
    tiny = 1e-12
    return tangent.mapped(
        lambda e: torch.where(e > tiny, (1 / e.clamp_min(tiny) - 1).clamp_min(0), math.inf)
    )
