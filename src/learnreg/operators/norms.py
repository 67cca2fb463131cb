"""Proven bounds of A^T A for operators whose parts are known: convolutions with signed kernels,
coils, products and stacks.

    ||A B|| <= ||A|| ||B||,    ||(A, B)||^2 <= ||A||^2 + ||B||^2,    ||A|| <= || |A| ||,

and a product or stack of operators without negative entries has none. Which class is what is a
table; of a class that is not in it nothing is proven by looking.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from ..core.asking import offers
from ..core.batch import norm
from ..core.bounds import Bound, Constants, Kind
from ..core.cost import Cost
from ..core.errors import InputError
from ..core.params import flatten, trainable
from .applied import Applied
from .filtering import (
    ROUNDING,
    Filtering,
    filtering_of,
    local_bound,
    overridden,
    symbol_extremes,
)
from .foreign import LinearPhysicsLike
from .nonnegative import PRODUCTS, collatz_wielandt, known_nonnegative
from .parametrized import KnowsSensitivity, at_tensors, is_parametrized
from .private import with_absolute

FEW = 4
"""Products with |A|^T |A| spent on the norm of an operator that is one of many, at the trial points
of a learner: they leave about 1 % between the bounds of blurs.
"""

WHOLE = -1
"""The number of the only part."""

OfPart = Callable[[int, LinearPhysicsLike, Tensor], tuple[Constants, Cost]]
"""(number of a part, the part, native images) -> its spectrum, and what that has cost."""


class KnowsNorm(Protocol):
    """A physics of the user's own that knows its norm."""

    def norm_bound(self, x: Tensor) -> Bound:
        """An upper bound of ||A|| on images like x, and how it is known."""
        ...


@torch.no_grad()
def proven(
    tied: Applied, x: Tensor, of_part: OfPart, products: int = PRODUCTS
) -> tuple[Constants, Cost] | None:
    """Bounds of A^T A (b,) or (1,) from what A is made of; None where nobody knows.

    Args:
        x: images (b, c, ...) of which only the shape matters; one where all have one operator.
        of_part: the spectrum of a factor or of a row of a stack.
        products: with |A|^T |A|, at most.
    """
    physics = tied.physics
    if is_parametrized(physics):
        return None if tied.layout.complex_image else of_part(WHOLE, at_tensors(physics), x)
    if offers(physics, KnowsNorm):
        return _declared(tied, physics.norm_bound(x), x), Cost(hessian_products=1)
    filtering = filtering_of(physics)
    if filtering is not None:
        return _of_filtering(tied, filtering, x, products)
    coils = _of_coils(physics, x)
    if coils is not None:
        return coils, Cost()
    found = _of_parts(tied, x, of_part)
    if found is None or products < PRODUCTS:
        return found

    # the product of norms is attained by no image: without negative entries there is better
    whole = nonnegative_norm(tied, x, products)
    if whole is None:
        return found
    (product, cost), (entries, spent) = found, whole
    return _smaller(product, entries), cost + spent


def _declared(tied: Applied, bound: Bound, x: Tensor) -> Constants:
    """The user's word, unless two images refute it: a constant one and noise.

    Raises:
        InputError: one is stretched by more.
    """
    noise = torch.randn(x[:1].shape, generator=torch.Generator().manual_seed(0)).to(x)
    for image in (torch.ones_like(x[:1]), noise):
        seen = float(norm(tied.forward(image)).max() / norm(image).max())
        if not seen <= bound.value * (1 + 1e-4):
            raise InputError(
                "norm_bound",
                given=f"{bound.value:.4g}",
                expected=f"an upper bound of ||A||; A stretches an image by {seen:.4g}",
                remedy="Correct it, or leave the method out: the norm is estimated then.",
            )
    square = torch.full((1,), bound.value**2, dtype=torch.float64, device=x.device)
    return Constants(torch.zeros_like(square), square, Kind.BOUND, bound.kind)


def _smaller(a: Constants, b: Constants) -> Constants:
    """Both hold: the smaller L of those that are known best."""
    if a.L_kind != b.L_kind:
        return a if a.L_kind > b.L_kind else b
    return Constants(torch.maximum(a.mu, b.mu), torch.minimum(a.L, b.L), a.mu_kind, a.L_kind)


def nonnegative_norm(
    tied: Applied, x: Tensor, products: int = PRODUCTS
) -> tuple[Constants, Cost] | None:
    """The norm of an operator without negative entries, see ``collatz_wielandt``; None where none
    is known, or the layout has complex numbers.
    """
    known = known_nonnegative(tied.physics)
    complex_numbers = tied.layout.complex_image or any(p.complex for p in tied.layout.parts)
    if known < Kind.BOUND or complex_numbers:
        return None
    found = collatz_wielandt(tied.double().normal, x, most=products, ones=True)
    if found is None:
        return None
    spent = found.products * x.shape[0]
    constants = Constants(torch.zeros_like(found.upper), found.upper, Kind.BOUND, known)
    return constants, Cost(hessian_products=spent, power_iterations=spent)


MOVED = 1.05
"""||A|| of an operator with other parameters over that of the first one, up to which the bound by
the triangle inequality is good enough.
"""


def perturbed(
    physics: LinearPhysicsLike, first: LinearPhysicsLike, known: Constants, x: Tensor
) -> Constants | None:
    """||A(theta)|| <= ||A(theta_0)|| + beta ||theta - theta_0||, which costs no product; None where
    beta is not declared, or theta has gone too far.

    Args:
        first: the same physics at theta_0.
        known: its spectrum.
    """
    there, here = (flatten(trainable(p)).double() for p in (first, physics))
    if not offers(physics, KnowsSensitivity):
        return None
    beta = physics.sensitivity(x)
    root = known.L.sqrt()
    moved = root + beta.value * float(torch.linalg.vector_norm(there - here))
    if not bool((moved <= MOVED * root).all()):
        return None
    return Constants(torch.zeros_like(moved), moved**2, Kind.BOUND, min(known.L_kind, beta.kind))


# --- convolutions ---------------------------------------------------------------------------------


def _of_filtering(
    tied: Applied, filtering: Filtering, x: Tensor, products: int
) -> tuple[Constants, Cost] | None:
    """The smallest of the bounds by the symbol, by |k| and by small grids."""
    wide = tied.double()
    fits = filtering.fits(x)
    symbol = symbol_extremes(filtering, filtering.sides_of(x)) if fits else None
    if symbol is not None and symbol.sharp:
        return Constants(symbol.smallest, symbol.largest, Kind.BOUND, Kind.BOUND), Cost()

    absolute = with_absolute(wide.physics, "filter")
    found = collatz_wielandt(
        lambda v: absolute.A_adjoint(absolute.A(v)), x, most=products, ones=True
    )
    bounds = [] if found is None else [found.upper]
    if symbol is not None:
        bounds.append(symbol.largest)
    if fits and bool((filtering.kernels < 0).any()):
        local = local_bound(filtering, filtering.sides_of(x))
        bounds += [] if local is None else [local.to(x.device)]
    if not bounds:
        return None
    largest = torch.stack(torch.broadcast_tensors(*bounds)).amin(dim=0)
    if not bool(torch.isfinite(largest).all()):
        return None
    spent = 0 if found is None else found.products * x.shape[0]
    constants = Constants(torch.zeros_like(largest), largest, Kind.BOUND, Kind.BOUND)
    return constants, Cost(hessian_products=spent, power_iterations=spent)


# --- coils ----------------------------------------------------------------------------------------


class _Coils(Protocol):
    """What deepinv's MRI of several coils keeps."""

    mask: Tensor
    coil_maps: Tensor


def _of_coils(physics: LinearPhysicsLike, x: Tensor) -> Constants | None:
    """A = mask F S with a unitary F: ||A||^2 <= max |mask|^2 max over pixels of sum |S|^2."""
    from deepinv.physics import MultiCoilMRI

    if type(physics) is not MultiCoilMRI or overridden(physics):
        return None
    kept = cast(_Coils, physics)
    of_maps = kept.coil_maps.detach().abs().double().square().sum(dim=1).flatten(1).amax(dim=1)
    of_mask = kept.mask.detach().abs().double().square().flatten(1).amax(dim=1)
    largest = (of_maps * of_mask * (1 + ROUNDING)).to(x.device)
    return Constants(torch.zeros_like(largest), largest, Kind.BOUND, Kind.BOUND)


# --- products and stacks --------------------------------------------------------------------------


class _Listed(Protocol):
    """A physics made of others."""

    physics_list: nn.ModuleList


def factors(physics: LinearPhysicsLike) -> list[LinearPhysicsLike] | None:
    """A_1, A_2, ... of A = ... A_2 A_1; None where A is no product."""
    from deepinv.physics import ComposedLinearPhysics

    return _parts(physics) if type(physics) is ComposedLinearPhysics else None


def rows(physics: LinearPhysicsLike) -> list[LinearPhysicsLike] | None:
    """A_1, A_2, ... of a stack; None where A is none."""
    from deepinv.physics import StackedLinearPhysics

    return _parts(physics) if type(physics) is StackedLinearPhysics else None


def _parts(physics: LinearPhysicsLike) -> list[LinearPhysicsLike] | None:
    if overridden(physics):
        return None
    listed = cast(_Listed, physics).physics_list
    return [cast(LinearPhysicsLike, p) for p in listed]


def _of_parts(tied: Applied, x: Tensor, of_part: OfPart) -> tuple[Constants, Cost] | None:
    """Norms of the parts put together."""
    product, stacked = factors(tied.physics), rows(tied.physics)
    parts = product or stacked
    if not parts or tied.layout.complex_image:
        return None
    total: Constants | None = None
    cost, at = Cost(), x
    for number, part in enumerate(parts):
        own, spent = of_part(number, part, at)
        cost += spent
        total = own if total is None else _joined(total, own, times=product is not None)
        if product is not None and number + 1 < len(parts):
            after = part.A(at.to(dtype_of(part, at)))
            if not isinstance(after, Tensor) or after.is_complex():
                return None
            at = after
            cost += Cost(hessian_products=x.shape[0])
    assert total is not None
    return total, cost


def dtype_of(part: LinearPhysicsLike, x: Tensor) -> torch.dtype:
    """The type of the tensors of a part, that of x where it has none."""
    tensors = (*part.parameters(), *part.buffers())
    kinds = (t.dtype.to_real() if t.is_complex() else t.dtype for t in tensors if t.numel() > 1)
    return next((k for k in kinds if k.is_floating_point), x.dtype)


def _joined(a: Constants, b: Constants, times: bool) -> Constants:
    """Of a product or of a stack: sigma_min(A B) >= sigma_min(A) sigma_min(B) where B takes images
    to as many numbers, so nothing is claimed from below for products.
    """
    L = a.L * b.L if times else a.L + b.L
    mu = torch.zeros_like(L) if times else (a.mu + b.mu).expand_as(L)
    return Constants(mu, L, min(a.mu_kind, b.mu_kind), min(a.L_kind, b.L_kind))
