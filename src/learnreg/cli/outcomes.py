"""What has become of a file that was reconstructed, and the words for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..core.errors import InputError, LearnregError, SolveError
from ..core.results import Solution
from ..models import TrainedModel
from ..reports.words import evidence
from .pictures import Picture
from .reconstruct_plan import Job

State = Literal["done", "missed", "partly", "failed"]


@dataclass(frozen=True)
class Outcome:
    """What has become of one file.

    Attributes:
        job: which.
        state: ``missed`` is one that ran out of time, and was written as it was; ``partly`` a
            stack of which some pages failed, and were written as they were read.
        text: the verdict or the error.
        remarks: on its data.
        bad: the errors of the pages that failed.
    """

    job: Job
    state: State
    text: str
    remarks: tuple[str, ...] = ()
    bad: tuple[str, ...] = ()


def verdict(model: TrainedModel, picture: Picture, solution: Solution, index: int) -> str:
    """How far the result can be from the exact one, over the whole image and per pixel."""
    image = solution.value[index]
    channels, count = image.shape[0], image.numel()
    asked = model.demands.distance(count)
    distance = float(solution.error[index])
    same = image.shape == picture.pixels.shape
    apart = same and channels > 1 and model.apart(channels)
    colours = {1: "grey", 3: "colour"}.get(channels, f"{channels} channels")
    theorem = solution.theorem[index] if solution.theorem else ""
    return (
        f"{' x '.join(map(str, image.shape[1:]))}, {colours}"
        f"{', channels one by one' if apart else ''}; {solution.kind.label} distance to the "
        f"exact minimizer <= {distance:.2e} over the image (eps {asked:.2e}), "
        f"{distance / math.sqrt(count):.1e} per pixel"
        f"{f', by {evidence(theorem)}' if theorem else ''}"
    )


def with_name(source: str, error: Exception, float64: bool) -> Exception:
    """The error with the name of the file, or of a page of it, in it."""
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
