"""Operators by their matrices: every entry is known, and so is everything that follows from it."""

from __future__ import annotations

from typing import cast

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor, nn

from ..core.bounds import Kind
from ..core.errors import InputError
from ..core.ranges import check_integer
from ..operators.foreign import LinearPhysicsLike
from ..operators.nonnegative import PROVEN

Shape = tuple[int, ...]


class Explicit(LinearPhysics):
    """A x by a sparse matrix, A^T y by its exact transpose.

    x: (b, *image); y: (b, *data).

    Whether the matrix has negative entries is seen, so norms of those without are proven. Its
    entries are the operator: a projector that computes in single precision only, as that of
    parallelproj does, becomes one whose copy in float64 is the same operator, as certificates need
    (``explicit``).

    Args:
        matrix: (m, n), real, dense or sparse.
        image: (c, h, w) with n entries.
        data: shape of the measurements of one image, with m entries.
        noise_model: of the measurements.

    Raises:
        InputError: a matrix that is complex, not finite or of other sizes.

    Example:
        >>> import torch, learnreg as lr
        >>> sums = torch.ones(3, 4)
        >>> lr.physics.Explicit(sums, (1, 2, 2), (1, 3)).A(torch.ones(1, 1, 2, 2))
        tensor([[[4., 4., 4.]]])
    """

    places: Tensor
    values: Tensor
    places_back: Tensor
    values_back: Tensor

    def __init__(
        self, matrix: Tensor, image: Shape, data: Shape, noise_model: nn.Module | None = None
    ) -> None:
        super().__init__(noise_model=noise_model)
        sizes = torch.Size(data).numel(), torch.Size(image).numel()
        usable = isinstance(matrix, Tensor) and matrix.is_floating_point()
        if not usable or tuple(matrix.shape) != sizes:
            raise InputError(
                "matrix",
                given=f"shape {tuple(matrix.shape)}, {matrix.dtype}"
                if isinstance(matrix, Tensor)
                else type(matrix).__name__,
                expected=f"real numbers, {sizes[0]} x {sizes[1]}: measurements by pixels",
            )
        entries = matrix.detach().to_sparse_coo().coalesce()
        if not bool(torch.isfinite(entries.values()).all()):
            raise InputError("matrix", given="NaN or Inf", expected="finite numbers")
        self.image, self.data = tuple(image), tuple(data)
        # why two: entries in the order of rows make products fast, and in that of columns A^T
        for name, part in (("", entries), ("_back", entries.t().coalesce())):
            self.register_buffer(f"places{name}", part.indices())
            self.register_buffer(f"values{name}", part.values())

    def A(self, x: Tensor, **kwargs: object) -> Tensor:
        return _times(self.places, self.values, x, self.data)

    def A_adjoint(self, y: Tensor, **kwargs: object) -> Tensor:
        return _times(self.places_back, self.values_back, y, self.image)


def _times(places: Tensor, values: Tensor, v: Tensor, shape: Shape) -> Tensor:
    """The product of a matrix with the images or measurements of a batch."""
    flat = v.flatten(1).mT
    size = (torch.Size(shape).numel(), flat.shape[0])
    matrix = torch.sparse_coo_tensor(
        places, values, size, is_coalesced=True, check_invariants=False
    )
    return torch.sparse.mm(matrix, flat).mT.reshape(v.shape[0], *shape)


def _known(physics: LinearPhysicsLike) -> Kind:
    explicit = cast(Explicit, physics)
    both = (explicit.values, explicit.values_back)
    return Kind.BOUND if all(bool((t >= 0).all()) for t in both) else Kind.UNKNOWN


PROVEN[Explicit] = _known


def explicit(physics: nn.Module, image: Shape, *, block: int = 256) -> Explicit:
    """The matrix of a linear physics, by its action on single pixels.

    For two-dimensional images of moderate size: 64 x 64 pixels and 40 views are 4096 applications
    and about 500,000 entries. Afterwards A and A^T cost a fraction of what ray tracing costs.

    Args:
        physics: linear, with real images and measurements in one tensor.
        image: (c, h, w).
        block: pixels that are projected at once.

    Returns:
        With the noise model of the physics.

    Raises:
        InputError: complex measurements, or several tensors.
    """
    check_integer("block", block, 1)
    typed = cast(LinearPhysicsLike, physics)
    pixels = torch.Size(image).numel()
    columns: list[Tensor] = []
    data: Shape = ()
    for first in range(0, pixels, block):
        rows = torch.arange(first, min(first + block, pixels))
        units = torch.zeros(len(rows), pixels).scatter_(1, rows[:, None], 1.0)
        with torch.no_grad():
            y = typed.A(units.view(-1, *image))
        if not isinstance(y, Tensor) or y.is_complex():
            raise InputError(
                f"physics {type(physics).__name__}",
                given="complex measurements, or several tensors",
                expected="real measurements in one tensor",
                remedy="Use the physics as it is.",
            )
        data = tuple(y.shape[1:])
        columns.append(y.flatten(1).to_sparse_coo())
    matrix = torch.cat(columns).t().coalesce()
    noise = dict(physics.named_children()).get("noise_model")
    return Explicit(matrix, image, data, noise)
