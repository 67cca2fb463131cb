"""Bad input is refused by name, with the value, the range and where it helps a remedy."""

from __future__ import annotations

import math

import pytest
import torch

from learnreg.convex import Box, Epigraph, Hinge, KullbackLeibler, Norm, SmoothNorm, Squares, Zero
from learnreg.core.errors import InputError, MissingPropertyError

NAN, INF = math.nan, math.inf
HURT = torch.tensor([[1.0, NAN]])

BAD = [
    *(
        (make, "scale", value)
        for make in (Norm, SmoothNorm, Hinge)
        for value in (0.0, -1.0, NAN, INF, "1", True)
    ),
    *(
        (make, "rounding", value)
        for make in (Norm, Hinge, Epigraph)
        for value in (-0.1, NAN, INF, None)
    ),
    *((SmoothNorm, "eta", value) for value in (0.0, -1.0, INF)),
    *((SmoothNorm, "strong", value) for value in (-1.0, NAN)),
    *((Epigraph, "slope", value) for value in (-0.1, 1.0, NAN)),
    *(
        (Squares, "weight", value)
        for value in (0.0, -1.0, INF, torch.tensor([[1.0, -2.0]]), HURT, torch.ones(2).int())
    ),
    *(
        (make, "centre", value)
        for make in (Norm, Squares)
        for value in (1.0, HURT, torch.zeros(2, 2).int())
    ),
    *((KullbackLeibler, "data", value) for value in (None, 3.0, -torch.ones(1, 2), HURT)),
    *((Box, "lower", value) for value in (NAN, "0", None)),
    *((Box, "upper", value) for value in (NAN, True)),
    (Norm, "isotropic", 1),
]


@pytest.mark.parametrize(
    ("make", "name", "value"), BAD, ids=lambda v: getattr(v, "__name__", None) or str(v)[:12]
)
def test_values_out_of_range_are_refused(make, name, value):
    with pytest.raises(InputError, match=name) as error:
        make(**{name: value})
    assert error.value.expected and str(error.value).startswith(name)


@pytest.mark.parametrize("ends", [(1.0, 0.0), (INF, INF), (-INF, -INF)])
def test_empty_intervals_are_refused(ends):
    with pytest.raises(InputError, match="Exchange"):
        Box(*ends)


@pytest.mark.parametrize("background", [-1.0, torch.tensor([[0.0, -1.0]]), HURT])
def test_backgrounds_out_of_range_are_refused(background):
    with pytest.raises(InputError, match="background"):
        KullbackLeibler(torch.ones(1, 2), background)


@pytest.mark.parametrize(
    ("f", "derivative", "remedy"),
    [
        (Norm(), "grad", "rounding > 0"),
        (Norm(), "hessian", "SmoothNorm"),
        (Norm(rounding=1.0), "conjugate_grad", "strong > 0"),
        (SmoothNorm(), "conjugate_hessian", "strong > 0"),
        (Hinge(), "grad", "rounding > 0"),
        (Box(), "grad", "proximal"),
        (Epigraph(), "hessian", "projection"),
        (Squares(torch.zeros(1, 2)), "conjugate_grad", "positive weight"),
        (Zero(), "conjugate_grad", "proximal"),
    ],
)
def test_missing_derivatives_name_their_remedy(f, derivative, remedy):
    with pytest.raises(MissingPropertyError, match=remedy):
        getattr(f, derivative)(torch.zeros(1, 2))


def test_large_groups_use_the_same_formulas():
    """Up to four components are summed slice by slice, more by a reduction."""
    a = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    padded = torch.cat((a, torch.zeros(2, 4, 4, dtype=a.dtype)), dim=1)
    for f in (Norm(0.3, rounding=0.2), SmoothNorm(0.3, 0.1, 0.2)):
        torch.testing.assert_close(f.prox(padded, 0.5)[:, :3], f.prox(a, 0.5))
        torch.testing.assert_close(f.gap(padded, padded / 20), f.gap(a, a / 20))
        torch.testing.assert_close(f.hessian(padded)(padded)[:, :3], f.hessian(a)(a))
