"""Learners on saddle-point lower levels: certified decreases, warm starts of all variables, exact
resumption.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tests.hypergradients import saddle_cases as cases
from tests.hypergradients.saddle_cases import curved, normal, pictured, truth
from tests.learners.cases import Watched, assert_same, run
from tests.regularizers.cases import Pairs, pairs

from learnreg.core.errors import MissingPropertyError
from learnreg.core.files import load_tensors
from learnreg.hypergradients import Implicit, JointPiggyback, Piggyback
from learnreg.learners import DFO, HOAG, LBFGSB, MAID, FixedAccuracy, GridSearch, Stochastic
from learnreg.objectives.bilevel import Bilevel
from learnreg.problems import BilevelProblem, SaddleEnergy
from learnreg.regularizers import ExactTV
from learnreg.runs import Budget, Run
from learnreg.runs.checkpoint import FILE, FORMAT
from learnreg.runs.trajectory import trajectory
from learnreg.solvers import solve

Make = Callable[[], BilevelProblem]


def tv(count: int = 2, dtype: torch.dtype = torch.float64) -> BilevelProblem:
    return pictured("tv-rounding", size=(5, 6), count=count, dtype=dtype)


def learned(dtype: torch.dtype = torch.float64) -> BilevelProblem:
    return pictured("learned-zero", size=(4, 4), count=2, dtype=dtype)


@cache
def gentle() -> BilevelProblem:
    """Smooth enough for the certified test to be affordable."""
    return curved(n=4, m=2)


def exact_loss(problem: BilevelProblem, theta: torch.Tensor) -> float:
    image = cases.reached(problem, 1e-8, theta).value
    return float(problem.loss.value(image, problem.pairs.x.double()).mean())


LEARNERS: dict[str, tuple[Make, object, dict]] = {
    "maid": (tv, MAID(), {}),
    "maid_paper": (learned, MAID(memory=0, alpha0=0.5), {}),
    "maid_certified": (gentle, MAID(test="certified", alpha0=0.1), {}),
    "fixed": (tv, FixedAccuracy(eps=1e-4, delta=1e-4), {}),
    "hoag": (tv, HOAG(alpha0=0.5), {}),
    "lbfgsb": (learned, LBFGSB(eps=1e-4, delta=1e-4), {}),
    "lbfgsb_joint": (gentle, LBFGSB(), {"hypergradient": JointPiggyback(steps=100)}),
    "stochastic": (lambda: tv(3), Stochastic(batch=2, record=2), {}),
    "adam": (lambda: tv(3), Stochastic.preset("iadam", batch=1, record=2), {}),
    "joint": (
        lambda: tv(3),
        Stochastic(batch=2, record=2),
        {"hypergradient": JointPiggyback(steps=20)},
    ),
    "dfo": (tv, DFO(box=[-5.0, 0.0]), {}),
    "grid": (tv, GridSearch(points=5, box=[-4.0, -1.0]), {}),
}
CERTIFIED = ("maid", "maid_paper", "maid_certified", "fixed")


@pytest.mark.parametrize("name", LEARNERS)
def test_every_learner_lowers_the_loss(name):
    make, learner, arguments = LEARNERS[name]
    problem = make()
    outcome = run(problem, learner, steps=5, **arguments)
    assert len(outcome.record.rows) >= 3, outcome.stop
    start, end = exact_loss(problem, outcome.thetas[0]), exact_loss(problem, outcome.theta)
    assert end < start - 1e-4 * start, (start, end, outcome.stop)
    assert "not_finite" not in outcome.stop.code
    work = outcome.record.column("work")
    assert all(a < b for a, b in pairwise(work))


@pytest.mark.parametrize("name", CERTIFIED)
def test_every_accepted_step_has_a_certified_decrease(name):
    make, learner, _ = LEARNERS[name]
    problem, watched = make(), Watched(learner)
    outcome = run(problem, watched, steps=4)
    losses = [exact_loss(problem, theta) for theta in outcome.thetas]
    for row, loss in zip(outcome.record.rows, losses, strict=True):
        assert row["lower"] - 1e-7 <= loss <= row["upper"] + 1e-7
    for k, state in enumerate(watched.states[1:]):
        theta, z = state.last
        promised = learner.sufficient * float((theta - state.theta) @ z)
        assert promised > 0 and losses[k] - losses[k + 1] >= promised - 2e-7
        assert state.point.solution.state is not None


def test_maid_takes_the_error_that_its_test_needs():
    problem = gentle()
    estimated = run(problem, MAID(alpha0=0.1), steps=2).record.rows[-1]
    assert estimated["omega_estimated"] > 0 and estimated["omega_certified"] is None
    certified = run(problem, MAID(test="certified", alpha0=0.1), steps=2).record.rows[-1]
    assert certified["omega_certified"] > 0 and certified["omega_estimated"] is None
    assert certified["omega_certified"] <= 0.5 * certified["gradient_norm"] * 1.01


def test_kinks_stop_the_certified_test_with_a_reason():
    outcome = run(tv(), MAID(test="certified"), steps=3)
    assert outcome.stop.code == "no_certificate" and "estimated" in outcome.stop.sentence


def test_learners_with_accuracies_refuse_joint_steps():
    for learner in (MAID(), FixedAccuracy(), HOAG(), DFO(box=[-5.0, 0.0])):
        with pytest.raises(MissingPropertyError):
            run(tv(), learner, steps=1, hypergradient=JointPiggyback(steps=5))


def test_implicit_differentiation_is_refused_in_time():
    with pytest.raises(
        MissingPropertyError,
        match=r"^hypergradient: given Implicit for SaddleEnergy; expected Piggyback\.",
    ):
        run(tv(), MAID(), steps=1, hypergradient=Implicit())


def test_float32_is_promoted_where_it_ends():
    problem = tv(dtype=torch.float32)
    outcome = run(problem, HOAG(schedule="cubic", eps0=1e-3), steps=8)
    assert outcome.thetas[0].dtype == torch.float32
    assert outcome.stop.code == "budget", outcome.stop
    start, end = (exact_loss(tv(), theta.double()) for theta in (outcome.thetas[0], outcome.theta))
    assert end < start


# --- the lower level that learners see ------------------------------------------------------------


def test_corrected_losses_are_of_second_order():
    """loss + <(X, Y), grad L> misses f(theta) by much less than the loss itself."""
    problem = gentle()
    exact = truth(problem)
    lower = Bilevel(problem, Piggyback(estimate=False, certify=False))
    f = problem.energy.at(problem.pairs.y)
    q = None
    for eps in (0.3, 1e-1, 1e-2):
        point = lower.evaluate(problem.theta, eps)
        noise = 0.2 * eps * normal(*exact.state.shape)
        state = f.pack(*f.unpack(exact.state + noise))
        solution = replace(
            point.solution, value=f.image(state), state=state, gradient=f.certify(state).gradient
        )
        point = lower._value(problem.theta, point.posed, solution, eps)
        q = lower.gradient(point, 1e-10, None).adjoint
        plain, corrected = abs(point.loss - exact.loss), abs(point.corrected(q) - exact.loss)
        assert corrected < 10 * eps * plain + 1e-12, (eps, plain, corrected)
    assert plain > 1e-4


def test_refining_goes_on_from_all_variables():
    problem = learned()
    lower = Bilevel(problem, Piggyback())
    rough = lower.evaluate(problem.theta, 1e-2)
    before = lower.meter.cost.work
    fine = lower.refine(rough, 1e-5)
    going_on = lower.meter.cost.work - before
    anew = Bilevel(problem, Piggyback())
    anew.evaluate(problem.theta, 1e-5)
    assert going_on < anew.meter.cost.work and bool((fine.solution.error <= 1e-5).all())
    assert lower.trial(problem.theta + 1e-3, 1e-4, fine) is not None


def test_the_first_accuracies_come_from_the_start():
    problem = tv()
    lower = Bilevel(problem, Piggyback())
    distance, slope = lower.start_residual(problem.theta, lower._start(problem.theta))
    images = cases.reached(problem, 1e-8).value
    true = (lower._start(problem.theta) - images).flatten(1).norm(dim=1)
    assert float(true.mean()) <= distance < 50 * float(true.mean())
    assert slope == pytest.approx(
        float((problem.pairs.y - problem.pairs.x).flatten(1).norm(dim=1).mean())
    )


# --- resumption -----------------------------------------------------------------------------------


RESUMED = (
    "maid",
    "maid_certified",
    "fixed",
    "hoag",
    "lbfgsb",
    "lbfgsb_joint",
    "stochastic",
    "adam",
    "joint",
    "dfo",
    "grid",
)


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_in_parts_is_the_whole_run(name, tmp_path):
    make, learner, arguments = LEARNERS[name]
    whole = run(make(), learner, steps=4, **arguments)
    for steps in (1, 3, 4):
        parts = run(make(), learner, steps=steps, checkpoint=tmp_path, resume=True, **arguments)
    assert_same(whole, parts)
    assert repr(whole.stop) == repr(parts.stop)


@pytest.mark.parametrize("name", ["maid", "hoag", "stochastic", "joint"])
def test_a_checkpoint_holds_all_variables(name, tmp_path):
    make, learner, arguments = LEARNERS[name]
    problem = make()
    run(problem, learner, steps=2, checkpoint=tmp_path, **arguments)
    tensors, _ = load_tensors(tmp_path / FILE, FORMAT)
    n = solve(problem.energy, problem.pairs.y, 1.0).state.shape[1] * (2 if name == "joint" else 1)
    found = [
        t
        for k, t in tensors.items()
        if k.endswith("state.state")
        or k.endswith("solutions.entries")
        or k.endswith(".state")
        or k == "state"
    ]
    assert found and found[0].shape == (problem.size, n), {
        k: tuple(t.shape) for k, t in tensors.items()
    }


def on_disk(folder: Path) -> Stochastic:
    return Stochastic(batch=2, record=2, store=str(folder))


@pytest.mark.parametrize(
    "strategy", [Piggyback(), JointPiggyback(steps=10)], ids=["piggyback", "joint"]
)
def test_warm_starts_on_disk_and_in_memory_are_the_same(strategy, tmp_path):
    problem = tv(3)  # two of three images make a mini-batch: some have an adjoint before others
    memory = run(problem, Stochastic(batch=2, record=2), steps=3, hypergradient=strategy)
    disk = run(problem, on_disk(tmp_path / "a"), steps=3, hypergradient=strategy)
    assert_same(memory, replace(disk, name=memory.name))
    for steps in (1, 3):
        parts = run(
            problem,
            on_disk(tmp_path / "b"),
            steps=steps,
            hypergradient=strategy,
            checkpoint=tmp_path / "c",
            resume=True,
        )
    assert_same(memory, parts)


def test_warm_starts_save_work():
    """The second visit of an image costs less than a start from A^T y."""
    problem = learned()
    learner = Stochastic(
        batch=2, alpha0=1e-6, eps0=1e-4, delta0=1e-4, accuracy_exponent=0.0, record=1
    )
    work = run(problem, learner, steps=3).record.column("work")
    steps = [b - a for a, b in pairwise(work)]
    assert steps[1] < 0.7 * steps[0], "the linear problem starts from its last solution too"


# --- what a run leaves behind ---------------------------------------------------------------------


@cache
def finished() -> tuple[BilevelProblem, Run]:
    problem = tv()
    return problem, run(problem, MAID(), steps=3)


def test_a_saved_run_is_the_run(tmp_path):
    problem, outcome = finished()
    outcome.save(tmp_path)
    again = Run.load(tmp_path, energy=problem.energy)
    assert torch.equal(again.theta, outcome.theta) and torch.equal(again.thetas, outcome.thetas)
    assert again.record.column("loss") == outcome.record.column("loss")
    a, b = (r.reconstruct(problem.pairs.y, 1e-4) for r in (outcome, again))
    assert torch.equal(a.value, b.value) and a.theorem == b.theorem


def test_a_run_evaluates_pictures_of_another_size():
    _, outcome = finished()
    data = pairs(2, (11, 12), seed=5)
    found = outcome.evaluate(data, 1e-3)
    assert found.reconstruction.shape == data.x.shape and bool((found.error <= 1e-3).all())
    assert found.mean("psnr") > found.mean("psnr_input")
    rows = outcome.check_certificate(data.y[:1], grid=(1e-1, 1e-2), reference_eps=1e-7)
    assert [row["eps"] for row in rows] == [1e-1, 1e-2]
    assert all(row["true"] <= row["certified"] + 1e-7 <= row["eps"] + 1e-7 for row in rows)
    other = outcome.reconstruct(
        cases.inpainting((1, 11, 12)).A(data.x), 1e-2, physics=cases.denoising()
    )
    assert other.ok


@pytest.mark.parametrize("strategy", [None, JointPiggyback(steps=20)], ids=["piggyback", "joint"])
def test_a_trajectory_measures_a_run_again(strategy):
    problem, outcome = finished()
    if strategy is not None:
        outcome = run(problem, Stochastic(batch=1, record=2), steps=3, hypergradient=strategy)
    rows = trajectory(
        outcome, problem, pairs(2, (6, 5), seed=3), points=3, relative=1e-3, strategy=strategy
    )
    assert (
        len(rows) >= 2 and rows[0]["step"] == 0 and rows[-1]["step"] == len(outcome.record.rows) - 1
    )
    for row in rows:
        loss = exact_loss(problem, outcome.thetas[row["step"]])
        assert row["note"] is None and row["kind"] == "certified"
        assert row["lower"] - 1e-7 <= loss <= row["upper"] + 1e-7
        assert row["upper"] - row["lower"] <= 1e-3 * row["loss"] and math.isfinite(row["psnr_test"])


def test_a_budget_ends_a_run_in_the_middle_of_a_solve():
    problem = learned()
    outcome = run(problem, MAID(), budget=Budget(work=400), steps=100)
    assert outcome.stop.code == "budget" and torch.isfinite(outcome.theta).all()


def test_data_of_one_channel_more_are_learned_from():
    x = pairs(2, (4, 5)).x.repeat(1, 3, 1, 1)
    problem = BilevelProblem(
        SaddleEnergy(cases.denoising(), ExactTV(0.05, rounding=0.05).double()),
        Pairs(x=x, y=x + 0.1 * normal(*x.shape)),
    )
    outcome = run(problem, MAID(), steps=2)
    assert len(outcome.record.rows) == 3
