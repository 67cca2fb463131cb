"""MAID and the fixed-accuracy baseline: certified decrease on problems whose exact loss is known,
and every stop.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.learners.cases import (
    GALLERY,
    IMAGES,
    Plain,
    Watched,
    assert_certified,
    exact_loss,
    phantoms,
    pictures,
    run,
    slack,
)

from learnreg.core.errors import InputError
from learnreg.core.objective import Halt
from learnreg.core.results import StopReason
from learnreg.hypergradients import Implicit
from learnreg.learners import MAID, FixedAccuracy
from learnreg.objectives.bilevel import Bilevel
from learnreg.problems import gallery
from learnreg.regularizers import TV
from learnreg.runs import Budget, learn

TESTS = ("estimated", "certified")
METHODS = {"paper": {"memory": 0}, "default": {}}
POSED = {**GALLERY, **{name: (lambda make=make: pictures(make())) for name, make in IMAGES.items()}}


def watch(problem, learner, **arguments):
    """The run, the states it went through, and the exact loss at every theta."""
    watched = Watched(learner)
    outcome = run(problem, watched, **arguments)
    return outcome, watched, [exact_loss(problem, theta) for theta in outcome.thetas]


def gradient_size(problem, theta) -> float:
    return float(problem.exact_hypergradient(theta).norm())


# --- what every accepted step promises ------------------------------------------------------------


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", POSED)
def test_every_accepted_step_decreases_the_exact_loss(name, method, test):
    problem = POSED[name]()
    learner = MAID(test=test, gradient_tolerance=1e-6, **METHODS[method])
    outcome, watched, losses = watch(problem, learner, steps=5 if name == "FoE" else 8)
    assert len(losses) > 4
    assert_certified(problem, watched, outcome, losses)


@pytest.mark.parametrize("name", GALLERY)
def test_every_accepted_step_decreases_the_exact_loss_in_float32(name):
    problem = GALLERY[name]().to(torch.float32)
    outcome, watched, losses = watch(problem, MAID(), steps=8, promote=False)
    assert len(losses) > 3 and outcome.theta.dtype == torch.float32
    assert_certified(problem, watched, outcome, losses)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", GALLERY)
def test_the_certified_descent_test_means_what_it_says(name, method):
    """||z - grad f|| <= omega, and <d, grad f> >= eta <d, z> for the direction that was taken."""
    problem, learner = (
        GALLERY[name](),
        MAID(test="certified", gradient_tolerance=1e-6, **METHODS[method]),
    )
    _, watched, _ = watch(problem, learner, steps=10)
    for state in watched.states[1:]:
        (theta, z), exact = state.last, problem.exact_hypergradient(state.last[0])
        assert (z - exact).norm() <= state.info["omega_certified"] * (1 + 1e-9)
        assert float(z.norm()) == pytest.approx(state.info["gradient_norm"])
        d = theta - state.point.theta
        assert d @ exact >= learner.eta * (d @ z) * (1 - 1e-9)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    images=st.integers(1, 3),
    n=st.integers(1, 5),
    d=st.integers(1, 5),
    condition=st.floats(0, 2.5),
    seed=st.integers(0, 2**20),
    memory=st.sampled_from([0, 1, 20]),
    test=st.sampled_from(TESTS),
    start=st.tuples(*[st.none() | st.floats(-4, 3).map(lambda e: 10**e)] * 3),
    constants=st.tuples(st.floats(0.1, 0.9), st.floats(0.05, 0.95), st.floats(0.01, 0.9)),
)
def test_no_quadratic_and_no_setting_breaks_the_promise(
    images, n, d, condition, seed, memory, test, start, constants
):
    problem = gallery.quadratic(images=images, n=n, d=d, condition=10**condition, seed=seed)
    eps0, delta0, alpha0 = start
    rho, eta, share = constants
    learner = MAID(
        eps0=eps0,
        delta0=delta0,
        alpha0=alpha0,
        memory=memory,
        test=test,
        rho=rho,
        eta=eta,
        sufficient=share * eta,
        gradient_tolerance=1e-7,
    )
    outcome, watched, losses = watch(problem, learner, steps=4, budget=Budget(steps=4, work=5000))
    assert_certified(problem, watched, outcome, losses)


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("method", METHODS)
def test_it_finds_the_optimum_in_closed_form(method, test):
    problem = GALLERY["quadratic"]()
    outcome = run(problem, MAID(test=test, **METHODS[method]))
    optimum = problem.exact_optimum()
    assert outcome.stop.code in ("stationary", "accuracy_floor")
    assert torch.allclose(outcome.theta, optimum, rtol=0, atol=1e-4)
    assert 0 <= problem.exact_loss(outcome.theta) - problem.exact_loss(optimum) < 1e-9


@pytest.mark.parametrize("condition", [1.0, 10.0, 100.0])
def test_it_finds_the_optimum_of_the_quadratic_with_a_controlled_spectrum(condition):
    problem = gallery.spectrum_quadratic(condition, n=12)
    outcome = run(problem, MAID())
    assert torch.allclose(outcome.theta, problem.exact_optimum(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_it_finds_the_optimum_of_data_in_float32(method):
    problem = GALLERY["quadratic"]().to(torch.float32)
    outcome = run(problem, MAID(gradient_tolerance=1e-5, **METHODS[method]))
    assert outcome.stop.code == "stationary"
    assert torch.allclose(outcome.theta.double(), problem.exact_optimum(), rtol=0, atol=1e-4)


def test_curvature_saves_steps():
    problem = gallery.spectrum_quadratic(10.0, n=12)
    steps = [
        len(run(problem, MAID(gradient_tolerance=1e-2, **kind)).record.rows)
        for kind in METHODS.values()
    ]
    assert steps[1] < 0.5 * steps[0]


@pytest.mark.parametrize("test", TESTS)
def test_it_does_not_crawl_where_the_curvature_is_negative(test):
    """On the way the loss of the two pixels is concave: pairs from elsewhere must not hold the
    steps back.
    """
    outcome = run(GALLERY["two_pixels"](), MAID(test=test, gradient_tolerance=1e-5), steps=60)
    assert outcome.stop.code == "stationary"


def test_nothing_lent_is_changed():
    problem = pictures(IMAGES["FoE"]())
    parameters = [p.clone() for p in problem.energy.parameters()]
    x, y, random = problem.pairs.x.clone(), problem.pairs.y.clone(), torch.get_rng_state()
    run(problem, MAID(), steps=2)
    assert all(
        p.equal(before) and p.requires_grad and p.grad is None
        for p, before in zip(problem.energy.parameters(), parameters, strict=True)
    )
    assert problem.pairs.x.equal(x) and problem.pairs.y.equal(y)
    assert torch.get_rng_state().equal(random)


# --- the start ------------------------------------------------------------------------------------


def test_the_start_is_used_as_given():
    rows = run(
        GALLERY["quadratic"](), MAID(eps0=0.3, delta0=0.7, alpha0=1e-3, memory=0), steps=2
    ).record.rows
    assert (rows[0]["step"], rows[0]["eps"], rows[0]["delta"], rows[0]["step_size"]) == (
        0,
        0.3,
        0.7,
        None,
    )
    assert rows[1]["step_size"] == 1e-3
    assert rows[2]["step_size"] == pytest.approx(1e-3 * MAID().growth)


@pytest.mark.parametrize("given", ["eps0", "delta0"])
def test_one_of_the_accuracies_may_be_given(given):
    derived = run(GALLERY["quadratic"](), MAID(), steps=1).record.rows[0]
    row = run(GALLERY["quadratic"](), MAID(**{given: 0.3}), steps=1).record.rows[0]
    assert row[given[:-1]] == 0.3
    other = {"eps0": "delta", "delta0": "eps"}[given]
    assert row[other] == derived[other]


def test_the_start_is_derived_from_theta_0():
    """eps0 = 2 % of ||grad h(x0)|| / mu, delta0 = 2 % of ||grad loss(x0)||; a first step of 5 % of
    ||theta_0||.
    """
    problem = GALLERY["quadratic"]()
    x0 = problem.energy.start(problem.pairs.y)
    outcome = run(problem, MAID(memory=0), steps=1)
    first, second = outcome.record.rows
    assert first["eps"] == pytest.approx(
        0.02 * problem.energy.at(problem.pairs.y).grad(x0).norm(dim=1).mean()
    )
    assert first["delta"] == pytest.approx(0.02 * (x0 - problem.pairs.x).norm(dim=1).mean())
    assert second["trials"] == 1
    moved = float((outcome.thetas[1] - outcome.thetas[0]).norm())
    assert moved == pytest.approx(0.05 * float(outcome.thetas[0].norm()))


@pytest.mark.parametrize(
    "start", [{"eps0": 1e4}, {"eps0": 1e-9}, {"delta0": 1e4}, {"delta0": 1e-9}], ids=str
)
@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("name", ["quadratic", "TV"])
def test_a_bad_start_is_mended(name, test, start):
    """A delta above ||grad loss|| makes q = 0 a solution of the first linear system, and so z =
    0.
    """
    problem = POSED[name]()
    outcome, watched, losses = watch(problem, MAID(test=test, **start), steps=4)
    assert len(losses) == 5
    assert_certified(problem, watched, outcome, losses)


@pytest.mark.parametrize("alpha0", [1e-8, 1e3, 1e6])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.slow
def test_a_first_step_of_a_wrong_scale_is_mended(method, alpha0, monkeypatch):
    """A trial so far out that it cannot be solved, or has no finite constants, is a failed trial,
    not the end.
    """
    monkeypatch.setattr(
        Bilevel.__init__, "__defaults__", (None, "auto", 400, None)
    )  # steps of one solve, to save time
    problem = pictures()
    outcome, watched, losses = watch(
        problem, MAID(alpha0=alpha0, trials=30, **METHODS[method]), steps=2
    )
    assert len(losses) == 3
    assert_certified(problem, watched, outcome, losses)


# --- why it stops ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tolerance", [1e-2, 1e-5])
@pytest.mark.parametrize("name", GALLERY)
def test_a_certified_stationary_point_is_one(name, tolerance):
    problem = GALLERY[name]()
    outcome = run(problem, MAID(test="certified", gradient_tolerance=tolerance), steps=60)
    assert outcome.stop.code == "stationary"
    claimed = float(re.search(r"<= (\S+) \(certified\)", outcome.stop.sentence)[1])
    assert gradient_size(problem, outcome.theta) <= 1.01 * claimed <= 1.02 * tolerance


@pytest.mark.parametrize("delta0", [None, 1.0, 1e4])
@pytest.mark.parametrize("name", [*GALLERY, "ill"])
def test_an_estimated_stationary_point_is_nearly_one(name, delta0):
    """``spectrum`` and ``ill`` have no loss gradient at the optimum, so q = 0 solves every linear
    system there.
    """
    problem = gallery.spectrum_quadratic(100.0, n=40) if name == "ill" else GALLERY[name]()
    tolerance = 1e-9 if name in ("ill", "spectrum") else 1e-5
    outcome = run(problem, MAID(delta0=delta0, gradient_tolerance=tolerance))
    assert outcome.stop.code in ("stationary", "accuracy_floor")
    if outcome.stop.code == "stationary":
        assert "(estimated)" in outcome.stop.sentence
        assert gradient_size(problem, outcome.theta) <= 3 * tolerance


@pytest.mark.parametrize("delta", [100.0, 1e-2])
def test_a_gradient_that_was_never_computed_is_not_called_stationary(delta):
    """delta above ||grad loss|| makes q = 0 a solution of the linear system, and so z = 0, wherever
    theta is.
    """
    problem = GALLERY["quadratic"]()
    outcome = run(problem, FixedAccuracy(eps=1e-6, delta=delta))
    assert outcome.stop.code != "stationary" or gradient_size(problem, outcome.theta) < 1e-6


def test_the_budget_of_steps_is_met_exactly():
    outcome = run(GALLERY["quadratic"](), MAID(), budget=Budget(steps=3))
    assert [row["step"] for row in outcome.record.rows] == [0, 1, 2, 3]
    assert outcome.stop.code == "budget" and "3 accepted steps" in outcome.stop.sentence


@pytest.mark.parametrize("work", [1, 60, 200])
def test_the_budget_of_work_ends_the_run_at_the_last_accepted_step(work):
    problem = pictures()
    outcome = run(problem, MAID(), budget=Budget(work=work))
    assert (
        outcome.stop.code == "budget" and f"{work} evaluations per image" in outcome.stop.sentence
    )
    assert outcome.theta.equal(outcome.thetas[-1])
    full = run(problem, MAID(), steps=12).record.rows
    reached = [row for row in full if row["work"] / problem.size < work]
    # the steps that fit were taken; one more at most, whose last solve used the budget up
    assert max(1, len(reached)) <= len(outcome.record.rows) <= len(reached) + 1
    for row, same in zip(outcome.record.rows, full, strict=False):
        assert row["loss"] == same["loss"] and row["work"] == same["work"]


def test_the_budget_of_seconds_ends_the_run_inside_a_solve(monkeypatch):
    ticks = count()
    clock = SimpleNamespace(perf_counter=lambda: float(next(ticks)), process_time=lambda: 0.0)
    monkeypatch.setattr(sys.modules[learn.__module__], "time", clock)
    outcome = run(pictures(), MAID(), budget=Budget(seconds=150))
    assert outcome.stop.code == "budget" and "150 seconds" in outcome.stop.sentence
    assert 1 < len(outcome.record.rows) < 8
    assert outcome.record.rows[-1]["seconds"] < 150 <= next(ticks) < 160


def test_the_start_is_recorded_whatever_the_budget():
    problem = GALLERY["quadratic"]()
    outcome = run(problem, MAID(), budget=Budget(seconds=1e-9))
    assert len(outcome.record.rows) == 1
    assert outcome.theta.equal(problem.theta)
    assert (
        outcome.record.rows[0]["lower"] <= problem.exact_loss() <= outcome.record.rows[0]["upper"]
    )


def test_the_smallest_eps_is_an_accuracy_floor():
    outcome = run(GALLERY["quadratic"](), MAID(smallest_eps=1e-4))
    assert outcome.stop.code == "accuracy_floor" and "1.0e-04" in outcome.stop.sentence
    assert min(row["eps"] for row in outcome.record.rows) >= 1e-4


def test_float32_stops_at_its_floor_and_names_it():
    problem = pictures()
    outcome, watched, losses = watch(problem, MAID(), promote=False)
    assert outcome.stop.code == "rounding_floor"
    reached = float(
        re.search(
            r"more accurately than (\S+) in torch.float32; float64 would go on",
            outcome.stop.sentence,
        )[1]
    )
    assert 1e-7 < reached < 1e-3
    assert outcome.theta.dtype == torch.float32
    assert_certified(problem, watched, outcome, losses)


def test_the_run_goes_on_in_float64():
    problem = pictures()
    short = run(problem, MAID(), promote=False)
    k = len(short.thetas)
    outcome, watched, losses = watch(problem, MAID(), steps=k + 2)
    assert len(outcome.thetas) == k + 3
    assert outcome.theta.dtype == outcome.thetas.dtype == torch.float64
    assert outcome.thetas[:k].equal(short.thetas.double())
    assert [s.point.theta.dtype for s in watched.states[k - 1 : k + 1]] == [
        torch.float32,
        torch.float64,
    ]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[k - 1]
    assert_certified(problem, watched, outcome, losses)
    widths = [row["upper"] - row["lower"] for row in outcome.record.rows]
    assert widths[-1] < 0.1 * widths[k - 1]


class Stuck(MAID):
    """Every step ends at the floor of the floating-point type."""

    tried = ()

    def step(self, lower, state):
        type(self).tried += (state.point.theta.dtype,)
        raise Halt(StopReason("rounding_floor", "here"))


def test_there_is_nothing_beyond_float64():
    Stuck.tried = ()
    assert run(pictures(), Stuck()).stop.sentence == "here"
    assert Stuck.tried == (torch.float32, torch.float64)
    Stuck.tried = ()
    run(GALLERY["quadratic"](), Stuck())
    assert Stuck.tried == (torch.float64,)


def test_float64_does_not_promise_that_float64_would_go_on():
    problem = pictures(data=Plain(x=phantoms()[0].x.double(), y=phantoms()[0].y.double()))
    outcome = run(
        problem,
        MAID(eps0=1e-6, delta0=1e-6, smallest_eps=1e-300, gradient_tolerance=1e-300),
        steps=40,
    )
    assert outcome.stop.code == "rounding_floor" and "torch.float64" in outcome.stop.sentence
    assert "float64 would go on" not in outcome.stop.sentence


class Silent(TV):
    """TV without a certificate of its Hessian."""

    def hessian_change(self, x, q, radius):
        return None


def test_the_certified_test_needs_proven_constants():
    outcome = run(pictures(Silent()), MAID(test="certified"))
    assert outcome.stop.code == "no_certificate" and "test='estimated'" in outcome.stop.sentence
    assert len(outcome.record.rows) == 1
    assert len(run(pictures(Silent()), MAID(), steps=2).record.rows) == 3


def test_a_perfect_start_is_stationary():
    """Zero images are reconstructed without error at every theta: nothing to learn, and no division
    by zero.
    """
    zero = torch.zeros(2, 1, 8, 8)
    outcome = run(pictures(data=Plain(x=zero, y=zero)), MAID())
    assert outcome.stop.code == "stationary" and len(outcome.record.rows) == 1
    assert outcome.record.rows[0]["loss"] == 0


# --- NaN ------------------------------------------------------------------------------------------


class Broken(TV):
    """TV whose gradient in x is NaN where log w exceeds ``limit``, or whose mixed derivative always
    is.
    """

    limit = float("inf")
    mixed = False

    def grad(self, x):
        return super().grad(x) * (
            float("nan") if float(self.log_weight.detach()) > self.limit else 1.0
        )

    def directional(self, x, v):
        return super().directional(x, v) * (float("nan") if self.mixed else 1.0)


def broken(**attributes) -> Broken:
    regularizer = Broken()
    for name, value in attributes.items():
        setattr(regularizer, name, value)
    return regularizer


@pytest.mark.parametrize(
    "learner",
    [MAID(), MAID(eps0=0.1, delta0=0.1), FixedAccuracy()],
    ids=["derived", "given", "fixed"],
)
def test_an_energy_that_is_nan_ends_the_run_with_a_sentence(learner):
    outcome = run(pictures(broken(limit=-1e9)), learner)
    assert outcome.stop.code == "not_finite" and "NaN or Inf" in outcome.stop.sentence
    assert len(outcome.record.rows) == 1


def test_a_hypergradient_that_is_nan_ends_the_run_with_a_sentence():
    outcome = run(pictures(broken(mixed=True)), MAID())
    assert outcome.stop.code == "not_finite" and "hypergradient" in outcome.stop.sentence
    assert outcome.theta.isfinite().all()


def test_trials_that_are_nan_are_failed_trials():
    problem = pictures(broken(limit=-2.6))
    assert problem.theta[0] < -2.6 < run(pictures(), MAID(), steps=6).thetas[:, 0].max(), (
        "the limit is on the way"
    )
    outcome = run(problem, MAID(), steps=6)
    assert (outcome.thetas[:, 0] <= -2.6).all()
    assert len(outcome.record.rows) > 3
    losses = [exact_loss(problem, theta) for theta in outcome.thetas]
    assert losses == sorted(losses, reverse=True)


def spoilt(which: str, value: float) -> Plain:
    """The training pairs with one bad pixel in image 1."""
    data = Plain(x=phantoms()[0].x.clone(), y=phantoms()[0].y.clone())
    getattr(data, which)[1, 0, 3, 4] = value
    return data


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", ["x", "y"])
@pytest.mark.parametrize(
    "learner",
    [MAID(), MAID(eps0=0.1, delta0=0.1), FixedAccuracy()],
    ids=["derived", "given", "fixed"],
)
def test_pixels_that_are_not_finite_are_named(learner, which, value):
    with pytest.raises(InputError, match=rf"^{which}: given NaN or Inf in image 1;"):
        run(pictures(data=spoilt(which, value)), learner)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1000.0])
@pytest.mark.parametrize(
    "learner",
    [MAID(), MAID(eps0=0.1, delta0=0.1), FixedAccuracy()],
    ids=["derived", "given", "fixed"],
)
def test_parameters_out_of_range_are_refused_with_a_sentence(learner, value):
    """The sentence speaks of the energy or its parameters, not of accuracies that nobody gave."""
    regularizer = TV()
    with torch.no_grad():
        regularizer.log_weight.fill_(value)
    with pytest.raises(InputError, match=r"parameter|energy|theta|log_weight"):
        run(pictures(regularizer), learner)


# --- the baseline ---------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [1e-2, 1e-4])
@pytest.mark.parametrize("name", ["quadratic", "TV"])
def test_a_fixed_accuracy_never_changes(name, eps):
    problem = POSED[name]()
    outcome, watched, losses = watch(problem, FixedAccuracy(eps=eps, delta=eps))
    assert outcome.stop.code == "line_search" and "fixed accuracy" in outcome.stop.sentence
    assert "a smaller eps or MAID would go on" in outcome.stop.sentence
    assert (
        {row["eps"] for row in outcome.record.rows}
        == {row["delta"] for row in outcome.record.rows}
        == {eps}
    )
    assert {row["refinements"] for row in outcome.record.rows} == {0}
    assert len(losses) > 1
    assert_certified(problem, watched, outcome, losses)


def test_more_accuracy_takes_the_baseline_further():
    problem = GALLERY["quadratic"]()
    reached = [
        problem.exact_loss(run(problem, FixedAccuracy(eps=eps, delta=eps)).theta)
        for eps in (1e-1, 1e-3, 1e-5)
    ]
    assert reached == sorted(reached, reverse=True) and reached[0] > reached[-1]


@pytest.mark.parametrize("name", ["spectrum", "TV"])
def test_a_badly_chosen_accuracy_never_moves_while_maid_does(name):
    problem = POSED[name]()
    stuck = run(problem, FixedAccuracy(eps=1.0, delta=1.0))
    assert stuck.stop.code == "line_search" and len(stuck.record.rows) == 1
    assert stuck.theta.equal(problem.theta)
    outcome, watched, losses = watch(problem, MAID(eps0=1.0, delta0=1.0), steps=5)
    assert len(losses) == 6
    assert_certified(problem, watched, outcome, losses)


# --- the front door -------------------------------------------------------------------------------


def test_learn_is_made_of_the_public_parts():
    """The first step by hand: the same hypergradient, the same theta."""
    from learnreg.hypergradients import hypergradient

    problem = GALLERY["quadratic"]()
    outcome, watched, _ = watch(problem, MAID(memory=0, alpha0=1e-2), steps=1)
    row, (theta, z) = outcome.record.rows[1], watched.states[1].last
    by_hand = hypergradient(
        problem,
        outcome.record.rows[0]["eps"],
        row["delta"],
        theta=theta,
        strategy=Implicit(estimate=True),
    )
    assert (z - by_hand.value).norm() <= 3 * (row["omega_estimated"] + by_hand.estimated)
    assert torch.allclose(outcome.theta, theta - row["step_size"] * z, rtol=1e-14)


def test_progress_sees_every_row_once():
    seen = []
    outcome = learn(GALLERY["quadratic"](), MAID(), budget=Budget(steps=3), progress=seen.append)
    assert tuple(seen) == outcome.record.rows


def test_a_learner_may_be_changed_with_replace():
    assert replace(MAID(), memory=0) == MAID(memory=0)


def test_slack_is_small_against_what_is_checked():
    assert slack(pictures()) < 1e-8 and slack(GALLERY["quadratic"]()) < 1e-12
