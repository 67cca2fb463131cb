"""BilevelProblem: min over theta of mean_i g(x_i(theta)) + p(theta), x_i(theta) = argmin_x h(x;
theta, y_i).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..core.batch import check_images
from ..core.errors import InputError, MissingPropertyError
from ..core.guards import check_energy, check_measured, check_pairs
from ..core.measured import Measured, real_channels
from ..core.params import flatten, names, trainable
from ..core.protocols import Loss
from .losses import as_loss


class PairsLike(Protocol):
    """Anything with ground truth ``x`` (n, ...) and measurements ``y`` (n, ...)."""

    @property
    def x(self) -> Tensor: ...

    @property
    def y(self) -> Tensor: ...

    def __len__(self) -> int: ...


@dataclass(eq=False)
class _Images:
    """Ground truth and measurements, nothing else."""

    x: Tensor
    y: Any

    def __len__(self) -> int:
        return self.x.shape[0]


def _data(pairs: PairsLike) -> Measured:
    """The measurements of pairs, with the operator parameters of each image if there are any."""
    y = pairs.y
    if isinstance(y, Measured):
        return y
    return Measured(y, getattr(pairs, "params", None) or {})


class BilevelProblem:
    """The learning problem f(theta) = mean_i g(x_i(theta)) + p(theta).

    Args:
        energy: the lower level, with trainable parameters.
        pairs: training pairs ``.x`` (n, c, h, w) and ``.y``.
        loss: g per image; ``SquaredError()`` when None.
        penalty: p, from theta (d,) to a scalar >= 0 that autograd can differentiate; none when
            None.

    Raises:
        InputError: no images, images and measurements of different number, or nothing to learn.
    """

    def __init__(
        self,
        energy: Any,
        pairs: PairsLike,
        loss: Loss | None = None,
        penalty: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        check_energy(energy, "at", "start", "parameters")
        check_pairs(pairs)
        if len(pairs) == 0 or pairs.x.shape[0] != len(_data(pairs)):
            raise InputError(
                "pairs",
                given=f"{pairs.x.shape[0]} images and {len(_data(pairs))} measurements",
                expected="the same positive number of both",
            )
        data = _data(pairs)
        x = real_channels(pairs.x) if pairs.x.is_complex() else pairs.x
        check_images(x, "x")
        for tensor in data.tensors:
            check_images(torch.view_as_real(tensor) if tensor.is_complex() else tensor, "y")
            check_measured(tensor, energy)
        if not trainable(energy):
            raise InputError(
                "energy",
                given="no trainable parameter",
                expected="at least one parameter to learn",
                remedy="Set requires_grad=True on parameters of the regularizer, the data term or "
                "the physics.",
            )
        plain = isinstance(data.y, Tensor) and not data.y.is_complex() and not data.params
        as_given = plain and x is pairs.x
        self.energy, self.loss, self.penalty = energy, as_loss(loss), penalty
        self.pairs: PairsLike = pairs if as_given else _Images(x, data.y if plain else data)

    @property
    def theta(self) -> Tensor:
        """The present parameters of the energy as one vector (d,), in the dtype of the data."""
        return flatten(trainable(self.energy)).to(
            dtype=self.pairs.x.dtype, device=self.pairs.x.device
        )

    @property
    def units(self) -> Tensor:
        """A natural step of every entry of theta (d,); ones where nobody says."""
        ones = torch.ones_like(self.theta)
        method = getattr(getattr(self.energy, "regularizer", None), "units", None)
        if method is None:
            return ones
        own = method().to(ones)
        # parameters of data term and physics stand behind those of the regularizer
        return torch.cat([own, ones[own.numel() :]])

    @property
    def size(self) -> int:
        """Number of images."""
        return self.pairs.x.shape[0]

    @property
    def parameter_names(self) -> tuple[str, ...]:
        return tuple(names(self.energy))

    def to(self, dtype: torch.dtype) -> BilevelProblem:
        """The same problem with data in another floating-point type."""
        return self._on(self.pairs.x.to(dtype), self.pairs.y.to(dtype))

    def select(self, index: Tensor) -> BilevelProblem:
        """The problem of the images ``index`` (k,): f is then their mean."""
        return self._on(self.pairs.x[index], self.pairs.y[index])

    def _on(self, x: Tensor, y: Tensor) -> BilevelProblem:
        """With other images, which come from those that were checked."""
        other = BilevelProblem.__new__(BilevelProblem)
        other.energy, other.pairs, other.loss, other.penalty = (
            self.energy,
            _Images(x, y),
            self.loss,
            self.penalty,
        )
        return other

    def penalty_at(self, theta: Tensor) -> tuple[float, Tensor]:
        """p(theta) and its gradient (d,); zero without a penalty.

        Raises:
            InputError: a penalty that is no scalar >= 0, or cannot be differentiated.
            MissingPropertyError: one that is not finite at theta.
        """
        if self.penalty is None:
            return 0.0, torch.zeros_like(theta)
        with torch.enable_grad():
            at = theta.detach().clone().requires_grad_()
            value = self.penalty(at)
            usable = isinstance(value, Tensor) and value.numel() == 1 and value.requires_grad
            if not usable or value < 0:
                raise InputError(
                    "penalty",
                    given=value,
                    expected="a finite scalar >= 0 that depends on theta",
                    remedy="Compute it from theta with torch operations.",
                )
            if not torch.isfinite(
                value
            ):  # learners take such a theta for one that cannot be solved
                raise MissingPropertyError(
                    "penalty",
                    given=value.item(),
                    expected="a finite scalar >= 0",
                    remedy="Start where it is finite.",
                )
            (gradient,) = torch.autograd.grad(value.squeeze(), at)
        return float(value.detach()), gradient

    def describe(self) -> str:
        shape = "x".join(str(s) for s in self.pairs.x.shape[1:])
        count = self.theta.numel()
        plural = "" if count == 1 else "s"
        return f"{self.energy.describe()}, {count} parameter{plural}, {self.size} images of {shape}"
