"""Live progress of a comparison: a line for each run that is going on, and a bar over all; plain
lines in a file.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from ..core.objective import Row
from .guard import say
from .jobs import Job

COLUMNS = ("learner", "start", "seed", "step", "loss", "work/image", "seconds")
EVERY = 15.0
"""Seconds between two plain lines about the same run."""


class CompareProgress:
    """What ``run_all`` tells, shown; use it as a context manager.

    Args:
        console: where to draw; a terminal gets a live table, anything else lines.
        jobs: all of them, finished ones included.
    """

    def __init__(self, console: Console, jobs: Sequence[Job]) -> None:
        self.console, self.jobs = console, list(jobs)
        self.budget = self.jobs[0].config.build_budget()
        self.done = sum(job.finished for job in self.jobs)
        self.failed = 0
        self.running: dict[str, tuple[Job, Row, float]] = {}
        self._said: dict[str, float] = {}
        self._live: Live | None = None

    def __enter__(self) -> CompareProgress:
        if self.console.is_terminal:
            self._live = Live(
                get_renderable=self._render, console=self.console, refresh_per_second=4
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def started(self, job: Job) -> None:
        """A run begins, or goes on."""
        self.running[job.title] = job, {}, time.monotonic()
        self._said[job.title] = time.monotonic()
        self._line(job, "started")

    def update(self, job: Job, state: Row) -> None:
        """What a run reports; the same state for a second time is no news."""
        _, before, _ = self.running[job.title]
        if not state or state == before:
            return
        self.running[job.title] = job, state, time.monotonic()
        if self._live is not None:
            self._live.refresh()
        if time.monotonic() - self._said[job.title] >= EVERY:
            self._said[job.title] = time.monotonic()
            self._line(job, "  ".join(text for text in self._words(state) if text))

    def finished(self, job: Job) -> None:
        """A run is over, one way or the other."""
        del self.running[job.title]
        good = job.finished
        self.done, self.failed = self.done + good, self.failed + (not good)
        outcome = job.outcome()
        self._line(job, self._result(outcome) if good else f"failed: {outcome['failure']}")
        if self._live is not None and not good:
            say(self._live.console, f"{job.title}: failed: {outcome['failure']}")

    def tick(self) -> None:
        """Time has passed; the live table refreshes itself."""

    def share(self) -> float:
        """How much of all is done, runs that are going on by their budget."""
        now = time.monotonic()
        running = sum(self._part(state, now - since) for _, state, since in self.running.values())
        return min(1.0, (self.done + self.failed + running) / len(self.jobs))

    def _part(self, state: Row, waited: float) -> float:
        """The part of one run that is done; measuring afterwards is the last tenth."""
        if state.get("phase") == "measuring":
            return 0.9 + 0.1 * state["done"] / state["of"]
        if not state:
            return 0.0
        used = (
            (state["seconds"] + waited, self.budget.seconds),
            (state["work"], self.budget.work),
            (state["step"], self.budget.steps),
        )
        return 0.9 * min(1.0, max(amount / limit for amount, limit in used if limit is not None))

    def _line(self, job: Job, text: str) -> None:
        if self._live is None:
            say(self.console, f"[{self.done + self.failed}/{len(self.jobs)}] {job.title}: {text}")

    @staticmethod
    def _result(outcome: Row) -> str:
        last = outcome["points"][-1]
        loss = "not known" if last["loss"] is None else f"{last['loss']:.6g}"
        return f"{outcome['steps']} steps, exact loss {loss}; {outcome['stop'][1]}"

    def _words(self, state: Row, waited: float = 0.0) -> tuple[str, str, str, str]:
        """step, loss, work and seconds as text."""
        if not state:
            return "preparing", "", "", ""
        if state["phase"] == "measuring":
            return f"measuring {state['done']} of {state['of']}", "", "", ""
        loss = "-" if state["loss"] is None else f"{state['loss']:.5g}"
        limit = "" if self.budget.seconds is None else f" of {self.budget.seconds:g}"
        plain = self._live is None
        return (
            f"step {state['step']}",
            f"loss {loss}" if plain else loss,
            f"work/image {state['work']:.0f}" if plain else f"{state['work']:.0f}",
            f"{state['seconds'] + waited:.0f}{limit} s",
        )

    def _render(self) -> RenderableType:
        """The table and the bar."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in COLUMNS:
            table.add_column(
                title, justify="left" if title in ("learner", "start") else "right", no_wrap=True
            )
        now = time.monotonic()
        for job, state, since in list(self.running.values()):
            table.add_row(
                job.name, job.start or "-", str(job.seed), *self._words(state, now - since)
            )
        bar = Table.grid(padding=(0, 1))
        failed = f", {self.failed} failed" if self.failed else ""
        bar.add_row(
            ProgressBar(total=1.0, completed=self.share(), width=40),
            f"{self.done} of {len(self.jobs)} runs finished{failed}",
        )
        return Group(table, bar) if self.running else bar
