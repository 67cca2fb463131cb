"""How far any image is from the minimizer: a cheap estimate, and a certified distance as sharp as
asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.batch import check_images, norm
from ..core.bounds import Kind, constants_of
from ..core.certificates import distance_from_gradient
from ..core.constraints import domain_of, masked
from ..core.cost import Cost
from ..core.errors import InputError
from ..core.guards import check_energy, check_measured, isolated
from ..core.measured import Measured, Native
from ..core.protocols import EnergyLike, Potential
from ..core.ranges import check_fraction
from ..linear.cg import cg
from ..linear.free import on_free, preconditioner_on_free
from .closing import rounding_of
from .lbfgs import averaged
from .solve import as_data, as_real, solve_potential
from .views import require_strong_convexity, view_of

ESTIMATE_RESIDUAL = 0.1
"""Relative residual of the Newton system behind the estimate, then up to 12 % off
(benchmarks/certificates.py).
"""

ROUNDS = 12


@dataclass(frozen=True)
class Distance:
    """Distance of images x to the minimizers x*; every field (b,) float64.

    Attributes:
        certified: ||x - x*|| is at most this, if ``kind`` certifies.
        at_least: ||x - x*|| is at least this, equally certified.
        from_gradient: the bound ||grad h(x)|| / mu that needs one gradient; loose by mu over the
            curvature that counts.
        estimated: length of a Newton step at x, an estimate.
        kind: how mu is known.
        nearer: (b, ...), an image much nearer to x*, in the type of x.
        cost: evaluations summed over images.
    """

    certified: Tensor
    at_least: Tensor
    from_gradient: Tensor
    estimated: Tensor
    kind: Kind
    nearer: Tensor
    cost: Cost

    def __repr__(self) -> str:
        low, high = float(self.at_least.max()), float(self.certified.max())
        return (
            f"Distance({self.certified.numel()} images, the farthest {self.kind.label} in "
            f"[{low:.2e}, {high:.2e}], "
            f"estimated {float(self.estimated.max()):.2e}, from the gradient alone "
            f"{float(self.from_gradient.max()):.2e}; {self.cost})"
        )


@isolated
def certify(
    energy: EnergyLike,
    y: Native | Measured,
    x: Tensor,
    *,
    sharpness: float = 0.1,
    params: Mapping[str, Tensor] | None = None,
) -> Distance:
    """The distance of x, from wherever it comes, to the exact minimizer of h(.; y).

    With x' a better solution and e its certified distance (||grad h(x')|| / mu), the triangle
    inequality gives
        ||x - x'|| - e <= ||x - x*|| <= ||x - x'|| + e.
    x' is solved for until e <= sharpness ||x - x'||, in float64. Where mu is tiny (deblurring,
    tomography) the plain bound ||grad h(x)|| / mu is often a hundred times too large; this one is
    within 2 ``sharpness`` of the truth.

    Args:
        energy: an Energy, or anything with ``at(y)``.
        y: measurements, (b, ...).
        x: (b, c, h, w), images of the shape of a reconstruction. Where the energy bounds pixels x
            need not keep to that: its distance to P x, the nearest image that does, is added.
        sharpness: relative width asked for, in (0, 1).
        params: as for ``solve``.

    Raises:
        InputError: bad shapes, NaN or Inf, sharpness out of range.
        MissingPropertyError: the energy is not strongly convex, or a saddle point.
    """
    check_energy(energy, "at")
    data = as_data(y, params, energy)
    x = as_real(x)
    check_measured(x, energy, "x")
    check_images(x, "x")
    sharpness = check_fraction("sharpness", sharpness)
    if x.shape[0] != len(data):
        raise InputError(
            "x", given=f"{x.shape[0]} images", expected=f"{len(data)}, one per measurement"
        )
    potential = view_of(energy.at(data, x)).require_gradient(type(energy).__name__)
    return certify_potential(potential, x, sharpness)


@torch.no_grad()
def certify_potential(f: Potential, x: Tensor, sharpness: float = 0.1) -> Distance:
    """``certify`` for potentials f; x: (b, ...)."""
    require_strong_convexity(f)
    f = f.double()
    wide, mu = x.double(), f.bounds().mu
    domain = domain_of(f)
    nearer = domain.project(wide)
    g = f.grad(nearer)
    size = norm(domain.slope(nearer, g)) + rounding_of(f, nearer)
    error, moved = distance_from_gradient(size, constants_of(f).mu), norm(wide - nearer)
    plain = error + moved
    estimated, cost = _newton_length(f, wide, nearer, g)

    for _ in range(ROUNDS):
        if bool((error <= sharpness * moved).all()):
            break
        # half of what is asked for, since x' moves as well; at first a tenth of the plain bound
        wanted = torch.where(moved > 0, 0.5 * sharpness * moved, 0.1 * plain).clamp(max=0.9 * error)
        better = solve_potential(
            f, wanted.clamp_min(1e-14 * norm(wide) + 1e-300), nearer, max_steps=20000
        )
        nearer, error, cost = better.value, better.error, cost + better.cost
        moved = norm(wide - nearer)
        if not better.ok:
            break

    certified = torch.minimum(moved + error, plain)
    return Distance(
        certified, (moved - error).clamp_min(0), plain, estimated, mu.kind, nearer.to(x.dtype), cost
    )


def _newton_length(f: Potential, x: Tensor, inside: Tensor, g: Tensor) -> tuple[Tensor, Cost]:
    """||x - P(x' - w)|| with H w ~ g on the pixels of x' = ``inside`` that are not held at a bound,
    by conjugate gradients from a preconditioner.
    """
    domain = domain_of(f)
    free = domain.movable(inside, g, constants_of(f).L)
    slope = masked(g, free)
    P, cost = averaged(f, inside)
    tol = (ESTIMATE_RESIDUAL * norm(slope)).clamp_min(torch.finfo(g.dtype).tiny)
    helper = preconditioner_on_free(P, free)
    w = cg(on_free(f.linearize(inside), free), slope, tol, None, helper)
    step = w.value if free is None else torch.where(free, w.value, -domain.toward(inside, g))
    near = domain.project(inside - step)
    length = norm(w.value) if domain.everywhere else norm(x - near)
    return length, cost + w.cost + Cost(gradients=x.shape[0], linearizations=x.shape[0])
