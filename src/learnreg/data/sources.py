"""Sources of photographs: lists of files with names and groups, looked through before any is read
whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path

from ..core.errors import InputError
from ..core.ranges import shown
from .blocks import spread
from .crops import Source, check_large_enough, shrunk
from .formats import size_of
from .images import GREY, NATURAL, list_images, natural_file
from .stacks import TIFF, named, pages_in
from .units import listed

NATURAL_SCALE = 0.5  # the photographs of the wheel are sampled finer than they are sharp

SourceLike = str | PathLike[str] | Sequence[str | PathLike[str]]

Sizes = dict[str, tuple[int, int]]
"""Name of a photograph -> (height, width) of its file."""


def is_word(source: SourceLike, word: str) -> bool:
    """Whether ``source`` is one of the words for images that need no files."""
    return isinstance(source, str) and source == word


def photographs(
    source: SourceLike, channels: int, group: str | None, taken: Sequence[Source] = ()
) -> tuple[list[Source], float]:
    """The photographs of ``source`` and the scale they are used at by default.

    Args:
        source: "natural", a folder, a list of files or a TIFF stack.
        channels: 1 or 3; with 3, "natural" stands for its photographs in colour.
        group: regular expression, see :func:`learnreg.data.pairs`.
        taken: photographs of other sources, whose names are not to be used again.

    Raises:
        InputError: no such folder, no images, a file twice, a name without group.
    """
    if is_word(source, "natural"):
        names = [name for name in sorted(NATURAL) if channels == 1 or name not in GREY]
        files, scale = [natural_file(name) for name in names], NATURAL_SCALE
        found: list[Place] = [(file, None) for file in files]
    else:
        found, scale = [_place(file) for file in _files(source)], 1.0
        names = _names([file for file, _ in found], taken)
    sources = [
        Source(named(name, page), file, name, page)
        for name, (file, chosen) in zip(names, found, strict=True)
        for page in _pages(file, chosen)
    ]
    _check_once([*taken, *sources])
    if group is None:
        return sources, scale
    groups = _groups([source.name for source in sources], group)
    return [replace(s, group=own) for s, own in zip(sources, groups, strict=True)], scale


Place = tuple[Path, int | None]
"""A file, and the page of it that is named."""


def _names(files: Sequence[Path], taken: Sequence[Source]) -> list[str]:
    """By the names of the files, or by their whole paths where these are not different."""
    short = [file.name for file in files]
    different = list(dict.fromkeys(files))
    used = {named(other.path.name, other.page) for other in taken}
    used |= {other.path.name for other in taken}
    clash = len({file.name for file in different}) < len(different) or not used.isdisjoint(short)
    return [str(file) for file in files] if clash else short


def _place(file: Path) -> Place:
    """``stack.tif#3`` taken apart, unless a file has that name."""
    whole, mark, number = file.name.rpartition("#")
    stack = file.with_name(whole) if mark and number.isdecimal() and whole else file
    if stack != file and stack.suffix.lower() in TIFF and stack.is_file() and not file.exists():
        return stack, int(number)
    return file, None


def _pages(file: Path, chosen: int | None) -> list[int | None]:
    """The pages of a file that are images of their own, the first few far apart."""
    if chosen is not None:
        return [chosen]
    count = pages_in(file)
    return [None] if count is None else [*spread(range(count))]


def _files(source: SourceLike) -> list[Path]:
    if isinstance(source, (str, PathLike)):
        # why only these: other files hold one image, which makes no source of several sides
        alone = Path(source).suffix.lower() in TIFF and Path(source).is_file()
        return [Path(source)] if alone else list_images(source)
    try:
        files = [Path(fspath(file)) for file in source]
    except TypeError:
        raise InputError(
            "source",
            given=repr(source),
            expected='"natural", "phantoms", a folder or a list of files',
            remedy="Pass paths as strings or pathlib.Path objects.",
        ) from None
    if not files:
        raise InputError(
            "source",
            given="an empty list",
            expected="at least one image file",
            remedy="Check the pattern that made this list.",
        )
    return files


def _check_once(sources: Iterable[Source]) -> None:
    seen: set[Place] = set()
    for source in sources:
        place = source.path.resolve(), source.page
        if place in seen:
            raise InputError(
                "source",
                given=f"{named(source.path, source.page)} twice",
                expected="every file once",
                remedy="A repeated file could be trained on and tested on; list it once.",
            )
        seen.add(place)


def _groups(names: Sequence[str], group: str) -> list[str]:
    """What the regular expression finds in each name: its first group, or all of the match."""
    try:
        pattern = re.compile(group)
    except (re.error, TypeError) as error:
        raise InputError(
            "group",
            given=f"{shown(group)} ({error})",
            expected="a regular expression",
            remedy=r'For example group=r"^(patient\d+)_" for files called patient7_slice3.png.',
        ) from None
    found = [pattern.search(name) for name in names]
    without = [name for name, match in zip(names, found, strict=True) if match is None]
    if without:
        raise InputError(
            "group",
            given=f"{group!r}, which does not match {listed(without)}",
            expected="a match in the name of every file",
            remedy="Widen the expression: files without a group could end up on both sides.",
        )
    return [(match[1] or match[0]) if pattern.groups else match[0] for match in found if match]


# --- a look at the headers ------------------------------------------------------------------------


def without_small(
    pool: Sequence[Source], scale: float, size: int
) -> tuple[list[Source], list[str]]:
    """Those that hold a crop, and the names of those that do not.

    Raises:
        InputError: unreadable files, or none that is large enough.
    """
    sizes = sizes_of(pool)
    small = [s.name for s in pool if min(shrunk(sizes[s.name], scale)) < size]
    if len(small) == len(pool):
        check_sizes(pool, sizes, scale, size)
    return [source for source in pool if source.name not in small], small


def sizes_of(sources: Sequence[Source]) -> Sizes:
    """Heights and widths of all.

    Raises:
        InputError: names every file that cannot be read.
    """
    sizes: Sizes = {}

    def look(source: Source) -> None:
        sizes[source.name] = size_of(source.path, source.page)

    attempt(look, sources)
    return sizes


def check_sizes(sources: Sequence[Source], sizes: Sizes, scale: float, size: int) -> None:
    """Refuse photographs that hold no crop.

    Raises:
        InputError: names every one of them.
    """
    attempt(lambda s: check_large_enough(s.name, sizes[s.name], scale, size), sources)


def attempt(action: Callable[[Source], None], sources: Iterable[Source]) -> None:
    """``action`` for every photograph; what went wrong comes in one message at the end.

    Raises:
        InputError: that of one photograph, or one that lists those of several.
    """
    errors: list[InputError] = []
    for source in sources:
        try:
            action(source)
        except InputError as error:
            errors.append(error)
    if errors:
        raise _joined(errors)


def _joined(errors: Sequence[InputError]) -> InputError:
    if len(errors) == 1:
        return errors[0]
    entries = [f"{error.what} ({error.given})" for error in errors]
    return InputError(
        "source",
        given=f"{len(errors)} files that cannot be used: {listed(entries, 10)}",
        expected="; ".join(dict.fromkeys(str(error.expected) for error in errors)),
        remedy=" ".join(dict.fromkeys(error.remedy for error in errors)),
    )
