"""Batches of dense matrices that count their products, and what goes with them."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Matrices:
    """H_i v per image, and how often each image was asked for.

    Args:
        breaks: {image: calls}, where and after how many products NaN comes out.
    """

    def __init__(
        self,
        h: Tensor,
        calls: Tensor | None = None,
        index: Tensor | None = None,
        breaks: dict[int, int] | None = None,
    ) -> None:
        self.h = h
        self.calls = torch.zeros(h.shape[0], dtype=torch.int64) if calls is None else calls
        self.index = torch.arange(h.shape[0]) if index is None else index
        self.breaks = breaks or {}

    def __call__(self, v: Tensor) -> Tensor:
        assert v.shape[0] == self.h.shape[0]
        self.calls[self.index] += 1
        out = torch.einsum("bij,bj->bi", self.h, v.flatten(1)).view_as(v)
        for image, calls in self.breaks.items():
            out[(self.index == image) & (self.calls[self.index] > calls)] = math.nan
        return out

    def select(self, index: Tensor) -> Matrices:
        return Matrices(self.h[index], self.calls, self.index[index], self.breaks)


class Diagonals:
    """r_i / d_i: a preconditioner that differs from image to image, with ``select`` like a
    Hessian.
    """

    def __init__(self, d: Tensor) -> None:
        self.d = d

    def __call__(self, r: Tensor) -> Tensor:
        assert r.shape[0] == self.d.shape[0], "the preconditioner follows the batch"
        return (r.flatten(1) / self.d).view_as(r)

    def select(self, index: Tensor) -> Diagonals:
        return Diagonals(self.d[index])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def symmetric(spectrum: Tensor, seed: int = 0) -> Tensor:
    """Matrices (b, n, n) with the eigenvalues ``spectrum`` (b, n) in a random basis."""
    basis = torch.linalg.qr(normal(*spectrum.shape, spectrum.shape[1], seed=seed)).Q
    return (basis * spectrum[:, None, :]) @ basis.mT


def geometric(images: int, n: int, condition: float | Tensor) -> Tensor:
    """Spectra (images, n) spread geometrically over [1, condition]."""
    exponent = torch.linspace(0, 1, n, dtype=torch.float64)
    return (torch.as_tensor(condition, dtype=torch.float64).view(-1, 1) ** exponent).expand(
        images, n
    )


def spd(images: int, n: int, condition: float | Tensor, seed: int = 0) -> Tensor:
    """Symmetric matrices with eigenvalues spread geometrically over [1, condition]."""
    return symmetric(geometric(images, n, condition), seed)


def indefinite(images: int, n: int, condition: float | Tensor, seed: int = 0) -> Tensor:
    """The same with every other eigenvalue negative."""
    signs = 1 - 2 * (torch.arange(n) % 2)
    return symmetric(signs * geometric(images, n, condition), seed)


def residual(h: Tensor, q: Tensor, b: Tensor) -> Tensor:
    """The true ||b - H q|| (b,) in float64."""
    b, q = b.double().flatten(1), q.double().flatten(1)
    return (b - torch.einsum("bij,bj->bi", h.double(), q)).norm(dim=1)
