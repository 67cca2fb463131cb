"""Preconditioners for imaging: the diagonal, a circulant matrix through the FFT, and the two
combined.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..core.batch import expand
from ..core.curvature import MeanCurvature

Kind = Literal["diagonal", "circulant", "scaled"]

SMALLEST = 1e-6
"""Curvatures below this fraction of the largest count as that much: the preconditioner stays
positive definite.
"""


@dataclass(frozen=True)
class ImagePreconditioner:
    """r -> S F^-1 diag(1 / symbol) F S r with a diagonal scaling S; either part may be missing
    (None).

    Every part is per image, so an image does not see its neighbours, and symmetric positive
    definite.

    Args:
        scaling: (b, c, *axes), positive.
        inverse_symbol: (b, c, *axes) with the last side n as n // 2 + 1, positive.
    """

    scaling: Tensor | None
    inverse_symbol: Tensor | None

    def __call__(self, r: Tensor) -> Tensor:
        """(b, c, *axes) -> (b, c, *axes), the transform over all axes after the channels."""
        out = r if self.scaling is None else r * self.scaling
        if self.inverse_symbol is not None:
            axes = tuple(range(2, r.dim()))
            spectrum = torch.fft.rfftn(out, dim=axes).mul_(self.inverse_symbol)
            out = torch.fft.irfftn(spectrum, s=r.shape[2:], dim=axes)
        return out if self.scaling is None else out * self.scaling

    def select(self, index: Tensor) -> ImagePreconditioner:
        """The images ``index`` of the batch."""
        return ImagePreconditioner(
            *(None if t is None else t[index] for t in (self.scaling, self.inverse_symbol))
        )


def preconditioner(mean: MeanCurvature, kind: Kind = "scaled") -> ImagePreconditioner:
    """The inverse of a Hessian as far as its averages show it.

    ``diagonal``: D^-1. ``circulant``: C^-1 with the mean symbol, as T. Chan (SIAM J. Sci. Stat.
    Comput. 1988) does for Toeplitz matrices. ``scaled``: with d = D / mean(D), d^-1/2 C^-1 d^-1/2,
    for curvature that varies over the image: edges are soft, flat parts stiff.
    """
    d, symbol = _floored(mean.diagonal), _floored(mean.symbol)
    if kind == "diagonal":
        return ImagePreconditioner(d.rsqrt(), None)
    if kind == "circulant":
        return ImagePreconditioner(None, symbol.reciprocal())
    average = expand(d.flatten(1).mean(dim=1), d)
    return ImagePreconditioner((average / d).sqrt_(), symbol.reciprocal())


def _floored(t: Tensor) -> Tensor:
    largest = t.flatten(1).amax(dim=1)
    # an image of which nothing is known: any number will do
    largest = torch.where(largest > 0, largest, 1.0)
    return torch.maximum(t, SMALLEST * expand(largest, t))
