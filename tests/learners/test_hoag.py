"""HOAG: one move per pass, schedules as declared, undone moves that leave no trace but in L and
eps, exact resume.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from tests.learners.cases import GALLERY, Watched, assert_same, exact_loss, pictures, run
from tests.learners.test_maid import broken
from tests.runs.test_resume import Case, at_call, in_parts

from learnreg.core.errors import InputError, MissingPropertyError
from learnreg.hypergradients import Implicit, Unrolled
from learnreg.learners import HOAG
from learnreg.learners.hoag import SMALLEST_EPS
from learnreg.objectives.bilevel import Bilevel

FACTORS = {
    "quadratic": lambda k: 1 / (k + 1) ** 2,
    "cubic": lambda k: 1 / (k + 1) ** 3,
    "geometric": lambda k: 0.9**k,
}


def watch(problem, learner, **arguments):
    """The run and the states it went through."""
    watched = Watched(learner)
    return run(problem, watched, **arguments), watched.states


def hessian(problem) -> torch.Tensor:
    """Of the exact f of a quadratic problem (d, d)."""
    d = problem.theta.numel()
    start = problem.exact_hypergradient(torch.zeros(d, dtype=torch.float64))
    return torch.stack(
        [problem.exact_hypergradient(e) - start for e in torch.eye(d, dtype=torch.float64)], dim=1
    )


def smoothness(problem) -> float:
    return float(torch.linalg.eigvalsh(hessian(problem))[-1])


# --- convergence ----------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", FACTORS)
def test_it_reaches_the_optimum_at_a_linear_rate(schedule):
    """With 1 / L_f the first passes contract by 1 - mu_f / L_f at least, up to the error of z,
    which follows eps.

    ||B|| = 2 and mu = 1 in this problem, so that ||z - grad f|| <= 2 (eps + delta). Later L has
    shrunk below L_f / 2.
    """
    problem = GALLERY["quadratic"]()
    curvatures = torch.linalg.eigvalsh(hessian(problem))
    small, large = float(curvatures[0]), float(curvatures[-1])
    outcome = run(problem, HOAG(schedule, eps0=0.1, delta0=0.1, alpha0=1 / large), steps=25)
    away = [float((theta - problem.exact_optimum()).norm()) for theta in outcome.thetas]
    bound = away[0]
    for k, row in enumerate(outcome.record.rows[1:]):
        alpha, before = row["step_size"], outcome.record.rows[k]
        if alpha > 2 / (small + large):
            break
        bound = (1 - small * alpha) * bound + 2 * alpha * (before["eps"] + before["delta"])
        assert away[k + 1] <= bound
    assert k > 5
    assert min(away) < {"quadratic": 1e-3, "cubic": 1e-3, "geometric": 3e-2}[schedule] * away[0]
    best = min(exact_loss(problem, theta) for theta in outcome.thetas)
    assert best - problem.exact_loss(problem.exact_optimum()) < 1e-3 * problem.exact_loss()


def test_tighter_schedules_cost_more_work():
    work = {
        s: run(
            GALLERY["quadratic"](), HOAG(s, eps0=0.1, delta0=0.1, alpha0=0.5), steps=8
        ).record.rows[-1]["work"]
        for s in FACTORS
    }
    assert work["geometric"] < work["quadratic"] < work["cubic"]


def test_it_learns_from_pictures():
    rows = run(pictures(), HOAG(), steps=6).record.rows
    assert rows[-1]["loss"] < 0.85 * rows[0]["loss"]


# --- one pass -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["quadratic", "two_pixels"])
def test_every_pass_moves_theta_by_one_step_of_minus_z(name, monkeypatch):
    """z is asked for once, at theta_k with delta_k, and theta_{k+1} - theta_k = -z / L, L that of
    the record.
    """
    asked, gradient = [], Bilevel.gradient

    def watched_gradient(lower, point, delta, *rest):
        z = gradient(lower, point, delta, *rest)
        asked.append((point.theta, delta, z.value))
        return z

    monkeypatch.setattr(Bilevel, "gradient", watched_gradient)
    problem = GALLERY[name]()
    outcome = run(
        problem,
        HOAG(eps0=1e-3, delta0=1e-3, alpha0=0.3 / smoothness(GALLERY["quadratic"]())),
        steps=8,
    )
    rows = outcome.record.rows
    assert not any(row["undone"] for row in rows) and len(asked) == 8
    for k, (theta, delta, z) in enumerate(asked):
        assert theta.equal(outcome.thetas[k]) and delta == rows[k]["delta"]
        assert rows[k + 1]["gradient_norm"] == pytest.approx(float(z.norm()), rel=1e-12)
        assert torch.allclose(
            outcome.thetas[k + 1], theta - rows[k + 1]["step_size"] * z, rtol=1e-14, atol=1e-14
        )


def verdict(learner: HOAG, before: dict, now: dict, later: float, move: float, alpha: float) -> str:
    """The rule of the class docstring, from the rows of the record."""
    slack = learner.constant * later + now["eps"] * (learner.constant + 1) * move
    if now["loss"] <= before["loss"] + slack - move**2 / alpha:
        return "lengthen"
    return "undo" if now["loss"] >= 1.2 * before["loss"] else "keep"


@pytest.mark.parametrize("alpha0", [0.1, 20.0])
@pytest.mark.parametrize("schedule", FACTORS)
def test_the_passes_follow_the_rule(schedule, alpha0):
    """L, eps and delta of every pass, replayed from losses and moves alone."""
    learner = HOAG(schedule, eps0=0.05, delta0=0.02, alpha0=alpha0)
    outcome = run(GALLERY["quadratic"](), learner, steps=10)
    rows, thetas, factor = outcome.record.rows, outcome.thetas, FACTORS[schedule]
    alpha, judged, seen = alpha0, None, set()
    for k in range(10):
        now, new = rows[k], rows[k + 1]
        later = min(now["eps"], 0.05 * factor(k + 1))
        move = 0.0 if judged is None else float((thetas[k] - thetas[judged]).norm())
        said = "keep" if judged is None else verdict(learner, rows[judged], now, later, move, alpha)
        seen.add(said)
        if said == "undo":
            alpha, later = alpha / 2, later / 2
            assert thetas[k + 1].equal(thetas[judged]) and new["gradient_norm"] is None
        elif said == "lengthen":
            alpha /= 0.95
        assert new["undone"] == (said == "undo")
        assert new["step_size"] == pytest.approx(alpha, rel=1e-12)
        assert new["eps"] == pytest.approx(later, rel=1e-12)
        assert new["delta"] == pytest.approx(later * 0.02 / 0.05, rel=1e-12)
        judged = None if said == "undo" else k
    assert alpha0 < 20 or "undo" in seen
    assert (alpha0, schedule) != (0.1, "geometric") or "lengthen" in seen


@pytest.mark.parametrize("schedule", FACTORS)
def test_accuracies_are_those_of_the_schedule(schedule):
    rows = run(
        GALLERY["quadratic"](), HOAG(schedule, eps0=0.3, delta0=0.7, alpha0=0.5), steps=8
    ).record.rows
    assert not any(row["undone"] for row in rows)
    for k, row in enumerate(rows):
        assert row["eps"] == pytest.approx(0.3 * FACTORS[schedule](k), rel=1e-12)
        assert row["delta"] == pytest.approx(0.7 * FACTORS[schedule](k), rel=1e-12)


def test_the_ratio_is_that_of_the_geometric_schedule():
    learner = HOAG("geometric", eps0=1.0, delta0=1.0, ratio=0.5, alpha0=0.5)
    rows = run(GALLERY["quadratic"](), learner, steps=4).record.rows
    assert [row["eps"] for row in rows] == pytest.approx([1, 0.5, 0.25, 0.125, 0.0625])


def test_no_accuracy_falls_below_the_floor(monkeypatch):
    learner = HOAG("geometric", eps0=1e-9, delta0=1e-9, ratio=1e-2, alpha0=0.5)
    rows = run(GALLERY["quadratic"](), learner, steps=4).record.rows
    assert [row["eps"] for row in rows] == pytest.approx(
        [1e-9, 1e-11, SMALLEST_EPS, SMALLEST_EPS, SMALLEST_EPS]
    )


def test_the_first_move_has_the_length_of_the_root_of_d():
    problem = GALLERY["quadratic"]()
    outcome = run(problem, HOAG(), steps=1)
    assert float((outcome.thetas[1] - outcome.thetas[0]).norm()) == pytest.approx(
        problem.theta.numel() ** 0.5
    )


# --- undone moves ---------------------------------------------------------------------------------


def test_an_undone_pass_restores_theta_and_solution_and_computes_no_gradient():
    """The solution at theta_0 goes on from where it was; no mixed product is paid for in the
    pass.
    """
    problem = GALLERY["quadratic"]()
    outcome, states = watch(problem, HOAG(eps0=0.1, delta0=0.1, alpha0=20.0), steps=3)
    rows = outcome.record.rows
    assert [row["undone"] for row in rows] == [False, False, True, False]
    assert outcome.thetas[2].equal(outcome.thetas[0]) and not outcome.thetas[1].equal(
        outcome.thetas[0]
    )
    assert rows[2]["mixed_products"] == rows[1]["mixed_products"] < rows[3]["mixed_products"]
    assert rows[2]["eps"] == pytest.approx(0.5 * 0.1 / 9) and rows[2]["step_size"] == pytest.approx(
        10.0
    )
    before, after = states[0].point.solution, states[2].point.solution
    assert bool((after.error <= rows[2]["eps"]).all())
    moved = (after.value - before.value).norm(dim=1)
    assert bool((moved <= before.error + after.error).all())
    assert states[2].adjoint.equal(states[1].adjoint), (
        "q belongs to theta_0 and is the next warm start"
    )


def test_a_solution_that_is_accurate_enough_is_restored_as_it_was():
    problem, learner = GALLERY["quadratic"](), HOAG(eps0=1e-2, delta0=1e-2, alpha0=20.0)
    lower = Bilevel(problem, Implicit())
    moved = learner.step(lower, learner.init(lower, problem.theta))
    known = lower.refine(moved.last, 1e-8)
    spent = lower.meter.cost
    back = learner.step(lower, replace(moved, last=known))
    assert back.info["undone"] and back.theta.equal(problem.theta)
    assert back.point.solution is known.solution and lower.meter.cost == spent
    assert back.point.eps == back.eps == 0.5 * 1e-2 / 9


@pytest.mark.parametrize(("alpha0", "limit"), [(1.0, 4), (1e6, 400)])
def test_a_move_to_where_nothing_can_be_solved_is_undone(alpha0, limit, monkeypatch):
    """The steps of a solve are used up, or so far out there are no finite constants."""
    problem = pictures()
    if limit == 4:
        monkeypatch.setattr(Bilevel, "evaluate", with_steps(limit))
    outcome = run(problem, HOAG(alpha0=alpha0), steps=2, promote=False)
    first, second = outcome.record.rows[:2]
    assert second["undone"] and second["step_size"] == pytest.approx(alpha0 / 2)
    assert second["gradient_norm"] > 0
    assert outcome.thetas[1].equal(outcome.thetas[0])
    assert second["upper"] - second["lower"] < first["upper"] - first["lower"]


def with_steps(limit: int):
    """``Bilevel.evaluate`` with so few steps for every solve but the first."""
    solve, calls = Bilevel.evaluate, iter(range(10**6))
    return lambda lower, theta, eps, start=None, most=None: solve(
        lower, theta, eps, start, limit if next(calls) else most
    )


def test_trials_that_are_nan_are_undone():
    problem = pictures(broken(limit=-2.9))
    outcome = run(problem, HOAG(), steps=6)
    assert any(row["undone"] for row in outcome.record.rows)
    assert (
        outcome.theta[0] <= -2.9
        and outcome.record.rows[-1]["loss"] < outcome.record.rows[0]["loss"]
    )


def test_after_an_undone_pass_a_shorter_step_is_tried():
    problem = GALLERY["quadratic"]()
    outcome = run(problem, HOAG(eps0=0.01, delta0=0.01, alpha0=30.0), steps=24)
    undone = [row["undone"] for row in outcome.record.rows]
    assert sum(undone) >= 3
    assert exact_loss(problem, outcome.theta) < 0.2 * problem.exact_loss()


# --- why it stops ---------------------------------------------------------------------------------


def test_a_stationary_point_is_one():
    problem = GALLERY["quadratic"]()
    outcome = run(
        problem,
        HOAG(eps0=1e-3, delta0=1e-3, alpha0=1 / smoothness(problem), gradient_tolerance=1e-2),
    )
    assert outcome.stop.code == "stationary"
    assert float(problem.exact_hypergradient(outcome.theta).norm()) < 2e-2


def test_a_gradient_that_was_never_computed_is_not_called_stationary():
    """delta above ||grad loss|| makes q = 0 a solution of the linear system, and so z = 0, wherever
    theta is.
    """
    problem = GALLERY["quadratic"]()
    outcome = run(problem, HOAG(eps0=0.1, delta0=100.0, alpha0=0.5), steps=14)
    rows = outcome.record.rows
    assert rows[1]["gradient_norm"] == 0 and outcome.thetas[1].equal(outcome.thetas[0])
    assert not rows[1]["undone"]
    assert (
        outcome.stop.code == "budget"
        and exact_loss(problem, outcome.theta) < 0.5 * problem.exact_loss()
    )


@pytest.mark.parametrize(
    ("kind", "word"), [({"limit": -1e9}, "could not be solved"), ({"mixed": True}, "hypergradient")]
)
def test_a_problem_that_is_nan_ends_the_run_with_a_sentence(kind, word):
    outcome = run(pictures(broken(**kind)), HOAG())
    assert outcome.stop.code == "not_finite" and word in outcome.stop.sentence
    assert len(outcome.record.rows) == 1


def test_it_goes_on_in_float64():
    problem = pictures()
    learner = partial(HOAG, eps0=1e-2, schedule="geometric", ratio=0.05, alpha0=1e-3)
    short = run(problem, learner(), promote=False)
    assert short.stop.code == "rounding_floor" and short.theta.dtype == torch.float32
    k = len(short.thetas)
    outcome = run(problem, learner(), steps=k + 1)
    assert outcome.theta.dtype == torch.float64
    assert outcome.thetas[:k].equal(short.thetas.double())
    assert [row["eps"] for row in outcome.record.rows] == pytest.approx(
        [1e-2 * 0.05**i for i in range(k + 2)]
    )
    assert all(row["upper"] - row["lower"] < 30 * row["eps"] for row in outcome.record.rows)


def test_a_move_is_undone_in_float64_where_float32_ends(tmp_path):
    """The solution that is restored was one in float32."""
    problem = pictures()
    outcome, states = watch(problem, HOAG(eps0=2e-6), steps=3)
    assert [state.theta.dtype for state in states] == [torch.float32] * 2 + [torch.float64] * 2
    assert outcome.record.rows[2]["undone"] and outcome.thetas[2].equal(problem.theta.double())
    assert states[2].point.theta.dtype == states[2].point.solution.value.dtype == torch.float64
    assert (
        float(states[2].point.solution.error.max())
        <= outcome.record.rows[2]["eps"]
        == pytest.approx(1e-6 / 9)
    )
    assert_same(outcome, in_parts(Case(pictures, HOAG(eps0=2e-6)), tmp_path, (1, 2, 3)))


def test_a_start_at_the_floor_of_float32_is_no_error():
    for promote, dtype in ((True, torch.float64), (False, torch.float32)):
        outcome = run(pictures(), HOAG(eps0=1e-9, alpha0=1e-3), steps=1, promote=promote)
        assert outcome.theta.dtype == dtype
        assert len(outcome.record.rows) == (2 if promote else 1)


# --- resume ---------------------------------------------------------------------------------------


def test_a_run_in_parts_is_the_whole_run_at_every_kind_of_pass(tmp_path):
    """It ends before, at and after moves that are undone."""
    learner = HOAG(eps0=0.05, delta0=0.02, alpha0=20.0)
    whole = run(GALLERY["quadratic"](), learner, steps=7)
    assert {row["undone"] for row in whole.record.rows} == {True, False}
    assert_same(
        whole, in_parts(Case(GALLERY["quadratic"], learner), tmp_path, (0, 1, 2, 3, 4, 5, 6, 7))
    )


@pytest.mark.parametrize(
    "learner",
    [HOAG(), HOAG(eps0=1e-2, schedule="geometric", ratio=0.05, alpha0=1e-3)],
    ids=["float32", "promoted"],
)
def test_a_run_on_pictures_in_parts_is_the_whole_run(learner, tmp_path):
    whole = run(pictures(), learner, steps=6)
    assert_same(whole, in_parts(Case(pictures, learner), tmp_path, (2, 3, 4, 6)))


@pytest.mark.parametrize("call", [2, 5])
@pytest.mark.parametrize("where", ["_solve", "gradient"])
def test_ctrl_c_inside_a_pass_loses_nothing(where, call, tmp_path, monkeypatch):
    learner = HOAG(eps0=0.05, delta0=0.02, alpha0=20.0)
    with monkeypatch.context() as patch:
        patch.setattr(Bilevel, where, at_call(call, getattr(Bilevel, where), KeyboardInterrupt))
        outcome = run(GALLERY["quadratic"](), learner, checkpoint=tmp_path)
    assert outcome.stop.code == "interrupted"
    whole = run(GALLERY["quadratic"](), learner, steps=len(outcome.record.rows))
    assert_same(
        whole,
        run(
            GALLERY["quadratic"](),
            learner,
            steps=len(outcome.record.rows),
            checkpoint=tmp_path,
            resume=True,
        ),
    )


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("schedule", "linear"),
        ("eps0", 0.0),
        ("eps0", float("nan")),
        ("delta0", -1.0),
        ("alpha0", float("inf")),
        ("ratio", 1.0),
        ("ratio", 0.0),
        ("constant", -0.1),
        ("gradient_tolerance", 0.0),
        ("box", [1.0, 1.0]),
        ("box", "wide"),
        ("eps0", True),
        ("alpha0", "1"),
    ],
)
def test_values_out_of_range_are_named(name, value):
    with pytest.raises(InputError) as error:
        HOAG(**{name: value})
    assert name in str(error.value) and str(value) in str(error.value)


def test_a_fixed_number_of_lower_level_steps_is_refused():
    with pytest.raises(MissingPropertyError, match="HOAG"):
        run(GALLERY["quadratic"](), HOAG(), hypergradient=Unrolled(start="data"))
    assert (
        len(
            run(
                GALLERY["quadratic"](), HOAG(), hypergradient=Unrolled(start="solution"), steps=2
            ).record.rows
        )
        == 3
    )
