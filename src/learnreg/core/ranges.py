"""Ranges of numeric settings: one check, one form of message, whatever was handed in."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .errors import InputError


def check_number(
    name: str,
    value: Any,
    allowed: Callable[[float], bool],
    expected: str,
    *,
    integer: bool = False,
    optional: bool = False,
) -> None:
    """Refuse anything but a finite number with ``allowed(value)``; booleans and strings are no
    numbers.

    Args:
        expected: how the range reads in the message.
        integer: only integers.
        optional: None passes as well.

    Raises:
        InputError: names the setting, the value and the range.
    """
    if optional and value is None:
        return
    kind: Any = int if integer else int | float
    if (
        isinstance(value, kind)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and allowed(value)
    ):
        return
    raise InputError(name, given=value, expected=expected)


def check_positive(name: str, value: Any, *, optional: bool = False) -> None:
    """``check_number`` for the commonest range."""
    check_number(name, value, lambda v: v > 0, "a positive finite number", optional=optional)


def check_fraction(name: str, value: Any) -> None:
    """``check_number`` for (0, 1)."""
    check_number(name, value, lambda v: 0 < v < 1, "a number in (0, 1)")
