"""The command ``demo``: photographs to a report in one go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def run_demo(output: Path, seconds: float, seed: int, resume: bool, console: Console) -> None:
    """To be written."""
    raise NotImplementedError
