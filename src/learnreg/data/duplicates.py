"""The same photograph on two sides: resaved, resized, turned, mirrored or cut, and so not equal
pixel by pixel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LONGEST = 384
"""Pixels of the longest side at which crops are looked for."""

KEPT = 16_000_000
"""Pixels of all miniatures together (64 MB): with more photographs they get smaller."""

WORK = 30_000_000
"""Pixels, over all pairs, that the search for crops goes through: a few seconds."""

HASH = 16
"""Lowest frequencies per direction in a hash."""

SAME = 0.6
"""Correlation of two hashes, from which on they are of one photograph: 51 of 255 signs differ."""

LIKE = 0.85
"""Correlation of these frequencies themselves: signs of next to nothing agree by chance."""

AROUND = 0.8
"""Correlation of all that two photographs share, if they share a window."""

SMALLEST = 16
"""Pixels of the shorter side of a window below which it could be found anywhere."""


@dataclass(frozen=True, eq=False)
class Miniature:
    """A photograph as it is compared: grey, (h, w), at the scale that all of them share.

    Attributes:
        origin: the file that it shares with others, of which it is not told apart.
    """

    name: str
    side: str
    image: Tensor
    origin: str = ""

    @property
    def whole(self) -> str:
        """What is said to look like something else: once for all pages of a file."""
        return self.origin or self.name

    def kin(self, other: Miniature) -> bool:
        """Whether both are pages of one file, which are alike anyway."""
        return self.origin != "" and self.origin == other.origin


def common_factor(sizes: Sequence[tuple[int, int]]) -> float:
    """The scale <= 1 of all miniatures of photographs of these sizes (height, width)."""
    longest = max((max(size) for size in sizes), default=1)
    pixels = sum(height * width for height, width in sizes)
    return min(1.0, LONGEST / longest, math.sqrt(KEPT / max(pixels, 1)))


def miniature(image: Tensor, factor: float) -> Tensor:
    """(c, h, w) as a grey image at the common scale."""
    grey = image.mean(dim=0)
    if factor == 1:
        return grey.clone()
    height, width = (max(1, round(side * factor)) for side in grey.shape)
    return torch.nn.functional.interpolate(
        grey[None, None], (height, width), mode="bilinear", antialias=True
    )[0, 0]


def likenesses(photographs: Sequence[Miniature], search_crops: bool = True) -> list[str]:
    """What is to be said of photographs of one side that look like one of another.

    Resaved, resized, mirrored and turned copies are found by a perceptual hash: the signs of the
    lowest 16 x 16 frequencies of a discrete cosine transform, against those of the eight positions
    of a square, and how strong these frequencies are. Crops (and overlapping pieces) are found by
    the normalized cross-correlation of the inner half of the smaller photograph with the larger
    one, both without their slow changes. A crop must not have been resized, and must show at least
    32 pixels a side at the common scale.
    """
    found: dict[frozenset[str], str] = {}
    for one, other in _same(photographs):
        found.setdefault(frozenset((one.whole, other.whole)), _words(one, other, "looks like"))
    candidates = _candidates(photographs) if search_crops else []
    total, looked, left = sum(len(smaller) for _, smaller in candidates), 0, WORK
    for large, smaller in candidates:
        image = Matcher(_detail(large.image))
        for small in smaller:
            if left < 0:
                break
            left, looked = left - large.image.numel(), looked + 1
            pair = frozenset((small.whole, large.whole))
            if pair not in found and _is_piece(_detail(small.image), image):
                found[pair] = _words(small, large, "shares a part with")
    remarks = []
    if found:
        remarks.append(
            f"{_listed(list(found.values()))}: what is trained on should not be tested on. Leave "
            "one of the two out, or keep both on one side with group."
        )
    if looked < total:
        remarks.append(
            f"Crops of one photograph in another were looked for in {looked} of {total} pairs of "
            "photographs, as many as a few seconds allow. If files belong together, name them "
            "so and say so with group."
        )
    return remarks


def _words(one: Miniature, other: Miniature, verb: str) -> str:
    return f"{one.name} ({one.side}) {verb} {other.name} ({other.side})"


def _listed(entries: list[str], most: int = 10) -> str:
    more = f"; and {len(entries) - most} more" if len(entries) > most else ""
    return "; ".join(entries[:most]) + more


# --- copies ---------------------------------------------------------------------------------------


def _same(photographs: Sequence[Miniature]) -> Iterator[tuple[Miniature, Miniature]]:
    """Pairs of photographs of different sides with hashes that agree in one of eight positions."""
    lively = [photo for photo in photographs if float(photo.image.std(correction=0)) > 1e-3]
    sides = list(dict.fromkeys(photo.side for photo in lively))
    hashes = {s: [(p, _spectrum(p.image)) for p in lively if p.side == s] for s in sides}
    for i, side in enumerate(sides):
        for other in sides[i + 1 :]:
            mine = torch.stack([spectrum for _, spectrum in hashes[side]])
            same = torch.zeros(len(mine), len(hashes[other]), dtype=torch.bool)
            for position in range(8):
                theirs = torch.stack([_turned(s, position) for _, s in hashes[other]])
                alike = _products(_signs(mine), _signs(theirs)) >= SAME
                same |= alike & (_products(_waves(mine), _waves(theirs)) >= LIKE)
            for a, b in torch.nonzero(same).tolist():
                one, two = hashes[side][a][0], hashes[other][b][0]
                if not one.kin(two):
                    yield one, two


def _spectrum(image: Tensor) -> Tensor:
    """The lowest frequencies of the discrete cosine transform (type II), (HASH, HASH)."""
    side = 4 * HASH
    square = torch.nn.functional.interpolate(
        image[None, None].double(), (side, side), mode="bilinear", antialias=True
    )[0, 0]
    at = torch.arange(side, dtype=torch.float64) + 0.5
    waves = torch.cos(math.pi / side * torch.arange(HASH, dtype=torch.float64)[:, None] * at)
    return waves @ square @ waves.T


def _turned(spectrum: Tensor, position: int) -> Tensor:
    """The spectrum of the image in one of its eight positions: a mirror changes the signs of odd
    waves.
    """
    odd = 1 - 2 * (torch.arange(HASH, dtype=torch.float64) % 2)
    spectrum = spectrum * odd if position & 1 else spectrum
    spectrum = spectrum * odd[:, None] if position & 2 else spectrum
    return spectrum.T if position & 4 else spectrum


def _waves(spectra: Tensor) -> Tensor:
    """Spectra (n, HASH, HASH) as vectors (n, HASH^2 - 1), without the mean."""
    return spectra.flatten(1)[:, 1:]


def _signs(spectra: Tensor) -> Tensor:
    """The hashes of spectra, (n, HASH^2 - 1) of -1 and 1."""
    return torch.where(_waves(spectra) < 0, -1.0, 1.0)


def _products(one: Tensor, other: Tensor) -> Tensor:
    """Correlations of vectors (n, k) and (m, k): (n, m)."""
    return torch.nn.functional.normalize(one) @ torch.nn.functional.normalize(other).T


# --- crops ----------------------------------------------------------------------------------------


def _candidates(photographs: Sequence[Miniature]) -> list[tuple[Miniature, list[Miniature]]]:
    """Every photograph with the smaller ones of other sides of which a window fits into it."""
    found: list[tuple[Miniature, list[Miniature]]] = []
    for i, large in enumerate(photographs):
        rank = (large.image.numel(), i)
        smaller = [
            small
            for j, small in enumerate(photographs)
            if small.side != large.side
            and not small.kin(large)
            and (small.image.numel(), j) < rank
            and _fits(_inner(small.image), large.image)
        ]
        if smaller:
            found.append((large, smaller))
    return found


def _fits(window: Tensor, image: Tensor) -> bool:
    return min(window.shape) >= SMALLEST and all(
        w <= s for w, s in zip(window.shape, image.shape, strict=True)
    )


def _inner(image: Tensor) -> Tensor:
    """The inner half of an image, (h / 2, w / 2)."""
    top, left = (side // 4 for side in image.shape)
    return image[top : image.shape[0] - top, left : image.shape[1] - left]


def _detail(image: Tensor) -> Tensor:
    """The image without its slow changes: skies and gradients are alike everywhere."""
    blurred = torch.nn.functional.avg_pool2d(
        torch.nn.functional.pad(image[None, None], (4, 4, 4, 4), mode="replicate"), 9, stride=1
    )[0, 0]
    return image - blurred


def _is_piece(small: Tensor, large: Matcher) -> bool:
    """Whether the inner half of an image is found in a larger one, and what surrounds it too."""
    window = _inner(small)
    correlation, row, column = large.best(window)
    if correlation < _threshold(window):
        return False

    # why a second look: a few smooth waves resemble others by chance, but not far beyond the window
    row, column = row - small.shape[0] // 4, column - small.shape[1] // 4
    top, left = max(row, 0), max(column, 0)
    there = large.image[top : row + small.shape[0], left : column + small.shape[1]]
    here = small[top - row :, left - column :][: there.shape[0], : there.shape[1]]
    both = torch.stack([here.flatten(), there.flatten()])
    return float(torch.corrcoef(both)[0, 1]) >= AROUND


def _threshold(window: Tensor) -> float:
    """The correlation from which on a window is a piece: small ones look like much by chance."""
    # why these numbers: among 400 unrelated photographs the largest correlation was 0.86 for
    # windows of 16 x 16 pixels, 0.65 for 32 x 32 and 0.24 for 90 x 90; pieces resaved as JPEG of
    # quality 75 mostly have 0.9 and more
    return 0.6 + 5 / min(window.shape)


class Matcher:
    """A photograph (h, w) in which windows are looked for.

    The normalized cross-correlation at a place is <w - mean w, v - mean v> / (|w - mean w| |v -
    mean v|), v the pixels of the image there (Lewis, "Fast normalized cross-correlation", 1995);
    the products of all places come by one FFT, the norms from sums over windows.
    """

    def __init__(self, image: Tensor) -> None:
        self.image = image - image.mean()
        self.spectrum = torch.fft.rfft2(self.image)
        self.norms: dict[tuple[int, ...], Tensor] = {}

    def best(self, window: Tensor) -> tuple[float, int, int]:
        """The largest correlation of a window (h, w) over its places inside the image, and the top
        left pixel there.
        """
        window, size = window - window.mean(), list(self.image.shape)
        product = torch.fft.irfft2(self.spectrum * torch.fft.rfft2(window, size).conj(), size)
        rows, columns = (s - w + 1 for s, w in zip(size, window.shape, strict=True))
        norm = self._norm(tuple(window.shape)) * float(window.norm())
        correlation = product[:rows, :columns] / norm.clamp(min=1e-12)
        row, column = divmod(int(correlation.argmax()), columns)
        return float(correlation[row, column]), row, column

    def _norm(self, shape: tuple[int, ...]) -> Tensor:
        """|v - mean v| of all windows v of this shape; infinite where there is nothing to see."""
        if shape not in self.norms:
            image = self.image.double()
            sums, squares = (_sums(t, *shape) for t in (image, image.square()))
            energy = squares - sums.square() / math.prod(shape)
            seen = energy > 1e-4 * float(energy.max())
            self.norms[shape] = torch.where(seen, energy.clamp(min=0).sqrt(), torch.inf).float()
        return self.norms[shape]


def _sums(image: Tensor, height: int, width: int) -> Tensor:
    """The sum over every window of this size."""
    table = torch.nn.functional.pad(image.cumsum(0).cumsum(1), (1, 0, 1, 0))
    return (
        table[height:, width:]
        - table[:-height, width:]
        - table[height:, :-width]
        + table[:-height, :-width]
    )
