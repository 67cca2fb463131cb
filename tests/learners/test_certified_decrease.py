"""Certified decrease and brackets on random small problems, checked with tight solves of another
kind.

MAID and its fixed-accuracy baseline: the exact loss falls at every accepted step by as much as is
promised. Every other learner that shows a bracket: the exact loss lies in it.
"""

from __future__ import annotations

from itertools import pairwise

import deepinv
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.learners.cases import Plain, Watched, assert_certified, exact_loss, run, slack

from learnreg.hypergradients import Implicit, JacobianFree, Unrolled
from learnreg.learners import (
    HOAG,
    LBFGSB,
    MAID,
    FixedAccuracy,
    GridSearch,
    RandomSearch,
    Stochastic,
)
from learnreg.problems import BilevelProblem, Energy, gallery
from learnreg.regularizers import TV, FoE, Tikhonov
from learnreg.runs import Budget

quick = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def pictures(kind: str, seed: int, count: int, noise: float, dtype: torch.dtype) -> BilevelProblem:
    """Denoising of smooth random images of 8 x 8 pixels with an edge."""
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 1, 3, 3, generator=g, dtype=torch.float64)
    x = torch.nn.functional.interpolate(x, size=8, mode="nearest")
    y = x + noise * torch.randn(x.shape, generator=g, dtype=torch.float64)
    weight = 10 ** (2 * float(torch.rand((), generator=g)) - 2.5)
    regularizer = {
        "TV": lambda: TV(weight, smoothing=weight),
        "FoE": lambda: FoE(2, 3, init="random", seed=seed),
        "sum": lambda: TV(weight, isotropic=False) + Tikhonov(weight),
    }[kind]()
    return BilevelProblem(
        Energy(deepinv.physics.Denoising(), regularizer), Plain(x=x.to(dtype), y=y.to(dtype))
    )


sizes = st.integers(1, 4)
seeds = st.integers(0, 2**20)
vectors = st.one_of(
    st.builds(
        lambda images, n, d, c, seed: gallery.quadratic(
            images=images, n=n, d=d, condition=10**c, seed=seed
        ),
        st.integers(1, 3),
        sizes,
        sizes,
        st.floats(0, 2.5),
        seeds,
    ),
    st.builds(
        lambda c, n, d, seed: gallery.spectrum_quadratic(10**c, n=n + d, d=d, seed=seed),
        st.floats(0, 2),
        sizes,
        sizes,
        seeds,
    ),
    st.builds(
        lambda images, w, nu, seed: gallery.scalar_tv(images, 10**w, 10**nu, seed),
        sizes,
        st.floats(-2.5, 0.5),
        st.floats(-2, 0),
        seeds,
    ),
)
images = st.builds(
    pictures,
    st.sampled_from(["TV", "FoE", "sum"]),
    seeds,
    st.integers(1, 2),
    st.floats(0.03, 0.3),
    st.sampled_from([torch.float32, torch.float64]),
)
scales = st.none() | st.floats(-3, 1).map(lambda e: 10**e)
strategies = st.sampled_from(
    [Implicit(), JacobianFree(terms=1), JacobianFree(terms=5), Unrolled(steps=5, start="solution")]
)
maids = st.builds(
    MAID,
    eps0=scales,
    delta0=scales,
    alpha0=scales,
    memory=st.sampled_from([0, MAID().memory]),
    sufficient=st.sampled_from([1e-4, 0.3]),
    gradient_tolerance=st.just(1e-6),
)
fixed = st.builds(
    FixedAccuracy,
    eps=st.floats(-6, -1).map(lambda e: 10**e),
    delta=st.floats(-6, 0).map(lambda e: 10**e),
    alpha0=scales,
    memory=st.sampled_from([0, 20]),
    sufficient=st.sampled_from([1e-4, 0.3]),
)


def decreases(problem: BilevelProblem, learner: object, strategy: object, seed: int) -> None:
    watched = Watched(learner)
    outcome = run(
        problem, watched, budget=Budget(steps=4, work=800), hypergradient=strategy, seed=seed
    )
    losses = [exact_loss(problem, theta) for theta in outcome.thetas]
    assert_certified(problem, watched, outcome, losses)
    assert all(after <= before + 2 * slack(problem) for before, after in pairwise(losses))


@settings(quick, max_examples=40)
@given(problem=vectors, learner=maids | fixed, strategy=strategies)
def test_accepted_steps_decrease_the_exact_loss_of_vectors(problem, learner, strategy):
    decreases(problem, learner, strategy, 0)


@settings(quick, max_examples=10)
@given(problem=images, learner=maids | fixed, strategy=strategies)
def test_accepted_steps_decrease_the_exact_loss_of_pictures(problem, learner, strategy):
    decreases(problem, learner, strategy, 0)


@settings(quick, max_examples=6)
@given(problem=vectors | images, learner=maids, factor=st.floats(0.01, 1.0))
def test_with_a_penalty_too(problem, learner, factor):
    start = problem.theta.double()

    def penalty(theta):
        return factor * (theta.double() - start - 1).square().sum()

    problem.penalty = penalty
    watched = Watched(learner)
    outcome = run(problem, watched, budget=Budget(steps=3, work=800))
    losses = [exact_loss(problem, theta) + float(penalty(theta)) for theta in outcome.thetas]
    assert_certified(problem, watched, outcome, losses)


rivals = st.one_of(
    st.builds(
        HOAG,
        st.sampled_from(["quadratic", "cubic", "geometric"]),
        eps0=scales,
        delta0=scales,
        alpha0=scales,
    ),
    st.builds(
        LBFGSB,
        eps=st.floats(-6, 0).map(lambda e: 10**e),
        delta=st.floats(-6, 0).map(lambda e: 10**e),
    ),
    st.builds(RandomSearch, st.just([-8.0, 2.0]), eps=st.floats(-4, 0).map(lambda e: 10**e)),
    st.builds(
        GridSearch, st.just([-8.0, 2.0]), st.just(2), eps=st.floats(-4, 0).map(lambda e: 10**e)
    ),
)


def brackets(problem: BilevelProblem, learner: object, seed: int) -> None:
    if isinstance(learner, GridSearch) and problem.theta.numel() > 6:
        learner = RandomSearch(learner.box, learner.eps)
    outcome = run(problem, learner, budget=Budget(steps=4, work=800), seed=seed)
    off = slack(problem)
    for row, theta in zip(outcome.record.rows, outcome.thetas, strict=True):
        loss = exact_loss(problem, theta)
        wide = off + 1e-9 * abs(loss)  # far out the tight solves are no tighter than rounding
        assert row["lower"] - wide <= loss <= row["upper"] + wide, row
        assert row["lower"] - wide <= row["loss"] <= row["upper"] + wide


@settings(quick, max_examples=20)
@given(problem=vectors, learner=rivals, seed=st.integers(0, 99))
def test_brackets_of_other_learners_hold_for_vectors(problem, learner, seed):
    brackets(problem, learner, seed)


@settings(quick, max_examples=8)
@given(problem=images, learner=rivals, seed=st.integers(0, 99))
def test_brackets_of_other_learners_hold_for_pictures(problem, learner, seed):
    brackets(problem, learner, seed)


@settings(quick, max_examples=10)
@given(problem=vectors, batch=st.integers(1, 4), eps=st.floats(-3, 0).map(lambda e: 10**e))
def test_the_only_bracket_of_a_stochastic_run_holds(problem, batch, eps):
    row = run(
        problem, Stochastic(batch=batch, eps0=eps, delta0=eps), budget=Budget(work=1e-9)
    ).record.rows[0]
    assert row["lower"] - slack(problem) <= problem.exact_loss() <= row["upper"] + slack(problem)
