"""One packing for every state: frozen dataclasses as tensors and plain numbers, and back.

A field may hold a tensor, a number, a word, None, a value of the objective, something that packs
itself (``Packable``), another frozen dataclass, or a tuple, a list or a table of these. Fields
marked by ``transient()`` (a running library, a cache) are left out. The field's annotation says
which class is restored, so nothing in a file chooses code. ``check_kept`` refuses what would not
come back as it was.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, Self, TypeVar, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from .errors import InputError
from .ranges import shown

TRANSIENT = "transient"
"""Key of a field's metadata."""

MADE_OF = "made of"
"""Key of the numbers of a tuple, a list, a table or a NumPy number: which of these it is. No field
has such a name.
"""

NUMPY = {
    name: np.dtype(name).type
    for name in (
        "bool",
        *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
        *(f"float{bits}" for bits in (16, 32, 64)),
    )
}
"""The NumPy numbers that are kept."""

FIT = (
    "what a checkpoint gives back as it was: tensors without gradients, numbers, words, None, "
    "values of the objective, frozen dataclasses named by the annotation, and tuples, lists and "
    "tables of these with words or numbers as keys"
)

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
        if field.init and not field.metadata.get(TRANSIENT):
            # why getattr: a class with slots has no table of its fields
            yield field.name, getattr(state, field.name)


PackValue = Callable[[Valued], Packed]


def _own_form(value: Valued) -> Packed:
    return value.pack()


def pack(state: object, of_value: PackValue = _own_form) -> Packed:
    """A state as tensors and plain numbers.

    Args:
        of_value: packs a value of the objective.
    """
    packed = Packed({}, {})
    for name, content in _kept(state):
        packed = _with(packed, name, content, of_value)
    return packed


def _with(packed: Packed, name: str, content: object, of_value: PackValue) -> Packed:
    if isinstance(content, Tensor):
        return Packed(packed.tensors | {name: content}, packed.numbers)
    if isinstance(content, np.ndarray):  # a copy: torch has no negative strides
        array = torch.from_numpy(np.array(content))
        return Packed(packed.tensors | {name: array}, packed.numbers)
    if isinstance(content, np.generic):
        number = {MADE_OF: content.dtype.name, "value": content.item()}
        return Packed(packed.tensors, packed.numbers | {name: number})
    if isinstance(content, Valued) and not isinstance(content, Packable):
        return packed.holding(name, of_value(content))
    if isinstance(content, Packable):
        return packed.holding(name, content.pack())
    if dataclasses.is_dataclass(content):
        return packed.holding(name, pack(content, of_value))
    if isinstance(content, tuple | list):
        made_of = "tuple" if isinstance(content, tuple) else "list"
        return packed.holding(name, _items({MADE_OF: made_of}, content, of_value))
    if isinstance(content, dict):  # the keys in their order, which a file of tensors would lose
        numbers: dict[str, object] = {MADE_OF: "table", "keys": list(content)}
        return packed.holding(name, _items(numbers, list(content.values()), of_value))
    return Packed(packed.tensors, packed.numbers | {name: content})


def _items(
    numbers: dict[str, object], items: tuple[object, ...] | list[object], of_value: PackValue
) -> Packed:
    inner = Packed({}, numbers | {"length": len(items)})
    for k, item in enumerate(items):
        inner = _with(inner, str(k), item, of_value)
    return inner


def unpack(kind: type[T], packed: Packed, restore: Restore) -> T:
    """The inverse of ``pack``.

    Args:
        kind: the class of the state.
        restore: makes a value of the objective, ``Objective.restore``.
    """
    hints = _hints(kind)
    found = {
        field.name: _read(hints.get(field.name, object), packed, field.name, restore)
        for field in dataclasses.fields(cast("type[typing.Any]", kind))
        if field.init and not field.metadata.get(TRANSIENT)
    }
    return kind(**found)


def _hints(kind: type) -> dict[str, object]:
    """The annotations of a class; none where they name what is known inside a function only."""
    try:
        return typing.get_type_hints(kind)
    except NameError:
        return {}


def _read(hint: object, packed: Packed, name: str, restore: Restore) -> object:
    """The content of a field."""
    kind, items = _class_of(hint)
    if name in packed.tensors:
        tensor = packed.tensors[name]
        return tensor.cpu().numpy() if kind is np.ndarray else tensor
    numbers = packed.numbers.get(name)
    if not isinstance(numbers, dict):
        return numbers

    made_of = numbers.get(MADE_OF)
    if made_of in NUMPY:
        return NUMPY[made_of](numbers["value"])
    part = packed.part(name)
    if made_of is None and kind is dict:  # as earlier checkpoints have it
        return part.tensors | part.numbers
    if made_of is None and kind is tuple:
        made_of = "tuple"
    if made_of is not None:
        return _container(str(made_of), kind, items, part, restore)
    if isinstance(kind, type) and {"pack", "corrected"} <= set(dir(kind)):
        return restore(part)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and not _packs_itself(kind):
        return unpack(kind, part, restore)
    if isinstance(kind, type) and _packs_itself(kind):
        return kind.unpack(part)
    return restore(part)


def _container(
    made_of: str, kind: object, items: tuple[object, ...], part: Packed, restore: Restore
) -> object:
    """A tuple, a list or a table; its annotation says of what, if it says anything."""
    length = cast("int", part.numbers["length"])
    of_each: tuple[object, ...]
    if made_of == "table":
        of_each = items[-1:] * length
    elif kind is tuple and len(items) == length and ... not in items:
        of_each = items
    else:
        of_each = items[:1] * length
    found = tuple(_read(of_each[k], part, str(k), restore) for k in range(length))
    if made_of == "table":
        return dict(zip(cast("list[str]", part.numbers["keys"]), found, strict=True))
    return list(found) if made_of == "list" else found


def _packs_itself(kind: type) -> typing.TypeGuard[type[Packable]]:
    return {"pack", "unpack", "double"} <= set(dir(kind))


def _class_of(hint: object) -> tuple[object, tuple[object, ...]]:
    """The class that an annotation names, None left aside, and those of its items."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        rest = [h for h in typing.get_args(hint) if h is not types.NoneType]
        hint = rest[0] if len(rest) == 1 else object
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
    if isinstance(content, list):
        return [_wide(item, adopt) for item in content]
    if isinstance(content, dict):
        return {key: _wide(item, adopt) for key, item in content.items()}
    return content


# --- the way there and back -----------------------------------------------------------------------


def outline(content: object) -> object:
    """Of which classes something consists: two states with the same one are kept alike."""
    kind = type(content)
    if isinstance(content, Tensor):
        return kind, content.dtype, content.requires_grad
    if isinstance(content, Packable | Valued):
        return kind
    if dataclasses.is_dataclass(content) and not isinstance(content, type):
        return (kind, *((name, outline(item)) for name, item in _kept(content)))
    if isinstance(content, tuple | list):
        return kind, frozenset(map(outline, content))
    if isinstance(content, dict):
        return kind, frozenset((type(key), outline(item)) for key, item in content.items())
    return kind


def check_kept(state: object, kind: type, learner: str) -> None:
    """Refuse a state that a checkpoint would not give back as it was: same classes, same numbers.

    It goes the way of a checkpoint without its file, and takes the values of the objective as they
    are: nothing is computed.

    Args:
        kind: the class that would be restored.
        learner: its name in the message.

    Raises:
        InputError: names the learner and the field.
    """
    if not dataclasses.is_dataclass(state) or isinstance(state, type):
        raise _unkept(learner, "its state", state)
    if type(state) is not kind:
        raise _unkept(learner, f"its state, declared as {kind.__name__}", state)
    hints = _hints(kind)
    for name, content in _kept(state):
        try:
            again = _there_and_back(name, content, hints.get(name, object))
        except Exception as error:  # whatever it is, a resumed run would meet it
            where, what = next(_leaves(name, content), (name, content))
            raise _unkept(learner, where, what) from error
        for where, what in _apart(name, content, again):
            raise _unkept(learner, where, what)


def _unkept(learner: str, where: str, content: object) -> InputError:
    remedy = "Hold one of these, or mark the field with transient() if it can be made anew."
    given = f"{where} = {shown(content)} ({type(content).__name__})"
    return InputError(f"checkpoint of {learner}", given=given, expected=FIT, remedy=remedy)


def _there_and_back(name: str, content: object, hint: object) -> object:
    values: list[Valued] = []

    def number(value: Valued) -> Packed:
        _through_json(value.pack())
        values.append(value)
        return Packed({}, {"value": len(values) - 1})

    def known(packed: Packed) -> object:
        return values[cast("int", packed.numbers["value"])]

    packed = _through_json(_with(Packed({}, {}), name, content, number))
    return _read(hint, packed, name, known)


def _through_json(packed: Packed) -> Packed:
    """Tensors as the file of a checkpoint gives them back, but in the same memory.

    Raises:
        TypeError, KeyError: what no file can hold.
    """
    from safetensors.torch import save

    for dtype in {tensor.dtype for tensor in packed.tensors.values()}:
        save({"x": torch.zeros(1, dtype=dtype)})
    tensors = {key: tensor.detach() for key, tensor in packed.tensors.items()}
    if any(tensor.layout is not torch.strided for tensor in tensors.values()):
        raise TypeError("a sparse tensor")
    return Packed(tensors, json.loads(json.dumps(packed.numbers)))


def _leaves(where: str, content: object) -> Iterator[tuple[str, object]]:
    """The parts of something that no checkpoint can hold, by their places."""
    if isinstance(content, Packable | Valued | Tensor | np.ndarray):
        return
    if dataclasses.is_dataclass(content) and not isinstance(content, type):
        for name, item in _kept(content):
            yield from _leaves(f"{where}.{name}", item)
    elif isinstance(content, tuple | list):
        for k, item in enumerate(content):
            yield from _leaves(f"{where}[{k}]", item)
    elif isinstance(content, dict):
        for key, item in content.items():
            yield from _leaves(f"{where}[{key!r}]", item)
    elif type(content) not in (bool, int, float, str, types.NoneType, *NUMPY.values()):
        yield where, content


def _apart(where: str, one: object, two: object) -> Iterator[tuple[str, object]]:
    """The parts in which two differ, by their places, as the first has them."""
    if type(one) is not type(two):
        yield where, one
    elif isinstance(one, Tensor):
        assert isinstance(two, Tensor)  # its numbers lie in the same memory
        if one.requires_grad != two.requires_grad:
            yield where, one
    elif isinstance(one, np.ndarray):
        assert isinstance(two, np.ndarray)
        alike = one.dtype == two.dtype and one.shape == two.shape
        if not alike or one.tobytes() != two.tobytes():
            yield where, one
    elif isinstance(one, Packable | Valued):
        if one is not two and not (isinstance(one, Packable) and _packed_alike(one, two)):
            yield where, one
    elif dataclasses.is_dataclass(one) and not isinstance(one, type):
        for field in dataclasses.fields(one):
            if not field.metadata.get(TRANSIENT):
                a, b = getattr(one, field.name), getattr(two, field.name)
                yield from _apart(f"{where}.{field.name}", a, b)
    elif isinstance(one, tuple | list):
        assert isinstance(two, tuple | list)
        for k, (a, b) in enumerate(zip(one, two, strict=True)):
            yield from _apart(f"{where}[{k}]", a, b)
    elif isinstance(one, dict):
        assert isinstance(two, dict)
        for (key, a), (other, b) in zip(one.items(), two.items(), strict=True):
            if type(key) is not type(other) or key != other:
                yield f"the key {key!r} of {where}", one
            yield from _apart(f"{where}[{key!r}]", a, b)
    elif not (one == two or (one != one and two != two)):
        yield where, one


def _packed_alike(one: Packable, two: object) -> bool:
    """Whether two that pack themselves hold the same, NaN included."""
    assert isinstance(two, Packable)
    a, b = one.pack(), two.pack()
    return (
        a.tensors.keys() == b.tensors.keys()
        and json.dumps(a.numbers) == json.dumps(b.numbers)
        and all(
            v.dtype == b.tensors[k].dtype and v.allclose(b.tensors[k], 0, 0, equal_nan=True)
            for k, v in a.tensors.items()
        )
    )
