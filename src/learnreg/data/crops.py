"""Crops: photographs dealt to the training or the test side, then square windows at random
places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import InputError
from .seeds import generator

FLAT = 0.02  # a crop with a smaller standard deviation shows next to nothing
REDRAWS = 20  # how often a flat crop is drawn again before the liveliest one seen is taken
_LEAST_TEST_SOURCES = (
    3  # figures held out on one photograph would say more about it than about a method
)


@dataclass(frozen=True)
class Source:
    """One photograph, loaded when it is needed: ``load()`` gives (c, h, w) in [0, 1]."""

    name: str
    load: Callable[[], Tensor]


def deal(
    sources: Sequence[Source], split: tuple[int, int], seed: int
) -> tuple[list[Source], list[Source]]:
    """Shuffle the photographs and deal them to (training, test); no photograph is on both sides.

    The test side gets its share ``n_test / (n_train + n_test)`` of the photographs, rounded up, and
    at least three where there are six or more; a side never gets more photographs than it shows
    crops.

    Raises:
        InputError: one photograph for two sides.
    """
    n_train, n_test = split
    order = torch.randperm(len(sources), generator=generator(seed, "deal")).tolist()
    shuffled = [sources[i] for i in order]
    if n_test == 0:
        return shuffled[:n_train], []
    if n_train == 0:
        return [], shuffled[:n_test]
    if len(sources) < 2:
        raise InputError(
            "source",
            given=f"one photograph ({sources[0].name}) for training and test",
            expected="at least two, as no photograph is on both sides",
            remedy="Add photographs, or set one of the two numbers in split to 0.",
        )
    share = math.ceil(len(sources) * n_test / (n_train + n_test))
    k = min(max(share, min(_LEAST_TEST_SOURCES, len(sources) // 2)), len(sources) - 1)
    return shuffled[k:][:n_train], shuffled[:k][:n_test]


def fetch(source: Source, scale: float, size: int) -> Tensor:
    """The photograph (c, h, w), downsampled by ``scale`` <= 1 with an anti-aliasing (bicubic)
    filter.

    Raises:
        InputError: it cannot be read, or is smaller than ``size`` after scaling.
    """
    image = source.load()
    height, width = (max(1, round(side * scale)) for side in image.shape[1:])
    if min(height, width) < size:
        native = (
            f" (of {image.shape[1]} x {image.shape[2]}, at scale {scale:g})" if scale != 1 else ""
        )
        raise InputError(
            source.name,
            given=f"an image of {height} x {width} pixels{native}, height x width",
            expected=f"at least {size} x {size} pixels, the size of a crop",
            remedy="Ask for smaller crops"
            + (", use a larger scale," if native else "")
            + " or leave this image out.",
        )
    if scale == 1:
        return image
    small = torch.nn.functional.interpolate(
        image[None], (height, width), mode="bicubic", antialias=True
    )
    return small[0].clamp(0, 1)


def crop(images: dict[str, Tensor], n: int, size: int, seed: int) -> tuple[list[Tensor], list[str]]:
    """``n`` crops spread evenly over the photographs, one from each in turn.

    No two crops are the same window. A nearly constant crop (standard deviation below 0.02) is
    drawn again up to 20 times; if all are flat, the one that varies most is taken.

    Args:
        images: name -> (c, h, w), each at least as large as a crop.
        n: number of crops; places in a photograph depend on the seed and its name only, so the
            first stay with a larger n.
        size: height and width of a crop in pixels.
        seed: non-negative integer.

    Returns:
        The crops (c, size, size) and their names ``"photograph@row,column"`` (of the top left
        pixel).

    Raises:
        InputError: a photograph is too small for that many different crops.
    """
    crops: list[Tensor] = []
    names: list[str] = []
    places = {
        name: _places(
            name, image, math.ceil((n - turn) / len(images)), size, generator(seed, "crop", name)
        )
        for turn, (name, image) in enumerate(images.items())
    }
    order = list(images)
    for i in range(n):
        name = order[i % len(order)]
        row, column = places[name][i // len(order)]
        crops.append(images[name][:, row : row + size, column : column + size])
        names.append(f"{name}@{row},{column}")
    return crops, names


def _places(
    name: str, image: Tensor, n: int, size: int, rng: torch.Generator
) -> list[tuple[int, int]]:
    """``n`` different top left pixels of crops of one photograph."""
    height, width = image.shape[1:]
    rows, columns = height - size + 1, width - size + 1
    if rows * columns < n:
        raise InputError(
            "split",
            given=f"{n} crops of {size} x {size} pixels from {name} ({height} x {width})",
            expected=f"at most {rows * columns}, the number of different crops in it",
            remedy="Ask for fewer or smaller crops, or add photographs.",
        )
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
