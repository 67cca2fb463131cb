"""An upper loss that needs neither ground truth nor statistics of the noise: data consistency, for
operators that are learned.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..core.batch import dot, norm
from ..core.bounds import Bound, Kind
from ..core.certificates import squared_error_bracket
from ..core.maps import Level
from ..core.measured import Measured
from ..core.params import slope_in, trainable
from ..core.ranges import check_flag, tidy
from ..operators.sensitivity import moves_of
from .measurement_losses import Sight, Tying
from .per_image import expected
from .tied import AnyTied, Tied


@dataclass(frozen=True)
class DataConsistency:
    """g(x, theta) = 1/2 ||A_theta x - y||^2 per image, divided by the number of real measurements
    if ``mean``; with data terms of counts gain (y - background) takes the place of y.

    With x = x(theta) the total gradient is d/dtheta g(x, theta) at fixed x plus what comes through
    the reconstruction; a kernel is usually tied down by a penalty besides (``KernelPenalty``), for
    theta may fit y with no regularization at all. Salehi, Bubba, Korolev, Analytical deep prior,
    2025, is this loss with the operator as the parameter.

    Args:
        mean: see above; the loss is then comparable between sizes.

    Raises:
        InputError: no flag.

    >>> DataConsistency()
    DataConsistency(mean=True)
    """

    mean: bool = True

    def __post_init__(self) -> None:
        tidy(self)
        check_flag("mean", self.mean)

    def tie_to(self, energy: AnyTied, data: Tensor | Measured) -> Tying:
        """See ``MeasurementLoss``."""
        return Tying(data, ConsistencyUpper(energy, data, self.mean))


@dataclass(frozen=True, eq=False)
class ConsistencyUpper:
    """``DataConsistency`` tied to measurements and to the theta of an energy, see
    ``core.maps.OfTheta``.

    Attributes:
        energy: at theta.
        data: measurements of some images, with the operator's parameters for each.
        mean: as of the loss.
    """

    energy: AnyTied
    data: Tensor | Measured
    mean: bool

    @property
    def signed(self) -> bool:
        """At least zero."""
        return False

    @property
    def smooth(self) -> Bound:
        """||A||^2, times the weight, of the worst image."""
        constants = self._sight.operator.spectrum(self._image)
        return Bound(float(constants.L.max()) * self._weight, constants.L_kind)

    @property
    def kind(self) -> Kind:
        return self.smooth.kind

    def at(self, energy: Level) -> ConsistencyUpper:
        """At the theta of another energy of the same kind."""
        return replace(self, energy=energy) if isinstance(energy, Tied) else self

    def value(self, x: Tensor) -> Tensor:
        """(b, ...) -> (b,)."""
        with torch.no_grad():
            residual = self._residual(x)
            return 0.5 * self._weight * dot(residual, residual)

    def grad(self, x: Tensor) -> Tensor:
        """A^T (A x - y), times the weight."""
        with torch.no_grad():
            return self._sight.adjoint(self._weight * self._residual(x))

    def slope(self, x: Tensor) -> Tensor:
        """One reverse-mode call."""
        parameters = trainable(self.energy)
        with torch.enable_grad():
            residual = self._residual(x.detach().to(self._sight.dtype))
            total = 0.5 * self._weight * dot(residual, residual).sum()
            return slope_in(total, parameters)

    def slope_change(self, x: Tensor, eps: Tensor) -> Tensor | None:
        """weight beta eps ( ||A x - y|| + a (||x|| + eps) ): B_x^T r moves by B_{x'-x}^T r + B_x'^T
        A (x' - x).
        """
        operator = self._sight.operator
        moves, spectrum = moves_of(operator, x), operator.spectrum(x)
        if not (moves.beta.certified and spectrum.L_kind.certifies):
            return None
        x, a = x.detach().double(), spectrum.L.sqrt().to(x.device)
        with torch.no_grad():
            size = norm(self._residual(x))
        beta = moves.beta.value
        return self._weight * eps * (beta * size + a * (moves.of(x) + beta * eps))

    def bracket(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(2 g) is the length of a residual, which moves by at most sqrt(L) eps."""
        x = x.double()
        L = self._sight.operator.spectrum(x).L.to(x.device) * self._weight
        return squared_error_bracket((2 * self.value(x)).sqrt(), L.sqrt() * eps)

    def select(self, index: Tensor) -> ConsistencyUpper:
        return replace(self, data=self.data[index])

    def to(self, dtype: torch.dtype) -> ConsistencyUpper:
        return replace(self, data=self.data.to(dtype))

    @cached_property
    def _tied(self) -> tuple[Sight, Tensor, Tensor]:
        """A, what A x would be without noise, and A^T y."""
        operator, y, image = self.energy.tie(self.data, None)
        return Sight(operator, y.dtype), expected(self.energy.data_term(self.data), y), image

    @property
    def _sight(self) -> Sight:
        return self._tied[0]

    @property
    def _image(self) -> Tensor:
        return self._tied[2]

    @property
    def _weight(self) -> float:
        return 1 / self._tied[1][0].numel() if self.mean else 1.0

    def _residual(self, x: Tensor) -> Tensor:
        return self._sight.forward(x) - self._tied[1].to(x)
