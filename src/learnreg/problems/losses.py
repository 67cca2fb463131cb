"""Upper-level losses with their gradient Lipschitz constant and value bracket."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.batch import dot, norm
from ..core.certificates import squared_error_bracket
from ..core.errors import InputError
from ..core.protocols import Loss
from ..core.ranges import check_flag, check_positive


@dataclass(frozen=True)
class SquaredError:
    """g(x) = 1/2 ||x - x_true||^2 per image, summed over pixels; its gradient is 1-Lipschitz."""

    smoothness: float = 1.0

    def value(self, x: Tensor, x_true: Tensor) -> Tensor:
        """(b, ...), (b, ...) -> (b,)."""
        difference = x - x_true
        return 0.5 * dot(difference, difference)

    def grad(self, x: Tensor, x_true: Tensor) -> Tensor:
        """x - x_true."""
        return x - x_true

    def bracket(self, x: Tensor, x_true: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Range of g over the ball of radius eps (b,) around x: lower (b,), upper (b,), in
        float64.
        """
        return squared_error_bracket(norm(x.double() - x_true.double()), eps)


@dataclass(frozen=True)
class ScaledSquaredError:
    """g(x) = factor / 2 ||x - x_true||^2 per image, divided by its number of real pixels if
    ``mean``: ``torch.nn.MSELoss`` is that of factor 2.

    Args:
        factor: positive.
        mean: see above.

    Raises:
        InputError: a value out of range.
    """

    factor: float = 1.0
    mean: bool = False

    def __post_init__(self) -> None:
        check_positive("factor", self.factor)
        check_flag("mean", self.mean)

    @property
    def smoothness(self) -> float:
        """Lipschitz constant of the gradient; that of one pixel where the mean is taken."""
        return self.factor

    def _weight(self, x: Tensor) -> float:
        return self.factor / x[0].numel() if self.mean else self.factor

    def value(self, x: Tensor, x_true: Tensor) -> Tensor:
        """(b, ...), (b, ...) -> (b,)."""
        return self._weight(x) * SquaredError().value(x, x_true)

    def grad(self, x: Tensor, x_true: Tensor) -> Tensor:
        """factor (x - x_true), divided as the value."""
        return self._weight(x) * (x - x_true)

    def bracket(self, x: Tensor, x_true: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Range of g over the ball of radius eps (b,) around x."""
        lower, upper = SquaredError().bracket(x, x_true, eps)
        return self._weight(x) * lower, self._weight(x) * upper


def as_loss(loss: object | None) -> Loss:
    """The upper loss that a user means; torch's mean and summed squared errors are translated.

    Raises:
        InputError: one without value, gradient and bracket.
    """
    if loss is None:
        return SquaredError()
    if isinstance(loss, torch.nn.MSELoss):
        if loss.reduction == "mean":
            return ScaledSquaredError(2.0, mean=True)
        if loss.reduction == "sum":
            return ScaledSquaredError(2.0)
    missing = [m for m in ("value", "grad", "bracket", "smoothness") if not hasattr(loss, m)]
    if isinstance(loss, type) or missing:
        raise InputError(
            "loss",
            given=f"{getattr(loss, '__name__', type(loss).__name__)} without {', '.join(missing)}",
            expected="SquaredError(), torch.nn.MSELoss(), or an object with value, grad, bracket "
            "and smoothness",
            remedy="Brackets are what certified decrease rests on; any other loss can be minimized "
            "with lr.Reconstructor and a torch optimizer.",
        )
    return loss  # type: ignore[return-value]
