"""What an image, a signal or a volume looks like on a page: grey levels, cuts and drawings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..metrics import scale_of

SIGNAL = (120, 240)
"""Height and least width of a drawn signal, in pixels."""


@dataclass(frozen=True)
class Window:
    """The values drawn black and white."""

    low: float = 0.0
    high: float = 1.0

    @classmethod
    def of(cls, x: Tensor) -> Window:
        """0 to 1 where the true images (b, c, ...) lie within, else their own range."""
        shown = [flat(image) for image in x]
        low = min(float(s.min()) for s in shown)
        high = max(float(s.max()) for s in shown)
        unit = low >= -1e-5 and high <= 1 + 1e-5 and float(scale_of(x, together=True).peak[0]) == 1
        return cls() if unit or not high > low else cls(low, high)

    @property
    def words(self) -> str:
        return f"{self.low:.4g} to {self.high:.4g}"


def flat(image: Tensor) -> Tensor:
    """One image (c, ...) as it is drawn: (3, h, w) in colour for c = 3, else (1, h, w), and (1, n)
    for signals.

    The modulus of complex images, also of two channels; the root mean square of four channels and
    more; the middle slice of volumes.
    """
    image = image.detach().cpu()
    image = image.abs().float() if image.is_complex() else image.float()
    while image.dim() > 3:
        image = image[:, image.shape[1] // 2]
    channels = image.shape[0]
    if channels in (1, 3) and image.dim() == 3:
        return image
    if channels == 1:
        return image
    size = torch.linalg.vector_norm(image, dim=0, keepdim=True)
    return size if channels == 2 else size / channels**0.5


def how_drawn(x: Tensor) -> str:
    """A sentence on how images (b, c, ...) are drawn, where that does not go without saying."""
    channels, parts = x.shape[1], []
    if x.is_complex() or channels == 2:
        parts.append("Complex images are shown by their modulus.")
    elif channels > 3 or (channels == 3 and x.dim() == 3):
        parts.append(f"Shown is the root mean square of the {channels} channels.")
    if x.dim() > 4:
        parts.append("Of volumes the middle slice is shown.")
    if x.dim() == 3:
        parts.append("Signals are drawn as curves.")
    return " ".join(parts)


def drawn(part: Tensor, window: Window) -> np.ndarray:
    """(h, w) or (h, w, 3) in [0, 1] of what ``flat`` returned, or of a cut of it."""
    values = ((part - window.low) / (window.high - window.low)).clamp(0, 1)
    values = torch.nan_to_num(values)
    if part.dim() == 2:
        return _curve(values[0].numpy())
    return values.permute(1, 2, 0).numpy() if part.shape[0] == 3 else values[0].numpy()


@dataclass(frozen=True)
class Cut:
    """Part of a flat image."""

    top: int
    left: int
    height: int
    width: int

    @classmethod
    def liveliest(cls, image: Tensor) -> Cut:
        """The liveliest ninth of a flat image, the liveliest third of a signal, by variance."""
        grey = image.mean(0)[None, None]
        grey = grey if grey.dim() == 4 else grey[..., None, :]
        high, wide = grey.shape[-2:]
        h, w = (1 if high == 1 else max(1, high // 3)), max(1, wide // 3)
        stride = (max(1, h // 4), max(1, w // 4))
        mean, square = (torch.nn.functional.avg_pool2d(g, (h, w), stride) for g in (grey, grey**2))
        best = int((square - mean**2).flatten().argmax())
        columns = mean.shape[-1]
        return cls(best // columns * stride[0], best % columns * stride[1], h, w)

    def of(self, image: Tensor) -> Tensor:
        across = image[..., self.left : self.left + self.width]
        return across if image.dim() == 2 else across[:, self.top : self.top + self.height]


def _curve(values: np.ndarray) -> np.ndarray:
    """A signal with values in [0, 1] as a dark line on white."""
    height, least = SIGNAL
    width = max(least, min(4 * least, len(values)))
    at = np.linspace(0, len(values) - 1, width)
    level = (1 - np.interp(at, np.arange(len(values)), values)) * (height - 3) + 1
    canvas = np.ones((height, width))
    before = np.concatenate(([level[0]], level[:-1]))
    for column, (a, b) in enumerate(zip(before, level, strict=True)):
        low, high = int(min(a, b)), int(np.ceil(max(a, b)))
        canvas[low : high + 1, column] = 0.15
    return canvas
