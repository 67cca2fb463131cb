"""Data terms D(Ax, y): what a user hands to an energy. Tied to measurements they become functions.

``tie(y)`` gives the differentiable function of a = A x that an Energy minimizes; ``of_image``,
``of_data`` and ``rest`` give the convex functions of a saddle point.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from ..convex import Convex, Norm, Squares, Zero, ridged
from ..core.bounds import Bound, Constants, Curvature
from ..core.errors import InputError
from ..core.ranges import check_number, check_positive, tidy
from ..operators.physics import TiedMap
from .counts import KL as KL
from .counts import Poisson as Poisson
from .counts import PoissonGaussian as PoissonGaussian
from .data_functions import DataFunction, ForeignFunction, HuberFunction, Quadratic
from .per_image import checked, fitted
from .weighted_norm import sharper


@runtime_checkable
class DataTerm(Protocol):
    """D of an Energy; a frozen dataclass, or a module that holds parameters to learn."""

    def tie(self, y: Tensor) -> DataFunction:
        """D(., y) as a function of a = A x, which has the shape of the real measurements y."""
        ...


@runtime_checkable
class SaddleDataTerm(Protocol):
    """D of a SaddleEnergy: as a function of the image where its prox is known, else as a block."""

    def of_image(self, operator: TiedMap, y: Tensor, u: Tensor, tikhonov: float) -> Convex | None:
        """D(Au, y) + tikhonov/2 ||u||^2 as a function of u, up to a constant; None where its prox
        needs a solve.
        """
        ...

    def of_data(self, y: Tensor) -> Convex:
        """D(., y), for a dual block of its own."""
        ...

    def rest(self, tikhonov: float) -> Convex:
        """What is left for the image when the data term has a dual block."""
        ...

    def bounds(self, operator: TiedMap, u: Tensor) -> Curvature:
        """mu and L of D for images like u; a mu that holds for all of them."""
        ...


@dataclass(frozen=True)
class L2:
    """D(Ax, y) = 1 / (2 sigma^2) ||A x - y||^2, as ``deepinv.optim.L2``.

    Args:
        sigma: positive noise level; 1 leaves the plain squared distance, so that the regularizer
            carries the scale.
    """

    sigma: float = 1.0

    def __post_init__(self) -> None:
        tidy(self)
        check_positive("sigma", self.sigma)

    @property
    def weight(self) -> float:
        """1 / sigma^2."""
        return 1.0 if self.sigma == 1 else 1 / float(self.sigma) ** 2

    def tie(self, y: Tensor) -> Quadratic:
        return Quadratic(y, self.weight)

    def bounds(self, operator: TiedMap, x: Tensor) -> Curvature:
        """mu and L of D for images like ``x``."""
        return operator.spectrum(x).curvature * self.weight

    def of_image(self, operator: TiedMap, y: Tensor, u: Tensor, tikhonov: float) -> Convex | None:
        """As a function of u for denoising and masks, whose measurements are like images."""
        return _quadratic_of_image(operator, y, u, self.weight, tikhonov)

    def of_data(self, y: Tensor) -> Convex:
        return Squares(self.weight, y)

    def rest(self, tikhonov: float) -> Convex:
        return _ridge(tikhonov)


class WeightedL2(nn.Module):
    """D(Ax, y) = 1/2 <w (A x - y), A x - y> with weights w >= 0 of single measurements.

    Inverse noise variances, gates, or the density of a sampling pattern: a pattern that is learned
    belongs here and not in A when y is fully sampled. Complex measurements have one weight per
    number: give a last dimension of one.

    Args:
        weights: (1, ...) for all images or (b, ...) for each one, and broadcastable to y. A
            ``nn.Parameter`` is learned.

    Raises:
        InputError: no tensor, no batch dimension, negative or not finite.
    """

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        checked("weights", weights)
        if isinstance(weights, nn.Parameter):
            self.weights = weights
        else:
            self.register_buffer("weights", weights)

    @property
    def per_image(self) -> frozenset[str]:
        """Names that may be given per image."""
        return frozenset({"weights"})

    def tensors(self) -> dict[str, Tensor]:
        """The weights."""
        return {"weights": self.weights}

    def replaced(self, **tensors: Tensor) -> Self:
        """With other weights, which are not learned."""
        return type(self)(tensors["weights"].detach())

    def tie(self, y: Tensor) -> Quadratic:
        """Raises: InputError for weights that do not fit y."""
        weights = fitted("weights", self.weights, y)
        return Quadratic(y, weights)

    def bounds(self, operator: TiedMap, x: Tensor) -> Curvature:
        spectrum = operator.spectrum(x).curvature
        least, most = float(self.weights.min()), float(self.weights.max())
        return Curvature(spectrum.mu * least, spectrum.L * most)

    def of_image(self, operator: TiedMap, y: Tensor, u: Tensor, tikhonov: float) -> Convex | None:
        if operator.is_identity:
            weights = fitted("weights", self.weights.detach(), y)
            return _quadratic_of_image(operator, y, u, weights, tikhonov)
        return None

    def of_data(self, y: Tensor) -> Convex:
        weights = fitted("weights", self.weights.detach(), y)
        return Squares(weights.expand_as(y).contiguous(), y)

    def rest(self, tikhonov: float) -> Convex:
        return _ridge(tikhonov)


@dataclass(frozen=True)
class Huber:
    """D(Ax, y) = weight sum H(A x - y), quadratic up to ``threshold`` and linear beyond: outliers.

    Args:
        threshold: positive, in units of y.
        weight: positive.
    """

    threshold: float = 0.1
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_positive("threshold", self.threshold)
        check_positive("weight", self.weight)
        tidy(self)

    def tie(self, y: Tensor) -> HuberFunction:
        return HuberFunction(y, float(self.threshold), float(self.weight))

    def bounds(self, operator: TiedMap, x: Tensor) -> Curvature:
        """No curvature that holds everywhere."""
        return Curvature(Bound.exact(0.0), operator.spectrum(x).curvature.L * self.weight)

    def of_image(self, operator: TiedMap, y: Tensor, u: Tensor, tikhonov: float) -> Convex | None:
        return ridged(self.of_data(y), tikhonov) if operator.is_identity else None

    def of_data(self, y: Tensor) -> Convex:
        scale = self.weight * self.threshold
        return Norm(scale, y, isotropic=False, rounding=1 / self.weight)

    def rest(self, tikhonov: float) -> Convex:
        return _ridge(tikhonov)


@dataclass(frozen=True)
class L1:
    """D(Ax, y) = weight ||A x - y||_1, for outliers such as salt and pepper; saddle-point problems
    only.

    Args:
        weight: positive.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        tidy(self)
        check_positive("weight", self.weight)

    def bounds(self, operator: TiedMap, x: Tensor) -> Curvature:
        """No curvature: add ``tikhonov`` to the energy where a distance is to be certified."""
        return Curvature(Bound.exact(0.0), Bound.unknown())

    def of_image(self, operator: TiedMap, y: Tensor, u: Tensor, tikhonov: float) -> Convex | None:
        """For denoising."""
        return ridged(self.of_data(y), tikhonov) if operator.is_identity else None

    def of_data(self, y: Tensor) -> Convex:
        return Norm(self.weight, y, isotropic=False)

    def rest(self, tikhonov: float) -> Convex:
        return _ridge(tikhonov)


class Foreign(nn.Module):
    """A data term of your own, differentiated by autograd; its constants are your word.

    Args:
        function: (a, y) -> one value per image (b,), or a scalar (asked image by image then), with
            a = A x. A module's parameters are learned with the rest.
        mu: a lower bound of its Hessian in a, which you vouch for: 0 for a convex function. None
            leaves only solves to a stationarity.
        L: an upper bound of it; None where it is not known.

    Raises:
        InputError: not callable, or constants out of range.
    """

    def __init__(
        self,
        function: Callable[[Tensor, Tensor], Tensor],
        mu: float | None = None,
        L: float | None = None,
    ) -> None:
        super().__init__()
        if isinstance(function, type) or not callable(function):
            raise InputError(
                "function",
                given=(function if isinstance(function, type) else type(function)).__name__,
                expected="a callable (a, y) -> one value per image",
            )
        mu = check_number("mu", mu, lambda v: True, "a number", optional=True)
        L = check_number("L", L, lambda v: v >= 0, "a number >= 0", optional=True)
        self.function, self.mu, self.L = function, mu, L

    def tie(self, y: Tensor) -> ForeignFunction:
        return ForeignFunction(y, self.function, self.mu, self.L)


def as_data_term(fidelity: object | None) -> DataTerm | SaddleDataTerm:
    """The data term that a user means: deepinv's own are translated.

    Raises:
        InputError: none that can be used; names what would do.
    """
    if fidelity is None:
        return L2()
    if isinstance(fidelity, type):
        raise InputError(
            "fidelity",
            given=f"the class {fidelity.__name__}",
            expected="an object",
            remedy=f"Call it: {fidelity.__name__}().",
        )
    if isinstance(fidelity, DataTerm | SaddleDataTerm):
        return fidelity
    return _translated(fidelity)


def _translated(fidelity: object) -> DataTerm | SaddleDataTerm:
    """deepinv's data terms as ours where we have them, any other by autograd."""
    from deepinv import optim

    if isinstance(fidelity, optim.DataFidelity):
        if type(fidelity) is optim.L2:
            return L2(float(torch.as_tensor(fidelity.norm).item()) ** -0.5)
        if type(fidelity) is optim.L1:
            return L1()
        if type(fidelity) is optim.PoissonLikelihood:
            return _poisson(fidelity)
        return Foreign(_Distance(fidelity))
    raise InputError(
        "fidelity",
        given=type(fidelity).__name__,
        expected="L2, WeightedL2, Huber, L1, KL, PoissonGaussian, a deepinv DataFidelity, or an "
        "object with tie(y)",
        remedy="For a function of your own: lr.problems.Foreign(lambda a, y: ..., mu=0.0).",
    )


class _Counted(Protocol):
    """What deepinv's likelihood of counts keeps; deepinv has no types."""

    gain: Tensor | float
    bkg: Tensor | float
    denormalize: bool


class _Likelihood(Protocol):
    """deepinv's ``PoissonLikelihood``."""

    @property
    def d(self) -> _Counted: ...


def _poisson(fidelity: _Likelihood) -> DataTerm:
    """deepinv's Poisson likelihood: x / gain + bkg against y, or y / gain."""
    distance = fidelity.d
    background, gain = (
        v if isinstance(v, Tensor) and v.dim() else float(v) for v in (distance.bkg, distance.gain)
    )
    return KL(background, gain, scaled=bool(distance.denormalize))


class _Function(Protocol):
    """The distance of a deepinv ``DataFidelity``."""

    def fn(self, a: Tensor, y: Tensor) -> Tensor: ...


class _Foreign(Protocol):
    """A deepinv ``DataFidelity``."""

    @property
    def d(self) -> _Function: ...


class _Distance(nn.Module):
    """d(a, y) of a deepinv DataFidelity."""

    fidelity: _Foreign

    def __init__(self, fidelity: _Foreign) -> None:
        super().__init__()
        self.fidelity = fidelity

    def forward(self, a: Tensor, y: Tensor) -> Tensor:
        return self.fidelity.d.fn(a, y)


def data_constants(function: DataFunction, operator: TiedMap, x: Tensor) -> Constants:
    """mu and L of D(A ., y), per image: m sigma_min^2 <= A^T H A <= M ||A||^2 for m <= H <= M;
    where A has no negative entry, L is the norm of A^T W A for the largest diagonal W >= H.

    A negative m is met by the largest singular value, and one of zero leaves nothing of A.
    """
    own, of_map = function.constants(), operator.spectrum(x)
    device = x.device
    m, M, s, S = (t.to(device) for t in (own.mu, own.L, of_map.mu, of_map.L))
    mu = torch.where(m >= 0, m * s, m * S)
    L = torch.maximum(M, -m) * S
    mu_kind = min(own.mu_kind, of_map.mu_kind if bool((m >= 0).all()) else of_map.L_kind)
    found = Constants(torch.where(mu.isnan(), 0.0, mu), L, mu_kind, min(own.L_kind, of_map.L_kind))
    return sharper(found, function, operator, x)


def _quadratic_of_image(
    operator: TiedMap, y: Tensor, u: Tensor, weight: float | Tensor, tikhonov: float
) -> Convex | None:
    if operator.is_identity:
        of_pixel: float | Tensor = weight
        pulled = y * weight
    elif operator.is_mask:  # the measurements of a mask have the shape of the image
        like = u if operator.names else u[:1]
        of_pixel = operator.normal(torch.ones_like(like)) * weight
        pulled = operator.adjoint(y) * weight
    else:
        return None
    total = of_pixel + tikhonov
    if isinstance(total, float):
        return Squares(total, pulled / total)
    return Squares(total, pulled / torch.where(total > 0, total, 1.0))


def _ridge(tikhonov: float) -> Convex:
    return Squares(tikhonov) if tikhonov else Zero()
