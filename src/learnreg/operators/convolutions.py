"""Filter banks: correlation with padding, a fast exact adjoint, and a rigorous norm bound from the Fourier symbol."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Padding = Literal["reflect", "zero"]

COPIES = {"reflect": 4.0, "zero": 1.0}
"""||E||^2 of the extension behind the padding: reflection continues to an even periodic image in which every pixel
appears at most twice per axis and period; zero padding copies nothing."""


def pad(x: Tensor, margin: int, padding: Padding) -> Tensor:
    """(b, c, h, w) -> (b, c, h + 2 margin, w + 2 margin); reflection does not repeat the edge pixel."""
    if margin == 0:
        return x
    return F.pad(x, (margin,) * 4, mode="reflect" if padding == "reflect" else "constant")


def pad_adjoint(p: Tensor, margin: int, padding: Padding) -> Tensor:
    """The exact adjoint of ``pad``: margins are folded back (reflect) or dropped (zero)."""
    if margin == 0:
        return p
    m, h, w = margin, p.shape[-2], p.shape[-1]
    if padding == "zero":
        return p[..., m:-m, m:-m]
    rows = p[..., m:-m, :].clone()
    rows[..., 1:m + 1, :] += p[..., :m, :].flip(-2)
    rows[..., h - 3 * m - 1:h - 2 * m - 1, :] += p[..., h - m:, :].flip(-2)
    out = rows[..., m:-m].clone()
    out[..., 1:m + 1] += rows[..., :m].flip(-1)
    out[..., w - 3 * m - 1:w - 2 * m - 1] += rows[..., w - m:].flip(-1)
    return out


def correlate(x: Tensor, kernels: Tensor, padding: Padding) -> Tensor:
    """Filter bank: x (b, c, h, w), kernels (K, c, s, s) with odd s -> (b, K, h, w); cross-correlation, no flip."""
    return F.conv2d(pad(x, kernels.shape[-1] // 2, padding), kernels)


def adjoint_kernels(kernels: Tensor) -> Tensor:
    """Kernels rearranged for ``correlate_adjoint``: (K, c, s, s) -> (c, s, s, K)."""
    return kernels.permute(1, 2, 3, 0).contiguous()


def correlate_adjoint(p: Tensor, rearranged: Tensor, padding: Padding) -> Tensor:
    """Exact adjoint of ``correlate``: p (b, K, h, w) -> (b, c, h, w).

    A transposed convolution with few output channels is slow on CPUs (measured: 10 times the forward one). One matrix
    product spreads every p over the window instead, and 2 s shifted additions gather the copies.

    Args:
        rearranged: from ``adjoint_kernels``, shape (c, s, s, K).
    """
    b, k, h, w = p.shape
    c, s = rearranged.shape[:2]
    spread = torch.matmul(rearranged.view(-1, k), p.reshape(b, k, h * w)).view(b, c, s, s, h, w)
    rows = p.new_zeros(b, c, s, h, w + s - 1)
    for j in range(s):
        rows[..., j:j + w] += spread[:, :, :, j]
    out = p.new_zeros(b, c, h + s - 1, w + s - 1)
    for i in range(s):
        out[:, :, i:i + h] += rows[:, :, i]
    return pad_adjoint(out, s // 2, padding)


def symbol_bound(kernels: Tensor, weights: Tensor, padding: Padding, grid: int = 128) -> float:
    """Rigorous upper bound of || sum_k weights_k C_k^T C_k || for images of any size.

    The outputs of the bank are some of those of a periodic convolution of the extended image E x (period 2 (h - 1)
    under reflection, a zero frame otherwise), so the norm is at most ||E||^2 times the maximum of the symbol
    sum_k w_k |c_k^(omega)|^2 (summed over channels: the largest eigenvalue is at most the trace). The symbol is a
    trigonometric polynomial of degree s - 1 in each variable; its maximum over all frequencies is at most the
    maximum over a grid of M points per axis times (1 / cos(pi (s - 1) / M))^2 (Ehlich and Zeller 1964, applied per
    axis).

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
    """sum_k weights_k |c_k^(omega)|^2 for every image: (K, c, s, s), (b, K) -> (b, c, h, w // 2 + 1), as ``rfft2``.

    The weighted sum of the autocorrelations (2 s - 1 per axis) is transformed, one transform per image.
    """
    k, c, s, _ = kernels.shape
    flat = kernels.reshape(1, k * c, s, s)
    correlations = F.conv2d(flat, kernels.reshape(k * c, 1, s, s), padding=s - 1, groups=k * c)
    total = torch.einsum("bk,kcij->bcij", weights, correlations.view(k, c, 2 * s - 1, 2 * s - 1))
    shifts = torch.arange(1 - s, s, device=kernels.device)
    rows, columns = (F.one_hot(shifts % n, n).to(kernels) for n in shape)  # wraps around images smaller than 2 s - 1
    return torch.fft.rfft2(rows.mT @ total @ columns).real.clamp_min(0)
