"""A page from which its run can be repeated, and the model beside it."""

from __future__ import annotations

import html
import io
import json
import re
from dataclasses import replace

import pytest
import torch
from deepinv.physics import Denoising, GaussianNoise
from rich.console import Console

import learnreg as lr
from learnreg.cli.learn import run_learn
from learnreg.core.errors import DataWarning
from learnreg.core.files import load_tensors
from learnreg.reports import Report

CONFIG = """\
[data]
source = "phantoms"
size = 16
train = 3
test = 3

[physics]
sigma = 0.07

[regularizer]
terms = [{type = "TV", smoothing = 0.05}, {type = "Tikhonov", weight = 1e-3}]

[budget]
steps = 2

[run]
seed = 5
output = "OUT"
"""


def run(text, folder):
    """The command ``learn`` on this configuration, with its output where it says."""
    folder.mkdir()
    (folder / "config.toml").write_text(text, encoding="utf-8")
    run_learn(folder / "config.toml", Console(file=io.StringIO()), output=str(folder / "out"))
    return folder / "out"


def table_of(folder):
    """The rows of a saved report, the clock apart."""
    return [{**row, "seconds": None} for row in Report.load(folder).table()]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return run(CONFIG, tmp_path_factory.mktemp("repeat") / "first")


def test_the_page_alone_reproduces_its_table(first, tmp_path):
    page = (first / "index.html").read_text(encoding="utf-8")
    shown = html.unescape(re.search(r'<pre class="config"><code>(.*?)</code>', page, re.S)[1])
    assert table_of(run(shown, tmp_path / "page")) == table_of(first)
    kept = json.loads((first / "run.json").read_text(encoding="utf-8"))["repeat"]
    assert kept["config"][""].strip() == shown.strip()
    assert kept["command"] == "learnreg learn config.toml --output again"
    assert kept["command"] in page


@pytest.mark.slow
def test_another_configuration_has_another_table(first, tmp_path):
    """The comparison above would see it."""
    other = CONFIG.replace("seed = 5", "seed = 6")
    assert table_of(run(other, tmp_path / "other")) != table_of(first)


def test_the_page_says_what_it_was_made_of(first):
    page = (first / "index.html").read_text(encoding="utf-8")
    words = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", page)))
    for expected in (
        "Total variation + Tikhonov for denoising",
        "Gaussian noise, sigma 0.07",
        "3 images of 1 x 16 x 16",
        "phantom-0",
        "phantom-5",
        "seed 5",
        f"learnreg {lr.__version__}",
        f"torch {torch.__version__}",
        "L2 (sigma 1)",
        "TV + Tikhonov with Denoising",
    ):
        assert expected in words, expected
    setup = json.loads((first / "run.json").read_text(encoding="utf-8"))["methods"][0]["record"]
    assert setup["setup"]["noise"]["sigma"] == pytest.approx(0.07)
    assert setup["setup"]["data"]["names"] == ["phantom-0", "phantom-1", "phantom-2"]
    assert "node" not in setup["setup"]["machine"]


def test_the_model_on_the_page_is_beside_it(first):
    page = (first / "index.html").read_text(encoding="utf-8")
    assert "--model model.safetensors" in page
    energy = lr.load_model(first / "model.safetensors")
    report = Report.load(first)
    (evaluation,) = report.evaluations.values()
    x = lr.solve(energy, evaluation.y, 1e-2).value
    assert torch.allclose(x, evaluation.reconstruction, atol=1e-3)
    assert lr.Run.load(first).theta.equal(next(iter(report.runs.values())).theta)


# --- models ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned():
    physics = Denoising(GaussianNoise(0.1))
    train, test = lr.data.pairs("phantoms", physics, size=16, split=(2, 2), seed=0)
    runs = {}
    for name, part in (("one", lr.regularizers.TV()), ("two", lr.regularizers.TV(0.01))):
        problem = lr.BilevelProblem(lr.Energy(physics, part), train)
        done = lr.learn(problem, lr.MAID(), budget=lr.Budget(steps=1), name=name)
        runs[name] = done, done.evaluate(test, 0.1)
    return runs


def save(report, folder):
    return report.save(folder, formats=())


def test_a_report_from_python_brings_its_model(learned, tmp_path):
    done, evaluation = learned["one"]
    page = save(lr.Report(done, evaluation), tmp_path).read_text(encoding="utf-8")
    assert "--model model.safetensors" in page and "given no configuration" in page
    assert lr.load_model(tmp_path / "model.safetensors").regularizer.log_weight == done.theta[0]


def test_several_runs_have_a_model_each(learned, tmp_path):
    page = save(lr.Report.compare(learned), tmp_path).read_text(encoding="utf-8")
    for name, (done, _) in learned.items():
        assert f"--model {name}/model.safetensors" in page
        energy = lr.load_model(tmp_path / name / "model.safetensors")
        assert energy.regularizer.log_weight == done.theta[0]


def test_the_model_of_another_run_is_not_replaced(learned, tmp_path):
    learned["one"][0].save(tmp_path)
    with pytest.warns(UserWarning, match="belongs to another run"):
        page = save(lr.Report(*learned["two"]), tmp_path).read_text(encoding="utf-8")
    assert "--model two/model.safetensors" in page
    assert lr.Run.load(tmp_path).theta.equal(learned["one"][0].theta)
    kept = lr.load_model(tmp_path / "two" / "model.safetensors").regularizer
    assert kept.log_weight == learned["two"][0].theta[0]


@pytest.mark.slow
def test_a_report_replaces_its_own_model(learned, tmp_path):
    save(lr.Report(*learned["one"]), tmp_path)
    save(lr.Report(*learned["two"]), tmp_path)
    kept = lr.load_model(tmp_path / "model.safetensors").regularizer
    assert kept.log_weight == learned["two"][0].theta[0]
    assert not (tmp_path / "two").exists()


def test_a_run_saved_first_and_reported_in_the_same_folder_is_one(learned, tmp_path):
    done, evaluation = learned["one"]
    done.save(tmp_path)
    save(lr.Report(done, evaluation), tmp_path)
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("model.safetensors")] == [
        "model.safetensors"
    ]


@pytest.mark.slow
def test_a_report_that_was_read_takes_its_model_along(learned, tmp_path):
    page = save(lr.Report(*learned["one"]), tmp_path / "a").read_bytes()
    assert save(Report.load(tmp_path / "a"), tmp_path / "b").read_bytes() == page
    assert load_tensors(tmp_path / "b" / "model.safetensors", "learnreg-model")[0]
    (tmp_path / "a" / "model.safetensors").unlink()
    later = save(Report.load(tmp_path / "a"), tmp_path / "c").read_text(encoding="utf-8")
    assert "not beside run.json any more" in later and "--model" not in later


@pytest.mark.slow
def test_a_physics_that_no_file_holds_is_asked_for(learned, tmp_path):
    class Own(Denoising):
        """A physics that a file knows by name only."""

    done, evaluation = learned["one"]
    own = replace(done, energy=lr.Energy(Own(GaussianNoise(0.1)), lr.regularizers.TV()))
    with pytest.warns(DataWarning, match="names the physics Own and does not hold it"):
        saved = save(lr.Report(own, evaluation), tmp_path)
    page = html.unescape(saved.read_text(encoding="utf-8"))
    assert "learnreg reconstruct" not in page
    assert 'load_model("model.safetensors", physics=physics)' in page


def test_an_objective_without_an_energy_has_no_model(learned, tmp_path):
    done, evaluation = learned["one"]
    bare = replace(done, energy=object())
    page = save(lr.Report(bare, evaluation), tmp_path).read_text(encoding="utf-8")
    assert "There is no model file: the objective is no energy" in page
    assert "learnreg reconstruct" not in page and not list(tmp_path.rglob("model.safetensors"))


@pytest.mark.slow
def test_records_of_earlier_versions_are_read(learned, tmp_path):
    save(lr.Report(*learned["one"]), tmp_path)
    path = tmp_path / "run.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    for key in ("repeat", "settings", "baselines"):
        del data[key]
    data["version"] = 1
    method = data["methods"][0]
    del method["model"], method["record"]["setup"]
    del method["evaluation"]["seen_as"], method["evaluation"]["setup"]
    path.write_text(json.dumps(data), encoding="utf-8")
    old = Report.load(tmp_path)
    assert [row["name"] for row in old.table()] == ["input", "one"]
    assert "Learned regulariser: one" in save(old, tmp_path / "new").read_text(encoding="utf-8")
