"""Datasets and loaders of PyTorch as images and measurements in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .asking import offers
from .errors import InputError
from .measured import Native, tensors_of
from .memory import check_fits

REMEDY = "Pass limit=, the number of pairs to use, or a torch.utils.data.Subset."
_FORM = "(x, y) or (x, y, params), with tensors of single images"


@dataclass(frozen=True, eq=False)
class Collected:
    """What a dataset holds, stacked.

    Attributes:
        x: true images (n, c, ...); None where the dataset has no truth.
        y: measurements (n, ...), or a list of such tensors.
        params: tensors of the operator per image, (n, ...).
    """

    x: Tensor | None
    y: Native
    params: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return tensors_of(self.y)[0].shape[0]


@dataclass(frozen=True, eq=False)
class _Item:
    """One image, or one batch of them."""

    x: Tensor | None
    y: tuple[Tensor, ...]
    params: Mapping[str, Tensor]
    listed: bool

    @property
    def parts(self) -> dict[str, Tensor]:
        """All tensors by their names in messages."""
        x = {} if self.x is None else {"x": self.x}
        ys = {f"y[{i}]" if self.listed else "y": t for i, t in enumerate(self.y)}
        return {**x, **ys, **{f"params[{k!r}]": t for k, t in self.params.items()}}


class _InMemory(Protocol):
    """Pairs that are a dataset as well."""

    x: object
    y: object


def is_dataset(thing: object) -> bool:
    """Whether this is a ``Dataset`` or ``DataLoader`` of PyTorch, and no pairs in memory."""
    if offers(thing, _InMemory) and isinstance(thing.x, Tensor):
        return False
    return isinstance(thing, Dataset | DataLoader)


def collect(dataset: object, limit: int | None = None) -> Collected:
    """Read a dataset of pairs into memory, after a look at its first item.

    Items follow the conventions of deepinv: (x, y), (x, y, params) with a dictionary of operator
    parameters, or a dictionary with these keys; an x of a single NaN stands for no truth. Items of
    a ``Dataset`` are single images (c, ...), those of a ``DataLoader`` batches (b, c, ...).

    Args:
        dataset: a ``torch.utils.data.Dataset`` or ``DataLoader``.
        limit: how many pairs to use, the first ones; all when None.

    Raises:
        InputError: no pairs, items of another form or of different shapes (the item is named), or
            more than fits into memory.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise InputError(
            "limit", given=repr(limit), expected="a positive number of pairs", remedy=REMEDY
        )
    batched = isinstance(dataset, DataLoader) and dataset.batch_sampler is not None
    known = _length(dataset, limit)
    items: list[_Item] = []
    count = 0
    for index, raw in enumerate(_each(dataset)):
        item = _item(raw, index, batched)
        first = items[0] if items else item
        _check_alike(item, first, index)
        size = item.y[0].shape[0]
        if not items:
            bytes_each = sum(t.nbytes for t in item.parts.values()) // max(size, 1)
        check_fits(max(known or 0, count + size), bytes_each, "dataset", REMEDY)
        items.append(item)
        count += size
        if limit is not None and count >= limit:
            break
    if not items:
        raise InputError(
            "dataset", given="no items", expected="at least one pair", remedy="Check its folder."
        )

    return _stacked(items, limit)


def _length(dataset: object, limit: int | None) -> int | None:
    """How many pairs there will be, where the dataset knows."""
    source = dataset.dataset if isinstance(dataset, DataLoader) else dataset
    try:
        length = len(source) if isinstance(source, Sized) else None
    except (TypeError, NotImplementedError):  # streams have the method, but no answer
        length = None
    return limit if length is None else min(length, limit or length)


def _each(dataset: object) -> Iterator[object]:
    """The items, one after the other."""
    if isinstance(dataset, DataLoader | Iterable):
        yield from dataset
    elif isinstance(dataset, Dataset) and isinstance(dataset, Sized):
        # why not iter(): the old protocol waits for an IndexError that not every dataset raises
        yield from (dataset[i] for i in range(len(dataset)))
    else:
        raise InputError(
            "dataset",
            given=f"a {type(dataset).__name__} with neither a length nor an iterator",
            expected="a Dataset with __len__ and __getitem__, or a DataLoader",
            remedy="Give it a __len__.",
        )


def _item(raw: object, index: int, batched: bool) -> _Item:
    """One item taken apart, with a batch axis."""
    if isinstance(raw, Mapping):
        parts: Sequence[object] = [raw.get("x"), raw.get("y"), raw.get("params", {})]
    else:
        parts = raw if isinstance(raw, list | tuple) else [raw]
    if len(parts) not in (2, 3) or (len(parts) == 3 and not isinstance(parts[2], Mapping)):
        raise InputError(
            f"item {index} of the dataset",
            given=type(raw).__name__
            + (f" of {len(parts)}" if isinstance(raw, list | tuple) else ""),
            expected=_FORM,
            remedy="Wrap the dataset in one that returns such pairs.",
        )
    given = parts[2] if len(parts) == 3 else {}
    assert isinstance(given, Mapping)
    x = None if parts[0] is None else _tensor(parts[0], "x", index)
    listed = not isinstance(parts[1], Tensor) and not _is_array(parts[1])
    native = tensors_of(parts[1]) if listed else (parts[1],)  # type: ignore[arg-type]
    y = tuple(_tensor(t, "y", index) for t in native)
    params = {str(k): _tensor(t, f"params[{k!r}]", index) for k, t in given.items()}

    if x is not None and _stands_for_nothing(x, batched):
        x = None
    if not batched:
        x = None if x is None else x[None]
        y, params = tuple(t[None] for t in y), {k: t[None] for k, t in params.items()}
    item = _Item(x, y, params, listed)
    if any(t.dim() < 2 or t.shape[0] != y[0].shape[0] for t in item.parts.values()):
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in item.parts.items())
        raise InputError(
            f"item {index} of the dataset",
            given=f"shapes {shapes} with the batch axis",
            expected="one measurement per image, in all parts of the item",
            remedy="A class label is no measurement: return (x, physics(x)) instead."
            if any(t.dim() < 2 for t in y)
            else "Return pairs that belong together.",
        )
    return item


def _is_array(value: object) -> bool:
    """Whether torch takes it for one array: NumPy's, or a number."""
    return isinstance(value, int | float | complex) or type(value).__module__ == "numpy"


def _tensor(value: object, what: str, index: int) -> Tensor:
    """``value`` as a tensor of real or complex numbers."""
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"{what} in item {index} of the dataset",
            given=type(value).__name__,
            expected="a tensor",
            remedy="Convert it in the dataset's transform, for example with ToTensor().",
        ) from None
    if not what.startswith("params") and not (tensor.is_floating_point() or tensor.is_complex()):
        raise InputError(
            f"{what} in item {index} of the dataset",
            given=f"a tensor of {tensor.dtype}",
            expected="floating-point or complex numbers",
            remedy="Convert it in the dataset's transform; a class label is no measurement: "
            "return (x, physics(x)) instead.",
        )
    return tensor


def _stands_for_nothing(x: Tensor, batched: bool) -> bool:
    """A single NaN per image: deepinv's sign for measurements without truth."""
    return x.dim() == (1 if batched else 0) and bool(torch.isnan(x).all())


def _check_alike(item: _Item, first: _Item, index: int) -> None:
    """Refuse an item that cannot be stacked onto the first one."""
    here, there = item.parts, first.parts
    if here.keys() != there.keys():
        raise InputError(
            f"item {index} of the dataset",
            given=", ".join(here),
            expected=f"{', '.join(there)}, as in item 0",
            remedy="Images with and without truth, or with other parameters, go into datasets of "
            "their own.",
        )
    for name, t in here.items():
        like = there[name]
        if t.shape[1:] != like.shape[1:] or t.dtype != like.dtype:
            raise InputError(
                f"{name} in item {index} of the dataset",
                given=f"{tuple(t.shape[1:])}, {t.dtype}",
                expected=f"{tuple(like.shape[1:])}, {like.dtype}, as in item 0",
                remedy="Crop or convert in the dataset, or sort the sizes into datasets of their "
                "own.",
            )


def _stacked(items: list[_Item], limit: int | None) -> Collected:
    """All items in one, at most ``limit`` images."""

    def joined(tensors: Iterable[Tensor]) -> Tensor:
        return torch.cat(list(tensors))[:limit]

    first = items[0]
    x = None if first.x is None else joined(item.x for item in items if item.x is not None)
    ys = [joined(item.y[i] for item in items) for i in range(len(first.y))]
    params = {name: joined(item.params[name] for item in items) for name in first.params}
    return Collected(x, ys if first.listed else ys[0], params)
