"""The command ``learn``: from a configuration file to a report, a model and a checkpoint in one
folder.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..core.errors import InputError, SolveError
from ..core.files import write_atomically
from ..core.results import Evaluation
from ..data import Pairs
from ..problems import BilevelProblem
from ..reports import Report
from ..runs import Run, learn
from ..runs.checkpoint import FILE
from .config import Config, load_config
from .extras import extras
from .guard import Interrupted, say
from .memory import keep_large_blocks
from .prepare import prepare
from .progress import LearnProgress

if TYPE_CHECKING:
    from rich.console import Console

RESULTS = ("index.html", "run.json", "run.safetensors", "model.safetensors", "history.safetensors")
CHECKPOINT, COPY = "checkpoint", "config.toml"


def run_learn(
    path: Path,
    console: Console,
    *,
    output: str | None = None,
    seconds: float | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Learn, evaluate and report.

    Args:
        path: the configuration file.
        console: where to show progress and results.
        output, seconds: replace those of the file.
        resume: go on from the checkpoint in the output folder.
        overwrite: start again in a folder that holds a run.

    Raises:
        ConfigError: see ``load_config``.
        InputError: an output folder that holds another run, or cannot be written.
        Interrupted: Ctrl-C; the message says what was kept.
    """
    config = load_config(path, {("run", "output"): output, ("budget", "seconds"): seconds})
    folder = Path(config.run.output)
    _check_output(folder, path, resume, overwrite)
    resume = resume and _has_checkpoint(folder)
    keep_large_blocks()
    with limited_threads(config.run.threads):
        problem, test = prepare(config)
        claim(folder)
        if (
            not resume
        ):  # the settings of a run that can be resumed are replaced only when it has been
            _copy_config(config, path, folder)
        say(console, f"{'Resuming' if resume else 'Learning'} {config.name}: {problem.describe()}")
        run = _learn(config, problem, folder, console, resume)
        run.save(folder)
        _copy_config(config, path, folder)
        try:
            if run.stop.code == "interrupted":
                raise KeyboardInterrupt
            evaluation = evaluate(run, test, config.run.eps_evaluate, console)
            report = Report(run, evaluation, **extras(config, problem, test, console))
            page = report.save(folder)
        except KeyboardInterrupt:
            raise Interrupted(_kept(run, path, folder)) from None
    say(console, run)
    say(
        console,
        f"\n{report}\n\nReport: {page}\nModel:  {folder / 'model.safetensors'}",
    )


def evaluate(run: Run, test: Pairs, eps: float, console: Console) -> Evaluation:
    """Reconstructions of the held-out pairs, with the certificate compared to the true error on
    the first.
    """
    evaluation = run.evaluate(test, eps)
    try:
        return replace(evaluation, honesty=run.check_certificate(test.y[:1]))
    except (
        SolveError
    ) as error:  # the comparison needs a far more accurate solve than the reconstructions
        say(console, f"The certificate was not compared with the true error: {error}")
        return evaluation


def _learn(
    config: Config, problem: BilevelProblem, folder: Path, console: Console, resume: bool
) -> Run:
    """The run, shown while it goes on."""
    budget = config.build_budget()
    try:
        with LearnProgress(console, budget, problem.size) as progress:
            return learn(
                problem,
                config.build_learner(),
                hypergradient=config.build_hypergradient(),
                budget=budget,
                seed=config.run.seed,
                checkpoint=folder / CHECKPOINT,
                resume=resume,
                solver=config.run.solver,
                progress=progress,
                name=config.name,
            )
    except KeyboardInterrupt:
        held = (
            f"The checkpoint in {folder} is as it was."
            if resume
            else "No step was finished, so nothing was kept."
        )
        raise Interrupted(held) from None


def _kept(run: Run, path: Path, folder: Path) -> str:
    again = shlex.join(["learnreg", "learn", str(path), "--output", str(folder), "--resume"])
    return (
        f"Stopped after step {run.record.rows[-1]['step']}. Kept in {folder}: the checkpoint, "
        "model.safetensors "
        f"and history.safetensors. Go on with: {again}"
    )


# --- the output folder ----------------------------------------------------------------------------


def _has_checkpoint(folder: Path) -> bool:
    return (folder / CHECKPOINT / FILE).is_file()


def _check_output(folder: Path, path: Path, resume: bool, overwrite: bool) -> None:
    """Refuse to write over a run, or over a configuration that is not the present one."""
    if resume and overwrite:
        raise InputError(
            "--resume",
            given="together with --overwrite",
            expected="one of the two",
            remedy="--resume goes on with the run in the folder, --overwrite starts again.",
        )
    if overwrite or (resume and _has_checkpoint(folder)):
        return
    there = [name for name in RESULTS if (folder / name).exists()]
    if there:
        remedy = "Choose another --output or replace it with --overwrite"
        raise InputError(
            f"output folder {folder}",
            given=f"a finished run ({', '.join(there)})",
            expected="no run yet",
            remedy=f"{remedy}, or go on with --resume."
            if _has_checkpoint(folder)
            else f"{remedy}.",
        )
    if _has_checkpoint(folder):
        raise InputError(
            f"output folder {folder}",
            given="the checkpoint of an interrupted run",
            expected="no run yet",
            remedy="Go on with --resume, start again with --overwrite, or choose another --output.",
        )
    copy = folder / COPY
    if copy.exists() and not copy.samefile(path):
        raise InputError(
            f"output folder {folder}",
            given=f"another configuration ({copy})",
            expected="no run yet",
            remedy="Choose another --output, or replace it with --overwrite.",
        )


def claim(folder: Path) -> None:
    """Make the folder; find out now, and not after the learning, that it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        problem = "" if os.access(folder, os.W_OK) else "not writable"
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        raise InputError(
            f"output folder {folder}",
            given=problem,
            expected="a folder that can be made and written",
            remedy="Choose another --output.",
        )


def _copy_config(config: Config, path: Path, folder: Path) -> None:
    """The settings of the run beside its results; a file that is the configuration itself keeps its
    comments.
    """
    copy = folder / COPY
    if not (copy.exists() and copy.samefile(path)):
        write_atomically(copy, config.to_toml().encode())


@contextmanager
def limited_threads(number: int | None) -> Iterator[None]:
    """Within this block torch uses so many CPU threads; None leaves it as it is."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(number or before)
        yield
    finally:
        torch.set_num_threads(before)
