"""What the checks take the objects under test for: annotations only, nothing has to derive from
them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from torch import Tensor, nn

from ..core.bounds import Constants, Curvature
from ..core.curvature import MeanCurvature
from ..core.protocols import Hessian

Found = TypeVar("Found")


class Operator(Protocol):
    """A physics: A and what it says is the transpose."""

    def A(self, x: Tensor) -> Tensor: ...
    def A_adjoint(self, y: Tensor) -> Tensor: ...


class Candidate(nn.Module):
    """A module as ``Energy`` wants its regularizer; what follows ``bounds`` it may offer or not."""

    value: Callable[[Tensor], Tensor]
    grad: Callable[[Tensor], Tensor]
    linearize: Callable[[Tensor], Hessian]
    directional: Callable[[Tensor, Tensor], Tensor]
    bounds: Callable[[], Curvature]

    mean_curvature: Callable[[Tensor], MeanCurvature | None]
    hessian_change: Callable[[Tensor, Tensor, Tensor], Tensor | None]
    mixed_change: Callable[[Tensor, Tensor, Tensor], Tensor | None]
    mixed_norm: Callable[[Tensor, Tensor], Tensor | None]
    spec: Callable[[], dict[str, object]]


class Function(Protocol):
    """D(., y) of a batch at one y."""

    def value(self, a: Tensor) -> Tensor: ...
    def grad(self, a: Tensor) -> Tensor: ...
    def linearize(self, a: Tensor) -> Hessian: ...
    def constants(self) -> Constants: ...
    def select(self, index: Tensor) -> Function: ...
    def double(self) -> Function: ...


class Curved(Function, Protocol):
    """The same with the diagonal of its Hessian, None where it is not diagonal; optional."""

    def curvature(self, a: Tensor) -> Tensor | None: ...


class Term(Protocol):
    """A data term."""

    def tie(self, y: Tensor) -> Function: ...


def offered(look: Callable[[], Found]) -> Found | None:
    """What ``look`` finds at an object, for example a method; None if it has no such thing."""
    try:
        return look()
    except AttributeError:
        return None
