"""From a source (photographs, phantoms, a folder, files) to the true images of the two sides of a
split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from os import PathLike, fspath
from pathlib import Path

import torch
from torch import Tensor

from ..core.errors import InputError
from ..core.ranges import plain, shown
from .crops import Source, crop, deal, fetch
from .images import NATURAL, list_images, load_image, load_natural
from .phantoms import phantoms
from .seeds import check_count, check_seed

NATURAL_SCALE = 0.5  # the photographs of the wheel are sampled finer than they are sharp

Side = tuple[Tensor, list[str]]
"""Images (n, c, h, w) and their names."""

SourceLike = str | PathLike[str] | Sequence[str | PathLike[str]]


def gather(
    source: SourceLike,
    *,
    size: int,
    split: tuple[int, int],
    seed: int,
    channels: int,
    scale: float | None,
) -> tuple[Side, Side]:
    """The true images of (training, test); arguments and errors as in
    :func:`learnreg.data.pairs`.
    """
    remedy = "Pass the height and width of the crops in pixels."
    size = check_count(size, "size", least=1, remedy=remedy)
    seed, channels, scale = check_seed(seed), plain(channels), plain(scale)
    split = _check_split(split)
    _check_scale(scale)
    if not isinstance(channels, int) or isinstance(channels, bool) or channels not in (1, 3):
        raise InputError(
            "channels",
            given=repr(channels),
            expected="1 (grey) or 3 (colour)",
            remedy="Pass channels=1 or channels=3.",
        )
    if channels != 1 and isinstance(source, str) and source == "natural":
        raise InputError(
            "channels",
            given=f'{channels} with "{source}"',
            expected="1: these images are grey",
            remedy="For colour pass a folder or a list of files.",
        )
    if isinstance(source, str) and source == "phantoms":
        return _phantoms(size, split, seed, scale, channels)
    sources, default = _sources(source, channels)
    sides = deal(sources, split, seed)
    factor = default if scale is None else float(scale)
    loaded = [{photo.name: fetch(photo, factor, size) for photo in side} for side in sides]
    _check_distinct(loaded[0] | loaded[1])
    train, test = (
        _stack(*crop(images, n, size, seed), channels, size)
        for images, n in zip(loaded, split, strict=True)
    )
    return train, test


def _stack(crops: list[Tensor], names: list[str], channels: int, size: int) -> Side:
    return (torch.stack(crops) if crops else torch.zeros(0, channels, size, size)), names


def _phantoms(
    size: int, split: tuple[int, int], seed: int, scale: float | None, channels: int
) -> tuple[Side, Side]:
    """Every phantom is a source of its own: the first n_train for training, the next n_test for the
    test.
    """
    if scale not in (None, 1):
        raise InputError(
            "scale",
            given=f'{scale} with "phantoms"',
            expected="no scale",
            remedy="Phantoms are drawn at the size that is asked for.",
        )
    images = phantoms(sum(split), size, seed, channels)
    names = [f"phantom-{i}" for i in range(len(images))]
    return (images[: split[0]], names[: split[0]]), (images[split[0] :], names[split[0] :])


def _sources(source: SourceLike, channels: int) -> tuple[list[Source], float]:
    """The photographs of ``source`` and the scale they are used at by default."""
    if isinstance(source, str) and source == "natural":
        return [
            Source(name, partial(load_natural, name)) for name in sorted(NATURAL)
        ], NATURAL_SCALE
    if isinstance(source, (str, PathLike)):
        files = list_images(source)
    else:
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
    by_path: dict[Path, Path] = {}
    for file in files:
        if file.resolve() in by_path:
            raise InputError(
                "source",
                given=f"{file} twice",
                expected="every file once",
                remedy="A repeated file could be trained on and tested on; list it once.",
            )
        by_path[file.resolve()] = file
    plain = [file.name for file in files]
    names = plain if len(set(plain)) == len(plain) else [str(file) for file in files]
    return [
        Source(n, partial(load_image, f, channels)) for n, f in zip(names, files, strict=True)
    ], 1.0


def _check_distinct(images: dict[str, Tensor]) -> None:
    """Refuse the same picture under two names: it could end up on both sides."""
    seen: dict[tuple[object, ...], str] = {}
    for name, image in images.items():
        key = (*image.shape, hashlib.sha256(image.numpy().tobytes()).digest())
        if key in seen:
            raise InputError(
                "source",
                given=f"the same picture as {seen[key]} and as {name}",
                expected="different photographs",
                remedy="Remove one of the two files.",
            )
        seen[key] = name


def _check_split(split: object) -> tuple[int, int]:
    remedy = "Pass split=(n_train, n_test), for example (24, 8); one of them may be 0."
    if not isinstance(split, (tuple, list)) or len(split) != 2:
        raise InputError("split", given=repr(split), expected="two numbers of crops", remedy=remedy)
    n_train, n_test = (check_count(n, "split", least=0, remedy=remedy) for n in split)
    if n_train + n_test == 0:
        raise InputError("split", given=repr(split), expected="at least one crop", remedy=remedy)
    return n_train, n_test


def _check_scale(scale: object) -> None:
    if scale is None:
        return
    number = plain(scale)
    real = isinstance(number, int | float) and not isinstance(number, bool)
    if not (isinstance(number, int | float) and real and 0 < number <= 1):
        raise InputError(
            "scale",
            given=shown(scale),
            expected="a number in (0, 1], or None",
            remedy="Photographs are only ever made smaller; scale=1 keeps their size.",
        )
