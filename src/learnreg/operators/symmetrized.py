"""The symmetrized gradient of a vector field, without boundary terms: the second derivative in TGV.

A field v (b, 2, c, h, w) is indexed as a gradient is: component 0 at [i, j] lives between pixels
[i, j] and [i+1, j], component 1 between [i, j] and [i, j+1]. The result (b, 3, c, h, w) holds

    [0]  v0[i, j] - v0[i-1, j]                                              at the pixel [i, j]
    [1]  v1[i, j] - v1[i, j-1]                                              at the pixel [i, j]
    [2]  (v0[i, j+1] - v0[i, j] + v1[i+1, j] - v1[i, j]) / sqrt(2)          at the corner [i+1/2,
    j+1/2]

so the length of its three numbers is the Frobenius norm of the matrix [[0], [2]/sqrt(2);
[2]/sqrt(2), [1]]; the three do not live at the same place, they meet by their index. Where a value
of v on either side is missing the result is zero; entries of v at missing neighbours are ignored.
Hence gradients of affine images are mapped to zero up to their edges, in images of any size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .fields import difference_norm

HALF = math.sqrt(0.5)


def symmetrized(v: Tensor, scale: Tensor) -> Tensor:
    """scale * E v, (b, 2, c, h, w) -> (b, 3, c, h, w).

    Fast without autograd; with it, differentiable in both arguments.

    Args:
        scale: a tensor without dimensions.
    """
    if torch.is_grad_enabled():
        return scale * _plain(v)
    w, v = v.shape[-1], v * scale
    rows, columns = v[:, 0].flatten(1), v[:, 1].flatten(1)
    out = v.new_empty(v.shape[0], 3, *v.shape[2:])
    first, second, mixed = (out[:, k].flatten(1) for k in range(3))
    torch.sub(rows[:, w:], rows[:, :-w], out=first[:, w:])
    torch.sub(columns[:, 1:], columns[:, :-1], out=second[:, 1:])
    torch.sub(rows[:, 1:], rows[:, :-1], out=mixed[:, :-1])
    mixed[:, :-w].add_(columns[:, w:]).sub_(columns[:, :-w])
    mixed.mul_(HALF)
    return clear_ends_(out)


def symmetrized_adjoint(q: Tensor, scale: Tensor) -> Tensor:
    """The exact adjoint, (b, 3, c, h, w) -> (b, 2, c, h, w), for any q; zero where the neighbour is
    missing.
    """
    if torch.is_grad_enabled():
        return scale * _plain_adjoint(q)
    w, q = q.shape[-1], clear_ends_(q * scale)
    out = q.new_empty(q.shape[0], 2, *q.shape[2:])
    rows, columns = out[:, 0].flatten(1), out[:, 1].flatten(1)
    first, second, mixed = (q[:, k].flatten(1) for k in range(3))
    mixed.mul_(HALF)
    torch.sub(first[:, :-w], first[:, w:], out=rows[:, :-w])
    torch.sub(second[:, :-1], second[:, 1:], out=columns[:, :-1])
    out[:, 0, ..., -1, :] = 0
    out[:, 1, ..., -1] = 0
    rows.sub_(mixed)[:, 1:].add_(
        mixed[:, :-1]
    )  # the zeros at the ends of q keep lines and channels apart
    columns.sub_(mixed)[:, w:].add_(mixed[:, :-w])
    return out


def clear_ends_(q: Tensor) -> Tensor:
    """q (b, 3, c, h, w) itself, with zeros written where a value of the field is missing."""
    q[:, 0, ..., 0, :] = 0
    q[:, 0, ..., -1, :] = 0
    q[:, 1, ..., 0] = 0
    q[:, 1, ..., -1] = 0
    q[:, 2, ..., -1, :] = 0
    q[:, 2, ..., -1] = 0
    return q


def symmetrized_norm(h: int, w: int) -> float:
    """A proven upper bound of ||E|| for fields of images h x w; below sqrt(8), and nearly attained.

    By (a + b)^2 <= 2 (a^2 + b^2) in the mixed term, |E v|^2 is at most the sum of the squares of
    both differences of both components; component 0 has h - 1 rows and w columns, component 1 has h
    and w - 1.
    """
    return max(
        math.hypot(difference_norm(h - 1), difference_norm(w)),
        math.hypot(difference_norm(h), difference_norm(w - 1)),
    )


def _plain(v: Tensor) -> Tensor:
    rows, columns = v[:, 0], v[:, 1]
    mixed = HALF * (F.pad(rows.diff(dim=-1), (0, 1)) + F.pad(columns.diff(dim=-2), (0, 0, 0, 1)))
    found = torch.stack(
        [F.pad(rows.diff(dim=-2), (0, 0, 1, 0)), F.pad(columns.diff(dim=-1), (1, 0)), mixed], dim=1
    )
    return found * clear_ends_(torch.ones_like(found))


def _plain_adjoint(q: Tensor) -> Tensor:
    q = q * clear_ends_(torch.ones_like(q))
    first, second, mixed = q[:, 0, ..., 1:, :], q[:, 1, ..., 1:], HALF * q[:, 2]
    return torch.stack(
        [
            _back(first, -2) + _back(mixed[..., :-1], -1),
            _back(second, -1) + _back(mixed[..., :-1, :], -2),
        ],
        dim=1,
    )


def _back(d: Tensor, dim: int) -> Tensor:
    """The adjoint of ``diff``."""
    before, after = ((1, 0), (0, 1)) if dim == -1 else ((0, 0, 1, 0), (0, 0, 0, 1))
    return F.pad(d, before) - F.pad(d, after)
