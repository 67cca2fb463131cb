"""Stopping and going on: Ctrl-C, kill and a used-up budget lose nothing, and resuming gives the
same numbers.
"""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from tests.cli.cases import assert_same_run, environment, invoke, rows, write_config

from learnreg.cli.progress import LearnProgress
from learnreg.core.files import load_tensors


def test_resuming_gives_the_numbers_of_an_uninterrupted_run(tmp_path):
    invoke("learn", write_config(tmp_path, steps=4), "--output", tmp_path / "whole")
    invoke("learn", write_config(tmp_path, steps=2))
    assert len(rows(tmp_path / "out")[0]) == 3
    assert "Resuming" in invoke("learn", write_config(tmp_path, steps=4), "--resume").stdout
    assert_same_run(tmp_path / "whole", tmp_path / "out")


def test_resuming_another_run_is_refused(learned, tmp_path):
    path = write_config(tmp_path, regularizer='type = "TV"\nweight = 0.07')
    before = (learned / "config.toml").read_bytes()
    assert (
        "another problem" in invoke("learn", path, "--resume", "--output", learned, code=2).stderr
    )
    assert (learned / "config.toml").read_bytes() == before


def test_resuming_nothing_starts_at_the_beginning(learned, tmp_path):
    assert "Learning" in invoke("learn", write_config(tmp_path), "--resume").stdout
    assert_same_run(learned, tmp_path / "out")


def interrupt_at(step, monkeypatch):
    """A keyboard interrupt while the row of ``step`` is shown."""
    show = LearnProgress.__call__

    def interrupt(self, row):
        show(self, row)
        if row["step"] == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(LearnProgress, "__call__", interrupt)


def test_ctrl_c_says_what_was_kept_and_how_to_go_on(learned, tmp_path, monkeypatch):
    path = write_config(tmp_path)
    with monkeypatch.context() as patch:
        interrupt_at(1, patch)
        error = invoke("learn", path, code=130).stderr
    assert "after step 1" in error and f"--output {tmp_path / 'out'} --resume" in error
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert not (tmp_path / "out" / "index.html").exists()
    invoke("learn", path, "--resume")
    assert_same_run(learned, tmp_path / "out")


def test_ctrl_c_before_the_first_row_kept_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("learnreg.objectives.bilevel.Bilevel._start", interrupted)
    assert "nothing was kept" in invoke("learn", write_config(tmp_path), code=130).stderr


def interrupted(*_, **__):
    raise KeyboardInterrupt


def wait_for_steps(process, checkpoint, steps, seconds=120):
    """Wait until a checkpoint of at least ``steps`` steps is there; every file that is ever seen is
    whole.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()[1].decode()
        if checkpoint.exists():
            _, header = load_tensors(checkpoint, "learnreg-checkpoint")
            if len(header["rows"]) > steps:
                return
        time.sleep(0.01)
    pytest.fail("no checkpoint in time")


def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path):
    options = {"size": 48, "regularizer": 'type = "FoE"\nfilters = 8\nsize = 5'}
    checkpoint = tmp_path / "out" / "checkpoint" / "checkpoint.safetensors"
    command = [
        sys.executable,
        "-m",
        "learnreg",
        "learn",
        write_config(tmp_path, steps=100000, **options),
    ]
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        wait_for_steps(process, checkpoint, 2)
    finally:
        process.kill()
        process.communicate()
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"checkpoint", "config.toml", ".learnreg.lock"}  # nobody holds the lock now
    done = len(load_tensors(checkpoint, "learnreg-checkpoint")[1]["rows"]) - 1
    invoke("learn", write_config(tmp_path, steps=done + 2, **options), "--resume")
    invoke(
        "learn", write_config(tmp_path, steps=done + 2, **options), "--output", tmp_path / "whole"
    )
    assert len(rows(tmp_path / "out")[0]) == done + 3
    assert_same_run(tmp_path / "whole", tmp_path / "out")
