"""Tiny runs of the command line, shared by the tests of this folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from PIL import Image
from typer.testing import CliRunner

import learnreg
from learnreg.cli.main import app
from learnreg.core.files import load_tensors

CLOCKS = {"seconds", "cpu_seconds"}
CONFIG = """\
[data]
source = "phantoms"
size = {size}
train = 2
test = 1
[regularizer]
{regularizer}
[budget]
steps = {steps}
[run]
threads = 1
output = {output}
"""


def invoke(*arguments, code=0):
    """Run a command in this process; its result, after a look at the exit code."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def write_config(
    folder, name="config.toml", *, steps=2, size=24, regularizer='type = "TV"', output="out"
):
    path, place = folder / name, json.dumps(str(folder / output))
    path.write_text(
        CONFIG.format(steps=steps, size=size, regularizer=regularizer, output=place),
        encoding="utf-8",
    )
    return path


def rows(folder):
    """The record of a finished run without its clocks, and all thetas."""
    tensors, header = load_tensors(folder / "history.safetensors", "learnreg-history")
    kept = [{k: v for k, v in row.items() if k not in CLOCKS} for row in header["record"]["rows"]]
    return kept, tensors["thetas"]


def assert_same_run(one, two):
    """Bitwise: the rows went through JSON, which keeps every digit of a float."""
    (rows_one, thetas_one), (rows_two, thetas_two) = rows(one), rows(two)
    assert rows_one == rows_two
    assert thetas_one.equal(thetas_two)


def save_png(path, height, width, channels=1, dtype=np.uint8):
    values = np.random.default_rng(0).random((height, width, channels)) * np.iinfo(dtype).max
    Image.fromarray(values.astype(dtype).squeeze()).save(path)
    return path


def environment():
    source = str(Path(learnreg.__file__).parents[1])
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")]).rstrip(
            os.pathsep
        ),
    }
