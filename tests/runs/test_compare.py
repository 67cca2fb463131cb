"""Comparisons in Python: ten lines, the same numbers wherever they run, nothing computed twice, and
failures that are told.
"""

from __future__ import annotations

import os
import pickle
import re
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any, ClassVar

import pytest
import torch
from tests.learners.cases import CLOCKS, Plain, denoising, phantoms, pictures
from tests.runs.test_resume import at_call
from torch import Tensor

import learnreg as lr
from learnreg.core.errors import InputError
from learnreg.core.files import load_tensors
from learnreg.core.grants import Grants
from learnreg.core.objective import Objective, Row, Value, row_of
from learnreg.hypergradients import Implicit, JacobianFree, Unrolled
from learnreg.learners import LBFGSB, MAID, FixedAccuracy, Stochastic
from learnreg.objectives import ScoreMatching
from learnreg.objectives.bilevel import Bilevel
from learnreg.problems import BilevelProblem, Energy
from learnreg.regularizers import TV
from learnreg.reports import Comparison
from learnreg.runs import Budget, Outcome, compare
from learnreg.runs.checkpoint import FILE, FORMAT
from learnreg.runs.trajectory import trajectory

RUNS = sys.modules[compare.__module__]
SEEDS = (0, 2)  # which draw in another order
FEW = {"budget": Budget(steps=2), "points": 3, "relative": 1e-2}

# --- a learner of one's own -----------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    point: Value

    @property
    def theta(self) -> Tensor:
        return self.point.theta

    def row(self) -> Row:
        return row_of(self.point, {"eps": self.point.eps, "step_size": 0.05})


@dataclass(frozen=True)
class Downhill:
    """Steps of one length against the gradient."""

    length: float = 0.05
    needs: ClassVar[Grants] = Grants.LOSS | Grants.GRADIENT

    def init(self, objective: Objective, theta: Tensor, seed: int = 0) -> Place:
        return Place(objective.evaluate(theta, 1e-2))

    def step(self, objective: Objective, state: Place) -> Place:
        z = objective.gradient(state.point, 1e-2)
        theta = state.theta - self.length * z.value / z.norm
        return Place(objective.evaluate(theta, 1e-2, state.point))


@dataclass(frozen=True)
class Broken(Downhill):
    """Fails in its second step."""

    def step(self, objective: Objective, state: Place) -> Place:
        if not torch.equal(state.theta, objective.theta):
            raise ZeroDivisionError("a bug")
        return super().step(objective, state)


THREE = {
    "MAID": MAID(),
    "Adam": Stochastic.preset("iadam", batch=1),
    "mine": Downhill(),
}


def small(size: int = 16, count: int = 2) -> BilevelProblem:
    """Corners of the phantoms."""
    train = phantoms()[0]
    corner = slice(None, size)
    data = Plain(x=train.x[:count, :, corner, corner], y=train.y[:count, :, corner, corner])
    return BilevelProblem(Energy(denoising(), TV()), data)


def held_out() -> Plain:
    return Plain(x=phantoms()[1].x[:1, :, 4:20, 4:20], y=phantoms()[1].y[:1, :, 4:20, 4:20])


def drawn(seed: int) -> tuple[BilevelProblem, Plain]:
    """Other noise with every seed."""
    g = torch.Generator().manual_seed(seed)
    x = phantoms()[0].x[:, :, :16, :16]
    data = Plain(x=x, y=x + 0.1 * torch.randn(x.shape, generator=g))
    return BilevelProblem(Energy(denoising(), TV()), data), held_out()


def numbers(outcome: Outcome) -> list[Row]:
    """The tables without what no two runs share."""
    found = []
    for run in outcome.runs:
        row: dict[str, Any] = {k: v for k, v in run.items() if k not in ("identity", "traceback")}
        if "points" in row:
            points = row["points"]
            row["points"] = [{k: v for k, v in p.items() if k not in CLOCKS} for p in points]
        found.append(row)
    return found


def losses(outcome: Outcome) -> dict[tuple[str, int], list[float]]:
    return {
        (run["learner"], run["seed"]): [p["loss"] for p in run["points"]] for run in outcome.runs
    }


@pytest.fixture(scope="module")
def serial() -> Outcome:
    """Three learners with two seeds each; not to be changed."""
    return compare(small(), THREE, test=held_out(), seeds=SEEDS, **FEW)


# --- ten lines ------------------------------------------------------------------------------------


def test_ten_lines_are_enough(monkeypatch, tmp_path):
    problem, test = pictures(), phantoms()[1]
    outcome = lr.compare(
        problem,
        {"MAID": lr.MAID(), "Adam": lr.Stochastic.preset("iadam", batch=1), "mine": Downhill()},
        test=test,
        budget=lr.Budget(steps=2),
        seeds=SEEDS,
    )
    page = lr.Comparison.of(*outcome)
    assert page.learners == ["MAID", "Adam", "mine"] and page.seeds == [0, 2]
    assert all(run.failure is None and run.final is not None for run in page.runs)
    assert "lowest" in page.headline() and "Adam" in page.speed()
    monkeypatch.setattr(Comparison, "_render", lambda self: ("page", {}))
    page.save(tmp_path)
    assert Comparison.load(tmp_path).runs == page.runs


def test_outcomes_are_complete_and_in_order(serial):
    names = [(run["learner"], run["seed"]) for run in serial.runs]
    assert names == [(name, seed) for seed in SEEDS for name in THREE]
    problem = small()
    for run in serial.runs:
        assert run["failure"] is None and run["adaptive"] and run["name"] == run["learner"]
        assert run["problem"] == problem.describe() and run["method"] == repr(THREE[run["learner"]])
        assert run["strategy"] == repr(Implicit()) and run["solver"] == "auto"
        assert (run["images"], run["held_out"], run["steps"]) == (2, 1, 2)
        assert run["stop"] == ["budget", "the budget of 2 accepted steps was used up"]
        assert [p["step"] for p in run["points"]] == [0, 1, 2]
        assert all(p["kind"] == "certified" and p["psnr_test"] > 10 for p in run["points"])
        assert all(p["upper"] - p["lower"] <= 1e-2 * p["loss"] for p in run["points"])
        assert run["schedule"]["step"] == [0, 1, 2] and run["schedule"]["eps"][0] > 0
    settings = serial.settings
    assert settings["seeds"] == [0, 2] and settings["budget"] == {"steps": 2}
    assert settings["points"] == 3 and settings["relative"] == 1e-2
    assert {"version", "torch", "python", "platform", "threads", "eps_test"} <= set(settings)


def test_every_learner_lowers_the_loss_from_the_same_start(serial):
    found = losses(serial)
    starts = {values[0] for values in found.values()}
    assert max(starts) - min(starts) <= 1e-2 * max(starts)
    assert all(values[-1] < values[0] for values in found.values())


def test_seeds_are_those_of_what_learners_draw(serial):
    found = losses(serial)
    assert found["MAID", 0] == found["MAID", 2], "draws nothing"
    assert found["Adam", 0] != found["Adam", 2]


def test_a_comparison_of_one_run_is_that_run():
    """The losses of the exact problem at the thetas of ``learn``."""
    problem = small()
    outcome = compare(problem, {"MAID": MAID()}, test=held_out(), **FEW)
    run = lr.learn(problem, MAID(), budget=FEW["budget"])
    rows = trajectory(run, problem, held_out(), points=3, relative=1e-2)
    (found,) = numbers(outcome)
    assert found["points"] == [{k: v for k, v in r.items() if k not in CLOCKS} for r in rows]


# --- what is compared -----------------------------------------------------------------------------


def test_a_function_of_the_seed_gives_every_seed_its_own_problem():
    asked = []

    def instance(seed: int):
        asked.append(seed)
        return drawn(seed)

    learners = {"MAID": MAID(), "mine": Downhill()}
    outcome = compare(instance, learners, seeds=(3, 4), **FEW)
    assert set(asked) == {3, 4}
    found = losses(outcome)
    assert found["MAID", 3] != found["MAID", 4] and found["mine", 3] != found["mine", 4]
    for seed in (3, 4):
        problem, test = drawn(seed)
        alone = compare(problem, learners, test=test, seeds=(seed,), **FEW)
        assert [r for r in numbers(outcome) if r["seed"] == seed] == numbers(alone)


def test_another_objective_is_compared_as_well():
    objective = ScoreMatching(small().energy, small().pairs)
    outcome = compare(objective, {"MAID": MAID(), "mine": Downhill()}, test=held_out(), **FEW)
    for run in outcome.runs:
        assert run["failure"] is None and run["strategy"] == "" and run["adaptive"]
        assert run["points"][-1]["loss"] < run["points"][0]["loss"]
        assert run["points"][0]["work"] < 10, "what others spent is not its work"
    assert outcome.runs[0]["points"][0]["work"] == outcome.runs[1]["points"][0]["work"]


def test_runs_on_one_objective_do_not_add_up_their_work():
    """The counters of an objective that is handed in go on; those of a run must not."""
    objective = ScoreMatching(small().energy, small().pairs)
    outcome = compare(objective, {"one": Downhill(), "two": Downhill()}, test=held_out(), **FEW)
    one, two = numbers(outcome)
    assert [p["work"] for p in one["points"]] == [p["work"] for p in two["points"]]


def test_solution_maps_are_for_all_or_by_name():
    learners = {"exact": Stochastic(batch=2), "short": Stochastic(batch=2)}
    maps = {"short": Unrolled(steps=3)}
    outcome = compare(small(), learners, test=held_out(), hypergradient=maps, **FEW)
    exact, short = outcome.runs
    assert exact["strategy"] == repr(Implicit()) and short["strategy"] == repr(Unrolled(steps=3))
    assert exact["adaptive"] and not short["adaptive"]
    assert exact["points"][0]["loss"] == pytest.approx(short["points"][0]["loss"], rel=2e-2)
    assert short["points"][-1]["psnr_test_own"] and exact["points"][-1]["psnr_test_own"] is None
    assert "fixed number of steps" in " ".join(Comparison.of(*outcome).notes())

    common = JacobianFree(terms=5)
    outcome = compare(small(), learners, test=held_out(), hypergradient=common, **FEW)
    assert {run["strategy"] for run in outcome.runs} == {repr(common)}


def test_the_solver_is_handed_on(monkeypatch):
    outcome = compare(small(), {"MAID": MAID()}, test=held_out(), solver="agd", **FEW)
    assert outcome.runs[0]["failure"] is None and outcome.runs[0]["solver"] == "agd"
    assert outcome.settings["solver"] == "agd"


def test_progress_is_told_by_title():
    told: list[tuple[str, Row]] = []
    compare(
        small(),
        {"MAID": MAID(), "mine": Downhill()},
        test=held_out(),
        progress=lambda title, row: told.append((title, row)),
        **FEW,
    )
    assert [title for title, _ in told] == sorted(title for title, _ in told)
    assert {title for title, _ in told} == {"MAID, seed 0", "mine, seed 0"}
    learning = [row for title, row in told if title[0] == "M" and row["phase"] == "learning"]
    assert [row["step"] for row in learning] == [0, 1, 2] and learning[1]["loss"] > 0
    measuring = [row for title, row in told if title[0] == "M" and row["phase"] == "measuring"]
    assert [(row["done"], row["of"]) for row in measuring] == [(k, 3) for k in range(4)]


# --- executors ------------------------------------------------------------------------------------


class Posted(Executor):
    """Sends everything through a pickle there and back, as another process would be sent it."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            function, given = pickle.loads(pickle.dumps((partial(fn, **kwargs), args)))
            future.set_result(pickle.loads(pickle.dumps(function(*given))))
        except Exception as error:
            future.set_exception(error)
        return future


def test_threads_give_the_same_numbers(serial):
    with ThreadPoolExecutor(3) as pool:
        found = compare(small(), THREE, test=held_out(), seeds=SEEDS, executor=pool, **FEW)
    assert numbers(found) == numbers(serial)


def test_what_is_sent_gives_the_same_numbers(serial):
    found = compare(small(), THREE, test=held_out(), seeds=SEEDS, executor=Posted(), **FEW)
    assert numbers(found) == numbers(serial)


def test_a_function_of_the_seed_is_sent_as_well():
    learners = {"mine": Downhill()}
    here = compare(drawn, learners, seeds=(3, 4), **FEW)
    assert numbers(compare(drawn, learners, seeds=(3, 4), executor=Posted(), **FEW)) == numbers(
        here
    )


@pytest.mark.slow
def test_processes_give_the_same_numbers(serial, tmp_path):
    """In interpreters of their own, with one thread each; the folder is theirs too."""
    pool = ProcessPoolExecutor(2, get_context("spawn"), torch.set_num_threads, (1,))
    with pool:
        found = compare(
            small(), THREE, test=held_out(), seeds=SEEDS, executor=pool, folder=tmp_path, **FEW
        )
    assert numbers(found) == numbers(serial)
    again = compare(small(), THREE, test=held_out(), seeds=SEEDS, folder=tmp_path, **FEW)
    assert again.runs == found.runs


def test_what_was_begun_elsewhere_goes_on_here(serial, tmp_path, monkeypatch):
    """An interrupted comparison of processes is taken up by one without, and the other way."""
    everything = {"test": held_out(), "seeds": SEEDS, "folder": tmp_path, **FEW}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupted_at(Bilevel, "gradient", 7, patch)
        compare(small(), THREE, executor=Posted(), **everything)
    found = compare(small(), THREE, **everything)
    assert numbers(found) == numbers(serial)
    monkeypatch.setattr(RUNS, "learn", None)
    assert compare(small(), THREE, executor=Posted(), **everything).runs == found.runs


def test_what_cannot_be_sent_is_a_failure_of_that_run_alone():
    class Local(Downhill):
        """A class that no other process can find."""

    learners = {"local": Local(), "mine": Downhill()}
    outcome = compare(small(), learners, test=held_out(), executor=Posted(), **FEW)
    assert re.search("pickle|local", outcome.runs[0]["failure"])
    assert outcome.runs[1]["failure"] is None and len(outcome.runs[1]["points"]) == 3


# --- failures -------------------------------------------------------------------------------------


def test_a_failing_learner_is_an_outcome_and_the_others_go_on():
    learners = {"broken": Broken(), "boxed": LBFGSB(box={"nonsense": [0, 1]}), "mine": Downhill()}
    outcome = compare(small(), learners, test=held_out(), seeds=SEEDS, **FEW)
    runs = {(run["learner"], run["seed"]): run for run in outcome.runs}
    for seed in SEEDS:
        assert runs["broken", seed]["failure"] == "ZeroDivisionError: a bug"
        assert "in step" in runs["broken", seed]["traceback"]
        assert "nonsense" in runs["boxed", seed]["failure"]
        assert "Error:" not in runs["boxed", seed]["failure"], "a sentence, no class"
        assert runs["mine", seed]["failure"] is None
    page = Comparison.of(*outcome)
    assert [run.failure is None for run in page.runs] == [False, False, True] * 2
    assert page.runs[0].trouble == "ZeroDivisionError: a bug" and page.headline()


def test_learners_that_need_more_than_there_is_have_failed_in_words():
    outcome = compare(
        small(),
        {"MAID": MAID(), "SGD": Stochastic(batch=2)},
        test=held_out(),
        hypergradient=Unrolled(steps=3),
        **FEW,
    )
    assert "as accurately as MAID asks for" in outcome.runs[0]["failure"]
    assert outcome.runs[1]["failure"] is None


def test_when_everything_fails_the_page_says_so():
    outcome = compare(small(), {"a": Broken(), "b": Broken(0.1)}, test=held_out(), **FEW)
    assert "every one failed" in Comparison.of(*outcome).headline()


# --- a folder -------------------------------------------------------------------------------------


def test_a_second_call_computes_nothing_again(serial, tmp_path, monkeypatch):
    first = compare(small(), THREE, test=held_out(), seeds=SEEDS, folder=tmp_path, **FEW)
    assert numbers(first) == numbers(serial), "a folder changes no number"
    places = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert places == sorted(f"{n.lower()}--seed-{seed}" for n in THREE for seed in SEEDS)
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    monkeypatch.setattr(RUNS, "learn", None)
    monkeypatch.setattr(RUNS, "trajectory", None)
    again = compare(small(), THREE, test=held_out(), seeds=SEEDS, folder=tmp_path, **FEW)
    assert again.runs == first.runs, "the clocks too"
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == stamps


def test_more_seeds_and_more_learners_add_to_what_is_there(tmp_path):
    one = compare(small(), {"mine": Downhill()}, test=held_out(), folder=tmp_path, **FEW)
    more = compare(
        small(),
        {"mine": Downhill(), "MAID": MAID()},
        test=held_out(),
        seeds=SEEDS,
        folder=tmp_path,
        **FEW,
    )
    assert more.runs[0] == one.runs[0] and len(more.runs) == 4


def test_a_finer_measurement_does_not_learn_again(tmp_path, monkeypatch):
    compare(small(), {"mine": Downhill()}, test=held_out(), folder=tmp_path, **FEW)
    monkeypatch.setattr(RUNS, "learn", None)
    finer = {**FEW, "relative": 1e-6}
    (run,) = compare(small(), {"mine": Downhill()}, test=held_out(), folder=tmp_path, **finer).runs
    assert run["failure"] is None
    assert all(p["upper"] - p["lower"] <= 1e-6 * p["loss"] for p in run["points"])


def interrupted_at(owner: object, name: str, call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, name, at_call(call, getattr(owner, name), KeyboardInterrupt))


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (Bilevel, "evaluate", 4),
        (Bilevel, "gradient", 2),
        (Bilevel, "gradient", 7),
        (RUNS, "trajectory", 2),
        (Bilevel, "evaluate", 1),
    ],
    ids=["evaluation", "MAID", "Adam", "measuring", "start"],
)
def test_an_interrupted_comparison_goes_on_to_the_same_numbers(
    owner, name, call, serial, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupted_at(owner, name, call, patch)
        compare(small(), THREE, test=held_out(), seeds=SEEDS, folder=tmp_path, **FEW)
    kept = {p: p.read_bytes() for p in (tmp_path / "runs").glob("*/curve.json")}
    assert len(kept) < 6
    again = compare(small(), THREE, test=held_out(), seeds=SEEDS, folder=tmp_path, **FEW)
    assert numbers(again) == numbers(serial)
    assert all(p.read_bytes() == content for p, content in kept.items()), "not done again"


def test_an_interruption_keeps_the_last_step(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupted_at(Bilevel, "gradient", 2, patch)
        compare(small(), {"mine": Downhill()}, test=held_out(), folder=tmp_path, **FEW)
    checkpoint = tmp_path / "runs" / "mine--seed-0" / "checkpoint" / FILE
    assert len(load_tensors(checkpoint, FORMAT)[1]["rows"]) == 2
    steps = []
    whole = Bilevel.gradient
    monkeypatch.setattr(Bilevel, "gradient", lambda *a: steps.append(1) or whole(*a))
    compare(small(), {"mine": Downhill()}, test=held_out(), folder=tmp_path, **FEW)
    assert len(steps) == 1, "the other step was made before"


def test_a_failure_is_tried_again(tmp_path, monkeypatch):
    learners = {"mine": Downhill()}
    with monkeypatch.context() as patch:
        patch.setattr(Downhill, "step", at_call(2, Downhill.step, ZeroDivisionError))
        (run,) = compare(small(), learners, test=held_out(), folder=tmp_path, **FEW).runs
    assert run["failure"].startswith("ZeroDivisionError")
    found = compare(small(), learners, test=held_out(), folder=tmp_path, **FEW)
    assert numbers(found) == numbers(compare(small(), learners, test=held_out(), **FEW))


OTHERS = {
    "problem": (lambda: small(count=1), {}),
    "start": (lambda: BilevelProblem(Energy(denoising(), TV(weight=0.2)), small().pairs), {}),
    "learner": (small, {"learners": {"mine": Downhill(0.1)}}),
    "kind": (small, {"learners": {"mine": FixedAccuracy()}}),
    "budget": (small, {"budget": Budget(steps=3)}),
    "smaller": (small, {"budget": Budget(steps=1)}),
    "map": (small, {"hypergradient": JacobianFree(terms=2)}),
    "solver": (small, {"solver": "agd"}),
    "objective": (lambda: ScoreMatching(small().energy, small().pairs), {}),
    "test": (small, {"test": Plain(x=phantoms()[1].x, y=phantoms()[1].y)}),
}


@pytest.mark.parametrize("what", OTHERS)
def test_results_of_something_else_are_not_taken_for_its_own(what, tmp_path):
    """Another problem, learner or budget under the same name: done again or refused in words, but
    never the numbers of before.
    """
    mine = {"learners": {"mine": Downhill()}, "test": held_out(), **FEW}

    def outcome(problem: object, folder: object, **changes: object) -> Row:
        given = {**mine, **changes}
        return compare(problem, given.pop("learners"), folder=folder, **given).runs[0]

    outcome(small(), tmp_path)
    make, changes = OTHERS[what]
    wanted = outcome(make(), None, **changes)
    assert wanted["failure"] is None
    found = outcome(make(), tmp_path, **changes)
    if found["failure"] is None:
        assert [p["loss"] for p in found["points"]] == [p["loss"] for p in wanted["points"]]
        assert [p["psnr_test"] for p in found["points"]] == [
            p["psnr_test"] for p in wanted["points"]
        ]
    else:
        assert "another problem, data set or learner" in found["failure"]


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"test": None}, r"^test: given None; expected held-out pairs.*lr\.data\.pairs"),
        ({"test": 3}, r"^pairs: given 3|^test: given 3"),
        ({"learners": {}}, r"^learners: given \{\}; expected learners by name.*MAID"),
        ({"learners": [MAID()]}, r"^learners: given .*; expected learners by name"),
        ({"learners": MAID()}, r"^learners: given .*; expected learners by name"),
        ({"learners": {"a": MAID}}, r"^learner 'a': given .*; expected a learner"),
        ({"learners": {"a": "maid"}}, r"^learner 'a': given 'maid' .*; expected a learner"),
        ({"learners": {"A b": MAID(), "a-b": MAID()}}, r"^learners: .*names that differ"),
        ({"seeds": ()}, r"^seeds: given none; expected at least one"),
        ({"seeds": (0, -1)}, r"^seeds: given -1"),
        ({"seeds": (0.5,)}, r"^seeds: given 0\.5"),
        ({"seeds": 3}, r"^seeds: given 3"),
        ({"budget": 60}, r"^budget: given 60; expected a Budget"),
        ({"points": 1}, r"^points: given 1"),
        ({"relative": 2.0}, r"^relative: given 2\.0"),
        ({"eps_test": 0.0}, r"^eps_test: given 0\.0"),
        ({"seeds": "01"}, r"^seeds: given '01'"),
        ({"seeds": range(0)}, r"^seeds: given none; expected at least one"),
        ({"solver": "simplex"}, r"^solver: given 'simplex'"),
        (
            {"hypergradient": {"A": Implicit()}},
            r"^hypergradient: given a solution map for 'A'; expected names of learners: 'a'",
        ),
        ({"hypergradient": "implicit"}, r"^hypergradient: given 'implicit'"),
    ],
    ids=str,
)
def test_what_cannot_be_compared_is_refused_before_anything_is_learned(changes, words, monkeypatch):
    monkeypatch.setattr(RUNS, "learn", None)
    given = {"learners": {"a": MAID()}, "test": held_out(), **FEW, **changes}
    with pytest.raises(InputError, match=words):
        compare(small(), given.pop("learners"), **given)


@pytest.mark.parametrize(
    "problem", [3, None, "tv", TV(), small, Energy], ids=["3", "None", "word", "TV", "no", "class"]
)
def test_a_problem_must_be_one(problem):
    """A function that is none of the seed has failed, with the others, in its own words."""
    if problem is small:
        (run,) = compare(lambda: small(), {"a": Downhill()}, **FEW).runs
        assert run["failure"].startswith("TypeError")
        return
    with pytest.raises(InputError, match=r"^problem: given .*BilevelProblem"):
        compare(problem, {"a": Downhill()}, test=held_out(), **FEW)


def test_nothing_is_written_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compare(small(), {"mine": Downhill()}, test=held_out(), **FEW)
    assert os.listdir(tmp_path) == []
