"""One packing for every state: frozen dataclasses as tensors and plain numbers, and back.

A field may hold a tensor, a number, a word, None, a value of the objective, something that packs
itself (``Packable``), another frozen dataclass, or a tuple or a table of these. Fields marked by
``transient()`` (a running library, a cache) are left out. The field's annotation says which class
is restored, so nothing in a file chooses code.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, Self, TypeVar, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor

TRANSIENT = "transient"
"""Key of a field's metadata."""

T = TypeVar("T")


class Packed(NamedTuple):
    """A state as a checkpoint keeps it.

    Attributes:
        tensors: to any depth of one.
        numbers: plain JSON values.
    """

    tensors: dict[str, Tensor]
    numbers: dict[str, object]

    def holding(self, name: str, part: Packed) -> Packed:
        """With another one inside, under ``name``."""
        tensors = {f"{name}.{k}": v for k, v in part.tensors.items()}
        return Packed(self.tensors | tensors, self.numbers | {name: part.numbers})

    def part(self, name: str) -> Packed:
        """What ``holding`` put there."""
        prefix = f"{name}."
        tensors = {
            k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)
        }
        return Packed(tensors, cast("dict[str, object]", self.numbers[name]))


@runtime_checkable
class Packable(Protocol):
    """Something that packs itself, unpacks by a class method, and has a float64 form."""

    def pack(self) -> Packed: ...

    @classmethod
    def unpack(cls, packed: Packed) -> Self: ...

    def double(self) -> Self: ...


@runtime_checkable
class Valued(Protocol):
    """A value of an objective, which alone can restore it."""

    def pack(self) -> Packed: ...

    def corrected(self, adjoint: Tensor | None) -> float: ...


Restore = Callable[[Packed], object]


def transient() -> object:
    """A field that no checkpoint keeps: None after a restart."""
    return dataclasses.field(default=None, compare=False, repr=False, metadata={TRANSIENT: True})


def _kept(state: object) -> Iterator[tuple[str, object]]:
    """Names and contents of the fields that are kept."""
    assert dataclasses.is_dataclass(state)
    for field in dataclasses.fields(state):
        if not field.metadata.get(TRANSIENT):
            yield field.name, vars(state)[field.name]


def pack(state: object) -> Packed:
    """A state as tensors and plain numbers."""
    packed = Packed({}, {})
    for name, content in _kept(state):
        packed = _with(packed, name, content)
    return packed


def _with(packed: Packed, name: str, content: object) -> Packed:
    if isinstance(content, Tensor):
        return Packed(packed.tensors | {name: content}, packed.numbers)
    if isinstance(content, np.ndarray):
        return Packed(packed.tensors | {name: torch.from_numpy(content)}, packed.numbers)
    if isinstance(content, Packable | Valued):
        return packed.holding(name, content.pack())
    if dataclasses.is_dataclass(content):
        return packed.holding(name, pack(content))
    if isinstance(content, tuple):
        inner = Packed({}, {"length": len(content)})
        for k, item in enumerate(content):
            inner = _with(inner, str(k), item)
        return packed.holding(name, inner)
    if isinstance(content, dict) and any(isinstance(v, Tensor) for v in content.values()):
        tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)}
        rest = {k: v for k, v in content.items() if k not in tensors}
        return packed.holding(name, Packed(tensors, rest))
    return Packed(packed.tensors, packed.numbers | {name: content})


def unpack(kind: type[T], packed: Packed, restore: Restore) -> T:
    """The inverse of ``pack``.

    Args:
        kind: the class of the state.
        restore: makes a value of the objective, ``Objective.restore``.
    """
    hints = typing.get_type_hints(kind)
    found = {
        field.name: _read(hints[field.name], packed, field.name, restore)
        for field in dataclasses.fields(cast("type[typing.Any]", kind))
        if not field.metadata.get(TRANSIENT)
    }
    return kind(**found)


def _read(hint: object, packed: Packed, name: str, restore: Restore) -> object:
    """The content of a field."""
    kind, items = _class_of(hint)
    if name in packed.tensors:
        tensor = packed.tensors[name]
        return tensor.cpu().numpy() if kind is np.ndarray else tensor
    numbers = packed.numbers.get(name)
    if not isinstance(numbers, dict):
        return numbers

    part = packed.part(name)
    if kind is dict:
        return part.tensors | part.numbers
    if kind is tuple:
        length = cast("int", part.numbers["length"])
        of_each = items if len(items) == length and ... not in items else items[:1] * length
        return tuple(_read(of_each[k], part, str(k), restore) for k in range(length))
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and not _packs_itself(kind):
        return unpack(kind, part, restore)
    if isinstance(kind, type) and _packs_itself(kind):
        return kind.unpack(part)
    return restore(part)


def _packs_itself(kind: type) -> typing.TypeGuard[type[Packable]]:
    return {"pack", "unpack", "double"} <= set(dir(kind))


def _class_of(hint: object) -> tuple[object, tuple[object, ...]]:
    """The class that an annotation names, None left aside, and those of its items."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        (hint,) = (h for h in typing.get_args(hint) if h is not types.NoneType)
    origin = typing.get_origin(hint) or hint
    return origin, typing.get_args(hint) or (object,)


def widened(state: T, adopt: Callable[..., object]) -> T:
    """A state in float64.

    Args:
        adopt: takes a value of the objective in float32 to that in float64, ``Objective.adopt``.
    """
    assert dataclasses.is_dataclass(state) and not isinstance(state, type)
    changes = {name: _wide(content, adopt) for name, content in _kept(state)}
    return dataclasses.replace(state, **changes)


def _wide(content: object, adopt: Callable[..., object]) -> object:
    if isinstance(content, Tensor):
        # counters without dimensions keep their type: an optimizer compares them by value
        return content.double() if content.is_floating_point() and content.dim() else content
    if isinstance(content, Packable):
        return content.double()
    if isinstance(content, Valued):
        return adopt(content)
    if dataclasses.is_dataclass(content) and not isinstance(content, type):
        return widened(content, adopt)
    if isinstance(content, tuple):
        return tuple(_wide(item, adopt) for item in content)
    if isinstance(content, dict):
        return {key: _wide(item, adopt) for key, item in content.items()}
    return content
