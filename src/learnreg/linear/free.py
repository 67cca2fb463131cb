"""Linear systems on the free pixels only: H_FF q_F = b_F, and q = 0 elsewhere.

All vectors keep the shape of images. A Krylov recursion that starts from vectors that vanish
outside of F never leaves them, so masking what comes out of H and of the preconditioner is enough.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..core.constraints import masked
from ..core.protocols import Hessian
from .precondition import Preconditioner, narrowed


@dataclass(frozen=True, eq=False)
class FreeHessian:
    """v -> (H v) on the pixels ``kept`` (b, ...), zero elsewhere, for v that vanish there."""

    whole: Hessian
    kept: Tensor

    def __call__(self, v: Tensor) -> Tensor:
        return masked(self.whole(v), self.kept)

    def select(self, index: Tensor) -> FreeHessian:
        return FreeHessian(self.whole.select(index), self.kept[index])


@dataclass(frozen=True, eq=False)
class FreePreconditioner:
    """The same for a preconditioner; it stays symmetric and positive definite on these pixels."""

    whole: Preconditioner
    kept: Tensor

    def __call__(self, r: Tensor) -> Tensor:
        return masked(self.whole(r), self.kept)

    def select(self, index: Tensor) -> FreePreconditioner:
        inner = narrowed(self.whole, index)
        assert inner is not None
        return FreePreconditioner(inner, self.kept[index])


def on_free(hessian: Hessian, kept: Tensor | None) -> Hessian:
    """H on the pixels ``kept``; H itself for None, which are all."""
    return hessian if kept is None else FreeHessian(hessian, kept)


def preconditioner_on_free(
    preconditioner: Preconditioner | None, kept: Tensor | None
) -> Preconditioner | None:
    """The same for a preconditioner."""
    if preconditioner is None or kept is None:
        return preconditioner
    return FreePreconditioner(preconditioner, kept)
