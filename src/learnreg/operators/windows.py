"""Windows of an operator that measures every pixel by itself."""

from __future__ import annotations

from torch import Tensor

from .physics import LinearMap, TiedMap
from .private import windowed


def cuts(tied: TiedMap) -> bool:
    """Whether every pixel is measured by itself, by one operator for all images: windows of it can
    be looked at alone.
    """
    return tied.is_identity or (tied.is_mask and not tied.names)


def window(tied: TiedMap, x: Tensor, rows: slice, columns: slice) -> TiedMap:
    """The operator of a window of images like x, where it ``cuts``."""
    if tied.is_identity:
        return tied

    # a part of an operator that has been probed, with bounds that hold for the whole
    physics = windowed(tied.map.physics, x.shape[-2:], rows, columns)
    part = TiedMap(LinearMap(physics, trusted=True), tied.layout, tied.count)
    part.map.refresh()
    part.map._spectrum[part._key(x[..., rows, columns])] = tied.spectrum(x)
    return part
