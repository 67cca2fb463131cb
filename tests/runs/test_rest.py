"""Runs that end because nothing more is gained, and held-out pairs that say when."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from tests.learners.cases import CLOCKS, Plain, denoising, phantoms, pictures

import learnreg as lr
from learnreg.core.errors import CheckpointError, InputError
from learnreg.runs.budget import Course
from learnreg.runs.validation import KEYS, SHARE, best_step


def course_of(*points):
    course = Course()
    for work, loss in points:
        course.add(work, loss)
    return course


# --- the budget -----------------------------------------------------------------------------------


def test_a_loss_that_falls_is_not_at_rest_and_one_that_does_not_is():
    budget = lr.Budget(patience=10, plateau=0.1)
    assert budget.rested(course_of()) is None
    assert budget.rested(course_of((0, 5.0), (9, 5.0))) is None  # not enough work yet
    assert budget.rested(course_of((0, 5.0), (10, 4.0))) is None
    stop = budget.rested(course_of((0, 5.0), (10, 4.6)), "loss of the pictures")
    assert stop.code == "plateau" and "loss of the pictures" in stop.sentence


def test_what_counts_is_the_best_so_far():
    budget = lr.Budget(patience=10, plateau=0.1)
    rising = course_of((0, 5.0), (5, 1.0), (12, 3.0), (16, 2.0))
    assert budget.rested(rising).code == "plateau"
    assert budget.rested(course_of((0, 5.0), (5, 1.0), (12, 3.0), (16, 0.5))) is None


def test_negative_losses_and_losses_that_are_not_numbers():
    budget = lr.Budget(patience=10, plateau=0.1)
    assert budget.rested(course_of((0, -5.0), (10, -6.0))) is None
    assert budget.rested(course_of((0, -5.0), (10, -5.1))).code == "plateau"
    assert budget.rested(course_of((0, 0.0), (10, 0.0))).code == "plateau"
    gap = course_of((0, 5.0), (5, math.nan), (10, 4.0), (10, None))
    assert budget.rested(gap) is None
    assert lr.Budget(steps=3).rested(course_of((0, 5.0), (10**6, 5.0))) is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "seconds, work, steps or patience"),
        ({"patience": 0}, "budget patience"),
        ({"patience": math.inf}, "budget patience"),
        ({"steps": 1, "plateau": 0.0}, "budget plateau"),
        ({"steps": 1, "plateau": 1}, "budget plateau"),
        ({"steps": 1, "plateau": None}, "budget plateau"),
    ],
)
def test_budgets_out_of_range_are_refused(settings, words):
    with pytest.raises(InputError, match=words):
        lr.Budget(**settings)


# --- runs -----------------------------------------------------------------------------------------


def plain(run):
    return [{k: v for k, v in row.items() if k not in CLOCKS} for row in run.record.rows]


@pytest.fixture(scope="module")
def held_out():
    return phantoms()[1]


def test_a_run_ends_where_the_loss_comes_to_rest():
    problem = pictures()
    run = lr.learn(problem, lr.MAID(), budget=lr.Budget(steps=60, patience=100, plateau=0.05))
    assert run.stop.code == "plateau"
    whole = lr.learn(problem, lr.MAID(), budget=lr.Budget(steps=len(run.record.rows) - 1))
    assert plain(whole) == plain(run)  # it made the same steps
    rows = run.record.rows
    since = [r for r in rows if r["work"] / 2 <= rows[-1]["work"] / 2 - 100]
    assert min(r["loss"] for r in rows) > 0.95 * min(r["loss"] for r in since)


def test_validation_is_recorded_and_changes_nothing(held_out):
    budget = lr.Budget(steps=6)
    alone = lr.learn(pictures(), lr.MAID(), budget=budget)
    run = lr.learn(pictures(), lr.MAID(), budget=budget, validation=held_out)
    assert all(row[key] is None or math.isfinite(row[key]) for row in plain(run) for key in KEYS)
    assert [{k: v for k, v in row.items() if k not in KEYS} for row in plain(run)] == plain(alone)
    assert run.theta.equal(alone.theta)
    first, last = run.record.rows[0], run.record.rows[-1]
    assert first["validation_psnr"] is not None and last["validation_psnr"] is not None


def test_validation_says_what_a_reconstruction_says(held_out):
    run = lr.learn(pictures(), lr.MAID(), budget=lr.Budget(steps=4), validation=held_out)
    evaluation = run.evaluate(held_out, 1e-3)
    found = run.record.rows[-1]
    assert found["validation_psnr"] == pytest.approx(sum(evaluation.psnr) / 2, abs=0.05)
    error = (evaluation.reconstruction - held_out.x).flatten(1).square().sum(1).mean() / 2
    assert found["validation_loss"] == pytest.approx(float(error), rel=1e-2)


def test_validation_takes_its_share_of_the_work(held_out):
    run = lr.learn(pictures(), lr.MAID(), budget=lr.Budget(steps=10), validation=held_out)
    looks = [row for row in run.record.rows if row["validation_work"] is not None]
    assert 2 < len(looks) < len(run.record.rows)
    spent = [row["validation_work"] for row in looks]
    costs = [spent[0], *(after - before for before, after in pairwise(spent))]
    for k in range(1, len(looks) - 1):  # the next look is taken to cost what the latest one did
        assert spent[k - 1] + costs[k - 1] <= SHARE * looks[k]["work"]


def test_the_best_step_can_be_taken(held_out):
    run = lr.learn(pictures(), lr.MAID(), budget=lr.Budget(steps=8), validation=held_out)
    losses = {r["step"]: r["validation_loss"] for r in run.record.rows}
    seen = {step: loss for step, loss in losses.items() if loss is not None}
    assert run.best_step == min(seen, key=seen.get)
    early = run.at(0)
    assert early.theta.equal(run.thetas[0]) and len(early.record.rows) == 1
    assert early.energy.regularizer.log_weight != run.energy.regularizer.log_weight
    for step in (-1, 9, 1.5):
        with pytest.raises(InputError, match="step"):
            run.at(step)
    without = lr.learn(pictures(), lr.MAID(), budget=lr.Budget(steps=1))
    assert without.best_step is None and best_step([]) is None


@pytest.mark.parametrize("patience", [None, 60])
def test_a_resumed_run_with_validation_gives_the_same_numbers(tmp_path, held_out, patience):
    def go(steps, folder, resume=False):
        return lr.learn(
            pictures(),
            lr.MAID(),
            budget=lr.Budget(steps=steps, patience=patience, plateau=0.2),
            checkpoint=tmp_path / folder,
            resume=resume,
            validation=held_out,
        )

    whole = go(8, "whole")
    for steps in (2, 5, 8):
        resumed = go(steps, "parts", resume=steps > 2)
    assert plain(resumed) == plain(whole)
    assert resumed.stop == whole.stop
    assert whole.stop.code == ("budget" if patience is None else "plateau")


def test_an_interruption_within_a_look_is_made_up_for(tmp_path, held_out, monkeypatch):
    whole = lr.learn(pictures(), lr.MAID(), budget=lr.Budget(steps=9), validation=held_out)
    looks = [r["step"] for r in whole.record.rows if r["validation_work"] is not None]
    options = {"checkpoint": tmp_path, "validation": held_out}
    look = lr.runs.validation.Validation.look

    def interrupted(self, theta, rows):
        if rows[-1]["step"] == looks[1]:
            raise KeyboardInterrupt
        return look(self, theta, rows)

    with monkeypatch.context() as patch:
        patch.setattr(lr.runs.validation.Validation, "look", interrupted)
        stopped = lr.learn(pictures(), lr.MAID(), budget=lr.Budget(steps=9), **options)
    assert stopped.stop.code == "interrupted"
    assert stopped.record.rows[-1]["step"] == looks[1]
    again = lr.learn(pictures(), lr.MAID(), budget=lr.Budget(steps=9), resume=True, **options)
    assert plain(again) == plain(whole)


def test_other_validation_pairs_are_not_gone_on_with(tmp_path, held_out):
    options = {"checkpoint": tmp_path}
    lr.learn(pictures(), lr.MAID(), budget=lr.Budget(steps=1), validation=held_out, **options)
    other = lr.data.pairs("phantoms", denoising(), size=24, split=(1, 1), seed=5)[1]
    with pytest.raises(CheckpointError, match="validation"):
        lr.learn(
            pictures(),
            lr.MAID(),
            budget=lr.Budget(steps=2),
            validation=other,
            resume=True,
            **options,
        )


def test_pairs_that_do_not_fit_are_refused(held_out):
    for wrong, words in (
        ("pairs", "validation"),
        (Plain(x=held_out.x[:0], y=held_out.y[:0]), "validation"),
    ):
        with pytest.raises(InputError, match=words):
            lr.learn(pictures(), lr.MAID(), budget=lr.Budget(steps=1), validation=wrong)
