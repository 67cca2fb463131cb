"""Ranges of settings: one check, one form of message, whatever was handed in."""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable, Iterator, Sequence
from dataclasses import Field, fields
from typing import Any, ClassVar, Literal, Protocol, TypeVar, cast, overload, runtime_checkable

from torch import Tensor

from .errors import InputError

T = TypeVar("T")

FEW = 5
"""A message shows the values of so small a tensor."""


class Record(Protocol):
    """A dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


@runtime_checkable
class _Array(Protocol):
    """A tensor, or an array of any library."""

    @property
    def shape(self) -> object: ...
    def item(self) -> object: ...


def plain(value: T) -> T:
    """A number of NumPy, or in a tensor or array without dimensions, as Python's own; anything else
    as it is.

    Settings are compared, printed and written to files, so one number has one form.
    """
    # why a cast: what is declared as a float may be one of NumPy, and is Python's afterwards
    return cast(T, _plain(value))


def _plain(value: object) -> object:
    if isinstance(value, bool | int | float | str):
        return float(value) if isinstance(value, float) else value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if not isinstance(value, _Array) or value.shape != ():
        return value
    if isinstance(value, Tensor) and value.is_meta:
        return value

    inside = value.item()
    return inside if isinstance(inside, bool | int | float) else value


def tidy(settings: Record) -> None:
    """``plain`` for every field of a dataclass, frozen or not."""
    for name, value in each(settings, *(field.name for field in fields(settings) if field.init)):
        object.__setattr__(settings, name, plain(value))


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
    def construct(self: object, *args: object, **kwargs: object) -> None:
        constructor(self, *map(plain, args), **{k: plain(v) for k, v in kwargs.items()})

    return construct


def shown(value: object) -> str:
    """A value in a message: quoted if it is a word, by name if it is a class, and never long."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Tensor):
        if value.numel() <= FEW and not (value.is_meta or value.is_sparse):
            return f"tensor {value.tolist()}"
        return f"a tensor of shape {tuple(value.shape)}, {value.dtype}"
    text = repr(value)
    return text if len(text) <= 60 else f"{type(value).__name__} {text[:50]}..."


@overload
def check_number(
    name: str,
    value: object,
    allowed: Callable[[float], bool],
    expected: str,
    *,
    integer: bool = False,
    optional: Literal[False] = False,
) -> float: ...
@overload
def check_number(
    name: str,
    value: object,
    allowed: Callable[[float], bool],
    expected: str,
    *,
    integer: Literal[True],
    optional: Literal[True],
) -> int | None: ...
@overload
def check_number(
    name: str,
    value: object,
    allowed: Callable[[float], bool],
    expected: str,
    *,
    integer: Literal[False] = False,
    optional: Literal[True],
) -> float | None: ...
def check_number(
    name: str,
    value: object,
    allowed: Callable[[float], bool],
    expected: str,
    *,
    integer: bool = False,
    optional: bool = False,
) -> float | None:
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
    return None if optional and value is None else _checked(name, value, allowed, expected, integer)


def _checked(
    name: str, value: object, allowed: Callable[[float], bool], expected: str, integer: bool
) -> float:
    """``value`` as a number of Python's own, once it is one that is allowed."""
    number = plain(value)
    kind = int if integer else int | float
    fits = isinstance(number, kind) and not isinstance(number, bool)
    if isinstance(number, int | float) and fits and math.isfinite(number) and allowed(number):
        return number

    what = "an integer" if integer else "a number"
    remedy = "" if fits else f"Pass {what} for {name}."
    raise InputError(name, given=shown(value), expected=expected, remedy=remedy)


@overload
def check_positive(name: str, value: object, *, optional: Literal[False] = False) -> float: ...
@overload
def check_positive(name: str, value: object, *, optional: bool) -> float | None: ...
def check_positive(name: str, value: object, *, optional: bool = False) -> float | None:
    """``check_number`` for the commonest range."""
    if optional and value is None:
        return None
    return _checked(name, value, lambda v: v > 0, "a positive finite number", integer=False)


def check_fraction(name: str, value: object) -> float:
    """``check_number`` for (0, 1)."""
    return _checked(name, value, lambda v: 0 < v < 1, "a number in (0, 1)", integer=False)


@overload
def check_integer(
    name: str, value: object, least: int, *, optional: Literal[False] = False
) -> int: ...
@overload
def check_integer(name: str, value: object, least: int, *, optional: bool) -> int | None: ...
def check_integer(name: str, value: object, least: int, *, optional: bool = False) -> int | None:
    """``check_number`` for integers from ``least`` on."""
    if optional and value is None:
        return None
    expected = f"an integer >= {least}" + (" or None" if optional else "")
    return int(_checked(name, value, lambda v: v >= least, expected, integer=True))


def check_flag(name: str, value: object) -> bool:
    """Refuse anything but True and False.

    Returns:
        The value.

    Raises:
        InputError: names the setting.
    """
    if not isinstance(value, bool):
        raise InputError(
            name, given=shown(value), expected="True or False", remedy=f"Pass {name}=True or False."
        )
    return value


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse anything but one of some words.

    Raises:
        InputError: lists the words.
    """
    if not (isinstance(value, str) and value in choices):
        words = ", ".join(map(repr, choices[:-1])) + f" or {choices[-1]!r}"
        raise InputError(
            name, given=shown(value), expected=words, remedy=f"For example {name}={choices[0]!r}."
        )


def absent(value: object, names: Sequence[str]) -> list[str]:
    """Those of some attributes that an object lacks, for the message of a front door."""
    # why hasattr: the door names every single one, in whatever way the object comes by it
    return [name for name in names if not hasattr(value, name)]


def check_object(
    name: str, value: object, methods: Sequence[str], expected: str, remedy: str
) -> None:
    """Refuse a class, and an object that lacks one of ``methods``.

    Raises:
        InputError: names what is missing.
    """
    if isinstance(value, type):
        raise InputError(
            name, given=shown(value), expected=expected, remedy=f"Make an object of it. {remedy}"
        )
    missing = absent(value, methods)
    if missing:
        given = f"{shown(value)} without {', '.join(missing)}"
        raise InputError(name, given=given, expected=expected, remedy=remedy)
