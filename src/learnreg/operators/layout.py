"""How measurements and images of a physics become real tensors, and back.

Everything behind the door of the physics is real: a complex number is two real ones with the same
inner product, <a, b> = Re sum a conj(b).

- Complex measurements (b, ...) become (b, ..., 2).
- Several measurements of one image (``deepinv.physics.stack``) become one vector (b, m) each.
- Complex images (b, c, ...) become 2 c real channels, real and imaginary parts alternating, as
  deepinv's MRI keeps them, so that every regularizer of real channels takes them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.measured import Native, complex_channels, real_channels, tensors_of


@dataclass(frozen=True)
class Part:
    """One tensor of the measurements of one image.

    Attributes:
        shape: without the batch.
        complex: whether its numbers are complex.
    """

    shape: tuple[int, ...]
    complex: bool

    @property
    def size(self) -> int:
        """Real numbers in it."""
        return math.prod(self.shape) * (2 if self.complex else 1)


@dataclass(frozen=True)
class Layout:
    """What the physics calls an image and its measurements.

    Attributes:
        parts: one for every tensor of the measurements.
        several: whether the measurements are a list of tensors.
        complex_image: whether A^T y is complex.
        same: whether measurements are images, as in denoising.
    """

    parts: tuple[Part, ...]
    several: bool
    complex_image: bool
    same: bool = False

    @property
    def plain(self) -> bool:
        """Whether nothing has to be converted."""
        return not (self.several or self.complex_image or self.parts[0].complex)

    def data_in(self, y: Native) -> Tensor:
        """Native measurements as real ones, (b, ...); differentiable."""
        if self.same:
            assert isinstance(y, Tensor)
            return self.image_in(y)
        if not self.several:
            assert isinstance(y, Tensor)
            return torch.view_as_real(y) if self.parts[0].complex else y
        return torch.cat(
            [(torch.view_as_real(t) if t.is_complex() else t).flatten(1) for t in y], dim=1
        )

    def data_out(self, y: Tensor) -> Native:
        """The inverse of ``data_in``."""
        if self.same:
            return self.image_out(y)
        if not self.several:
            return torch.view_as_complex(y.contiguous()) if self.parts[0].complex else y

        from deepinv.utils import TensorList

        pieces = y.split([part.size for part in self.parts], dim=1)
        native = []
        for piece, part in zip(pieces, self.parts, strict=True):
            if part.complex:
                pairs = piece.reshape(piece.shape[0], *part.shape, 2).contiguous()
                native.append(torch.view_as_complex(pairs))
            else:
                native.append(piece.reshape(piece.shape[0], *part.shape))
        return TensorList(native)

    def image_in(self, x: Tensor) -> Tensor:
        """A native image as real channels; one that is real already passes."""
        return real_channels(x) if x.is_complex() else x

    def image_out(self, x: Tensor) -> Tensor:
        """The inverse of ``image_in``, to what the physics calls an image."""
        return complex_channels(x) if self.complex_image else x


def layout_of(y: Native, image: Tensor, same: bool = False) -> Layout:
    """The layout of native measurements y and of the image A^T y."""
    parts = tuple(Part(tuple(t.shape[1:]), t.is_complex()) for t in tensors_of(y))
    return Layout(parts, not isinstance(y, Tensor), image.is_complex(), same)
