"""The command ``compare``: several learners, starts and seeds on one problem, from a configuration
to a report.
"""

from __future__ import annotations

import platform
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import typer

from .. import __version__
from ..core.errors import InputError
from ..core.files import write_atomically
from ..reports import Comparison
from ..reports.comparison import FILE
from .compare_config import Plan, load_comparison
from .compare_progress import CompareProgress
from .extras import AGAIN
from .guard import ALL_FAILED, Interrupted, say
from .jobs import Job, plan_jobs, run_all
from .learn import COPY, RESULTS, claimed
from .prepare import prepare
from .settings import cores

if TYPE_CHECKING:
    from rich.console import Console


def run_compare(
    path: Path,
    console: Console,
    *,
    output: str | None = None,
    seconds: float | None = None,
    processes: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Run every learner from every start with every seed, measure them alike, and report.

    Args:
        path: the configuration file.
        console: where to show progress and results.
        output, seconds, processes: replace those of the file.
        resume: skip the runs that are finished, go on with the others.
        overwrite: start all of them again.

    Raises:
        ConfigError: see ``load_comparison``.
        InputError: an output folder that holds other results, or cannot be written; data that
            cannot be read.
        Interrupted: Ctrl-C; the message says what was kept.
        typer.Exit: code 1 when every run failed.
    """
    plan = load_comparison(
        path,
        {
            ("run", "output"): output,
            ("budget", "seconds"): seconds,
            ("comparison", "processes"): processes,
        },
    )
    folder = Path(plan.config.run.output)
    jobs = plan_jobs(plan, folder)
    _check_output(folder, path, plan, jobs, resume, overwrite)
    problem, _ = prepare(
        jobs[0].config
    )  # what is wrong with the data is said once, and before anything is started
    with claimed(folder):
        if overwrite:
            for job in (job for job in jobs if job.begun):
                shutil.rmtree(job.folder)
        _copy_config(plan, path, folder)
        waiting = [job for job in jobs if not job.finished]
        at_once = min(
            plan.config.comparison.processes or _places(plan.config.run.threads),
            max(1, len(waiting)),
        )
        say(console, _opening(plan, jobs, waiting, at_once, problem.describe()))
        try:
            with CompareProgress(console, jobs) as watch:
                run_all(waiting, at_once, watch)
        except KeyboardInterrupt:
            raise Interrupted(_kept(jobs, path, folder, seconds)) from None
    outcomes = [job.outcome() for job in jobs]
    comparison = Comparison.of(
        outcomes,
        _settings(plan, at_once),
        config=plan.to_toml(),
        command=shlex.join(["learnreg", "compare", COPY, "--output", AGAIN]),
    )
    page = comparison.save(folder)
    say(console, f"\n{comparison}\n\nReport: {page}")
    if all(outcome["failure"] for outcome in outcomes):
        raise typer.Exit(ALL_FAILED)


def _opening(plan: Plan, jobs: list[Job], waiting: list[Job], at_once: int, problem: str) -> str:
    seeds, starts = len(plan.config.comparison.seeds), len(plan.starts)
    many = f"{len(jobs)} runs: {len(plan.variants)} learners x {starts} starts x {seeds} seeds"
    begun = sum(job.begun for job in waiting)
    old = (
        f"; {len(jobs) - len(waiting)} are finished, {begun} go on"
        if len(waiting) < len(jobs) or begun
        else ""
    )
    return f"{problem}\n{many}{old}; {at_once} at a time"


def _settings(plan: Plan, at_once: int) -> dict[str, Any]:
    """How the runs were done, for the report."""
    c = plan.config
    return {
        "seeds": c.comparison.seeds,
        "starts": [name for name in plan.starts if name],
        "budget": c.budget.build("budget").limits,
        "points": c.comparison.points,
        "relative": c.comparison.relative,
        "eps_test": c.run.eps_evaluate,
        "dtype": c.run.dtype,
        "solver": c.run.solver,
        "processes": at_once,
        "threads": c.run.threads,
        "cores": cores(),
        "data": c.data.model_dump(),
        "physics": c.physics.model_dump(),
        "version": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def _kept(jobs: list[Job], path: Path, folder: Path, seconds: float | None) -> str:
    changed = [] if seconds is None else ["--seconds", f"{seconds:g}"]
    again = shlex.join(
        ["learnreg", "compare", str(path), "--output", str(folder), *changed, "--resume"]
    )
    finished = sum(job.finished for job in jobs)
    return (
        f"Stopped. {finished} of {len(jobs)} runs are finished; those that had begun keep their "
        "checkpoints in "
        f"{folder / 'runs'}. Go on with: {again}"
    )


def _places(threads: int | None) -> int:
    return max(1, cores() // (threads or 1))


def _check_output(
    folder: Path, path: Path, plan: Plan, jobs: list[Job], resume: bool, overwrite: bool
) -> None:
    """Refuse to write over other results, or over a configuration that is not the present one."""
    if resume and overwrite:
        raise InputError(
            "--resume",
            given="together with --overwrite",
            expected="one of the two",
            remedy="--resume goes on with the runs in the folder, --overwrite starts again.",
        )
    single = [name for name in RESULTS if name != "index.html" and (folder / name).exists()]
    if single:
        raise InputError(
            f"output folder {folder}",
            given=f"a run of the command learn ({', '.join(single)})",
            expected="a folder of its own for the comparison",
            remedy="Choose another --output.",
        )
    if resume or overwrite:
        return
    begun = [job for job in jobs if job.begun]
    if begun or (folder / FILE).exists():
        finished = sum(job.finished for job in jobs)
        raise InputError(
            f"output folder {folder}",
            expected="no comparison yet",
            given=f"{finished} finished of {len(jobs)} runs" if begun else "a finished comparison",
            remedy="Go on with --resume, start again with --overwrite, or choose another --output.",
        )
    copy = folder / COPY
    # our own copy, of a comparison that was ended before its first run, is no other configuration
    ours = copy.is_file() and copy.read_bytes() == plan.to_toml().encode()
    if copy.exists() and not copy.samefile(path) and not ours:
        raise InputError(
            f"output folder {folder}",
            given=f"another configuration ({copy})",
            expected="no comparison yet",
            remedy="Choose another --output, or replace it with --overwrite.",
        )


def _copy_config(plan: Plan, path: Path, folder: Path) -> None:
    """The settings beside the results; a file that is the configuration itself keeps its
    comments.
    """
    copy = folder / COPY
    if not (copy.exists() and copy.samefile(path)):
        write_atomically(copy, plan.to_toml().encode())
