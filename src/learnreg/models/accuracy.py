"""How accurate a reconstruction is to be, and how much time and memory it may take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from ..core.errors import InputError
from ..core.memory import free_memory, in_words
from ..core.ranges import check_choice, check_number, check_positive

Quality = Literal["draft", "fine"]

PER_PIXEL: dict[str, float] = {"draft": 1 / 255, "fine": 1e-2 / 96}
"""Root mean square distance per pixel to the exact minimizer, for pixels in [0, 1]: one 8-bit grey
level, which is also what an 8-bit file rounds away three times over, and a fortieth of one. The
true distance is usually a fifth of what is certified.
"""

VECTORS = 50
"""Copies of an image that a solve of the whole holds at its peak (measured: 38 for accelerated
gradient, 44 for L-BFGS).
"""

VECTORS_IN_TILES = 8
"""The same where images are solved tile by tile, besides one window."""

KEPT_FREE = 0.8
"""Of the memory that is free, what a solve may take when nothing else is said."""


@dataclass(frozen=True)
class Demands:
    """What is asked of every image.

    Attributes:
        eps: largest distance to the exact minimizer over all pixels of an image; by ``quality``
            when None.
        quality: a distance per pixel, see ``PER_PIXEL``.
        max_seconds: of an image; what has been reached then is the result, with its certificate.
        memory: bytes that a solve may take; what is free when None.
        sigma: noise level of the images, "auto" to estimate it; that of the model when None.

    Raises:
        InputError: a value out of range.
    """

    eps: float | None = None
    quality: Quality = "fine"
    max_seconds: float | None = None
    memory: int | None = None
    sigma: float | str | None = None

    def __post_init__(self) -> None:
        check_choice("quality", self.quality, get_args(Quality))
        for name, value in (("eps", self.eps), ("max_seconds", self.max_seconds)):
            check_number(name, value, lambda v: v > 0, "a positive finite number", optional=True)
        check_number(
            "memory", self.memory, lambda v: v > 0, "a positive number of bytes", optional=True
        )
        if self.sigma is not None and self.sigma != "auto":
            check_positive("sigma", self.sigma)

    def distance(self, values: int) -> float:
        """What is asked of an image of so many values, over all of them."""
        return self.eps if self.eps is not None else PER_PIXEL[self.quality] * math.sqrt(values)

    @property
    def bytes(self) -> int:
        """What a solve may take."""
        return self.memory or int(KEPT_FREE * free_memory())


def estimated_bytes(values: int, itemsize: int, window: int | None = None) -> int:
    """What a solve takes.

    Args:
        values: of the image, all channels.
        itemsize: bytes of a value.
        window: values of a window, where the image is solved tile by tile.
    """
    if window is None or window >= values:
        return VECTORS * values * itemsize
    return (VECTORS_IN_TILES * values + VECTORS * window) * itemsize


def not_enough(what: str, needed: int, given: int) -> InputError:
    """The error for an image that does not fit."""
    return InputError(
        what,
        given=f"an image whose solve takes about {in_words(needed)} of memory",
        expected=f"at most {in_words(given)}",
        remedy="Allow more memory, reconstruct parts of it, or learn a local regularizer (FoE, TV, "
        "HuberTV), whose images are solved tile by tile.",
    )
