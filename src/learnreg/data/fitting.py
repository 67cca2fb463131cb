"""In which form the arrays of files are images and measurements of a physics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core.errors import InputError

if TYPE_CHECKING:
    from deepinv.physics import Physics

Form = Callable[[Tensor], Tensor]

COLOURS = (3, 4)
"""A last axis of this length behind two longer ones holds colours."""

MANY = 7
"""An array (k, h, w) with more than so many k is a volume without its channel, rather than k
channels; the other way round is tried as well."""


@dataclass(frozen=True)
class Fit:
    """How one array is read.

    Attributes:
        image: from the array of a file to the image (c, ...).
        measurement: from the array of a file to the measurement as the physics makes it.
    """

    image: Form | None = None
    measurement: Form | None = None


def plane(x: Tensor) -> tuple[int, int]:
    """Height and width of an image as it stands in a file."""
    if x.dim() < 2:
        raise InputError(
            "images",
            given=f"an array of shape {tuple(x.shape)}",
            expected="images (h, w), (c, h, w) or (h, w, 3)",
            remedy="Save one image per file or row.",
        )
    height, width = x.shape[:2] if _colours_last(x) else x.shape[-2:]
    return int(height), int(width)


def _colours_last(x: Tensor) -> bool:
    return x.dim() == 3 and x.shape[-1] in COLOURS and min(x.shape[:2]) > max(COLOURS)


def fit_of(
    x: Tensor,
    y: Tensor,
    physics: Physics,
    params: Mapping[str, Tensor],
    channels: int | None,
    where: tuple[str, str],
) -> Fit:
    """The first forms of a pair of arrays with which A(x) has the shape of y.

    Args:
        x, y: arrays as they stand in the files, without a batch axis.
        physics: which takes on the parameters it is given.
        params: of the physics for this pair, (1, ...).
        channels: that the image must have, if given.
        where: the files of x and y, for messages.

    Raises:
        InputError: the physics takes no form of x, or answers with other shapes than that of y.
    """
    forms = list(_image_forms(x, channels))
    if not forms:
        raise InputError(
            where[0],
            given=f"an array of shape {tuple(x.shape)}, {x.dtype}",
            expected=f"an image with channels = {channels}",
            remedy="Set channels to what the images have: 1 for grey, 3 for colour, 2 for complex "
            "numbers.",
        )
    failures: list[str] = []
    shapes: list[tuple[Tensor, Tensor]] = []
    for form in forms:
        try:
            made = _applied(physics, form(x), params)
        except InputError:
            raise
        except Exception as error:  # why: operators refuse images in many ways
            failures.append(f"{tuple(form(x).shape)}: {error or type(error).__name__}")
            continue
        for measurement in _measurement_forms(y, made):
            return Fit(form, measurement)
        shapes.append((form(x), made))
    raise _misfit(x, y, physics, shapes, failures, where)


def fit_alone(y: Tensor, physics: Physics, params: Mapping[str, Tensor], where: str) -> Fit:
    """The first form of a measurement without its image that A takes back to its own shape.

    Args:
        y, params: as in ``fit_of``.
        where: the file of y, for messages.

    Raises:
        InputError: no form does; the adjoint of the physics is asked.
    """
    forms: list[Form] = [_with_channel, _same] if y.dim() < 3 else [_same, _with_channel]
    failures: list[str] = []
    for form in [_parts, *forms] if y.is_complex() else forms:
        try:
            made = _applied(physics, _adjoint(physics, form(y), params), params)
        except Exception as error:  # why: operators refuse measurements in many ways
            failures.append(str(error) or type(error).__name__)
            continue
        if made.shape == form(y).shape and made.is_complex() == form(y).is_complex():
            return Fit(measurement=form)
        failures.append(f"they would have shape {tuple(made.shape)}")
    raise InputError(
        where,
        given=f"shape {tuple(y.shape)}, {y.dtype}",
        expected=f"a measurement that {type(physics).__name__} makes ({failures[0]})",
        remedy="Build the physics as the measurements were taken: angles, detector, mask, size.",
    )


def _adjoint(physics: Physics, y: Tensor, params: Mapping[str, Tensor]) -> Tensor:
    """A^T y for one measurement, without its batch axis."""
    state = next(iter([*physics.parameters(), *physics.buffers()]), None)
    device = y.device if state is None else state.device
    y = y[None].to(device) if y.is_complex() else y[None].float().to(device)
    with torch.no_grad():
        x: Tensor = physics.A_adjoint(y, **{k: t.to(device) for k, t in params.items()})
    return x[0]


def _applied(physics: Physics, x: Tensor, params: Mapping[str, Tensor]) -> Tensor:
    """A(x) for one image, without its batch axis."""
    state = next(iter([*physics.parameters(), *physics.buffers()]), None)
    x = x[None] if x.is_complex() else x[None].float()
    device = x.device if state is None else state.device
    with torch.no_grad():
        made = physics.A(x.to(device), **{k: t.to(device) for k, t in params.items()})
    if not isinstance(made, Tensor):
        raise InputError(
            "physics",
            given=f"measurements of type {type(made).__name__}",
            expected="one tensor per image",
            remedy="Hand pairs of a stacked physics to BilevelProblem as a Dataset.",
        )
    return made[0]


def _image_forms(x: Tensor, channels: int | None) -> Iterator[Form]:
    """Forms of one image, the likely ones first."""
    candidates: list[Form] = []
    if x.is_complex():
        candidates.append(_parts)
    if _colours_last(x):
        candidates.append(_first)
    volume = x.dim() == 3 and x.shape[0] > MANY
    candidates += [_with_channel, _same] if x.dim() < 3 or volume else [_same, _with_channel]
    for form in candidates:
        made = form(x)
        if 2 <= made.dim() <= 4 and (channels is None or made.shape[0] == channels):
            yield form


def _measurement_forms(y: Tensor, like: Tensor) -> Iterator[Form]:
    """Forms of one measurement that have the shape and the kind of ``like``."""
    shape = like.shape
    for form in (_same, _parts, _first):
        if (form is _parts) != (y.is_complex() and not like.is_complex()):
            continue
        if form is _first and not (y.dim() == 3 and y.shape[-1] in COLOURS):
            continue
        made = form(y)
        if made.is_complex() == like.is_complex() and _core(made.shape) == _core(shape):
            yield partial(_reshaped, form, shape)


def _reshaped(form: Form, shape: torch.Size, t: Tensor) -> Tensor:
    """With axes of length one added or dropped; another shape stays, to be refused by its name."""
    t = form(t)
    return t.reshape(shape) if _core(t.shape) == _core(shape) else t


def _core(shape: torch.Size) -> tuple[int, ...]:
    """A shape without its axes of length one."""
    return tuple(n for n in shape if n != 1)


def _same(t: Tensor) -> Tensor:
    return t


def _with_channel(t: Tensor) -> Tensor:
    return t[None]


def _first(t: Tensor) -> Tensor:
    """Channels from last to first."""
    return t.movedim(-1, 0)


def _parts(t: Tensor) -> Tensor:
    """Complex (...) as its real and imaginary part (2, ...)."""
    return torch.view_as_real(t).movedim(-1, 0)


def _misfit(
    x: Tensor,
    y: Tensor,
    physics: Physics,
    shapes: list[tuple[Tensor, Tensor]],
    failures: list[str],
    where: tuple[str, str],
) -> InputError:
    """What to say when no form fits."""
    kind = type(physics).__name__
    if not shapes:
        return InputError(
            where[0],
            given=f"shape {tuple(x.shape)}, {x.dtype}, on which {kind} fails ({failures[0]})",
            expected="an image that the physics takes",
            remedy="Build the physics for the size of these images (img_size, img_width).",
        )
    image, made = shapes[0]
    turned = y.dim() >= 2 and _core(y.mT.shape) == _core(made.shape)
    kinds = y.is_complex() != made.is_complex()
    return InputError(
        where[1],
        given=f"shape {tuple(y.shape)}, {y.dtype}",
        expected=f"{tuple(made.shape)}, {made.dtype}, which {kind} makes of {where[0]} as "
        f"{tuple(image.shape)}",
        remedy="Its last two axes are the other way round: save the transposed measurement."
        if turned and not kinds
        else "Build the physics as the measurements were taken: angles, detector, mask, size.",
    )
