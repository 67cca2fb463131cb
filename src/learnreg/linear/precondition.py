"""What a preconditioner is, and how it follows a batch that shrinks."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

# r -> M r per image, (b, ...) -> (b, ...), symmetric positive definite. One that differs from image
# to image also has ``select(index)``, like a Hessian; one without it must not depend on which
# images are passed.
Preconditioner = Callable[[Tensor], Tensor]


def narrowed(preconditioner: Preconditioner | None, index: Tensor) -> Preconditioner | None:
    """The preconditioner of the images ``index`` (k,); itself when it has no ``select``, None when
    there is none.
    """
    select = getattr(preconditioner, "select", None)
    return preconditioner if select is None else select(index)
