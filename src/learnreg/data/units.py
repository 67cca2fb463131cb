"""Units of image files: which of their levels become 0 and 1, and what looks wrong about them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..core.asking import offers
from ..core.errors import InputError
from ..core.ranges import plain, shown
from .formats import Raw, image_codecs

Levels = tuple[float, float]
"""The levels (lo, hi) of a file that become 0 and 1."""

RangeLike = Sequence[float] | Literal["auto", "dtype"] | None

LUMA = (
    0.299,
    0.587,
    0.114,
)  # ITU-R BT.601 on gamma-coded values, as in most of the denoising literature

FULL = 0.2
"""Images that fill less of their range look as if another range had been meant."""

_DEPTHS = (1, 8, 10, 12, 14, 16, 24, 32)
"""Bits of detectors and masks: the likely white levels are 2^k - 1."""

_REMEDY = (
    "Say which levels are black and white: range=(lo, hi), range = [lo, hi] in [data], or "
    'reconstruct --range lo,hi; in the first two "auto" takes them from the images.'
)


@dataclass(frozen=True)
class Facts:
    """What there is to know of the numbers of one file.

    Attributes:
        name: the file.
        dtype: their type.
        low: the smallest.
        high: the largest.
        white: level that is white by the header; None for the largest of the type.
        narrowed: the file holds more bits than could be read.
        colour: it is not grey.
    """

    name: str
    dtype: np.dtype
    low: float
    high: float
    white: int | None
    narrowed: bool
    colour: bool


def facts_of(name: str, raw: Raw) -> Facts:
    """The facts of one image."""
    bands = np.moveaxis(raw.pixels, -1, 0)
    colour = len(bands) == 3 and not all(np.array_equal(bands[0], band) for band in bands[1:])
    low, high = float(raw.pixels.min()), float(raw.pixels.max())
    return Facts(name, raw.pixels.dtype, low, high, raw.white, raw.narrowed, colour)


def check_range(value: object) -> Levels | Literal["auto", "dtype"] | None:
    """``value`` as a range.

    Raises:
        InputError: neither two increasing finite numbers nor one of the words.
    """
    if value is None or value == "auto" or value == "dtype":
        return value
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2:
        lo, hi = (plain(v) for v in value)
        numbers = [v for v in (lo, hi) if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(numbers) == 2 and all(map(math.isfinite, numbers)) and numbers[0] < numbers[1]:
            return float(numbers[0]), float(numbers[1])
    raise InputError(
        "range",
        given=shown(value),
        expected='two numbers (lo, hi) with lo < hi, "dtype" or "auto"',
        remedy="For example range=(0, 4095) for files of 12 bits.",
    )


def auto_levels(files: Sequence[Facts], training: Iterable[str] | None = None) -> Levels:
    """One range for all files of a source.

    Integers that are nowhere negative: 0 and the smallest 2^k - 1 that holds all of them. Others:
    the smallest and the largest value of the training images.

    Args:
        files: all files.
        training: names of those that are trained on; all when None or none is.

    Raises:
        InputError: files of several types, which have no scale in common, or of one constant.
    """
    types = sorted({str(facts.dtype) for facts in files})
    if len(types) > 1:
        raise InputError(
            "range",
            given=f'"auto" with files of types {", ".join(types)}',
            expected="files of one type: others have no scale in common",
            remedy='Convert them, or pass "dtype" for the full range of each type.',
        )
    low, high = min(f.low for f in files), max(f.high for f in files)
    if files[0].dtype.kind in "bui" and low >= 0:
        return 0.0, float(2 ** max(1, int(high).bit_length()) - 1)
    names = set(training or ())
    used = [facts for facts in files if facts.name in names] or list(files)
    low, high = min(f.low for f in used), max(f.high for f in used)
    if low == high:
        raise InputError(
            "range",
            given=f'"auto" with images that are {low:g} everywhere',
            expected="images with two different values",
            remedy="Pass the levels that are black and white: range=(lo, hi).",
        )
    return low, high


def levels_of(facts: Facts, given: Levels | Literal["dtype"] | None) -> Levels:
    """The levels of one file that become 0 and 1.

    Raises:
        InputError: numbers whose scale must not be guessed.
    """
    if isinstance(given, tuple):
        return given
    kind, dtype = facts.dtype.kind, facts.dtype
    if kind == "b":
        return 0.0, 1.0
    if kind == "f":
        if facts.low < -1 or facts.high > 2:  # noise may leave [0, 1]; 0 to 255 may not pass for it
            raise InputError(
                facts.name,
                given=f"float pixels in [{facts.low:.4g}, {facts.high:.4g}]",
                expected="float pixels on the scale of [0, 1], at most [-1, 2] with noise",
                remedy=_REMEDY,
            )
        return 0.0, 1.0
    if given is None and facts.white is not None and facts.high <= facts.white:
        return 0.0, float(facts.white)
    if given is None and (kind == "i" or dtype.itemsize > 2):
        raise InputError(
            facts.name,
            given=f"pixels of type {dtype} in [{facts.low:g}, {facts.high:g}]",
            expected="8-bit, 16-bit or float pixels, or a range",
            remedy=_REMEDY,
        )
    return 0.0, float(np.iinfo(dtype).max)


def scaled(pixels: np.ndarray, levels: Levels) -> np.ndarray:
    """Pixels as float64, with ``levels`` at 0 and 1."""
    if pixels.dtype == np.bool_ and levels == (0.0, 1.0):
        return pixels.astype(np.float64)
    lo, hi = levels
    return (pixels.astype(np.float64) - lo) / (hi - lo)


def as_image(raw: Raw, levels: Levels, channels: int) -> Tensor:
    """(channels, h, w), float32: colour becomes grey by ``LUMA``, grey colour by repetition."""
    pixels = scaled(raw.pixels, levels)
    if channels == 1 and pixels.shape[2] == 3:
        pixels = pixels @ np.asarray(LUMA)[:, None]
    image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32))
    return image.expand(channels, -1, -1).contiguous()


# --- what looks wrong -----------------------------------------------------------------------------


def remarks_on(
    files: Sequence[Facts], levels: Mapping[str, Levels], given: Levels | str | None
) -> list[str]:
    """What is to be said of the numbers of some files.

    Args:
        files: the files.
        levels: name -> the levels that became 0 and 1.
        given: the range that was asked for.
    """
    remarks = [*narrow_remarks(files)]
    for dtype in dict.fromkeys(facts.dtype for facts in files):
        alike = [facts for facts in files if facts.dtype == dtype]
        if given != "dtype":  # the full range of the type has been asked for in so many words
            remarks += _thin(alike, levels, given)
        if isinstance(given, tuple):
            remarks += _outside(alike, given)
    return remarks


def narrow_remarks(files: Sequence[Facts]) -> list[str]:
    """Files that were read with fewer bits than they hold."""
    names = [facts.name for facts in files if facts.narrowed]
    if not names:
        return []
    more = "" if image_codecs() is not None else ", or install learnreg[formats]"
    return [
        f"{listed(names)}: more than 8 bits per value, read with 8. For all of them save grey or "
        f"RGB as TIFF without compression{more}."
    ]


def _thin(files: Sequence[Facts], levels: Mapping[str, Levels], given: object) -> list[str]:
    """Images of one type that fill little of their range."""
    low, high = min(f.low for f in files), max(f.high for f in files)
    filled = max((f.high - levels[f.name][0]) / _width(levels[f.name]) for f in files)
    if high == low or not 0 <= filled < FULL:
        return []
    lo, hi = levels[max(files, key=lambda f: f.high).name]
    if files[0].dtype.kind == "f":
        meant = f"range = [{low:.4g}, {high:.4g}] makes these 0 and 1"
    else:
        meant = f"If {likely_white(high)} is white, say range = [0, {likely_white(high)}]"
    names = listed([f.name for f in files], 3)
    return [
        f"{names}: the largest value is {high:.6g}, {100 * filled:.2g} % of the range "
        f"[{lo:g}, {hi:g}] that becomes [0, 1]. {meant} ([data] range, the argument range, or "
        f"reconstruct --range)."
    ]


def _outside(files: Sequence[Facts], levels: Levels) -> list[str]:
    """Images that leave the range that was asked for by more than noise does."""
    low, high = min(f.low for f in files), max(f.high for f in files)
    lo, width = levels[0], _width(levels)
    if (low - lo) / width >= -1 and (high - lo) / width <= 2:
        return []
    return [
        f"{listed([f.name for f in files], 3)}: values in [{low:.6g}, {high:.6g}] for the range "
        f"[{levels[0]:g}, {levels[1]:g}], so images reach from {(low - lo) / width:.3g} to "
        f"{(high - lo) / width:.3g}. Nothing is clipped; a wider range is usual."
    ]


def _width(levels: Levels) -> float:
    return levels[1] - levels[0]


def likely_white(high: float) -> int:
    """The white level of a usual depth that holds ``high``.

    >>> likely_white(3900)
    4095
    """
    return next((2**k - 1 for k in _DEPTHS if high <= 2**k - 1), math.ceil(high))


class _Gaussian(Protocol):
    """A noise model with a standard deviation."""

    sigma: object


class _Stacked(Protocol):
    """Several physics of one image."""

    physics_list: Sequence[nn.Module]


class _Noisy(Protocol):
    """A physics with noise."""

    noise_model: object


def noise_remark(physics: nn.Module, x: Tensor) -> str | None:
    """What is to be said of Gaussian noise of more than half the range of the images.

    Args:
        physics: a physics; stacked ones are looked into.
        x: the images.
    """
    models = [m.noise_model for m in _parts(physics) if offers(m, _Noisy)]
    sigmas = [torch.as_tensor(m.sigma).max() for m in models if offers(m, _Gaussian)]
    sigma = max((float(s) for s in sigmas), default=0.0)
    low, high = (float(x.real.min()), float(x.real.max())) if x.numel() else (0.0, 0.0)
    if high == low or sigma <= 0.5 * (high - low):
        return None
    eight = f" If it is meant for images in [0, 255], pass {sigma:g}/255." if sigma > 1 else ""
    return (
        f"noise of standard deviation {sigma:g} on images in [{low:.3g}, {high:.3g}]: more than "
        f"half their range, so little can be learned.{eight}"
    )


def _parts(physics: nn.Module) -> Iterator[nn.Module]:
    """The modules in a physics; stacked ones keep theirs in a plain list."""
    yield from physics.modules()
    for part in physics.physics_list if offers(physics, _Stacked) else ():
        yield from _parts(part)


def listed(entries: Sequence[str], most: int = 5) -> str:
    """The first few entries, and how many more there are."""
    more = f" and {len(entries) - most} more" if len(entries) > most else ""
    return ", ".join(entries[:most]) + more
