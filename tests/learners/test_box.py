"""Box constraints: by name or for all, kept at every step, and the constrained optimum is found."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from tests.learners.cases import (
    GALLERY,
    IMAGES,
    Watched,
    assert_certified,
    exact_loss,
    pictures,
    run,
)

from learnreg.core.errors import InputError
from learnreg.learners import (
    HOAG,
    LBFGSB,
    MAID,
    Deferred,
    FixedAccuracy,
    GridSearch,
    RandomSearch,
    Stochastic,
)
from learnreg.learners.box import Box, box_of, check_ranges
from learnreg.objectives.bilevel import Bilevel

INF = math.inf


# --- the box itself -------------------------------------------------------------------------------


def test_one_range_is_for_all_parameters():
    box = box_of([-7, 8.5], Bilevel(pictures()))
    assert box.lower.tolist() == [-7, -7] and box.upper.tolist() == [8.5, 8.5]
    assert box.bounded and box.lower.dtype == torch.float64


def test_no_range_is_no_constraint():
    box = box_of(None, Bilevel(pictures()))
    assert (
        box.lower.tolist() == [-INF, -INF] and box.upper.tolist() == [INF, INF] and not box.bounded
    )


def test_ranges_by_name_leave_the_others_free():
    box = box_of({"log_smoothing": [-5, -1]}, Bilevel(pictures()))
    assert box.lower.tolist() == [-INF, -5] and box.upper.tolist() == [INF, -1] and not box.bounded


def test_a_name_stands_for_all_its_entries_and_one_of_them_can_be_named():
    problem = pictures(IMAGES["FoE"]())
    names = [n.removeprefix("regularizer.") for n in problem.parameter_names]
    one = next(n for n in names if n.endswith("[1]"))
    group = one.partition("[")[0]
    box = box_of({group: [-50, 50], one: [-60, 60]}, Bilevel(problem))
    for name, low, high in zip(names, box.lower.tolist(), box.upper.tolist(), strict=True):
        expected = 60 if name == one else 50 if name.partition("[")[0] == group else INF
        assert (low, high) == (-expected, expected)


@pytest.mark.parametrize("kind", IMAGES)
def test_names_are_those_that_a_problem_prints(kind):
    problem = pictures(IMAGES[kind]())
    for i, name in enumerate(problem.parameter_names):
        for key in (name, name.removeprefix("regularizer.")):
            box = box_of({key: [-50, 50]}, Bilevel(problem))
            assert box.lower[i] == -50


def test_half_open_ranges():
    box = box_of([-INF, 3], Bilevel(pictures()))
    assert not box.bounded and box.project(torch.tensor([-1e9, 4.0])).tolist() == [-1e9, 3.0]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    theta=st.lists(st.floats(-10, 10), min_size=1, max_size=4),
    low=st.floats(-5, 0),
    width=st.floats(0.1, 5),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_projection_gives_the_nearest_point(theta, low, width, dtype):
    theta = torch.tensor(theta, dtype=dtype)
    lower = torch.full((len(theta),), low, dtype=torch.float64)
    box = Box(lower, lower + width)
    found = box.project(theta)
    assert found.dtype == dtype
    expected = [
        min(max(t, box.lower.to(dtype)[0].item()), box.upper.to(dtype)[0].item())
        for t in theta.tolist()
    ]
    assert found.tolist() == expected
    assert box.project(found).equal(found)


@pytest.mark.parametrize(
    "ranges",
    [
        [1.0],
        [1.0, 2.0, 3.0],
        [2.0, 1.0],
        [1.0, 1.0],
        ["a", "b"],
        [math.nan, 1.0],
        [0.0, math.nan],
        [True, 2.0],
        3.0,
        "wide",
        {"w": 3.0},
        {"w": [2.0, 1.0]},
        {"w": None},
        torch.tensor([0.0, 1.0]),
    ],
)
def test_what_is_no_range_is_refused(ranges):
    with pytest.raises(InputError, match=r"^box.*lower < upper"):
        check_ranges("box", ranges)


@pytest.mark.parametrize(
    "ranges", [None, [0, 1], (0.0, 1.0), [-INF, INF], {}, {"a": [0, 1], "b[3]": [-INF, 1.0]}]
)
def test_what_is_a_range_is_not(ranges):
    check_ranges("box", ranges)


def test_a_wrong_name_is_named_with_those_that_exist():
    with pytest.raises(InputError, match=r"'weight'.*one of log_smoothing, log_weight"):
        run(pictures(), HOAG(box={"weight": [-5, 5]}), steps=1)


@pytest.mark.parametrize("learner", [HOAG, LBFGSB, MAID, Stochastic, GridSearch, RandomSearch])
def test_a_start_outside_is_refused_before_anything_is_solved(learner, monkeypatch):
    monkeypatch.setattr("learnreg.objectives.bilevel.Bilevel._solve", None)
    with pytest.raises(InputError, match=r"start outside of it \(log_weight\)"):
        run(pictures(), learner(box={"log_weight": [-2, 5], "log_smoothing": [-9, 5]}), steps=1)


# --- learners in a box ----------------------------------------------------------------------------


def bounds(problem, active: bool) -> dict:
    """A box around the start that holds the optimum, or leaves it out in the entry that is farthest
    away.
    """
    start, best = problem.theta.double(), problem.exact_optimum()
    reach = 3 * (best - start).abs() + 1
    low, high = start - reach, start + reach
    if active:
        i = int((best - start).abs().argmax())
        (high if best[i] > start[i] else low)[i] = 0.5 * (start[i] + best[i])
    names = [n.removeprefix("regularizer.") for n in problem.parameter_names]
    return {name: [float(a), float(b)] for name, a, b in zip(names, low, high, strict=True)}


def constrained_optimum(problem, box: Box) -> torch.Tensor:
    """By SciPy on the closed form."""

    def exact(x):
        theta = torch.tensor(x)
        return problem.exact_loss(theta), problem.exact_hypergradient(theta).numpy()

    pairs = list(zip(box.lower.tolist(), box.upper.tolist(), strict=True))
    found = minimize(
        exact,
        problem.theta.numpy(),
        jac=True,
        bounds=pairs,
        method="L-BFGS-B",
        options={"ftol": 1e-15, "gtol": 1e-10},
    )
    return torch.tensor(np.asarray(found.x))


LEARNERS = {
    "hoag": (lambda box: HOAG(box=box, eps0=1e-2, delta0=1e-2, alpha0=1.0), 40),
    "lbfgsb": (lambda box: LBFGSB(box=box, eps=1e-8, delta=1e-8), 40),
    "maid": (lambda box: MAID(box=box), 40),
    "fixed": (lambda box: FixedAccuracy(box=box, eps=1e-7, delta=1e-7), 40),
    "steepest": (lambda box: MAID(box=box, memory=0, alpha0=1.0), 40),
    "sgd": (
        lambda box: Stochastic(
            box=box,
            batch=3,
            alpha0=1.5,
            step_exponent=0.0,
            accuracy_exponent=2.0,
            record=20,
            eps0=1e-2,
            delta0=1e-2,
        ),
        2,
    ),
    "momentum": (
        lambda box: Stochastic(
            box=box,
            batch=3,
            alpha0=0.5,
            step_exponent=0.0,
            accuracy_exponent=2.0,
            momentum=0.5,
            record=40,
            eps0=1e-2,
            delta0=1e-2,
        ),
        1,
    ),
    "adam": (
        lambda box: Stochastic(
            box=box,
            batch=3,
            alpha0=0.3,
            step_exponent=0.5,
            accuracy_exponent=2.0,
            record=40,
            eps0=1e-2,
            delta0=1e-2,
            optimizer="adam",
        ),
        1,
    ),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_the_constrained_optimum_is_found_and_the_box_never_left(name):
    problem = GALLERY["quadratic"]()
    ranges = bounds(problem, active=True)
    make, steps = LEARNERS[name]
    outcome = run(problem, make(ranges), steps=steps)
    box = box_of(ranges, Bilevel(problem))
    assert bool((outcome.thetas >= box.lower).all()) and bool((outcome.thetas <= box.upper).all())
    expected = constrained_optimum(problem, box)
    assert float((expected - problem.exact_optimum()).norm()) > 0.1, "the box is in the way"
    distances = [float((theta - expected).norm()) for theta in outcome.thetas[-15:]]
    assert min(distances) < {"lbfgsb": 1e-5, "adam": 5e-2}.get(name, 1e-2)


@pytest.mark.parametrize("learner", [HOAG, MAID, Stochastic])
def test_a_box_that_is_not_in_the_way_changes_nothing(learner):
    one, two = (
        run(GALLERY["quadratic"](), learner(box=box), steps=3)
        for box in (None, bounds(GALLERY["quadratic"](), active=False))
    )
    assert one.thetas.equal(two.thetas)


@pytest.mark.parametrize(
    "learner",
    [
        HOAG(box=[-3.2, 1.0], alpha0=100.0),
        LBFGSB(box={"log_weight": [-3.0, -2.9]}),
        Stochastic(box=[-4.5, 0.0], optimizer="adam", alpha0=1.0),
        MAID(box={"log_weight": [-3.0, -2.9]}),
    ],
    ids=["hoag", "lbfgsb", "adam", "maid"],
)
def test_a_box_holds_for_pictures_in_float32(learner):
    if isinstance(learner.box, list) and learner.box[0] == -3.2:
        problem = pictures(type(IMAGES["TV"]())(smoothing=0.05))
    else:
        problem = pictures()
    outcome = run(problem, learner, steps=3)
    box = box_of(learner.box, Bilevel(problem))
    low, high = box.lower.to(outcome.thetas), box.upper.to(outcome.thetas)
    assert bool((outcome.thetas >= low).all()) and bool((outcome.thetas <= high).all())
    assert bool(((outcome.thetas[1:] == low) | (outcome.thetas[1:] == high)).any()), (
        "the box is in the way"
    )


@pytest.mark.parametrize("test", ["estimated", "certified"])
@pytest.mark.parametrize("memory", [0, 20])
def test_every_step_along_a_box_has_a_certified_decrease(memory, test):
    problem = GALLERY["quadratic"]()
    ranges = bounds(problem, active=True)
    watched = Watched(MAID(box=ranges, memory=memory, test=test))
    outcome = run(problem, watched, steps=12)
    assert_certified(
        problem, watched, outcome, [exact_loss(problem, theta) for theta in outcome.thetas]
    )
    box = box_of(ranges, Bilevel(problem))
    held = (outcome.thetas == box.lower) | (outcome.thetas == box.upper)
    assert bool(held.any()), "the box is in the way"


def test_an_end_is_left_when_the_gradient_points_inside():
    """From a corner: the first entries are released, the others held."""
    problem = GALLERY["quadratic"]()
    best, start = problem.exact_optimum(), problem.theta.double()
    names = [n.removeprefix("regularizer.") for n in problem.parameter_names]
    ranges = {
        name: [float(b), float(b) + 5] if best[i] > b else [float(b) - 5, float(b)]
        for i, (name, b) in enumerate(zip(names, start, strict=True))
    }
    outcome = run(problem, MAID(box=ranges), steps=40)
    box = box_of(ranges, Bilevel(problem))
    expected = constrained_optimum(problem, box)
    assert bool(((start == box.lower) | (start == box.upper)).all())
    assert float((outcome.theta - expected).norm()) < 1e-3 < float((expected - start).norm())


def test_where_all_entries_are_held_the_run_ends_as_stationary():
    problem = GALLERY["quadratic"]()
    start, slope = problem.theta.double(), problem.exact_hypergradient(problem.theta)
    names = [n.removeprefix("regularizer.") for n in problem.parameter_names]
    ranges = {
        name: [float(b), float(b) + 5] if slope[i] > 0 else [float(b) - 5, float(b)]
        for i, (name, b) in enumerate(zip(names, start, strict=True))
    }
    outcome = run(problem, MAID(box=ranges), steps=40)
    assert outcome.stop.code == "stationary" and outcome.theta.equal(problem.theta)


def test_blocks_refuse_a_box_before_anything_is_solved():
    with pytest.raises(InputError, match=r"certify.box.*MAID\(box"):
        Deferred(certify=MAID(box=[-1, 1]))
    with pytest.raises(InputError, match="box"):
        MAID(box=[1, -1])
