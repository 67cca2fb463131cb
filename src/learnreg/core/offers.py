"""What a regularizer, an energy or a potential may offer beyond what it must, one small protocol
each.

``asking.offers(part, Priced)`` asks for one, so a module of the user's own makes an offer by having
the method or attribute, or by handing on that of another; no base class is needed. What is not
offered has a default here, or is not known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from .asking import offers
from .bounds import Bound, Curvature
from .curvature import MeanCurvature
from .params import reparametrized
from .protocols import Blocks, Hessian

EFFORT = 10.0
"""What a gradient of a regularizer costs that names no price."""


# --- constants ------------------------------------------------------------------------------------


class BoundsPerShape(Protocol):
    """Constants that depend on the number of axes."""

    def bounds_for(self, x: Tensor) -> Curvature:
        """``bounds`` for images like x."""
        ...


class CurvatureNear(Protocol):
    """Constants estimated around images, where nobody declared any."""

    def curvature_near(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """mu and L at x, (b,) and (b,), float64."""
        ...


class HessianLipschitz(Protocol):
    """A Lipschitz constant of the Hessian."""

    def hessian_lipschitz(self) -> Bound | None: ...


class MixedLipschitz(Protocol):
    """A Lipschitz constant of the mixed derivative."""

    def mixed_lipschitz(self, reach: float = 1.0) -> Bound | None: ...


# --- certificates of hypergradients ---------------------------------------------------------------


class HessianChange(Protocol):
    """How far the Hessian moves in a ball."""

    def hessian_change(self, x: Tensor, q: Tensor, radius: Tensor) -> Tensor | None:
        """Bound of ||(H(x') - H(x)) q|| over ||x' - x|| <= radius: (b,) or None."""
        ...


class MixedChange(Protocol):
    """How far the mixed derivative moves in a ball."""

    def mixed_change(self, x: Tensor, q: Tensor, radius: Tensor) -> Tensor | None:
        """Bound of ||(J(x') - J(x))^T q|| over ||x' - x|| <= radius: (b,) or None."""
        ...


class MixedNorm(Protocol):
    """How large the mixed derivative is in a ball."""

    def mixed_norm(self, x: Tensor, radius: Tensor) -> Tensor | None:
        """Bound of ||J(x')|| over ||x' - x|| <= radius: (b,) or None."""
        ...


Certificate = Callable[..., Tensor | None]
"""(x, q, radius) or (x, radius) -> a bound (b,), None where it is not known."""


def certificate_of(part: object, name: str) -> Certificate | None:
    """``hessian_change``, ``mixed_change`` or ``mixed_norm`` of what offers it, else None; the last
    two hold for the parameters of its class only.
    """
    if name != "hessian_change" and reparametrized(part):
        return None
    if name == "hessian_change" and offers(part, HessianChange):
        return part.hessian_change
    if name == "mixed_change" and offers(part, MixedChange):
        return part.mixed_change
    if name == "mixed_norm" and offers(part, MixedNorm):
        return part.mixed_norm
    return None


# --- what steers solvers --------------------------------------------------------------------------


class Averaged(Protocol):
    """A Hessian in averages, for preconditioners."""

    def mean_curvature(self, x: Tensor) -> MeanCurvature | None: ...


class KnowsAverages(Protocol):
    """Says whether ``mean_curvature`` has an answer."""

    @property
    def averages(self) -> bool: ...


def offers_averages(part: object) -> bool:
    """Whether there is a ``mean_curvature``, and an answer where that is told beforehand."""
    if offers(part, KnowsAverages):
        return part.averages
    return offers(part, Averaged)


class Priced(Protocol):
    """Says what a gradient costs, in operations on one vector of pixels."""

    @property
    def effort(self) -> float: ...


def effort_of(regularizer: object) -> float:
    """What a gradient costs, ``EFFORT`` where nobody says."""
    return float(regularizer.effort) if offers(regularizer, Priced) else EFFORT


class Local(Protocol):
    """Says how local it is; whoever overrides ``grad`` answers for that as well."""

    @property
    def reach(self) -> int | None:
        """A gradient at a pixel depends on no pixel farther than this along any axis of an image;
        None where it may depend on all of them.
        """
        ...


def reach_of(part: object) -> int | None:
    """How far a gradient of a part sees; None where nobody says."""
    return part.reach if offers(part, Local) else None


class DualVariable(Protocol):
    """Slopes of potentials as variables of their own, for the primal-dual Newton method."""

    def dual_start(self, x: Tensor) -> Blocks: ...
    def dual_linearize(self, x: Tensor, dual: Blocks) -> Hessian: ...
    def dual_update(self, x: Tensor, dual: Blocks, move: Tensor) -> Blocks: ...


# --- what learners, reports and model files ask ---------------------------------------------------


class Units(Protocol):
    """A natural step of every entry of theta."""

    def units(self) -> Tensor: ...


class Rescalable(Protocol):
    """The direction s of theta along which R is multiplied: R(theta + t s) = e^t R(theta)."""

    def scaling(self) -> Tensor: ...


class Filters(Protocol):
    """Learned filters, for a report."""

    def filters(self) -> dict[str, Tensor] | None: ...


class LearnedKernels(Protocol):
    """A physics with kernels that were learned, for a report."""

    def kernels(self) -> dict[str, Tensor]:
        """By the name of the tensor, (k, 1, h, w)."""
        ...


class Specified(Protocol):
    """JSON-able constructor arguments with the class name under ``type``, for model files."""

    def spec(self) -> dict[str, object]: ...


class OfPictures(Protocol):
    """Says whether neighbours in two directions are compared."""

    @property
    def pictures(self) -> bool: ...


# --- saddle or not --------------------------------------------------------------------------------


class KnowsSaddle(Protocol):
    """Says whether it is part of a saddle function: a regularizer, or an energy made of one."""

    @property
    def saddle(self) -> bool: ...


def is_saddle(part: object) -> bool:
    """Whether a regularizer or an energy calls itself one of saddle points: the only place that
    asks.
    """
    return offers(part, KnowsSaddle) and bool(part.saddle)
