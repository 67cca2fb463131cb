"""Crops: photographs dealt to the training, the validation or the test side, then square windows at
random places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

import torch
from torch import Tensor

from ..core.errors import InputError
from .seeds import generator

FLAT = 0.02  # a crop with a smaller standard deviation shows next to nothing
REDRAWS = 20  # how often a flat crop is drawn again before the liveliest one seen is taken
_LEAST_TEST_SOURCES = (
    3  # figures held out on one photograph would say more about it than about a method
)
_LEAST_VALIDATION_SOURCES = 2  # to stop by, where a third of the rest allows

Counts = tuple[int, int, int]
"""Numbers for (training, validation, test)."""


@dataclass(frozen=True)
class Source:
    """One photograph: the name it goes by, its file, what it must not be parted from, and its page
    in a file with several.
    """

    name: str
    path: Path
    group: str
    page: int | None = None

    @property
    def origin(self) -> str:
        """The file of a page; else nothing."""
        return "" if self.page is None else str(self.path)


def deal(
    sources: Sequence[Source], split: Counts, seed: int
) -> tuple[list[Source], list[Source], list[Source]]:
    """Shuffle the groups and deal them to (training, validation, test); none is on two sides.

    The test side gets its share ``n_test / (n_train + n_test)`` of the groups, rounded up, and at
    least three where there are six or more. The validation side gets its share of the rest, at
    least two where there are six or more left: asking for validation leaves the test side as it
    was. A side never gets more photographs than it shows crops.

    Args:
        sources: photographs; without groups each is one of its own.
        split: numbers of crops.
        seed: non-negative integer.

    Raises:
        InputError: fewer photographs (or groups) than sides.
    """
    n_train, n_validation, n_test = split
    groups: dict[str, list[Source]] = {}
    for source in sources:
        groups.setdefault(source.group, []).append(source)
    sides = sum(n > 0 for n in split)
    if len(groups) < sides:
        _refuse(sources, groups, sides)

    members = list(groups.values())
    order = torch.randperm(len(members), generator=generator(seed, "deal")).tolist()
    shuffled = [members[i] for i in order]
    between = bool(n_train) + bool(n_validation)
    k = _share(len(shuffled), n_train or n_validation, n_test, _LEAST_TEST_SOURCES, 2, between)
    test, rest = shuffled[:k], shuffled[k:]
    k = _share(len(rest), n_train, n_validation, _LEAST_VALIDATION_SOURCES, 3, bool(n_train))
    validation, train = rest[len(rest) - k :], rest[: len(rest) - k]
    return (
        _spread(train)[:n_train],
        _spread(validation)[:n_validation],
        _spread(test)[:n_test],
    )


def _refuse(sources: Sequence[Source], groups: dict[str, list[Source]], sides: int) -> None:
    kind = "photograph" if len(groups) == len(sources) else "group"
    numbers = {1: "one", 2: "two", 3: "three"}
    words = {2: "training and test", 3: "training, validation and test"}
    first = next(iter(groups)) if kind == "group" else sources[0].name
    given = f"one {kind} ({first})" if len(groups) == 1 else f"{numbers[len(groups)]} {kind}s"
    raise InputError(
        "source",
        given=f"{given} for {words[sides]}",
        expected=f"at least {numbers[sides]}, as no {kind} is on two sides",
        remedy=f"Add {kind}s, or set one of the numbers in split to 0.",
    )


def _share(total: int, others: int, own: int, least: int, part: int, leave: int) -> int:
    """How many of ``total`` groups a side of ``own`` crops gets, beside ``others`` crops.

    Args:
        least: as few as that if they are no more than one in ``part``.
        leave: how many groups the others need.
    """
    if own == 0 or others == 0:
        return total if own else 0
    share = math.ceil(total * own / (others + own))
    return min(max(share, min(least, total // part)), total - leave)


def _spread(groups: Sequence[Sequence[Source]]) -> list[Source]:
    """One photograph of every group, then the second ones, and so on."""
    return [s for s in chain.from_iterable(zip_longest(*groups)) if s is not None]


def shares(n: int, photographs: int) -> list[int]:
    """How many of ``n`` crops come from each of some photographs, spread evenly."""
    return [math.ceil((n - turn) / photographs) for turn in range(photographs)]


def shrunk(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Height and width after scaling."""
    height, width = (max(1, round(side * scale)) for side in size)
    return height, width


def check_large_enough(name: str, native: tuple[int, int], scale: float, size: int) -> None:
    """Refuse a photograph of ``native`` height and width that holds no crop.

    Raises:
        InputError: it is smaller than ``size`` after scaling.
    """
    height, width = shrunk(native, scale)
    if min(height, width) >= size:
        return
    before = f" (of {native[0]} x {native[1]}, at scale {scale:g})" if scale != 1 else ""
    raise InputError(
        name,
        given=f"an image of {height} x {width} pixels{before}, height x width",
        expected=f"at least {size} x {size} pixels, the size of a crop",
        remedy="Ask for smaller crops"
        + (", use a larger scale," if before else "")
        + " or leave such images out, which skip_small does.",
    )


def check_room(name: str, shape: tuple[int, int], n: int, size: int) -> None:
    """Refuse more crops than a photograph of this height and width has windows.

    Raises:
        InputError: the photograph is too small for that many different crops.
    """
    height, width = shape
    most = (height - size + 1) * (width - size + 1)
    if most < n:
        raise InputError(
            "split",
            given=f"{n} crops of {size} x {size} pixels from {name} ({height} x {width})",
            expected=f"at most {most}, the number of different crops in it",
            remedy="Ask for fewer or smaller crops, or add photographs.",
        )


def shrink(image: Tensor, scale: float) -> Tensor:
    """The photograph (c, h, w), downsampled by ``scale`` <= 1 with an anti-aliasing (bicubic)
    filter.
    """
    if scale == 1:
        return image
    height, width = image.shape[1:]
    small = torch.nn.functional.interpolate(
        image[None], shrunk((height, width), scale), mode="bicubic", antialias=True
    )
    # why these limits: the filter overshoots at edges, beyond what the photograph holds
    return small[0].clamp(min(0.0, float(image.min())), max(1.0, float(image.max())))


def crop(name: str, image: Tensor, n: int, size: int, seed: int) -> list[tuple[str, Tensor]]:
    """``n`` crops at random places of a photograph, no window twice.

    A nearly constant crop (standard deviation below 0.02) is drawn again up to 20 times; if all are
    flat, the one that varies most is taken.

    Args:
        name: of the photograph: the places depend on it and on the seed only, so the first stay
            with a larger n.
        image: (c, h, w), at least as large as a crop.
        n: number of crops.
        size: height and width of a crop in pixels.
        seed: non-negative integer.

    Returns:
        Names ``"photograph@row,column"`` (of the top left pixel) and crops (c, size, size).

    The photograph is large enough (``check_room``).
    """
    places = _places(image, n, size, generator(seed, "crop", name))
    return [
        (f"{name}@{row},{column}", image[:, row : row + size, column : column + size].clone())
        for row, column in places
    ]


def in_turn(crops: Sequence[list[tuple[str, Tensor]]]) -> list[tuple[str, Tensor]]:
    """The first crop of every photograph, then the second ones, and so on."""
    return [c for c in chain.from_iterable(zip_longest(*crops)) if c is not None]


def _places(image: Tensor, n: int, size: int, rng: torch.Generator) -> list[tuple[int, int]]:
    """``n`` different top left pixels of crops of one photograph."""
    height, width = image.shape[1:]
    rows, columns = height - size + 1, width - size + 1
    taken: list[tuple[int, int]] = []
    seen: set[tuple[int, int]] = set()
    for _ in range(n):
        best, liveliest = (0, 0), -1.0
        for _ in range(REDRAWS):
            place = _fresh(rows, columns, seen, rng)
            window = image[:, place[0] : place[0] + size, place[1] : place[1] + size]
            spread = float(window.std(correction=0))
            if spread > liveliest:
                best, liveliest = place, spread
            if spread >= FLAT:
                break
        taken.append(best)
        seen.add(best)
    return taken


def _fresh(
    rows: int, columns: int, seen: set[tuple[int, int]], rng: torch.Generator
) -> tuple[int, int]:
    """A random place that is not in ``seen``; there is one."""
    while True:
        index = int(torch.randint(rows * columns, (), generator=rng))
        place = divmod(index, columns)
        if place not in seen:
            return place
