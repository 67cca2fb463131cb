"""The command ``compare``: what a configuration means, what it refuses, and that runs are kept,
resumed, reported.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from rich.console import Console
from tests.cli.cases import environment, invoke, rows

from learnreg.cli import jobs as jobs_module
from learnreg.cli.compare_config import ENTRIES, CompareConfig, example, load_comparison
from learnreg.cli.compare_progress import CompareProgress
from learnreg.cli.config import load_config
from learnreg.cli.jobs import Job, plan_jobs
from learnreg.cli.settings import LEARNERS
from learnreg.core.errors import ConfigError
from learnreg.core.files import load_tensors
from learnreg.hypergradients import Unrolled
from learnreg.learners import MAID, FixedAccuracy
from learnreg.reports import Comparison
from learnreg.reports.comparison import FILE
from learnreg.runs import compare

CONFIG = """\
[data]
source = "phantoms"
size = 16
train = 2
test = 1
[regularizer]
type = "TV"
[budget]
steps = {steps}
[run]
output = {output}
[comparison]
seeds = {seeds}
processes = 1
points = 3
"""
TWO = '[[learners]]\nname = "MAID"\ntype = "maid"\n[[learners]]\ntype = "fixed"\neps = 1e-3\n'
CLOCKS = {"seconds", "cpu_seconds"}
RUNS = sys.modules[compare.__module__]  # where a run is learned and measured


def write(folder, learners=TWO, *, steps=2, seeds="[0, 1]", output="out", extra=""):
    path = folder / "compare.toml"
    head = CONFIG.format(steps=steps, seeds=seeds, output=json.dumps(str(folder / output)))
    path.write_text(f"{head}{extra}\n{learners}", encoding="utf-8")
    return path


@pytest.fixture
def load(tmp_path):
    """Learner and start tables to a plan."""

    def read(learners=TWO, **options):
        return load_comparison(write(tmp_path, learners, **options))

    return read


@pytest.fixture
def plain_page(monkeypatch):
    """Pages take seconds to draw; most tests look at the numbers only."""
    monkeypatch.setattr(Comparison, "_render", lambda self: ("page", {}))


def curves(folder):
    """The results of every run without their clocks, by title."""
    found = {}
    for path in sorted((folder / "runs").glob("*/curve.json")):
        curve = json.loads(path.read_text(encoding="utf-8"))
        curve["points"] = [{k: v for k, v in p.items() if k not in CLOCKS} for p in curve["points"]]
        found[path.parent.name] = curve
    return found


# --- what a configuration means -------------------------------------------------------------------


def test_the_example_is_a_comparison_of_the_defaults_and_explains_every_key(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(invoke("compare", "--example").stdout, encoding="utf-8")
    plan = load_comparison(path)
    assert path.read_text(encoding="utf-8") == example()
    assert [v.section.build() for v in plan.variants] == [MAID(), FixedAccuracy(eps=0.01)]
    assert plan.config == CompareConfig(learners=[ENTRIES["maid"](), ENTRIES["fixed"](eps=0.01)])
    for name in ("comparison", "data", "run", "budget"):
        for key in type(getattr(plan.config, name)).model_fields:
            assert f"\n{key} = " in example() or f"\n# {key} =" in example()
    assert all(tag in example() for tag in LEARNERS)


def test_the_example_with_its_commented_keys_is_valid_too(tmp_path):
    marked = re.sub(
        r"^# (?=(name|solver|type|eps|alpha0|smoothing) =|\[)", "", example(), flags=re.M
    )
    path = tmp_path / "c.toml"
    path.write_text(marked.replace('type = "unrolled"', 'type = "jacobian_free"'), encoding="utf-8")
    plan = load_comparison(path)
    assert (
        len(plan.variants) == 5
        and list(plan.starts) == ["weak"]
        and plan.variants[0].name == "MAID"
    )


def test_every_learner_of_the_library_can_be_compared(load):
    tags = [tag for tag in LEARNERS if tag != "optuna" or find_spec("optuna")]
    keys = dict.fromkeys(("grid", "random", "optuna"), "box = [-5.0, 5.0]\n")
    plan = load("".join(f'[[learners]]\ntype = "{tag}"\n{keys.get(tag, "")}' for tag in tags))
    assert [v.section.type for v in plan.variants] == tags


def test_names_tell_what_differs_from_the_defaults(load):
    plan = load(
        '[[learners]]\ntype = "maid"\n[[learners]]\ntype = "maid"\nrho = 0.25\nsolver = "agd"\n'
        '[learners.accuracy]\ntighten = 0.125\n[learners.hypergradient]\ntype = "jacobian_free"\n'
        '[[learners]]\nname = "mine"\ntype = "fixed"\n'
    )
    assert [v.name for v in plan.variants] == [
        "maid",
        "maid rho=0.25 accuracy.tighten=0.125 solver=agd, jacobian_free",
        "mine",
    ]
    assert [v.solver for v in plan.variants] == ["auto", "agd", "auto"]


def test_a_grid_is_the_product_of_its_values(load):
    plan = load(
        '[[learners]]\nname = "M"\ntype = "maid"\neps0 = 5.0\nrho = 0.25\n'
        '[learners.grid]\neps0 = [1e-1, 10.0]\ntest = ["estimated", "certified"]\n'
    )
    built = [v.section.build() for v in plan.variants]
    assert built == [
        MAID(eps0=e, rho=0.25, test=t) for e in (0.1, 10.0) for t in ("estimated", "certified")
    ]
    assert [v.name for v in plan.variants][:2] == [
        "M (eps0=0.1, test=estimated)",
        "M (eps0=0.1, test=certified)",
    ]
    assert {v.learner for v in plan.variants} == {"M"}
    assert plan.variants[3].grid == {"eps0": 10.0, "test": "certified"}


def test_starts_replace_keys_of_the_regularizer(load):
    plan = load(TWO + '[[starts]]\nname = "weak"\nweight = 0.01\n[[starts]]\nsmoothing = 0.5\n')
    assert list(plan.starts) == ["weak", "smoothing=0.5"]
    weak, smooth = plan.starts.values()
    assert (weak.type, weak.weight, smooth.smoothing) == ("TV", 0.01, 0.5) and smooth.weight != 0.01


def test_strategies_and_seeds_arrive_in_the_runs(load, tmp_path):
    plan = load(
        '[[learners]]\ntype = "stochastic"\n[learners.hypergradient]\ntype = "unrolled"\nsteps = '
        "7\n",
        seeds="[3, 5]",
    )
    three, five = plan_jobs(plan, tmp_path)
    assert three.config.build_hypergradient() == Unrolled(7)
    assert [three.seed, five.seed] == [3, 5] and three.config.run.threads == 1


def test_every_learner_has_its_first_seed_before_any_has_its_second(load, tmp_path):
    jobs = plan_jobs(load(TWO + "[[starts]]\nweight = 0.1\n[[starts]]\nweight = 0.2\n"), tmp_path)
    assert [(job.seed, job.start, job.name) for job in jobs] == [
        (seed, start, name)
        for seed in (0, 1)
        for start in ("weight=0.1", "weight=0.2")
        for name in ("MAID", "fixed eps=0.001")
    ]
    assert len({job.folder for job in jobs}) == len(jobs)


def test_the_copy_of_the_configuration_means_the_same(load, tmp_path):
    plan = load(
        TWO
        + '[learners.grid]\nalpha0 = [1e-3, 0.1]\n[[starts]]\nname = "a \\"b\\""\nweight = 0.01\n'
    )
    (tmp_path / "copy.toml").write_text(plan.to_toml(), encoding="utf-8")
    again = load_comparison(tmp_path / "copy.toml")
    assert (again.config, again.variants, again.starts) == (plan.config, plan.variants, plan.starts)


def test_a_job_survives_its_file(load, tmp_path):
    table = (
        '[[learners]]\ntype = "maid"\nrho = 0.3\n'
        "[learners.grid]\neps0 = [0.1]\n[learners.hypergradient]\n"
    )
    for job in plan_jobs(load(table + 'type = "implicit"\nestimate = true\n'), tmp_path):
        job.save()
        assert Job.load(job.folder) == job
        assert load_config(job.folder / "config.toml") == job.config


def test_what_changes_the_numbers_changes_the_folder(load, tmp_path):
    (job,) = plan_jobs(load('[[learners]]\ntype = "maid"', seeds="[0]"), tmp_path)
    for options in (
        {"steps": 3},
        {"extra": "relative = 1e-3"},
        {"learners": '[[learners]]\ntype = "maid"\nrho = 0.4'},
    ):
        (other,) = plan_jobs(
            load(**{"learners": '[[learners]]\ntype = "maid"', "seeds": "[0]", **options}), tmp_path
        )
        assert other.identity != job.identity
        assert (other.folder == job.folder) is (
            "extra" in options
        )  # measuring again needs no other run


# --- mistakes -------------------------------------------------------------------------------------

MISTAKES = [
    ("", r"\[learners\]: given nothing; expected at least one"),
    ("[learners]\ntype = 3", r"\[learners\]: given .*; expected tables"),
    (
        '[[learners]]\ntype = "maid"\nrhoo = 0.5',
        r"\[learners\(1\)\] rhoo: given an unknown key.*Did you mean 'rho'",
    ),
    (
        '[[learners]]\ntype = "maid"\n[[learners]]\ntype = "fixed"\nnmae = "x"',
        r"\[learners\(2\)\] nmae.*'name'",
    ),
    ('[[learners]]\ntype = "madi"', r"\[learners\(1\)\] type: given \"madi\".*Did you mean 'maid'"),
    ("[[learners]]\nrho = 0.5", r"\[learners\(1\)\] type: given nothing; expected one of maid"),
    (
        '[[learners]]\ntype = "maid"\nrho = "big"',
        r"\[learners\(1\)\] rho: given \"big\"; expected a valid number",
    ),
    (
        '[[learners]]\ntype = "maid"\nrho = 2.0',
        r"\[learners\(1\)\] rho: given 2.0; expected a number in \(0, 1\)",
    ),
    (
        '[[learners]]\ntype = "maid"\n[learners.accuracy]\ntightn = 0.5',
        r"\[learners\(1\).accuracy\] tightn.*'tighten'",
    ),
    (
        '[[learners]]\ntype = "maid"\nname = ""',
        r"\[learners\(1\)\] name: given \"\"; expected a text",
    ),
    (
        '[[learners]]\ntype = "maid"\nsolver = "agdd"',
        r"\[learners\(1\)\] solver: given agdd|'agdd'",
    ),
    (
        '[[learners]]\ntype = "maid"\n[learners.hypergradient]\ntype = "unroled"',
        r"\[learners\(1\)\] hypergradient type: given \"unroled\".*'unrolled'",
    ),
    (
        '[[learners]]\ntype = "maid"\n[learners.hypergradient]\ntype = "unrolled"\nstpes = 3',
        r"\[learners\(1\).hypergradient\] stpes.*'steps'",
    ),
    (
        '[[learners]]\ntype = "maid"\n[learners.hypergradient]\ntype = "unrolled"\nsteps = 0',
        r"\[learners\(1\).hypergradient\] steps: given 0; expected an integer >= 1",
    ),
    (
        '[[learners]]\ntype = "maid"\n[learners.hypergradient]\ntype = "unrolled"',
        r"\[learners\(1\)\].*Unrolled",
    ),
    (
        '[[learners]]\ntype = "maid"\n[learners.grid]\neps = [0.1]',
        r"\[learners\(1\).grid\] eps: given an unknown key.*eps0",
    ),
    (
        '[[learners]]\ntype = "maid"\n[learners.grid]\neps0 = 0.1',
        r"\[learners\(1\).grid\] eps0: given 0.1",
    ),
    (
        '[[learners]]\ntype = "maid"\n[learners.grid]\neps0 = []',
        r"\[learners\(1\).grid\] eps0: given \[\]; expected one or",
    ),
    (
        '[[learners]]\ntype = "maid"\n[learners.grid]\neps0 = [1.0, 1.0]',
        r"\[learners\(1\).grid\] eps0.*none of them twice",
    ),
    (
        '[[learners]]\ntype = "maid"\n[learners.grid]\neps0 = ["a"]',
        r"\[learners\(1\).grid\] eps0: given \"a\"",
    ),
    (
        '[[learners]]\ntype = "maid"\n[learners.grid]\neps0 = [-1.0]',
        r"\[learners\(1\).grid\] eps0: given -1.0",
    ),
    (
        '[[learners]]\ntype = "maid"\n[[learners]]\ntype = "maid"',
        r"\[learners\(2\)\] name: given \"maid\" for a second time",
    ),
    (
        TWO + '[[learners]]\nname = "MAID"\ntype = "fixed"',
        r"\[learners\(3\)\] name: given \"MAID\" for a second time",
    ),
    (
        '[[learners]]\nname = "a (rho=0.5)"\ntype = "hoag"\n[[learners]]\nname = "a"\ntype = '
        '"maid"\ngrid = {rho = [0.5]}',
        r"\[learners\(1\)\] name: given \"a \(rho=0.5\)\" for a second time",
    ),
    (TWO + "[[starts]]\nwieght = 0.1", r"\[starts\(1\)\] wieght: given an unknown key.*'weight'"),
    (TWO + "[[starts]]\nweight = -0.1", r"\[starts\(1\)\] weight: given -0.1; expected a positive"),
    (TWO + '[[starts]]\nweight = "a"', r"\[starts\(1\)\] weight: given \"a\""),
    (TWO + "[[starts]]\nname = 3", r"\[starts\(1\)\] name: given 3; expected a text"),
    (
        TWO + "[[starts]]\nweight = 0.1\n[[starts]]\nweight = 0.1",
        r"\[starts\(2\)\] name: given .* for a second time",
    ),
]


@pytest.mark.parametrize(("text", "expected"), MISTAKES)
def test_a_mistake_is_named_with_its_place(load, tmp_path, text, expected):
    with pytest.raises(ConfigError, match=expected) as caught:
        load(text)
    path = re.escape(str(tmp_path / "compare.toml"))
    assert re.match(rf"{path}: (\d mistakes\n  )?\[", str(caught.value))


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("relatve = 1.0", r"\[comparison\] relatve.*'relative'"),
        ("relative = 1.0", r"\[comparison\] relative: given 1.0; expected a number less than 1"),
        ("[physics]\nsigma = 0.0", r"\[physics\] sigma"),
        ("[learner]\ntype = 'maid'", r"\[learner\]: given an unknown section.*'learners'"),
    ],
)
def test_mistakes_in_other_sections_are_named_too(load, extra, expected):
    with pytest.raises(ConfigError, match=expected):
        load(extra=extra)


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        ("[]", "at least one"),
        ("[0, 0]", "different numbers"),
        ("[-1]", "greater than or equal to 0"),
        ("[0.5]", "integer"),
    ],
)
def test_seeds_are_checked(load, seeds, expected):
    with pytest.raises(ConfigError, match=rf"\[comparison[^:]*: given .*{expected}"):
        load(seeds=seeds)


def test_the_seed_of_a_run_is_no_key_here(tmp_path):
    path = write(tmp_path)
    path.write_text(
        path.read_text(encoding="utf-8").replace("[run]\n", "[run]\nseed = 1\n"), encoding="utf-8"
    )
    with pytest.raises(ConfigError, match=r"\[run\] seed: given an unknown key"):
        load_comparison(path)


def test_no_configuration_or_no_file(tmp_path):
    assert "--example" in invoke("compare", code=2).stderr
    assert "learnreg compare --example" in invoke("compare", tmp_path / "none.toml", code=2).stderr


# --- the whole command ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """(folder, printed) of a finished comparison, not to be written to."""
    folder = tmp_path_factory.mktemp("compared")
    return folder / "out", invoke("compare", write(folder)).stdout


def test_a_comparison_leaves_everything_in_one_folder(compared):
    folder, printed = compared
    assert {"index.html", FILE, "config.toml", "figures", "tables", "runs"} == {
        path.name for path in folder.iterdir()
    }
    runs = sorted((folder / "runs").iterdir())
    assert len(runs) == 4
    for run in runs:
        names = {path.name for path in run.iterdir()}
        assert {
            "checkpoint",
            "model.safetensors",
            "history.safetensors",
            "curve.json",
            "config.toml",
        } <= names
    for words in (
        "4 runs: 2 learners x 1 starts x 2 seeds",
        "[0/4] MAID, seed 0: started",
        "[4/4]",
        "Report: ",
    ):
        assert words in printed
    assert "MAID" in (folder / "index.html").read_text(encoding="utf-8")


def test_losses_are_measured_alike_and_work_is_that_of_the_learners(compared):
    folder, _ = compared
    comparison = Comparison.load(folder)
    assert {run.seed for run in comparison.runs} == {0, 1} and len(comparison.runs) == 4
    for run in comparison.runs:
        (place,) = [
            p
            for p in (folder / "runs").iterdir()
            if run.name.split()[0].lower() in p.name and f"seed-{run.seed}" in p.name
        ]
        record, _ = rows(place)
        assert run.points[-1]["step"] == record[-1]["step"] == run.steps
        assert run.points[-1]["work"] == record[-1]["work"] / 2
        for point in run.points:
            assert (
                point["upper"] - point["lower"] <= 5e-4 * point["loss"]
                and point["kind"] == "certified"
            )
            learners_own = record[point["step"]]
            assert (
                point["upper"] >= learners_own["lower"] and point["lower"] <= learners_own["upper"]
            )


def test_the_page_is_rendered_again_without_solving(compared, tmp_path, monkeypatch):
    folder, _ = compared
    (tmp_path / FILE).write_bytes((folder / FILE).read_bytes())
    monkeypatch.setattr("learnreg.solvers.iterate.minimize", None)
    assert "MAID" in invoke("report", tmp_path).stdout
    assert (tmp_path / "index.html").read_bytes() == (folder / "index.html").read_bytes()


def test_one_run_can_be_repeated_by_the_command_learn(compared, tmp_path):
    folder, _ = compared
    run = next(p for p in (folder / "runs").iterdir() if p.name.startswith("maid--seed-1"))
    invoke("learn", run / "config.toml", "--output", tmp_path / "again")
    assert rows(run)[1].equal(rows(tmp_path / "again")[1])


@pytest.mark.slow
def test_two_processes_give_the_same_numbers(compared, tmp_path, plain_page):
    folder, _ = compared
    path = write(tmp_path, seeds="[1]")
    printed = invoke("compare", path, "--processes", 2).stdout
    assert "2 at a time" in printed and "[2/2]" in printed
    found, before = curves(tmp_path / "out"), curves(folder)
    assert len(found) == 2 and all(found[name] == before[name] for name in found)


# --- stopping and going on ------------------------------------------------------------------------


def test_finished_runs_are_skipped(compared, tmp_path, monkeypatch, plain_page):
    path = write(tmp_path)
    invoke("compare", path)
    before = {p: p.read_bytes() for p in (tmp_path / "out" / "runs").rglob("*") if p.is_file()}
    monkeypatch.setattr(jobs_module, "run_job", None)
    assert "4 are finished" in invoke("compare", path, "--resume").stdout
    assert before == {
        p: p.read_bytes() for p in (tmp_path / "out" / "runs").rglob("*") if p.is_file()
    }
    assert curves(tmp_path / "out") == curves(compared[0])


@pytest.mark.parametrize("place", ["learn", "trajectory"])
def test_an_interrupted_comparison_goes_on_to_the_same_numbers(
    compared, tmp_path, monkeypatch, plain_page, place
):
    path, calls = write(tmp_path), []
    with monkeypatch.context() as patch:
        whole = getattr(RUNS, place)

        def interrupt(*arguments, **options):
            calls.append(1)
            if (
                len(calls) == 3
            ):  # in the middle of the third run, after one step or between two evaluations
                shown = options["progress"]

                def stop(*state):
                    shown(*state)
                    if place == "trajectory" or state[0]["step"] == 1:
                        raise KeyboardInterrupt

                options["progress"] = stop
            return whole(*arguments, **options)

        patch.setattr(RUNS, place, interrupt)
        error = invoke("compare", path, code=130).stderr
    assert "2 of 4 runs are finished" in error and f"--output {tmp_path / 'out'} --resume" in error
    assert not (tmp_path / "out" / FILE).exists() and len(curves(tmp_path / "out")) == 2
    checkpoints = list((tmp_path / "out" / "runs").glob("maid--seed-1*/checkpoint/*"))
    assert len(load_tensors(checkpoints[0], "learnreg-checkpoint")[1]["rows"]) == (
        2 if place == "learn" else 3
    )
    assert "2 are finished, 2 go on" in invoke("compare", path, "--resume").stdout
    assert curves(tmp_path / "out") == curves(compared[0])


def test_a_finer_measurement_does_not_learn_again(compared, tmp_path, monkeypatch, plain_page):
    invoke("compare", write(tmp_path, seeds="[0]"))
    monkeypatch.setattr(RUNS, "learn", None)
    invoke("compare", write(tmp_path, seeds="[0]", extra="relative = 1e-6"), "--resume")
    for run in Comparison.load(tmp_path / "out").runs:
        assert (
            all(p["upper"] - p["lower"] <= 1e-6 * p["loss"] for p in run.points)
            and run.failure is None
        )


def test_a_comparison_is_not_overwritten_by_accident(compared, tmp_path, plain_page):
    path = write(tmp_path, seeds="[0]")
    invoke("compare", path)
    error = invoke("compare", path, code=2).stderr
    assert "2 finished of 2 runs" in error and "--resume" in error and "--overwrite" in error
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "runs").glob("*/curve.json")}
    invoke("compare", path, "--overwrite")
    assert all(p.stat().st_mtime_ns > stamp for p, stamp in stamps.items())
    assert (
        "together with --overwrite"
        in invoke("compare", path, "--overwrite", "--resume", code=2).stderr
    )
    other = write(tmp_path, '[[learners]]\ntype = "hoag"\n')
    assert "a finished comparison" in invoke("compare", other, code=2).stderr


def test_folders_of_other_commands_are_left_alone(learned, tmp_path):
    before = {p: p.read_bytes() for p in learned.rglob("*") if p.is_file()}
    for option in ([], ["--resume"], ["--overwrite"]):
        error = invoke("compare", write(tmp_path), "--output", learned, *option, code=2).stderr
        assert "a run of the command learn" in error
    assert before == {p: p.read_bytes() for p in learned.rglob("*") if p.is_file()}


def test_bad_data_are_reported_once_and_leave_no_folder(tmp_path):
    path = write(tmp_path)
    path.write_text(
        path.read_text(encoding="utf-8").replace('"phantoms"', '"no/such/folder"'), encoding="utf-8"
    )
    assert invoke("compare", path, code=2).stderr.count("no such folder") == 1
    assert not (tmp_path / "out").exists()


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < end, "not in time"
        time.sleep(0.05)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.slow
def test_ctrl_c_ends_all_processes_and_keeps_their_checkpoints(tmp_path):
    path = write(tmp_path, '[[learners]]\ntype = "stochastic"\nalpha0 = 1e-9\n', steps=10**6)
    command = [sys.executable, "-m", "learnreg", "compare", path, "--processes", "2"]
    # a test suite that was started in the background hands on that interrupts are ignored
    process = subprocess.Popen(
        command,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    runs = tmp_path / "out" / "runs"
    try:
        wait_for(lambda: len(list(runs.glob("*/checkpoint/*.safetensors"))) == 2, process)
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=180)[1].decode()
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130 and "0 of 2 runs are finished" in error
    saved = {p: p.read_bytes() for p in runs.glob("*/checkpoint/*")}
    time.sleep(1.0)
    assert saved == {
        p: p.read_bytes() for p in runs.glob("*/checkpoint/*")
    }  # nobody is left to write
    for file in saved:
        assert len(load_tensors(file, "learnreg-checkpoint")[1]["rows"]) >= 1
    assert not list(runs.glob("*/curve.json")) and not list(runs.glob("*/failure.json"))


# --- failures -------------------------------------------------------------------------------------

BAD = '[[learners]]\nname = "bad"\ntype = "lbfgsb"\nbox = {nonsense = [0.0, 1.0]}\n'


def test_a_failing_run_is_reported_and_the_others_go_on(tmp_path):
    printed = invoke("compare", write(tmp_path, BAD + TWO, seeds="[0]", steps=1)).stdout
    assert "[1/3] bad, seed 0: failed: " in printed and "[3/3]" in printed
    runs = {run.name: run for run in Comparison.load(tmp_path / "out").runs}
    assert (
        "nonsense" in runs["bad"].failure
        and runs["MAID"].failure is None
        and runs["MAID"].final is not None
    )
    assert "nonsense" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_when_every_run_fails_the_exit_code_says_so(tmp_path, plain_page):
    path = write(tmp_path, BAD, seeds="[0]")
    assert "every one failed" in invoke("compare", path, code=1).stdout
    assert "go on" in invoke("compare", path, "--resume", code=1).stdout  # tried again, not skipped


def test_an_unexpected_exception_is_recorded_with_its_kind(tmp_path, monkeypatch, plain_page):
    def explode(*_, **__):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(RUNS, "trajectory", explode)
    invoke("compare", write(tmp_path, seeds="[0]", steps=1), code=1)
    assert {run.failure for run in Comparison.load(tmp_path / "out").runs} == {
        "ZeroDivisionError: a bug"
    }
    (trace, _) = (tmp_path / "out" / "runs").glob("*/failure.json")
    assert "explode" in json.loads(trace.read_text(encoding="utf-8"))["traceback"]
    monkeypatch.undo()
    monkeypatch.setattr(Comparison, "_render", lambda self: ("page", {}))
    invoke("compare", write(tmp_path, seeds="[0]", steps=1), "--resume")
    assert all(run.failure is None for run in Comparison.load(tmp_path / "out").runs)


def test_a_process_that_dies_without_a_word_has_failed(load, tmp_path):
    job = plan_jobs(load(), tmp_path)[0]
    job.save()
    jobs_module._explain(job, -9)
    assert (
        "ended by signal SIGKILL" in job.outcome()["failure"]
        and "log.txt" in job.outcome()["failure"]
    )


def test_a_run_whose_parent_is_gone_stops(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        jobs_module._Reporter(tmp_path, os.getppid() + 1)({"phase": "learning"})


def test_threads_are_as_they_were_after_a_run(compared):
    assert torch.get_num_threads() == 1


# --- progress -------------------------------------------------------------------------------------

STATE = {"phase": "learning", "step": 3, "loss": 1.25, "seconds": 30.0, "work": 800.0}


@pytest.fixture
def some_jobs(load, tmp_path):
    return plan_jobs(load(steps=10), tmp_path)


def test_a_terminal_shows_a_line_per_running_job_and_a_bar(some_jobs):
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with CompareProgress(console, some_jobs) as progress:
        for job in some_jobs[:3]:
            progress.started(job)
        progress.update(some_jobs[0], STATE)
        progress.update(some_jobs[1], {**STATE, "loss": None})
        progress.update(some_jobs[2], {"phase": "measuring", "done": 1, "of": 3})
        assert progress.share() == pytest.approx((0.9 * 0.3 * 2 + 0.9 + 0.1 / 3) / 4)
        some_jobs[0].save()
        progress.finished(some_jobs[0])
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", console.file.getvalue())
    for words in (
        "work/image",
        "800",
        "1.25",
        "30 s",
        "measuring 1 of 3",
        "0 of 4 runs finished, 1 failed",
        "MAID, seed 0: failed: the run was not finished",
    ):
        assert words in text


def test_a_file_gets_few_lines(some_jobs, monkeypatch):
    console = Console(file=io.StringIO(), width=40)
    with CompareProgress(console, some_jobs) as progress:
        progress.started(some_jobs[0])
        for step in range(100):
            progress.update(some_jobs[0], {**STATE, "step": step})
        monkeypatch.setattr("learnreg.cli.compare_progress.EVERY", 0.0)
        progress.update(some_jobs[0], {**STATE, "loss": None})
        progress.finished(some_jobs[0])
    assert console.file.getvalue().splitlines() == [
        "[0/4] MAID, seed 0: started",
        "[0/4] MAID, seed 0: step 3  loss -  work/image 800  30 s",
        "[1/4] MAID, seed 0: failed: the run was not finished",
    ]


def test_seconds_are_shown_with_their_limit(some_jobs):
    config = some_jobs[0].config
    timed = replace(
        some_jobs[0], config=config.model_copy(update={"budget": type(config.budget)(seconds=60.0)})
    )
    progress = CompareProgress(Console(file=io.StringIO()), [timed])
    assert progress._words(STATE, 2.0)[3] == "32 of 60 s" and progress._words({})[0] == "preparing"
    progress.started(timed)
    progress.update(timed, STATE)
    assert 0.45 <= progress.share() < 0.5
