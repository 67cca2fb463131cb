"""Tensors of a data term that may differ from image to image: weights, backgrounds, gains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, Self, TypeVar, cast

import torch
from torch import Tensor

from ..core.asking import offers
from ..core.cost import Cost
from ..core.errors import InputError
from ..operators.physics import TiedMap

T = TypeVar("T")


class HasTensors(Protocol):
    """A data term with tensors (1, ...) for all images, or (b, ...) with one slice for each."""

    @property
    def per_image(self) -> frozenset[str]:
        """Names that ``params={name: (b, ...)}`` may give for the images of a batch."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Those that are tensors, by name."""
        ...

    def replaced(self, **tensors: Tensor) -> Self:
        """The same with other tensors."""
        ...


class Targeted(Protocol):
    """A data term whose measurements are in other units than A x."""

    def target(self, y: Tensor, above: bool = True) -> Tensor:
        """What A x would be without noise for measurements y, (b, ...) likewise."""
        ...


def expected(term: object, y: Tensor) -> Tensor:
    """What A x would be without noise for real measurements y (b, ...): y itself for most terms."""
    if not offers(term, Targeted):
        return y
    with torch.no_grad():
        return term.target(y)


def started(operator: TiedMap, term: object, y: Tensor, back: Tensor, above: bool = True) -> Tensor:
    """The picture t A^T z that a solve starts from, with z what A x would be without noise and the
    t that fits it best.

    Args:
        operator: A of these images.
        term: a data term, which may know z; otherwise z = y.
        y: real measurements (b, ...).
        back: A^T y.
        above: whether a background is taken off.
    """
    if not offers(term, Targeted):
        return operator.fitted(back, y)
    with torch.no_grad():
        z = term.target(y, above)
        image = operator.adjoint(z)
    operator.map.cost += Cost(hessian_products=0 if operator.is_identity else back.shape[0])
    return operator.fitted(image, z)


KNOWN = {"weights": "WeightedL2", "background": "KL", "gain": "KL"}
"""Names per image of the library's own data terms, and who has them."""


def names_of(term: object) -> frozenset[str]:
    """The names that a data term takes per image; none for most."""
    return term.per_image if offers(term, HasTensors) else frozenset()


def with_tensors(term: T, given: Mapping[str, Tensor]) -> T:
    """The data term with the tensors of a batch."""
    asked: object = term
    if not given or not offers(asked, HasTensors):
        return term
    return _as(term, asked.replaced(**given))


def of_images(term: T, index: Tensor) -> T:
    """The data term of some images: what differs from image to image follows them."""
    asked: object = term
    if not offers(asked, HasTensors):
        return term
    rows = {name: t.detach() for name, t in asked.tensors().items() if t.dim() and t.shape[0] > 1}
    chosen = {name: t[index.to(t.device)] for name, t in rows.items()}
    return _as(term, asked.replaced(**chosen)) if chosen else term


def in_double(term: T) -> T:
    """The data term with its tensors in float64."""
    asked: object = term
    if not offers(asked, HasTensors):
        return term
    wide = {name: t.detach().double() for name, t in asked.tensors().items()}
    return _as(term, asked.replaced(**wide)) if wide else term


def _as(term: T, other: object) -> T:
    """For type checkers: ``other`` is a data term of the same kind."""
    return cast(T, other)


def checked(name: str, t: object, least: float = 0.0, *, above: bool = False) -> Tensor:
    """A tensor of a data term.

    Args:
        least: its smallest entry; with ``above`` all have to be larger.

    Raises:
        InputError: no floating-point tensor with the images first, not finite, or out of range.
    """
    if not isinstance(t, Tensor) or not t.is_floating_point() or t.dim() < 1:
        raise InputError(
            name,
            given=f"shape {tuple(t.shape)}, {t.dtype}"
            if isinstance(t, Tensor)
            else type(t).__name__,
            expected="a floating-point tensor (1, ...) or (b, ...) like y",
            remedy=f"Add a batch dimension with {name}[None].",
        )
    inside = t > least if above else t >= least
    if not bool((torch.isfinite(t) & inside).all()):
        raise InputError(
            name,
            given="NaN, Inf or negative" if not above else "NaN, Inf, zero or negative",
            expected=f"numbers {'>' if above else '>='} {least:g}",
        )
    return t


def fitted(name: str, t: Tensor, y: Tensor) -> Tensor:
    """A tensor of a data term as one that broadcasts to y, in the type of y.

    Its first axis counts the images; axes that it lacks are put in after it: (b,) is a number for
    every image, and (b, h, w) belongs to y of shape (b, 1, h, w).

    Raises:
        InputError: another number of images, or a shape that does not fit.
    """
    spread = t.reshape(t.shape[0], *[1] * (y.dim() - t.dim()), *t.shape[1:])
    try:
        fits = torch.broadcast_shapes(spread.shape, y.shape) == y.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise InputError(
            name,
            given=f"shape {tuple(t.shape)}",
            expected=f"(1, ...) or ({y.shape[0]}, ...) that broadcasts to {tuple(y.shape)}",
            remedy=f"Pass {name} that differ from image to image as params={{'{name}': ...}}.",
        )
    # why not .to(y): a parameter keeps its graph, and an integer y its own type
    return spread.to(device=y.device, dtype=y.dtype)
