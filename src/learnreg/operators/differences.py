"""Forward differences of signals, images and volumes without boundary terms, and their adjoint.

All axes after the channel axis are spatial, one to three of them: x is (b, c, n), (b, c, h, w) or
(b, c, d, h, w).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core.errors import InputError

MOST_AXES = 3
"""Signals, images, volumes."""


def norm_squared(axes: int) -> float:
    """||D||^2 <= 4 * axes: the sum over the axes of ||d||^2 < 4 (Chambolle 2004, Theorem 3.1, per
    axis).
    """
    return 4.0 * axes


def spatial_axes(x: Tensor) -> int:
    """The number of axes of x after batch and channels.

    Raises:
        InputError: not one to three.
    """
    axes = x.dim() - 2
    if not 1 <= axes <= MOST_AXES:
        raise InputError(
            "x",
            given=f"shape {tuple(x.shape)}",
            expected="(b, c, n), (b, c, h, w) or (b, c, d, h, w)",
            remedy="Add batch and channel dimensions, for example x[None, None]."
            if axes < 1
            else "Join the axes beyond three with the batch or with the channels.",
        )
    return axes


def gradient(x: Tensor) -> Tensor:
    """(b, c, *axes) -> (b, axes, c, *axes): component k is x[i + e_k] - x[i], zero if the neighbour
    is missing.

    Differentiable where x is.
    """
    if x.requires_grad and torch.is_grad_enabled():
        return plain_differences(x)
    x, out = x.contiguous(), x.new_empty(x.shape[0], x.dim() - 2, *x.shape[1:])
    for axis in range(2, x.dim()):
        before, after, found = _lines(x, axis, out[:, axis - 2])
        torch.sub(after, before, out=found)
        out[:, axis - 2].select(axis, -1).zero_()
    return out


def gradient_adjoint(p: Tensor) -> Tensor:
    """(b, axes, c, *axes) -> (b, c, *axes), the exact adjoint of ``gradient``; entries at missing
    neighbours are ignored.
    """
    out = p.new_zeros(p.shape[0], *p.shape[2:])
    for k in range(p.shape[1]):
        across = _neighbours(p[:, k], k + 2)[0]
        first, second = _neighbours(out, k + 2)
        second += across
        first -= across
    return out


def differences(x: Tensor) -> tuple[Tensor, ...]:
    """Backward signs, one array per axis: x[i] - x[i + e_k], each like x, zero at missing
    neighbours.
    """
    x, parts = x.contiguous(), []
    for axis in range(2, x.dim()):
        out = torch.empty_like(x)
        before, after, found = _lines(x, axis, out)
        torch.sub(before, after, out=found)
        out.select(axis, -1).zero_()
        parts.append(out)
    return tuple(parts)


def differences_adjoint(first: Tensor, *others: Tensor) -> Tensor:
    """The adjoint of ``differences`` for contiguous arguments that are zero where the neighbour is
    missing.
    """
    out = first + others[0] if others else first.clone()
    for d in others[1:]:
        out += d

    flat = out.flatten(1)
    for axis, d in enumerate((first, *others), start=2):
        step = _step(d, axis)
        flat[:, step:] -= d.flatten(1)[:, :-step]
    return out


def plain_differences(x: Tensor) -> Tensor:
    """``gradient`` in operations that autograd follows to any order; slower."""
    parts = []
    for axis in range(2, x.dim()):
        first, second = _neighbours(x, axis)
        missing = torch.zeros_like(x.narrow(axis, 0, 1))
        parts.append(torch.cat([second - first, missing], dim=axis))
    return torch.stack(parts, dim=1)


def symbols(x: Tensor) -> tuple[Tensor, ...]:
    """|1 - exp(i omega)|^2 on the grid of ``torch.fft.rfftn`` over the axes of x, one per axis; for
    images rows (h, 1) and columns (1, w // 2 + 1).

    Those of periodic differences; the boundary makes a difference of low rank, which a
    preconditioner may ignore.
    """
    sides = x.shape[2:]
    found = []
    for k, n in enumerate(sides):
        count = n // 2 + 1 if k == len(sides) - 1 else n
        angles = 2 * math.pi / n * torch.arange(count, dtype=x.dtype, device=x.device)
        shape = [1] * len(sides)
        shape[k] = count
        found.append((2 - 2 * torch.cos(angles)).view(shape))
    return tuple(found)


def _neighbours(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Views of the entries that have a next one along ``axis``, and of these next ones."""
    count = x.shape[axis] - 1
    return x.narrow(axis, 0, count), x.narrow(axis, 1, count)


def _step(x: Tensor, axis: int) -> int:
    """How far apart neighbours along ``axis`` are in the line of all pixels of an image."""
    return math.prod(x.shape[axis + 1 :])


def _lines(x: Tensor, axis: int, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Views (b, n) of a contiguous x and its neighbours along ``axis``, over whole images as one
    line, and of the part of ``out`` where their difference belongs.

    That is faster than over rows of a stack; what is written across an edge, where the neighbour is
    missing, has to be overwritten.
    """
    step, flat = _step(x, axis), x.flatten(1)
    return flat[:, :-step], flat[:, step:], out.flatten(1)[:, :-step]
