"""The nouns of differentiation: a lower level, its upper loss, and the map from one to the other.

A ``SolutionMap`` solves, and pulls a cotangent back to theta and to the data. What it grants says
whether accuracy means something; callers ask that and no flags.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol, Self, TypeAlias

import torch
from torch import Tensor, nn

from .asking import offers
from .bounds import Bound, Kind
from .cost import Cost
from .grants import Grants
from .measured import Measured, Native
from .objective import ErrorWord
from .protocols import AnySolver, Potential, Saddle
from .results import Solution
from .status import Status

View: TypeAlias = Literal["smooth", "saddle"]
"""How an algorithm sees a lower level: differentiable, or as a saddle point."""


class Level(Protocol):
    """A lower level h(x; theta, y): an Energy, a SaddleEnergy, or a module of your own."""

    def at(self, y: Native | Measured, x: Tensor | None = None, /) -> Potential | Saddle:
        """The potentials of the measurements, one per image."""
        ...

    def start(self, y: Native | Measured, /) -> Tensor:
        """The image that a solve starts from."""
        ...

    def with_theta(self, theta: Tensor, /) -> Self:
        """The same at theta (d,); this one is not touched."""
        ...

    def parameters(self) -> Iterable[nn.Parameter]: ...

    def describe(self) -> str: ...


class Mixed(Protocol):
    """A smooth lower level that differentiates its gradient with respect to theta and y."""

    def directional(self, x: Tensor, y: Native | Measured, v: Tensor, /) -> Tensor:
        """<grad_x h, v> per image (b,), differentiable in theta."""
        ...

    def data_adjoint(self, x: Tensor, y: Native | Measured, q: Tensor, /) -> Tensor:
        """-(d/dy grad_x h)^T q."""
        ...


class Certifying(Protocol):
    """A smooth lower level that bounds how its derivatives change."""

    def certificate(self, name: str, /, *args: Tensor | float) -> Tensor | None:
        """``hessian_change``, ``mixed_change``, ``mixed_norm`` around images; None if unknown."""
        ...


@dataclass(frozen=True, eq=False)
class Posed:
    """A lower level at one theta with its measurements: a batch of problems to be solved.

    Attributes:
        energy: the lower level.
        y: the measurements.
    """

    energy: Level
    y: Tensor | Measured

    def at(self, x: Tensor | None = None) -> Potential | Saddle:
        """The potentials, for images of the shape of x."""
        return self.energy.at(self.y) if x is None else self.energy.at(self.y, x)


class Upper(Protocol):
    """The upper loss g of a batch, tied to the truth or to the measurements: a cotangent that can
    be asked again at another point.
    """

    @property
    def smooth(self) -> Bound:
        """The Lipschitz constant of grad g, and how it is known."""
        ...

    @property
    def kind(self) -> Kind:
        """How well the bracket is known where distances are."""
        ...

    @property
    def signed(self) -> bool:
        """Whether values may be negative."""
        ...

    def value(self, x: Tensor) -> Tensor:
        """(b, ...) -> (b,)."""
        ...

    def grad(self, x: Tensor) -> Tensor:
        """(b, ...) -> (b, ...)."""
        ...

    def bracket(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """A range of g over the balls of radius eps (b,) around x: lower (b,), upper (b,)."""
        ...

    def select(self, index: Tensor) -> Upper:
        """That of the images ``index``."""
        ...

    def to(self, dtype: torch.dtype) -> Upper:
        """In another floating-point type."""
        ...


class OfTheta(Protocol):
    """An upper loss g(x, theta) that depends on theta besides the reconstructions.

    The total gradient is d/dtheta g(x, theta) at fixed x, plus what a solution map pulls back.
    """

    def at(self, energy: Level, /) -> Upper:
        """The loss at the theta of ``energy``; where nobody calls it, at that of the problem."""
        ...

    def slope(self, x: Tensor, /) -> Tensor:
        """d/dtheta sum_i g_i(x_i, theta) at fixed x, (d,), in the order of theta."""
        ...

    def slope_change(self, x: Tensor, eps: Tensor, /) -> Tensor | None:
        """A bound (b,) of how far the summand of each image moves in the ball of radius eps around
        x; None where nobody knows one.
        """
        ...


def upper_at(upper: Upper, energy: Level) -> Upper:
    """The upper loss at the theta of an energy."""
    return upper.at(energy) if offers(upper, OfTheta) else upper


@dataclass(frozen=True, eq=False)
class Cotangent:
    """The upper loss <c, x> per image: what autograd hands to a layer."""

    c: Tensor

    @property
    def signed(self) -> bool:
        return True

    @property
    def smooth(self) -> Bound:
        return Bound.exact(0.0)

    @property
    def kind(self) -> Kind:
        return Kind.EXACT

    def value(self, x: Tensor) -> Tensor:
        """<c, x>."""
        return (self.c.to(x) * x).flatten(1).sum(dim=1)

    def grad(self, x: Tensor) -> Tensor:
        """c."""
        return self.c.to(x)

    def bracket(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """<c, x> -+ ||c|| eps."""
        middle, half = self.value(x.double()), self.c.double().flatten(1).norm(dim=1) * eps
        return middle - half, middle + half

    def select(self, index: Tensor) -> Cotangent:
        return Cotangent(self.c[index])

    def to(self, dtype: torch.dtype) -> Cotangent:
        return Cotangent(self.c.to(dtype))


@dataclass(frozen=True)
class Limits:
    """What bounds a solve besides its accuracy.

    Attributes:
        solver: name or object.
        max_steps: per image; the number that suits the problem when None.
        should_stop: asked now and then; True ends the solve.
    """

    solver: str | AnySolver = "auto"
    max_steps: int | None = None
    should_stop: Callable[[], bool] = lambda: False


@dataclass(frozen=True, eq=False)
class Ask:
    """What is asked of a pullback.

    Attributes:
        delta: residual of the linear system per image, absolute.
        warm: ``Pullback.adjoint`` of a pull nearby.
        error: what to find out about the error; as configured when None.
        data: differentiate with respect to the measurements as well.
    """

    delta: float | Tensor
    warm: Tensor | None = None
    error: ErrorWord | None = None
    data: bool = False


@dataclass(frozen=True, eq=False)
class Pullback:
    """A cotangent pulled back through a solution map.

    Attributes:
        theta: (d,), SUM over the images; at the polished point where the error was estimated.
        adjoint: (b, ...), for warm starts; None where none can be used.
        residual: (b,) float64, that of the linear system; NaN where there is none.
        status: one Status per image.
        cost: evaluations summed over images.
        certified: (b,), a proven bound of the error of theta before the polish, per image; None
            where a constant is missing or nobody asked.
        correction: (d,), what the polish took off theta; None without one.
        data: the derivative with respect to the measurements, in real form; None where nobody
            asked.
        undecided: (b,), pixels that may or may not be at a bound in the minimizer; as long as there
            are any, nothing is proven about the error. None without bounds, or where nobody asked.
        point: (b, ...), the polished reconstructions at which theta was taken; None where they are
            those of the solution.
    """

    theta: Tensor
    adjoint: Tensor | None
    residual: Tensor
    status: tuple[Status, ...]
    cost: Cost
    certified: Tensor | None = None
    correction: Tensor | None = None
    data: Tensor | None = None
    undecided: Tensor | None = None
    point: Tensor | None = None


class SolutionMap(Protocol):
    """From theta and data to reconstructions, and back."""

    @property
    def view(self) -> View:
        """The lower levels that it takes."""
        ...

    @property
    def grants(self) -> Grants: ...

    def solve(
        self,
        posed: Posed,
        eps: float | Tensor,
        start: Tensor | None,
        limits: Limits,
        upper: Upper | None = None,
    ) -> Solution:
        """The reconstructions.

        Args:
            eps: distance per image; maps without the grant ADAPTIVE have no use for it.
            start: ``Solution.warm`` of a solve nearby, or images; from the data when None.
            upper: for maps that differentiate on the way.
        """
        ...

    def pull(self, posed: Posed, solution: Solution, upper: Upper, ask: Ask) -> Pullback:
        """The derivative of sum_i g_i(x_i) at a solution of ``solve``."""
        ...
