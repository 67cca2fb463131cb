"""Warm starts per image for learners that see a few images at a time; in memory, or on disk for
more than fits there.

Both stores are values: ``put`` returns another store and leaves this one as it was, so that a step
that is given up half-way changes nothing, and a checkpoint describes exactly the state that it was
made of.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor

from ..core.errors import CheckpointError
from ..core.packing import Packed


class WarmStarts(ABC):
    """One tensor per image, or none yet."""

    @abstractmethod
    def take(self, index: list[int], default: Tensor | None = None) -> Tensor | None:
        """The tensors of the images ``index`` (k,) as (k, ...).

        Rows of ``default``, or zeros without one, for those that have none; None where nobody has
        one and there is no default.
        """

    @abstractmethod
    def put(self, index: list[int], values: Tensor) -> Self:
        """With ``values`` (k, ...) for the images ``index``."""

    @abstractmethod
    def recorded(self) -> Self:
        """The same store; what it holds now must outlive the next calls of ``put``."""

    @abstractmethod
    def pack(self) -> Packed:
        """For a checkpoint; what the store holds now must outlive the next checkpoint being
        written.
        """

    @abstractmethod
    def double(self) -> Self:
        """In float64."""

    @classmethod
    def unpack(cls, packed: Packed) -> WarmStarts:
        """The inverse of ``pack``, whichever store it was."""
        return OnDisk.restore(packed) if "path" in packed.numbers else InMemory.restore(packed)


@dataclass(frozen=True)
class InMemory(WarmStarts):
    """A list of tensors; stores share those that did not change."""

    entries: tuple[Tensor | None, ...]

    @classmethod
    def empty(cls, size: int) -> InMemory:
        """Nothing known of ``size`` images."""
        return cls((None,) * size)

    def take(self, index: list[int], default: Tensor | None = None) -> Tensor | None:
        """See WarmStarts."""
        found = [self.entries[i] for i in index]
        rows = _defaults(next((f for f in found if f is not None), None), default, len(found))
        if rows is None:
            return None
        return torch.stack([d if f is None else f for f, d in zip(found, rows, strict=True)])

    def put(self, index: list[int], values: Tensor) -> InMemory:
        """See WarmStarts."""
        entries = list(self.entries)
        for i, value in zip(index, values, strict=True):
            entries[i] = value.clone()  # a row of a batch would keep the whole batch alive
        return InMemory(tuple(entries))

    def recorded(self) -> InMemory:
        """Nothing to do: entries are never written to."""
        return self

    def pack(self) -> Packed:
        """The known entries, stacked."""
        known = [i for i, e in enumerate(self.entries) if e is not None]
        found = [e for e in self.entries if e is not None]
        tensors = {"entries": torch.stack(found)} if found else {}
        return Packed(tensors, {"size": len(self.entries), "known": known})

    @classmethod
    def restore(cls, packed: Packed) -> InMemory:
        """The inverse of ``pack``."""
        numbers = cast("dict[str, Any]", packed.numbers)
        entries: list[Tensor | None] = [None] * numbers["size"]
        for i, value in zip(numbers["known"], packed.tensors.get("entries", ()), strict=True):
            entries[i] = value.clone()
        return cls(tuple(entries))

    def double(self) -> InMemory:
        """In float64."""
        return InMemory(tuple(None if e is None else e.double() for e in self.entries))


def _defaults(like: Tensor | None, default: Tensor | None, count: int) -> Tensor | None:
    """What stands for images that have no tensor: (count, ...)."""
    if default is not None or like is None:
        return default
    return like.new_zeros(count, *like.shape)


SLOTS, ABSENT = 3, -1
NAME = 16  # bytes


class _Pages:
    """The file behind stores: three places per image, so that two versions can be kept while a
    third is written.

    Args:
        path: the file, sparse until written to.
        shape: (images, ...) of the tensors.
        dtype: float32 or float64.
        name: the first bytes of the file, which tell it from what other runs write there; a new
            file when None.

    Raises:
        CheckpointError: there is no file of that name and size.
    """

    def __init__(
        self, path: Path, shape: tuple[int, ...], dtype: torch.dtype, name: str | None = None
    ) -> None:
        self.path, self.shape, self.dtype = path, shape, dtype
        kind = {torch.float32: np.float32, torch.float64: np.float64}[dtype]
        size = NAME + SLOTS * math.prod(shape) * np.dtype(kind).itemsize
        if name is None:
            self.name = os.urandom(NAME).hex()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # another run may still have it open
            path.write_bytes(bytes.fromhex(self.name))
            os.truncate(path, size)
        else:
            self.name = name
            self._check(size)
        self.data = np.memmap(path, kind, mode="r+", offset=NAME, shape=(SLOTS, *shape))
        self.checkpoint = np.full(
            shape[0], ABSENT, np.int8
        )  # the places that the latest checkpoint points to

    def _check(self, size: int) -> None:
        """Refuse a file that is not the one of this name."""
        found = "no such file"
        if self.path.is_file():
            with self.path.open("rb") as file:
                if file.read(NAME).hex() == self.name and os.fstat(file.fileno()).st_size == size:
                    return
            found = "a file of another run"
        raise CheckpointError(
            str(self.path),
            given=found,
            expected="the warm starts of the interrupted run",
            remedy="Start without resume, and give every run a store of its own.",
        )


@dataclass(frozen=True)
class OnDisk(WarmStarts):
    """A memory-mapped file; this value says which of an image's three places is valid.

    ``put`` writes to the place that neither the latest checkpoint nor the latest recorded state
    needs.

    Attributes:
        pages: the file.
        places: (images,) valid places now, -1 for none.
        kept: (images,) valid places of the latest recorded state.
    """

    pages: _Pages
    places: np.ndarray
    kept: np.ndarray

    @classmethod
    def empty(cls, path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Self:
        """A new file for ``shape`` = (images, ...)."""
        none = np.full(shape[0], ABSENT, np.int8)
        return cls(_Pages(path, shape, dtype), none, none)

    def take(self, index: list[int], default: Tensor | None = None) -> Tensor | None:
        """See WarmStarts; only the images asked for are read."""
        found = [
            None
            if self.places[i] == ABSENT
            else torch.from_numpy(np.array(self.pages.data[self.places[i], i]))
            for i in index
        ]
        rows = _defaults(next((f for f in found if f is not None), None), default, len(found))
        if rows is None:
            return None
        return torch.stack(
            [d if f is None else f.to(rows) for f, d in zip(found, rows, strict=True)]
        )

    def put(self, index: list[int], values: Tensor) -> OnDisk:
        """See WarmStarts."""
        places = self.places.copy()
        for i, value in zip(index, values.detach().cpu().numpy(), strict=True):
            free = next(
                s for s in range(SLOTS) if s not in (self.pages.checkpoint[i], self.kept[i])
            )
            self.pages.data[free, i] = value
            places[i] = free
        return replace(self, places=places)

    def recorded(self) -> OnDisk:
        """What is valid now is kept."""
        return replace(self, kept=self.places)

    def pack(self) -> Packed:
        """Where everything is; the file is flushed."""
        self.pages.data.flush()
        self.pages.checkpoint = self.places
        numbers: dict[str, object] = {
            "path": str(self.pages.path),
            "name": self.pages.name,
            "shape": list(self.pages.shape),
            "dtype": str(self.pages.dtype),
        }
        return Packed({"places": torch.from_numpy(self.places)}, numbers)

    @classmethod
    def restore(cls, packed: Packed) -> Self:
        """The inverse of ``pack``.

        Raises:
            CheckpointError: the file is gone, or another run has written there.
        """
        n = cast("dict[str, Any]", packed.numbers)
        dtype = {str(d): d for d in (torch.float32, torch.float64)}[n["dtype"]]
        pages = _Pages(Path(n["path"]), tuple(n["shape"]), dtype, n["name"])
        places = packed.tensors["places"].cpu().numpy()
        pages.checkpoint = places
        return cls(pages, places, places)

    def double(self) -> OnDisk:
        """In float64, in a file of its own."""
        if self.pages.dtype == torch.float64:
            return self
        path = self.pages.path.with_suffix(".float64")
        other = OnDisk.empty(path, self.pages.shape, torch.float64)
        for i in range(self.pages.shape[0]):
            if self.places[i] != ABSENT:
                other = other.put(
                    [i],
                    torch.from_numpy(np.array(self.pages.data[self.places[i], i]))[None].double(),
                )
        return other.recorded()
