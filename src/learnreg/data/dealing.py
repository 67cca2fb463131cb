"""Pairs dealt to the two sides of a split, group by group."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch

from ..core.errors import InputError
from ..core.ranges import plain, shown
from .seeds import generator

Amount = int | float | None
Split = Sequence[Amount] | None
"""Numbers of pairs or fractions of all, per side; None for what the others leave."""

Group = Callable[[str], str] | str | None

DEFAULT: tuple[Amount, ...] = (None, 0.2)
_REMEDY = (
    "Pass numbers such as (24, 8), fractions such as (0.8, 0.2), (None, 8) for all others, or "
    "(1.0, 0.0) for no test pairs; three of them for training, validation and test."
)


def dealt(names: Sequence[str], split: Split, seed: int, group: Group) -> list[list[int]]:
    """The places of the pairs of every side; no group is on two sides.

    Numbers are kept to; fractions are as near as whole groups allow.

    Args:
        names: of all pairs.
        split: one amount per side, training first; None for a fifth in the test if there are two
            groups.
        seed: of the order.
        group: see :func:`learnreg.data.measured.measured`.

    Raises:
        InputError: a split that is none, more than there is, fewer groups than sides.
    """
    groups: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        groups.setdefault(_group_of(name, group), []).append(place)
    if split is None and len(groups) == 1:
        return [list(range(len(names))), []]
    amounts = _checked(DEFAULT if split is None else split)
    wanted = _numbers(amounts, len(names))

    order = torch.randperm(len(groups), generator=generator(seed, "deal")).tolist()
    whole = list(groups.values())
    members = [whole[i] for i in order]
    sides: list[list[int]] = []
    for number in reversed(wanted[1:]):
        side: list[int] = []
        while len(side) < number and members:
            side += members.pop()
        sides.insert(0, side[:number])
    sides.insert(0, [place for group_members in members for place in group_members][: wanted[0]])

    for amount, number, side in zip(amounts, wanted, sides, strict=True):
        least = number if isinstance(amount, int) else min(number, 1)
        if len(side) < least:
            raise InputError(
                "split",
                given=f"{shown(tuple(split) if split else split)} of {len(names)} pairs in "
                f"{len(groups)} {'groups' if group else 'files or rows'}",
                expected="at most what there is, with no group on two sides",
                remedy="Ask for fewer, or for finer groups." if group else "Ask for fewer.",
            )
    return sides


def _checked(split: object) -> tuple[Amount, ...]:
    """A split as two or three amounts."""
    if not isinstance(split, Sequence) or isinstance(split, str) or len(split) not in (2, 3):
        raise InputError("split", given=shown(split), expected="2 or 3 amounts", remedy=_REMEDY)
    amounts = tuple(map(plain, split))
    given = [n for n in amounts if n is not None]
    numbers = all(isinstance(n, int | float) and not isinstance(n, bool) for n in given)
    kinds = {type(n) for n in given if n != 0}
    if not numbers or len(kinds) > 1 or len(given) < len(amounts) - 1:
        raise InputError(
            "split",
            given=shown(split),
            expected="numbers of pairs or fractions, not both, and at most one None",
            remedy=_REMEDY,
        )
    total = sum(given)
    few = not total and None not in amounts
    if min(given, default=0) < 0 or few or (kinds == {float} and total > 1 + 1e-9):
        raise InputError(
            "split",
            given=shown(split),
            expected="at least one pair; fractions of at most 1 in all",
            remedy=_REMEDY,
        )
    return amounts


def _numbers(amounts: Sequence[Amount], total: int) -> list[int]:
    """Amounts as numbers of pairs; a fraction of several pairs is at least one of them."""
    numbers = [
        max(round(n * total), int(n > 0 and total > 1)) if isinstance(n, float) else n
        for n in amounts
    ]
    rest = total - sum(n for n in numbers if n is not None)
    found = [max(rest, int(total > 0)) if n is None else n for n in numbers]
    if any(isinstance(n, float) for n in amounts):  # rounding may have given out one too many
        found[0] = min(found[0], max(total - sum(found[1:]), int(found[0] > 0)))
    return found


def _group_of(name: str, group: Group) -> str:
    """The group of a pair; each is one of its own where nothing is said."""
    if group is None:
        return name
    if not isinstance(group, str):
        return str(group(name))
    try:
        found = re.search(group, name)
    except re.error as error:
        raise InputError(
            "group",
            given=f"{group!r} ({error})",
            expected="a regular expression",
            remedy=r"For example group='^([^_]+)_' for what stands before the first underscore.",
        ) from None
    if found is None:
        raise InputError(
            "group",
            given=f"{group!r}, which is not found in the name {name!r}",
            expected="a regular expression that finds the group in every name",
            remedy=r"For example group='^([^_]+)_' for what stands before the first underscore.",
        )
    return found.group(1) if found.groups() and found.group(1) is not None else found.group()
