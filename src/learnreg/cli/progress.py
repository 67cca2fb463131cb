"""Live progress of a learning run: a table of the latest steps and a bar against the budget; plain
lines in a file.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable
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
    "validation_psnr": "held-out",
    "eps": "eps",
    "delta": "delta",
    "step_size": "step size",
    "trials": "trials",
    "work": "work/image",
    "seconds": "seconds",
}
MEANING = {
    "loss": "of the training images, mean",
    "psnr": "of their reconstructions, dB",
    "validation_psnr": "the same of the validation images",
    "eps": "distance within which the reconstructions were computed",
    "delta": "residual of the hypergradient",
    "trials": "points tried by the step",
    "work": "evaluations of the energy for each image",
}
"""Columns explained, once for a run."""

FIRST_TO_GO = ("delta", "step_size", "trials", "eps", "work", "seconds", "validation_psnr", "psnr")
"""What a narrow terminal does without, in this order."""

WIDTHS = {"loss": 7, "step_size": 9, "eps": 7, "delta": 7, "validation_psnr": 8, "work": 10}
"""Of a column, and of those that are not named 7; two spaces stand between them."""

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
        self._explained = False
        self._pace = _Pace(budget, images)

    def __enter__(self) -> LearnProgress:
        self._since = time.perf_counter()
        if not self.console.is_terminal:
            say(self.console, START)
        else:
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
        if not self._explained:
            self._explained = True
            say(self.console, explanation(self._columns(row)))
        self.rows.append(row)
        self._pace.add(row)
        self._since = time.perf_counter()
        if self._live is None:
            left = self._pace.left()
            say(
                self.console,
                "  ".join(
                    [
                        *(f"{COLUMNS[key]} {self._cell(row, key)}" for key in self._columns(row)),
                        *([] if left is None else [f"left {clock(left)}"]),
                    ]
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

    def _columns(self, row: Row) -> list[str]:
        """What is shown: a run without validation has no column for it, and a narrow terminal
        fewer.
        """
        shown = [key for key in COLUMNS if key != "validation_psnr" or key in row]
        for key in FIRST_TO_GO if self._live is not None else ():
            if sum(WIDTHS.get(k, 7) + 2 for k in shown) - 2 > self.console.width and key in shown:
                shown.remove(key)
        return shown

    def _cell(self, row: Row, key: str) -> str:
        """A number as text; what a step does not have is a dash."""
        formats = {
            "step": "d",
            "loss": ".5g",
            "psnr": ".2f",
            "validation_psnr": ".2f",
            "trials": "d",
            "work": ".0f",
            "seconds": ".1f",
        }
        value = row["work"] / self.images if key == "work" else row.get(key)
        return _show(value, formats.get(key, ".1e"))

    def _render(self) -> RenderableType:
        """The table and the bar."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        rows = list(self.rows)
        shown = self._columns(rows[-1]) if rows else []
        for key in shown:
            table.add_column(COLUMNS[key], justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*(self._cell(row, key) for key in shown))
        spent = self.spent()
        share = max((used / limit for used, limit, _ in spent), default=0.0)
        words = ", ".join(f"{used:.0f} of {limit:g} {unit}" for used, limit, unit in spent)
        left = self._pace.left(time.perf_counter() - self._since)
        words += "" if left is None else f"; at most {clock(left)} left"
        length = min(40, self.console.width)
        parts: list[RenderableType] = [table] if rows else [START]
        bar = ProgressBar(total=1.0, completed=min(share, 1.0), width=length)
        if length + 1 + len(words) > self.console.width:
            return Group(*parts, bar, words)
        line = Table.grid(padding=(0, 1))
        line.add_row(bar, words)
        return Group(*parts, line)


START = "Solving the lower level at the start ..."


class _Pace:
    """How long the budget lasts at the pace of the latest rows."""

    def __init__(self, budget: Budget, images: int) -> None:
        self.budget, self.images = budget, images
        self.rows: deque[Row] = deque(maxlen=SHOWN)

    def add(self, row: Row) -> None:
        self.rows.append(row)

    def left(self, since: float = 0.0) -> float | None:
        """Seconds until the first limit is reached; None where no limit can be told in seconds.

        Args:
            since: seconds since the latest row.
        """
        if not self.rows:
            return None
        first, last = self.rows[0], self.rows[-1]
        took = last["seconds"] - first["seconds"]
        found = []
        if self.budget.seconds is not None:
            found.append(self.budget.seconds - last["seconds"])
        for limit, key, unit in (
            (self.budget.work, "work", self.images),
            (self.budget.steps, "step", 1),
        ):
            made = (last[key] - first[key]) / unit
            if limit is not None and made > 0:
                found.append((limit - last[key] / unit) * took / made)
        return max(0.0, min(found) - since) if found else None


def explanation(columns: Iterable[str]) -> str:
    """What the columns mean.

    Args:
        columns: keys of ``COLUMNS``.
    """
    words = (f"{COLUMNS[key]}: {MEANING[key]}" for key in columns if key in MEANING)
    return "; ".join(words) + "."


def clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> clock(5), clock(125), clock(7384)
    ('0:05', '2:05', '2:03:04')
    """
    whole = round(seconds)
    minutes = f"{whole // 60 % 60}:{whole % 60:02d}"
    return minutes if whole < 3600 else f"{whole // 3600}:{minutes:0>5}"


def _show(value: float | None, spec: str) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    return format(int(value) if spec == "d" else value, spec)
