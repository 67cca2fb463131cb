"""What is known of A^T A: exact singular values, power iterations, averages for preconditioners."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ..core.batch import expand, norm
from ..core.bounds import Bound, Constants, Curvature, Kind
from ..core.cost import Cost
from ..core.curvature import MeanCurvature
from .applied import Applied
from .foreign import DecomposablePhysicsLike, LinearPhysicsLike
from .nonnegative import (
    PRODUCTS,
    collatz_wielandt,
    known_nonnegative,
    shows_a_negative_entry,
)
from .norms import FEW, OfPart, perturbed, proven

POWER_ITERATIONS = 30

ITERATIONS_NEAR = 6
"""From the leading singular vector of an operator with slightly other parameters."""

MAJORANT_ITERATIONS = 12
"""For a constant of step sizes only: 3 % below the limit on CT, of which the margin of 5 % takes
care (measured).
"""

LIFT = 1e-2
"""Of the largest mean curvature of A^T A: what its majorant has at least, at every frequency."""

STRUCTURE = 1e-4
"""Relative defect up to which a decomposable physics passes for decomposed."""

ROUNDING = 1e-11
"""Relative defect that float64 itself explains."""


@torch.no_grad()
def singular_values(tied: Applied, x: Tensor) -> Constants | None:
    """The spectrum of a decomposable physics A = U diag(mask) V^T; None when it is not one.

    With W = V_adjoint and D = |mask|^2 let V W = I, W V D W = D W and A^T A = V D W. Then an
    eigenvector u of A^T A satisfies D W u = W A^T A u = lambda W u, so every eigenvalue is one of
    D. A random vector tests the three equations in float64: a subclass may override any method.
    What is left of the third one, tables that were rounded to float32 for example, widens the
    bounds. Where V W = I fails but W V = I, as for a few singular vectors, the eigenvalues are
    those of D and zero: with c = W u, A^T A V c = V D W V c = V D c.
    """
    from deepinv.physics import DecomposablePhysics

    if tied.is_identity:
        return Constants.of(Curvature(Bound.exact(1.0), Bound.exact(1.0)), x.device)

    if not isinstance(tied.physics, DecomposablePhysics):
        return None
    mask = _decomposed(tied).mask
    # why: deepinv also takes a number for the mask
    if not isinstance(mask, Tensor) or tied.layout.several or tied.layout.complex_image:
        return None

    squares = mask.detach().abs().double().square()
    error, onto = _defect_of_structure(tied.double(), x)
    if not error <= STRUCTURE * float(squares.max()):
        return None

    image = (x.shape[0] if tied.names else 1, *x.shape[1:])
    try:  # a value for every degree of freedom?
        full = torch.broadcast_shapes(mask.shape, image) == image and mask.numel() > 1
    except RuntimeError:
        full = False

    full = full and onto
    per_image = bool(tied.names) and mask.dim() > 1 and mask.shape[0] == x.shape[0]
    rows = squares.flatten(1) if per_image else squares.reshape(1, -1)
    largest = rows.amax(dim=1)
    smallest = rows.amin(dim=1) if full else torch.zeros_like(largest)
    if error <= ROUNDING * float(largest.max()):
        return Constants(smallest, largest, Kind.EXACT, Kind.EXACT)
    return Constants((smallest - error).clamp_min(0), largest + error, Kind.BOUND, Kind.BOUND)


def _decomposed(tied: Applied) -> DecomposablePhysicsLike:
    """A physics that calls itself decomposable; the equations of one are still to be tested."""
    return cast(DecomposablePhysicsLike, tied.physics)


def _defect_of_structure(wide: Applied, x: Tensor) -> tuple[float, bool]:
    """A bound of ||A^T A - V D W||, infinite where the other equations fail; whether V W = I.

    For a standard normal u the square of ||E u|| has the mean ||E||_F^2 >= ||E||^2, and is a
    hundred times smaller with a chance of a thousandth at most.
    """
    physics = _decomposed(wide)
    generator = torch.Generator().manual_seed(2)
    u = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device)
    if not wide.names:
        u = u[:1]
    try:
        coefficients = physics.V_adjoint(u)
        again = physics.V(coefficients)
        weighted = physics.mask.conj() * physics.mask * coefficients
        back = physics.V(weighted)
        onto = _length(again - u) <= STRUCTURE * _length(u)
        closed = _length(physics.V_adjoint(back) - weighted) <= STRUCTURE * _length(coefficients)
        if not onto:
            fixed = _length(physics.V_adjoint(again) - coefficients)
            closed = closed and fixed <= STRUCTURE * _length(coefficients)
        error = 100 * _length(wide.normal(u) - back) if closed else math.inf
    except (RuntimeError, ValueError, TypeError, AttributeError):
        return math.inf, False
    return error, onto


def _length(t: Tensor) -> float:
    return float(torch.linalg.vector_norm(t))


@dataclass(frozen=True, eq=False)
class Norm:
    """||A||^2 as it was found.

    Attributes:
        constants: per image where the operators differ; mu is 0 where nothing better is known.
        cost: of finding it.
        top: (b, ...), nearly the leading singular vector; None where no power iterations were made.
    """

    constants: Constants
    cost: Cost
    top: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Near:
    """The same operator at other parameters.

    Attributes:
        physics: with these.
        constants: its spectrum.
        top: its ``Norm.top``.
    """

    physics: LinearPhysicsLike
    constants: Constants | None
    top: Tensor | None


@torch.no_grad()
def largest_eigenvalue(tied: Applied, x: Tensor, of_part: OfPart, near: Near | None = None) -> Norm:
    """Proven where A is made of parts that are known, or has no negative entries; otherwise
    estimated by power iterations.

    Args:
        of_part: see ``norms.proven``.
        near: of an operator that is one of many, the first one; then a few products have to do.
    """
    known = proven(tied, x, of_part, PRODUCTS if near is None else FEW)
    if known is not None and known[0].L_kind.certifies:
        return Norm(*known)

    if near is not None and near.constants is not None:
        moved = perturbed(tied.physics, near.physics, near.constants, x)
        if moved is not None:
            return Norm(moved, Cost())

    word = known_nonnegative(tied.physics)
    plain = not (tied.layout.complex_image or any(p.complex for p in tied.layout.parts))
    wide = tied.double()
    if word is Kind.ESTIMATE and plain:
        plain = not shows_a_negative_entry(wide.forward, x)
    if plain and word > Kind.UNKNOWN:
        found = collatz_wielandt(wide.normal, x)
        if found is not None:
            products = found.products * x.shape[0]
            constants = Constants(torch.zeros_like(found.upper), found.upper, Kind.BOUND, word)
            return Norm(constants, Cost(hessian_products=products, power_iterations=products))
    if known is not None:
        return Norm(*known)

    start = None if near is None else near.top
    count = POWER_ITERATIONS if start is None else ITERATIONS_NEAR
    values, top = power_iterations(tied.normal, x, count, start)
    spent = count * x.shape[0]
    constants = Constants(torch.zeros_like(values), 1.02 * values, Kind.BOUND, Kind.ESTIMATE)
    return Norm(constants, Cost(hessian_products=spent, power_iterations=spent), top)


def power_iterations(
    apply: Callable[[Tensor], Tensor], x: Tensor, count: int, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The largest eigenvalue (b,) float64 of a symmetric map, from below, and a vector (b, ...); a
    fixed start where none is given.
    """
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
    v = v if start is None else start.to(x)
    size = norm(v)
    for _ in range(count):
        # a map that sends v to zero stays there
        v = apply(v / expand(size.clamp_min(torch.finfo(v.dtype).tiny), v))
        size = norm(v)
    return size.double(), v


@torch.no_grad()
def averages(tied: Applied, x: Tensor) -> MeanCurvature:
    """Diagonal and mean symbol of A^T A for images like x (1, c, ...)."""
    axes = tuple(range(2, x.dim()))
    half = x.new_ones(*x.shape[:-1], x.shape[-1] // 2 + 1)
    if tied.is_identity:
        return MeanCurvature(torch.ones_like(x), half)
    if tied.is_mask:
        diagonal = tied.normal(torch.ones_like(x))
        return MeanCurvature(diagonal, half * diagonal.mean(dim=axes, keepdim=True))

    middle = tuple(n // 2 for n in x.shape[2:])
    symbols, centres = [], []
    for channel in range(x.shape[1]):
        pixel = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
        pixel[:, channel].view(-1)[_flat(middle, x.shape[2:])] = 1
        response = tied.normal(pixel)[:, channel].roll(
            tuple(-m for m in middle), dims=tuple(a - 1 for a in axes)
        )
        centres.append(response[(slice(None), *[slice(0, 1)] * len(axes))])
        transformed = torch.fft.rfftn(response, dim=tuple(a - 1 for a in axes))
        symbols.append(transformed.real.clamp_min(0))
    diagonal = torch.stack(centres, dim=1).clamp_min(0).expand_as(x)
    return MeanCurvature(diagonal, torch.stack(symbols, dim=1))


@torch.no_grad()
def convolution_defect(tied: Applied, mean: MeanCurvature, x: Tensor) -> float:
    """How far A^T A is from its mean symbol, relative, at one random image."""
    generator = torch.Generator().manual_seed(3)
    u = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
    exact = tied.normal(u)
    return float(norm(_filtered(u, mean.symbol) - exact).norm() / norm(exact).norm())


@torch.no_grad()
def majorant_symbol(
    tied: Applied, mean: MeanCurvature, x: Tensor, flat: float
) -> tuple[Tensor, Cost]:
    """The symbol of a circulant C >= A^T A, for images like x, and what it cost.

    A multiple of the mean symbol, lifted where that is nearly zero, with a factor from power
    iterations (an estimate); ``flat`` = ||A||^2 at all frequencies where that is smaller on
    average, for an A that knows no frequencies.
    """
    lifted = mean.symbol + LIFT * mean.symbol.amax()
    root = lifted.rsqrt()
    largest, _ = power_iterations(
        lambda v: _filtered(tied.normal(_filtered(v, root)), root), x, MAJORANT_ITERATIONS
    )
    majorant = 1.05 * float(largest.max()) * lifted
    cost = Cost(hessian_products=MAJORANT_ITERATIONS, power_iterations=MAJORANT_ITERATIONS)
    if majorant.mean() < flat:
        return majorant, cost
    return torch.full_like(majorant, flat), cost


def _flat(place: tuple[int, ...], shape: torch.Size) -> int:
    """The number of a pixel when all of them are counted."""
    number = 0
    for i, n in zip(place, shape, strict=True):
        number = number * n + i
    return number


def _filtered(v: Tensor, symbol: Tensor) -> Tensor:
    """v multiplied by a symbol in the Fourier domain of its spatial axes."""
    axes = tuple(range(2, v.dim()))
    return torch.fft.irfftn(torch.fft.rfftn(v, dim=axes) * symbol, s=v.shape[2:], dim=axes)
