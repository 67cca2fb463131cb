"""Filter banks: correlation with padding, a fast exact adjoint, and a rigorous norm bound from the
Fourier symbol.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Padding = Literal["reflect", "zero"]

COPIES = {"reflect": 4.0, "zero": 1.0}
"""||E||^2 of the extension behind the padding: reflection continues to an even periodic image in
which every pixel appears at most twice per axis and period; zero padding copies nothing."""


def pad(x: Tensor, margin: int, padding: Padding) -> Tensor:
    """(b, c, h, w) -> (b, c, h + 2 margin, w + 2 margin); reflection does not repeat the edge
    pixel.
    """
    if margin == 0:
        return x
    return F.pad(x, (margin,) * 4, mode="reflect" if padding == "reflect" else "constant")


def pad_adjoint(p: Tensor, margin: int, padding: Padding) -> Tensor:
    """The exact adjoint of ``pad``: margins are folded back (reflect) or dropped (zero)."""
    return _fold(p.clone(), margin, padding)


def _fold(p: Tensor, margin: int, padding: Padding) -> Tensor:
    """``pad_adjoint`` that overwrites p: (b, c, h + 2 margin, w + 2 margin) -> (b, c, h, w)."""
    if margin == 0:
        return p
    m, h, w = margin, p.shape[-2] - 2 * margin, p.shape[-1] - 2 * margin
    if padding == "reflect":
        p[..., m + 1 : 2 * m + 1, :] += p[..., :m, :].flip(-2)
        p[..., h - 1 : h + m - 1, :] += p[..., h + m :, :].flip(-2)
        p[..., m + 1 : 2 * m + 1] += p[..., :m].flip(-1)
        p[..., w - 1 : w + m - 1] += p[..., w + m :].flip(-1)
    return p[..., m:-m, m:-m].contiguous()


def correlate(x: Tensor, kernels: Tensor, padding: Padding) -> Tensor:
    """Filter bank: x (b, c, h, w), kernels (K, c, s, s) with odd s -> (b, K, h, w);
    cross-correlation, no flip.
    """
    return F.conv2d(pad(x, kernels.shape[-1] // 2, padding), kernels)


def adjoint_kernels(kernels: Tensor) -> Tensor:
    """Kernels rearranged for ``correlate_adjoint``: (K, c, s, s) -> (c, s, s, K)."""
    return kernels.permute(1, 2, 3, 0).contiguous()


def correlate_adjoint(p: Tensor, rearranged: Tensor, padding: Padding) -> Tensor:
    """Exact adjoint of ``correlate``: p (b, K, h, w) -> (b, c, h, w).

    Args:
        rearranged: from ``adjoint_kernels``, (c, s, s, K).
    """
    b, _, h, w = p.shape
    c, s = rearranged.shape[:2]
    out = p.new_zeros(b, c, h + s - 1, w + s - 1)
    add_adjoint(out, p, rearranged)
    return _fold(out, s // 2, padding)


def add_adjoint(out: Tensor, p: Tensor, rearranged: Tensor, start: int = 0) -> None:
    """Add the adjoint of the unpadded correlation of p (b, K, n, w), rows ``start`` on, to ``out``,
    a padded picture.

    A transposed convolution with few output channels is slow on CPUs (measured: 10 times the
    forward one). One matrix product spreads every p over the window instead, and 2 s shifted
    additions gather the copies.
    """
    b, k, n, w = p.shape
    c, s = rearranged.shape[:2]
    copies = torch.matmul(rearranged.view(-1, k), p.reshape(b, k, n * w)).view(b, c, s, s, n, w)
    rows = p.new_zeros(b, c, s, n, w + s - 1)
    for j in range(s):
        rows.narrow(-1, j, w).add_(copies.select(3, j))
    for i in range(s):
        out.narrow(2, start + i, n).add_(rows.select(2, i))


def sandwich(
    x: Tensor,
    forward: Tensor,
    rearranged: Tensor,
    padding: Padding,
    limit: int,
    between: Callable[[Tensor, slice, slice], Tensor],
) -> Tensor:
    """A^T between(C x), tile by tile, so that no more than ``limit`` bytes of feature maps exist at
    a time.

    Args:
        x: (b, c, h, w).
        forward: kernels of C, (K, c, s, s).
        rearranged: kernels of A from ``adjoint_kernels``, (c, s, s, K).
        limit: bytes of the feature maps of a tile.
        between: (maps, images, rows) -> maps; may overwrite what it is given.
    """
    margin = forward.shape[-1] // 2
    out = x.new_zeros(*x.shape[:2], x.shape[2] + 2 * margin, x.shape[3] + 2 * margin)
    for images, rows, maps in responses(x, forward, padding, limit):
        add_adjoint(out[images], between(maps, images, rows), rearranged, rows.start)
    return _fold(out, margin, padding)


def responses(
    x: Tensor, forward: Tensor, padding: Padding, limit: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    """C x in tiles of at most ``limit`` bytes: (images, rows, maps (b', K, n, w)); on a GPU one
    tile of everything.
    """
    k, _, s, _ = forward.shape
    padded = pad(x, s // 2, padding)
    for images, rows in tiles(x, k, limit):
        yield images, rows, F.conv2d(padded[images, :, rows.start : rows.stop + s - 1], forward)


def tiles(x: Tensor, filters: int, limit: int) -> list[tuple[slice, slice]]:
    """(images, rows) of a batch (b, c, h, w) in pieces whose feature maps fit in ``limit`` bytes.

    Whole images if they fit, otherwise rows of one image, as even as can be; on a GPU everything at
    once.
    """
    b, _, h, w = x.shape
    row = filters * w * x.element_size()
    if x.is_cuda or b * h * row <= limit:
        return [(slice(0, b), slice(0, h))]
    if h * row <= limit:
        step = limit // (h * row)
        return [(slice(i, min(i + step, b)), slice(0, h)) for i in range(0, b, step)]
    step = -(-h // -(-h // max(1, limit // row)))
    return [
        (slice(i, i + 1), slice(r, min(r + step, h))) for i in range(b) for r in range(0, h, step)
    ]


def windows(p: Tensor, rows: slice, size: int) -> Tensor:
    """The windows of the rows ``rows`` of a padded picture, copied: (b, c, h + s - 1, w + s - 1) ->
    (b, c s s, n w).
    """
    b, c, _, width = p.shape
    n, w, s, (sb, sc, sh, sw) = rows.stop - rows.start, width - size + 1, size, p.stride()
    return (
        p[:, :, rows.start :]
        .as_strided((b, c, s, s, n, w), (sb, sc, sh, sw, sh, sw))
        .reshape(b, c * s * s, n * w)
    )


def symbol_bound(kernels: Tensor, weights: Tensor, padding: Padding, grid: int = 128) -> float:
    """Rigorous upper bound of || sum_k weights_k C_k^T C_k || for images of any size.

    The outputs of the bank are some of those of a periodic convolution of the extended image E x
    (period 2 (h - 1) under reflection, a zero frame otherwise), so the norm is at most ||E||^2
    times the maximum of the symbol sum_k w_k |c_k^(omega)|^2 (summed over channels: the largest
    eigenvalue is at most the trace). The symbol is a trigonometric polynomial of degree s - 1 in
    each variable; its maximum over all frequencies is at most the maximum over a grid of M points
    per axis times (1 / cos(pi (s - 1) / M))^2 (Ehlich and Zeller 1964, applied per axis).

    Args:
        kernels: (K, c, s, s).
        weights: (K,), non-negative.
        grid: M, more than 2 (s - 1).

    Returns:
        The bound, a float, computed in float64.
    """
    c, w = kernels.detach().double(), weights.detach().double()
    degree = c.shape[-1] - 1
    grid = max(grid, 16 * degree, 1)
    spectrum = torch.fft.rfft2(c, s=(grid, grid)).abs().square().sum(dim=1)
    largest = float(torch.einsum("k,khw->hw", w, spectrum).max())
    return COPIES[padding] * largest / math.cos(math.pi * degree / grid) ** 2 * (1 + 1e-12)


def kernel_norm_bounds(kernels: Tensor, padding: Padding, grid: int = 128) -> Tensor:
    """Rigorous upper bounds of ||C_k|| for each filter: (K,) float64; see ``symbol_bound``."""
    c = kernels.detach().double()
    degree = c.shape[-1] - 1
    grid = max(grid, 16 * degree, 1)
    largest = torch.fft.rfft2(c, s=(grid, grid)).abs().square().sum(dim=1).flatten(1).amax(dim=1)
    return (COPIES[padding] * largest).sqrt() / math.cos(math.pi * degree / grid) * (1 + 1e-12)


def mean_symbol(kernels: Tensor, weights: Tensor, shape: tuple[int, int]) -> Tensor:
    """sum_k weights_k |c_k^(omega)|^2 for every image: (K, c, s, s), (b, K) -> (b, c, h, w // 2 +
    1), as ``rfft2``.

    The weighted sum of the autocorrelations (2 s - 1 per axis) is transformed, one transform per
    image.
    """
    k, c, s, _ = kernels.shape
    flat = kernels.reshape(1, k * c, s, s)
    correlations = F.conv2d(flat, kernels.reshape(k * c, 1, s, s), padding=s - 1, groups=k * c)
    total = torch.einsum("bk,kcij->bcij", weights, correlations.view(k, c, 2 * s - 1, 2 * s - 1))
    shifts = torch.arange(1 - s, s, device=kernels.device)
    rows, columns = (
        F.one_hot(shifts % n, n).to(kernels) for n in shape
    )  # wraps around images smaller than 2 s - 1
    return torch.fft.rfft2(rows.mT @ total @ columns).real.clamp_min(0)
