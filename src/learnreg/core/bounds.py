"""Bound(value, kind): a number that knows its pedigree; arithmetic keeps the weakest kind."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

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
    """A non-negative constant and how it is known.

    Whether it bounds from above (L, Lipschitz constants) or from below (mu) is fixed by where it is
    used; the sum and the product by a non-negative number keep the direction, so both kinds share
    this arithmetic.

    Args:
        value: non-negative; ``inf`` or ``nan`` stand for "not known" and force the kind UNKNOWN.
        kind: EXACT > BOUND > ESTIMATE > UNKNOWN.

    >>> Bound(1.0, Kind.EXACT) + 0.5 * Bound(8.0, Kind.BOUND)
    Bound(5, bound)
    """

    value: float
    kind: Kind

    def __post_init__(self) -> None:
        value = float(self.value)
        if value < 0:
            raise InputError(
                "Bound",
                given=value,
                expected="a non-negative number",
                remedy="Constants of curvature are never negative.",
            )
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
    """mu <= Hessian <= L for one image: ``mu`` bounds from below, ``L`` from above."""

    mu: Bound
    L: Bound

    def __add__(self, other: Curvature) -> Curvature:
        return Curvature(self.mu + other.mu, self.L + other.L)

    def __mul__(self, factor: float) -> Curvature:
        return Curvature(self.mu * factor, self.L * factor)

    __rmul__ = __mul__
