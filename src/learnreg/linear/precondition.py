"""What a preconditioner is, and how it follows a batch that shrinks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from ..core.asking import offers

# r -> M r per image, (b, ...) -> (b, ...), symmetric positive definite. One that differs from image
# to image also has ``select(index)``, like a Hessian; one without it must not depend on which
# images are passed.
Preconditioner = Callable[[Tensor], Tensor]


class PerImage(Protocol):
    """A preconditioner that differs from image to image: it follows the batch."""

    def select(self, index: Tensor) -> Preconditioner: ...


def narrowed(preconditioner: Preconditioner | None, index: Tensor) -> Preconditioner | None:
    """The preconditioner of the images ``index`` (k,); itself when it has no ``select``, None when
    there is none.
    """
    return preconditioner.select(index) if offers(preconditioner, PerImage) else preconditioner
