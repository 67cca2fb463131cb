"""Bounds of pixels, lower <= x <= upper: what a user says, and the same tied to images.

With g = grad h(x) at a feasible x the projected gradient is
    pg_i = g_i inside,   min(g_i, 0) at the lower bound,   max(g_i, 0) at the upper one,
an element of grad h(x) + N(x), N the normal cone. Where h is mu-strongly convex that map is
strongly monotone, and zero belongs to its value at the minimizer x*, so that
    ||x - x*|| <= ||pg|| / mu.

Which pixels are at a bound in x* follows from an x with ||x - x*|| <= eps, for an h with
L-Lipschitz gradients: pixels farther than eps from their bounds are free, and a pixel with
g_i > L eps is at its lower bound (|g_i(x) - g_i(x*)| <= L eps, and a positive slope of h at x*
leaves no other place); likewise g_i < -L eps at the upper one. Nothing is known about all others.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Protocol, Self, TypeGuard

import torch
from torch import Tensor

from .asking import offers
from .batch import expand
from .errors import DataWarning, InputError
from .ranges import plain, shown

Limit = float | Tensor | None
"""A number, a tensor (1, c, ...) or (b, c, ...) that broadcasts to images, or None for no bound."""

NUMBERS = torch.finfo(torch.float32)

MOST_OUTSIDE = 0.5
"""Of the pixels of true images: noise leaves bounds here and there, other units leave them all."""


@dataclass(frozen=True, eq=False)
class Between:
    """lower <= x <= upper for every pixel of an image.

    Bounds are kept as float32 numbers, rounded inwards, for images of every type: an image keeps to
    them, to the last bit, when it is converted from one type to another, and the minimizer is the
    same. Where both are equal the pixel is fixed (a known support, for example).

    Args:
        lower, upper: a number, a tensor (1, c, ...) with a value per pixel or (b, c, ...) with one
            per pixel and image, or None for no bound.

    Raises:
        InputError: NaN, no real number, lower > upper somewhere, a tensor without a batch dimension
            or one that wants a gradient.

    >>> Between(0.0, 1.0)
    Between(0 <= x <= 1)
    """

    lower: Limit = 0.0
    upper: Limit = None

    def __post_init__(self) -> None:
        for name, value, sign in (("lower", self.lower, -1), ("upper", self.upper, 1)):
            object.__setattr__(self, name, _limit(name, value, sign * math.inf))
        low, high = self._ends()
        try:
            torch.broadcast_shapes(low.shape, high.shape)
        except RuntimeError as error:
            raise InputError(
                "lower, upper",
                given=f"shapes {tuple(low.shape)} and {tuple(high.shape)}",
                expected="shapes that broadcast to those of images",
                remedy="Give both a batch dimension, for example bound[None].",
            ) from error
        if bool((low > high).any()):
            raise InputError(
                "lower, upper",
                given=f"{shown(self.lower)} and {shown(self.upper)}",
                expected="lower <= upper in every pixel",
                remedy="Exchange the two bounds.",
            )

    def _ends(self) -> tuple[Tensor, Tensor]:
        """Both as float64, infinite where there is none."""
        low, high = (
            v.double() if isinstance(v, Tensor) else torch.tensor(v, dtype=torch.float64)
            for v in (
                -math.inf if self.lower is None else self.lower,
                math.inf if self.upper is None else self.upper,
            )
        )
        return low, high

    @property
    def bounds_anything(self) -> bool:
        """Whether some pixel is bounded at all."""
        return any(bool(torch.isfinite(end).any()) for end in self._ends())

    def tied(self, x: Tensor) -> Interval:
        """The bounds of images like x (b, c, ...), in their type and on their device.

        Raises:
            InputError: bounds of another shape.
        """
        low, high = self._ends()
        for name, end in (("lower", low), ("upper", high)):
            _check_shape(name, end, x)
        low, high = _inwards(*torch.broadcast_tensors(low, high))
        shape = (1,) * x.dim() if low.dim() == 0 else low.shape
        return Interval(*(t.reshape(shape).to(x.device, x.dtype) for t in (low, high)))

    @property
    def words(self) -> str:
        """How it reads in a sentence."""
        low, high = (
            name if isinstance(v, Tensor) else None if v is None else f"{v:g}"
            for name, v in (("lower", self.lower), ("upper", self.upper))
        )
        if low is not None and high is not None:
            return f"{low} <= x <= {high}"
        if low is not None:
            return f"x >= {low}"
        return "x free" if high is None else f"x <= {high}"

    def __repr__(self) -> str:
        return f"Between({self.words})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Between):
            return NotImplemented
        pairs = zip(self._ends(), other._ends(), strict=True)
        return all(a.shape == b.shape and bool((a == b).all()) for a, b in pairs)

    def __hash__(self) -> int:
        return hash(self.words)


@dataclass(frozen=True, eq=False, repr=False)
class NonNegative(Between):
    """x >= 0 for every pixel: images of intensities, densities, attenuation or activity.

    >>> NonNegative() == Between(0.0)
    True
    """

    lower: Limit = field(default=0.0, init=False)
    upper: Limit = field(default=None, init=False)


def as_constraint(given: object) -> Between | None:
    """The constraint that a user means; None where nothing is bounded.

    Raises:
        InputError: neither ``Between`` nor a pair (lower, upper).
    """
    if isinstance(given, tuple | list) and len(given) == 2:
        given = Between(*given)
    if given is not None and not isinstance(given, Between):
        raise InputError(
            "constraint",
            given=shown(given),
            expected="Between(lower, upper), NonNegative(), or a pair (lower, upper)",
            remedy="For example constraint=lr.NonNegative(), or constraint=(0, 1).",
        )
    if given is None or not given.bounds_anything:
        return None
    return Between(given.lower, given.upper)  # one form, whatever it was called


def warn_of_truth(constraint: Between, truth: Tensor, stacklevel: int) -> None:
    """Say when most pixels of true images (b, c, ...) lie outside of the bounds: other units, say.

    Raises:
        InputError: bounds of another shape.

    Warns:
        DataWarning: with the range of the images.
    """
    domain = constraint.tied(truth)
    outside = float((domain.project(truth) != truth).double().mean())
    if outside > MOST_OUTSIDE:
        low, high = (float(v) for v in truth.aminmax())
        warnings.warn(
            f"pairs: given true images of which {outside:.0%} of the pixels lie outside of the "
            f"bounds of the energy, {constraint.words} (they range from {low:.3g} to {high:.3g}); "
            "expected reconstructions that can come near them. Give the bounds in the units of "
            "the images.",
            DataWarning,
            stacklevel=stacklevel,
        )


# --- tied to images -------------------------------------------------------------------------------


class Domain(Protocol):
    """Where images may be, as solvers ask for it."""

    @property
    def everywhere(self) -> bool:
        """Whether nothing is bounded."""
        ...

    def project(self, x: Tensor) -> Tensor:
        """The nearest image inside."""
        ...

    def contains(self, x: Tensor) -> Tensor:
        """Images (b,) that keep to the bounds exactly."""
        ...

    def slope(self, x: Tensor, g: Tensor) -> Tensor:
        """The projected gradient at x (b, ...)."""
        ...

    def inside(self, x: Tensor) -> Tensor | None:
        """Pixels (b, ...) strictly between their bounds; None for all of them."""
        ...

    def movable(self, x: Tensor, g: Tensor, curvature: Tensor) -> Tensor | None:
        """Pixels (b, ...) that a gradient step of length 1 / curvature (b,) does not take to a
        bound; None for all of them.
        """
        ...

    def toward(self, x: Tensor, g: Tensor) -> Tensor:
        """The way to the bound that -g points to, zero where there is none (b, ...)."""
        ...

    def select(self, index: Tensor) -> Domain:
        """That of the images ``index``."""
        ...


class Everywhere:
    """No bound at all: all methods hand back what they are given."""

    everywhere = True

    def project(self, x: Tensor) -> Tensor:
        return x

    def contains(self, x: Tensor) -> Tensor:
        return torch.ones(x.shape[0], dtype=torch.bool, device=x.device)

    def slope(self, x: Tensor, g: Tensor) -> Tensor:
        return g

    def inside(self, x: Tensor) -> None:
        return None

    def movable(self, x: Tensor, g: Tensor, curvature: Tensor) -> None:
        return None

    def toward(self, x: Tensor, g: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def select(self, index: Tensor) -> Everywhere:
        return self


@dataclass(frozen=True, eq=False)
class Interval:
    """lower <= x <= upper, tied to images.

    Attributes:
        lower, upper: (b or 1, ...) that broadcast to images, infinite where nothing is bounded.
    """

    lower: Tensor
    upper: Tensor

    @property
    def everywhere(self) -> bool:
        return False

    def project(self, x: Tensor) -> Tensor:
        """The nearest image inside, (b, ...)."""
        return torch.clamp(x, self.lower, self.upper)

    def contains(self, x: Tensor) -> Tensor:
        """Images (b,) that keep to the bounds exactly; none with NaN does."""
        return ((x >= self.lower) & (x <= self.upper)).flatten(1).all(dim=1)

    def slope(self, x: Tensor, g: Tensor) -> Tensor:
        """The projected gradient at a feasible x, (b, ...)."""
        g = torch.where(x <= self.lower, g.clamp_max(0), g)
        return torch.where(x >= self.upper, g.clamp_min(0), g)

    def inside(self, x: Tensor) -> Tensor:
        """Pixels strictly between their bounds, (b, ...)."""
        return (x > self.lower) & (x < self.upper)

    def movable(self, x: Tensor, g: Tensor, curvature: Tensor) -> Tensor:
        """Pixels that a gradient step of length 1 / curvature (b,) does not take to a bound: at a
        bound, those that it takes inside.
        """
        moved = torch.where(g == 0, x, x - g / expand(curvature.to(g), g))
        held = ((moved <= self.lower) & (g > 0)) | ((moved >= self.upper) & (g < 0))
        return ~held & (self.lower < self.upper)

    def toward(self, x: Tensor, g: Tensor) -> Tensor:
        """The way to the bound that -g points to, zero where there is none, (b, ...)."""
        bound = torch.where(g > 0, self.lower, torch.where(g < 0, self.upper, x))
        return torch.where(bound.isinf(), 0.0, bound - x)

    def undecided(self, x: Tensor, g: Tensor, eps: Tensor, slack: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels whose set in the minimizer is certainly ``active``, and those for which nothing is
        known; see the head of this file.

        Args:
            x, g: feasible images and the gradients there, (b, ...), float64.
            eps: ||x - x*|| is at most this, (b,).
            slack: L eps and what rounding makes of g, (b,).
        """
        reach, slack = expand(eps, x), expand(slack, g)
        active = (g > slack) & self.lower.isfinite() | (g < -slack) & self.upper.isfinite()
        active = active | (self.lower == self.upper)
        free = (x - reach > self.lower) & (x + reach < self.upper)
        return active, ~(active | free)

    def select(self, index: Tensor) -> Self:
        """Those of the images ``index``; bounds that all images share stay as they are."""
        return self._made(lambda t: t if t.shape[0] == 1 else t[index])

    def double(self) -> Self:
        """In float64."""
        return self._made(lambda t: t.double())

    def window(self, rows: slice, columns: slice) -> Self:
        """Those of a window of all images (b, c, h, w)."""
        return self._made(
            lambda t: t[
                ...,
                rows if t.shape[-2] > 1 else slice(None),
                columns if t.shape[-1] > 1 else slice(None),
            ]
        )

    def _made(self, change: Changed) -> Self:
        return type(self)(change(self.lower), change(self.upper))


class Changed(Protocol):
    """What becomes of a bound."""

    def __call__(self, bound: Tensor, /) -> Tensor: ...


class Boxed(Protocol):
    """A function whose images are bounded."""

    @property
    def domain(self) -> Interval: ...


EVERYWHERE = Everywhere()


def is_boxed(f: object) -> TypeGuard[Boxed]:
    """Whether images of f are bounded."""
    return offers(f, Boxed)


def bounds_of(f: object) -> Interval | None:
    """The bounds of images of f; None where there are none."""
    return f.domain if is_boxed(f) else None


def domain_of(f: object) -> Domain:
    """Where the images of potentials f may be; ``EVERYWHERE`` where f says nothing."""
    return bounds_of(f) or EVERYWHERE


def masked(v: Tensor, kept: Tensor | None) -> Tensor:
    """v (b, ...) with zeros where ``kept`` is False; v itself for None."""
    return v if kept is None else torch.where(kept, v, 0.0)


# --- checks ---------------------------------------------------------------------------------------


def _limit(name: str, value: object, none: float) -> Limit:
    """A bound as a number of Python's own, as a tensor without a graph, or None.

    Raises:
        InputError: says what it is not.
    """
    value = plain(value)
    if value is None or (isinstance(value, float) and value == none):
        return None
    expected = "a real number, a tensor (1, c, ...) or (b, c, ...) of such, or None for no bound"
    if not isinstance(value, Tensor):
        usable = isinstance(value, int | float) and not isinstance(value, bool)
        if not usable or math.isnan(number := float(value)):  # type: ignore[arg-type]
            remedy = "An array becomes a tensor by torch.as_tensor(array)[None, None]."
            raise InputError(name, given=shown(value), expected=expected, remedy=remedy)
        _check_range(name, torch.tensor(number, dtype=torch.float64), none)
        return number

    if value.requires_grad:
        raise InputError(
            name,
            given="a tensor that requires a gradient",
            expected="bounds that are known; they are not learned",
            remedy=f"Pass {name}.detach().",
        )
    dense = value.layout == torch.strided and not (value.is_meta or value.is_nested)
    if not dense or value.is_complex() or value.dtype == torch.bool or value.dim() < 2:
        remedy = "Add the dimensions of batch and channels with bound[None, None]."
        raise InputError(name, given=shown(value), expected=expected, remedy=remedy)
    _check_range(name, value.double(), none)
    return value


def _check_range(name: str, value: Tensor, none: float) -> None:
    """Refuse NaN, the infinity of the wrong sign, and numbers beyond all float32 ones.

    Raises:
        InputError: names the first.
    """
    wrong = value.isnan() | (value == -none) | ((value.abs() > NUMBERS.max) & value.isfinite())
    if bool(wrong.any()):
        raise InputError(
            name,
            given=shown(float(value[wrong].flatten()[0])),
            expected=f"numbers up to {NUMBERS.max:.1e} in size, or {none:g} for no bound",
            remedy="Leave out bounds that bind nothing.",
        )


def _check_shape(name: str, bound: Tensor, x: Tensor) -> None:
    """Refuse bounds that are none of images like x.

    Raises:
        InputError: says both shapes.
    """
    if bound.dim() == 0:
        return
    pairs = zip(bound.shape, x.shape, strict=False)
    if bound.dim() == x.dim() and all(b in (1, n) for b, n in pairs):
        return
    per_image = bound.dim() == x.dim() and bound.shape[1:] == x.shape[1:]
    raise InputError(
        f"constraint.{name}",
        given=f"shape {tuple(bound.shape)}",
        expected=f"a shape that broadcasts to images {tuple(x.shape)}",
        remedy=f"Pass bounds that differ from image to image as params={{'{name}': ...}}."
        if per_image
        else "Give it the dimensions of the images, of length 1 where nothing differs.",
    )


def _inwards(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """float64 bounds as float32 numbers, the nearest ones inside; the nearest ones at all where
    none lies between.
    """
    near, far = low.float(), high.float()
    up = torch.nextafter(near, torch.full_like(near, torch.inf))
    down = torch.nextafter(far, torch.full_like(far, -torch.inf))
    inner = torch.where(near.double() < low, up, near)
    outer = torch.where(far.double() > high, down, far)
    crossed = inner > outer
    return torch.where(crossed, near, inner), torch.where(crossed, far, outer)
