"""The test that a direction has to pass, to the last digit: an error of z along it below a share
of its slope.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from learnreg.core.bounds import Kind
from learnreg.core.cost import Cost
from learnreg.core.results import SAFETY, Hypergradient
from learnreg.learners import descent
from learnreg.learners.accuracy import Adaptive
from learnreg.learners.curvature import CurvaturePairs

ETA = 0.3
Z = torch.tensor([3.0, -0.2, 0.5], dtype=torch.float64)
UNITS = torch.tensor([0.1, 2.0, 5.0], dtype=torch.float64)


def known(certified: float | None, correction: torch.Tensor | None) -> Hypergradient:
    """A gradient with what is known of its error."""
    return Hypergradient(
        Z, 1.0, (1.0, 1.0), Kind.EXACT, certified, None, correction, None, Z, (), Cost()
    )


def aim(test: str, certified: float | None, correction: torch.Tensor | None, units: torch.Tensor):
    """The direction found without a history, which is units^2 z, and the slope, or None."""
    rules = SimpleNamespace(test=test, eta=ETA, accuracy=Adaptive())
    state = SimpleNamespace(pairs=CurvaturePairs.empty(Z), squares=None)
    z = known(certified, correction)
    return descent._direction(rules, state, z, units)


@pytest.mark.parametrize("units", [torch.ones_like(Z), UNITS], ids=["ones", "units"])
def test_a_certified_error_may_take_a_share_of_the_slope_and_no_more(units):
    """omega ||d|| <= (1 - eta) <d, z>, so that <d, grad f> >= eta <d, z>."""
    d = units.square() * Z
    slope = float(d @ Z)
    limit = (1 - ETA) * slope / float(d.norm())
    found = aim("certified", 0.999 * limit, None, units)
    assert found is not None
    torch.testing.assert_close(found[0], d)
    assert found[1] == pytest.approx(slope)
    assert aim("certified", 1.001 * limit, None, units) is None

    # the worst gradient that is so far from z is still one of ascent along d
    worst = Z - 0.999 * limit * d / d.norm()
    assert float(d @ worst) >= ETA * slope


@pytest.mark.parametrize("units", [torch.ones_like(Z), UNITS], ids=["ones", "units"])
def test_an_estimate_counts_along_the_direction_only(units):
    d = units.square() * Z
    limit = (1 - ETA) * float(d @ Z) / SAFETY
    along = d / d.square().sum()
    across = 100 * torch.linalg.cross(d, torch.ones_like(d))
    for sign in (1, -1):
        assert aim("estimated", None, sign * 0.999 * limit * along + across, units) is not None
        assert aim("estimated", None, sign * 1.001 * limit * along + across, units) is None
    assert aim("estimated", None, None, units) is not None, "nothing is estimated"


@pytest.mark.parametrize("reached, kept", [(0.05, 0.1 * 1.05), (0.4, 0.4)])
def test_accuracies_loosen_as_declared_and_at_least_to_what_was_enough(reached, kept):
    rules = SimpleNamespace(
        accuracy=Adaptive(0.5, 1.05), memory=0, growth=1.3, decrease="certified"
    )
    pairs = CurvaturePairs.empty(Z)
    at, z = SimpleNamespace(theta=Z), SimpleNamespace(value=Z, norm=1.0, estimated=0, certified=0)
    state = SimpleNamespace(point=at, adjoint=None, eps=0.1, delta=0.02, pairs=pairs, squares=None)
    effort = SimpleNamespace(trials=1, refinements=0)
    new = descent._accept(rules, state, SimpleNamespace(eps=reached), 0.5, z, effort)
    assert (new.eps, new.delta) == pytest.approx((kept, 0.02 * 1.05))
    assert new.step_size == pytest.approx(0.5 * 1.3)
    assert new.info["step_size"] == 0.5 and new.info["delta"] == 0.02
