"""What fits into memory, asked before anything large is read."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import InputError

UNITS = ((9, "GB"), (6, "MB"), (3, "kB"))
"""Powers of ten and their names."""

COPIES = 3
"""Measured: pairs, the copy that a learner works on, and what checks make on the way."""


def free_memory() -> int:
    """Bytes that this process can still get without harm; as much as nobody has where the system
    does not tell.
    """
    found = [n for n in (_of_system(), _of_group()) if n is not None]
    return min(found, default=2**62)


def _of_system() -> int | None:
    """What Linux calls available, elsewhere half of what is built in."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):
        return None


def _of_group() -> int | None:
    """What is left of the limit of the control group, for containers."""
    group = Path("/sys/fs/cgroup")
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            most, now = (int((group / name).read_text(encoding="ascii")) for name in (limit, used))
        except (OSError, ValueError):
            continue
        return max(0, most - now)
    return None


def check_fits(count: int, each: int, what: str, remedy: str) -> None:
    """Refuse to read ``count`` pairs of ``each`` bytes that could not be held.

    Raises:
        InputError: says how much there would be and how many pairs fit.
    """
    room = free_memory()
    if COPIES * count * each <= room:
        return
    fitting = room // (COPIES * each)
    raise InputError(
        what,
        given=f"{count} pairs of {in_words(each)}, with working copies "
        f"{in_words(COPIES * count * each)}",
        expected=f"what fits into the {in_words(room)} of memory that are free: about {fitting} "
        "pairs",
        remedy=remedy,
    )


def in_words(size: float) -> str:
    """A number of bytes.

    >>> in_words(2.5e9), in_words(3e6)
    ('2.5 GB', '3 MB')
    """
    power, unit = next((pair for pair in UNITS if size >= 10 ** pair[0]), UNITS[-1])
    return f"{size / 10**power:.3g} {unit}"
