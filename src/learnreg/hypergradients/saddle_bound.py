"""How far the hypergradient of a saddle point can be from the exact one: two proven forms, both
with the cross terms.

Notation per image: e_i >= ||x_i - x_i*|| and e_j >= ||p_j - p_j*|| for the blocks; (X, Y) the
computed adjoint, r its residual; mu the moduli of g_i and f_j*.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..convex import Convex
from ..core.batch import norm
from ..core.certificates import distance_from_residuals
from ..core.errors import MissingPropertyError


@dataclass(frozen=True)
class SaddleConstants:
    """Of min_x max_p <K x, p> + g(x) - f*(p) and of the losses l1(x), l2(p).

    Attributes:
        mu_g, mu_f: strong convexity of g and f*.
        operator: ||K||.
        hessian_g, hessian_f: Lipschitz constants of the Hessians of g and of f*.
        inverse_g: L_{Hg*} L_{dg}, with the Lipschitz constants of the Hessian of g* and of the
            gradient of g.
        inverse_f: L_{Hf} L_{df*}, with those of the Hessian of f and of the gradient of f*.
        loss_x, loss_p: L1, L2, Lipschitz constants of the gradients of l1 and l2.
    """

    mu_g: float
    mu_f: float
    operator: float
    hessian_g: float = 0.0
    hessian_f: float = 0.0
    inverse_g: float = 0.0
    inverse_f: float = 0.0
    loss_x: float = 1.0
    loss_p: float = 0.0


def constants_bound(
    c: SaddleConstants,
    *,
    eps_x: Tensor,
    eps_p: Tensor,
    delta_x: Tensor,
    delta_p: Tensor,
    x: Tensor,
    p: Tensor,
    X: Tensor,
    Y: Tensor,
    slope_x: Tensor,
    slope_p: Tensor | float = 0.0,
) -> Tensor:
    """The form with constants, per image (b,), in units of ||dK||.

        ||X - X*|| <= dX = C1X eps_x + C2X eps_p + delta_x,
        ||Y - Y*|| <= dY = C1Y eps_x + C2Y eps_p + delta_p,
        omega = dY (||x|| + eps_x) + ||Y|| eps_x + dX (||p|| + eps_p) + ||X|| eps_p,
    which contains the cross term (C1X + C2Y) eps_x eps_p; without it the bound is false at second
    order. The constants are those of Theorem 2 of arXiv 2412.06436 as transcribed in deepinv PR
    #1318 (which drops the cross term), derived again.

    Args:
        eps_x, eps_p: (b,), certified distances; delta_x, delta_p: (b,), certified distances to the
            solution of the linear problem at the computed point.
        x, p, X, Y: (b,), norms of the computed variables; slope_x, slope_p: norms of grad l1 and
            grad l2 there.
    """
    c1x = (c.hessian_g * X + c.loss_x) / c.mu_g
    c2x = c.inverse_f * c.operator * (c.operator * X + slope_p) / c.mu_g + c.loss_p * c.operator / (
        c.mu_g * c.mu_f
    )
    c1y = c.inverse_g * c.operator * (c.operator * Y + slope_x) / c.mu_f + c.loss_x * c.operator / (
        c.mu_g * c.mu_f
    )
    c2y = (c.hessian_f * Y + c.loss_p) / c.mu_f
    d_x, d_y = c1x * eps_x + c2x * eps_p + delta_x, c1y * eps_x + c2y * eps_p + delta_p
    return omega(x, p, X, Y, eps_x, eps_p, d_x, d_y)


def omega(
    x: Tensor,
    p: Tensor,
    X: Tensor,
    Y: Tensor,
    eps_x: Tensor,
    eps_p: Tensor,
    d_x: Tensor,
    d_y: Tensor,
) -> Tensor:
    """||(p X^T + Y x^T) - (p* X*^T + Y* x*^T)|| from norms and distances, all (b,).

    Proof: with x* = x - a, Y* = Y - b the difference Y x^T - Y* x*^T is b x^T + Y a^T - b a^T, of
    norm at most d_y (||x|| + eps_x) + ||Y|| eps_x; the same for the other term.
    """
    return d_y * (x + eps_x) + Y * eps_x + d_x * (p + eps_p) + X * eps_p


def adjoint_distances(
    primal: Sequence[Convex],
    dual: Sequence[Convex],
    x: Sequence[Tensor],
    p: Sequence[Tensor],
    X: Sequence[Tensor],
    Y: Sequence[Tensor],
    eps: Sequence[Tensor],
    residual: Sequence[Tensor],
    moduli: Sequence[float],
    loss_smoothness: float,
) -> list[Tensor] | None:
    """Distances (b,) of every block of (X, Y) to the exact adjoint, with the computed adjoint in
    place of constants.

    With M = [[Hg, K^T], [-K, Hf]] and stars for the exact point,
        M* ((X, Y) - (X*, Y*)) = (M* - M)(X, Y) + residual + (grad l* - grad l),
    and M* is monotone with the moduli of g and f*, so ``distance_from_residuals`` applies to the
    blocks
        ||change_i |X_i| || + ||r_i|| + L1 eps_u  (the last for the image only),
    where change_i bounds the local blocks of the Hessian of g_i within eps_i of x_i. None if a
    constant is not known.

    Args:
        primal, dual: the functions g_i and f_j.
        eps: distances (b,) of all blocks of x, then of p.
        residual: of all blocks of (X, Y).
    """
    count = len(primal)
    try:
        changes = [
            _weighted(g.change(a, e.to(a)), b)
            for g, a, b, e in zip(primal, x, X, eps[:count], strict=True)
        ]
        changes += [
            conjugate_change(f) * e * norm(b) for f, b, e in zip(dual, Y, eps[count:], strict=True)
        ]
    except MissingPropertyError:
        return None
    sizes = [c + norm(r) for c, r in zip(changes, residual, strict=True)]
    sizes[0] = sizes[0] + loss_smoothness * eps[0]
    return distance_from_residuals(sizes, moduli)


def conjugate_change(f: Convex) -> float:
    """A Lipschitz constant of the Hessian of f*: L_{Hf} / mu^3 with mu the strong convexity of f.

    Proof: Hess f*(s) = (Hess f)^-1 at grad f*(s); the inverse changes by at most L_{Hf} ||da|| /
    mu^2, and
    ||da|| <= ||ds|| / mu.

    Raises:
        MissingPropertyError: f is not strongly convex, or its Hessian not Lipschitz.
    """
    if f.hessian_lipschitz == 0 and f.strong > 0:
        return 0.0
    if not (f.strong > 0 and math.isfinite(f.hessian_lipschitz)):
        raise MissingPropertyError(
            type(f).__name__,
            given="a conjugate without Lipschitz Hessian",
            expected="a strongly convex function with Lipschitz Hessian",
            remedy="Use a smooth variant with strong > 0.",
        )
    return f.hessian_lipschitz / f.strong**3


def _weighted(change: Tensor, block: Tensor) -> Tensor:
    """|| change |block| || per image; change may be one number per group (dimension 1) or per
    image.
    """
    return (
        norm((change * block).expand_as(block))
        if change.dim() == block.dim()
        else change * norm(block)
    )


def length(blocks: Sequence[Tensor]) -> Tensor:
    """Euclidean norm over all blocks, per image (b,)."""
    return torch.stack([norm(b) for b in blocks]).norm(dim=0)
