"""The batch as a list of strangers: per-image inner products, norms and shape checks."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from .errors import InputError
from .ranges import Record, shown


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products per image: (b, ...), (b, ...) -> (b,)."""
    found: Tensor = torch.linalg.vecdot(a.flatten(1), b.flatten(1))
    return found


def norm(a: Tensor) -> Tensor:
    """Euclidean norms per image: (b, ...) -> (b,)."""
    found: Tensor = torch.linalg.vector_norm(a.flatten(1), dim=1)
    return found


def expand(scalars: Tensor, like: Tensor) -> Tensor:
    """Shape (b,) -> (b, 1, ..., 1), ready to multiply ``like`` of shape (b, ...)."""
    return scalars.view(-1, *([1] * (like.dim() - 1)))


Batched = TypeVar("Batched", bound=Record)


def select_fields(whole: Batched, index: Tensor, **others: object) -> Batched:
    """The images ``index`` of a dataclass whose tensors are all (b, ...).

    Args:
        others: new values of fields that are no tensors; the rest of these stay.
    """
    chosen = {name: t[index] for name, t in vars(whole).items() if isinstance(t, Tensor)}
    return replace(whole, **chosen, **others)


def put_fields(whole: Batched, index: Tensor, part: Batched, **others: object) -> Batched:
    """``whole`` with the images ``index`` of its tensors (b, ...) replaced by those of ``part``.

    Args:
        others: new values of fields that are no tensors; the rest of these stay.
    """
    own = vars(part)
    new = {
        name: t.index_copy(0, index, own[name])
        for name, t in vars(whole).items()
        if isinstance(t, Tensor)
    }
    return replace(whole, **new, **others)


def per_image(value: float | Tensor, like: Tensor, what: str = "eps") -> Tensor:
    """A positive tolerance as a float64 tensor (b,) on the device of ``like``.

    Raises:
        InputError: not positive, not finite, or of a length that is not the batch size.
    """
    t = _numbers(value, what).to(like.device).flatten()
    if t.numel() not in (1, like.shape[0]):
        raise InputError(
            what,
            given=f"{t.numel()} values",
            expected=f"one value or one per image ({like.shape[0]})",
        )
    if not bool((torch.isfinite(t) & (t > 0)).all()):
        raise InputError(
            what,
            given=shown(value),
            expected="a positive finite distance",
            remedy=f"Pass a positive {what}, for example 1e-2.",
        )
    return t.expand(like.shape[0]).clone()


def _numbers(value: object, what: str) -> Tensor:
    """Real numbers of any form as a float64 tensor."""
    try:
        given = value.detach() if isinstance(value, Tensor) else torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        given = None
    plain = isinstance(given, Tensor) and not (given.is_sparse or given.is_meta)
    if given is None or not plain or given.dtype == torch.bool or given.is_complex():
        raise InputError(
            what,
            given=shown(value),
            expected="a positive finite number, or one per image",
            remedy=f"Pass a positive {what}, for example 1e-2.",
        )
    return given.to(torch.float64)


def check_images(x: Tensor, what: str) -> None:
    """Refuse anything but a finite floating-point batch (b, ...) with at least one image.

    Raises:
        InputError: not a tensor, wrong dtype, no batch dimension, empty, or NaN/Inf inside (names
            the image).
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise InputError(
            what,
            given=kind,
            expected="a floating-point tensor (b, c, h, w)",
            remedy="Convert with torch.as_tensor(...).float() and scale to [0, 1].",
        )
    if x.layout != torch.strided or x.is_meta or x.is_nested:
        raise InputError(
            what,
            given="a tensor without values (device meta)" if x.is_meta else f"a {x.layout} tensor",
            expected="a dense tensor with values",
            remedy=f"Pass {what}.to_dense(), on the device of the energy.",
        )
    if x.dim() < 2 or x.shape[0] == 0 or x.numel() == 0:
        raise InputError(
            what,
            given=f"shape {tuple(x.shape)}",
            expected="shape (b, c, h, w) with b >= 1",
            remedy="Add a batch dimension with x[None].",
        )
    finite = torch.isfinite(x).flatten(1).all(dim=1)
    if not bool(finite.all()):
        bad = [int(i) for i in torch.nonzero(~finite).flatten()[:5]]
        raise InputError(
            what,
            given=f"NaN or Inf in image {', '.join(map(str, bad))}",
            expected="finite pixels",
            remedy="Remove or repair these images.",
        )
