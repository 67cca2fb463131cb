"""Forward differences without boundary terms, and their adjoint."""

from __future__ import annotations

import torch
from torch import Tensor

NORM_SQUARED = 8.0
"""||D||^2 <= 8 in two dimensions: each one-dimensional difference has ||d||^2 < 4 (Chambolle 2004, Theorem 3.1)."""


def gradient(x: Tensor) -> Tensor:
    """(b, c, h, w) -> (b, 2, c, h, w): (x[i+1, j] - x[i, j], x[i, j+1] - x[i, j]), zero if the neighbour is missing."""
    out = x.new_zeros(x.shape[0], 2, *x.shape[1:])
    torch.sub(x[..., 1:, :], x[..., :-1, :], out=out[:, 0, ..., :-1, :])
    torch.sub(x[..., :, 1:], x[..., :, :-1], out=out[:, 1, ..., :, :-1])
    return out


def gradient_adjoint(p: Tensor) -> Tensor:
    """(b, 2, c, h, w) -> (b, c, h, w), the exact adjoint of ``gradient``; entries at missing neighbours are ignored."""
    rows, columns = p[:, 0, ..., :-1, :], p[:, 1, ..., :, :-1]
    out = p.new_zeros(p.shape[0], *p.shape[2:])
    out[..., 1:, :] += rows
    out[..., :-1, :] -= rows
    out[..., :, 1:] += columns
    out[..., :, :-1] -= columns
    return out
