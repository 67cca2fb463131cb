"""What a report compares, one column of pictures and one row of numbers each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import Protocol, TypeAlias

from torch import Tensor

from ..core import Evaluation, InputError
from ..core.asking import offers
from ..metrics.quality import qualities


class Pictured(Protocol):
    """Pictures with their numbers, as ``learnreg.runs.baselines`` makes them."""

    @property
    def images(self) -> Tensor: ...
    @property
    def psnr(self) -> tuple[float, ...]: ...
    @property
    def ssim(self) -> tuple[float, ...]: ...
    @property
    def words(self) -> str: ...


BaselineLike: TypeAlias = Tensor | Evaluation | Pictured


@dataclass(frozen=True)
class Column:
    """One competitor.

    Attributes:
        name: as shown.
        images: (b, c, ...), None where there is no picture like the true ones.
        psnr, ssim: one value per image.
        learned: whether it is one of the methods of the report.
    """

    name: str
    images: Tensor | None
    psnr: tuple[float, ...]
    ssim: tuple[float, ...]
    learned: bool


@dataclass(frozen=True)
class Measured:
    """A baseline as a report keeps it; attributes as in ``runs.baselines.Baseline``."""

    images: Tensor
    psnr: tuple[float, ...]
    ssim: tuple[float, ...]
    words: str = ""

    @classmethod
    def of(cls, name: str, given: BaselineLike, truth: Tensor) -> Measured:
        """From pictures alone, or with their numbers.

        Raises:
            InputError: pictures of another shape than the true ones, or something else.
        """
        if isinstance(given, Evaluation):
            found = cls(given.reconstruction, given.psnr, given.ssim)
        elif isinstance(given, Tensor):
            found = cls(given, (), ())
        elif offers(given, Pictured):
            found = cls(given.images, given.psnr, given.ssim, given.words)
        else:
            raise InputError(
                f"baselines[{name!r}]",
                given=type(given).__name__,
                expected="a tensor of images, an Evaluation, or a Baseline",
                remedy="Reconstruct the held-out images with the other method.",
            )
        if found.images.shape != truth.shape:
            raise InputError(
                f"baselines[{name!r}]",
                given=f"shape {tuple(found.images.shape)}",
                expected=f"shape {tuple(truth.shape)}, that of the held-out images",
                remedy="Reconstruct the same held-out images in the same order.",
            )
        if not (found.images.is_floating_point() or found.images.is_complex()):
            raise InputError(
                f"baselines[{name!r}]",
                given=f"pixels of type {found.images.dtype}",
                expected="floating-point images in the units of the true ones",
                remedy="Convert them: images.float() / 255 for 8 bits.",
            )
        if found.psnr:
            return found
        return cls(found.images.detach(), *qualities(found.images, truth), found.words)


def spread(values: Sequence[float]) -> float:
    """Sample standard deviation; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    return stdev(values) if all(map(math.isfinite, values)) else math.nan
