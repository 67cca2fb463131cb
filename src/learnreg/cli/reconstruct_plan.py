"""Which file of ``reconstruct`` goes where: checked before anything is computed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import InputError
from ..data.images import SUFFIXES as PICTURES
from ..data.scans import is_scan
from ..data.stacks import TIFF, pages_in
from .array_files import RESULT, is_array, list_inputs, result_name
from .pictures import WRITABLE

Identity = tuple[int, int]
"""Device and number of a file, whatever it is called."""


@dataclass(frozen=True)
class Job:
    """One file to be reconstructed.

    Attributes:
        source, target: the files.
        pages: their number, if there are several.
        into_folder: only the folder of the target has been named.
    """

    source: Path
    target: Path
    pages: int | None = None
    into_folder: bool = False


def plan(inputs: Sequence[Path], output: str) -> list[Job]:
    """A target for every input; makes the output folder.

    Raises:
        InputError: no such input; a target that is an input, is written twice or has an ending that
            cannot be.
    """
    sources = [
        file
        for entry in inputs
        for file in (list_inputs(entry, PICTURES) if entry.is_dir() else [entry])
    ]
    for source in sources:
        if not source.is_file():
            raise InputError(
                str(source),
                given="no such file",
                expected="an image file, or one of measurements",
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
    jobs = [
        Job(
            source,
            place / _file_name(source) if into_folder else place,
            pages_in(source),
            into_folder,
        )
        for source in sources
    ]
    check_targets(jobs)
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
    if is_array(source):
        return result_name(source)
    return source.name if source.suffix.lower() in WRITABLE else f"{source.stem}.png"


def check_targets(jobs: Sequence[Job]) -> None:
    """Refuse targets that are inputs, are written twice or have an ending that cannot be.

    Raises:
        InputError: names the target.
    """
    inputs = {job.source.resolve() for job in jobs}
    # by number as well: links, and systems that do not tell capitals from small letters
    numbers = _numbers(inputs)
    first: dict[Path, Path] = {}
    for job in jobs:
        target = job.target.resolve()
        if target.suffix.lower() not in (*WRITABLE, RESULT) and not is_scan(target):
            raise InputError(
                "--output",
                given=f"{job.target} with the ending {job.target.suffix!r}",
                expected=f"one of {', '.join((*WRITABLE, RESULT))}",
                remedy="Choose .png for viewing, .tif or .npy for exact values.",
            )
        if job.pages is not None and target.suffix.lower() not in TIFF:
            raise InputError(
                "--output",
                given=f"{job.target} for the {job.pages} pages of {job.source}",
                expected=f"one of {', '.join(TIFF)}, which hold several pages",
                remedy=f"For example: -o {job.target.with_suffix(TIFF[0])}",
            )
        if target in inputs or not numbers.isdisjoint(_numbers([target])):
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


def _numbers(paths: Iterable[Path]) -> set[Identity]:
    """Identities of the files that exist; where the system has none, nothing."""
    found = set()
    for path in paths:
        try:
            state = path.stat()
        except OSError:
            continue
        if state.st_ino:
            found.add((state.st_dev, state.st_ino))
    return found
