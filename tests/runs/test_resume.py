"""Checkpoints: resuming gives the same numbers, nothing foreign is continued, nothing half-written
is left behind.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import deepinv
import pytest
import torch
from tests.learners.cases import (
    GALLERY,
    IMAGES,
    Plain,
    Watched,
    assert_same,
    phantoms,
    pictures,
    run,
    without_clocks,
)

from learnreg.core.errors import CheckpointError
from learnreg.core.files import load_tensors
from learnreg.core.objective import Halt
from learnreg.core.results import StopReason
from learnreg.hypergradients import Implicit
from learnreg.learners import MAID, FixedAccuracy
from learnreg.objectives.bilevel import Bilevel
from learnreg.problems import L2, BilevelProblem, Energy, gallery
from learnreg.regularizers import TV, FoE, Tikhonov
from learnreg.runs import Budget, learn
from learnreg.runs.checkpoint import FILE, FORMAT


def files(folder: Path) -> list[str]:
    """Everything in the folder, hidden files too."""
    return sorted(os.listdir(folder))


@dataclass(frozen=True)
class Case:
    """A run that is whole, and the same in parts that end after ``stops`` steps."""

    problem: Callable[[], BilevelProblem]
    learner: object
    stops: tuple[int, ...] = (3, 6)


class Tightest(MAID):
    """Leaves float32 at once, and in float64 asks for more than rounding allows, at every step."""

    def step(self, lower, state):
        if state.point.theta.dtype == torch.float32:
            raise Halt(StopReason("rounding_floor", "on to float64"))
        state = super().step(lower, replace(state, eps=1e-17))
        assert state.point.at_floor
        return state


CASES = {
    "tv": Case(pictures, MAID()),
    "tv_paper": Case(pictures, MAID(memory=0), (1, 2, 6)),
    "tv_certified": Case(pictures, MAID(test="certified")),
    "foe": Case(lambda: pictures(IMAGES["FoE"]()), MAID(memory=2)),
    "sum": Case(lambda: pictures(TV() + FoE(filters=2, size=3)), MAID(), (2, 4)),
    "fixed": Case(lambda: pictures(IMAGES["FoE"]()), FixedAccuracy(), (2, 5)),
    "quadratic": Case(GALLERY["quadratic"], MAID()),
    "two_pixels": Case(GALLERY["two_pixels"], MAID(test="certified", memory=0)),
    "from_the_start": Case(pictures, MAID(), (0, 3)),
    "at_the_floor": Case(pictures, Tightest(smallest_eps=1e-300), (1, 2, 3)),
}


def in_parts(case: Case, folder: Path, stops: tuple[int, ...]):
    """One ``learn`` after the other; each ends where its budget says and leaves exactly one
    file.
    """
    for steps in stops:
        if steps:
            outcome = run(case.problem(), case.learner, steps=steps, checkpoint=folder, resume=True)
        else:
            outcome = run(
                case.problem(), case.learner, budget=Budget(work=1), checkpoint=folder, resume=True
            )
        assert len(outcome.record.rows) == steps + 1
        assert files(folder) == [FILE]
    return outcome


@pytest.mark.parametrize("name", CASES)
def test_a_run_in_parts_is_the_whole_run(name, tmp_path):
    case = CASES[name]
    whole = run(case.problem(), case.learner, steps=case.stops[-1])
    parts = in_parts(case, tmp_path / "parts", case.stops)
    assert_same(whole, parts)
    assert repr(whole.stop) == repr(parts.stop)
    seconds = parts.record.column("seconds")
    assert seconds == sorted(seconds) and seconds[0] > 0
    assert parts.record.column("cpu_seconds") == sorted(parts.record.column("cpu_seconds"))


def test_a_run_in_parts_goes_on_in_float64(tmp_path):
    """It ends before, between and after the two steps that the promotion falls between."""
    k = len(run(pictures(), MAID(), promote=False).thetas)
    watched = Watched(MAID())
    whole = run(pictures(), watched, steps=k + 2)
    assert [state.point.theta.dtype for state in watched.states[k - 1 : k + 1]] == [
        torch.float32,
        torch.float64,
    ]
    assert_same(whole, in_parts(Case(pictures, MAID()), tmp_path, (k - 2, k - 1, k, k + 1, k + 2)))


def test_writing_checkpoints_changes_no_number(tmp_path):
    assert_same(
        run(pictures(), MAID(), steps=3), run(pictures(), MAID(), steps=3, checkpoint=tmp_path)
    )


def test_resuming_a_finished_run_adds_nothing(tmp_path):
    first = run(pictures(), MAID(), steps=2, checkpoint=tmp_path)
    before = (tmp_path / FILE).read_bytes()
    again = run(pictures(), MAID(), steps=2, checkpoint=tmp_path, resume=True)
    assert_same(first, again)
    assert again.record.rows == first.record.rows  # the clocks too
    assert (tmp_path / FILE).read_bytes() == before


def test_without_resume_a_run_starts_anew(tmp_path):
    run(pictures(), MAID(), steps=3, checkpoint=tmp_path)
    fresh = run(pictures(), MAID(), steps=1, checkpoint=tmp_path)
    assert len(fresh.record.rows) == 2
    assert len(load_tensors(tmp_path / FILE, FORMAT)[1]["rows"]) == 2


@pytest.mark.parametrize("kind", ["empty", "missing", "file", "read-only"])
def test_a_folder_that_is_of_no_use_is_refused_before_anything_is_computed(
    tmp_path, kind, monkeypatch
):
    words = {
        "empty": "no checkpoint in it",
        "missing": "no such folder",
        "file": "a file",
        "read-only": "read-only",
    }
    folder = tmp_path if kind in ("empty", "read-only") else tmp_path / "a"
    if kind == "file":
        folder.write_text("")
    if kind == "read-only":
        monkeypatch.setattr("learnreg.runs.checkpoint.os.access", lambda *_: False)
    with pytest.raises(CheckpointError, match=rf"^checkpoint .*: given .*{words[kind]}; expected"):
        learn(
            pictures(),
            MAID(),
            budget=Budget(steps=1),
            checkpoint=str(folder),
            resume=kind in ("empty", "missing"),
        )


def test_seconds_go_on_where_they_ended(tmp_path):
    first = run(pictures(), MAID(), steps=2, checkpoint=tmp_path)
    spent = first.record.rows[-1]["seconds"]
    outcome = run(
        pictures(), MAID(), budget=Budget(seconds=0.5 * spent), checkpoint=tmp_path, resume=True
    )
    assert outcome.stop.code == "budget"
    assert_same(first, outcome)


# --- what is refused ------------------------------------------------------------------------------


def refused(error: pytest.ExceptionInfo, folder: Path | str, given: str, remedy: str) -> None:
    """The sentence says which checkpoint, what it is, what it should be and what to do."""
    message = str(error.value)
    assert message.startswith(f"{folder}: given ") and given in message
    assert "; expected " in message and remedy in message


def mixed(weight: float):
    return TV() + Tikhonov(weight, learned=False)


def blurred(side: float) -> BilevelProblem:
    """Blurring physics that differ in their kernels alone, on the same pictures and
    measurements.
    """
    kernel = torch.tensor([[0, side, 0], [side, 1.0, side], [0, side, 0]])[None, None]
    physics = deepinv.physics.Blur(filter=kernel / kernel.sum(), padding="circular")
    return BilevelProblem(Energy(physics, mixed(0.1)), phantoms()[0])


def altered(which: str) -> BilevelProblem:
    data = Plain(x=phantoms()[0].x.clone(), y=phantoms()[0].y.clone())
    getattr(data, which)[0, 0, 0, 0] += 1e-6
    return pictures(data=data)


def with_sigma(sigma: float) -> BilevelProblem:
    return BilevelProblem(Energy(deepinv.physics.Denoising(), TV(), L2(sigma)), phantoms()[0])


def with_offset(offset: float) -> BilevelProblem:
    problem = gallery.spectrum_quadratic(10.0, n=12)
    problem.loss.offset = problem.loss.offset + offset
    return problem


OTHERS = {
    "start": (pictures, lambda: pictures(TV(weight=0.06))),
    "kind": (pictures, lambda: pictures(TV() + Tikhonov(0.1))),
    "images": (pictures, lambda: altered("x")),
    "measurements": (pictures, lambda: altered("y")),
    "fewer images": (pictures, lambda: pictures(data=phantoms()[0][:1])),
    "isotropy": (pictures, lambda: pictures(TV(isotropic=False))),
    "fidelity": (lambda: with_sigma(1.0), lambda: with_sigma(0.5)),
    "factor": (lambda: pictures(2.0 * TV()), lambda: pictures(3.0 * TV())),
    "padding": (lambda: pictures(FoE(2, 3)), lambda: pictures(FoE(2, 3, padding="zero"))),
    "mean": (lambda: pictures(FoE(2, 3)), lambda: pictures(FoE(2, 3, zero_mean=False))),
    "fixed weight": (lambda: pictures(mixed(0.1)), lambda: pictures(mixed(0.2))),
    "physics": (lambda: blurred(0.1), lambda: blurred(0.2)),
    "upper loss": (lambda: with_offset(0.0), lambda: with_offset(1.0)),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_checkpoint_of_another_problem_is_refused(what, tmp_path):
    one, other = OTHERS[what]
    run(one(), MAID(), steps=1, checkpoint=tmp_path)
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(CheckpointError) as error:
        run(other(), MAID(), steps=2, checkpoint=tmp_path, resume=True)
    refused(error, tmp_path, "another problem, data set or learner", "Use the same configuration")
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize(
    "other",
    [MAID(memory=3), MAID(eta=0.4), MAID(test="certified"), FixedAccuracy()],
    ids=["memory", "eta", "test", "kind"],
)
def test_a_checkpoint_of_another_learner_is_refused(other, tmp_path):
    run(pictures(), MAID(), steps=1, checkpoint=tmp_path)
    with pytest.raises(CheckpointError) as error:
        run(pictures(), other, steps=2, checkpoint=tmp_path, resume=True)
    refused(error, tmp_path, "another problem, data set or learner", "Use the same configuration")


def test_a_checkpoint_of_another_strategy_is_refused(tmp_path):
    run(pictures(), MAID(), steps=1, checkpoint=tmp_path)
    with pytest.raises(CheckpointError):
        run(
            pictures(),
            MAID(),
            steps=2,
            checkpoint=tmp_path,
            resume=True,
            hypergradient=Implicit(polish_steps=3),
        )


def test_names_and_budgets_may_change(tmp_path):
    run(pictures(), MAID(), steps=1, checkpoint=tmp_path, name="one")
    assert (
        len(
            run(
                pictures(),
                MAID(),
                budget=Budget(steps=2, seconds=60),
                checkpoint=tmp_path,
                resume=True,
                name="two",
            ).record.rows
        )
        == 3
    )


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_checkpoint_is_refused(share, tmp_path):
    run(pictures(), MAID(), steps=1, checkpoint=tmp_path)
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError) as error:
        run(pictures(), MAID(), steps=2, checkpoint=tmp_path, resume=True)
    refused(error, tmp_path, "not intact", "Start without resume")


def test_a_file_of_another_kind_is_refused(tmp_path):
    outcome = run(pictures(), MAID(), steps=1)
    outcome.save(tmp_path)
    shutil.copy(tmp_path / "history.safetensors", tmp_path / FILE)
    with pytest.raises(CheckpointError) as error:
        run(pictures(), MAID(), steps=2, checkpoint=tmp_path, resume=True)
    refused(error, tmp_path, "learnreg-history", "Start without resume")


def test_resuming_needs_a_folder():
    with pytest.raises(CheckpointError) as error:
        run(pictures(), MAID(), resume=True)
    refused(error, "resume", "no checkpoint folder", "Name the folder")


# --- interruptions --------------------------------------------------------------------------------


def interrupted_after(step: int):
    def progress(row):
        if row["step"] == step:
            raise KeyboardInterrupt

    return progress


def assert_resumes(folder: Path, kept: int) -> None:
    """The checkpoint holds ``kept`` rows and goes on to the numbers of a whole run."""
    assert files(folder) == [FILE]
    assert len(load_tensors(folder / FILE, FORMAT)[1]["rows"]) == kept
    whole = run(pictures(), MAID(), steps=kept + 1)
    assert_same(whole, run(pictures(), MAID(), steps=kept + 1, checkpoint=folder, resume=True))


@pytest.mark.parametrize("step", [0, 2])
def test_ctrl_c_in_progress_keeps_the_step(step, tmp_path):
    outcome = run(pictures(), MAID(), checkpoint=tmp_path, progress=interrupted_after(step))
    assert (
        outcome.stop.code == "interrupted"
        and "interrupted from the keyboard" in outcome.stop.sentence
    )
    assert len(outcome.record.rows) == len(outcome.thetas) == step + 1
    assert_same(
        outcome, run(pictures(), MAID(), budget=Budget(steps=2) if step else Budget(work=1))
    )
    assert_resumes(tmp_path, step + 1)


def at_call(number: int, original: Callable, error: type[BaseException]):
    """``original``, but for one call that raises."""
    calls = iter(range(1, 10**6))

    def wrapped(*arguments, **keywords):
        if next(calls) == number:
            raise error
        return original(*arguments, **keywords)

    return wrapped


@pytest.mark.parametrize("call", [2, 3, 6])
@pytest.mark.parametrize("where", ["_solve", "gradient"])
def test_ctrl_c_inside_a_step_keeps_the_last_accepted_one(where, call, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Bilevel, where, at_call(call, getattr(Bilevel, where), KeyboardInterrupt))
        outcome = run(pictures(), MAID(), checkpoint=tmp_path)
    assert outcome.stop.code == "interrupted"
    kept = len(outcome.record.rows)
    assert kept >= 1 and outcome.theta.equal(outcome.thetas[-1])
    assert without_clocks(outcome.record.rows) == without_clocks(
        run(pictures(), MAID(), steps=kept).record.rows[:kept]
    )
    assert_resumes(tmp_path, kept)


def test_ctrl_c_before_the_first_row_is_passed_on(tmp_path, monkeypatch):
    monkeypatch.setattr(Bilevel, "_solve", at_call(1, Bilevel._solve, KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(pictures(), MAID(), checkpoint=tmp_path)
    assert files(tmp_path) == []


@pytest.mark.parametrize("function", ["os.replace", "os.fsync"])
def test_ctrl_c_inside_a_write_leaves_the_old_checkpoint(function, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(function, at_call(3, getattr(os, function[3:]), KeyboardInterrupt))
        outcome = run(pictures(), MAID(), checkpoint=tmp_path)
    assert outcome.stop.code == "interrupted" and len(outcome.record.rows) == len(outcome.thetas)
    kept = len(
        load_tensors(tmp_path / FILE, FORMAT)[1]["rows"]
    )  # the second write, which need not be the second step
    assert 2 <= kept < len(outcome.record.rows)
    assert_resumes(tmp_path, kept)


def failing(*_: object) -> None:
    """Of every write."""
    raise OSError("no room")


@pytest.mark.parametrize("function", ["os.replace", "os.fsync"])
def test_a_failing_write_leaves_the_old_checkpoint(function, tmp_path, monkeypatch):
    whole = run(pictures(), MAID(), steps=1, checkpoint=tmp_path)
    before = (tmp_path / FILE).read_bytes()
    with monkeypatch.context() as patch, pytest.warns(RuntimeWarning, match="could not be written"):
        patch.setattr(function, failing)
        outcome = run(pictures(), MAID(), steps=5, checkpoint=tmp_path, resume=True)
    assert_same(run(pictures(), MAID(), steps=5), outcome)
    assert (tmp_path / FILE).read_bytes() == before and files(tmp_path) == [FILE]
    assert_same(whole, run(pictures(), MAID(), steps=1, checkpoint=tmp_path, resume=True))
    assert_resumes(tmp_path, 2)


def test_any_error_leaves_the_checkpoint(tmp_path):
    """An error of the user's own ``progress`` is passed on; the step before it was saved."""

    def progress(row):
        if row["step"] == 2:
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        run(pictures(), MAID(), checkpoint=tmp_path, progress=progress)
    assert_resumes(tmp_path, 3)
