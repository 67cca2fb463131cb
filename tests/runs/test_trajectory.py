"""Runs measured again: brackets that hold and are as narrow as promised, steps well chosen, the run
left alone.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from tests.learners.cases import GALLERY, Plain, exact_loss, phantoms, pictures, run, slack

from learnreg.core.errors import InputError
from learnreg.hypergradients.unrolled import Unrolled
from learnreg.learners import MAID, FixedAccuracy
from learnreg.metrics import psnr
from learnreg.problems import BilevelProblem, gallery
from learnreg.runs import Budget, learn
from learnreg.runs.trajectory import chosen_steps, trajectory
from learnreg.solvers import solve


@pytest.mark.parametrize("relative", [1e-2, 1e-5, 1e-9])
@pytest.mark.parametrize("name", GALLERY)
def test_brackets_hold_the_exact_loss_and_are_as_narrow_as_asked(name, relative):
    problem = GALLERY[name]()
    outcome = run(problem, MAID(), steps=4)
    rows = trajectory(outcome, problem, problem.pairs, relative=relative)
    assert [row["step"] for row in rows] == [row["step"] for row in outcome.record.rows]
    for row, theta in zip(rows, outcome.thetas, strict=True):
        exact, off = exact_loss(problem, theta), slack(problem)
        assert row["lower"] - off <= exact <= row["upper"] + off
        assert row["upper"] - row["lower"] <= relative * row["loss"]
        assert row["kind"] == "certified" and row["note"] is None


@pytest.fixture(scope="module")
def learned():
    """TV on float32 phantoms."""
    problem = pictures()
    return problem, run(problem, MAID(), steps=6)


def test_float32_runs_are_bracketed_as_tightly_as_float64_ones(learned):
    problem, outcome = learned
    assert outcome.theta.dtype == torch.float32
    tight = trajectory(outcome, problem, phantoms()[1], points=3, relative=1e-9)
    loose = trajectory(outcome, problem, phantoms()[1], points=3, relative=1e-3)
    for one, two in zip(loose, tight, strict=True):
        assert two["upper"] - two["lower"] <= 1e-9 * two["loss"]
        assert one["lower"] <= two["upper"] and two["lower"] <= one["upper"]
        assert one["upper"] - one["lower"] > 1e-9 * one["loss"]  # no more work than asked for


def test_what_the_learner_spent_and_chose_is_copied_and_not_added_to(learned):
    problem, outcome = learned
    before = outcome.to_json()
    rows = trajectory(outcome, problem, phantoms()[1], points=4)
    assert outcome.to_json() == before
    for row in rows:
        recorded = outcome.record.rows[row["step"]]
        assert row["work"] == recorded["work"] / problem.size
        assert all(
            row[c] == recorded[c] for c in ("seconds", "cpu_seconds", "eps", "delta", "step_size")
        )


def test_a_penalty_is_part_of_the_loss():
    plain = GALLERY["quadratic"]()
    problem = BilevelProblem(
        plain.energy, plain.pairs, plain.loss, penalty=lambda theta: 3 + theta.square().sum()
    )
    outcome = run(problem, MAID(), steps=3)
    for row, theta in zip(
        trajectory(outcome, problem, problem.pairs, relative=1e-6), outcome.thetas, strict=True
    ):
        exact = plain.exact_loss(theta) + 3 + float(theta.square().sum())
        assert row["lower"] - 1e-12 <= exact <= row["upper"] + 1e-12
        assert row["upper"] - row["lower"] <= 1e-6 * exact * (1 + 1e-9)


class Shifted:
    """||x - x_true||_1, 1-Lipschitz in sqrt(n) ||.||: a loss for which the first guess of eps does
    not fit.
    """

    smoothness = 0.0

    def value(self, x, x_true):
        return (x - x_true).abs().flatten(1).sum(dim=1)

    def grad(self, x, x_true):
        return (x - x_true).sign()

    def bracket(self, x, x_true, eps):
        middle, half = self.value(x.double(), x_true.double()), eps * math.sqrt(x[0].numel())
        return middle - half, middle + half


def test_another_loss_than_the_squared_error_gets_its_width_too(learned):
    problem, outcome = learned
    other = BilevelProblem(problem.energy, problem.pairs, Shifted())
    for row in trajectory(outcome, other, phantoms()[1], points=3, relative=1e-6):
        assert 0 < row["upper"] - row["lower"] <= 1e-6 * row["loss"]


def test_held_out_quality_is_that_of_certified_reconstructions(learned):
    problem, outcome = learned
    test = phantoms()[1]
    rows = trajectory(outcome, problem, test, points=3, eps_test=1e-3)
    for row in rows:
        theta = outcome.thetas[row["step"]]
        exact = solve(problem.energy.with_theta(theta.double()), test.y.double(), 1e-8).value
        wanted = psnr(exact, test.x.double())
        assert row["psnr_test_images"] == pytest.approx(wanted.tolist(), abs=5e-3)
        assert row["psnr_test"] == pytest.approx(float(wanted.mean()), abs=5e-3)
        assert row["psnr_test_own"] is None


@pytest.mark.parametrize("steps", [1, 3, 2000])
def test_a_reconstruction_of_its_own_is_measured_as_well(learned, steps):
    problem, outcome = learned
    test = phantoms()[1]
    exact = trajectory(outcome, problem, test, points=2, eps_test=1e-4)[-1]
    row = trajectory(outcome, problem, test, points=2, eps_test=1e-4, strategy=Unrolled(steps))[-1]
    assert row == {**exact, "psnr_test_own": row["psnr_test_own"]}
    assert (abs(row["psnr_test_own"] - exact["psnr_test"]) < 1e-2) is (steps == 2000)
    started = trajectory(
        outcome, problem, test, points=2, eps_test=1e-4, strategy=Unrolled(steps, start="solution")
    )
    assert started[-1] == exact


# --- which steps ----------------------------------------------------------------------------------


def made(work, thetas):
    """A run of these amounts of work and thetas."""
    rows = tuple({"step": k, "work": w, "seconds": float(w)} for k, w in enumerate(work))
    return SimpleNamespace(
        record=SimpleNamespace(rows=rows, images=1), thetas=torch.tensor(thetas)[:, None]
    )


def test_steps_are_spread_over_the_logarithm_of_the_work():
    outcome = made(range(1, 1001), [float(k) for k in range(1000)])
    steps = chosen_steps(outcome, 8)
    assert len(steps) == 8 and steps[0] == 0 and steps[-1] == 999 and steps == sorted(set(steps))
    logs = [math.log1p(1 + k) for k in steps]
    gaps = [b - a for a, b in pairwise(logs)]
    assert max(gaps) <= 2.5 * min(gaps)
    assert set(steps) <= set(chosen_steps(outcome, 12))


def test_steps_that_left_theta_alone_are_passed_over():
    outcome = made([1, 2, 3, 4, 5, 6], [0.0, 0.0, 1.0, 1.0, 2.0, 2.0])
    assert chosen_steps(outcome, 12) == [0, 2, 4, 5]
    assert chosen_steps(made([5], [0.0]), 12) == [0]


def test_the_same_theta_is_not_solved_twice(learned, monkeypatch):
    problem, outcome = learned
    still = replace(outcome, thetas=outcome.thetas[:1].expand(len(outcome.thetas), -1))
    calls = []
    monkeypatch.setattr(
        "learnreg.runs.trajectory.solve", lambda *a, **k: calls.append(1) or solve(*a, **k)
    )
    rows = trajectory(still, problem, phantoms()[1])
    assert [row["step"] for row in rows] == [0, len(outcome.thetas) - 1] and len(calls) == 1
    assert rows[0]["loss"] == rows[1]["loss"] and rows[0]["work"] < rows[1]["work"]


# --- what cannot be evaluated ---------------------------------------------------------------------


@pytest.mark.parametrize("bad", [[math.nan, 0.0], [1e30, -1e30], [1e30, 1e30]])
def test_a_theta_that_cannot_be_solved_has_a_note_and_the_others_have_numbers(learned, bad):
    problem, outcome = learned
    thetas = outcome.thetas.clone()
    thetas[1] = torch.tensor(bad)
    rows = trajectory(replace(outcome, thetas=thetas), problem, phantoms()[1], relative=1e-2)
    assert rows[1]["loss"] is None and rows[1]["psnr_test"] is None and rows[1]["note"]
    assert all(row["loss"] is not None and row["note"] is None for row in rows[2:])


def test_rows_without_a_loss_of_their_own_are_evaluated(learned):
    problem, outcome = learned
    unknown = dict.fromkeys(("loss", "lower", "upper", "psnr"))
    silent = replace(
        outcome,
        record=replace(
            outcome.record, rows=tuple({**row, **unknown} for row in outcome.record.rows)
        ),
    )
    assert trajectory(silent, problem, phantoms()[1], points=3) == trajectory(
        outcome, problem, phantoms()[1], points=3
    )
    assert "not known" in repr(silent) and "not known" in repr(silent.record)


def test_a_loss_of_zero_ends_at_the_rounding_floor():
    problem = gallery.spectrum_quadratic(10.0, n=12)
    exact = solve(problem.energy, problem.pairs.y, 1e-12).value
    easy = BilevelProblem(problem.energy, Plain(x=exact, y=problem.pairs.y))
    outcome = learn(easy, FixedAccuracy(eps=1e-3), budget=Budget(steps=1))
    row = trajectory(outcome, easy, easy.pairs, points=2)[0]
    assert 0 <= row["lower"] <= row["upper"] < 1e-15


def test_progress_is_told(learned):
    problem, outcome = learned
    seen = []
    trajectory(
        outcome,
        problem,
        phantoms()[1],
        points=3,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    "given",
    [
        {"points": 1},
        {"points": 2.5},
        {"relative": 0.0},
        {"relative": 1.0},
        {"relative": math.nan},
        {"eps_test": -1.0},
    ],
)
def test_numbers_out_of_range_are_refused(learned, given):
    problem, outcome = learned
    with pytest.raises(InputError, match=next(iter(given))):
        trajectory(outcome, problem, phantoms()[1], **given)


def test_a_run_without_rows_is_refused(learned):
    problem, outcome = learned
    with pytest.raises(InputError, match="no rows"):
        trajectory(
            replace(outcome, record=replace(outcome.record, rows=())), problem, phantoms()[1]
        )
