"""The command ``reconstruct``: a learned model applied to image files, with a certified distance
per image.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core.errors import InputError, SolveError
from ..core.results import Solution
from ..data import list_images
from ..models import load_model, model_notes
from ..problems import Energy, SaddleEnergy
from ..reports.words import evidence
from ..solvers import solve
from .guard import say
from .memory import keep_large_blocks
from .pictures import WRITABLE, Picture, read_picture, write_picture

if TYPE_CHECKING:
    from rich.console import Console

PER_PIXEL = 1e-2 / 96
"""Distance per pixel (root mean square) asked for by default: 1e-2 over 96 x 96 pixels, 1/40 of an
8-bit grey level.
"""


@dataclass(frozen=True)
class Job:
    """One image to be reconstructed."""

    source: Path
    target: Path


def run_reconstruct(
    model: Path,
    inputs: Sequence[Path],
    output: str,
    console: Console,
    *,
    eps: float | None = None,
    channel_wise: bool = False,
    float64: bool = False,
) -> None:
    """Reconstruct every input and write it.

    Args:
        model: a ``model.safetensors``.
        inputs: image files, or folders of them.
        output: a file for one input, a folder for several; made if it does not exist.
        console: where to say what was reached.
        eps: distance to the exact minimizer over all pixels of an image; a default that grows with
            its size when None.
        channel_wise: treat every channel as a grey image, also where the model has as many channels
            as the image.
        float64: compute in double precision.

    Raises:
        InputError: eps not positive, a missing or unreadable image, an output that is an input or
            cannot be written, channels that the model was not learned for.
        ModelFileError: a missing, damaged or foreign model.
        SolveError: eps was not reached.
    """
    if eps is not None and not (math.isfinite(eps) and eps > 0):
        raise InputError(
            "--eps",
            given=eps,
            expected="a positive finite distance",
            remedy="Leave it out for a default that suits the size of the image.",
        )
    energy = load_model(model)
    jobs = plan(inputs, output)
    keep_large_blocks()
    energy = energy.widened() if float64 else energy
    say(console, f"Model: {describe_model(model, energy)}")
    for job in jobs:
        picture = read_picture(job.source)
        try:
            solution, asked = reconstruct(energy, picture, eps, channel_wise)
        except SolveError as error:
            hint = "" if float64 else " The option --float64 reaches further."
            raise SolveError(f"{job.source}: {error}{hint}", error.solution) from error
        note = write_picture(job.target, _joined(solution.value, picture), picture)
        say(console, f"{job.source} -> {job.target}: {_verdict(solution, asked, picture)}{note}")


def reconstruct(
    energy: Energy | SaddleEnergy, picture: Picture, eps: float | None, channel_wise: bool
) -> tuple[Solution, float]:
    """The solution, a batch of channels if they are treated apart, and the distance asked for over
    the whole image.
    """
    channels = picture.pixels.shape[0]
    asked = eps if eps is not None else PER_PIXEL * math.sqrt(picture.pixels.numel())
    expected = model_channels(energy.regularizer.spec())
    apart = channel_wise or (expected == 1 and channels > 1)
    if expected is not None and expected != (1 if apart else channels):
        raise InputError(
            str(picture.path),
            given=f"{1 if apart else channels} channel(s) at a time",
            expected=f"{expected} channels, as in the images the model was learned from",
            remedy="Leave --channel-wise out."
            if channel_wise
            else "Learn a model with channels = 1.",
        )
    dtype = next(energy.regularizer.parameters()).dtype
    y = picture.pixels.to(dtype)
    y = y[:, None] if apart else y[None]
    return solve(energy, y, asked / math.sqrt(y.shape[0])), asked


def model_channels(spec: dict[str, Any]) -> int | None:
    """The channels that a regularizer was made for; None if any number will do."""
    inner = [*spec.get("terms", ()), *([spec["regularizer"]] if "regularizer" in spec else [])]
    # where there are both, the latter are feature maps; a word says how TV treats any number
    own = spec.get("in_channels", spec.get("channels"))
    found = [own if isinstance(own, int) else None, *(model_channels(part) for part in inner)]
    return next((c for c in found if c is not None), None)


def describe_model(path: Path, energy: Energy | SaddleEnergy) -> str:
    """What the model is and what noise it knows: on other noise it is the wrong tool."""
    notes, noise = model_notes(path), getattr(energy.physics, "noise_model", None)
    sigma = getattr(noise, "sigma", None)
    learned = (
        ""
        if sigma is None
        else f", learned for noise of standard deviation {float(torch.as_tensor(sigma)):g}"
    )
    return f"{notes.get('name') or type(energy.regularizer).__name__}{learned} ({path})"


def _joined(value: Tensor, picture: Picture) -> Tensor:
    """(c, h, w) from one image or from its channels."""
    return value.reshape(picture.pixels.shape)


def _verdict(solution: Solution, asked: float, picture: Picture) -> str:
    """How far the result can be from the exact one, over the whole image and per pixel."""
    distance = float(solution.error.square().sum().sqrt())
    channels, height, width = picture.pixels.shape
    apart = ", channels one by one" if solution.error.numel() > 1 else ""
    per_pixel = distance / math.sqrt(picture.pixels.numel())
    return (
        f"{height} x {width}, {'grey' if channels == 1 else 'colour'}{apart}; "
        f"{solution.kind.label} distance to "
        f"the exact minimizer <= {distance:.2e} over the image (eps {asked:.2e}), {per_pixel:.1e} "
        "per pixel"
        f"{f', by {evidence(solution.theorem)}' if solution.theorem else ''}"
    )


# --- which file goes where ------------------------------------------------------------------------


def plan(inputs: Sequence[Path], output: str) -> list[Job]:
    """A target for every input, checked before anything is computed; makes the output folder.

    Raises:
        InputError: no such input; a target that is an input, is written twice or has an ending that
            cannot be.
    """
    sources = [
        file for entry in inputs for file in (list_images(entry) if entry.is_dir() else [entry])
    ]
    for source in sources:
        if not source.is_file():
            raise InputError(
                str(source),
                given="no such file",
                expected="an image file",
                remedy="Check the path.",
            )
    place = Path(output)
    into_folder = place.is_dir() or place.suffix == "" or output.endswith(("/", os.sep))
    if not into_folder and (len(sources) > 1 or any(entry.is_dir() for entry in inputs)):
        raise InputError(
            "--output",
            given=f"the file {output} for {len(sources)} image(s)",
            expected="a folder",
            remedy=f"For example: -o {place.with_suffix('')}/",
        )
    jobs = [Job(source, place / _file_name(source) if into_folder else place) for source in sources]
    _check_targets(jobs)
    folder = place if into_folder else place.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            "--output",
            given=f"{folder} ({error.strerror})",
            expected="a folder that can be made",
            remedy="Choose another output.",
        ) from error
    return jobs


def _file_name(source: Path) -> str:
    return source.name if source.suffix.lower() in WRITABLE else f"{source.stem}.png"


def _check_targets(jobs: Sequence[Job]) -> None:
    inputs = {job.source.resolve() for job in jobs}
    first: dict[Path, Path] = {}
    for job in jobs:
        target = job.target.resolve()
        if target.suffix.lower() not in WRITABLE:
            raise InputError(
                "--output",
                given=f"{job.target} with the ending {job.target.suffix!r}",
                expected=f"one of {', '.join(WRITABLE)}",
                remedy="Choose .png for viewing, .tif for exact values.",
            )
        if target in inputs or (
            target.exists() and any(target.samefile(source) for source in inputs)
        ):
            raise InputError(
                "--output",
                given=f"{job.target}, which is an input",
                expected="a file of its own",
                remedy="Name another file or folder: the noisy image is not overwritten.",
            )
        if target in first:
            raise InputError(
                "--output",
                given=f"{job.target} for both {first[target]} and {job.source}",
                expected="different file names",
                remedy="Reconstruct them into different folders.",
            )
        first[target] = job.source
