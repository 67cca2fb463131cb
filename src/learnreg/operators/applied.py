"""What norms and spectra are asked of."""

from __future__ import annotations

from typing import Protocol, Self

from torch import Tensor

from .foreign import LinearPhysicsLike
from .layout import Layout


class Applied(Protocol):
    """What a spectrum is asked of: a ``TiedMap``."""

    @property
    def physics(self) -> LinearPhysicsLike: ...
    @property
    def layout(self) -> Layout: ...
    @property
    def names(self) -> frozenset[str]: ...
    @property
    def is_identity(self) -> bool: ...
    @property
    def is_mask(self) -> bool: ...
    def forward(self, x: Tensor) -> Tensor: ...
    def normal(self, x: Tensor) -> Tensor: ...
    def double(self) -> Self: ...
