"""Upper-level losses, tied to the truth or to the measurements of a batch.

A loss knows its constants (``SquaredError`` and its relatives), or is any function of images that
autograd can differentiate (``Custom``: a deepinv metric, L1, SSIM, a network). Losses of
measurements, which need no ground truth, are in ``measurement_losses``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from ..core.asking import offers
from ..core.batch import dot, expand, norm
from ..core.bounds import Bound, Kind
from ..core.certificates import squared_error_bracket
from ..core.errors import InputError
from ..core.maps import Level, Upper
from ..core.measured import complex_channels
from ..core.params import slope_in, trainable
from ..core.protocols import Loss
from ..core.ranges import check_flag, check_positive, shown, tidy


@dataclass(frozen=True)
class SquaredError:
    """g(x) = 1/2 ||x - x_true||^2 per image, summed over pixels; its gradient is 1-Lipschitz."""

    smoothness: float = 1.0

    def value(self, x: Tensor, x_true: Tensor) -> Tensor:
        """(b, ...), (b, ...) -> (b,)."""
        difference = x - x_true
        return 0.5 * dot(difference, difference)

    def grad(self, x: Tensor, x_true: Tensor) -> Tensor:
        """x - x_true."""
        return x - x_true

    def bracket(self, x: Tensor, x_true: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Range of g over the ball of radius eps (b,) around x: lower (b,), upper (b,), in
        float64.
        """
        return squared_error_bracket(norm(x.double() - x_true.double()), eps)


@dataclass(frozen=True)
class ScaledSquaredError:
    """g(x) = factor / 2 ||x - x_true||^2 per image, divided by its number of real pixels if
    ``mean``: ``torch.nn.MSELoss`` is that of factor 2.

    Args:
        factor: positive.
        mean: see above.

    Raises:
        InputError: a value out of range.
    """

    factor: float = 1.0
    mean: bool = False

    def __post_init__(self) -> None:
        tidy(self)
        check_positive("factor", self.factor)
        check_flag("mean", self.mean)

    @property
    def smoothness(self) -> float:
        """Lipschitz constant of the gradient; that of one pixel where the mean is taken."""
        return self.factor

    def _weight(self, x: Tensor) -> float:
        return self.factor / x[0].numel() if self.mean else self.factor

    def value(self, x: Tensor, x_true: Tensor) -> Tensor:
        """(b, ...), (b, ...) -> (b,)."""
        return self._weight(x) * SquaredError().value(x, x_true)

    def grad(self, x: Tensor, x_true: Tensor) -> Tensor:
        """factor (x - x_true), divided as the value."""
        return self._weight(x) * (x - x_true)

    def bracket(self, x: Tensor, x_true: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Range of g over the ball of radius eps (b,) around x."""
        lower, upper = SquaredError().bracket(x, x_true, eps)
        return self._weight(x) * lower, self._weight(x) * upper


@dataclass(frozen=True, eq=False)
class WeightedSquaredError:
    """g(x) = 1/2 sum_p w_p (x_p - x_true,p)^2: weights w >= 0 of the pixels, a mask for instance.

    Args:
        weights: (c, ...), of every image, or of a shape that broadcasts to it; (n, c, ...) for
            weights of each image.

    Raises:
        InputError: no tensor, or weights that are negative or not finite.
    """

    weights: Tensor

    def __post_init__(self) -> None:
        w = self.weights
        usable = isinstance(w, Tensor) and bool(torch.isfinite(w).all()) and bool((w >= 0).all())
        if not usable:
            raise InputError(
                "weights",
                given=shown(w),
                expected="a tensor (c, ...) of finite weights >= 0",
                remedy="For example a mask of zeros and ones.",
            )

    @property
    def smoothness(self) -> float:
        """The largest weight."""
        return float(self.weights.max())

    def value(self, x: Tensor, x_true: Tensor) -> Tensor:
        """(b, ...), (b, ...) -> (b,)."""
        difference = x - x_true
        return 0.5 * dot(self.weights.to(x) * difference, difference)

    def grad(self, x: Tensor, x_true: Tensor) -> Tensor:
        """w (x - x_true)."""
        return self.weights.to(x) * (x - x_true)

    def bracket(self, x: Tensor, x_true: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Range of g over the ball of radius eps (b,) around x: sqrt(2 g) is a seminorm of x -
        x_true, which changes by at most sqrt(max w) eps.
        """
        root = (2 * self.value(x.double(), x_true.double())).sqrt()
        return squared_error_bracket(root, self.smoothness**0.5 * eps)

    def tie(self, truth: Tensor, complex_images: bool = False) -> PairUpper:
        """The upper loss of a batch with the given truth; weights of each image follow it.

        Raises:
            InputError: weights of another number of images.
        """
        each = self.weights.dim() == truth.dim() and self.weights.shape[0] != 1
        if not each:
            return PairUpper(self, truth)
        if self.weights.shape[0] != len(truth):
            raise InputError(
                "weights",
                given=f"those of {self.weights.shape[0]} images",
                expected=f"those of {len(truth)}, or of shape (c, ...) for all",
                remedy="Give one slice per training image.",
            )
        return WeightedUpper(self, truth)


ImageLoss = Callable[[Tensor, Tensor], Tensor]
"""A function of (x, x_true), both (b, ...), one value per image (b,) or one for a single image."""


@dataclass(frozen=True, eq=False)
class Custom:
    """Any function of reconstruction and truth, differentiated by autograd: a deepinv metric, L1,
    SSIM, a perceptual network.

    It is called with one image at a time where it does not give one value per image. Brackets of
    its values are *estimated*: the function is evaluated at the two ends of the ball along its
    gradient, which is exact to first order; with ``smoothness`` or ``lipschitz`` given they use
    that number, and are still called estimated, because nobody has checked it.

    Args:
        function: (x, x_true) -> (b,), or a scalar for a single image; smaller is better.
        smoothness: a Lipschitz constant of its gradient per image, if you know one.
        lipschitz: a Lipschitz constant of the function per image, if you know one.
        energy: the function is called as (x, x_true, energy) with the energy at the theta in
            question: it may depend on theta, and is differentiated in it as well.

    Raises:
        InputError: no function, a metric that is larger for better images, or a constant out of
            range.

    >>> import torch
    >>> absolute = Custom(torch.nn.L1Loss(reduction="sum"))
    """

    function: Callable[..., Tensor]
    smoothness: float | None = None
    lipschitz: float | None = None
    energy: bool = False

    def __post_init__(self) -> None:
        tidy(self)
        check_flag("energy", self.energy)
        if isinstance(self.function, type) or not callable(self.function):
            raise InputError(
                "loss",
                given=shown(self.function),
                expected="a function of (x, x_true) with one value per image",
                remedy="For example Custom(torch.nn.L1Loss()).",
            )
        _check_direction(self.function)
        _check_arguments(self.function, 3 if self.energy else 2)
        check_positive("smoothness", self.smoothness, optional=True)
        check_positive("lipschitz", self.lipschitz, optional=True)

    def tie(self, truth: Tensor, complex_images: bool = False) -> CustomUpper:
        """The upper loss of a batch with the given truth, real channels; the function sees complex
        images where they are.
        """
        kind = CustomOfTheta if self.energy else CustomUpper
        return kind(self, truth, complex_images)


def _check_arguments(function: Callable[..., Tensor], count: int) -> None:
    """Refuse a function that does not take two images, and an energy where it is to see one.

    Raises:
        InputError: says so.
    """
    called = function.forward if isinstance(function, nn.Module) else function
    try:
        parameters = inspect.signature(called)
    except (TypeError, ValueError):  # built in: nobody knows
        return
    try:
        parameters.bind(*[None] * count)
    except TypeError as error:
        raise InputError(
            "loss",
            given=f"{shown(function)}, which cannot be called with two images"
            f"{' and an energy' if count == 3 else ''} ({error})",
            expected="a function of (x, x_true), or of (x, x_true, energy) for "
            "Custom(..., energy=True)",
            remedy="For example lambda x, x_true: (x - x_true).abs().flatten(1).mean(dim=1).",
        ) from error


class _Directed(Protocol):
    """A deepinv metric, which says whether smaller is better."""

    lower_better: bool
    train_loss: bool


def _check_direction(function: Callable[..., Tensor]) -> None:
    """Refuse a metric that would be minimized although larger is better.

    Raises:
        InputError: names the remedy.
    """
    if offers(function, _Directed) and not (function.lower_better or function.train_loss):
        name = type(function).__name__
        raise InputError(
            "loss",
            given=f"{name}, which is larger for better images",
            expected="a loss: smaller is better",
            remedy=f"Pass {name}(train_loss=True).",
        )


@dataclass(frozen=True, eq=False)
class CustomUpper:
    """A ``Custom`` loss tied to the truth.

    Attributes:
        loss: the function and what is known of it.
        truth: (b, ...), real channels.
        complex_images: the function sees complex images.
    """

    loss: Custom
    truth: Tensor
    complex_images: bool = False

    @property
    def signed(self) -> bool:
        """Nobody knows."""
        return True

    @property
    def smooth(self) -> Bound:
        """The user's word."""
        given = self.loss.smoothness
        return Bound.unknown() if given is None else Bound.estimate(given)

    @property
    def kind(self) -> Kind:
        return Kind.ESTIMATE

    def value(self, x: Tensor) -> Tensor:
        """(b, ...) -> (b,)."""
        with torch.no_grad():
            return self._per_image(x)

    def grad(self, x: Tensor) -> Tensor:
        """By autograd.

        Raises:
            InputError: a function without derivative.
        """
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            total = self._per_image(at).sum()
            if not total.requires_grad:
                raise InputError(
                    "loss",
                    given=f"{shown(self.loss.function)} without a derivative",
                    expected="a function made of torch operations",
                    remedy="Leave out rounding, numpy and detach(); a metric that is only made "
                    "to be looked at (PSNR) has none: take SSIM or torch.nn.MSELoss().",
                )
            (slope,) = torch.autograd.grad(total, at)
        return slope

    def bracket(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Estimated, see ``Custom``."""
        x, eps = x.double(), eps.double()
        middle, slope = self.value(x), self.grad(x)
        if self.loss.lipschitz is not None:
            return middle - self.loss.lipschitz * eps, middle + self.loss.lipschitz * eps
        if self.loss.smoothness is not None:
            half = norm(slope) * eps + 0.5 * self.loss.smoothness * eps**2
            return middle - half, middle + half

        return along_gradient(self.value, middle, slope, x, eps)

    def select(self, index: Tensor) -> CustomUpper:
        return replace(self, truth=self.truth[index])

    def to(self, dtype: torch.dtype) -> CustomUpper:
        return replace(self, truth=self.truth.to(dtype))

    def _per_image(self, x: Tensor) -> Tensor:
        """(b,), of the whole batch where the function keeps images apart, else one by one."""
        found = self._called(x, self.truth)
        if isinstance(found, Tensor) and found.shape == (x.shape[0],) and x.shape[0] > 1:
            return self._real(found).to(x.dtype)

        # one value for the batch: its mean or sum, which says nothing of a single image
        rows = [self._called(x[i : i + 1], self.truth[i : i + 1]) for i in range(x.shape[0])]
        if not all(isinstance(r, Tensor) and r.numel() == 1 for r in rows):
            raise InputError(
                "loss",
                given=f"{shown(self.loss.function)} with {shown(found)} for {x.shape[0]} images",
                expected="one number per image",
                remedy="Sum or average over the pixels of an image.",
            )
        return self._real(torch.stack([r.reshape(()) for r in rows])).to(x.dtype)

    def _called(self, x: Tensor, truth: Tensor) -> Tensor:
        """The function of copies, which it may write to, in its own type."""
        dtype = _dtype_of(self.loss.function, x)
        at, true = x.to(dtype).clone(), truth.to(x.device, dtype).clone()
        if self.complex_images:
            at, true = complex_channels(at), complex_channels(true)
        try:
            return self.loss.function(at, true, *self._more(at))
        except RuntimeError as error:
            raise InputError(
                "loss",
                given=f"an error of {shown(self.loss.function)}: {error}",
                expected=f"a function of images {tuple(at.shape)} in {at.dtype}",
                remedy="Values are taken in float64. Wrap a network in an nn.Module, whose type is "
                "then respected, or cast inside.",
            ) from error

    def _more(self, x: Tensor) -> tuple[object, ...]:
        """What the function sees besides two images."""
        return ()

    def _real(self, values: Tensor) -> Tensor:
        if values.is_complex():
            raise InputError(
                "loss",
                given=f"complex values of {shown(self.loss.function)}",
                expected="real ones",
                remedy="Take the modulus: (x - x_true).abs().",
            )
        return values


class Widened(Protocol):
    """An energy that has a copy in float64."""

    def widened(self) -> nn.Module: ...


@dataclass(frozen=True, eq=False)
class CustomOfTheta(CustomUpper):
    """A ``Custom`` loss that sees the energy, see ``core.maps.OfTheta``.

    Attributes:
        energy: at theta; None before anybody has said which.
        wide: its copy in float64, made when it is needed.
    """

    energy: Level | None = None
    wide: list[object] = field(default_factory=list)

    def at(self, energy: Level) -> CustomOfTheta:
        return replace(self, energy=energy, wide=[])

    def slope(self, x: Tensor) -> Tensor:
        """By autograd, in the type of the parameters."""
        assert self.energy is not None
        parameters = trainable(cast(nn.Module, self.energy))
        with torch.enable_grad():
            total = self._per_image(x.detach().to(parameters[0].dtype)).sum()
            return slope_in(total, parameters)

    def slope_change(self, x: Tensor, eps: Tensor) -> Tensor | None:
        """Nobody knows."""
        return None

    def _more(self, x: Tensor) -> tuple[object, ...]:
        energy = self.energy
        if energy is None:
            raise InputError(
                "loss",
                given="a function of the energy without one",
                expected="a BilevelProblem, which says where theta is",
                remedy="Use the loss in a BilevelProblem.",
            )
        narrow = trainable(cast(nn.Module, energy))[0].dtype != torch.float64
        if x.dtype == torch.float64 and narrow and offers(energy, Widened):
            if not self.wide:
                self.wide.append(energy.widened())
            return (self.wide[0],)
        return (energy,)


def _dtype_of(function: Callable[..., Tensor], x: Tensor) -> torch.dtype:
    """The type that a function computes in: a network's own, else that of the images."""
    weights = function.parameters() if isinstance(function, nn.Module) else ()
    return next((w.dtype for w in weights if w.is_floating_point()), x.dtype)


def along_gradient(
    value: Callable[[Tensor], Tensor], middle: Tensor, slope: Tensor, x: Tensor, eps: Tensor
) -> tuple[Tensor, Tensor]:
    """An estimated range of a function over balls of radius eps (b,): its values at the centre and
    at the two ends along its gradient, where it is smallest and largest to first order.
    """
    unknown = ~torch.isfinite(eps)
    reach = eps.masked_fill(unknown, 0.0) / norm(slope).clamp_min(torch.finfo(x.dtype).tiny)
    ends = [value(x + expand(sign * reach, x) * slope) for sign in (-1.0, 1.0)]

    lower, upper = torch.stack([middle, *ends]).aminmax(dim=0)
    return lower.masked_fill(unknown, -torch.inf), upper.masked_fill(unknown, torch.inf)


@dataclass(frozen=True, eq=False)
class PairUpper:
    """A loss with constants, tied to the truth.

    Attributes:
        loss: value, gradient, bracket and smoothness.
        truth: (b, ...).
    """

    loss: Loss
    truth: Tensor

    @property
    def signed(self) -> bool:
        """A loss of pairs is >= 0."""
        return False

    @property
    def smooth(self) -> Bound:
        """The Lipschitz constant of the gradient, as the loss declares it."""
        return Bound.proven(self.loss.smoothness)

    @property
    def kind(self) -> Kind:
        return Kind.EXACT

    def value(self, x: Tensor) -> Tensor:
        """(b, ...) -> (b,)."""
        return self.loss.value(x, self.truth.to(x.dtype))

    def grad(self, x: Tensor) -> Tensor:
        """(b, ...) -> (b, ...)."""
        return self.loss.grad(x, self.truth.to(x.dtype))

    def bracket(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Of the loss itself."""
        return self.loss.bracket(x, self.truth, eps)

    def select(self, index: Tensor) -> PairUpper:
        return PairUpper(self.loss, self.truth[index])

    def to(self, dtype: torch.dtype) -> PairUpper:
        return PairUpper(self.loss, self.truth.to(dtype))


@dataclass(frozen=True, eq=False)
class WeightedUpper(PairUpper):
    """Weights of each image, which follow the batch."""

    def select(self, index: Tensor) -> PairUpper:
        assert isinstance(self.loss, WeightedSquaredError)
        loss = WeightedSquaredError(self.loss.weights[index.to(self.loss.weights.device)])
        kind = PairUpper if len(index) == 1 else WeightedUpper
        return kind(loss, self.truth[index])

    def to(self, dtype: torch.dtype) -> PairUpper:
        return WeightedUpper(self.loss, self.truth.to(dtype))


@runtime_checkable
class Tieable(Protocol):
    """A loss that makes its own upper loss of the truth, real channels."""

    def tie(self, truth: Tensor, complex_images: bool = False, /) -> Upper: ...


PairLoss = Loss | Tieable


def tied_loss(loss: PairLoss, truth: Tensor, complex_images: bool = False) -> Upper:
    """The upper loss of a batch with the given truth, real channels."""
    if isinstance(loss, Tieable):
        return loss.tie(truth, complex_images)
    return PairUpper(loss, truth)


def as_loss(loss: object | None) -> PairLoss:
    """The upper loss that a user means; torch's mean and summed squared errors are translated, and
    any other function is differentiated by autograd (``Custom``).

    Raises:
        InputError: no function of images.
    """
    if loss is None:
        return SquaredError()
    if isinstance(loss, nn.MSELoss) and loss.reduction in ("mean", "sum"):
        return ScaledSquaredError(2.0, mean=loss.reduction == "mean")
    if not isinstance(loss, type):
        if isinstance(loss, Loss | Tieable):
            return loss
        if callable(loss):
            return Custom(loss)
    raise InputError(
        "loss",
        given=shown(loss),
        expected="SquaredError(), torch.nn.MSELoss(), a function of (x, x_true), or an object with "
        "value, grad, bracket and smoothness",
        remedy="For example lr.Custom(torch.nn.L1Loss()).",
    )
