"""What a recipe is read from, checked at every step: a file may be damaged, or hostile."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn


class Unknown(Exception):
    """A physics that no recipe describes; the text says why."""


@dataclass(frozen=True)
class Given:
    """Settings, tensors and parts of one operator of a file.

    Every method raises a ValueError for what is missing or of another kind.
    """

    kind: str
    settings: Mapping[str, object]
    tensors: Mapping[str, Tensor]
    parts: Sequence[nn.Module]

    def absent(self, name: str) -> bool:
        """Whether a setting is None or left out."""
        return self.settings.get(name) is None

    def flag(self, name: str) -> bool:
        value = self.settings.get(name)
        if not isinstance(value, bool):
            raise self._wrong(name)
        return value

    def integer(self, name: str, least: int, most: int) -> int:
        value = self.settings.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self._wrong(name)
        return value

    def word(self, name: str, choices: Sequence[str]) -> str:
        value = self.settings.get(name)
        if not isinstance(value, str) or value not in choices:
            raise self._wrong(name)
        return value

    def shape(self, name: str, length: int | None, most: int) -> tuple[int, ...]:
        """Positive integers, ``length`` of them, whose product is at most ``most``."""
        value = self.settings.get(name)
        whole = isinstance(value, list) and all(
            isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in value
        )
        if not isinstance(value, list) or not whole or len(value) not in (length, 2, 3, 4):
            raise self._wrong(name)
        if (length is not None and len(value) != length) or math.prod(value) > most:
            raise self._wrong(name)
        return tuple(value)

    def numbers(self, name: str, most: float) -> dict[str, int | float]:
        """A table of positive numbers."""
        value = self.settings.get(name)
        if not isinstance(value, Mapping):
            raise self._wrong(name)
        found: dict[str, int | float] = {}
        for key, number in value.items():
            if not isinstance(number, int | float) or isinstance(number, bool):
                raise self._wrong(name)
            if not 0 < number <= most:
                raise self._wrong(name)
            found[str(key)] = number
        return found

    def tensor(self, name: str, dimensions: int | None = None) -> Tensor:
        t = self.tensors.get(name)
        if t is None or (dimensions is not None and t.dim() != dimensions) or not t.numel():
            raise ValueError(f"{self.kind} without a usable tensor {name}")
        return t.clone()

    def maybe(self, name: str) -> Tensor | None:
        return self.tensor(name) if name in self.tensors else None

    def part(self, kinds: Sequence[str]) -> nn.Module:
        """The only part, which is of one of some classes."""
        if len(self.parts) != 1 or type(self.parts[0]).__name__ not in kinds:
            raise ValueError(f"{self.kind} without its part")
        return self.parts[0]

    def all_parts(self) -> list[nn.Module]:
        if not self.parts:
            raise ValueError(f"{self.kind} without parts")
        return list(self.parts)

    def _wrong(self, name: str) -> ValueError:
        return ValueError(f"{self.kind} with {name} = {self.settings.get(name)!r}"[:200])


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a module itself, by name."""
    return {
        **dict(module.named_parameters(recurse=False)),
        **dict(module.named_buffers(recurse=False)),
    }


def plain_of(module: nn.Module) -> Mapping[str, object]:
    """Plain attributes of a module."""
    return vars(module)


def parts_of(physics: nn.Module) -> list[nn.Module]:
    """The operators inside of an operator, in their order."""
    children = dict(physics.named_children())
    inner = children.get("inner", children.get("base"))
    if inner is not None:
        return [inner]
    listed = children.get("physics_list", plain_of(physics).get("physics_list"))
    if isinstance(listed, nn.ModuleList | list):
        return [part for part in listed if isinstance(part, nn.Module)]
    return []
