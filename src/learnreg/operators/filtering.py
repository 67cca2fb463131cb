"""Convolutions of ``deepinv`` seen as such: kernel, padding, subsampling; norms from the kernel.

Notation: k the kernel of one channel, A what it does to images of given sides, |A| the matrix of
absolute values, k^ a discrete Fourier transform. Entries of A are sums of entries of k, so |A| is
at most the operator of |k|, entry by entry, and ||A|| <= || |A| || <= the norm of that operator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from .foreign import LinearPhysicsLike

ROUNDING = 1e-12
"""Relative, of a discrete Fourier transform in float64 and of the few products after it."""

GRID = 32
"""Frequencies per degree of a symbol whose maximum over all frequencies is asked for."""


@dataclass(frozen=True, eq=False)
class Filtering:
    """A convolution with one kernel per channel, of which every ``factor``-th output is kept.

    Attributes:
        kernels: (n, c, ...), float64; n and c may be one, for all images and channels.
        padding: ``circular``, ``valid``, ``constant``, ``reflect`` or ``replicate``.
        factor: 1 for all outputs.
        transposed: whether the operator is the adjoint of that.
        sides: of the images before the convolution; None for those of the argument.
    """

    kernels: Tensor
    padding: str
    factor: int = 1
    transposed: bool = False
    sides: tuple[int, ...] | None = None

    def sides_of(self, x: Tensor) -> tuple[int, ...]:
        """The sides of the images before the convolution, for arguments x (b, c, ...)."""
        if not self.transposed:
            return tuple(x.shape[2:])
        return self.sides or tuple(n * self.factor for n in x.shape[2:])

    @property
    def window(self) -> tuple[int, ...]:
        """The sides of the kernel."""
        return tuple(self.kernels.shape[2:])

    def fits(self, x: Tensor) -> bool:
        """Whether the kernel has the axes of images like x, and is no larger than they are."""
        sides = self.sides_of(x)
        same = len(sides) == len(self.window)
        return same and all(s <= n for s, n in zip(self.window, sides, strict=True))


class _Buffered(Protocol):
    """What deepinv's convolutions keep."""

    filter: Tensor | None
    padding: str


class _Subsampled(_Buffered, Protocol):
    factor: int
    imsize: tuple[int, ...] | None


def overridden(physics: LinearPhysicsLike) -> bool:
    """Whether an object carries maps of its own, so that its class says nothing."""
    own = vars(physics)
    return any(own.get(name) is not None for name in ("A", "A_adjoint", "A_adj"))


def filtering_of(physics: LinearPhysicsLike) -> Filtering | None:
    """A ``Blur``, ``Downsampling`` or ``Upsampling`` as a convolution; None for anything else."""
    from deepinv.physics import Blur, Downsampling, Upsampling

    if type(physics) not in (Blur, Downsampling, Upsampling) or overridden(physics):
        return None
    if type(physics) is Blur:
        return _described(cast(_Buffered, physics), 1, False, None)
    kept = cast(_Subsampled, physics)
    sides = None if kept.imsize is None else tuple(kept.imsize[-2:])
    return _described(kept, int(kept.factor), type(physics) is Upsampling, sides)


def _described(
    kept: _Buffered, factor: int, transposed: bool, sides: tuple[int, ...] | None
) -> Filtering | None:
    kernel = kept.filter
    if kernel is None:  # no filter: pixels are picked
        kernel = torch.ones(1, 1, 1, 1)
    if kernel.is_complex() or kernel.dim() < 3:
        return None
    padding = {"zeros": "constant"}.get(kept.padding.lower(), kept.padding.lower())
    return Filtering(kernel.detach().double(), padding, factor, transposed, sides)


# --- norms ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Extremes:
    """smallest <= A^T A <= largest, (n,) float64.

    Attributes:
        sharp: whether ``largest`` is the norm, up to rounding.
    """

    smallest: Tensor
    largest: Tensor
    sharp: bool


def symbol_extremes(f: Filtering, sides: Sequence[int]) -> Extremes:
    """Bounds of A^T A from transforms of the kernel: no product with A.

    - ``circular``: A is diagonal in the Fourier basis, so max |k^|^2 and min |k^|^2 over the grid
      of the image are its extreme singular values. With every ``factor``-th output kept, A A^T has
      the symbol mean |k^|^2 over the frequencies that become one.
    - ``valid``: these outputs are some of those of the circular convolution.
    - ``constant``: those of the circular convolution of the image in a frame of zeros.
    - ``reflect``, ``replicate``: outputs of a convolution of the extended image E x, with ||E||^2
      the number of copies of a pixel, at most 2 per axis under reflection (the even continuation,
      period 2 n - 2, has at most two of each) and 1 + s // 2 (1 + 2 (s // 2) for one pixel) under
      replication. A circulant of a period that is not known here is at most the maximum of the
      symbol over all frequencies: that over a grid of M points divided by cos(pi (s - 1) / M) per
      axis (Ehlich and Zeller 1964).
    """
    power, sharp = _power(f, f.kernels, sides)
    rows = power.flatten(1)
    largest = rows.amax(dim=1) * (1 + ROUNDING)
    if not (sharp and f.factor == 1):
        return Extremes(torch.zeros_like(largest), largest, sharp)
    smallest = rows.amin(dim=1) - ROUNDING * rows.amax(dim=1)
    return Extremes(smallest.clamp_min(0), largest, sharp)


def _power(f: Filtering, k: Tensor, sides: Sequence[int]) -> tuple[Tensor, bool]:
    """What ``symbol_extremes`` takes the largest of, for kernels (n, c, ...) like those of f; and
    whether that is ||A||^2.
    """
    axes, window, factor = tuple(range(2, k.dim())), f.window, f.factor
    if f.padding == "circular":
        power = torch.fft.fftn(k, s=tuple(sides), dim=axes).abs().square()
        fits = all(n % factor == 0 for n in sides)
        if factor > 1 and fits:
            for axis in axes:
                power = power.unflatten(axis, (factor, -1)).mean(dim=axis)
        return power, fits
    if f.padding == "valid":
        return torch.fft.fftn(k, s=tuple(sides), dim=axes).abs().square(), False
    if f.padding == "constant":
        framed = [n + s - 1 for n, s in zip(sides, window, strict=True)]
        return torch.fft.fftn(k, s=framed, dim=axes).abs().square(), False

    grid = [max(GRID * (s - 1), 1) for s in window]
    power = torch.fft.fftn(k, s=grid, dim=axes).abs().square()
    between = math.prod(
        math.cos(math.pi * (s - 1) / m) ** -2 for s, m in zip(window, grid, strict=True)
    )
    return power * between * _copies(f, sides), False


def _copies(f: Filtering, sides: Sequence[int]) -> float:
    """||E||^2 of the extension; infinite for a padding that is not known."""
    if f.padding == "reflect":
        return math.prod(2.0 if s > 1 else 1.0 for s in f.window)
    if f.padding == "replicate":
        margins = [(s // 2) * (1 if n > 1 else 2) for s, n in zip(f.window, sides, strict=True)]
        return math.prod(1.0 + m for m in margins)
    return math.inf


DENSE = 300
"""Pixels of the grids on which a power of A^T A is made as a matrix (milliseconds)."""

FEW_KERNELS = 8
"""Kernels up to which that is done."""


def local_bound(f: Filtering, sides: Sequence[int]) -> Tensor | None:
    """||A||^2 <= (||M^p||_inf)^(1/p) with M = A^T A, (n,) float64: for signed kernels at the edges
    of pictures, where |k| knows no cancellation and the symbol no edge. No product with A.

    The spectral radius of M^p is below every operator norm (Horn and Johnson, Matrix Analysis,
    Theorem 5.6.9), and the largest row sum of |M^p| is that of a small grid: with m the reach of
    the kernel, M^p couples pixels at most 2 p m apart, and rows at least so far from an edge do not
    notice it, so in every direction 4 p m + 1 pixels show all rows that larger images have.

    Returns:
        None for volumes, large or many kernels, and outputs that are left out.
    """
    n, channels = f.kernels.shape[:2]
    plain = len(f.window) == 2 and f.factor == 1 and f.padding != "circular"
    if not plain or n * channels > FEW_KERNELS:
        return None
    power, reach = 1, [s // 2 if f.padding != "valid" else s - 1 for s in f.window]
    while math.prod(8 * power * m + 1 for m in reach) <= DENSE:
        power *= 2
    grid = [min(side, 4 * power * m + 1) for side, m in zip(sides, reach, strict=True)]
    if math.prod(grid) > 2 * DENSE:
        return None

    pixels = torch.eye(math.prod(grid), dtype=torch.float64, device=f.kernels.device)
    framed = _extended(pixels.view(-1, 1, *grid), f)
    bank = f.kernels.flatten(0, 1).flip(-2, -1)[:, None]
    found = []
    for kernel in bank:
        matrix = F.conv2d(framed, kernel[None]).flatten(1)  # A transposed
        rows = torch.linalg.matrix_power(matrix @ matrix.T, power).abs().sum(dim=1).max()
        found.append(rows ** (1 / power))
    return torch.stack(found).view(n, channels).amax(dim=1) * (1 + 1e-10)


def _extended(x: Tensor, f: Filtering) -> Tensor:
    """Images with the frame that the padding gives them, as deepinv does it for kernels of an even
    number of taps too.
    """
    if f.padding == "valid":
        return x
    (top, left), (bottom, right) = (
        [s // 2 - (s - 1) % 2 for s in f.window],
        [s // 2 for s in f.window],
    )
    return F.pad(x, (left, right, top, bottom), mode=f.padding)


# --- how A moves with its kernel ------------------------------------------------------------------


def taps_sensitivity(f: Filtering, sides: Sequence[int]) -> float:
    """beta with ||dA v|| <= beta ||dk|| ||v|| for all changes dk of the kernel and all images v.

    An output of dA v is the inner product of dk with a window of the extended image, so ||dA v||^2
    <= ||dk||^2 sum over windows ||window||^2, in which a pixel counts as often as the windows that
    are kept see it or a copy of it: beta^2 is the largest such count, a product over the axes. The
    sides of the kernel for circular and zero padding, 6 for 5x5 under reflection or replication.
    """
    counts = [_most_seen(n, s, f.padding, f.factor) for n, s in zip(sides, f.window, strict=True)]
    return math.sqrt(math.prod(counts))


def _most_seen(n: int, s: int, padding: str, factor: int) -> int:
    """How often the busiest of n pixels in a row occurs in the windows that are kept."""
    line = torch.arange(1.0, n + 1, dtype=torch.float64).view(1, 1, 1, n)
    if padding != "valid":
        # as deepinv pads for kernels of an even number of taps
        margins = (s // 2 - (s - 1) % 2, s // 2, 0, 0)
        line = F.pad(line, margins, mode=padding)
    windows = line.flatten().unfold(0, s, 1)[::factor]
    counts = windows.reshape(-1).long().bincount(minlength=2)
    return int(counts[1:].max())


def columns_sensitivity(f: Filtering, columns: Tensor, sides: Sequence[int]) -> float:
    """beta for kernels that move along columns only: dk = sum_j dtheta_j d_j.

    By Cauchy and Schwarz the symbol of such a dk is at most ||dtheta|| (sum_j |d_j^|^2)^(1/2) at
    every frequency, so the bounds of norms by symbols hold with this sum in the place of |k^|^2.

    Args:
        columns: (d, c, ...), like the kernel.
    """
    power, _ = _power(f, columns, sides)
    return math.sqrt(float(power.sum(dim=0).max()) * (1 + ROUNDING))


def keeps_constants(f: Filtering) -> bool:
    """Whether a constant image becomes a constant one, times the sum of the kernel."""
    return f.padding in ("circular", "reflect", "replicate", "valid") and not f.transposed
