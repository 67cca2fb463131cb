"""The demonstrations, made small: what they leave, and that they can be repeated and changed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.cli.cases import assert_same_run, invoke
from tests.cli.test_resume import interrupt_at

from learnreg.cli import demo, demo_scenes
from learnreg.runs import Budget, Run

STEPS = 2
LEARNED = {
    "photographs": {"type": "FoE", "filters": 2, "size": 3},
    "ct": demo_scenes._sum(0.01, 0.01, 2, 3),
    "mri": demo_scenes._sum(0.03, 0.005, 2, 3),
}


def shrink(patch):
    """The same demonstrations with a few small crops and steps, on machines of any speed."""
    patch.setattr(demo, "Budget", lambda seconds, patience: Budget(steps=STEPS))
    for name, scene in demo_scenes.SCENES.items():
        data = {**scene.data, "size": 24, "train": 2, "test": 1}
        small = replace(scene, data=data, learned=LEARNED[name])
        patch.setitem(demo_scenes.SCENES, name, small)


@pytest.fixture(
    scope="module", params=["photographs", pytest.param("ct", marks=pytest.mark.slow), "mri"]
)
def shown(request, tmp_path_factory):
    """The name and the folder of a demonstration, and what was said."""
    name = request.param
    folder = tmp_path_factory.mktemp("demo") / "report"
    words = [] if name == "photographs" else [name]
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        result = invoke("demo", *words, "--output", folder)
    return name, folder, result.stdout


def test_a_demonstration_leaves_a_report_models_and_its_configuration(shown):
    name, folder, said = shown
    example = demo_scenes.SCENES[name].example
    for file in ("index.html", "model.safetensors", "tv/model.safetensors", example):
        assert (folder / file).is_file(), file
    assert said.startswith("learnreg ") and f"Change: learnreg learn {folder}" in said
    tv, best = Run.load(folder / "tv"), Run.load(folder)
    for run in (tv, best):
        assert run.stop.code in ("budget", "stationary", "rounding_floor")
    assert len(best.theta) > len(tv.theta) == 2
    assert best.record.rows[-1]["loss"] < best.record.rows[0]["loss"]


def test_the_page_calls_what_the_measurements_show_by_its_name(shown):
    name, folder, said = shown
    seen = {"photographs": "noisy", "ct": "filtered back-projection", "mri": "zero-filled"}[name]
    task = {"photographs": "denoising", "ct": "tomography", "mri": "MRI"}[name]
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert f"\n{seen} " in said and seen in page and f"for {task}" in page


def test_its_configuration_repeats_it(shown, tmp_path):
    _, folder, _ = shown
    invoke("learn", folder / "config.toml", "--output", tmp_path / "again")
    assert_same_run(folder, tmp_path / "again")


def test_the_command_it_suggests_works(shown, tmp_path):
    name, folder, said = shown
    scene = demo_scenes.SCENES[name]
    assert f"{folder / scene.example} -o {scene.clean}" in said
    output = tmp_path / scene.clean
    invoke("reconstruct", "--model", folder, folder / scene.example, "-o", output)
    if output.suffix == ".npy":
        x = np.load(output)
        assert x.shape == (24, 24) and np.isfinite(x).all() and x.std() > 0


@pytest.mark.slow
def test_an_interrupted_demonstration_goes_on_where_it_was(tmp_path, monkeypatch):
    shrink(monkeypatch)
    options = ("demo", "mri", "--output", tmp_path / "out")
    with monkeypatch.context() as patch:
        interrupt_at(1, patch)
        error = invoke(*options, code=130).stderr
    assert f"learnreg demo mri --output {tmp_path / 'out'} --resume" in error
    assert not (tmp_path / "out" / "index.html").exists()
    said = invoke(*options, "--resume").stdout
    assert "step 1 " not in said.partition("Learning TV + FoE")[0]  # it was made before
    assert (tmp_path / "out" / "index.html").is_file()


@pytest.mark.parametrize("given, meant", [("kt", "ct"), ("MRT", "mri"), ("photos", "photographs")])
def test_a_name_that_is_none_is_taught(given, meant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = " ".join(invoke("demo", given, code=2).stderr.split())
    assert given in error and f"Did you mean '{meant}'?" in error
    assert not list(tmp_path.iterdir())


def test_every_demonstration_has_a_folder_and_an_example_of_its_own():
    for what in ("output", "example"):
        values = [getattr(scene, what) for scene in demo_scenes.SCENES.values()]
        assert len(set(values)) == len(values)


def test_the_run_of_another_command_is_not_written_over(learned):
    before = sorted(learned.iterdir())
    assert "another command" in invoke("demo", "--output", learned, code=2).stderr
    assert sorted(learned.iterdir()) == before
