"""Noise levels: how much regularization another one wants, and the words for one not meant."""

from __future__ import annotations

from torch import Tensor

DIRECT, INDIRECT = 1.2, 1.5
"""p of the rule k = (sigma / learned)^p where every pixel is measured or not, and where the
measurements mix them; ``docs/noise_levels.md`` has the numbers behind it.
"""

TOLERANCE = 0.3
"""Relative difference of noise levels that is worth a word.

Measured: a regularizer that is off by so much costs up to 0.7 dB, and estimates on photographs
are off by less.
"""

ROUNDING = 1e-6
"""Relative difference of noise levels that is no difference: they are kept in float32."""


def factor(sigma: Tensor, learned: float, exponent: float) -> Tensor:
    """k (b,): what R is multiplied by at the noise levels sigma (b,)."""
    return (sigma.double() / learned) ** exponent


def same_level(sigma: Tensor, learned: float) -> bool:
    """Whether all levels (b,) are the learned one, up to the rounding of float32."""
    return bool((sigma.double() / learned - 1).abs().max() < ROUNDING)


def differs(learned: float, sigma: float) -> bool:
    """Whether two noise levels, in the same units, are further apart than ``TOLERANCE``."""
    return abs(sigma - learned) > TOLERANCE * learned


def mismatch(
    learned: float,
    sigma: float,
    *,
    estimated: bool = False,
    remedy: str = "Pass --sigma auto, or --sigma with the level you know.",
) -> str | None:
    """What to say where a model meets noise that it was not learned for; None if it is close.

    Args:
        learned: the standard deviation in the training data.
        sigma: that of the image, in the same units.
        estimated: whether ``sigma`` comes from the image itself.
        remedy: a full sentence; that of the command ``reconstruct`` by default.

    >>> mismatch(0.1, 0.11) is None
    True
    >>> print(mismatch(0.1, 0.2, estimated=True, remedy="Say so."))
    noise: standard deviation 0.2 (estimated), but the model was learned at 0.1. Too little \
regularization leaves noise. Say so.
    """
    if not differs(learned, sigma):
        return None
    source = " (estimated)" if estimated else ""
    harm = (
        "Too little regularization leaves noise."
        if sigma > learned
        else "Too much regularization blurs details."
    )
    return (
        f"noise: standard deviation {sigma:.2g}{source}, but the model was learned at "
        f"{learned:.2g}. {harm} {remedy}"
    )
