"""Public self-checks: dot test of an adjoint, Taylor test of a gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.batch import dot, expand, norm


def dot_test(
    forward: Callable[[Tensor], Tensor],
    adjoint: Callable[[Tensor], Tensor],
    x: Tensor,
    seed: int = 0,
) -> float:
    """Relative mismatch of <A u, w> and <u, A^T w> for one random pair.

    Args:
        forward, adjoint: the linear maps.
        x: (b, ...), gives shape, dtype and device of the domain; its values are not used.
        seed: of the random pair, drawn from a generator of its own.

    Returns:
        |<A u, w> - <u, A^T w>| / (||A u|| ||w||);
        rounding gives about 1e-6 in float32 and 1e-15 in float64.
    """
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
    a_u = forward(u)
    w = torch.randn(a_u.shape, generator=generator, dtype=torch.float64).to(a_u)
    left = dot(a_u.double(), w.double()).sum()
    right = dot(u.double(), adjoint(w).double()).sum()
    scale = norm(a_u.double()).norm() * norm(w.double()).norm()
    return float((left - right).abs() / scale.clamp_min(torch.finfo(torch.float64).tiny))


def taylor_test(
    value: Callable[[Tensor], Tensor], grad: Callable[[Tensor], Tensor], x: Tensor, seed: int = 0
) -> Tensor:
    """Observed order of the remainder |f(x + t v) - f(x) - t <grad f(x), v>| per image; 2 for a
    correct gradient.

    Args:
        value: (b, ...) -> (b,).
        grad: (b, ...) -> (b, ...).
        x: (b, ...), use float64.

    Returns:
        (b,) orders, from t = 1e-2 and 1e-3.
    """
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x)
    v = v / expand(norm(v), v)
    f0, slope = value(x), dot(grad(x), v)
    remainders = [(value(x + t * v) - f0 - t * slope).abs().clamp_min(1e-300) for t in (1e-2, 1e-3)]
    return torch.log10(remainders[0] / remainders[1])
