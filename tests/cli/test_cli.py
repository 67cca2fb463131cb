"""The commands from the outside: what they write, what they say, what they refuse."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys

import pytest
import torch
from rich.console import Console
from tests.cli.cases import assert_same_run, environment, invoke, rows, write_config

import learnreg
from learnreg.cli.guard import EXIT_CODES
from learnreg.cli.main import app
from learnreg.cli.progress import LearnProgress
from learnreg.runs import Budget

COMMANDS = ("demo", "learn", "compare", "reconstruct", "report", "version")


# --- help and version -----------------------------------------------------------------------------


def test_help_lists_every_command():
    text = invoke("--help").stdout
    assert {
        command.name or command.callback.__name__ for command in app.registered_commands
    } == set(COMMANDS)
    for command in COMMANDS:
        assert re.search(rf"^\W*{command}\b", text, re.MULTILINE)
        assert "Usage" in invoke(command, "--help").stdout


def test_help_says_what_exit_codes_mean():
    text = " ".join(invoke("--help").stdout.split())
    for code in EXIT_CODES.split(": ", 1)[1].split("; "):
        assert code.split(" ")[0] in text
    assert "130 interrupted" in text


def test_versions():
    assert invoke("--version").stdout.strip() == f"learnreg {learnreg.__version__}"
    text = invoke("version").stdout
    assert learnreg.__version__ in text and "torch" in text and "deepinv" in text


def test_the_shell_does_not_import_what_only_a_command_needs():
    heavy = "{'torch', 'numpy', 'pydantic', 'matplotlib'}"
    code = f"import learnreg.cli.main, sys; print(*{heavy} & sys.modules.keys())"
    assert (
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=environment(),
        ).stdout.split()
        == []
    )


# --- learn, report --------------------------------------------------------------------------------


def test_learning_leaves_everything_in_one_folder(learned):
    names = {
        "index.html",
        "run.json",
        "run.safetensors",
        "model.safetensors",
        "history.safetensors",
        "config.toml",
    }
    assert names <= {path.name for path in learned.iterdir()}
    assert (learned / "checkpoint" / "checkpoint.safetensors").is_file()
    record = json.loads((learned / "run.json").read_text(encoding="utf-8"))["methods"][0]["record"]
    assert [row["step"] for row in record["rows"]] == [0, 1, 2]
    assert record["rows"][2]["loss"] < record["rows"][0]["loss"]
    assert "TV" in (learned / "index.html").read_text(encoding="utf-8")


def test_the_copy_of_the_configuration_repeats_the_run(learned, tmp_path):
    invoke("learn", learned / "config.toml", "--output", tmp_path / "again")
    assert_same_run(learned, tmp_path / "again")


def test_the_output_says_what_came_out(tmp_path):
    result = invoke("learn", write_config(tmp_path, steps=1))
    for words in (
        "step 0",
        "step 1",
        "budget of 1 accepted steps",
        "noisy",
        "PSNR",
        "index.html",
        "model.safetensors",
    ):
        assert words in result.stdout


def test_a_sum_can_be_learned_in_float64(tmp_path):
    terms = 'terms = [{type = "TV"}, {type = "Tikhonov", weight = 1e-3, learned = false}]'
    path = write_config(tmp_path, steps=1, regularizer=terms)
    path.write_text(path.read_text(encoding="utf-8") + 'dtype = "float64"\n', encoding="utf-8")
    assert "TV + Tikhonov" in invoke("learn", path).stdout
    assert rows(tmp_path / "out")[1].dtype == torch.float64


def test_a_page_is_rendered_again_without_solving(learned, tmp_path, monkeypatch):
    for name in ("run.json", "run.safetensors"):
        (tmp_path / name).write_bytes((learned / name).read_bytes())
    monkeypatch.setattr("learnreg.solvers.iterate.minimize", None)
    assert "TV" in invoke("report", tmp_path).stdout
    assert (tmp_path / "index.html").stat().st_size > 1000


def test_reporting_on_a_folder_without_a_run_is_an_error(tmp_path):
    assert "run.json" in invoke("report", tmp_path, code=2).stderr


def test_an_example_can_be_saved_and_read(tmp_path):
    from learnreg.cli.config import Config, load_config

    (tmp_path / "c.toml").write_text(invoke("learn", "--example").stdout, encoding="utf-8")
    assert load_config(tmp_path / "c.toml") == Config()


# --- what learn refuses ---------------------------------------------------------------------------


def test_an_error_is_one_line_without_a_traceback(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("[learner]\nrhoo = 0.5", encoding="utf-8")
    result = invoke("learn", path, code=2)
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    for words in (
        str(path),
        "[learner] rhoo",
        "unknown key",
        "expected one of",
        "Did you mean 'rho'?",
    ):
        assert words in result.stderr
    assert result.stdout.count("\n") == 1  # what is read, said before anything slow


def test_debug_lets_the_traceback_through(tmp_path):
    with pytest.raises(learnreg.LearnregError, match="No such file"):
        invoke("learn", tmp_path / "none.toml", "--debug")


def test_no_configuration_is_a_question_about_usage():
    assert "--example" in invoke("learn", code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seconds", "-1"], "[budget] seconds: given -1"),
        (["--resume", "--overwrite"], "together with --overwrite"),
    ],
)
def test_contradictions_are_refused(tmp_path, arguments, words):
    assert words in invoke("learn", write_config(tmp_path), *arguments, code=2).stderr
    assert not (tmp_path / "out").exists()


def test_bad_data_leave_no_folder(tmp_path):
    path = write_config(tmp_path)
    path.write_text(
        path.read_text(encoding="utf-8").replace('"phantoms"', '"no/such/folder"'), encoding="utf-8"
    )
    assert "no such folder" in invoke("learn", path, code=2).stderr
    assert not (tmp_path / "out").exists()


def test_a_finished_run_is_not_overwritten_by_accident(tmp_path):
    path = write_config(tmp_path, steps=1)
    invoke("learn", path)
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    error = invoke("learn", path, code=2).stderr
    assert "finished run" in error and "--overwrite" in error and "--resume" in error
    assert before == {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    invoke("learn", path, "--overwrite")


def test_the_checkpoint_of_an_interrupted_run_is_not_overwritten_by_accident(learned, tmp_path):
    (tmp_path / "out" / "checkpoint").mkdir(parents=True)
    copy = tmp_path / "out" / "checkpoint" / "checkpoint.safetensors"
    copy.write_bytes((learned / "checkpoint" / copy.name).read_bytes())
    error = invoke("learn", write_config(tmp_path), code=2).stderr
    assert "interrupted run" in error and "--resume" in error


def test_another_configuration_in_the_output_folder_is_kept(tmp_path):
    (tmp_path / "out").mkdir()
    mine = write_config(tmp_path / "out", output="")
    assert "another configuration" in invoke("learn", write_config(tmp_path), code=2).stderr
    text = mine.read_text(encoding="utf-8")
    invoke("learn", mine)  # the folder of the configuration itself is a good place
    assert mine.read_text(encoding="utf-8") == text


def test_an_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine", encoding="utf-8")
    assert "output folder" in invoke("learn", write_config(tmp_path), code=2).stderr
    assert (tmp_path / "out").read_text(encoding="utf-8") == "mine"


# --- progress -------------------------------------------------------------------------------------

ROW = {
    "step": 3,
    "loss": 1.25,
    "psnr": 28.5,
    "eps": 1e-2,
    "delta": 2e-2,
    "step_size": None,
    "trials": 2,
    "work": 800,
    "seconds": 30.0,
}


def test_a_terminal_shows_a_table_and_a_bar():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with LearnProgress(console, Budget(seconds=60, steps=10), images=4) as progress:
        progress(ROW)
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", console.file.getvalue())
    for words in ("work/image", "28.50", "200", "30 of 60 s", "3 of 10 steps"):
        assert words in text


def test_a_file_gets_one_line_per_step():
    console = Console(file=io.StringIO(), width=40)
    with LearnProgress(console, Budget(steps=10), images=4) as progress:
        progress(ROW)
        progress({**ROW, "step": 4, "psnr": float("nan")})
    start, meaning, first, second = console.file.getvalue().splitlines()
    assert start.startswith("Solving") and "work/image: evaluations of the energy" in meaning
    assert (
        first.startswith("step 3  loss 1.25  PSNR 28.50")
        and "step size -" in first
        and "PSNR -" in second
    )
    assert "left" not in first and second.endswith("left 0:00")  # a pace needs two rows


@pytest.mark.parametrize("width", [20, 30, 40, 60, 79, 200])
def test_a_narrow_terminal_shows_whole_columns(width):
    console = Console(file=io.StringIO(), force_terminal=True, width=width)
    with LearnProgress(console, Budget(seconds=60), images=4) as progress:
        progress(ROW)
        table = console.render_lines(progress._render())
    text = ["".join(segment.text for segment in line) for line in table]
    assert "…" not in "".join(text) and all(len(line) <= width for line in text)
    assert "step" in text[0] and "loss" in text[0] and "1.25" in text[1]
    assert ("PSNR" in text[0]) == (width >= 30) and ("delta" in text[0]) == (width > 79)


@pytest.mark.parametrize(
    ("budget", "left"),
    [
        (Budget(seconds=100), 70.0),
        (Budget(steps=13), 15 * 10 / 1),
        (Budget(work=400), 15 * 200 / 50),
        (Budget(seconds=100, steps=4), 15.0),
        (Budget(seconds=10), 0.0),
        (Budget(patience=5), None),
    ],
)
def test_how_long_a_budget_lasts(budget, left):
    progress = LearnProgress(Console(file=io.StringIO()), budget, images=4)
    progress({**ROW, "step": 2, "work": 600, "seconds": 15.0})
    progress(ROW)
    assert progress._pace.left() == (left if left is None else pytest.approx(left))


def test_validation_has_a_column():
    console = Console(file=io.StringIO())
    with LearnProgress(console, Budget(steps=10), images=4) as progress:
        progress({**ROW, "validation_psnr": 27.125})
        progress({**ROW, "validation_psnr": None})
    text = console.file.getvalue()
    assert "held-out: the same of the validation images" in text
    assert "held-out 27.12" in text and "held-out -" in text
