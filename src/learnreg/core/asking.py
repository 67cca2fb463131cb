"""How an object of the user's own is asked whether it offers something."""

from __future__ import annotations

import functools
import inspect
from typing import TypeGuard, TypeVar

T = TypeVar("T")


def offers(part: object, kind: type[T]) -> TypeGuard[T]:
    """Whether ``part`` has every member of the protocol ``kind``, however it comes by them: as
    methods and attributes, as submodules, or because a wrapper hands on what is inside it
    (``torch.compile`` makes one). None is no offer.

    ``isinstance`` is no way to ask: from Python 3.12 on it overlooks what ``__getattr__`` makes up.
    A wrapper would lose its ``bounds_for`` in silence, and with it the L that holds for volumes.
    """
    protocol: type = kind
    return all(getattr(part, name, None) is not None for name in _members(protocol))


@functools.cache
def _members(kind: type) -> tuple[str, ...]:
    annotated = (name for base in kind.__mro__ for name in inspect.get_annotations(base))
    return tuple(sorted({n for n in (*dir(kind), *annotated) if not n.startswith("_")}))
