"""Blocks of stochastic steps: the end of every block is certified, whatever happens inside."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.learners.cases import (
    GALLERY,
    Plain,
    assert_same,
    exact_loss,
    phantoms,
    pictures,
    run,
    slack,
)
from tests.learners.test_certified_decrease import images, vectors

from learnreg.core.errors import InputError
from learnreg.core.objective import doubt_of
from learnreg.learners import MAID, Deferred, Stochastic
from learnreg.objectives import Bilevel
from learnreg.objectives.bilevel import BilevelValue
from learnreg.physics import MRI
from learnreg.problems import BilevelProblem, Energy
from learnreg.regularizers import FoE, Tikhonov
from learnreg.runs import Budget

ADAM = Stochastic.preset("iadam", batch=2)


@settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), max_examples=6)
@given(
    problem=vectors | images,
    length=st.integers(1, 6),
    optimizer=st.sampled_from(["sgd", "adam"]),
    alpha0=st.none() | st.floats(-3, 1.5).map(lambda e: 10**e),
    eps0=st.none() | st.floats(-4, 1).map(lambda e: 10**e),
)
def test_block_ends_bracket_and_decrease_the_exact_loss(problem, length, optimizer, alpha0, eps0):
    """With steps that walk uphill and accuracies that say nothing, too."""
    explore = Stochastic(optimizer, batch=2, alpha0=alpha0, eps0=eps0)
    outcome = run(problem, Deferred(explore, length=length), budget=Budget(steps=5, work=1500))
    losses = [exact_loss(problem, theta) for theta in outcome.thetas]
    off = slack(problem)
    for row, loss in zip(outcome.record.rows, losses, strict=True):
        assert row["lower"] - off <= loss <= row["upper"] + off, row
    assert all(after <= before + 2 * off for before, after in pairwise(losses))


def test_blocks_are_accepted_and_go_farther_than_single_steps_do():
    problem = pictures(FoE(filters=3, size=3))
    outcome = run(problem, Deferred(ADAM, length=8), steps=6)
    blocks = [row["block"] for row in outcome.record.rows]
    assert blocks[:2] == [0, 0] and sum(b > 0 for b in blocks) >= 3
    first = outcome.record.rows[1]["loss"]
    assert outcome.record.rows[-1]["loss"] < first
    assert outcome.record.rows[-1]["explored"] == sum(blocks)
    shares = [row["certifying"] for row in outcome.record.rows if row["block"]]
    assert all(0 < share < 1 for share in shares)


def test_steps_that_walk_uphill_end_in_steps_of_maid():
    """With moves of twenty units no block holds: every row is a certified step of MAID."""
    problem = pictures(FoE(filters=3, size=3))
    wild = Stochastic("adam", batch=2, alpha0=20.0, step_exponent=0.0)
    outcome = run(problem, Deferred(wild, length=3), steps=3)
    assert [row["block"] for row in outcome.record.rows] == [0] * 4
    losses = [exact_loss(problem, theta) for theta in outcome.thetas]
    assert all(after < before for before, after in pairwise(losses))
    assert outcome.record.rows[-1]["explored"] > 0


@pytest.mark.parametrize("name", ["quadratic", "pictures"])
def test_resumed_in_parts_it_gives_the_same_numbers(name, tmp_path):
    make = GALLERY["quadratic"] if name == "quadratic" else pictures
    learner = Deferred(ADAM, length=3)
    whole = run(make(), learner, steps=6, seed=3)
    for steps in (1, 4, 6):
        part = run(make(), learner, steps=steps, seed=3, checkpoint=tmp_path, resume=True)
    assert_same(whole, part)


def test_the_order_of_the_images_comes_from_the_seed():
    problem = pictures(FoE(filters=3, size=3))
    explore = Stochastic.preset("iadam", batch=1)
    thetas = [run(problem, Deferred(explore, length=3), steps=3, seed=s).theta for s in (1, 1, 2)]
    assert thetas[0].equal(thetas[1]) and not thetas[0].equal(thetas[2])


def test_a_small_problem_ends_where_the_gradient_vanishes():
    problem = GALLERY["quadratic"]()
    learner = Deferred(ADAM, MAID(gradient_tolerance=1e-5), length=4)
    outcome = run(problem, learner, steps=200)
    best = run(GALLERY["quadratic"](), MAID(), steps=200)
    assert outcome.stop.code in ("stationary", "line_search", "accuracy_floor")
    gap = problem.exact_loss(outcome.theta) - problem.exact_loss(best.theta)
    assert gap <= 1e-6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"length": 0}, "length"),
        ({"length": 9, "longest": 3}, "longest"),
        ({"share": 1.5}, "share"),
        ({"explore": MAID()}, "expected a Stochastic"),
        ({"certify": ADAM}, "expected a MAID"),
        ({"explore": Stochastic(box=[-1.0, 1.0])}, "explore.box"),
        ({"explore": Stochastic(store="warm")}, "explore.store"),
        ({"explore": Stochastic(record=3)}, "explore.record"),
    ],
)
def test_settings_out_of_range_are_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        Deferred(**arguments)


DESCENT = Deferred(steps="descent", length=4)


@settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), max_examples=6)
@given(problem=vectors | images, length=st.integers(1, 6), eps0=st.none() | st.floats(-3, 2))
def test_blocks_of_descent_bracket_and_decrease_the_exact_loss(problem, length, eps0):
    """From accuracies that say nothing, too: estimates decide inside, certificates at the end."""
    learner = Deferred(
        certify=MAID(eps0=None if eps0 is None else 10**eps0), steps="descent", length=length
    )
    outcome = run(problem, learner, budget=Budget(steps=5, work=1500))
    losses = [exact_loss(problem, theta) for theta in outcome.thetas]
    off = slack(problem)
    for row, loss in zip(outcome.record.rows, losses, strict=True):
        assert row["lower"] - off <= loss <= row["upper"] + off, row
    assert all(after <= before + 2 * off for before, after in pairwise(losses))


def test_descent_needs_no_step_of_maid_before_its_first_block():
    outcome = run(pictures(FoE(filters=3, size=3)), DESCENT, steps=3)
    assert all(row["block"] == 4 for row in outcome.record.rows[1:])
    assert {row["kind"] for row in outcome.record.rows} == {"certified"}
    assert all(0 < row["certifying"] < 1 for row in outcome.record.rows[1:])


@pytest.mark.parametrize("name", ["quadratic", "pictures"])
def test_blocks_of_descent_resume_to_the_same_numbers(name, tmp_path):
    make = GALLERY["quadratic"] if name == "quadratic" else pictures
    whole = run(make(), DESCENT, steps=3, seed=3)
    for steps in (1, 3):
        part = run(make(), DESCENT, steps=steps, seed=3, checkpoint=tmp_path, resume=True)
    assert_same(whole, part)


def test_estimates_that_are_wrong_end_in_steps_of_maid(monkeypatch):
    """A corrected value that praises every step: no block can be certified, and the run goes on."""
    problem = pictures(FoE(filters=3, size=3))

    def praised(self, adjoint):
        return -float(self.theta.square().sum())

    monkeypatch.setattr(BilevelValue, "corrected", praised)
    monkeypatch.setattr(BilevelValue, "doubt", lambda self, adjoint: 1e-9)
    outcome = run(problem, DESCENT, budget=Budget(steps=2, work=3000))
    assert outcome.record.rows[1]["block"] == 0
    losses = [exact_loss(problem, theta) for theta in outcome.thetas]
    assert all(after <= before for before, after in pairwise(losses))


def test_an_ill_posed_problem_costs_less_than_with_a_certificate_at_every_step():
    """MRI with mu = 1e-3: certified distances are some hundred times the true ones."""
    blocks = run(scanned(), Deferred(), budget=Budget(work=600))
    steps = run(scanned(), MAID(), budget=Budget(work=600))
    exact = [Bilevel(scanned()).evaluate(found.theta, 1e-2).loss for found in (blocks, steps)]
    assert exact[0] < exact[1]


def test_auto_takes_descent_for_few_images_and_batches_where_a_method_is_chosen():
    problem = pictures(FoE(filters=3, size=3))
    taken = run(problem, Deferred(length=3), steps=1).theta
    assert taken.equal(run(problem, Deferred(length=3, steps="descent"), steps=1).theta)
    assert not taken.equal(run(problem, Deferred(ADAM, length=3), steps=1).theta)


def test_the_doubt_of_a_value_is_the_mean_size_of_its_corrections():
    problem = pictures(FoE(filters=3, size=3))
    objective = Bilevel(problem)
    value = objective.evaluate(problem.theta, 3.0)
    q = objective.gradient(value, 1e-3, error="none").adjoint
    exact = objective.evaluate(problem.theta, 1e-6).loss
    assert value.doubt(None) == 0
    assert abs(value.corrected(q) - value.loss) <= value.doubt(q)
    assert abs(value.corrected(q) - exact) <= value.doubt(q)
    assert doubt_of(value, q) == value.doubt(q)


def scanned() -> BilevelProblem:
    """Two phantoms of which a third of the frequencies is known."""
    physics = MRI(acceleration=3).build((24, 24))
    x = phantoms()[0].x
    noise = torch.randn(2, 2, 24, 24, generator=torch.Generator().manual_seed(0))
    y = physics.A(x) + 0.03 * noise
    regularizer = FoE(filters=3, size=3, weight=0.01) + Tikhonov(1e-3, learned=False)
    return BilevelProblem(Energy(physics, regularizer), Plain(x=x, y=y))


def test_a_block_ends_early_so_that_the_budget_still_certifies_it():
    """What a budget cuts off would be lost: the last certificate ends close to it."""
    problem = pictures(FoE(filters=3, size=3))
    longest = Deferred(length=500)
    outcome = run(problem, longest, budget=Budget(work=400))
    last = outcome.record.rows[-1]
    assert 0 < last["block"] < 500
    assert last["loss"] < outcome.record.rows[0]["lower"]
    assert 0.4 * 400 <= last["work"] / problem.size <= 1.1 * 400
