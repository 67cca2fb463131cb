"""From evidence to distance: one theorem per function."""

from __future__ import annotations

from torch import Tensor

from .bounds import Bound


def distance_from_gradient(gradient_norm: Tensor, mu: Bound) -> Tensor:
    """||x - x*|| <= ||grad h(x)|| / mu for mu-strongly convex, differentiable h; (b,) -> (b,).

    Proof: mu ||x - x*|| <= ||grad h(x) - grad h(x*)|| = ||grad h(x)|| (strong monotonicity of the gradient;
    Nesterov, Lectures on Convex Optimization, Theorem 2.1.10). Rigorous if mu is exact or a proven lower bound.
    """
    return gradient_norm / mu.value


def squared_error_bracket(distance_to_truth: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """Range of 1/2 ||x - x_true||^2 over the ball ||x - x~|| <= eps; (b,), (b,) -> lower (b,), upper (b,).

    With d = ||x~ - x_true||: [1/2 max(0, d - eps)^2, 1/2 (d + eps)^2]; both ends are attained, so this is the sharpest
    bracket that uses eps alone (it contains the one of Salehi et al., arXiv 2308.10098, Section 3).
    """
    return 0.5 * (distance_to_truth - eps).clamp_min(0).square(), 0.5 * (distance_to_truth + eps).square()
