"""What pages and tables ask of a report, so that they need not know how it is made."""

from __future__ import annotations

from typing import Protocol

from ..core import Evaluation
from ..core.objective import Row
from .columns import Column, Measured
from .pairing import ComparedRun, Summary
from .statistics import Paired
from .stored import SavedRun


class Content(Protocol):
    """A report of runs."""

    runs: dict[str, SavedRun]
    evaluations: dict[str, Evaluation]
    baselines: dict[str, Measured]
    settings: dict[str, object]

    @property
    def first(self) -> Evaluation: ...
    @property
    def columns(self) -> list[Column]: ...
    def table(self) -> list[Row]: ...
    def pairs(self) -> list[Paired]: ...
    def worse(self, name: str) -> list[int]:
        """Images on which a method has a lower PSNR than the input."""
        ...


class Compared(Protocol):
    """A comparison of learners."""

    runs: tuple[ComparedRun, ...]

    def table(self) -> list[Summary]: ...
