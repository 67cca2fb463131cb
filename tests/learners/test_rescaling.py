"""The scale of a regularizer first: found in any units, and nothing lost where it is right."""

from __future__ import annotations

import math
from itertools import pairwise

import deepinv
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.learners.cases import Plain, exact_loss, phantoms, pictures, run, slack

from learnreg import L2
from learnreg.core.errors import InputError
from learnreg.learners import MAID, Deferred
from learnreg.learners.rescaling import lowest, rescaled
from learnreg.objectives import Bilevel
from learnreg.problems import BilevelProblem, Energy
from learnreg.regularizers import TV, BlackBox, FoE, HuberTV, Regularizer, Tikhonov
from learnreg.runs import Budget


class Times(deepinv.physics.LinearPhysics):
    """c times a light blur."""

    def __init__(self, c: float) -> None:
        super().__init__()
        self.c = c

    def A(self, x, **kwargs):
        return self.c * (0.7 * x + 0.15 * (x.roll(1, -1) + x.roll(-1, -1)))

    def A_adjoint(self, y, **kwargs):
        return self.A(y)


def scaled(c: float, regularizer: Regularizer, fidelity: object = None) -> BilevelProblem:
    """Strongly convex enough that tests are quick; only the learned part has a wrong scale."""
    physics, x = Times(c), phantoms()[0].x
    regularizer = regularizer + Tikhonov(0.03 * c * c, learned=False)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    y = physics.A(x) + 0.05 * c * noise
    return BilevelProblem(Energy(physics, regularizer, fidelity), Plain(x=x, y=y))


@pytest.mark.parametrize(
    "make",
    [
        TV,
        HuberTV,
        Tikhonov,
        lambda: FoE(3, 3),
        lambda: TV() + FoE(2, 3),
        lambda: 0.5 * (FoE(2, 3) + Tikhonov(0.1)),
    ],
)
def test_along_the_scaling_a_regularizer_is_multiplied(make):
    r = make().double()
    x = phantoms()[0].x.double()
    before, s = r.value(x), r.scaling().double()
    with torch.no_grad():
        flat = torch.nn.utils.parameters_to_vector(r.parameters())
        torch.nn.utils.vector_to_parameters(flat + math.log(3.0) * s, r.parameters())
    assert r.value(x).allclose(3 * before, rtol=1e-6)
    assert s.shape == r.units().shape


def test_what_is_kept_fixed_is_not_scaled():
    r = TV() + Tikhonov(1e-3, learned=False)
    assert r.scaling().tolist() == [1.0, 0.0]
    foe = FoE(2, 3)
    foe.log_scale.requires_grad_(False)
    assert foe.scaling().tolist() == [1.0, 1.0] + [0.0] * 20
    box = BlackBox(torch.nn.Sequential(torch.nn.Conv2d(1, 1, 3), torch.nn.Softplus()))
    assert not box.scaling().any()


@given(st.floats(-20, 20), st.floats(0.1, 3), st.floats(-20, 20))
def test_the_lowest_place_of_a_valley_is_found(place, width, guess):
    found = lowest(lambda t: 1 + abs((t - place) / width) ** 1.5, guess)
    assert abs(found - place) <= 1.5


def test_failures_on_the_way_are_gone_round():
    found = lowest(lambda t: math.inf if t < -8 else 2 + (t + 5) ** 2)
    assert abs(found + 5) <= 1
    assert lowest(lambda t: math.nan if t else 1.0) == 0.0
    assert lowest(lambda t: math.inf) == 0.0


def test_a_start_that_is_right_is_kept_to_the_bit():
    best = run(pictures(), MAID(), steps=12).theta
    assert rescaled(Bilevel(pictures()), best).equal(best)


@pytest.mark.parametrize("regularizer", [TV, lambda: FoE(2, 3)])
def test_learning_does_not_depend_on_the_norm_of_the_operator(regularizer):
    """A -> c A, y -> c y with the weight of the regularizer and the data term left as they are."""
    losses = {}
    for c in (1.0, 30.0, 1e3):
        learner = MAID(rescale=True)
        outcome = run(scaled(c, regularizer()), learner, budget=Budget(work=150))
        losses[c] = outcome.record.rows[-1]["loss"]
    assert max(losses.values()) <= 1.05 * min(losses.values()), losses


def test_without_it_a_norm_of_a_thousand_leads_nowhere():
    losses = {}
    for rescale in (False, True):
        learner = MAID(rescale=rescale)
        outcome = run(scaled(1e3, FoE(3, 3)), learner, budget=Budget(work=150))
        losses[rescale] = outcome.record.rows[-1]
    assert losses[True]["loss"] < 0.7 * losses[False]["loss"]


def test_the_weight_of_the_data_term_counts_as_the_norm_does():
    problem = scaled(1.0, TV(), L2(1e-2))
    assert Bilevel(problem).stiffness(problem.theta) == pytest.approx(math.log(1e4), abs=0.1)


def test_rows_after_a_rescaled_start_are_certified_as_ever():
    problem = scaled(5.0, FoE(2, 3))
    outcome = run(problem, Deferred(length=4), budget=Budget(steps=2, work=2000))
    losses = [exact_loss(problem, theta) for theta in outcome.thetas]
    for row, loss in zip(outcome.record.rows, losses, strict=True):
        assert row["lower"] - slack(problem) <= loss <= row["upper"] + slack(problem)
    assert all(after < before for before, after in pairwise(losses))


@pytest.mark.parametrize("kind", [MAID, Deferred])
def test_rescale_is_a_flag(kind):
    with pytest.raises(InputError, match="rescale"):
        kind(rescale="yes")
