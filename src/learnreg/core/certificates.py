"""From evidence to distance: one theorem per function."""

from __future__ import annotations

from collections.abc import Sequence

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
