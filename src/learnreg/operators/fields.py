"""Vector fields on the grid of an image: gradients in one buffer, and a bank of filters for each
component.

A field is a tensor (b, 2, c, h, w): component 0 lives between rows, component 1 between columns,
both indexed by the pixel before. Entries whose second pixel is missing (last row of component 0,
last column of component 1) belong to no difference. Every map here is linear in the field and in
its parameters; without autograd it takes the fast path, with autograd it is differentiable in all
of its arguments.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from .convolutions import Padding, pad, pad_adjoint, symbol_bound
from .differences import gradient

CHUNK_BYTES = 2**21
"""Copies of shifted components are made for as many components at a time as fit here: they stay in
the cache.
"""

DENSE_PIXELS = 300
"""The largest grid whose dense matrix is made for a norm bound (milliseconds)."""


# --- gradients ------------------------------------------------------------------------------------


def scaled_gradient(x: Tensor, scale: Tensor) -> Tensor:
    """scale * gradient(x), (b, c, h, w) -> (b, 2, c, h, w), zero where the neighbour is missing.

    Args:
        scale: a tensor without dimensions.
    """
    if not torch.is_grad_enabled():
        return gradient(x * scale)

    # why not plain_differences: autograd would add up the parts of x in another order
    rows, columns = x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]
    return torch.stack([F.pad(rows, (0, 0, 0, 1)), F.pad(columns, (0, 1))], dim=1) * scale


def scaled_gradient_adjoint(p: Tensor, scale: Tensor) -> Tensor:
    """The exact adjoint, (b, 2, c, h, w) -> (b, c, h, w), for any p: entries at missing neighbours
    are ignored.
    """
    if torch.is_grad_enabled():
        rows, columns = p[:, 0, ..., :-1, :] * scale, p[:, 1, ..., :-1] * scale
        return (
            F.pad(rows, (0, 0, 1, 0))
            - F.pad(rows, (0, 0, 0, 1))
            + F.pad(columns, (1, 0))
            - F.pad(columns, (0, 1))
        )
    scale, w, columns = scale.to(p), p.shape[-1], p[:, 1]
    out = torch.mul(columns, -scale)
    out[..., -1] = 0
    out[..., 1:].addcmul_(columns[..., :-1], scale)
    flat, rows = out.flatten(2), p[:, 0].flatten(2)[..., :-w]
    flat[..., w:].addcmul_(rows, scale)
    flat[..., :-w].addcmul_(rows, scale, value=-1)
    return out


def clear_missing_(p: Tensor) -> Tensor:
    """The field p (b, 2, c, h, w) itself, with zeros written where the neighbour is missing."""
    p[:, 0, ..., -1, :] = 0
    p[:, 1, ..., -1] = 0
    return p


def difference_norm(n: int) -> float:
    """The norm of the differences of n numbers in a row, 2 cos(pi / 2n); 0 if there are none."""
    return 2 * math.cos(math.pi / (2 * n)) if n > 1 else 0.0


def gradient_norm(h: int, w: int) -> float:
    """||D|| for images h x w, exactly: D^T D is the sum of both one-dimensional ones, which
    commute.
    """
    return math.hypot(difference_norm(h), difference_norm(w))


def laplacian_symbol(u: Tensor) -> Tensor:
    """The symbol (1, 1, h, w // 2 + 1) of D^T D with periodic differences, for ``torch.fft.rfft2``
    of images like u.
    """
    rows, columns = (
        2 - 2 * torch.cos(2 * math.pi * frequencies)
        for frequencies in (
            torch.fft.fftfreq(u.shape[-2], dtype=u.dtype, device=u.device),
            torch.fft.rfftfreq(u.shape[-1], dtype=u.dtype, device=u.device),
        )
    )
    return (rows[:, None] + columns).expand(1, 1, -1, -1)


# --- filter banks ---------------------------------------------------------------------------------


def correlate_field(p: Tensor, kernels: Tensor, padding: Padding) -> Tensor:
    """Filter every component with its own bank: p (b, 2, c, h, w) -> (b, 2, c, L, h, w).

    A grouped convolution does this at half the speed on CPUs (measured); here windows are copied
    and multiplied.

    Args:
        kernels: (2, L, s, s) with odd s; cross-correlation, no flip.
    """
    (b, _, c, h, w), (_, count, s, _) = p.shape, kernels.shape
    padded = pad(p.flatten(1, 2), s // 2, padding)
    if torch.is_grad_enabled():
        bank = kernels.unsqueeze(1).expand(2, c, count, s, s).reshape(-1, 1, s, s)
        return F.conv2d(padded, bank, groups=2 * c).view(b, 2, c, count, h, w)
    planes, bank = padded.flatten(0, 1), _per_plane(kernels.flatten(2), b, c)
    (height, width), start = planes.shape[-2:], planes.storage_offset()
    out = p.new_empty(2 * b * c, count, h * w)
    for part in _parts(p, s):
        n = part.stop - part.start
        copies = planes.as_strided(
            (n, s, s, h, w),
            (height * width, width, 1, width, 1),
            start + part.start * height * width,
        ).reshape(n, s * s, h * w)
        torch.bmm(bank[part], copies, out=out[part])
    return out.view(b, 2, c, count, h, w)


def correlate_field_adjoint(v: Tensor, kernels: Tensor, padding: Padding) -> Tensor:
    """The exact adjoint of ``correlate_field``: (b, 2, c, L, h, w) -> (b, 2, c, h, w)."""
    (b, _, c, count, h, w), s = v.shape, kernels.shape[-1]
    if torch.is_grad_enabled():
        bank = kernels.flip(-2, -1).unsqueeze(1).expand(2, c, count, s, s).flatten(0, 1)
        spread = F.conv2d(v.reshape(b, 2 * c * count, h, w), bank, padding=s - 1, groups=2 * c)
        return pad_adjoint(spread, s // 2, padding).view(b, 2, c, h, w)
    planes, bank = v.reshape(2 * b * c, count, h * w), _per_plane(kernels.flatten(2).mT, b, c)
    spread = v.new_zeros(2 * b * c, h + s - 1, w + s - 1)
    for part in _parts(v, s):
        copies = torch.bmm(bank[part], planes[part]).view(-1, s, s, h, w)
        rows = v.new_zeros(copies.shape[0], s, h, w + s - 1)
        for j in range(s):
            rows.narrow(-1, j, w).add_(copies[:, :, j])
        for i in range(s):
            spread[part].narrow(-2, i, h).add_(rows[:, i])
    return pad_adjoint(spread.view(b, 2 * c, h + s - 1, w + s - 1), s // 2, padding).view(
        b, 2, c, h, w
    )


def _per_plane(matrices: Tensor, b: int, c: int) -> Tensor:
    """(2, ...) -> (b 2 c, ...): the matrix of its component for every plane of a field."""
    return (
        matrices.unsqueeze(1)
        .expand(b, 2, c, *matrices.shape[1:])
        .reshape(2 * b * c, *matrices.shape[1:])
    )


def _parts(p: Tensor, size: int) -> Iterator[slice]:
    """The planes (b 2 c) of a field in pieces whose windows fit in ``CHUNK_BYTES``; on a GPU all at
    once.
    """
    planes = p.shape[0] * p.shape[1] * p.shape[2]
    one = size * size * p.shape[-2] * p.shape[-1] * p.element_size()
    step = planes if p.is_cuda else max(1, CHUNK_BYTES // one)
    return (slice(i, min(i + step, planes)) for i in range(0, planes, step))


def bank_norm(kernels: Tensor, padding: Padding, h: int, w: int) -> float:
    """A proven upper bound of the norm of ``correlate_field`` on images h x w.

    The components do not mix, so it is the larger of two bounds. Each is the smaller of two: that
    of the Fourier symbol (``symbol_bound``, nearly sharp for zero padding), and, under reflection,
    where the symbol must allow for copied pixels, ||M||^(1/2) <= (||M^k||_inf)^(1/2k) for M = C^T
    C, since the spectral radius of M^k is below every operator norm (Horn and Johnson, Matrix
    Analysis, Theorem 5.6.9). The largest row sum of |M^k| is that of a small grid: M^k couples
    pixels at most 2 k m apart (m = s // 2), and rows at least so far from an edge do not notice it,
    so in every direction 4 k m + 1 pixels show all rows that larger images have.

    Args:
        kernels: (2, L, s, s).
    """
    fixed = kernels.detach().to("cpu", torch.float64).contiguous()
    return _bank_norm(
        fixed.numpy().tobytes(), tuple(fixed.shape), padding, *_enough(fixed.shape[-1] // 2, h, w)
    )


def _enough(margin: int, h: int, w: int) -> tuple[int, int, int]:
    """k and the sides of the grid: the largest power of two that keeps the grid small."""
    power = 1
    while margin and (8 * power * margin + 1) ** 2 <= DENSE_PIXELS:
        power *= 2
    side = 4 * power * margin + 1
    return power, min(h, side), min(w, side)


@lru_cache(maxsize=64)
def _bank_norm(
    kernels: bytes, shape: tuple[int, ...], padding: Padding, power: int, h: int, w: int
) -> float:
    banks = torch.frombuffer(bytearray(kernels), dtype=torch.float64).view(shape)
    worst = 0.0
    for bank in banks.unsqueeze(2):
        square = symbol_bound(bank, torch.ones(shape[1]), padding)
        if padding == "reflect":
            pixels = torch.eye(h * w, dtype=torch.float64).view(-1, 1, h, w)
            matrix = F.conv2d(pad(pixels, shape[-1] // 2, padding), bank).flatten(1)
            rows = torch.linalg.matrix_power(matrix @ matrix.T, power).abs().sum(dim=1).max()
            square = min(square, float(rows) ** (1 / power) * (1 + 1e-10))
        worst = max(worst, square)
    return math.sqrt(worst)


def window_norm(size: int, padding: Padding, h: int, w: int) -> float:
    """The largest norm, over banks with ||kernels|| <= 1, of ``correlate_field``: proven, and
    nearly attained.

    Filter l answers with <c_l, window>, so the squares of all answers of a component are at most
    sum_l |c_l|^2 times the squares of all windows, in which a pixel occurs as often as windows
    (with their reflections) see it.
    """
    return math.sqrt(_seen(size, padding, h) * _seen(size, padding, w))


def _seen(size: int, padding: Padding, n: int) -> int:
    """How often the busiest of n pixels in a row occurs in the windows of all of them."""
    line = torch.arange(1.0, n + 1, dtype=torch.float64).view(1, 1, 1, n)
    extended = F.pad(
        line, (size // 2,) * 2 + (0, 0), mode="reflect" if padding == "reflect" else "constant"
    )
    counts = extended.flatten().unfold(0, size, 1).reshape(-1).long().bincount()
    return int(counts[1:].max())
