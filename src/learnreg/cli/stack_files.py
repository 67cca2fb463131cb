"""Stacks through a model: page by page, in bounded memory, the result whole or absent."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..core.errors import SolveError
from ..core.results import Solution
from ..core.status import Status, summarize
from ..data.formats import read_raw, size_of
from ..data.stacks import named, series_remarks
from ..data.stacks_out import StackWriter
from ..data.units import Facts
from ..models import TrainedModel
from .memory import return_free_blocks
from .outcomes import Outcome, State, verdict, with_name
from .pictures import Picture, joined, read_facts, remarks_for, rounding, stored, unwritable
from .reconstruct_plan import Job

SHOWN = 8
"""Pages at most of which each has a line of its own; of more there is the worst."""

LARGE = 2**22
"""Values of a page from which memory is looked after between pages."""

OUTPUT = "--output"
"""What an error is about that concerns all files."""


@dataclass(frozen=True)
class Page:
    """A page that is done.

    Attributes:
        number: from 0.
        picture: as it was read; None if it cannot be.
        solution, index: the result and its place in it; None for a page that failed.
        error: why it failed.
    """

    number: int
    picture: Picture | None
    solution: Solution | None = None
    index: int = 0
    error: Exception | None = None


class Stack:
    """A stack at work; made for one run.

    Args:
        job: with the number of pages.
        model: applied to them.
        together: values of pages of one size that are solved at once.
        float64: the model computes in double precision, for messages.
        progress: told the share of the work that is done.
        debug: the first error of a page is raised.
    """

    def __init__(
        self,
        job: Job,
        model: TrainedModel,
        together: int,
        *,
        float64: bool = False,
        progress: Callable[[float], None] | None = None,
        debug: bool = False,
    ) -> None:
        self.job, self.model, self.together = job, model, together
        self.float64, self.debug = float64, debug
        self.progress = progress or (lambda share: None)
        self.count = job.pages or 1
        self._facts: list[tuple[Picture, Facts]] = []
        self._lines: list[str] = []
        self._bad: list[str] = []
        self._worst, self._worst_line = -1.0, ""
        self._rounded, self._notes = -1.0, list[str]()
        self._missed = 0

    def run(self) -> Outcome:
        """Reconstruct every page and write the stack.

        Raises:
            InputError: the result cannot be written; no page could be reconstructed.
            SolveError: as the latter, if the first page missed what was asked for.
        """
        target = self.job.target
        part = target.with_name(f".{os.getpid()}.{target.name}")
        try:
            more = self._into(part)
            os.replace(part, target)
        except OSError as error:
            raise unwritable(target, error) from error
        finally:
            part.unlink(missing_ok=True)
        return self._outcome(more)

    def _into(self, part: Path) -> list[str]:
        """Write all pages to a file; remarks on what it does not hold."""
        with StackWriter(part, self.job.source) as writer:
            for page in self._pages():
                self._write(writer, page)
                self.progress((page.number + 1) / self.count)
        return writer.remarks

    # --- reading and solving ----------------------------------------------------------------------

    def _pages(self) -> Iterator[Page]:
        """All pages in their order, done or failed."""
        group: list[Page] = []
        for number in range(self.count):
            page = self._taken(number)
            if group and not _goes_with(page, group[0]):
                yield from self._solved(group)
                group = []
            if page.picture is None:
                yield page
                continue
            group.append(page)
            if len(group) * page.picture.pixels.numel() >= self.together:
                yield from self._solved(group)
                group = []
        if group:
            yield from self._solved(group)

    def _taken(self, number: int) -> Page:
        """A page as it is read."""
        try:
            picture, facts = self._picture(number)
        except Exception as error:  # readers fail in many ways on damaged files
            return self._failed(Page(number, None), error)
        self._facts.append((replace(picture, pixels=torch.empty(0)), facts))
        return Page(number, picture)

    def _picture(self, number: int) -> tuple[Picture, Facts]:
        return read_facts(self.job.source, self.model.units, number)

    def _failed(self, page: Page, error: Exception) -> Page:
        """The page with its error; the other pages are not to pay for it.

        Raises:
            Exception: the error itself, where it is wanted, or where every page has failed.
        """
        where = named(self.job.source, page.number)
        told = with_name(where, error, self.float64)
        if self.debug or len(self._bad) + 1 == self.count:
            raise told from error
        self._bad.append(f"{where}: {str(told).removeprefix(f'{where}: ') or type(told).__name__}")
        return replace(page, error=told)

    def _solved(self, group: list[Page]) -> Iterator[Page]:
        """A batch, or page by page if that fails."""
        pictures = [page.picture for page in group if page.picture is not None]
        try:
            y = torch.stack([picture.pixels for picture in pictures])
            if y.numel() > LARGE:
                return_free_blocks()
            solution = self.model.reconstruct(y, throw=False)
        except Exception as error:  # it may be the fault of one of them
            if len(group) == 1:
                yield self._failed(group[0], error)
                return
            for page in group:
                yield from self._solved([page])
            return
        for index, page in enumerate(group):
            status = solution.status[index]
            if status.ok or status is Status.BUDGET:
                self._missed += status is Status.BUDGET
                yield replace(page, solution=solution, index=index)
                continue
            reached = float(solution.error[index])
            words = f"{summarize([status])}. Reached ({solution.words}): {reached:.2e}."
            yield self._failed(page, SolveError(words, solution))

    # --- writing ----------------------------------------------------------------------------------

    def _write(self, writer: StackWriter, page: Page) -> None:
        if page.picture is None:
            writer.write(self._salvaged(page.number))
            return
        value = page.picture.pixels if page.solution is None else page.solution.value[page.index]
        x = value.detach().cpu().double()
        pixels, white = stored(x, page.picture)
        writer.write(pixels, white)
        if page.solution is not None:
            self._note(page, page.picture, x, page.solution)

    def _salvaged(self, number: int) -> np.ndarray:
        """What can be had of a page that could not be taken: its numbers, or zeros."""
        source = self.job.source
        try:
            pixels = read_raw(source, number, check=False).pixels
            if pixels.ndim == 2 or pixels.shape[2] == 3:
                return pixels
            return pixels[:, :, 0]
        except Exception:  # why all: damaged pages leave a gap, not an end
            try:
                shape = size_of(source, number)
            except Exception:  # why all: as above
                shape = (1, 1)
            return np.zeros(shape, self._facts[-1][0].dtype if self._facts else np.uint8)

    def _note(self, page: Page, picture: Picture, x: Tensor, solution: Solution) -> None:
        """Keep what is to be said of a page."""
        self._verdict(page, picture, x, solution)
        distance, notes = rounding(x, picture)
        if distance > self._rounded:
            self._rounded, self._notes = distance, notes

    def _verdict(self, page: Page, picture: Picture, x: Tensor, solution: Solution) -> None:
        """Keep how far a page can be from the exact result."""
        words = verdict(self.model, picture, solution, page.index)
        if self.count <= SHOWN:
            self._lines.append(f"\n  #{page.number}: {words}")
        worst = float(solution.error[page.index]) / math.sqrt(x.numel())
        if worst > self._worst:
            self._worst, self._worst_line = worst, f"the worst, #{page.number}: {words}"

    def _outcome(self, more: list[str]) -> Outcome:
        done = self.count - len(self._bad)
        pages = f"{self.count} pages" if not self._bad else f"{done} of {self.count} pages"
        notes = [f"{note} at most" if "from the result" in note else note for note in self._notes]
        text = f"{pages}{joined([*notes, *more])}"
        text += "".join(self._lines) if self._lines else f"; {self._worst_line}"
        if self.count == 1:  # a scan of one slice
            text = self._worst_line.partition(": ")[2] + joined([*notes, *more])
        if self._missed:
            limit = self.model.demands.max_seconds or 0.0
            text += f"; {self._missed} not reached within {limit:g} s each"
        remarks = [
            *series_remarks(self.job.source),
            *(remarks_for(self._facts, self.model.units) if self._facts else []),
        ]
        state: State = "partly" if self._bad else "missed" if self._missed else "done"
        return Outcome(self.job, state, text, tuple(remarks), tuple(self._bad))


def once(texts: Sequence[str]) -> list[str]:
    """Remarks that only differ in their numbers as one, which says how often it was made.

    >>> once(["noise 0.1", "noise 0.2", "blank"])
    ['noise 0.1 (And so for 1 further of its pages, with other numbers.)', 'blank']
    """
    alike: dict[str, list[str]] = {}
    for text in texts:
        alike.setdefault(re.sub(r"[0-9.]+(e[+-]?[0-9]+)?", "", text), []).append(text)
    return [
        first
        + (f" (And so for {len(more)} further of its pages, with other numbers.)" if more else "")
        for first, *more in alike.values()
    ]


def _goes_with(page: Page, first: Page) -> bool:
    """Whether two pages can be solved together."""
    if page.picture is None or first.picture is None:
        return False
    return page.picture.pixels.shape == first.picture.pixels.shape
