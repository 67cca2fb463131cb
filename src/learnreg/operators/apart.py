"""Which tensors of an operator hold one slice per image, found out by trying."""

from __future__ import annotations

from contextlib import suppress
from typing import Protocol, Self

import torch
from torch import Tensor

from ..core.cost import Cost
from ..core.errors import InputError, LearnregError
from .foreign import LinearPhysicsLike
from .private import batched_names


class Single(Protocol):
    """The map of a single image: a ``TiedMap``."""

    @property
    def physics(self) -> LinearPhysicsLike: ...
    def forward(self, x: Tensor) -> Tensor: ...
    def select(self, index: Tensor) -> Self: ...
    def of_each(self, count: int, names: frozenset[str]) -> Self: ...


@torch.no_grad()
def names_per_image(alone: Single, x: Tensor) -> tuple[frozenset[str], Cost]:
    """Names of the tensors that hold one slice per image, after a test of all images, and what that
    has cost beyond the map of a single image.

    Raises:
        InputError: the operator takes the batch as a whole only.
    """
    count, physics, cost = x.shape[0], alone.physics, Cost()
    single: Tensor | None = None
    # a map for a whole batch need not take one image
    with suppress(RuntimeError, ValueError, AssertionError, IndexError):
        single = alone.forward(x[:1])
    if single is not None:
        _check_finite(physics, x[:1], single)
        if single.shape[0] == 1:
            return frozenset(), cost

    names, said = batched_names(physics, count), ""
    try:
        together = alone.forward(x)
        cost += Cost(hessian_products=count)
        ok = bool(names) and together.shape[0] == count
        for i in {0, count - 1} if ok else ():
            part = alone.of_each(count, names).select(torch.tensor([i]))
            own = part.forward(x[i : i + 1])
            ok = ok and own.shape[0] == 1 and torch.allclose(own[0], together[i], rtol=1e-4)
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        if isinstance(error, LearnregError):
            raise  # why: it says itself what does not fit, a kernel larger than the images, say
        ok, said = False, f" (it says: {error})"
    if not ok:
        raise InputError(
            f"physics {type(physics).__name__}",
            given=f"an operator that does not take one of these {count} images by itself{said}",
            expected="one operator for all images, or tensors (buffers or parameters) with "
            "one slice per image",
            remedy="Pass what differs between images as params={name: (b, ...)} to solve, or "
            "to Pairs.",
        )
    return names, cost


def _check_finite(physics: LinearPhysicsLike, *tensors: Tensor) -> None:
    """Refuse an operator that leaves the range of its numbers; no norm of it is finite.

    Raises:
        InputError: NaN or Inf in images or measurements.
    """
    if not all(bool(torch.isfinite(t).all()) for t in tensors):
        raise InputError(
            f"physics {type(physics).__name__}",
            given=f"an operator that makes NaN or Inf of finite numbers in {tensors[0].dtype}",
            expected="A x and A^T y that are finite",
            remedy="Scale its tensors (and the measurements with them), or repair those that are "
            "not finite.",
        )
