"""D(., y): functions of what A makes of an image, tied to the measurements of a batch.

All but the foreign one are sums over the entries of a = A x, so that their Hessians are diagonal.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self, TypeAlias

import torch
from torch import Tensor

from ..core.batch import dot, expand
from ..core.bounds import Constants, Kind
from ..core.protocols import Hessian


@dataclass(frozen=True, eq=False)
class Diagonal:
    """A Hessian that multiplies every entry by a number, or all of them by one.

    Attributes:
        weights: like the argument, or a number.
    """

    weights: Tensor | float

    def __call__(self, v: Tensor) -> Tensor:
        if isinstance(self.weights, float) and self.weights == 1:
            return v
        return v * self.weights

    def select(self, index: Tensor) -> Diagonal:
        return (
            self if isinstance(self.weights, float) else Diagonal(chosen_rows(self.weights, index))
        )


Box: TypeAlias = tuple[slice, slice]
"""Rows and columns of a window."""


def cropped(t: Tensor, box: Box, size: torch.Size) -> Tensor:
    """A window of what is like images of the sides ``size``; a side of one is for all pixels."""
    for axis in (0, 1):
        if t.dim() >= 2 - axis and t.shape[axis - 2] == size[axis]:
            part = box[axis]
            t = t.narrow(axis - 2, part.start, part.stop - part.start)
    return t


@dataclass(frozen=True, eq=False)
class OnBall:
    """Bounds of the curvature psi'' of a sum over entries of a, wherever entries move a little.

    Attributes:
        second: of |psi''|, like a.
        change: of |psi''(a') - psi''(a)|, like a.
        third: a Lipschitz constant of psi'', like a; infinite where it jumps.
    """

    second: Tensor
    change: Tensor
    third: Tensor


class DataFunction(ABC):
    """D(., y) of a batch: one function per image, of a = A x with the shape of y.

    ``grad`` is differentiable in a, y and the parameters of the data term wherever grad mode is on.
    """

    y: Tensor

    quadratic: bool = False
    """Whether the Hessian is the same everywhere."""

    @abstractmethod
    def value(self, a: Tensor) -> Tensor:
        """(b, ...) -> (b,)."""

    @abstractmethod
    def grad(self, a: Tensor) -> Tensor:
        """(b, ...) -> (b, ...)."""

    @abstractmethod
    def linearize(self, a: Tensor) -> Hessian:
        """The Hessian at a."""

    @abstractmethod
    def constants(self) -> Constants:
        """Bounds of the Hessian for every a, per image."""

    @abstractmethod
    def select(self, index: Tensor) -> Self:
        """Those of the images ``index``."""

    @abstractmethod
    def double(self) -> Self:
        """The same in float64."""

    def window(self, box: Box) -> Self | None:
        """The same of a window of every image, where D is a sum over pixels and y like an image;
        None for any other.
        """
        return None

    def steepest(self) -> Tensor | None:
        """Numbers that the diagonal of the Hessian exceeds nowhere, (1, ...) or (b, ...) like y;
        None where the Hessian is not diagonal, or one number is all that is known.
        """
        return None

    def curvature(self, a: Tensor) -> Tensor | None:
        """The diagonal of the Hessian at a, like a; None where it is not diagonal."""
        hessian = self.linearize(a)
        if not isinstance(hessian, Diagonal):
            return None
        return torch.ones_like(a) * hessian.weights

    def on_ball(self, a: Tensor, reach: Tensor) -> OnBall | None:
        """Bounds over all a' with |a' - a| <= reach, entry by entry; None where they are not known.

        Args:
            reach: broadcasts to a.
        """
        return None

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest curvature, (b,) or (1,) each, float64."""
        constants = self.constants()
        return constants.mu, constants.L

    def mean_weight(self) -> Tensor | float:
        """A typical curvature, (b,) or a number, for preconditioners."""
        constants = self.constants()
        return 0.5 * (constants.mu.clamp_min(0) + constants.L)

    def to_data(self, a: Tensor, w: Tensor) -> Tensor:
        """-(d/dy grad(a))^T w, shape of y: what a solution map passes back to the measurements."""
        with torch.enable_grad():
            y = self.y.detach().requires_grad_()
            slope = replace(self, y=y).grad(a)  # type: ignore[type-var]
            (found,) = torch.autograd.grad(dot(slope, w).sum(), y, allow_unused=True)
        return torch.zeros_like(self.y) if found is None else -found


def chosen_rows(t: Tensor, index: Tensor) -> Tensor:
    """The slices of some images; one slice for all images stays."""
    return t if t.shape[0] == 1 else t[index]


def _extremes(weights: Tensor) -> Constants:
    """Smallest and largest weight of every image."""
    rows = weights.detach().double().flatten(1)
    return Constants(rows.amin(dim=1), rows.amax(dim=1), Kind.EXACT, Kind.EXACT)


@dataclass(frozen=True, eq=False)
class Quadratic(DataFunction):
    """1/2 <w (a - y), a - y>.

    Attributes:
        weight: w, a number or a tensor that broadcasts to y: (1, ...) or (b, ...).
    """

    y: Tensor
    weight: Tensor | float = 1.0
    quadratic = True

    def _weighted(self, a: Tensor) -> Tensor:
        return a if isinstance(self.weight, float) and self.weight == 1 else a * self.weight

    def value(self, a: Tensor) -> Tensor:
        residual = a - self.y
        return 0.5 * dot(residual, self._weighted(residual))

    def grad(self, a: Tensor) -> Tensor:
        return self._weighted(a - self.y)

    def linearize(self, a: Tensor) -> Diagonal:
        weight = self.weight
        return Diagonal(weight if isinstance(weight, float) else weight.detach())

    def constants(self) -> Constants:
        if isinstance(self.weight, Tensor):
            return _extremes(self.weight)
        weight = torch.tensor([self.weight], dtype=torch.float64, device=self.y.device)
        return Constants(weight, weight, Kind.EXACT, Kind.EXACT)

    def on_ball(self, a: Tensor, reach: Tensor) -> OnBall:
        weight = self.weight if isinstance(self.weight, float) else self.weight.detach().to(a)
        zero = torch.zeros_like(a)
        return OnBall((zero + weight).abs(), zero, zero)

    def steepest(self) -> Tensor | None:
        return self.weight.detach() if isinstance(self.weight, Tensor) else None

    def mean_weight(self) -> Tensor | float:
        if isinstance(self.weight, float):
            return self.weight
        return self.weight.detach().flatten(1).mean(dim=1)

    def to_data(self, a: Tensor, w: Tensor) -> Tensor:
        return self._weighted(w)

    def select(self, index: Tensor) -> Quadratic:
        weight = self.weight
        return Quadratic(
            self.y[index], weight if isinstance(weight, float) else chosen_rows(weight, index)
        )

    def window(self, box: Box) -> Quadratic:
        size, weight = self.y.shape[-2:], self.weight
        return Quadratic(
            cropped(self.y, box, size),
            weight if isinstance(weight, float) else cropped(weight, box, size),
        )

    def double(self) -> Quadratic:
        weight = self.weight
        return Quadratic(self.y.double(), weight if isinstance(weight, float) else weight.double())


@dataclass(frozen=True, eq=False)
class HuberFunction(DataFunction):
    """weight sum H(a - y), H(t) = t^2 / 2 for |t| <= threshold, threshold (|t| - threshold / 2)
    beyond.
    """

    y: Tensor
    threshold: float
    weight: float

    def value(self, a: Tensor) -> Tensor:
        size = (a - self.y).abs()
        inner = size.clamp_max(self.threshold)
        return self.weight * (inner * (size - 0.5 * inner)).flatten(1).sum(dim=1)

    def grad(self, a: Tensor) -> Tensor:
        return self.weight * (a - self.y).clamp(-self.threshold, self.threshold)

    def linearize(self, a: Tensor) -> Diagonal:
        inside = (a - self.y).detach().abs() <= self.threshold
        return Diagonal(self.weight * inside.to(a.dtype))

    def constants(self) -> Constants:
        zero = torch.zeros(1, dtype=torch.float64, device=self.y.device)
        return Constants(zero, zero + self.weight, Kind.EXACT, Kind.EXACT)

    def on_ball(self, a: Tensor, reach: Tensor) -> OnBall:
        """The curvature jumps from weight to zero where |a - y| passes the threshold."""
        size = (a - self.y.to(a)).abs()
        inside = (size - reach <= self.threshold).to(a)
        jumps = (inside > 0) & (size + reach >= self.threshold)
        change = self.weight * jumps.to(a)
        return OnBall(self.weight * inside, change, torch.where(jumps, torch.inf, 0.0).to(a))

    def select(self, index: Tensor) -> HuberFunction:
        return replace(self, y=self.y[index])

    def window(self, box: Box) -> HuberFunction:
        return replace(self, y=cropped(self.y, box, self.y.shape[-2:]))

    def double(self) -> HuberFunction:
        return replace(self, y=self.y.double())


class _AutogradHessian:
    """Products with the Hessian of a value by double backward, made anew for every vector."""

    def __init__(self, grad: Callable[[Tensor], Tensor], a: Tensor, whole: ForeignFunction) -> None:
        self.grad, self.a, self.whole = grad, a, whole

    def __call__(self, v: Tensor) -> Tensor:
        with torch.enable_grad():
            a = self.a.detach().requires_grad_()
            slope = self.grad(a)
            if not slope.requires_grad:  # a linear function
                return torch.zeros_like(v)
            (found,) = torch.autograd.grad(dot(slope, v.detach()).sum(), a, allow_unused=True)
        return torch.zeros_like(v) if found is None else found.detach()

    def select(self, index: Tensor) -> _AutogradHessian:
        part = self.whole.select(index)
        return _AutogradHessian(part.grad, self.a[index], part)


@dataclass(frozen=True, eq=False)
class ForeignFunction(DataFunction):
    """A function of the user's own, with derivatives by autograd and constants by the user's word.

    Attributes:
        function: (a, y) -> (b,) or, for one image, a scalar.
        mu, L: declared bounds of its Hessian; None where they are not known.
    """

    y: Tensor
    function: Callable[[Tensor, Tensor], Tensor]
    mu: float | None
    L: float | None

    def value(self, a: Tensor) -> Tensor:
        found = self.function(a, self.y)
        if isinstance(found, Tensor) and found.shape == (a.shape[0],):
            return found
        # a function that sums over the batch is asked image by image
        one_by_one = [
            self.function(a[i : i + 1], self.y[i : i + 1]).sum() for i in range(a.shape[0])
        ]
        return torch.stack(one_by_one)

    def grad(self, a: Tensor) -> Tensor:
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            at = a if keep and a.requires_grad else a.detach().requires_grad_()
            (found,) = torch.autograd.grad(self.value(at).sum(), at, create_graph=keep)
        return found if keep else found.detach()

    def linearize(self, a: Tensor) -> _AutogradHessian:
        return _AutogradHessian(self.grad, a.detach(), self)

    def constants(self) -> Constants:
        def tensor(value: float | None, unknown: float) -> Tensor:
            number = unknown if value is None else value
            return torch.tensor([number], dtype=torch.float64, device=self.y.device)

        return Constants(
            tensor(self.mu, -torch.inf),
            tensor(self.L, torch.inf),
            Kind.UNKNOWN if self.mu is None else Kind.ESTIMATE,
            Kind.UNKNOWN if self.L is None else Kind.ESTIMATE,
        )

    def mean_weight(self) -> float:
        return 1.0

    def select(self, index: Tensor) -> ForeignFunction:
        return replace(self, y=self.y[index])

    def double(self) -> ForeignFunction:
        return replace(self, y=self.y.double())


def weight_like(weight: Tensor | float, v: Tensor) -> Tensor | float:
    """A number per image, ready to multiply tensors (b, ...) like v."""
    return weight if isinstance(weight, float) else expand(weight.to(v.dtype), v)
