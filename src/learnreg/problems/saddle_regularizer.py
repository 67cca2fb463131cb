"""What a SaddleEnergy needs of a regularizer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..convex import Convex
from ..core.protocols import Blocks
from .tied import ModuleLike


class SaddleRegularizerLike(ModuleLike):
    """What a SaddleEnergy needs of a regularizer: see ``regularizers.SaddleRegularizer``, which has
    defaults for all but ``dual``, ``linear``, ``adjoint`` and ``norms``.
    """

    def auxiliary(self, u: Tensor) -> Blocks:
        raise NotImplementedError

    def primal(self, u: Tensor) -> tuple[Convex, ...]:
        raise NotImplementedError

    def dual(self, u: Tensor) -> tuple[Convex, ...]:
        raise NotImplementedError

    def dual_start(self, u: Tensor) -> Blocks:
        raise NotImplementedError

    def linear(self, u: Tensor, *v: Tensor) -> Blocks:
        raise NotImplementedError

    def adjoint(self, *p: Tensor) -> Blocks:
        raise NotImplementedError

    def offset(self, u: Tensor) -> tuple[Tensor | None, ...] | None:
        raise NotImplementedError

    def norms(self, u: Tensor) -> Sequence[Sequence[float]]:
        raise NotImplementedError

    def majorants(self, u: Tensor) -> Sequence[Tensor]:
        raise NotImplementedError

    def finite(self, x: Blocks) -> Blocks | None:
        raise NotImplementedError

    def feasible(self, x: Blocks, p: Blocks) -> Blocks | None:
        raise NotImplementedError

    def sensitivity(self, u: Tensor) -> tuple[float, float]:
        raise NotImplementedError
