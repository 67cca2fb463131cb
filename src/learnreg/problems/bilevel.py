"""BilevelProblem: min over theta of mean_i loss(x_i(theta)), x_i(theta) = argmin_x h(x; theta, y_i)."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from ..core.batch import check_images
from ..core.errors import InputError
from ..core.params import flatten, names, trainable
from ..core.protocols import Loss
from .losses import SquaredError


class PairsLike(Protocol):
    """Anything with ground truth ``x`` (n, ...) and measurements ``y`` (n, ...)."""

    @property
    def x(self) -> Tensor: ...

    @property
    def y(self) -> Tensor: ...

    def __len__(self) -> int: ...


class BilevelProblem:
    """The learning problem f(theta) = mean_i g(x_i(theta)).

    Args:
        energy: the lower level, with trainable parameters.
        pairs: training pairs ``.x`` (n, c, h, w) and ``.y``.
        loss: g per image; ``SquaredError()`` when None.

    Raises:
        InputError: no images, images and measurements of different number, or nothing to learn.
    """

    def __init__(self, energy: Any, pairs: PairsLike, loss: Loss | None = None) -> None:
        if len(pairs) == 0 or pairs.x.shape[0] != pairs.y.shape[0]:
            raise InputError("pairs", given=f"{pairs.x.shape[0]} images and {pairs.y.shape[0]} measurements",
                             expected="the same positive number of both")
        check_images(pairs.x, "x")
        check_images(pairs.y, "y")
        if not trainable(energy):
            raise InputError("energy", given="no trainable parameter", expected="at least one parameter to learn",
                             remedy="Set requires_grad=True on the parameters of the regularizer.")
        self.energy, self.pairs, self.loss = energy, pairs, loss or SquaredError()

    @property
    def theta(self) -> Tensor:
        """The present parameters of the energy as one vector (d,), in the dtype of the data."""
        return flatten(trainable(self.energy)).to(dtype=self.pairs.x.dtype, device=self.pairs.x.device)

    @property
    def units(self) -> Tensor:
        """A natural step of every entry of theta (d,); ones where the regularizer does not say."""
        method = getattr(getattr(self.energy, "regularizer", None), "units", None)
        return torch.ones_like(self.theta) if method is None else method().to(self.theta)

    @property
    def size(self) -> int:
        """Number of images."""
        return self.pairs.x.shape[0]

    @property
    def parameter_names(self) -> tuple[str, ...]:
        return tuple(names(self.energy))

    def to(self, dtype: torch.dtype) -> BilevelProblem:
        """The same problem with data in another floating-point type."""
        from types import SimpleNamespace

        class _Cast(SimpleNamespace):
            def __len__(self) -> int:
                return self.x.shape[0]

        cast = _Cast(x=self.pairs.x.to(dtype), y=self.pairs.y.to(dtype))
        return BilevelProblem(self.energy, cast, self.loss)

    def describe(self) -> str:
        shape = "x".join(str(s) for s in self.pairs.x.shape[1:])
        return f"{self.energy.describe()}, {self.theta.numel()} parameters, {self.size} images of {shape}"
