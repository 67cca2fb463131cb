"""Live progress of a learning run: a table of the latest steps and a bar against the budget; plain
lines in a file.
"""

from __future__ import annotations

import math
import time
from collections import deque
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from ..core.objective import Row
from ..runs import Budget
from .guard import say

COLUMNS = {
    "step": "step",
    "loss": "loss",
    "psnr": "PSNR",
    "eps": "eps",
    "delta": "delta",
    "step_size": "step size",
    "trials": "trials",
    "work": "work/image",
    "seconds": "seconds",
}
SHOWN = 12


class LearnProgress:
    """A callback for ``learn(progress=...)``; use it as a context manager.

    Args:
        console: where to draw; a terminal gets a live table, anything else one line per step.
        budget: what the bar measures.
        images: number of training images, for the work per image.
    """

    def __init__(self, console: Console, budget: Budget, images: int) -> None:
        self.console, self.budget, self.images = console, budget, images
        self.rows: deque[Row] = deque(maxlen=SHOWN)
        self._since = time.perf_counter()
        self._live: Live | None = None

    def __enter__(self) -> LearnProgress:
        self._since = time.perf_counter()
        if self.console.is_terminal:
            self._live = Live(
                get_renderable=self._render, console=self.console, refresh_per_second=2
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

    def __call__(self, row: Row) -> None:
        """One more row of the record."""
        self.rows.append(row)
        self._since = time.perf_counter()
        if self._live is None:
            say(
                self.console,
                "  ".join(
                    f"{title} {text}"
                    for title, text in zip(COLUMNS.values(), self._cells(row), strict=True)
                ),
            )
        else:
            self._live.refresh()

    def spent(self) -> list[tuple[float, float, str]]:
        """(used, limit, unit) of every limit of the budget; seconds run on between two steps."""
        row = self.rows[-1] if self.rows else {"seconds": 0.0, "work": 0, "step": 0}
        seconds = row["seconds"] + time.perf_counter() - self._since
        used = (
            (seconds, self.budget.seconds, "s"),
            (row["work"] / self.images, self.budget.work, "evaluations per image"),
            (row["step"], self.budget.steps, "steps"),
        )
        return [(amount, limit, unit) for amount, limit, unit in used if limit is not None]

    def _cells(self, row: Row) -> list[str]:
        """A row as text; what a step does not have is a dash."""
        formats = {
            "step": "d",
            "loss": ".5g",
            "psnr": ".2f",
            "trials": "d",
            "work": ".0f",
            "seconds": ".1f",
        }
        values = {**row, "work": row["work"] / self.images}
        return [_show(values.get(key), formats.get(key, ".1e")) for key in COLUMNS]

    def _render(self) -> RenderableType:
        """The table and the bar."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in COLUMNS.values():
            table.add_column(title, justify="right", no_wrap=True)
        for row in list(self.rows):
            table.add_row(*self._cells(row))
        spent = self.spent()
        share = max((used / limit for used, limit, _ in spent), default=0.0)
        bar = Table.grid(padding=(0, 1))
        words = ", ".join(f"{used:.0f} of {limit:g} {unit}" for used, limit, unit in spent)
        bar.add_row(ProgressBar(total=1.0, completed=min(share, 1.0), width=40), words)
        return Group(table if self.rows else "Solving the lower level at the start ...", bar)


def _show(value: float | None, spec: str) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    return format(int(value) if spec == "d" else value, spec)
