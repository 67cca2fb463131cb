"""MeanCurvature: what a preconditioner needs to know of a Hessian, per image: its diagonal and its
mean symbol.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class MeanCurvature:
    """A Hessian in two averages; both only steer preconditioners, so neither needs to be exact.

    Attributes:
        diagonal: (b, c, *axes), the curvature of each pixel, positive.
        symbol: (b, c, *axes) with the last side n as n // 2 + 1, the curvature of each frequency of
            ``torch.fft.rfftn`` over all axes after the channels, averaged over the image,
            non-negative.
    """

    diagonal: Tensor
    symbol: Tensor

    def __add__(self, other: MeanCurvature) -> MeanCurvature:
        return MeanCurvature(self.diagonal + other.diagonal, self.symbol + other.symbol)

    def __mul__(self, factor: float) -> MeanCurvature:
        return MeanCurvature(self.diagonal * factor, self.symbol * factor)

    __rmul__ = __mul__
