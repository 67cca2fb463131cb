"""Upper-level losses with their gradient Lipschitz constant and value bracket."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..core.batch import dot, norm
from ..core.certificates import squared_error_bracket


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
