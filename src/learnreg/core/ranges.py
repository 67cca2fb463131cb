"""Ranges of settings: one check, one form of message, whatever was handed in."""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any

from torch import Tensor

from .errors import InputError

FEW = 5
"""A message shows the values of so small a tensor."""


def plain(value: Any) -> Any:
    """A number of NumPy, or in a tensor or array without dimensions, as Python's own; anything else
    as it is.

    Settings are compared, printed and written to files, so one number has one form.
    """
    if isinstance(value, bool | int | float | str):
        return float(value) if isinstance(value, float) else value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    single = getattr(value, "shape", None) == () and hasattr(value, "item")
    if not single or getattr(value, "is_meta", False):
        return value

    inside = value.item()
    return inside if isinstance(inside, bool | int | float) else value


def tidy(settings: Any) -> None:
    """``plain`` for every field of a dataclass, frozen or not."""
    for field in fields(settings):
        if field.init:
            object.__setattr__(settings, field.name, plain(getattr(settings, field.name)))


def each(settings: object, *names: str) -> Iterator[tuple[str, object]]:
    """The named settings of an object, name by name: what a loop of checks goes through.

    >>> from types import SimpleNamespace
    >>> for name, value in each(SimpleNamespace(eps0=0.1, delta0=0.2), "eps0", "delta0"):
    ...     check_positive(name, value)
    0.1
    0.2
    """
    values = vars(settings)
    for name in names:
        yield name, values[name]


def plain_arguments(constructor: Callable[..., None]) -> Callable[..., None]:
    """``plain`` for every argument of a constructor."""

    @functools.wraps(constructor)
    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        constructor(self, *map(plain, args), **{k: plain(v) for k, v in kwargs.items()})

    return construct


def shown(value: Any) -> str:
    """A value in a message: quoted if it is a word, by name if it is a class, and never long."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Tensor):
        if value.numel() <= FEW and not (value.is_meta or value.is_sparse):
            return f"tensor {value.tolist()}"
        return f"a tensor of shape {tuple(value.shape)}, {value.dtype}"
    text = repr(value)
    return text if len(text) <= 60 else f"{type(value).__name__} {text[:50]}..."


def check_number(
    name: str,
    value: Any,
    allowed: Callable[[float], bool],
    expected: str,
    *,
    integer: bool = False,
    optional: bool = False,
) -> Any:
    """Refuse anything but a finite number with ``allowed(value)``; booleans and strings are no
    numbers.

    Args:
        expected: how the range reads in the message.
        integer: only integers.
        optional: None passes as well.

    Returns:
        The value as Python's own int or float, or None.

    Raises:
        InputError: names the setting, the value and the range.
    """
    if optional and value is None:
        return None

    number = plain(value)
    kind: Any = int if integer else int | float
    real = isinstance(number, int | float) and not isinstance(number, bool)
    if real and isinstance(number, kind) and math.isfinite(number) and allowed(number):
        return number

    what = "an integer" if integer else "a number"
    remedy = "" if real and isinstance(number, kind) else f"Pass {what} for {name}."
    raise InputError(name, given=shown(value), expected=expected, remedy=remedy)


def check_positive(name: str, value: Any, *, optional: bool = False) -> Any:
    """``check_number`` for the commonest range."""
    return check_number(name, value, lambda v: v > 0, "a positive finite number", optional=optional)


def check_fraction(name: str, value: Any) -> Any:
    """``check_number`` for (0, 1)."""
    return check_number(name, value, lambda v: 0 < v < 1, "a number in (0, 1)")


def check_integer(name: str, value: Any, least: int, *, optional: bool = False) -> Any:
    """``check_number`` for integers from ``least`` on."""
    return check_number(
        name,
        value,
        lambda v: v >= least,
        f"an integer >= {least}",
        integer=True,
        optional=optional,
    )


def check_flag(name: str, value: Any) -> None:
    """Refuse anything but True and False.

    Raises:
        InputError: names the setting.
    """
    if not isinstance(value, bool):
        raise InputError(
            name, given=shown(value), expected="True or False", remedy=f"Pass {name}=True or False."
        )


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Refuse anything but one of some words.

    Raises:
        InputError: lists the words.
    """
    if not (isinstance(value, str) and value in choices):
        words = ", ".join(map(repr, choices[:-1])) + f" or {choices[-1]!r}"
        raise InputError(
            name, given=shown(value), expected=words, remedy=f"For example {name}={choices[0]!r}."
        )


def check_object(name: str, value: Any, methods: Sequence[str], expected: str, remedy: str) -> None:
    """Refuse a class, and an object that lacks one of ``methods``.

    Raises:
        InputError: names what is missing.
    """
    if isinstance(value, type):
        raise InputError(
            name, given=shown(value), expected=expected, remedy=f"Make an object of it. {remedy}"
        )
    missing = [m for m in methods if not hasattr(value, m)]
    if missing:
        given = f"{shown(value)} without {', '.join(missing)}"
        raise InputError(name, given=given, expected=expected, remedy=remedy)
