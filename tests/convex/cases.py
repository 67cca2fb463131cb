"""The functions under test, and how points are drawn for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from learnreg.convex import (
    Box,
    Boxed,
    Convex,
    Epigraph,
    Hinge,
    KullbackLeibler,
    Norm,
    Ridged,
    SmoothNorm,
    Squares,
    Zero,
)
from learnreg.core.constraints import Between

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """``make(shape)`` gives the function with float64 data for blocks of this shape; what it is
    expected to offer.
    """

    name: str
    make: Callable[[Shape], Convex]
    smooth: bool = False
    conjugate_smooth: bool = False


def random(shape: Shape, seed: int = 7) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normal(shape: Shape, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def points(shape: Shape, seed: int) -> Tensor:
    """Entries of both signs over three orders of magnitude: every branch is visited."""
    return normal(shape, seed) * 10 ** (3 * random(shape[:1], seed + 1) - 2).view(
        -1, *[1] * (len(shape) - 1)
    )


def counts(shape: Shape) -> Tensor:
    """Poisson-like data with zeros."""
    return (6 * random(shape) - 2).clamp_min(0)


def mask(shape: Shape) -> Tensor:
    return (random(shape) - 0.4).clamp_min(0)


def norms() -> list[Case]:
    found = []
    for isotropic in (True, False):
        for rounding in (0.0, 0.3):
            for shift in (False, True):
                kind = "iso" if isotropic else "aniso"
                name = f"Norm-{kind}-rounding{rounding}{'-centre' if shift else ''}"
                found.append(
                    Case(
                        name,
                        lambda shape, i=isotropic, r=rounding, c=shift: Norm(
                            0.7, normal(shape, 3) if c else None, isotropic=i, rounding=r
                        ),
                        smooth=rounding > 0,
                    )
                )
    return found


CASES = [
    Case("Zero", lambda shape: Zero(), smooth=True),
    Case("Squares", lambda shape: Squares(2.5), smooth=True, conjugate_smooth=True),
    Case(
        "Squares-centre",
        lambda shape: Squares(0.4, normal((1, *shape[1:]), 3)),
        smooth=True,
        conjugate_smooth=True,
    ),
    Case(
        "Squares-weights", lambda shape: Squares(0.1 + random(shape), normal(shape, 3)), True, True
    ),
    Case("Squares-mask", lambda shape: Squares(mask(shape), normal(shape, 3)), smooth=True),
    *norms(),
    Case("SmoothNorm", lambda shape: SmoothNorm(0.7, 0.2), smooth=True),
    Case(
        "SmoothNorm-sharp",
        lambda shape: SmoothNorm(0.7, 0.01, 0.02),
        smooth=True,
        conjugate_smooth=True,
    ),
    Case(
        "SmoothNorm-strong",
        lambda shape: SmoothNorm(0.7, 0.2, 0.5),
        smooth=True,
        conjugate_smooth=True,
    ),
    Case("Hinge", lambda shape: Hinge(0.7)),
    Case("Hinge-rounding", lambda shape: Hinge(0.7, 0.3), smooth=True),
    Case("Box", lambda shape: Box(-0.2, 0.5)),
    Case("Box-half", lambda shape: Box(0.0)),
    Case("Box-below", lambda shape: Box(-math.inf, 0.3)),
    *(
        Case(f"Epigraph-{a}-{r}", lambda shape, a=a, r=r: Epigraph(a, r))
        for a in (0.0, 0.2)
        for r in (0.0, 0.01, 0.5)
    ),
    Case("KullbackLeibler", lambda shape: KullbackLeibler(counts(shape), 0.3), True, True),
    Case(
        "KullbackLeibler-varying",
        lambda shape: KullbackLeibler(counts(shape), 0.1 + random(shape, 5)),
        True,
        True,
    ),
    Case(
        "KullbackLeibler-weight", lambda shape: KullbackLeibler(counts(shape), 0.3, 0.4), True, True
    ),
    Case(
        "KullbackLeibler-weights",
        lambda shape: KullbackLeibler(counts(shape), 0.3, 0.2 + random(shape, 6)),
        True,
        True,
    ),
]


def within(shape: Shape, inner: Convex, lower: object = None, upper: object = None) -> Boxed:
    return Boxed(inner, Between(lower, upper).tied(torch.zeros(shape, dtype=torch.float64)))


def some(shape: Shape) -> Tensor:
    """Upper bounds of single entries: none for a third of them, and a few fixed at 0.125."""
    found = 0.125 + (2 * random(shape, 8) - 0.2).clamp_min(0)
    return torch.where(random(shape, 6) < 0.3, math.inf, found)


CASES += [
    Case("Boxed-zero", lambda shape: within(shape, Zero(), -0.25, 0.5)),
    Case("Boxed-zero-half", lambda shape: within(shape, Zero(), 0.0)),
    Case("Boxed-squares", lambda shape: within(shape, Squares(0.4, normal(shape, 3)), 0.0)),
    Case(
        "Boxed-squares-entries",
        lambda shape: within(
            shape, Squares(0.1 + random(shape), normal(shape, 3)), 0.125, some(shape)
        ),
    ),
    Case("Boxed-squares-mask", lambda shape: within(shape, Squares(mask(shape)), 0.0, 0.5)),
    Case(
        "Boxed-norm",
        lambda shape: within(shape, Norm(0.7, normal(shape, 3), isotropic=False), 0.0, 0.5),
    ),
    Case(
        "Boxed-huber",
        lambda shape: within(shape, Norm(0.7, normal(shape, 3), False, 0.3), -0.5, None),
    ),
    Case("Boxed-counts", lambda shape: within(shape, KullbackLeibler(counts(shape), 0.3), 0.0)),
    Case(
        "Boxed-counts-background",
        lambda shape: within(shape, KullbackLeibler(counts(shape), 0.3), -1.0, 2.0),
    ),
    Case(
        "Boxed-ridged-L1",
        lambda shape: within(
            shape, Ridged(Norm(0.7, normal(shape, 3), isotropic=False), 0.1), 0.0, 0.5
        ),
    ),
    Case(
        "Boxed-ridged-counts",
        lambda shape: within(shape, Ridged(KullbackLeibler(counts(shape), 0.3), 2.0), -1.0, 2.0),
    ),
    Case(
        "Ridged-L1",
        lambda shape: Ridged(Norm(0.7, normal((1, *shape[1:]), 3), isotropic=False), 0.1),
        conjugate_smooth=True,
    ),
    Case("Ridged-iso", lambda shape: Ridged(Norm(0.7), 2.0), conjugate_smooth=True),
    Case(
        "Ridged-Huber",
        lambda shape: Ridged(Norm(0.7, normal(shape, 3), False, 0.3), 0.2),
        smooth=True,
        conjugate_smooth=True,
    ),
    Case(
        "Ridged-KullbackLeibler",
        lambda shape: Ridged(KullbackLeibler(counts(shape), 0.3), 2.0),
        True,
        True,
    ),
]

each = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
BLOCK = (5, 2, 3, 4)
GROUPS = (40, 2)
"""Every group an image of its own, so that values per image are values per group."""


def steps(batch: int, dims: int) -> list[float | Tensor]:
    """Two numbers, and one number per image."""
    return [0.3, 2.5, (0.1 + 3 * random((batch,), 9)).view(-1, *[1] * (dims - 1))]


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(dim=1)


def pair(f: Convex, shape: Shape, seed: int, step: float | Tensor = 0.6) -> tuple[Tensor, Tensor]:
    """A point a and a subgradient s = (z - a) / step at a, by Moreau."""
    z = points(shape, seed)
    return f.prox(z, step), f.prox_conjugate(z / step, 1 / step)
