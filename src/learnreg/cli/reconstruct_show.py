"""What ``reconstruct`` shows while it works: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .guard import say
from .outcomes import Outcome
from .reconstruct_plan import Job

INTERVAL = 5.0
"""Seconds between two lines about one image."""


class ReconstructProgress:
    """Use it as a context manager.

    Args:
        console: where to draw.
        count: images that there are.
    """

    def __init__(self, console: Console, count: int) -> None:
        self.console, self.count, self.done = console, count, 0
        self._told = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> ReconstructProgress:
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._task = self._bar.add_task("", total=self.count)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def at(self, job: Job, share: float) -> None:
        """An image is being worked on."""
        if self._bar is not None:
            name = f"{job.source.name} {share:.0%}" if share else job.source.name
            self._bar.update(self._task, description=name)
        elif share and time.monotonic() - self._told > INTERVAL:
            self._say(f"{job.source}: {share:.0%}")

    def finished(self, outcome: Outcome) -> None:
        """An image is done."""
        self.done += 1
        job = outcome.job
        for remark in outcome.remarks:
            self._say(f"warning: {remark}")
        if outcome.state == "failed":
            text = outcome.text.removeprefix(f"{job.source}: ")
            self._say(f"{job.source}: failed: {text}")
        else:
            self._say(f"{job.source} -> {job.target}: {outcome.text}")
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done)

    def _say(self, text: str) -> None:
        self._told = time.monotonic()
        say(self.console, text)
