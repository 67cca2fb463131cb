"""Images of ``reconstruct`` through a model: small ones of equal size together, one file's failure
kept apart from the others, in bounded memory.
"""

from __future__ import annotations

import math
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..core.errors import DataWarning, InputError, LearnregError, SolveError
from ..core.results import Solution
from ..core.status import Status, summarize
from ..data.formats import TIFF
from ..models import Demands, TrainedModel, load
from ..reports.words import evidence
from .array_files import RESULT, is_array, read_measured, write_result
from .memory import keep_large_blocks, return_free_blocks
from .pictures import Picture, read_picture, write_picture
from .reconstruct_plan import Job

BATCH = 2**18
"""Values of images of one size that are solved together: 64 of 64 x 64 pixels."""

PENDING = 2**21
"""Values that may wait for others of their size: memory is bounded however mixed a folder is."""

LARGE = 2**22
"""Values of an image from which memory is looked after between reading and solving."""

CHUNK = 32
"""Files at most that a process is given at a time."""

State = Literal["done", "missed", "failed"]


@dataclass(frozen=True)
class Outcome:
    """What has become of one image.

    Attributes:
        job: which.
        state: ``missed`` is one that ran out of time, and was written as it was.
        text: the verdict or the error.
        remarks: on its data.
    """

    job: Job
    state: State
    text: str
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """How to make the model, in this process or another.

    Attributes:
        path: the model file.
        demands: accuracy, time and memory.
        channel_wise, float64: as for ``load``.
        alone: an error is raised, not kept: there is one image only, or its traceback is wanted.
        levels: of pictures that become 0 and 1; as in training when None.
    """

    path: Path
    demands: Demands
    channel_wise: bool = False
    float64: bool = False
    alone: bool = False
    levels: tuple[float, float] | None = None

    def model(self) -> TrainedModel:
        """The model itself."""
        found = load(self.path, channel_wise=self.channel_wise, float64=self.float64)
        return found.with_demands(self.demands)


@dataclass(frozen=True)
class _Read:
    """An image that waits to be solved."""

    job: Job
    picture: Picture
    remarks: tuple[str, ...]
    noise: str = ""


def read_input(path: Path, units: tuple[float, float] | None = None) -> Picture:
    """The only place that chooses a reader.

    Args:
        units: the levels of pictures that were 0 and 1 in training.
    """
    return read_measured(path) if is_array(path) else read_picture(path, units)


def write_output(path: Path, x: Tensor, like: Picture) -> str:
    """The only place that chooses a writer; a remark on what the file cannot hold."""
    exact = path.suffix.lower() == RESULT or (is_array(like.path) and path.suffix.lower() in TIFF)
    return write_result(path, x) if exact else write_picture(path, x, like)


@contextmanager
def heard() -> Iterator[list[str]]:
    """Collects what warnings say of the data, once each; it belongs to an image, and other
    processes have no screen. All other warnings pass.
    """
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", DataWarning)
        yield texts
    for warning in found:
        if issubclass(warning.category, DataWarning):
            text = str(warning.message)
            texts += [text] if text not in texts else []
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )


class Worker:
    """A model at work on files.

    Args:
        model: applied to them.
        recipe: how it was made.
        progress: told the job at hand, and the share of it that is done.
    """

    def __init__(
        self,
        model: TrainedModel,
        recipe: Recipe,
        progress: Callable[[Job, float], None] | None = None,
    ) -> None:
        self.model, self.recipe = model, recipe
        self.progress = progress or (lambda job, share: None)

    def run(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """The outcome of every job, as they come.

        Raises:
            InputError: a result that cannot be written; of one image alone also its own errors.
            SolveError: of one image alone.
        """
        waiting: dict[tuple[int, ...], list[_Read]] = {}
        for job in jobs:
            self.progress(job, 0.0)
            read = self._read(job)
            if isinstance(read, Outcome):
                yield read
                continue
            key = tuple(read.picture.pixels.shape)
            group = waiting.setdefault(key, [])
            group.append(read)
            if len(group) * math.prod(key) >= self._together:
                yield from self._solved(waiting.pop(key))
            elif sum(len(g) * math.prod(k) for k, g in waiting.items()) > PENDING:
                largest = max(waiting, key=lambda k: len(waiting[k]) * math.prod(k))
                yield from self._solved(waiting.pop(largest))
        for group in waiting.values():
            yield from self._solved(group)

    @property
    def _together(self) -> int:
        """Values that make a batch; a limit of time is one of a single image."""
        return 1 if self.recipe.demands.max_seconds else BATCH

    def _read(self, job: Job) -> _Read | Outcome:
        with heard() as remarks:
            try:
                picture = read_input(job.source, self.recipe.levels or self.model.units)
            except Exception as error:  # readers fail in many ways on damaged files
                return self._failed(job, error)
        if picture.pixels.numel() > LARGE:
            return_free_blocks()  # why: reading takes several copies in float64
        return _Read(job, picture, tuple(remarks))

    def _failed(self, job: Job, error: Exception) -> Outcome:
        """The outcome of a job that cannot be done.

        Raises:
            Exception: the error itself, where there is no other image.
        """
        named = _named(job, error, self.recipe.float64)
        if self.recipe.alone:
            if named is error:
                raise error
            raise named from error
        return Outcome(job, "failed", str(named) if str(named) else type(error).__name__)

    def _solved(self, group: list[_Read]) -> Iterator[Outcome]:
        """One batch, or image by image if that fails: it may be the fault of one of them."""
        first = group[0].job
        try:
            y = torch.stack([read.picture.pixels for read in group])
            with heard() as remarks:
                solution = self.model.reconstruct(
                    y, lambda share: self.progress(first, share), throw=False
                )
            group = self._remarked(group, y, remarks)
        except Exception as error:  # whatever it is, the other files are not to pay for it
            if len(group) == 1:
                yield self._failed(first, error)
                return
            solution = None
        if solution is None:
            for read in group:
                yield from self._solved([read])
            return
        for index, read in enumerate(group):
            yield self._finished(read, solution, index)

    def _remarked(self, group: list[_Read], y: Tensor, heard: list[str]) -> list[_Read]:
        """What was said of a batch y, with the images that it is about; what is about none of them
        stands with the first.
        """
        own = self.model.noise_remarks(y) if len(group) > 1 else [None]
        texts = [[] if text is None else [text] for text in own]
        texts[0] = [*(text for text in heard if text not in own), *texts[0]]
        levels = self.model.estimated_levels(y)
        return [
            replace(
                read,
                remarks=(*read.remarks, *more),
                noise=f"; noise estimated at {', '.join(f'{x:.2g}' for x in found)}"
                if found
                else "",
            )
            for read, more, found in zip(group, texts, levels, strict=True)
        ]

    def _finished(self, read: _Read, solution: Solution, index: int) -> Outcome:
        """Write one image of a batch; an output that fails is everybody's."""
        job, status = read.job, solution.status[index]
        distance = float(solution.error[index])
        if not status.ok and status is not Status.BUDGET:
            words = f"{summarize([status])}. Reached ({solution.words}): {distance:.2e}."
            return self._failed(job, SolveError(words, solution))
        if solution.value[index].numel() > LARGE:
            return_free_blocks()
        with heard() as remarks:
            note = write_output(job.target, solution.value[index], read.picture)
        remarks = [*read.remarks, *remarks]
        verdict = self._verdict(read.picture, solution, index) + read.noise
        if status.ok:
            return Outcome(job, "done", verdict + note, tuple(remarks))
        limit = f"; not reached within {self.recipe.demands.max_seconds:g} s"
        return Outcome(job, "missed", verdict + limit + note, tuple(remarks))

    def _verdict(self, picture: Picture, solution: Solution, index: int) -> str:
        """How far the result can be from the exact one, over the whole image and per pixel."""
        image = solution.value[index]
        channels, count = image.shape[0], image.numel()
        asked = self.recipe.demands.distance(count)
        distance = float(solution.error[index])
        same = image.shape == picture.pixels.shape
        apart = same and channels > 1 and self.model.apart(channels)
        colours = {1: "grey", 3: "colour"}.get(channels, f"{channels} channels")
        theorem = solution.theorem[index] if solution.theorem else ""
        return (
            f"{' x '.join(map(str, image.shape[1:]))}, {colours}"
            f"{', channels one by one' if apart else ''}; {solution.kind.label} distance to the "
            f"exact minimizer <= {distance:.2e} over the image (eps {asked:.2e}), "
            f"{distance / math.sqrt(count):.1e} per pixel"
            f"{f', by {evidence(theorem)}' if theorem else ''}"
        )


def _named(job: Job, error: Exception, float64: bool) -> Exception:
    """The error with the name of the file in it."""
    source = str(job.source)
    if isinstance(error, SolveError):
        hint = "" if float64 else " The option --float64 reaches further."
        return SolveError(f"{source}: {error}{hint}", error.solution)
    if isinstance(error, InputError):
        if source in str(error):
            return error
        return InputError(source, given=error.given, expected=error.expected, remedy=error.remedy)
    if isinstance(error, LearnregError | OSError):
        return LearnregError(f"{source}: {error}")
    return error


# --- several processes ----------------------------------------------------------------------------


_worker: list[Worker] = []
"""The one of this process, if it is one of several."""


def _begin(recipe: Recipe) -> None:
    """Called once in every process."""
    # Ctrl-C goes to the whole group: the first process decides what happens
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    keep_large_blocks()
    _worker[:] = [Worker(recipe.model(), recipe)]


def _chunk(jobs: Sequence[Job]) -> list[Outcome]:
    return list(_worker[0].run(jobs))


def in_processes(recipe: Recipe, jobs: Sequence[Job], processes: int) -> Iterator[Outcome]:
    """The outcome of every job from several processes, with a few chunks under way at a time.

    Raises:
        InputError: a result that cannot be written, a process that was ended from outside.
    """
    each = replace(recipe.demands, memory=max(1, recipe.demands.bytes // processes))
    size = max(1, min(CHUNK, -(-len(jobs) // (4 * processes))))
    chunks = iter([jobs[i : i + size] for i in range(0, len(jobs), size)])
    pool = ProcessPoolExecutor(
        processes, get_context("spawn"), _begin, (replace(recipe, demands=each),)
    )
    running: set[Future[list[Outcome]]] = set()
    try:
        while True:
            for chunk in chunks:
                running.add(pool.submit(_chunk, chunk))
                if len(running) >= 2 * processes:
                    break
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield from future.result()
    except BrokenProcessPool as error:
        raise InputError(
            "--processes",
            given=f"{processes}, of which one was ended from outside",
            expected="processes that live until they are done",
            remedy="Memory may be short: use fewer of them, or say --memory.",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
