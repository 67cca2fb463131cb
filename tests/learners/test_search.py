"""Search without gradients: every point of a grid once, points inside the box, the best one kept,
exact resume.
"""

from __future__ import annotations

import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.learners.cases import GALLERY, Watched, assert_same, exact_loss, pictures, run
from tests.learners.test_maid import broken
from tests.learners.test_quasi_newton import Fenced
from tests.runs.test_resume import Case, in_parts

from learnreg.core.errors import InputError, MissingPropertyError
from learnreg.hypergradients import Unrolled
from learnreg.learners import GridSearch, OptunaSearch, RandomSearch
from learnreg.learners import search as module
from learnreg.objectives.bilevel import Bilevel

BOX = [-5.0, 3.0]
"""Around both log scales of TV and of the two pixels, which start near (-2.3, -3.0)."""


@pytest.fixture
def asked(monkeypatch) -> list[torch.Tensor]:
    """The thetas that were solved, the start first."""
    thetas, solve = [], Bilevel.evaluate

    def watched(lower, theta, *rest):
        thetas.append(theta)
        return solve(lower, theta, *rest)

    monkeypatch.setattr(Bilevel, "evaluate", watched)
    return thetas


# --- grid -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 7])
def test_the_grid_visits_every_point_once_and_ends(seed, asked):
    outcome = run(GALLERY["two_pixels"](), GridSearch(BOX, points=4), seed=seed)
    assert outcome.stop.code == "grid" and "16 points" in outcome.stop.sentence
    assert len(outcome.record.rows) == 17 and len(asked) == 17
    values = [-5.0, -5 + 8 / 3, -5 + 16 / 3, 3.0]
    nearest = [
        tuple(min(range(4), key=lambda i, t=t: abs(values[i] - t)) for t in theta.tolist())
        for theta in asked[1:]
    ]
    assert sorted(nearest) == [(i, j) for i in range(4) for j in range(4)]
    for theta, (i, j) in zip(asked[1:], nearest, strict=True):
        assert theta.tolist() == pytest.approx([values[i], values[j]], abs=1e-12)
        assert all(-5 <= t <= 3 for t in theta.tolist())


def test_the_order_is_drawn_from_the_seed(asked):
    orders = []
    for seed in (0, 0, 1):
        asked.clear()
        run(GALLERY["two_pixels"](), GridSearch(BOX, points=3), seed=seed)
        orders.append([tuple(theta.tolist()) for theta in asked])
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == sorted(orders[2])


def test_a_grid_by_name_has_its_own_ends(asked):
    run(
        pictures(),
        GridSearch({"log_weight": [-4.0, -2.0], "log_smoothing": [-5.0, -1.0]}, points=2),
    )
    assert {tuple(theta.tolist()) for theta in asked[1:]} == {
        (-4, -5),
        (-4, -1),
        (-2, -5),
        (-2, -1),
    }


def test_a_grid_of_too_many_points_is_refused_before_anything_is_solved(asked):
    with pytest.raises(InputError, match=r"101 per parameter, 3 parameters.*at most 1000000"):
        run(GALLERY["quadratic"](), GridSearch([-2, 2], points=101))
    assert not asked


# --- random points --------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None, derandomize=True)
@given(low=st.floats(-4, 0.9), high=st.floats(1.1, 4), seed=st.integers(0, 2**40))
def test_random_points_lie_in_the_box(low, high, seed):
    watched = Watched(RandomSearch([low, high], eps=1.0))
    thetas, tried = [], module._tried
    module._tried = lambda eps, lower, state, theta: (
        thetas.append(theta) or tried(eps, lower, state, theta)
    )
    try:
        run(GALLERY["quadratic"](), watched, steps=3, seed=seed)
    finally:
        module._tried = tried
    found = torch.stack(thetas)
    assert found.shape == (3, 3) and bool((found >= low).all()) and bool((found <= high).all())
    assert len(found.unique()) == 9


def test_random_points_fill_the_box(asked):
    run(
        GALLERY["two_pixels"](),
        RandomSearch({"theta[0]": [-4, 0], "theta[1]": [-5, -1]}, eps=1.0),
        steps=40,
    )
    share = (torch.stack(asked[1:]) - torch.tensor([-4.0, -5.0])) / 4
    assert float(share.min()) < 0.1 and float(share.max()) > 0.9
    assert torch.allclose(share.mean(dim=0), torch.tensor([0.5, 0.5]).double(), atol=0.15)


def test_points_depend_on_the_seed_alone(asked):
    found = []
    for seed in (3, 3, 4):
        asked.clear()
        torch.manual_seed(len(found))
        before = torch.get_rng_state()
        run(GALLERY["two_pixels"](), RandomSearch(BOX), steps=3, seed=seed)
        assert torch.get_rng_state().equal(before)
        found.append(torch.stack(asked))
    assert found[0].equal(found[1]) and not found[0].equal(found[2])


# --- the best point -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "learner", [GridSearch(BOX, points=5), RandomSearch(BOX)], ids=["grid", "random"]
)
def test_the_best_point_is_kept(learner, asked):
    problem = GALLERY["two_pixels"]()
    outcome = run(problem, learner, steps=25)
    losses = [exact_loss(problem, theta) for theta in asked]
    assert exact_loss(problem, outcome.theta) <= min(losses) + 1e-3
    shown = outcome.record.column("loss")
    assert shown == sorted(shown, reverse=True) and shown[-1] < shown[0]
    tried = outcome.record.column("tried")
    assert tried[0] is None
    for k in range(1, 26):
        assert tried[k] == pytest.approx(losses[k], abs=2e-2)
        assert shown[k] == min(shown[0], *tried[1 : k + 1])
    for row, theta in zip(outcome.record.rows, outcome.thetas, strict=True):
        assert row["lower"] <= exact_loss(problem, theta) <= row["upper"]


def test_points_that_cannot_be_solved_lose(asked):
    problem = pictures(broken(limit=-2.9))
    outcome = run(problem, GridSearch([-4.5, -1.0], points=3))
    unsolved = [theta for theta in asked if theta[0] > -2.9]
    assert len(unsolved) == 6
    assert outcome.record.column("tried").count(None) == 1 + len(unsolved)
    assert outcome.theta[0] <= -2.9 and outcome.stop.code == "grid"


def test_points_without_finite_constants_lose():
    problem = GALLERY["quadratic"]()
    problem.energy.__class__ = Fenced
    outcome = run(problem, RandomSearch([0.0, 1.0]), steps=12)
    tried = outcome.record.column("tried")
    assert None in tried[1:] and any(t is not None for t in tried)
    assert bool((outcome.thetas[:, 1] >= 0.5).all())


def test_a_start_that_cannot_be_solved_loses():
    problem = pictures(broken(limit=-3.5))
    outcome = run(problem, GridSearch([-4.5, -1.0], points=2))
    assert problem.theta[0] > -3.5 > outcome.theta[0]
    assert outcome.record.rows[-1]["upper"] < math.inf


def test_it_goes_on_in_float64():
    outcome = run(pictures(), GridSearch([-5.0, -2.0], points=2, eps=2e-7), steps=2)
    assert outcome.theta.dtype == torch.float64 and len(outcome.record.rows) == 3
    assert (
        run(pictures(), GridSearch([-5.0, -2.0], eps=2e-7), promote=False).stop.code
        == "rounding_floor"
    )


# --- resume ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "learner", [GridSearch(BOX, points=3), RandomSearch(BOX)], ids=["grid", "random"]
)
@pytest.mark.parametrize("make", [GALLERY["two_pixels"], pictures], ids=["two_pixels", "TV"])
def test_a_run_in_parts_is_the_whole_run(make, learner, tmp_path):
    assert_same(
        run(make(), learner, steps=7), in_parts(Case(make, learner), tmp_path, (0, 1, 4, 7))
    )


def test_a_finished_grid_stays_finished(tmp_path):
    one = run(GALLERY["two_pixels"](), GridSearch(BOX, points=2), checkpoint=tmp_path)
    two = run(GALLERY["two_pixels"](), GridSearch(BOX, points=2), checkpoint=tmp_path, resume=True)
    assert_same(one, two)
    assert one.stop == two.stop


# --- Optuna ---------------------------------------------------------------------------------------


def test_without_optuna_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"no package optuna.*pip install 'learnreg\[optuna\]'"):
        run(GALLERY["two_pixels"](), OptunaSearch(BOX), steps=1)


def test_optuna_proposes_points_in_the_box_and_the_best_is_kept(asked):
    pytest.importorskip("optuna")
    problem = GALLERY["two_pixels"]()
    outcome = run(problem, OptunaSearch(BOX), steps=15)
    assert all(bool((theta >= -5).all() and (theta <= 3).all()) for theta in asked)
    best = min(exact_loss(problem, theta) for theta in asked)
    assert exact_loss(problem, outcome.theta) <= best + 1e-3


def test_a_run_of_optuna_in_parts_is_the_whole_run(tmp_path):
    pytest.importorskip("optuna")
    make, learner = GALLERY["two_pixels"], OptunaSearch(BOX)
    whole = run(make(), learner, steps=14)
    assert_same(whole, in_parts(Case(make, learner), tmp_path, (0, 1, 5, 14)))
    assert not run(make(), learner, steps=14, seed=1).theta.equal(whole.theta)


def test_optuna_can_be_told_of_points_that_cannot_be_solved():
    pytest.importorskip("optuna")
    outcome = run(pictures(broken(limit=-2.9)), OptunaSearch([-4.5, -1.0]), steps=6)
    assert len(outcome.record.rows) == 7 and outcome.theta[0] <= -2.9


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("learner", [GridSearch, RandomSearch, OptunaSearch])
def test_a_box_is_needed(learner):
    with pytest.raises(InputError, match=r"box: given None.*box=\[-7, 7\]"):
        learner(None)


@pytest.mark.parametrize("learner", [GridSearch, RandomSearch])
@pytest.mark.parametrize("box", [{"log_weight": [-5, 1]}, [-math.inf, 1.0]])
def test_every_parameter_needs_both_bounds(learner, box, asked):
    with pytest.raises(InputError, match="without finite bounds"):
        run(pictures(), learner(box), steps=1)
    assert not asked


@pytest.mark.parametrize(
    ("learner", "arguments", "name"),
    [
        (GridSearch, {"points": 1}, "points"),
        (GridSearch, {"points": 2.5}, "points"),
        (GridSearch, {"eps": 0.0}, "eps"),
        (RandomSearch, {"eps": math.nan}, "eps"),
        (OptunaSearch, {"eps": -1.0}, "eps"),
        (RandomSearch, {"box": [1, 0]}, "box"),
    ],
)
def test_values_out_of_range_are_named(learner, arguments, name):
    with pytest.raises(InputError, match=name):
        learner(**{"box": BOX, **arguments})


@pytest.mark.parametrize(
    "learner", [GridSearch(BOX), RandomSearch(BOX), OptunaSearch(BOX)], ids=repr
)
def test_a_fixed_number_of_lower_level_steps_is_refused(learner):
    with pytest.raises(MissingPropertyError, match="Search"):
        run(GALLERY["two_pixels"](), learner, hypergradient=Unrolled(), steps=1)
