"""The nouns every room agrees on. Anything that honours them takes part; no base class is
needed.
"""

from __future__ import annotations

from typing import Any, Protocol, Self, TypeAlias, TypeVar, runtime_checkable

from torch import Tensor

from .bounds import Curvature
from .cost import Cost
from .measured import Measured, Native

Blocks: TypeAlias = tuple[Tensor, ...]
"""One variable of a saddle function in its blocks, (b, ...) each."""

Work = TypeVar("Work", contravariant=True)
Kept = TypeVar("Kept", bound="State")


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

    def select(self, index: Tensor) -> Self:
        """The potentials of the images ``index``."""
        ...

    def double(self) -> Self:
        """The same potentials evaluated in float64, for the closing certificate."""
        ...


class Certificate(Protocol):
    """How far packed points are from the solution, and which theorem says so."""

    @property
    def distance(self) -> Tensor:
        """(b,), certified."""
        ...

    @property
    def theorem(self) -> Tensor:
        """(b,), as indices of the ``theorems`` of the saddle function."""
        ...

    @property
    def gradient(self) -> Tensor:
        """(b, n), of the Lagrangian; zero where there is none."""
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

    def certify(self, z: Tensor) -> Certificate:
        """The certificate of a packed point (b, n)."""
        ...

    def evidence(self, x: Blocks, p: Blocks, kx: Blocks, ktp: Blocks) -> Tensor:
        """A distance (b,) that costs no application of K, from x, p, K x + b and K^T p."""
        ...

    def rounding_distance(self, z: Tensor) -> Tensor:
        """Distances (b,) below which rounding in the type of z is most of what is left."""
        ...

    def start(self, x0: Tensor) -> tuple[Blocks, Blocks]:
        """x and p to begin with."""
        ...

    def pack(self, x: Blocks, p: Blocks) -> Tensor: ...

    def unpack(self, z: Tensor) -> tuple[Blocks, Blocks]: ...

    def image(self, z: Tensor) -> Tensor:
        """What a packed point says about the image."""
        ...

    def bounds(self) -> Curvature:
        """mu of the image."""
        ...

    def select(self, index: Tensor) -> Self: ...

    def double(self) -> Self: ...


class Block(Protocol):
    """A convex function of one block, as primal-dual steps ask for it; ``convex.Convex`` is one.

    Methods whose names end in an underscore may write over their first argument.
    """

    @property
    def strong(self) -> float:
        """A proven modulus of strong convexity."""
        ...

    @property
    def smooth(self) -> float:
        """A Lipschitz constant of the gradient; inf where there is none, or nobody knows."""
        ...

    def grad(self, a: Tensor, /) -> Tensor: ...

    def prox_(self, a: Tensor, step: Tensor, /) -> Tensor: ...

    def prox_conjugate(self, s: Tensor, step: Tensor, /) -> Tensor: ...

    def prox_conjugate_(self, s: Tensor, step: Tensor, /) -> Tensor: ...


class SplitSaddle(Saddle, Protocol):
    """A saddle function whose parts are known one by one, as primal-dual steps need them."""

    @property
    def primal(self) -> tuple[Block, ...]:
        """g_i, one per block of x."""
        ...

    @property
    def dual(self) -> tuple[Block, ...]:
        """f_j, one per block of p; the saddle function has f_j*."""
        ...

    @property
    def norms(self) -> tuple[tuple[float, ...], ...]:
        """||K_ji||, a row for every j."""
        ...

    def moduli(self) -> list[float]:
        """Strong convexity of the g_i and the f_j*, in the order of the blocks."""
        ...

    def apply(self, x: Blocks) -> Blocks:
        """K x + b."""
        ...

    def adjoint(self, p: Blocks) -> Blocks:
        """K^T p."""
        ...

    def pack(self, x: Blocks, p: Blocks, tempo: Tensor | None = None) -> Tensor:
        """With what the solver wants to remember, (b,)."""
        ...

    def tempo(self, z: Tensor) -> Tensor:
        """What a solver has left in a packed state, (b,); zero for nothing."""
        ...


class EnergyLike(Protocol):
    """A lower level whose data are still to come: an Energy or a SaddleEnergy, or one's own."""

    def at(self, y: Native | Measured, x: Tensor | None = None) -> Potential | Saddle:
        """Tied to measurements (b, ...), for images like x."""
        ...

    def start(self, y: Native | Measured) -> Tensor:
        """The images a solve starts from, (b, ...)."""
        ...


class State(Protocol):
    """What a solver knows between two steps, as the loop sees it."""

    @property
    def point(self) -> Tensor:
        """The candidate solution, (b, ...)."""
        ...

    @property
    def evidence(self) -> Tensor:
        """The gradient norm there, or another number that a certificate confirms, (b,)."""
        ...

    @property
    def cost(self) -> Cost:
        """What the call that made it has spent, summed over the images of the running batch."""
        ...

    def select(self, index: Tensor) -> Self:
        """The images at positions ``index``."""
        ...


class Solver(Protocol[Work, Kept]):
    """One step of a lower-level algorithm; the loop is in ``solvers/iterate.py``.

    ``Work`` is what it works on, potentials or saddle functions, ``Kept`` its state.
    """

    @property
    def name(self) -> str: ...

    def init(self, f: Work, x0: Tensor, /) -> Kept: ...

    def step(self, f: Work, state: Kept, /) -> Kept: ...


AnySolver: TypeAlias = Solver[Any, Any]
"""Where solvers are chosen and handed on; what they work on is checked when one is chosen."""


@runtime_checkable
class Loss(Protocol):
    """Upper-level loss, one value per image."""

    @property
    def smoothness(self) -> float: ...

    def value(self, x: Tensor, x_true: Tensor) -> Tensor: ...

    def grad(self, x: Tensor, x_true: Tensor) -> Tensor: ...

    def bracket(self, x: Tensor, x_true: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]: ...
