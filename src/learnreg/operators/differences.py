"""Forward differences of signals, images and volumes without boundary terms, and their adjoint.

All axes after the channel axis are spatial, one to three of them: x is (b, c, n), (b, c, h, w) or
(b, c, d, h, w).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core.errors import InputError

NORM_SQUARED = 8.0
"""||D||^2 <= 8 in two dimensions: each one-dimensional difference has ||d||^2 < 4 (Chambolle 2004,
Theorem 3.1).
"""

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
    out = x.new_zeros(x.shape[0], x.dim() - 2, *x.shape[1:])
    for k in range(x.dim() - 2):
        first, second = _neighbours(x, k + 2)
        torch.sub(second, first, out=_neighbours(out[:, k], k + 2)[0])
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

    The subtractions run over whole images as one line, which is faster than over rows of a stack;
    what they write across an edge is overwritten.
    """
    x = x.contiguous()
    if x.dim() != 4:
        return tuple(_along_a_line(x, axis) for axis in range(2, x.dim()))
    w, flat = x.shape[-1], x.flatten(1)
    rows, columns = torch.empty_like(x), torch.empty_like(x)
    torch.sub(flat[:, :-w], flat[:, w:], out=rows.flatten(1)[:, :-w])
    torch.sub(flat[:, :-1], flat[:, 1:], out=columns.flatten(1)[:, :-1])
    rows[..., -1, :] = 0
    columns[..., -1] = 0
    return rows, columns


def differences_adjoint(first: Tensor, *others: Tensor) -> Tensor:
    """The adjoint of ``differences`` for contiguous arguments that are zero where the neighbour is
    missing.
    """
    if len(others) != 1:
        return _adjoint_along_lines((first, *others))
    (columns,), w = others, first.shape[-1]
    out = first + columns
    flat = out.flatten(1)
    flat[:, w:] -= first.flatten(1)[:, :-w]
    flat[:, 1:] -= columns.flatten(1)[:, :-1]
    return out


def _adjoint_along_lines(parts: tuple[Tensor, ...]) -> Tensor:
    """``differences_adjoint`` for any number of axes."""
    out = parts[0].clone()
    for d in parts[1:]:
        out += d
    flat = out.flatten(1)
    for axis, d in enumerate(parts, start=2):
        step = math.prod(d.shape[axis + 1 :])
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


def spread(c: Tensor) -> Tensor:
    """The diagonal of gradient_adjoint(c * gradient(.)): (b, axes, c, *axes) -> (b, c, *axes)."""
    out = c.new_zeros(c.shape[0], *c.shape[2:])
    for k in range(c.shape[1]):
        across = _neighbours(c[:, k], k + 2)[0]
        for part in reversed(_neighbours(out, k + 2)):
            part += across
    return out


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


def _along_a_line(x: Tensor, axis: int) -> Tensor:
    """x[i] - x[i + e] along one axis of a contiguous x."""
    step, flat, out = math.prod(x.shape[axis + 1 :]), x.flatten(1), torch.empty_like(x)
    torch.sub(flat[:, :-step], flat[:, step:], out=out.flatten(1)[:, :-step])
    out.select(axis, -1).zero_()
    return out
