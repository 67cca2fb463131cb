"""What fits into memory, asked before anything large is read."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import InputError

COPIES = 3
"""Measured: pairs, the copy that a learner works on, and what checks make on the way."""


def available_bytes() -> int | None:
    """Memory that can be had without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        named = dict(line.split(":", 1) for line in lines)
        return int(named["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:  # all there is, where what is free is not told (macOS)
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def check_fits(count: int, each: int, what: str, remedy: str) -> None:
    """Refuse to read ``count`` pairs of ``each`` bytes that could not be held.

    Raises:
        InputError: says how much there would be and how many pairs fit.
    """
    room = available_bytes()
    if room is None or COPIES * count * each <= room:
        return
    fitting = room // (COPIES * each)
    raise InputError(
        what,
        given=f"{count} pairs of {_size(each)}, with working copies {_size(COPIES * count * each)}",
        expected=f"what fits into the {_size(room)} of memory that are free: about {fitting} pairs",
        remedy=remedy,
    )


def _size(number: int) -> str:
    """Bytes for people.

    >>> _size(2_500_000)
    '2.5 MB'
    """
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number} bytes"
