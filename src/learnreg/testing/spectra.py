"""Whether curvature lies where it is said to lie: extreme eigenvalues found, claims compared."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..core.batch import norm
from ..core.params import trainable
from .claims import expect, normal
from .nouns import Candidate, offered

MOST_PIXELS = 160
"""Up to which the Hessian is made as a matrix."""

ITERATIONS = 60

LOOSE = 1.05
"""What an *estimate* of L may be short of what is found."""


def extremes(product: Callable[[Tensor], Tensor], x: Tensor, top: float) -> tuple[float, float]:
    """The smallest and largest Rayleigh quotients found of a symmetric map on images like x.

    Args:
        product: H.
        x: (1, c, h, w).
        top: what is believed to be the largest eigenvalue; finite.
    """
    n = x.numel()
    if n <= MOST_PIXELS:
        eye = torch.eye(n, dtype=x.dtype)
        matrix = torch.cat([product(e.view_as(x)).flatten()[None] for e in eye])
        values = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
        return float(values[0]), float(values[-1])
    largest = _power(product, x)
    shift = max(largest, top)
    smallest = shift - _power(lambda v: shift * v - product(v), x)
    return smallest, largest


def _power(product: Callable[[Tensor], Tensor], x: Tensor) -> float:
    best = -math.inf
    for seed, start in ((0, normal(x, 21)), (1, torch.ones_like(x) + 1e-3 * normal(x, 22))):
        v = start
        for _ in range(ITERATIONS if seed == 0 else ITERATIONS // 2):
            v = v / v.norm().clamp_min(1e-300)
            hv = product(v)
            best = max(best, float((v * hv).sum()))
            if float(hv.norm()) == 0:
                break
            v = hv
    return best


def check_bounds(r: Candidate, x: Tensor, name: str) -> None:
    """mu <= Hessian <= L at the images x, at flat ones, and far away: bounds hold everywhere.

    Raises:
        AssertionError: an eigenvalue outside.
    """
    bounds = r.bounds()
    what = f"bounds of {name}"
    expect(
        offered(lambda: [(b.value, b.kind) for b in (bounds.mu, bounds.L)]) is not None,
        what,
        given=type(bounds).__name__,
        expected="a Curvature(mu=Bound, L=Bound) of learnreg.core",
    )
    mu, top = bounds.mu, bounds.L
    if top.certified:
        expect(
            mu.value <= top.value * (1 + 1e-12),
            what,
            given=f"mu {mu.value:.6g}",
            expected=f"at most L = {top.value:.6g}",
        )

    flat = x.mean(dim=(2, 3), keepdim=True).expand_as(x)
    for image in torch.cat([x, flat[:2], 0 * x[:1], 30 * x[:2], -30 * x[:1]])[:, None]:
        at = r.linearize(image)
        finite = top.value if math.isfinite(top.value) else 0.0
        low, high = extremes(at, image, finite)
        slack = 1e-9 * max(abs(high), 1e-300) + 1e-14
        if mu.certified:
            expect(
                low >= mu.value - slack,
                what,
                given=f"mu = {mu.value:.6g}",
                expected=f"at most {low:.6g}, a Rayleigh quotient that occurs",
            )
        if math.isfinite(top.value):
            allowed = top.value * (1 if top.certified else LOOSE)
            expect(
                high <= allowed + slack,
                what,
                given=f"L = {top.value:.6g}",
                expected=f"at least {high:.6g}, a Rayleigh quotient that occurs",
            )


def check_changes(r: Candidate, x: Tensor, v: Tensor, name: str) -> list[str]:
    """The optional certificates ``hessian_change``, ``mixed_change`` and ``mixed_norm``, sampled.

    Returns:
        The names of those that are offered.

    Raises:
        AssertionError: a change that is larger than certified.
    """
    made = []
    for method, certificate, size in (
        ("hessian_change", offered(lambda: r.hessian_change), _of_hessian),
        ("mixed_change", offered(lambda: r.mixed_change), _of_mixed),
        ("mixed_norm", _of_every_direction(offered(lambda: r.mixed_norm)), _of_norm),
    ):
        if certificate is None:
            continue
        for radius in (1e-2, 0.3):
            radii = torch.full((x.shape[0],), radius, dtype=torch.float64)
            certified = certificate(x, v, radii)
            if certified is None:
                break
            found = torch.stack([size(r, x, v, point) for point in _around(x, v, radius)]).amax(
                dim=0
            )
            holds = (found <= certified * (1 + 1e-9) + 1e-12).all()
            worst = int((found - certified).argmax())
            expect(
                bool(holds),
                f"{method} of {name} within {radius}",
                given=f"{float(certified[worst]):.4g}",
                expected=f"at least {float(found[worst]):.4g}, which occurs",
            )
        else:
            made.append(method)
    return made


def _of_every_direction(
    bound: Callable[[Tensor, Tensor], Tensor | None] | None,
) -> Callable[[Tensor, Tensor, Tensor], Tensor | None] | None:
    """A certificate that holds for all v, called like those that hold for one."""
    return None if bound is None else lambda x, v, radii: bound(x, radii)


def _around(x: Tensor, v: Tensor, radius: float) -> list[Tensor]:
    directions = [v, -v, torch.ones_like(x), normal(x, 23), normal(x, 24), -x]
    return [x + radius * d / norm(d).clamp_min(1e-300).view(-1, 1, 1, 1) for d in directions]


def _of_hessian(r: Candidate, x: Tensor, v: Tensor, point: Tensor) -> Tensor:
    return norm(r.linearize(point)(v) - r.linearize(x)(v)).double()


def _mixed(r: Candidate, x: Tensor, v: Tensor) -> Tensor:
    """J^T v per image (b, d)."""
    params, rows = trainable(r), []
    for i in range(x.shape[0]):
        with torch.enable_grad():
            slope = r.directional(x[i : i + 1], v[i : i + 1]).sum()
        found = (
            torch.autograd.grad(slope, params, allow_unused=True)
            if params and slope.requires_grad
            else [None] * len(params)
        )
        pieces = [
            torch.zeros(p.numel(), dtype=x.dtype) if g is None else g.reshape(-1)
            for p, g in zip(params, found, strict=True)
        ]
        rows.append(torch.cat([*pieces, torch.zeros(1, dtype=x.dtype)]))
    return torch.stack(rows)


def _of_mixed(r: Candidate, x: Tensor, v: Tensor, point: Tensor) -> Tensor:
    return norm(_mixed(r, point, v) - _mixed(r, x, v)).double()


def _of_norm(r: Candidate, x: Tensor, v: Tensor, point: Tensor) -> Tensor:
    return norm(_mixed(r, point, v)).double() / norm(v).double()
