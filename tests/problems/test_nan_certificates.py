"""NaN certifies nothing: in no variable of a saddle point, by no theorem."""

from __future__ import annotations

import math

import pytest
import torch
from deepinv.physics import Denoising, GaussianNoise

from learnreg.problems import SaddleEnergy
from learnreg.regularizers import ExactTV, LearnedTV


@pytest.mark.parametrize("make", [ExactTV, LearnedTV], ids=["gap", "all theorems"])
def test_nan_in_any_variable_certifies_no_distance(make):
    y = torch.rand(2, 1, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    f = SaddleEnergy(Denoising(GaussianNoise(0.1)), make(weight=0.1)).double().at(y)
    assert f.smooth == (make is LearnedTV)
    z = f.pack(*f.start(y))
    sound = f.certify(z).distance
    assert torch.isfinite(sound).all()
    sizes = [[math.prod(shape) for shape in part] for part in f.shapes]
    primal = sum(sizes[0])
    ends = torch.tensor([*sizes[0], *sizes[1]]).cumsum(0) - 7
    for place in (0, *ends.tolist()):
        broken = z.clone()
        broken[1, place] = math.nan
        found = f.certify(broken)
        by = f.theorems[int(found.theorem[1])]
        assert found.distance[0] == sound[0]
        # "residual" makes a dual variable of its own from x, and never looks at p
        if place < primal or by != "residual":
            assert found.distance[1] == math.inf, (place, by)
