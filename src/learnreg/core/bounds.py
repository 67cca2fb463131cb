"""Bound(value, kind): a number that knows its pedigree; arithmetic keeps the weakest kind."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, cast

import torch
from torch import Tensor

from .errors import InputError


class Kind(IntEnum):
    """How much a number can be trusted; larger is stronger."""

    UNKNOWN = 0
    ESTIMATE = 1
    BOUND = 2
    EXACT = 3

    @property
    def label(self) -> str:
        """The word printed beside the number: only exact values and proven bounds are
        "certified".
        """
        return {0: "unknown", 1: "estimated", 2: "certified", 3: "certified"}[int(self)]

    @property
    def certifies(self) -> bool:
        return self >= Kind.BOUND


@dataclass(frozen=True)
class Bound:
    """A constant and how it is known; never negative, but for a mu (weakly convex functions).

    Whether it bounds from above (L, Lipschitz constants) or from below (mu) is fixed by where it is
    used; the sum and the product by a non-negative number keep the direction, so both kinds share
    this arithmetic.

    Args:
        value: ``inf``, ``-inf`` or ``nan`` stand for "not known" and force the kind UNKNOWN.
        kind: EXACT > BOUND > ESTIMATE > UNKNOWN.

    >>> Bound(1.0, Kind.EXACT) + 0.5 * Bound(8.0, Kind.BOUND)
    Bound(5, bound)
    """

    value: float
    kind: Kind

    def __post_init__(self) -> None:
        value = float(self.value)
        object.__setattr__(self, "value", value)
        if not math.isfinite(value):
            object.__setattr__(self, "kind", Kind.UNKNOWN)

    @staticmethod
    def exact(value: float) -> Bound:
        return Bound(value, Kind.EXACT)

    @staticmethod
    def proven(value: float) -> Bound:
        return Bound(value, Kind.BOUND)

    @staticmethod
    def estimate(value: float) -> Bound:
        return Bound(value, Kind.ESTIMATE)

    @staticmethod
    def unknown() -> Bound:
        return Bound(math.inf, Kind.UNKNOWN)

    @property
    def certified(self) -> bool:
        return self.kind.certifies

    def __add__(self, other: Bound) -> Bound:
        # the sum of two attained extremes need not be attained: exact + exact is a bound unless one
        # of them is zero
        if self.kind == Kind.EXACT and other.kind == Kind.EXACT and self.value and other.value:
            return Bound(self.value + other.value, Kind.BOUND)
        return Bound(self.value + other.value, min(self.kind, other.kind))

    def __mul__(self, factor: float) -> Bound:
        if not (factor >= 0 and math.isfinite(factor)):
            raise InputError("factor", given=factor, expected="a finite non-negative number")
        return Bound(self.value * factor, self.kind) if factor else Bound(0.0, Kind.EXACT)

    __rmul__ = __mul__

    def __float__(self) -> float:
        return self.value

    def __repr__(self) -> str:
        return f"Bound({self.value:.6g}, {self.kind.name.lower()})"

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.kind.name.lower()})"


@dataclass(frozen=True)
class Curvature:
    """mu <= Hessian <= L for one image: ``mu`` bounds from below, ``L`` from above.

    Args:
        mu: negative for a function that is weakly convex only.
        L: non-negative.

    Raises:
        InputError: a negative L.
    """

    mu: Bound
    L: Bound

    def __post_init__(self) -> None:
        if self.L.value < 0:
            raise InputError(
                "L",
                given=self.L.value,
                expected="a non-negative number",
                remedy="An upper bound of a Hessian in the spectral norm is never negative.",
            )

    def __add__(self, other: Curvature) -> Curvature:
        return Curvature(self.mu + other.mu, self.L + other.L)

    def __mul__(self, factor: float) -> Curvature:
        return Curvature(self.mu * factor, self.L * factor)

    __rmul__ = __mul__


@dataclass(frozen=True, eq=False)
class Constants:
    """mu <= Hessian <= L for every image of a batch.

    Attributes:
        mu, L: (b,), or (1,) for all images alike; float64. A mu may be negative.
        mu_kind, L_kind: how they are known.
    """

    mu: Tensor
    L: Tensor
    mu_kind: Kind
    L_kind: Kind

    @classmethod
    def of(cls, curvature: Curvature, device: torch.device | None = None) -> Constants:
        """The same for all images."""

        def tensor(bound: Bound) -> Tensor:
            return torch.tensor([bound.value], dtype=torch.float64, device=device)

        return cls(tensor(curvature.mu), tensor(curvature.L), curvature.mu.kind, curvature.L.kind)

    @property
    def curvature(self) -> Curvature:
        """Bounds that hold for every image of the batch."""
        return Curvature(
            Bound(float(self.mu.min()), self.mu_kind), Bound(float(self.L.max()), self.L_kind)
        )

    def select(self, index: Tensor) -> Constants:
        """Those of the images ``index``."""
        if self.mu.numel() == 1 and self.L.numel() == 1:
            return self

        def chosen(t: Tensor) -> Tensor:
            return t if t.numel() == 1 else t[index]

        return Constants(chosen(self.mu), chosen(self.L), self.mu_kind, self.L_kind)

    def __add__(self, other: Constants) -> Constants:
        return Constants(
            self.mu + other.mu,
            self.L + other.L,
            _sum_kind(self.mu, self.mu_kind, other.mu, other.mu_kind),
            _sum_kind(self.L, self.L_kind, other.L, other.L_kind),
        )


def _sum_kind(a: Tensor, kind_a: Kind, b: Tensor, kind_b: Kind) -> Kind:
    """The kind of a sum of extremes, as for single bounds."""
    if not bool(torch.isfinite(a + b).all()):
        return Kind.UNKNOWN
    if kind_a == kind_b == Kind.EXACT and bool((a != 0).any()) and bool((b != 0).any()):
        return Kind.BOUND
    return min(kind_a, kind_b)


class Bounded(Protocol):
    """A batch of potentials with bounds that hold for all images."""

    def bounds(self) -> Curvature: ...


class _BoundedOneByOne(Protocol):
    """One that knows those of every image as well."""

    @property
    def constants(self) -> object: ...


def constants_of(f: Bounded) -> Constants:
    """The constants of a batch of potentials: its own, or those that hold for all images."""
    # asked in every step of some methods, where a look at the protocol would cost more than a step
    try:
        own = cast(_BoundedOneByOne, f).constants
    except AttributeError:  # a potential of the user's own may offer ``bounds`` alone
        own = None
    return own if isinstance(own, Constants) else Constants.of(f.bounds())
