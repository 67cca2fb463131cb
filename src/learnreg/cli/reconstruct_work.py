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
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from ..core.errors import DataWarning, InputError, SolveError
from ..core.results import Solution
from ..core.status import Status, summarize
from ..data.formats import TIFF
from ..data.scans import is_scan
from ..models import Demands, TrainedModel, load
from .array_files import RESULT, is_array, read_measured, write_result
from .memory import keep_large_blocks, return_free_blocks
from .outcomes import Outcome, verdict, with_name
from .pictures import Picture, read_picture, write_picture
from .reconstruct_plan import Job
from .scan_files import ScanStack, scan_of, scan_picture
from .stack_files import OUTPUT, Stack, once

BATCH = 2**18
"""Values of images of one size that are solved together: 64 of 64 x 64 pixels."""

PENDING = 2**21
"""Values that may wait for others of their size: memory is bounded however mixed a folder is."""

LARGE = 2**22
"""Values of an image from which memory is looked after between reading and solving."""

CHUNK = 32
"""Files at most that a process is given at a time."""


@dataclass(frozen=True)
class Recipe:
    """How to make the model, in this process or another.

    Attributes:
        path: the model file.
        demands: accuracy, time and memory.
        channel_wise, float64: as for ``load``.
        alone: an error is raised, not kept: there is one image only, or its traceback is wanted.
        debug: also that of one page among others.
        levels: of pictures that become 0 and 1; as in training when None.
    """

    path: Path
    demands: Demands
    channel_wise: bool = False
    float64: bool = False
    alone: bool = False
    debug: bool = False
    levels: tuple[float, float] | None = None

    def model(self) -> TrainedModel:
        """The model itself."""
        found = load(self.path, channel_wise=self.channel_wise, float64=self.float64)
        found = found.with_demands(self.demands)
        return found if self.levels is None else found.with_units(self.levels)


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
            if job.pages is not None or scan_of(job, self.model):
                yield self._stack(job)
                continue
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

    def _stack(self, job: Job) -> Outcome:
        """A stack, page by page; it needs no others of its size."""
        kind = Stack if job.pages is not None else ScanStack
        stack = kind(
            job,
            self.model,
            self._together,
            float64=self.recipe.float64,
            progress=partial(self.progress, job),
            debug=self.recipe.debug,
        )
        with heard() as remarks:
            try:
                found = stack.run()
            except Exception as error:
                if isinstance(error, InputError) and error.what == OUTPUT:
                    raise  # an output that fails is everybody's
                return self._failed(job, error)
        return replace(found, remarks=(*found.remarks, *once(remarks)))

    @property
    def _together(self) -> int:
        """Values that make a batch; a limit of time is one of a single image."""
        return 1 if self.recipe.demands.max_seconds else BATCH

    def _read(self, job: Job) -> _Read | Outcome:
        with heard() as remarks:
            try:
                picture = (
                    scan_picture(job.source, self.model)
                    if is_scan(job.source) and self.model.takes_images
                    else read_input(job.source, self.model.units)
                )
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
        named = with_name(str(job.source), error, self.recipe.float64)
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
        words = verdict(self.model, read.picture, solution, index) + read.noise
        if status.ok:
            return Outcome(job, "done", words + note, tuple(remarks))
        limit = f"; not reached within {self.recipe.demands.max_seconds:g} s"
        return Outcome(job, "missed", words + limit + note, tuple(remarks))


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
