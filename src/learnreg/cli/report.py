"""The command ``report``: the page of a run that was learned before; nothing is solved again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..reports import Report
from .guard import say

if TYPE_CHECKING:
    from rich.console import Console


def run_report(folder: Path, console: Console) -> None:
    """Render ``index.html`` and the figures of a folder again.

    Raises:
        InputError: ``run.json`` or ``run.safetensors`` is missing.
        ModelFileError: they are damaged, or do not belong together.
    """
    report = Report.load(folder)
    page = report.save(folder)
    say(console, f"{report}\n\nReport: {page}")
