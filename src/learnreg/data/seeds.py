"""One seed per item: derived from the user's seed and the item's name, never from its place in a
queue.
"""

from __future__ import annotations

import hashlib

import torch

from ..core.errors import InputError
from ..core.ranges import plain, shown


def check_count(value: object, what: str, *, least: int, remedy: str) -> int:
    """``value`` as a whole number of at least ``least``.

    Raises:
        InputError: not an integer (True and 3.0 are refused as well), or too small.
    """
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, int) or number < least:
        raise InputError(
            what, given=shown(value), expected=f"a whole number >= {least}", remedy=remedy
        )
    return number


def check_seed(seed: object) -> int:
    """``seed`` as a non-negative integer.

    Raises:
        InputError: anything else, None included: data without a seed could not be made again.
    """
    return check_count(
        seed, "seed", least=0, remedy="Pass for example seed=0: data are named by their seed."
    )


def derive(seed: int, *labels: str | int) -> int:
    """A seed for the item called ``labels``, the same on every machine and for any number of other
    items.
    """
    text = "\x1f".join(map(str, (seed, *labels)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *labels: str | int) -> torch.Generator:
    """A CPU generator of its own for the item called ``labels``; torch's global generator is not
    involved.
    """
    return torch.Generator().manual_seed(derive(seed, *labels))
