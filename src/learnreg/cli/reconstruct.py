"""The command ``reconstruct``: a learned model applied to image files, with a certified distance
per image.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
import typer

from ..core.errors import InputError
from ..models import Demands, TrainedModel, find_model
from ..models.accuracy import PER_PIXEL, Quality
from ..models.noise import parse_sigma
from .guard import SOME_FAILED, Interrupted, say
from .memory import keep_large_blocks
from .outcomes import Outcome
from .reconstruct_plan import Job, check_targets, plan
from .reconstruct_show import ReconstructProgress
from .reconstruct_work import Recipe, Worker, in_processes
from .scan_files import keeping_scans

if TYPE_CHECKING:
    from rich.console import Console

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}

MOST_PROCESSES = 4
"""Per core: more only take memory from each other."""


def run_reconstruct(
    model: Path,
    inputs: Sequence[Path],
    output: str,
    console: Console,
    *,
    eps: float | None = None,
    quality: str | None = None,
    sigma: str | None = None,
    max_seconds: float | None = None,
    channel_wise: bool = False,
    float64: bool = False,
    memory: str | None = None,
    processes: int = 1,
    skip_existing: bool = False,
    levels: str | None = None,
    debug: bool = False,
) -> None:
    """Reconstruct every input and write it.

    One file that fails does not stop the others: failures are listed at the end. What concerns
    all of them, the model or the output, stops at once.

    Args:
        model: a ``model.safetensors``, or the folder of a run.
        inputs: image files, or folders of them.
        output: a file for one input, a folder for several; made if it does not exist.
        console: where to say what was reached.
        eps: distance to the exact minimizer over all pixels of an image; by ``quality`` when None.
        quality: ``draft`` or ``fine`` (when None), see ``models.accuracy``.
        sigma: noise level in words, ``auto`` to estimate it; that of the model when None.
        max_seconds: of an image; written is what has been reached.
        channel_wise: treat every channel as a grey image, also where the model has as many channels
            as the image.
        float64: compute in double precision.
        memory: what a solve may take, ``800MB`` or ``2GB``; what is free when None.
        processes: files at a time, each by one thread.
        skip_existing: leave out images whose result is there.
        levels: ``LO,HI``, the numbers of pictures that are black and white; those of the training
            images when None.
        debug: the first error is raised.

    Raises:
        InputError: an option out of range, a missing image, an output that is an input or cannot be
            written; of one image alone also an unreadable one, or channels that the model was not
            learned for.
        ModelFileError: a missing, damaged or foreign model.
        SolveError: eps was not reached for the only image.
        Interrupted: Ctrl-C; the message says what was kept.
        typer.Exit: some images failed or ran out of time, with the code ``SOME_FAILED``.
    """
    demands = _demands(eps, quality, sigma, max_seconds, memory)
    _check_processes(processes)
    file = find_model(model)
    jobs = plan(inputs, output)
    recipe = Recipe(
        file,
        demands,
        channel_wise,
        float64,
        alone=debug or len(jobs) == 1,
        debug=debug,
        levels=parse_levels(levels),
    )
    keep_large_blocks()
    found = recipe.model()
    say(console, f"Model: {describe_model(found)}")
    jobs = keeping_scans(jobs, found)
    check_targets(jobs)
    jobs = _left(jobs, console) if skip_existing else jobs
    if not jobs:
        return
    if len(jobs) > 1:
        say(console, f"{len(jobs)} images, into {jobs[0].target.parent}")

    troubled: list[Outcome] = []
    with ReconstructProgress(console, len(jobs)) as progress:
        outcomes = _outcomes(found, recipe, jobs, processes, progress)
        try:
            with closing(outcomes):
                for outcome in outcomes:
                    progress.finished(outcome)
                    troubled += [outcome] if outcome.state != "done" else []
        except KeyboardInterrupt:
            raise Interrupted(_kept(progress.done - _failures(troubled), jobs)) from None
    if troubled:
        _list(troubled, len(jobs))
        raise typer.Exit(SOME_FAILED)


def _outcomes(
    model: TrainedModel,
    recipe: Recipe,
    jobs: Sequence[Job],
    processes: int,
    progress: ReconstructProgress,
) -> Generator[Outcome, None, None]:
    """From this process, or from several."""
    if min(processes, len(jobs)) > 1:
        yield from in_processes(recipe, jobs, min(processes, len(jobs)))
    else:
        yield from Worker(model, recipe, progress.at).run(jobs)


# --- options --------------------------------------------------------------------------------------


def _demands(
    eps: float | None,
    quality: str | None,
    sigma: str | None,
    max_seconds: float | None,
    memory: str | None,
) -> Demands:
    """What is asked of every image.

    Raises:
        InputError: names the option.
    """
    if eps is not None and not (math.isfinite(eps) and eps > 0):
        raise InputError(
            "--eps",
            given=eps,
            expected="a positive finite distance",
            remedy="Leave it out for a default that suits the size of the image.",
        )
    if eps is not None and quality is not None:
        raise InputError(
            "--quality",
            given=f"{quality} and --eps {eps:g}",
            expected="one of the two",
            remedy="A quality is a distance per pixel, eps one over the whole image.",
        )
    if quality is not None and quality not in PER_PIXEL:
        raise InputError(
            "--quality",
            given=quality,
            expected=" or ".join(PER_PIXEL),
            remedy="Use --eps for any other distance.",
        )
    if max_seconds is not None and not (math.isfinite(max_seconds) and max_seconds > 0):
        raise InputError(
            "--max-seconds", given=max_seconds, expected="a positive number of seconds"
        )
    return Demands(
        eps,
        cast(Quality, quality or "fine"),
        max_seconds,
        None if memory is None else parse_bytes(memory),
        None if sigma is None else parse_sigma(sigma),
    )


def parse_bytes(text: str) -> int:
    """A number of bytes in words.

    Raises:
        InputError: not a positive number with a unit that is known.

    >>> parse_bytes("1.5GB"), parse_bytes("800 MB"), parse_bytes("2GiB")
    (1500000000, 800000000, 2147483648)
    """
    match = re.fullmatch(r"\s*([0-9.]+)\s*([a-z]*)\s*", text.lower())
    try:
        size = int(float(match[1]) * UNITS[match[2].upper()]) if match else 0
    except (ValueError, KeyError, OverflowError):
        size = 0
    if size <= 0:
        raise InputError(
            "--memory",
            given=text,
            expected="a size such as 800MB, 2GB or 1.5GiB",
            remedy="Leave it out for what is free.",
        )
    return size


def parse_levels(text: str | None) -> tuple[float, float] | None:
    """The numbers that are black and white, in words.

    Raises:
        InputError: not two finite numbers, the smaller one first.

    >>> parse_levels("0,4095"), parse_levels("[-1000, 2000]")
    ((0.0, 4095.0), (-1000.0, 2000.0))
    """
    if text is None:
        return None
    parts = text.strip().strip("[]()").split(",")
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) != 2 or not -math.inf < numbers[0] < numbers[1] < math.inf:
        raise InputError(
            "--range",
            given=text,
            expected="two numbers, those of black and of white, such as 0,4095",
            remedy="Leave it out for the range of the training images.",
        )
    return numbers[0], numbers[1]


def _check_processes(processes: int) -> None:
    """Refuse fewer than one process, and more than can be of use."""
    most = MOST_PROCESSES * (os.cpu_count() or 1)
    if not 1 <= processes <= most:
        raise InputError(
            "--processes",
            given=processes,
            expected=f"a number from 1 to {most}",
            remedy="One per core is usually best.",
        )


# --- words ----------------------------------------------------------------------------------------


def describe_model(model: TrainedModel) -> str:
    """What the model is and what noise it knows: on other noise it is the wrong tool."""
    energy = model.energy
    noise = getattr(energy.physics, "noise_model", None)
    sigma = getattr(noise, "sigma", None)
    learned = (
        ""
        if sigma is None
        else f", learned for noise of standard deviation {float(torch.as_tensor(sigma)):g}"
    )
    name = model.notes.get("name") or type(energy.regularizer).__name__
    return f"{name}{learned} ({model.path})"


def _left(jobs: list[Job], console: Console) -> list[Job]:
    """The images whose result is not there; results are whole or absent."""
    left = [job for job in jobs if not job.target.exists()]
    if len(left) < len(jobs):
        say(console, f"{len(jobs) - len(left)} of {len(jobs)} images are there already: skipped")
    return left


def _failures(troubled: Sequence[Outcome]) -> int:
    return sum(outcome.state == "failed" for outcome in troubled)


def _kept(written: int, jobs: Sequence[Job]) -> str:
    return (
        f"Stopped from the keyboard. {written} of {len(jobs)} images are written to "
        f"{jobs[0].target.parent}. The same command with --skip-existing goes on."
    )


def _list(troubled: Sequence[Outcome], count: int) -> None:
    """What went wrong, together, on the error stream."""
    from rich.console import Console

    console = Console(stderr=True)
    failed = [o for o in troubled if o.state == "failed"]
    missed = [o for o in troubled if o.state == "missed"]
    for outcome in troubled:
        if outcome.bad:
            pages = f"{len(outcome.bad)} of {outcome.job.pages} pages of {outcome.job.source}"
            say(console, f"{pages} failed; they stand in the result as they were read:")
            for text in outcome.bad:
                say(console, f"  {text}")
    if failed:
        say(console, f"{len(failed)} of {count} images failed; the others are written:")
        for outcome in failed:
            source = str(outcome.job.source)
            text = outcome.text.removeprefix(f"{source}: ")
            say(console, f"  {source}: {text}")
    if missed:
        say(
            console,
            f"{len(missed)} of {count} images did not reach the accuracy in time; they are written "
            "as they were:",
        )
        for outcome in missed:
            say(console, f"  {outcome.job.source}: {outcome.text}")
