"""Pages of stacks on their sides: far apart where few are wanted, in blocks where one file has to
do for several sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TypeVar

from .crops import Counts, Source
from .units import listed

Item = TypeVar("Item")


def spread(items: Sequence[Item]) -> list[Item]:
    """In an order whose first few are far apart, whatever their number: that of van der Corput.

    >>> spread("abcdefgh")
    ['a', 'e', 'c', 'g', 'b', 'f', 'd', 'h']
    """
    bits = max(1, (len(items) - 1).bit_length())
    order = sorted(range(len(items)), key=lambda i: int(f"{i:0{bits}b}"[::-1], 2))
    return [items[i] for i in order]


def need_blocks(sources: Sequence[Source], split: Counts, group: str | None) -> bool:
    """Whether there are too few files for the sides, but enough pages in them."""
    sides = sum(n > 0 for n in split)
    files = {source.group for source in sources}
    paged = any(source.page is not None for source in sources)
    return group is None and paged and len(files) < sides <= len(sources)


def in_blocks(
    sources: Sequence[Source], split: Counts
) -> tuple[list[Source], list[Source], list[Source]]:
    """Neighbouring pages in blocks: the first for training, then validation, the last for the test.

    Every side has its share of the pages, and at least one; of these as many as it shows crops, far
    apart.

    Args:
        sources: pages, at least as many as sides.
        split: numbers of crops of (training, validation, test).
    """
    files = list(dict.fromkeys(source.path for source in sources))
    ordered = sorted(sources, key=lambda s: (files.index(s.path), s.page or 0))
    sizes = _sizes(len(ordered), split)
    ends = list(accumulate(sizes))
    first, second, third = (
        spread(ordered[end - size : end])[:n]
        for end, size, n in zip(ends, sizes, split, strict=True)
    )
    return first, second, third


def _sizes(total: int, split: Counts) -> list[int]:
    """Pages of every side, by its share of the crops; the largest side makes up for rounding."""
    sizes = [max(1, round(total * n / sum(split))) if n else 0 for n in split]
    sizes[sizes.index(max(sizes))] += total - sum(sizes)
    return sizes


def block_remark(sources: Sequence[Source]) -> str:
    """What is to be said of sides that share a file."""
    names = listed(list(dict.fromkeys(source.path.name for source in sources)), 3)
    return (
        f"{names}: pages of one file on several sides, in blocks of neighbours (the first for "
        "training, the last held out). Neighbouring pages are alike, so that held-out figures are "
        "likely too good; a file of its own for the test (test_source) says more."
    )
