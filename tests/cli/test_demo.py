"""The demonstration, made small: what it leaves, and that it can be repeated and changed."""

from __future__ import annotations

import pytest
from tests.cli.cases import assert_same_run, invoke

from learnreg.cli import demo
from learnreg.runs import Run

SMALL = {"SIZE": 24, "SPLIT": (2, 1), "FILTERS": 2, "WIDTH": 3}


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The folder of a demonstration, and what was said."""
    folder = tmp_path_factory.mktemp("demo") / "report"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setattr(demo, name, value)
        result = invoke("demo", "--output", folder, "--seconds", 3)
    return folder, result.stdout


def test_a_demonstration_leaves_a_report_models_and_its_configuration(shown):
    folder, said = shown
    for name in ("index.html", "model.safetensors", "tv/model.safetensors", "noisy.png"):
        assert (folder / name).is_file(), name
    assert said.startswith("learnreg ") and f"Change: learnreg learn {folder}" in said
    tv, foe = Run.load(folder / "tv"), Run.load(folder)
    assert tv.stop.code in ("plateau", "budget", "stationary", "rounding_floor")
    assert foe.record.rows[-1]["loss"] < foe.record.rows[0]["loss"]


def test_its_configuration_repeats_it(shown, tmp_path):
    folder, _ = shown
    invoke("learn", folder / "config.toml", "--output", tmp_path / "again")
    assert_same_run(folder, tmp_path / "again")


def test_the_run_of_another_command_is_not_written_over(learned):
    before = sorted(learned.iterdir())
    assert "another command" in invoke("demo", "--output", learned, code=2).stderr
    assert sorted(learned.iterdir()) == before
