"""Proven norms of operators whose entries are not negative: Collatz-Wielandt bounds of ||A||^2.

Let M = A^T A have no negative entry, and let p > 0. Then

    (p^T M p) / (p^T p)  <=  ||A||^2  <=  max_j (M p)_j / p_j,

the first being a Rayleigh quotient, the second the theorem of Collatz and Wielandt (Horn and
Johnson, Matrix Analysis, Theorem 8.1.26): with y = M p <= c p, componentwise, and the largest
eigenvector v >= 0 of M, ||A||^2 p^T v = p^T M v = y^T v <= c p^T v. Both close on the norm when p
is what power iterations make of a positive image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor

from ..core.asking import offers
from ..core.bounds import Kind
from .foreign import LinearPhysicsLike
from .parametrized import at_tensors, is_parametrized

PRODUCTS = 14
"""Products with A^T A at most; 10 leave 1e-6 between the bounds on 64^2 tomography of 30 angles."""

CLOSE = 1e-4
"""Relative distance of the two bounds at which no further product is spent."""

FOR_ROUNDING = 1e-9
"""What the upper bound is widened by: float64 leaves 1e-12 in entries of the size of their mean."""

COLUMNS = 4
"""Columns of A that are looked at where its signs are the user's word."""

SMALLEST = 1e-4
"""Of the largest entry of p: the smallest it may have. Any p > 0 will do; this one keeps what
rounding leaves of a column of zeros out of the ratios.
"""


class Declared(Protocol):
    """A physics that says of itself that no entry of its matrix is negative."""

    nonnegative: bool


@dataclass(frozen=True, eq=False)
class NormBounds:
    """lower <= ||A||^2 <= upper.

    Attributes:
        lower, upper: (b,), float64.
        products: products with A^T A that were spent on every image.
    """

    lower: Tensor
    upper: Tensor
    products: int


PROVEN: dict[type, Callable[[LinearPhysicsLike], Kind]] = {}
"""Classes of this library that know themselves whether their matrix has negative entries."""


def known_nonnegative(physics: LinearPhysicsLike) -> Kind:
    """How it is known that no entry of A is negative: BOUND for classes of deepinv that average,
    ESTIMATE for the user's word (``nonnegative = True``), UNKNOWN otherwise.

    Probing could not tell: an entry is one number among millions.
    """
    from deepinv.physics import (
        Blur,
        BlurFFT,
        ComposedLinearPhysics,
        Denoising,
        Downsampling,
        Inpainting,
        StackedLinearPhysics,
        Tomography,
        Upsampling,
    )

    if is_parametrized(physics):
        return known_nonnegative(at_tensors(physics))
    own = vars(physics)
    as_made = all(own.get(name) is None for name in ("A", "A_adjoint", "A_adj"))
    buffers = dict(physics.named_buffers())
    if type(physics) in PROVEN and as_made:
        return PROVEN[type(physics)](physics)
    if type(physics) in (ComposedLinearPhysics, StackedLinearPhysics) and as_made:
        # a product or a stack of matrices without negative entries has none
        return min(known_nonnegative(p) for p in cast(_Listed, physics).physics_list)
    if type(physics) in (Tomography, Denoising) and as_made:
        return Kind.BOUND  # sums of bilinear interpolations; the identity
    if type(physics) is Inpainting and as_made:
        return Kind.BOUND if _nonnegative(buffers.get("mask")) else Kind.UNKNOWN
    if type(physics) in (Blur, BlurFFT, Downsampling, Upsampling) and as_made:
        kernel = buffers.get("filter")
        picks = kernel is None and type(physics) in (Downsampling, Upsampling)
        if picks or _nonnegative(kernel):
            return Kind.BOUND
    declared = offers(physics, Declared) and physics.nonnegative is True
    return Kind.ESTIMATE if declared else Kind.UNKNOWN


class _Listed(Protocol):
    """A physics made of others."""

    physics_list: Iterable[LinearPhysicsLike]


def _nonnegative(t: Tensor | None) -> bool:
    return t is not None and not t.is_complex() and bool((t >= 0).all())


@torch.no_grad()
def collatz_wielandt(
    normal: Callable[[Tensor], Tensor], x: Tensor, most: int = PRODUCTS, ones: bool = False
) -> NormBounds | None:
    """Both bounds of ||A||^2, per image; None if a product shows a negative entry.

    Args:
        normal: A^T A in float64, (b, ...) -> (b, ...), without negative entries.
        x: gives shape and device; its values are not used.
        most: products at most.
        ones: start with an image of ones, nearly the eigenvector of an operator that averages.
    """
    # why random: an image of ones is sent to zero by differences, which have negative entries
    generator = torch.Generator().manual_seed(5)
    p = 0.5 + torch.rand((1, *x.shape[1:]), generator=generator, dtype=torch.float64)
    p = torch.ones_like(p) if ones else p
    p = p.to(x.device).expand(x.shape)
    lower = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
    upper = torch.full_like(lower, torch.inf)
    count = 0
    while count < most:
        product = normal(p).flatten(1)
        count += 1
        size = product.abs().amax(dim=1, keepdim=True)
        if bool((product < -FOR_ROUNDING * size).any()):
            return None

        flat = p.flatten(1)
        apart = lower < (1 - CLOSE) * upper  # an image that is done is left alone
        quotient = (flat * product).sum(1) / flat.square().sum(1)
        lower = torch.where(apart, torch.maximum(lower, quotient), lower)
        # of a column of zeros the ratio is zero: it has no say
        ratio = (product / flat).amax(dim=1) * (1 + FOR_ROUNDING)
        upper = torch.where(apart, torch.minimum(upper, ratio), upper)
        if bool((lower >= (1 - CLOSE) * upper).all()):
            break
        p = (product / size.clamp_min(1e-300)).clamp_min(SMALLEST).view(x.shape)
    return NormBounds(lower, upper, count)


@torch.no_grad()
def shows_a_negative_entry(forward: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether a few columns of A, those of random pixels, have a negative entry."""
    generator = torch.Generator().manual_seed(6)
    for _ in range(COLUMNS):
        pixel = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
        chosen = torch.randint(x[0].numel(), (), generator=generator)
        pixel.flatten(1)[:, chosen] = 1
        column = forward(pixel)
        if bool((column < -FOR_ROUNDING * column.abs().amax()).any()):
            return True
    return False
