"""float32 near the borders of the domains, where terms are small or large."""

from __future__ import annotations

import math

import pytest
import torch

from learnreg.convex import Box, KullbackLeibler, Norm, Zero


def test_an_interval_forgives_rounding_and_no_more():
    f, ulp = Box(0.0, 300.0), torch.finfo(torch.float32).eps
    a = torch.tensor([[-4 * ulp, 1.0], [300 * (1 + 4 * ulp), 1.0], [-1e-4, 1.0], [300.1, 1.0]])
    gap = f.gap(a, torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]))
    assert torch.equal(gap, torch.tensor([0.0, 0.0, math.inf, math.inf]))
    assert torch.equal(f.value(a), gap)


def test_what_is_free_forgives_rounding_and_no_more():
    s = torch.tensor([[1e-7, 0.0], [1e-4, 0.0]])
    assert torch.equal(Zero().gap(torch.ones(2, 2), s), torch.tensor([0.0, math.inf]))
    assert torch.equal(Zero().gauge(s), torch.tensor([1.0, math.inf]))


@pytest.mark.parametrize("mean", [1e-12, 1e-9, 1e-3, 0.4, 0.999, 1.0, 1.001, 1.6, 1e4])
def test_kullback_leibler_is_accurate_near_and_far_from_the_data(mean: float):
    value = KullbackLeibler(torch.ones(1, 1)).value(torch.full((1, 1), mean)).item()
    given = torch.full((), mean, dtype=torch.float32).item()
    excess = given - 1
    expected = excess - (math.log1p(excess) if abs(excess) < 0.5 else math.log(given))
    assert value == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_small_gaps_of_the_norm_survive_in_float32():
    """With |s| = scale the gap is of second order in the angle; scale |a| - <a, s> itself would
    return noise.
    """
    f, angle = Norm(1.0, rounding=0.5), 1e-4
    a = torch.tensor([[1000.0, 0.0]])
    s = torch.tensor([[math.cos(angle), math.sin(angle)]])
    assert f.gap(a, s).item() == pytest.approx(1000 * angle**2 / 2, rel=1e-3)
