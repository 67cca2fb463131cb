"""From evidence to distance: one theorem per function."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .bounds import Bound


def distance_from_gradient(gradient_norm: Tensor, mu: Bound | Tensor) -> Tensor:
    """||x - x*|| <= ||grad h(x)|| / mu for mu-strongly convex, differentiable h; (b,) -> (b,).

    Proof: mu ||x - x*|| <= ||grad h(x) - grad h(x*)|| = ||grad h(x)|| (strong monotonicity of the
    gradient; Nesterov, Lectures on Convex Optimization, Theorem 2.1.10). Rigorous if mu is exact or
    a proven lower bound; one for all images, or one for each (b,).
    """
    return gradient_norm / (mu.value if isinstance(mu, Bound) else mu)


def distance_in_metric(gradient: Tensor, v: Tensor, Mv: Tensor, mu: float | Tensor) -> Tensor:
    """||x - x*|| from M, a lower bound of the Hessian that is larger than mu in most directions;
    (b, ...), (b, ...), (b, ...) -> (b,).

    Let <grad h(x) - grad h(x'), x - x'> >= <M (x - x'), x - x'> for x' = x*, with M >= mu > 0: the
    Hessian of a quadratic data term, for example, and what is known of that of a convex R. With
    e = x - x*, g = grad h(x), r = g - M v for any v, and gamma = <g, M^-1 g>:
        ||e|| <= min{ sqrt(G / mu),  ( ||v|| + ||r|| / mu + sqrt(G / mu) ) / 2,  ||g|| / mu },
        G = <g + r, v> + ||r||^2 / mu >= gamma.
    Proof: <M e, e> <= <g, e>, which says ||M^(1/2) e - M^(-1/2) g / 2|| <= sqrt(gamma) / 2. Hence
    ||M^(1/2) e|| <= sqrt(gamma), and ||e - M^-1 g / 2|| <= sqrt(gamma / mu) / 2 with
    ||M^-1 g|| <= ||v|| + ||M^-1 r||. And gamma = <g, v> + <g, M^-1 r> = <g, v> + <M v + r, M^-1 r>
    = <g + r, v> + <r, M^-1 r>.

    For v of conjugate gradients started at zero <r, v> = 0, so G >= ||r||^2 / mu and the bound is
    at least min{ ||r||, ||g|| } / mu. For a quadratic h and its Hessian M the gradient at x - v is
    r: whoever knows v has a solution, x - v, with the distance ||r|| / mu. So products with M
    certify x hardly sooner than they would have improved it, and solvers do not ask for this bound
    (measured: ``benchmarks/operators_certificates.py``).

    Args:
        gradient: g in float64.
        v: any; M^-1 g is best.
        Mv: M v.
        mu: a proven lower bound of M, a number or (b,).
    """
    g, v, Mv = (t.flatten(1) for t in (gradient, v, Mv))
    r = g - Mv
    size = torch.linalg.vector_norm(r, dim=1)
    G = (torch.linalg.vecdot(g + r, v) + size.square() / mu).clamp_min(0)
    energy = (G / mu).sqrt()
    centred = 0.5 * (torch.linalg.vector_norm(v, dim=1) + size / mu + energy)
    plain = torch.linalg.vector_norm(g, dim=1) / mu
    return torch.stack([energy, centred, plain]).amin(dim=0)


def squared_error_bracket(distance_to_truth: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """Range of 1/2 ||x - x_true||^2 over the ball ||x - x~|| <= eps; (b,), (b,) -> lower (b,),
    upper (b,).

    With d = ||x~ - x_true||: [1/2 max(0, d - eps)^2, 1/2 (d + eps)^2]; both ends are attained, so
    this is the sharpest bracket that uses eps alone (it contains the one of Salehi et al., arXiv
    2308.10098, Section 3).
    """
    return 0.5 * (distance_to_truth - eps).clamp_min(0).square(), 0.5 * (
        distance_to_truth + eps
    ).square()


def distance_from_gap(gap: Tensor, mu: float) -> Tensor:
    """||u - u*|| <= sqrt(2 gap / mu) for a primal-dual gap P(x) - D(p) (b,), where P is mu-strongly
    convex in u.

    Proof: D(p) <= P(x*) (weak duality), and P(x) - P(x*) >= mu/2 ||u - u*||^2, even if P is not
    strongly convex in the other parts of x. No derivative is needed. Rigorous if mu is a proven
    lower bound.
    """
    return (2 * gap.clamp_min(0) / mu).sqrt()


GROWTH_ROUNDS = 12
"""Steps of the search for a ball; none of them is part of a proof."""


def distance_from_growth(
    gap: Tensor, growth: Callable[[Tensor], tuple[Tensor, Tensor]], plain: Tensor
) -> Tensor:
    """||u - u*|| < rho for a primal-dual gap P(x) - D(p) (b,), where P grows faster near x than its
    modulus tells.

    ``growth(rho)`` gives m (b,) and an allowance a (b,) with
        [ P(x) - P(z) ] + [ P(z) - D(p) ] + a >= m / 2 rho^2
    for all z between x and x* whose image is rho away from u. The left side is gap + a, so
    m rho^2 > 2 (gap + a) leaves no such z: then ||u - u*|| < rho, by convexity of the segment. Once
    that is known, z = x* may stand in the inequality, with m of the ball:
    ||u - u*|| <= sqrt(2 (gap + a) / m).

    Args:
        plain: another certified distance (b,), returned where this one is not smaller.
    """
    rho = 1e-3 * plain
    for _ in range(GROWTH_ROUNDS):  # upwards to the smallest ball that could do
        m, allowance = growth(rho)
        rho = torch.minimum((2 * (gap + allowance) / m).sqrt(), plain)
    rho = 1.05 * rho
    m, allowance = growth(rho)
    least = 2 * (gap + allowance).clamp_min(0)
    proven = m * rho.square() > (1 + 1e-9) * least
    found = (least / m).sqrt()
    return torch.where(proven & (found < plain), found, plain)


def distance_from_residuals(residuals: Sequence[Tensor], moduli: Sequence[float]) -> list[Tensor]:
    """Distances of every block of z = (z_1, z_2, ...) to the zero z* of F, from the norms of the
    residual blocks.

        ||z_i - z_i*|| <= sqrt( sum_j ||F_j(z)||^2 / mu_j  /  mu_i ).

    F is monotone with <F(z) - F(z*), z - z*> >= sum_j mu_j ||z_j - z_j*||^2: the gradient of a
    function that is strongly convex with moduli mu_j, or the optimality system (grad g(x) + K^T p,
    grad f*(p) - K x) of a saddle point, whose skew part drops out.
    Proof: with a_j = sqrt(mu_j) ||z_j - z_j*|| and r_j = ||F_j|| / sqrt(mu_j), sum a_j^2 <= sum r_j
    a_j, hence
    ||a|| <= ||r||.

    Args:
        residuals: ||F_j(z)||, each (b,).
        moduli: mu_j > 0.
    """
    total = torch.stack([r.square() / mu for r, mu in zip(residuals, moduli, strict=True)]).sum(
        dim=0
    )
    return [(total / mu).sqrt() for mu in moduli]
