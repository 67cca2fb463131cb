"""Pairs dealt to the two sides of a split, group by group."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch

from ..core.errors import InputError
from .seeds import generator

Split = tuple[int, int] | tuple[float, float] | None
Group = Callable[[str], str] | str | None

DEFAULT = (0.8, 0.2)
_REMEDY = (
    "Pass numbers such as (24, 8), fractions such as (0.8, 0.2), or (1.0, 0.0) for no test pairs."
)


def dealt(names: Sequence[str], split: Split, seed: int, group: Group) -> list[list[int]]:
    """The places of the training and of the test pairs; no group is on both sides.

    Args:
        names: of all pairs.
        split: numbers, fractions or None (a fifth for the test, if there are two groups).
        seed: of the order.
        group: see :func:`learnreg.data.measured.measured`.

    Raises:
        InputError: a split that is none, more than there is, one group for two sides.
    """
    groups: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        groups.setdefault(_group_of(name, group), []).append(place)
    if split is None and len(groups) == 1:
        return [list(range(len(names))), []]
    exact = split is not None and not any(isinstance(n, float) for n in split)
    n_train, n_test = _numbers(DEFAULT if split is None else split, len(names))

    order = torch.randperm(len(groups), generator=generator(seed, "deal")).tolist()
    shuffled = [list(groups.values())[i] for i in order]
    test: list[int] = []
    while len(test) < n_test and shuffled:
        test += shuffled.pop()
    train = [place for members in shuffled for place in members]
    least = n_train if exact else min(n_train, 1)  # fractions are as near as whole groups allow
    if len(test) < n_test or len(train) < least:
        raise InputError(
            "split",
            given=f"{n_train} training and {n_test} test pairs of {len(names)} in "
            f"{len(groups)} group(s)",
            expected="at most what there is, with no group on both sides",
            remedy="Ask for fewer, or for finer groups." if group else "Ask for fewer.",
        )
    return [train[:n_train], test[:n_test]]


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


def _numbers(split: object, total: int) -> tuple[int, int]:
    """A split as numbers of pairs."""
    if not isinstance(split, tuple | list) or len(split) != 2:
        raise InputError("split", given=repr(split), expected="two numbers", remedy=_REMEDY)
    if any(isinstance(n, bool) or not isinstance(n, int | float) for n in split):
        raise InputError("split", given=repr(split), expected="two numbers", remedy=_REMEDY)
    if any(isinstance(n, float) for n in split):
        train, test = (float(n) for n in split)
        if not (min(train, test) >= 0 and 0 < train + test <= 1 + 1e-9):
            raise InputError(
                "split",
                given=repr(tuple(split)),
                expected="fractions of at least 0 and at most 1 in all",
                remedy=_REMEDY,
            )
        n_test = round(test * total)
        if test > 0 and total > 1:
            n_test = min(max(n_test, 1), total - (1 if train > 0 else 0))
        return min(round(train * total), total - n_test) or int(train > 0), n_test
    n_train, n_test = split
    if min(n_train, n_test) < 0 or n_train + n_test == 0:
        raise InputError(
            "split", given=repr(tuple(split)), expected="at least one pair", remedy=_REMEDY
        )
    return int(n_train), int(n_test)
