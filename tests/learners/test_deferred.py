"""Blocks of stochastic steps: the end of every block is certified, whatever happens inside."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.learners.cases import (
    GALLERY,
    assert_same,
    exact_loss,
    pictures,
    run,
    slack,
)
from tests.learners.test_certified_decrease import images, vectors

from learnreg.core.errors import InputError
from learnreg.learners import MAID, Deferred, Stochastic
from learnreg.regularizers import FoE
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
