"""The command ``report``: the page of an earlier run or comparison; nothing is solved again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..reports import Comparison, Report
from ..reports.comparison import FILE
from .guard import say

if TYPE_CHECKING:
    from rich.console import Console


def run_report(folder: Path, console: Console) -> None:
    """Render ``index.html`` and the figures of a folder again.

    Raises:
        InputError: ``run.json`` or ``run.safetensors`` is missing.
        ModelFileError: they, or ``comparison.json``, are damaged, or do not belong together.
    """
    report = Comparison.load(folder) if (folder / FILE).exists() else Report.load(folder)
    page = report.save(folder)
    say(console, f"{report}\n\nReport: {page}")
