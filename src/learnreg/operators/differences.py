"""Forward differences without boundary terms, and their adjoint."""

from __future__ import annotations

import math

import torch
from torch import Tensor

NORM_SQUARED = 8.0
"""||D||^2 <= 8 in two dimensions: each one-dimensional difference has ||d||^2 < 4 (Chambolle 2004,
Theorem 3.1).
"""


def gradient(x: Tensor) -> Tensor:
    """(b, c, h, w) -> (b, 2, c, h, w): (x[i+1, j] - x[i, j], x[i, j+1] - x[i, j]), zero if the
    neighbour is missing.
    """
    out = x.new_zeros(x.shape[0], 2, *x.shape[1:])
    torch.sub(x[..., 1:, :], x[..., :-1, :], out=out[:, 0, ..., :-1, :])
    torch.sub(x[..., :, 1:], x[..., :, :-1], out=out[:, 1, ..., :, :-1])
    return out


def gradient_adjoint(p: Tensor) -> Tensor:
    """(b, 2, c, h, w) -> (b, c, h, w), the exact adjoint of ``gradient``; entries at missing
    neighbours are ignored.
    """
    rows, columns = p[:, 0, ..., :-1, :], p[:, 1, ..., :, :-1]
    out = p.new_zeros(p.shape[0], *p.shape[2:])
    out[..., 1:, :] += rows
    out[..., :-1, :] -= rows
    out[..., :, 1:] += columns
    out[..., :, :-1] -= columns
    return out


def differences(x: Tensor) -> tuple[Tensor, Tensor]:
    """Backward signs, two arrays: x[i, j] - x[i+1, j] and x[i, j] - x[i, j+1], each like x, zero at
    missing neighbours.

    The subtractions run over whole images as one line, which is faster than over rows of a stack;
    what they write across an edge is overwritten.
    """
    x = x.contiguous()
    w, flat = x.shape[-1], x.flatten(1)
    rows, columns = torch.empty_like(x), torch.empty_like(x)
    torch.sub(flat[:, :-w], flat[:, w:], out=rows.flatten(1)[:, :-w])
    torch.sub(flat[:, :-1], flat[:, 1:], out=columns.flatten(1)[:, :-1])
    rows[..., -1, :] = 0
    columns[..., -1] = 0
    return rows, columns


def differences_adjoint(rows: Tensor, columns: Tensor) -> Tensor:
    """The adjoint of ``differences`` for contiguous arguments that are zero where the neighbour is
    missing.
    """
    w = rows.shape[-1]
    out = rows + columns
    flat = out.flatten(1)
    flat[:, w:] -= rows.flatten(1)[:, :-w]
    flat[:, 1:] -= columns.flatten(1)[:, :-1]
    return out


def spread(c: Tensor) -> Tensor:
    """The diagonal of gradient_adjoint(c * gradient(.)): (b, 2, c, h, w) -> (b, c, h, w)."""
    rows, columns = c[:, 0, ..., :-1, :], c[:, 1, ..., :, :-1]
    out = c.new_zeros(c.shape[0], *c.shape[2:])
    out[..., 1:, :] += rows
    out[..., :-1, :] += rows
    out[..., :, 1:] += columns
    out[..., :, :-1] += columns
    return out


def symbols(x: Tensor) -> tuple[Tensor, Tensor]:
    """|1 - exp(i omega)|^2 on the grid of ``torch.fft.rfft2`` for images like x: rows (h, 1),
    columns (1, w // 2 + 1).

    Those of periodic differences; the boundary makes a difference of low rank, which a
    preconditioner may ignore.
    """
    h, w = x.shape[-2:]
    rows = 2 - 2 * torch.cos(2 * math.pi / h * torch.arange(h, dtype=x.dtype, device=x.device))
    columns = 2 - 2 * torch.cos(
        2 * math.pi / w * torch.arange(w // 2 + 1, dtype=x.dtype, device=x.device)
    )
    return rows[:, None], columns[None, :]
