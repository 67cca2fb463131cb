"""The command ``learn``: from a configuration file to a report, a model and a checkpoint in one
folder.
"""

from __future__ import annotations

import shlex
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..core.errors import CheckpointError, ConfigError, InputError, SolveError
from ..core.files import write_atomically
from ..core.locks import FolderLock
from ..core.results import Evaluation
from ..data import Pairs
from ..physics import LearnedPhysics
from ..problems import BilevelProblem
from ..problems.bilevel import data_of
from ..reports import Report
from ..runs import Run, learn
from ..runs.checkpoint import FILE
from .config import Config, load_config
from .extras import extras
from .guard import Interrupted, say
from .measured_section import source_of
from .memory import keep_large_blocks
from .prepare import prepared
from .progress import LearnProgress

if TYPE_CHECKING:
    from rich.console import Console

RESULTS = ("index.html", "run.json", "run.safetensors", "model.safetensors", "history.safetensors")
CHECKPOINT, COPY = "checkpoint", "config.toml"
STALE = 600.0
"""Seconds after which a file that was being written is taken for a left-over."""


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
    again = _again(path, folder, seconds)
    _check_output(folder, path, config, resume, overwrite)
    resume = resume and _has_checkpoint(folder)
    keep_large_blocks()
    with limited_threads(config.run.threads):
        say(console, f"Preparing the images of {source_of(config.data)} ...")
        problem, validation, test = prepared(config)
        with claimed(folder):
            # another command may have had the folder since
            _check_output(folder, path, config, resume, overwrite, alone=True)
            if overwrite:
                _remove_old(folder)
            if (
                not resume
            ):  # the settings of a run that can be resumed are replaced only when it has been
                _copy_config(config, path, folder)
            say(
                console,
                f"{'Resuming' if resume else 'Learning'} {config.name}: {problem.describe()}",
            )
            watched = validation if len(validation) else None
            run = _learn(config, problem, watched, folder, console, resume)
            _finish(run, problem, test, config, path, again, console)


def _remove_old(folder: Path) -> None:
    """Take away what a new run would leave beside itself until it has results of its own."""
    for name in RESULTS:
        (folder / name).unlink(missing_ok=True)
    (folder / CHECKPOINT / FILE).unlink(missing_ok=True)


def _finish(
    run: Run,
    problem: BilevelProblem,
    test: Pairs,
    config: Config,
    path: Path,
    again: str,
    console: Console,
) -> None:
    """Save, evaluate and report what was learned.

    Args:
        again: the command that goes on from the checkpoint.

    Raises:
        Interrupted: Ctrl-C, before or meanwhile.
        InputError: something could not be written; the message says what was, and where.
    """
    folder = Path(config.run.output)
    best = run.best_step if config.run.keep == "best" else None
    chosen = run if best is None else run.at(best)
    way = _way_on(folder, again)
    kept = save_or_tell(chosen, folder, *way)
    _copy_config(config, path, folder)
    try:
        if run.stop.code == "interrupted":
            raise KeyboardInterrupt
        say(console, f"Reconstructing {len(test)} held-out images ...")
        evaluation = evaluate(chosen, test, config.run.eps_evaluate, console)
        with told(f"Kept in {folder}: {kept}.", *way):
            report = Report(chosen, evaluation, **extras(config, problem, test, console))
            page = report.save(folder)
    except KeyboardInterrupt:
        raise Interrupted(_kept(run, folder, again)) from None
    say(console, chosen)
    if isinstance(chosen.energy.physics, LearnedPhysics):
        say(console, f"  learned {chosen.energy.physics.words()}")
    if run.best_step is not None:
        say(console, _validated(run, chosen))
    say(
        console,
        f"\n{report}\n\nReport: {page}\nModel:  {folder / 'model.safetensors'}",
    )


def _validated(run: Run, chosen: Run) -> str:
    """Which step was best for the validation pairs, where there are any."""
    best, last = run.best_step, run.record.rows[-1]["step"]
    words = ", the last one" if best == last else f" of {last}"
    taken = "It was kept." if chosen.record.rows[-1]["step"] == best else "The last one was kept."
    other = "" if best == last or chosen is not run else ' ([run] keep = "best" keeps it.)'
    return f"Validation: the best step was {best}{words}. {taken}{other}"


def evaluate(run: Run, test: Pairs, eps: float, console: Console) -> Evaluation:
    """Reconstructions of the held-out pairs, with the certificate compared to the true error on
    the first.
    """
    evaluation = run.evaluate(test, eps)
    try:
        return replace(evaluation, honesty=run.check_certificate(data_of(test)[:1]))
    except (
        SolveError
    ) as error:  # the comparison needs a far more accurate solve than the reconstructions
        say(console, f"The certificate was not compared with the true error: {error}")
        return evaluation


def _learn(
    config: Config,
    problem: BilevelProblem,
    validation: Pairs | None,
    folder: Path,
    console: Console,
    resume: bool,
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
                validation=validation,
            )
    except CheckpointError as error:
        raise CheckpointError(
            error.what,
            given=error.given,
            expected=error.expected,
            remedy=error.remedy.replace("without resume", "again with --overwrite"),
        ) from error
    except KeyboardInterrupt:
        held = (
            f"The checkpoint in {folder} is as it was."
            if resume
            else "No step was finished, so nothing was kept."
        )
        raise Interrupted(held) from None


def _again(path: Path, folder: Path, seconds: float | None) -> str:
    changed = [] if seconds is None else ["--seconds", f"{seconds:g}"]
    output = ["--output", str(folder)]
    return shlex.join(["learnreg", "learn", str(path), *changed, *output, "--resume"])


def _kept(run: Run, folder: Path, again: str) -> str:
    command, words = _way_on(folder, again)
    return (
        f"Stopped after step {run.record.rows[-1]['step']}. Kept in {folder}: {_saved(folder)}. "
        f"{words.capitalize()}: {command}"
    )


def _saved(folder: Path) -> str:
    """What a run has left; checkpoints may not have found room."""
    checkpoint = "the checkpoint, " if _has_checkpoint(folder) else ""
    return f"{checkpoint}model.safetensors and history.safetensors"


GO_ON = "go on from the latest checkpoint with"


def _way_on(folder: Path, again: str) -> tuple[str, str]:
    """What is to be done after an end before the time, and its command: a run without a checkpoint,
    for which there may have been no room, starts again.
    """
    if _has_checkpoint(folder):
        return again, GO_ON
    anew = f"{again.removesuffix('--resume')}--overwrite"
    return anew, "start again, since no checkpoint could be written, with"


# --- what is kept ---------------------------------------------------------------------------------


def save_or_tell(run: Run, folder: Path, again: str, words: str = GO_ON) -> str:
    """Save a run; where its folder cannot be written any more, the model is saved elsewhere.

    Args:
        again: the command that goes on from the checkpoint.
        words: what that is, if it is not to go on.

    Returns:
        What was saved, in words.

    Raises:
        InputError: not all could be saved; says what was, and where.
    """
    try:
        run.save(folder)
    except OSError as error:
        with told(_rescued(run), again, words):
            raise error
    return _saved(folder)


def _rescued(run: Run) -> str:
    """Save a run into a new folder for temporary files, in which there may still be room."""
    try:
        place = Path(tempfile.mkdtemp(prefix="learnreg-"))
        run.save(place)
    except OSError:
        return "The model could not be kept anywhere."
    return f"The model and the history were saved to {place} instead: move them to where they last."


@contextmanager
def told(kept: str, again: str, words: str = GO_ON) -> Iterator[None]:
    """Within this block a file that cannot be written becomes a message that says what was kept.

    Args:
        kept: a sentence.
        again: the command that goes on from the latest checkpoint.
        words: what that is, if it is not to go on.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            str(error.filename or "the output folder"),
            given=error.strerror or str(error),
            expected="room for the results, in a folder that can be written",
            remedy=f"{kept} Make room, then {words}: {again}",
        ) from error


# --- the output folder ----------------------------------------------------------------------------


def _has_checkpoint(folder: Path) -> bool:
    return (folder / CHECKPOINT / FILE).is_file()


def _check_output(
    folder: Path,
    path: Path,
    config: Config,
    resume: bool,
    overwrite: bool,
    *,
    alone: bool = False,
) -> None:
    """Refuse to write over a run, or over a configuration that is not the present one.

    Args:
        alone: the folder is ours, and no other command can be at work in it.
    """
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
    if not alone and (there or _has_checkpoint(folder)):
        with claimed(folder):  # refused in its own words while a run is going on
            pass
    if there:
        kind = "a finished run" if RESULTS[0] in there else "a run that did not come to its report"
        remedy = "Choose another --output or replace it with --overwrite"
        raise InputError(
            f"output folder {folder}",
            given=f"{kind} ({', '.join(there)})",
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
    if copy.exists() and not copy.samefile(path) and not _same_run(copy, config):
        raise InputError(
            f"output folder {folder}",
            given=f"another configuration ({copy})",
            expected="no run yet",
            remedy="Choose another --output, or replace it with --overwrite.",
        )


def _same_run(copy: Path, config: Config) -> bool:
    """Whether a run of the same settings was ended here before its first checkpoint; it may have
    had another budget. A file that somebody wrote by hand is never taken for one of ours.
    """
    try:
        before = load_config(copy)
        ours = copy.read_bytes() == before.to_toml().encode()
    except (ConfigError, OSError):
        return False
    if not ours:
        return False
    free = {"budget": config.budget, "run": config.run}
    alike = before.run.model_copy(update={"output": config.run.output}) == config.run
    return alike and before.model_copy(update=free) == config


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Within this block nobody else writes into the folder, which is made and can be written.

    Raises:
        InputError: it cannot.
        CheckpointError: another command has it.
    """
    claim(folder)
    try:
        lock = FolderLock(folder)
        lock.acquire()
    except CheckpointError as error:
        raise CheckpointError(
            f"output folder {folder}",
            given=error.given,
            expected=error.expected,
            remedy="Wait for that run or stop it, or choose another --output.",
        ) from None
    try:
        _sweep(folder)
        yield
    finally:
        lock.release()


def _sweep(folder: Path) -> None:
    """Remove what writes that were killed have left behind (see ``write_atomically``)."""
    for place, names in ((folder, (*RESULTS, COPY)), (folder / CHECKPOINT, (FILE,))):
        for left in (path for name in names for path in place.glob(f".{name}.????????")):
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > STALE:
                    left.unlink()


def claim(folder: Path) -> None:
    """Make the folder; find out now, and not after the learning, that it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except (OSError, ValueError) as error:
        problem = (error.strerror if isinstance(error, OSError) else "") or str(error)
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
        with suppress(OSError):  # a full disk must not end what can go on
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
