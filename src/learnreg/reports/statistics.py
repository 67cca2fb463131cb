"""Differences between methods, image by image, with what a few images can say about them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FEWEST = 6
"""With fewer images the signed-rank test cannot reach 5 %, whatever the differences are, and a
bootstrap interval is too short.
"""

LEVEL, DRAWS, SEED = 0.95, 9999, 0
"""Of the bootstrap interval."""


@dataclass(frozen=True)
class Paired:
    """How ``first`` compares with ``second`` on the same images; differences are first - second.

    Attributes:
        first, second: names.
        images: how many have both numbers.
        mean, deviation: of the differences; the sample standard deviation, 0 for one image.
        least, most: the smallest and the largest difference.
        low, high: 95 % interval of the mean by the bootstrap over images (BCa; percentiles where
            that is not defined), None for too few images.
        p: two-sided p-value of the Wilcoxon signed-rank test, None for too few images.
        wins, losses: images on which the first is better, and worse.
    """

    first: str
    second: str
    images: int
    mean: float
    deviation: float
    least: float
    most: float
    low: float | None
    high: float | None
    p: float | None
    wins: int
    losses: int


def paired(
    first: str, ours: Sequence[float], second: str, theirs: Sequence[float]
) -> Paired | None:
    """None where no image has both numbers."""
    both = [(a, b) for a, b in zip(ours, theirs, strict=True) if math.isfinite(a - b)]
    if not both:
        return None
    differences = np.array([a - b for a, b in both])
    several = len(differences) > 1
    enough = len(differences) >= FEWEST
    low, high = _interval(differences) if enough else (None, None)
    return Paired(
        first,
        second,
        len(differences),
        float(differences.mean()),
        float(differences.std(ddof=1)) if several else 0.0,
        float(differences.min()),
        float(differences.max()),
        low,
        high,
        _signed_rank(differences) if enough else None,
        int((differences > 0).sum()),
        int((differences < 0).sum()),
    )


def _interval(differences: np.ndarray) -> tuple[float, float]:
    """The bootstrap interval of the mean; equal numbers for equal differences."""
    from scipy.stats import bootstrap

    if np.ptp(differences) == 0:
        return float(differences[0]), float(differences[0])
    for method in ("BCa", "percentile"):
        with np.errstate(all="ignore"):
            found = bootstrap(
                (differences,),
                np.mean,
                n_resamples=DRAWS,
                confidence_level=LEVEL,
                method=method,
                random_state=np.random.default_rng(SEED),
            ).confidence_interval
        if math.isfinite(found.low) and math.isfinite(found.high):
            return float(found.low), float(found.high)
    return float(differences.min()), float(differences.max())


def _signed_rank(differences: np.ndarray) -> float:
    """Two-sided p-value; 1 where no image differs."""
    from scipy.stats import wilcoxon

    if not differences.any():
        return 1.0
    return float(wilcoxon(differences).pvalue)


def in_words(pair: Paired, sources: int = 0, unit: str = "dB") -> str:
    """One or two sentences, modest where there are few images.

    Args:
        sources: photographs that the images come from, 0 where that is not known.
    """
    n = pair.images
    images = "one image" if n == 1 else f"{n} images"
    size = f"{abs(pair.mean):.2f} {unit}"
    if pair.mean == 0:
        text = f"{pair.first} and {pair.second} are equal on average"
    else:
        side = "above" if pair.mean > 0 else "below"
        text = f"{pair.first} is {size} {side} {pair.second}{'' if n == 1 else ' on average'}"
    if n == 1:
        return f"{text}, on one image: that says nothing about others."
    if pair.low is None or pair.high is None:
        text += f" (from {_signed(pair.least)} to {_signed(pair.most)} {unit})"
    else:
        text += f" (95 % interval {_signed(pair.low)} to {_signed(pair.high)} {unit})"
    text += f", better on {pair.wins} of {images}"
    text += f" and worse on {pair.losses}" if pair.losses else ""
    if pair.p is None:
        text += f"; {n} images are too few for an interval, or for a test to reach 5 %"
    else:
        text += f"; signed-rank test p = {_p(pair.p)}"
    text = f"{text}."
    if 0 < sources < n:
        shots = "one photograph" if sources == 1 else f"{sources} photographs"
        text += f" The images come from {shots}, so they say less than as many independent ones."
    return text


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= 1e-3 else "below 0.001"


def interval(psnr: float, peak: float, error: float, entries: int) -> tuple[float, float]:
    """PSNR of the exact minimizer, from that of a picture within ``error`` of it.

    Its root mean square error is off by at most ``error / sqrt(entries)``; moduli and clipping
    bring pictures no farther from each other.

    Args:
        psnr, peak: of the picture.
        error: distance over all entries of it.
        entries: how many real numbers the PSNR averages over.

    Returns:
        (lowest, highest) in dB; NaN where something is not known, inf where the error may be 0.
    """
    if not (math.isfinite(psnr) and math.isfinite(error) and peak > 0):
        return math.nan, math.nan
    rmse = peak * 10 ** (-psnr / 20)
    off = error / math.sqrt(entries)
    low, high = rmse + off, rmse - off
    return (
        -20 * math.log10(low / peak),
        math.inf if high <= 0 else -20 * math.log10(high / peak),
    )
