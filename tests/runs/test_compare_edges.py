"""Comparisons at their edges: learners that keep something or leave Python, objectives without an
energy, full disks, seeds and functions of them in any form.
"""

from __future__ import annotations

import errno
import os
import re
import sys

import numpy as np
import pytest
import torch
from tests.runs.test_compare import (
    FEW,
    SEEDS,
    Downhill,
    Place,
    drawn,
    held_out,
    losses,
    numbers,
    small,
)
from torch import Tensor

import learnreg as lr
from learnreg.core.errors import InputError
from learnreg.core.objective import Objective
from learnreg.objectives.bilevel import Bilevel
from learnreg.reports import Comparison
from learnreg.runs import Budget, compare


class Quitting(Downhill):
    def step(self, objective: Objective, state: Place) -> Place:
        sys.exit("enough")


def test_a_learner_that_leaves_python_has_failed_and_the_others_go_on():
    learners = {"quitting": Quitting(), "mine": Downhill()}
    one, two = compare(small(), learners, test=held_out(), **FEW).runs
    assert one["failure"] == "SystemExit: enough" and two["failure"] is None


@pytest.mark.parametrize("made", [None, 3, (1, 2, 3)], ids=str)
def test_a_function_of_the_seed_that_gives_something_else_has_failed_in_words(made):
    (run,) = compare(lambda seed: made or small(), {"a": Downhill()}, **FEW).runs
    assert re.match(r"problem\(0\): given .*expected a problem and held-out", run["failure"])
    (run,) = compare(lambda seed: (small(), 3), {"a": Downhill()}, **FEW).runs
    assert re.match("(pairs|test): given 3", run["failure"])


def test_held_out_pairs_beside_a_function_of_the_seed_are_refused():
    with pytest.raises(InputError, match=r"^test: given held-out pairs beside a function"):
        compare(drawn, {"a": Downhill()}, test=held_out(), **FEW)


@pytest.mark.parametrize(
    "seeds", [iter(SEEDS), np.array(SEEDS), range(0, 3, 2)], ids=["iterator", "array", "range"]
)
def test_seeds_come_in_anything(seeds):
    found = compare(small(), {"mine": Downhill()}, test=held_out(), seeds=seeds, **FEW)
    assert [run["seed"] for run in found.runs] == [0, 2] == found.settings["seeds"]
    assert all(type(run["seed"]) is int for run in found.runs)


class Slowing:
    """Shorter with every step that it has ever made."""

    needs = Downhill.needs

    def __init__(self) -> None:
        self.made = 0

    def init(self, objective: Objective, theta: Tensor, seed: int = 0) -> Place:
        return Place(objective.evaluate(theta, 1e-2))

    def step(self, objective: Objective, state: Place) -> Place:
        self.made += 1
        z = objective.gradient(state.point, 1e-2)
        theta = state.theta - 0.05 / self.made * z.value / z.norm
        return Place(objective.evaluate(theta, 1e-2, state.point))


def test_runs_share_no_learner(tmp_path):
    learner = Slowing()
    outcome = compare(small(), {"a": learner}, test=held_out(), seeds=SEEDS, folder=tmp_path, **FEW)
    one, two = losses(outcome).values()
    assert one == two and learner.made == 0
    again = compare(small(), {"a": learner}, test=held_out(), seeds=SEEDS, folder=tmp_path, **FEW)
    assert again.runs == outcome.runs


# --- objectives of one's own ----------------------------------------------------------------------


class Level(Bilevel):
    """What is learned is no energy."""

    def learned(self, theta: Tensor) -> Tensor:
        return theta


def test_an_objective_without_an_energy_is_compared_by_its_loss(tmp_path):
    learners = {"mine": Downhill()}
    (run,) = compare(Level(small()), learners, test=held_out(), folder=tmp_path, **FEW).runs
    assert run["failure"] is None
    (whole,) = compare(small(), learners, test=held_out(), **FEW).runs
    assert [p["loss"] for p in run["points"]] == [p["loss"] for p in whole["points"]]
    assert all(p["psnr_test"] is None and "no energy" in p["note"] for p in run["points"])
    (tmp_path / "runs" / "mine--seed-0" / "curve.json").unlink()
    (again,) = compare(Level(small()), learners, test=held_out(), folder=tmp_path, **FEW).runs
    assert again["points"] == run["points"], "read from its history"
    assert Comparison.of([run], compare(small(), learners, test=held_out(), **FEW).settings)


def test_a_run_without_an_energy_is_saved_without_a_model(tmp_path):
    run = lr.learn(Level(small()), Downhill(), budget=Budget(steps=1))
    (tmp_path / "model.safetensors").write_bytes(b"of another run")
    with pytest.warns(UserWarning, match="No model file .* gave Tensor"):
        run.save(tmp_path)
    assert os.listdir(tmp_path) == ["history.safetensors"]
    loaded = lr.Run.load(tmp_path)
    assert torch.equal(loaded.theta, run.theta) and loaded.energy is None
    assert torch.equal(lr.Run.load(tmp_path, energy=run.theta).energy, run.theta)


# --- a folder -----------------------------------------------------------------------------------


def test_long_names_have_folders_of_their_own(tmp_path):
    names = ["a" * 60 + end for end in ("b", "c")]
    learners = dict(zip(names, (Downhill(0.05), Downhill(0.1)), strict=True))
    found = compare(small(), learners, test=held_out(), folder=tmp_path, **FEW)
    places = [path.name for path in (tmp_path / "runs").iterdir()]
    assert len(set(places)) == 2 and all(len(name) < 60 for name in places)
    again = compare(small(), learners, test=held_out(), folder=tmp_path, **FEW)
    assert again.runs == found.runs


@pytest.mark.parametrize("file", ["curve.json", "history.safetensors", "learning.json"])
def test_a_full_disk_loses_no_run(file, tmp_path, monkeypatch):
    whole = os.replace

    def full(source: object, target: object) -> None:
        if str(target).endswith(file):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(source, target)

    given = {"test": held_out(), "folder": tmp_path, **FEW}
    compare(small(), {"mine": Downhill(0.1)}, **given)
    with monkeypatch.context() as patch, pytest.warns(RuntimeWarning, match="No space left"):
        patch.setattr(os, "replace", full)
        found = compare(small(), {"mine": Downhill()}, **given)
    wanted = compare(small(), {"mine": Downhill()}, test=held_out(), **FEW)
    assert numbers(found) == numbers(wanted)
    assert numbers(compare(small(), {"mine": Downhill()}, **given)) == numbers(wanted)
    other = {"test": held_out(), **FEW}
    assert numbers(compare(small(), {"mine": Downhill(0.1)}, **given)) == numbers(
        compare(small(), {"mine": Downhill(0.1)}, **other)
    ), "and what was there before is not taken for it"
