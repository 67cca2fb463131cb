"""L-BFGS-B: SciPy's own steps on the exact loss, walls where nothing can be solved, exact resume,
no thread left.
"""

from __future__ import annotations

import gc
import math
import threading
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from tests.learners.cases import (
    GALLERY,
    IMAGES,
    Watched,
    assert_same,
    exact_loss,
    pictures,
    run,
    without_clocks,
)
from tests.learners.test_maid import broken
from tests.runs.test_resume import Case, at_call, in_parts

from learnreg.core.bounds import Bound, Curvature, Kind
from learnreg.core.errors import InputError
from learnreg.core.objective import Halt, settled
from learnreg.core.status import Status
from learnreg.hypergradients import JacobianFree
from learnreg.learners import LBFGSB, quasi_newton
from learnreg.learners.quasi_newton import _Log, _wall
from learnreg.objectives.bilevel import Bilevel
from learnreg.problems import gallery
from learnreg.problems.gallery.quadratics import QuadraticEnergy
from learnreg.runs import Budget, learn

TIGHT = LBFGSB(eps=1e-9, delta=1e-9)
PROBLEMS = {
    **{k: GALLERY[k] for k in ("quadratic", "spectrum")},
    "six": lambda: gallery.quadratic(images=3, n=8, d=6, condition=30.0),
}


def scipy_itself(problem, **options):
    """SciPy on the exact loss, with the settings of TIGHT."""

    def exact(x):
        theta = torch.tensor(x)
        return problem.exact_loss(theta), problem.exact_hypergradient(theta).numpy()

    moves = []
    options = {"maxcor": 20, "ftol": 1e-10, "gtol": 1e-8, **options}
    found = minimize(
        exact,
        problem.theta.numpy(),
        jac=True,
        method="L-BFGS-B",
        options=options,
        callback=lambda x: moves.append(np.array(x)),
    )
    return found, torch.tensor(np.array(moves))


# --- convergence ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROBLEMS)
def test_it_makes_the_moves_of_scipy_on_the_exact_loss(name):
    problem = PROBLEMS[name]()
    found, moves = scipy_itself(problem)
    outcome = run(problem, TIGHT)
    # the last bits of losses and gradients differ, so that late moves do too
    assert torch.allclose(outcome.thetas[1:6], moves[:5], rtol=0, atol=1e-5)
    assert abs(len(outcome.thetas) - 1 - found.nit) <= 2
    trials = sum(row["trials"] for row in outcome.record.rows)
    assert abs(trials - found.nfev) <= 3
    assert torch.allclose(outcome.theta, torch.tensor(found.x), rtol=0, atol=1e-5)
    assert torch.allclose(outcome.theta, problem.exact_optimum(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", PROBLEMS)
def test_it_is_faster_than_linear(name):
    """The last moves gain a digit each; gradient descent would gain a fixed small factor."""
    problem = PROBLEMS[name]()
    away = [float((theta - problem.exact_optimum()).norm()) for theta in run(problem, TIGHT).thetas]
    assert away[-1] < 1e-6 * away[0] and len(away) < 20
    ratios = [b / a for a, b in pairwise(away)]
    early, late = ratios[:3], ratios[-3:]
    assert math.prod(late) < 1e-2 * math.prod(early)


@pytest.mark.parametrize("eps", [1e-2, 1e-4])
def test_an_accuracy_that_is_too_loose_ends_it_early_and_the_record_shows_it(eps):
    problem = GALLERY["quadratic"]()
    outcome = run(problem, LBFGSB(eps=eps, delta=eps))
    assert outcome.stop.code in ("stationary", "small_progress", "line_search")
    gap = exact_loss(problem, outcome.theta) - problem.exact_loss(problem.exact_optimum())
    row = outcome.record.rows[-1]
    assert 1e-12 < gap < row["upper"] - row["lower"]
    assert row["lower"] <= exact_loss(problem, outcome.theta) <= row["upper"]


def test_two_pixels():
    problem = GALLERY["two_pixels"]()
    outcome = run(problem, TIGHT)
    assert (
        outcome.stop.code == "stationary"
        and float(problem.exact_hypergradient(outcome.theta).norm()) < 1e-6
    )
    assert exact_loss(problem, outcome.theta) < problem.exact_loss()


@pytest.mark.parametrize("name", IMAGES)
def test_pictures(name):
    problem = pictures(IMAGES[name]())
    rows = run(problem, LBFGSB(), steps=6).record.rows
    assert rows[-1]["loss"] < {"TV": 0.8, "FoE": 0.6}[name] * rows[0]["loss"]
    assert all(row["eps"] == row["delta"] == 1e-3 for row in rows)


def test_theta_is_scaled_by_its_units(monkeypatch):
    """The first trial of SciPy is no longer than 1, in units."""
    problem = pictures(IMAGES["FoE"]())
    units = problem.units.clone()
    assert float(units.max()) > float(units.min())
    asked, solve = [], Bilevel.evaluate
    monkeypatch.setattr(
        Bilevel, "evaluate", lambda lower, theta, *a: asked.append(theta) or solve(lower, theta, *a)
    )
    run(problem, LBFGSB(), steps=1)
    first = (asked[1] - asked[0]) / units
    assert float(first.norm()) == pytest.approx(1.0, rel=1e-4)


def test_other_strategies_are_taken():
    problem = GALLERY["quadratic"]()
    outcome = run(problem, LBFGSB(), hypergradient=JacobianFree(terms=50), steps=4)
    assert exact_loss(problem, outcome.theta) < 0.5 * problem.exact_loss()


# --- walls ----------------------------------------------------------------------------------------


class Fenced(QuadraticEnergy):
    """No finite constants where theta_1 is below the fence."""

    fence = 0.5

    def bounds(self, dtype: torch.dtype = torch.float64) -> Curvature:
        found = super().bounds(dtype)
        return (
            found
            if self.theta[1] >= self.fence
            else Curvature(found.mu, Bound(math.inf, Kind.UNKNOWN))
        )


def counting_walls(monkeypatch) -> list:
    walls, evaluate = [], LBFGSB._evaluate

    def watched(self, lower, theta, near, adjoint):
        found = evaluate(self, lower, theta, near, adjoint)
        if found is None:
            walls.append(theta)
        return found

    monkeypatch.setattr(LBFGSB, "_evaluate", watched)
    return walls


def test_a_trial_without_finite_constants_does_not_end_the_run(monkeypatch):
    walls = counting_walls(monkeypatch)
    problem = GALLERY["quadratic"]()
    problem.energy.__class__ = Fenced
    assert problem.exact_optimum()[1] > 0.5 < problem.theta[1]
    outcome = run(problem, TIGHT)
    assert walls and all(theta[1] < 0.5 for theta in walls)
    assert outcome.stop.code in ("stationary", "small_progress")
    assert torch.allclose(outcome.theta, problem.exact_optimum(), rtol=0, atol=1e-5)
    assert bool((outcome.thetas[:, 1] >= 0.5).all())
    assert sum(row["trials"] for row in outcome.record.rows) > len(walls) + 5


def test_a_trial_that_is_nan_or_takes_too_long_does_not_end_the_run(monkeypatch):
    walls = counting_walls(monkeypatch)
    outcome = run(pictures(broken(limit=-2.9)), LBFGSB(), steps=4)
    assert walls and all(theta[0] > -2.9 for theta in walls)
    rows = outcome.record.rows
    assert rows[-1]["loss"] < rows[0]["loss"] and bool((outcome.thetas[:, 0] <= -2.9).all())


def test_an_optimum_beyond_the_wall_ends_the_run_with_a_reason(monkeypatch):
    """Where trials that stand for nothing were taken for progress, theta would end where nothing
    can be solved.
    """
    walls = counting_walls(monkeypatch)
    problem = GALLERY["quadratic"]()
    problem.energy.__class__, problem.energy.fence = Fenced, 0.8
    outcome = run(problem, LBFGSB(), steps=40)
    assert (
        walls and outcome.stop.code == "line_search" and "L-BFGS-B ended" in outcome.stop.sentence
    )
    assert 0.8 <= outcome.theta[1] < 0.81 and bool((outcome.thetas[:, 1] >= 0.8).all())
    losses = [exact_loss(problem, theta) for theta in outcome.thetas]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]


@pytest.mark.parametrize("seed", range(3))
def test_a_wall_rises_as_much_as_was_promised_to_fall(seed):
    """Its value and gradient fit together, it touches the true model, and a quarter of the way is
    its minimum.
    """
    d, g = 3, torch.Generator().manual_seed(seed)
    origin, slope, x = torch.rand(3, d, generator=g, dtype=torch.float64)
    slope = slope * -torch.sign(slope @ (x - origin))
    log = _Log(
        torch.ones(d),
        origin,
        torch.zeros(0, d).double(),
        torch.zeros(0).double(),
        torch.zeros(0, d).double(),
    )
    log = log.add(origin + 1, 0.1, -slope).add(origin, 2.0, slope).add(origin - 1, 0.2, slope)
    value, gradient = _wall(x.numpy(), log, origin.numpy())
    away = x - origin
    assert value == pytest.approx(2.0 - float(slope @ away))
    assert torch.allclose(gradient @ away, -3 * (slope @ away))

    def along(t):
        return 2.0 + t * float(slope @ away) + t**2 * (value - 2.0 - float(slope @ away))

    assert min(range(101), key=lambda percent: along(percent / 100)) == 25


@pytest.mark.parametrize(
    "kind", [{"limit": -1e9}, {"mixed": True}], ids=["energy", "hypergradient"]
)
def test_a_start_that_is_nan_ends_the_run_with_a_sentence(kind):
    outcome = run(pictures(broken(**kind)), LBFGSB())
    assert outcome.stop.code == "not_finite" and len(outcome.record.rows) == 1
    assert "present parameters" in outcome.stop.sentence


# --- why it stops ---------------------------------------------------------------------------------


def test_it_ends_with_the_reason_of_scipy():
    outcome = run(
        GALLERY["quadratic"](),
        LBFGSB(eps=1e-9, delta=1e-9, loss_tolerance=0.0, gradient_tolerance=1e-3),
    )
    assert (
        outcome.stop.code == "stationary" and "NORM OF PROJECTED GRADIENT" in outcome.stop.sentence
    )
    assert float(GALLERY["quadratic"]().exact_hypergradient(outcome.theta).abs().max()) <= 1.01e-3
    outcome = run(
        GALLERY["quadratic"](),
        LBFGSB(eps=1e-9, delta=1e-9, loss_tolerance=1e-2, gradient_tolerance=0.0),
    )
    assert (
        outcome.stop.code == "small_progress" and "RELATIVE REDUCTION OF F" in outcome.stop.sentence
    )
    losses = outcome.record.column("loss")
    assert losses[-2] - losses[-1] <= 1e-2 < losses[-3] - losses[-2], (
        "relative to 1, which is larger than the losses"
    )


def test_a_start_that_is_optimal_already():
    problem = GALLERY["quadratic"]()
    problem.energy.theta.data = problem.exact_optimum()
    outcome = run(problem, LBFGSB(eps=1e-9, delta=1e-9, gradient_tolerance=1e-6))
    assert outcome.stop.code == "stationary" and len(outcome.record.rows) == 1


def test_gradients_that_are_wrong_lead_nowhere():
    """The trials rise until they are so short that the loss is the same to rounding."""

    class Wrong(JacobianFree):
        def pull(self, *arguments, **keywords):
            found = super().pull(*arguments, **keywords)
            return replace(found, theta=-found.theta)

    outcome = run(GALLERY["quadratic"](), TIGHT, hypergradient=Wrong(terms=50))
    assert outcome.stop.sentence.startswith("L-BFGS-B ended: ")
    assert torch.allclose(outcome.theta, outcome.thetas[0], rtol=0, atol=1e-6)


def test_the_budget_of_work_ends_it_inside_a_step():
    problem = GALLERY["quadratic"]()
    full = run(problem, TIGHT, steps=6).record.rows
    between = 0.5 * (full[3]["work"] + full[4]["work"]) / problem.size
    outcome = run(problem, TIGHT, budget=Budget(work=between))
    assert outcome.stop.code == "budget"
    assert without_clocks(outcome.record.rows) == without_clocks(full[: len(outcome.record.rows)])
    assert len(outcome.record.rows) in (4, 5)


# --- resume ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "learner", "stops"),
    [
        (GALLERY["quadratic"], TIGHT, (0, 1, 2, 3, 5, 8)),
        (GALLERY["two_pixels"], LBFGSB(), (3, 6)),
        (pictures, LBFGSB(), (1, 4)),
        (lambda: pictures(IMAGES["FoE"]()), LBFGSB(memory=2), (2, 5)),
        (pictures, LBFGSB(box={"log_weight": [-3.1, -2.8]}), (1, 2, 4)),
        (lambda: pictures(broken(limit=-2.9)), LBFGSB(), (1, 2, 3)),
    ],
    ids=["tight", "two pixels", "pictures", "FoE", "box", "broken"],
)
def test_a_run_in_parts_is_the_whole_run(make, learner, stops, tmp_path):
    whole = run(make(), learner, steps=stops[-1])
    parts = in_parts(Case(make, learner), tmp_path, stops)
    assert_same(whole, parts)
    assert whole.stop == parts.stop


def uneven() -> gallery.QuadraticProblem:
    """A start that float32 cannot hold, and float32 data."""
    problem = GALLERY["quadratic"]()
    problem.energy.theta.data += 0.1
    return problem.to(torch.float32)


@pytest.mark.parametrize("make", [uneven, pictures], ids=["quadratic", "TV"])
def test_a_run_in_parts_goes_on_in_float64(make, tmp_path, monkeypatch):
    """It ends before, at and after the step that leaves float32, in which SciPy is told its history
    again.
    """
    losses = run(make(), LBFGSB(), steps=4, promote=False).record.column("loss")
    limit = 0.5 * (losses[2] + losses[3])

    def at_floor(point):
        if point.theta.dtype == torch.float32 and point.loss < limit:
            status = (Status.ROUNDING_FLOOR,) * len(point.solution.status)
            point = replace(point, solution=replace(point.solution, status=status))
        return settled(point)

    monkeypatch.setattr(quasi_newton, "settled", at_floor)
    watched = Watched(LBFGSB())
    whole = run(make(), watched, steps=5)
    dtypes = [state.theta.dtype for state in watched.states]
    k = dtypes.index(torch.float64)
    assert 1 < k < 5 and whole.stop.code == "budget"
    assert whole.record.rows[-1]["loss"] < losses[2]
    assert_same(whole, in_parts(Case(make, LBFGSB()), tmp_path, (k - 1, k, 5)))


@pytest.mark.parametrize("call", [2, 3, 6])
@pytest.mark.parametrize("where", ["_solve", "gradient"])
def test_ctrl_c_inside_an_evaluation_leaves_a_state_that_can_be_resumed(
    where, call, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(Bilevel, where, at_call(call, getattr(Bilevel, where), KeyboardInterrupt))
        outcome = run(GALLERY["quadratic"](), TIGHT, checkpoint=tmp_path)
    assert outcome.stop.code == "interrupted"
    kept = len(outcome.record.rows)
    whole = run(GALLERY["quadratic"](), TIGHT, steps=kept + 1)
    assert_same(
        whole, run(GALLERY["quadratic"](), TIGHT, steps=kept + 1, checkpoint=tmp_path, resume=True)
    )


def test_another_step_from_the_same_state_gives_the_same_state():
    """A step that was given up half-way has told SciPy more than the state knows."""
    problem, learner = GALLERY["quadratic"](), LBFGSB()
    lower = Bilevel(problem, JacobianFree(terms=50))
    state = learner.step(lower, learner.init(lower, problem.theta))
    one = learner.step(lower, state)
    two = learner.step(lower, state)
    assert one.dialogue is not two.dialogue
    assert one.theta.equal(two.theta) and one.log.values.equal(two.log.values)
    assert learner.step(lower, one).theta.equal(learner.step(lower, two).theta)


def test_a_scipy_that_takes_other_steps_is_noticed():
    problem = GALLERY["quadratic"]()
    lower = Bilevel(problem, JacobianFree())
    state = TIGHT.step(lower, TIGHT.init(lower, problem.theta))
    other = replace(state, dialogue=None, log=replace(state.log, points=state.log.points + 1e-9))
    with pytest.raises(Halt, match="other steps than the one that wrote the checkpoint"):
        TIGHT.step(lower, other)


# --- threads and errors ---------------------------------------------------------------------------


def threads() -> set[threading.Thread]:
    gc.collect()
    return set(threading.enumerate())


def left_alone(before: set[threading.Thread]) -> bool:
    """Whether no thread is left that was not there before, after a moment if need be."""
    deadline = time.monotonic() + 5
    while threads() - before and time.monotonic() < deadline:
        time.sleep(0.001)
    return not threads() - before


@pytest.mark.parametrize("steps", [3, 100])
def test_no_thread_outlives_the_run(steps):
    before = threads()
    outcome = run(GALLERY["quadratic"](), TIGHT, steps=steps)
    assert outcome.stop.code == ("budget" if steps == 3 else "stationary")
    assert left_alone(before)


def test_an_error_inside_an_evaluation_is_passed_on_and_the_step_before_it_was_saved(
    tmp_path, monkeypatch
):
    before = threads()
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Bilevel, "gradient", at_call(4, Bilevel.gradient, ZeroDivisionError))
        run(GALLERY["quadratic"](), TIGHT, checkpoint=tmp_path)
    assert left_alone(before)
    assert_same(
        run(GALLERY["quadratic"](), TIGHT, steps=5),
        run(GALLERY["quadratic"](), TIGHT, steps=5, checkpoint=tmp_path, resume=True),
    )


def test_an_error_inside_scipy_is_passed_on(monkeypatch):
    import scipy.optimize

    def fails(*arguments, **keywords):
        raise RuntimeError("scipy is broken")

    monkeypatch.setattr(scipy.optimize, "minimize", fails)
    with pytest.raises(RuntimeError, match="scipy is broken"):
        learn(GALLERY["quadratic"](), TIGHT, budget=Budget(steps=3))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eps", 0.0),
        ("eps", None),
        ("delta", -1e-3),
        ("delta", math.inf),
        ("memory", 0),
        ("memory", 2.5),
        ("memory", True),
        ("loss_tolerance", -1e-9),
        ("gradient_tolerance", math.nan),
        ("box", [2, 1]),
        ("box", {"log_weight": [0]}),
    ],
)
def test_values_out_of_range_are_named(name, value):
    with pytest.raises(InputError, match=name):
        LBFGSB(**{name: value})
