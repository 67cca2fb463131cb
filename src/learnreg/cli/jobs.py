"""The runs of a comparison: each in a folder and a process of its own, skipped when finished,
resumed when not.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..core.errors import LearnregError
from ..core.files import write_atomically
from ..core.objective import Row
from ..core.words import slug
from ..runs.compare import CURVE, Entry, Measure, measured_run, read_json
from .compare_config import Plan
from .config import Config
from .learn import COPY, limited_threads
from .memory import keep_large_blocks
from .prepare import prepare

JOB, FAILURE, PROGRESS, LOG = "job.json", "failure.json", "progress.json", "log.txt"
POLL, PATIENCE = 0.25, 30.0
"""Seconds between two looks at the processes, and until one that was told to stop is killed."""


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        learner, name, grid: see ``Variant``.
        start: name of the start.
        config: the run as the command ``learn`` would read it; its seed is that of the run.
        points, relative: how it is measured afterwards, see ``trajectory``.
        folder: where everything of it goes.
    """

    learner: str
    name: str
    grid: dict[str, object]
    start: str
    config: Config
    points: int
    relative: float
    folder: Path

    @property
    def seed(self) -> int:
        return self.config.run.seed

    @property
    def title(self) -> str:
        """For progress and messages."""
        return ", ".join(part for part in (self.name, self.start, f"seed {self.seed}") if part)

    @property
    def identity(self) -> str:
        """Changes when anything does that the numbers depend on."""
        return _digest([self.config.model_dump(mode="json"), self.points, self.relative])

    @property
    def finished(self) -> bool:
        """Whether the folder holds the results of this very job."""
        return read_json(self.folder / CURVE).get("identity") == self.identity

    @property
    def begun(self) -> bool:
        return (self.folder / JOB).exists()

    def save(self) -> None:
        """Make the folder, with all that a process needs to know, and a file for the command
        ``learn``.
        """
        told = {
            "learner": self.learner,
            "name": self.name,
            "grid": self.grid,
            "start": self.start,
            "points": self.points,
            "relative": self.relative,
            "config": self.config.model_dump(mode="json"),
        }
        write_atomically(self.folder / COPY, self.config.to_toml().encode())
        write_atomically(self.folder / JOB, json.dumps(told, indent=1).encode())

    @classmethod
    def load(cls, folder: Path) -> Job:
        told = read_json(folder / JOB)
        return cls(**{**told, "config": Config.model_validate(told["config"])}, folder=folder)

    def outcome(self) -> Row:
        """What the report needs: the content of ``curve.json``, or ``failure`` with the reason why
        there is none.
        """
        named = {
            "learner": self.learner,
            "name": self.name,
            "grid": self.grid,
            "start": self.start,
            "seed": self.seed,
        }
        if self.finished:
            return read_json(self.folder / CURVE) | named | {"failure": None}
        failure = read_json(self.folder / FAILURE).get("message", "the run was not finished")
        return named | {"failure": failure}


def plan_jobs(plan: Plan, folder: Path) -> list[Job]:
    """All runs of a plan; every learner comes once before any comes twice, so that seeds are
    complete early.
    """
    comparing = plan.config.comparison
    jobs = []
    for seed in comparing.seeds:
        for start in plan.starts:
            for variant in plan.variants:
                config = plan.learn_config(variant, start, seed)
                content = config.model_dump(mode="json", exclude={"run": {"eps_evaluate"}})
                parts = [
                    slug(variant.name)[:48],
                    *([slug(start)[:24]] if start else []),
                    f"seed-{seed}",
                ]
                place = folder / "runs" / "--".join([*parts, _digest(content)[:8]])
                jobs.append(
                    Job(
                        variant.learner,
                        variant.name,
                        variant.grid,
                        start,
                        config,
                        comparing.points,
                        comparing.relative,
                        place,
                    )
                )
    return jobs


# --- one run --------------------------------------------------------------------------------------


def attempt(job: Job, progress: Callable[[Row], None]) -> None:
    """``run_job``; an exception ends in ``failure.json`` and nowhere else.

    Raises:
        KeyboardInterrupt: the run was interrupted; its checkpoint is kept.
    """
    (job.folder / FAILURE).unlink(missing_ok=True)
    try:
        run_job(job, progress)
    except Exception as error:  # whatever it is, the other runs go on
        kind = "" if isinstance(error, LearnregError) else f"{type(error).__name__}: "
        words = f"{kind}{error}".replace("without resume", "again with --overwrite")
        told = {"message": words, "traceback": traceback.format_exc()}
        write_atomically(job.folder / FAILURE, json.dumps(told, indent=1).encode())


def run_job(job: Job, progress: Callable[[Row], None]) -> None:
    """Learn (going on from a checkpoint, if there is one), measure, and write ``curve.json``.

    Args:
        job: its folder has been made by ``save``.
        progress: called with ``phase`` ("learning" or "measuring") and what is known of it.

    Raises:
        KeyboardInterrupt: the run was interrupted; its checkpoint is kept.
    """
    config = job.config
    with limited_threads(config.run.threads):
        problem, test = prepare(config)
        entry = Entry(
            job.name,
            config.build_learner(),
            config.build_hypergradient(),
            config.run.solver,
            config.build_budget(),
            config.run.seed,
            (problem, test),
            Measure(job.points, job.relative, config.run.eps_evaluate),
            job.folder,
        )
        curve = {"identity": job.identity, **measured_run(problem, test, entry, progress)}
        write_atomically(job.folder / CURVE, json.dumps(curve, indent=1, allow_nan=False).encode())


# --- all of them ----------------------------------------------------------------------------------


class Watch(Protocol):
    """Who is told how the runs go."""

    def started(self, job: Job) -> None: ...

    def update(self, job: Job, state: Row) -> None: ...

    def finished(self, job: Job) -> None: ...

    def tick(self) -> None: ...


def run_all(jobs: Sequence[Job], processes: int, watch: Watch) -> None:
    """Run the jobs in their order, in this process if there is to be only one.

    Raises:
        KeyboardInterrupt: after all processes have ended and kept their checkpoints.
    """
    for job in jobs:
        job.save()
    keep_large_blocks()
    if processes > 1:
        _run_in_processes(list(jobs), processes, watch)
        return
    for job in jobs:
        watch.started(job)
        attempt(job, lambda state, job=job: watch.update(job, state))  # type: ignore[misc]
        watch.finished(job)


def _run_in_processes(waiting: list[Job], processes: int, watch: Watch) -> None:
    running: list[tuple[Job, subprocess.Popen[bytes]]] = []
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                job = waiting.pop(0)
                running.append((job, _start(job)))
                watch.started(job)
            time.sleep(POLL)
            for job, process in list(running):
                watch.update(job, read_json(job.folder / PROGRESS))
                if process.poll() is not None:
                    running.remove((job, process))
                    _explain(job, process.returncode)
                    watch.finished(job)
            watch.tick()
    finally:
        _stop([process for _, process in running])


def _start(job: Job) -> subprocess.Popen[bytes]:
    """A process for one job, out of reach of the keyboard: Ctrl-C comes to it through this process,
    once.
    """
    for name in (PROGRESS, FAILURE):
        (job.folder / name).unlink(missing_ok=True)
    source = str(Path(__file__).parents[2])
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(job.config.run.threads or 1),
        "PYTHONPATH": os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")])),
    }
    command = [sys.executable, "-m", "learnreg.cli.jobs", str(job.folder), str(os.getpid())]
    with open(job.folder / LOG, "wb") as log:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _explain(job: Job, code: int) -> None:
    """A process that ended without a word (killed, out of memory) has failed as well."""
    if not job.finished and not (job.folder / FAILURE).exists():
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        told = {"message": f"its process was ended {how}; see {job.folder / LOG}"}
        write_atomically(job.folder / FAILURE, json.dumps(told).encode())


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Interrupt, give time for a last checkpoint, then kill."""
    for process in processes:
        if process.poll() is None:
            process.terminate() if os.name == "nt" else process.send_signal(signal.SIGINT)
    end = time.monotonic() + PATIENCE
    try:
        for process in processes:
            process.wait(max(0.0, end - time.monotonic()))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        for process in processes:
            process.kill()
            process.wait()


class _Reporter:
    """Writes ``progress.json`` now and then; ends the run when the process that started it is
    gone.
    """

    def __init__(self, folder: Path, parent: int) -> None:
        self.path, self.parent = folder / PROGRESS, parent
        self.latest, self.phase = 0.0, ""

    def __call__(self, state: Row) -> None:
        if os.name != "nt" and os.getppid() != self.parent:
            raise KeyboardInterrupt
        now = time.monotonic()
        if now - self.latest >= 2 * POLL or state["phase"] != self.phase:
            self.path.write_text(json.dumps(state), encoding="utf-8")
            self.latest, self.phase = now, state["phase"]


def main(folder: str, parent: str) -> int:
    """One job in this process: ``python -m learnreg.cli.jobs FOLDER PARENT``; the exit code."""
    # what was started in the background ignores interrupts, and clusters send the second
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    job = Job.load(Path(folder))
    keep_large_blocks()
    try:
        attempt(job, _Reporter(job.folder, int(parent)))
    except KeyboardInterrupt:
        return 130
    return 0 if job.finished else 1


# --- small things ---------------------------------------------------------------------------------


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
