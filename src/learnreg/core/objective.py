"""The nouns between objectives and learners: a value with its bracket, a gradient with its error, a
state, a step.

An objective is anything that a learner can minimize over theta: bilevel learning, score matching, a
loss of your own. Learners know nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from torch import Tensor

from .asking import offers
from .grants import Grants
from .meter import Meter
from .packing import Packed
from .results import Hypergradient, StopReason

Row: TypeAlias = dict[str, Any]
"""One line of a record: plain values (JSON) by name."""

ErrorWord: TypeAlias = Literal["none", "estimate", "certify"]
"""What is asked about the error of a gradient."""


class Halt(Exception):
    """A step cannot be completed; carries the reason for the upper loop."""

    def __init__(self, reason: StopReason) -> None:
        self.reason = reason
        super().__init__(reason.sentence)


class Residuals(Protocol):
    """A loss as a sum of squares F = sum_i r_i^2 = 2 n f for n images."""

    @property
    def values(self) -> Tensor:
        """(m,) float64, the residuals r~."""
        ...

    @property
    def error(self) -> float:
        """The largest |r~_i - r_i|."""
        ...


@dataclass(frozen=True, eq=False)
class PerImage:
    """What is known of each image of a value.

    Attributes:
        loss, psnr: (b,) float64; psnr is NaN where there is no ground truth.
    """

    loss: Tensor
    psnr: Tensor


class Value(Protocol):
    """An objective at one theta, as exact as it was asked for."""

    @property
    def theta(self) -> Tensor:
        """(d,)."""
        ...

    @property
    def eps(self) -> float:
        """The accuracy that was asked for: a distance per image."""
        ...

    @property
    def loss(self) -> float:
        """The loss as computed, penalty included."""
        ...

    @property
    def lower(self) -> float:
        """The lower end of the bracket of the exact loss."""
        ...

    @property
    def upper(self) -> float:
        """The upper end."""
        ...

    @property
    def width(self) -> float:
        """Of the bracket."""
        ...

    @property
    def certified(self) -> bool:
        """Whether the bracket is proven."""
        ...

    @property
    def error(self) -> Tensor:
        """(b,), how far each image is from the exact one."""
        ...

    @property
    def steps(self) -> int:
        """The most steps that an image took."""
        ...

    @property
    def at_floor(self) -> bool:
        """Some image is as exact as its floating-point type allows, and no more."""
        ...

    @property
    def failed(self) -> bool:
        """Some image could not be solved."""
        ...

    @property
    def limited(self) -> bool:
        """Some image ended at a limit of steps, and may go on."""
        ...

    @property
    def trouble(self) -> str:
        """What went wrong, for the first image with which something did."""
        ...

    @property
    def warm(self) -> Tensor | None:
        """What another evaluation starts from, one row per image; None where nothing helps."""
        ...

    def corrected(self, adjoint: Tensor | None) -> float:
        """An estimate of the exact loss from the adjoint of a gradient; the loss without one."""
        ...

    def residuals(self, pixels: bool) -> Residuals | None:
        """The loss as a sum of squares: one residual per image, or per pixel; None where it is
        none.
        """
        ...

    def per_image(self) -> PerImage:
        """Losses and quality of every image."""
        ...

    def row(self) -> Row:
        """What the record shows: ``loss``, ``lower``, ``upper``, ``kind``, ``psnr``."""
        ...

    def pack(self) -> Packed:
        """For a checkpoint; ``Objective.restore`` is the inverse."""
        ...


class Rescaling(Protocol):
    """An objective that knows the scale of what is learned."""

    @property
    def scaling(self) -> Tensor:
        """(d,), the direction of theta along which the regularizer is multiplied by e^t; zeros
        where nobody knows it.
        """
        ...

    def stiffness(self, theta: Tensor) -> float:
        """The logarithm of the largest curvature of the data term; 0 where nobody knows it."""
        ...


class Doubted(Protocol):
    """A value that says how far its ``corrected`` may be off."""

    def doubt(self, adjoint: Tensor | None) -> float:
        """An estimate of |f(theta) - corrected|, not a bound."""
        ...


def doubt_of(value: Value, adjoint: Tensor | None) -> float:
    """How far ``value.corrected(adjoint)`` may be off, estimated; by the size of the correction
    where the value does not say.
    """
    if offers(value, Doubted):
        return value.doubt(adjoint)
    return abs(value.loss - value.corrected(adjoint))


class Objective(Protocol):
    """f(theta), what it grants, and how it is asked. Evaluations raise OutOfBudget at the end."""

    @property
    def grants(self) -> Grants: ...

    @property
    def theta(self) -> Tensor:
        """The start (d,)."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """One per entry of theta."""
        ...

    @property
    def units(self) -> Tensor:
        """(d,), a natural step of every entry."""
        ...

    @property
    def size(self) -> int:
        """Number of images."""
        ...

    @property
    def device(self) -> torch.device: ...

    @property
    def meter(self) -> Meter:
        """Everything evaluated so far, abandoned work included, and the budget."""
        ...

    def accuracies(
        self, theta: Tensor, eps: float | None, delta: float | None
    ) -> tuple[float, float]:
        """The first accuracies as given, or derived at theta."""
        ...

    def distance_for(self, tolerance: float) -> float:
        """The eps that makes every residual exact up to ``tolerance``."""
        ...

    def evaluate(
        self,
        theta: Tensor,
        eps: float,
        start: Value | Tensor | None = None,
        max_steps: int | None = None,
    ) -> Value:
        """The objective at theta; from the data, or from a value or its ``warm`` nearby."""
        ...

    def trial(self, theta: Tensor, eps: float, near: Value) -> Value | None:
        """A theta that may be hopeless, with a limit of steps; None where it is."""
        ...

    def refine(self, value: Value, eps: float) -> Value:
        """The same theta to a smaller eps."""
        ...

    def gradient(
        self,
        value: Value,
        delta: float,
        warm: Tensor | None = None,
        error: ErrorWord | None = None,
    ) -> Hypergradient:
        """The gradient at a value, with a residual of its linear system of delta per image.

        Args:
            warm: ``Hypergradient.adjoint`` of a gradient nearby.
            error: what to find out about its error; as configured when None.
        """
        ...

    def subset(self, index: Tensor) -> Objective:
        """The objective of the images ``index`` (k,), with the same counters."""
        ...

    def widened(self) -> Objective:
        """The same in float64, with the same counters."""
        ...

    def adopt(self, value: Value) -> Value:
        """A value of the same objective in float32 for this one in float64."""
        ...

    def restore(self, packed: Packed) -> Value:
        """The inverse of ``Value.pack``."""
        ...

    def describe(self) -> str:
        """One sentence: what is learned from what."""
        ...

    def identity(self) -> tuple[object, ...]:
        """Everything that the numbers of a run depend on, for its fingerprint."""
        ...

    def learned(self, theta: Tensor) -> object:
        """What was learned: a lower level at theta."""
        ...

    def penalty(self, theta: Tensor) -> float:
        """The part of the loss that depends on theta alone."""
        ...


@runtime_checkable
class Evaluated(Protocol):
    """What tells an objective from a problem that has yet to become one."""

    def evaluate(self, theta: Tensor, eps: float, /) -> Value: ...

    def gradient(self, value: Value, delta: float, /) -> Hypergradient: ...


class State(Protocol):
    """What a learner keeps between two steps: a frozen dataclass of tensors, numbers, values and
    other such dataclasses, so that any state can be packed and resumed (``core.packing``).
    """

    @property
    def theta(self) -> Tensor:
        """(d,), the parameters of this step."""
        ...

    def row(self) -> Row:
        """What the record shows of the step; see ``Value.row``."""
        ...


S = TypeVar("S", bound=State)


class Learner(Protocol[S]):
    """A step rule: it asks an objective, and says where theta goes. It draws all it needs to draw
    from ``seed`` and the state, so that a resumed run gives the same numbers.
    """

    @property
    def needs(self) -> Grants: ...

    def init(self, objective: Objective, theta: Tensor, seed: int = 0) -> S:
        """The state at theta_0."""
        ...

    def step(self, objective: Objective, state: S) -> S:
        """The next state; raises Halt with the reason where there is none."""
        ...


def checked(value: Value) -> Value:
    """The value, or Halt when some image has no certificate; at the rounding floor the one reached
    is used.
    """
    if value.failed:
        raise Halt(
            StopReason(
                "not_finite",
                f"the lower level could not be solved at the present parameters: {value.trouble}",
            )
        )
    return value


def rounding_floor(dtype: torch.dtype, limit: str) -> Halt:
    """The floating-point type is exhausted; the upper loop may go on in float64."""
    more = "" if dtype == torch.float64 else "; float64 would go on"
    return Halt(StopReason("rounding_floor", f"{limit} in {dtype}{more}"))


def settled(value: Value) -> Value:
    """The value, or Halt: where float32 ends the run may go on in float64, elsewhere it ends."""
    checked(value)
    if value.at_floor and value.theta.dtype != torch.float64:
        raise rounding_floor(
            value.theta.dtype,
            f"the lower level cannot be solved more accurately than {float(value.error.max()):.1e}",
        )
    return value


def row_of(value: Value, info: Row) -> Row:
    """The row of a state whose theta was evaluated on all images."""
    return {**value.row(), **info}


def chosen(index: Tensor, images: Tensor | None, size: int) -> Tensor:
    """Which images of the whole a subset has.

    Args:
        index: into the images of an objective, as ``Objective.subset`` takes it.
        images: which ones those are themselves; None for the whole.
        size: how many there are.
    """
    whole = torch.arange(size, device=index.device) if images is None else images
    return whole[index]


def same_images(one: Tensor | None, two: Tensor | None) -> bool:
    """Whether a value was made of the images of an objective; None stands for the whole."""
    if one is None or two is None:
        return one is None  # a value of the whole is judged by whoever is the whole
    return one.equal(two)
