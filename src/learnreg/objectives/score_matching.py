"""Denoising score matching: a regularizer whose gradient removes noise; no lower level.

    f(theta) = mean_i 1/2 ||y_i - grad R_theta(y_i) - x_i||^2,   y_i = x_i + noise of sigma.
The minimizer over all functions has y - grad R(y) = E[x | y], which by Tweedie's formula is y +
sigma^2 grad log p_sigma(y): grad R is -sigma^2 times the score of the noisy images. Vincent, Neural
Comput. 23, 2011; Tweedie's formula: Efron, J. Amer. Statist. Assoc. 106, 2011. As a prior for other
physics see ``Energy`` with the learned regularizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from ..core.asking import offers
from ..core.batch import check_images, norm
from ..core.bounds import Kind
from ..core.cost import Cost
from ..core.errors import InputError, MissingPropertyError
from ..core.grants import Grants
from ..core.guards import check_energy, check_pairs
from ..core.maps import Level
from ..core.meter import Meter
from ..core.objective import ErrorWord, PerImage, Row, Value, chosen, same_images
from ..core.offers import Units
from ..core.packing import Packed
from ..core.params import flatten, names, slope_in, trainable
from ..core.results import Hypergradient
from ..core.status import Status
from ..metrics import data_psnr
from ..problems.penalty import value_and_slope


class Differentiable(Protocol):
    """A regularizer with a gradient that depends on theta."""

    def grad(self, x: Tensor) -> Tensor: ...

    def directional(self, x: Tensor, v: Tensor) -> Tensor: ...


class NoisyPairs(Protocol):
    """Images ``x`` and noisy copies ``y``, (n, c, ...) both."""

    @property
    def x(self) -> Tensor: ...

    @property
    def y(self) -> Tensor: ...

    def __len__(self) -> int: ...


class WithRegularizer(Protocol):
    """An energy whose regularizer is learned."""

    regularizer: nn.Module


@dataclass(frozen=True, eq=False)
class ScoreValue:
    """The loss at theta, exact up to rounding.

    Attributes:
        theta: (d,).
        energy: at theta.
        residual: (b, ...), y - grad R(y) - x.
        loss: f(theta), penalty included.
        eps: what was asked for; it plays no part.
        psnr: (b,), of y - grad R(y).
        images: (b,), which images of the whole; None for all of them.
    """

    theta: Tensor
    energy: WithRegularizer
    residual: Tensor
    loss: float
    eps: float
    psnr: Tensor
    images: Tensor | None = None

    @property
    def lower(self) -> float:
        """The loss itself."""
        return self.loss

    @property
    def upper(self) -> float:
        """The loss itself."""
        return self.loss

    @property
    def width(self) -> float:
        """Zero."""
        return 0.0

    @property
    def certified(self) -> bool:
        """Nothing is approximate."""
        return True

    @property
    def error(self) -> Tensor:
        """Zero."""
        return self.psnr.new_zeros(len(self.psnr))

    @property
    def steps(self) -> int:
        """One evaluation."""
        return 1

    @property
    def warm(self) -> None:
        """Nothing helps."""
        return None

    @property
    def at_floor(self) -> bool:
        """Never: there is no accuracy that could not be had."""
        return False

    @property
    def limited(self) -> bool:
        """There is no limit."""
        return False

    @property
    def failed(self) -> bool:
        """NaN or Inf."""
        return not math.isfinite(self.loss)

    @property
    def trouble(self) -> str:
        """In the words of a status."""
        return Status.NOT_FINITE.value

    def corrected(self, adjoint: Tensor | None) -> float:
        """The loss."""
        return self.loss

    def residuals(self, pixels: bool) -> None:
        """Not granted."""
        return None

    def per_image(self) -> PerImage:
        """Losses and PSNR of every image."""
        return PerImage(0.5 * norm(self.residual.double()).square(), self.psnr)

    def row(self) -> Row:
        """What the record shows."""
        return {
            "loss": self.loss,
            "lower": self.loss,
            "upper": self.loss,
            "kind": Kind.EXACT.label,
            "psnr": float(self.psnr.mean()),
        }

    def pack(self) -> Packed:
        """theta and the images, from which everything follows."""
        tensors = {} if self.images is None else {"images": self.images}
        return Packed({"theta": self.theta} | tensors, {"eps": self.eps})


class ScoreMatching:
    """The objective of denoising score matching.

    Args:
        energy: the lower level in which the regularizer will be used; its trainable parameters are
            those of the regularizer.
        pairs: clean images ``.x`` (n, c, ...) and the same with white noise, ``.y``.
        penalty: p(theta) >= 0 to be added, as in ``BilevelProblem``.
        meter: counters and budget; new ones when None.

    Raises:
        InputError: pairs of different shape, or nothing to learn in the regularizer.

    Example:
        run = lr.learn(lr.ScoreMatching(energy, train), lr.MAID(), budget=lr.Budget(seconds=60))
    """

    def __init__(
        self,
        energy: Level,
        pairs: NoisyPairs,
        penalty: Callable[[Tensor], Tensor] | None = None,
        meter: Meter | None = None,
    ) -> None:
        check_energy(energy, "at", "start", "parameters", "regularizer")
        check_pairs(pairs)
        if not len(pairs):
            raise InputError(
                "pairs",
                given="none",
                expected="at least one image",
                remedy="Give training pairs.",
            )
        check_images(pairs.x, "x")
        check_images(pairs.y, "y")
        if pairs.x.shape != pairs.y.shape:
            raise InputError(
                "pairs",
                given=f"x of shape {tuple(pairs.x.shape)}, y of shape {tuple(pairs.y.shape)}",
                expected="noisy copies of the images",
                remedy="Make the pairs with deepinv.physics.Denoising(GaussianNoise(sigma)).",
            )
        _check_noisy(pairs)
        learned = cast(WithRegularizer, energy).regularizer
        if not offers(learned, Differentiable):
            raise InputError(
                "regularizer",
                given=f"{type(learned).__name__}, which has no gradient",
                expected="a differentiable regularizer such as TV, FoE or BlackBox",
                remedy="Learn a saddle regularizer with BilevelProblem.",
            )
        module = cast(nn.Module, energy)
        own = trainable(cast(WithRegularizer, energy).regularizer)
        if not own or len(trainable(module)) != len(own):
            raise InputError(
                "energy",
                given="parameters to learn outside of the regularizer"
                if trainable(module)
                else "no trainable parameter",
                expected="parameters of the regularizer",
                remedy="Fix the others with requires_grad_(False).",
            )
        self.energy, self.x, self.y = energy, pairs.x, pairs.y
        self.penalty_function, self.meter = penalty, meter or Meter()
        self.images: Tensor | None = None

    @property
    def grants(self) -> Grants:
        """All but residuals: what is exact is as accurate as anyone asks."""
        return (
            Grants.LOSS
            | Grants.GRADIENT
            | Grants.BRACKET
            | Grants.ADAPTIVE
            | Grants.ESTIMATE
            | Grants.BOUND
            | Grants.SUBSETS
        )

    @property
    def theta(self) -> Tensor:
        """The present parameters of the regularizer."""
        return flatten(trainable(self._module)).to(self.y)

    @property
    def names(self) -> tuple[str, ...]:
        """One per entry of theta."""
        return tuple(n.removeprefix("regularizer.") for n in names(self._module))

    @property
    def units(self) -> Tensor:
        """A natural step of every entry; ones where the regularizer does not say."""
        regularizer = cast(WithRegularizer, self.energy).regularizer
        if offers(regularizer, Units):
            return regularizer.units().to(self.theta)
        return torch.ones_like(self.theta)

    @property
    def size(self) -> int:
        """Number of images."""
        return len(self.x)

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.x.device

    @property
    def _module(self) -> nn.Module:
        return cast(nn.Module, self.energy)

    def describe(self) -> str:
        """One sentence: what is learned from what."""
        shape = "x".join(str(s) for s in self.x.shape[1:])
        return (
            f"score matching, {self.energy.describe()}, {self.theta.numel()} parameters, "
            f"{self.size} images of {shape}"
        )

    def identity(self) -> tuple[object, ...]:
        """Everything that the numbers of a run depend on."""
        return ("score matching", self.theta, self.x, self.y, self.energy, self.penalty_function)

    def learned(self, theta: Tensor) -> Level:
        """The lower level with the regularizer at theta."""
        return self.energy.with_theta(theta)

    def penalty(self, theta: Tensor) -> float:
        """p(theta)."""
        return value_and_slope(self.penalty_function, theta)[0]

    def accuracies(
        self, theta: Tensor, eps: float | None, delta: float | None
    ) -> tuple[float, float]:
        """As given; any number does."""
        return eps or 1.0, delta or 1.0

    def distance_for(self, tolerance: float) -> float:
        """The tolerance itself."""
        return tolerance

    def evaluate(
        self,
        theta: Tensor,
        eps: float,
        start: Value | Tensor | None = None,
        max_steps: int | None = None,
    ) -> ScoreValue:
        """The loss at theta, at the cost of one gradient per image.

        Raises:
            OutOfBudget: the budget was used up before.
        """
        self.meter.check()
        energy = cast(WithRegularizer, self.energy.with_theta(theta))
        with torch.no_grad():
            image = self.y - cast(Differentiable, energy.regularizer).grad(self.y)
        self.meter.cost += Cost(gradients=self.size)

        residual = image - self.x
        loss = 0.5 * float(norm(residual.double()).square().mean()) + self.penalty(theta)
        psnr = data_psnr(image, self.x).double()
        return ScoreValue(theta, energy, residual, loss, eps, psnr, self.images)

    def trial(self, theta: Tensor, eps: float, near: Value) -> ScoreValue | None:
        """As ``evaluate``; None where the loss is not finite."""
        try:
            value = self.evaluate(theta, eps)
        except MissingPropertyError:
            return None
        return None if value.failed else value

    def refine(self, value: Value, eps: float) -> ScoreValue:
        """The same value: there is nothing to refine."""
        return replace(self._own(value), eps=eps)

    def gradient(
        self,
        value: Value,
        delta: float,
        warm: Tensor | None = None,
        error: ErrorWord | None = None,
    ) -> Hypergradient:
        """-mean_i (d grad R(y_i) / d theta)^T r_i with the residual r, exact up to rounding.

        Raises:
            OutOfBudget: the budget was used up before.
        """
        self.meter.check()
        own = self._own(value)
        with torch.enable_grad():
            regularizer = cast(Differentiable, own.energy.regularizer)
            scalar = -regularizer.directional(self.y, own.residual).sum() / self.size
            z = slope_in(scalar, trainable(cast(nn.Module, own.energy)))
        self.meter.cost += Cost(mixed_products=self.size)

        _, slope = value_and_slope(self.penalty_function, own.theta)
        return Hypergradient(
            z + slope.to(z),
            own.loss,
            (own.loss, own.loss),
            Kind.EXACT,
            0.0,
            0.0,
            torch.zeros_like(z),
            None,
            torch.zeros(self.size, dtype=torch.float64, device=self.device),
            (Status.CONVERGED,) * self.size,
            Cost(mixed_products=self.size),
        )

    def subset(self, index: Tensor) -> ScoreMatching:
        """That of some images."""
        index = index.to(self.device)
        images = chosen(index, self.images, self.size)
        return self._on(self.x[index], self.y[index], images)

    def widened(self) -> ScoreMatching:
        """That in float64."""
        return self._on(self.x.double(), self.y.double(), self.images)

    def _on(self, x: Tensor, y: Tensor, images: Tensor | None) -> ScoreMatching:
        """With other images, which come from those that were checked, and the same counters."""
        other = ScoreMatching(self.energy, Noisy(x, y), self.penalty_function, self.meter)
        other.images = images
        return other

    def _for(self, images: Tensor | None) -> ScoreMatching:
        """That of the images that a value was made of."""
        if same_images(images, self.images):
            return self
        assert images is not None and self.images is None, "a value of other images"
        return self.subset(images)

    def adopt(self, value: Value) -> ScoreValue:
        """The value anew."""
        own = self._own(value)
        return self._for(own.images).evaluate(own.theta.double(), own.eps)

    def restore(self, packed: Packed) -> ScoreValue:
        """The value anew, at no cost: it was counted when it was made."""
        before = self.meter.cost
        here = self._for(packed.tensors.get("images"))
        value = here.evaluate(packed.tensors["theta"], cast(float, packed.numbers["eps"]))
        self.meter.cost = before
        return value

    def _own(self, value: Value) -> ScoreValue:
        assert isinstance(value, ScoreValue), "a value of another objective"
        return value


class Measuring(Protocol):
    """Pairs that know the physics between their images."""

    physics: nn.Module


@torch.no_grad()
def _check_noisy(pairs: NoisyPairs) -> None:
    """Refuse pairs whose physics does more than add noise.

    Raises:
        InputError: says which pairs are wanted.
    """
    forward = pairs.physics if offers(pairs, Measuring) else None
    if not len(pairs) or not offers(forward, Forward):
        return
    x = pairs.x[:1]
    if not torch.equal(forward.A(x), x):
        raise InputError(
            "pairs",
            given=f"pairs of {type(forward).__name__}",
            expected="images and the same with noise",
            remedy="Make them with deepinv.physics.Denoising(GaussianNoise(sigma)); the energy may "
            "have another physics.",
        )


class Forward(Protocol):
    """An operator."""

    def A(self, x: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Noisy:
    """Images and noisy copies."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.x)
