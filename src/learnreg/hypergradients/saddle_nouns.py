"""What the hypergradients of saddle points ask of a tied SaddleEnergy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self, cast

from torch import Tensor, nn

from ..convex import Convex
from ..core.bounds import Bound, Curvature
from ..core.errors import MissingPropertyError
from ..core.maps import Level, Posed
from ..core.offers import is_saddle
from ..core.protocols import Blocks, Saddle
from ..core.results import Solution


class Rows(Protocol):
    """A saddle regularizer: the rows K and b that theta is in."""

    def linear(self, *x: Tensor) -> Blocks: ...

    def offset(self, x: Tensor) -> Sequence[Tensor | None] | None: ...

    def sensitivity(self, x: Tensor) -> tuple[float, float]: ...


class Operator(Protocol):
    """A of a batch of images."""

    @property
    def physics(self) -> nn.Module: ...

    def forward(self, x: Tensor) -> Tensor: ...

    def select(self, index: Tensor) -> Self: ...


class SaddleLevel(Level, Protocol):
    """A SaddleEnergy."""

    @property
    def regularizer(self) -> Rows: ...


class Certificate(Protocol):
    """How far a packed point is from the solution."""

    @property
    def distance(self) -> Tensor: ...

    @property
    def gradient(self) -> Tensor: ...


class Tied(Protocol):
    """A SaddleEnergy tied to its data: <K x + b, p> + g(x) - f*(p), one per image."""

    @property
    def energy(self) -> SaddleLevel: ...

    @property
    def operator(self) -> Operator: ...

    @property
    def primal(self) -> Sequence[Convex]: ...

    @property
    def dual(self) -> Sequence[Convex]: ...

    @property
    def data(self) -> bool: ...

    @property
    def above(self) -> int: ...

    @property
    def norms(self) -> tuple[tuple[float, ...], ...]: ...

    @property
    def smooth(self) -> bool: ...

    def sensitivity(self, x: Tensor) -> Bound:
        """beta with ||dA v|| <= beta ||dtheta|| ||v|| for images v like x."""
        ...

    def linear(self, x: Blocks) -> Blocks: ...

    def apply(self, x: Blocks) -> Blocks: ...

    def adjoint(self, p: Blocks) -> Blocks: ...

    def start(self, x0: Tensor) -> tuple[Blocks, Blocks]: ...

    def pack(self, x: Blocks, p: Blocks, tempo: Tensor | None = None) -> Tensor: ...

    def unpack(self, z: Tensor) -> tuple[Blocks, Blocks]: ...

    def tempo(self, z: Tensor) -> Tensor: ...

    def image(self, z: Tensor) -> Tensor: ...

    def moduli(self) -> list[float]: ...

    def majorants(self) -> Blocks | None: ...

    def bounds(self) -> Curvature: ...

    def certify(self, z: Tensor) -> Certificate: ...

    def to_data(self, adjoint: Tensor) -> Tensor: ...

    def select(self, index: Tensor) -> Self: ...

    def double(self) -> Self: ...


def tied_saddle(posed: Posed, at: Tensor | None, who: str) -> Tied:
    """The saddle functions of a posed lower level.

    Raises:
        MissingPropertyError: the lower level is no saddle point.
    """
    if not is_saddle(posed.energy):
        raise no_saddle(who, posed.energy)
    return cast(Tied, posed.at(at))


def as_saddle(f: Tied) -> Saddle:
    """For the solvers, which ask other things of it."""
    return cast(Saddle, f)


def solved_state(posed: Posed, solution: Solution, who: str) -> Tensor:
    """All variables of a solution.

    Raises:
        MissingPropertyError: the lower level is no saddle point.
    """
    if solution.state is None:
        raise no_saddle(who, posed.energy)
    return solution.state


def no_saddle(who: str, what: object) -> MissingPropertyError:
    """What is said of a differentiable energy."""
    return MissingPropertyError(
        "hypergradient",
        given=f"{who} for {type(what).__name__}",
        expected="a SaddleEnergy",
        remedy="Use Implicit() for a differentiable Energy.",
    )
