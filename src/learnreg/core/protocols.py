"""The nouns every room agrees on. Anything that honours them takes part; no base class is
needed.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from .bounds import Curvature


@runtime_checkable
class Hessian(Protocol):
    """A Hessian linearized at one point: curvature weights are computed once, products are
    cheap.
    """

    def __call__(self, v: Tensor) -> Tensor:
        """H v per image: (b, ...) -> (b, ...)."""
        ...

    def select(self, index: Tensor) -> Hessian:
        """The same for the images ``index`` (k,) of the batch."""
        ...


@runtime_checkable
class Potential(Protocol):
    """A batch of independent functions of images, one per image: an Energy tied to its data y is
    one.
    """

    def value(self, x: Tensor) -> Tensor:
        """(b, ...) -> (b,)."""
        ...

    def grad(self, x: Tensor) -> Tensor:
        """(b, ...) -> (b, ...)."""
        ...

    def linearize(self, x: Tensor) -> Hessian:
        """The Hessian at x."""
        ...

    def bounds(self) -> Curvature:
        """mu and L valid for every image and every x."""
        ...

    def select(self, index: Tensor) -> Potential:
        """The potentials of the images ``index``."""
        ...

    def double(self) -> Potential:
        """The same potentials evaluated in float64, for the closing certificate."""
        ...


@runtime_checkable
class Saddle(Protocol):
    """A batch of independent saddle functions <K x + b, p> + g(x) - f*(p); a SaddleEnergy tied to
    its data is one.

    x and p are tuples of blocks (b, ...); packed they are one tensor (b, n).
    """

    @property
    def theorems(self) -> tuple[str, ...]:
        """Names of the certificates."""
        ...

    def certify(self, z: Tensor) -> Any:
        """Of a packed point: ``distance`` (b,), ``theorem`` (b,) as indices of ``theorems``,
        ``gradient`` (b, n).
        """
        ...

    def evidence(self, x: Any, p: Any, kx: Any, ktp: Any) -> Tensor:
        """A distance (b,) that costs no application of K, from x, p, K x + b and K^T p."""
        ...

    def rounding_distance(self, z: Tensor) -> Tensor:
        """Distances (b,) below which rounding in the type of z is most of what is left."""
        ...

    def start(self, x0: Tensor) -> tuple[Any, Any]:
        """x and p to begin with."""
        ...

    def pack(self, x: Any, p: Any) -> Tensor: ...

    def unpack(self, z: Tensor) -> tuple[Any, Any]: ...

    def image(self, z: Tensor) -> Tensor:
        """What a packed point says about the image."""
        ...

    def bounds(self) -> Curvature:
        """mu of the image."""
        ...

    def select(self, index: Tensor) -> Saddle: ...

    def double(self) -> Saddle: ...


class Solver(Protocol):
    """One step of a lower-level algorithm; the loop is in ``solvers/iterate.py``.

    The state offers ``point`` (b, ...), the candidate solution, ``evidence`` (b,), the gradient
    norm there, ``cost``, what the call that made it has spent (a Cost, summed over the images of
    the running batch), and ``select(index)``.
    """

    @property
    def name(self) -> str: ...

    def init(self, f: Potential, x0: Tensor) -> Any: ...

    def step(self, f: Potential, state: Any) -> Any: ...


class LinearSolver(Protocol):
    """Solves H q = b for a batch to an absolute residual per image."""

    def __call__(
        self, matvec: Hessian, b: Tensor, tol: Tensor, x0: Tensor | None = None
    ) -> Any: ...


@runtime_checkable
class Loss(Protocol):
    """Upper-level loss, one value per image."""

    @property
    def smoothness(self) -> float: ...

    def value(self, x: Tensor, x_true: Tensor) -> Tensor: ...

    def grad(self, x: Tensor, x_true: Tensor) -> Tensor: ...

    def bracket(self, x: Tensor, x_true: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]: ...
