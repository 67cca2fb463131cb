"""Measurements of any type, with the parameters of the operator that differ between images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .errors import InputError
from .ranges import shown

Native = Tensor | Sequence[Tensor]


@dataclass(frozen=True, eq=False)
class Measured:
    """Measurements of a batch of images and the operator parameters of each.

    Attributes:
        y: as the physics makes them, (b, ...) or a list of such tensors.
        params: tensors of the operator with one slice per image, (b, ...).

    Raises:
        InputError: parameters that are no tensors with a slice for each image.
    """

    y: Native
    params: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, t in self.params.items():
            if not isinstance(t, Tensor) or t.dim() < 1:
                raise InputError(
                    f"params[{name!r}]",
                    given=shown(t),
                    expected="a tensor (b, ...), one slice per image",
                    remedy="What all images share belongs to the physics, the data term or the "
                    "constraint itself; one number for each is a tensor (b, 1, 1, 1).",
                )

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors of the measurements."""
        return (self.y,) if isinstance(self.y, Tensor) else tuple(self.y)

    @property
    def dtype(self) -> torch.dtype:
        """The real type of their numbers."""
        dtype = self.tensors[0].dtype
        return dtype.to_real() if dtype.is_complex else dtype

    @property
    def device(self) -> torch.device:
        return self.tensors[0].device

    def __len__(self) -> int:
        return self.tensors[0].shape[0]

    def __getitem__(self, index: Tensor | slice) -> Measured:
        """The measurements of some images."""
        params = {name: t[index] for name, t in self.params.items()}
        if isinstance(self.y, Tensor):
            return Measured(self.y[index], params)
        return Measured(_listed(self.y, [t[index] for t in self.y]), params)

    def to(self, dtype: torch.dtype) -> Measured:
        """In another real type; complex numbers in the complex type of the same precision."""

        def cast(t: Tensor) -> Tensor:
            if t.is_complex():
                return t.to(dtype.to_complex())
            return t.to(dtype) if t.is_floating_point() else t

        params = {name: cast(t) for name, t in self.params.items()}
        if isinstance(self.y, Tensor):
            return Measured(cast(self.y), params)
        return Measured(_listed(self.y, [cast(t) for t in self.y]), params)


def _listed(like: Sequence[Tensor], tensors: list[Tensor]) -> Sequence[Tensor]:
    """The tensors in a list of the same class (``deepinv.utils.TensorList`` stays one)."""
    return tensors if isinstance(like, list | tuple) else type(like)(tensors)  # type: ignore[call-arg]


def measured(y: Native | Measured) -> Measured:
    """``y`` as Measured."""
    return y if isinstance(y, Measured) else Measured(y)


def native_of(data: Measured) -> Tensor | Measured:
    """The bare tensor where no image brings parameters, which is what any energy takes."""
    return data.y if isinstance(data.y, Tensor) and not data.params else data


def real_channels(x: Tensor) -> Tensor:
    """Complex (b, c, ...) -> real (b, 2 c, ...), parts alternating; differentiable."""
    parts = torch.view_as_real(x).movedim(-1, 2)
    return parts.reshape(x.shape[0], 2 * x.shape[1], *x.shape[2:])


def complex_channels(x: Tensor) -> Tensor:
    """Real (b, 2 c, ...) -> complex (b, c, ...); differentiable."""
    parts = x.reshape(x.shape[0], x.shape[1] // 2, 2, *x.shape[2:])
    return torch.view_as_complex(parts.movedim(2, -1).contiguous())


def tensors_of(y: Native) -> tuple[Tensor, ...]:
    """The tensors of measurements.

    Raises:
        InputError: neither a tensor nor a list of tensors.
    """
    if isinstance(y, Tensor):
        return (y,)
    if isinstance(y, Sequence) or _is_tensor_list(y):
        found = tuple(y)
        if found and all(isinstance(t, Tensor) for t in found):
            return found
    raise InputError(
        "y",
        given=type(y).__name__,
        expected="a tensor (b, ...), or the TensorList of a stacked physics",
        remedy="Measure with the physics: y = physics(x).",
    )


def _is_tensor_list(y: object) -> bool:
    """deepinv's TensorList is no Sequence, but iterates over tensors."""
    return type(y).__name__ == "TensorList"
